//! When the channels wait for each other.
//!
//! ```text
//! channel 0   .. pages  SYNC --.              .-- pages of the next round
//! channel 1   .. pages  SYNC --+--> barrier --+-- pages of the next round
//! main        .. FLUSH --------'              '-- next record
//! ```
//! A source writes SYNC on every channel, and then a marker on the main channel. In per-round mode the marker is a word
//! (MULTIFD_FLUSH), in per-section mode the end of every RAM section. A destination's channel stops behind its SYNC, its main
//! channel at the marker, and they go on when all are there. Stock destinations wait for ever and say nothing; the barrier here
//! knows who is missing. Source: `migration/multifd.c`, `multifd_recv_sync_main`; `migration/ram.c`.

use std::fmt;

use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};

/// What the main channel's marker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncMode {
    /// Every EOS word of a RAM section (`multifd-flush-after-each-section`, and every release up to 8.0).
    PerSection,
    /// MULTIFD_FLUSH words.
    PerRound,
}

impl fmt::Display for SyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerSection => "per-section",
            Self::PerRound => "per-round",
        })
    }
}

/// Where in a RAM section a source may have to synchronise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncPlace {
    /// Before the EOS of START.
    Setup,
    /// When the scan of RAM has come round, in PART or END.
    Round,
    /// Before the EOS of PART.
    SectionEnd,
    /// Before the EOS of END.
    Completion,
    /// Before every EOS behind the switch to postcopy, when pages come on other channels.
    Postcopy,
}

/// What a source does there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Synchronisation {
    /// SYNC on every channel.
    pub sync: bool,
    /// MULTIFD_FLUSH on the main channel, behind it.
    pub flush: bool,
}

impl SyncMode {
    /// The mode of a source or destination of that dialect. `None` for `any`: the first RAM section shows it.
    pub fn of(dialect: Dialect) -> Option<Self> {
        match dialect {
            Dialect::ANY => None,
            _ if dialect.has(Difference::MultifdFlush) => Some(Self::PerRound),
            _ => Some(Self::PerSection),
        }
    }
}

impl Synchronisation {
    /// What a source of that dialect does at `place`; the newest one for `any`.
    pub fn at(place: SyncPlace, dialect: Dialect) -> Self {
        let dialect = if dialect == Dialect::ANY { Dialect::newest() } else { dialect };
        let nothing = Self::default();
        let plain = Self { sync: true, flush: false };
        let flush = Self { sync: true, flush: true };
        match (SyncMode::of(dialect), place) {
            (_, SyncPlace::Postcopy) if dialect.has(Difference::MultifdPostcopySync) => plain,
            (_, SyncPlace::Postcopy) | (Some(SyncMode::PerSection), SyncPlace::Round) => nothing,
            (Some(SyncMode::PerSection), _) => plain,
            (_, SyncPlace::Setup | SyncPlace::Round) => flush,
            (_, SyncPlace::SectionEnd) => nothing,
            (_, SyncPlace::Completion) if dialect.has(Difference::MultifdCompletionFlush) => flush,
            (_, SyncPlace::Completion) if dialect.has(Difference::MultifdTrailingSync) => plain,
            (_, SyncPlace::Completion) => nothing,
        }
    }
}

/// How a channel has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Closed,
    Failed,
}

/// The destination's side: who has come how far.
///
/// Everybody goes on, channels behind their n-th SYNC and the main channel behind its n-th marker, once all of them have come there: a
/// channel that went on earlier could place a page that another one still has to overwrite with an older one.
#[derive(Clone, Debug, Default)]
pub struct Barrier {
    channels: Vec<(u8, u64, Fate)>,
    markers: u64,
}

impl Barrier {
    /// A barrier for these channels.
    pub fn new(ids: impl IntoIterator<Item = u8>) -> Self {
        Self { channels: ids.into_iter().map(|id| (id, 0, Fate::Open)).collect(), markers: 0 }
    }

    /// Channels that take part.
    pub fn ids(&self) -> impl Iterator<Item = u8> {
        self.channels.iter().map(|(id, ..)| *id)
    }

