//! What a stand-in destination says to its source.

use std::io::Write as _;

use crate::capture::{ChannelTap, Direction};
use crate::error::Result;
use crate::transport::Connection;
use crate::wire::{Message, Wire as _};

/// The return path, from this side.
pub(super) struct Answers {
    pub(super) connection: Connection,
    pub(super) tap: Option<ChannelTap>,
    pub(super) enabled: bool,
    pub(super) is_open: bool,
    pub(super) acknowledge: u32,
    /// Acknowledge whenever a device says that its initial data is there.
    pub(super) acknowledge_each: bool,
}

impl Answers {
    /// The source listens from now on.
    pub(super) fn open(&mut self) -> Result<()> {
        if self.is_open || !self.enabled {
            return Ok(());
        }
        self.is_open = true;
        for _ in 0..self.acknowledge {
            self.say(&Message::SwitchoverAck)?;
        }
        Ok(())
    }

    /// Sends one message, if the source listens.
    pub(super) fn say(&mut self, message: &Message<'_>) -> Result<()> {
        if !self.is_open {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(message.wire_len());
        message.emit(&mut bytes);
        self.connection.write_all(&bytes).map_err(|e| self.connection.error("answering the source", e))?;
        // A recording that fails says so when it is finished; the migration goes on.
        if let Some(tap) = &self.tap {
            let _ = tap.record(Direction::ToSource, &bytes);
        }
        Ok(())
    }
}
