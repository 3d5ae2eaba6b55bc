//! QEMU's live-migration stream, byte for byte: parser, emitter, stand-in endpoints, recording proxy.
//!
//! QEMU's migration stream has no specification and no negotiation. This library is written from the behaviour of stock
//! builds, 5.2 to 11.1, and is held against them by the judge in `interop/`.
//!
//! # Layers
//!
//! A module uses only what stands above it in this list; `tests/house.rs` reads the source and keeps it so.
//!
//! | module | what it holds |
//! |---|---|
//! | [`error`] | where, what, while doing what |
//! | [`limits`] | every cap on a number that a peer chooses, with its reason |
//! | [`dialect`] | the differences between releases, as data |
//! | [`wire`] | records and their bytes: no state, no I/O |
//! | [`channel`] | the shape that the parsers of all channels share, and the feed that drives them |
//! | [`stream`] | the main channel: step parser, mirror emitter, grammar, extents of opaque payloads |
//! | [`multifd`] | a multifd channel: step parser, mirror emitter, payload codecs, synchronisation of all channels |
//! | [`postcopy`] | the return path |
//! | [`trouble`] | faults on purpose: a script, and what it comes to on a channel |
//! | [`device_state`] | VFIO device state: main-channel records, packets, reassembly, synthetic devices |
//! | [`guest`] | guest memory without a guest: images, digests, patterns, the XBZRLE cache |
//! | `vmstate` | the VM description (JSON) and what the sections really measure |
//! | `capture` | a recording of all channels of a migration (pcapng) |
//! | `tcp` | packets of a network: reassembly, which connections are migrations |
//! | `container` | what streams come wrapped in: recordings, qcow2 images, dumps of channels |
//! | `convert` | one migration made of another: channels, encodings, releases, RAM |
//! | `transport` | bytes and the operating system |
//! | `endpoint` | stand-in destination, stand-in source, recording proxy |
//! | [`report`] | verification, dumps and summaries |
//!
//! # Invariants
//!
//! 1. What is parsed is emitted byte for byte: `emit(parse(b)) == b` for every accepted `b`.
//! 2. No input makes it panic, and no peer chooses an allocation: lengths meet [`limits`] first.
//! 3. Memory does not grow with the guest. Pages pass through by reference.
//! 4. `wire`, `channel`, `stream`, `multifd`, `postcopy`, `device_state` and `tcp` know no socket, file, clock or thread. However a stream is cut, it gives the same
//!    events, ranges and error texts.
//! 5. The ranges of a channel's events tile it: every byte belongs to exactly one event.
//! 6. Numbers on the wire are open: `SectionKind(0x42)` parses, prints and re-emits. Refusing is the grammar's decision.
//! 7. Releases are compared in `dialect.rs` and nowhere else.
//! 8. No type of a parser library is part of a public signature.
//! 9. The layers above are kept by a test.
//!
//! # Reading a stream
//!
//! ```
//! use std::ops::ControlFlow;
//! use migwire::channel::{Feed, Streaming};
//! use migwire::stream::{Event, Parser};
//!
//! let stream = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\0\x06\0\0\0\0";
//! let mut feed = Feed::new(Streaming(&stream[..]));
//! feed.run(&mut Parser::new(), |located, _| {
//!     if let Event::Configuration(configuration) = &located.event {
//!         assert_eq!(configuration.machine.text(), "none");
//!         assert_eq!(located.range, 8..17);
//!     }
//!     Ok(ControlFlow::Continue(()))
//! })?;
//! # Ok::<(), migwire::Error>(())
//! ```

#[cfg(feature = "capture")]
pub mod capture;
pub mod channel;
#[cfg(feature = "container")]
pub mod container;
#[cfg(feature = "container")]
pub mod convert;
pub mod device_state;
pub mod dialect;
#[cfg(feature = "endpoint")]
pub mod endpoint;
pub mod error;
pub mod guest;
pub mod limits;
pub mod multifd;
pub mod postcopy;
pub mod report;
pub mod stream;
#[cfg(feature = "tcp")]
pub mod tcp;
#[cfg(feature = "transport")]
pub mod transport;
pub mod trouble;
#[cfg(feature = "json")]
pub mod vmstate;
pub mod wire;

pub use error::{ChannelId, Error, ErrorKind, Result};
