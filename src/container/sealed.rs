//! Holds the bytes of a recorded channel against the seal of the recording, while somebody reads them.

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::Xxh3;

use crate::capture::SealedHalf;

/// What a channel should be, and what it was found to be when all of it had been read.
#[derive(Clone)]
pub(super) struct Sealed {
    /// Bytes and digest; `None` if the seal does not know it.
    expected: Option<(u64, u128)>,
    found: Arc<OnceLock<(u64, u128)>>,
}

impl Sealed {
    pub(super) fn new(half: Option<&SealedHalf>, name: &str) -> Self {
        // Another name stands for another channel.
        let half = half.filter(|half| half.name == name);
        Self { expected: half.map(|half| (half.bytes, half.digest)), found: Arc::default() }
    }

    /// Whether it is what it should be; `None` as long as nobody has read all of it.
    pub(super) fn verdict(&self) -> Option<bool> {
        // A silent channel is in no seal.
        self.found.get().map(|found| match self.expected {
            Some(expected) => *found == expected,
            None => found.0 == 0,
        })
    }

    pub(super) fn watch(&self) -> Watch {
        Watch { digest: Box::new(Xxh3::new()), bytes: 0, has_skipped: false, found: Arc::clone(&self.found) }
    }
}

/// Sees the bytes of a channel as they are read.
pub(super) struct Watch {
    digest: Box<Xxh3>,
    bytes: u64,
    has_skipped: bool,
    found: Arc<OnceLock<(u64, u128)>>,
}

impl Watch {
    /// Bytes that were read into a buffer with room for at least one; none, when that is the end.
    pub(super) fn note(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.digest.update(bytes);
            self.bytes += bytes.len() as u64;
        } else if !self.has_skipped {
            // Whoever reads it again finds the same.
            let _ = self.found.set((self.bytes, self.digest.digest128()));
        }
    }

    /// Bytes were not read, so nothing can be said.
    pub(super) fn note_skipped(&mut self) {
        self.has_skipped = true;
    }

    pub(super) fn over<R: Read>(self, inner: R) -> Watched<R> {
        Watched { inner, watch: self }
    }
}

/// A reader that is watched.
pub(super) struct Watched<R> {
    inner: R,
    watch: Watch,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if !buffer.is_empty() {
            self.watch.note(&buffer[..count]);
        }
        Ok(count)
    }
}
