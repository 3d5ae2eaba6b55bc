//! Device state that is moved as such: VFIO.

mod config;
mod section;
mod synthetic;

pub use config::{Capabilities, Capability, Config, ConfigPacket, Msix, PciConfig};
pub use section::{VfioEvent, VfioParser, VfioSection};
pub use synthetic::{Arrangement, Plan, Record, SyntheticCheck, SyntheticDevice, SyntheticVerdict};
