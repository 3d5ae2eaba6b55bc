//! What the tests of all codecs do: packets of pages of every kind, there and back, cut and mangled.

use super::{Codec, open};
use crate::error::{Error, ErrorKind};
use crate::wire::Method;

pub(super) const PAGE: usize = 4096;

/// Four packets: zeros, counted words, noise, and a mixture that repeats what came before.
pub(super) fn packets() -> Vec<Vec<u8>> {
    let zeros = vec![0; 3 * PAGE];
    let counted: Vec<u8> = (0..40 * PAGE as u32 / 4).flat_map(u32::to_be_bytes).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    })
    .take(20 * PAGE / 8)
    .flatten()
    .collect();
    let mixture =
        [&noise[19 * PAGE..], &zeros[..PAGE], &counted[PAGE..3 * PAGE], &noise[18 * PAGE..][..PAGE]].concat();
    vec![zeros, counted, noise, mixture]
}

/// Payloads of [`packets`], by a codec of their own.
pub(super) fn payloads(method: Method, level: Option<u32>) -> Vec<Vec<u8>> {
    let mut codec = open(method, level).unwrap();
    let encode = |pages: Vec<u8>| {
        let mut out = b"before".to_vec();
        codec.encode(&pages, PAGE, &mut out).unwrap();
        assert!(out.starts_with(b"before"));
        out.split_off(6)
    };
    packets().into_iter().map(encode).collect()
}

/// Lowest, usual, some and highest level, page sizes of all targets, a codec that does both.
pub(super) fn round_trips(method: Method) {
    let levels = super::levels(method)
        .map_or(vec![None], |l| [l.lowest, l.usual, l.highest * 2 / 3, l.highest].map(Some).to_vec());
    for level in levels {
        let mut codec = open(method, level).unwrap();
        for (payload, pages) in payloads(method, level).iter().zip(packets()) {
            assert!(decoded(&mut *codec, payload, pages.len() / PAGE) == pages, "level {level:?}");
        }
    }
    for page_size in [1024, 2048, 8192, 16384, 65536] {
        let mut codec = open(method, None).unwrap();
        for pages in packets() {
            let pages = &pages[..pages.len() / page_size * page_size];
            if pages.is_empty() {
                continue;
            }
            let mut payload = Vec::new();
            codec.encode(pages, page_size, &mut payload).unwrap();
            let mut found = vec![0xa5; pages.len()];
            codec.decode(&payload, page_size, &mut found).unwrap();
            assert!(found == pages, "pages of {page_size}");
        }
    }
    // A packet without pages has no payload and changes nothing.
    let mut codec = open(method, None).unwrap();
    codec.decode(&[], PAGE, &mut []).unwrap();
    assert!(decoded(&mut *codec, &payloads(method, None)[0], 3) == packets()[0]);
    codec.decode(&[], PAGE, &mut []).unwrap();
    assert_eq!(codec.encode(&[], PAGE, &mut Vec::new()).unwrap_err().kind(), ErrorKind::Misuse);
    assert_eq!(codec.encode(&[0; 100], PAGE, &mut Vec::new()).unwrap_err().kind(), ErrorKind::Misuse);
    let e = refused(&mut *codec, b"more", 0);
    assert!(matches!(e.kind(), ErrorKind::Malformed), "{e}");
}

/// A payload that is cut anywhere, in the first packet and in a later one, gives an error that lies within it.
pub(super) fn cuts(method: Method) {
    /// Every byte is a cut, so that pages are small.
    const PAGE: usize = 1024;
    let noise = &packets()[2];
    let packets = [noise[..PAGE].to_vec(), [&[0; PAGE], &noise[..PAGE], &noise[PAGE..2 * PAGE]].concat()];
    let mut codec = open(method, None).unwrap();
    let payloads = packets.each_ref().map(|pages| {
        let mut payload = Vec::new();
        codec.encode(pages, PAGE, &mut payload).unwrap();
        payload
    });
    for (last, payload) in payloads.iter().enumerate() {
        for cut in 0..payload.len() {
            let mut codec = open(method, None).unwrap();
            let mut pages = packets.each_ref().map(|pages| vec![0; pages.len()]);
            for before in 0..last {
                codec.decode(&payloads[before], PAGE, &mut pages[before]).unwrap();
            }
            match codec.decode(&payload[..cut], PAGE, &mut pages[last]) {
                // The mark of a flush, which no page depends on, may be gone.
                Ok(()) => {
                    assert!(method == Method::ZLIB && payload.len() - cut <= 6, "{cut} of {}", payload.len());
                    assert!(pages[last] == packets[last]);
                }
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::Truncated, "{cut}: {e}");
                    assert!(e.offset().unwrap() <= cut as u64, "{cut}: {e}");
                }
            }
        }
    }
}

/// Whatever comes, it does not panic, errors lie within the payload, and what is around the pages stays as it was.
#[cfg(any(feature = "compress", feature = "zstd"))]
pub(super) fn survives(codec: &mut dyn Codec, payloads: &[Vec<u8>], count: usize) {
    for payload in payloads {
        let mut around = vec![0xa5; (count + 2) * PAGE];
        if let Err(e) = codec.decode(payload, PAGE, &mut around[PAGE..][..count * PAGE]) {
            assert!(e.offset().is_some_and(|at| at <= payload.len() as u64), "{e}");
        }
        let outside = around[..PAGE].iter().chain(&around[(count + 1) * PAGE..]);
        assert!(outside.into_iter().all(|byte| *byte == 0xa5));
    }
}

/// Payloads to survive: arbitrary bytes, and real ones that a few bytes are changed in.
#[cfg(any(feature = "compress", feature = "zstd"))]
pub(super) fn hostile(method: Method) -> impl proptest::strategy::Strategy<Value = Vec<Vec<u8>>> {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    let real = payloads(method, None);
    let arbitrary = vec(vec(any::<u8>(), 0..256), 1..4);
    let changed = vec((0..4usize, any::<Index>(), any::<u8>()), 1..6).prop_map(move |changes| {
        let mut payloads = real.clone();
        for (packet, at, byte) in changes {
            let payload = &mut payloads[packet];
            let at = at.index(payload.len().min(600));
            payload[at] = byte;
        }
        payloads
    });
    prop_oneof![arbitrary, changed]
}

pub(super) fn decoded(codec: &mut dyn Codec, payload: &[u8], count: usize) -> Vec<u8> {
    let mut pages = vec![0xa5; count * PAGE];
    codec.decode(payload, PAGE, &mut pages).unwrap();
    pages
}

pub(super) fn refused(codec: &mut dyn Codec, payload: &[u8], count: usize) -> Error {
    let e = codec.decode(payload, PAGE, &mut vec![0; count * PAGE]).unwrap_err();
    assert!(e.offset().is_some_and(|at| at <= payload.len() as u64), "{e}");
    e
}
