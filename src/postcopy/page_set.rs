//! Which pages of a block have arrived, or are still to be sent.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_PAGE_SET_PARTS;

/// Words of a part: 4 KiB, 32768 pages.
const WORDS: usize = 512;

/// Pages of a part.
const PAGES: u64 = WORDS as u64 * 64;

/// A set of pages, by number. It takes a bit a page where there are any, and nothing elsewhere.
///
/// ```
/// use migwire::postcopy::PageSet;
/// let mut set = PageSet::new();
/// assert!(set.insert(3)? && !set.insert(3)?);
/// set.insert_range(64..130)?;
/// assert_eq!((set.len(), set.next(4), set.next_gap(64)), (67, Some(64), 130));
/// assert_eq!(set.wire_words(130).collect::<Vec<_>>(), [8, u64::MAX, 3]);
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    parts: BTreeMap<u64, Box<[u64; WORDS]>>,
    len: u64,
}

impl PageSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of pages in it.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no page is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the page is in it.
    pub fn contains(&self, page: u64) -> bool {
        let (word, bit) = place(page);
        self.parts.get(&(page / PAGES)).is_some_and(|part| part[word] & bit != 0)
    }

    /// Puts the page in; whether it was not there.
    ///
    /// # Errors
    /// `TooLarge` if the pages are spread over more of a guest's memory than is kept account of.
    pub fn insert(&mut self, page: u64) -> Result<bool> {
        let (word, bit) = place(page);
        let word = &mut self.part(page / PAGES)?[word];
        let is_new = *word & bit == 0;
        *word |= bit;
        self.len += u64::from(is_new);
        Ok(is_new)
    }

    /// Takes the page out; whether it was there.
    pub fn remove(&mut self, page: u64) -> bool {
        let (word, bit) = place(page);
        let Some(part) = self.parts.get_mut(&(page / PAGES)) else { return false };
        let was_there = part[word] & bit != 0;
        part[word] &= !bit;
        self.len -= u64::from(was_there);
        was_there
    }

    /// Puts all of the range in.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn insert_range(&mut self, range: Range<u64>) -> Result<()> {
        for (number, words) in words_of(range) {
            let part = self.part(number / WORDS as u64)?;
            let word = &mut part[(number % WORDS as u64) as usize];
            let added = (words & !*word).count_ones();
            *word |= words;
            self.len += u64::from(added);
        }
        Ok(())
    }

    /// Takes all of the range out. Only what is there takes time.
    pub fn remove_range(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut gone = 0;
        for (part, words) in self.parts.range_mut(range.start / PAGES..=(range.end - 1) / PAGES) {
            let first = range.start.max(part * PAGES);
            let last = range.end.min((part + 1).saturating_mul(PAGES));
            for (number, mask) in words_of(first..last) {
                let word = &mut words[(number % WORDS as u64) as usize];
                gone += (*word & mask).count_ones();
                *word &= !mask;
            }
        }
        self.len -= u64::from(gone);
    }

    /// The first page of the set from `page` on.
    pub fn next(&self, page: u64) -> Option<u64> {
        for (number, part) in self.parts.range(page / PAGES..) {
            let first = page.max(number * PAGES);
            let (mut word, bit) = place(first);
            let mut bits = part[word] & !(bit - 1);
            loop {
                if bits != 0 {
                    return Some(number * PAGES + word as u64 * 64 + u64::from(bits.trailing_zeros()));
                }
                word += 1;
                match part.get(word) {
                    Some(next) => bits = *next,
                    None => break,
                }
            }
        }
        None
    }

    /// The first page from `page` on that is not in the set.
    pub fn next_gap(&self, mut page: u64) -> u64 {
        loop {
            let Some(part) = self.parts.get(&(page / PAGES)) else { return page };
            let (mut word, bit) = place(page);
            let mut gaps = !part[word] & !(bit - 1);
            let base = page - page % PAGES;
            loop {
                if gaps != 0 {
                    return base + word as u64 * 64 + u64::from(gaps.trailing_zeros());
                }
                word += 1;
                match part.get(word) {
                    Some(next) => gaps = !*next,
                    None => break,
                }
            }
            page = base + PAGES;
        }
    }

    /// The set as the bitmap of a block of so many pages: bit i of word n is page 64 n + i. On the wire a word is little-endian.
    pub fn wire_words(&self, pages: u64) -> impl Iterator<Item = u64> + '_ {
        (0..pages.div_ceil(64)).map(move |number| {
            let word = self
                .parts
                .get(&(number / WORDS as u64))
                .map_or(0, |part| part[(number % WORDS as u64) as usize]);
            // Bits behind the end are not there.
            match pages - number * 64 {
                left if left < 64 => word & ((1 << left) - 1),
                _ => word,
            }
        })
    }

    /// Adds word `number` of a bitmap.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn insert_word(&mut self, number: u64, bits: u64) -> Result<()> {
        if bits == 0 {
            return Ok(());
        }
        let word = &mut self.part(number / WORDS as u64)?[(number % WORDS as u64) as usize];
        let added = (bits & !*word).count_ones();
        *word |= bits;
        self.len += u64::from(added);
        Ok(())
    }

    fn part(&mut self, number: u64) -> Result<&mut [u64; WORDS]> {
        if self.parts.len() >= MAX_PAGE_SET_PARTS && !self.parts.contains_key(&number) {
            let message = "the pages are spread over more memory than is kept account of";
            return Err(Error::nowhere(ErrorKind::TooLarge, "received pages", message));
        }
        Ok(self.parts.entry(number).or_insert_with(|| Box::new([0; WORDS])))
    }
}

