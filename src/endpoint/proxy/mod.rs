//! Recording proxy: stands between a source and a destination, and changes nothing.
//!
//! ```text
//! source --> Listener --> pump "proxy-0-to-target" --> target
//!        <--              pump "proxy-0-to-source" <--
//!                           '--> ChannelTap, once the bytes are on their way
//! ```
//! One connection to the target for every connection that is accepted, in that order, and one thread a direction. The end of
//! a direction is passed on as such. What a connection is (main, multifd, preempt) is told by its first bytes, as a
//! destination does (`migration/migration.c`, `migration_ioc_process_incoming`).

mod aside;
mod breaks;
mod fast;
mod pump;
mod troubled;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::fault::{Cut, Cuts};
use super::notice::{self, Notice};
use super::pace::Limits;
use crate::capture::{Direction, Recorder, interface_name};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::transport::{self, Address, Connection, Listener};
use crate::trouble::Script;
use aside::Backlog;
use breaks::Breaks;
use pump::{Ends, Pump};
use troubled::Troubles;
pub use troubled::{Trouble, Troubled};

const DOING: &str = "forwarding";

/// How often the limits are looked at, and how long the end of the last connection may go unnoticed. A source that opens a
/// connection just after another one ended is still served.
const TICK: Duration = Duration::from_millis(50);

/// How long the other connections may go on after one has failed. Both sides learn of it and close them by themselves.
const GRACE: Duration = Duration::from_secs(1);

/// Longest wait for the target to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Connections at a time: 255 multifd channels, main and preempt channel, and those of an attempt before that are not
/// closed yet. Each takes two threads.
const MAX_CONNECTIONS: usize = 520;

/// A proxy to one target.
pub struct Proxy {
    target: Address,
    limits: Limits,
    recorder: Option<Recorder>,
    cuts: Vec<Cut>,
    recover: Duration,
    recover_target: Option<Address>,
    notices: Option<notice::Listener>,
    trouble: Script,
}

/// What has passed through a proxy.
#[derive(Debug)]
pub struct Passage {
    /// Connections in the order in which they were accepted.
    pub connections: Vec<Passed>,
    /// How often all connections broke and the source came back, or should have.
    pub pauses: u32,
    /// Time from the first connection to the end of the last one.
    pub elapsed: Duration,
    /// Every rule of the script of trouble, and where it was carried out.
    pub trouble: Vec<Trouble>,
    /// The first failure; `None` if every connection ended in order. Trouble has consequences.
    pub error: Option<Error>,
}

/// What has passed over one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// What it was, as its interface in a recording is named.
    pub channel: String,
    /// Bytes from the source to the target.
    pub to_target: u64,
    /// Bytes from the target to the source.
    pub to_source: u64,
}

impl Passage {
    /// Bytes of all connections, both ways.
    pub fn bytes(&self) -> u64 {
        self.connections.iter().map(|c| c.to_target + c.to_source).sum()
    }
}

impl Proxy {
    /// A proxy that opens `target` for every connection it accepts.
    pub fn new(target: Address) -> Self {
        let limits = Limits { silence: Duration::from_secs(300), total: None };
        Self {
            target,
            limits,
            recorder: None,
            cuts: Vec::new(),
            recover: Duration::ZERO,
            recover_target: None,
            notices: None,
            trouble: Script::default(),
        }
    }

