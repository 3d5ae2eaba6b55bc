//! A connection inside the process: two ends, two bounded buffers, the timeouts and half-close of a socket.
//!
//! Tests of endpoints use it, because it needs no port, no file and no luck.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::{Connection, Io};
use super::pipe::Timeout;

/// What one direction holds until its writer has to wait: small enough that tests meet a full buffer.
pub const CAPACITY: usize = 64 << 10;

/// Two ends of one connection. What is written to one is read from the other.
pub fn pair() -> (Connection, Connection) {
    pair_with_capacity(CAPACITY)
}

/// Like [`pair`], with this many bytes (at least one) under way in each direction.
pub fn pair_with_capacity(capacity: usize) -> (Connection, Connection) {
    let [there, back] = [(); 2].map(|()| Arc::new(Pipe::new(capacity.max(1))));
    let one = Twin::new(Arc::clone(&back), Arc::clone(&there));
    let other = Twin::new(there, back);
    let connection =
        |twin, name: &str, peer: &str| Connection::new(Io::Memory(twin), name.into(), peer.into());
    (connection(one, "memory:a", "memory:b"), connection(other, "memory:b", "memory:a"))
}

/// One end: reads from one pipe and writes to the other.
pub(super) struct Twin {
    input: Arc<Pipe>,
    output: Arc<Pipe>,
    read_timeout: Timeout,
    write_timeout: Timeout,
}

impl Twin {
    fn new(input: Arc<Pipe>, output: Arc<Pipe>) -> Self {
        Self { input, output, read_timeout: Timeout::default(), write_timeout: Timeout::default() }
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.read_timeout.set(timeout);
    }

    pub(super) fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.write_timeout.set(timeout);
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let wanted = |state: &State| !state.bytes.is_empty() || state.no_more || state.unwanted;
        let mut state = self.input.wait(&self.read_timeout, "nothing was received in time", wanted)?;
        let n = if state.unwanted { 0 } else { state.bytes.read(buffer)? };
        self.input.changed.notify_all();
        Ok(n)
    }

    pub(super) fn write_vectored(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        if data.iter().all(|slice| slice.is_empty()) {
            return Ok(0);
        }
        let pipe = &self.output;
        let wanted = |state: &State| state.bytes.len() < pipe.capacity || state.no_more || state.unwanted;
        let mut state = pipe.wait(&self.write_timeout, "the peer took nothing in time", wanted)?;
        if state.no_more || state.unwanted {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let room = pipe.capacity - state.bytes.len();
        let mut taken = 0;
        for slice in data {
            let n = slice.len().min(room - taken);
            state.bytes.extend(&slice[..n]);
            taken += n;
        }
        pipe.changed.notify_all();
        Ok(taken)
    }

    pub(super) fn shutdown_write(&self) {
        self.output.change(|state| state.no_more = true);
    }

    pub(super) fn shutdown_read(&self) {
        self.input.change(|state| state.no_more = true);
    }

    pub(super) fn shutdown(&self) {
        self.shutdown_write();
        self.input.change(|state| {
            state.unwanted = true;
            state.bytes.clear();
        });
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// One direction.
struct Pipe {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// The writer is done.
    no_more: bool,
    /// The reader is gone.
    unwanted: bool,
}

impl Pipe {
    fn new(capacity: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait(
        &self,
        timeout: &Timeout,
        silence: &str,
        wanted: impl Fn(&State) -> bool,
    ) -> io::Result<MutexGuard<'_, State>> {
        let start = Instant::now();
        let mut state = self.lock();
        while !wanted(&state) {
            state = match timeout.get() {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(limit) => {
                    let left = limit.saturating_sub(start.elapsed());
                    if left.is_zero() {
                        return Err(io::Error::new(io::ErrorKind::TimedOut, silence));
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Ok(state)
    }
}