/// A bitmap that is being received, in pieces of any size.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageBits {
    /// The pages so far.
    pub(crate) pages: PageSet,
    /// Words that have come, and bytes of the one that is coming.
    words: u64,
    partial: Vec<u8>,
}

impl PageBits {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// As [`PageSet::insert`].
    pub(crate) fn add(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (these, rest) = bytes.split_at(bytes.len().min(8 - self.partial.len()));
            self.partial.extend_from_slice(these);
            bytes = rest;
            if let Ok(word) = <[u8; 8]>::try_from(&self.partial[..]) {
                self.pages.insert_word(self.words, u64::from_le_bytes(word))?;
                self.words += 1;
                self.partial.clear();
            }
        }
        Ok(())
    }
}

/// Word in its part, and bit.
fn place(page: u64) -> (usize, u64) {
    ((page % PAGES / 64) as usize, 1 << (page % 64))
}

/// The words that a range touches, by number, with the bits in each.
fn words_of(range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let words = if range.is_empty() { 0..0 } else { range.start / 64..(range.end - 1) / 64 + 1 };
    words.map(move |number| {
        let first = range.start.saturating_sub(number * 64).min(63);
        let last = (range.end - number * 64).min(64);
        let below = if last == 64 { u64::MAX } else { (1 << last) - 1 };
        (number, below & (u64::MAX << first))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Remove(u64),
        InsertRange(u64, u64),
        RemoveRange(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let page = || prop_oneof![0..300u64, PAGES - 70..PAGES + 70];
        prop_oneof![
            page().prop_map(Step::Insert),
            page().prop_map(Step::Remove),
            (page(), 0..200u64).prop_map(|(at, n)| Step::InsertRange(at, at + n)),
            (page(), 0..200u64).prop_map(|(at, n)| Step::RemoveRange(at, at + n)),
        ]
    }

    proptest! {
        #[test]
        fn like_an_ordinary_set(steps in prop::collection::vec(step(), 1..40)) {
            let (mut set, mut model) = (PageSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(page) => prop_assert_eq!(set.insert(page).unwrap(), model.insert(page)),
                    Step::Remove(page) => prop_assert_eq!(set.remove(page), model.remove(&page)),
                    Step::InsertRange(a, b) => {
                        set.insert_range(a..b).unwrap();
                        model.extend(a..b);
                    }
                    Step::RemoveRange(a, b) => {
                        set.remove_range(a..b);
                        model.retain(|page| !(a..b).contains(page));
                    }
                }
                prop_assert_eq!(set.len(), model.len() as u64);
            }
            for page in [0, 63, 64, 299, PAGES - 1, PAGES, PAGES + 100] {
                prop_assert_eq!(set.contains(page), model.contains(&page));
                prop_assert_eq!(set.next(page), model.range(page..).next().copied());
                prop_assert_eq!(set.next_gap(page), (page..).find(|p| !model.contains(p)).unwrap());
            }
            let pages = PAGES + 300;
            let mut back = PageSet::new();
            for (number, word) in set.wire_words(pages).enumerate() {
                back.insert_word(number as u64, word).unwrap();
            }
            prop_assert_eq!(back.len(), set.len());
        }
    }

    #[test]
    fn a_bitmap_ends_with_its_block() {
        let mut set = PageSet::new();
        set.insert_range(0..128).unwrap();
        assert_eq!(set.wire_words(65).collect::<Vec<_>>(), [u64::MAX, 1]);
    }

    #[test]
    fn a_peer_cannot_spread_pages_without_end() {
        let mut set = PageSet::new();
        let spread = |i: u64| i * PAGES;
        for i in 0..MAX_PAGE_SET_PARTS as u64 {
            set.insert(spread(i)).unwrap();
        }
        assert_eq!(set.insert(spread(1 << 40)).unwrap_err().kind(), ErrorKind::TooLarge);
        set.remove_range(0..1 << 50);
        assert!(set.is_empty());
    }
}
