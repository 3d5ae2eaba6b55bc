//! Bytes that meet with trouble on their way: each direction goes through a [`Saboteur`], and what it says is carried out here.

use std::io::{self, Read as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::pump::{FirstBytes, Pump};
use crate::capture::Direction;
use crate::channel::Tail;
use crate::error::{ChannelId, Error, Result};
use crate::transport::{self, Address, Connection};
use crate::trouble::{Channel, Done, Saboteur, Script, Step};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// How long nothing comes before what is held back goes on all the same: its sender waits for an answer.
const IDLE: Duration = Duration::from_millis(30);

/// How often it is looked whether a wait is still of use.
const TICK: Duration = Duration::from_millis(20);

/// Longest wait for the target to accept one connection more.
const CONNECT: Duration = Duration::from_secs(10);

/// The trouble of a migration.
pub(super) struct Troubles {
    pub(super) script: Arc<Script>,
    pub(super) done: Arc<Mutex<Vec<Done>>>,
    target: Address,
    /// Connections beside those that there should be.
    twins: Mutex<Vec<Connection>>,
}

impl Troubles {
    pub(super) fn new(script: Script, target: Address) -> Self {
        Self { script: Arc::new(script), done: Arc::default(), target, twins: Mutex::default() }
    }

    pub(super) fn done(&self) -> Vec<Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether a direction goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Ended,
}

impl Pump {
    /// Forwards this direction, with what is to happen to it.
    pub(super) fn relay_troubled(
        &self,
        from: &Connection,
        to: &Connection,
        troubles: &Troubles,
    ) -> Result<()> {
        let mut reader = from;
        let mut buffer = vec![0; CHUNK];
        let mut saboteur: Option<Saboteur> = None;
        let mut first = FirstBytes::default();
        let mut early = Vec::new();
        let mut rate = None;
        from.set_read_timeout(Some(IDLE))?;
        loop {
            let (bytes, tail) = match reader.read(&mut buffer) {
                Ok(0) => (&[][..], Tail::Closed),
                Ok(count) => (&buffer[..count], Tail::Open),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::TimedOut => (&[][..], Tail::Idle),
                Err(e) => return Err(self.not_received(from, to, e)),
            };
            early.extend_from_slice(bytes);
            if saboteur.is_none() {
                let is_quiet = tail != Tail::Open && !early.is_empty();
                let channel = self.trouble_channel(&mut first, bytes);
                if let Some(channel) = channel.or_else(|| is_quiet.then_some(Channel::Preempt)) {
                    let (script, done) = (Arc::clone(&troubles.script), Arc::clone(&troubles.done));
                    saboteur = Some(Saboteur::new(script, channel, done));
                }
            }
            if let Some(saboteur) = &mut saboteur {
                for step in saboteur.handle(&std::mem::take(&mut early), tail) {
                    if self.carry_out(step, from, to, &mut rate, troubles)? == Flow::Ended {
                        return Ok(());
                    }
                }
            }
            if tail == Tail::Closed {
                if first.is_empty() && self.direction == Direction::ToDestination {
                    self.note_silent();
                }
                return Ok(());
            }
        }
    }

    /// What rules call this direction, when its first bytes have told.
    fn trouble_channel(&self, first: &mut FirstBytes, bytes: &[u8]) -> Option<Channel> {
        let channel = match self.direction {
            Direction::ToSource => self.channel(),
            Direction::ToDestination => self.identify(first, bytes)?,
        };
        Some(match (channel, self.direction) {
            (ChannelId::Main | ChannelId::Resumed(_), Direction::ToDestination) => Channel::Main,
            (ChannelId::Main | ChannelId::Resumed(_), Direction::ToSource) => Channel::ReturnPath,
            (ChannelId::Multifd(id), Direction::ToDestination) => Channel::Multifd(id),
            _ => Channel::Preempt,
        })
    }

    fn carry_out(
        &self,
        step: Step,
        from: &Connection,
        to: &Connection,
        rate: &mut Option<u64>,
        troubles: &Troubles,
    ) -> Result<Flow> {
        match step {
            Step::Write(bytes) => {
                self.trickle(&bytes, from, to, *rate)?;
                if self.direction == Direction::ToDestination
                    && matches!(self.channel(), ChannelId::Main | ChannelId::Resumed(_))
                {
                    self.shared.breaks.admit(&bytes);
                }
            }
            Step::Wait(time) => self.wait(time),
            Step::Rate(bytes) => *rate = Some(bytes),
            Step::HalfClose => to.shutdown_write()?,
            Step::Twin(bytes) => {
                let twin = transport::connect(&troubles.target, CONNECT)?;
                io::Write::write_all(&mut &twin, &bytes).map_err(|e| twin.error("sending", e))?;
                troubles.twins.lock().unwrap_or_else(PoisonError::into_inner).push(twin);
            }
            Step::Cut | Step::Reset if self.shared.breaks.may_return() => {
                self.shared.cut(None);
                return Ok(Flow::Ended);
            }
            Step::Cut => {
                self.ends.is_cut.store(true, Ordering::Release);
                self.ends.shutdown();
                return Ok(Flow::Ended);
            }
            Step::Reset => {
                self.ends.is_cut.store(true, Ordering::Release);
                self.ends.reset();
                return Ok(Flow::Ended);
            }
        }
        Ok(if self.ends.is_cut.load(Ordering::Acquire) { Flow::Ended } else { Flow::On })
    }

    fn trickle(&self, bytes: &[u8], from: &Connection, to: &Connection, rate: Option<u64>) -> Result<()> {
        let Some(rate) = rate else { return self.pass(bytes, from, to, true) };
        // In steps of ten milliseconds, unless that is too much at once.
        let piece = usize::try_from(rate.saturating_mul(10)).unwrap_or(usize::MAX).clamp(1, CHUNK);
        for piece in bytes.chunks(piece) {
            if self.ends.is_cut.load(Ordering::Acquire) || self.shared.failure().is_some() {
                return Ok(());
            }
            self.pass(piece, from, to, true)?;
            thread::sleep(Duration::from_micros(1000 * piece.len() as u64 / rate));
        }
        Ok(())
    }

    /// Waits for that long, or until nobody is there any more.
    fn wait(&self, time: Option<Duration>) {
        let begin = Instant::now();
        while time.is_none_or(|time| begin.elapsed() < time) {
            let is_over = self.ends.is_cut.load(Ordering::Acquire)
                || self.ends.is_half_over.load(Ordering::Acquire)
                || self.shared.failure().is_some();
            if is_over {
                return;
            }
            let left = time.map_or(TICK, |time| time.saturating_sub(begin.elapsed()));
            thread::sleep(left.min(TICK));
        }
    }
}

/// What a passage reports of its trouble: each rule, and where it was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The rule, as it is written.
    pub rule: String,
    /// Where it was carried out: on which channel, at which byte; nowhere if there was no such place.
    pub done: Vec<(Channel, u64)>,
}

