//! The cache that a source encodes XBZRLE against: what it has sent of each page, as far as that fits.
//!
//! ```text
//! page seen for the first time    -> Page       sent as it is, and kept
//! page that is kept               -> Delta      against what was kept; the new content is kept
//!                                    Unchanged  nothing is sent at all
//!                                    Page       the delta would be no shorter than the page
//! ```
//! As QEMU's (`migration/page_cache.c`), it is direct-mapped: a page has one slot, by its number, and whoever comes later has it.

use crate::wire::xbzrle::{self, Encoded};

/// Pages as the destination has them.
#[derive(Clone, Debug)]
pub struct XbzrleCache {
    page_size: usize,
    keys: Vec<Option<u64>>,
    pages: Vec<u8>,
}

/// What is to be sent of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coded {
    /// The page itself.
    Page,
    /// The delta that was written.
    Delta,
    /// Nothing: the destination has it already.
    Unchanged,
}

impl XbzrleCache {
    /// An empty cache of at most `bytes`, and at least one page; the number of slots is a power of two.
    pub fn new(bytes: usize, page_size: usize) -> Self {
        let most = (bytes / page_size).max(1);
        let slots = 1 << most.ilog2();
        Self { page_size, keys: vec![None; slots], pages: vec![0; slots * page_size] }
    }

    /// Says what to send of the page that is number `key` of the guest and now holds `page`; a delta is written to `delta`.
    pub fn encode(&mut self, key: u64, page: &[u8], delta: &mut Vec<u8>) -> Coded {
        delta.clear();
        let slot = (key % self.keys.len() as u64) as usize;
        let kept = &mut self.pages[slot * self.page_size..][..self.page_size];
        let coded = match self.keys[slot] == Some(key) {
            true => match xbzrle::encode(kept, page, delta) {
                Encoded::Unchanged => return Coded::Unchanged,
                Encoded::Delta => Coded::Delta,
                Encoded::Overflow => Coded::Page,
            },
            false => Coded::Page,
        };
        self.keys[slot] = Some(key);
        kept.copy_from_slice(page);
        coded
    }

    /// Takes note that the page was sent as zeros.
    pub fn set_zero(&mut self, key: u64) {
        let slot = (key % self.keys.len() as u64) as usize;
        if self.keys[slot] == Some(key) {
            self.pages[slot * self.page_size..][..self.page_size].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Pattern;

    /// A destination that is sent what the cache says always has the source's pages.
    #[test]
    fn a_destination_follows() {
        let mut cache = XbzrleCache::new(5 * 4096, 4096);
        assert_eq!(cache.keys.len(), 4);
        let (mut delta, mut seen) = (Vec::new(), [0; 3]);
        let mut source = vec![[0u8; 4096]; 6];
        let mut destination = source.clone();
        for round in 0..200u64 {
            let key = (round * 7 % 11 % 6) as usize;
            match round % 4 {
                0 => Pattern::Random(round).fill(key as u64 * 4096, &mut source[key]),
                1 => source[key][round as usize % 4096] ^= 0xff,
                _ => {}
            }
            if round % 17 == 0 {
                source[key] = [0; 4096];
                destination[key] = [0; 4096];
                cache.set_zero(key as u64);
                continue;
            }
            match cache.encode(key as u64, &source[key], &mut delta) {
                Coded::Page => destination[key] = source[key],
                Coded::Delta => xbzrle::decode(&delta, &mut destination[key]).unwrap(),
                Coded::Unchanged => {}
            }
            seen[match cache.encode(key as u64, &source[key], &mut delta) {
                Coded::Unchanged => 0,
                Coded::Delta => 1,
                Coded::Page => 2,
            }] += 1;
            assert!(destination[key] == source[key], "round {round}");
        }
        assert_eq!(seen[1..], [0, 0], "what was just sent is unchanged");
    }

    #[test]
    fn pages_that_share_a_slot_displace_each_other() {
        let mut cache = XbzrleCache::new(4096, 4096);
        let mut delta = Vec::new();
        let (a, mut b) = ([1; 4096], [2; 4096]);
        assert_eq!(cache.encode(0, &a, &mut delta), Coded::Page);
        assert_eq!(cache.encode(1, &b, &mut delta), Coded::Page);
        assert_eq!(cache.encode(0, &a, &mut delta), Coded::Page);
        assert_eq!(cache.encode(1, &b, &mut delta), Coded::Page);
        b[9] = 3;
        assert_eq!(cache.encode(1, &b, &mut delta), Coded::Delta);
        assert_eq!(delta, [9, 1, 3]);
    }
}
