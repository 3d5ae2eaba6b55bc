//! Writes a recording while a migration runs: many channels, many threads, one file.
//!
//! ```text
//!  ChannelTap::record      --+
//!  ChannelTap::record      --+--> lock --> Sink: blocks, index, digests --> file
//!  ChannelTap::record_from --+
//! ```
//!
//! The beginning of a recording, and all of one that is no regular file, is in the hands of the operating system before `record`
//! returns. From 1 MiB on, blocks are put together in memory and written by a thread (`capture/stage.rs`): memory stays at some chunks of
//! 4 MiB, times in the file are in order, and a process that is killed leaves a file that is a beginning of the recording, with
//! everything in it but what came in the last moment.
//!
//! A recording must not break the migration it watches: after the first failure (a full disk) bytes are counted as
//! lost, forwarding goes on, and [`Recorder::finish`] reports that failure. [`RecorderOptions::strict`] turns this
//! round and makes every `record` fail.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::block::MAX_ABOUT;
use super::sink::Sink;
use super::{Direction, Timestamp};
use crate::{Error, ErrorKind, Result};

pub(super) const DOING: &str = "recording";

/// How to record.
#[derive(Clone, Debug, Default)]
pub struct RecorderOptions {
    /// Fail every `record` after the first failure, instead of only reporting it at the end.
    pub strict: bool,
    /// A sentence for the section header, shown by capinfos: what was recorded, between whom.
    pub comment: Option<String>,
    /// What is known about the migration beside its bytes, as one JSON object: role, addresses, capabilities; at most 32 KiB. It stays
    /// with the file, [`Reader::about`](super::Reader::about) gives it back.
    pub about: Option<String>,
}

/// What a finished recording holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Interfaces written: channels on which at least one byte passed.
    pub channels: u32,
    /// Packets written.
    pub packets: u64,
    /// Bytes of the channels, without the blocks around them.
    pub bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
}

/// A handle on one recording; clones share it.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    strict: bool,
    sink: Mutex<Sink>,
}

impl Recorder {
    /// Starts a recording in a new file, replacing an old one of that name.
    ///
    /// # Errors
    /// `Io` if that is not possible, `Misuse` if there is more to say about it than a file can take.
    pub fn create(path: &Path, options: RecorderOptions) -> Result<Self> {
        if let Some(len) = options.about.as_ref().map(String::len).filter(|len| *len > MAX_ABOUT) {
            let message = format!("{len} bytes about the recording, where at most {MAX_ABOUT} are written");
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        let open = File::create(path).and_then(|file| Ok((file.try_clone()?, file)));
        let (file, sink) =
            open.map_err(|e| Error::io(DOING, format!("cannot create {}", path.display()), e))?;
        let recorder = Self::start(Box::new(sink), Some(file).filter(is_regular), options);
        recorder.check()?;
        Ok(recorder)
    }

    /// Starts a recording into anything that takes bytes. The section header is written at once; if that fails, the
    /// error is kept for [`finish`](Self::finish) like any other.
    pub fn new(sink: impl Write + Send + 'static, options: RecorderOptions) -> Self {
        Self::start(Box::new(sink), None, options)
    }

    fn start(sink: Box<dyn Write + Send>, file: Option<File>, options: RecorderOptions) -> Self {
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let shared = Weak::clone(shared);
            let settle = move || {
                // Whoever has the file at the moment writes to it.
                let shared = shared.upgrade();
                if let Some(Ok(mut sink)) = shared.as_ref().map(|shared| shared.sink.try_lock()) {
                    sink.settle();
                }
            };
            let mut sink = Sink::new(sink, file, Arc::new(settle));
            let userappl = concat!("migwire ", env!("CARGO_PKG_VERSION"));
            sink.begin(userappl, options.comment.as_deref(), options.about.as_deref());
            Shared { strict: options.strict, sink: Mutex::new(sink) }
        });
        Self { shared }
    }

    /// A new channel. Nothing is written before its first byte, and until then its name can still change.
    pub fn channel(&self, name: impl Into<String>) -> ChannelTap {
        let interface = Interface { name: name.into(), description: None, index: None };
        ChannelTap { shared: Arc::clone(&self.shared), interface: Arc::new(Mutex::new(interface)) }
    }

    /// The first failure so far, if there is one; it stays to be reported by [`finish`](Self::finish).
    pub fn check(&self) -> Result<()> {
        self.shared.lock().failure().map_or(Ok(()), Err)
    }

    /// Flushes, closes the sink and says what was recorded, or how it failed. Whatever is recorded afterwards through
    /// a forgotten [`ChannelTap`] is not written, and an error to it; a second `finish` says the same again.
    pub fn finish(&self) -> Result<Summary> {
        let mut sink = self.shared.lock();
        sink.close();
        let (lost, written) = (sink.lost(), sink.summary().bytes);
        match sink.take_failure() {
            None => Ok(sink.summary()),
            Some(source) => {
                let message =
                    format!("the recording is incomplete: {written} bytes were written, {lost} were lost");
                Err(Error::io(DOING, message, source))
            }
        }
    }
}

