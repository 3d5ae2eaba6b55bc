//! What a destination's memory would hold: pages in any order to images and digests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::digest::BlockDigest;
use super::image::Image;
use crate::error::{Error, ErrorKind, Result};
use crate::stream::{Event, Grammar};
use crate::wire::{Name, Page, PageBody, xbzrle};

/// Takes the RAM events of a stream. Keeps nothing but the block list unless it is asked to.
#[derive(Debug, Default)]
pub struct Memory {
    images: Option<PathBuf>,
    digest: bool,
    blocks: Vec<MemoryBlock>,
    open: Option<(usize, Image)>,
    page: Vec<u8>,
}

/// A RAM block as far as it has arrived.
#[derive(Debug)]
pub struct MemoryBlock {
    name: Box<[u8]>,
    length: u64,
    digest: Option<BlockDigest>,
    undigested: bool,
    /// Pages that the image holds, one bit each, 64 to a word: a zero page need only be written over one of them.
    written: BTreeMap<u64, u64>,
    created: bool,
}

impl MemoryBlock {
    /// Name of the block.
    pub fn name(&self) -> Name<'_> {
        Name(&self.name)
    }

    /// Bytes in use.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Digest of its content; `None` when none was asked for, or when deltas came for pages that are not kept.
    pub fn digest(&self) -> Option<&BlockDigest> {
        self.digest.as_ref().filter(|_| !self.undigested)
    }
}

