//! Invariant 4: whole, byte by byte, and cut at places derived from the bytes, the events, ranges and error text are the same.

use migwire::dialect::Dialect;
use migwire::postcopy::ReturnParser;
use migwire::stream::{Extents, Mode, Parser};

use crate::reading::{bytewise, read, two, whole};

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    for mode in [Mode::Strict, Mode::Lenient] {
        let parser = Parser::with(mode, Dialect::ANY);
        let expected = read(&mut parser.clone(), bytes, whole);
        assert_eq!(expected, read(&mut parser.clone(), bytes, bytewise), "{mode:?}, byte by byte");
        for at in cuts(bytes) {
            assert_eq!(expected, read(&mut parser.clone(), bytes, two(at)), "{mode:?}, cut at {at}");
        }
    }
    // Sizes of payloads that are known beforehand, right ones and wrong ones.
    let mut extents = Extents::default();
    for (number, at) in cuts(bytes).into_iter().enumerate() {
        extents.push([&b"device"[..], b"timer"][number % 2], 0, at as u64 % 7 * (at as u64 % 3));
    }
    let mut parser = Parser::new().with_extents(extents);
    let expected = read(&mut parser.clone(), bytes, whole);
    assert_eq!(expected, read(&mut parser, bytes, bytewise), "with hints, byte by byte");
    let expected = read(&mut ReturnParser::default(), bytes, whole);
    assert_eq!(expected, read(&mut ReturnParser::default(), bytes, bytewise), "return path, byte by byte");
}

/// Some places to cut at; the same for the same bytes, so that a finding can be repeated.
fn cuts(bytes: &[u8]) -> [usize; 4] {
    let hash = |seed: u64| {
        bytes.iter().fold(seed, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3).rotate_left(5))
    };
    [1, 2, 3, 4].map(|seed| (hash(seed) % (bytes.len() as u64 + 1)) as usize)
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("cut_anywhere", 1_500, super::run);
    }
}
