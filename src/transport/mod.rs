//! Bytes <-> operating system, with blocking calls and a limit on every silence.
//!
//! ```text
//!  Address --connect---> Connection --clone--> reader thread
//!     |                     |                  writer thread
//!     +--Listener::bind--accept                (Tap -> capture)
//! ```
//!
//! A migration has a handful of connections and moves gigabytes through each, so there is a thread a direction and
//! no event loop. What the addresses have in common is [`Connection`]: `Read`, `Write`, timeouts, half-close and a
//! label for messages. Sockets time out in the kernel; pipes and child processes, which cannot, wait in `poll`.
//!
//! The destination listens and reads, the source connects and writes. One-way addresses (`-`, `file:`) are opened for
//! reading by a [`Listener`] and for writing by [`connect`].

mod address;
mod child;
mod connection;
mod inherited;
mod listener;
pub mod memory;
mod pipe;
mod socket;
#[cfg(feature = "endpoint")]
mod splice;
#[cfg(feature = "capture")]
mod tap;

use std::io;
use std::thread;
use std::time::{Duration, Instant};

pub use address::Address;
pub use connection::Connection;
pub use listener::Listener;
#[cfg(feature = "endpoint")]
pub(crate) use splice::Pipe;
#[cfg(feature = "capture")]
pub use tap::Tap;

use crate::{Error, Result};

/// Pause between two tries of [`connect_within`].
const RETRY: Duration = Duration::from_millis(50);

/// Opens `address` for the source's side: one try, which may take as long as `timeout`. Files are created, `-` is
/// standard output, commands are started.
pub fn connect(address: &Address, timeout: Duration) -> Result<Connection> {
    connect_once(address, timeout).map_err(|e| e.error)
}

/// Like [`connect`], but while nobody listens yet, tries again until `within` is over.
pub fn connect_within(address: &Address, within: Duration) -> Result<Connection> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match connect_once(address, left.max(RETRY)) {
            Err(e) if e.again && left > RETRY => thread::sleep(RETRY),
            other => return other.map_err(|e| e.error),
        }
    }
}

/// A failure to connect, and whether it may go away by itself: nobody listens yet.
struct Refused {
    error: Error,
    again: bool,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, again: false }
    }
}

fn connect_once(address: &Address, timeout: Duration) -> Result<Connection, Refused> {
    match address {
        Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. } => {
            socket::connect(address, timeout).map_err(|(error, kind)| {
                // A vsock without listener answers with a reset, a unix socket may not exist yet.
                let nobody = [
                    io::ErrorKind::ConnectionRefused,
                    io::ErrorKind::NotFound,
                    io::ErrorKind::ConnectionReset,
                ];
                Refused { error, again: kind.is_some_and(|kind| nobody.contains(&kind)) }
            })
        }
        _ => Ok(open(address, Side::Source)?),
    }
}

/// Which end of a migration opens an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Writes the stream.
    Source,
    /// Reads it.
    Destination,
}

/// Opens an address that gives exactly one connection.
fn open(address: &Address, side: Side) -> Result<Connection> {
    match address {
        Address::Exec(command) => child::open(address, command),
        Address::File { path, offset } => pipe::open(address, path, *offset, side),
        Address::Stdio => inherited::stdio(address, side),
        Address::Fd(n) => inherited::open(address, *n, side),
        Address::Tcp { .. } | Address::Unix(_) | Address::Vsock { .. } => {
            let message = format!("{address} is a socket, which is connected or listened to");
            Err(Error::nowhere(crate::ErrorKind::Misuse, "opening", message))
        }
    }
}

#[cfg(test)]
mod tests;
