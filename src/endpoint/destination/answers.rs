//! What a stand-in destination says to its source.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use crate::capture::{ChannelTap, Direction};
use crate::error::{ChannelId, Result};
use crate::limits::PIECE;
use crate::postcopy::{PageSet, bitmap_size, page_count};
use crate::stream::Block;
use crate::transport::Connection;
use crate::wire::{BitmapHead, Message, Name, RECV_BITMAP_END, Sink as _, Wire as _};

/// The return path, from this side. Clones speak one after the other.
#[derive(Clone)]
pub(super) struct Answers {
    pub(super) connection: Connection,
    pub(super) channel: ChannelId,
    pub(super) tap: Option<ChannelTap>,
    pub(super) enabled: bool,
    pub(super) is_open: bool,
    pub(super) acknowledge: u32,
    /// Acknowledge whenever a device says that its initial data is there.
    pub(super) acknowledge_each: bool,
    pub(super) turn: Arc<Mutex<()>>,
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
        self.put(&bytes)
    }

    /// Says which pages of a block have arrived.
    pub(super) fn say_received(&mut self, block: &Block, page_size: u64, received: &PageSet) -> Result<()> {
        let mut bytes = Vec::with_capacity(PIECE + 64);
        Message::RecvBitmap { block: Name(&block.name) }.emit(&mut bytes);
        BitmapHead { size: bitmap_size(block, page_size) }.emit(&mut bytes);
        for word in received.wire_words(page_count(block, page_size)) {
            bytes.extend_from_slice(&word.to_le_bytes());
            if bytes.len() >= PIECE {
                self.put(&bytes)?;
                bytes.clear();
            }
        }
        bytes.be64(RECV_BITMAP_END);
        self.put(&bytes)
    }

    /// Sends whole messages, if the source listens.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.is_open {
            return Ok(());
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let said = self.connection.write_all(bytes);
        said.map_err(|e| self.connection.error("answering the source", e).on(self.channel))?;
        // A recording that fails says so when it is finished; the migration goes on.
        if let Some(tap) = &self.tap {
            let _ = tap.record(Direction::ToSource, bytes);
        }
        Ok(())
    }
}