/// One channel of a recording; clones share it, so both directions can be recorded from two threads.
#[derive(Clone)]
pub struct ChannelTap {
    shared: Arc<Shared>,
    interface: Arc<Mutex<Interface>>,
}

struct Interface {
    name: String,
    description: Option<String>,
    /// Number in the file, once the interface block is written.
    index: Option<u32>,
}

impl ChannelTap {
    /// Gives the channel its name, when its first bytes have told what it is.
    ///
    /// # Errors
    /// [`ErrorKind::Misuse`] if bytes were recorded already: then the interface block is in the file.
    pub fn set_name(&self, name: impl Into<String>) -> Result<()> {
        let name = name.into();
        self.unwritten("named", |interface| interface.name = name)
    }

    /// Says what else is known about the channel (its peers, say); Wireshark shows it as interface description.
    ///
    /// # Errors
    /// As for [`set_name`](Self::set_name).
    pub fn set_description(&self, description: impl Into<String>) -> Result<()> {
        let description = description.into();
        self.unwritten("described", |interface| interface.description = Some(description))
    }

    /// The channel's name as it is now.
    pub fn name(&self) -> String {
        lock(&self.interface).name.clone()
    }

    /// Appends bytes that have just passed in this direction. No bytes, no packet.
    ///
    /// # Errors
    /// Only if the recorder is strict and writing failed, or if it was finished before.
    pub fn record(&self, direction: Direction, data: &[u8]) -> Result<()> {
        self.append(direction, None, Data::Held(data))
    }

    /// Appends bytes that passed at a time of which somebody else knows: those of a capture that was made by another program.
    /// A time before that of the packet before, on whatever channel, is taken for that one: times in the file are in order.
    ///
    /// # Errors
    /// As for [`record`](Self::record).
    pub fn record_at(&self, direction: Direction, time: Timestamp, data: &[u8]) -> Result<()> {
        self.append(direction, Some(time), Data::Held(data))
    }

    /// Appends bytes that passed at that time: the next `len` of `source`, which has them; a pipe. They are read to where they will be written from, and are
    /// taken from it even if they cannot be recorded.
    ///
    /// # Errors
    /// As for [`record`](Self::record).
    pub fn record_from(
        &self,
        direction: Direction,
        time: Timestamp,
        source: &mut dyn Read,
        len: usize,
    ) -> Result<()> {
        self.append(direction, Some(time), Data::Ahead(source, len))
    }

    fn append(&self, direction: Direction, time: Option<Timestamp>, data: Data<'_>) -> Result<()> {
        let len = data.len();
        if len == 0 {
            return Ok(());
        }
        // Order of the locks: interface, then file. The interface lock is held while writing, so that a channel's
        // first two records from two threads cannot both write its interface block.
        let mut interface = lock(&self.interface);
        let mut sink = self.shared.lock();
        if !sink.is_open() {
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, "the recording was finished already"));
        }
        let index = match interface.index {
            Some(index) => Some(index),
            None => sink.add_interface(&interface.name, interface.description.as_deref()),
        };
        interface.index = index;
        drop(interface);
        let time = time.unwrap_or_else(Timestamp::now);
        sink.offer(len);
        match (index, data) {
            (Some(index), Data::Held(data)) => sink.append_packets(index, direction, time, data),
            (Some(index), Data::Ahead(source, len)) => sink.append_read(index, direction, time, source, len),
            (None, data) => data.forget(),
        }
        match sink.failure() {
            Some(error) if self.shared.strict => Err(error),
            _ => Ok(()),
        }
    }

    /// Says that there was such a channel, even if no byte ever passes on it.
    pub fn announce(&self) {
        let mut interface = lock(&self.interface);
        let mut sink = self.shared.lock();
        if interface.index.is_none() && sink.is_open() {
            interface.index = sink.add_interface(&interface.name, interface.description.as_deref());
        }
    }

    fn unwritten(&self, what: &str, change: impl FnOnce(&mut Interface)) -> Result<()> {
        let mut interface = lock(&self.interface);
        if interface.index.is_some() {
            let message =
                format!("channel {} cannot be {what} after its first byte was recorded", interface.name);
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        change(&mut interface);
        Ok(())
    }
}

