//! What is known of a connection beside its packets: what it is taken for, and which of its bytes have been passed on.

use core::net::SocketAddr;
use core::ops::Range;

use super::connection::{Ends, Side};
use crate::ChannelId;
use crate::capture::Timestamp;
use crate::multifd::Beginning;

/// See the module.
#[derive(Debug)]
pub(super) struct Tag {
    pub(super) ends: Ends,
    pub(super) opened: Timestamp,
    pub(super) opener: Option<Side>,
    pub(super) exact: [bool; 2],
    pub(super) closed: Option<Timestamp>,
    pub(super) encrypted: bool,
    pub(super) state: State,
    pub(super) flows: [Flow; 2],
    /// Migrations that there were when it was last looked at.
    pub(super) seen: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Undecided,
    Ignored,
    Member(Member),
}

/// Its place in a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) migration: usize,
    pub(super) connection: usize,
    pub(super) channel: ChannelId,
    pub(super) source: Side,
    pub(super) ends: [SocketAddr; 2],
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Its first bytes, while undecided, and their offset.
    pub(super) first: Vec<u8>,
    pub(super) first_offset: u64,
    pub(super) first_time: Timestamp,
    /// Where the next byte to be passed on is.
    pub(super) settled: u64,
    /// Where the last hole ended.
    pub(super) fragment: u64,
    pub(super) bytes: u64,
    pub(super) missing: Vec<Range<u64>>,
    /// There were too many holes: nothing is passed on any more.
    pub(super) muted: bool,
}

/// Bytes of one direction of a connection, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    pub(super) side: Side,
    pub(super) offset: u64,
    pub(super) time: Timestamp,
    pub(super) data: &'a [u8],
}

impl Tag {
    pub(super) fn new(ends: Ends, opened: Timestamp) -> Self {
        Self {
            ends,
            opened,
            opener: None,
            exact: [false; 2],
            closed: None,
            encrypted: false,
            state: State::Undecided,
            flows: Default::default(),
            seen: 0,
        }
    }

    pub(super) fn is_member(&self) -> bool {
        matches!(self.state, State::Member(_))
    }

    pub(super) fn has_bytes(&self) -> bool {
        self.flows.iter().any(|flow| !flow.first.is_empty())
    }

    pub(super) fn beginning(&self, side: Side) -> Option<Beginning> {
        let flow = &self.flows[side];
        Beginning::of(&flow.first).filter(|_| flow.first_offset == 0)
    }

    /// Who sends a magic number, and what it says.
    pub(super) fn magic(&self) -> Option<(Side, Beginning)> {
        [0, 1].into_iter().find_map(|side| {
            let found = self.beginning(side)?;
            matches!(found, Beginning::Main | Beginning::Multifd(_)).then_some((side, found))
        })
    }
}

impl Flow {
    /// What lies in front of `end` is missing.
    pub(super) fn lose(&mut self, end: u64) {
        match self.missing.last_mut() {
            Some(last) if last.end == self.settled => last.end = end,
            _ => self.missing.push(self.settled..end),
        }
        self.settled = end;
    }
}
