//! A RAM block as a file: byte i of the block is byte i of the file.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// File name of a block's image: its name with every byte outside `[A-Za-z0-9._@-]` written `%XX`, and `.ram`.
///
/// ```
/// assert_eq!(migwire::guest::file_name(b"pc.ram"), "pc.ram.ram");
/// assert_eq!(migwire::guest::file_name(b"/rom@etc/acpi/tables"), "%2From@etc%2Facpi%2Ftables.ram");
/// ```
pub fn file_name(block: &[u8]) -> String {
    // Of a name that no file system takes, the beginning and a hash.
    const LONGEST: usize = 240;
    let mut name = String::with_capacity(block.len() + 4);
    for &byte in block {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'@' | b'-' => {
                name.push(char::from(byte));
            }
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    if name.len() > LONGEST {
        name.truncate(200);
        name.push_str(&format!("%~{:016x}", xxh3_64(block)));
    }
    name + ".ram"
}

/// Contiguous bytes are gathered up to this many before they are written: a system call a page would cost more than the page.
const GATHER: usize = 256 << 10;

/// An image that is being written.
pub struct Image {
    path: PathBuf,
    file: File,
    run: Vec<u8>,
    run_at: u64,
}

impl fmt::Debug for Image {
    /// Without the guest's memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Image {
    /// Creates the image of a block of `length` zero bytes in `directory`; the file is sparse.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(directory: &Path, block: &[u8], length: u64) -> Result<Self> {
        let path = directory.join(file_name(block));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|e| Error::io("creating a RAM image", path.display().to_string(), e))?;
        file.set_len(length).map_err(|e| Error::io("sizing a RAM image", path.display().to_string(), e))?;
        Ok(Self { path, file, run: Vec::new(), run_at: 0 })
    }

    /// Opens the image of a block that was created before.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(directory: &Path, block: &[u8]) -> Result<Self> {
        let path = directory.join(file_name(block));
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|e| Error::io("opening a RAM image", path.display().to_string(), e))?;
        Ok(Self { path, file, run: Vec::new(), run_at: 0 })
    }

    /// Where the image is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes bytes at `offset`, perhaps later.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.run_at + self.run.len() as u64 != offset || self.run.len() + bytes.len() > GATHER {
            self.flush()?;
            self.run_at = offset;
        }
        self.run.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads bytes at `offset`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.flush()?;
        let read = self.file.read_exact_at(bytes, offset);
        read.map_err(|e| Error::io("reading a RAM image", self.path.display().to_string(), e))
    }

    /// Writes what has been gathered.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn flush(&mut self) -> Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all_at(&self.run, self.run_at);
        self.run.clear();
        written.map_err(|e| Error::io("writing a RAM image", self.path.display().to_string(), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        assert_eq!(file_name(b".."), "...ram");
        assert_eq!(file_name(b"../../etc/passwd"), "..%2F..%2Fetc%2Fpasswd.ram");
        let long = file_name(&[0xff; 255]);
        assert!(long.len() < 255, "{long}");
        assert_ne!(long, file_name(&[0xff; 254]));
    }

    #[test]
    fn gathers_runs_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut image = Image::create(dir.path(), b"pc.ram", 4 << 20).unwrap();
        for page in [0u64, 1, 2, 9, 3, 0] {
            image.write(page * 4096, &[page as u8 + 1; 4096]).unwrap();
        }
        let mut page = [0; 4096];
        image.read(9 * 4096, &mut page).unwrap();
        assert_eq!(page, [10; 4096]);
        image.flush().unwrap();
        let all = std::fs::read(image.path()).unwrap();
        assert_eq!(all.len(), 4 << 20);
        assert_eq!([0, 1, 2, 3, 4, 9].map(|p| all[p * 4096]), [1, 2, 3, 4, 0, 10]);
    }
}
