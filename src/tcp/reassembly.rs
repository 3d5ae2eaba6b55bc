//! One direction of one connection: segments in any order become bytes in theirs.
//!
//! ```text
//!          settled      hole      held               hole   held
//! ----------------------|.........|##################|......|#####|
//!                       offset                                        acknowledged ..>
//! ```
//! What comes at `offset` is passed on at once, without being kept; what comes behind a hole is held until the hole is filled, or
//! given up. It is given up when its bytes can no longer be expected: the receiver has them (it acknowledged what lies behind),
//! and the capture, which sees packets in almost the order in which they passed, has gone on for a while; or when too much is
//! held. A hole that was given up shows as a jump in the offsets that are passed on.
//!
//! Sequence numbers have 32 bits and wrap; offsets have 64. Where segments overlap, what came first stays. Whether the bytes
//! are the same can be seen for those that are held, not for those that have been passed on.

use std::collections::BTreeMap;

use crate::Result;
use crate::capture::Timestamp;

/// What is held behind a hole whose bytes the receiver has, before it is given up.
const PATIENCE: usize = 512 << 10;
/// How long, in nanoseconds.
const PATIENCE_TIME: u64 = 1_000_000_000;
/// What is held behind a hole of which nothing is known: a receiver may have to wait for so much while a segment is sent again.
const LONG_PATIENCE: usize = 24 << 20;
/// What a held segment costs beside its bytes.
const ENTRY: usize = 96;
/// No receiver has a larger window than this, so nobody acknowledges what is farther ahead.
const WINDOW: i64 = 1 << 30;

/// Takes bytes: their offset, and themselves.
pub type Deliver<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<()>;

/// See the module.
#[derive(Debug)]
pub struct Reassembly {
    /// Sequence number of the byte at `offset`.
    next: u32,
    offset: u64,
    held: BTreeMap<u64, Held>,
    /// What the held segments take.
    weight: usize,
    /// Bytes in front of this one were acknowledged, the last ones in a step of so many.
    acknowledged: u64,
    step: u64,
    /// Since when the receiver has been known to have what is missing here.
    known_missing: Option<Timestamp>,
    /// Where FIN is.
    end: Option<u64>,
    counts: Counts,
}

#[derive(Debug)]
struct Held {
    data: Box<[u8]>,
    /// So many bytes behind it belong to the same segment, and were not kept.
    cut: usize,
}

/// What was odd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Segments with bytes that had come before.
    pub retransmitted: u64,
    /// Segments in front of which something was missing when they came.
    pub out_of_order: u64,
    /// Bytes that came again with another value.
    pub conflicting: u64,
}

impl Reassembly {
    /// A direction whose first byte has this sequence number.
    #[must_use]
    pub fn new(first: u32) -> Self {
        Self {
            next: first,
            offset: 0,
            held: BTreeMap::new(),
            weight: 0,
            acknowledged: 0,
            step: 0,
            known_missing: None,
            end: None,
            counts: Counts::default(),
        }
    }

    /// A segment came, of `length` bytes of which `data` were kept.
    ///
    /// # Errors
    /// Those of `deliver`.
    pub fn handle_data(
        &mut self,
        sequence: u32,
        mut data: &[u8],
        mut length: usize,
        time: Timestamp,
        deliver: Deliver<'_>,
    ) -> Result<()> {
        let ahead = self.ahead(sequence);
        if ahead < 0 {
            self.counts.retransmitted += u64::from(length > 0);
            let old = usize::try_from(-ahead).unwrap_or(usize::MAX);
            if old >= length {
                return Ok(());
            }
            data = data.get(old..).unwrap_or_default();
            length -= old;
        }
        let from = self.offset + ahead.max(0).unsigned_abs();
        let cut = length - data.len();
        if from > self.offset {
            self.counts.out_of_order += u64::from(length > 0);
            self.hold(from, data, cut);
        } else if self.held.is_empty() {
            self.pass(data, deliver)?;
            self.advance(cut as u64);
        } else {
            // Up to where something is held; the rest is compared with that.
            let room = self.held.keys().next().map_or(u64::MAX, |first| first - from);
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
            self.pass(&data[..room], deliver)?;
            if room < data.len() || cut > 0 {
                self.hold(from + room as u64, &data[room..], cut);
            }
            self.drain(deliver)?;
        }
        loop {
            self.watch(time);
            if !self.is_impatient(time) {
                return Ok(());
            }
            self.give_up(deliver)?;
        }
    }

    /// The other side waits for the byte of this number: it has all in front of it.
    pub fn handle_acknowledgement(&mut self, number: u32, time: Timestamp) {
        let ahead = self.ahead(number);
        if (0..WINDOW).contains(&ahead) {
            let to = self.offset + ahead.unsigned_abs();
            if to > self.acknowledged {
                self.step = to - self.acknowledged;
                self.acknowledged = to;
            }
            self.watch(time);
        }
    }

