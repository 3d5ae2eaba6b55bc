//! What the destination answers, as far as a cut has to wait for it.
//!
//! ```text
//! main channel --> Breaks: PINGs of the package --note_ping--> Pongs <--hear-- Ear <-- return path
//!                  a cut behind RUN -------------await-----------'
//! ```
//! A stock destination hears the rest of the main channel on a thread of its own from LISTEN on, while it is still loading the package.
//! If that thread meets the end before RUN has been executed, the destination fails instead of pausing. It answers the PINGs that stand
//! in the package when it gets there, and the last of them stand just in front of RUN.

use std::io::Read as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::{ChannelParser as _, Step, Tail};
use crate::limits::MAX_COMPLAINTS;
use crate::postcopy::{PACKAGE_LOADED, Reply, ReturnParser};
use crate::transport::Connection;
use crate::wire::Message;

/// Longest wait for answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time in which a destination gets from the last PING of the package to RUN, which comes next.
const TO_RUN: Duration = Duration::from_millis(50);

/// Time in which a source that has asked whether the package is loaded acts on the answer. Before that it does not pause either
/// (`postcopy-device`), and it looks up every tenth of a second only when it keeps to a bandwidth.
const TO_ACT: Duration = Duration::from_millis(500);

/// How much is taken from a source in that time, and how often: 6 MiB a second.
const LOST: usize = 64 << 10;
const STEP: Duration = Duration::from_millis(10);

/// PINGs of the package, and who waits for their PONGs.
#[derive(Debug, Default)]
pub(super) struct Pongs {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    awaited: Vec<u32>,
    /// When the last of them was answered.
    answered: Option<Instant>,
    /// The source waits for an answer, too.
    source_waits: bool,
    /// The connections are broken: nothing will be answered any more.
    broken: bool,
}

impl Pongs {
    /// A PING of the package, which has not been passed on yet.
    pub(super) fn note_ping(&self, value: u32) {
        let mut state = self.state();
        state.source_waits |= value == PACKAGE_LOADED;
        if state.awaited.len() < MAX_COMPLAINTS {
            state.awaited.push(value);
        }
    }

    /// The connections are broken. What was asked over them is not answered over others.
    pub(super) fn give_up(&self) {
        self.state().broken = true;
        self.changed.notify_all();
    }

