//! A postcopy migration whose connections broke: it waits for its source to come back.
//!
//! ```text
//! Running --cut--> paused --a connection that begins with a command--> bitmaps, RESUME --> Running
//! ```
//! A stock destination needs `migrate-recover` to listen again; this one listens all the time. Before RUN nothing is recovered:
//! the guest still runs at the source, which goes on with it.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::channels::Channels;
use super::doorman::Front;
use super::{Destination, TICK};
use crate::endpoint::notice::Notice;
use crate::endpoint::pace::Pace;
use crate::error::{Error, ErrorKind, Result};
use crate::stream::Parser;
use crate::transport::Connection;

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
            state.let_go(Connection::reset);
            if let Some(main) = state.main.take() {
                // Who has gone already cannot be told.
                let _ = main.reset();
            }
            state.connections.clear();
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
