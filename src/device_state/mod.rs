//! Device state that is moved as such: VFIO.
//!
//! ```text
//! main channel       payload of a section ──> VfioSection ──> VfioEvent ──┐
//! multifd channels   device packets ──────────────────────────────────────┴─> Assembler ──> data in order, Config, reports
//! stand-in source    SyntheticDevice ──> Plan: bodies and packets                           SyntheticCheck
//! ```
//! Most devices are described field by field (see `vmstate`); a VFIO device has state that only its driver understands, of any
//! size. Before 10.0 all of it travelled in a section of the main channel. From then on the part that is read when the guest is
//! stopped may go over multifd channels, cut into packets with numbers. [`Assembler`] takes both, and says what is missing.

mod config;
mod reassembly;
mod section;
mod synthetic;

pub use config::{Capabilities, Capability, Config, ConfigPacket, Msix, PciConfig};
pub use reassembly::{Ability, Assembler, DeviceId, DeviceReport, Out, Piece, Settings, Slot, TooEarly};
pub use section::{VfioEvent, VfioParser, VfioSection};
pub use synthetic::{Arrangement, Plan, Record, SyntheticCheck, SyntheticDevice, SyntheticVerdict};
