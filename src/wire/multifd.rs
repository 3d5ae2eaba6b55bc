//! Multifd channels: the hello, the packet of pages, and the packet of device state.
//!
//! ```text
//! hello    be32 magic 11223344  be32 version 1  uuid[16]  u8 id  unused[39]                              64 bytes, once
//! packet   be32 magic 11223344  be32 version 1  be32 flags                                               12 bytes, then
//!   RAM      be32 pages_alloc  be32 normal  be32 payload size  be64 number  be32 zero  unused[28]
//!            block[256]  be64 offset[P]                                                                  P = 512 KiB / page size
//!   device   idstr[256]  be32 instance id  be32 payload size                                             with DEVICE_STATE
//! ```
//! The payload follows at once. The offsets are always all there, however few are in use. Source: `migration/multifd.h`
//! (`MultiFDInit_t`, `MultiFDPacket_t`, `MultiFDPacketDeviceState_t`), `migration/multifd.c`.

use std::fmt;

use super::numbers::open_enum;
use super::{Cursor, Fault, Name, Sink, Wire};
use crate::error::{Error, ErrorKind};

/// `MULTIFD_MAGIC`, in front of the hello and of every packet.
pub const MULTIFD_MAGIC: u32 = 0x1122_3344;

/// `MULTIFD_VERSION`, of the hello and of every packet.
pub const MULTIFD_VERSION: u32 = 1;

/// `MULTIFD_PACKET_SIZE`: bytes of guest memory that a full packet carries.
pub const MULTIFD_PACKET_SIZE: u64 = 512 << 10;

/// Number of offsets in a packet (`multifd_ram_page_count`): 128 for pages of 4 KiB. Both ends derive it from the page size of
/// their target; nothing on the wire says it.
pub fn packet_page_count(page_size: u64) -> usize {
    (MULTIFD_PACKET_SIZE / page_size.max(1)) as usize
}

open_enum! {
    /// How the pages of a packet are encoded: the method field of its flags.
    Method(u32) {
        /// `MULTIFD_FLAG_NOCOMP`: page after page.
        NONE = 0x00,
        /// `MULTIFD_FLAG_ZLIB`: one endless zlib stream a channel.
        ZLIB = 0x02,
        /// `MULTIFD_FLAG_ZSTD`: one endless zstd frame a channel.
        ZSTD = 0x04,
        /// `MULTIFD_FLAG_QPL`: a table of lengths, then a deflate stream a page (9.1 and later).
        QPL = 0x08,
        /// `MULTIFD_FLAG_UADK`: a table of lengths, then a zlib stream a page (9.1 and later).
        UADK = 0x10,
        /// `MULTIFD_FLAG_QATZIP`: all pages in one gzip-ext file (9.2 and later).
        QATZIP = 0x20,
    }
}

/// Flags of a packet. Bits without a name are ignored by every release, and kept here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MultifdFlags(pub u32);

impl MultifdFlags {
    /// `MULTIFD_FLAG_SYNC`: the channel waits behind this packet until the main channel has come as far.
    pub const SYNC: Self = Self(0x01);
    /// `MULTIFD_FLAG_COMPRESSION_MASK` as of 9.1. Before, it was 0x0e, and the two upper bits had no meaning.
    pub const METHOD_MASK: u32 = 0x3e;
    /// `MULTIFD_FLAG_DEVICE_STATE`: the packet has the other layout (10.0 and later).
    pub const DEVICE_STATE: Self = Self(0x40);

    /// Flags of a packet with pages.
    pub fn of(method: Method) -> Self {
        Self(method.0)
    }

    /// Whether all bits of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The method field.
    pub fn method(self) -> Method {
        Method(self.0 & Self::METHOD_MASK)
    }
}

impl std::ops::BitOr for MultifdFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for MultifdFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        let known = Self::SYNC.0 | Self::METHOD_MASK | Self::DEVICE_STATE.0;
        if self.contains(Self::SYNC) {
            words.push("SYNC".to_owned());
        }
        if self.method() != Method::NONE {
            words.push(self.method().to_string());
        }
        if self.contains(Self::DEVICE_STATE) {
            words.push("DEVICE_STATE".to_owned());
        }
        if self.0 & !known != 0 {
            words.push(format!("{:#x}", self.0 & !known));
        }
        if words.is_empty() { f.write_str("none") } else { f.write_str(&words.join("|")) }
    }
}

impl fmt::Debug for MultifdFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {self}", self.0)
    }
}

