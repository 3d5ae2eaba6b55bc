//! The multifd channels of a destination: who has connected, who waits for whom, and where their pages go.
//!
//! ```text
//! Listener --> doorman --> a thread a connection --first four bytes--> main channel: over to the receiver
//!                                   |                                  multifd: stays, reads packets
//!                                   '-- SYNC --> Barrier <-- FLUSH or EOS -- main channel
//! ```
//! A stock source connects the main channel first, but says nothing on it until all others are connected (9.0), or says it at
//! once (8.2 and older), so that connections come in any order. How many there will be is not on the wire. But each has written
//! SYNC before the source writes its first marker on the main channel; so when that is read, all of them have connected.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::crowd::Crowd;
use super::paging::{Paging, RequestReport};
use super::preempt::PreemptArrival;
use crate::capture::Recorder;
use crate::device_state::{Assembler, DeviceReport, Settings as DeviceSettings};
use crate::dialect::Dialect;
use crate::endpoint::pace::Limits;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::Memory;
use crate::limits::MAX_COMPLAINTS;
use crate::multifd::{Barrier, SyncMode};
use crate::postcopy::RequestPattern;
use crate::stream::{Block, Mode};
use crate::transport::Connection;
use crate::wire::{DevicePacket, Method, MultifdHello};

/// Connections that have not said what they are. A source opens 257 at a time at most.
const MAX_UNKNOWN: usize = 300;

/// How many multifd channels a destination expects. The number is not on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// Those that have connected by the first synchronisation.
    #[default]
    Auto,
    /// So many: parameter `multifd-channels`, or 0 where capability `multifd` is off.
    Exactly(u8),
}

/// What came over one multifd channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelArrival {
    /// Bytes, in whole events.
    pub bytes: u64,
    /// Packets of all kinds.
    pub packets: u64,
    /// Packets with SYNC.
    pub syncs: u64,
    /// Pages of all kinds.
    pub pages: u64,
    /// Pages of zeros.
    pub zero_pages: u64,
    /// Packets of device state.
    pub device_packets: u64,
}

/// What the channels need to know, and never changes.
pub(super) struct Settings {
    pub(super) expected: Expected,
    pub(super) method: Option<Method>,
    pub(super) uuid: Option<[u8; 16]>,
    pub(super) mode: Mode,
    pub(super) dialect: Dialect,
    pub(super) limits: Limits,
    pub(super) recorder: Option<Recorder>,
    pub(super) devices: DeviceSettings,
    pub(super) request: RequestPattern,
    pub(super) request_depth: usize,
    pub(super) request_limit: u64,
}

/// What all threads of a destination share.
pub(super) struct Channels {
    pub(super) settings: Settings,
    pub(super) memory: Mutex<Memory>,
    /// Whether pages are looked at: kept or digested.
    pub(super) keeps: bool,
    /// Events of all multifd channels: what counts as progress while the main channel is silent.
    pub(super) activity: Arc<AtomicU64>,
    pub(super) pages: AtomicU64,
    pub(super) bytes: AtomicU64,
    devices: Mutex<Assembler>,
    paging: Mutex<Option<Paging>>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

/// What changes, and may be waited for.
#[derive(Default)]
pub(super) struct State {
    pub(super) barrier: Barrier,
    /// The main channel's blocks, known at the first marker.
    pub(super) blocks: Option<Arc<[Block]>>,
    pub(super) page_size: Option<u64>,
    pub(super) sync_mode: Option<SyncMode>,
    /// No channel may join any more.
    pub(super) settled: bool,
    /// The main channel is past its START sections: whoever is to be known is.
    pub(super) running: bool,
    pub(super) end: Option<End>,
    pub(super) failure: Option<Error>,
    pub(super) complaints: Vec<Error>,
    pub(super) uuid: Option<[u8; 16]>,
    pub(super) method: Option<Method>,
    /// Everybody of whom it is known what it is, to be let go of in the end.
    pub(super) connections: Vec<Connection>,
    /// Connections that have not said what they are.
    pub(super) strangers: Vec<Stranger>,
    pub(super) main: Option<Connection>,
    pub(super) has_main: bool,
    pub(super) accepted: u32,
    /// The receiver asks whether anybody else is at the door, and the doorman has looked so many times since.
    pub(super) asked: u64,
    /// Channels whose packets of device state wait for packets on other channels.
    pub(super) crowd: Crowd,
    pub(super) looked: u64,
    pub(super) arrivals: BTreeMap<u8, ChannelArrival>,
    pub(super) preempt: Option<PreemptArrival>,
    /// The main channel has named its blocks, and whether postcopy may follow.
    pub(super) surveyed: bool,
    /// LISTEN has come: what was to be discarded before postcopy is.
    pub(super) listens: bool,
    /// Postcopy runs, and what breaks is not the end of it.
    pub(super) can_pause: bool,
    pub(super) paused: bool,
    pub(super) pauses: u32,
    /// What broke, if another channel saw it first.
    pub(super) interruption: Option<Error>,
}

/// Who has connected, and has not said what it is.
pub(super) struct Stranger {
    pub(super) connection: Connection,
    pub(super) since: Instant,
}

/// How it all ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Everything is there; what has come since is read to its end.
    Complete,
    /// Nobody goes on.
    Broken,
}

