//! One open connection, whatever it is made of.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Socket};

use super::memory::Twin;
use super::pipe::Pipes;
use crate::{Error, ErrorKind, Result};

/// One open connection. Clones share it, so that one thread can read while another one writes:
///
/// ```
/// use std::io::{Read, Write};
/// use migwire::transport::memory;
///
/// let (ours, mut theirs) = memory::pair();
/// let mut writer = ours.clone();
/// let answer = std::thread::spawn(move || { let mut reader = ours; let mut b = [0; 2]; reader.read_exact(&mut b).map(|()| b) });
/// writer.write_all(b"PING").unwrap();
/// theirs.write_all(b"OK").unwrap();
/// assert_eq!(&answer.join().unwrap().unwrap(), b"OK");
/// ```
///
/// The connection is closed when its last clone is dropped, so a writer that is done before the reader says so by
/// [`shutdown_write`](Self::shutdown_write). A read or write that takes longer than its timeout fails with
/// `io::ErrorKind::TimedOut`; [`error`](Self::error) makes an [`Error`] of that, with the connection's name in it.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
    ear: Option<Arc<Ear>>,
}

/// Who is told what is read.
type Ear = dyn Fn(&[u8]) + Send + Sync;

struct Inner {
    io: Io,
    label: String,
    peer: String,
}

pub(super) enum Io {
    Socket(Socket),
    Pipes(Pipes),
    Memory(Twin),
}

impl Connection {
    pub(super) fn new(io: Io, label: String, peer: String) -> Self {
        Self { inner: Arc::new(Inner { io, label, peer }), ear: None }
    }

    /// A clone that tells `ear` all that is read from it and its own clones, before whoever reads learns of it. What is discarded or
    /// spliced is told to nobody.
    #[cfg(feature = "endpoint")]
    pub(crate) fn overheard(&self, ear: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self { inner: Arc::clone(&self.inner), ear: Some(Arc::new(ear)) }
    }

    /// The connection's name in messages: the address it was opened with, or for an accepted one the peer's.
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// Address of the other end, as numbers where it has numbers.
    pub fn peer(&self) -> &str {
        &self.inner.peer
    }

    /// Whether bytes can go both ways, so that a return path is possible.
    pub fn is_bidirectional(&self) -> bool {
        self.can_read() && self.can_write()
    }

    /// Whether bytes can come in.
    pub fn can_read(&self) -> bool {
        match &self.inner.io {
            Io::Pipes(pipes) => pipes.can_read(),
            Io::Socket(_) | Io::Memory(_) => true,
        }
    }

    /// Whether bytes can go out.
    pub fn can_write(&self) -> bool {
        match &self.inner.io {
            Io::Pipes(pipes) => pipes.can_write(),
            Io::Socket(_) | Io::Memory(_) => true,
        }
    }

    /// Whether both are clones of one connection.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Reads and forgets up to as many bytes as `scrap` is long; 0 at the end. A tcp socket drops them without copying them, so
    /// that `scrap` may hold anything afterwards.
    pub fn discard(&self, scrap: &mut [u8]) -> io::Result<usize> {
        match &self.inner.io {
            Io::Socket(socket) => {
                let dropped = rustix::net::recv(socket, scrap, rustix::net::RecvFlags::TRUNC);
                dropped.map(|(_, count)| count).map_err(|e| silence(e.into(), "nothing was received in time"))
            }
            Io::Pipes(_) | Io::Memory(_) => (&*self).read(scrap),
        }
    }

    /// Sends up to `count` bytes of `file` from `offset` on, without copying them here. `None`: this connection cannot.
    pub fn send_file(&self, file: &File, offset: u64, count: usize) -> io::Result<Option<usize>> {
        let Io::Socket(socket) = &self.inner.io else { return Ok(None) };
        let mut offset = offset;
        match rustix::fs::sendfile(socket, file, Some(&mut offset), count) {
            Ok(sent) => Ok(Some(sent)),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => Ok(None),
            Err(e) => Err(silence(e.into(), "nothing was taken in time")),
        }
    }

