//! Any bytes, taken for a multifd channel: no panic, what parses is given back, and how the bytes arrive changes nothing.
//!
//! The first byte chooses page size and release.

use migwire::channel::{ChannelEvent as _, ChannelParser as _, Step, Tail};
use migwire::dialect::Dialect;
use migwire::multifd::{Packet, PacketParser};
use migwire::stream::Mode;

use crate::reading::{bytewise, read, two, whole};

const DIALECTS: [&str; 5] = ["any", "5.2", "7.2", "9.0", "11.1"];

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let page_size = 1024 << (choice % 7);
    let dialect: Dialect = DIALECTS[usize::from(choice / 7) % DIALECTS.len()].parse().unwrap_or_default();
    for mode in [Mode::Strict, Mode::Lenient] {
        let parser = || PacketParser::with(mode, dialect, page_size);
        let expected = read(&mut parser(), bytes, whole);
        assert_eq!(expected, read(&mut parser(), bytes, two(bytes.len() / 3)), "{mode:?}, in two");
        // A byte at a time means that every packet is read as often as it has bytes.
        if bytes.len() <= 8 << 10 {
            assert_eq!(expected, read(&mut parser(), bytes, bytewise), "{mode:?}, byte by byte");
        }
        assert!(expected.error.is_some() || expected.end == bytes.len() as u64, "{mode:?}");
        given_back(parser(), bytes);
    }
}

/// Reads with and without pages: what comes is emitted as it was, and belongs to its packet.
fn given_back(mut parser: PacketParser, bytes: &[u8]) {
    let mut at = 0;
    while let Ok(Step::Event(located)) = parser.step(&bytes[at..], Tail::Closed) {
        let mut out = Vec::new();
        located.event.emit(&mut out);
        assert!(out == located.raw, "{:?} is not given back as it came", located.event);
        at += located.raw.len();
        let batch = parser.batch();
        assert!(batch.left() <= batch.payload_len());
        if let Packet::Payload(bulk) = &located.event {
            let placed: usize =
                batch.pages(bulk.bytes().unwrap_or_default()).map(|(_, page)| page.len()).sum();
            assert!(placed as u64 <= bulk.len());
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("multifd", 3_000, super::run);
    }
}