/// The first 64 bytes of a channel (`MultiFDInit_t`). The magic is not a field: without it this is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultifdHello {
    /// `MULTIFD_VERSION`.
    pub version: u32,
    /// The virtual machine's UUID in the byte order of RFC 4122; zero if it has none. The destination compares it with its own.
    pub uuid: [u8; 16],
    /// Number of the channel, from 0.
    pub id: u8,
    /// Zero; nobody looks at them.
    pub unused: [u8; 39],
}

impl MultifdHello {
    /// Bytes on the wire.
    pub const LEN: usize = 64;
    /// Offset of the channel's number.
    pub const ID: usize = 24;

    /// The hello of a channel.
    pub fn new(id: u8, uuid: [u8; 16]) -> Self {
        Self { version: MULTIFD_VERSION, uuid, id, unused: [0; 39] }
    }
}

impl<'a> Wire<'a> for MultifdHello {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        magic(input, "multifd hello")?;
        Ok(Self {
            version: input.be32("version")?,
            uuid: input.array("UUID")?,
            id: input.u8("channel id")?,
            unused: input.array("unused bytes of the hello")?,
        })
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be32(MULTIFD_MAGIC);
        out.be32(self.version);
        out.put(&self.uuid);
        out.u8(self.id);
        out.put(&self.unused);
    }

    fn wire_len(&self) -> usize {
        Self::LEN
    }
}

/// What both kinds of packet begin with, behind the magic (`MultiFDPacketHdr_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketHead {
    /// `MULTIFD_VERSION`.
    pub version: u32,
    /// What kind of packet this is.
    pub flags: MultifdFlags,
}

impl PacketHead {
    /// Bytes on the wire, with the magic.
    pub const LEN: usize = 12;

    /// The head of a packet with these flags.
    pub fn new(flags: MultifdFlags) -> Self {
        Self { version: MULTIFD_VERSION, flags }
    }
}

impl<'a> Wire<'a> for PacketHead {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        magic(input, "multifd packet")?;
        Ok(Self { version: input.be32("version")?, flags: MultifdFlags(input.be32("flags")?) })
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be32(MULTIFD_MAGIC);
        out.be32(self.version);
        out.be32(self.flags.0);
    }

    fn wire_len(&self) -> usize {
        Self::LEN
    }
}

/// A name in a field of 256 bytes, NUL behind it. What stands behind the first NUL is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PaddedName<'a>(&'a [u8]);

impl<'a> PaddedName<'a> {
    /// Bytes on the wire.
    pub const LEN: usize = 256;
    /// No name.
    pub const EMPTY: PaddedName<'static> = PaddedName(&[0; Self::LEN]);

    /// The field as it stands on the wire.
    pub fn new(field: &'a [u8; 256]) -> Self {
        Self(field)
    }

    /// The name: what comes before the first NUL.
    pub fn name(self) -> Name<'a> {
        let end = memchr::memchr(0, self.0).unwrap_or(Self::LEN);
        Name(&self.0[..end])
    }

    /// Whether there is a NUL at the end of the field, where receivers look for it.
    pub fn is_terminated(self) -> bool {
        self.0.last() == Some(&0)
    }

    /// All 256 bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Writes `name` into a field, padded; a name that is too long is cut, so that a NUL remains.
    pub fn pad(name: &[u8], field: &mut [u8; 256]) {
        let length = name.len().min(Self::LEN - 1);
        field[..length].copy_from_slice(&name[..length]);
        field[length..].fill(0);
    }

    fn parse(input: &mut Cursor<'a>, field: &'static str) -> Result<Self, Fault> {
        input.take(field, Self::LEN).map(Self)
    }
}

impl fmt::Debug for PaddedName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        write!(f, "{name:?}")?;
        let rest = &self.0[name.0.len()..];
        if rest.iter().any(|b| *b != 0) { f.write_str(" with bytes behind it") } else { Ok(()) }
    }
}

/// Offsets in a block, as many as a packet has room for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Offsets<'a>(&'a [u8]);

impl<'a> Offsets<'a> {
    /// The offsets as they stand on the wire: be64 each.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(&bytes[..bytes.len() / 8 * 8])
    }

    /// Number of offsets.
    pub fn len(self) -> usize {
        self.0.len() / 8
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// All of them, those that are not in use too.
    pub fn iter(self) -> impl Iterator<Item = u64> + use<'a> {
        self.0.chunks_exact(8).map(|b| u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    /// The bytes on the wire.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Offsets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.len() - self.0.rchunks_exact(8).take_while(|b| b.iter().all(|b| *b == 0)).count();
        write!(f, "{} offsets, ", self.len())?;
        f.debug_list().entries(self.iter().take(used).map(|o| format!("{o:#x}"))).finish()
    }
}