/// The books, when all threads have ended.
pub(super) struct Closed {
    pub(super) memory: Memory,
    pub(super) arrivals: BTreeMap<u8, ChannelArrival>,
    pub(super) sync_mode: Option<SyncMode>,
    pub(super) synchronisations: u64,
    pub(super) method: Option<Method>,
    pub(super) complaints: Vec<Error>,
    pub(super) failure: Option<Error>,
    pub(super) devices: Vec<DeviceReport>,
    pub(super) preempt: Option<PreemptArrival>,
    pub(super) pauses: u32,
    pub(super) missing_pages: Option<u64>,
    pub(super) requests: Option<RequestReport>,
}

impl Channels {
    pub(super) fn new(settings: Settings, memory: Memory) -> Self {
        let state = State {
            sync_mode: SyncMode::of(settings.dialect),
            uuid: settings.uuid,
            method: settings.method,
            ..State::default()
        };
        Self {
            keeps: memory.keeps(),
            memory: Mutex::new(memory),
            activity: Arc::default(),
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            paging: Mutex::default(),
            devices: Mutex::new(Assembler::without_data(settings.devices)),
            state: Mutex::new(state),
            changed: Condvar::new(),
            settings,
        }
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn devices(&self) -> MutexGuard<'_, Assembler> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account of pages, once there is one.
    pub(super) fn paging(&self) -> MutexGuard<'_, Option<Paging>> {
        self.paging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something that others may wait for.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let value = change(&mut self.state());
        self.changed.notify_all();
        value
    }

    /// Somebody has connected. `None`: too many have, and say nothing.
    pub(super) fn admit(&self, connection: &Connection) -> Option<u32> {
        self.change(|state| {
            if state.strangers.len() >= MAX_UNKNOWN || state.end.is_some() {
                return None;
            }
            state.strangers.push(Stranger { connection: connection.clone(), since: Instant::now() });
            state.accepted += 1;
            Some(state.accepted - 1)
        })
    }

    /// A connection has said what it is, or has gone away.
    pub(super) fn note_known(&self, connection: &Connection) {
        self.change(|state| {
            state.strangers.retain(|other| !other.connection.is_same(connection));
            state.connections.push(connection.clone());
        });
    }

    /// How often the doorman has been asked to look.
    pub(super) fn asked(&self) -> u64 {
        self.state().asked
    }

    /// There was nobody at the door, some time after the doorman was asked.
    pub(super) fn note_looked(&self, asked: u64) {
        self.change(|state| state.looked = state.looked.max(asked));
    }