/// Bytes to record.
enum Data<'a> {
    Held(&'a [u8]),
    /// So many that can be read.
    Ahead(&'a mut dyn Read, usize),
}

impl Data<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Held(data) => data.len(),
            Self::Ahead(_, len) => *len,
        }
    }

    /// Takes them away, because what follows in the same source is somebody else's.
    fn forget(self) {
        if let Self::Ahead(source, len) = self {
            let _ = io::copy(&mut source.take(len as u64), &mut io::sink());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Sink> {
        lock(&self.sink)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while recording has at worst left a cut block; the others go on.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|m| m.is_file())
}

#[cfg(test)]
mod tests {
    use super::super::sink::cut;
    use super::*;

    /// A sink that takes `room` bytes, in pieces of at most `piece`, and then has no space left.
    struct Small {
        taken: Arc<Mutex<Vec<u8>>>,
        room: usize,
        piece: usize,
    }

    impl Write for Small {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let mut taken = lock(&self.taken);
            let n = data.len().min(self.piece).min(self.room - taken.len());
            if n == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            taken.extend_from_slice(&data[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_first_failure_is_reported_and_forwarding_goes_on() {
        let sink = Small { taken: Arc::default(), room: 300, piece: 7 };
        let recorder = Recorder::new(sink, RecorderOptions::default());
        let channel = recorder.channel("main");
        for _ in 0..10 {
            channel.record(Direction::ToDestination, &[1; 50]).expect("a lenient recorder never fails");
        }
        assert!(recorder.check().is_err());
        let error = recorder.finish().expect_err("300 bytes are not enough");
        assert!(error.message().contains("400 were lost"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
        assert!(recorder.finish().is_err(), "the failure stays");
    }

    #[test]
    fn a_strict_recorder_fails_at_once() {
        let sink = Small { taken: Arc::default(), room: 300, piece: 1000 };
        let recorder = Recorder::new(sink, RecorderOptions { strict: true, ..RecorderOptions::default() });
        let channel = recorder.channel("main");
        let failed = (0..10).any(|_| channel.record(Direction::ToDestination, &[1; 50]).is_err());
        assert!(failed);
    }

    #[test]
    fn partial_writes_lose_nothing() {
        let taken = Arc::default();
        let sink = Small { taken: Arc::clone(&taken), room: usize::MAX, piece: 5 };
        let recorder = Recorder::new(sink, RecorderOptions::default());
        recorder.channel("main").record(Direction::ToSource, &[7; 1001]).expect("room enough");
        let summary = recorder.finish().expect("room enough");
        assert_eq!(summary.file_bytes, lock(&taken).len() as u64);
        assert_eq!((summary.channels, summary.packets, summary.bytes), (1, 1, 1001));
    }

    #[test]
    fn a_name_is_fixed_by_the_first_byte() {
        let recorder = Recorder::new(io::sink(), RecorderOptions::default());
        let channel = recorder.channel("connection-0");
        channel.set_name("multifd-3").expect("nothing recorded yet");
        channel.record(Direction::ToDestination, &[]).expect("no bytes");
        channel.set_description("from 127.0.0.1").expect("still nothing recorded");
        channel.record(Direction::ToDestination, &[1]).expect("sink");
        assert_eq!(channel.set_name("main").map_err(|e| e.kind()), Err(ErrorKind::Misuse));
        assert_eq!(channel.name(), "multifd-3");
        recorder.finish().expect("sink");
        let late = channel.record(Direction::ToDestination, &[1]);
        assert_eq!(late.map_err(|e| e.kind()), Err(ErrorKind::Misuse));
    }

    #[test]
    fn given_times_are_kept_in_order() {
        let taken = Arc::default();
        let sink = Small { taken: Arc::clone(&taken), room: usize::MAX, piece: 1000 };
        let recorder = Recorder::new(sink, RecorderOptions::default());
        let (one, other) = (recorder.channel("main"), recorder.channel("multifd-0"));
        for (channel, time) in [(&one, 5), (&other, 1_000_000_007), (&one, 6), (&other, 1_000_000_008)] {
            channel.record_at(Direction::ToDestination, Timestamp(time), &[1]).expect("room enough");
        }
        recorder.finish().expect("room enough");
        let file = std::mem::take(&mut *lock(&taken));
        let mut reader = crate::capture::Reader::new(&file[..]).expect("a recording");
        let mut times = Vec::new();
        while let Some(packet) = reader.next_packet().expect("whole") {
            times.push(packet.time.0);
        }
        assert_eq!(times, [5, 1_000_000_007, 1_000_000_007, 1_000_000_008]);
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert!(Recorder::create(Path::new("/nonexistent/x.pcapng"), RecorderOptions::default()).is_err());
    }

    #[test]
    fn names_are_cut_at_characters() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("abc", 300), "abc");
    }
}
