//! The destination's half of postcopy: which pages have arrived, which are asked for, and how long they take.
//!
//! ```text
//! next() ------> REQ_PAGES_ID / REQ_PAGES       as many at a time as the depth says
//! handle_page() <---- the page comes, asked for or not: the next one may be asked for
//! ```
//! A stock destination asks for what its virtual CPUs and devices touch. Here a [`Pattern`] does. Source:
//! `migration/postcopy-ram.c`, `migrate_send_rp_req_pages`.

use std::collections::BTreeMap;
use std::sync::Arc;

use hdrhistogram::Histogram;

use super::{PageSet, page_count};
use crate::error::{Error, ErrorKind, Result};
use crate::stream::Block;
use crate::wire::{Message, Name};

/// Which pages are asked for. Those that have arrived by then are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// None: the source sends all of them by itself.
    #[default]
    None,
    /// All that are missing, in order.
    Missing,
    /// All that are missing, in an order that a number makes up.
    Random(u64),
    /// All that are missing, as a guest with a working set does: nine of ten requests are for pages of a tenth of the memory, as
    /// long as any of it is missing.
    Hot(u64),
    /// These, in this order.
    List(Arc<[Wanted]>),
}

/// Pages to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Name of the block.
    pub block: Box<[u8]>,
    /// Offset in it.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

/// How long requests took, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

/// What has become of a page that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// It was missing.
    pub is_new: bool,
    /// It was asked for, and took that long; of a huge page the last part counts.
    pub took: Option<u64>,
}

/// Account of the pages of a guest in postcopy, from POSTCOPY_ADVISE on. Times are nanoseconds of any clock that goes forward.
#[derive(Debug)]
pub struct Requests {
    blocks: Arc<[Block]>,
    page_size: u64,
    received: Vec<PageSet>,
    pattern: Pattern,
    depth: usize,
    /// Most requests over one connection, and how many are left over this one.
    limit: u64,
    left: u64,
    cursor: Cursor,
    /// Host pages that were asked for: block and offset, and when.
    outstanding: BTreeMap<(usize, u64), u64>,
    /// The ones among them to be asked for again on a new connection, unless they come before: a source remembers what it was asked for.
    again: Vec<(usize, u64)>,
    last_block: Option<usize>,
    sent: u64,
    latencies: Latencies,
}

/// Where a pattern has come to.
#[derive(Clone, Debug, Default)]
struct Cursor {
    index: u64,
    hot: u64,
    cold: u64,
    /// Offset in the range of a list that was begun.
    within: u64,
}

impl Requests {
    /// An account of these blocks; `depth` requests are under way at a time.
    pub fn new(blocks: Arc<[Block]>, page_size: u64, pattern: Pattern, depth: usize) -> Self {
        Self {
            received: blocks.iter().map(|_| PageSet::new()).collect(),
            blocks,
            page_size,
            pattern,
            depth,
            cursor: Cursor::default(),
            outstanding: BTreeMap::new(),
            again: Vec::new(),
            limit: u64::MAX,
            left: u64::MAX,
            last_block: None,
            sent: 0,
            latencies: Latencies::new(),
        }
    }

    /// The same, with at most so many requests over one connection.
    #[must_use]
    pub fn with_limit(mut self, limit: u64) -> Self {
        (self.limit, self.left) = (limit, limit);
        self
    }

    /// The page at `offset` of a block has come, at the time `now`.
    ///
    /// # Errors
    /// As [`PageSet::insert`].
    pub fn handle_page(&mut self, block: usize, offset: u64, now: u64) -> Result<Arrived> {
        let Some(received) = self.received.get_mut(block) else {
            return Ok(Arrived { is_new: false, took: None });
        };
        let is_new = received.insert(offset / self.page_size)?;
        if self.outstanding.is_empty() {
            return Ok(Arrived { is_new, took: None });
        }
        let size = host_page(&self.blocks[block], self.page_size);
        let start = offset - offset % size;
        let pages = start / self.page_size
            ..(start + size).min(self.blocks[block].used_length).div_ceil(self.page_size);
        let is_whole = size == self.page_size || received.next_gap(pages.start) >= pages.end;
        let asked = if is_whole { self.outstanding.remove(&(block, start)) } else { None };
        let took = asked.map(|at| now.saturating_sub(at));
        if let Some(took) = took {
            self.latencies.note(took);
        }
        Ok(Arrived { is_new, took })
    }

