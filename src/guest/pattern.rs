//! Pages of a guest that never ran: patterns that can be made again from their name, to send and to compare with.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// Content of a block, as a function of the offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Nothing but zeros.
    Zero,
    /// One byte value.
    Byte(u8),
    /// Big-endian 64-bit words that count from 1, so that no page is zero and no two are equal.
    Count,
    /// Pseudo-random bytes from a seed; no two pages are equal.
    Random(u64),
    /// Pages of all these kinds in an order that a seed decides: about a quarter are zero.
    Mixed(u64),
}

impl Pattern {
    /// Fills `page`, which stands at `offset` of its block; a multiple of 8.
    pub fn fill(self, offset: u64, page: &mut [u8]) {
        match self {
            Self::Zero => page.fill(0),
            Self::Byte(byte) => page.fill(byte),
            Self::Count => count(page, offset / 8 + 1),
            Self::Random(seed) => {
                let start = mix(seed ^ mix(offset));
                words(page, |i| mix(start.wrapping_add(i)));
            }
            Self::Mixed(seed) => Self::mixed(seed, offset).fill(offset, page),
        }
    }

    /// Whether the page at `offset` holds nothing but zeros.
    pub fn is_zero(self, offset: u64) -> bool {
        match self {
            Self::Zero | Self::Byte(0) => true,
            // Of different words, one at most is zero.
            Self::Byte(_) | Self::Count | Self::Random(_) => false,
            Self::Mixed(seed) => Self::mixed(seed, offset).is_zero(offset),
        }
    }

    /// What stands at `offset` of a mixture.
    fn mixed(seed: u64, offset: u64) -> Self {
        match mix(seed ^ mix(!offset)) % 8 {
            0 | 1 => Self::Zero,
            2 => Self::Byte((mix(offset ^ seed) % 255 + 1) as u8),
            3 | 4 => Self::Count,
            _ => Self::Random(seed),
        }
    }
}

/// Big-endian words from `first` on. Of 256 of them, only the last byte is another, so that nothing need be swapped for each.
fn count(page: &mut [u8], mut first: u64) {
    let (mut whole, rest) = page.as_chunks_mut::<8>();
    while !whole.is_empty() {
        let low = first % 256;
        let (these, others) = whole.split_at_mut((256 - low as usize).min(whole.len()));
        // The last byte on the wire is the highest of a little-endian word.
        let start = (first - low).swap_bytes() | low << 56;
        for (i, word) in these.iter_mut().enumerate() {
            *word = start.wrapping_add((i as u64) << 56).to_le_bytes();
        }
        first = first.wrapping_add(these.len() as u64);
        whole = others;
    }
    rest.fill(0xff);
}

fn words(page: &mut [u8], word: impl Fn(u64) -> u64) {
    let (whole, rest) = page.as_chunks_mut::<8>();
    for (i, chunk) in whole.iter_mut().enumerate() {
        *chunk = word(i as u64).to_be_bytes();
    }
    rest.fill(0xff);
}

/// The finalizer of splitmix64: every bit of the input moves every bit of the output.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, value) = text.split_once('=').map_or((text, None), |(kind, value)| (kind, Some(value)));
        let number = || {
            let value = value?;
            match value.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => value.parse().ok(),
            }
        };
        match (kind, value.is_some(), number()) {
            ("zero", false, _) => Ok(Self::Zero),
            ("count", false, _) => Ok(Self::Count),
            ("byte", true, Some(byte @ 0..=255)) => Ok(Self::Byte(byte as u8)),
            ("random", true, Some(seed)) => Ok(Self::Random(seed)),
            ("mixed", true, Some(seed)) => Ok(Self::Mixed(seed)),
            _ => {
                let message = format!("{text:?} is none of zero, byte=0xNN, count, random=SEED, mixed=SEED");
                Err(Error::nowhere(ErrorKind::Misuse, "pattern", message))
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("zero"),
            Self::Byte(byte) => write!(f, "byte={byte:#04x}"),
            Self::Count => f.write_str("count"),
            Self::Random(seed) => write!(f, "random={seed}"),
            Self::Mixed(seed) => write!(f, "mixed={seed}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::is_zero;

    #[test]
    fn names_round_trip() {
        for name in ["zero", "byte=0xa5", "count", "random=7", "mixed=9"] {
            assert_eq!(name.parse::<Pattern>().unwrap().to_string(), name);
        }
        for bad in ["", "byte", "byte=256", "random", "random=x", "zero=1", "noise=1"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn counted_words_stand_one_behind_the_other() {
        for (offset, len) in
            [(0, 4096), (4096, 65536), (8 * 254, 64), (8 * 255, 8), ((1 << 40) - 8 * 300, 8192), (64, 13)]
        {
            let mut page = vec![0; len];
            Pattern::Count.fill(offset, &mut page);
            let (words, rest) = page.as_chunks::<8>();
            for (i, word) in words.iter().enumerate() {
                assert_eq!(u64::from_be_bytes(*word), offset / 8 + i as u64 + 1, "{offset:#x}");
            }
            assert!(rest.iter().all(|byte| *byte == 0xff));
        }
    }

    #[test]
    fn mixed_has_every_kind_and_repeats_itself() {
        let (mut zero, mut distinct) = (0, std::collections::HashSet::new());
        for page in 0..1024 {
            let (mut one, mut two) = ([0xa5; 4096], [0x5a; 4096]);
            Pattern::Mixed(3).fill(page * 4096, &mut one);
            Pattern::Mixed(3).fill(page * 4096, &mut two);
            assert!(one == two);
            assert_eq!(is_zero(&one), Pattern::Mixed(3).is_zero(page * 4096));
            zero += usize::from(is_zero(&one));
            distinct.insert(one.to_vec());
        }
        assert!((200..320).contains(&zero), "{zero}");
        assert!(distinct.len() > 600);
    }
}
