//! What an import has found, and what it has not.

use core::net::SocketAddr;
use core::ops::Range;

use super::Counts;
use crate::ChannelId;
use crate::capture::Direction;

/// Why there is no segment in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Another protocol.
    NotTcp,
    /// Part of an IP datagram that was fragmented; they are not put together.
    Fragment,
    /// Headers that are cut or cannot be.
    Malformed,
    /// A kind of link whose headers are not known here.
    UnknownLink,
    /// More connections at a time than are followed.
    TooMany,
}

impl Unread {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::NotTcp, Self::Fragment, Self::Malformed, Self::UnknownLink, Self::TooMany];

    /// In a few words, behind a number of packets.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::NotTcp => "not TCP",
            Self::Fragment => "fragments of IP datagrams, which are not put together",
            Self::Malformed => "with headers that are cut or malformed",
            Self::UnknownLink => "of a link type that is not known",
            Self::TooMany => "of more connections or migrations than are followed at a time",
        }
    }
}

/// All of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames that came.
    pub packets: u64,
    /// Frames without a segment, or whose segment was left out, in the order of [`Unread::ALL`].
    pub unread: [u64; Unread::ALL.len()],
    /// Connections that have nothing of a migration.
    pub ignored: u64,
    /// Those among them that are encrypted.
    pub encrypted: u64,
    /// The migrations, in the order of their beginnings.
    pub migrations: Vec<MigrationReport>,
}

/// A migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationReport {
    /// The source's end of the main channel; of the first connection that was recognised, if there is none.
    pub source: SocketAddr,
    /// The destination's.
    pub destination: SocketAddr,
    /// Its channels, the main channel first; `None` where there is no main channel.
    pub channels: Vec<Option<ChannelReport>>,
}

/// A connection of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelReport {
    /// What it is.
    pub channel: ChannelId,
    /// Bytes that were passed on.
    pub to_destination: u64,
    /// The same, the other way.
    pub to_source: u64,
    /// What was lost.
    pub missing: Vec<Missing>,
    /// It had begun before the capture.
    pub mid_stream: bool,
    /// Packets of one direction only were captured.
    pub one_way: bool,
    /// Its end was captured.
    pub closed: bool,
    /// What was odd.
    pub counts: Counts,
}

/// Bytes of a channel that were not captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which way they went.
    pub direction: Direction,
    /// Which ones.
    pub bytes: Range<u64>,
}

impl ChannelReport {
    /// Whether all of it was captured.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && !self.mid_stream && !self.one_way && self.closed
    }
}

impl MigrationReport {
    /// Whether all of it was captured: a main channel, and nothing missing anywhere.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.channels.iter().all(|channel| channel.as_ref().is_some_and(ChannelReport::is_complete))
    }
}