    /// Waits until a destination that has been given RUN, and its source, can survive that the connections break; or for as long as may
    /// be. At once, if that was long ago.
    pub(super) fn wait(&self, source: Option<&Connection>) {
        let begin = Instant::now();
        let mut state = self.state();
        while !state.awaited.is_empty() && !state.broken {
            let Some(left) = PATIENCE.checked_sub(begin.elapsed()) else { return };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let (rest, mut source) = if state.source_waits { (TO_ACT, source) } else { (TO_RUN, None) };
        let until = state.answered.unwrap_or(begin) + rest;
        while !state.broken {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state =
                self.changed.wait_timeout(state, left.min(STEP)).unwrap_or_else(PoisonError::into_inner).0;
            drop(state);
            source = source.filter(|source| lose_some(source));
            state = self.state();
        }
    }

    fn note_pong(&self, value: u32) {
        let mut state = self.state();
        let before = state.awaited.len();
        state.awaited.retain(|awaited| *awaited != value);
        if state.awaited.is_empty() && before > 0 {
            state.answered = Some(Instant::now());
        }
        drop(state);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes bytes that the cut loses from a source, which could not act as long as it cannot write; little enough that it does not come to
/// its end. Whether there may be more.
fn lose_some(mut source: &Connection) -> bool {
    let mut lost = vec![0; LOST];
    let is_timed = source.set_read_timeout(Some(STEP / 10)).is_ok();
    is_timed && !matches!(source.read(&mut lost), Ok(0))
}

/// Listens to what comes from a target. PONGs come over the main channel only, so that it need not know which connection this is.
pub(super) fn listen(target: &Connection, pongs: &Arc<Pongs>) -> Connection {
    let (pongs, hearing) = (Arc::clone(pongs), Mutex::new(Some(Hearing::default())));
    target.overheard(move |bytes| {
        let mut hearing = hearing.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on =
            hearing.as_mut().is_none_or(|hearing| hearing.take(bytes, |value| pongs.note_pong(value)));
        if !goes_on {
            *hearing = None;
        }
    })
}

#[derive(Debug, Default)]
struct Hearing {
    parser: ReturnParser,
    rest: Vec<u8>,
}

impl Hearing {
    /// Whether it can be read any further.
    fn take(&mut self, bytes: &[u8], mut pong: impl FnMut(u32)) -> bool {
        self.rest.extend_from_slice(bytes);
        let mut taken = 0;
        let goes_on = loop {
            match self.parser.step(&self.rest[taken..], Tail::Open) {
                Ok(Step::More(_)) => break true,
                Ok(Step::Event(located)) => {
                    taken += located.raw.len();
                    if let Reply::Message(Message::Pong(value)) = located.event {
                        pong(value);
                    }
                }
                Ok(Step::End) | Err(_) => break false,
            }
        };
        self.rest.drain(..taken);
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::thread;

    use super::*;
    use crate::transport::memory;
    use crate::wire::{MessageKind, Wire as _};

    fn said(messages: &[Message<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.emit(&mut bytes));
        bytes
    }

    #[test]
    fn waits_for_the_last_pong_however_it_comes() {
        let pongs = Arc::new(Pongs::default());
        [3, PACKAGE_LOADED].into_iter().for_each(|value| pongs.note_ping(value));
        let (ours, mut theirs) = memory::pair();
        let mut heard = listen(&ours, &pongs);
        let bytes = said(&[
            Message::Pong(1),
            Message::Pong(3),
            Message::ReqPages { start: 0, length: 0x1000 },
            Message::Pong(PACKAGE_LOADED),
        ]);
        let waiter = {
            let pongs = Arc::clone(&pongs);
            thread::spawn(move || pongs.wait(None))
        };
        for byte in &bytes {
            assert!(!waiter.is_finished());
            theirs.write_all(&[*byte]).unwrap();
            let mut got = [0];
            heard.read_exact(&mut got).unwrap();
            assert_eq!(got, [*byte], "it only listens");
        }
        let begin = Instant::now();
        waiter.join().unwrap();
        assert!(begin.elapsed() < PATIENCE / 2);
        assert!(pongs.state().awaited.is_empty());
    }

    #[test]
    fn a_source_that_has_to_act_is_not_held_up() {
        let pongs = Pongs::default();
        pongs.note_ping(PACKAGE_LOADED);
        pongs.note_pong(PACKAGE_LOADED);
        let (ours, theirs) = memory::pair();
        theirs.set_write_timeout(Some(PATIENCE)).unwrap();
        let writer = {
            let mut theirs = theirs.clone();
            thread::spawn(move || theirs.write_all(&vec![0; 1 << 20]))
        };
        pongs.wait(Some(&ours));
        writer.join().unwrap().unwrap();
        // One that has gone is not waited for in another way.
        let pongs = Pongs::default();
        pongs.note_ping(PACKAGE_LOADED);
        pongs.note_pong(PACKAGE_LOADED);
        theirs.shutdown().unwrap();
        let begin = Instant::now();
        pongs.wait(Some(&ours));
        assert!(begin.elapsed() >= TO_ACT / 2 && begin.elapsed() < PATIENCE);
    }

    #[test]
    fn does_not_wait_for_the_broken_or_the_mad() {
        let pongs = Arc::new(Pongs::default());
        pongs.note_ping(3);
        let (ours, mut theirs) = memory::pair();
        let mut heard = listen(&ours, &pongs);
        let mad =
            [said(&[Message::Other { kind: MessageKind(0x4242), payload: b"" }]), said(&[Message::Pong(3)])]
                .concat();
        theirs.write_all(&mad).unwrap();
        heard.read_exact(&mut vec![0; mad.len()]).unwrap();
        assert_eq!(pongs.state().awaited, [3], "nobody knows where the next message begins");
        let begin = Instant::now();
        pongs.give_up();
        pongs.wait(None);
        assert!(begin.elapsed() < PATIENCE / 2);
    }
}