impl Memory {
    /// A memory that keeps nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same memory, with one image a block in `directory`, which is created.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn with_images(mut self, directory: &Path) -> Result<Self> {
        let created = std::fs::create_dir_all(directory);
        created.map_err(|e| {
            Error::io("creating a directory for RAM images", directory.display().to_string(), e)
        })?;
        self.images = Some(directory.to_owned());
        Ok(self)
    }

    /// The same memory, with a digest a block.
    #[must_use]
    pub fn with_digest(mut self) -> Self {
        self.digest = true;
        self
    }

    /// The blocks in list order.
    pub fn blocks(&self) -> &[MemoryBlock] {
        &self.blocks
    }

    /// Takes note of `event`, which begins at `offset`; `grammar` is the state behind it. Events that are not about RAM are
    /// ignored.
    ///
    /// # Errors
    /// For deltas and compressed pages that cannot be expanded, and those of the file system.
    pub fn handle(&mut self, event: &Event<'_>, grammar: &Grammar, offset: u64) -> Result<()> {
        match event {
            Event::Page(page) if self.keeps() => self.handle_page(page, grammar, offset),
            Event::RamBlock(block) => {
                // A second block list replaces the first, as it does in the grammar.
                if grammar.blocks().len() == 1 {
                    self.flush()?;
                    self.blocks.clear();
                    self.open = None;
                }
                let digest = self.digest.then(|| BlockDigest::new(block.used_length, grammar.page_size()));
                self.blocks.push(MemoryBlock {
                    name: block.name.0.into(),
                    length: block.used_length,
                    digest,
                    undigested: false,
                    written: BTreeMap::new(),
                    created: false,
                });
                if self.images.is_some() {
                    self.image(self.blocks.len() - 1)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Writes what has been gathered for the images.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn flush(&mut self) -> Result<()> {
        self.open.as_mut().map_or(Ok(()), |(_, image)| image.flush())
    }

    fn handle_page(&mut self, page: &Page<'_>, grammar: &Grammar, offset: u64) -> Result<()> {
        let Some(index) = grammar.current_block() else { return Ok(()) };
        let page_size = grammar.page_size();
        let at = page.word.offset(page_size);
        if self.blocks.get(index).is_none_or(|block| at >= block.length) {
            return Ok(());
        }
        match page.body {
            PageBody::Zero(0) => self.store_zero(index, at, page_size),
            PageBody::Zero(fill) => {
                let mut bytes = std::mem::take(&mut self.page);
                bytes.clear();
                bytes.resize(page_size as usize, fill);
                let stored = self.store(index, at, &bytes, page_size);
                self.page = bytes;
                stored
            }
            PageBody::Raw(bulk) => match bulk.bytes() {
                Some(bytes) => self.store(index, at, bytes, page_size),
                None => {
                    Err(Error::new(ErrorKind::Misuse, offset, "RAM page", "an outline has no pages to keep"))
                }
            },
            PageBody::Xbzrle { delta, .. } if self.images.is_none() => {
                // Without the page's content there is nothing to apply the delta to.
                self.blocks[index].undigested |= !delta.is_empty();
                Ok(())
            }
            PageBody::Xbzrle { delta, .. } => {
                let mut bytes = std::mem::take(&mut self.page);
                bytes.resize(page_size as usize, 0);
                let stored = self.image(index).and_then(|image| image.read(at, &mut bytes)).and_then(|()| {
                    xbzrle::decode(delta, &mut bytes).map_err(|e| {
                        Error::new(ErrorKind::Malformed, offset, "xbzrle page", e.to_string())
                    })?;
                    self.store(index, at, &bytes, page_size)
                });
                self.page = bytes;
                stored
            }
            PageBody::Compressed(data) => {
                let bytes = inflate(data, page_size as usize, offset)?;
                self.store(index, at, &bytes, page_size)
            }
        }
    }

    /// Whether pages are looked at: kept in images, or digested.
    pub fn keeps(&self) -> bool {
        self.digest || self.images.is_some()
    }

    /// The page at `offset` of a block is now `bytes`. What lies outside of the block is not there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn set_page(&mut self, index: usize, offset: u64, bytes: &[u8], page_size: u64) -> Result<()> {
        match self.blocks.get(index) {
            Some(block) if offset < block.length && self.keeps() => {
                self.store(index, offset, bytes, page_size)
            }
            _ => Ok(()),
        }
    }

    /// The page at `offset` of a block is now all zero.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn set_zero_page(&mut self, index: usize, offset: u64, page_size: u64) -> Result<()> {
        match self.blocks.get(index) {
            Some(block) if offset < block.length && self.keeps() => self.store_zero(index, offset, page_size),
            _ => Ok(()),
        }
    }

    /// Reads the page at `offset` of a block, of which images must be kept.
    ///
    /// # Errors
    /// Those of the file system; `Misuse` where no image is kept.
    pub fn page(&mut self, index: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        match self.blocks.get(index) {
            Some(block) if offset < block.length => self.image(index)?.read(offset, bytes),
            _ => Err(Error::nowhere(ErrorKind::Misuse, "RAM image", "a page that is in no block")),
        }
    }

    fn store(&mut self, index: usize, at: u64, bytes: &[u8], page_size: u64) -> Result<()> {
        if let Some(digest) = &mut self.blocks[index].digest {
            digest.set(at, bytes);
        }
        if self.images.is_none() {
            return Ok(());
        }
        // A block's length is a multiple of the page size as a rule; nothing is written past it if not.
        let block = &mut self.blocks[index];
        let room = usize::try_from(block.length - at).unwrap_or(usize::MAX);
        let page = at / page_size;
        *block.written.entry(page / 64).or_default() |= 1 << (page % 64);
        self.image(index)?.write(at, &bytes[..bytes.len().min(room)])
    }

    fn store_zero(&mut self, index: usize, at: u64, page_size: u64) -> Result<()> {
        let block = &mut self.blocks[index];
        if let Some(digest) = &mut block.digest {
            digest.set_zero(at);
        }
        let page = at / page_size;
        let written = block.written.get(&(page / 64)).is_some_and(|word| word & (1 << (page % 64)) != 0);
        if !written || self.images.is_none() {
            return Ok(());
        }
        let room = usize::try_from(block.length - at).unwrap_or(usize::MAX);
        let zeros = [0; 1 << crate::limits::MAX_PAGE_BITS];
        self.image(index)?.write(at, &zeros[..(page_size as usize).min(room)])
    }

    /// The image of a block, created or opened again as needed. One is open at a time: sources send block by block, and a
    /// hostile one may name more blocks than a process may have files.
    fn image(&mut self, index: usize) -> Result<&mut Image> {
        let Some(directory) = &self.images else {
            return Err(Error::nowhere(ErrorKind::Misuse, "RAM image", "no directory for images was given"));
        };
        let current = self.open.as_ref().is_some_and(|(open, _)| *open == index);
        if !current {
            if let Some((_, image)) = &mut self.open {
                image.flush()?;
            }
            let block = &mut self.blocks[index];
            let image = match block.created {
                true => Image::open(directory, &block.name)?,
                false => Image::create(directory, &block.name, block.length)?,
            };
            block.created = true;
            self.open = Some((index, image));
        }
        match &mut self.open {
            Some((_, image)) => Ok(image),
            None => Err(Error::nowhere(ErrorKind::Misuse, "RAM image", "no image is open")),
        }
    }
}

/// The page that a COMPRESS_PAGE record holds.
#[cfg(feature = "compress")]
pub(crate) fn inflate(data: &[u8], page_size: usize, offset: u64) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let bad = |message: String| Error::new(ErrorKind::Malformed, offset, "compressed page", message);
    let mut page = Vec::with_capacity(page_size);
    // One byte more than a page shows a stream that is too long without inflating a bomb.
    let mut reader = flate2::read::ZlibDecoder::new(data).take(page_size as u64 + 1);
    reader.read_to_end(&mut page).map_err(|e| bad(format!("the zlib stream is broken: {e}")))?;
    match page.len() == page_size {
        true => Ok(page),
        false => Err(bad(format!("the zlib stream does not hold a page of {page_size} bytes"))),
    }
}

