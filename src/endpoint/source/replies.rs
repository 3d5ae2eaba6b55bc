//! What the destination says while the source sends: a thread that reads the return path.
//!
//! ```text
//! connection --> ReturnParser --> SourceDialogue --> Heard ----bounded queue--> Replies: poll while sending, wait at the end
//!                                               '--> Request --bounded queue--> whoever sends pages that were asked for
//! ```
//! A destination that fails says SHUT 1, or nothing, and closes. The thread then ends all connections from this side
//! as well, so that a source that is stuck in a write does not have to wait for its timeout.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, never, select};

use super::service::{Request, Service};
use super::shared::Lines;
use crate::capture::{ChannelTap, Direction};
use crate::channel::{Feed, Input, Streaming};
use crate::dialect::Dialect;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::postcopy::{PageSet, ReturnParser, Said, SourceDialogue};
use crate::stream::Mode;
use crate::transport::{Connection, Tap};

const DOING: &str = "return path";

/// Messages that may wait: a destination says little else than which pages it needs, so a full queue means one that floods us,
/// which may then wait itself.
const QUEUE: usize = 64;

/// The only PING of a precopy source (`migration/migration.c`, `migration_thread`).
pub(super) const PING: u32 = 1;

/// What the thread has heard.
enum Heard {
    Said(Said),
    Over(Result<()>),
}

/// The conversation as the thread that reads and the one that writes see it; it outlives connections.
#[derive(Clone)]
pub(super) struct Dialogue(Arc<Mutex<SourceDialogue>>);

