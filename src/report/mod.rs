//! What people and programs are told about a migration.
//!
//! ```text
//! container::Part -> Feed -> Parser -> Event -> verify    is every byte understood?
//!                                           \-> inspect   what is in it?
//!                                           \-> dump      what is each byte?
//! ```
//! All three read a channel once, front to back, and keep nothing that grows with the guest. [`Reading`] says how.

#[cfg(all(feature = "container", feature = "json"))]
mod devices;
#[cfg(all(feature = "container", feature = "json"))]
pub mod dump;
#[cfg(all(feature = "container", feature = "json"))]
mod evidence;
#[cfg(all(feature = "container", feature = "json"))]
pub mod inspect;
#[cfg(all(feature = "container", feature = "json"))]
mod legs;
#[cfg(all(feature = "container", feature = "json"))]
pub mod migration;
#[cfg(all(feature = "container", feature = "json"))]
pub mod outline;
pub mod packets;
#[cfg(all(feature = "container", feature = "json"))]
mod proof;
#[cfg(all(feature = "container", feature = "json"))]
mod reading;
#[cfg(all(feature = "container", feature = "json"))]
mod together;
pub mod verify;
#[cfg(all(feature = "container", feature = "json"))]
mod words;

#[cfg(all(feature = "container", feature = "json"))]
pub use evidence::{Evidence, Fact};
#[cfg(all(feature = "container", feature = "json"))]
pub use legs::{Account, Legs};
#[cfg(all(feature = "container", feature = "json"))]
pub use proof::{prove, prove_all};
#[cfg(all(feature = "container", feature = "json"))]
pub use reading::{Chapter, Reading};
#[cfg(all(feature = "container", feature = "json"))]
pub use together::Whole;
