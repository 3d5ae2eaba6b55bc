//! From socket to socket through a pipe, without a copy in this process: the kernel passes pages on by reference.
//!
//! ```text
//! socket --splice--> Pipe --splice--> socket
//!                     '--tee--> Pipe --splice--> file
//! ```
//! Nobody changes these pages any more: they belong to packets that have arrived, and whoever holds one counts as its owner.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::Connection;
use super::connection::silence;

/// A pipe that bytes only pass through: who puts some in takes them out again.
pub(crate) struct Pipe {
    reader: File,
    writer: OwnedFd,
}

impl Pipe {
    /// A pipe for about `size` bytes, or for as many as this user may have.
    pub(crate) fn new(size: usize) -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // Only faster, never needed: the limit of all pipes of a user may be reached.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, size);
        Ok(Self { reader: reader.into(), writer })
    }

    /// Puts up to `len` of the next bytes into `other`, too; at least one of them, or `WouldBlock` if it is full.
    pub(crate) fn tee(&self, other: &Self, len: usize) -> io::Result<usize> {
        match again(|| rustix::pipe::tee(&self.reader, &other.writer, len, SpliceFlags::NONBLOCK))? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            count => Ok(count),
        }
    }

    /// Takes out the next `len` bytes, which are in it.
    pub(crate) fn take(&self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        (&*self).read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Read for &Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.reader).read(buffer)
    }
}

impl Connection {
    /// Moves what has arrived into a pipe, which is empty: up to `len` bytes, 0 at the end. `None` if this connection is not made for
    /// that; then nothing has been taken.
    pub(crate) fn splice_into(&self, pipe: &Pipe, len: usize) -> io::Result<Option<usize>> {
        let Some(socket) = self.socket() else { return Ok(None) };
        match again(|| rustix::pipe::splice(socket, None, &pipe.writer, None, len, SpliceFlags::empty())) {
            Ok(count) => Ok(Some(count)),
            Err(Errno::INVAL | Errno::NOSYS) => Ok(None),
            Err(e) => Err(silence(e.into(), "nothing was received in time")),
        }
    }

    /// Whether there is something to read, be it the end.
    pub(crate) fn has_bytes(&self) -> bool {
        self.is_ready(PollFlags::IN)
    }

    /// Whether something can be written without waiting.
    pub(crate) fn takes_bytes(&self) -> bool {
        self.is_ready(PollFlags::OUT)
    }

    fn is_ready(&self, flags: PollFlags) -> bool {
        let Some(socket) = self.socket() else { return false };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut [PollFd::new(socket, flags)], Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Writes bytes of a pipe, up to `len` that are in it; at least one. `None` if this connection is not made for that; then
    /// nothing has been taken.
    pub(crate) fn splice_from(&self, pipe: &Pipe, len: usize) -> io::Result<Option<usize>> {
        let Some(socket) = self.socket() else { return Ok(None) };
        match again(|| rustix::pipe::splice(&pipe.reader, None, socket, None, len, SpliceFlags::empty())) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => Ok(Some(count)),
            Err(Errno::INVAL | Errno::NOSYS) => Ok(None),
            Err(e) => Err(silence(e.into(), "the peer took nothing in time")),
        }
    }
}

fn again(mut call: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
