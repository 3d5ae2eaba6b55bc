//! Any bytes, as a capture of a network, as packets, and as the segments of one connection: no panic, nothing in the wrong place, and
//! what is reported is what was passed on.
//!
//! ```text
//! 0  a file               1  link type, then packets: be16 length, bytes            2  be32 first number, then segments: be16 place,
//!                                                                                      u8 length, u8 what else
//! ```

use std::collections::BTreeMap;

use migwire::capture::{Direction, Frame, Frames, LinkType, Timestamp};
use migwire::tcp::{Missing, Output, Piece, Reassembly, Report, Selection, Traffic};

/// Longest input that is looked at: what is held is bounded anyway, and a corpus of large files is a slow one.
const MOST: usize = 1 << 20;

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first().filter(|_| bytes.len() < MOST) else { return };
    match kind % 3 {
        0 => [Selection::default(), everything()].into_iter().for_each(|selection| file(rest, selection)),
        1 => [Selection::default(), everything()].into_iter().for_each(|selection| packets(rest, selection)),
        _ => segments(rest),
    }
}

fn everything() -> Selection {
    Selection { from: None, to: Some(Default::default()) }
}

fn file(bytes: &[u8], selection: Selection) {
    let Ok(mut frames) = Frames::new(bytes) else { return };
    let (mut traffic, mut seen) = (Traffic::new(selection), Seen::default());
    let mut count = 0;
    let mut most = 0;
    while let Ok(Some(frame)) = frames.next_frame() {
        assert!(frame.length >= frame.data.len());
        count += 1;
        most += frame.data.len();
        assert!(most <= bytes.len(), "more data than there is");
        traffic.handle_frame(&frame, &mut seen).expect("the output takes everything");
    }
    assert!(frames.offset() <= bytes.len() as u64);
    let report = traffic.finish(&mut seen).expect("the output takes everything");
    assert_eq!(report.packets, count);
    seen.check(&report, most as u64);
}

fn packets(bytes: &[u8], selection: Selection) {
    let Some((link, mut rest)) = bytes.split_first_chunk::<2>() else { return };
    let link = LinkType(u16::from_be_bytes(*link));
    let (mut traffic, mut seen) = (Traffic::new(selection), Seen::default());
    let mut time = 0;
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let data = &more[..length.min(more.len())];
        rest = &more[data.len()..];
        let frame = Frame { link, time: Timestamp(time), data, length };
        traffic.handle_frame(&frame, &mut seen).expect("the output takes everything");
        // Now and then, time makes a leap.
        time += if length % 7 == 0 { 2_000_000_000 } else { 1000 };
    }
    let report = traffic.finish(&mut seen).expect("the output takes everything");
    seen.check(&report, bytes.len() as u64);
}

/// Segments of a stream whose bytes follow from their place: whatever comes in whatever order, they are passed on in theirs.
fn segments(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first_chunk::<4>() else { return };
    let first = u32::from_be_bytes(*first);
    let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    let mut stream = Reassembly::new(first);
    let mut next = 0;
    let mut given = 0u64;
    let mut deliver = |offset: u64, data: &[u8]| {
        assert!(offset >= next && !data.is_empty());
        next = offset + data.len() as u64;
        given += data.len() as u64;
        assert!((offset..).zip(data).all(|(at, found)| *found == byte(at)), "bytes in the wrong place");
        Ok(())
    };
    let mut come = 0;
    for (number, op) in rest.chunks_exact(4).enumerate() {
        let [high, low, length, what] = [op[0], op[1], op[2], op[3]];
        let at = u64::from(u16::from_be_bytes([high, low]));
        let time = Timestamp(number as u64 * 100_000_000);
        let sequence = first.wrapping_add(at as u32);
        match what % 8 {
            0 => stream.handle_acknowledgement(sequence, time),
            1 => stream.handle_end(sequence),
            2 => stream.give_up(&mut deliver).expect("it is taken"),
            _ => {
                let data: Vec<u8> = (at..at + u64::from(length)).map(byte).collect();
                come += u64::from(length);
                // Some are cut.
                let kept = if what % 8 == 3 { data.len() / 2 } else { data.len() };
                stream
                    .handle_data(sequence, &data[..kept], data.len(), time, &mut deliver)
                    .expect("it is taken");
            }
        }
        assert!(stream.weight() <= rest.len() * 100);
    }
    let end = stream.finish(&mut deliver).expect("it is taken");
    assert_eq!((stream.weight(), stream.counts().conflicting), (0, 0));
    assert!(end >= stream.offset() && next <= stream.offset() && given <= come);
}

/// What was passed on: of every connection and direction, where the next byte belongs and how many there were.
#[derive(Default)]
struct Seen {
    bytes: BTreeMap<(usize, usize, Direction), u64>,
    fragments: BTreeMap<(usize, usize, Direction), Vec<u64>>,
    ended: Vec<usize>,
}

impl Output for Seen {
    fn piece(&mut self, piece: &Piece<'_>) -> migwire::Result<()> {
        let key = (piece.migration, piece.connection, piece.direction);
        assert!(!piece.data.is_empty() && !self.ended.contains(&piece.migration));
        *self.bytes.entry(key).or_default() += piece.data.len() as u64;
        let fragments = self.fragments.entry(key).or_default();
        if fragments.last() != Some(&piece.fragment) {
            assert!(fragments.last().is_none_or(|last| *last < piece.fragment));
            fragments.push(piece.fragment);
        }
        Ok(())
    }

    fn end(&mut self, migration: usize) -> migwire::Result<()> {
        assert!(!self.ended.contains(&migration), "it ends twice");
        self.ended.push(migration);
        Ok(())
    }
}

impl Seen {
    fn check(&self, report: &Report, most: u64) {
        assert_eq!(self.ended.len(), report.migrations.len());
        assert!(self.bytes.values().sum::<u64>() <= most, "more came out than went in");
        for (number, migration) in report.migrations.iter().enumerate() {
            for (connection, channel) in migration.channels.iter().enumerate() {
                let of = |direction| self.bytes.get(&(number, connection, direction)).copied().unwrap_or(0);
                let found = channel.as_ref().map_or((0, 0), |found| (found.to_destination, found.to_source));
                assert_eq!(found, (of(Direction::ToDestination), of(Direction::ToSource)));
                for direction in [Direction::ToDestination, Direction::ToSource] {
                    let missing = channel.iter().flat_map(|found| &found.missing);
                    let missing: Vec<&Missing> = missing.filter(|m| m.direction == direction).collect();
                    assert!(missing.iter().all(|m| m.bytes.start < m.bytes.end));
                    assert!(missing.windows(2).all(|pair| pair[0].bytes.end < pair[1].bytes.start));
                    let fragments = self.fragments.get(&(number, connection, direction));
                    for fragment in fragments.into_iter().flatten().filter(|fragment| **fragment > 0) {
                        assert!(missing.iter().any(|m| m.bytes.end == *fragment), "no hole in front of it");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("import", 20_000, super::run);
    }
}