    /// POSTCOPY_RAM_DISCARD: these bytes of a block are not there any more.
    pub fn handle_discard(&mut self, block: usize, start: u64, length: u64) {
        if let Some(received) = self.received.get_mut(block) {
            received.remove_range(start / self.page_size..start.saturating_add(length) / self.page_size);
        }
    }

    /// The next request to send at the time `now`; `None` if as many as may be are under way, or nothing is left to ask for.
    pub fn poll_request(&mut self, now: u64) -> Option<Message<'_>> {
        if self.left == 0 {
            return None;
        }
        let (block, start) = loop {
            match self.again.pop() {
                Some(again) if self.outstanding.contains_key(&again) => break again,
                Some(_) => {}
                None if self.outstanding.len() >= self.depth => return None,
                None => {
                    let next = self.next_missing()?;
                    self.outstanding.insert(next, now);
                    break next;
                }
            }
        };
        self.sent += 1;
        self.left -= 1;
        let size = host_page(&self.blocks[block], self.page_size);
        let length = u32::try_from(size).unwrap_or(u32::MAX);
        match self.last_block.replace(block) {
            Some(last) if last == block => Some(Message::ReqPages { start, length }),
            _ => Some(Message::ReqPagesId { start, length, block: Name(&self.blocks[block].name) }),
        }
    }

    /// A new connection after a pause: what was asked for and has not come is asked for again, and the block is named. A host page that
    /// had come in part has not come: it is placed as a whole, and a source that were told of its parts would send only the others.
    pub fn resume(&mut self) {
        for (block, received) in self.blocks.iter().zip(&mut self.received) {
            drop_parts(received, block, self.page_size);
        }
        self.last_block = None;
        self.left = self.limit;
        self.again = self.outstanding.keys().rev().copied().collect();
    }

    /// What has arrived of a block.
    pub fn received(&self, block: usize) -> Option<&PageSet> {
        self.received.get(block)
    }

    /// The blocks, in list order.
    pub fn blocks(&self) -> &Arc<[Block]> {
        &self.blocks
    }

    /// Target page size.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Pages that have not come.
    pub fn missing(&self) -> u64 {
        let count = |(block, received): (&Block, &PageSet)| {
            page_count(block, self.page_size).saturating_sub(received.len())
        };
        self.blocks.iter().zip(&self.received).map(count).sum()
    }

    /// The first page that has not come: block and offset.
    pub fn first_missing(&self) -> Option<(usize, u64)> {
        let gaps = self.received.iter().map(|received| received.next_gap(0) * self.page_size).enumerate();
        gaps.zip(&*self.blocks).find(|((_, at), block)| *at < block.used_length).map(|(gap, _)| gap)
    }

    /// Requests that were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Requests that were not answered.
    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// How long the others took.
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// The next host page that the pattern names and that has not come.
    fn next_missing(&mut self) -> Option<(usize, u64)> {
        loop {
            let (block, start) = match &self.pattern {
                Pattern::None => return None,
                Pattern::Missing => self.in_order()?,
                Pattern::Random(seed) => {
                    let seed = *seed;
                    let total = self.total();
                    let page = shuffled(&mut self.cursor.index, total, seed)?;
                    self.place(page)?
                }
                Pattern::Hot(seed) => {
                    let seed = *seed;
                    self.hot(seed)?
                }
                Pattern::List(list) => {
                    let list = Arc::clone(list);
                    self.listed(&list)?
                }
            };
            let is_there = self.received[block].contains(start / self.page_size);
            if !is_there && !self.outstanding.contains_key(&(block, start)) {
                return Some((block, start));
            }
        }
    }

    /// The cursor is the number of the block and, within it, the offset.
    fn in_order(&mut self) -> Option<(usize, u64)> {
        loop {
            let index = usize::try_from(self.cursor.index).ok()?;
            let block = self.blocks.get(index)?;
            let size = host_page(block, self.page_size);
            let gap = self.received[index]
                .next_gap(self.cursor.within / self.page_size)
                .saturating_mul(self.page_size);
            if gap >= block.used_length {
                self.cursor.index += 1;
                self.cursor.within = 0;
                continue;
            }
            let start = gap - gap % size;
            self.cursor.within = start.saturating_add(size);
            return Some((index, start));
        }
    }

    fn hot(&mut self, seed: u64) -> Option<(usize, u64)> {
        let total = self.total();
        let size = total.div_ceil(10);
        let begin = if total > size { mix(seed) % (total - size) } else { 0 };
        let Cursor { index, hot, cold, .. } = &mut self.cursor;
        *index += 1;
        let from_hot = if index.is_multiple_of(10) { None } else { shuffled(hot, size, seed) };
        let page = match from_hot {
            Some(page) => begin + page,
            None => match shuffled(cold, total - size, seed) {
                Some(page) if page < begin => page,
                Some(page) => page + size,
                None => begin + shuffled(hot, size, seed)?,
            },
        };
        self.place(page)
    }

    fn listed(&mut self, list: &[Wanted]) -> Option<(usize, u64)> {
        loop {
            let Wanted { block, start, length } = list.get(usize::try_from(self.cursor.index).ok()?)?;
            let found = self.blocks.iter().position(|other| other.name == *block);
            let at = start.saturating_add(self.cursor.within);
            match found {
                Some(index) if self.cursor.within < *length && at < self.blocks[index].used_length => {
                    let size = host_page(&self.blocks[index], self.page_size);
                    let first = at - at % size;
                    self.cursor.within = first.saturating_add(size) - start;
                    return Some((index, first));
                }
                _ => {
                    self.cursor.index += 1;
                    self.cursor.within = 0;
                }
            }
        }
    }

    /// Host pages of all blocks.
    fn total(&self) -> u64 {
        self.blocks.iter().map(|block| host_pages(block, self.page_size)).fold(0, u64::saturating_add)
    }

    /// Block and offset of a host page, counted through all blocks.
    fn place(&self, mut page: u64) -> Option<(usize, u64)> {
        for (index, block) in self.blocks.iter().enumerate() {
            let pages = host_pages(block, self.page_size);
            if page < pages {
                return Some((index, page * host_page(block, self.page_size)));
            }
            page -= pages;
        }
        None
    }
}