    /// The same, recording all connections. The caller finishes the recording.
    #[must_use]
    pub fn with_recorder(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// The same, with that much patience. Silence is the time in which no byte passes on any connection, once there is one;
    /// a migration that is paused is silent.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same, breaking all connections there, one after the other.
    #[must_use]
    pub fn with_cuts(mut self, cuts: impl IntoIterator<Item = Cut>) -> Self {
        self.cuts = cuts.into_iter().collect();
        self
    }

    /// The same, waiting so long for the source of a postcopy migration to come back when its connections broke; it is led to `target`
    /// then, if there is another one.
    #[must_use]
    pub fn with_recovery(mut self, patience: Duration, target: Option<Address>) -> Self {
        self.recover = patience;
        self.recover_target = target;
        self
    }

    /// The same, with trouble on the way. A recording holds what was sent on.
    #[must_use]
    pub fn with_trouble(mut self, script: Script) -> Self {
        self.trouble = script;
        self
    }

    /// The same, telling `listener` what happens on the way.
    #[must_use]
    pub fn with_notices(mut self, listener: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.notices = Some(Arc::new(listener));
        self
    }

    /// Forwards until every connection is over; at least one has to come. `watch` is told how many bytes have passed, some
    /// times a second.
    pub fn run(self, listener: &Listener, mut watch: impl FnMut(u64)) -> Passage {
        let cuts = Cuts::new(self.cuts.iter().copied());
        let breaks = Breaks::new(cuts, self.recover, self.notices.clone());
        let troubles = (!self.trouble.rules.is_empty())
            .then(|| Troubles::new(self.trouble.clone(), self.target.clone()));
        let shared = Arc::new(Shared::new(breaks, self.is_blind(), troubles));
        let mut lines: Vec<Line> = Vec::new();
        let begin = Instant::now();
        let mut first = None;
        let mut idle = false;
        let mut alone: Option<Instant> = None;
        while shared.failure().is_none() {
            if let Err(error) = self.look_at_the_clock(&shared, begin, !lines.is_empty()) {
                shared.fail(error);
                break;
            }
            match listener.accept(Some(TICK)) {
                Ok(Some(source)) => {
                    first.get_or_insert_with(Instant::now);
                    idle = false;
                    shared.note_activity();
                    match self.open(source, lines.len(), &shared) {
                        Ok(line) => lines.push(line),
                        Err(error) => shared.fail(error),
                    }
                    continue;
                }
                // There was one connection, and will be no other: the tick has to be waited for.
                Ok(None) => thread::sleep(TICK),
                Err(error) if error.kind() == ErrorKind::Timeout => {}
                Err(error) => shared.fail(error),
            }
            watch(shared.bytes.load(Ordering::Relaxed));
            // Idle for a whole tick: whoever wanted to connect has done so.
            let is_idle = !lines.is_empty() && shared.pumps.load(Ordering::Acquire) == 0;
            if is_idle && (idle || !listener.is_socket()) {
                // A migration that broke off may go on.
                let since = *alone.get_or_insert_with(Instant::now);
                if !shared.breaks.may_return() || !listener.is_socket() || since.elapsed() >= self.recover {
                    break;
                }
                shared.breaks.pause(None);
                shared.note_activity();
            } else if !is_idle {
                alone = None;
            }
            idle = is_idle;
        }
        let connections = close(&lines, &shared, self.limits.silence);
        let elapsed = first.map_or(Duration::ZERO, |first| first.elapsed());
        let pauses = shared.breaks.pauses();
        if shared.breaks.is_paused() && shared.breaks.may_return() {
            let message = "postcopy is paused, and its source did not come back in time";
            shared.fail(Error::nowhere(ErrorKind::Timeout, DOING, message));
        }
        let trouble =
            shared.troubles.as_ref().map(|troubles| Trouble::of(&troubles.script, &troubles.done()));
        let error = shared.failure();
        Passage { connections, pauses, elapsed, trouble: trouble.unwrap_or_default(), error }
    }

    /// Whether what passes may do so unseen, once its first bytes have said what it is.
    fn is_blind(&self) -> bool {
        self.cuts.is_empty() && self.recover.is_zero()
    }

    fn look_at_the_clock(&self, shared: &Shared, begin: Instant, begun: bool) -> Result<()> {
        let message = if self.limits.total.is_some_and(|total| begin.elapsed() >= total) {
            "the migration took longer than it may".to_owned()
        } else if begun && shared.silence() >= self.limits.silence {
            format!("nothing passed on any connection for {:?}", self.limits.silence)
        } else {
            return Ok(());
        };
        Err(Error::nowhere(ErrorKind::Timeout, DOING, message))
    }

    /// Opens the target for a connection and begins to forward.
    fn open(&self, source: Connection, number: usize, shared: &Arc<Shared>) -> Result<Line> {
        if shared.pumps.load(Ordering::Acquire) >= 2 * MAX_CONNECTIONS {
            let message = format!("more than {MAX_CONNECTIONS} connections at a time");
            return Err(Error::nowhere(ErrorKind::TooLarge, DOING, message));
        }
        let target = self.reach(shared)?;
        let provisional = ChannelId::Connection(number as u32);
        let tap = self.recorder.as_ref().map(|recorder| recorder.channel(interface_name(provisional)));
        if let Some(tap) = &tap {
            let _ = tap.set_description(format!("{} to {}", source.peer(), target.peer()));
        }
        let ends = Arc::new(Ends {
            source,
            target,
            tap,
            leg: shared.breaks.pauses(),
            channel: Mutex::new(provisional),
            is_cut: AtomicBool::new(false),
            is_half_over: AtomicBool::new(false),
            passed: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        shared.ends.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&ends));
        let mut threads = Vec::new();
        for (direction, can_pass, name) in [
            (Direction::ToDestination, ends.source.can_read() && ends.target.can_write(), "to-target"),
            (Direction::ToSource, ends.target.can_read() && ends.source.can_write(), "to-source"),
        ] {
            if !can_pass {
                continue;
            }
            let pump = Pump { ends: Arc::clone(&ends), direction, shared: Arc::clone(shared), number };
            shared.pumps.fetch_add(1, Ordering::AcqRel);
            let thread =
                thread::Builder::new().name(format!("proxy-{number}-{name}")).spawn(move || pump.run());
            threads.push(thread.map_err(|e| {
                shared.pumps.fetch_sub(1, Ordering::AcqRel);
                ends.shutdown();
                Error::io(DOING, "a thread cannot be started", e)
            })?);
        }
        Ok(Line { ends, threads: Mutex::new(threads) })
    }
}

impl Proxy {
    /// Connects to the target. After a pause it listens again when somebody has told it to.
    fn reach(&self, shared: &Shared) -> Result<Connection> {
        let patience = CONNECT.min(self.limits.silence);
        if shared.breaks.pauses() == 0 {
            return transport::connect(&self.target, patience);
        }
        let target = self.recover_target.as_ref().unwrap_or(&self.target);
        let begin = Instant::now();
        loop {
            match transport::connect(target, patience) {
                Err(_) if begin.elapsed() < self.recover => thread::sleep(TICK),
                reached => return reached,
            }
        }
    }
}

/// Waits for all pumps, makes them end if something has failed, and counts what they have moved.
fn close(lines: &[Line], shared: &Shared, patience: Duration) -> Vec<Passed> {
    if shared.failure().is_some() {
        let deadline = Instant::now() + GRACE;
        while shared.pumps.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            thread::sleep(TICK / 10);
        }
        lines.iter().for_each(|line| line.ends.shutdown());
    }
    for line in lines {
        let threads = std::mem::take(&mut *line.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                shared.fail(Error::nowhere(ErrorKind::Io, DOING, "a thread has panicked"));
            }
        }
        // A command that was written to or read from has to end well.
        for end in [&line.ends.target, &line.ends.source] {
            if let Err(error) = end.close(patience.min(CONNECT)) {
                shared.fail(error);
            }
        }
    }
    lines.iter().map(|line| line.ends.passed()).collect()
}

