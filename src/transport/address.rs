//! Where bytes come from or go to, as people write it: QEMU's migration URIs, and `-`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

const DOING: &str = "address";

/// One end of a connection.
///
/// ```
/// use migwire::transport::Address;
/// let address: Address = "tcp:[::1]:4444".parse()?;
/// assert_eq!(address, Address::Tcp { host: "::1".into(), port: 4444 });
/// assert_eq!(address.to_string(), "tcp:[::1]:4444");
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `tcp:HOST:PORT`. An IPv6 address stands in brackets. No host means every address of this host when listening,
    /// the loopback address when connecting; port 0 means any free port when listening.
    Tcp {
        /// Name or number, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// `unix:PATH`, a stream socket in the file system.
    Unix(PathBuf),
    /// `vsock:CID:PORT`: 2 is the host, 1 this machine, 4294967295 (when listening) any.
    Vsock {
        /// Context id of the machine.
        cid: u32,
        /// Port; 4294967295 means any free one when listening.
        port: u32,
    },
    /// `fd:N`, a descriptor inherited from the parent process: a socket, a pipe or a file.
    Fd(u32),
    /// `exec:COMMAND`, run by `sh -c`: its standard output is read, its standard input written.
    Exec(String),
    /// `file:PATH[,offset=N]`. N is decimal or 0x..., with a suffix K, M, G or T if wanted.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Where the stream starts in it.
        offset: u64,
    },
    /// `-`: standard input when reading, standard output when writing.
    Stdio,
}

impl Address {
    /// Whether several connections can be made to this address: tcp, unix and vsock. The other addresses give
    /// exactly one.
    pub fn is_socket(&self) -> bool {
        matches!(self, Self::Tcp { .. } | Self::Unix(_) | Self::Vsock { .. })
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Stdio);
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(|| unknown(text))?;
        match scheme {
            "tcp" => tcp(text, rest),
            "unix" => Ok(Self::Unix(path(text, rest, "unix:/run/migration.sock")?)),
            "vsock" => vsock(text, rest),
            "fd" => {
                let n = number(rest).and_then(|n| i32::try_from(n).ok());
                let n = n.ok_or_else(|| bad(text, "a descriptor is a number", "fd:5"))?;
                Ok(Self::Fd(n.unsigned_abs()))
            }
            "exec" if rest.trim().is_empty() => Err(bad(text, "there is no command", "exec:gzip -dc vm.gz")),
            "exec" => Ok(Self::Exec(rest.to_owned())),
            "file" => file(text, rest),
            _ => Err(unknown(text)),
        }
    }
}

/// What [`FromStr`] reads back to the same address.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Fd(n) => write!(f, "fd:{n}"),
            Self::Exec(command) => write!(f, "exec:{command}"),
            Self::File { path, offset: 0 } => write!(f, "file:{}", path.display()),
            Self::File { path, offset } => write!(f, "file:{},offset={offset:#x}", path.display()),
            Self::Stdio => f.write_str("-"),
        }
    }
}

fn tcp(text: &str, rest: &str) -> Result<Address> {
    const EXAMPLE: &str = "tcp:127.0.0.1:4444 or tcp:[::1]:4444";
    let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad(text, "there is no port", EXAMPLE))?;
    let port = number(port).and_then(|n| u16::try_from(n).ok());
    let port = port.ok_or_else(|| bad(text, "a port is a number up to 65535", EXAMPLE))?;
    let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(Some(host)) => host,
        Some(None) => return Err(bad(text, "a bracket is not closed", EXAMPLE)),
        None if host.contains([':', ']']) => {
            return Err(bad(text, "an IPv6 address needs brackets", EXAMPLE));
        }
        None => host,
    };
    Ok(Address::Tcp { host: host.to_owned(), port })
}

fn vsock(text: &str, rest: &str) -> Result<Address> {
    const EXAMPLE: &str = "vsock:2:4444";
    let (cid, port) = rest.split_once(':').ok_or_else(|| bad(text, "there is no port", EXAMPLE))?;
    let word = |digits| number(digits).and_then(|n| u32::try_from(n).ok());
    match (word(cid), word(port)) {
        (Some(cid), Some(port)) => Ok(Address::Vsock { cid, port }),
        _ => Err(bad(text, "context id and port are numbers", EXAMPLE)),
    }
}

fn file(text: &str, rest: &str) -> Result<Address> {
    const EXAMPLE: &str = "file:/var/tmp/vm.mig,offset=0x1000";
    let (name, offset) = match rest.split_once(",offset=") {
        Some((name, offset)) => {
            let offset = size(offset).ok_or_else(|| bad(text, "the offset is no number", EXAMPLE))?;
            (name, offset)
        }
        None => (rest, 0),
    };
    Ok(Address::File { path: path(text, name, EXAMPLE)?, offset })
}

fn path(text: &str, rest: &str, example: &str) -> Result<PathBuf> {
    if rest.is_empty() {
        return Err(bad(text, "there is no path", example));
    }
    Ok(Path::new(rest).to_owned())
}

/// Decimal digits and nothing else: `u64::from_str` would let a plus sign through.
fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// A number as `qemu_strtosz` takes it, without the fractions.
fn size(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        return hex.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    }
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        (at, 'b' | 'B') => (&text[..at], 0),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

#[cold]
fn unknown(text: &str) -> Error {
    let message = format!(
        "`{text}` is none of tcp:HOST:PORT, unix:PATH, vsock:CID:PORT, fd:N, exec:COMMAND, file:PATH[,offset=N] and -"
    );
    Error::nowhere(ErrorKind::Misuse, DOING, message)
}

#[cold]
fn bad(text: &str, why: &str, example: &str) -> Error {
    Error::nowhere(ErrorKind::Misuse, DOING, format!("`{text}`: {why}; an example: {example}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in [
            "tcp:127.0.0.1:4444",
            "tcp:[::1]:0",
            "tcp:[fe80::1%eth0]:65535",
            "tcp:host.example.org:1",
            "tcp::4444",
            "unix:/run/a:b,c",
            "vsock:2:4294967295",
            "fd:0",
            "fd:2147483647",
            "exec:gzip -c > 'x:y'",
            "file:/tmp/x",
            "file:/tmp/x,offset=0x1000",
            "-",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn offsets_are_written_as_for_qemu() {
        for (text, wanted) in
            [("0", 0), ("4096", 4096), ("0x10", 16), ("0XfF", 255), ("1M", 1 << 20), ("2k", 2048), ("7B", 7)]
        {
            let address: Address = format!("file:a,offset={text}").parse().unwrap();
            assert_eq!(address, Address::File { path: "a".into(), offset: wanted });
        }
    }

    #[test]
    fn wrong_addresses_are_explained() {
        for text in [
            "",
            "tcp",
            "tcp:",
            "tcp:host",
            "tcp:host:",
            "tcp:host:65536",
            "tcp:host:+1",
            "tcp:::1:4444",
            "tcp:[::1:4444",
            "tcp:a]:1",
            "unix:",
            "vsock:2",
            "vsock:x:1",
            "vsock:4294967296:1",
            "fd:",
            "fd:-1",
            "fd:2147483648",
            "exec:",
            "exec: ",
            "file:",
            "file:,offset=1",
            "file:x,offset=",
            "file:x,offset=-1",
            "file:x,offset=0x",
            "file:x,offset=16777216T",
            "file:x,offset=M",
            "rdma:host:1",
            "--",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Misuse, "{text}");
            assert!(error.message().contains(&format!("`{text}`")), "{error}");
        }
    }
}
