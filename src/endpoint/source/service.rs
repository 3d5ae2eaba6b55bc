//! Pages that are still to be sent in postcopy, and who takes which.
//!
//! ```text
//! return path --Request--> queue --> main thread, or the thread of the preempt channel --.
//!                                    main thread, in the background ---------------------+--> each page is taken once
//! ```
//! Pages are taken a whole host page at a time: a destination cannot place less.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::postcopy::{PageSet, page_count};
use crate::stream::Block;

/// Pages of a request that are looked at before others get their turn: somebody may ask for a terabyte that has been sent.
const GLANCE: u64 = 1024;

/// Smallest page of a host; those of its target may be smaller.
const HOST_PAGE: u64 = 4096;

/// Pages that the destination needs now, by number.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) block: usize,
    pub(super) pages: Range<u64>,
}

/// Pages that follow each other, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) block: usize,
    pub(super) pages: Range<u64>,
}

impl Run {
    pub(super) fn count(&self) -> u64 {
        self.pages.end - self.pages.start
    }
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRequests {
    /// Requests that came.
    pub received: u64,
    /// Pages that were sent because they were asked for.
    pub pages: u64,
    /// Pages that were asked for after they had been sent.
    pub unneeded: u64,
}

/// Account of the pages that are still to be sent.
#[derive(Default)]
pub(super) struct Service {
    state: Mutex<State>,
    changed: Condvar,
    received: AtomicU64,
    pages: AtomicU64,
    unneeded: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Pages to send, a set a block, and target pages of a host page of each.
    blocks: Vec<(PageSet, u64)>,
    /// Where the background has come to: block and page.
    cursor: (usize, u64),
    /// Pages that the preempt channel has taken and not written.
    in_hand: u64,
    /// Why the preempt channel has failed.
    failure: Option<Error>,
}

impl Service {
    /// These are to be sent from now on, and no others.
    pub(super) fn begin(&self, blocks: &[Block], page_size: u64, sets: Vec<PageSet>) {
        let host = |block: &Block| host_pages(block, page_size);
        let blocks = sets.into_iter().zip(blocks).map(|(set, block)| (set, host(block))).collect();
        *self.state() = State { blocks, ..State::default() };
    }

    /// Pages that nobody has taken.
    pub(super) fn left(&self) -> u64 {
        self.state().blocks.iter().map(|(set, _)| set.len()).sum()
    }

    /// Some of the pages that nobody has asked for: so many, or a whole host page.
    pub(super) fn take_next(&self, most: u64) -> Option<Run> {
        let mut state = self.state();
        loop {
            let (block, page) = state.cursor;
            let (set, _) = state.blocks.get(block)?;
            match set.next(page) {
                Some(start) => {
                    let run = state.take(block, start, start + most);
                    state.cursor.1 = run.pages.end;
                    return Some(run);
                }
                None => state.cursor = (block + 1, 0),
            }
        }
    }

    /// Some of the pages of a request, which shrinks by what was looked at. `is_urgent`: [`note_written`](Self::note_written) follows.
    pub(super) fn take_requested(&self, request: &mut Request, most: u64, is_urgent: bool) -> Option<Run> {
        let mut state = self.state();
        let Some((set, host)) = state.blocks.get(request.block) else {
            request.pages.start = request.pages.end;
            return None;
        };
        let (first, looked) = (request.pages.start, request.pages.clone().take(GLANCE as usize));
        let found = looked.into_iter().find(|page| set.contains(*page));
        let skipped = found.unwrap_or(request.pages.end.min(first + GLANCE));
        self.unneeded.fetch_add(skipped - first, Ordering::Relaxed);
        request.pages.start = skipped;
        let start = found? / host * host;
        // Of a host page that was begun, all is there, since it was taken as a whole.
        let wanted = request.pages.end.min(start.saturating_add(most));
        let run = state.take(request.block, start, wanted);
        request.pages.start = run.pages.end.min(request.pages.end);
        state.in_hand += if is_urgent { run.count() } else { 0 };
        self.pages.fetch_add(run.count(), Ordering::Relaxed);
        Some(run)
    }

    /// The preempt channel has written so many pages.
    pub(super) fn note_written(&self, pages: u64) {
        let mut state = self.state();
        state.in_hand = state.in_hand.saturating_sub(pages);
        drop(state);
        self.changed.notify_all();
    }

    /// The preempt channel cannot go on.
    pub(super) fn fail(&self, error: Error) {
        self.state().failure.get_or_insert(error);
        self.changed.notify_all();
    }

    /// Why the preempt channel could not go on.
    pub(super) fn take_failure(&self) -> Option<Error> {
        self.state().failure.take()
    }