impl Latencies {
    fn new() -> Self {
        // Up to an hour, to three digits.
        let empty = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        Self(empty.unwrap_or_else(|_| {
            Histogram::new(3).unwrap_or_else(|_| unreachable!("three digits are allowed"))
        }))
    }

    fn note(&mut self, took: u64) {
        self.0.saturating_record(took.max(1));
    }

    /// Number of requests that were answered.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that so many of a hundred did not exceed; `None` if there were none.
    pub fn percentile(&self, percent: f64) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.value_at_percentile(percent))
    }

    /// The longest.
    pub fn max(&self) -> Option<u64> {
        (!self.0.is_empty()).then(|| self.0.max())
    }
}

/// A list of pages to ask for: a line each, `BLOCK OFFSET [LENGTH]`, numbers decimal or with 0x, `#` before remarks.
///
/// # Errors
/// For a line that is none of this, with its number.
pub fn parse_list(text: &str) -> Result<Pattern> {
    let number = |word: &str| match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    };
    let mut list = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let range = match words[..] {
            [] => continue,
            [block, start] => number(start).map(|start| (block, start, 1)),
            [block, start, length] => {
                number(start).zip(number(length)).map(|(start, length)| (block, start, length))
            }
            _ => None,
        };
        let Some((block, start, length)) = range else {
            let message = format!("line {}: {line:?} is not BLOCK OFFSET [LENGTH]", at + 1);
            return Err(Error::nowhere(ErrorKind::Misuse, "list of pages", message));
        };
        list.push(Wanted { block: block.as_bytes().into(), start, length });
    }
    Ok(Pattern::List(list.into()))
}

