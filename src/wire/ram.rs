//! The `ram` section's records: page words, block list entries, pages.
//!
//! ```text
//! word      be64   offset in the block, with flags in the bits below the target page size
//! START     word total|MEM_SIZE   { str8 name  be64 used_length  [be64 page_size] [be64 gpa] [mapped-ram header] }*
//! page      word   [str8 block, unless CONTINUE]   then by flag:
//!             ZERO           u8 fill
//!             PAGE           raw[page size]
//!             XBZRLE         u8 0x01   be16 length   raw[length]
//!             COMPRESS_PAGE  be32 length   raw[length]  one zlib stream
//! others    word   EOS, MULTIFD_FLUSH, HOOK: nothing behind it
//! ```
//! Source: `migration/ram.c`, `ram_save_setup`, `save_page_header`, `ram_load_precopy`.

use std::fmt;

use super::{Cursor, Fault, MappedRamHeader, Name, Sink, Wire};
use crate::error::{Error, ErrorKind};

/// Bytes that pass through unchanged: there, or known by their number only because the reader skipped them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bulk<'a> {
    /// The bytes.
    Bytes(&'a [u8]),
    /// This many bytes that were not read (an outline of a stream). Cannot be emitted.
    Elided(u64),
}

impl<'a> Bulk<'a> {
    /// Number of bytes on the wire.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Elided(len) => *len,
        }
    }

    /// Whether there is not a byte on the wire.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if they were read.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Elided(_) => None,
        }
    }

    /// Hands the bytes to `out`; elided ones are not there to be written, the emitter refuses them before this.
    pub(crate) fn emit(&self, out: &mut impl Sink) {
        if let Self::Bytes(bytes) = self {
            out.put_bulk(bytes);
        }
    }
}

impl fmt::Debug for Bulk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) if bytes.len() <= 16 => write!(f, "{bytes:02x?}"),
            Self::Bytes(bytes) => write!(f, "{:02x?}.. {} bytes", &bytes[..16], bytes.len()),
            Self::Elided(len) => write!(f, "elided {len} bytes"),
        }
    }
}

/// Flags of a page word (`RAM_SAVE_FLAG_*`, `migration/ram.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RamFlags(pub u64);

impl RamFlags {
    /// `RAM_SAVE_FLAG_FULL`: obsolete, refused by every release.
    pub const FULL: Self = Self(0x01);
    /// `RAM_SAVE_FLAG_ZERO`: a page of one byte value.
    pub const ZERO: Self = Self(0x02);
    /// `RAM_SAVE_FLAG_MEM_SIZE`: the word holds the total of the block list that follows.
    pub const MEM_SIZE: Self = Self(0x04);
    /// `RAM_SAVE_FLAG_PAGE`: a raw page.
    pub const PAGE: Self = Self(0x08);
    /// `RAM_SAVE_FLAG_EOS`: the end of this section's payload.
    pub const EOS: Self = Self(0x10);
    /// `RAM_SAVE_FLAG_CONTINUE`: same block as the page before it on this channel; no name follows.
    pub const CONTINUE: Self = Self(0x20);
    /// `RAM_SAVE_FLAG_XBZRLE`: a delta against the page's content at the destination.
    pub const XBZRLE: Self = Self(0x40);
    /// `RAM_SAVE_FLAG_HOOK`: RDMA control, nothing in the stream.
    pub const HOOK: Self = Self(0x80);
    /// `RAM_SAVE_FLAG_COMPRESS_PAGE`: one zlib stream; up to 9.0.
    pub const COMPRESS_PAGE: Self = Self(0x100);
    /// `RAM_SAVE_FLAG_MULTIFD_FLUSH`: synchronise the multifd channels; 8.1 and later.
    pub const MULTIFD_FLUSH: Self = Self(0x200);

