//! Method qatzip: gzip members, one behind the other, for all pages of the packet.
//!
//! ```text
//! member   1f 8b 08 04  time[4]=0  00 ff  le16 12  'Q' 'Z' le16 8  le32 pages' bytes  le32 deflate's bytes     24 bytes
//!          deflate stream  le32 CRC-32  le32 length                                                           RFC 1952
//! ```
//! The bytes are not QEMU's: they are what the library QATzip makes of its default format, "gzip-ext", one member for each 64 KiB.
//! Accelerator and software of it read any gzip members (the extra field tells the accelerator how much to take), and so do we.
//! Source: `migration/multifd-qatzip.c`, and QATzip's own `qatzip_gzip.c`.

use flate2::{Compress, Compression, Crc, Decompress, FlushCompress};

use super::inflate::{End, Progress, deflate, drain, inflate};
use super::{Codec, decodable, encodable, short};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Method;

const DOING: &str = "qatzip pages";

/// What QATzip puts into a member (`hw_buff_sz`, unless it is told otherwise, and QEMU does not).
const MEMBER: usize = 64 << 10;

/// Optional parts of a member's header (RFC 1952, 2.3.1).
mod flag {
    pub(super) const HEADER_CRC: u8 = 0x02;
    pub(super) const EXTRA: u8 = 0x04;
    pub(super) const NAME: u8 = 0x08;
    pub(super) const COMMENT: u8 = 0x10;
    pub(super) const RESERVED: u8 = 0xe0;
}

/// Nothing is carried from packet to packet.
#[derive(Debug)]
pub(super) struct Qatzip {
    level: u32,
    encoder: Option<Compress>,
    decoder: Option<Decompress>,
}

impl Qatzip {
    pub(super) fn new(level: u32) -> Self {
        Self { level, encoder: None, decoder: None }
    }
}

impl Codec for Qatzip {
    fn method(&self) -> Method {
        Method::QATZIP
    }

    fn encode(&mut self, pages: &[u8], page_size: usize, out: &mut Vec<u8>) -> Result<()> {
        encodable(DOING, pages, page_size)?;
        let stream = self.encoder.get_or_insert_with(|| Compress::new(Compression::new(self.level), false));
        for piece in pages.chunks(MEMBER) {
            let size = (piece.len() as u32).to_le_bytes();
            out.extend_from_slice(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x0c\0QZ\x08\0");
            out.extend_from_slice(&size);
            let at = out.len();
            out.extend_from_slice(&[0; 4]);
            stream.reset();
            deflate(stream, piece, FlushCompress::Finish, out);
            let deflated = (out.len() - at - 4) as u32;
            out[at..at + 4].copy_from_slice(&deflated.to_le_bytes());
            let mut crc = Crc::new();
            crc.update(piece);
            out.extend_from_slice(&crc.sum().to_le_bytes());
            out.extend_from_slice(&size);
        }
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()> {
        if !decodable(DOING, payload, page_size, pages)? {
            return Ok(());
        }
        let stream = self.decoder.get_or_insert_with(|| Decompress::new(false));
        let mut reader = Reader { payload, at: 0 };
        let mut filled = 0;
        while reader.at < payload.len() {
            if filled == pages.len() {
                let message = "the payload holds more than the pages of the packet";
                return Err(Error::new(ErrorKind::Malformed, reader.at as u64, DOING, message));
            }
            filled += member(stream, &mut reader, &mut pages[filled..])?;
        }
        match filled == pages.len() {
            true => Ok(()),
            false => Err(short(DOING, reader.at, filled, page_size, pages)),
        }
    }
}

/// One member, and how much of `output` it has filled.
fn member(stream: &mut Decompress, reader: &mut Reader<'_>, output: &mut [u8]) -> Result<usize> {
    reader.header()?;
    stream.reset(false);
    let mut progress = inflate(stream, reader.rest(), output);
    let produced = progress.produced;
    if produced == output.len() && progress.end == End::Between {
        let Progress { consumed, produced: surplus, end } =
            drain(stream, &reader.rest()[progress.consumed..]);
        progress.consumed += consumed;
        progress.end = end;
        if surplus > 0 {
            reader.at += progress.consumed;
            return Err(reader.malformed("the payload holds more than the pages of the packet"));
        }
    }
    reader.at += progress.consumed;
    match progress.end {
        End::Stream => {}
        End::Broken => return Err(reader.malformed("this is no deflate stream")),
        End::Between => return Err(reader.truncated("the deflate stream of a member")),
    }
    let mut crc = Crc::new();
    crc.update(&output[..produced]);
    let sum = u32::from_le_bytes(reader.array("the CRC of a member")?);
    if sum != crc.sum() {
        reader.at -= 4;
        return Err(
            reader.malformed(&format!("the CRC is {sum:#010x}, that of the pages {:#010x}", crc.sum()))
        );
    }
    let length = u32::from_le_bytes(reader.array("the length of a member")?);
    if length as usize != produced {
        reader.at -= 4;
        return Err(reader.malformed(&format!("the length is {length}, and {produced} bytes came")));
    }
    Ok(produced)
}

/// A place in the payload.
struct Reader<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.payload[self.at..]
    }

