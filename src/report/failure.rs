//! Errors as programs get them.

use serde::Serialize;

use crate::error::{Error, ErrorKind};

/// An [`Error`], ready to be printed as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Whose fault it is: `malformed`, `out-of-order`..
    pub kind: &'static str,
    /// Channel, in words.
    pub channel: String,
    /// Offset in the channel.
    pub offset: Option<u64>,
    /// What was under way.
    pub doing: &'static str,
    /// The sentence.
    pub message: String,
    /// All of it on one line, with the operating system's word at the end.
    pub text: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            kind: kind_name(error.kind()),
            channel: error.channel().to_string(),
            offset: error.offset(),
            doing: error.doing(),
            message: error.message().to_owned(),
            text: full_text(error),
        }
    }
}

/// Name of a kind in JSON.
#[must_use]
pub fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Malformed => "malformed",
        ErrorKind::OutOfOrder => "out-of-order",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::TooLarge => "too-large",
        ErrorKind::Truncated => "truncated",
        ErrorKind::Timeout => "timeout",
        ErrorKind::Io => "io",
        ErrorKind::Peer => "peer",
        ErrorKind::Misuse => "misuse",
    }
}

/// An error with the errors behind it.
#[must_use]
pub fn full_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_promised_keys_in_order() {
        let error = Error::io("reading", "the channel failed", std::io::ErrorKind::NotFound.into()).at(7);
        let json = serde_json::to_string(&Failure::from(&error)).unwrap();
        insta::assert_snapshot!(json, @"");
    }
}