impl Dialogue {
    pub(super) fn new(dialogue: SourceDialogue) -> Self {
        Self(Arc::new(Mutex::new(dialogue)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SourceDialogue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How to listen.
pub(super) struct Ear {
    pub(super) connection: Connection,
    pub(super) channel: ChannelId,
    pub(super) tap: Option<ChannelTap>,
    pub(super) dialogue: Dialogue,
    pub(super) lines: Arc<Lines>,
    pub(super) page_size: u64,
    /// Requests that may wait.
    pub(super) depth: usize,
}

/// The return path, from the source's side.
pub(super) struct Replies {
    connection: Connection,
    channel: ChannelId,
    dialogue: Dialogue,
    heard: Receiver<Heard>,
    /// Pages that are needed now; whoever serves them elsewhere has taken it away.
    pub(super) requests: Receiver<Request>,
    thread: Option<JoinHandle<()>>,
    pong: bool,
    status: Option<u32>,
    /// Pages that have arrived, by block, and whether all blocks were told.
    pub(super) received: Vec<(usize, PageSet)>,
    pub(super) is_complete: bool,
    pub(super) is_resumed: bool,
    is_over: bool,
}

impl Replies {
    /// Begins to listen.
    pub(super) fn listen(ear: Ear) -> Result<Self> {
        let Ear { connection, channel, tap, dialogue, lines, page_size, depth } = ear;
        let (sender, heard) = bounded(QUEUE);
        let (ask, requests) = bounded(depth);
        let reader = connection.clone();
        connection.set_read_timeout(None)?;
        let listener = Listener { dialogue: dialogue.clone(), sender, ask, page_size };
        let listen = move || {
            let ended = match tap {
                Some(tap) => {
                    listener.listen(Streaming(Tap::new(reader.clone(), tap, Direction::ToSource)), channel)
                }
                None => listener.listen(Streaming(reader.clone()), channel),
            };
            // That there is nobody to tell means that nobody waits any more.
            if !matches!(ended, Ok(Some(0))) {
                lines.cut();
            }
            let _ = listener.sender.send(Heard::Over(ended.map(|_| ())));
        };
        let thread = thread::Builder::new().name("return-path".to_owned()).spawn(listen);
        let thread = thread.map_err(|e| Error::io(DOING, "its thread cannot be started", e))?;
        Ok(Self {
            connection,
            channel,
            dialogue,
            heard,
            requests,
            thread: Some(thread),
            pong: false,
            status: None,
            received: Vec::new(),
            is_complete: false,
            is_resumed: false,
            is_over: false,
        })
    }

    /// A PING leaves.
    pub(super) fn note_ping(&self, value: u32) {
        self.dialogue.lock().note_ping(value);
    }

    /// Whether an answer to this PING is still to come.
    pub(super) fn awaits_pong(&self, value: u32) -> bool {
        self.dialogue.lock().awaits_pong(value)
    }

    /// Whether a PING was answered.
    pub(super) fn has_pong(&self) -> bool {
        self.pong
    }

    /// The status that SHUT carried, once it has come.
    pub(super) fn status(&self) -> Option<u32> {
        self.status
    }

    /// Takes note of what has come so far.
    ///
    /// # Errors
    /// If the destination has failed, or said what it may not say.
    pub(super) fn poll(&mut self) -> Result<()> {
        loop {
            match self.heard.try_recv() {
                Ok(heard) => self.note(heard)?,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Waits until `is_there`; nothing is left that requests could ask for. `false`: it has not come in time.
    pub(super) fn wait(
        &mut self,
        patience: Duration,
        is_there: fn(&Self) -> bool,
        service: &Service,
    ) -> Result<bool> {
        let mut deadline = Instant::now() + patience;
        while !is_there(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            select! {
                recv(self.heard) -> heard => {
                    self.note(heard.map_err(|_| self.silent())?)?;
                    deadline = Instant::now() + patience;
                }
                recv(self.requests) -> request => match request {
                    Ok(request) => service.note_unneeded(&request),
                    Err(_) => self.requests = never(),
                },
                default(left) => {}
            }
        }
        Ok(true)
    }

    /// What the destination had to say about a write that failed, if it said anything.
    pub(super) fn reason(&mut self) -> Option<Error> {
        // A thread that waits for room in the queue is let go.
        self.requests = never();
        // The thread meets the same end of the connection; what was said before is already in the queue.
        while !self.is_over && self.thread.is_some() {
            match self.heard.recv_timeout(Duration::from_secs(1)) {
                Ok(heard) => match self.note(heard) {
                    // That the connection ended is what the failed write says as well, and better.
                    Err(e) if self.is_over && e.kind() == ErrorKind::Peer => return None,
                    Err(e) => return Some(e),
                    Ok(()) => {}
                },
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }

    /// Ends the conversation, in which nothing more can be said.
    pub(super) fn stop(&mut self) {
        if self.status != Some(0) {
            let _ = self.connection.shutdown();
        }
        // A thread that waits for room in a queue is let go.
        self.heard = never();
        self.requests = never();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn note(&mut self, heard: Heard) -> Result<()> {
        match heard {
            Heard::Said(Said::Pong(_)) => self.pong = true,
            Heard::Said(Said::Shut(status)) => {
                self.status = Some(status);
                if status != 0 {
                    let message = format!("the destination reports that it failed (SHUT {status})");
                    return Err(Error::nowhere(ErrorKind::Peer, DOING, message).on(self.channel));
                }
            }
            Heard::Said(Said::Received { block, pages, complete }) => {
                self.received.push((block, pages));
                self.is_complete = complete;
            }
            Heard::Said(Said::Resumed) => self.is_resumed = true,
            Heard::Said(Said::Nothing | Said::Pages { .. } | Said::SwitchoverAck) => {}
            Heard::Over(ended) => {
                self.is_over = true;
                match ended {
                    Err(e) if e.kind() == ErrorKind::Io => return Err(broken_off(&e).on(self.channel)),
                    other => other?,
                }
                if self.status.is_none() {
                    return Err(self.silent());
                }
            }
        }
        Ok(())
    }

    fn silent(&self) -> Error {
        let message = "the destination closed the connection and did not say that it has finished (no SHUT)";
        Error::nowhere(ErrorKind::Peer, DOING, message).on(self.channel)
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        // After SHUT 0 the thread has ended by itself, and the connection is left to end in order.
        self.stop();
    }
}

/// What the thread works with.
struct Listener {
    dialogue: Dialogue,
    sender: Sender<Heard>,
    ask: Sender<Request>,
    page_size: u64,
}

impl Listener {
    /// Reads until SHUT, which is returned, or until the end.
    fn listen(&self, input: impl Input, channel: ChannelId) -> Result<Option<u32>> {
        let mut parser = ReturnParser::with(Mode::Strict, Dialect::ANY);
        Feed::new(input)
            .run(&mut parser, |located, _| {
                let said = self.dialogue.lock().handle(&located.event, located.range.start)?;
                let is_last = matches!(said, Said::Shut(_));
                let is_wanted = match said {
                    Said::Nothing | Said::SwitchoverAck => true,
                    Said::Pages { block, start, length } => {
                        let pages = start / self.page_size..(start + length) / self.page_size;
                        self.ask.send(Request { block, pages }).is_ok()
                    }
                    said => self.sender.send(Heard::Said(said)).is_ok(),
                };
                Ok(if is_wanted && !is_last { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })
            .map_err(|e| e.on(channel))?;
        Ok(parser.shut())
    }
}

fn broken_off(e: &Error) -> Error {
    let reason = std::error::Error::source(e).map_or_else(String::new, |source| format!(" ({source})"));
    let message =
        format!("the destination broke off the connection and did not say that it has finished{reason}");
    Error::nowhere(ErrorKind::Peer, DOING, message)
}

/// Whether an error of a write says that the peer is gone.
pub(super) fn is_gone(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(e.kind(), BrokenPipe | ConnectionReset | ConnectionAborted | NotConnected)
}
