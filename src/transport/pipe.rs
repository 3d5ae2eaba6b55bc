//! Files and pipes: descriptors without timeouts of their own, so that `poll` has to do the waiting.
//!
//! A pipe that is written to is non-blocking, because a blocking `write` of more than `PIPE_BUF` bytes may
//! wait inside the kernel however ready `poll` called it.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags};

use super::child::Child;
use super::connection::{Connection, Io};
use super::{Address, Side};
use crate::{Error, Result};

/// What a pipe holds at most: the largest that an unprivileged process may ask for. A small pipe costs a switch
/// between the processes every 64 KiB.
const PIPE_SIZE: usize = 1 << 20;

/// What a pipe takes without blocking once `poll` says that it takes anything (`PIPE_BUF`).
const ATOMIC: usize = 4096;

/// How long a waiting thread goes on waiting after another one has called `shutdown`.
const SLICE: Duration = Duration::from_millis(100);

/// A connection made of up to two descriptors, and perhaps a child process behind them.
pub(super) struct Pipes {
    input: Option<End>,
    output: Mutex<Option<Arc<End>>>,
    writes: bool,
    read_timeout: Timeout,
    write_timeout: Timeout,
    shut: AtomicBool,
    /// Dropped last, when the pipes are closed, so that a child that ends by itself may.
    child: Option<Child>,
}

impl Pipes {
    pub(super) fn new(input: Option<End>, output: Option<End>, child: Option<Child>) -> Self {
        Self {
            input,
            writes: output.is_some(),
            output: Mutex::new(output.map(Arc::new)),
            read_timeout: Timeout::default(),
            write_timeout: Timeout::default(),
            shut: AtomicBool::new(false),
            child,
        }
    }

    pub(super) fn can_read(&self) -> bool {
        self.input.is_some()
    }

    pub(super) fn can_write(&self) -> bool {
        self.writes
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.read_timeout.set(timeout);
    }

    pub(super) fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.write_timeout.set(timeout);
    }

    pub(super) fn shutdown_write(&self) {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn shutdown(&self) {
        self.shut.store(true, Ordering::Release);
        self.shutdown_write();
    }

    pub(super) fn wait(&self, timeout: Duration) -> Result<()> {
        self.child.as_ref().map_or(Ok(()), |child| child.wait(timeout))
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let input = self.input.as_ref().ok_or_else(|| misuse("this connection is only written to"))?;
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = loop {
            if input.kind != Kind::Regular && !self.ready(input, PollFlags::IN, &self.read_timeout)? {
                break 0;
            }
            match (&input.file).read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => break other?,
            }
        };
        match &self.child {
            Some(child) if n == 0 && !self.shut.load(Ordering::Acquire) => child.after_end().map(|()| 0),
            _ => Ok(n),
        }
    }

    pub(super) fn write_vectored(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.writes {
            return Err(misuse("this connection is only read from"));
        }
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let output = output.ok_or(io::ErrorKind::BrokenPipe)?;
        if data.iter().all(|slice| slice.is_empty()) {
            return Ok(0);
        }
        loop {
            // A non-blocking pipe is asked first and waited for only when it is full.
            let must_wait = matches!(output.kind, Kind::BlockingPipe | Kind::Device);
            if must_wait && !self.ready(&output, PollFlags::OUT, &self.write_timeout)? {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let mut file = &output.file;
            let written = match (output.kind, data.iter().find(|slice| !slice.is_empty())) {
                (Kind::BlockingPipe, Some(first)) => file.write(&first[..first.len().min(ATOMIC)]),
                _ => file.write_vectored(data),
            };
            match written {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !self.ready(&output, PollFlags::OUT, &self.write_timeout)? {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                    // If a child is behind it, why it went away says more than that it did.
                    self.child.as_ref().map_or(Ok(()), Child::after_end)?;
                    return Err(e);
                }
                other => return other,
            }
        }
    }

    /// Waits until something can be read or written, or until the end of the pipe can be seen by trying. False after
    /// [`shutdown`](Self::shutdown).
    fn ready(&self, end: &End, flags: PollFlags, timeout: &Timeout) -> io::Result<bool> {
        let limit = timeout.get();
        let start = Instant::now();
        loop {
            if self.shut.load(Ordering::Acquire) {
                return Ok(false);
            }
            let left = limit.map_or(SLICE, |limit| limit.saturating_sub(start.elapsed()).min(SLICE));
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match rustix::event::poll(&mut [PollFd::new(&end.file, flags)], Some(&left)) {
                Ok(0) => {}
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            if limit.is_some_and(|limit| start.elapsed() >= limit) {
                let what = match flags {
                    PollFlags::IN => "nothing was received in time",
                    _ => "the peer took nothing in time",
                };
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
        }
    }
}

/// One descriptor that is read from or written to.
pub(super) struct End {
    file: File,
    kind: Kind,
}

/// How a descriptor has to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Never makes anybody wait for long.
    Regular,
    /// Has to be asked by `poll` first, and then takes what it is given: a terminal, /dev/null.
    Device,
    /// Ours alone, and non-blocking if it is written to.
    Pipe,
    /// Shared with processes that expect it to block, so it is written to in pieces of [`ATOMIC`] bytes.
    BlockingPipe,
}

impl End {
    /// The reading end. It may be shared with other processes, as it need not be made non-blocking.
    pub(super) fn reading(fd: OwnedFd) -> io::Result<Self> {
        let kind = match file_type(&fd)? {
            FileType::RegularFile | FileType::BlockDevice => Kind::Regular,
            FileType::Fifo => Kind::Pipe,
            _ => Kind::Device,
        };
        enlarge(&fd, kind);
        Ok(Self { file: File::from(fd), kind })
    }

    /// The writing end. `owned`: its open file description is nobody else's, so it can be made non-blocking;
    /// otherwise another description of the same pipe is opened, where the system lets us.
    pub(super) fn writing(fd: OwnedFd, owned: bool) -> io::Result<Self> {
        let (kind, fd) = match file_type(&fd)? {
            FileType::RegularFile | FileType::BlockDevice => (Kind::Regular, fd),
            FileType::Fifo if owned => {
                let flags = rustix::fs::fcntl_getfl(&fd)?;
                rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
                (Kind::Pipe, fd)
            }
            FileType::Fifo => match reopen(&fd) {
                Ok(again) => (Kind::Pipe, again),
                Err(_) => (Kind::BlockingPipe, fd),
            },
            _ => (Kind::Device, fd),
        };
        enlarge(&fd, kind);
        Ok(Self { file: File::from(fd), kind })
    }
}

#[cfg(test)]
impl End {
    /// The writing end as it is where the pipe cannot be opened again.
    pub(super) fn writing_blocking(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), kind: Kind::BlockingPipe }
    }
}

