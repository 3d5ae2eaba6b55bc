//! The pages of a mapped-ram file, in order.
//!
//! ```text
//! header of a block   bitmap, a bit a page, 64-bit words from the least significant byte   pages, each at its place
//! ```
//! A page whose bit is not set is one of zeros. The file is read twice at a time: bitmaps and pages lie far apart, and neither need
//! fit into memory. Source: `migration/ram.c`, `read_ramblock_mapped_ram`.

use super::DOING;
use crate::channel::Input as _;
use crate::container::{Access, ChannelInput, Part};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::wire::MappedRamHeader;

/// Bytes of a bitmap that are read at once.
const PIECE: usize = 4096;

/// The file, opened twice, and the blocks whose pages are in it.
pub(super) struct MappedPages {
    bitmaps: Cursor,
    pages: Cursor,
    blocks: Vec<(usize, u64, MappedRamHeader)>,
}

impl MappedPages {
    /// # Errors
    /// If the file cannot be opened.
    pub(super) fn open(part: &mut Part) -> Result<Self> {
        let mut cursor = || Ok(Cursor { input: part.input(Access::Whole)?, at: 0 });
        Ok(Self { bitmaps: cursor()?, pages: cursor()?, blocks: Vec::new() })
    }

    /// One more block of the list, with its length.
    pub(super) fn add(&mut self, block: usize, length: u64, header: MappedRamHeader) {
        // A block without places has no pages in the file: both sides share its memory.
        if (header.bitmap_offset, header.pages_offset) != (0, 0) {
            self.blocks.push((block, length, header));
        }
    }

    /// Gives every page of every block: its block, its offset, and its bytes unless they are zero.
    ///
    /// # Errors
    /// Those of `each`, and of the file.
    pub(super) fn run(
        &mut self,
        page_size: u64,
        mut each: impl FnMut(usize, u64, Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        let mut page = vec![0; page_size as usize];
        let mut piece = Vec::new();
        for (block, length, header) in std::mem::take(&mut self.blocks) {
            if header.page_size != page_size {
                let message = format!(
                    "pages of {:#x} bytes in a stream with pages of {page_size:#x}",
                    header.page_size
                );
                let error = Error::nowhere(ErrorKind::Malformed, "mapped-ram header", message);
                return Err(error.on(ChannelId::Main));
            }
            let count = length / page_size;
            for first in (0..count).step_by(8 * PIECE) {
                let here = (count - first).min(8 * PIECE as u64);
                piece.resize(here.div_ceil(64) as usize * 8, 0);
                self.bitmaps.read_at(header.bitmap_offset + first / 8, &mut piece)?;
                for number in 0..here {
                    let at = (first + number) * page_size;
                    if piece[(number / 8) as usize] & 1 << (number % 8) == 0 {
                        each(block, at, None)?;
                        continue;
                    }
                    self.pages.read_at(header.pages_offset + at, &mut page)?;
                    each(block, at, Some(&page))?;
                }
            }
        }
        Ok(())
    }
}

/// Reads forward only.
struct Cursor {
    input: ChannelInput,
    at: u64,
}

impl Cursor {
    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let failed = |e| Error::io(DOING, "the mapped-ram file cannot be read", e).on(ChannelId::Main);
        let short = || {
            let message = "a page or a bitmap of the mapped-ram file is not there";
            Error::new(ErrorKind::Truncated, offset, DOING, message).on(ChannelId::Main)
        };
        let skipped = offset.checked_sub(self.at).ok_or_else(short)?;
        if self.input.skip(skipped).map_err(failed)? != skipped {
            return Err(short());
        }
        let mut filled = 0;
        while filled < bytes.len() {
            match self.input.read(&mut bytes[filled..]).map_err(failed)? {
                0 => return Err(short()),
                count => filled += count,
            }
        }
        self.at = offset + bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_in_order_and_those_without_a_bit_are_zero() {
        let mut file = vec![0; 0x100];
        // Pages 0, 65 and 69 of 70.
        file.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0b10_0010, 0, 0, 0, 0, 0, 0, 0]);
        file.resize(0x1000, 0);
        file.resize(0x1000 + 70 * 1024, 0);
        for page in [0, 65, 69] {
            file[0x1000 + page * 1024..][..1024].fill(page as u8 + 1);
        }
        let mut part = Part::of_bytes(ChannelId::Main, file.clone());
        let header =
            MappedRamHeader { version: 1, page_size: 1024, bitmap_offset: 0x100, pages_offset: 0x1000 };
        let mut mapped = MappedPages::open(&mut part).unwrap();
        mapped.add(3, 70 * 1024, header);
        mapped.add(4, 1 << 40, MappedRamHeader { bitmap_offset: 0, pages_offset: 0, ..header });
        let mut found = Vec::new();
        let each = |block, offset, bytes: Option<&[u8]>| {
            assert_eq!((block, offset), (3, found.len() as u64 * 1024));
            found.push(bytes.map_or(0, |bytes| bytes[1023]));
            Ok(())
        };
        mapped.run(1024, each).unwrap();
        let mut expected = [0; 70];
        (expected[0], expected[65], expected[69]) = (1, 66, 70);
        assert_eq!(found, expected);

        file.truncate(0x2000);
        let mut mapped = MappedPages::open(&mut Part::of_bytes(ChannelId::Main, file)).unwrap();
        mapped.add(0, 70 * 1024, header);
        let error = mapped.run(1024, |_, _, _| Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated);
    }
}
