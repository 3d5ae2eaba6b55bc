//! VM description: the JSON trailer that names every field of every FULL section.
//!
//! ```text
//! u8 0x06   be32 length   raw[length]  JSON, no NUL
//! ```
//! Source: `migration/savevm.c`, `qemu_savevm_state_complete_precopy_non_iterable`. Written behind `QEMU_VM_EOF` of a precopy
//! unless the machine suppresses it (`suppress-vmdesc`); a destination reads its length and throws the text away.

use super::{Cursor, Fault, SectionKind, Sink, Wire};

/// Head of the description (`QEMU_VM_VMDESCRIPTION`); the text follows in pieces of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptionHead {
    /// Bytes of JSON that follow.
    pub length: u32,
}

impl<'a> Wire<'a> for DescriptionHead {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        let start = input.offset();
        match SectionKind(input.u8("description mark")?) {
            SectionKind::VMDESCRIPTION => Ok(Self { length: input.be32("description length")? }),
            other => Err(Cursor::malformed(
                start,
                "VM description",
                format!("{:#04x} where 0x06 was expected", other.0),
            )),
        }
    }

    fn emit(&self, out: &mut impl Sink) {
        out.u8(SectionKind::VMDESCRIPTION.0);
        out.be32(self.length);
    }

    fn wire_len(&self) -> usize {
        1 + 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn table() {
        round_trip(&DescriptionHead { length: 0 }, b"\x06\0\0\0\0");
        round_trip(&DescriptionHead { length: u32::MAX }, b"\x06\xff\xff\xff\xff");
    }
}