    const NAMES: [(Self, &'static str); 10] = [
        (Self::FULL, "FULL"),
        (Self::ZERO, "ZERO"),
        (Self::MEM_SIZE, "MEM_SIZE"),
        (Self::PAGE, "PAGE"),
        (Self::EOS, "EOS"),
        (Self::CONTINUE, "CONTINUE"),
        (Self::XBZRLE, "XBZRLE"),
        (Self::HOOK, "HOOK"),
        (Self::COMPRESS_PAGE, "COMPRESS_PAGE"),
        (Self::MULTIFD_FLUSH, "MULTIFD_FLUSH"),
    ];

    /// Whether all bits of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The flags without CONTINUE: what a loader dispatches on; exactly one flag in every legal word.
    pub fn action(self) -> Self {
        Self(self.0 & !Self::CONTINUE.0)
    }

    /// Whether a word with these flags names a page.
    pub fn is_page(self) -> bool {
        matches!(self.action(), Self::ZERO | Self::PAGE | Self::XBZRLE | Self::COMPRESS_PAGE)
    }
}

impl std::ops::BitOr for RamFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for RamFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut separator = "";
        for (flag, name) in Self::NAMES {
            if self.contains(flag) {
                write!(f, "{separator}{name}")?;
                separator = "|";
                rest &= !flag.0;
            }
        }
        match (rest, separator) {
            (0, "") => f.write_str("none"),
            (0, _) => Ok(()),
            _ => write!(f, "{separator}{rest:#x}"),
        }
    }
}

impl fmt::Debug for RamFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {self}", self.0)
    }
}

/// First eight bytes of every item of a RAM payload: an offset and flags in one number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageWord(pub u64);

impl PageWord {
    /// Bytes on the wire.
    pub const LEN: usize = 8;

    /// A word for the page at `offset`.
    pub fn new(offset: u64, flags: RamFlags) -> Self {
        Self(offset | flags.0)
    }

    /// The bits below the target page size.
    pub fn flags(self, page_size: u64) -> RamFlags {
        RamFlags(self.0 & (page_size - 1))
    }

    /// The bits from the target page size up: an offset in the block, or the total of a block list.
    pub fn offset(self, page_size: u64) -> u64 {
        self.0 & !(page_size - 1)
    }
}

impl fmt::Debug for PageWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageWord({:#x})", self.0)
    }
}

impl<'a> Wire<'a> for PageWord {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        input.be64("page word").map(Self)
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be64(self.0);
    }

    fn wire_len(&self) -> usize {
        Self::LEN
    }
}

/// Which optional fields the entries of a block list have. Nothing in the entry says so: it follows from what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RamFields {
    /// `POSTCOPY_ADVISE` with page sizes was sent, so blocks on huge pages carry theirs.
    pub page_size: bool,
    /// `x-ignore-shared` is on: every entry has the guest physical address.
    pub gpa: bool,
    /// `mapped-ram` is on: every entry has a header, and the pages stand elsewhere in the file.
    pub mapped: bool,
}

/// Entry of the block list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamBlock<'a> {
    /// Name of the block: `pc.ram`, `0000:00:02.0/vga.vram`.
    pub name: Name<'a>,
    /// Bytes in use.
    pub used_length: u64,
    /// Page size of the block's backing, in postcopy streams, unless it is the ordinary one.
    pub page_size: Option<u64>,
    /// Guest physical address, with `x-ignore-shared`.
    pub gpa: Option<u64>,
    /// Where the pages are, with `mapped-ram`.
    pub mapped: Option<MappedRamHeader>,
}

impl<'a> RamBlock<'a> {
    /// A plain entry: name and length.
    pub fn new(name: Name<'a>, used_length: u64) -> Self {
        Self { name, used_length, page_size: None, gpa: None, mapped: None }
    }

