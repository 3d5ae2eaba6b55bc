//! The four pcapng blocks of a recording as bytes: section header, interface description, enhanced packet, options.
//!
//! ```text
//!  0        4         8                      n-4       n
//!  | type   | length  | body, padded to 4    | length  |
//! ```
//!
//! Written by hand, because a packet must reach the file without being copied: the writer needs what stands before
//! and after the data as two small arrays around the caller's slice. Numbers are written little-endian and
//! read in the byte order of their section. Source: draft-ietf-opsawg-pcapng, sections 3 and 4.

use byteorder::{BigEndian, ByteOrder, LittleEndian};

use super::Timestamp;

/// Link type of our interfaces: `LINKTYPE_USER0`, reserved for private use, so nothing tries to dissect it as Ethernet.
pub const LINKTYPE: u16 = 147;

/// Most data in one packet: Wireshark refuses larger ones (`WTAP_MAX_PACKET_SIZE_STANDARD`).
pub const MAX_PACKET: usize = 262_144;

pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
pub(super) const OBSOLETE_PACKET: u32 = 2;
pub(super) const SIMPLE_PACKET: u32 = 3;
pub(super) const ENHANCED_PACKET: u32 = 6;

/// Written in the byte order of the section, and so tells it.
pub(super) const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// A block of ours that is no packet. The type is one of those that are kept for local use: Wireshark's tools show a custom block
/// (0xBAD) as a packet, but pass over this.
pub(super) const LOCAL: u32 = 0x8000_4d57;

/// Begins every block and option of ours; a byte that says which it is follows.
pub(super) const MAGIC: &[u8] = b"migwire\0";

/// Kind of option: what is known about the recording.
pub(super) const ABOUT: u8 = 1;

/// Enterprise number of custom options: the one for documentation, because we have none. The magic tells them apart.
pub(super) const PEN: u32 = 32473;

/// Custom binary option that programs copy.
pub(super) const OPT_CUSTOM: u16 = 2989;

/// Longest text about a recording.
pub(super) const MAX_ABOUT: usize = 32 << 10;

pub(super) const OPT_END: u16 = 0;
pub(super) const OPT_COMMENT: u16 = 1;
pub(super) const SHB_USERAPPL: u16 = 4;
pub(super) const IF_NAME: u16 = 2;
pub(super) const IF_DESCRIPTION: u16 = 3;
pub(super) const IF_TSRESOL: u16 = 9;
pub(super) const IF_TSOFFSET: u16 = 14;
pub(super) const EPB_FLAGS: u16 = 2;

/// Bytes in front of the data of an enhanced packet.
pub(super) const PACKET_HEAD: usize = 28;
/// Bytes after its padding: the flags option, the end of options, the length again.
pub(super) const PACKET_TAIL: usize = 16;

/// Byte order of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

impl Order {
    pub(super) fn u16(self, b: &[u8]) -> u16 {
        match self {
            Self::Little => LittleEndian::read_u16(b),
            Self::Big => BigEndian::read_u16(b),
        }
    }

    pub(super) fn u32(self, b: &[u8]) -> u32 {
        match self {
            Self::Little => LittleEndian::read_u32(b),
            Self::Big => BigEndian::read_u32(b),
        }
    }

    pub(super) fn i64(self, b: &[u8]) -> i64 {
        match self {
            Self::Little => LittleEndian::read_i64(b),
            Self::Big => BigEndian::read_i64(b),
        }
    }
}

/// Bytes that bring `len` up to a multiple of four.
pub(super) fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// A timestamp as nanoseconds, in the resolution of its interface (`if_tsresol`), so many seconds later (`if_tsoffset`); what does
/// not fit is held at the end of the range.
pub(super) fn nanoseconds(ticks: u64, resolution: u8, offset: i64) -> Timestamp {
    let ticks = u128::from(ticks);
    let exponent = u32::from(resolution & 0x7f);
    let nanoseconds = if resolution & 0x80 != 0 {
        (ticks * 1_000_000_000).checked_shr(exponent).unwrap_or(0)
    } else if exponent <= 9 {
        ticks * 10u128.pow(9 - exponent)
    } else {
        10u128.checked_pow(exponent - 9).map_or(0, |unit| ticks / unit)
    };
    let shifted = i128::try_from(nanoseconds).unwrap_or(i128::MAX);
    let shifted = shifted.saturating_add(i128::from(offset) * 1_000_000_000);
    Timestamp(u64::try_from(shifted.max(0)).unwrap_or(u64::MAX))
}