    /// One more channel, which must come before the first marker is passed.
    pub fn join(&mut self, id: u8) {
        if !self.channels.iter().any(|(other, ..)| *other == id) {
            self.channels.push((id, 0, Fate::Open));
        }
    }

    /// The main channel has come to a marker.
    pub fn mark(&mut self) {
        self.markers += 1;
    }

    /// Markers that the main channel has come to.
    pub fn markers(&self) -> u64 {
        self.markers
    }

    /// Channel `id` has come to a SYNC.
    pub fn arrive(&mut self, id: u8) {
        if let Some((_, syncs, _)) = self.channel(id) {
            *syncs += 1;
        }
    }

    /// Channel `id` has ended between two packets, which it may do at any time.
    pub fn close(&mut self, id: u8) {
        if let Some((_, _, fate)) = self.channel(id)
            && *fate == Fate::Open
        {
            *fate = Fate::Closed;
        }
    }

    /// Channel `id` cannot go on.
    pub fn fail(&mut self, id: u8) {
        if let Some((_, _, fate)) = self.channel(id) {
            *fate = Fate::Failed;
        }
    }

    /// Whether channel `id` may read on behind its last SYNC.
    pub fn may_read(&self, id: u8) -> bool {
        let passed = self.passed();
        self.channels.iter().all(|(other, syncs, _)| *other != id || *syncs <= passed)
    }

    /// Whether the main channel may go on behind its last marker.
    ///
    /// # Errors
    /// If it never will: a channel has ended before its SYNC. A stock destination hangs then.
    pub fn may_go_on(&self) -> Result<bool> {
        for (id, syncs, fate) in &self.channels {
            if *syncs < self.markers && *fate != Fate::Open {
                let how = if *fate == Fate::Failed { "has failed" } else { "was closed" };
                let message = format!(
                    "multifd channel {id} {how} after {syncs} SYNC packets, and the main channel has come to its \
                     synchronisation {}; a stock destination waits here for ever",
                    self.markers
                );
                let error = Error::nowhere(ErrorKind::OutOfOrder, DOING, message);
                return Err(error.on(ChannelId::Multifd(*id)));
            }
        }
        Ok(self.channels.iter().all(|(_, syncs, _)| *syncs >= self.markers))
    }

    /// Channels whose SYNC the main channel waits for.
    pub fn missing(&self) -> impl Iterator<Item = u8> {
        self.channels.iter().filter(|(_, syncs, _)| *syncs < self.markers).map(|(id, ..)| *id)
    }

    /// Channels that stand at a SYNC that no marker has answered. Sources of 9.1 and 9.2 leave one each.
    pub fn waiting(&self) -> impl Iterator<Item = u8> {
        self.channels.iter().filter(|(_, syncs, _)| *syncs > self.markers).map(|(id, ..)| *id)
    }

    /// Whether nothing more will be read on any channel unless the main channel comes to another marker.
    pub fn are_silent(&self) -> bool {
        self.channels.iter().all(|(_, syncs, fate)| *fate != Fate::Open || *syncs > self.markers)
    }

    /// Channels on which something may come now. One that stands at a SYNC which others have not come to brings nothing until they do.
    pub fn open(&self) -> usize {
        let passed = self.passed();
        self.channels.iter().filter(|(_, syncs, fate)| *fate == Fate::Open && *syncs <= passed).count()
    }

    /// The error for a main channel that has waited for too long.
    pub fn overdue(&self) -> Error {
        let missing: Vec<String> = self.missing().map(|id| id.to_string()).collect();
        let message = format!(
            "synchronisation {} did not come about: no SYNC on multifd channel {}; a stock destination waits here for ever \
             (multifd-channels must be the same on both ends, and so must multifd-flush-after-each-section)",
            self.markers,
            missing.join(", ")
        );
        Error::nowhere(ErrorKind::Timeout, DOING, message)
    }

    /// Synchronisations that everybody has come to.
    fn passed(&self) -> u64 {
        let is_passed = self.channels.iter().all(|(_, syncs, _)| *syncs >= self.markers);
        self.markers - u64::from(!is_passed)
    }

    fn channel(&mut self, id: u8) -> Option<&mut (u8, u64, Fate)> {
        self.channels.iter_mut().find(|(other, ..)| *other == id)
    }
}