    /// Reads an entry that has the given `fields`.
    ///
    /// # Errors
    /// As [`Wire::parse`]; a name of length 0 is malformed.
    pub fn parse(input: &mut Cursor<'a>, fields: RamFields) -> Result<Self, Fault> {
        let at = input.offset();
        let name = input.str8("RAM block name")?;
        if name.is_empty() {
            let message = "a RAM block without a name, or the list is shorter than the total in front of it";
            return Err(Cursor::malformed(at, "RAM block list", message));
        }
        let used_length = input.be64("RAM block length")?;
        let page_size = match fields.page_size && has_page_size(input)? {
            true => Some(input.be64("RAM block page size")?),
            false => None,
        };
        let gpa = if fields.gpa { Some(input.be64("guest physical address")?) } else { None };
        let mapped = if fields.mapped { Some(MappedRamHeader::parse(input)?) } else { None };
        Ok(Self { name, used_length, page_size, gpa, mapped })
    }

    /// Writes the fields that are there.
    pub fn emit(&self, out: &mut impl Sink) {
        out.str8(self.name);
        out.be64(self.used_length);
        if let Some(size) = self.page_size {
            out.be64(size);
        }
        if let Some(gpa) = self.gpa {
            out.be64(gpa);
        }
        if let Some(mapped) = &self.mapped {
            mapped.emit(out);
        }
    }

    /// Bytes that [`emit`](Self::emit) writes.
    pub fn wire_len(&self) -> usize {
        let optional = |present| if present { 8 } else { 0 };
        1 + self.name.0.len()
            + 8
            + optional(self.page_size.is_some())
            + optional(self.gpa.is_some())
            + self.mapped.map_or(0, |m| m.wire_len())
    }
}

/// Whether a page size stands here. A source sends it only for blocks on other than ordinary pages, and the entry does not
/// say so. The next thing is otherwise a name (its length byte is not 0) or a word (it has a flag in its low bits), and
/// a page size has neither.
fn has_page_size(input: &Cursor<'_>) -> Result<bool, Fault> {
    if input.peek("RAM block page size, name or word")? != 0 {
        return Ok(false);
    }
    let value = input.clone().be64("RAM block page size, name or word")?;
    Ok(value.is_power_of_two() && value >= 1024)
}

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// Offset and flags.
    pub word: PageWord,
    /// The block's name, unless the word has CONTINUE.
    pub block: Option<Name<'a>>,
    /// Content.
    pub body: PageBody<'a>,
}

