//! The grammar inside a RAM section: block list, pages, and which block a page belongs to.

use std::collections::HashMap;

use super::{Grammar, HostPage, Phase};
use crate::dialect::Difference;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_RAM_BLOCKS;
use crate::wire::{
    MappedRamHeader, Name, Page, PageBody, PageWord, RamBlock, RamFields, RamFlags, Wire as _,
};

/// A RAM block of the block list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its name.
    pub name: Box<[u8]>,
    /// Bytes in use.
    pub used_length: u64,
    /// Page size of its backing, where postcopy needs to know it and it is not an ordinary page: 2 MiB, say.
    pub huge_page: Option<u64>,
}

/// The RAM of a stream.
#[derive(Clone, Debug)]
pub(super) struct Ram {
    pub(super) page_size: u64,
    pub(super) fields: RamFields,
    pub(super) blocks: Vec<Block>,
    pub(super) by_name: HashMap<Box<[u8]>, usize>,
    pub(super) current: Option<usize>,
    pub(super) list_left: u64,
    /// The host page that postcopy is in the middle of.
    pub(super) host_page: HostPage,
}

impl Ram {
    pub(super) fn new() -> Self {
        Self {
            page_size: 4096,
            fields: RamFields::default(),
            blocks: Vec::new(),
            by_name: HashMap::new(),
            current: None,
            list_left: 0,
            host_page: HostPage::default(),
        }
    }
}

impl Grammar {
    pub(super) fn admit_ram_word(&mut self, word: PageWord, offset: u64) -> Result<()> {
        let flags = word.flags(self.ram.page_size);
        match flags.action() {
            RamFlags::EOS => {
                self.phase = Phase::Footer;
                Ok(())
            }
            RamFlags::HOOK => Ok(()),
            RamFlags::MULTIFD_FLUSH if self.dialect.has(Difference::MultifdFlush) => Ok(()),
            RamFlags::MEM_SIZE => {
                self.ram.list_left = word.offset(self.ram.page_size);
                self.ram.blocks.clear();
                self.ram.by_name.clear();
                self.ram.current = None;
                self.phase = self.after_block();
                Ok(())
            }
            _ => {
                let message = format!("unknown combination of RAM flags {flags:?}");
                Err(Error::new(ErrorKind::Malformed, offset, "RAM word", message))
            }
        }
    }

    pub(super) fn after_block(&self) -> Phase {
        if self.ram.list_left == 0 { Phase::RamWord } else { Phase::RamBlock }
    }

