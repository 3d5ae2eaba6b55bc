//! Reads a recording packet by packet, in memory of at most one block, whatever the file claims.
//!
//! Blocks are framed here: type and length are checked before anything is read, unknown blocks are skipped without
//! being held, and the buffer grows only with bytes that are really there. Both byte orders and any number of
//! sections are read, so files that went through editcap or mergecap stay readable. Every packet in front of a
//! fault is delivered; the fault itself is then reported once, with its place in the file.

use std::fmt;
use std::io::{self, BufReader, Chain, Cursor, Read};
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use super::block::{self, LINKTYPE, Order};
use super::{Direction, FileKind};
use crate::limits::{MAX_CAPTURE_BLOCK, MAX_CAPTURE_INTERFACES, MAX_CAPTURE_NAME};
use crate::{ChannelId, Error, ErrorKind, Result};

const DOING: &str = "reading a recording";

/// Nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The time now.
    #[must_use]
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

/// One connection of the recorded migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name (`main`, `multifd-3`), empty if the file has none.
    pub name: String,
    /// What else the file says about it.
    pub description: Option<String>,
    resolution: u8,
    /// Seconds to add to every timestamp.
    offset: i64,
}

/// A run of bytes of one channel in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Index into [`Reader::interfaces`]; unique in the file, over all its sections.
    pub interface: usize,
    /// Which way the bytes went.
    pub direction: Direction,
    /// When they passed.
    pub time: Timestamp,
    /// Where the block starts in the file.
    pub offset: u64,
    /// The bytes.
    pub data: &'a [u8],
}

/// A packet without its bytes, which are in the reader's buffer.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) interface: usize,
    pub(super) direction: Direction,
    pub(super) time: Timestamp,
    pub(super) offset: u64,
    pub(super) data: Range<usize>,
}

/// A stream of [`Packet`]s out of any reader.
pub struct Reader<R> {
    source: BufReader<Chain<Cursor<Vec<u8>>, R>>,
    /// Where the block under the cursor starts in the file.
    offset: u64,
    order: Order,
    interfaces: Vec<Interface>,
    /// Index of interface 0 of the current section.
    section: usize,
    block: Vec<u8>,
    ended: bool,
    about: Option<String>,
}

impl<R: Read> Reader<R> {
    /// Reads the first section header, and refuses what is no pcapng file with a sentence that says what it is.
    pub fn new(mut source: R) -> Result<Self> {
        // The first bytes are read apart, to say what a foreign file is, and then put back in front.
        let mut first = [0; FileKind::ENOUGH];
        let got = read_full(&mut source, &mut first).map_err(|e| io_error(0, e))? as usize;
        let first = first[..got].to_vec();
        check_magic(&first)?;
        // Larger than a packet of ours, so that one `read` fetches several blocks or goes straight to the block.
        let source = BufReader::with_capacity(1 << 20, Cursor::new(first).chain(source));
        let mut reader = Self {
            source,
            offset: 0,
            order: Order::Little,
            interfaces: Vec::new(),
            section: 0,
            block: Vec::new(),
            ended: false,
            about: None,
        };
        reader.step()?;
        Ok(reader)
    }

    /// The connections described so far; a packet's interface is always among them.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// What the recorder knew about the migration (JSON), if it was one of ours.
    pub fn about(&self) -> Option<&str> {
        self.about.as_deref()
    }

