//! Stand-in destination: a stock source migrates into it and completes.
//!
//! ```text
//! source: header config | OPEN_RETURN_PATH PING 1 | START PART* END FULL* EOF DESCRIPTION
//! here:                                    PONG 1                                        SHUT 0
//! ```
//! Nothing is kept unless it is asked for. The return path is answered when the source opens it: without SHUT a source waits
//! for ever.
//!
//! ```text
//! source: .. DISCARD PACKAGED { LISTEN .. RUN } | pages ..                     pages EOF
//! here:                                         | REQ_PAGES_ID, REQ_PAGES ..             SHUT 0
//! ```
//! In postcopy every page is accounted for ([`Requests`](crate::postcopy::Requests)), asked for if it is told to, and taken from the preempt channel as
//! well. When the connections break there, it waits for the source to come back.

mod answers;
mod channel;
mod channels;
mod crowd;
mod devices;
mod doorman;
mod paging;
mod patient;
mod preempt;
mod reception;
mod recovery;
mod rendezvous;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::fault::{Cut, Cuts};
use super::notice::{self, Notice};
use super::pace::{Limits, Pace};
use crate::capture::{ChannelTap, Recorder, interface_name};
use crate::channel::Feed;
use crate::device_state::{DeviceReport, Settings as DeviceSettings};
use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::Memory;
use crate::multifd::SyncMode;
use crate::postcopy::RequestPattern;
use crate::stream::{Mode, Parser};
use crate::transport::{Connection, Listener};
use crate::wire::Method;
use answers::Answers;
use channels::{Channels, Settings};
use devices::Devices;
use doorman::Front;
use patient::Patient;
use reception::{Received, Reception};

pub use channels::{ChannelArrival, Expected};
pub use paging::RequestReport;
pub use preempt::PreemptArrival;

/// Whether SWITCHOVER_ACK is sent. Capability `switchover-ack` is not visible on the wire: a source that has it waits for
/// the acknowledgement, one that has not may fail over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// Not at all.
    #[default]
    Never,
    /// As a stock destination of the dialect does that has the capability on: once from 8.1 on; where the source counts (11.1, unless
    /// the machine type is older), for every device that says that its initial data is there.
    Auto,
    /// So many times.
    Times(u32),
}

/// What a stand-in destination does with a migration.
pub struct Destination {
    dialect: Dialect,
    mode: Mode,
    limits: Limits,
    reply: bool,
    acknowledge: Acknowledge,
    memory: Memory,
    expected: Expected,
    method: Option<Method>,
    uuid: Option<[u8; 16]>,
    recorder: Option<Recorder>,
    devices: DeviceSettings,
    request: RequestPattern,
    request_depth: usize,
    request_limit: u64,
    recover: Duration,
    cuts: Vec<Cut>,
    notices: Option<notice::Listener>,
}

/// How far a migration has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Bytes of the main channel.
    pub bytes: u64,
    /// Pages of all kinds.
    pub pages: u64,
    /// Passes over the guest's memory that have begun.
    pub iterations: u64,
    /// Time since the connection was taken over.
    pub elapsed: Duration,
}

/// What has arrived: everything up to the end or up to the fault.
#[derive(Debug)]
pub struct Arrival {
    /// Machine name of the configuration record.
    pub machine: Option<String>,
    /// Bytes of the main channel, in whole records.
    pub bytes: u64,
    /// Sections.
    pub sections: u64,
    /// Pages of all kinds.
    pub pages: u64,
    /// Pages that came as one byte.
    pub zero_pages: u64,
    /// Pages that came as deltas.
    pub xbzrle_pages: u64,
    /// Pages that came compressed.
    pub compressed_pages: u64,
    /// Passes over the guest's memory, by the order of the pages.
    pub iterations: u64,
    /// Whether the source opened the return path.
    pub return_path: bool,
    /// Whether the migration ended as postcopy.
    pub postcopy: bool,
    /// Time from taking over the connection to the last answer.
    pub elapsed: Duration,
    /// What came over each multifd channel, by its id.
    pub channels: BTreeMap<u8, ChannelArrival>,
    /// How the multifd channels were synchronised; `None` if there was none.
    pub sync_mode: Option<SyncMode>,
    /// How often they were.
    pub synchronisations: u64,
    /// How their pages were encoded, if there were any.
    pub method: Option<Method>,
    /// State of VFIO devices.
    pub devices: Vec<DeviceReport>,
    /// What came over preempt channels, if there were any.
    pub preempt: Option<PreemptArrival>,
    /// How often the connections broke in postcopy and the source came back.
    pub pauses: u32,
    /// Pages that have not come; `None` if postcopy was never spoken of.
    pub missing_pages: Option<u64>,
    /// What became of page requests, if postcopy was entered.
    pub requests: Option<RequestReport>,
    /// The guest's memory as far as it was kept.
    pub memory: Memory,
    /// What a strict reading would have refused.
    pub complaints: Vec<Error>,
    /// Why the migration failed; `None` if it completed.
    pub error: Option<Error>,
}

