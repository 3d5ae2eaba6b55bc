//! What all threads of a source share: what is sent, what has become of it, and all its connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::content::Content;
use super::replies;
use super::service::Service;
use crate::endpoint::pace::{Limits, Pace};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::Memory;
use crate::multifd::ZeroPages;
use crate::stream::Block;
use crate::transport::Connection;

/// Seen by the main thread and by the thread of every channel.
pub(super) struct Shared<'a> {
    pub(super) blocks: &'a [Block],
    pub(super) contents: &'a [Content],
    pub(super) page_size: u64,
    pub(super) zero_pages: ZeroPages,
    pub(super) limits: Limits,
    /// What the destination's memory should hold.
    memory: Mutex<Memory>,
    /// Whether pages are looked at: kept or digested.
    pub(super) keeps: bool,
    /// Writes of all multifd channels: as long as one goes on, the destination is not silent.
    pub(super) activity: Arc<AtomicU64>,
    /// Number of the next packet with pages, or with SYNC.
    numbers: AtomicU64,
    /// Bytes and pages that have left on multifd channels.
    pub(super) bytes: AtomicU64,
    pub(super) pages: AtomicU64,
    pub(super) lines: Arc<Lines>,
    /// Pages that are served in postcopy.
    pub(super) service: Service,
    state: Mutex<State>,
    changed: Condvar,
    /// Buffers that pages were given away in, to be used again.
    spare: Mutex<Vec<Vec<u8>>>,
}

#[derive(Default)]
struct State {
    /// SYNC packets that were written, on all channels.
    syncs: u64,
    /// Why the first channel that failed has failed.
    failure: Option<Failure>,
    /// What happens from now on is of our own making.
    is_over: bool,
}

/// Why a channel cannot go on.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// The peer has closed the connection, and may have said why elsewhere.
    pub(super) is_gone: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, is_gone: false }
    }
}

impl<'a> Shared<'a> {
    pub(super) fn new(
        (blocks, page_size): (&'a [Block], u64),
        contents: &'a [Content],
        zero_pages: ZeroPages,
        limits: Limits,
        memory: Memory,
        main: Connection,
    ) -> Self {
        Self {
            blocks,
            contents,
            page_size,
            zero_pages,
            limits,
            keeps: memory.keeps(),
            memory: Mutex::new(memory),
            activity: Arc::default(),
            numbers: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            lines: Arc::new(Lines { main: Mutex::new(main), channels: Mutex::default() }),
            service: Service::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            spare: Mutex::default(),
        }
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A watch over one channel. The limit on everything counts from when `main` began.
    pub(super) fn pace(&self, main: &Pace) -> Pace {
        let total = self.limits.total.map(|total| total.saturating_sub(main.elapsed()));
        Pace::new(Limits { total, ..self.limits }).with_others(Arc::clone(&self.activity))
    }

    /// Notes that a channel has written a SYNC.
    pub(super) fn note_sync(&self) {
        lock(&self.state).syncs += 1;
        self.changed.notify_all();
    }

    /// Waits until `count` SYNCs were written. Who writes them runs out of patience by itself.
    ///
    /// # Errors
    /// What has kept a channel from it.
    pub(super) fn await_syncs(&self, count: u64) -> Result<()> {
        let mut state = lock(&self.state);
        loop {
            match &state.failure {
                Some(failure) => return Err(failure.error.clone()),
                None if state.syncs >= count => return Ok(()),
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Notes why a channel cannot go on, and lets nobody wait for what will not come.
    pub(super) fn fail(&self, failure: Failure) {
        let mut state = lock(&self.state);
        if !state.is_over && state.failure.is_none() {
            state.failure = Some(failure);
        }
        drop(state);
        self.changed.notify_all();
        self.lines.cut_writing();
    }

    /// Why the first channel that failed has failed.
    pub(super) fn failure(&self) -> Option<Failure> {
        lock(&self.state).failure.clone()
    }

    /// The error for a channel that takes no jobs any more.
    pub(super) fn reason(&self) -> Error {
        self.failure().map_or_else(
            || Error::nowhere(ErrorKind::Misuse, "sending", "a multifd channel has ended too early"),
            |failure| failure.error,
        )
    }

    /// From now on, channels fail because we end them.
    pub(super) fn set_over(&self) {
        lock(&self.state).is_over = true;
    }

    /// Whether nobody needs what is still to be sent.
    pub(super) fn is_over(&self) -> bool {
        let state = lock(&self.state);
        state.is_over || state.failure.is_some()
    }

    /// An empty buffer, with room for pages if there was one before.
    pub(super) fn take_buffer(&self) -> Vec<u8> {
        lock(&self.spare).pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub(super) fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        lock(&self.spare).push(buffer);
    }
}

/// All connections of a migration.
pub(super) struct Lines {
    main: Mutex<Connection>,
    channels: Mutex<Vec<Connection>>,
}

impl Lines {
    pub(super) fn add(&self, connection: Connection) {
        lock(&self.channels).push(connection);
    }

    /// The migration goes on over another connection.
    pub(super) fn replace(&self, main: Connection) {
        *lock(&self.main) = main;
        lock(&self.channels).clear();
    }

    /// Ends everything at once: whoever waits in a write is let go.
    pub(super) fn cut(&self) {
        let _ = lock(&self.main).shutdown();
        self.cut_channels();
    }

    /// The same, except that the destination may still say something on the return path.
    fn cut_writing(&self) {
        let _ = lock(&self.main).shutdown_write();
        self.cut_channels();
    }

    /// Ends the multifd channels.
    pub(super) fn cut_channels(&self) {
        for connection in lock(&self.channels).iter() {
            let _ = connection.shutdown();
        }
    }
}

/// What an error of a write on a multifd channel means.
pub(super) fn failed_write(connection: &Connection, e: std::io::Error, id: u8, at: u64) -> Failure {
    let is_gone = replies::is_gone(&e);
    Failure { error: connection.error("sending", e).on(ChannelId::Multifd(id)).at(at), is_gone }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
