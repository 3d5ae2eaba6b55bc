//! What went wrong, where in which channel, while doing what.
//!
//! Every error of the library is data: a [`ErrorKind`] that says whose fault it is, the [`ChannelId`] and the
//! absolute byte offset in it, the record that was being read or written, and a sentence. `Display` prints
//! all of it on one line; a source (an operating-system error, say) is chained, never repeated.

use std::fmt;
use std::sync::Arc;

/// Result of everything in this library that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The bytes cannot mean anything: a wrong magic, a number out of its range, text that is not text.
    Malformed,
    /// A record that is well-formed, at a place where the protocol does not allow it.
    OutOfOrder,
    /// Legal, but nothing that this build of migwire can carry out.
    Unsupported,
    /// A length or count chosen by the peer exceeds a cap in [`limits`](crate::limits).
    TooLarge,
    /// The bytes end inside a record.
    Truncated,
    /// The peer kept silent for longer than it may.
    Timeout,
    /// The operating system said no; see the source.
    Io,
    /// The peer reported a failure of its own.
    Peer,
    /// The caller asked for something that makes no sense.
    Misuse,
}

/// Which connection of a migration an offset belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChannelId {
    /// The main channel, source to destination.
    #[default]
    Main,
    /// The main channel's reverse direction, destination to source.
    ReturnPath,
    /// A multifd channel, by the id in its initial packet (or by order of arrival where there is none yet).
    Multifd(u8),
    /// The postcopy-preempt channel.
    Preempt,
    /// The main channel as it went on after so many pauses of postcopy: a connection of its own.
    Resumed(u32),
    /// Its reverse direction.
    ResumedReturnPath(u32),
    /// The preempt channel that was opened again with it.
    ResumedPreempt(u32),
    /// A connection whose kind is not known, by order of arrival.
    Connection(u32),
    /// Not a channel at all: a file around it (a recording, an image).
    Container,
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main channel"),
            Self::ReturnPath => f.write_str("return path"),
            Self::Multifd(id) => write!(f, "multifd channel {id}"),
            Self::Preempt => f.write_str("preempt channel"),
            Self::Resumed(n) => write!(f, "main channel after pause {n}"),
            Self::ResumedReturnPath(n) => write!(f, "return path after pause {n}"),
            Self::ResumedPreempt(n) => write!(f, "preempt channel after pause {n}"),
            Self::Connection(n) => write!(f, "connection {n}"),
            Self::Container => f.write_str("container"),
        }
    }
}

/// An error with its place: kind, channel, offset, what was being done, and a sentence.
///
/// ```
/// use migwire::{Error, ErrorKind};
/// let e = Error::new(ErrorKind::Malformed, 4, "file header", "version 2 where 3 was expected");
/// assert_eq!(e.to_string(), "file header: version 2 where 3 was expected (main channel, offset 0x4)");
/// ```
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    channel: ChannelId,
    offset: Option<u64>,
    doing: &'static str,
    message: String,
    source: Option<Arc<std::io::Error>>,
}

impl Error {
    /// An error at `offset` of the main channel; see [`Error::on`] for other channels.
    #[cold]
    pub fn new(kind: ErrorKind, offset: u64, doing: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            channel: ChannelId::Main,
            offset: Some(offset),
            doing,
            message: message.into(),
            source: None,
        }))
    }

    /// An error that belongs to no byte of a stream: a bad option, a file that cannot be opened.
    #[cold]
    pub fn nowhere(kind: ErrorKind, doing: &'static str, message: impl Into<String>) -> Self {
        let mut e = Self::new(kind, 0, doing, message);
        e.0.offset = None;
        e
    }

    /// An operating-system error while `doing` something to what `message` names.
    #[cold]
    pub fn io(doing: &'static str, message: impl Into<String>, source: std::io::Error) -> Self {
        let mut e = Self::nowhere(ErrorKind::Io, doing, message);
        e.0.source = Some(Arc::new(source));
        e
    }

    /// The same error, on another channel.
    #[must_use]
    pub fn on(mut self, channel: ChannelId) -> Self {
        self.0.channel = channel;
        self
    }

    /// The same error, at this offset of its channel.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.0.offset = Some(offset);
        self
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The channel the error was found on.
    pub fn channel(&self) -> ChannelId {
        self.0.channel
    }

    /// Absolute offset in the channel, where the error has one.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// The record or action that was under way.
    pub fn doing(&self) -> &'static str {
        self.0.doing
    }

    /// The sentence, without place and action.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.doing, self.0.message)?;
        match self.0.offset {
            Some(offset) => write!(f, " ({}, offset {offset:#x})", self.0.channel),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}
