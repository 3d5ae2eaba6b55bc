//! The way of spliced bytes into the recording: pipes that one thread fills and another one empties.
//!
//! ```text
//! pump: tee --> pipe --> pipe --> thread "proxy-N-aside": ChannelTap::record_from --> back to the pump
//! ```
//! Forwarding does not wait for copying, as long as there is an empty pipe. A pipe is handed over when it is worth while, and at once when
//! nothing more has come or the peer takes nothing more. What was forwarded later and is recorded at once, an
//! answer above all, waits in [`Backlog`] for what is still on this way, so that the recording has it in that order. Whatever is
//! forwarded is entered there before it is on its way: the answer may come at once.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::capture::{ChannelTap, Direction, Timestamp};
use crate::transport::{Connection, Pipe};

/// What is handed over at once. To wake a thread costs more than to copy a few pages.
const BATCH: usize = 512 << 10;

/// How long an answer waits to be recorded behind what went before it. A peer that takes nothing for longer holds only its own channel up.
const ORDER: Duration = Duration::from_millis(500);

/// Pipes of one direction: one that is filled, one that is emptied, one that waits for either.
const PIPES: usize = 3;

/// The pump's end.
pub(super) struct Aside {
    /// The pipe that is filled.
    pipe: Pipe,
    /// Bytes of it that were forwarded.
    taken: usize,
    /// Their place in the backlog, from the first of them on.
    ticket: Option<u64>,
    empty: Receiver<Pipe>,
    full: Option<Sender<Full>>,
    backlog: Arc<Backlog>,
    thread: Option<JoinHandle<()>>,
}

/// The first bytes of a pipe, which have been forwarded.
struct Full {
    pipe: Pipe,
    len: usize,
    time: Timestamp,
    ticket: u64,
}

impl Aside {
    pub(super) fn new(
        tap: ChannelTap,
        direction: Direction,
        backlog: &Arc<Backlog>,
        name: String,
        size: usize,
    ) -> io::Result<Self> {
        let (give, empty) = unbounded();
        for _ in 1..PIPES {
            // The other end is right here.
            let _ = give.send(Pipe::new(size)?);
        }
        let pipe = Pipe::new(size)?;
        let (full, filled) = unbounded::<Full>();
        let owner = Arc::clone(backlog);
        let thread = thread::Builder::new().name(name).spawn(move || {
            for Full { pipe, len, time, ticket } in filled {
                // A recording that fails says so when it is finished; the migration goes on.
                let _ = tap.record_from(direction, time, &mut &pipe, len);
                owner.leave(ticket);
                let _ = give.send(pipe);
            }
        })?;
        Ok(Self {
            pipe,
            taken: 0,
            ticket: None,
            empty,
            full: Some(full),
            backlog: Arc::clone(backlog),
            thread: Some(thread),
        })
    }

    /// Takes up to `len` bytes of `through`, which keeps them. All that was taken before has been forwarded.
    pub(super) fn double(&mut self, through: &Pipe, len: usize) -> io::Result<usize> {
        match through.tee(&self.pipe, len) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.taken > 0 => {
                self.hand_over()?;
                through.tee(&self.pipe, len)
            }
            taken => taken,
        }
    }

    /// Some of them are about to be forwarded, if `to` takes them at once: an answer to them finds them in the backlog. Where it does
    /// not, others are not to wait for that.
    pub(super) fn announce(&mut self, to: &Connection) {
        if self.ticket.is_none() && to.takes_bytes() {
            self.ticket = Some(self.backlog.enter());
        }
    }

    /// So many of them have been forwarded.
    pub(super) fn note(&mut self, taken: usize) {
        self.taken += taken;
        if self.ticket.is_none() {
            self.ticket = Some(self.backlog.enter());
        }
    }

    /// Whether it is worth while to have them recorded now.
    pub(super) fn is_due(&self) -> bool {
        self.taken >= BATCH
    }

    /// Has the bytes that were forwarded recorded, and goes on with an empty pipe.
    pub(super) fn hand_over(&mut self) -> io::Result<()> {
        let len = std::mem::take(&mut self.taken);
        let Some(ticket) = self.ticket.take() else { return Ok(()) };
        if len == 0 {
            self.backlog.leave(ticket);
            return Ok(());
        }
        // Waits for the file, if that is slower than the network.
        let next = self.empty.recv().map_err(io::Error::other)?;
        let pipe = std::mem::replace(&mut self.pipe, next);
        let full = Full { pipe, len, time: Timestamp::now(), ticket };
        match self.full.as_ref().map(|sender| sender.send(full)) {
            Some(Ok(())) => Ok(()),
            _ => Err(io::Error::other("the thread that records has ended")),
        }
    }
}

impl Drop for Aside {
    /// Waits until everything is recorded.
    fn drop(&mut self) {
        let _ = self.hand_over();
        self.full = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What has been forwarded and is not recorded yet.
#[derive(Default)]
pub(super) struct Backlog {
    tickets: Mutex<Tickets>,
    changed: Condvar,
    count: AtomicUsize,
}

#[derive(Default)]
struct Tickets {
    next: u64,
    open: BTreeSet<u64>,
}

impl Backlog {
    /// Something is about to be forwarded, or just was.
    pub(super) fn enter(&self) -> u64 {
        let mut tickets = self.lock();
        let ticket = tickets.next;
        tickets.next += 1;
        tickets.open.insert(ticket);
        self.count.store(tickets.open.len(), Ordering::Release);
        ticket
    }

    /// It is recorded, or was not forwarded after all.
    pub(super) fn leave(&self, ticket: u64) {
        let mut tickets = self.lock();
        tickets.open.remove(&ticket);
        self.count.store(tickets.open.len(), Ordering::Release);
        drop(tickets);
        self.changed.notify_all();
    }

    /// Waits until everything is recorded that came before `ticket`, but no longer than [`ORDER`]: whoever waits forwards nothing
    /// meanwhile.
    pub(super) fn wait(&self, ticket: u64) {
        if self.count.load(Ordering::Acquire) <= 1 {
            // Nothing but the ticket itself.
            return;
        }
        let begin = Instant::now();
        let mut tickets = self.lock();
        while tickets.open.first().is_some_and(|first| *first < ticket) {
            let Some(left) = ORDER.checked_sub(begin.elapsed()) else { return };
            tickets = self.changed.wait_timeout(tickets, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
