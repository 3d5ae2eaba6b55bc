//! A slow line: what is sent arrives at so many bytes a second. On a fast one everything is there before a guest has asked for anything.
//!
//! ```text
//! migwire send -> unix socket -> relay (paced) -> unix socket -> stock destination
//!              <------------- as it comes ------
//! ```
//!
//! UNIX sockets hold little, so neither end is far ahead of the other. A connection that ends at one side ends at the other. So many
//! connections as a migration has are accepted, and after them none before the line is opened again: a source that comes back before its
//! destination listens has to see that.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes that go on at once.
const CHUNK: usize = 16 << 10;

/// Between two looks for a new connection, and longest blindness to the end of the cell.
const TURN: Duration = Duration::from_millis(10);

/// A line that lasts as long as this value.
pub(crate) struct Relay {
    listen: PathBuf,
    /// Each listener is good for the connections of one migration, or of one resumption.
    listeners: Sender<(UnixListener, usize)>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Accepts so many connections at `listen` and connects each to `target`.
    pub(crate) fn start(listen: &Path, target: &Path, connections: usize, pace: u64) -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (listeners, incoming) = mpsc::channel();
        let (flag, target) = (Arc::clone(&over), target.to_owned());
        let thread = thread::spawn(move || {
            let mut threads = Vec::new();
            while !flag.load(Ordering::Relaxed) {
                match incoming.recv_timeout(TURN) {
                    Ok((listener, connections)) => {
                        accept(&listener, &target, connections, pace, &flag, &mut threads);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            for thread in threads {
                let _ = thread.join();
            }
        });
        let relay = Self { listen: listen.to_owned(), listeners, over, thread: Some(thread) };
        relay.open(connections)?;
        Ok(relay)
    }

    /// Accepts so many connections more.
    pub(crate) fn open(&self, connections: usize) -> io::Result<()> {
        let listener = UnixListener::bind(&self.listen)?;
        listener.set_nonblocking(true)?;
        self.listeners
            .send((listener, connections))
            .map_err(|_gone| io::Error::other("the slow line has ended"))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed; the cell's verdict does not depend on it.
            let _ = thread.join();
        }
    }
}

fn accept(
    listener: &UnixListener,
    target: &Path,
    mut connections: usize,
    pace: u64,
    over: &Arc<AtomicBool>,
    threads: &mut Vec<JoinHandle<()>>,
) {
    while connections > 0 && !over.load(Ordering::Relaxed) {
        let Ok((near, _)) = listener.accept() else {
            thread::sleep(TURN);
            continue;
        };
        connections -= 1;
        if connections == 0 {
            // Nobody else comes in, not even into the queue.
            let _ = listener.local_addr().map(|own| own.as_pathname().map(std::fs::remove_file));
        }
        // A destination that does not listen is a connection that ends at once.
        let Ok(far) = UnixStream::connect(target) else { continue };
        for (pace, from, to) in [(Some(pace), &near, &far), (None, &far, &near)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            let over = Arc::clone(over);
            threads.push(thread::spawn(move || copy(from, to, pace, &over)));
        }
    }
}

fn copy(mut from: UnixStream, mut to: UnixStream, pace: Option<u64>, over: &AtomicBool) {
    let timeouts =
        [from.set_nonblocking(false), from.set_read_timeout(Some(TURN)), to.set_write_timeout(Some(TURN))];
    let mut chunk = vec![0; CHUNK];
    while timeouts.iter().all(Result::is_ok) && !over.load(Ordering::Relaxed) {
        let length = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => length,
            Err(e) if is_no_end(&e) => continue,
            Err(_) => break,
        };
        if let Some(pace) = pace {
            thread::sleep(Duration::from_secs_f64(length as f64 / pace as f64));
        }
        if !put(&mut to, &chunk[..length], over) {
            break;
        }
    }
    // Both ways: whoever is left learns of it by its next word.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// Writes everything, unless the cell is over or the other end has gone.
fn put(to: &mut UnixStream, mut bytes: &[u8], over: &AtomicBool) -> bool {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return false,
            Ok(written) => bytes = &bytes[written..],
            Err(e) if is_no_end(&e) && !over.load(Ordering::Relaxed) => {}
            Err(_) => return false,
        }
    }
    true
}

fn is_no_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn everything_arrives_slowly_and_answers_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (near, far) = (dir.path().join("near"), dir.path().join("far"));
        let listener = UnixListener::bind(&far).unwrap();
        let relay = Relay::start(&near, &far, 1, 1 << 20).unwrap();
        let began = Instant::now();
        let mut sender = UnixStream::connect(&near).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        receiver.write_all(b"word").unwrap();
        let mut word = [0; 4];
        sender.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"word");
        let sent: Vec<u8> = (0..200_000u32).map(|at| at as u8).collect();
        let given = sent.clone();
        let thread = thread::spawn(move || sender.write_all(&given));
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(received, sent);
        assert!(began.elapsed() > Duration::from_millis(150), "{:?}", began.elapsed());
        drop(relay);
    }

    #[test]
    fn an_end_that_is_gone_ends_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let (near, far) = (dir.path().join("near"), dir.path().join("far"));
        let listener = UnixListener::bind(&far).unwrap();
        let relay = Relay::start(&near, &far, 1, 1 << 20).unwrap();
        let mut sender = UnixStream::connect(&near).unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(sender.read(&mut [0; 1]).unwrap(), 0);
        assert!(UnixStream::connect(&near).is_err(), "it is not open again");
        drop(listener);
        relay.open(1).unwrap();
        let mut sender = UnixStream::connect(&near).unwrap();
        assert_eq!(sender.read(&mut [0; 1]).unwrap(), 0, "nobody listens");
    }
}
