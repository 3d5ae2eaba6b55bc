//! File header: the first eight bytes of a main channel.
//!
//! ```text
//! 0  be32  magic    "QEVM"
//! 4  be32  version  3
//! ```
//! Source: `migration/savevm.c`, `qemu_savevm_state_header` and `qemu_loadvm_state_header`. No flags, no length, no
//! release: everything else about the sender must be guessed from what follows.

use super::{Cursor, Fault, Sink, Wire};

/// Magic and version of a stream (`QEMU_VM_FILE_MAGIC`, `QEMU_VM_FILE_VERSION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// `QEMU_VM_FILE_MAGIC`, or whatever stood there.
    pub magic: u32,
    /// `QEMU_VM_FILE_VERSION` is 3; 2 was `QEMU_VM_FILE_VERSION_COMPAT`, refused by every release read here.
    pub version: u32,
}

impl FileHeader {
    /// `QEVM`.
    pub const MAGIC: u32 = 0x5145_564d;
    /// The only version in use.
    pub const VERSION: u32 = 3;
    /// Bytes on the wire.
    pub const LEN: usize = 8;
    /// What every stock source sends.
    pub const CURRENT: Self = Self { magic: Self::MAGIC, version: Self::VERSION };
}

impl<'a> Wire<'a> for FileHeader {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        Ok(Self { magic: input.be32("magic")?, version: input.be32("version")? })
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be32(self.magic);
        out.be32(self.version);
    }

    fn wire_len(&self) -> usize {
        Self::LEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn table() {
        round_trip(&FileHeader::CURRENT, b"QEVM\0\0\0\x03");
        round_trip(&FileHeader { magic: 0x1122_3344, version: 1 }, b"\x11\x22\x33\x44\0\0\0\x01");
    }
}