/// A packet of pages (`MultiFDPacket_t`), without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamPacket<'a> {
    /// Version and flags.
    pub head: PacketHead,
    /// `pages_alloc`: room for so many pages. From 9.0 on 0 in SYNC packets.
    pub pages_alloc: u32,
    /// `normal_pages` (5.2: `pages_used`): so many offsets are of pages in the payload.
    pub normal_pages: u32,
    /// `next_packet_size`: bytes of payload; stale where there is no page in it (7.2 and older).
    pub payload_size: u32,
    /// `packet_num`: packets of all channels share one counter; older releases skip and repeat numbers.
    pub packet_num: u64,
    /// `zero_pages`: so many offsets behind them are of pages of zeros (9.0 and later; unused and zero before).
    pub zero_pages: u32,
    /// `unused32` and `unused64`: zero; nobody looks at them.
    pub unused: [u8; 28],
    /// `ramblock`: block of all pages of the packet.
    pub block: PaddedName<'a>,
    /// `offset`: of normal pages, then of zero pages, then of none.
    pub offsets: Offsets<'a>,
}

impl<'a> RamPacket<'a> {
    /// Bytes in front of the offsets.
    pub const FIXED_LEN: usize = 320;

    /// Bytes on the wire, without the payload.
    pub fn len_with(page_count: usize) -> usize {
        Self::FIXED_LEN + 8 * page_count
    }

    /// Reads a packet with room for `page_count` pages.
    ///
    /// # Errors
    /// As [`Wire::parse`].
    pub fn parse(input: &mut Cursor<'a>, page_count: usize) -> Result<Self, Fault> {
        Ok(Self {
            head: PacketHead::parse(input)?,
            pages_alloc: input.be32("pages_alloc")?,
            normal_pages: input.be32("normal_pages")?,
            payload_size: input.be32("next_packet_size")?,
            packet_num: input.be64("packet_num")?,
            zero_pages: input.be32("zero_pages")?,
            unused: input.array("unused words of the packet")?,
            block: PaddedName::parse(input, "ramblock")?,
            offsets: Offsets(input.take("offsets", 8 * page_count)?),
        })
    }

    /// Writes the fields as they are.
    pub fn emit(&self, out: &mut impl Sink) {
        self.head.emit(out);
        out.be32(self.pages_alloc);
        out.be32(self.normal_pages);
        out.be32(self.payload_size);
        out.be64(self.packet_num);
        out.be32(self.zero_pages);
        out.put(&self.unused);
        out.put_bulk(self.block.0);
        out.put_bulk(self.offsets.0);
    }

    /// Bytes that [`emit`](Self::emit) writes.
    pub fn wire_len(&self) -> usize {
        Self::FIXED_LEN + self.offsets.0.len()
    }

    /// Offsets of the pages in the payload.
    pub fn normal(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.offsets.iter().take(self.normal_pages as usize)
    }

    /// Offsets of pages that are zero.
    pub fn zero(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.offsets.iter().skip(self.normal_pages as usize).take(self.zero_pages as usize)
    }
}

/// A packet of device state (`MultiFDPacketDeviceState_t`), without its payload. It has no number, no end mark and no total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePacket<'a> {
    /// Version and flags.
    pub head: PacketHead,
    /// `idstr` of the device's section.
    pub idstr: PaddedName<'a>,
    /// `instance_id` of the device's section.
    pub instance_id: u32,
    /// `next_packet_size`: bytes of payload, never 0.
    pub payload_size: u32,
}

impl DevicePacket<'_> {
    /// Bytes on the wire, without the payload.
    pub const LEN: usize = 276;
}

impl<'a> Wire<'a> for DevicePacket<'a> {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        Ok(Self {
            head: PacketHead::parse(input)?,
            idstr: PaddedName::parse(input, "idstr")?,
            instance_id: input.be32("instance_id")?,
            payload_size: input.be32("next_packet_size")?,
        })
    }

    fn emit(&self, out: &mut impl Sink) {
        self.head.emit(out);
        out.put_bulk(self.idstr.0);
        out.be32(self.instance_id);
        out.be32(self.payload_size);
    }

    fn wire_len(&self) -> usize {
        Self::LEN
    }
}