impl Default for Destination {
    fn default() -> Self {
        Self::new()
    }
}

impl Destination {
    /// A destination that takes any release, answers, and keeps nothing.
    pub fn new() -> Self {
        Self {
            dialect: Dialect::ANY,
            mode: Mode::Strict,
            limits: Limits::default(),
            reply: true,
            acknowledge: Acknowledge::Never,
            memory: Memory::new(),
            expected: Expected::Auto,
            method: None,
            uuid: None,
            recorder: None,
            devices: DeviceSettings::default(),
            request: RequestPattern::None,
            request_depth: 1,
            request_limit: u64::MAX,
            recover: Duration::ZERO,
            cuts: Vec::new(),
            notices: None,
        }
    }

    /// The same, reading as that dialect does.
    #[must_use]
    pub fn with_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// The same, with that grammar.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The same, with that much patience.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same, mute: nothing is said on the return path.
    #[must_use]
    pub fn without_replies(mut self) -> Self {
        self.reply = false;
        self
    }

    /// The same, acknowledging the switchover.
    #[must_use]
    pub fn with_acknowledge(mut self, acknowledge: Acknowledge) -> Self {
        self.acknowledge = acknowledge;
        self
    }

    /// The same, keeping the guest's memory as `memory` does.
    #[must_use]
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.memory = memory;
        self
    }

    /// The same, with so many multifd channels.
    #[must_use]
    pub fn with_channels(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// The same, taking pages on multifd channels that are encoded like this only.
    #[must_use]
    pub fn with_compression(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// The same, of a virtual machine with this UUID, which multifd channels compare. Otherwise they only have to agree.
    #[must_use]
    pub fn with_uuid(mut self, uuid: [u8; 16]) -> Self {
        self.uuid = Some(uuid);
        self
    }

    /// The same, taking the state of VFIO devices like this.
    #[must_use]
    pub fn with_devices(mut self, devices: DeviceSettings) -> Self {
        self.devices = devices;
        self
    }

    /// The same, asking for these pages in postcopy, so many at a time.
    #[must_use]
    pub fn with_requests(mut self, pattern: RequestPattern, depth: usize) -> Self {
        self.request = pattern;
        self.request_depth = depth.max(1);
        self
    }

    /// The same, asking at most so often over one connection.
    #[must_use]
    pub fn with_request_limit(mut self, limit: u64) -> Self {
        self.request_limit = limit;
        self
    }

    /// The same, waiting so long for the source of a postcopy migration whose connections broke.
    #[must_use]
    pub fn with_recovery(mut self, patience: Duration) -> Self {
        self.recover = patience;
        self
    }

    /// The same, breaking its connections there.
    #[must_use]
    pub fn with_cuts(mut self, cuts: impl IntoIterator<Item = Cut>) -> Self {
        self.cuts = cuts.into_iter().collect();
        self
    }

    /// The same, telling `listener` what happens on the way.
    #[must_use]
    pub fn with_notices(mut self, listener: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.notices = Some(Arc::new(listener));
        self
    }

    /// The same, recording all channels. The caller finishes the recording.
    #[must_use]
    pub fn with_recorder(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Receives one migration over one `connection`. `watch` is told how far it has come, some times a second.
    pub fn receive(mut self, connection: Connection, mut watch: impl FnMut(&Progress)) -> Arrival {
        self.expected = Expected::Exactly(0);
        let channels = self.channels();
        let front = Front { connection, first: Vec::new() };
        self.main_channel(front, &channels, None, &mut watch).close(channels, &mut watch)
    }

    /// Receives one migration over as many connections as the source opens to `listener`.
    ///
    /// # Errors
    /// If a file or command cannot be opened. Everything else is in the [`Arrival`], also that nobody came.
    pub fn listen(mut self, listener: &Listener, mut watch: impl FnMut(&Progress)) -> Result<Arrival> {
        if !listener.is_socket() {
            return match listener.accept(self.limits.total)? {
                Some(connection) => Ok(self.receive(connection, watch)),
                None => Err(nobody()),
            };
        }
        let channels = self.channels();
        let received = thread::scope(|scope| {
            let (sender, fronts) = bounded(1);
            let shared = &channels;
            let attend = move || doorman::attend(scope, shared, listener, sender);
            let doorman = thread::Builder::new().name("doorman".to_owned()).spawn_scoped(scope, attend);
            let front = match doorman {
                Ok(_) => self.await_main(&fronts, &channels),
                Err(e) => Err(Error::io("accepting", "a thread cannot be started", e)),
            };
            let received = match front {
                Ok(front) => self.main_channel(front, &channels, Some(&fronts), &mut watch),
                Err(error) => Received {
                    answers: None,
                    arrival: Arrival::new(),
                    outcome: Err(error),
                    pace: Pace::new(self.limits),
                },
            };
            // Everybody else ends now, by reading what is there or by being cut off.
            channels.finish(received.outcome.is_ok());
            received
        });
        Ok(received.close(channels, &mut watch))
    }

    fn channels(&mut self) -> Channels {
        let settings = Settings {
            expected: self.expected,
            method: self.method,
            uuid: self.uuid,
            mode: self.mode,
            dialect: self.dialect,
            limits: self.limits,
            recorder: self.recorder.clone(),
            devices: self.devices,
            request: self.request.clone(),
            request_depth: self.request_depth,
            request_limit: self.request_limit,
        };
        Channels::new(settings, std::mem::take(&mut self.memory))
    }

    /// The main channel, as soon as one of the connections turns out to be it.
    fn await_main(&self, fronts: &Receiver<Front>, channels: &Channels) -> Result<Front> {
        let begin = Instant::now();
        let mut company = None;
        loop {
            let waited = fronts.recv_timeout(TICK);
            // What is wrong with another connection says more than that there is no main channel.
            match (waited, channels.failure()) {
                (_, Some(failure)) => return Err(failure),
                (Ok(front), None) => return Ok(front),
                (Err(RecvTimeoutError::Disconnected), None) => return Err(nobody()),
                (Err(RecvTimeoutError::Timeout), None) => {}
            }
            if channels.accepted() > 0 {
                company.get_or_insert_with(Instant::now);
            }
            if self.limits.total.is_some_and(|total| begin.elapsed() >= total) {
                return Err(nobody());
            }
            if company.is_some_and(|since: Instant| since.elapsed() >= self.limits.silence) {
                let message = "there are connections, but none of them is a main channel";
                return Err(Error::nowhere(ErrorKind::Timeout, "accepting", message));
            }
        }
    }

    fn main_channel(
        &self,
        front: Front,
        channels: &Channels,
        fronts: Option<&Receiver<Front>>,
        watch: &mut dyn FnMut(&Progress),
    ) -> Received {
        let pace = Pace::new(self.limits).with_others(Arc::clone(&channels.activity));
        let mut parser = Parser::with(self.mode, self.dialect);
        let mut channel = ChannelId::Main;
        let mut complaints = Vec::new();
        let tap = self.tap(channel);
        let mut reception = Reception {
            answers: self.answers(front.connection.clone(), channel, tap.clone()),
            arrival: Arrival::new(),
            place: (0, 0),
            channels,
            devices: Devices::new(self.dialect),
            pace: &pace,
            watch,
            watched: Instant::now(),
            cuts: Cuts::new(self.cuts.iter().copied()),
            before: 0,
        };
        let input = |Front { connection, first }, tap| Patient {
            connection,
            first,
            tap,
            pace: &pace,
            lingering: false,
        };
        let mut input_now = input(front, tap);
        let outcome = loop {
            let outcome = reception.run(&mut Feed::new(input_now), &mut parser);
            let outcome = outcome.map_err(|e| reception.overdue(on(e, channel)));
            complaints.extend(parser.grammar().complaints().iter().cloned().map(|e| on(e, channel)));
            let resumed = match outcome.map_err(|e| self.recover(e, &parser, channels, fronts, &pace)) {
                Ok(()) => break Ok(()),
                Err(Err(error)) => break Err(error),
                Err(Ok(resumed)) => resumed,
            };
            reception.cuts.take();
            reception.cuts.note_connection();
            channel = ChannelId::Resumed(resumed.pause);
            parser = resumed.parser;
            let tap = self.tap(channel);
            let back = ChannelId::ResumedReturnPath(resumed.pause);
            reception.answers = self.answers(resumed.front.connection.clone(), back, tap.clone());
            // Nothing opens the return path a second time.
            reception.answers.is_open = reception.answers.enabled;
            reception.before = reception.arrival.bytes;
            input_now = input(resumed.front, tap);
        };
        let Reception { answers, mut arrival, .. } = reception;
        arrival.postcopy = parser.grammar().is_postcopy();
        arrival.complaints = complaints;
        Received { answers: Some(answers), arrival, outcome, pace }
    }

    fn tap(&self, channel: ChannelId) -> Option<ChannelTap> {
        self.recorder.as_ref().map(|recorder| recorder.channel(interface_name(channel)))
    }

    fn answers(&self, connection: Connection, channel: ChannelId, tap: Option<ChannelTap>) -> Answers {
        // Who does not listen does not keep us for ever.
        let _ = connection.set_write_timeout(Some(self.limits.silence));
        Answers {
            enabled: self.reply && connection.is_bidirectional(),
            connection,
            channel: if channel == ChannelId::Main { ChannelId::ReturnPath } else { channel },
            tap,
            is_open: false,
            acknowledge: self.acknowledgements(),
            acknowledge_each: self.acknowledge == Acknowledge::Auto
                && self.dialect != Dialect::ANY
                && self.dialect.has(Difference::SwitchoverAckCounted),
            turn: Arc::default(),
        }
    }

    fn acknowledgements(&self) -> u32 {
        match self.acknowledge {
            Acknowledge::Never => 0,
            Acknowledge::Times(n) => n,
            Acknowledge::Auto if self.dialect == Dialect::ANY => 1,
            Acknowledge::Auto if self.dialect.has(Difference::SwitchoverAckCounted) => 0,
            Acknowledge::Auto => u32::from(self.dialect.has(Difference::SwitchoverAck)),
        }
    }
}

impl Arrival {
    fn new() -> Self {
        Self {
            machine: None,
            bytes: 0,
            sections: 0,
            pages: 0,
            zero_pages: 0,
            xbzrle_pages: 0,
            compressed_pages: 0,
            iterations: 0,
            return_path: false,
            postcopy: false,
            elapsed: Duration::ZERO,
            channels: BTreeMap::new(),
            sync_mode: None,
            synchronisations: 0,
            method: None,
            devices: Vec::new(),
            preempt: None,
            pauses: 0,
            missing_pages: None,
            requests: None,
            memory: Memory::new(),
            complaints: Vec::new(),
            error: None,
        }
    }
}

/// An error of a parser that knows only one main channel.
fn on(error: Error, channel: ChannelId) -> Error {
    if error.channel() == ChannelId::Main { error.on(channel) } else { error }
}

/// How often a destination that waits for its main channel looks round.
const TICK: Duration = Duration::from_millis(50);

fn nobody() -> Error {
    Error::nowhere(ErrorKind::Timeout, "accepting", "no source connected in time")
}
