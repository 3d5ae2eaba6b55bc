//! Images of RAM blocks, which replace what pages hold.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::DOING;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::file_name;
use crate::stream::Block;

/// Files that are open at a time; a hostile list has more blocks than a process may have files.
const OPEN: usize = 64;

/// A directory of images by block, or one image.
pub(super) struct Images {
    path: PathBuf,
    is_directory: bool,
    /// By block; `None`: there is none.
    open: HashMap<usize, Option<File>>,
    page: Vec<u8>,
}

impl Images {
    /// # Errors
    /// If there is no such file or directory.
    pub(super) fn new(path: &Path) -> Result<Self> {
        let metadata =
            std::fs::metadata(path).map_err(|e| Error::io(DOING, path.display().to_string(), e))?;
        let (path, is_directory) = (path.to_owned(), metadata.is_dir());
        Ok(Self { path, is_directory, open: HashMap::new(), page: Vec::new() })
    }

    /// Reads a page of the image of a block, if it has one.
    pub(super) fn page(
        &mut self,
        blocks: &[Block],
        block: usize,
        offset: u64,
        page_size: u64,
    ) -> Result<Option<&[u8]>> {
        if !self.open.contains_key(&block) {
            let file = blocks.get(block).map_or(Ok(None), |found| self.find(blocks, found))?;
            if self.open.len() >= OPEN {
                self.open.clear();
            }
            self.open.insert(block, file);
        }
        let Some(Some(file)) = self.open.get(&block) else { return Ok(None) };
        self.page.resize(page_size as usize, 0);
        let read = file.read_exact_at(&mut self.page, offset);
        read.map_err(|e| Error::io(DOING, format!("{}, at {offset:#x}", self.path.display()), e))?;
        Ok(Some(&self.page))
    }

    fn find(&self, blocks: &[Block], block: &Block) -> Result<Option<File>> {
        let path = match self.is_directory {
            true => self.path.join(file_name(&block.name)),
            false => self.path.clone(),
        };
        let failed = |e| Error::io(DOING, path.display().to_string(), e);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == IoKind::NotFound && self.is_directory => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let size = file.metadata().map_err(failed)?.len();
        let wrong = |message| Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        if self.is_directory {
            if size == block.used_length {
                return Ok(Some(file));
            }
            let length = block.used_length;
            return wrong(format!("{} has {size} bytes, its block has {length}", path.display()));
        }
        // Whose image a single file is, its size says.
        match blocks.iter().filter(|block| block.used_length == size).count() {
            1 => Ok((size == block.used_length).then_some(file)),
            0 => wrong(format!("{} has {size} bytes, and no block has", path.display())),
            _ => wrong(format!("{} has {size} bytes, as more than one block has", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str, used_length: u64) -> Block {
        Block { name: name.as_bytes().into(), used_length, huge_page: None }
    }

    #[test]
    fn images_of_a_directory_have_the_names_of_their_blocks() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a.ram"), [[1; 4096], [2; 4096]].concat()).unwrap();
        std::fs::write(directory.path().join("c.ram"), [3]).unwrap();
        let blocks = [block("a", 8192), block("b", 4096), block("c", 4096)];
        let mut images = Images::new(directory.path()).unwrap();
        assert_eq!(images.page(&blocks, 0, 4096, 4096).unwrap(), Some(&[2; 4096][..]));
        assert_eq!(images.page(&blocks, 1, 0, 4096).unwrap(), None);
        let error = images.page(&blocks, 2, 0, 4096).unwrap_err();
        assert!(error.message().ends_with("c.ram has 1 bytes, its block has 4096"), "{error}");
        assert!(images.page(&blocks, 0, 8192, 4096).is_err(), "past the end");
        assert!(Images::new(&directory.path().join("none")).is_err());
    }

    #[test]
    fn a_single_image_belongs_to_the_block_of_its_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, [7; 8192]).unwrap();
        let blocks = [block("a", 4096), block("b", 8192)];
        let mut images = Images::new(&path).unwrap();
        assert_eq!(images.page(&blocks, 0, 0, 4096).unwrap(), None);
        assert_eq!(images.page(&blocks, 1, 0, 4096).unwrap(), Some(&[7; 4096][..]));
        for blocks in [[block("a", 4096), block("b", 4096)], [block("a", 8192), block("b", 8192)]] {
            let error = Images::new(&path).unwrap().page(&blocks, 0, 0, 4096).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Misuse);
        }
    }
}