    /// Longest wait of one `read` for its first byte, on all clones; `None` waits for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.map(at_least_one_tick);
        match &self.inner.io {
            Io::Socket(socket) => {
                socket.set_read_timeout(timeout).map_err(|e| self.error("setting a timeout", e))?;
            }
            Io::Pipes(pipes) => pipes.set_read_timeout(timeout),
            Io::Memory(twin) => twin.set_read_timeout(timeout),
        }
        Ok(())
    }

    /// Longest wait of one `write` until the peer takes a byte, on all clones; `None` waits for ever.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.map(at_least_one_tick);
        match &self.inner.io {
            Io::Socket(socket) => {
                socket.set_write_timeout(timeout).map_err(|e| self.error("setting a timeout", e))?;
            }
            Io::Pipes(pipes) => pipes.set_write_timeout(timeout),
            Io::Memory(twin) => twin.set_write_timeout(timeout),
        }
        Ok(())
    }

    /// Tells the peer that no byte will follow. Reading goes on; doing it twice, or when the peer is gone, is no error.
    pub fn shutdown_write(&self) -> Result<()> {
        match &self.inner.io {
            Io::Socket(socket) => self.shutdown_socket(socket, Shutdown::Write),
            Io::Pipes(pipes) => {
                pipes.shutdown_write();
                Ok(())
            }
            Io::Memory(twin) => {
                twin.shutdown_write();
                Ok(())
            }
        }
    }

    /// Takes nothing any more, from any thread: what has arrived can still be read, then reads give 0. A pipe is ended as a whole.
    pub fn shutdown_read(&self) -> Result<()> {
        match &self.inner.io {
            Io::Socket(socket) => self.shutdown_socket(socket, Shutdown::Read),
            Io::Pipes(pipes) => {
                pipes.shutdown();
                Ok(())
            }
            Io::Memory(twin) => {
                twin.shutdown_read();
                Ok(())
            }
        }
    }

    /// Ends both directions at once, from any thread: a `read` that waits on another clone returns 0, a `write` fails.
    pub fn shutdown(&self) -> Result<()> {
        match &self.inner.io {
            Io::Socket(socket) => self.shutdown_socket(socket, Shutdown::Both),
            Io::Pipes(pipes) => {
                pipes.shutdown();
                Ok(())
            }
            Io::Memory(twin) => {
                twin.shutdown();
                Ok(())
            }
        }
    }

    /// Breaks off, from any thread: what is on its way is lost, and a peer that goes on writing is told so at once (TCP: RST). With
    /// [`shutdown`](Self::shutdown) alone its bytes would be taken as long as there is room for them, and it would learn nothing.
    pub fn reset(&self) -> Result<()> {
        self.shutdown()?;
        if let Io::Socket(socket) = &self.inner.io {
            let is_tcp = socket.domain().is_ok_and(|domain| matches!(domain, Domain::IPV4 | Domain::IPV6));
            if is_tcp {
                // That it is gone already is what was wanted.
                let _ = rustix::net::connect_unspec(socket);
            }
        }
        Ok(())
    }

    /// Ends writing, and for a child process waits until it has ended, too.
    ///
    /// # Errors
    /// [`ErrorKind::Peer`] if the child failed, with its last words; [`ErrorKind::Timeout`] if it did not end in time.
    pub fn close(&self, timeout: Duration) -> Result<()> {
        self.shutdown_write()?;
        match &self.inner.io {
            Io::Pipes(pipes) => pipes.wait(timeout),
            Io::Socket(_) | Io::Memory(_) => Ok(()),
        }
    }

    /// What an I/O error of this connection means, with the connection's name: silence is [`ErrorKind::Timeout`], an
    /// end of input inside `read_exact` [`ErrorKind::Truncated`], a child's failure [`ErrorKind::Peer`].
    pub fn error(&self, doing: &'static str, e: io::Error) -> Error {
        let label = self.label();
        let e = match e.downcast::<Error>() {
            Ok(error) => return error,
            Err(e) => e,
        };
        match e.kind() {
            io::ErrorKind::TimedOut => Error::nowhere(ErrorKind::Timeout, doing, format!("{label}: {e}")),
            io::ErrorKind::UnexpectedEof => {
                Error::nowhere(ErrorKind::Truncated, doing, format!("{label}: the connection ended"))
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                Error::io(doing, format!("{label}: the peer closed the connection"), e)
            }
            _ => Error::io(doing, label, e),
        }
    }

    /// The socket, if it is one.
    #[cfg(feature = "endpoint")]
    pub(super) fn socket(&self) -> Option<&Socket> {
        match &self.inner.io {
            Io::Socket(socket) => Some(socket),
            Io::Pipes(_) | Io::Memory(_) => None,
        }
    }

    /// Whether it is a socket of the operating system.
    #[cfg(feature = "endpoint")]
    pub(crate) fn is_socket(&self) -> bool {
        self.socket().is_some()
    }

    fn shutdown_socket(&self, socket: &Socket, how: Shutdown) -> Result<()> {
        match socket.shutdown(how) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => Err(self.error("closing", e)),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("label", &self.label()).field("peer", &self.peer()).finish()
    }
}

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &self.inner.io {
            Io::Socket(socket) => {
                let mut socket = socket;
                socket.read(buffer).map_err(|e| silence(e, "nothing was received in time"))
            }
            Io::Pipes(pipes) => pipes.read(buffer),
            Io::Memory(twin) => twin.read(buffer),
        }?;
        if let Some(ear) = &self.ear {
            ear(&buffer[..count]);
        }
        Ok(count)
    }
}

impl Write for &Connection {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(data)])
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.inner.io {
            Io::Socket(socket) => {
                let mut socket = socket;
                socket.write_vectored(data).map_err(|e| silence(e, "the peer took nothing in time"))
            }
            Io::Pipes(pipes) => pipes.write_vectored(data),
            Io::Memory(twin) => twin.write_vectored(data),
        }
    }

    /// Nothing is ever held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        (&*self).write(data)
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self).write_vectored(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket reports that its timeout is over as `EAGAIN`.
pub(super) fn silence(e: io::Error, what: &str) -> io::Error {
    match e.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, what),
        _ => e,
    }
}

/// The kernel takes zero for "no timeout at all", which is the opposite of what was meant.
fn at_least_one_tick(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}
