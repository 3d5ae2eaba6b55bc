//! The body of a VFIO section: what stands between the head and the footer of its START, PART, END and FULL.
//!
//! ```text
//! START  DEV_SETUP_STATE END_OF_STATE
//! PART   [DEV_DATA_STATE size data]  END_OF_STATE | DEV_INIT_DATA_SENT
//! END    (DEV_DATA_STATE size data)* END_OF_STATE                          5.2: DEV_CONFIG_STATE config END_OF_STATE in front
//! FULL   DEV_CONFIG_STATE config END_OF_STATE | END_OF_STATE | DEV_CONFIG_LOAD_READY
//! ```
//! One loader reads all four, and does not ask which of them it is in (`hw/vfio/migration.c`, `vfio_load_state`).
//!
//! **Where a config ends is not on the wire.** A stock loader knows from its own device how long it is. From 6.0 on nothing follows
//! its END_OF_STATE, so that the end of the section tells: the config ends at the END_OF_STATE which is the last word of the body,
//! and one that stands elsewhere is part of the config. In 5.2 data follows; there it ends at the first END_OF_STATE that has
//! a DEV_DATA_STATE or END_OF_STATE behind it. The end of the section is known to whoever read its footer: [`VfioSection::finish`].

use memchr::memmem;

use crate::channel::{ChannelEvent, ChannelParser, Located, Step, Tail};
use crate::dialect::{Dialect, Difference};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_DEVICE_DATA, PIECE};
use crate::wire::{Bulk, Cursor, Fault, Sink, VfioTag, Wire};

/// What the body of a VFIO section consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VfioEvent<'a> {
    /// A word.
    Tag(VfioTag),
    /// Number of data bytes behind DEV_DATA_STATE.
    DataSize(u64),
    /// A piece of data for the device.
    Data(Bulk<'a>),
    /// A piece of the config.
    Config(Bulk<'a>),
}

impl ChannelEvent for VfioEvent<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Tag(_) => "VFIO tag",
            Self::DataSize(_) => "VFIO data size",
            Self::Data(_) => "VFIO data",
            Self::Config(_) => "VFIO config",
        }
    }

    fn emit(&self, out: &mut impl Sink) {
        match self {
            Self::Tag(tag) => tag.emit(out),
            Self::DataSize(size) => out.be64(*size),
            Self::Data(bulk) | Self::Config(bulk) => bulk.emit(out),
        }
    }

    fn wire_len(&self) -> u64 {
        match self {
            Self::Tag(_) | Self::DataSize(_) => 8,
            Self::Data(bulk) | Self::Config(bulk) => bulk.len(),
        }
    }

    fn elided(&self) -> u64 {
        match self {
            Self::Data(Bulk::Elided(length)) | Self::Config(Bulk::Elided(length)) => *length,
            _ => 0,
        }
    }
}

/// Step parser of one body. [`Tail::Closed`] says that the input reaches to the section's end.
#[derive(Clone, Debug)]
pub struct VfioParser {
    dialect: Dialect,
    offset: u64,
    expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Tag,
    Size,
    Data(u64),
    /// The config, or the END_OF_STATE behind it.
    Config,
    /// END_OF_STATE behind DEV_SETUP_STATE.
    SetupEnd,
    Over,
}

impl VfioParser {
    /// A parser of a body that begins at `offset` of its channel, as `dialect` writes it.
    pub fn new(dialect: Dialect, offset: u64) -> Self {
        Self { dialect, offset, expect: Expect::Tag }
    }

    /// Whether the body is over, as far as its words tell: a section that goes on is in error. A config does not tell.
    pub fn is_over(&self) -> bool {
        self.expect == Expect::Over
    }