fn magic(input: &mut Cursor<'_>, record: &'static str) -> Result<(), Fault> {
    let at = input.offset();
    match input.be32("magic")? {
        MULTIFD_MAGIC => Ok(()),
        other => {
            let message = format!("magic {other:#010x} where {MULTIFD_MAGIC:#010x} was expected");
            Err(Error::new(ErrorKind::Malformed, at, record, message).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn hello() {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01");
        bytes[24] = 1;
        round_trip(&MultifdHello::new(1, [0; 16]), &bytes);
        bytes[8..24].copy_from_slice(&[0x6d; 16]);
        bytes[63] = 0xff;
        let mut odd = MultifdHello::new(1, [0x6d; 16]);
        odd.unused[38] = 0xff;
        round_trip(&odd, &bytes);
    }

    #[test]
    fn device_state() {
        let mut field = [0; 256];
        PaddedName::pad(b"0000:00:04.0/vfio", &mut field);
        let packet = DevicePacket {
            head: PacketHead::new(MultifdFlags::DEVICE_STATE),
            idstr: PaddedName::new(&field),
            instance_id: 0,
            payload_size: 16,
        };
        let mut bytes = b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\x40".to_vec();
        bytes.extend_from_slice(&field);
        bytes.extend_from_slice(b"\0\0\0\0\0\0\0\x10");
        round_trip(&packet, &bytes);
        assert_eq!(packet.idstr.name(), Name(b"0000:00:04.0/vfio"));
    }

    fn ram_packet(packet: &RamPacket<'_>, bytes: &[u8], page_count: usize) {
        let mut cursor = Cursor::new(0, bytes);
        assert_eq!(RamPacket::parse(&mut cursor, page_count).unwrap(), *packet);
        assert!(cursor.is_empty());
        let mut out = vec![0xa5];
        packet.emit(&mut out);
        assert_eq!(out[1..], *bytes);
        assert_eq!(packet.wire_len(), bytes.len());
        for cut in 0..bytes.len() {
            let cut = RamPacket::parse(&mut Cursor::new(0, &bytes[..cut]), page_count);
            assert!(matches!(cut, Err(Fault::More { .. })), "{cut:?}");
        }
    }

    #[test]
    fn pages_and_zero_pages() {
        let mut bytes = vec![0; 1344];
        bytes[..12].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\x02");
        bytes[15] = 0x80;
        bytes[19] = 2;
        bytes[22] = 0x20;
        bytes[31] = 6;
        bytes[35] = 1;
        bytes[63] = 7;
        bytes[64..70].copy_from_slice(b"pc.ram");
        for (i, offset) in [0x1000u64, 0x3000, 0x2000].iter().enumerate() {
            bytes[320 + 8 * i..][..8].copy_from_slice(&offset.to_be_bytes());
        }
        let mut field = [0; 256];
        PaddedName::pad(b"pc.ram", &mut field);
        let mut unused = [0; 28];
        unused[27] = 7;
        let packet = RamPacket {
            head: PacketHead::new(MultifdFlags::of(Method::ZLIB)),
            pages_alloc: 128,
            normal_pages: 2,
            payload_size: 0x2000,
            packet_num: 6,
            zero_pages: 1,
            unused,
            block: PaddedName::new(&field),
            offsets: Offsets::new(&bytes[320..]),
        };
        ram_packet(&packet, &bytes, 128);
        assert_eq!(packet.normal().collect::<Vec<_>>(), [0x1000, 0x3000]);
        assert_eq!(packet.zero().collect::<Vec<_>>(), [0x2000]);
        assert!(format!("{packet:?}").contains("128 offsets, [\"0x1000\", \"0x3000\", \"0x2000\"]"));
    }

    #[test]
    fn page_counts_of_all_targets() {
        let counts = [1024, 2048, 4096, 8192, 16384, 65536].map(packet_page_count);
        assert_eq!(counts, [512, 256, 128, 64, 32, 8]);
        assert_eq!(counts.map(RamPacket::len_with), [4416, 2368, 1344, 832, 576, 384]);
    }

    #[test]
    fn counts_beyond_the_offsets_name_no_page() {
        let packet = RamPacket {
            head: PacketHead::new(MultifdFlags::default()),
            pages_alloc: u32::MAX,
            normal_pages: 1,
            payload_size: 0,
            packet_num: 0,
            zero_pages: u32::MAX,
            unused: [0; 28],
            block: PaddedName::EMPTY,
            offsets: Offsets::new(&[0; 24]),
        };
        assert_eq!((packet.normal().count(), packet.zero().count()), (1, 2));
    }

    #[test]
    fn another_magic_is_something_else() {
        let error = PacketHead::parse(&mut Cursor::new(64, b"QEVM\0\0\0\x03\0\0\0\0"));
        assert!(
            matches!(error, Err(Fault::Bad(e)) if e.offset() == Some(64) && e.kind() == ErrorKind::Malformed)
        );
    }

    #[test]
    fn flags_speak() {
        assert_eq!(format!("{:?}", MultifdFlags(0x83)), "0x83: SYNC|ZLIB|0x80");
        assert_eq!(MultifdFlags(0x40).to_string(), "DEVICE_STATE");
        assert_eq!(MultifdFlags(0x06).to_string(), "Method(0x6)");
        assert_eq!(MultifdFlags(0).to_string(), "none");
    }
}
