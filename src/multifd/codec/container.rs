//! Methods qpl and uadk: a table of lengths, then each page by itself.
//!
//! ```text
//! be32 length[pages]
//! body[pages]          as long as a page: the page itself; shorter: a stream of its own, raw deflate (qpl) or zlib (uadk)
//! ```
//! Accelerators make these (Intel IAA, HiSilicon ZIP), and any inflater reads them. Ours are made in software: receivers with
//! IAA take deflate streams with a history of up to 4 KiB only, so that no longer one is used. Stock receivers of 9.2 to 11.0
//! abort on a container that is not exact, except for 10.0.13. Source: `migration/multifd-qpl.c`, `migration/multifd-uadk.c`.

use flate2::{Compress, Compression, Decompress, FlushCompress};

use super::inflate::{End, deflate, drain, inflate};
use super::{Codec, decodable, encodable};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Method;

/// History that IAA has, as a power of two.
const QPL_WINDOW_BITS: u8 = 12;

/// Both methods; nothing is carried from page to page.
#[derive(Debug)]
pub(super) struct Container {
    method: Method,
    encoder: Option<Compress>,
    decoder: Option<Decompress>,
}

impl Container {
    /// A codec for [`Method::UADK`], or else for [`Method::QPL`].
    pub(super) fn new(method: Method) -> Self {
        Self { method, encoder: None, decoder: None }
    }

    fn is_zlib(&self) -> bool {
        self.method == Method::UADK
    }

    fn doing(&self) -> &'static str {
        if self.is_zlib() { "uadk pages" } else { "qpl pages" }
    }
}

impl Codec for Container {
    fn method(&self) -> Method {
        self.method
    }

    fn encode(&mut self, pages: &[u8], page_size: usize, out: &mut Vec<u8>) -> Result<()> {
        encodable(self.doing(), pages, page_size)?;
        let zlib = self.is_zlib();
        // Both methods have no level to choose; QEMU asks the accelerator for its fastest.
        let stream = self.encoder.get_or_insert_with(|| match zlib {
            true => Compress::new(Compression::fast(), true),
            false => Compress::new_with_window_bits(Compression::fast(), false, QPL_WINDOW_BITS),
        });
        let table = out.len();
        out.resize(table + pages.len() / page_size * 4, 0);
        for (index, page) in pages.chunks_exact(page_size).enumerate() {
            let at = out.len();
            stream.reset();
            // To its end, even if that is more than a page: a stream of zlib-rs (0.6.8) that was given up before its end panics
            // some time after it is reset.
            deflate(stream, page, FlushCompress::Finish, out);
            if out.len() - at >= page_size {
                out.truncate(at);
                out.extend_from_slice(page);
            }
            let length = (out.len() - at) as u32;
            out[table + index * 4..][..4].copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()> {
        let doing = self.doing();
        if !decodable(doing, payload, page_size, pages)? {
            return Ok(());
        }
        let lengths = lengths(doing, payload, page_size, pages.len() / page_size)?;
        let zlib = self.is_zlib();
        let stream = self.decoder.get_or_insert_with(|| Decompress::new(zlib));
        let mut at = lengths.len() * 4;
        for (index, (length, page)) in lengths.iter().zip(pages.chunks_exact_mut(page_size)).enumerate() {
            let body = &payload[at..][..u32::from_be_bytes(*length) as usize];
            if body.len() == page_size {
                page.copy_from_slice(body);
            } else {
                stream.reset(zlib);
                expand(stream, body, page).map_err(|(kind, offset, message)| {
                    Error::new(kind, (at + offset) as u64, doing, format!("body of page {index}: {message}"))
                })?;
            }
            at += body.len();
        }
        Ok(())
    }
}

/// The table, if it fits the payload and the bodies are exactly what follows it.
fn lengths<'a>(
    doing: &'static str,
    payload: &'a [u8],
    page_size: usize,
    count: usize,
) -> Result<&'a [[u8; 4]]> {
    let error = |kind, at: usize, message| Err(Error::new(kind, at as u64, doing, message));
    let Some((table, bodies)) = payload.split_at_checked(count * 4) else {
        let message = format!("{} bytes of payload have no room for {count} lengths", payload.len());
        return error(ErrorKind::Truncated, payload.len(), message);
    };
    let (lengths, _) = table.as_chunks::<4>();
    let mut sum = 0;
    for (index, length) in lengths.iter().enumerate() {
        let length = u32::from_be_bytes(*length);
        if length as usize > page_size {
            let message = format!("body of page {index} has {length} bytes, the page itself {page_size}");
            return error(ErrorKind::Malformed, index * 4, message);
        }
        sum += u64::from(length);
    }
    let there = bodies.len() as u64;
    match sum.cmp(&there) {
        std::cmp::Ordering::Equal => Ok(lengths),
        std::cmp::Ordering::Greater => {
            let message = format!("the bodies have {sum} bytes, and {there} are there");
            error(ErrorKind::Truncated, payload.len(), message)
        }
        std::cmp::Ordering::Less => {
            let message = format!("{} bytes behind the last body", there - sum);
            error(ErrorKind::Malformed, payload.len() - (there - sum) as usize, message)
        }
    }
}