    fn lex<'a>(&self, input: &mut Cursor<'a>, tail: Tail) -> Result<VfioEvent<'a>, Fault> {
        match self.expect {
            Expect::Tag | Expect::SetupEnd => {
                let start = input.offset();
                let tag = VfioTag::parse(input)?;
                self.check(tag, start)?;
                Ok(VfioEvent::Tag(tag))
            }
            Expect::Size => {
                let start = input.offset();
                let size = input.be64("VFIO data size")?;
                if size > MAX_DEVICE_DATA {
                    let message = format!("{size} bytes of data, at most {MAX_DEVICE_DATA} are taken");
                    return Err(error(ErrorKind::TooLarge, start, message).into());
                }
                Ok(VfioEvent::DataSize(size))
            }
            Expect::Data(left) => {
                let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                input.take("VFIO data", count).map(|bytes| VfioEvent::Data(Bulk::Bytes(bytes)))
            }
            Expect::Config => self.config(input, tail),
            Expect::Over => {
                let start = input.offset();
                input.peek("bytes behind the end of the body")?;
                let message = "bytes behind the end of the body, where a footer should be";
                Err(error(ErrorKind::OutOfOrder, start, message).into())
            }
        }
    }

    fn check(&self, tag: VfioTag, start: u64) -> Result<()> {
        let needs = match (self.expect, tag) {
            (Expect::SetupEnd, VfioTag::END_OF_STATE) => return Ok(()),
            (Expect::SetupEnd, _) => {
                let message = format!("{tag} where END_OF_STATE was expected");
                return Err(error(ErrorKind::Malformed, start, message));
            }
            (_, VfioTag::DEV_INIT_DATA_SENT) => Difference::VfioInitDataSent,
            (_, VfioTag::DEV_CONFIG_LOAD_READY) => Difference::VfioLoadReady,
            (_, tag) if tag.name().is_some() => return Ok(()),
            (_, tag) => {
                let message = format!("unknown tag {:#018x}", tag.0);
                return Err(error(ErrorKind::Malformed, start, message));
            }
        };
        if self.dialect.has(needs) {
            return Ok(());
        }
        let message = format!("{tag}, which QEMU {} does not know", self.dialect);
        Err(error(ErrorKind::Unsupported, start, message))
    }

    /// A piece of the config; or, if there is none left, the word behind it.
    fn config<'a>(&self, input: &mut Cursor<'a>, tail: Tail) -> Result<VfioEvent<'a>, Fault> {
        let rest = input.rest();
        let all = rest.len() <= CONFIG_WINDOW && tail == Tail::Closed;
        if !all && rest.len() < CONFIG_WINDOW {
            return Err(Fault::More { field: "VFIO config", missing: CONFIG_WINDOW - rest.len() });
        }
        let count = match self.config_end(&rest[..rest.len().min(CONFIG_WINDOW)], all) {
            Some(0) => return VfioTag::parse(input).map(VfioEvent::Tag),
            Some(end) => end.min(PIECE),
            None if all => {
                let end = input.offset() + rest.len() as u64;
                let message = "the section ends in a config, without END_OF_STATE";
                return Err(error(ErrorKind::Truncated, end, message).into());
            }
            None => PIECE,
        };
        input.take("VFIO config", count).map(|bytes| VfioEvent::Config(Bulk::Bytes(bytes)))
    }

    /// Where the config ends in `window`, if that can be seen; `all`: the body ends where the window does.
    fn config_end(&self, window: &[u8], all: bool) -> Option<usize> {
        let last = window.len().checked_sub(VfioTag::LEN).filter(|_| all);
        memmem::find_iter(window, &word(VfioTag::END_OF_STATE)).find(|&at| {
            let behind = &window[at + VfioTag::LEN..];
            let goes_on = [VfioTag::DEV_DATA_STATE, VfioTag::END_OF_STATE]
                .iter()
                .any(|&tag| behind.starts_with(&word(tag)));
            Some(at) == last && self.dialect.has(Difference::VfioConfigInFull)
                || goes_on && self.dialect.has(Difference::VfioConfigInEnd)
        })
    }

    fn note(&mut self, event: &VfioEvent<'_>, is_last: bool) {
        self.expect = match (self.expect, event) {
            (Expect::Config, VfioEvent::Config(_)) => Expect::Config,
            // In 5.2 the loop goes on behind a config; in later releases it is over, as is the body.
            (Expect::Config, _) if !is_last => Expect::Tag,
            (_, VfioEvent::Tag(VfioTag::DEV_SETUP_STATE)) => Expect::SetupEnd,
            (_, VfioEvent::Tag(VfioTag::DEV_DATA_STATE)) => Expect::Size,
            (_, VfioEvent::Tag(VfioTag::DEV_CONFIG_STATE)) => Expect::Config,
            (_, VfioEvent::Tag(_)) => Expect::Over,
            (_, VfioEvent::DataSize(size)) => data(*size),
            (Expect::Data(left), VfioEvent::Data(bulk)) => data(left - bulk.len()),
            (expect, _) => expect,
        };
    }
}

