//! A multifd channel: pages (and device state) beside the main channel.
//!
//! ```text
//! channel 0   hello  SYNC | page packets ..  SYNC | page packets ..  SYNC     source to destination only
//! channel 1   hello  SYNC | page packets ..  SYNC | ..
//! main               FLUSH                   FLUSH                            one word for the SYNCs of all channels
//! ```
//! [`PacketParser`] reads one channel, with [`Packet`] as its vocabulary; [`Framer`] makes packets as each release does, with
//! what it leaves in unused fields. [`codec`] turns payloads into pages. What the channels and the main channel have to wait for
//! is the business of [`Barrier`], in the [`SyncMode`] that a [`Dialect`](crate::dialect::Dialect) says or the stream shows.
//! [`classify`] tells what a new connection is, as each release does.

mod beginning;
pub mod classify;
pub mod codec;
mod framer;
mod packet;
mod parser;
mod sync;
mod zero_pages;

pub use beginning::Beginning;
pub use framer::Framer;
pub use packet::Packet;
pub use parser::{Batch, PacketParser};
pub use sync::{Barrier, SyncMode, SyncPlace, Synchronisation};
pub use zero_pages::ZeroPages;
