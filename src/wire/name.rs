//! Names as they stand on the wire: bytes that are nearly always text.

use std::borrow::Cow;
use std::fmt;

/// A name from the wire (section idstr, RAM block, machine type): usually ASCII, kept as the bytes it is.
///
/// Prints with everything that is not printable ASCII escaped, so that a hostile name cannot write to a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Name<'a>(pub &'a [u8]);

impl<'a> Name<'a> {
    /// The bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// The name as text, with invalid UTF-8 replaced.
    pub fn text(self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.0)
    }

    /// Whether the name has no byte.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Whether every byte is printable ASCII, as in every name that a QEMU tree produces.
    pub fn is_printable(self) -> bool {
        self.0.iter().all(|b| (0x20..0x7f).contains(b))
    }
}

impl<'a> From<&'a str> for Name<'a> {
    fn from(text: &'a str) -> Self {
        Self(text.as_bytes())
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn prints_escaped() {
        assert_eq!(Name(b"pc.ram").to_string(), "pc.ram");
        assert_eq!(Name(b"\x1b[2J\xff").to_string(), "\\x1b[2J\\xff");
        assert!(Name(b"/rom@etc/acpi/tables").is_printable());
        assert!(!Name(b"a\0").is_printable());
    }
}