/// To know that a piece of a config holds no end, one must see two words from its last byte on.
const CONFIG_WINDOW: usize = PIECE + 2 * VfioTag::LEN;

fn data(left: u64) -> Expect {
    if left == 0 { Expect::Tag } else { Expect::Data(left) }
}

fn word(tag: VfioTag) -> [u8; 8] {
    tag.0.to_be_bytes()
}

#[cold]
fn error(kind: ErrorKind, offset: u64, message: impl Into<String>) -> Error {
    Error::new(kind, offset, "VFIO section", message)
}

impl ChannelParser for VfioParser {
    type Event<'a> = VfioEvent<'a>;

    fn step<'a>(&mut self, input: &'a [u8], tail: Tail) -> Result<Step<'a, VfioEvent<'a>>> {
        if input.is_empty() && self.is_over() && tail == Tail::Closed {
            return Ok(Step::End);
        }
        let mut cursor = Cursor::new(self.offset, input);
        match self.lex(&mut cursor, tail) {
            Ok(event) => {
                self.note(&event, cursor.is_empty());
                let start = self.offset;
                self.offset += event.wire_len();
                Ok(Step::Event(Located {
                    event,
                    range: start..self.offset,
                    raw: &input[..cursor.consumed()],
                }))
            }
            Err(Fault::Bad(error)) => Err(error),
            Err(Fault::More { missing, .. }) if tail != Tail::Closed => Ok(Step::More(missing)),
            Err(Fault::More { field, .. }) => {
                let end = self.offset + input.len() as u64;
                Err(error(ErrorKind::Truncated, end, format!("the section ends here, inside {field}")))
            }
        }
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn expected(&self) -> &'static str {
        match self.expect {
            Expect::Tag => "a VFIO tag",
            Expect::Size => "the size of VFIO data",
            Expect::Data(_) => "VFIO data",
            Expect::Config => "the config of a VFIO device",
            Expect::SetupEnd => "END_OF_STATE",
            Expect::Over => "the end of a VFIO section",
        }
    }
}

/// Drives a [`VfioParser`] over a body that comes in slices of any size, as payload events of the main channel do. Keeps what
/// does not make an event yet: less than a piece and two words.
///
/// ```
/// use migwire::device_state::{VfioEvent, VfioSection};
/// use migwire::dialect::Dialect;
/// let mut section = VfioSection::new(Dialect::ANY, 0x2a5);
/// let mut events = Vec::new();
/// for slice in [&b"\xff\xff\xff\xff\xef\x10\0\x04\0\0\0\0\0\0\0\x02h"[..], b"i\xff\xff\xff\xff\xef\x10\0\x01"] {
///     section.handle(slice, |located| {
///         events.push((located.range.start, format!("{:?}", located.event)));
///         Ok(())
///     })?;
/// }
/// section.finish(|_| Ok(()))?;
/// assert_eq!(events[2], (0x2b5, "Data([68, 69])".to_owned()));
/// assert_eq!(events[3], (0x2b7, "Tag(END_OF_STATE)".to_owned()));
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct VfioSection {
    parser: VfioParser,
    held: Vec<u8>,
    /// So many bytes are missing for the next step.
    missing: usize,
}

impl VfioSection {
    /// A body that begins at `offset` of its channel, as `dialect` writes it.
    pub fn new(dialect: Dialect, offset: u64) -> Self {
        Self { parser: VfioParser::new(dialect, offset), held: Vec::new(), missing: 0 }
    }

