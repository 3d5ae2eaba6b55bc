//! A TCP segment out of a frame. Checksums are not looked at: where a card computes them, the capture has something else.

use core::net::SocketAddr;

use super::{Unread, ip, link};
use crate::capture::Frame;

/// A segment: what matters of its header, and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Number of its first byte, or of SYN.
    pub sequence: u32,
    /// Number of the byte that its sender waits for, if it says so.
    pub acknowledgement: Option<u32>,
    /// It opens the connection.
    pub syn: bool,
    /// No byte comes behind it.
    pub fin: bool,
    /// The connection is broken off.
    pub rst: bool,
    /// Its bytes, as far as they were kept.
    pub data: &'a [u8],
    /// How many it had.
    pub length: usize,
}

impl<'a> Segment<'a> {
    /// Takes a frame apart.
    ///
    /// # Errors
    /// Why there is no segment in it.
    pub fn of(frame: &Frame<'a>) -> Result<Self, Unread> {
        let packet = link::packet(frame.link, frame.data)?;
        let in_front = frame.data.len() - packet.len();
        let datagram = ip::datagram(packet, frame.length.saturating_sub(in_front))?;
        let bytes = datagram.segment;
        let fixed: &[u8; 20] = bytes.first_chunk().ok_or(Unread::Malformed)?;
        let header = usize::from(fixed[12] >> 4) * 4;
        if header < 20 {
            return Err(Unread::Malformed);
        }
        let be16 = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let be32 = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let flag = |bit: u8| fixed[13] & bit != 0;
        let (data, length) = (bytes.get(header..).unwrap_or_default(), datagram.length.checked_sub(header));
        Ok(Self {
            source: SocketAddr::new(datagram.source, be16(0)),
            destination: SocketAddr::new(datagram.destination, be16(2)),
            sequence: be32(4),
            acknowledgement: flag(0x10).then(|| be32(8)),
            fin: flag(0x01),
            syn: flag(0x02),
            rst: flag(0x04),
            data,
            length: length.ok_or(Unread::Malformed)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{LinkType, Timestamp};

    fn frame(data: &[u8], length: usize) -> Frame<'_> {
        Frame { link: LinkType(101), time: Timestamp(0), data, length }
    }

    fn packet(total: u16, header: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = b"\x45\0\0\0\0\0\0\0\0\x06\0\0\x7f\0\0\x01\x7f\0\0\x02".to_vec();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet.extend_from_slice(b"\x12\x34\x11\x5c\xff\xff\xff\xfe\0\0\0\x07");
        packet.extend_from_slice(&[header << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend_from_slice(rest);
        packet
    }

    #[test]
    fn a_segment_with_options() {
        let bytes = packet(40 + 12 + 4, 8, 0x11, b"optionsoptiodata, and padding");
        let found = Segment::of(&frame(&bytes, bytes.len())).unwrap();
        assert_eq!((found.source.to_string(), found.destination.port()), ("127.0.0.1:4660".into(), 4444));
        assert_eq!((found.sequence, found.acknowledgement), (0xffff_fffe, Some(7)));
        assert_eq!((found.syn, found.fin, found.rst), (false, true, false));
        assert_eq!((found.data, found.length), (&b"data"[..], 4));
    }

    #[test]
    fn segments_that_were_cut() {
        let bytes = packet(40 + 1000, 5, 0x10, b"beginning");
        let found = Segment::of(&frame(&bytes, 1040)).unwrap();
        assert_eq!((found.data, found.length), (&b"beginning"[..], 1000));
        let bytes = packet(0, 5, 0x02, b"beginning");
        let found = Segment::of(&frame(&bytes, 70_040)).unwrap();
        assert_eq!((found.data, found.length, found.syn), (&b"beginning"[..], 70_000, true));
        // The header is cut within its options.
        let bytes = packet(40 + 12 + 100, 8, 0x10, b"opt");
        let found = Segment::of(&frame(&bytes, 152)).unwrap();
        assert_eq!((found.data, found.length), (&b""[..], 100));
    }

    #[test]
    fn what_is_no_segment() {
        for (total, header) in [(40, 4), (40, 6), (39, 5)] {
            let bytes = packet(total, header, 0, b"");
            assert_eq!(Segment::of(&frame(&bytes, 40)), Err(Unread::Malformed), "{total} {header}");
        }
        let bytes = packet(40, 5, 0, b"");
        for end in 0..40 {
            assert_eq!(Segment::of(&frame(&bytes[..end], 40)), Err(Unread::Malformed), "{end}");
        }
    }
}