impl Trouble {
    /// Every rule of a script.
    pub(super) fn of(script: &Script, done: &[Done]) -> Vec<Self> {
        let rules = script.rules.iter().enumerate();
        rules
            .map(|(number, rule)| Self {
                rule: rule.to_string(),
                done: done
                    .iter()
                    .filter(|done| done.rule == number)
                    .map(|done| (done.channel, done.offset))
                    .collect(),
            })
            .collect()
    }
}

/// A proxy that makes trouble, in front of an endpoint of this process.
///
/// ```text
/// source  -> private socket -> proxy -> ADDRESS          ADDRESS -> proxy -> private socket -> destination
/// ```
pub struct Troubled {
    proxy: thread::JoinHandle<super::Passage>,
    private: Address,
    path: std::path::PathBuf,
}

impl Troubled {
    /// In front of a source, which connects to [`address`](Self::address) instead of `target`.
    ///
    /// # Errors
    /// If there is no room for a private socket.
    pub fn in_front_of_source(proxy: super::Proxy) -> Result<Self> {
        let (path, private) = private();
        let listener = transport::Listener::bind(&private)?;
        Self::start(path, private, proxy, listener)
    }

    /// In front of a destination, which listens on [`address`](Self::address); the proxy, made for that target, listens on `listener`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn in_front_of_destination(
        listener: transport::Listener,
        proxy: impl FnOnce(Address) -> super::Proxy,
    ) -> Result<(Self, transport::Listener)> {
        let (path, private) = private();
        let inner = transport::Listener::bind(&private)?;
        Ok((Self::start(path, private.clone(), proxy(private), listener)?, inner))
    }

    fn start(
        path: std::path::PathBuf,
        private: Address,
        proxy: super::Proxy,
        listener: transport::Listener,
    ) -> Result<Self> {
        let run = move || proxy.run(&listener, |_| {});
        let proxy = thread::Builder::new().name("trouble".to_owned()).spawn(run);
        let proxy = proxy.map_err(|e| Error::io("trouble", "a thread cannot be started", e))?;
        Ok(Self { proxy, private, path })
    }

    /// Where the endpoint of this process connects or listens.
    pub fn address(&self) -> &Address {
        &self.private
    }

    /// Waits until all connections are over, and tells what was done.
    pub fn finish(self) -> Vec<Trouble> {
        let trouble = self.proxy.join().map(|passage| passage.trouble).unwrap_or_default();
        // What cannot be removed is left for whoever looks after the directory.
        let _ = std::fs::remove_file(&self.path);
        trouble
    }
}

/// A socket that nobody else has.
fn private() -> (std::path::PathBuf, Address) {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("migwire-{}-{number}.sock", std::process::id()));
    (path.clone(), Address::Unix(path))
}
