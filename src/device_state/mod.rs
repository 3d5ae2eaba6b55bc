//! Device state that is moved as such: VFIO.

mod section;

pub use section::{VfioEvent, VfioParser, VfioSection};
