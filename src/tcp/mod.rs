//! TCP as a capture of a network has it: from packets to the channels of migrations.
//!
//! ```text
//! capture::Frame -> link -> ip -> Segment -> Connection (two Reassembly) -> Migrations -> Output
//!                                                                           which connections belong together,
//!                                                                           which end is the source, what each is called
//! ```
//! [`Traffic`] takes frames and passes the bytes of every channel of every migration on, as soon as they are in order and the
//! connection is known to belong to one. It knows no files. What is lost is never made up: the offsets of a channel go on with the
//! hole in them, and the [`Report`] names it. [`Conversation`] is the way back: packets around given bytes.
//!
//! What belongs together: one main channel, and the connections between the same two hosts to the same port that overlap with it
//! in time. Which end is the source: the one that sends the magic number, or else the one that has opened the connection.

mod connection;
mod ip;
mod link;
mod migration;
mod migrations;
mod reassembly;
mod report;
mod segment;
mod selection;
mod synthetic;
mod tag;
mod traffic;

pub use reassembly::{Counts, Deliver, Reassembly};
pub use report::{ChannelReport, MigrationReport, Missing, Report, Unread};
pub use segment::Segment;
pub use selection::{End, Selection};
pub use synthetic::{Conversation, Emit, MAX_SEGMENT};
pub use traffic::Traffic;

use core::net::SocketAddr;

use crate::capture::{Direction, Timestamp, interface_name};
use crate::{ChannelId, Result};

/// Bytes of a channel, in order.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Number of the migration, in the order of their beginnings.
    pub migration: usize,
    /// Number of the connection within it. The main channel is 0.
    pub connection: usize,
    /// Which channel it is.
    pub channel: ChannelId,
    /// The source's end of it, and the destination's.
    pub ends: [SocketAddr; 2],
    /// Which way the bytes went.
    pub direction: Direction,
    /// Behind a hole: where it ends. 0 in front of the first one.
    pub fragment: u64,
    /// When the packet was captured that completed them.
    pub time: Timestamp,
    /// The bytes.
    pub data: &'a [u8],
}

impl Piece<'_> {
    /// The name of the interface that they are recorded on: what follows a hole is an interface of its own, `main+0x1f40`.
    #[must_use]
    pub fn name(&self) -> String {
        let name = interface_name(self.channel);
        if self.fragment == 0 { name } else { format!("{name}+{:#x}", self.fragment) }
    }
}

/// What is done with the bytes.
pub trait Output {
    /// Takes bytes.
    ///
    /// # Errors
    /// Whatever ends the import.
    fn piece(&mut self, piece: &Piece<'_>) -> Result<()>;

    /// Nothing more comes of this migration.
    ///
    /// # Errors
    /// Whatever ends the import.
    fn end(&mut self, migration: usize) -> Result<()>;
}
