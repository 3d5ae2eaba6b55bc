//! The conversation around a migration: what the destination says to the source, and what both make of it.
//!
//! ```text
//! source         ADVISE .. DISCARD  PACKAGED { LISTEN devices PING RUN }  pages ..                 pages .. EOF
//! destination                                PONG   REQ_PAGES_ID, REQ_PAGES ..                             SHUT 0
//! preempt        source --> destination: pages that were asked for
//! after a pause  source: RECV_BITMAP ..  RESUME            destination: bitmaps ..  RESUME_ACK, requests again
//! ```
//! Precopy uses the return path too, where the source opens it (capability `return-path`): without its SHUT, a source's
//! `completed` says only that all bytes left.
//!
//! [`SourceDialogue`] is the source's half as a state machine; the destination's is in the grammar of the main channel
//! ([`Grammar::postcopy`](crate::stream::Grammar::postcopy)) and in [`Requests`].

mod dialogue;
mod page_set;
mod preempt;
mod requests;
mod return_path;

pub use dialogue::{Said, SourceDialogue, bitmap_size, page_count};
#[cfg(feature = "endpoint")]
pub(crate) use page_set::PageBits;
pub use page_set::PageSet;
pub use preempt::{PreemptParser, Urgent};
pub use requests::{Arrived, Latencies, Pattern as RequestPattern, Requests, Wanted, parse_list};
pub use return_path::{Reply, ReturnParser};

/// The PING that stands last in packages of 10.2 and later: a destination answers it when it has loaded the devices, and the source waits
/// for that.
pub const PACKAGE_LOADED: u32 = 0x42;
