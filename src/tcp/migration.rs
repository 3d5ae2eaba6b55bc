//! One migration of a capture, as it goes on: which connections belong to it, and what they are.

use core::net::{IpAddr, SocketAddr};
use std::collections::BTreeMap;

use super::ChannelReport;
use super::connection::{Ends, Side};
use super::tag::Tag;
use crate::ChannelId;
use crate::capture::Timestamp;
use crate::multifd::Beginning;

/// See the module.
#[derive(Debug)]
pub(super) struct Migration {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) began: Timestamp,
    pub(super) channels: Vec<Option<ChannelReport>>,
    pub(super) members: Vec<Ends>,
    /// Connections that have not ended, and when the last one did.
    pub(super) open: usize,
    pub(super) last_closed: Timestamp,
    pub(super) has_main: bool,
    /// When the main channel ended, unless it goes on in another connection.
    pub(super) main_closed: Option<Timestamp>,
    pub(super) pauses: u32,
    /// Multifd channels, and whether their connection has ended.
    pub(super) multifd: BTreeMap<u8, bool>,
    pub(super) fragments: usize,
    pub(super) is_over: bool,
}

/// Where connections of a migration go: from this host, to this port of that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) from: IpAddr,
    pub(super) to: SocketAddr,
}

impl Migration {
    /// Whether a connection with that beginning belongs to this migration, and not to one that follows it.
    pub(super) fn takes(&self, tag: &Tag, magic: Option<Beginning>) -> bool {
        match magic {
            Some(Beginning::Main) => !self.has_main && (self.open > 0 || tag.opened <= self.last_closed),
            Some(Beginning::Multifd(id)) => self.overlaps(tag) && self.multifd.get(&id) != Some(&true),
            _ => true,
        }
    }

    pub(super) fn overlaps(&self, tag: &Tag) -> bool {
        self.main_closed.is_none_or(|closed| tag.opened <= closed)
            && tag.closed.is_none_or(|closed| closed >= self.began)
    }

    /// What a connection is in this migration. `is_certain`: it is not going to say more.
    pub(super) fn channel(&self, tag: &Tag, source: Side, is_certain: bool) -> Option<ChannelId> {
        let overlaps = self.overlaps(tag);
        match tag.beginning(source) {
            Some(Beginning::Main) => Some(ChannelId::Main),
            Some(Beginning::Multifd(id)) => Some(ChannelId::Multifd(id)),
            Some(Beginning::Command) if self.has_main && tag.exact[source] => {
                Some(ChannelId::Resumed(self.pauses + 1))
            }
            Some(Beginning::Other) if self.has_main && tag.exact[source] && overlaps => {
                Some(if self.pauses > 0 {
                    ChannelId::ResumedPreempt(self.pauses)
                } else {
                    ChannelId::Preempt
                })
            }
            // One on which nothing was said is one if it was made at all.
            _ if is_certain && overlaps && (tag.has_bytes() || tag.exact == [true; 2]) => {
                Some(ChannelId::Connection(0))
            }
            _ => None,
        }
    }
}

impl Route {
    pub(super) fn of(tag: &Tag, opener: Side) -> Self {
        Self { from: tag.ends.0[opener].ip(), to: tag.ends.0[1 - opener] }
    }
}
