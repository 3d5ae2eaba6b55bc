//! Method zlib: one zlib stream a channel, flushed at the end of each packet and never finished.
//!
//! ```text
//! packet 1   78 01  block..  00 00 ff ff        header once; the empty stored block is what a sync flush leaves
//! packet 2          block..  00 00 ff ff        may refer to pages of packet 1
//! ```
//! Source: `migration/multifd-zlib.c`.

use flate2::{Compress, Compression, Decompress, FlushCompress};

use super::inflate::{End, Progress, deflate, drain, inflate};
use super::{Codec, decodable, encodable, lost, short};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Method;

const DOING: &str = "zlib pages";

/// One channel's stream. What it is not used for is not made.
#[derive(Debug)]
pub(super) struct Zlib {
    level: u32,
    encoder: Option<Compress>,
    decoder: Option<Decompress>,
    broken: bool,
}

impl Zlib {
    pub(super) fn new(level: u32) -> Self {
        Self { level, encoder: None, decoder: None, broken: false }
    }

    fn inflate(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()> {
        let stream = self.decoder.get_or_insert_with(|| Decompress::new(true));
        // All pages at once: which one is short can be told from how many bytes there are, and a call a page costs up to a fifth.
        let Progress { mut consumed, produced, mut end } = inflate(stream, payload, pages);
        let mut surplus = false;
        if produced == pages.len() && end == End::Between {
            let rest = drain(stream, &payload[consumed..]);
            consumed += rest.consumed;
            end = rest.end;
            surplus = rest.produced > 0 || consumed < payload.len();
        }
        let malformed =
            |message: &str| Err(Error::new(ErrorKind::Malformed, consumed as u64, DOING, message));
        match end {
            End::Broken => malformed("this is no continuation of the channel's zlib stream"),
            End::Stream => malformed("the zlib stream ends, which that of a channel never does"),
            End::Between if surplus => malformed("the payload holds more than the pages of the packet"),
            End::Between if produced < pages.len() => Err(short(DOING, consumed, produced, page_size, pages)),
            End::Between => Ok(()),
        }
    }
}

impl Codec for Zlib {
    fn method(&self) -> Method {
        Method::ZLIB
    }

    fn encode(&mut self, pages: &[u8], page_size: usize, out: &mut Vec<u8>) -> Result<()> {
        encodable(DOING, pages, page_size)?;
        let stream = self.encoder.get_or_insert_with(|| Compress::new(Compression::new(self.level), true));
        deflate(stream, pages, FlushCompress::Sync, out);
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()> {
        if !decodable(DOING, payload, page_size, pages)? {
            return Ok(());
        }
        if self.broken {
            return Err(lost(DOING));
        }
        let result = self.inflate(payload, page_size, pages);
        self.broken = result.is_err();
        result
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::super::testing::{self, PAGE, decoded, packets, payloads, refused};
    use super::*;

    /// What zlib itself (1.2.13) makes of two packets at level 1: two pages of 0x5a; a page of words 0 to 6 and one of 0x5a.
    const BY_ZLIB: [&[u8]; 2] = [
        b"\x78\x01\xec\xd0\x01\x0d\x00\x00\x00\xc2\xa0\x9e\xef\x1f\xc4\x1c\x6e\x10\x81\xc2\x80\x01\x03\
          \x06\x0c\x18\x30\x60\xc0\x80\x01\x03\x06\x0c\x18\x30\x60\xc0\x80\x01\x03\x06\x0c\x18\x30\x60\
          \xc0\x80\x01\x03\x06\x0c\x18\x78\x1f\x18\x00\x00\x00\xff\xff",
        b"\xec\xd8\xb1\x0e\x82\x00\x10\x05\x41\x15\xe5\xff\x3f\x99\x62\xef\x0a\x2b\x6d\x49\x86\x82\x17\
          \x0a\x12\x32\x81\x2d\x78\x7c\x1f\xcf\xb9\x7c\xcd\x1e\xb3\xef\xd9\xcf\xec\x39\xbb\xe3\xbe\x24\
          \xb8\xe4\xe0\x7d\xc9\xc1\x77\xb4\x85\x68\x75\x22\x07\x9d\xc8\x41\x27\x72\xd0\x89\x1c\xf6\xac\
          \x13\x49\xe8\x44\x0e\x3a\x91\x83\x4e\x6c\x21\x5a\x9d\xc8\x41\x27\x72\xd0\x89\x1c\xfe\xee\xc4\
          \xdd\xff\x5f\x78\x7e\x02\x04\x08\x10\x20\x40\x80\x00\x01\x02\x04\x08\x10\x20\x40\xe0\xb7\xc0\
          \x05\x00\x00\xff\xff",
    ];

    #[test]
    fn round_trip() {
        testing::round_trips(Method::ZLIB);
        testing::cuts(Method::ZLIB);
    }

    #[test]
    fn what_zlib_makes_can_be_read() {
        let mut codec = Zlib::new(1);
        assert!(decoded(&mut codec, BY_ZLIB[0], 2) == [0x5a; 2 * PAGE]);
        let words: Vec<u8> = (0..512u64).flat_map(|i| (i % 7).to_be_bytes()).collect();
        assert!(decoded(&mut codec, BY_ZLIB[1], 2) == [&words[..], &[0x5a; PAGE]].concat());
    }

    #[test]
    fn one_stream_that_is_never_finished() {
        for (level, header) in [(0, [0x78, 0x01]), (1, [0x78, 0x01]), (6, [0x78, 0x9c]), (9, [0x78, 0xda])] {
            let payloads = payloads(Method::ZLIB, Some(level));
            assert_eq!(payloads[0][..2], header, "level {level}");
            assert!(payloads.iter().all(|payload| payload.ends_with(b"\0\0\xff\xff")));
            // One flush a packet: without it there is no second mark in front of the first.
            assert!(payloads.iter().all(|payload| !payload.ends_with(b"\0\0\xff\xff\0\0\0\xff\xff")));
            // Another decoder takes all payloads for one stream, and misses its end.
            let (mut whole, stream) = (Vec::new(), payloads.concat());
            let end = flate2::read::ZlibDecoder::new(&stream[..]).read_to_end(&mut whole);
            assert!(whole == packets().concat(), "level {level}");
            assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn history_goes_from_packet_to_packet() {
        let (payloads, packets) = (payloads(Method::ZLIB, None), packets());
        let mut fresh = Vec::new();
        Zlib::new(1).encode(&packets[3], PAGE, &mut fresh).unwrap();
        assert!(payloads[3].len() + 3 * PAGE / 2 < fresh.len(), "two pages of noise have been there before");
        let e = refused(&mut Zlib::new(1), &payloads[3], packets[3].len() / PAGE);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Malformed, Some(2)));
        assert_eq!(e.message(), "this is no continuation of the channel's zlib stream");
    }

    #[test]
    fn a_fresh_stream_in_a_later_packet() {
        let payload = &payloads(Method::ZLIB, None)[0];
        let mut codec = Zlib::new(1);
        decoded(&mut codec, payload, 3);
        let e = refused(&mut codec, payload, 3);
        assert_eq!(e.kind(), ErrorKind::Malformed);
        // Once it is lost it stays lost, whatever comes.
        let e = refused(&mut codec, payload, 3);
        assert!(e.message().starts_with("an earlier packet"), "{e}");
    }

    #[test]
    fn a_finished_stream() {
        let mut stream = Compress::new(Compression::fast(), true);
        let (mut pages, mut end) = (Vec::new(), Vec::new());
        deflate(&mut stream, &[7; 2 * PAGE], FlushCompress::Sync, &mut pages);
        deflate(&mut stream, &[], FlushCompress::Finish, &mut end);
        let finished = [&pages[..], &end].concat();
        for count in [1, 2, 3] {
            let e = refused(&mut Zlib::new(1), &finished, count);
            let expected = match count {
                1 => "the payload holds more than the pages of the packet",
                _ => "the zlib stream ends, which that of a channel never does",
            };
            assert_eq!((e.kind(), e.message()), (ErrorKind::Malformed, expected));
        }
        // The end may come in a packet of its own.
        let mut codec = Zlib::new(1);
        decoded(&mut codec, &pages, 2);
        let e = refused(&mut codec, &end, 1);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Malformed, Some(end.len() as u64)));
    }

