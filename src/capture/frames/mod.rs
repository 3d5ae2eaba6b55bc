//! Captures of a network: the frames of a pcap or pcapng file, one after the other.
//!
//! ```text
//! pcap     header: byte order, µs or ns, link type      record: time, bytes kept, bytes on the wire, data
//! pcapng   section, interfaces (link type, resolution)  packet blocks, of three kinds, each on an interface
//! ```
//! Both are taken apart in place, in a window of one [`WINDOW`] that grows only for a packet that does not fit, and only as its
//! bytes really come. What is wrong with one packet costs that packet ([`Damage`] counts it); what is wrong with the framing ends
//! the file, as nothing says where the next packet begins. Either way what stands in front is delivered.

mod pcap;
mod pcapng;
mod writer;

use std::io::{self, Read};
use std::ops::Range;

pub use writer::FrameWriter;

use super::{FileKind, Timestamp};
use crate::limits::MAX_CAPTURE_BLOCK;
use crate::{ChannelId, Error, ErrorKind, Result};

const DOING: &str = "reading a capture";

/// Bytes that are read at once, and at first: most files of a fuzzer are small.
const WINDOW: usize = 1 << 20;
const FIRST_WINDOW: usize = 64 << 10;

/// How the frames of a capture begin, as a number of the registry of pcap link types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkType(pub u16);

/// A packet as it was captured.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What it begins with.
    pub link: LinkType,
    /// When it passed.
    pub time: Timestamp,
    /// The bytes that were kept.
    pub data: &'a [u8],
    /// How many there were on the wire; no fewer than were kept.
    pub length: usize,
}

/// What was wrong with single packets of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Packets that had to be left out.
    pub packets: u64,
    /// What was wrong with the first of them, and where in the file it begins.
    pub first: Option<(u64, &'static str)>,
}

/// A stream of [`Frame`]s out of any reader.
pub struct Frames<R> {
    window: Window<R>,
    format: Format,
    damage: Damage,
    ended: bool,
}

enum Format {
    Pcap(pcap::File),
    Pcapng(pcapng::File),
}

/// What stands where the reader is.
enum Step {
    /// A packet: how many bytes it takes in the file, and where in them its data is.
    Packet {
        size: usize,
        data: Range<usize>,
        link: LinkType,
        time: Timestamp,
        length: usize,
    },
    /// So many bytes with nothing for anybody.
    Other(usize),
    /// The same, too many to be held.
    Skip(u64),
    /// A packet of so many bytes that cannot be what it says.
    Broken(usize, &'static str),
    End,
}

impl<R: Read> Frames<R> {
    /// Reads the head of the file.
    ///
    /// # Errors
    /// If it is neither pcap nor pcapng, with a sentence that says what it is; or if its head is not whole.
    pub fn new(source: R) -> Result<Self> {
        let mut window = Window { source, bytes: vec![0; FIRST_WINDOW], rest: 0..0, offset: 0 };
        window.fill(FileKind::ENOUGH)?;
        let format = match FileKind::of(window.rest()) {
            FileKind::Pcapng => Format::Pcapng(pcapng::File::default()),
            FileKind::Pcap { big_endian, nanoseconds } => {
                Format::Pcap(pcap::File::new(&mut window, big_endian, nanoseconds)?)
            }
            FileKind::Empty => return Err(window.error(ErrorKind::Truncated, 0, "the file is empty")),
            kind => {
                let message = format!("neither pcap nor pcapng but {kind}: {}", kind.advice());
                return Err(window.error(ErrorKind::Unsupported, 0, message));
            }
        };
        Ok(Self { window, format, damage: Damage::default(), ended: false })
    }

    /// The next frame; `None` at the end. After an error there is nothing more to read.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        while !self.ended {
            let step = match &mut self.format {
                Format::Pcap(file) => file.step(&mut self.window),
                Format::Pcapng(file) => file.step(&mut self.window),
            };
            match step {
                Ok(Step::Packet { size, data, link, time, length }) => {
                    let length = length.max(data.len());
                    let data = &self.window.take(size)[data];
                    // The borrow checker wants the frame to be made from fields, not from `self`.
                    return Ok(Some(Frame { link, time, data, length }));
                }
                Ok(Step::Other(size)) => drop(self.window.take(size)),
                Ok(Step::Skip(size)) => self.window.skip(size).inspect_err(|_| self.ended = true)?,
                Ok(Step::Broken(size, what)) => {
                    self.damage.packets += 1;
                    self.damage.first.get_or_insert((self.window.offset, what));
                    self.window.take(size);
                }
                Ok(Step::End) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// What had to be left out so far.
    pub fn damage(&self) -> Damage {
        self.damage
    }

    /// How far the file has been read.
    pub fn offset(&self) -> u64 {
        self.window.offset
    }
}

/// The part of a file that is held.
struct Window<R> {
    source: R,
    bytes: Vec<u8>,
    rest: Range<usize>,
    /// Where in the file `rest` begins.
    offset: u64,
}

impl<R: Read> Window<R> {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.rest.clone()]
    }

    /// Gets `size` bytes into the window; fewer at the end of the file.
    fn fill(&mut self, size: usize) -> Result<usize> {
        while self.rest.len() < size {
            if self.rest.end == self.bytes.len() {
                if self.rest.start > 0 {
                    self.bytes.copy_within(self.rest.clone(), 0);
                    self.rest = 0..self.rest.len();
                }
                // It has been full of bytes that have really come.
                if self.bytes.len() < WINDOW || self.rest.len() == self.bytes.len() {
                    self.bytes.resize(WINDOW.max(2 * self.bytes.len()), 0);
                }
            }
            match self.source.read(&mut self.bytes[self.rest.end..]) {
                Ok(0) => break,
                Ok(more) => self.rest.end += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let error = Error::io(DOING, "the file cannot be read", e);
                    return Err(error.on(ChannelId::Container).at(self.offset));
                }
            }
        }
        Ok(self.rest.len())
    }

    /// The same, where fewer are a fault. `true` if they are there, `false` at the end of the file.
    fn need(&mut self, size: usize, what: &str) -> Result<bool> {
        match self.fill(size)? {
            0 => Ok(false),
            got if got >= size => Ok(true),
            got => {
                let message = format!("the file ends inside {what}: {got} of {size} bytes are there");
                Err(self.error(ErrorKind::Truncated, 0, message))
            }
        }
    }

    fn take(&mut self, size: usize) -> &[u8] {
        let size = size.min(self.rest.len());
        let start = self.rest.start;
        self.rest.start += size;
        self.offset += size as u64;
        &self.bytes[start..start + size]
    }

    fn skip(&mut self, mut size: u64) -> Result<()> {
        while size > 0 {
            if !self.need(1, "a block")? {
                return Err(self.error(ErrorKind::Truncated, 0, "the file ends inside a block"));
            }
            let now = size.min(self.rest.len() as u64);
            self.take(now as usize);
            size -= now;
        }
        Ok(())
    }

    #[cold]
    fn error(&self, kind: ErrorKind, within: u64, message: impl Into<String>) -> Error {
        Error::new(kind, self.offset + within, DOING, message).on(ChannelId::Container)
    }
}

/// Nanoseconds out of seconds and parts of them.
fn since_epoch(seconds: u64, nanoseconds: u64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

const fn is_too_long(size: u64) -> bool {
    size > MAX_CAPTURE_BLOCK as u64
}

#[cfg(test)]
mod tests;