    /// Waits until the preempt channel has written what it has taken. `false`: not in time.
    ///
    /// # Errors
    /// If it cannot.
    pub(super) fn settle(&self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        let mut state = self.state();
        loop {
            if let Some(error) = &state.failure {
                return Err(error.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.in_hand == 0 || left.is_zero() {
                return Ok(state.in_hand == 0);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A request has come.
    pub(super) fn note_request(&self) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has come when everything was taken.
    pub(super) fn note_unneeded(&self, request: &Request) {
        self.note_request();
        self.unneeded.fetch_add(request.pages.end - request.pages.start, Ordering::Relaxed);
    }

    pub(super) fn requests(&self) -> PageRequests {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PageRequests {
            received: count(&self.received),
            pages: count(&self.pages),
            unneeded: count(&self.unneeded),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes pages that are there, from the beginning of a host page to about `end`.
    fn take(&mut self, block: usize, start: u64, end: u64) -> Run {
        let (set, host) = &mut self.blocks[block];
        let end = end.next_multiple_of(*host);
        let stop = (start + 1..end).find(|page| !set.contains(*page)).unwrap_or(end);
        set.remove_range(start..stop);
        Run { block, pages: start..stop }
    }
}

/// Target pages of a host page of that block.
pub(super) fn host_pages(block: &Block, page_size: u64) -> u64 {
    (block.huge_page.unwrap_or(HOST_PAGE) / page_size).max(1)
}

/// The pages of a block that a source sends of its own accord if it is to stop at so many per cent: some everywhere, so that the
/// rest stands everywhere as well. Host pages are whole.
pub(super) fn share(block: &Block, page_size: u64, percent: u64) -> Vec<Range<u64>> {
    let (pages, host) = (page_count(block, page_size), host_pages(block, page_size));
    let hosts = pages.div_ceil(host);
    if percent >= 100 {
        return std::iter::once(0..pages).collect();
    }
    let stride = (hosts / 64).clamp(1, 64);
    // Of the first n host pages, so many.
    let due = |n: u64| (u128::from(n) * u128::from(percent) / 100) as u64;
    let strides = (0..hosts).step_by(stride as usize);
    let ranges = strides.map(|at| {
        let count = due((at + stride).min(hosts)) - due(at);
        at * host..((at + count) * host).min(pages)
    });
    ranges.filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(pages: u64, huge_page: Option<u64>) -> Block {
        Block { name: b"ram"[..].into(), used_length: pages * 4096, huge_page }
    }

    #[test]
    fn a_share_is_exact_in_sum_and_whole_in_host_pages() {
        for (pages, huge) in [(1, None), (7, None), (64, None), (4096, None), (100_000, None)] {
            for percent in [0, 1, 33, 50, 99, 100] {
                let ranges = share(&block(pages, huge), 4096, percent);
                let sum: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                assert_eq!(sum, pages * percent / 100, "{pages} pages, {percent} per cent");
                assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start));
            }
        }
        let ranges = share(&block(512 * 9, Some(2 << 20)), 4096, 50);
        assert!(ranges.iter().all(|range| range.start % 512 == 0 && range.end % 512 == 0), "{ranges:?}");
        assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), 4 * 512);
    }

    fn service(sets: &[(Block, Range<u64>)]) -> Service {
        let service = Service::default();
        let blocks: Vec<Block> = sets.iter().map(|(block, _)| block.clone()).collect();
        let set = |range: &Range<u64>| {
            let mut set = PageSet::new();
            set.insert_range(range.clone()).unwrap();
            set
        };
        service.begin(&blocks, 4096, sets.iter().map(|(_, range)| set(range)).collect());
        service
    }

    #[test]
    fn each_page_is_taken_once_and_host_pages_whole() {
        let service = service(&[(block(40, None), 10..40), (block(1024, Some(2 << 20)), 0..1024)]);
        let run = |block, pages| Some(Run { block, pages });
        let mut request = Request { block: 0, pages: 5..15 };
        assert_eq!(service.take_requested(&mut request, 3, true), run(0, 10..13));
        assert_eq!(service.take_requested(&mut request, 3, true), run(0, 13..15));
        assert!(request.pages.is_empty());
        assert_eq!(service.take_next(16), run(0, 15..31));
        let mut huge = Request { block: 1, pages: 600..601 };
        assert_eq!(service.take_requested(&mut huge, 16, true), run(1, 512..1024));
        assert_eq!(service.take_next(16), run(0, 31..40));
        assert_eq!(service.take_next(16), run(1, 0..512));
        assert_eq!((service.take_next(16), service.left()), (None, 0));
        let mut late = Request { block: 0, pages: 5..15 };
        assert_eq!(service.take_requested(&mut late, 3, false), None);
        assert_eq!(service.requests(), PageRequests { received: 0, pages: 5 + 512, unneeded: 5 + 10 });
        assert!(!service.settle(Duration::from_millis(1)).unwrap());
        service.note_written(5 + 512);
        assert!(service.settle(Duration::ZERO).unwrap());
    }

    #[test]
    fn a_request_for_what_was_sent_lets_others_have_their_turn() {
        let service = service(&[(block(1 << 20, None), 1 << 19..1 << 20)]);
        let mut request = Request { block: 0, pages: 0..1 << 20 };
        assert_eq!(service.take_requested(&mut request, 1, false), None);
        assert_eq!(request.pages, GLANCE..1 << 20);
    }
}
