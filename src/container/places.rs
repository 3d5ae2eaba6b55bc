//! One channel of a recording whose packets have been found: only its own bytes are read, wherever they stand in the file.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::Mapped;
use super::sealed::Watch;
use crate::capture::Place;
use crate::channel::Input;

/// An input over runs of a regular file, in order.
pub struct Places {
    file: Mapped,
    /// Where the file stands.
    at: u64,
    places: Arc<[Place]>,
    /// Which run is being read, and how much of it was.
    next: usize,
    done: u64,
    watch: Option<Watch>,
}

impl Places {
    /// An input over `places` of `file`, which follow each other in the file.
    ///
    /// # Errors
    /// If it is no regular file.
    pub fn new(file: File, places: Arc<[Place]>) -> io::Result<Self> {
        Ok(Self { file: Mapped::new(file)?, at: 0, places, next: 0, done: 0, watch: None })
    }

    /// The same, showing what is read to `watch`.
    pub(super) fn watched_by(self, watch: Option<Watch>) -> Self {
        Self { watch, ..self }
    }

    /// Goes to the bytes that come next; how many there are in a row.
    fn run(&mut self) -> io::Result<u64> {
        while let Some(place) = self.places.get(self.next) {
            let left = u64::from(place.len) - self.done;
            if left > 0 {
                let wanted = place.offset + self.done;
                self.at += self.file.skip(wanted.saturating_sub(self.at))?;
                return Ok(left);
            }
            (self.next, self.done) = (self.next + 1, 0);
        }
        Ok(0)
    }

    fn advance(&mut self, count: u64) {
        self.at += count;
        self.done += count;
    }
}

impl Input for Places {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let left = usize::try_from(self.run()?).unwrap_or(usize::MAX).min(buffer.len() - filled);
            if left == 0 {
                break;
            }
            let count = self.file.read(&mut buffer[filled..filled + left])?;
            if count == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the recording became shorter while it was read",
                ));
            }
            self.advance(count as u64);
            filled += count;
        }
        if let Some(watch) = self.watch.as_mut().filter(|_| !buffer.is_empty()) {
            watch.note(&buffer[..filled]);
        }
        Ok(filled)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        if let Some(watch) = self.watch.as_mut().filter(|_| count > 0) {
            watch.note_skipped();
        }
        let mut skipped = 0;
        while skipped < count {
            let left = self.run()?.min(count - skipped);
            if left == 0 {
                break;
            }
            let here = self.file.skip(left)?;
            self.advance(here);
            skipped += here;
            if here < left {
                break;
            }
        }
        Ok(skipped)
    }

    fn stride(&self) -> usize {
        self.file.stride()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn reads_and_skips_its_own_bytes_only() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"--abc---d-----efghij--").unwrap();
        let places: Arc<[Place]> = [(2, 3), (5, 0), (8, 1), (14, 6)]
            .map(|(offset, len)| Place { offset, len })
            .into_iter()
            .collect();
        let open = || Places::new(file.try_clone().unwrap(), Arc::clone(&places)).unwrap();
        let mut all = [0; 20];
        let mut input = open();
        assert_eq!(input.read(&mut all).unwrap(), 10);
        assert_eq!(&all[..10], b"abcdefghij");
        assert_eq!(input.read(&mut all).unwrap(), 0);

        let mut input = open();
        assert_eq!(input.read(&mut all[..2]).unwrap(), 2);
        assert_eq!(input.skip(3).unwrap(), 3);
        assert_eq!(input.read(&mut all[..3]).unwrap(), 3);
        assert_eq!(&all[..3], b"fgh");
        assert_eq!((input.skip(9).unwrap(), input.read(&mut all).unwrap()), (2, 0));
    }
}