    /// Skips a member's header. What is in the extra field is for the accelerator; nothing is believed of it.
    fn header(&mut self) -> Result<()> {
        const HEADER: &str = "the header of a member";
        let start = self.at;
        let [id1, id2, method, flags, ..]: [u8; 10] = self.array(HEADER)?;
        if [id1, id2, method] != [0x1f, 0x8b, 8] || flags & flag::RESERVED != 0 {
            self.at = start;
            return Err(self.malformed("no gzip member begins here"));
        }
        if flags & flag::EXTRA != 0 {
            let length = u16::from_le_bytes(self.array(HEADER)?);
            self.skip(length.into(), HEADER)?;
        }
        for text in [flag::NAME, flag::COMMENT] {
            if flags & text != 0 {
                let end = memchr::memchr(0, self.rest()).unwrap_or(usize::MAX - 1);
                self.skip(end + 1, HEADER)?;
            }
        }
        if flags & flag::HEADER_CRC != 0 {
            self.skip(2, HEADER)?;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let found = self.rest().first_chunk().copied().ok_or_else(|| self.truncated(what))?;
        self.at += N;
        Ok(found)
    }

    fn skip(&mut self, count: usize, what: &str) -> Result<()> {
        if count > self.rest().len() {
            return Err(self.truncated(what));
        }
        self.at += count;
        Ok(())
    }

    fn malformed(&self, message: &str) -> Error {
        Error::new(ErrorKind::Malformed, self.at as u64, DOING, message)
    }

    fn truncated(&self, what: &str) -> Error {
        let message = format!("the payload ends within {what}");
        Error::new(ErrorKind::Truncated, self.payload.len() as u64, DOING, message)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::super::testing::{self, PAGE, decoded, packets, payloads, refused};
    use super::*;

    /// A page of 0x5a by Python's gzip module, without an extra field.
    const BY_GZIP: &[u8] =
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\x03\xed\xd0\x81\x10\x00\x00\x00\x03\x21\xcf\xf7\x07\x99\
        \xc7\xae\x10\x2a\x0c\x18\x30\x60\xc0\x80\x01\x03\x06\x0c\x18\x30\x60\xc0\x80\x81\xf7\x81\x01\
        \xdd\x51\xd5\x7c\x00\x10\x00\x00";

    /// The same page with other optional parts in the header.
    fn with_header(flags: u8, optional: &[u8]) -> Vec<u8> {
        let mut member = [&BY_GZIP[..10], optional, &BY_GZIP[10..]].concat();
        member[3] = flags;
        member
    }

    #[test]
    fn round_trip() {
        testing::round_trips(Method::QATZIP);
        testing::cuts(Method::QATZIP);
    }

    #[test]
    fn members_are_gzip_with_an_extra_field() {
        for (payload, pages) in payloads(Method::QATZIP, None).iter().zip(packets()) {
            let mut whole = Vec::new();
            flate2::read::MultiGzDecoder::new(&payload[..]).read_to_end(&mut whole).unwrap();
            assert!(whole == pages);

            let mut rest = &payload[..];
            for piece in pages.chunks(65536) {
                assert!(rest.starts_with(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x0c\0QZ\x08\0"));
                let number = |at: usize| u32::from_le_bytes(*rest[at..].first_chunk().unwrap()) as usize;
                assert_eq!(number(16), piece.len());
                let end = 24 + number(20) + 8;
                assert_eq!(number(end - 4), piece.len());
                rest = &rest[end..];
            }
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn members_of_others() {
        let mut codec = Qatzip::new(1);
        let all = with_header(0x1e, b"\x05\0extraname\0comment\0\x12\x34");
        for member in [BY_GZIP.to_vec(), with_header(4, b"\0\0"), with_header(0x18, b"\0\0"), all] {
            assert!(decoded(&mut codec, &member, 1) == [0x5a; PAGE]);
            assert!(decoded(&mut codec, &member.repeat(3), 3) == [0x5a; 3 * PAGE]);
        }
        // An empty member is nothing, and no reason to complain.
        let mut empty = Vec::new();
        std::io::copy(&mut flate2::read::GzEncoder::new(&b""[..], Compression::fast()), &mut empty).unwrap();
        assert!(decoded(&mut codec, &[&empty, BY_GZIP].concat(), 1) == [0x5a; PAGE]);
    }

    #[test]
    fn members_that_do_not_fit() {
        let mut codec = Qatzip::new(1);
        let mut refused = |payload: &[u8], count| {
            let e = refused(&mut codec, payload, count);
            (e.kind(), e.offset(), e.message().to_owned())
        };
        let (truncated, malformed) = (ErrorKind::Truncated, ErrorKind::Malformed);
        let end = BY_GZIP.len() as u64;
        let more = "the payload holds more than the pages of the packet".to_owned();
        assert_eq!(
            refused(BY_GZIP, 2),
            (truncated, Some(end), "the payload ends 0 bytes into page 1 of 2, which has 4096".to_owned())
        );
        assert_eq!(refused(&BY_GZIP.repeat(2), 1), (malformed, Some(end), more.clone()));
        let two = &payloads(Method::QATZIP, None)[0];
        assert_eq!(refused(two, 2).2, more);
        assert_eq!(
            refused(&[BY_GZIP, b"not a member"].concat(), 2),
            (malformed, Some(end), "no gzip member begins here".to_owned())
        );
        assert_eq!(refused(&with_header(0x20, b""), 1).2, "no gzip member begins here");
        let broken = |at: usize, byte| {
            let mut member = BY_GZIP.to_vec();
            member[at] = byte;
            member
        };
        assert_eq!(
            refused(&broken(10, 0xff), 1),
            (malformed, refused(&broken(10, 0xff), 1).1, "this is no deflate stream".to_owned())
        );
        assert_eq!(
            refused(&broken(46, 0), 1),
            (malformed, Some(46), "the CRC is 0x7cd55100, that of the pages 0x7cd551dd".to_owned())
        );
        assert_eq!(
            refused(&broken(50, 1), 1),
            (malformed, Some(50), "the length is 4097, and 4096 bytes came".to_owned())
        );
        assert_eq!(
            refused(&with_header(4, b"\xff\xff"), 1),
            (truncated, Some(end + 2), "the payload ends within the header of a member".to_owned())
        );
        assert_eq!(refused(&vec![0; (1 << 20) + 1], 1).0, ErrorKind::TooLarge);
    }

    #[test]
    fn bombs_go_no_further_than_the_pages() {
        let mut bomb = Vec::new();
        Qatzip::new(9).encode(&vec![0; 8 << 20], 64 << 10, &mut bomb).unwrap();
        let e = refused(&mut Qatzip::new(1), &bomb, 1);
        assert_eq!(e.message(), "the payload holds more than the pages of the packet");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn survives(payloads in testing::hostile(Method::QATZIP), count in 1..20usize) {
            testing::survives(&mut Qatzip::new(1), &payloads, count);
        }
    }
}