    /// A connection is of no use.
    pub(super) fn dismiss(&self, connection: &Connection) {
        let _ = connection.shutdown();
        self.change(|state| {
            state.connections.retain(|other| !other.is_same(connection));
            state.strangers.retain(|other| !other.connection.is_same(connection));
        });
    }

    /// Whether this is the first main channel.
    pub(super) fn claim_main(&self, connection: &Connection) -> bool {
        self.change(|state| {
            state.main.get_or_insert_with(|| connection.clone());
            !std::mem::replace(&mut state.has_main, true)
        })
    }

    /// Why the migration has failed, if it has.
    pub(super) fn failure(&self) -> Option<Error> {
        self.state().failure.clone()
    }

    /// Number of connections so far.
    pub(super) fn accepted(&self) -> u32 {
        self.state().accepted
    }

    /// A channel has introduced itself. `false`: it is one too many, and comes too late.
    pub(super) fn join(&self, hello: &MultifdHello) -> Result<bool> {
        let id = hello.id;
        let refuse = |kind, at, message: String| {
            Err(Error::new(kind, at, "multifd hello", message).on(ChannelId::Multifd(id)))
        };
        let mut state = self.state();
        if *state.uuid.get_or_insert(hello.uuid) != hello.uuid {
            let message = "another UUID than expected, or than that of the other channels: -uuid must be the same on both ends";
            return refuse(ErrorKind::OutOfOrder, 8, message.to_owned());
        }
        if let Expected::Exactly(count) = self.settings.expected
            && id >= count
        {
            let message = format!(
                "channel id {id}, and {count} channels are expected: multifd-channels must be the same on both ends"
            );
            return refuse(ErrorKind::OutOfOrder, 24, message);
        }
        if state.settled {
            return Ok(false);
        }
        if state.barrier.ids().any(|other| other == id) {
            return refuse(ErrorKind::OutOfOrder, 24, format!("a second channel with id {id}"));
        }
        if state.settled {
            let message = format!(
                "channel {id} comes after the first synchronisation, which it should have taken part in"
            );
            return refuse(ErrorKind::OutOfOrder, 0, message);
        }
        state.barrier.join(id);
        state.arrivals.insert(id, ChannelArrival::default());
        drop(state);
        self.changed.notify_all();
        Ok(true)
    }