/// A section header: who wrote the file, a sentence on why, and what is known about it, if there is any.
pub(super) fn section_header(userappl: &str, comment: Option<&str>, about: Option<&str>) -> Vec<u8> {
    let mut body = Vec::new();
    put_u32(&mut body, BYTE_ORDER_MAGIC);
    put_u16(&mut body, 1);
    put_u16(&mut body, 0);
    // The length of the section is unknown while it is being written; minus one says so.
    body.extend_from_slice(&(-1i64).to_le_bytes());
    if let Some(comment) = comment {
        put_option(&mut body, OPT_COMMENT, comment.as_bytes());
    }
    if let Some(about) = about {
        put_option(&mut body, OPT_CUSTOM, &[&PEN.to_le_bytes(), MAGIC, &[ABOUT], about.as_bytes()].concat());
    }
    put_option(&mut body, SHB_USERAPPL, userappl.as_bytes());
    put_option(&mut body, OPT_END, &[]);
    framed(SECTION_HEADER, &body)
}

/// An interface description: our link type, no snap length, nanoseconds.
pub(super) fn interface_description(name: &str, description: Option<&str>) -> Vec<u8> {
    let mut body = Vec::new();
    put_u16(&mut body, LINKTYPE);
    put_u16(&mut body, 0);
    put_u32(&mut body, 0);
    put_option(&mut body, IF_NAME, name.as_bytes());
    if let Some(description) = description {
        put_option(&mut body, IF_DESCRIPTION, description.as_bytes());
    }
    put_option(&mut body, IF_TSRESOL, &[9]);
    put_option(&mut body, OPT_END, &[]);
    framed(INTERFACE_DESCRIPTION, &body)
}

/// What stands before `len` bytes of data (at most [`MAX_PACKET`]) of one enhanced packet.
pub(super) fn packet_head(interface: u32, nanoseconds: u64, len: usize) -> [u8; PACKET_HEAD] {
    let mut head = [0; PACKET_HEAD];
    let words = [
        ENHANCED_PACKET,
        packet_len(len) as u32,
        interface,
        (nanoseconds >> 32) as u32,
        nanoseconds as u32,
        len as u32,
        len as u32,
    ];
    LittleEndian::write_u32_into(&words, &mut head);
    head
}

/// What stands after the padding of the same packet. `flags` holds the direction in its two lowest bits.
pub(super) fn packet_tail(flags: u32, len: usize) -> [u8; PACKET_TAIL] {
    let mut tail = [0; PACKET_TAIL];
    LittleEndian::write_u16(&mut tail[0..], EPB_FLAGS);
    LittleEndian::write_u16(&mut tail[2..], 4);
    LittleEndian::write_u32(&mut tail[4..], flags);
    // The end-of-options option is four zero bytes, which are there already.
    LittleEndian::write_u32(&mut tail[12..], packet_len(len) as u32);
    tail
}

/// Length of an enhanced packet with so many bytes of data.
pub(super) fn packet_len(len: usize) -> usize {
    PACKET_HEAD + len + padding(len) + PACKET_TAIL
}

/// A block of ours: magic, kind, length of its content, content.
pub(super) fn local(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(content.len() + 20);
    body.extend_from_slice(MAGIC);
    body.extend_from_slice(&[kind, 0, 0, 0]);
    put_u32(&mut body, content.len() as u32);
    body.extend_from_slice(content);
    body.extend_from_slice(&[0; 3][..padding(content.len())]);
    framed(LOCAL, &body)
}

/// Kind and content of a whole block of ours; `None` if it is none, or not whole.
pub(super) fn read_local(block: &[u8]) -> Option<(u8, &[u8])> {
    let order = Order::Little;
    let len = block.len();
    let is_ours = len >= 28
        && order.u32(block) == LOCAL
        && order.u32(&block[4..]) as usize == len
        && order.u32(&block[len - 4..]) as usize == len
        && block[8..].starts_with(MAGIC);
    if !is_ours {
        return None;
    }
    let count = order.u32(&block[20..]) as usize;
    let content = block[24..len - 4].get(..count)?;
    Some((block[16], content)).filter(|_| count + padding(count) == len - 28)
}

fn framed(block_type: u32, body: &[u8]) -> Vec<u8> {
    let len = (body.len() + 12) as u32;
    let mut block = Vec::with_capacity(body.len() + 12);
    put_u32(&mut block, block_type);
    put_u32(&mut block, len);
    block.extend_from_slice(body);
    put_u32(&mut block, len);
    block
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// An option; a value beyond the 16-bit length is cut, which only a comment could ever meet.
fn put_option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(0xfff0)];
    put_u16(out, code);
    put_u16(out, value.len() as u16);
    out.extend_from_slice(value);
    out.extend_from_slice(&[0; 3][..padding(value.len())]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_parts_add_up_to_the_declared_length() {
        for len in [0, 1, 2, 3, 4, 5, MAX_PACKET - 1, MAX_PACKET] {
            let (head, tail) = (packet_head(1, 2, len), packet_tail(2, len));
            let whole = head.len() + len + padding(len) + tail.len();
            assert_eq!(whole % 4, 0);
            assert_eq!(LittleEndian::read_u32(&head[4..]) as usize, whole);
            assert_eq!(LittleEndian::read_u32(&tail[12..]) as usize, whole);
        }
    }

    #[test]
    fn padding_completes_words() {
        assert_eq!([0, 1, 2, 3, 4].map(padding), [0, 3, 2, 1, 0]);
    }
}
