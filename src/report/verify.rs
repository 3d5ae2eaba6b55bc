//! Parse, re-emit, compare: the proof that a channel is understood byte for byte.

use std::ops::ControlFlow;

use super::packets::PacketCounts;
use crate::channel::{ChannelEvent, ChannelParser, Feed, Input, Located};
use crate::error::{Error, Result};
use crate::stream::{Event, Parser};
use crate::wire::Sink;

/// What came of verifying one channel.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    /// Bytes that were parsed.
    pub bytes: u64,
    /// Events they made.
    pub events: u64,
    /// Sections among them.
    pub sections: u64,
    /// Pages among them.
    pub pages: u64,
    /// What a multifd channel has besides.
    pub packets: Option<PacketCounts>,
    /// Offset of the first byte that was not given back as it came.
    pub difference: Option<u64>,
    /// The bytes are not those that were recorded, by the seal of the recording.
    pub altered: bool,
    /// Why parsing stopped before the end.
    pub error: Option<Error>,
    /// What a strict reading would have refused.
    pub complaints: Vec<Error>,
    /// What is worth knowing but no fault of the bytes: a description that does not say what the sections are.
    pub notes: Vec<String>,
}

impl Verification {
    /// Whether the whole channel was parsed and given back byte for byte.
    pub fn is_identical(&self) -> bool {
        self.difference.is_none() && self.error.is_none() && !self.altered
    }

    /// Emits an event again and compares it with the bytes it came from.
    pub(super) fn compare<E: ChannelEvent>(&mut self, located: &Located<'_, E>) {
        let mut compare = Compare { expected: located.raw, at: 0, equal: true };
        located.event.emit(&mut compare);
        if !compare.is_complete() && self.difference.is_none() {
            self.difference = Some(located.range.start + compare.at as u64);
        }
        self.events += 1;
        self.bytes = located.range.end;
    }

    /// Takes note of what an event of a main channel is.
    pub(super) fn count(&mut self, event: &Event<'_>) {
        match event {
            Event::Section(_) => self.sections += 1,
            Event::Page(_) => self.pages += 1,
            _ => {}
        }
    }
}

/// Verifies a channel: every event that `parser` makes of `feed` is emitted again and compared with the bytes it came from.
/// `note` sees the events as they pass.
pub fn channel<I, P, F>(feed: &mut Feed<I>, parser: &mut P, mut note: F) -> Verification
where
    I: Input,
    P: ChannelParser,
    F: FnMut(&mut Verification, &Located<'_, P::Event<'_>>),
{
    let mut found = Verification::default();
    let outcome: Result<()> = feed.run(parser, |located, _| {
        note(&mut found, located);
        found.compare(located);
        Ok(ControlFlow::Continue(()))
    });
    found.error = outcome.err();
    found
}

/// Verifies a main channel.
pub fn main_channel<I: Input>(feed: &mut Feed<I>, parser: &mut Parser) -> Verification {
    main_channel_with(feed, parser, |_| {})
}

/// Verifies a main channel, and lets `note` see the events as they pass.
pub fn main_channel_with<I: Input>(
    feed: &mut Feed<I>,
    parser: &mut Parser,
    mut note: impl FnMut(&Located<'_, Event<'_>>),
) -> Verification {
    let mut found = channel(feed, parser, |found, located| {
        found.count(&located.event);
        note(located);
    });
    found.complaints = parser.grammar().complaints().to_vec();
    found
}

/// A sink that compares instead of keeping.
struct Compare<'a> {
    expected: &'a [u8],
    at: usize,
    equal: bool,
}

impl Compare<'_> {
    fn is_complete(&self) -> bool {
        self.equal && self.at == self.expected.len()
    }
}

impl Sink for Compare<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if !self.equal {
            return;
        }
        let rest = &self.expected[self.at..];
        self.equal = rest.len() >= bytes.len() && rest[..bytes.len()] == *bytes;
        if self.equal {
            self.at += bytes.len();
        }
    }

    /// Bytes that the event borrows from the very place they are compared with are equal without being looked at.
    fn put_bulk(&mut self, bytes: &[u8]) {
        let rest = &self.expected[self.at..];
        if self.equal && rest.len() >= bytes.len() && std::ptr::eq(rest.as_ptr(), bytes.as_ptr()) {
            self.at += bytes.len();
        } else {
            self.put(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Streaming;

    #[test]
    fn finds_a_byte_that_is_not_given_back() {
        let mut compare = Compare { expected: b"abcdef", at: 0, equal: true };
        compare.put(b"ab");
        compare.put_bulk(b"cX");
        compare.put(b"ef");
        assert!(!compare.is_complete());
        assert_eq!(compare.at, 2);
        let mut short = Compare { expected: b"abc", at: 0, equal: true };
        short.put(b"ab");
        assert!(!short.is_complete());
    }

    #[test]
    fn keeps_what_came_before_the_fault() {
        let stream = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\x42";
        let found = main_channel(&mut Feed::new(Streaming(&stream[..])), &mut Parser::new());
        assert_eq!((found.bytes, found.events), (17, 2));
        assert!(!found.is_identical());
        assert_eq!(found.error.and_then(|e| e.offset()), Some(17));
    }
}