/// What all pumps share.
struct Shared {
    begin: Instant,
    /// Milliseconds from the beginning to the last byte.
    last: AtomicU64,
    bytes: AtomicU64,
    /// Threads that forward.
    pumps: AtomicUsize,
    has_main: AtomicBool,
    failure: Mutex<Option<Error>>,
    breaks: Breaks,
    troubles: Option<Troubles>,
    /// Nobody has to see what is forwarded.
    may_splice: bool,
    /// What has been forwarded and is still on its way into the recording.
    backlog: Arc<Backlog>,
    /// Connections since the last pause.
    ends: Mutex<Vec<Arc<Ends>>>,
}

impl Shared {
    fn new(breaks: Breaks, may_splice: bool, troubles: Option<Troubles>) -> Self {
        Self {
            troubles,
            may_splice,
            backlog: Arc::default(),
            begin: Instant::now(),
            last: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            pumps: AtomicUsize::new(0),
            has_main: AtomicBool::new(false),
            failure: Mutex::new(None),
            breaks,
            ends: Mutex::default(),
        }
    }

    /// Breaks all connections off, as a network does.
    fn cut(&self, reason: Option<Error>) {
        let ends = std::mem::take(&mut *self.ends.lock().unwrap_or_else(PoisonError::into_inner));
        ends.iter().for_each(|ends| ends.is_cut.store(true, Ordering::Release));
        // Who comes back now finds a proxy that knows of the pause.
        self.breaks.pause(reason);
        ends.iter().for_each(|ends| ends.reset());
    }

    fn note_activity(&self) {
        self.last.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        self.begin.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }

    /// The first failure is the one that is reported: the others follow from it.
    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A connection with its threads.
struct Line {
    ends: Arc<Ends>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}