    /// Nothing comes behind the byte in front of this number.
    pub fn handle_end(&mut self, number: u32) {
        let ahead = self.ahead(number);
        if self.end.is_none() && (0..WINDOW).contains(&ahead) {
            self.end = Some(self.offset + ahead.unsigned_abs());
        }
    }

    /// Stops waiting for the bytes in front of what is held.
    ///
    /// # Errors
    /// Those of `deliver`.
    pub fn give_up(&mut self, deliver: Deliver<'_>) -> Result<()> {
        if let Some(&first) = self.held.keys().next() {
            self.advance(first - self.offset);
            self.drain(deliver)?;
        }
        Ok(())
    }

    /// Stops waiting for anything. The offset of the end, as far as it is known: it is behind what was passed on if the last bytes
    /// are missing.
    ///
    /// # Errors
    /// Those of `deliver`.
    pub fn finish(&mut self, deliver: Deliver<'_>) -> Result<u64> {
        while !self.held.is_empty() {
            self.give_up(deliver)?;
        }
        let known = match self.end {
            Some(end) => end,
            // FIN has a number too, and is acknowledged by itself as a rule.
            None if self.step == 1 || self.acknowledged == self.offset + 1 => self.acknowledged - 1,
            None => self.acknowledged,
        };
        Ok(known.max(self.offset))
    }

    /// Whether everything up to FIN has been settled.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.end.is_some_and(|end| end <= self.offset)
    }

    /// Bytes that were passed on or given up.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Memory that is taken by what is held.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// What was odd so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How far a sequence number is in front of, or behind, the next byte.
    fn ahead(&self, sequence: u32) -> i64 {
        i64::from(sequence.wrapping_sub(self.next).cast_signed())
    }

    fn pass(&mut self, data: &[u8], deliver: Deliver<'_>) -> Result<()> {
        if !data.is_empty() {
            deliver(self.offset, data)?;
            self.advance(data.len() as u64);
        }
        Ok(())
    }

    fn advance(&mut self, by: u64) {
        self.offset += by;
        self.next = self.next.wrapping_add(by as u32);
        if by > 0 {
            self.known_missing = None;
        }
    }

    /// Keeps what is new of `data`.
    fn hold(&mut self, mut from: u64, mut data: &[u8], cut: usize) {
        let end = from + data.len() as u64;
        let before = self.held.range(..=from).next_back().map(|(start, _)| *start);
        let mut repeated = false;
        let first = before.unwrap_or(from);
        let overlapping: Vec<u64> =
            self.held.range(first..end.max(first + 1)).map(|(start, _)| *start).collect();
        for start in overlapping {
            let Some(held) = self.held.get(&start) else { continue };
            let held_end = start + held.data.len() as u64;
            if held_end <= from || start >= end {
                continue;
            }
            repeated = true;
            let gap = start.saturating_sub(from) as usize;
            // Both have `start.max(from)..held_end.min(end)`.
            let ours = &data[gap..];
            let theirs = &held.data[from.saturating_sub(start) as usize..];
            let both = ours.len().min(theirs.len());
            self.counts.conflicting += ours[..both].iter().zip(theirs).filter(|(a, b)| a != b).count() as u64;
            self.keep(from, &data[..gap], 0);
            data = &ours[both..];
            from += (gap + both) as u64;
        }
        self.counts.retransmitted += u64::from(repeated);
        self.keep(from, data, cut);
    }

    fn keep(&mut self, from: u64, data: &[u8], cut: usize) {
        if data.is_empty() {
            // Nothing but the knowledge that what follows was not kept; bytes that are there know better.
            let before = self.held.range(..=from).next_back();
            if cut == 0 || before.is_some_and(|(start, held)| start + held.data.len() as u64 > from) {
                return;
            }
        }
        // What is there can only be such a one.
        if let Some(Held { data, .. }) = self.held.insert(from, Held { data: data.into(), cut }) {
            self.weight -= data.len() + ENTRY;
        }
        self.weight += data.len() + ENTRY;
    }

    /// Passes on what is held at the offset.
    fn drain(&mut self, deliver: Deliver<'_>) -> Result<()> {
        while let Some(entry) = self.held.first_entry() {
            if *entry.key() > self.offset {
                break;
            }
            let Held { data, cut } = entry.remove();
            self.weight -= data.len() + ENTRY;
            self.pass(&data, deliver)?;
            if cut > 0 {
                // Bytes that were not kept do not come.
                let next = self.held.keys().next().map_or(u64::MAX, |next| next - self.offset);
                self.advance(next.min(cut as u64));
            }
        }
        Ok(())
    }

    fn watch(&mut self, time: Timestamp) {
        if !self.held.is_empty() && self.acknowledged > self.offset {
            self.known_missing.get_or_insert(time);
        }
    }

    fn is_impatient(&self, now: Timestamp) -> bool {
        let is_over =
            |since: Timestamp| self.weight > PATIENCE || now.0.saturating_sub(since.0) > PATIENCE_TIME;
        !self.held.is_empty() && (self.known_missing.is_some_and(is_over) || self.weight > LONG_PATIENCE)
    }
}

#[cfg(test)]
mod tests;
