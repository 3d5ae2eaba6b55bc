//! Records what passes through a connection, without changing it.

use std::io::{self, IoSlice, Read, Write};

use crate::capture::{ChannelTap, Direction};

/// A reader or writer (or both) that hands every run of bytes that was read or written to a recording.
///
/// Bytes are recorded as they were taken from or accepted by the system, before the call returns. A byte that is
/// written is recorded just after the peer could see it, so a quick answer may stand in front of its question; a
/// proxy that records what it reads before it forwards it has no such doubt.
pub struct Tap<T> {
    inner: T,
    channel: ChannelTap,
    reads: Direction,
}

impl<T> Tap<T> {
    /// Records into `channel`; what is read goes in the direction `reads`, what is written in the other one.
    /// A destination reads [`Direction::ToDestination`].
    pub fn new(inner: T, channel: ChannelTap, reads: Direction) -> Self {
        Self { inner, channel, reads }
    }

    /// The tapped connection.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    fn record(&self, direction: Direction, data: &[u8]) -> io::Result<()> {
        self.channel.record(direction, data).map_err(io::Error::other)
    }
}

impl<T: Read> Read for Tap<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.record(self.reads, &buffer[..n])?;
        Ok(n)
    }
}

impl<T: Write> Write for Tap<T> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(data)?;
        self.record(self.reads.reverse(), &data[..n])?;
        Ok(n)
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        let n = self.inner.write_vectored(data)?;
        let mut left = n;
        for slice in data {
            let part = slice.len().min(left);
            self.record(self.reads.reverse(), &slice[..part])?;
            left -= part;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
