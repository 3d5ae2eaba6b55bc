//! The end of a long recording, in memory: written a chunk at a time by a thread of its own.
//!
//! ```text
//! blocks --> | chunk that is filled |  --> full ones --> thread "recorder" --> file, past the page cache while the disk keeps up
//!                  '-- what has waited for a while is written as it is
//! ```
//! Copying into the page cache is what recording would cost most: it takes more time than forwarding. A disk that keeps up takes
//! whole chunks as they are (`O_DIRECT`). One that does not must not hold up the migration: then the page cache takes as much as it
//! can, and only when that is full, too, everybody waits for the disk.
//!
//! The file is always a beginning of the recording: chunks are written in order. A process that is killed loses what it had not
//! written, at most what chunks hold, and of a recording that goes slowly what came in the last [`PATIENCE`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::recorder::Summary;

/// Bytes written at a time. Disks are at their best from some megabytes on.
pub(super) const CHUNK: usize = 4 << 20;

/// Chunks at most: the one that is filled, the one that is written, and those in between.
const CHUNKS: usize = 6;

/// What a disk wants offsets, lengths and memory to be multiples of.
const ALIGN: usize = 4096;

/// Size of large pages.
const LARGE: usize = 2 << 20;

/// How long bytes wait when nothing follows them.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// The end of a file that is being written.
pub(super) struct Stage {
    disk: Arc<Disk>,
    thread: Option<JoinHandle<()>>,
    /// The one that is filled; none at the end.
    chunk: Option<Chunk>,
    /// Where it begins in the file.
    base: u64,
    filled: usize,
    /// So much of it is in the file.
    written: usize,
    /// What was whole when it began.
    mark: Mark,
}

/// A state of the recording in which the file ends with a whole block.
pub(super) type Mark = Summary;

/// A failure, and what the file holds in spite of it.
pub(super) type Broken = (io::Error, Mark);

/// What the thread shares with those who fill chunks.
struct Disk {
    state: Mutex<State>,
    changed: Condvar,
    file: File,
    /// The same past the page cache, if there is such a thing.
    direct: Option<File>,
}

#[derive(Default)]
struct State {
    full: VecDeque<Full>,
    free: Vec<Chunk>,
    /// How many chunks there are.
    count: usize,
    is_closed: bool,
    /// What waits is not written any more.
    is_abandoned: bool,
    broken: Option<Broken>,
}

struct Full {
    chunk: Chunk,
    base: u64,
    written: usize,
    filled: usize,
    mark: Mark,
}

/// Memory as disks want it: in pages that are large, so that few have to be told to the disk.
struct Chunk {
    bytes: Memory,
    start: usize,
}

#[cfg(feature = "transport")]
type Memory = memmap2::MmapMut;
#[cfg(not(feature = "transport"))]
type Memory = Vec<u8>;

impl Stage {
    /// Goes on behind what `file` holds. `settle` is called now and then when nothing else happens, to write what waits.
    pub(super) fn new(file: &File, mark: Mark, settle: impl Fn() + Send + 'static) -> io::Result<Self> {
        let chunk = Some(Chunk::new()?);
        let (direct, file) = (direct(file), file.try_clone()?);
        let disk = Arc::new(Disk { state: Mutex::default(), changed: Condvar::new(), file, direct });
        disk.lock().count = 1;
        let thread = {
            let disk = Arc::clone(&disk);
            thread::Builder::new().name("recorder".into()).spawn(move || disk.run(&settle))?
        };
        // What is in front of it in the first chunk is in the file already.
        let written = (mark.file_bytes % ALIGN as u64) as usize;
        let base = mark.file_bytes - written as u64;
        Ok(Self { disk, thread: Some(thread), chunk, base, filled: written, written, mark })
    }

