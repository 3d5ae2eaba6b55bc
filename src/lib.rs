//! QEMU's live-migration stream, byte for byte.

pub mod channel;
pub mod dialect;
pub mod error;
pub mod guest;
pub mod limits;
pub mod postcopy;
pub mod report;
pub mod stream;
pub mod wire;

pub use error::{ChannelId, Error, ErrorKind, Result};
