//! QEMU's live-migration stream, byte for byte.

pub mod error;
pub mod limits;
pub mod wire;

pub use error::{ChannelId, Error, ErrorKind, Result};
