//! Configuration record: who the source's machine is, and the little that is checked about it.
//!
//! ```text
//! u8 0x07   be32 length   raw[length]  machine name without "-machine"
//! then any of, while the next byte is 0x05:
//! u8 0x05   str8 "configuration/target-page-bits"   be32 version   be32 bits
//! u8 0x05   str8 "configuration/capabilities"       be32 version   be32 count   { str8 name } * count
//! u8 0x05   str8 "configuration/uuid"               be32 version   raw[16]
//! ```
//! Source: `migration/savevm.c`, `vmstate_configuration` and its subsections. The record has no section id, no length
//! and no footer. A subsection whose name is not known has no length either, so nothing behind it can be read.

use super::{Cursor, Fault, Name, SectionKind, Sink, Wire};
use crate::error::{Error, ErrorKind};
use crate::limits::{MAX_CAPABILITIES, MAX_MACHINE_NAME};

/// Mark and machine name (`QEMU_VM_CONFIGURATION`); the subsections are records of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration<'a> {
    /// Class name of the machine type without its suffix: `pc-q35-7.2`. A destination compares the received length only.
    pub machine: Name<'a>,
}

impl<'a> Wire<'a> for Configuration<'a> {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        let start = input.offset();
        match SectionKind(input.u8("configuration mark")?) {
            SectionKind::CONFIGURATION => {}
            other => {
                let message = format!("{:#04x} where the configuration mark 0x07 was expected", other.0);
                return Err(Cursor::malformed(start, "configuration", message));
            }
        }
        let at = input.offset();
        let length = input.be32("machine name length")?;
        if length > MAX_MACHINE_NAME {
            let message = format!("machine name of {length} bytes, at most {MAX_MACHINE_NAME} are taken");
            return Err(Error::new(ErrorKind::TooLarge, at, "configuration", message).into());
        }
        Ok(Self { machine: Name(input.take("machine name", length as usize)?) })
    }

    fn emit(&self, out: &mut impl Sink) {
        out.u8(SectionKind::CONFIGURATION.0);
        out.be32(self.machine.0.len() as u32);
        out.put(self.machine.0);
    }

    fn wire_len(&self) -> usize {
        1 + 4 + self.machine.0.len()
    }
}

/// A subsection of the configuration record, with the version that it was sent with (1 in every release so far).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigurationSubsection<'a> {
    /// `configuration/target-page-bits`: sent when the target's page size is not the legacy minimum (never on x86).
    TargetPageBits {
        /// Version of the subsection.
        version: u32,
        /// Log2 of the target page size.
        bits: u32,
    },
    /// `configuration/capabilities`: the validated capabilities that are on (`x-ignore-shared`, `mapped-ram`).
    Capabilities {
        /// Version of the subsection.
        version: u32,
        /// Names in wire order.
        names: Vec<Name<'a>>,
    },
    /// `configuration/uuid`: with capability `validate-uuid` and `-uuid` at the source.
    Uuid {
        /// Version of the subsection.
        version: u32,
        /// The guest's UUID, bytes in string order.
        uuid: [u8; 16],
    },
}

const PAGE_BITS: &str = "configuration/target-page-bits";
const CAPABILITIES: &str = "configuration/capabilities";
const UUID: &str = "configuration/uuid";

impl ConfigurationSubsection<'_> {
    /// Name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TargetPageBits { .. } => PAGE_BITS,
            Self::Capabilities { .. } => CAPABILITIES,
            Self::Uuid { .. } => UUID,
        }
    }

    /// Version on the wire.
    pub fn version(&self) -> u32 {
        match self {
            Self::TargetPageBits { version, .. }
            | Self::Capabilities { version, .. }
            | Self::Uuid { version, .. } => *version,
        }
    }
}