    /// Waits until the main channel has said how large pages are. `None`: nobody waits any more.
    pub(super) fn page_size(&self) -> Option<u64> {
        let mut state = self.state();
        loop {
            match (state.page_size, state.end) {
                (Some(size), _) => return Some(size),
                (None, Some(_)) => return None,
                (None, None) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// The main channel's blocks, if it has named them.
    pub(super) fn blocks(&self) -> Option<Arc<[Block]>> {
        self.state().blocks.clone()
    }

    /// Channel `id` stands at a SYNC; returns when it may read on, or that it never may.
    pub(super) fn arrive(&self, id: u8) -> ControlFlow<()> {
        let mut state = self.state();
        state.barrier.arrive(id);
        self.changed.notify_all();
        while state.end.is_none() && !state.barrier.may_read(id) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.end {
            Some(End::Broken) => ControlFlow::Break(()),
            Some(End::Complete) | None => ControlFlow::Continue(()),
        }
    }

    /// The channel's pages are encoded like this.
    pub(super) fn note_method(&self, method: Method) {
        self.state().method.get_or_insert(method);
    }

    /// Channel `id` has come so far.
    pub(super) fn note_arrival(&self, id: u8, arrival: ChannelArrival) {
        self.state().arrivals.insert(id, arrival);
    }

    /// Channel `id` has ended between two packets.
    pub(super) fn leave(&self, id: u8) {
        self.change(|state| state.barrier.close(id));
    }

    /// Everything is there, and what is read now came late.
    pub(super) fn is_complete(&self) -> bool {
        self.state().end == Some(End::Complete)
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().end.is_some()
    }

    /// Something that a stock destination would not have liked, but that need not end the migration.
    pub(super) fn complain(&self, error: Error) {
        let mut state = self.state();
        if state.complaints.len() < MAX_COMPLAINTS {
            state.complaints.push(error);
        }
    }

    /// The migration has failed: the first error counts, and nobody waits any more.
    pub(super) fn fail(&self, error: Error) {
        self.change(|state| {
            if state.end == Some(End::Broken) || state.paused {
                // Who is cut off complains, and says nothing new.
                return;
            }
            if state.can_pause && matches!(error.kind(), ErrorKind::Io | ErrorKind::Truncated) {
                state.interruption.get_or_insert(error);
                if let Some(main) = &state.main {
                    let _ = main.shutdown();
                }
                return;
            }
            state.failure.get_or_insert(error);
            state.end = Some(End::Broken);
            state.let_go(Connection::shutdown);
            // The main channel still has to say on its return path that it has failed.
            if let Some(main) = &state.main {
                let _ = main.shutdown_read();
            }
        });
    }

    /// Waits until the main channel has announced a device, or has announced all that it will. The setup synchronisation may be over
    /// before its last START section is.
    pub(super) fn await_device(&self, packet: &DevicePacket<'_>) {
        let mut state = self.state();
        while state.end.is_none() && !state.running {
            // Never the other way round: nobody who has the devices asks for the state.
            if self.devices().find(packet.idstr.name(), packet.instance_id).is_some() {
                return;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The main channel has ended. What is on its way on the other channels is read, if all went well.
    pub(super) fn finish(&self, is_complete: bool) {
        self.change(|state| {
            state.end.get_or_insert(if is_complete { End::Complete } else { End::Broken });
            match is_complete {
                true => state.let_go(Connection::shutdown_read),
                false => state.let_go(Connection::shutdown),
            }
        });
    }

    /// Closes the books. All threads have ended.
    pub(super) fn close(self) -> Closed {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.let_go(Connection::shutdown);
        let mut devices = self.devices.into_inner().unwrap_or_else(PoisonError::into_inner);
        let paging = self.paging.into_inner().unwrap_or_else(PoisonError::into_inner);
        Closed {
            preempt: state.preempt,
            pauses: state.pauses,
            missing_pages: paging.as_ref().map(|paging| paging.requests.missing()),
            requests: paging.as_ref().filter(|_| state.can_pause).map(Paging::report),
            devices: devices.finish(&mut |_, _| {}),
            memory: self.memory.into_inner().unwrap_or_else(PoisonError::into_inner),
            sync_mode: state.sync_mode.filter(|_| !state.arrivals.is_empty()),
            synchronisations: state.barrier.markers(),
            method: state.method.filter(|_| !state.arrivals.is_empty()),
            arrivals: state.arrivals,
            complaints: state.complaints,
            failure: state.failure,
        }
    }

    /// A preempt channel has shown itself; which one it is.
    pub(super) fn begin_preempt(&self) -> ChannelId {
        self.change(|state| {
            state.preempt.get_or_insert_default();
            match state.pauses {
                0 => ChannelId::Preempt,
                pauses => ChannelId::ResumedPreempt(pauses),
            }
        })
    }

    /// More has come on a preempt channel.
    pub(super) fn note_preempt(&self, news: PreemptArrival) {
        let mut state = self.state();
        let sum = state.preempt.get_or_insert_default();
        sum.bytes += news.bytes;
        sum.pages += news.pages;
        sum.zero_pages += news.zero_pages;
    }

    /// Counts pages and bytes of a channel for those who watch.
    pub(super) fn count(&self, bytes: u64, pages: u64) {
        self.activity.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if pages > 0 {
            self.pages.fetch_add(pages, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Lets go of everybody but the main channel.
    pub(super) fn let_go(&mut self, end: impl Fn(&Connection) -> Result<()>) {
        let main = self.main.as_ref();
        let strangers = self.strangers.iter().map(|stranger| &stranger.connection);
        let all = self.connections.iter().chain(strangers);
        for connection in all.filter(|c| main.is_none_or(|main| !c.is_same(main))) {
            // Who has gone already cannot be told.
            let _ = end(connection);
        }
    }
}
