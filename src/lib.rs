//! QEMU's live-migration stream, byte for byte.

pub mod error;

pub use error::{ChannelId, Error, ErrorKind, Result};
