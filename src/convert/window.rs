//! Pages on their way, and in which order they go on.
//!
//! Pages may change places as long as none overtakes an older version of itself, or a synchronisation. So a window is emptied when a page
//! comes that is in it already.

use std::collections::HashSet;

use crate::error::Result;

/// Pages in a window.
const PAGES: usize = 4096;

/// Bytes in a window: as many pages of 4 KiB, fewer of a larger size.
const BYTES: usize = 16 << 20;

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Zero,
    /// This byte all over.
    Fill(u8),
    Raw(&'a [u8]),
    /// A zlib stream of the main channel.
    Compressed(&'a [u8]),
    /// An XBZRLE delta, and its encoding.
    Delta(u8, &'a [u8]),
}

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) block: usize,
    pub(super) offset: u64,
    /// It came in a packet of a multifd channel.
    pub(super) listed: bool,
    pub(super) content: Content<'a>,
    /// Its record on the main channel, which can stay if nothing about the page changes, and whether it names the block.
    pub(super) record: Option<(&'a [u8], bool)>,
}

/// Pages that are to be shuffled.
pub(super) struct Window {
    /// State of the generator.
    seed: Option<u64>,
    held: Vec<Held>,
    bytes: Vec<u8>,
    there: HashSet<(usize, u64)>,
}

/// A page whose bytes are in the window.
#[derive(Clone, Copy)]
struct Held {
    entry: Entry<'static>,
    from: usize,
    to: usize,
}

impl Window {
    pub(super) fn new(seed: Option<u64>) -> Self {
        Self { seed, held: Vec::new(), bytes: Vec::new(), there: HashSet::new() }
    }

    pub(super) fn shuffles(&self) -> bool {
        self.seed.is_some()
    }

    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= PAGES || self.bytes.len() >= BYTES
    }

    /// Whether a version of that page is in it.
    pub(super) fn holds(&self, entry: &Entry<'_>) -> bool {
        self.there.contains(&(entry.block, entry.offset))
    }

    pub(super) fn push(&mut self, entry: Entry<'_>) {
        let from = self.bytes.len();
        let content = match entry.content {
            Content::Raw(bytes) => {
                self.bytes.extend_from_slice(bytes);
                Content::Raw(&[])
            }
            Content::Compressed(bytes) => {
                self.bytes.extend_from_slice(bytes);
                Content::Compressed(&[])
            }
            Content::Delta(encoding, bytes) => {
                self.bytes.extend_from_slice(bytes);
                Content::Delta(encoding, &[])
            }
            Content::Zero => Content::Zero,
            Content::Fill(fill) => Content::Fill(fill),
        };
        self.there.insert((entry.block, entry.offset));
        let Entry { block, offset, listed, .. } = entry;
        let entry = Entry { block, offset, listed, content, record: None };
        self.held.push(Held { entry, from, to: self.bytes.len() });
    }

    /// Gives all pages, in another order.
    pub(super) fn drain(&mut self, mut each: impl FnMut(Entry<'_>) -> Result<()>) -> Result<()> {
        for i in (1..self.held.len()).rev() {
            let other = (self.next() % (i as u64 + 1)) as usize;
            self.held.swap(i, other);
        }
        let held = std::mem::take(&mut self.held);
        let outcome = held.iter().try_for_each(|held| {
            let bytes = &self.bytes[held.from..held.to];
            let content = match held.entry.content {
                Content::Raw(_) => Content::Raw(bytes),
                Content::Compressed(_) => Content::Compressed(bytes),
                Content::Delta(encoding, _) => Content::Delta(encoding, bytes),
                Content::Zero => Content::Zero,
                Content::Fill(fill) => Content::Fill(fill),
            };
            each(Entry { content, ..held.entry })
        });
        self.bytes.clear();
        self.there.clear();
        outcome
    }

    /// The next number of splitmix64.
    fn next(&mut self) -> u64 {
        let state = self.seed.get_or_insert(0);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_comes_out_once_with_its_bytes() {
        let order = |seed| {
            let mut window = Window::new(Some(seed));
            for page in 0..100u8 {
                let bytes = [page; 8];
                let content = if page % 3 == 0 { Content::Zero } else { Content::Raw(&bytes) };
                let entry =
                    Entry { block: 0, offset: u64::from(page) * 4096, listed: false, content, record: None };
                assert!(!window.holds(&entry));
                window.push(entry);
                assert!(window.holds(&entry));
            }
            let mut order = Vec::new();
            let each = |entry: Entry<'_>| {
                let page = entry.offset / 4096;
                match entry.content {
                    Content::Raw(bytes) => assert_eq!(bytes, [page as u8; 8]),
                    _ => assert_eq!(page % 3, 0),
                }
                order.push(page);
                Ok(())
            };
            window.drain(each).unwrap();
            order
        };
        let found = order(1);
        assert_ne!(found, order(2));
        assert!(!found.is_sorted());
        let mut sorted = found;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
    }
}
