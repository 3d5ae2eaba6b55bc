//! Where everything is in a recording, written along with it, so that a channel can be read without reading the file.
//!
//! ```text
//! section | interface 0 | packet | packet | interface 1 | packet .. | index | packet .. | index | seal
//!         '---------- what the first index block tells of ----------'       '--- the second --'
//! ```
//! An index block tells of all blocks from the one before it to itself, in runs: so many packets, of that many bytes, of that half of a
//! channel. Where they are follows from that, so a packet takes a few bytes at most, and nothing has to be kept in memory.
//! The last thing in the file, the [seal](super::seal), says where the last index block is, and each one where the one before is.
//!
//! An index is a convenience. It is used only if it accounts for every byte of the file, and blocks at its places are what it says;
//! otherwise the file is read from end to end.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use super::Direction;
use super::block::{self, ENHANCED_PACKET, MAX_PACKET, Order, PACKET_HEAD, PACKET_TAIL};
use super::channel::{ChannelSummary, Place};
use super::reader::Reader;
use crate::limits::{MAX_CAPTURE_INDEX, MAX_CAPTURE_INTERFACES, MAX_CAPTURE_PLACES};

/// Kind of block: index.
pub(super) const INDEX: u8 = 2;

/// Bytes of entries from which on a block is written.
const FULL: usize = 128 << 10;

/// Longest index block that is taken for one.
const MAX_BLOCK: u64 = 256 << 10;

/// Longest interface description that is read by an index.
const MAX_DESCRIPTION: u32 = 4096;

/// What is no packet, by its length in words.
const OTHER: u64 = 0;
/// An interface description, by its length in words.
const INTERFACE: u64 = 1;
/// Packets of interface 0 to the destination; the other halves follow.
const PACKETS: u64 = 2;

/// Places of a half that are looked at: its first packet, its last, and some in between.
const SPOTS: usize = 8;

/// The index of a recording that is being written.
#[derive(Default)]
pub(super) struct Writer {
    /// Where the blocks begin that are not in an index block yet, and where they end.
    from: u64,
    at: u64,
    previous: u64,
    entries: Vec<u8>,
    run: Option<Run>,
}

/// Blocks in a row that are alike.
#[derive(Clone, Copy)]
struct Run {
    what: u64,
    size: u64,
    count: u64,
}

impl Writer {
    pub(super) fn note_interface(&mut self, len: usize) {
        self.note(Run { what: INTERFACE, size: len as u64 / 4, count: 1 });
        self.at += len as u64;
    }

    /// A block that is neither packet nor interface description.
    pub(super) fn note_other(&mut self, len: usize) {
        self.note(Run { what: OTHER, size: len as u64 / 4, count: 1 });
        self.at += len as u64;
    }

    pub(super) fn note_packet(&mut self, interface: u32, direction: Direction, len: usize) {
        let what = PACKETS + 2 * u64::from(interface) + direction as u64;
        self.note(Run { what, size: len as u64, count: 1 });
        self.at += block::packet_len(len) as u64;
    }

    fn note(&mut self, next: Run) {
        match &mut self.run {
            Some(run) if (run.what, run.size) == (next.what, next.size) => run.count += 1,
            _ => {
                self.close_run();
                self.run = Some(next);
            }
        }
    }

