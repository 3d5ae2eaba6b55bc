//! What the destination says while the source sends: a thread that reads the return path.
//!
//! ```text
//! connection --> ReturnParser --> Heard --bounded queue--> Replies: poll while sending, wait at the end
//! ```
//! A destination that fails says SHUT 1, or nothing, and closes. The thread then ends all connections from this side
//! as well, so that a source that is stuck in a write does not have to wait for its timeout.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, bounded};

use super::shared::Lines;
use crate::capture::{ChannelTap, Direction};
use crate::channel::{Feed, Input, Streaming};
use crate::dialect::Dialect;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::postcopy::{Reply, ReturnParser};
use crate::stream::Mode;
use crate::transport::{Connection, Tap};
use crate::wire::Message;

const DOING: &str = "return path";

/// Messages that may wait: a precopy destination sends three in all, so a full queue means one that floods us, which
/// may then wait itself.
const QUEUE: usize = 64;

/// The only PING of a precopy source (`migration/migration.c`, `migration_thread`).
pub(super) const PING: u32 = 1;

/// What the thread has heard.
enum Heard {
    Pong { value: u32, at: u64 },
    Shut(u32),
    Other,
    Over(Result<()>),
}

/// The return path, from the source's side.
pub(super) struct Replies {
    connection: Connection,
    heard: Receiver<Heard>,
    thread: Option<JoinHandle<()>>,
    pong: bool,
    status: Option<u32>,
    is_over: bool,
}

impl Replies {
    /// Begins to listen on `connection`.
    pub(super) fn listen(
        connection: &Connection,
        tap: Option<ChannelTap>,
        dialect: Dialect,
        lines: Arc<Lines>,
    ) -> Result<Self> {
        let (sender, heard) = bounded(QUEUE);
        let reader = connection.clone();
        connection.set_read_timeout(None)?;
        let listen = move || {
            let ended = match tap {
                Some(tap) => {
                    listen(Streaming(Tap::new(reader.clone(), tap, Direction::ToSource)), dialect, &sender)
                }
                None => listen(Streaming(reader.clone()), dialect, &sender),
            };
            // That there is nobody to tell means that nobody waits any more.
            if !matches!(ended, Ok(Some(0))) {
                lines.cut();
            }
            let _ = sender.send(Heard::Over(ended.map(|_| ())));
        };
        let thread = thread::Builder::new().name("return-path".to_owned()).spawn(listen);
        let thread = thread.map_err(|e| Error::io(DOING, "its thread cannot be started", e))?;
        Ok(Self {
            connection: connection.clone(),
            heard,
            thread: Some(thread),
            pong: false,
            status: None,
            is_over: false,
        })
    }

    /// Whether PING was answered.
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

    /// Waits for SHUT. `None`: it has not come in time.
    pub(super) fn wait(&mut self, patience: Duration) -> Result<Option<u32>> {
        while self.status.is_none() {
            match self.heard.recv_timeout(patience) {
                Ok(heard) => self.note(heard)?,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err(silent()),
            }
        }
        Ok(self.status)
    }

    /// What the destination had to say about a write that failed, if it said anything.
    pub(super) fn reason(&mut self) -> Option<Error> {
        // The thread meets the same end of the connection; what was said before is already in the queue.
        while !self.is_over && self.thread.is_some() {
            match self.heard.recv_timeout(Duration::from_secs(1)) {
                Ok(heard) => match self.note(heard) {
                    // That the connection ended is what the failed write says as well, and better.
                    Err(e) if self.is_over && e.kind() == ErrorKind::Peer => return None,
                    Err(e) => return Some(e),
                    Ok(()) => {}
                },
                Err(_) => return None,
            }
        }
        None
    }

    fn note(&mut self, heard: Heard) -> Result<()> {
        match heard {
            Heard::Pong { value: PING, .. } => self.pong = true,
            Heard::Pong { value, at } => {
                let message = format!("PONG {value:#x}, which answers no PING");
                return Err(Error::new(ErrorKind::OutOfOrder, at, DOING, message).on(ChannelId::ReturnPath));
            }
            Heard::Shut(status) => {
                self.status = Some(status);
                if status != 0 {
                    let message = format!("the destination reports that it failed (SHUT {status})");
                    return Err(Error::nowhere(ErrorKind::Peer, DOING, message).on(ChannelId::ReturnPath));
                }
            }
            Heard::Other => {}
            Heard::Over(ended) => {
                self.is_over = true;
                match ended {
                    Err(e) if e.kind() == ErrorKind::Io => return Err(broken_off(&e)),
                    other => other?,
                }
                if self.status.is_none() {
                    return Err(silent());
                }
            }
        }
        Ok(())
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        // After SHUT 0 the thread has ended by itself, and the connection is left to end in order.
        if self.status != Some(0) {
            let _ = self.connection.shutdown();
        }
        // A thread that waits for room in the queue is let go.
        self.heard = crossbeam_channel::never();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads until SHUT, which is returned, or until the end.
fn listen(
    input: impl Input,
    dialect: Dialect,
    sender: &crossbeam_channel::Sender<Heard>,
) -> Result<Option<u32>> {
    let mut parser = ReturnParser::with(Mode::Strict, dialect);
    Feed::new(input)
        .run(&mut parser, |located, _| {
            let at = located.range.start;
            let heard = match &located.event {
                Reply::Message(Message::Pong(value)) => Heard::Pong { value: *value, at },
                Reply::Message(Message::Shut(status)) => Heard::Shut(*status),
                Reply::Message(Message::SwitchoverAck) => Heard::Other,
                other => {
                    let message = format!("{other:?}, which only a postcopy source can answer");
                    return Err(Error::new(ErrorKind::OutOfOrder, at, DOING, message));
                }
            };
            let is_last = matches!(heard, Heard::Shut(_));
            let is_wanted = sender.send(heard).is_ok();
            Ok(if is_wanted && !is_last { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })
        .map_err(|e| e.on(ChannelId::ReturnPath))?;
    Ok(parser.shut())
}

fn broken_off(e: &Error) -> Error {
    let reason = std::error::Error::source(e).map_or_else(String::new, |source| format!(" ({source})"));
    let message =
        format!("the destination broke off the connection and did not say that it has finished{reason}");
    Error::nowhere(ErrorKind::Peer, DOING, message).on(ChannelId::ReturnPath)
}

fn silent() -> Error {
    let message = "the destination closed the connection and did not say that it has finished (no SHUT)";
    Error::nowhere(ErrorKind::Peer, DOING, message).on(ChannelId::ReturnPath)
}

/// Whether an error of a write says that the peer is gone.
pub(super) fn is_gone(e: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
    matches!(e.kind(), BrokenPipe | ConnectionReset | ConnectionAborted | NotConnected)
}
