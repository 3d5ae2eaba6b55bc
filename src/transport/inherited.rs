//! Descriptors that the parent process opened for us: `fd:N`, and standard input and output.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::PoisonError;

use rustix::fs::{FileType, OFlags};
use rustix::io::FdFlags;
use socket2::Socket;

use super::connection::{Connection, Io};
use super::pipe::{self, End, Pipes};
use super::{Address, Side, socket};
use crate::{Error, ErrorKind, Result};

const DOING: &str = "taking over a descriptor";

/// `O_CLOEXEC` as it appears in `/proc/self/fdinfo`; the same number on every architecture that runs QEMU but alpha,
/// sparc and hppa, where the check merely lets more descriptors through.
const CLOSE_ON_EXEC: u32 = 0o2_000_000;

/// What an inherited descriptor turned out to be.
pub(super) enum Inherited {
    /// A connected socket, a pipe or a file.
    Connection(Connection),
    /// A socket that others can connect to.
    Listener(Socket),
}

/// `-`: standard input for the destination, standard output for the source.
pub(super) fn stdio(address: &Address, side: Side) -> Result<Connection> {
    let number = match side {
        Side::Destination => 0,
        Side::Source => 1,
    };
    open(address, number, side)
}

/// Takes over descriptor `n` as a connection for this side.
pub(super) fn open(address: &Address, n: u32, side: Side) -> Result<Connection> {
    match take_over(address, n, side)? {
        Inherited::Connection(connection) => Ok(connection),
        Inherited::Listener(_) => {
            let message =
                format!("{address} is a listening socket, from which only a destination can accept");
            Err(Error::nowhere(ErrorKind::Misuse, DOING, message))
        }
    }
}

/// Takes over descriptor `n`, whatever it is.
pub(super) fn take_over(address: &Address, n: u32, side: Side) -> Result<Inherited> {
    let fd = take(n)?;
    let broken = |e| Error::io(DOING, address.to_string(), e);
    if pipe::file_type(&fd).map_err(broken)? == FileType::Socket {
        let socket = Socket::from(fd);
        if socket.is_listener().map_err(broken)? {
            return Ok(Inherited::Listener(socket));
        }
        return socket::adopt(socket, address.to_string()).map(Inherited::Connection).map_err(broken);
    }
    let mode = rustix::fs::fcntl_getfl(&fd).map_err(|e| broken(e.into()))? & OFlags::ACCMODE;
    let pipes = match side {
        Side::Destination if mode == OFlags::WRONLY => return Err(one_way(address, "read from")),
        Side::Source if mode == OFlags::RDONLY => return Err(one_way(address, "written to")),
        Side::Destination => Pipes::new(Some(End::reading(fd).map_err(broken)?), None, None),
        // The parent may hold the same pipe, and rely on it to block.
        Side::Source => Pipes::new(None, Some(End::writing(fd, false).map_err(broken)?), None),
    };
    let connection = Connection::new(Io::Pipes(pipes), address.to_string(), address.to_string());
    Ok(Inherited::Connection(connection))
}

/// Makes descriptor `n` ours: it will be closed with the connection, and not be inherited any further.
///
/// Standard input, output and error are duplicated, as the rest of the process goes on using them. Everything else has
/// to be marked as inheritable, which tells what came from the parent from what this process itself has opened: Rust
/// opens everything close-on-exec. The mark is removed, so a second take-over is refused.
fn take(n: u32) -> Result<OwnedFd> {
    // Look and take must not be interrupted by another taker.
    static TAKING: Mutex<()> = Mutex::new(());
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);

    let failed = |e: io::Error| Error::io(DOING, format!("fd:{n}"), e);
    if n <= 2 {
        let fd = match n {
            0 => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3),
            1 => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3),
            _ => rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3),
        };
        return fd.map_err(|e| failed(e.into()));
    }
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{n}")).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            let message =
                format!("fd:{n}: there is no such descriptor; the parent process has to pass it on");
            Error::nowhere(ErrorKind::Misuse, DOING, message)
        }
        _ => failed(e),
    })?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok());
    if flags.is_none_or(|flags| flags & CLOSE_ON_EXEC != 0) {
        let message = format!("fd:{n}: not inherited from the parent process, or taken over already");
        return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
    }
    let raw = i32::try_from(n).map_err(|e| failed(io::Error::other(e)))?;
    #[expect(unsafe_code, reason = "no safe function makes an owner of a descriptor number")]
    // SAFETY: the descriptor is open (it has an entry in fdinfo) and was inherited: it is not close-on-exec, as
    // everything is that this process opens. So nothing in this process owns it, and the lock and the mark set below
    // let this happen once.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    Ok(fd)
}

fn one_way(address: &Address, what: &str) -> Error {
    Error::nowhere(ErrorKind::Misuse, DOING, format!("{address} cannot be {what}"))
}
