//! A recording of all channels of one migration, in one pcapng file that Wireshark, capinfos and editcap open.
//!
//! ```text
//!  section header      userappl "migwire 0.1.0"; custom option: what is known about the migration (JSON)
//!  interface 0         if_name "main", link type 147 (USER0), nanoseconds, peers as description
//!  packet              interface 0, outbound: bytes from source to destination
//!  interface 1         if_name "multifd-0"
//!  packet              interface 1, outbound
//!  packet              interface 0, inbound: the return path
//!  ...
//!  index               where all of that is, in a few bytes a run of packets; also in between, in a long recording
//!  seal                bytes, packets and digest of every direction of every interface, where the index is
//! ```
//!
//! One interface is one connection of the migration, written when its first byte is recorded, because only the first
//! bytes tell what kind of channel it is. A packet is a run of bytes as it passed; packet borders mean nothing to
//! the stream. The concatenation of the packets of one interface and one [`Direction`] is that half of the channel,
//! complete and unchanged.
//!
//! Why pcapng: it keeps several channels, directions and nanosecond times in one append-only file, a file that was
//! cut off by a crash is readable up to the cut, and people can look at it without our tool.
//!
//! Index and seal are blocks of a type that is kept for local use: Wireshark's tools pass over them. They would show a custom block
//! (0xBAD) as one more packet, and those of 4.0 refuse to copy a file that has one in front of its first interface. A custom option of
//! the section header they keep. A file that they have written anew has neither index nor seal and is read from end to end, as is one
//! that nobody has finished: both are conveniences, and never believed over the blocks.
//!
//! [`Recorder`] writes, [`Reader`] reads, [`listing`] opens by the index, [`FileKind`] tells what a file is before anybody trusts its
//! name.

mod block;
mod channel;
mod frames;
mod index;
mod kind;
mod reader;
mod recorder;
mod seal;
mod sink;
mod stage;

use std::fmt;

pub use block::{LINKTYPE, MAX_PACKET};
pub use channel::{ChannelBytes, ChannelSummary, Listing, Place, channels, listing};
pub use frames::{Damage, Frame, FrameWriter, Frames, LinkType};
pub use kind::FileKind;
pub use reader::{Interface, Packet, Reader, Timestamp};
pub use recorder::{ChannelTap, Recorder, RecorderOptions, Summary};
pub use seal::{Seal, SealedHalf};

use crate::ChannelId;

/// Which way bytes went. In the file: the two lowest bits of `epb_flags`, seen from the source's network card
/// towards the destination, whoever opened the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the source to the destination: `outbound` (2) in the file.
    ToDestination,
    /// From the destination to the source, the return path: `inbound` (1) in the file.
    ToSource,
}

impl Direction {
    /// The other direction.
    #[must_use]
    pub fn reverse(self) -> Self {
        match self {
            Self::ToDestination => Self::ToSource,
            Self::ToSource => Self::ToDestination,
        }
    }

    /// The two lowest bits of `epb_flags`.
    fn flags(self) -> u32 {
        match self {
            Self::ToSource => 1,
            Self::ToDestination => 2,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToDestination => "to destination",
            Self::ToSource => "to source",
        })
    }
}

/// The interface name under which a channel is recorded: `main`, `multifd-3`, `preempt`, `connection-1`; behind the first pause of
/// postcopy `resumed-1` and `resumed-1-preempt`. A return path has no interface of its own: it is the direction
/// [`Direction::ToSource`] of its main channel.
pub fn interface_name(channel: ChannelId) -> String {
    match channel {
        ChannelId::Main | ChannelId::ReturnPath => "main".into(),
        ChannelId::Multifd(id) => format!("multifd-{id}"),
        ChannelId::Preempt => "preempt".into(),
        ChannelId::Resumed(n) | ChannelId::ResumedReturnPath(n) => format!("resumed-{n}"),
        ChannelId::ResumedPreempt(n) => format!("resumed-{n}-preempt"),
        ChannelId::Connection(n) => format!("connection-{n}"),
        ChannelId::Container => "container".into(),
    }
}

/// An interface that holds what follows a hole in a channel, `main+0x1f40`: the name of the channel, and the offset where the
/// hole ends.
pub fn hole_of(name: &str) -> Option<(&str, u64)> {
    let (name, offset) = name.rsplit_once("+0x")?;
    let offset = Some(offset).filter(|offset| offset.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u64::from_str_radix(offset, 16).ok().map(|offset| (name, offset))
}

/// What channel an interface name stands for, the inverse of [`interface_name`]; `None` for a name that is not ours.
pub fn channel_of(name: &str, direction: Direction) -> Option<ChannelId> {
    let numbered = |prefix: &str| name.strip_prefix(prefix).filter(|n| !n.starts_with('+'));
    match (name, direction) {
        ("main", Direction::ToDestination) => Some(ChannelId::Main),
        ("main", Direction::ToSource) => Some(ChannelId::ReturnPath),
        ("preempt", _) => Some(ChannelId::Preempt),
        _ if name.starts_with("resumed-") => {
            let rest = numbered("resumed-")?;
            match (rest.strip_suffix("-preempt"), direction) {
                (Some(n), _) => n.parse().ok().map(ChannelId::ResumedPreempt),
                (None, Direction::ToDestination) => rest.parse().ok().map(ChannelId::Resumed),
                (None, Direction::ToSource) => rest.parse().ok().map(ChannelId::ResumedReturnPath),
            }
        }
        _ => numbered("multifd-")
            .and_then(|n| n.parse().ok())
            .map(ChannelId::Multifd)
            .or_else(|| numbered("connection-").and_then(|n| n.parse().ok()).map(ChannelId::Connection)),
    }
}

#[cfg(test)]
mod tests;
