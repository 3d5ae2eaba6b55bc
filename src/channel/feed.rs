//! Drives a parser over anything that can be read.
//!
//! The parser owns no buffer; a [`Feed`] does, and nothing else: it knows [`std::io::Read`], but no socket, file or clock.
//! Bytes that the parser leaves out (outlines) are skipped by the [`Input`], by seeking where it can.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;

use super::{ChannelEvent as _, ChannelParser, Located, Step, Tail};
use crate::error::{Error, ErrorKind, Result};

/// Where a feed's bytes come from.
pub trait Input {
    /// Reads some bytes; 0 at the end. `WouldBlock` means that nothing has come for a while, so that the parser should
    /// decide with what there is if it can; `TimedOut` that nothing has come for too long.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Skips `count` bytes; returns how many there were to skip.
    fn skip(&mut self, count: u64) -> io::Result<u64>;

    /// How many bytes are worth reading at once behind a skip; the rest is likely to be skipped too.
    fn stride(&self) -> usize {
        usize::MAX
    }
}

/// An input that reads what it skips.
#[derive(Debug)]
pub struct Streaming<R>(pub R);

impl<R: Read> Input for Streaming<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.0).take(count), &mut io::sink())
    }
}

/// An input that seeks over what it skips.
#[derive(Debug)]
pub struct Seeking<R> {
    input: R,
    left: u64,
}

impl<R: Read + Seek> Seeking<R> {
    /// An input from where `input` stands to its end.
    ///
    /// # Errors
    /// If it cannot be sought in.
    pub fn new(mut input: R) -> io::Result<Self> {
        let here = input.stream_position()?;
        let end = input.seek(SeekFrom::End(0))?;
        input.seek(SeekFrom::Start(here))?;
        Ok(Self { input, left: end.saturating_sub(here) })
    }
}

impl<R: Read + Seek> Input for Seeking<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let count = count.min(self.left);
        self.input.seek_relative(i64::try_from(count).unwrap_or(i64::MAX))?;
        self.left -= count;
        Ok(count)
    }

    fn stride(&self) -> usize {
        64
    }
}

/// Ordinary size of the buffer: large enough that a read costs little a byte, small enough to stay in the second-level cache.
const BUFFER: usize = 256 << 10;

/// What a step came to.
enum Outcome {
    End,
    More(usize),
    Taken { elided: u64, flow: ControlFlow<()> },
}

/// A buffer in front of an input.
#[derive(Debug)]
pub struct Feed<I> {
    input: I,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    tail: Tail,
    overdue: bool,
    stride: usize,
}

impl<I: Input> Feed<I> {
    /// A feed from `input`.
    pub fn new(input: I) -> Self {
        Self {
            input,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            tail: Tail::Open,
            overdue: false,
            stride: BUFFER,
        }
    }

    /// The input.
    pub fn input(&self) -> &I {
        &self.input
    }

    /// The input, to be told something between two runs.
    pub fn input_mut(&mut self) -> &mut I {
        &mut self.input
    }

    /// Runs `parser` to the end of the channel, and hands every event to `handle`, with the parser's state behind it. The
    /// bytes of an event live until `handle` returns. `Break` stops early.
    ///
    /// When nothing comes ([`io::ErrorKind::WouldBlock`] or `TimedOut` from the input), the parser gets a chance to make do
    /// with what is there; if it cannot, and nothing has come for too long, that is a [`ErrorKind::Timeout`].
    ///
    /// # Errors
    /// The parser's, `handle`'s, and the input's.
    pub fn run<P, F>(&mut self, parser: &mut P, mut handle: F) -> Result<()>
    where
        P: ChannelParser,
        F: FnMut(&Located<'_, P::Event<'_>>, &P) -> Result<ControlFlow<()>>,
    {
        loop {
            match self.step(parser, &mut handle)? {
                Outcome::End => return Ok(()),
                Outcome::Taken { elided, flow } => {
                    if elided > 0 {
                        self.skip(elided, parser.offset())?;
                    }
                    if self.tail == Tail::Idle {
                        self.tail = Tail::Open;
                    }
                    if flow.is_break() {
                        return Ok(());
                    }
                }
                Outcome::More(missing) => {
                    let at = parser.offset() + (self.end - self.start) as u64;
                    if self.tail == Tail::Idle && self.overdue {
                        let message = format!("nothing came while {} was expected", parser.expected());
                        return Err(Error::new(ErrorKind::Timeout, at, "reading", message));
                    }
                    self.fill(missing).map_err(|e| Error::io("reading", "the channel failed", e).at(at))?;
                }
            }
        }
    }

    /// One step of the parser over what the buffer holds.
    fn step<P, F>(&mut self, parser: &mut P, handle: &mut F) -> Result<Outcome>
    where
        P: ChannelParser,
        F: FnMut(&Located<'_, P::Event<'_>>, &P) -> Result<ControlFlow<()>>,
    {
        let window = &self.buffer[self.start..self.end];
        match parser.step(window, self.tail)? {
            Step::End => Ok(Outcome::End),
            Step::More(missing) => Ok(Outcome::More(missing)),
            Step::Event(located) => {
                let flow = handle(&located, parser)?;
                self.start += located.raw.len();
                Ok(Outcome::Taken { elided: located.event.elided(), flow })
            }
        }
    }

    /// Reads at least one byte more, or notes why there is none.
    fn fill(&mut self, missing: usize) -> io::Result<()> {
        // What is left is a part of one record as a rule, and cheap to move; then a whole buffer can be read.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() - self.end < missing {
            self.buffer.resize(self.end + missing, 0);
        }
        // Behind a skip little is read at first; as long as no other skip comes, it is more and more.
        let limit = self.end.saturating_add(self.stride.max(missing)).min(self.buffer.len());
        self.stride = self.stride.saturating_mul(4).min(BUFFER);
        match self.input.read(&mut self.buffer[self.end..limit]) {
            Ok(0) => self.tail = Tail::Closed,
            Ok(count) => {
                self.end += count;
                self.tail = Tail::Open;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                self.tail = Tail::Idle;
                self.overdue = e.kind() == io::ErrorKind::TimedOut;
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Drops `count` bytes that were not read, from the buffer as far as it has them.
    fn skip(&mut self, count: u64, end: u64) -> Result<()> {
        let here = count.min((self.end - self.start) as u64);
        self.start += here as usize;
        let rest = count - here;
        if rest == 0 {
            return Ok(());
        }
        self.stride = self.input.stride().min(BUFFER);
        let skipped = self.input.skip(rest).map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => {
                let message = "nothing came while bytes were expected that nobody wants";
                Error::new(ErrorKind::Timeout, end - rest, "skipping", message)
            }
            _ => Error::io("skipping", "the channel failed", e).at(end - rest),
        })?;
        if skipped < rest {
            let message = format!("the stream ends here, {} bytes short of the page", rest - skipped);
            return Err(Error::new(ErrorKind::Truncated, end - rest + skipped, "RAM section", message));
        }
        Ok(())
    }
}
