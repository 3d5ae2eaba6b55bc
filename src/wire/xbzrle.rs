//! XBZRLE: a page as a delta against its older content.
//!
//! ```text
//! delta   { zrun  nzrun  raw[nzrun] }*
//! zrun    ULEB128 of at most 14 bits   bytes that did not change
//! nzrun   ULEB128 of at most 14 bits   bytes that follow, never 0
//! ```
//! The first zrun may be 0, a later one may not; a trailing run of unchanged bytes is left out. Source: `migration/xbzrle.c`.
//! A receiver needs no cache: the delta applies to what the page holds already.

use std::fmt;

/// Why a delta cannot be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaError {
    /// The delta ends inside a run, at this offset.
    Cut(usize),
    /// A run length of three bytes or more, or 0 where it must not be, at this offset.
    Run(usize),
    /// The runs go past the end of the page, at this offset of the delta.
    Overrun(usize),
}

impl fmt::Display for DeltaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut(at) => write!(f, "the delta is cut inside a run at its byte {at}"),
            Self::Run(at) => write!(f, "a run length that cannot be at byte {at} of the delta"),
            Self::Overrun(at) => write!(f, "runs go past the end of the page at byte {at} of the delta"),
        }
    }
}

/// Applies `delta` to `page`, in place.
///
/// # Errors
/// A [`DeltaError`]; the page is then changed up to the fault.
pub fn decode(delta: &[u8], page: &mut [u8]) -> Result<(), DeltaError> {
    let mut at = 0;
    let mut position = 0;
    while at < delta.len() {
        // The length of the literal run must be there as well, so that at least two bytes remain.
        if delta.len() - at < 2 {
            return Err(DeltaError::Cut(at));
        }
        let start = at;
        let unchanged = uleb14(delta, &mut at)?;
        if unchanged == 0 && start != 0 {
            return Err(DeltaError::Run(start));
        }
        position += unchanged;
        let run_at = at;
        let literal = uleb14(delta, &mut at)?;
        if literal == 0 {
            return Err(DeltaError::Run(run_at));
        }
        let Some(target) = page.get_mut(position..position + literal) else {
            return Err(DeltaError::Overrun(run_at));
        };
        let Some(bytes) = delta.get(at..at + literal) else { return Err(DeltaError::Cut(at)) };
        target.copy_from_slice(bytes);
        at += literal;
        position += literal;
    }
    Ok(())
}

/// Result of [`encode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// The pages are equal; a source sends nothing at all.
    Unchanged,
    /// The delta has been appended.
    Delta,
    /// The delta would not be smaller than the page; a source sends the page itself.
    Overflow,
}

/// Appends the delta from `old` to `new` to `out`, unless it would reach `new.len()` bytes.
pub fn encode(old: &[u8], new: &[u8], out: &mut Vec<u8>) -> Encoded {
    let start = out.len();
    let len = new.len().min(old.len());
    let mut position = 0;
    while position < len {
        let unchanged =
            old[position..len].iter().zip(&new[position..len]).take_while(|(a, b)| a == b).count();
        position += unchanged;
        if position == len {
            break;
        }
        let literal = old[position..len].iter().zip(&new[position..len]).take_while(|(a, b)| a != b).count();
        put_uleb14(unchanged, out);
        put_uleb14(literal, out);
        out.extend_from_slice(&new[position..position + literal]);
        position += literal;
        if out.len() - start >= new.len() {
            out.truncate(start);
            return Encoded::Overflow;
        }
    }
    if out.len() == start { Encoded::Unchanged } else { Encoded::Delta }
}

fn uleb14(delta: &[u8], at: &mut usize) -> Result<usize, DeltaError> {
    let start = *at;
    let first = usize::from(*delta.get(start).ok_or(DeltaError::Cut(start))?);
    if first < 0x80 {
        *at += 1;
        return Ok(first);
    }
    let second = usize::from(*delta.get(start + 1).ok_or(DeltaError::Cut(start))?);
    if second >= 0x80 {
        return Err(DeltaError::Run(start));
    }
    *at += 2;
    Ok((first & 0x7f) | second << 7)
}

/// Writes a run length; pages of up to 16 KiB - 1 fit 14 bits, longer runs do not occur in the pages that QEMU caches.
fn put_uleb14(value: usize, out: &mut Vec<u8>) {
    match value {
        0..0x80 => out.push(value as u8),
        _ => out.extend_from_slice(&[(value & 0x7f) as u8 | 0x80, (value >> 7) as u8]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn skips_and_replaces() {
        let mut page = *b"0123456789";
        decode(b"\x02\x01A\x03\x02BC", &mut page).unwrap();
        assert_eq!(&page, b"01A345BC89");
        decode(b"", &mut page).unwrap();
        assert_eq!(&page, b"01A345BC89");
    }

    #[test]
    fn refuses_what_a_destination_refuses() {
        let mut page = [0; 16];
        assert_eq!(decode(b"\x00\x00", &mut page), Err(DeltaError::Run(1)));
        assert_eq!(decode(b"\x00\x01a\x00\x01b", &mut page), Err(DeltaError::Run(3)));
        assert_eq!(decode(b"\x05", &mut page), Err(DeltaError::Cut(0)));
        assert_eq!(decode(b"\x00\x05abc", &mut page), Err(DeltaError::Cut(2)));
        assert_eq!(decode(b"\x10\x01a", &mut page), Err(DeltaError::Overrun(1)));
        assert_eq!(decode(b"\x80\x80\x01", &mut page), Err(DeltaError::Run(0)));
    }

    #[test]
    fn a_page_of_noise_overflows_and_an_equal_one_is_nothing() {
        let old = [0; 4096];
        let new: Vec<u8> = (0..4096).map(|i| (i % 255 + 1) as u8).collect();
        let mut out = vec![1, 2, 3];
        assert_eq!(encode(&old, &new, &mut out), Encoded::Overflow);
        assert_eq!(encode(&old, &old, &mut out), Encoded::Unchanged);
        assert_eq!(out, [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(old in proptest::collection::vec(0u8..3, 4096), new in proptest::collection::vec(0u8..3, 4096)) {
            let mut delta = Vec::new();
            if encode(&old, &new, &mut delta) == Encoded::Delta {
                let mut page = old;
                decode(&delta, &mut page).unwrap();
                prop_assert_eq!(page, new);
            }
        }

        #[test]
        fn never_panics(delta in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&delta, &mut [0; 128]);
        }
    }
}
