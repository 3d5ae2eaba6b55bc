//! Stream sockets: tcp, unix, vsock. One type for all of them, so that tuning and timeouts are written once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::Address;
use super::connection::{Connection, Io};
use crate::{Error, ErrorKind, Result};

const CONNECTING: &str = "connecting";

/// A unix socket holds no more than its send buffer; the kernel's 208 KiB is less than one large write of ours. TCP
/// keeps the kernel's sizes: a fixed one switches off their tuning, which a long link needs, and on loopback no fixed
/// size won in every measurement (4 MiB mostly lost).
const UNIX_BUFFER: usize = 1 << 20;

/// Connects within `timeout`, to the first of the host's addresses that answers. With the error comes the kind of the
/// operating system's, if it was one of the kernel's.
pub(super) fn connect(
    address: &Address,
    timeout: Duration,
) -> Result<Connection, (Error, Option<io::ErrorKind>)> {
    let deadline = Instant::now() + timeout;
    let mut refused = (Error::nowhere(ErrorKind::Io, CONNECTING, format!("{address}: no such host")), None);
    for candidate in candidates(address, CONNECTING).map_err(|e| (e, None))? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match connect_to(&candidate, left) {
            Ok(socket) => {
                let peer = candidate.as_pathname().map(unix_name).or_else(|| name(&candidate));
                let peer = peer.unwrap_or_else(|| address.to_string());
                return Ok(Connection::new(Io::Socket(socket), address.to_string(), peer));
            }
            Err(e) => refused = failed(address, CONNECTING, timeout, e),
        }
    }
    Err(refused)
}

/// A listening socket, and the address others can connect to.
pub(super) fn listen(address: &Address) -> Result<(Socket, Address)> {
    let doing = "listening";
    let mut refused = Error::nowhere(ErrorKind::Io, doing, format!("{address}: no such host"));
    for candidate in candidates(address, doing)? {
        let bound = bind(&candidate).and_then(|socket| {
            let local = socket.local_addr()?;
            Ok((socket, local))
        });
        match bound {
            Ok((socket, local)) => {
                let local = match (local.as_socket(), local.as_vsock_address()) {
                    (Some(local), _) => Address::Tcp { host: host(local), port: local.port() },
                    (None, Some((cid, port))) => Address::Vsock { cid, port },
                    (None, None) => address.clone(),
                };
                return Ok((socket, local));
            }
            Err(e) => refused = failed(address, doing, Duration::ZERO, e).0,
        }
    }
    Err(refused)
}

/// Makes a connection of a socket that is connected already, whoever did that.
pub(super) fn adopt(socket: Socket, label: String) -> io::Result<Connection> {
    socket.set_nonblocking(false)?;
    let peer = socket.peer_addr()?;
    tune(&socket, &peer);
    let peer = name(&peer).unwrap_or_else(|| label.clone());
    Ok(Connection::new(Io::Socket(socket), label, peer))
}

/// A socket address as an [`Address`] is written; `None` for a unix socket without name.
pub(super) fn name(address: &SockAddr) -> Option<String> {
    if let Some(address) = address.as_socket() {
        return Some(Address::Tcp { host: host(address), port: address.port() }.to_string());
    }
    if let Some((cid, port)) = address.as_vsock_address() {
        return Some(Address::Vsock { cid, port }.to_string());
    }
    address.as_pathname().map(unix_name)
}

fn unix_name(path: &Path) -> String {
    Address::Unix(path.to_owned()).to_string()
}

/// Without the scope of a link-local address the number alone is not enough to connect to.
fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    }
}

/// The socket addresses that an address stands for. Only tcp has several.
fn candidates(address: &Address, doing: &'static str) -> Result<Vec<SockAddr>> {
    let broken = |e| Error::io(doing, address.to_string(), e);
    let found = match address {
        Address::Tcp { host, port } if host.is_empty() && doing == CONNECTING => {
            let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            loopback.map(|ip| SocketAddr::new(ip, *port).into()).to_vec()
        }
        Address::Tcp { host, port } if host.is_empty() => {
            // The IPv6 wildcard takes IPv4 connections, too; a host without IPv6 has the other one.
            let any: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
            any.map(|ip| SocketAddr::new(ip, *port).into()).to_vec()
        }
        Address::Tcp { host, port } => {
            let found = (host.as_str(), *port).to_socket_addrs().map_err(broken)?;
            found.map(SockAddr::from).collect()
        }
        Address::Unix(path) => vec![SockAddr::unix(path).map_err(broken)?],
        Address::Vsock { cid, port } => vec![SockAddr::vsock(*cid, *port)],
        _ => {
            let message = format!("{address} is no socket");
            return Err(Error::nowhere(ErrorKind::Misuse, doing, message));
        }
    };
    Ok(found)
}

fn connect_to(address: &SockAddr, timeout: Duration) -> io::Result<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, None)?;
    tune(&socket, address);
    if address.domain() == Domain::UNIX {
        // A non-blocking connect gives up at once when the peer's queue is full; a blocking one waits this long.
        socket.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        socket.connect(address)?;
        socket.set_write_timeout(None)?;
    } else {
        socket.connect_timeout(address, timeout)?;
    }
    Ok(socket)
}

fn bind(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, None)?;
    if let Some(ip) = address.as_socket() {
        // A finished migration must not keep the port busy for a minute.
        socket.set_reuse_address(true)?;
        if ip.is_ipv6() {
            socket.set_only_v6(!ip.ip().is_unspecified())?;
        }
    }
    socket.bind(address)?;
    // 255 multifd channels may knock before the first is let in; the kernel has a limit of its own below this.
    socket.listen(512)?;
    // `accept` waits in `poll`, and must not hang on a peer that is gone again when poll returns.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// All of it only helps, so a socket that does not know an option goes without.
fn tune(socket: &Socket, address: &SockAddr) {
    if address.domain() == Domain::UNIX {
        let _ = socket.set_send_buffer_size(UNIX_BUFFER);
    } else if address.as_socket().is_some() {
        // The return path is made of small messages that somebody waits for.
        let _ = socket.set_tcp_nodelay(true);
        // A postcopy migration is silent for minutes with good reason; only a dead peer must be noticed.
        let keepalive =
            TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
        let _ = socket.set_tcp_keepalive(&keepalive);
    }
}

fn failed(
    address: &Address,
    doing: &'static str,
    timeout: Duration,
    e: io::Error,
) -> (Error, Option<io::ErrorKind>) {
    let kind = e.kind();
    // No vsock at all; nothing behind this number to connect to; nothing behind it to listen on.
    let missing = [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::NODEV, rustix::io::Errno::ADDRNOTAVAIL];
    let missing = missing.map(rustix::io::Errno::raw_os_error);
    let missing = e.raw_os_error().is_some_and(|e| missing.contains(&e));
    let error = match kind {
        _ if missing && matches!(address, Address::Vsock { .. }) => {
            let message = format!(
                "{address}: this kernel has no vsock for that number (modules vhost_vsock, vsock_loopback)"
            );
            Error::nowhere(ErrorKind::Unsupported, doing, message)
        }
        // A unix socket says that its write timeout is over.
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock if !timeout.is_zero() => {
            Error::nowhere(ErrorKind::Timeout, doing, format!("{address}: no answer within {timeout:?}"))
        }
        _ => Error::io(doing, address.to_string(), e),
    };
    (error, Some(kind))
}