    fn close_run(&mut self) {
        if let Some(run) = self.run.take() {
            [run.what, run.size, run.count].iter().for_each(|n| put(&mut self.entries, *n));
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= FULL
    }

    /// The block that is to be written now. Where it is.
    pub(super) fn block(&mut self) -> (Vec<u8>, u64) {
        self.close_run();
        let mut content = Vec::with_capacity(self.entries.len() + 16);
        content.extend_from_slice(&self.previous.to_le_bytes());
        content.extend_from_slice(&self.from.to_le_bytes());
        content.append(&mut self.entries);
        let block = block::local(INDEX, &content);
        self.previous = self.at;
        self.at += block.len() as u64;
        self.from = self.at;
        (block, self.previous)
    }
}

/// What an index says.
pub(super) struct Found {
    pub(super) channels: Vec<ChannelSummary>,
    pub(super) places: Option<Vec<Vec<Place>>>,
    pub(super) about: Option<String>,
}

/// One half of a connection.
#[derive(Default)]
struct Half {
    bytes: u64,
    packets: u64,
    first: u64,
    last: u64,
    last_len: u32,
    places: Vec<Place>,
}

/// Reads the index whose last block is at `last`; blocks end at `end`. `None` if it does not fit this file.
pub(super) fn read<S: Read + Seek>(source: &mut S, last: u64, end: u64) -> io::Result<Option<Found>> {
    let Some(blocks) = chain(source, last, end)? else { return Ok(None) };
    let mut walk = Walk { count: 0, others: Vec::new(), halves: BTreeMap::new(), interfaces: Vec::new() };
    for (entries, from, until) in blocks.iter().rev() {
        if walk.follow(entries, *from, *until).is_none() {
            return Ok(None);
        }
    }
    walk.found(source)
}

/// Entries of an index block, and of which bytes of the file they tell.
type Entries = (Vec<u8>, u64, u64);

/// All index blocks, the last one first, if together they tell of the whole file.
fn chain<S: Read + Seek>(source: &mut S, last: u64, end: u64) -> io::Result<Option<Vec<Entries>>> {
    let mut blocks = Vec::new();
    let (mut at, mut end, mut total) = (last, end, 0);
    loop {
        let len = end.saturating_sub(at);
        total += len;
        if at >= end || len > MAX_BLOCK || total > MAX_CAPTURE_INDEX {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        source.seek(SeekFrom::Start(at))?;
        source.read_exact(&mut bytes)?;
        let Some((INDEX, content)) = block::read_local(&bytes) else { return Ok(None) };
        let Some((head, entries)) = content.split_at_checked(16) else { return Ok(None) };
        let (previous, from) = (word(head), word(&head[8..]));
        if from > at {
            return Ok(None);
        }
        blocks.push((entries.to_vec(), from, at));
        if previous == 0 {
            return Ok(Some(blocks).filter(|_| from == 0));
        }
        (at, end) = (previous, from);
    }
}

struct Walk {
    /// Packets so far.
    count: u64,
    /// What is said to be neither packet nor interface description: offset, length of one, how many.
    others: Vec<(u64, u64, u64)>,
    halves: BTreeMap<u64, Half>,
    /// Offset and length of every interface description.
    interfaces: Vec<(u64, u32)>,
}

impl Walk {
    /// Follows entries that tell of the file's bytes `from..until`, if they do.
    fn follow(&mut self, mut entries: &[u8], from: u64, until: u64) -> Option<()> {
        let mut at = from;
        while !entries.is_empty() {
            let (what, size, count) = (take(&mut entries)?, take(&mut entries)?, take(&mut entries)?);
            let block = match what {
                OTHER | INTERFACE => size.checked_mul(4)?,
                _ if (1..=MAX_PACKET as u64).contains(&size) => block::packet_len(size as usize) as u64,
                _ => return None,
            };
            let len = block.checked_mul(count).filter(|len| (1..=until - at).contains(len))?;
            match what {
                OTHER => self.others.push((at, block, count)),
                INTERFACE => self.add_interfaces(at, u32::try_from(block).ok()?, count)?,
                _ => self.add_packets(what - PACKETS, at, block, size as u32, count)?,
            }
            at += len;
        }
        (at == until).then_some(())
    }

    fn add_interfaces(&mut self, at: u64, block: u32, count: u64) -> Option<()> {
        if block > MAX_DESCRIPTION || count > (MAX_CAPTURE_INTERFACES - self.interfaces.len()) as u64 {
            return None;
        }
        self.interfaces.extend((0..count).map(|n| (at + n * u64::from(block), block)));
        Some(())
    }

    fn add_packets(&mut self, half: u64, at: u64, block: u64, size: u32, count: u64) -> Option<()> {
        if half / 2 >= self.interfaces.len() as u64 {
            return None;
        }
        let entry = self.halves.entry(half).or_default();
        if entry.packets == 0 {
            entry.first = at;
        }
        entry.last = at + (count - 1) * block;
        entry.last_len = size;
        entry.packets += count;
        entry.bytes += count * u64::from(size);
        self.count += count;
        if self.count <= MAX_CAPTURE_PLACES as u64 {
            let place = |n| Place { offset: at + n * block + PACKET_HEAD as u64, len: size };
            entry.places.extend((0..count).map(place));
        }
        Some(())
    }

    /// Looks at blocks in the file, and puts together what they are.
    fn found<S: Read + Seek>(self, source: &mut S) -> io::Result<Option<Found>> {
        for (at, block, count) in &self.others {
            for n in 0..*count {
                if !hides_nothing(source, at + n * block, *block)? {
                    return Ok(None);
                }
            }
        }
        // What describes the channels is a small recording of its own.
        let Some(mut head) = section(source)? else { return Ok(None) };
        for (at, len) in &self.interfaces {
            let start = head.len();
            head.resize(start + *len as usize, 0);
            source.seek(SeekFrom::Start(*at))?;
            source.read_exact(&mut head[start..])?;
        }
        let Ok(mut reader) = Reader::new(&head[..]) else { return Ok(None) };
        if !matches!(reader.next_found(), Ok(None)) || reader.interfaces().len() != self.interfaces.len() {
            return Ok(None);
        }
        let mut halves = self.halves;
        for (number, interface) in reader.interfaces().iter().enumerate() {
            let there = 2 * number as u64;
            let is_silent = !halves.contains_key(&there) && !halves.contains_key(&(there + 1));
            if is_silent && ChannelSummary::silent(number, interface).is_some() {
                halves.insert(there, Half::default());
            }
        }
        let has_places = self.count <= MAX_CAPTURE_PLACES as u64;
        let (mut channels, mut places) = (Vec::new(), Vec::new());
        for (number, half) in halves {
            let (interface, direction) = ((number / 2) as usize, number % 2);
            let direction = if direction == 0 { Direction::ToDestination } else { Direction::ToSource };
            let described = &reader.interfaces()[interface];
            if half.packets == 0 {
                channels.extend(ChannelSummary::silent(interface, described));
                places.push(half.places);
                continue;
            }
            let spots = half.places.iter().step_by((half.places.len() / SPOTS).max(1));
            let mut is_right = true;
            for place in spots {
                let offset = place.offset - PACKET_HEAD as u64;
                is_right &= look(source, offset, interface, direction, Some(place.len))?.is_some();
            }
            let times = (
                look(source, half.first, interface, direction, None)?,
                look(source, half.last, interface, direction, Some(half.last_len))?,
            );
            let (true, (Some(first), Some(last))) = (is_right, times) else { return Ok(None) };
            channels.push(ChannelSummary {
                interface,
                name: described.name.clone(),
                description: described.description.clone(),
                direction,
                bytes: half.bytes,
                packets: half.packets,
                first: described.time(first.min(last)),
                last: described.time(first.max(last)),
            });
            places.push(half.places);
        }
        let about = reader.about().map(str::to_owned);
        Ok(Some(Found { channels, places: Some(places).filter(|_| has_places), about }))
    }
}

/// The section header at the beginning of the file.
fn section<S: Read + Seek>(source: &mut S) -> io::Result<Option<Vec<u8>>> {
    const MOST: u32 = 128 << 10;
    let mut head = vec![0; 8];
    source.seek(SeekFrom::Start(0))?;
    source.read_exact(&mut head)?;
    let (kind, len) = (Order::Little.u32(&head), Order::Little.u32(&head[4..]));
    if kind != block::SECTION_HEADER || !(28..=MOST).contains(&len) {
        return Ok(None);
    }
    head.resize(len as usize, 0);
    source.read_exact(&mut head[8..])?;
    Ok(Some(head))
}

/// Whether the block there is one that may be passed over: a section header, or one of ours.
fn hides_nothing<S: Read + Seek>(source: &mut S, at: u64, len: u64) -> io::Result<bool> {
    let mut head = [0; 8];
    source.seek(SeekFrom::Start(at))?;
    source.read_exact(&mut head)?;
    let (kind, size) = (Order::Little.u32(&head), Order::Little.u32(&head[4..]));
    Ok(u64::from(size) == len && (kind == block::LOCAL || (kind == block::SECTION_HEADER && at == 0)))
}

/// Whether there is such a packet; its time as it stands there.
fn look<S: Read + Seek>(
    source: &mut S,
    at: u64,
    interface: usize,
    direction: Direction,
    len: Option<u32>,
) -> io::Result<Option<u64>> {
    let mut head = [0; PACKET_HEAD];
    source.seek(SeekFrom::Start(at))?;
    source.read_exact(&mut head)?;
    let [kind, total, number, high, low, kept, all] =
        [0, 4, 8, 12, 16, 20, 24].map(|at| Order::Little.u32(&head[at..]));
    let wanted = len.unwrap_or(kept);
    let is_packet = (kind, number, kept, all) == (ENHANCED_PACKET, interface as u32, wanted, wanted)
        && kept as usize <= MAX_PACKET
        && total as usize == block::packet_len(kept as usize);
    if !is_packet {
        return Ok(None);
    }
    let mut tail = [0; PACKET_TAIL];
    source.seek(SeekFrom::Start(at + u64::from(total) - PACKET_TAIL as u64))?;
    source.read_exact(&mut tail)?;
    let is_whole = tail == block::packet_tail(direction.flags(), kept as usize);
    Ok(Some(u64::from(high) << 32 | u64::from(low)).filter(|_| is_whole))
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// A number, seven bits a byte, the lowest first.
fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let mut bytes = Vec::new();
        let numbers = [0, 1, 0x7f, 0x80, 262_144, u64::from(u32::MAX), u64::MAX];
        numbers.iter().for_each(|n| put(&mut bytes, *n));
        let mut rest = &bytes[..];
        numbers.iter().for_each(|n| assert_eq!(take(&mut rest), Some(*n)));
        assert_eq!(take(&mut rest), None);
        assert_eq!(take(&mut &[0xff; 20][..]), None);
    }

    #[test]
    fn packets_that_are_alike_take_no_room() {
        let mut writer = Writer::default();
        writer.note_other(120);
        writer.note_interface(44);
        for _ in 0..1_000_000 {
            writer.note_packet(0, Direction::ToDestination, MAX_PACKET);
        }
        assert!(!writer.is_full());
        let (block, at) = writer.block();
        assert_eq!(at, 164 + 1_000_000 * block::packet_len(MAX_PACKET) as u64);
        assert!(block.len() < 80, "{}", block.len());
    }
}