const DOING: &str = "synchronising";

#[cfg(test)]
mod tests {
    use super::*;

    fn at(place: SyncPlace, dialect: &str) -> &'static str {
        match Synchronisation::at(place, dialect.parse().unwrap()) {
            Synchronisation { sync: false, flush: false } => "-",
            Synchronisation { sync: true, flush: false } => "sync",
            Synchronisation { sync: true, flush: true } => "sync+flush",
            Synchronisation { sync: false, flush: true } => "flush alone",
        }
    }

    #[test]
    fn each_release_where_it_does() {
        use SyncPlace::{Completion, Round, SectionEnd, Setup};
        let all = |dialect| [Setup, Round, SectionEnd, Completion].map(|place| at(place, dialect));
        for old in ["5.2", "7.2", "8.0", "8.1-on-8.0", "10.0-on-5.2", "11.1-on-8.0"] {
            assert_eq!(all(old), ["sync", "-", "sync", "sync"], "{old}");
        }
        for middle in ["8.1", "8.2", "9.0"] {
            assert_eq!(all(middle), ["sync+flush", "sync+flush", "-", "sync+flush"], "{middle}");
        }
        for trailing in ["9.1", "9.2"] {
            assert_eq!(all(trailing), ["sync+flush", "sync+flush", "-", "sync"], "{trailing}");
        }
        for new in ["10.0", "11.1", "any", "11.1-on-8.1"] {
            assert_eq!(all(new), ["sync+flush", "sync+flush", "-", "-"], "{new}");
        }
        assert_eq!(SyncMode::of(Dialect::ANY), None);
    }

    #[test]
    fn all_wait_for_all() {
        let mut barrier = Barrier::new([0, 1]);
        assert!(barrier.may_read(0) && barrier.may_go_on().unwrap());
        barrier.arrive(0);
        assert!(!barrier.may_read(0) && barrier.may_read(1));
        barrier.mark();
        assert!(!barrier.may_read(0), "channel 1 may still write what is older");
        assert!(!barrier.may_go_on().unwrap());
        assert_eq!(barrier.missing().collect::<Vec<_>>(), [1]);
        barrier.arrive(1);
        assert!(barrier.may_go_on().unwrap() && barrier.may_read(0) && barrier.may_read(1));
        // Released, and quicker than channel 1.
        barrier.arrive(0);
        assert!(!barrier.may_read(0) && barrier.may_read(1));
        assert_eq!(barrier.waiting().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn who_stands_at_a_sync_brings_nothing() {
        let mut barrier = Barrier::new([0, 1, 2]);
        assert_eq!(barrier.open(), 3);
        barrier.arrive(0);
        assert_eq!(barrier.open(), 2, "the main channel has not come there");
        barrier.mark();
        assert_eq!(barrier.open(), 2, "two others have not");
        barrier.close(0);
        assert_eq!(barrier.open(), 2, "it did not count anyway");
        barrier.arrive(1);
        barrier.arrive(2);
        assert_eq!(barrier.open(), 2, "all but the one that is closed");
        barrier.close(1);
        assert_eq!(barrier.open(), 1);
    }

    #[test]
    fn who_is_gone_is_named() {
        let mut barrier = Barrier::new([0, 1]);
        barrier.arrive(0);
        barrier.arrive(1);
        barrier.close(1);
        barrier.mark();
        assert!(barrier.may_go_on().unwrap(), "closed behind its SYNC");
        barrier.mark();
        let error = barrier.may_go_on().unwrap_err();
        assert_eq!(error.channel(), ChannelId::Multifd(1));
        insta::assert_snapshot!(error.message(), @"multifd channel 1 was closed after 1 SYNC packets, and the main channel has come to its synchronisation 2; a stock destination waits here for ever");
        barrier.fail(1);
        assert!(barrier.may_go_on().unwrap_err().message().contains("has failed"));
        insta::assert_snapshot!(barrier.overdue().message(), @"synchronisation 2 did not come about: no SYNC on multifd channel 0, 1; a stock destination waits here for ever (multifd-channels must be the same on both ends, and so must multifd-flush-after-each-section)");
    }
}