    /// The next packet, `None` at the end of the file. After an error there is nothing more to read.
    pub fn next_packet(&mut self) -> Result<Option<Packet<'_>>> {
        let Some(found) = self.next_found()? else { return Ok(None) };
        let Found { interface, direction, time, offset, data } = found;
        Ok(Some(Packet { interface, direction, time, offset, data: &self.block[data] }))
    }

    pub(super) fn next_found(&mut self) -> Result<Option<Found>> {
        while !self.ended {
            match self.step() {
                Ok(None) => {}
                other => {
                    self.ended |= other.is_err();
                    return other;
                }
            }
        }
        Ok(None)
    }

    pub(super) fn bytes(&self, data: Range<usize>) -> &[u8] {
        &self.block[data]
    }

    /// Takes one block from the file. `None` is a block without data for anybody, or the end.
    fn step(&mut self) -> Result<Option<Found>> {
        let start = self.offset;
        let Some((kind, len)) = self.block_start()? else {
            self.ended = true;
            return Ok(None);
        };
        let held =
            matches!(kind, block::SECTION_HEADER | block::INTERFACE_DESCRIPTION | block::ENHANCED_PACKET);
        if matches!(kind, block::SIMPLE_PACKET | block::OBSOLETE_PACKET) {
            let message = "a packet block without direction: no recording of a migration";
            return Err(self.error(ErrorKind::Unsupported, 0, message));
        }
        if held && len > MAX_CAPTURE_BLOCK {
            let message = format!("a block of {len} bytes, where at most {MAX_CAPTURE_BLOCK} are read");
            return Err(self.error(ErrorKind::TooLarge, 4, message));
        }
        // Of a section header, the byte-order magic was read already.
        let rest = len - 12 - self.block.len() as u32;
        let mut body = (&mut self.source).take(rest.into());
        let got = if held {
            body.read_to_end(&mut self.block).map(|n| n as u64)
        } else {
            io::copy(&mut body, &mut io::sink())
        };
        self.complete(got, rest)?;
        let mut trailer = [0; 4];
        let got = read_full(&mut self.source, &mut trailer);
        self.complete(got, 4)?;
        let again = self.order.u32(&trailer);
        if again != len {
            let message = format!("the block's length is {len} at its start and {again} at its end");
            return Err(self.error(ErrorKind::Malformed, len - 4, message));
        }
        let found = match kind {
            block::INTERFACE_DESCRIPTION => self.interface_description().map(|()| None),
            block::ENHANCED_PACKET => self.enhanced_packet(start).map(Some),
            block::SECTION_HEADER => self.section_header().map(|()| None),
            _ => Ok(None),
        }?;
        self.offset += u64::from(len);
        Ok(found)
    }

    /// Type and length of the next block, `None` at the end of the file.
    fn block_start(&mut self) -> Result<Option<(u32, u32)>> {
        let mut head = [0; 8];
        match read_full(&mut self.source, &mut head) {
            Ok(0) => return Ok(None),
            got => self.complete(got, 8)?,
        }
        self.block.clear();
        // The type of a section header reads the same in both byte orders; only behind it stands which one it is.
        if self.order.u32(&head) == block::SECTION_HEADER {
            let mut magic = [0; 4];
            let got = read_full(&mut self.source, &mut magic);
            self.complete(got, 4)?;
            self.order = match u32::from_le_bytes(magic) {
                block::BYTE_ORDER_MAGIC => Order::Little,
                magic if magic.swap_bytes() == block::BYTE_ORDER_MAGIC => Order::Big,
                magic => {
                    let message = format!("byte-order magic {magic:#010x}, where 0x1a2b3c4d was expected");
                    return Err(self.error(ErrorKind::Malformed, 8, message));
                }
            };
            self.block.extend_from_slice(&magic);
        }
        let (kind, len) = (self.order.u32(&head), self.order.u32(&head[4..]));
        let least = match kind {
            block::SECTION_HEADER => 28,
            block::INTERFACE_DESCRIPTION => 20,
            block::ENHANCED_PACKET => 32,
            _ => 12,
        };
        if len < least || len % 4 != 0 {
            let message = format!("a block of type {kind:#x} cannot be {len} bytes long");
            return Err(self.error(ErrorKind::Malformed, 4, message));
        }
        Ok(Some((kind, len)))
    }

    fn section_header(&mut self) -> Result<()> {
        let major = self.order.u16(&self.block[4..]);
        if major != 1 {
            let message = format!("pcapng version {major}, where 1 is known");
            return Err(self.error(ErrorKind::Unsupported, 12, message));
        }
        self.section = self.interfaces.len();
        if self.about.is_none() {
            let mut about = None;
            self.options(16, |order, code, value| {
                let is_ours = code == block::OPT_CUSTOM && value.len() >= 4 && order.u32(value) == block::PEN;
                let rest =
                    value.get(4..).filter(|_| is_ours).and_then(|rest| rest.strip_prefix(block::MAGIC));
                if let Some(&[block::ABOUT, ref content @ ..]) = rest {
                    about = Some(text(content));
                }
            })?;
            self.about = about;
        }
        Ok(())
    }

    fn interface_description(&mut self) -> Result<()> {
        let linktype = self.order.u16(&self.block);
        let mut interface = Interface { name: String::new(), description: None, resolution: 6, offset: 0 };
        let mut too_long = None;
        self.options(8, |order, code, value| match (code, value.len()) {
            (block::IF_NAME, len) if len > MAX_CAPTURE_NAME => too_long = Some(len),
            (block::IF_NAME, _) => interface.name = text(value),
            (block::IF_DESCRIPTION, _) => {
                interface.description = Some(text(&value[..value.len().min(MAX_CAPTURE_NAME)]));
            }
            (block::IF_TSRESOL, 1) => interface.resolution = value[0],
            (block::IF_TSOFFSET, 8) => interface.offset = order.i64(value),
            _ => {}
        })?;
        if linktype != LINKTYPE {
            let message = format!(
                "interface {} carries {}: a capture of a network, not a recording of migration channels (link type {LINKTYPE}); `migwire import` takes the migrations out of it",
                if interface.name.is_empty() { "without name" } else { &interface.name },
                linktype_name(linktype)
            );
            return Err(self.error(ErrorKind::Unsupported, 8, message));
        }
        if let Some(len) = too_long {
            let message =
                format!("an interface name of {len} bytes, where at most {MAX_CAPTURE_NAME} are read");
            return Err(self.error(ErrorKind::TooLarge, 16, message));
        }
        if self.interfaces.len() >= MAX_CAPTURE_INTERFACES {
            let message = format!("more than {MAX_CAPTURE_INTERFACES} interfaces");
            return Err(self.error(ErrorKind::TooLarge, 0, message));
        }
        self.interfaces.push(interface);
        Ok(())
    }

    fn enhanced_packet(&mut self, start: u64) -> Result<Found> {
        let word = |i: usize| self.order.u32(&self.block[4 * i..]);
        let (number, high, low, caplen, len) = (word(0), word(1), word(2), word(3), word(4));
        let index = self.section.saturating_add(number as usize);
        let Some(interface) = self.interfaces.get(index) else {
            let count = self.interfaces.len() - self.section;
            let message = format!("a packet on interface {number} of {count}");
            return Err(self.error(ErrorKind::Malformed, 8, message));
        };
        let time = interface.time((u64::from(high) << 32) | u64::from(low));
        let end = 20 + u64::from(caplen) + block::padding(caplen as usize) as u64;
        if end > self.block.len() as u64 {
            let message =
                format!("{caplen} bytes of data in a block with room for {}", self.block.len() - 20);
            return Err(self.error(ErrorKind::Malformed, 20, message));
        }
        if caplen != len {
            let message =
                format!("only {caplen} of the packet's {len} bytes were kept (a snap length was set)");
            return Err(self.error(ErrorKind::Truncated, 20, message));
        }
        let mut flags = None;
        self.options(end as usize, |order, code, value| {
            if code == block::EPB_FLAGS && value.len() == 4 {
                flags = Some(order.u32(value));
            }
        })?;
        let direction = match flags.map(|flags| flags & 3) {
            Some(1) => Direction::ToSource,
            Some(2) => Direction::ToDestination,
            _ => return Err(self.error(ErrorKind::Malformed, 8 + end as u32, "a packet without direction")),
        };
        Ok(Found { interface: index, direction, time, offset: start, data: 20..20 + caplen as usize })
    }

    /// Calls `visit` for every option from `at` in the block's body on. The list may, but need not, have an end mark.
    fn options(&self, mut at: usize, mut visit: impl FnMut(Order, u16, &[u8])) -> Result<()> {
        while let Some(head) = self.block.get(at..at + 4) {
            let (code, len) = (self.order.u16(head), usize::from(self.order.u16(&head[2..])));
            if code == block::OPT_END {
                break;
            }
            let Some(value) = self.block.get(at + 4..at + 4 + len) else {
                let message = format!("option {code} of {len} bytes does not fit into its block");
                return Err(self.error(ErrorKind::Malformed, 8 + at as u32, message));
            };
            visit(self.order, code, value);
            at += 4 + len + block::padding(len);
        }
        Ok(())
    }

    /// Fewer bytes than there should be: the file was cut off inside this block.
    fn complete(&self, got: io::Result<u64>, wanted: u32) -> Result<()> {
        match got {
            Ok(n) if n == u64::from(wanted) => Ok(()),
            Ok(_) => Err(self.error(ErrorKind::Truncated, 0, "the file ends inside a block")),
            Err(e) => Err(self.io_error(e)),
        }
    }

    #[cold]
    fn error(&self, kind: ErrorKind, within: u32, message: impl Into<String>) -> Error {
        Error::new(kind, self.offset + u64::from(within), DOING, message).on(ChannelId::Container)
    }

    #[cold]
    fn io_error(&self, e: io::Error) -> Error {
        io_error(self.offset, e)
    }
}

