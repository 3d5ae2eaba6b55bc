//! Files that a thread of its own writes, so that reading and writing take turns on two processors.
//!
//! ```text
//! BehindFile::write --> one buffer for all files --> queue of a few --> thread --> file
//!                                 ^---------------- empty ones ------------'
//! ```
//! There is one buffer, whatever the number of files: bytes for another file send it off. A file that cannot be written says so at
//! the next write, or when it is flushed.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Bytes that go to the thread at once.
const BUFFER: usize = 1 << 20;
/// Buffers that wait for the thread at most.
const QUEUE: usize = 4;

/// The thread, and what is on the way to it.
#[derive(Clone)]
pub(crate) struct Behind {
    state: Arc<Mutex<State>>,
}

struct State {
    buffer: Vec<u8>,
    buffer_of: Option<Arc<Place>>,
    queue: SyncSender<Job>,
    empty: Receiver<Vec<u8>>,
}

struct Place {
    file: File,
    failure: Mutex<Option<io::Error>>,
}

enum Job {
    Write(Arc<Place>, Vec<u8>),
    Answer(SyncSender<()>),
}

/// A file. What is written is in it when it has been flushed.
pub(crate) struct BehindFile {
    behind: Behind,
    place: Arc<Place>,
}

impl Behind {
    /// Starts the thread.
    pub(crate) fn new() -> io::Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE);
        let (emptied, empty) = mpsc::sync_channel(QUEUE + 2);
        thread::Builder::new().name("writer".into()).spawn(move || {
            for job in jobs {
                match job {
                    Job::Write(place, mut buffer) => {
                        let mut failure = place.failure();
                        if failure.is_none() {
                            *failure = (&place.file).write_all(&buffer).err();
                        }
                        buffer.clear();
                        // If nobody wants it any more, it is done with.
                        let _ = emptied.try_send(buffer);
                    }
                    Job::Answer(answer) => drop(answer.send(())),
                }
            }
        })?;
        let state = State { buffer: Vec::new(), buffer_of: None, queue, empty };
        Ok(Self { state: Arc::new(Mutex::new(state)) })
    }

    pub(crate) fn file(&self, file: File) -> BehindFile {
        BehindFile { behind: self.clone(), place: Arc::new(Place { file, failure: Mutex::default() }) }
    }
}

impl State {
    fn send_off(&mut self) -> io::Result<()> {
        if let Some(place) = self.buffer_of.take() {
            let next = self.empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(BUFFER));
            let full = std::mem::replace(&mut self.buffer, next);
            self.queue.send(Job::Write(place, full)).map_err(|_| gone())?;
        }
        Ok(())
    }
}

impl Place {
    fn failure(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for BehindFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut state = self.behind.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.buffer_of.as_ref().is_none_or(|place| !Arc::ptr_eq(place, &self.place)) {
            state.send_off()?;
            if let Some(error) = self.place.failure().take() {
                return Err(error);
            }
            state.buffer_of = Some(Arc::clone(&self.place));
        }
        let count = data.len().min(BUFFER - state.buffer.len());
        state.buffer.extend_from_slice(&data[..count]);
        if state.buffer.len() == BUFFER {
            state.send_off()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let (answer, answered) = mpsc::sync_channel(1);
        {
            let mut state = self.behind.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.send_off()?;
            state.queue.send(Job::Answer(answer)).map_err(|_| gone())?;
        }
        answered.recv().map_err(|_| gone())?;
        self.place.failure().take().map_or(Ok(()), Err)
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that writes has ended")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_get_their_bytes_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let behind = Behind::new().unwrap();
        let names = ["a", "b", "c"].map(|name| directory.path().join(name));
        let mut files = names.each_ref().map(|name| behind.file(File::create(name).unwrap()));
        let mut expected = [const { Vec::new() }; 3];
        for round in 0..400usize {
            let which = round * 7 % 3;
            let bytes = vec![round as u8; round * 53 % 40_000];
            files[which].write_all(&bytes).unwrap();
            expected[which].extend_from_slice(&bytes);
        }
        files.iter_mut().for_each(|file| file.flush().unwrap());
        for (name, expected) in names.iter().zip(&expected) {
            assert!(fs::read(name).unwrap() == *expected);
        }
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("a");
        fs::write(&name, "").unwrap();
        let behind = Behind::new().unwrap();
        let mut bad = behind.file(File::open(&name).unwrap());
        bad.write_all(b"to a file that is open for reading").unwrap();
        assert!(bad.flush().is_err());
        let mut good = behind.file(File::create(directory.path().join("b")).unwrap());
        good.write_all(b"others go on").unwrap();
        good.flush().unwrap();
    }
}
