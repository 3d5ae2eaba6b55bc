//! What a stream says about its own device payloads.
//!
//! ```text
//! FULL "timer" payload | FULL "cpu_common" payload | .. | EOF | description (JSON)
//!          ^-- devices[0].fields: name, type, size --^----------------+
//! ```
//! The wire has no lengths and no names of fields; the [`Description`] behind EOF has both, for the FULL sections of the same
//! stream. It comes too late for a destination, but not for somebody who reads a file, and it serves as a schema for
//! other streams of the same build and machine. It is a debugging aid and not always right: [`Ledger`] holds what
//! the sections really measured against it.

mod description;
mod json;
mod ledger;

pub use description::{Description, Device, Field, Style, Vmsd};
pub use ledger::{Disagreement, Ledger};
