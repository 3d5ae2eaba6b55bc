//! Header of a RAM block in a mapped-ram file (capability `mapped-ram`, 9.0 and later, `file:` only).
//!
//! ```text
//!  0  be32  version        1
//!  4  be64  page size
//! 12  be64  bitmap offset  absolute in the file
//! 20  be64  pages offset   absolute in the file
//! ```
//! Source: `migration/ram.c`, `mapped_ram_setup_ramblock` and `mapped_ram_read_header`. The bitmap and the pages follow at
//! those offsets; the next block entry stands behind the pages, so the stream has long stretches that are not records.

use super::{Cursor, Fault, Sink, Wire};

/// `MappedRamHeader`, 28 bytes, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedRamHeader {
    /// `MAPPED_RAM_HDR_VERSION`.
    pub version: u32,
    /// Target page size of the writer.
    pub page_size: u64,
    /// Where the bitmap of present pages begins.
    pub bitmap_offset: u64,
    /// Where page 0 stands.
    pub pages_offset: u64,
}

impl<'a> Wire<'a> for MappedRamHeader {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        Ok(Self {
            version: input.be32("mapped-ram version")?,
            page_size: input.be64("mapped-ram page size")?,
            bitmap_offset: input.be64("mapped-ram bitmap offset")?,
            pages_offset: input.be64("mapped-ram pages offset")?,
        })
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be32(self.version);
        out.be64(self.page_size);
        out.be64(self.bitmap_offset);
        out.be64(self.pages_offset);
    }

    fn wire_len(&self) -> usize {
        4 + 8 + 8 + 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn table() {
        let header =
            MappedRamHeader { version: 1, page_size: 4096, bitmap_offset: 0x200, pages_offset: 0x10_0000 };
        round_trip(&header, b"\0\0\0\x01\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x10\0\0");
    }
}
