//! Device state that is moved as such: VFIO.

mod config;
mod section;

pub use config::{Capabilities, Capability, Config, ConfigPacket, Msix, PciConfig};
pub use section::{VfioEvent, VfioParser, VfioSection};