fn host_page(block: &Block, page_size: u64) -> u64 {
    block.huge_page.filter(|size| size.is_multiple_of(page_size)).unwrap_or(page_size).max(page_size)
}

fn host_pages(block: &Block, page_size: u64) -> u64 {
    block.used_length.div_ceil(host_page(block, page_size))
}

/// Takes out the pages of host pages that are not whole.
fn drop_parts(received: &mut PageSet, block: &Block, page_size: u64) {
    let (host, count) = (host_page(block, page_size) / page_size, page_count(block, page_size));
    if host == 1 {
        return;
    }
    let mut gap = received.next_gap(0);
    while gap < count {
        let start = gap - gap % host;
        received.remove_range(start..start + host);
        gap = received.next_gap(start + host);
    }
}

/// The next number of an order of all numbers below `total`, which takes no memory: steps through a power of two, over those that
/// are too large.
fn shuffled(at: &mut u64, total: u64, seed: u64) -> Option<u64> {
    let room = total.checked_next_power_of_two()?;
    while *at < room {
        let i = *at;
        *at += 1;
        // An odd factor and any summand permute the numbers of so many bits; so does folding the upper half into the lower.
        let bits = room.trailing_zeros();
        let mut x = i.wrapping_mul(mix(seed) | 1).wrapping_add(seed) & (room - 1);
        x ^= x >> (bits / 2 + 1);
        x = x.wrapping_mul(mix(seed ^ 0x5a5a) | 1) & (room - 1);
        if x < total {
            return Some(x);
        }
    }
    None
}

