//! What all threads of a replayed leg share: how far it has come, and what ended it.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::score::Gate;
use crate::endpoint::pace::Limits;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Connection;

/// How often a limit is looked at while something is waited for.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// How far a leg has come.
pub(super) struct Stage {
    limits: Limits,
    begin: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Words of the destination, by kind.
    heard: BTreeMap<u16, usize>,
    /// Bytes of the main channel that are on their way.
    sent: u64,
    /// The destination says nothing any more.
    is_silent: bool,
    failure: Option<Error>,
    connections: Vec<Connection>,
    /// Threads that are still sending.
    voices: usize,
    last: Instant,
}

impl Stage {
    pub(super) fn new(limits: Limits, begin: Instant, connections: Vec<Connection>) -> Self {
        let state = State {
            heard: BTreeMap::new(),
            sent: 0,
            is_silent: false,
            failure: None,
            voices: connections.len(),
            connections,
            last: Instant::now(),
        };
        Self { limits, begin, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits until a gate is open.
    ///
    /// # Errors
    /// What ended the replay meanwhile, or that it takes too long.
    pub(super) fn pass(&self, gate: Gate) -> Result<()> {
        let what = || match gate {
            Gate::Heard(kind, count) => {
                format!("{} number {count} of the destination", crate::wire::MessageKind(kind))
            }
            Gate::Sent(bytes) => format!("{bytes} bytes of the main channel to be sent"),
            Gate::Alone => "all other channels to be sent".to_owned(),
        };
        self.wait(what, |state| match gate {
            Gate::Heard(kind, count) if state.heard.get(&kind).is_some_and(|heard| *heard >= count) => {
                Some(Ok(()))
            }
            Gate::Heard(..) if state.is_silent => Some(Err(gone(what()))),
            Gate::Heard(..) => None,
            Gate::Sent(bytes) => (state.sent >= bytes).then_some(Ok(())),
            Gate::Alone => (state.voices <= 1).then_some(Ok(())),
        })?
    }

    /// Waits until all voices have ended, or one has failed.
    pub(super) fn await_voices(&self) -> Result<()> {
        self.wait(|| "all channels to be sent".to_owned(), |state| (state.voices == 0).then_some(()))
    }

    /// Waits until the destination says nothing any more.
    pub(super) fn await_silence(&self) -> Result<()> {
        self.wait(|| "the end of the return path".to_owned(), |state| state.is_silent.then_some(()))
    }

    fn wait<T>(&self, what: impl Fn() -> String, mut is_there: impl FnMut(&State) -> Option<T>) -> Result<T> {
        let mut state = self.state();
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if let Some(value) = is_there(&state) {
                return Ok(value);
            }
            let is_overdue = self.limits.total.is_some_and(|total| self.begin.elapsed() > total);
            if is_overdue || state.last.elapsed() > self.limits.silence {
                let message = format!("gave up waiting for {}", what());
                return Err(Error::nowhere(ErrorKind::Timeout, "replaying", message));
            }
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn note_heard(&self, kind: u16, count: usize) {
        self.change(|state| {
            state.heard.insert(kind, count);
        });
    }

    pub(super) fn note_sent(&self, sent: u64) {
        self.change(|state| state.sent = sent);
    }

    /// Bytes are going somewhere.
    pub(super) fn note_progress(&self) {
        self.state().last = Instant::now();
    }

    pub(super) fn note_silence(&self) {
        self.change(|state| state.is_silent = true);
    }

    pub(super) fn note_voice(&self) {
        self.change(|state| state.voices -= 1);
    }

    /// The same, but no longer than that, and without being in a hurry for it.
    pub(super) fn await_silence_within(&self, patience: Duration) {
        let mut state = self.state();
        let deadline = Instant::now() + patience;
        while !state.is_silent && Instant::now() < deadline {
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Words of that kind so far.
    pub(super) fn heard(&self, kind: u16) -> usize {
        self.state().heard.get(&kind).copied().unwrap_or(0)
    }

    /// Whether something went wrong.
    pub(super) fn failure(&self) -> Option<Error> {
        self.state().failure.clone()
    }

    /// Something went wrong: nobody waits any more. The first reason counts.
    pub(super) fn fail(&self, error: Error) {
        self.change(|state| {
            state.failure.get_or_insert(error);
            for connection in &state.connections {
                // Who has gone already cannot be told.
                let _ = connection.shutdown();
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        state.last = Instant::now();
        change(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone(what: String) -> Error {
    let message = format!("the destination ended its return path, where the recording goes on behind {what}");
    Error::nowhere(ErrorKind::Peer, "replaying", message)
}
