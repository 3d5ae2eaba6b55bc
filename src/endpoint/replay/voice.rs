//! Sends one channel as it was recorded.

use std::io::{self, Read as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::score::{Gate, Voice};
use super::stage::Stage;
use super::{Timing, is_main};
use crate::capture::{ChannelTap, Direction, Timestamp};
use crate::channel::Input as _;
use crate::container::Access;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::Connection;

/// Bytes that are sent at once: what a socket holds at most by default.
const CHUNK: usize = 256 << 10;

/// One channel on its way.
pub(super) struct Singer<'a> {
    pub(super) voice: &'a mut Voice,
    pub(super) connection: Connection,
    pub(super) stage: &'a Stage,
    pub(super) tap: Option<ChannelTap>,
    pub(super) clock: Clock,
    pub(super) sent: &'a AtomicU64,
    /// How long a destination is given for what it has got.
    pub(super) settling: Duration,
}

/// When it is time for what.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) timing: Timing,
    /// When the replay began, and when the recording did.
    pub(super) begin: Instant,
    pub(super) origin: Timestamp,
}

impl Clock {
    /// Waits until something that was recorded at `time` is due.
    fn await_turn(&self, time: Option<Timestamp>, stage: &Stage) {
        let Some(time) = time else { return };
        let due = self.begin + Duration::from_nanos(time.0.saturating_sub(self.origin.0));
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if stage.failure().is_some() {
                return;
            }
            // Waiting for its time is no silence.
            stage.note_progress();
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    }
}

impl Singer<'_> {
    pub(super) fn sing(mut self) {
        let outcome = match self.clock.timing {
            Timing::Fast if self.tap.is_none() => self.sing_runs(),
            Timing::Fast => self.sing_fast(),
            Timing::Recorded => self.sing_in_time(),
        };
        if let Err(e) = outcome {
            self.stage.fail(e);
        }
        self.stage.note_voice();
    }

    /// The bytes go from the recording to the connection without passing through here.
    fn sing_runs(&mut self) -> Result<()> {
        let Some((file, places)) = self.voice.part.runs()? else { return self.sing_fast() };
        for place in places {
            let mut done = 0;
            while done < u64::from(place.len) {
                let room = self.pass_gates()?.min(u64::from(place.len) - done);
                if room == 0 {
                    return Ok(());
                }
                match self.connection.send_file(&file, place.offset + done, room as usize) {
                    Ok(None) if self.sent.load(Ordering::Relaxed) == 0 => return self.sing_fast(),
                    Ok(None) => return Err(self.broken(io::ErrorKind::Unsupported.into())),
                    Ok(Some(0)) => {
                        return Err(unreadable(io::ErrorKind::UnexpectedEof.into()).on(self.voice.channel));
                    }
                    Ok(Some(sent)) => {
                        done += sent as u64;
                        self.note(sent as u64);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(self.broken(e)),
                }
            }
        }
        // What stands behind the last byte.
        self.pass_gates().map(|_| ())
    }

    fn sing_fast(&mut self) -> Result<()> {
        let channel = self.voice.channel;
        let mut input = self.voice.part.input(Access::Whole)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let room = self.pass_gates()?.min(CHUNK as u64) as usize;
            if room == 0 {
                return Ok(());
            }
            let count = match input.read(&mut buffer[..room]) {
                Ok(count) => count,
                // The recording is broken here; what is there is played.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => 0,
                Err(e) => return Err(unreadable(e).on(channel)),
            };
            if count == 0 {
                return Ok(());
            }
            self.send(&buffer[..count])?;
        }
    }

    fn sing_in_time(&mut self) -> Result<()> {
        let channel = self.voice.channel;
        let Some(mut input) = self.voice.part.timed()? else { return self.sing_fast() };
        let mut buffer = vec![0; CHUNK];
        loop {
            let room = self.pass_gates()?.min(CHUNK as u64) as usize;
            if room == 0 {
                return Ok(());
            }
            let count = match input.read(&mut buffer[..room]) {
                Ok(count) => count,
                // The recording is broken here; what is there is played.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => 0,
                Err(e) => return Err(unreadable(e).on(channel)),
            };
            if count == 0 {
                return Ok(());
            }
            self.clock.await_turn(input.time(), self.stage);
            self.send(&buffer[..count])?;
        }
    }

    /// Waits for all that has to happen before the next byte; how many may follow then. None, if it stops here.
    fn pass_gates(&mut self) -> Result<u64> {
        let sent = self.sent.load(Ordering::Relaxed);
        let left = self.voice.stop.map_or(u64::MAX, |stop| stop.saturating_sub(sent));
        while let Some((at, gate)) = self.voice.gates.first().copied() {
            if left == 0 || at > sent {
                return Ok(left.min(at.saturating_sub(sent)));
            }
            self.stage.pass(gate)?;
            if gate == Gate::Alone {
                // No word of a destination says how far it is on another channel.
                thread::sleep(self.settling);
            }
            self.voice.gates.remove(0);
        }
        Ok(left)
    }

    fn send(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match (&self.connection).write(bytes) {
                Ok(taken) if taken > 0 => {
                    if let Some(tap) = &self.tap {
                        // A recording that fails says so when it is finished.
                        let _ = tap.record(Direction::ToDestination, &bytes[..taken]);
                    }
                    bytes = &bytes[taken..];
                    self.note(taken as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => {
                    let e = other.err().unwrap_or(io::ErrorKind::WriteZero.into());
                    return Err(self.broken(e));
                }
            }
        }
        Ok(())
    }

    fn note(&self, bytes: u64) {
        let sent = self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match is_main(self.voice.channel) {
            true => self.stage.note_sent(sent),
            false => self.stage.note_progress(),
        }
    }

    fn broken(&self, e: io::Error) -> Error {
        let sent = self.sent.load(Ordering::Relaxed);
        self.connection.error("replaying", e).on(self.voice.channel).at(sent)
    }
}

fn unreadable(e: io::Error) -> Error {
    Error::io("replaying", "the recording cannot be read", e)
}

/// Whether an error says that the other end broke off.
pub(super) fn is_broken_off(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Truncated) && error.doing() == "replaying"
}
