//! The conversation around a migration: what the destination says to the source.
//!
//! ```text
//! destination: PONG 1 .. [REQ_PAGES_ID, REQ_PAGES ..] .. SHUT 0
//! ```
//! Precopy uses the return path too, where the source opens it (capability `return-path`): without its SHUT, a source's
//! `completed` says only that all bytes left. The other parts of postcopy (preempt channel, recovery) follow later.

mod return_path;

pub use return_path::{Reply, ReturnParser};