    pub(super) fn admit_ram_block(&mut self, block: &RamBlock<'_>, offset: u64) -> Result<()> {
        const DOING: &str = "RAM block list";
        let (left, length) = (self.ram.list_left, block.used_length);
        if length > left {
            let message = format!(
                "block {:?} of {length:#x} bytes, but only {left:#x} of the announced total are left",
                block.name
            );
            return Err(Error::new(ErrorKind::Malformed, offset, DOING, message));
        }
        if self.ram.blocks.len() >= MAX_RAM_BLOCKS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                offset,
                DOING,
                format!("more than {MAX_RAM_BLOCKS} blocks"),
            ));
        }
        self.ram.list_left -= length;
        let index = self.ram.blocks.len();
        self.ram.blocks.push(Block {
            name: block.name.0.into(),
            used_length: length,
            huge_page: block.page_size,
        });
        let twice = self.ram.by_name.insert(block.name.0.into(), index).is_some();
        self.phase = self.after_block();
        if let Some(mapped) = &block.mapped {
            self.admit_mapped(mapped, block, offset)?;
        }
        match twice {
            true => self.refuse(
                ErrorKind::Malformed,
                offset,
                DOING,
                format!("block {:?} comes twice", block.name),
            ),
            false => Ok(()),
        }
    }

    /// Bitmap and pages of the block stand between this entry and the next record. Offsets are of the file.
    fn admit_mapped(&mut self, mapped: &MappedRamHeader, block: &RamBlock<'_>, offset: u64) -> Result<()> {
        const DOING: &str = "mapped-ram header";
        let end = offset + block.wire_len() as u64;
        let at = end - mapped.wire_len() as u64;
        if (mapped.bitmap_offset, mapped.pages_offset) == (0, 0) {
            // A block whose pages are not in the file (x-ignore-shared, 11.0 and later).
            return Ok(());
        }
        let next = mapped.pages_offset.checked_add(block.used_length);
        let ordered = end <= mapped.bitmap_offset && mapped.bitmap_offset <= mapped.pages_offset;
        let Some(next) = next.filter(|_| ordered) else {
            let message = format!(
                "offsets of block {:?} point backwards: entry up to {end:#x}, bitmap at {:#x}, {:#x} bytes of pages at {:#x}",
                block.name, mapped.bitmap_offset, block.used_length, mapped.pages_offset
            );
            return Err(Error::new(ErrorKind::Malformed, at + 12, DOING, message));
        };
        if next > end {
            self.phase = Phase::MappedRam { left: next - end };
        }
        if mapped.version > 1 {
            let message =
                format!("version {} of block {:?}, the newest known is 1", mapped.version, block.name);
            return self.refuse(ErrorKind::Unsupported, at, DOING, message);
        }
        if !mapped.pages_offset.is_multiple_of(self.ram.page_size) {
            let message = format!(
                "pages of block {:?} at {:#x}, which is no multiple of the page size {:#x}",
                block.name, mapped.pages_offset, self.ram.page_size
            );
            return self.refuse(ErrorKind::Malformed, at + 20, DOING, message);
        }
        Ok(())
    }

    pub(super) fn admit_page(&mut self, page: &Page<'_>, offset: u64) -> Result<()> {
        if let Some(name) = page.block {
            self.ram.current = match self.ram.current {
                Some(i) if &*self.ram.blocks[i].name == name.0 => Some(i),
                _ => self.ram.by_name.get(name.0).copied(),
            };
        }
        let Some(current) = self.ram.current else {
            let message = match page.block {
                Some(name) => format!("a page of block {name:?}, which the block list does not have"),
                None => "CONTINUE, but no page before it has named a block".to_owned(),
            };
            return self.refuse(ErrorKind::Malformed, offset, "RAM page", message);
        };
        if self.ram.fields.mapped {
            let message = "a page in the stream, but with mapped-ram pages stand elsewhere in the file";
            return self.refuse(ErrorKind::OutOfOrder, offset, "RAM page", message);
        }
        let block = &self.ram.blocks[current];
        let at = page.word.offset(self.ram.page_size);
        if at >= block.used_length {
            let message = format!(
                "offset {at:#x} is past the end of block {:?}, which has {:#x} bytes",
                Name(&block.name),
                block.used_length
            );
            return self.refuse(ErrorKind::Malformed, offset, "RAM page", message);
        }
        if self.is_postcopy() {
            self.admit_postcopy_page(current, at, &page.body, offset)?;
        }
        match page.body {
            PageBody::Zero(fill) if fill != 0 && !self.dialect.has(Difference::NonZeroFill) => {
                let message = format!("a zero page of value {fill:#x}, which QEMU {} refuses", self.dialect);
                self.refuse(ErrorKind::Malformed, offset, "RAM page", message)
            }
            PageBody::Xbzrle { encoding, .. } if encoding != 1 => {
                let message = format!("encoding {encoding:#x}, expected 1 (xbzrle)");
                self.refuse(ErrorKind::Malformed, offset, "RAM page", message)
            }
            PageBody::Compressed(_) if !self.dialect.has(Difference::CompressPage) => {
                let message = format!("COMPRESS_PAGE, which QEMU {} does not know", self.dialect);
                self.refuse(ErrorKind::Unsupported, offset, "RAM page", message)
            }
            _ => Ok(()),
        }
    }
}
