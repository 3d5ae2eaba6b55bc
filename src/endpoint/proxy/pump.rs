//! One connection through the proxy: both ends, a thread a direction, and what its first bytes tell.

use std::io::{self, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::fast::Way;
use super::{Passed, Shared};
use crate::capture::{ChannelTap, Direction, interface_name};
use crate::error::{ChannelId, Error, Result};
use crate::multifd::Beginning;
use crate::transport::Connection;

/// Bytes that are read at once: what a socket holds at most by default, so that one call empties it.
const CHUNK: usize = 256 << 10;

/// Both ends of a connection through the proxy.
pub(super) struct Ends {
    pub(super) source: Connection,
    pub(super) target: Connection,
    pub(super) tap: Option<ChannelTap>,
    /// How often connections had broken when it was opened.
    pub(super) leg: u32,
    pub(super) channel: Mutex<ChannelId>,
    /// What happens to it from now on is of our own making.
    pub(super) is_cut: AtomicBool,
    /// One of its directions has ended.
    pub(super) is_half_over: AtomicBool,
    /// Bytes by direction: to the target, to the source.
    pub(super) passed: [AtomicU64; 2],
}

impl Ends {
    pub(super) fn shutdown(&self) {
        // Who is gone already cannot be told.
        let _ = self.source.shutdown();
        let _ = self.target.shutdown();
    }

    pub(super) fn reset(&self) {
        let _ = self.source.reset();
        let _ = self.target.reset();
    }

    fn channel(&self) -> ChannelId {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn passed(&self) -> Passed {
        let channel = *self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let [to_target, to_source] = [0, 1].map(|i| self.passed[i].load(Ordering::Acquire));
        Passed { channel: interface_name(channel), to_target, to_source }
    }
}

/// One direction of a connection.
pub(super) struct Pump {
    pub(super) ends: Arc<Ends>,
    pub(super) direction: Direction,
    pub(super) shared: Arc<Shared>,
    pub(super) number: usize,
}

impl Pump {
    pub(super) fn run(self) {
        match self.forward() {
            Err(_) if self.ends.is_cut.load(Ordering::Acquire) => {}
            Err(error) if self.shared.breaks.may_return() => self.shared.cut(Some(error)),
            Err(error) => self.shared.fail(error),
            Ok(()) => {}
        }
        self.shared.pumps.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn channel(&self) -> ChannelId {
        self.ends.channel()
    }

    fn forward(&self) -> Result<()> {
        let (from, to) = match self.direction {
            Direction::ToDestination => (&self.ends.source, &self.ends.target),
            Direction::ToSource => (&self.ends.target, &self.ends.source),
        };
        if let Some(troubles) = &self.shared.troubles {
            let ended = self.relay_troubled(from, to, troubles);
            self.ends.is_half_over.store(true, Ordering::Release);
            return ended.and_then(|()| to.shutdown_write());
        }
        let mut first = (self.direction == Direction::ToDestination).then(FirstBytes::default);
        let ended = self.relay(from, to, &mut first);
        match first {
            Some(first) if first.bytes.is_empty() => self.note_silent(),
            // Too short to tell what it was.
            Some(first) => self.record(&first.bytes),
            None => {}
        }
        ended.and_then(|()| to.shutdown_write())
    }

    fn relay(&self, mut from: &Connection, to: &Connection, first: &mut Option<FirstBytes>) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut may_splice = true;
        loop {
            if may_splice && first.is_none() && self.is_worth_splicing() {
                match self.splice(from, to)? {
                    Way::Over => return Ok(()),
                    Way::Copy => may_splice = false,
                }
            }
            let bytes = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => &buffer[..count],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.not_received(from, to, e)),
            };
            // An answer may come as soon as the bytes are out, so the connection has its name before that.
            let is_named = first.as_mut().is_none_or(|first| self.name(first, bytes));
            if is_named {
                *first = None;
            }
            let is_main = self.direction == Direction::ToDestination
                && matches!(self.ends.channel(), ChannelId::Main | ChannelId::Resumed(_));
            let admitted = if is_main { self.shared.breaks.admit(bytes) } else { bytes.len() };
            self.pass(&bytes[..admitted], from, to, is_named)?;
            if is_main && self.shared.breaks.is_due() {
                self.shared.cut(None);
                return Ok(());
            }
        }
    }

    /// Sends bytes on, and records them as far as they were taken, unless they are held back for a name.
    pub(super) fn pass(
        &self,
        bytes: &[u8],
        from: &Connection,
        mut to: &Connection,
        is_named: bool,
    ) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // An answer may be here before this goes on. Whoever takes nothing holds up only its own channel.
            let is_recorded = is_named && self.ends.tap.is_some();
            let turn = (is_recorded && to.takes_bytes()).then(|| self.shared.backlog.enter());
            let taken = match to.write(rest) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                taken => taken,
            };
            if is_recorded {
                let taken = taken.as_ref().map_or(0, |taken| *taken);
                self.record_in_turn(turn, &rest[..taken]);
            }
            let taken = taken.map_err(|e| self.not_sent(from, to, e))?;
            rest = &rest[taken..];
            self.count(taken);
        }
        Ok(())
    }

    /// The connection has ended without a byte. Beside a main channel that is a preempt channel on which no page was asked for, if there
    /// is no other; a destination that waits for it must be given one again.
    pub(super) fn note_silent(&self) {
        if !self.shared.has_main.load(Ordering::Acquire) {
            return;
        }
        let channel = match self.ends.leg {
            0 => ChannelId::Preempt,
            leg => ChannelId::ResumedPreempt(leg),
        };
        let ends = self.shared.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if ends.iter().any(|other| other.channel() == channel) {
            return;
        }
        *self.ends.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
        drop(ends);
        if let Some(tap) = &self.ends.tap
            && tap.set_name(interface_name(channel)).is_ok()
        {
            tap.announce();
        }
    }

    pub(super) fn not_received(&self, from: &Connection, to: &Connection, e: io::Error) -> Error {
        // The other side must not wait for what will never come.
        let _ = to.shutdown_write();
        self.error(from, "receiving", e)
    }

    pub(super) fn not_sent(&self, from: &Connection, to: &Connection, e: io::Error) -> Error {
        // A source that goes on writing must learn that nobody reads. If it is the source that is gone, the other pump goes on
        // to the end of what it has sent.
        if self.direction == Direction::ToDestination {
            let _ = from.shutdown();
        }
        self.error(to, "sending", e)
    }

    /// Gives the connection its name if `bytes` and what came before tell what it is. Bytes that were held back until then
    /// are recorded.
    fn name(&self, first: &mut FirstBytes, bytes: &[u8]) -> bool {
        let held = first.bytes.len();
        if self.identify(first, bytes).is_none() {
            return false;
        }
        self.record(&first.bytes[..held]);
        true
    }

    /// Gives the connection its name, if `bytes` and what came before tell it.
    pub(super) fn identify(&self, first: &mut FirstBytes, bytes: &[u8]) -> Option<ChannelId> {
        let room = Beginning::ENOUGH - first.bytes.len();
        first.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let has_main = self.shared.has_main.load(Ordering::Acquire);
        let channel = first.channel(self.number, has_main)?;
        let breaks = &self.shared.breaks;
        let channel = match channel {
            ChannelId::Connection(_) if has_main && breaks.is_paused() => breaks.resume(),
            ChannelId::Preempt if breaks.pauses() > 0 => ChannelId::ResumedPreempt(breaks.pauses()),
            channel => channel,
        };
        if channel == ChannelId::Main {
            self.shared.has_main.store(true, Ordering::Release);
        }
        *self.ends.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
        if let Some(tap) = &self.ends.tap {
            // If the target has spoken first, the connection keeps its number in the recording.
            let _ = tap.set_name(interface_name(channel));
        }
        Some(channel)
    }

    /// A recording that fails says so when it is finished; the migration goes on.
    fn record(&self, bytes: &[u8]) {
        self.record_in_turn(None, bytes);
    }

    /// Records bytes, in their turn if they have got one before they were forwarded.
    fn record_in_turn(&self, turn: Option<u64>, bytes: &[u8]) {
        let turn = turn.unwrap_or_else(|| self.shared.backlog.enter());
        if let Some(tap) = self.ends.tap.as_ref().filter(|_| !bytes.is_empty()) {
            self.shared.backlog.wait(turn);
            // A recording that fails says so when it is finished; the migration goes on.
            let _ = tap.record(self.direction, bytes);
        }
        self.shared.backlog.leave(turn);
    }

    pub(super) fn count(&self, bytes: usize) {
        self.ends.passed[self.direction as usize].fetch_add(bytes as u64, Ordering::AcqRel);
        self.shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.shared.note_activity();
    }

    fn error(&self, end: &Connection, doing: &'static str, e: io::Error) -> Error {
        let channel = *self.ends.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match (channel, self.direction) {
            (ChannelId::Main, Direction::ToSource) => ChannelId::ReturnPath,
            (ChannelId::Resumed(n), Direction::ToSource) => ChannelId::ResumedReturnPath(n),
            (channel, _) => channel,
        };
        end.error(doing, e).on(channel).at(self.ends.passed[self.direction as usize].load(Ordering::Acquire))
    }
}

/// The first bytes from a source, until they tell what the connection is.
#[derive(Debug, Default)]
pub(super) struct FirstBytes {
    bytes: Vec<u8>,
}

impl FirstBytes {
    /// Whether nothing has come.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What the connection is; `None` as long as more bytes may tell.
    fn channel(&self, number: usize, has_main: bool) -> Option<ChannelId> {
        Some(match Beginning::of(&self.bytes)? {
            Beginning::Main => ChannelId::Main,
            Beginning::Multifd(id) => ChannelId::Multifd(id),
            Beginning::Other if has_main => ChannelId::Preempt,
            Beginning::Other | Beginning::Command => ChannelId::Connection(number as u32),
        })
    }
}