/// A timeout that any thread may change: nanoseconds, or zero for none.
#[derive(Default)]
pub(super) struct Timeout(AtomicU64);

impl Timeout {
    pub(super) fn set(&self, timeout: Option<Duration>) {
        let nanoseconds = timeout.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX));
        self.0.store(nanoseconds, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            nanoseconds => Some(Duration::from_nanos(nanoseconds)),
        }
    }
}

/// Opens a file as QEMU does (`migration/file.c`): the source creates it and cuts it off at the offset, so that
/// what stands in front of it stays; the destination starts reading at the offset.
pub(super) fn open(address: &Address, path: &Path, offset: u64, side: Side) -> Result<Connection> {
    let (reading, writing, doing) = match side {
        Side::Destination => (true, false, "opening a file"),
        Side::Source => (false, true, "creating a file"),
    };
    let opened = OpenOptions::new().read(reading).write(writing).create(writing).mode(0o660).open(path);
    let end = opened.and_then(|mut file| {
        let regular = file.metadata()?.is_file();
        if writing && (regular || offset > 0) {
            file.set_len(offset)?;
        }
        if offset > 0 {
            file.seek(SeekFrom::Start(offset))?;
        }
        match side {
            Side::Destination => End::reading(file.into()),
            Side::Source => End::writing(file.into(), true),
        }
    });
    let end = end.map_err(|e| Error::io(doing, address.to_string(), e))?;
    let pipes = match side {
        Side::Destination => Pipes::new(Some(end), None, None),
        Side::Source => Pipes::new(None, Some(end), None),
    };
    Ok(Connection::new(Io::Pipes(pipes), address.to_string(), address.to_string()))
}

pub(super) fn file_type(fd: &impl AsFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// Another open file description of the same pipe, non-blocking without disturbing those who share the first.
fn reopen(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd));
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    Ok(OpenOptions::new().write(true).custom_flags(flags).open(path)?.into())
}

fn enlarge(fd: &OwnedFd, kind: Kind) {
    if matches!(kind, Kind::Pipe | Kind::BlockingPipe) {
        // Only faster, never needed: the limit of all pipes of a user may be reached.
        let _ = rustix::pipe::fcntl_setpipe_size(fd, PIPE_SIZE);
    }
}

fn misuse(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}
