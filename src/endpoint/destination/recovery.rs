//! A postcopy migration whose connections broke: it waits for its source to come back.
//!
//! ```text
//! Running --cut--> paused --a connection that begins with a command--> bitmaps, RESUME --> Running
//! ```
//! A stock destination needs `migrate-recover` to listen again; this one listens all the time. Before RUN nothing is recovered:
//! the guest still runs at the source, which goes on with it.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::channels::Channels;
use super::doorman::Front;
use super::{Destination, TICK};
use crate::endpoint::notice::Notice;
use crate::endpoint::pace::Pace;
use crate::error::{Error, ErrorKind, Result};
use crate::stream::Parser;

/// How long it may take to notice that the connections are broken, when the source has noticed it.
pub(super) const RETURN: Duration = Duration::from_secs(5);

/// A source that comes back says so sooner than this.
const RETICENCE: Duration = Duration::from_secs(1);

/// The next connection of a migration, and how its main channel is read.
pub(super) struct Resumed {
    pub(super) front: Front,
    pub(super) parser: Parser,
    pub(super) pause: u32,
}

impl Destination {
    /// Waits for the source to come back after `error`.
    ///
    /// # Errors
    /// The same error, if this migration cannot pause or its source does not come.
    pub(super) fn recover(
        &self,
        error: Error,
        parser: &Parser,
        channels: &Channels,
        fronts: Option<&Receiver<Front>>,
        pace: &Pace,
    ) -> Result<Resumed> {
        let is_break = matches!(error.kind(), ErrorKind::Io | ErrorKind::Truncated);
        let (Some(fronts), Some(parser)) = (fronts, parser.resumed()) else { return Err(error) };
        if !is_break || self.recover.is_zero() {
            return Err(error);
        }
        // A channel that has seen the connections break may have more to say about it than the main channel.
        let error = channels.take_interruption().unwrap_or(error);
        if let Some(failure) = channels.failure() {
            return Err(failure);
        }
        let pause = channels.pause();
        self.tell(&Notice::Paused(error.clone()));
        let front = self.await_return(&error, fronts, pace)?;
        channels.resume();
        pace.note_record();
        self.tell(&Notice::Resumed(pause));
        Ok(Resumed { front, parser, pause })
    }

    fn await_return(&self, error: &Error, fronts: &Receiver<Front>, pace: &Pace) -> Result<Front> {
        let begin = Instant::now();
        loop {
            match fronts.recv_timeout(TICK) {
                Ok(front) => return Ok(front),
                Err(RecvTimeoutError::Timeout) if begin.elapsed() < self.recover && !pace.is_overdue() => {}
                Err(_) => return Err(abandoned(error, begin.elapsed())),
            }
        }
    }

    pub(super) fn tell(&self, notice: &Notice) {
        if let Some(listener) = &self.notices {
            listener(notice);
        }
    }
}

fn abandoned(error: &Error, waited: Duration) -> Error {
    let message = format!(
        "postcopy is paused, and its source did not come back within {:.0} s; it paused because of: {error}",
        waited.as_secs_f64()
    );
    Error::nowhere(ErrorKind::Timeout, "recovery", message)
}

impl Channels {
    /// The guest runs here: what breaks from now on is a pause, if pauses are survived at all.
    pub(super) fn note_recoverable(&self) {
        self.change(|state| state.can_pause = true);
    }

    /// Whether it is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.state().paused
    }

    /// Whether there is, or was, a main channel, which a source that comes back may have overtaken.
    pub(super) fn has_begun(&self, patience: Duration) -> bool {
        let begin = Instant::now();
        let mut state = self.state();
        while !state.has_main && state.pauses == 0 {
            if state.end.is_some() || begin.elapsed() > patience {
                return false;
            }
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The source comes back on a new connection: waits until the old one is known to be broken, which it is now. `false`: nothing can
    /// be paused.
    pub(super) fn await_pause(&self) -> bool {
        let begin = Instant::now();
        let mut state = self.state();
        while !state.paused {
            if state.end.is_some() || begin.elapsed() > RETURN {
                return false;
            }
            // What has arrived on it is still read.
            if state.can_pause && state.interruption.is_none() {
                let message = "the source has come back on another connection";
                state.interruption = Some(Error::nowhere(ErrorKind::Io, "receiving", message));
                if let Some(main) = &state.main {
                    let _ = main.shutdown_read();
                }
            }
            let waited = self.changed.wait_timeout(state, TICK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// How often the connections broke.
    pub(super) fn pauses(&self) -> u32 {
        self.state().pauses
    }

    /// What has broken first, if it was not the main channel.
    fn take_interruption(&self) -> Option<Error> {
        self.state().interruption.take()
    }

    /// Ends all connections, and lets the next main channel in. Returns how many pauses there were with this one.
    fn pause(&self) -> u32 {
        if let Some(paging) = &mut *self.paging() {
            paging.pause();
        }
        self.change(|state| {
            state.paused = true;
            state.pauses += 1;
            // A young stranger may be the source that comes back already; an old one is a preempt channel that had nothing to say.
            let strangers = std::mem::take(&mut state.strangers);
            let (old, young): (Vec<_>, Vec<_>) =
                strangers.into_iter().partition(|stranger| stranger.since.elapsed() > RETICENCE);
            state.strangers = young;
            let old = old.into_iter().map(|stranger| stranger.connection);
            let known = std::mem::take(&mut state.connections);
            for connection in known.into_iter().chain(state.main.take()).chain(old) {
                // Who has gone already cannot be told.
                let _ = connection.reset();
            }
            state.has_main = false;
            state.pauses
        })
    }

    fn resume(&self) {
        self.change(|state| {
            state.paused = false;
            state.interruption = None;
        });
    }
}
