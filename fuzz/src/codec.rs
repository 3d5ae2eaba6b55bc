//! Payload codecs: any packets decoded do not panic, and errors lie within them; any pages, encoded and decoded, are the pages again.
//!
//! ```text
//! u8 method (its place in the list, modulo their number)   u8 size of pages (1 KiB << n, modulo 4)
//! { u8 pages (1 to 8)  be16 length  payload }*             a last one may be shorter than it says
//! ```

use migwire::multifd::codec::{Codec, open};
use migwire::wire::Method;

/// What stands around the pages, and must stay.
const GUARD: [u8; 64] = [0xa5; 64];

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let [method, shift, packets @ ..] = bytes else { return };
    let (method, _) = Method::KNOWN[usize::from(*method) % Method::KNOWN.len()];
    let page_size = 1024 << (shift % 4);
    decode(&mut *codec(method), packets, page_size);
    round(method, packets, page_size);
}

/// All methods are in this build: a missing one would be fuzzed in vain.
fn codec(method: Method) -> Box<dyn Codec> {
    open(method, None).expect("the method is in this build")
}

/// Decodes all packets; tells how many were good.
fn decode(codec: &mut dyn Codec, mut packets: &[u8], page_size: usize) -> usize {
    let mut good = 0;
    while let [count, high, low, rest @ ..] = packets {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (payload, behind) = rest.split_at(length);
        packets = behind;
        let size = (usize::from(*count) % 8 + 1) * page_size;
        let mut room = [&GUARD[..], &vec![0; size], &GUARD].concat();
        match codec.decode(payload, page_size, &mut room[GUARD.len()..][..size]) {
            Ok(()) => good += 1,
            Err(error) => {
                let at = error.offset().expect("an error of a payload has its place");
                assert!(at <= length as u64, "an error at {at} of {length} bytes: {error}");
            }
        }
        assert!(room.starts_with(&GUARD) && room.ends_with(&GUARD), "bytes around the pages were written");
    }
    good
}

/// The bytes as pages, in two packets, so that a history is made use of.
fn round(method: Method, bytes: &[u8], page_size: usize) {
    let mut pages = bytes.to_vec();
    pages.resize(bytes.len().next_multiple_of(page_size).max(page_size), 0);
    let (mut encoder, mut decoder) = (codec(method), codec(method));
    for _ in 0..2 {
        let mut payload = Vec::new();
        encoder.encode(&pages, page_size, &mut payload).expect("whole pages can be encoded");
        let mut found = vec![0; pages.len()];
        decoder.decode(&payload, page_size, &mut found).expect("what was encoded can be decoded");
        assert!(found == pages, "{method} gives other pages");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations of packets that are refused at once would show little.
    #[test]
    fn seeds_reach_their_pages() {
        for (seed, packets) in [("zlib", 2), ("zstd", 2), ("qpl", 1), ("uadk", 1), ("qatzip", 1)] {
            let file = format!("{}/corpus/codec/{seed}.bin", env!("CARGO_MANIFEST_DIR"));
            let bytes = std::fs::read(file).expect("the seed is there");
            let (method, _) = Method::KNOWN[usize::from(bytes[0])];
            assert_eq!(decode(&mut *codec(method), &bytes[2..], 1024), packets, "{seed}");
        }
    }

    #[test]
    fn smoke() {
        crate::smoke::over("codec", 2_000, run);
    }
}