    /// Whether the body is over, as far as its words tell.
    pub fn is_over(&self) -> bool {
        self.parser.is_over() && self.held.is_empty()
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// As [`VfioParser::step`], and whatever `each` says; both are final.
    pub fn handle(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Located<'_, VfioEvent<'_>>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.held.is_empty() {
                let (taken, missing) = run(&mut self.parser, bytes, Tail::Open, &mut each)?;
                self.held.extend_from_slice(&bytes[taken..]);
                self.missing = missing;
                return Ok(());
            }
            let (more, rest) = bytes.split_at(self.missing.min(bytes.len()));
            self.held.extend_from_slice(more);
            self.missing -= more.len();
            bytes = rest;
            if self.missing == 0 {
                let (taken, missing) = run(&mut self.parser, &self.held, Tail::Open, &mut each)?;
                self.held.drain(..taken);
                self.missing = missing;
            }
        }
        Ok(())
    }

    /// The section is over: its footer has come, or the packet that held it ended.
    ///
    /// # Errors
    /// As [`handle`](Self::handle), and `Truncated` if the body may not end here.
    pub fn finish(mut self, mut each: impl FnMut(Located<'_, VfioEvent<'_>>) -> Result<()>) -> Result<()> {
        run(&mut self.parser, &self.held, Tail::Closed, &mut each).map(drop)
    }
}

