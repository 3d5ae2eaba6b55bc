//! Guest memory without a guest: where pages go, what they add up to, and pages to send.
//!
//! ```text
//! Event::RamBlock, Event::Page -> Memory -> one image a block, and a digest a block
//! Pattern -> pages of a guest that never ran
//! ```

mod cache;
mod digest;
mod image;
mod memory;
mod pattern;

pub use cache::{Coded, XbzrleCache};
pub use digest::{BlockDigest, is_zero};
pub use image::{Image, file_name};
#[cfg(feature = "container")]
pub(crate) use memory::inflate;
pub use memory::{Memory, MemoryBlock};
pub use pattern::Pattern;
