//! Section heads and footers, and the byte that tells records apart.
//!
//! ```text
//! START, FULL   u8 kind   be32 section id   str8 idstr   be32 instance id   be32 version id
//! PART, END     u8 kind   be32 section id
//! FOOTER        u8 0x7e   be32 section id
//! ```
//! Source: `migration/savevm.c`, `save_section_header` and `save_section_footer`. A section carries no length: its
//! payload ends where its reader says so.

use super::numbers::open_enum;
use super::{Cursor, Fault, Name, Sink, Wire};

open_enum! {
    /// First byte of a top-level record (`QEMU_VM_*`, `migration/savevm.h`). Open: 0x42 parses, prints and re-emits.
    SectionKind(u8) {
        /// `QEMU_VM_EOF`: the stream (or a package) is over.
        EOF = 0x00,
        /// `QEMU_VM_SECTION_START`: set-up of a live section.
        START = 0x01,
        /// `QEMU_VM_SECTION_PART`: one iteration of a live section.
        PART = 0x02,
        /// `QEMU_VM_SECTION_END`: completion of a live section.
        END = 0x03,
        /// `QEMU_VM_SECTION_FULL`: the whole of a device's state.
        FULL = 0x04,
        /// `QEMU_VM_SUBSECTION`: only inside device state and the configuration record.
        SUBSECTION = 0x05,
        /// `QEMU_VM_VMDESCRIPTION`: the JSON trailer, only behind `EOF`.
        VMDESCRIPTION = 0x06,
        /// `QEMU_VM_CONFIGURATION`: only behind the file header.
        CONFIGURATION = 0x07,
        /// `QEMU_VM_COMMAND`.
        COMMAND = 0x08,
        /// `QEMU_VM_SECTION_FOOTER`: only behind a section's payload.
        FOOTER = 0x7e,
    }
}

impl SectionKind {
    /// Whether a record of this kind is a section: it has an id, a payload, and a footer where those are on.
    pub fn is_section(self) -> bool {
        matches!(self, Self::START | Self::PART | Self::END | Self::FULL)
    }

    /// Whether a section of this kind says whose it is.
    pub fn is_named(self) -> bool {
        matches!(self, Self::START | Self::FULL)
    }
}

/// What a START or FULL says about its section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionIdentity<'a> {
    /// Name of the handler, with the device path in front where the device has one: `0000:00:02.0/vga`.
    pub idstr: Name<'a>,
    /// Which of several handlers of that name.
    pub instance_id: u32,
    /// Version of the payload's layout.
    pub version_id: u32,
}

/// Head of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionHead<'a> {
    /// START, PART, END or FULL.
    pub kind: SectionKind,
    /// Number that the source gave this handler; arbitrary, but the same in every record of the section.
    pub section_id: u32,
    /// Present in START and FULL.
    pub identity: Option<SectionIdentity<'a>>,
}

impl<'a> Wire<'a> for SectionHead<'a> {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        let kind = SectionKind(input.u8("section kind")?);
        let section_id = input.be32("section id")?;
        let identity = match kind.is_named() {
            true => Some(SectionIdentity {
                idstr: input.str8("section idstr")?,
                instance_id: input.be32("instance id")?,
                version_id: input.be32("version id")?,
            }),
            false => None,
        };
        Ok(Self { kind, section_id, identity })
    }

    fn emit(&self, out: &mut impl Sink) {
        out.u8(self.kind.0);
        out.be32(self.section_id);
        if let Some(identity) = &self.identity {
            out.str8(identity.idstr);
            out.be32(identity.instance_id);
            out.be32(identity.version_id);
        }
    }

    fn wire_len(&self) -> usize {
        1 + 4 + self.identity.map_or(0, |i| 1 + i.idstr.0.len() + 4 + 4)
    }
}

/// Footer of a section (`QEMU_VM_SECTION_FOOTER`), on unless `migration.send-section-footer` is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionFooter {
    /// Id of the section that ends here.
    pub section_id: u32,
}

impl SectionFooter {
    /// Bytes on the wire.
    pub const LEN: usize = 5;
}

impl<'a> Wire<'a> for SectionFooter {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        let start = input.offset();
        match SectionKind(input.u8("footer mark")?) {
            SectionKind::FOOTER => Ok(Self { section_id: input.be32("footer section id")? }),
            other => Err(Cursor::malformed(
                start,
                "section footer",
                format!("{:#04x} where the footer mark 0x7e was expected", other.0),
            )),
        }
    }

    fn emit(&self, out: &mut impl Sink) {
        out.u8(SectionKind::FOOTER.0);
        out.be32(self.section_id);
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
        let ram = SectionIdentity { idstr: Name(b"ram"), instance_id: 0, version_id: 4 };
        let head = |kind, identity| SectionHead { kind, section_id: 2, identity };
        round_trip(&head(SectionKind::START, Some(ram)), b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        round_trip(&head(SectionKind::FULL, Some(ram)), b"\x04\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        round_trip(&head(SectionKind::PART, None), b"\x02\0\0\0\x02");
        round_trip(&head(SectionKind::END, None), b"\x03\0\0\0\x02");
        round_trip(&SectionFooter { section_id: 2 }, b"\x7e\0\0\0\x02");
    }

    #[test]
    fn unknown_kinds_speak() {
        assert_eq!(format!("{:?} {}", SectionKind(0x42), SectionKind::FULL), "SectionKind(0x42) FULL");
    }
}
