//! The main channel as something to read that does not wait for ever.

use std::io::{self, Read as _};
use std::time::Duration;

use crate::capture::{ChannelTap, Direction};
use crate::channel::Input;
use crate::endpoint::pace::Pace;
use crate::transport::Connection;

/// The main channel as an input that runs out of patience.
pub(super) struct Patient<'a> {
    pub(super) connection: Connection,
    /// Bytes that have been read already.
    pub(super) first: Vec<u8>,
    pub(super) tap: Option<ChannelTap>,
    pub(super) pace: &'a Pace,
    /// EOF has come: the description follows at once or never.
    pub(super) lingering: bool,
}

/// How long the source may be silent where that may be the end: behind EOF, where a source whose machine has no description
/// says nothing and waits, and behind what may be EOF on streams without footers.
const LINGER: Duration = Duration::from_secs(2);

impl Patient<'_> {
    /// A recording that fails says so when it is finished; the migration goes on.
    fn record(&self, bytes: &[u8]) {
        if let Some(tap) = &self.tap {
            let _ = tap.record(Direction::ToDestination, bytes);
        }
    }
}

impl Input for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buffer.len());
            buffer[..count].copy_from_slice(&self.first[..count]);
            self.first.drain(..count);
            self.record(&buffer[..count]);
            return Ok(count);
        }
        let Some(patience) = self.pace.patience() else { return Err(io::ErrorKind::TimedOut.into()) };
        let linger = (self.lingering || self.pace.is_in_hurry()) && patience > LINGER;
        let wait = if linger { LINGER } else { patience };
        self.connection.set_read_timeout(Some(wait)).map_err(io::Error::other)?;
        let count = match self.connection.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::TimedOut && linger => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // The pages of a long round may come over other channels.
            Err(e) if e.kind() == io::ErrorKind::TimedOut && self.pace.patience().is_some() => {
                return Err(io::ErrorKind::Interrupted.into());
            }
            other => other?,
        };
        self.record(&buffer[..count]);
        Ok(count)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut left = count;
        let mut scrap = [0; 16 << 10];
        while left > 0 {
            let want = scrap.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match self.read(&mut scrap[..want])? {
                0 => break,
                n => left -= n as u64,
            }
        }
        Ok(count - left)
    }
}
