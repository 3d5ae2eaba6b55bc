//! How long a peer may take.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Limits on a peer's silence, and on everything together.
///
/// Silence is time without a whole record, not without a byte: a peer that trickles one byte a second is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest time between two records.
    pub silence: Duration,
    /// Longest time for the whole migration.
    pub total: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), total: None }
    }
}

/// Watches the limits of one channel. Records are counted, which costs nothing a page; the clock is read once a read.
#[derive(Debug)]
pub(super) struct Pace {
    limits: Limits,
    begin: Instant,
    records: Cell<u64>,
    seen: Cell<u64>,
    last: Cell<Instant>,
    hurry: Cell<bool>,
    /// What other channels of the same migration have achieved.
    others: Arc<AtomicU64>,
}

impl Pace {
    pub(super) fn new(limits: Limits) -> Self {
        let begin = Instant::now();
        Self {
            limits,
            begin,
            records: Cell::new(0),
            seen: Cell::new(0),
            last: Cell::new(begin),
            hurry: Cell::new(false),
            others: Arc::default(),
        }
    }

    /// The same, where a channel may be silent as long as `others` grows.
    pub(super) fn with_others(mut self, others: Arc<AtomicU64>) -> Self {
        self.others = others;
        self
    }

    /// Notes that a whole record has come.
    pub(super) fn note_record(&self) {
        self.records.set(self.records.get() + 1);
    }

    /// Says whether a silence may be all that shows the end of what is being read.
    pub(super) fn set_hurry(&self, hurry: bool) {
        self.hurry.set(hurry);
    }

    /// Whether a silence may be all that shows the end of what is being read.
    pub(super) fn is_in_hurry(&self) -> bool {
        self.hurry.get()
    }

    /// Time since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// How long the next read may take; `None` when a limit is reached already.
    pub(super) fn patience(&self) -> Option<Duration> {
        let now = Instant::now();
        let achieved = self.records.get().wrapping_add(self.others.load(Ordering::Relaxed));
        if self.seen.replace(achieved) != achieved {
            self.last.set(now);
        }
        let silence = self.limits.silence.checked_sub(now - self.last.get())?;
        let total = self.limits.total.map(|total| total.checked_sub(now - self.begin));
        let left = match total {
            None => silence,
            Some(left) => silence.min(left?),
        };
        (!left.is_zero()).then_some(left)
    }

    /// Whether it is the limit on everything together that is reached.
    pub(super) fn is_overdue(&self) -> bool {
        self.limits.total.is_some_and(|total| self.begin.elapsed() >= total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_progress_and_bytes_are_not() {
        let limits = Limits { silence: Duration::from_millis(200), total: None };
        let pace = Pace::new(limits);
        std::thread::sleep(Duration::from_millis(20));
        assert!(pace.patience().unwrap() <= Duration::from_millis(180));
        pace.note_record();
        assert!(pace.patience().unwrap() > Duration::from_millis(180));
        std::thread::sleep(Duration::from_millis(210));
        assert!(pace.patience().is_none());
        assert!(!pace.is_overdue());
    }

    #[test]
    fn the_total_counts_whatever_comes() {
        let limits = Limits { silence: Duration::from_secs(9), total: Some(Duration::from_millis(20)) };
        let pace = Pace::new(limits);
        std::thread::sleep(Duration::from_millis(25));
        pace.note_record();
        assert!(pace.patience().is_none());
        assert!(pace.is_overdue());
    }
}
