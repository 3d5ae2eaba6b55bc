//! QEMU's live-migration stream, byte for byte.

#[cfg(feature = "capture")]
pub mod capture;
pub mod channel;
#[cfg(feature = "container")]
pub mod container;
pub mod dialect;
pub mod error;
pub mod guest;
pub mod limits;
pub mod postcopy;
pub mod report;
pub mod stream;
#[cfg(feature = "json")]
pub mod vmstate;
pub mod wire;

pub use error::{ChannelId, Error, ErrorKind, Result};