/// Content of a page, by flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageBody<'a> {
    /// `RAM_SAVE_FLAG_ZERO`: every byte is this one. Sources write 0; 8.2 and later refuse anything else.
    Zero(u8),
    /// `RAM_SAVE_FLAG_PAGE`: the page.
    Raw(Bulk<'a>),
    /// `RAM_SAVE_FLAG_XBZRLE`: see [`xbzrle`](super::xbzrle).
    Xbzrle {
        /// `ENCODING_FLAG_XBZRLE`, 1.
        encoding: u8,
        /// The delta.
        delta: &'a [u8],
    },
    /// `RAM_SAVE_FLAG_COMPRESS_PAGE`: one complete zlib stream.
    Compressed(&'a [u8]),
}

impl<'a> Page<'a> {
    /// Reads a page whose word says ZERO, PAGE, XBZRLE or COMPRESS_PAGE. With `elide`, a raw page ends the reading behind its
    /// head and is [`Bulk::Elided`]; [`head_len`](Self::head_len) bytes are consumed, [`wire_len`](Self::wire_len) are on the wire.
    ///
    /// # Errors
    /// As [`Wire::parse`]; lengths beyond what a page can need are malformed.
    pub fn parse(input: &mut Cursor<'a>, page_size: u64, elide: bool) -> Result<Self, Fault> {
        let start = input.offset();
        let word = PageWord::parse(input)?;
        let flags = word.flags(page_size);
        let block = match flags.contains(RamFlags::CONTINUE) {
            true => None,
            false => Some(input.str8("RAM block name")?),
        };
        let body = match flags.action() {
            RamFlags::ZERO => PageBody::Zero(input.u8("fill byte")?),
            RamFlags::PAGE if elide => PageBody::Raw(Bulk::Elided(page_size)),
            RamFlags::PAGE => PageBody::Raw(Bulk::Bytes(input.take("page", page_size as usize)?)),
            RamFlags::XBZRLE => {
                let encoding = input.u8("xbzrle encoding")?;
                let at = input.offset();
                let length = u64::from(input.be16("xbzrle length")?);
                if length > page_size {
                    let message = format!("a delta of {length} bytes for a page of {page_size}");
                    return Err(Error::new(ErrorKind::TooLarge, at, "xbzrle page", message).into());
                }
                PageBody::Xbzrle { encoding, delta: input.take("xbzrle delta", length as usize)? }
            }
            RamFlags::COMPRESS_PAGE => {
                let at = input.offset();
                let length = u64::from(input.be32("compressed length")?);
                if length > compress_bound(page_size) {
                    let message = format!("{length} compressed bytes for a page of {page_size}");
                    return Err(Error::new(ErrorKind::TooLarge, at, "compressed page", message).into());
                }
                PageBody::Compressed(input.take("compressed page", length as usize)?)
            }
            _ => {
                let message = format!("unknown combination of RAM flags {flags:?}");
                return Err(Cursor::malformed(start, "RAM page", message));
            }
        };
        Ok(Self { word, block, body })
    }

    /// Writes the fields that are there.
    pub fn emit(&self, out: &mut impl Sink) {
        self.word.emit(out);
        if let Some(block) = self.block {
            out.str8(block);
        }
        match self.body {
            PageBody::Zero(fill) => out.u8(fill),
            PageBody::Raw(bulk) => bulk.emit(out),
            PageBody::Xbzrle { encoding, delta } => {
                out.u8(encoding);
                out.be16(delta.len() as u16);
                out.put(delta);
            }
            PageBody::Compressed(data) => {
                out.be32(data.len() as u32);
                out.put(data);
            }
        }
    }

    /// Bytes on the wire.
    pub fn wire_len(&self) -> u64 {
        let body = match self.body {
            PageBody::Zero(_) => 1,
            PageBody::Raw(bulk) => bulk.len(),
            PageBody::Xbzrle { delta, .. } => 1 + 2 + delta.len() as u64,
            PageBody::Compressed(data) => 4 + data.len() as u64,
        };
        (PageWord::LEN + self.block.map_or(0, |name| 1 + name.0.len())) as u64 + body
    }

    /// Bytes on the wire that are not elided.
    pub fn head_len(&self) -> usize {
        match self.body {
            PageBody::Raw(Bulk::Elided(len)) => (self.wire_len() - len) as usize,
            _ => self.wire_len() as usize,
        }
    }
}

/// Most bytes that one deflate stream of `length` bytes can take, as zlib documents it for `compressBound`.
fn compress_bound(length: u64) -> u64 {
    length + (length >> 12) + (length >> 14) + (length >> 25) + 13
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_both_ways(page: Page<'_>, bytes: &[u8]) {
        let mut cursor = Cursor::new(0, bytes);
        assert_eq!(Page::parse(&mut cursor, 4096, false).unwrap(), page);
        assert!(cursor.is_empty());
        let mut out = Vec::new();
        page.emit(&mut out);
        assert_eq!(out, bytes);
        assert_eq!(page.wire_len(), bytes.len() as u64);
        for cut in 0..bytes.len() {
            let cut = Page::parse(&mut Cursor::new(0, &bytes[..cut]), 4096, false);
            assert!(matches!(cut, Err(Fault::More { .. })), "{cut:?}");
        }
    }

    #[test]
    fn pages() {
        let word = |offset, flags| PageWord::new(offset, flags);
        let zero = Page { word: word(0, RamFlags::ZERO), block: Some(Name(b"ram")), body: PageBody::Zero(0) };
        page_both_ways(zero, b"\0\0\0\0\0\0\0\x02\x03ram\0");
        let again = RamFlags::ZERO | RamFlags::CONTINUE;
        page_both_ways(
            Page { word: word(0x1000, again), block: None, body: PageBody::Zero(0x55) },
            b"\0\0\0\0\0\0\x10\x22\x55",
        );
        let raw = [7; 4096];
        page_both_ways(
            Page { word: word(0x2000, RamFlags(0x28)), block: None, body: PageBody::Raw(Bulk::Bytes(&raw)) },
            &[b"\0\0\0\0\0\0\x20\x28".as_slice(), &raw].concat(),
        );
        page_both_ways(
            Page {
                word: word(0, RamFlags(0x60)),
                block: None,
                body: PageBody::Xbzrle { encoding: 1, delta: b"\x02\x01\xaa" },
            },
            b"\0\0\0\0\0\0\0\x60\x01\0\x03\x02\x01\xaa",
        );
        page_both_ways(
            Page { word: word(0, RamFlags(0x120)), block: None, body: PageBody::Compressed(b"zz") },
            b"\0\0\0\0\0\0\x01\x20\0\0\0\x02zz",
        );
    }

    #[test]
    fn an_elided_page_counts_but_is_not_read() {
        let mut cursor = Cursor::new(0, b"\0\0\0\0\0\0\x20\x28");
        let page = Page::parse(&mut cursor, 4096, true).unwrap();
        assert_eq!((page.wire_len(), page.head_len()), (4104, 8));
    }

    #[test]
    fn lengths_beyond_a_page_are_refused() {
        let xbzrle = b"\0\0\0\0\0\0\0\x60\x01\xff\xff";
        assert!(
            matches!(Page::parse(&mut Cursor::new(0, xbzrle), 4096, false), Err(Fault::Bad(e)) if e.offset() == Some(9))
        );
        let zlib = b"\0\0\0\0\0\0\x01\x20\xff\xff\xff\xff";
        assert!(
            matches!(Page::parse(&mut Cursor::new(0, zlib), 4096, false), Err(Fault::Bad(e)) if e.offset() == Some(8))
        );
    }

    #[test]
    fn block_entries_with_every_optional_field() {
        let plain = RamBlock::new(Name(b"ram"), 0x100_0000);
        let mapped =
            MappedRamHeader { version: 1, page_size: 4096, bitmap_offset: 64, pages_offset: 1 << 20 };
        let cases = [
            (plain, RamFields::default()),
            (RamBlock { gpa: Some(0), ..plain }, RamFields { gpa: true, ..RamFields::default() }),
            (
                RamBlock { page_size: Some(2 << 20), ..plain },
                RamFields { page_size: true, ..RamFields::default() },
            ),
            (plain, RamFields { page_size: true, ..RamFields::default() }),
            (
                RamBlock { gpa: Some(1 << 32), mapped: Some(mapped), ..plain },
                RamFields { gpa: true, mapped: true, ..RamFields::default() },
            ),
        ];
        for (block, fields) in cases {
            for next in [b"\0\0\0\0\0\0\0\x10".as_slice(), b"\x06pc.rom.."] {
                let mut bytes = Vec::new();
                block.emit(&mut bytes);
                assert_eq!(block.wire_len(), bytes.len());
                bytes.extend_from_slice(next);
                let mut cursor = Cursor::new(0, &bytes);
                assert_eq!(RamBlock::parse(&mut cursor, fields).unwrap(), block);
                assert_eq!(cursor.rest(), next);
            }
        }
    }

    #[test]
    fn flags_speak() {
        assert_eq!(format!("{:?}", RamFlags(0x28)), "0x28: PAGE|CONTINUE");
        assert_eq!(RamFlags(0x410).to_string(), "EOS|0x400");
        assert_eq!(RamFlags(0).to_string(), "none");
    }
}
