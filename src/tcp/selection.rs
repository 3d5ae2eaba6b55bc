//! Which connections are wanted, by their ends: `10.0.0.2:4444`, `10.0.0.2`, `[fe80::1]:4444`, `:4444`.

use core::net::{IpAddr, SocketAddr};
use core::str::FromStr;

/// An end of a connection, or a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The host; any if there is none.
    pub address: Option<IpAddr>,
    /// The port; any if there is none.
    pub port: Option<u16>,
}

impl End {
    fn is(&self, end: SocketAddr) -> bool {
        self.address.is_none_or(|address| address == end.ip())
            && self.port.is_none_or(|port| port == end.port())
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return Ok(Self { address: Some(end.ip()), port: Some(end.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse() {
            return Ok(Self { address: Some(address), port: None });
        }
        match text.strip_prefix(':').and_then(|port| port.parse().ok()) {
            Some(port) => Ok(Self { address: None, port: Some(port) }),
            None => Err(format!("{text:?} is none of IP:PORT, IP and :PORT")),
        }
    }
}

/// Which connections are wanted: all of a migration if nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The source's end.
    pub from: Option<End>,
    /// The destination's end.
    pub to: Option<End>,
}

impl Selection {
    /// Whether something is said. What is asked for is taken, whatever it begins with.
    pub(super) fn is_some(&self) -> bool {
        self.from.is_some() || self.to.is_some()
    }

    pub(super) fn has(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        self.from.is_none_or(|from| from.is(source)) && self.to.is_none_or(|to| to.is(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_named() {
        let end = |address: Option<&str>, port| End { address: address.map(|a| a.parse().unwrap()), port };
        for (text, expected) in [
            ("10.0.0.2:4444", end(Some("10.0.0.2"), Some(4444))),
            ("10.0.0.2", end(Some("10.0.0.2"), None)),
            ("[fe80::1]:1", end(Some("fe80::1"), Some(1))),
            ("[fe80::1]", end(Some("fe80::1"), None)),
            ("fe80::1", end(Some("fe80::1"), None)),
            (":4444", end(None, Some(4444))),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for text in ["", ":", "4444", "host:1", "10.0.0.2:", ":65536", "[::1"] {
            assert!(text.parse::<End>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_asked_for() {
        let [a, b]: [SocketAddr; 2] = ["10.0.0.1:50000", "10.0.0.2:4444"].map(|end| end.parse().unwrap());
        assert!(Selection::default().has(a, b) && !Selection::default().is_some());
        let to = Selection { from: None, to: Some(":4444".parse().unwrap()) };
        assert!(to.has(a, b) && !to.has(b, a));
        let from = Selection { from: Some("10.0.0.2".parse().unwrap()), to: None };
        assert!(!from.has(a, b) && from.has(b, a));
    }
}
