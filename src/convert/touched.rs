//! Which pages were sent since the last synchronisation.
//!
//! Nothing orders the channels between two synchronisations, so a page must not be sent twice there. Sources keep to that, since
//! their scan only goes forward; what is converted may have been sent in another order, on one channel.

use std::collections::HashMap;

/// Words of 64 pages that are kept: 20 MiB of them, for 128 GiB of guest in pages of 4 KiB.
const WORDS: usize = 1 << 19;

/// Pages, by block and offset.
#[derive(Debug, Default)]
pub(super) struct Touched {
    words: HashMap<(usize, u64), u64>,
}

impl Touched {
    /// Puts a page in; `false` if it was there already, or if nothing more can be kept: then it is time to synchronise.
    pub(super) fn insert(&mut self, block: usize, offset: u64, page_size: u64) -> bool {
        let page = offset / page_size;
        let (key, bit) = ((block, page / 64), 1 << (page % 64));
        if self.words.len() >= WORDS && !self.words.contains_key(&key) {
            return false;
        }
        let word = self.words.entry(key).or_default();
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// A synchronisation.
    pub(super) fn clear(&mut self) {
        self.words.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_new_once_between_two_synchronisations() {
        let mut touched = Touched::default();
        assert!(touched.insert(0, 0x3000, 4096) && touched.insert(1, 0x3000, 4096));
        assert!(touched.insert(0, 0x4000, 4096) && !touched.insert(0, 0x3000, 4096));
        touched.clear();
        assert!(touched.insert(0, 0x3000, 4096));
    }

    #[test]
    fn it_is_full_before_it_is_large() {
        let mut touched = Touched::default();
        let full = (0..).find(|at| !touched.insert(0, at * 64 * 4096, 4096)).unwrap();
        assert_eq!(full, WORDS as u64);
        assert!(touched.insert(0, 4096, 4096), "where there is room");
    }
}
