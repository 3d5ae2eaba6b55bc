//! QEMU's live-migration stream, byte for byte.

#[cfg(feature = "capture")]
pub mod capture;
pub mod error;
#[cfg(feature = "transport")]
pub mod transport;

pub use error::{ChannelId, Error, ErrorKind, Result};
