//! What the parsers of all channels share.
//!
//! Main channel, return path and multifd channels have different records, but one shape: bytes come in slices that may be
//! cut anywhere, events go out with their ranges, and every byte belongs to exactly one of them. A [`ChannelParser`] owns
//! no buffer; a [`Feed`] drives it over anything that is [`std::io::Read`].

mod feed;

use std::fmt::Debug;
use std::ops::Range;

pub use feed::{Feed, Input, Seeking, Streaming};

use crate::error::Result;
use crate::wire::Sink;

/// What comes behind the input that a step is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// More bytes may come.
    Open,
    /// More may come, but nothing has for so long that what is there must do: a source that waits for an answer is silent.
    Idle,
    /// Nothing.
    Closed,
}

/// Result of a step.
#[derive(Debug)]
pub enum Step<'a, E> {
    /// At least this many more bytes are needed.
    More(usize),
    /// An event.
    Event(Located<'a, E>),
    /// The channel is over, and ended where it may.
    End,
}

/// An event and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Located<'a, E> {
    /// The event.
    pub event: E,
    /// Its bytes in the channel. The ranges of a channel's events follow each other without gap or overlap.
    pub range: Range<u64>,
    /// The input's bytes that it took; fewer than the range is long if bytes were elided. The caller drops these from its
    /// buffer and skips the others.
    pub raw: &'a [u8],
}

/// An event of some channel: a record, or a piece of one that is too large to hold.
pub trait ChannelEvent: Debug {
    /// What it is, in a word or two.
    fn name(&self) -> &'static str;

    /// Writes the event's bytes, as its fields say.
    fn emit(&self, out: &mut impl Sink);

    /// Bytes on the wire, elided ones included.
    fn wire_len(&self) -> u64;

    /// Bytes on the wire that were not read.
    fn elided(&self) -> u64 {
        0
    }
}

/// Step parser of some channel. Owns no buffer: the caller keeps the bytes that were not taken and offers them again.
pub trait ChannelParser {
    /// What it yields.
    type Event<'a>: ChannelEvent;

    /// Reads the next event from `input`, which begins at [`offset`](Self::offset).
    ///
    /// # Errors
    /// Where the bytes cannot go on like this; the events before it stand. An error is final.
    fn step<'a>(&mut self, input: &'a [u8], tail: Tail) -> Result<Step<'a, Self::Event<'a>>>;

    /// Offset of the next event.
    fn offset(&self) -> u64;

    /// What may come now, in words.
    fn expected(&self) -> &'static str;
}
