//! Connections through the proxy that break, on purpose or by themselves, and postcopy migrations that survive it.
//!
//! ```text
//! main channel --> Breaks: Parser (where RUN and RESUME are) --> Cuts --> so many bytes may pass
//!                     '-- a cut: all connections are reset; the next one that begins with a command is the main channel again
//! ```
//! A cut that comes soon behind RUN waits until both ends can survive it (`ear`).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ear::{self, Pongs};
use crate::channel::{ChannelParser as _, Step, Tail};
use crate::endpoint::fault::Cuts;
use crate::endpoint::notice::{self, Notice};
use crate::error::{ChannelId, Error, ErrorKind};
use crate::stream::{Event, Parser, Phase};
use crate::transport::Connection;
use crate::wire::Command;

/// What the proxy knows of pauses.
pub(super) struct Breaks {
    /// How long it waits for the source to come back; zero: a break is the end.
    pub(super) recover: Duration,
    notices: Option<notice::Listener>,
    pauses: AtomicU32,
    /// The connections are broken, and the source has not come back.
    paused: AtomicBool,
    /// The main channel has come to its end.
    finished: AtomicBool,
    main: Mutex<Main>,
    pongs: Arc<Pongs>,
}

/// The main channel, as it passes.
#[derive(Default)]
struct Main {
    cuts: Cuts,
    /// `None`: nobody needs to know where it stands, or it cannot be read.
    parser: Option<Parser>,
    rest: Vec<u8>,
}

impl Breaks {
    pub(super) fn new(cuts: Cuts, recover: Duration, notices: Option<notice::Listener>) -> Self {
        let parser = (!cuts.is_empty() || !recover.is_zero()).then(Parser::new);
        Self {
            recover,
            notices,
            pauses: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            main: Mutex::new(Main { cuts, parser, rest: Vec::new() }),
            pongs: Arc::default(),
        }
    }

    /// How often the connections broke.
    pub(super) fn pauses(&self) -> u32 {
        self.pauses.load(Ordering::Acquire)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Whether the source may still come back.
    pub(super) fn may_return(&self) -> bool {
        !self.recover.is_zero() && !self.finished.load(Ordering::Acquire)
    }

    /// So many of `bytes` of the main channel may pass; behind them comes a cut if it is fewer.
    pub(super) fn admit(&self, bytes: &[u8]) -> usize {
        let mut main = self.main();
        if main.parser.is_none() && main.cuts.is_empty() {
            return bytes.len();
        }
        let is_over = main.follow(bytes, &self.pongs);
        let admitted = main.cuts.admit(bytes.len());
        main.cuts.note_passed(admitted as u64);
        if is_over && admitted == bytes.len() {
            self.finished.store(true, Ordering::Release);
        }
        admitted
    }

    /// Whether the connections are to be cut now.
    pub(super) fn is_due(&self) -> bool {
        self.main().cuts.is_due()
    }

    /// The end of a new connection at the target, listened to if a cut may have to wait for what is said there.
    pub(super) fn overhear(&self, target: Connection) -> Connection {
        match self.pauses() == 0 && !self.main().cuts.is_empty() {
            true => ear::listen(&target, &self.pongs),
            false => target,
        }
    }

    /// Nobody has to wait for answers any more.
    pub(super) fn give_up(&self) {
        self.pongs.give_up();
    }

    /// Waits with the cut that is due, if one is, until both ends can survive it. `false`: the connections have broken by themselves.
    pub(super) fn may_cut(&self, source: Option<&Connection>) -> bool {
        let pauses = self.pauses();
        // Bytes may be counted from the beginning, too, and before RUN nothing is survived. Behind a pause both ends are ready.
        let main = self.main();
        let may_wait = pauses == 0 && main.cuts.is_due() && main.cuts.has_run();
        drop(main);
        if may_wait {
            self.pongs.wait(source);
        }
        self.pauses() == pauses
    }

    /// The connections are broken, for that reason; `false` if they were already.
    pub(super) fn pause(&self, reason: Option<Error>) -> bool {
        if self.paused.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.pauses.fetch_add(1, Ordering::AcqRel);
        self.give_up();
        let cut = self.main().cuts.take();
        let error = match (cut, reason) {
            (Some(cut), _) => Error::nowhere(ErrorKind::Io, "forwarding", format!("cut on purpose at {cut}")),
            (None, Some(reason)) => reason,
            (None, None) => Error::nowhere(ErrorKind::Io, "forwarding", "all connections have ended"),
        };
        self.tell(&Notice::Paused(error));
        true
    }

    /// The main channel goes on over a new connection; which one it is.
    pub(super) fn resume(&self) -> ChannelId {
        let pauses = self.pauses();
        let mut main = self.main();
        main.cuts.note_connection();
        main.rest.clear();
        main.parser = main.parser.as_ref().and_then(Parser::resumed);
        drop(main);
        self.paused.store(false, Ordering::Release);
        self.tell(&Notice::Resumed(pauses));
        ChannelId::Resumed(pauses)
    }

    fn tell(&self, notice: &Notice) {
        if let Some(listener) = &self.notices {
            listener(notice);
        }
    }

    fn main(&self) -> MutexGuard<'_, Main> {
        self.main.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Main {
    /// Reads on, and looks for the places to cut at. Whether the channel has come to its end.
    fn follow(&mut self, bytes: &[u8], pongs: &Pongs) -> bool {
        let Some(parser) = &mut self.parser else { return false };
        self.rest.extend_from_slice(bytes);
        let mut taken = 0;
        let is_readable = loop {
            match parser.step(&self.rest[taken..], Tail::Open) {
                Ok(Step::More(_)) => break true,
                Ok(Step::Event(located)) => {
                    taken += located.raw.len();
                    if let Event::Command(command) = &located.event {
                        self.cuts.note_command(command, located.range.end);
                        if let (Command::Ping(value), Some(_)) = (command, parser.grammar().package_end()) {
                            pongs.note_ping(*value);
                        }
                    }
                }
                // What it cannot read it still passes on.
                Ok(Step::End) | Err(_) => break false,
            }
        };
        self.rest.drain(..taken);
        let grammar = parser.grammar();
        let is_over =
            matches!(grammar.phase(), Phase::AfterEof | Phase::DescriptionText { .. } | Phase::Trailing)
                && grammar.package_end().is_none();
        if !is_readable {
            self.parser = None;
            self.rest = Vec::new();
        }
        is_over
    }
}