    #[test]
    fn too_few_pages_and_too_many() {
        let payload = &payloads(Method::ZLIB, None)[0];
        let e = refused(&mut Zlib::new(1), payload, 4);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Truncated, Some(payload.len() as u64)));
        assert_eq!(e.message(), "the payload ends 0 bytes into page 3 of 4, which has 4096");
        let e = refused(&mut Zlib::new(1), payload, 2);
        assert_eq!(e.message(), "the payload holds more than the pages of the packet");
        let e = refused(&mut Zlib::new(1), &[], 1);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Truncated, Some(0)));
    }

    #[test]
    fn garbage() {
        let e = refused(&mut Zlib::new(1), b"\xde\xad\xbe\xef", 1);
        assert_eq!(e.kind(), ErrorKind::Malformed);
        // A preset dictionary, which nobody has agreed upon.
        let e = refused(&mut Zlib::new(1), b"\x78\x20\0\0\0\x01\x03\0", 1);
        assert_eq!(e.kind(), ErrorKind::Malformed);
        let e = refused(&mut Zlib::new(1), &vec![0; (1 << 20) + 1], 1);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::TooLarge, Some(0)));
        assert_eq!(e.message(), "1048577 bytes of payload, where receivers have room for 1048576");
    }

    #[test]
    fn the_largest_payload_fits_a_receiver() {
        let noise = packets()[2].repeat(7)[..128 * PAGE].to_vec();
        for level in [0, 1, 2, 6, 9] {
            let mut codec = Zlib::new(level);
            for _ in 0..2 {
                let mut out = Vec::new();
                codec.encode(&noise, PAGE, &mut out).unwrap();
                assert!(out.len() < 600 << 10, "level {level}: {}", out.len());
            }
        }
    }

    #[test]
    fn an_empty_block_alone_is_no_page() {
        let mut codec = Zlib::new(1);
        decoded(&mut codec, &payloads(Method::ZLIB, None)[0], 3);
        let e = refused(&mut codec, b"\0\0\0\xff\xff", 1);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Truncated, Some(5)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn survives(payloads in testing::hostile(Method::ZLIB), count in 1..20usize) {
            testing::survives(&mut Zlib::new(1), &payloads, count);
        }
    }
}
