//! A file that is skipped through: only the pages that hold a record's head are touched.
//!
//! Measured on a file of raw pages in the page cache, where one head in 4104 bytes is read (GB of file per second of
//! processor time, 64 bytes a step): `pread` 5, seek and read 4, reading everything 6 to 12, this 10 (tmpfs) to 90 (ext4).
//! A window at a time is mapped, so that the resident size stays small.

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};

use crate::channel::Input;

/// Bytes mapped at once, by each channel of a recording: they count as resident.
const WINDOW: u64 = 4 << 20;

/// An input over a regular file.
#[derive(Debug)]
pub struct Mapped {
    file: File,
    len: u64,
    at: u64,
    window: Option<(u64, Mmap)>,
}

impl Mapped {
    /// An input from the beginning of `file` to the end that it has now.
    ///
    /// # Errors
    /// If it is no regular file; then it can be read or sought in only.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { file, len: metadata.len(), at: 0, window: None })
    }

    /// The bytes from here on, as far as they are mapped.
    fn rest(&mut self) -> io::Result<&[u8]> {
        let start = self.at / WINDOW * WINDOW;
        if self.window.as_ref().is_none_or(|(at, _)| *at != start) {
            self.window = None;
            self.window = Some((start, self.map(start)?));
        }
        let within = (self.at - start) as usize;
        Ok(self.window.as_ref().and_then(|(_, map)| map.get(within..)).unwrap_or_default())
    }

    #[expect(unsafe_code, reason = "mapping a file has no safe wrapper; see the comment in it")]
    fn map(&self, start: u64) -> io::Result<Mmap> {
        // A file that has become shorter is an error here, and not a signal later.
        if self.file.metadata()?.len() < self.len {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was read",
            ));
        }
        let count = WINDOW.min(self.len - start) as usize;
        // SAFETY: the mapping is read-only, and its bytes are only ever copied out, so that no reference to them sees them
        // change. Somebody who truncates the file within one window's time ends the process by SIGBUS, as with any mapping.
        unsafe { MmapOptions::new().offset(start).len(count).map(&self.file) }
    }
}

impl Input for Mapped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.len {
            return Ok(0);
        }
        let rest = self.rest()?;
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count as u64;
        Ok(count)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let count = count.min(self.len - self.at);
        self.at += count;
        Ok(count)
    }

    /// The head of most pages has eight bytes. More would touch two cache lines, and waiting for those is most of the time.
    fn stride(&self) -> usize {
        16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn reads_and_skips_over_windows() {
        let mut file = tempfile::tempfile().unwrap();
        let len = 2 * WINDOW + 1000;
        file.set_len(len).unwrap();
        let mut tail = file.try_clone().unwrap();
        io::Seek::seek(&mut tail, io::SeekFrom::Start(WINDOW - 4)).unwrap();
        tail.write_all(b"abcdefgh").unwrap();
        file.flush().unwrap();
        let mut input = Mapped::new(file).unwrap();
        assert_eq!(input.skip(WINDOW - 4).unwrap(), WINDOW - 4);
        let mut buffer = [0; 8];
        assert_eq!(input.read(&mut buffer).unwrap(), 4);
        assert_eq!(input.read(&mut buffer[4..]).unwrap(), 4);
        assert_eq!(&buffer, b"abcdefgh");
        assert_eq!(input.skip(u64::MAX).unwrap(), len - WINDOW - 4);
        assert_eq!(input.read(&mut buffer).unwrap(), 0);
        assert_eq!(input.skip(1).unwrap(), 0);
    }

    #[test]
    fn a_file_that_shrinks_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * WINDOW).unwrap();
        let mut input = Mapped::new(file.try_clone().unwrap()).unwrap();
        input.read(&mut [0; 8]).unwrap();
        file.set_len(8).unwrap();
        input.skip(2 * WINDOW).unwrap();
        assert!(input.read(&mut [0; 8]).is_err());
        assert!(Mapped::new(File::open("/").unwrap()).is_err());
    }
}