/// Bits well stirred (the finalizer of splitmix64).
fn mix(seed: u64) -> u64 {
    let x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks() -> Arc<[Block]> {
        let block = |name: &[u8], used_length, huge_page| Block { name: name.into(), used_length, huge_page };
        [block(b"ram", 0x40_000, None), block(b"huge", 0x8_000, Some(0x2_000)), block(b"rom", 0x1_000, None)]
            .into()
    }

    #[test]
    fn a_host_page_in_part_has_not_come() {
        let mut requests = Requests::new(blocks(), 0x1000, Pattern::None, 0);
        for (block, offset) in [(0, 0x3000), (1, 0x2000), (1, 0x3000), (1, 0x5000), (1, 0x6000)] {
            requests.handle_page(block, offset, 0).unwrap();
        }
        requests.resume();
        let words = |block, pages| requests.received(block).unwrap().wire_words(pages).collect::<Vec<_>>();
        assert_eq!((words(0, 0x40), words(1, 8)), (vec![1 << 3], vec![0b1100]));
        assert_eq!(requests.missing(), 0x40 - 1 + 8 - 2 + 1);
    }

    /// Asks until nothing is left, and answers each request at once. Returns what was asked for, in order.
    fn run(pattern: Pattern) -> Vec<(usize, u64)> {
        let mut requests = Requests::new(blocks(), 0x1000, pattern, 1);
        requests.handle_page(0, 0x5000, 0).unwrap();
        let (mut asked, mut block) = (Vec::new(), 0);
        while let Some(message) = requests.poll_request(10_000) {
            let (start, length) = match message {
                Message::ReqPagesId { start, length, block: name } => {
                    block = blocks().iter().position(|b| *b.name == *name.0).unwrap();
                    (start, length)
                }
                Message::ReqPages { start, length } => (start, length),
                other => panic!("{other:?}"),
            };
            asked.push((block, start));
            for at in (start..start + u64::from(length)).step_by(0x1000) {
                let arrived = requests.handle_page(block, at, 30_000).unwrap();
                assert_eq!(arrived.took.is_some(), at + 0x1000 == start + u64::from(length));
            }
            assert_eq!(requests.outstanding(), 0);
        }
        assert_eq!(requests.latencies().count(), asked.len() as u64);
        let p99 = requests.latencies().percentile(99.0).unwrap();
        assert!((20_000..20_020).contains(&p99), "{p99}");
        if !matches!(requests.pattern, Pattern::List(_)) {
            assert_eq!((requests.missing(), requests.first_missing()), (0, None));
        }
        asked
    }

    #[test]
    fn every_page_is_asked_for_once_and_none_that_is_there() {
        let in_order = run(Pattern::Missing);
        assert_eq!(in_order.len(), 63 + 4 + 1);
        assert!(in_order.is_sorted());
        for other in [run(Pattern::Random(7)), run(Pattern::Hot(7))] {
            assert_ne!(other, in_order);
            let mut sorted = other;
            sorted.sort_unstable();
            assert_eq!(sorted, in_order);
        }
        assert_ne!(run(Pattern::Random(7)), run(Pattern::Random(8)));
    }

    #[test]
    fn a_list_is_asked_for_as_it_stands() {
        let list = parse_list(
            "ram 0x3000\nhuge 8192 0x3000 # two huge pages\n\nram 0x3000\ntape 1\nram 0x3f000 0x9000",
        )
        .unwrap();
        assert_eq!(run(list), [(0, 0x3000), (1, 0x2000), (1, 0x4000), (0, 0x3f000)]);
        let e = parse_list("ram\n").unwrap_err();
        assert_eq!(e.to_string(), "list of pages: line 1: \"ram\" is not BLOCK OFFSET [LENGTH]");
    }

    #[test]
    fn after_a_pause_the_same_is_asked_for_again_by_name() {
        let mut requests = Requests::new(blocks(), 0x1000, Pattern::Missing, 3);
        let ask = |requests: &mut Requests| requests.poll_request(0).map(|m| format!("{m:?}"));
        let first: Vec<_> = std::iter::from_fn(|| ask(&mut requests)).collect();
        assert_eq!((first.len(), requests.sent()), (3, 3));
        requests.handle_page(0, 0x1000, 0).unwrap();
        requests.resume();
        let again: Vec<_> = std::iter::from_fn(|| ask(&mut requests)).collect();
        assert_eq!(again.len(), 3, "two again, and one more");
        assert_eq!(again[0], first[0], "with the name");
        assert!(again[1].contains("start: 8192"), "{again:?}");
    }

    #[test]
    fn what_comes_before_it_is_asked_for_again_is_an_answer() {
        let mut requests = Requests::new(blocks(), 0x1000, Pattern::Missing, 2).with_limit(3);
        while requests.poll_request(1_000).is_some() {}
        requests.resume();
        // The source has not forgotten.
        assert_eq!(requests.handle_page(0, 0, 9_000).unwrap().took, Some(8_000));
        let again: Vec<_> =
            std::iter::from_fn(|| requests.poll_request(0).map(|m| format!("{m:?}"))).collect();
        assert_eq!(again.len(), 2, "the other one, and one more: {again:?}");
        for at in [0x1000, 0x2000] {
            assert!(requests.handle_page(0, at, 9_000).unwrap().took.is_some());
        }
        assert!(
            requests.poll_request(0).is_some() && requests.poll_request(0).is_none(),
            "three a connection"
        );
        assert_eq!(requests.latencies().count(), 3);
    }

    #[test]
    fn what_is_discarded_is_missing() {
        let mut requests = Requests::new(blocks(), 0x1000, Pattern::None, 1);
        for at in 0..64 {
            requests.handle_page(0, at * 0x1000, 0).unwrap();
        }
        assert_eq!(requests.missing(), 9);
        requests.handle_discard(0, 0x2000, 0x3000);
        assert_eq!((requests.missing(), requests.first_missing()), (12, Some((0, 0x2000))));
        assert!(!requests.handle_page(0, 0x1000, 0).unwrap().is_new);
        assert!(requests.handle_page(0, 0x2000, 0).unwrap().is_new);
    }
}
