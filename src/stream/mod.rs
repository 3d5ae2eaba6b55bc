//! The main channel: a step parser and its mirror emitter over one vocabulary.
//!
//! ```text
//! bytes --> Parser --> Event --> Emitter --> the same bytes
//!              \                  /
//!               Grammar: what may come now, and what it refers to
//! ```
//! [`Event`] is what the parser yields, the emitter takes, dumps print and tests compare. [`Grammar`] is the protocol's state:
//! which record may come, which section an id belongs to, which RAM block a page is for. [`Parser`] is a lexer that asks the
//! grammar what to read next; it owns no buffer, no socket and no clock. [`Feed`](crate::channel::Feed) drives it over anything that is
//! [`std::io::Read`]. How far an opaque device payload reaches is not on the wire; [`extent`] finds out.

mod emitter;
mod event;
pub mod extent;
mod grammar;
mod parser;
#[cfg(test)]
mod tests;

pub use emitter::Emitter;
pub use event::Event;
pub use extent::Extents;
pub(crate) use grammar::HostPage;
pub use grammar::{Block, Grammar, Mode, Phase, Postcopy, Section};
pub use parser::Parser;
