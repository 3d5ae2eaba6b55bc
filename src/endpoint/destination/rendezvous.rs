//! Where the main channel of a destination waits for the others.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::channels::{Channels, Expected, State};
use super::crowd::Place;
use crate::device_state::TooEarly;
use crate::endpoint::pace::Pace;
use crate::error::{Error, ErrorKind, Result};
use crate::multifd::SyncMode;
use crate::stream::Block;

const DOING: &str = "multifd channels";

/// How long a connection may keep the first synchronisation waiting that has come but says nothing, or has not come although the
/// main channel speaks of multifd.
const GRACE: Duration = Duration::from_millis(500);

/// How long packets of device state that fill the memory wait for a word on the main channel, whose thread may be held up.
const FORBEARANCE: Duration = Duration::from_secs(2);

impl Channels {
    /// The main channel is past its START sections.
    pub(super) fn note_running(&self) {
        self.change(|state| state.running = true);
    }

    /// Something has come that others may wait for.
    pub(super) fn notify(&self) {
        self.change(|state| state.crowd.advance());
    }

    /// Lets channel `id` wait as long as its packet is `too_early` and another channel may bring what it waits for: threads do not get
    /// on equally well, and one that is held up would let the others fill any memory. `false`: nothing can come that would make room.
    ///
    /// For other packets that is so when all channels stand here, and each has looked since the last packet ended; one that was not
    /// woken yet may be the one that goes on. For the main channel it is so when that waits for this one; or when it has had its time, as
    /// it may be silent on purpose.
    pub(super) fn await_room(&self, id: u8, too_early: impl Fn() -> Option<TooEarly>) -> bool {
        let begin = Instant::now();
        let mut place = Place::default();
        loop {
            let turn = self.state().crowd.turn();
            let waits_for = too_early();
            let mut state = self.state();
            let (is_stuck, patience) = match waits_for {
                None => {
                    state.crowd.leave(&place);
                    return true;
                }
                Some(TooEarly::Packet) if !state.crowd.join(turn, &mut place) => continue,
                Some(TooEarly::Packet) => {
                    (state.barrier.open() <= state.crowd.count(), self.settings.limits.silence)
                }
                Some(TooEarly::Start) => (state.barrier.missing().any(|other| other == id), FORBEARANCE),
            };
            if is_stuck || begin.elapsed() > patience || state.end.is_some() {
                return false;
            }
            drop(self.wait(state, GRACE / 50));
        }
    }

    /// Whether nothing can come on any multifd channel: each has ended, or stands at a SYNC that was never answered.
    pub(super) fn are_silent(&self) -> bool {
        self.state().barrier.are_silent()
    }

    /// Channels that stand at a SYNC.
    pub(super) fn waiting(&self) -> Vec<u8> {
        self.state().barrier.waiting().collect()
    }

    /// Waits for more device state. `false`: it has taken too long.
    pub(super) fn wait_for_devices(&self, pace: &Pace) -> bool {
        let Some(patience) = pace.patience() else { return false };
        drop(self.wait(self.state(), patience.min(GRACE / 10)));
        true
    }

    /// The main channel knows how large pages are.
    pub(super) fn set_page_size(&self, page_size: u64) {
        self.change(|state| state.page_size = Some(page_size));
    }

    /// How channels synchronise, as far as it is known.
    pub(super) fn sync_mode(&self) -> Option<SyncMode> {
        self.state().sync_mode
    }

    /// The main channel has come to a marker of that kind: waits for every channel.
    pub(super) fn synchronise(&self, mode: SyncMode, blocks: &[Block], pace: &Pace) -> Result<()> {
        let mut state = self.state();
        if state.blocks.is_none() {
            state.blocks = Some(blocks.into());
        }
        if !state.settled {
            drop(state);
            self.settle(mode, pace)?;
            state = self.state();
        }
        if state.barrier.ids().next().is_none() {
            return Ok(());
        }
        state.sync_mode = Some(mode);
        state.barrier.mark();
        self.changed.notify_all();
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if state.barrier.may_go_on()? {
                return Ok(());
            }
            let Some(patience) = pace.patience() else { return Err(state.barrier.overdue()) };
            state = self.wait(state, patience);
        }
    }

    /// Finds out which channels there are.
    fn settle(&self, mode: SyncMode, pace: &Pace) -> Result<()> {
        let mut state = self.state();
        state.asked += 1;
        let asked = state.asked;
        let begin = Instant::now();
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            let mut ids: Vec<u8> = state.barrier.ids().collect();
            ids.sort_unstable();
            let highest = ids.iter().max().map_or(0, |id| usize::from(*id) + 1);
            let is_settled = match self.settings.expected {
                Expected::Exactly(count) => ids.len() == usize::from(count),
                // A number is missing: its channel must be on its way.
                Expected::Auto if ids.len() < highest => false,
                Expected::Auto => {
                    let is_quiet = state.looked >= asked && state.strangers.is_empty();
                    let is_missing = ids.is_empty() && mode == SyncMode::PerRound;
                    let is_patient = begin.elapsed() < GRACE;
                    if is_missing && !is_patient {
                        return Err(none_connected());
                    }
                    (is_quiet || !is_patient) && !is_missing
                }
            };
            if is_settled {
                state.settled = true;
                return Ok(());
            }
            let Some(patience) = pace.patience() else { return Err(self.absent(&ids, highest)) };
            state = self.wait(state, patience.min(GRACE / 10));
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        // Limits are looked at again every now and then: other channels' progress counts.
        let patience = patience.min(Duration::from_secs(1));
        self.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0
    }

    fn absent(&self, ids: &[u8], highest: usize) -> Error {
        let wanted = match self.settings.expected {
            Expected::Auto if highest == 0 => return none_connected(),
            Expected::Exactly(count) => usize::from(count),
            Expected::Auto => highest,
        };
        let message = format!(
            "{} of {wanted} multifd channels have connected (ids {ids:?}): multifd-channels must be the same on both ends; \
             a stock destination waits for the others for ever",
            ids.len()
        );
        Error::nowhere(ErrorKind::Timeout, DOING, message)
    }
}

fn none_connected() -> Error {
    let message = "the main channel speaks of multifd (MULTIFD_FLUSH), but no multifd channel has connected; their pages would \
                   be missing";
    Error::nowhere(ErrorKind::OutOfOrder, DOING, message)
}
