//! The destination's side: an address that connections come in on.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{SockAddr, Socket, Type};

use super::connection::Connection;
use super::inherited::{self, Inherited};
use super::{Address, Side, socket};
use crate::{Error, ErrorKind, Result};

const LISTENING: &str = "listening";
const ACCEPTING: &str = "accepting";

/// `SO_ACCEPTCON` in the flags column of `/proc/net/unix`.
const ACCEPTS: u32 = 1 << 16;

/// An address that connections come in on. tcp, unix and vsock give any number of them; `-`, `fd:`, `exec:` and
/// `file:` give exactly one, opened for reading. A unix socket file is removed on drop.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Socket {
        socket: Socket,
        /// To be removed in the end.
        _file: Option<SocketFile>,
    },
    /// Opened when it is asked for.
    Address(Mutex<Option<Address>>),
    /// An inherited descriptor, which was taken over at once.
    Connection(Mutex<Option<Connection>>),
}

impl Listener {
    /// Starts to listen. A stale unix socket file, on which nobody listens any more, is replaced.
    pub fn bind(address: &Address) -> Result<Self> {
        if let Address::Unix(path) = address {
            remove_stale(path)?;
        }
        let (address, source) = match address {
            _ if address.is_socket() => {
                let (socket, local) = socket::listen(address)?;
                let file = match address {
                    Address::Unix(path) => SocketFile::of(path),
                    _ => None,
                };
                (local, Source::Socket { socket, _file: file })
            }
            Address::Fd(n) => match inherited::take_over(address, *n, Side::Destination)? {
                Inherited::Connection(connection) => {
                    (address.clone(), Source::Connection(Mutex::new(Some(connection))))
                }
                Inherited::Listener(socket) => {
                    socket.set_nonblocking(true).map_err(|e| Error::io(LISTENING, address.to_string(), e))?;
                    (address.clone(), Source::Socket { socket, _file: None })
                }
            },
            _ => (address.clone(), Source::Address(Mutex::new(Some(address.clone())))),
        };
        Ok(Self { address, source })
    }

    /// The address to connect to: with the real port and the number of the host.
    pub fn local_address(&self) -> &Address {
        &self.address
    }

    /// Whether more than one connection can come.
    pub fn is_socket(&self) -> bool {
        matches!(self.source, Source::Socket { .. })
    }

    /// The next connection, waiting `timeout` for it (`None`: for ever). `Ok(None)`: there will never be another one,
    /// because the address gives only one and gave it. Several threads may wait at once.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] if nobody came; the listener can be asked again.
    pub fn accept(&self, timeout: Option<Duration>) -> Result<Option<Connection>> {
        match &self.source {
            Source::Socket { socket, .. } => self.accept_from(socket, timeout).map(Some),
            Source::Address(address) => {
                let address = address.lock().unwrap_or_else(PoisonError::into_inner).take();
                address.map(|address| super::open(&address, Side::Destination)).transpose()
            }
            Source::Connection(connection) => {
                Ok(connection.lock().unwrap_or_else(PoisonError::into_inner).take())
            }
        }
    }

    fn accept_from(&self, socket: &Socket, timeout: Option<Duration>) -> Result<Connection> {
        let broken = |e| Error::io(ACCEPTING, self.address.to_string(), e);
        let start = Instant::now();
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            let left = left.map(Timespec::try_from).transpose().map_err(|e| broken(io::Error::other(e)))?;
            match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::IN)], left.as_ref()) {
                Ok(0) => {
                    let message = format!("{}: nobody connected within {:?}", self.address, start.elapsed());
                    return Err(Error::nowhere(ErrorKind::Timeout, ACCEPTING, message));
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(broken(e.into())),
            }
            match socket.accept() {
                Ok((accepted, peer)) => {
                    let label = socket::name(&peer).unwrap_or_else(|| self.address.to_string());
                    match socket::adopt(accepted, label) {
                        // The peer has gone away already: the same as if it had never come.
                        Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                        adopted => return adopted.map_err(broken),
                    }
                }
                // Another thread was faster, or the peer has gone away again.
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(e)),
            }
        }
    }
}

/// The file of a unix socket that we bound, by its identity: somebody may have put another one in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> Option<Self> {
        Some(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path) == Some(self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Makes way for a socket: removes what a process left that did not clean up, and refuses everything else.
fn remove_stale(path: &Path) -> Result<()> {
    let address = Address::Unix(path.to_owned());
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(LISTENING, address.to_string(), e)),
    };
    let in_use = |what: &str| {
        let e = io::Error::from(io::ErrorKind::AddrInUse);
        Err(Error::io(LISTENING, format!("{address}: {what}"), e))
    };
    if !meta.file_type().is_socket() {
        return in_use("there is a file of that name, which is no socket");
    }
    // A listening QEMU would take a trial connection for the migration, so the kernel's list is asked first.
    if is_listed(path) || !is_refused(path) {
        return in_use("another process listens there");
    }
    fs::remove_file(path).map_err(|e| Error::io(LISTENING, address.to_string(), e))
}

/// Whether a listening socket was bound under exactly this name.
fn is_listed(path: &Path) -> bool {
    let list = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    list.lines().skip(1).any(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut columns = line.splitn(8, ' ');
        let flags = columns.nth(3).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        flags.is_some_and(|flags| flags & ACCEPTS != 0) && line.ends_with(&format!(" {}", path.display()))
    })
}

/// Whether the kernel knows for sure that nobody listens.
fn is_refused(path: &Path) -> bool {
    let tried = SockAddr::unix(path).and_then(|address| {
        let socket = Socket::new(address.domain(), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&address)
    });
    tried.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}