impl<'a> Wire<'a> for ConfigurationSubsection<'a> {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        let start = input.offset();
        match SectionKind(input.u8("subsection mark")?) {
            SectionKind::SUBSECTION => {}
            other => {
                let message = format!("{:#04x} where the subsection mark 0x05 was expected", other.0);
                return Err(Cursor::malformed(start, "configuration subsection", message));
            }
        }
        let at = input.offset();
        let name = input.str8("configuration subsection name")?;
        let unknown = || {
            let message = format!(
                "unknown subsection {name:?}; its length is not on the wire, so nothing behind it can be read"
            );
            Fault::from(Error::new(ErrorKind::Unsupported, at, "configuration subsection", message))
        };
        if ![PAGE_BITS, CAPABILITIES, UUID].iter().any(|known| known.as_bytes() == name.0) {
            return Err(unknown());
        }
        let version = input.be32("configuration subsection version")?;
        if name.0 == PAGE_BITS.as_bytes() {
            Ok(Self::TargetPageBits { version, bits: input.be32("target page bits")? })
        } else if name.0 == UUID.as_bytes() {
            Ok(Self::Uuid { version, uuid: input.array("uuid")? })
        } else {
            let at = input.offset();
            let count = input.be32("capability count")?;
            if count > MAX_CAPABILITIES {
                let message = format!("{count} capabilities, at most {MAX_CAPABILITIES} are taken");
                return Err(Error::new(ErrorKind::TooLarge, at, "configuration subsection", message).into());
            }
            let names = (0..count).map(|_| input.str8("capability name")).collect::<Result<_, _>>()?;
            Ok(Self::Capabilities { version, names })
        }
    }

    fn emit(&self, out: &mut impl Sink) {
        out.u8(SectionKind::SUBSECTION.0);
        out.str8(self.name().into());
        out.be32(self.version());
        match self {
            Self::TargetPageBits { bits, .. } => out.be32(*bits),
            Self::Uuid { uuid, .. } => out.put(uuid),
            Self::Capabilities { names, .. } => {
                out.be32(names.len() as u32);
                for name in names {
                    out.str8(*name);
                }
            }
        }
    }

    fn wire_len(&self) -> usize {
        let body = match self {
            Self::TargetPageBits { .. } => 4,
            Self::Uuid { .. } => 16,
            Self::Capabilities { names, .. } => 4 + names.iter().map(|n| 1 + n.0.len()).sum::<usize>(),
        };
        1 + 1 + self.name().len() + 4 + body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn table() {
        round_trip(&Configuration { machine: Name(b"none") }, b"\x07\0\0\0\x04none");
        round_trip(&Configuration { machine: Name(b"") }, b"\x07\0\0\0\0");
        round_trip(
            &ConfigurationSubsection::TargetPageBits { version: 1, bits: 12 },
            b"\x05\x1econfiguration/target-page-bits\0\0\0\x01\0\0\0\x0c",
        );
        round_trip(
            &ConfigurationSubsection::Capabilities { version: 1, names: vec![Name(b"x-ignore-shared")] },
            b"\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0fx-ignore-shared",
        );
        round_trip(
            &ConfigurationSubsection::Uuid { version: 1, uuid: *b"0123456789abcdef" },
            b"\x05\x12configuration/uuid\0\0\0\x010123456789abcdef",
        );
    }

    #[test]
    fn a_peer_does_not_pick_the_allocation() {
        let fault = Configuration::parse(&mut Cursor::new(8, b"\x07\xff\xff\xff\xff"));
        assert!(
            matches!(fault, Err(Fault::Bad(e)) if e.kind() == ErrorKind::TooLarge && e.offset() == Some(9))
        );
        let caps = b"\x05\x1aconfiguration/capabilities\0\0\0\x01\xff\xff\xff\xff";
        assert!(matches!(ConfigurationSubsection::parse(&mut Cursor::new(0, caps)), Err(Fault::Bad(_))));
    }

    #[test]
    fn an_unknown_subsection_ends_the_reading() {
        let fault = ConfigurationSubsection::parse(&mut Cursor::new(0, b"\x05\x0fconfiguration/x"));
        assert!(matches!(fault, Err(Fault::Bad(e)) if e.kind() == ErrorKind::Unsupported));
    }
}
