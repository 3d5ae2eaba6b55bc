//! A digest of a RAM block that is kept up to date page by page, in any order.
//!
//! ```text
//! digest = xxh3-64 of   be64 length of the block,
//!                       then for every page that is not all zero, in order: be64 index, be64 xxh3-64 of the page
//! ```
//! Only the page hashes are kept: eight bytes a page that has ever held something, 2 MiB a GiB. A block of any length that
//! holds nothing costs nothing.

use std::collections::BTreeMap;
use std::fmt;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const PER_CHUNK: u64 = 512;

/// Hashes of a block's pages.
#[derive(Clone, Debug)]
pub struct BlockDigest {
    length: u64,
    page_size: u64,
    // Chunks are made when a page in them first holds something, so that a peer's length alone reserves nothing.
    chunks: BTreeMap<u64, Box<[Option<PageHash>; PER_CHUNK as usize]>>,
}

/// A page's hash, with 0 moved aside so that "all zero" takes no extra space.
type PageHash = std::num::NonZeroU64;

impl BlockDigest {
    /// The digest of a block of `length` bytes that are all zero.
    pub fn new(length: u64, page_size: u64) -> Self {
        Self { length, page_size, chunks: BTreeMap::new() }
    }

    /// The page at `offset` is now `page`.
    pub fn set(&mut self, offset: u64, page: &[u8]) {
        if is_zero(page) {
            self.set_zero(offset);
            return;
        }
        let (chunk, slot) = self.place(offset);
        let hash = PageHash::new(xxh3_64(page)).unwrap_or(PageHash::MIN);
        let chunk = self.chunks.entry(chunk).or_insert_with(|| Box::new([None; PER_CHUNK as usize]));
        chunk[slot] = Some(hash);
    }

    /// The page at `offset` is now all zero.
    pub fn set_zero(&mut self, offset: u64) {
        let (chunk, slot) = self.place(offset);
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk[slot] = None;
        }
    }

    /// The digest as of now.
    pub fn value(&self) -> u64 {
        let mut all = Xxh3::new();
        all.update(&self.length.to_be_bytes());
        for (chunk, hashes) in &self.chunks {
            for (slot, hash) in hashes.iter().enumerate() {
                if let Some(hash) = hash {
                    all.update(&(chunk * PER_CHUNK + slot as u64).to_be_bytes());
                    all.update(&hash.get().to_be_bytes());
                }
            }
        }
        all.digest()
    }

    fn place(&self, offset: u64) -> (u64, usize) {
        let page = offset / self.page_size;
        (page / PER_CHUNK, (page % PER_CHUNK) as usize)
    }
}

impl fmt::Display for BlockDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pages-xxh3:{:016x}", self.value())
    }
}

/// Whether all bytes are zero: such a page is sent as one byte.
pub fn is_zero(page: &[u8]) -> bool {
    // Words at a time, a cache line a step: the compiler makes vector code of it.
    let (words, rest) = page.as_chunks::<64>();
    words.iter().all(|w| w.iter().fold(0, |all, b| all | b) == 0) && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_the_last_writer_wins() {
        let (a, b) = ([1; 4096], [2; 4096]);
        let mut one = BlockDigest::new(1 << 30, 4096);
        one.set(0, &a);
        one.set(1 << 29, &b);
        let mut two = BlockDigest::new(1 << 30, 4096);
        two.set(1 << 29, &a);
        two.set(4096, &b);
        two.set(1 << 29, &b);
        two.set_zero(4096);
        two.set(0, &a);
        assert_eq!(one.value(), two.value());
        assert_ne!(one.value(), BlockDigest::new(1 << 30, 4096).value());
    }

    #[test]
    fn a_page_of_zeros_is_no_page() {
        let mut digest = BlockDigest::new(8192, 4096);
        digest.set(0, &[0; 4096]);
        assert_eq!(digest.value(), BlockDigest::new(8192, 4096).value());
        assert_ne!(digest.value(), BlockDigest::new(4096, 4096).value());
        assert!(is_zero(&[0; 100]) && !is_zero(&[&[0; 99][..], &[1]].concat()));
    }

    #[test]
    fn a_length_alone_reserves_nothing() {
        let digest = BlockDigest::new(u64::MAX, 4096);
        assert!(digest.chunks.is_empty());
        assert!(digest.to_string().starts_with("pages-xxh3:"));
    }
}
