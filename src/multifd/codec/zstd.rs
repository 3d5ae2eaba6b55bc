//! Method zstd: one zstd frame a channel, flushed at the end of each packet and never finished.
//!
//! ```text
//! packet 1   28 b5 2f fd  frame header  block..        magic once
//! packet 2   block..                                   may refer to pages of packet 1
//! ```
//! Source: `migration/multifd-zstd.c`.

use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, ErrorCode, InBuffer, OutBuffer};

use super::{Codec, decodable, encodable, lost, short};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_ZSTD_WINDOW_LOG;
use crate::wire::Method;

const DOING: &str = "zstd pages";

/// One channel's frame. What it is not used for is not made.
pub(super) struct Zstd {
    level: u32,
    encoder: Option<CCtx<'static>>,
    decoder: Option<DCtx<'static>>,
    broken: bool,
}

impl Zstd {
    pub(super) fn new(level: u32) -> Self {
        Self { level, encoder: None, decoder: None, broken: false }
    }

    fn decompress(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()> {
        let frame = match &mut self.decoder {
            Some(frame) => frame,
            none => none.insert(decoder()?),
        };
        let mut input = InBuffer::around(payload);
        let malformed =
            |at: usize, message: &str| Error::new(ErrorKind::Malformed, at as u64, DOING, message);
        let mut step = |input: &mut InBuffer<'_>, output: &mut OutBuffer<'_, [u8]>| {
            let before = (input.pos(), output.pos());
            let hint = frame.decompress_stream(output, input).map_err(|code| {
                let why = zstd_safe::get_error_name(code);
                malformed(
                    input.pos(),
                    &format!("this is no continuation of the channel's zstd frame: {}", why.to_lowercase()),
                )
            })?;
            match hint {
                0 => Err(malformed(input.pos(), "the zstd frame ends, which that of a channel never does")),
                _ => Ok((input.pos(), output.pos()) != before),
            }
        };

        let wanted = pages.len();
        let mut output = OutBuffer::around(&mut *pages);
        while output.pos() < wanted {
            if !step(&mut input, &mut output)? {
                let produced = output.pos();
                return Err(short(DOING, input.pos(), produced, page_size, pages));
            }
        }
        // An empty block may follow; what is decoded and has found no room shows here as well.
        let mut surplus = [0];
        let mut output = OutBuffer::around(&mut surplus[..]);
        while output.pos() == 0 && step(&mut input, &mut output)? {}
        match output.pos() == 0 && input.pos() == payload.len() {
            true => Ok(()),
            false => Err(malformed(input.pos(), "the payload holds more than the pages of the packet")),
        }
    }
}

impl Codec for Zstd {
    fn method(&self) -> Method {
        Method::ZSTD
    }

    fn encode(&mut self, pages: &[u8], page_size: usize, out: &mut Vec<u8>) -> Result<()> {
        encodable(DOING, pages, page_size)?;
        let frame = match &mut self.encoder {
            Some(frame) => frame,
            none => none.insert(encoder(self.level)?),
        };
        let mut input = InBuffer::around(pages);
        loop {
            out.reserve(zstd_safe::compress_bound(pages.len() - input.pos()).max(64));
            let end = out.len();
            let mut output = OutBuffer::around_pos(out, end);
            let left = frame.compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_flush);
            if left.map_err(library)? == 0 {
                return Ok(());
            }
        }
    }

    fn decode(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()> {
        if !decodable(DOING, payload, page_size, pages)? {
            return Ok(());
        }
        if self.broken {
            return Err(lost(DOING));
        }
        let result = self.decompress(payload, page_size, pages);
        self.broken = result.is_err();
        result
    }
}

fn encoder(level: u32) -> Result<CCtx<'static>> {
    let mut frame = CCtx::try_create().ok_or_else(no_memory)?;
    frame.set_parameter(CParameter::CompressionLevel(level.cast_signed())).map_err(library)?;
    Ok(frame)
}

fn decoder() -> Result<DCtx<'static>> {
    let mut frame = DCtx::try_create().ok_or_else(no_memory)?;
    frame.set_parameter(DParameter::WindowLogMax(MAX_ZSTD_WINDOW_LOG)).map_err(library)?;
    Ok(frame)
}

/// The library refuses what has nothing to do with anybody's bytes.
fn library(code: ErrorCode) -> Error {
    Error::nowhere(ErrorKind::Unsupported, DOING, zstd_safe::get_error_name(code))
}