/// One body, which is to be one whole stream and to give one whole page. An error has its offset in the body.
fn expand(
    stream: &mut Decompress,
    body: &[u8],
    page: &mut [u8],
) -> std::result::Result<(), (ErrorKind, usize, String)> {
    let mut progress = inflate(stream, body, page);
    let produced = progress.produced;
    if produced == page.len() && progress.end == End::Between {
        let rest = drain(stream, &body[progress.consumed..]);
        if rest.produced > 0 {
            let message = "the stream holds more than a page".to_owned();
            return Err((ErrorKind::Malformed, progress.consumed, message));
        }
        progress.consumed += rest.consumed;
        progress.end = rest.end;
    }
    let at = progress.consumed;
    match progress.end {
        End::Broken => Err((ErrorKind::Malformed, at, "this is no such stream".to_owned())),
        End::Between => Err((ErrorKind::Truncated, at, format!("the stream is cut, {produced} bytes on"))),
        End::Stream if produced < page.len() => {
            let message = format!("the stream holds {produced} bytes, a page has {}", page.len());
            Err((ErrorKind::Malformed, at, message))
        }
        End::Stream if at < body.len() => {
            Err((ErrorKind::Malformed, at, format!("{} bytes behind the stream", body.len() - at)))
        }
        End::Stream => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, PAGE, decoded, packets, payloads, refused};
    use super::*;

    /// A page of 0x5a as zlib 1.2.13 deflates it at level 1; between header and Adler-32 in its own wrapping.
    const DEFLATED: &[u8] =
        b"\xed\xd0\x81\x10\x00\x00\x00\x03\x21\xcf\xf7\x07\x99\xc7\xae\x10\x2a\x0c\x18\x30\x60\xc0\x80\
        \x01\x03\x06\x0c\x18\x30\x60\xc0\x80\x81\xf7\x81\x01";

    fn zlib() -> Vec<u8> {
        [b"\x78\x01", DEFLATED, b"\x83\x4b\xa0\x4c"].concat()
    }

    /// A container of these bodies.
    fn container(bodies: &[&[u8]]) -> Vec<u8> {
        let lengths = bodies.iter().flat_map(|body| (body.len() as u32).to_be_bytes());
        lengths.chain(bodies.concat()).collect()
    }

    #[test]
    fn round_trip() {
        for method in [Method::QPL, Method::UADK] {
            testing::round_trips(method);
            testing::cuts(method);
        }
    }

    #[test]
    fn raw_and_deflated_pages() {
        let pages = [[1; PAGE], [0x5a; PAGE], [2; PAGE]].concat();
        let payload = container(&[&[1; PAGE], DEFLATED, &[2; PAGE]]);
        assert!(payload.starts_with(b"\0\0\x10\0\0\0\0\x24\0\0\x10\0\x01"));
        assert!(decoded(&mut Container::new(Method::QPL), &payload, 3) == pages);
        let payload = container(&[&[1; PAGE], &zlib(), &[2; PAGE]]);
        assert!(decoded(&mut Container::new(Method::UADK), &payload, 3) == pages);
    }

    #[test]
    fn each_method_wants_its_own_wrapping() {
        let e = refused(&mut Container::new(Method::QPL), &container(&[&zlib()]), 1);
        assert_eq!(e.doing(), "qpl pages");
        let e = refused(&mut Container::new(Method::UADK), &container(&[DEFLATED]), 1);
        assert_eq!((e.doing(), e.kind()), ("uadk pages", ErrorKind::Malformed));
        assert_eq!(e.message(), "body of page 0: this is no such stream");
    }

    #[test]
    fn what_does_not_get_smaller_stays_as_it_is() {
        for method in [Method::QPL, Method::UADK] {
            let [zeros, _, noise, _] = &payloads(method, None)[..] else { panic!("four packets") };
            assert!(zeros.len() < 200, "{}", zeros.len());
            assert_eq!(noise.len(), 20 * (4 + PAGE));
            assert!(noise[..80].chunks(4).all(|length| length == b"\0\0\x10\0"));
            assert!(noise[80..] == packets()[2]);
        }
    }

    #[test]
    fn qpl_has_a_short_history() {
        // Noise that comes again 8 KiB later is out of reach for IAA.
        let noise = &packets()[2][..2 * PAGE];
        let page = noise.repeat(8);
        let encoded = |method| {
            let mut out = Vec::new();
            Container::new(method).encode(&page, 16 * PAGE, &mut out).unwrap();
            out.len()
        };
        assert_eq!(encoded(Method::QPL), 4 + 16 * PAGE);
        assert!(encoded(Method::UADK) < 4 * PAGE);
    }

    #[test]
    fn tables_that_do_not_fit() {
        let good = container(&[DEFLATED, DEFLATED]);
        let mut codec = Container::new(Method::QPL);
        let mut refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut payload = good.clone();
            change(&mut payload);
            let e = refused(&mut codec, &payload, 2);
            (e.kind(), e.offset(), e.message().to_owned())
        };
        let (truncated, malformed) = (ErrorKind::Truncated, ErrorKind::Malformed);
        assert_eq!(
            refused(&|p| p.truncate(7)),
            (truncated, Some(7), "7 bytes of payload have no room for 2 lengths".to_owned())
        );
        assert_eq!(
            refused(&|p| p.truncate(8)),
            (truncated, Some(8), "the bodies have 72 bytes, and 0 are there".to_owned())
        );
        assert_eq!(
            refused(&|p| p[6] = 0x11),
            (malformed, Some(4), "body of page 1 has 4388 bytes, the page itself 4096".to_owned())
        );
        assert_eq!(refused(&|p| p[0] = 0xff).0, malformed);
        assert_eq!(refused(&|p| p.push(0)), (malformed, Some(80), "1 bytes behind the last body".to_owned()));
        assert_eq!(refused(&|p| p[7] -= 1).2, "1 bytes behind the last body");
    }

    #[test]
    fn bodies_that_are_not_a_page() {
        let deflated = |bytes: &[u8]| {
            let mut out = Vec::new();
            deflate(&mut Compress::new(Compression::fast(), false), bytes, FlushCompress::Finish, &mut out);
            out
        };
        let mut codec = Container::new(Method::QPL);
        let mut refused = |body: &[u8]| {
            let e = refused(&mut codec, &container(&[&[9; PAGE], body]), 2);
            assert!(e.offset() >= Some(8 + PAGE as u64), "{e}");
            e.message().to_owned()
        };
        assert_eq!(refused(b""), "body of page 1: the stream is cut, 0 bytes on");
        assert_eq!(refused(b"\xff"), "body of page 1: this is no such stream");
        assert_eq!(
            refused(&deflated(&[7; PAGE - 1])),
            "body of page 1: the stream holds 4095 bytes, a page has 4096"
        );
        assert_eq!(refused(&deflated(&[7; PAGE + 1])), "body of page 1: the stream holds more than a page");
        assert_eq!(refused(&deflated(&[7; 64 * PAGE])), "body of page 1: the stream holds more than a page");
        assert_eq!(refused(&DEFLATED[..35]), "body of page 1: the stream is cut, 4096 bytes on");
        assert_eq!(refused(&[DEFLATED, b"!"].concat()), "body of page 1: 1 bytes behind the stream");
        // Nothing of a bad body is left for the next packet.
        assert!(decoded(&mut codec, &container(&[DEFLATED]), 1) == [0x5a; PAGE]);
    }

    #[test]
    fn the_sum_of_a_damaged_zlib_body() {
        let mut body = zlib();
        *body.last_mut().unwrap() ^= 1;
        let e = refused(&mut Container::new(Method::UADK), &container(&[&body]), 1);
        assert_eq!(e.message(), "body of page 0: this is no such stream");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn survives_qpl(payloads in testing::hostile(Method::QPL), count in 1..20usize) {
            testing::survives(&mut Container::new(Method::QPL), &payloads, count);
        }

        #[test]
        fn survives_uadk(payloads in testing::hostile(Method::UADK), count in 1..20usize) {
            testing::survives(&mut Container::new(Method::UADK), &payloads, count);
        }

        #[test]
        fn survives_bodies(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            for method in [Method::QPL, Method::UADK] {
                testing::survives(&mut Container::new(method), &[container(&[&body])], 1);
            }
        }
    }
}