    /// Appends bytes. `mark` is the state of the recording in front of the block that they are part of.
    pub(super) fn append(&mut self, mut bytes: &[u8], mark: &Mark) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let room = self.room(mark)?;
            let count = room.len().min(bytes.len());
            let (here, rest) = bytes.split_at(count);
            room[..count].copy_from_slice(here);
            self.filled += count;
            bytes = rest;
        }
        Ok(())
    }

    /// Appends the next `len` bytes of `source`, and shows them to `look`.
    pub(super) fn read(
        &mut self,
        source: &mut dyn Read,
        len: usize,
        mark: &Mark,
        mut look: impl FnMut(&[u8]),
    ) -> Result<(), Broken> {
        let mut left = len;
        while left > 0 {
            let room = self.room(mark)?;
            let count = room.len().min(left);
            source.read_exact(&mut room[..count]).map_err(|e| (e, *mark))?;
            look(&room[..count]);
            self.filled += count;
            left -= count;
        }
        Ok(())
    }

    /// Where the next bytes go.
    fn room(&mut self, mark: &Mark) -> Result<&mut [u8], Broken> {
        if self.filled == CHUNK {
            let chunk = self.disk.another()?;
            self.give(Some(chunk));
            (self.base, self.filled, self.written) = (self.base + CHUNK as u64, 0, 0);
            self.mark = *mark;
        }
        match &mut self.chunk {
            Some(chunk) => Ok(&mut chunk.bytes_mut()[self.filled..]),
            None => Err((io::ErrorKind::BrokenPipe.into(), *mark)),
        }
    }

    /// Has this chunk written, and goes on with the next one.
    fn give(&mut self, next: Option<Chunk>) {
        let Some(chunk) = std::mem::replace(&mut self.chunk, next) else { return };
        let (base, written, filled, mark) = (self.base, self.written, self.filled, self.mark);
        self.disk.lock().full.push_back(Full { chunk, base, written, filled, mark });
        self.disk.changed.notify_all();
    }

    /// Writes what waits, if all that comes before is in the file.
    pub(super) fn settle(&mut self) -> Result<(), Broken> {
        let mut state = self.disk.lock();
        if let Some(broken) = state.broken.take() {
            return Err(broken);
        }
        let is_alone = state.full.is_empty() && state.free.len() + 1 == state.count;
        drop(state);
        if let Some(chunk) = self.chunk.as_ref().filter(|_| is_alone && self.written < self.filled) {
            let bytes = &chunk.bytes()[self.written..self.filled];
            let written = self.disk.file.write_all_at(bytes, self.base + self.written as u64);
            written.map_err(|e| (e, self.mark))?;
            self.written = self.filled;
        }
        Ok(())
    }

    /// Nothing more is to be written: what the file holds is about to be cut off.
    pub(super) fn abandon(&self) {
        self.disk.lock().is_abandoned = true;
    }

    /// Writes everything.
    pub(super) fn finish(mut self) -> Result<(), Broken> {
        self.end();
        let broken = self.disk.lock().broken.take();
        broken.map_or(Ok(()), Err)
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.give(None);
        self.disk.lock().is_closed = true;
        self.disk.changed.notify_all();
        if thread.thread().id() == thread::current().id() {
            // It held the recording last, for a moment, and writes the rest when it goes on.
            return;
        }
        if thread.join().is_err() {
            let broken = (io::Error::other("the thread that writes the recording has panicked"), self.mark);
            self.disk.lock().broken.get_or_insert(broken);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end();
    }
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk that can be filled.
    fn another(&self) -> Result<Chunk, Broken> {
        let mut state = self.lock();
        loop {
            if let Some(broken) = state.broken.take() {
                return Err(broken);
            }
            if let Some(chunk) = state.free.pop() {
                return Ok(chunk);
            }
            // Without memory for one more, those that there are must do.
            if state.count < CHUNKS
                && let Ok(chunk) = Chunk::new()
            {
                state.count += 1;
                return Ok(chunk);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread: writes chunks in order until there will be no more.
    fn run(&self, settle: &dyn Fn()) {
        let mut is_broken = false;
        let mut state = self.lock();
        loop {
            let Some(full) = state.full.pop_front() else {
                if state.is_closed {
                    return;
                }
                let (waited, timeout) =
                    self.changed.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
                state = waited;
                if timeout.timed_out() && state.full.is_empty() {
                    drop(state);
                    settle();
                    state = self.lock();
                }
                continue;
            };
            // Behind this one and the one that is filled, all are waiting: the disk does not keep up.
            let is_late = state.full.len() + 2 >= CHUNKS;
            is_broken |= state.is_abandoned;
            drop(state);
            let written = if is_broken { Ok(()) } else { self.write(&full, !is_late) };
            state = self.lock();
            if let Err(e) = written {
                is_broken = true;
                state.broken = Some((e, full.mark));
            }
            state.free.push(full.chunk);
            self.changed.notify_all();
        }
    }

    fn write(&self, full: &Full, may_be_direct: bool) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|_| may_be_direct)
            && (full.written, full.filled) == (0, CHUNK)
            && direct.write_all_at(full.chunk.bytes(), full.base).is_ok()
        {
            return Ok(());
        }
        // What the disk did not take past the page cache, for whatever reason, it may take through it; if not, that error counts.
        let bytes = &full.chunk.bytes()[full.written..full.filled];
        self.file.write_all_at(bytes, full.base + full.written as u64)
    }
}

impl Chunk {
    fn new() -> io::Result<Self> {
        let bytes = memory(CHUNK + LARGE)?;
        let start = bytes.as_ptr().align_offset(LARGE).min(LARGE);
        Ok(Self { bytes, start })
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + CHUNK]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + CHUNK]
    }
}

#[cfg(feature = "transport")]
fn memory(len: usize) -> io::Result<Memory> {
    let memory = Memory::map_anon(len)?;
    // Only faster, never needed.
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

#[cfg(not(feature = "transport"))]
fn memory(len: usize) -> io::Result<Memory> {
    Ok(vec![0; len])
}

/// Another way to the same file, past the page cache.
#[cfg(feature = "transport")]
fn direct(file: &File) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    File::options().write(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(feature = "transport"))]
fn direct(_: &File) -> Option<File> {
    None
}