fn no_memory() -> Error {
    Error::nowhere(ErrorKind::Unsupported, DOING, "the zstd library has no memory for a stream")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, PAGE, decoded, packets, payloads, refused};
    use super::*;

    const MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";

    /// A frame by hand: window of 8 KiB, a block of 4096 times 0x5a, and none that is the last.
    const BY_HAND: &[u8] = b"\x28\xb5\x2f\xfd\x00\x18\x02\x80\x00\x5a";

    #[test]
    fn round_trip() {
        testing::round_trips(Method::ZSTD);
        testing::cuts(Method::ZSTD);
    }

    #[test]
    fn one_frame_that_is_never_finished() {
        for level in [1, 3, 19, 20] {
            let payloads = payloads(Method::ZSTD, Some(level));
            assert!(payloads[0].starts_with(MAGIC));
            assert!(payloads[1..].iter().all(|payload| !payload.starts_with(MAGIC)));
            // All payloads are one frame, once a last block ends it.
            let stream = [payloads.concat(), b"\x01\0\0".to_vec()].concat();
            let pages = packets().concat();
            let mut whole = vec![0; pages.len() + 1];
            assert_eq!(zstd_safe::decompress(&mut whole[..], &stream), Ok(pages.len()));
            assert!(whole[..pages.len()] == pages, "level {level}");
        }
    }

    #[test]
    fn blocks_by_hand() {
        let mut codec = Zstd::new(1);
        assert!(decoded(&mut codec, BY_HAND, 1) == [0x5a; PAGE]);
        // The next packet: one block of 8192 times 1, and an empty one.
        assert!(decoded(&mut codec, b"\x02\0\x01\x01\0\0\0", 2) == [1; 2 * PAGE]);
        // And two blocks for one page.
        assert!(decoded(&mut codec, b"\x02\x40\0\x01\x02\x40\0\x02", 1) == [[1; 2048], [2; 2048]].concat());
    }

    #[test]
    fn history_goes_from_packet_to_packet() {
        let (payloads, packets) = (payloads(Method::ZSTD, None), packets());
        let mut fresh = Vec::new();
        Zstd::new(1).encode(&packets[3], PAGE, &mut fresh).unwrap();
        assert!(payloads[3].len() + 3 * PAGE / 2 < fresh.len(), "two pages of noise have been there before");
        let e = refused(&mut Zstd::new(1), &payloads[3], packets[3].len() / PAGE);
        assert_eq!(e.kind(), ErrorKind::Malformed);
        assert!(
            e.message().starts_with("this is no continuation of the channel's zstd frame: unknown frame"),
            "{e}"
        );
    }

    #[test]
    fn a_fresh_frame_in_a_later_packet() {
        let mut codec = Zstd::new(1);
        decoded(&mut codec, BY_HAND, 1);
        assert_eq!(refused(&mut codec, BY_HAND, 1).kind(), ErrorKind::Malformed);
        assert!(refused(&mut codec, BY_HAND, 1).message().starts_with("an earlier packet"));
    }

    #[test]
    fn a_finished_frame() {
        let mut finished = BY_HAND.to_vec();
        finished[6] |= 1;
        let e = refused(&mut Zstd::new(1), &finished, 1);
        assert_eq!(e.message(), "the zstd frame ends, which that of a channel never does");
        // By a block of its own, behind the pages.
        let e = refused(&mut Zstd::new(1), &[BY_HAND, b"\x01\0\0"].concat(), 1);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Malformed, Some(13)));
        assert_eq!(e.message(), "the zstd frame ends, which that of a channel never does");
        // A frame to be skipped is one that ends.
        let e = refused(&mut Zstd::new(1), b"\x50\x2a\x4d\x18\x01\0\0\0?", 1);
        assert_eq!(e.message(), "the zstd frame ends, which that of a channel never does");
    }

    #[test]
    fn too_few_pages_and_too_many() {
        let payload = &payloads(Method::ZSTD, None)[0];
        let e = refused(&mut Zstd::new(1), payload, 4);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Truncated, Some(payload.len() as u64)));
        assert_eq!(e.message(), "the payload ends 0 bytes into page 3 of 4, which has 4096");
        for (payload, count) in
            [(&payload[..], 2), (b"\x28\xb5\x2f\xfd\x00\x18\x02\x80\x00\x5a\x0a\0\0\x01", 1)]
        {
            let e = refused(&mut Zstd::new(1), payload, count);
            assert_eq!(e.message(), "the payload holds more than the pages of the packet");
        }
        let e = refused(&mut Zstd::new(1), &[], 1);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Truncated, Some(0)));
    }

    #[test]
    fn garbage() {
        assert_eq!(refused(&mut Zstd::new(1), b"\xde\xad\xbe\xef garbage", 1).kind(), ErrorKind::Malformed);
        let e = refused(&mut Zstd::new(1), &vec![0; (1 << 20) + 1], 1);
        assert_eq!(e.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn windows_have_a_limit() {
        // Exponent in the upper five bits, from 1 KiB: 32 MiB, then 64 MiB.
        for (descriptor, good) in [(15 << 3, true), (15 << 3 | 1, false), (16 << 3, false), (0xff, false)] {
            let mut frame = BY_HAND.to_vec();
            frame[5] = descriptor;
            let result = Zstd::new(1).decode(&frame, PAGE, &mut [0; PAGE]);
            match result {
                Ok(()) => assert!(good, "{descriptor:#x}"),
                Err(e) => assert!(!good && e.message().contains("memory"), "{descriptor:#x}: {e}"),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn survives(payloads in testing::hostile(Method::ZSTD), count in 1..20usize) {
            testing::survives(&mut Zstd::new(1), &payloads, count);
        }
    }
}
