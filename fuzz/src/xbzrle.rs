//! Deltas: any bytes applied to a page do not panic and stay in it; two pages, encoded and decoded, are the second again.

use migwire::wire::xbzrle::{DeltaError, Encoded, decode, encode};

/// Pages here are small, so that runs reach their end; longest run lengths have two bytes all the same.
const PAGE: usize = 1024;

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let mut page = [0x11; PAGE];
    match decode(bytes, &mut page) {
        Ok(()) => {}
        Err(DeltaError::Cut(at) | DeltaError::Run(at) | DeltaError::Overrun(at)) => {
            assert!(at <= bytes.len(), "an error at {at} of {} bytes", bytes.len());
        }
    }
    // What a delta changes can be said by another delta.
    round([0x11; PAGE], page);
    let (first, second) = bytes.split_at(bytes.len() / 2);
    round(filled(first), filled(second));
}

/// A page that begins with `bytes`.
fn filled(bytes: &[u8]) -> [u8; PAGE] {
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
}

fn round(old: [u8; PAGE], new: [u8; PAGE]) {
    let mut delta = Vec::new();
    match encode(&old, &new, &mut delta) {
        Encoded::Unchanged => assert!(old == new && delta.is_empty()),
        Encoded::Overflow => assert!(delta.is_empty()),
        Encoded::Delta => {
            assert!(delta.len() < PAGE, "{} bytes are no gain", delta.len());
            let mut page = old;
            decode(&delta, &mut page).expect("what was encoded can be decoded");
            assert!(page == new, "the delta gives another page");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("xbzrle", 20_000, super::run);
    }
}
