//! `exec:COMMAND`: a shell command as a peer.
//!
//! ```text
//!  write --> pipe --> stdin  [sh -c COMMAND]  stdout --> pipe --> read
//!                                 stderr --> our stderr, the end of it kept for the error
//! ```
//!
//! The child leads a process group of its own, so that the parts of a pipeline end with it and a Ctrl-C at the
//! terminal is ours to handle. It never outlives its connection: on drop it sees the end of its input, has a moment
//! to end, and is killed with its group.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};

use super::Address;
use super::connection::{Connection, Io};
use super::pipe::{End, Pipes};
use crate::{Error, ErrorKind, Result};

const DOING: &str = "running a command";

/// How long a child may take from closing its pipes to its exit status.
const AFTER_END: Duration = Duration::from_secs(1);
/// How long it may take to end by itself when the connection is dropped.
const GRACE: Duration = Duration::from_millis(250);
/// So much of its standard error is kept for the error.
const LAST_WORDS: usize = 2048;

pub(super) struct Child {
    command: String,
    process: Mutex<Process>,
    words: Arc<Words>,
    listener: Option<JoinHandle<()>>,
}

struct Process {
    child: process::Child,
    status: Option<ExitStatus>,
}

/// Standard error of the child, as it was passed on.
#[derive(Default)]
struct Words {
    last: Mutex<Vec<u8>>,
    over: AtomicBool,
}

pub(super) fn open(address: &Address, command: &str) -> Result<Connection> {
    let (child, input, output) =
        Child::start(command).map_err(|e| Error::io(DOING, address.to_string(), e))?;
    let pipes = Pipes::new(Some(output), Some(input), Some(child));
    Ok(Connection::new(Io::Pipes(pipes), address.to_string(), address.to_string()))
}

impl Child {
    /// Starts the command; also gives its standard input, to write to, and its standard output, to read from.
    fn start(command: &str) -> io::Result<(Self, End, End)> {
        let piped = || Stdio::piped();
        let mut sh = Command::new("sh");
        sh.arg("-c").arg(command).stdin(piped()).stdout(piped()).stderr(piped()).process_group(0);
        let mut child = sh.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut this = Self {
            command: command.to_owned(),
            process: Mutex::new(Process { child, status: None }),
            words: Arc::default(),
            listener: None,
        };
        // From here on, dropping `this` reaps the child.
        let (Some(input), Some(output), Some(errors)) = pipes else {
            return Err(io::Error::other("the command was started without pipes"));
        };
        let words = Arc::clone(&this.words);
        let listener = thread::Builder::new().name("exec-stderr".into());
        this.listener = Some(listener.spawn(move || words.listen(&errors.into()))?);
        Ok((this, End::writing(input.into(), true)?, End::reading(output.into())?))
    }

    /// Waits for the child to end by itself, and says how it failed if it did.
    pub(super) fn wait(&self, timeout: Duration) -> Result<()> {
        match self.status_within(timeout) {
            Ok(Some(status)) => self.verdict(status),
            Ok(None) => {
                let message = format!("`{}` has not ended after {timeout:?}", self.command);
                Err(Error::nowhere(ErrorKind::Timeout, DOING, message))
            }
            Err(e) => Err(Error::io(DOING, format!("`{}` cannot be waited for", self.command), e)),
        }
    }

    /// To be called when one of the child's pipes has ended: an error if that is because the child failed. A child
    /// that is still alive has only closed the pipe, which is no failure.
    pub(super) fn after_end(&self) -> io::Result<()> {
        match self.status_within(AFTER_END)? {
            Some(status) => self.verdict(status).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    fn status_within(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_micros(200);
        loop {
            let status = self.process.lock().unwrap_or_else(PoisonError::into_inner).poll()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn verdict(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        // The child has ended, so what it said is in the pipe; give the listener a moment to take it out.
        let deadline = Instant::now() + GRACE;
        while self.listener.as_ref().is_some_and(|l| !l.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => status.to_string(),
        };
        let last = self.words.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = String::from_utf8_lossy(&last);
        let message = match last.trim() {
            "" => format!("`{}` {how}", self.command),
            words => format!("`{}` {how}: {words}", self.command),
        };
        Err(Error::nowhere(ErrorKind::Peer, DOING, message))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Its pipes are closed already: a child that ends at the end of its input gets the time to.
        let ended = self.status_within(GRACE);
        if !matches!(ended, Ok(Some(_))) {
            let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
            // The child is not reaped yet, so its number, and with it the group's, cannot belong to anybody else.
            let group = i32::try_from(process.child.id()).ok().and_then(Pid::from_raw);
            if let Some(group) = group {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
        self.words.over.store(true, Ordering::Release);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Process {
    fn poll(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }
}

impl Words {
    /// Passes the child's standard error on to ours until it ends. A grandchild may keep the pipe open for ever, so
    /// the thread also ends soon after the connection does.
    fn listen(&self, errors: &OwnedFd) {
        let mut buffer = [0; 1024];
        let tick = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        loop {
            match rustix::event::poll(&mut [PollFd::new(errors, PollFlags::IN)], Some(&tick)) {
                Ok(0) if self.over.load(Ordering::Acquire) => return,
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(_) => return,
            }
            let n = match rustix::io::read(errors, &mut buffer) {
                Ok(0) => return,
                Ok(n) => n,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
            };
            // If our own standard error is closed, the words are at least kept.
            let _ = io::stderr().write_all(&buffer[..n]);
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.extend_from_slice(&buffer[..n]);
            let excess = last.len().saturating_sub(LAST_WORDS);
            last.drain(..excess);
        }
    }
}