impl Interface {
    /// A timestamp of this interface as nanoseconds.
    pub(super) fn time(&self, ticks: u64) -> Timestamp {
        block::nanoseconds(ticks, self.resolution, self.offset)
    }
}

fn check_magic(first: &[u8]) -> Result<()> {
    if first.starts_with(&block::SECTION_HEADER.to_le_bytes()) {
        return Ok(());
    }
    let kind = FileKind::of(first);
    let (blame, message) = match kind {
        FileKind::Empty => (ErrorKind::Truncated, "the file is empty".into()),
        kind => (ErrorKind::Malformed, format!("not a pcapng recording but {kind}: {}", kind.advice())),
    };
    Err(Error::new(blame, 0, DOING, message).on(ChannelId::Container))
}

#[cold]
fn io_error(offset: u64, e: io::Error) -> Error {
    Error::io(DOING, "the file cannot be read", e).on(ChannelId::Container).at(offset)
}

/// Fills `buffer` as far as the source goes.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<u64> {
    let mut n = 0;
    while n < buffer.len() {
        match source.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n as u64)
}

fn text(bytes: &[u8]) -> String {
    // Some writers count the terminating zero of a C string in.
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// The link types people are likely to hand us by mistake.
fn linktype_name(linktype: u16) -> String {
    let name = match linktype {
        0 => "loopback frames",
        1 => "Ethernet frames",
        101 | 228 | 229 => "raw IP packets",
        105 | 127 => "Wi-Fi frames",
        113 | 276 => "packets of Linux's `any` device",
        148..=162 => "another private format (USER1 to USER15)",
        189 | 220 => "USB transfers",
        271 => "vsock packets (vsockmon)",
        _ => return format!("link type {linktype}"),
    };
    format!("{name} (link type {linktype})")
}