/// Steps over `input` as far as it goes. Returns how many bytes were taken, and how many more the next step wants.
fn run(
    parser: &mut VfioParser,
    input: &[u8],
    tail: Tail,
    each: &mut impl FnMut(Located<'_, VfioEvent<'_>>) -> Result<()>,
) -> Result<(usize, usize)> {
    let mut taken = 0;
    loop {
        match parser.step(&input[taken..], tail)? {
            Step::Event(located) => {
                taken += located.raw.len();
                each(located)?;
            }
            Step::More(missing) => return Ok((taken, missing)),
            Step::End => return Ok((taken, 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x01";
    const CONFIG: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x02";
    const SETUP: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x03";
    const DATA: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x04";
    const SENT: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x05";
    const READY: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x06";

    /// Reads a body in slices of `step` bytes and checks that its events tile it.
    fn read(body: &[u8], dialect: &str, step: usize) -> Result<Vec<String>> {
        let mut section = VfioSection::new(dialect.parse().unwrap(), 100);
        let (mut out, mut found) = (Vec::new(), Vec::new());
        let mut each = |located: Located<'_, VfioEvent<'_>>| {
            assert_eq!(located.range.start, 100 + out.len() as u64);
            located.event.emit(&mut out);
            assert_eq!(located.range.end, 100 + out.len() as u64);
            assert!(out.ends_with(located.raw));
            found.push(format!("{:?}", located.event));
            Ok(())
        };
        for slice in body.chunks(step) {
            section.handle(slice, &mut each)?;
            assert!(section.held.len() < CONFIG_WINDOW);
        }
        section.finish(&mut each)?;
        assert!(out == body, "the body is not given back as it came");
        Ok(found)
    }

    /// The same whole, byte by byte, and in odd slices; with the text of the error.
    fn all(parts: &[&[u8]], dialect: &str) -> Result<Vec<String>, String> {
        let body = parts.concat();
        let whole = read(&body, dialect, body.len().max(1)).map_err(|e| e.to_string());
        for step in [1, 7, 4096] {
            assert_eq!(read(&body, dialect, step).map_err(|e| e.to_string()), whole, "slices of {step}");
        }
        whole
    }

    fn data(bytes: &[u8]) -> Vec<u8> {
        [DATA, &(bytes.len() as u64).to_be_bytes(), bytes].concat()
    }

    #[test]
    fn bodies_of_all_releases() {
        let reads = |parts: &[&[u8]], dialect: &str, count| {
            assert_eq!(all(parts, dialect).map(|found| found.len()), Ok(count), "{parts:?} {dialect}");
        };
        reads(&[SETUP, END], "5.2", 2);
        reads(&[&data(b""), END], "5.2", 3);
        reads(&[&data(b"ab"), &data(b"c"), END], "7.2", 7);
        reads(&[END], "10.0", 1);
        reads(&[SENT], "8.1", 1);
        reads(&[&data(b"ab"), SENT], "11.1", 4);
        reads(&[READY], "10.1", 1);
        reads(&[CONFIG, b"config", END], "7.2", 3);
        reads(&[CONFIG, END], "any", 2);
        reads(&[CONFIG, b"config", END, &data(b"x"), END], "5.2", 7);
        reads(&[CONFIG, b"config", END, END], "any", 4);
    }

    #[test]
    fn a_config_may_hold_what_looks_like_its_end() {
        let body: &[&[u8]] = &[CONFIG, b"a", END, b"b", DATA, b"c", END];
        assert_eq!(all(body, "any").unwrap().len(), 3);
        // 5.2 goes on behind it, later releases do not.
        let body: &[&[u8]] = &[CONFIG, b"a", END, &data(b"x"), END];
        assert_eq!(all(body, "6.0").unwrap().len(), 3);
        assert_eq!(all(body, "5.2").unwrap().len(), 7);
    }

    #[test]
    fn long_data_and_configs_come_in_pieces() {
        let long = vec![0x5a; 2 * PIECE + 3];
        assert_eq!(all(&[&data(&long), END], "any").unwrap().len(), 6);
        // Around the sizes where the end is just in sight, or just not.
        for length in (PIECE - 17..=PIECE + 17).chain([2 * PIECE - 8, 2 * PIECE]) {
            let found = all(&[CONFIG, &long[..length], END], "any").unwrap();
            assert_eq!(found.len(), 2 + length.div_ceil(PIECE), "{length}");
        }
    }

    #[test]
    fn the_words_tell_when_a_body_is_over() {
        let mut section = VfioSection::new(Dialect::ANY, 0);
        section.handle(&[&data(b"ab"), END].concat()[..25], |_| Ok(())).unwrap();
        assert!(!section.is_over());
        section.handle(&END[7..], |_| Ok(())).unwrap();
        assert!(section.is_over());
    }

    #[test]
    fn what_a_loader_refuses() {
        let refused = |parts: &[&[u8]], dialect: &str| all(parts, dialect).unwrap_err();
        insta::assert_snapshot!(refused(&[b"\0\0\0\0\0\0\0\x07"], "any"), @"VFIO section: unknown tag 0x0000000000000007 (main channel, offset 0x64)");
        insta::assert_snapshot!(refused(&[SENT], "8.0"), @"VFIO section: DEV_INIT_DATA_SENT, which QEMU 8.0 does not know (main channel, offset 0x64)");
        insta::assert_snapshot!(refused(&[READY], "10.0"), @"VFIO section: DEV_CONFIG_LOAD_READY, which QEMU 10.0 does not know (main channel, offset 0x64)");
        insta::assert_snapshot!(refused(&[SETUP, SETUP], "any"), @"VFIO section: DEV_SETUP_STATE where END_OF_STATE was expected (main channel, offset 0x6c)");
        insta::assert_snapshot!(refused(&[END, b"x"], "any"), @"VFIO section: bytes behind the end of the body, where a footer should be (main channel, offset 0x6c)");
        insta::assert_snapshot!(refused(&[&data(b"ab")], "any"), @"VFIO section: the section ends here, inside VFIO tag (main channel, offset 0x76)");
        insta::assert_snapshot!(refused(&[&data(b"ab")[..17]], "any"), @"VFIO section: the section ends here, inside VFIO data (main channel, offset 0x75)");
        insta::assert_snapshot!(refused(&[CONFIG, b"config"], "any"), @"VFIO section: the section ends in a config, without END_OF_STATE (main channel, offset 0x72)");
        insta::assert_snapshot!(refused(&[CONFIG, b"config", END], "5.2"), @"VFIO section: the section ends in a config, without END_OF_STATE (main channel, offset 0x7a)");
        insta::assert_snapshot!(refused(&[DATA, &[0xff; 8]], "any"), @"VFIO section: 18446744073709551615 bytes of data, at most 4294967296 are taken (main channel, offset 0x6c)");
        insta::assert_snapshot!(refused(&[], "any"), @"VFIO section: the section ends here, inside VFIO tag (main channel, offset 0x64)");
    }
}