#[cfg(not(feature = "compress"))]
pub(crate) fn inflate(_: &[u8], _: usize, offset: u64) -> Result<Vec<u8>> {
    let message = "this build cannot inflate pages (feature `compress`)";
    Err(Error::new(ErrorKind::Unsupported, offset, "compressed page", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::ChannelEvent as _;
    use crate::dialect::Dialect;
    use crate::stream::Mode;
    use crate::wire::{Bulk, PageWord, RamBlock, RamFlags, SectionHead, SectionIdentity, SectionKind};

    /// Takes events straight to the memory, as an endpoint does.
    struct Bench {
        memory: Memory,
        grammar: Grammar,
        offset: u64,
    }

    impl Bench {
        fn new(memory: Memory, blocks: &[(&'static str, u64)]) -> Self {
            let mut bench = Self { memory, grammar: Grammar::new(Mode::Lenient, Dialect::ANY), offset: 0 };
            bench.take(&Event::Header(crate::wire::FileHeader::CURRENT));
            let identity = Some(SectionIdentity { idstr: "ram".into(), instance_id: 0, version_id: 4 });
            bench.take(&Event::Section(SectionHead { kind: SectionKind::START, section_id: 1, identity }));
            let total = blocks.iter().map(|(_, length)| length).sum();
            bench.take(&Event::RamWord(PageWord::new(total, RamFlags::MEM_SIZE)));
            for (name, length) in blocks {
                bench.take(&Event::RamBlock(RamBlock::new((*name).into(), *length)));
            }
            bench
        }

        fn take(&mut self, event: &Event<'_>) {
            self.try_take(event).unwrap();
        }

        fn try_take(&mut self, event: &Event<'_>) -> Result<()> {
            self.grammar.admit(event, self.offset)?;
            self.memory.handle(event, &self.grammar, self.offset)?;
            self.offset += event.wire_len();
            Ok(())
        }

        fn page(&mut self, block: &'static str, page: u64, body: PageBody<'_>) -> Result<()> {
            let flags = match body {
                PageBody::Zero(_) => RamFlags::ZERO,
                PageBody::Raw(_) => RamFlags::PAGE,
                PageBody::Xbzrle { .. } => RamFlags::XBZRLE,
                PageBody::Compressed(_) => RamFlags::COMPRESS_PAGE,
            };
            self.try_take(&Event::Page(Page {
                word: PageWord::new(page * 4096, flags),
                block: Some(block.into()),
                body,
            }))
        }
    }

    #[test]
    fn every_kind_of_page_ends_up_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new().with_images(dir.path()).unwrap().with_digest();
        let mut bench = Bench::new(memory, &[("a", 4 * 4096), ("b/c", 4096)]);
        bench.page("a", 1, PageBody::Raw(Bulk::Bytes(&[7; 4096]))).unwrap();
        bench.page("b/c", 0, PageBody::Zero(9)).unwrap();
        bench.page("a", 2, PageBody::Raw(Bulk::Bytes(&[8; 4096]))).unwrap();
        bench.page("a", 1, PageBody::Xbzrle { encoding: 1, delta: b"\x02\x01\xaa" }).unwrap();
        bench.page("a", 2, PageBody::Zero(0)).unwrap();
        bench.page("a", 3, PageBody::Compressed(&zlib(&[5; 4096]))).unwrap();
        bench.memory.flush().unwrap();

        let a = std::fs::read(dir.path().join("a.ram")).unwrap();
        let mut expected = [[0; 4096], [7; 4096], [0; 4096], [5; 4096]].concat();
        expected[4096 + 2] = 0xaa;
        assert!(a == expected);
        assert_eq!(std::fs::read(dir.path().join("b%2Fc.ram")).unwrap(), [9; 4096]);

        let mut digest = BlockDigest::new(4 * 4096, 4096);
        for page in 0..4 {
            digest.set(page as u64 * 4096, &a[page * 4096..][..4096]);
        }
        assert_eq!(bench.memory.blocks()[0].digest().unwrap().value(), digest.value());
    }

    #[test]
    fn a_delta_without_an_image_makes_the_digest_unknown() {
        let mut bench = Bench::new(Memory::new().with_digest(), &[("a", 4096), ("b", 4096)]);
        bench.page("a", 0, PageBody::Xbzrle { encoding: 1, delta: b"\x02\x01\xaa" }).unwrap();
        assert!(bench.memory.blocks()[0].digest().is_none());
        assert!(bench.memory.blocks()[1].digest().is_some());
    }

    #[test]
    fn bombs_and_broken_deltas_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench::new(Memory::new().with_images(dir.path()).unwrap(), &[("a", 4096)]);
        let bomb = zlib(&vec![0; 64 << 20]);
        let e = bench.page("a", 0, PageBody::Compressed(&bomb)).unwrap_err();
        assert_eq!(e.doing(), "compressed page");
        let e = bench.page("a", 0, PageBody::Xbzrle { encoding: 1, delta: b"\x00\x00" }).unwrap_err();
        assert_eq!(e.doing(), "xbzrle page");
    }

    #[test]
    fn a_hostile_block_list_reserves_nothing() {
        let mut bench = Bench::new(Memory::new().with_digest(), &[("a", 1 << 62)]);
        bench.page("a", 1 << 40, PageBody::Zero(0)).unwrap();
        assert!(bench.memory.blocks()[0].digest().is_some());
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }
}
