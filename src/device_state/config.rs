//! What QEMU itself knows of a VFIO device: its PCI config space and interrupts, as `DEV_CONFIG_STATE` holds them.
//!
//! ```text
//! be32 version 2   config space[256 or 4096]   be32 irq state[4]
//! with MSI-X:  table[16 * n]  pending bits[ceil(n / 8)]
//! perhaps      0x05  str8 "VFIOPCIDevice/VFIODisplay"  be32 version  fields
//! ```
//! None of these lengths is on the wire. The number n follows from the MSI-X capability in the config space; which of its two
//! sizes the space has is told by what fits. Source: `hw/vfio/pci.c` (`vmstate_vfio_pci_config`), `hw/pci/pci.c`, `hw/pci/msix.c`.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::{Bulk, Cursor, Fault, Name, Sink, VfioTag, Wire as _};

/// Config of a device, decoded as far as it can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config<'a> {
    /// That of a PCI device.
    Pci(PciConfig<'a>),
    /// None at all: a device that is not on PCI.
    Empty,
    /// Bytes that are no config of a PCI device.
    Raw {
        /// The bytes.
        bytes: Bulk<'a>,
        /// Why they are none.
        reason: &'static str,
    },
}

/// Config of a PCI device.
#[derive(Clone, PartialEq, Eq)]
pub struct PciConfig<'a> {
    /// Version of `PCIDevice`, 2.
    pub version: u32,
    /// The config space: 256 bytes, or 4096 of a PCI Express device.
    pub space: &'a [u8],
    /// State of the interrupt pins.
    pub irq_state: [u32; 4],
    /// Interrupt messages, of devices that have the capability.
    pub msix: Option<Msix<'a>>,
    /// A subsection, from its mark on; empty if there is none.
    pub subsection: &'a [u8],
}

/// Interrupt messages of a device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Msix<'a> {
    /// 16 bytes a message: address, data, control; little-endian.
    pub table: &'a [u8],
    /// A bit a message.
    pub pending: &'a [u8],
}

impl Msix<'_> {
    /// Number of messages.
    pub fn count(&self) -> usize {
        self.table.len() / MSIX_ENTRY
    }
}

/// `PCI_MSIX_ENTRY_SIZE`
const MSIX_ENTRY: usize = 16;
/// Sizes of a config space, conventional and express.
const SPACES: [usize; 2] = [256, 4096];
/// `PCI_CAP_ID_MSIX`
const CAP_MSIX: u8 = 0x11;
/// First byte of a subsection (`QEMU_VM_SUBSECTION`).
const SUBSECTION: u8 = 0x05;

impl<'a> Config<'a> {
    /// Decodes what stands between DEV_CONFIG_STATE and its END_OF_STATE.
    pub fn decode(bytes: &'a [u8]) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        match PciConfig::decode(bytes) {
            Ok(pci) => Self::Pci(pci),
            Err(reason) => Self::Raw { bytes: Bulk::Bytes(bytes), reason },
        }
    }

    /// The config of a PCI device, if it is one.
    pub fn pci(&self) -> Option<&PciConfig<'a>> {
        match self {
            Self::Pci(pci) => Some(pci),
            _ => None,
        }
    }

    /// Writes the bytes that it was decoded from.
    pub fn emit(&self, out: &mut impl Sink) {
        match self {
            Self::Pci(pci) => pci.emit(out),
            Self::Empty => {}
            Self::Raw { bytes, .. } => bytes.emit(out),
        }
    }
}

impl<'a> PciConfig<'a> {
    /// Writes the fields as they are.
    pub fn emit(&self, out: &mut impl Sink) {
        out.be32(self.version);
        out.put_bulk(self.space);
        for state in self.irq_state {
            out.be32(state);
        }
        if let Some(msix) = &self.msix {
            out.put_bulk(msix.table);
            out.put_bulk(msix.pending);
        }
        out.put_bulk(self.subsection);
    }

    /// Vendor id.
    pub fn vendor(&self) -> u16 {
        le16(self.space, 0)
    }

    /// Device id.
    pub fn device(&self) -> u16 {
        le16(self.space, 2)
    }

    /// Capabilities in the config space, in the order of their list: offset and id.
    pub fn capabilities(&self) -> Capabilities<'a> {
        Capabilities::of(self.space)
    }

    /// Name of the subsection.
    pub fn subsection_name(&self) -> Option<Name<'a>> {
        subsection_name(self.subsection)
    }

    fn decode(bytes: &'a [u8]) -> Result<Self, &'static str> {
        if bytes.len() < 4 + SPACES[0] + 16 {
            return Err("it is shorter than a conventional config space");
        }
        let fits = SPACES.iter().filter_map(|&space| Self::with_space(bytes, space).ok());
        let mut fits: Vec<_> = fits.collect();
        // What fits without a rest is taken before what needs one.
        fits.sort_by_key(|pci| !pci.subsection.is_empty());
        fits.into_iter().next().ok_or("its length is that of no config space with these capabilities")
    }

    fn with_space(bytes: &'a [u8], space: usize) -> Result<Self, Fault> {
        let mut input = Cursor::new(0, bytes);
        let version = input.be32("PCIDevice version")?;
        let space = input.take("config space", space)?;
        let mut irq_state = [0; 4];
        for state in &mut irq_state {
            *state = input.be32("interrupt state")?;
        }
        let msix = match Capabilities::of(space).find(|capability| capability.id == CAP_MSIX) {
            Some(capability) => {
                let count = usize::from(le16(space, usize::from(capability.offset) + 2) & 0x7ff) + 1;
                let table = input.take("MSI-X table", MSIX_ENTRY * count)?;
                Some(Msix { table, pending: input.take("MSI-X pending bits", count.div_ceil(8))? })
            }
            None => None,
        };
        let subsection = input.rest();
        if !subsection.is_empty() && subsection_name(subsection).is_none() {
            return Err(Cursor::malformed(input.offset(), "VFIO config", "bytes that are no subsection"));
        }
        Ok(Self { version, space, irq_state, msix, subsection })
    }
}

impl fmt::Debug for PciConfig<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}, {} bytes of config space", self.vendor(), self.device(), self.space.len())?;
        if let Some(msix) = &self.msix {
            write!(f, ", {} MSI-X messages", msix.count())?;
        }
        self.subsection_name().map_or(Ok(()), |name| write!(f, ", {name}"))
    }
}

impl fmt::Debug for Msix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages", self.count())
    }
}

/// A capability in a config space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its place.
    pub offset: u8,
    /// `PCI_CAP_ID_*`
    pub id: u8,
}

/// Walks the list of capabilities of a config space. Ends where the list does, or leaves the space, or goes in a circle.
#[derive(Clone, Debug)]
pub struct Capabilities<'a> {
    space: &'a [u8],
    next: u8,
    left: u8,
}

impl<'a> Capabilities<'a> {
    /// A capability has at least four bytes: no list has more of them.
    const MOST: u8 = 48;

    fn of(space: &'a [u8]) -> Self {
        // `PCI_STATUS_CAP_LIST`
        let has_list = le16(space, 0x06) & 0x10 != 0;
        let next = if has_list { space.get(0x34).copied().unwrap_or(0) & !3 } else { 0 };
        Self { space, next, left: Self::MOST }
    }
}

impl Iterator for Capabilities<'_> {
    type Item = Capability;

    fn next(&mut self) -> Option<Capability> {
        let offset = self.next;
        // In front of 0x40 is the header.
        if offset < 0x40 || self.left == 0 {
            return None;
        }
        let id = *self.space.get(usize::from(offset))?;
        self.next = *self.space.get(usize::from(offset) + 1)? & !3;
        self.left -= 1;
        Some(Capability { offset, id })
    }
}

/// A number in a config space; 0 where there is none.
fn le16(space: &[u8], at: usize) -> u16 {
    match space.get(at..at + 2) {
        Some(&[low, high]) => u16::from_le_bytes([low, high]),
        _ => 0,
    }
}

fn subsection_name(bytes: &[u8]) -> Option<Name<'_>> {
    let mut input = Cursor::new(0, bytes);
    let mark = input.u8("mark").ok()?;
    let name = input.str8("name").ok()?;
    input.be32("version").ok()?;
    (mark == SUBSECTION && name.is_printable()).then_some(name)
}

/// What a config packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigPacket<'a> {
    /// What stands between DEV_CONFIG_STATE and END_OF_STATE.
    pub config: &'a [u8],
    /// Bytes behind END_OF_STATE, which no destination reads.
    pub trailing: &'a [u8],
}

impl<'a> ConfigPacket<'a> {
    /// Reads the data of a config packet, which stands at `offset` of its channel.
    ///
    /// The config ends at the END_OF_STATE that ends the packet; if there is none, at the first one.
    ///
    /// # Errors
    /// `Malformed` if it does not begin with DEV_CONFIG_STATE, or holds no END_OF_STATE.
    pub fn parse(data: &'a [u8], offset: u64) -> Result<Self> {
        let error = |at: usize, message: String| {
            Err(Error::new(ErrorKind::Malformed, offset + at as u64, "VFIO config packet", message))
        };
        let mut input = Cursor::new(offset, data);
        let rest = match VfioTag::parse(&mut input) {
            Ok(VfioTag::DEV_CONFIG_STATE) => input.rest(),
            Ok(tag) => return error(0, format!("{tag} where DEV_CONFIG_STATE was expected")),
            Err(_) => return error(data.len(), "it ends inside its DEV_CONFIG_STATE".to_owned()),
        };
        let end = VfioTag::END_OF_STATE.0.to_be_bytes();
        let at = match rest.ends_with(&end) {
            true => rest.len() - end.len(),
            false => match memchr::memmem::find(rest, &end) {
                Some(at) => at,
                None => return error(data.len(), "it ends without END_OF_STATE".to_owned()),
            },
        };
        Ok(Self { config: &rest[..at], trailing: &rest[at + end.len()..] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A config space of `size` bytes with these capabilities, and an MSI-X table of `msix` messages.
    fn space(size: usize, msix: Option<u16>) -> Vec<u8> {
        let mut space = vec![0; size];
        space[..4].copy_from_slice(b"\xf4\x1a\xf5\x10");
        space[0x06] = 0x10;
        // The two lowest bits of a pointer are reserved.
        space[0x34] = 0x43;
        space[0x40..0x42].copy_from_slice(&[0x01, if msix.is_some() { 0x80 } else { 0 }]);
        if let Some(count) = msix {
            space[0x80..0x82].copy_from_slice(&[CAP_MSIX, 0]);
            space[0x82..0x84].copy_from_slice(&(0x8000 | (count - 1)).to_le_bytes());
        }
        space
    }

    fn config(size: usize, msix: Option<u16>, subsection: &[u8]) -> Vec<u8> {
        let mut bytes = b"\0\0\0\x02".to_vec();
        bytes.extend(space(size, msix));
        bytes.extend([0, 0, 0, 1].repeat(4));
        let count = usize::from(msix.unwrap_or(0));
        bytes.extend((0..16 * count + count.div_ceil(8)).map(|i| i as u8));
        bytes.extend(subsection);
        bytes
    }

    fn decoded(bytes: &[u8]) -> Config<'_> {
        let config = Config::decode(bytes);
        let mut out = vec![0xa5];
        config.emit(&mut out);
        assert!(out[1..] == *bytes, "{config:?} is not given back as it came");
        config
    }

    #[test]
    fn all_shapes_are_told_apart() {
        let display: &[u8] = b"\x05\x19VFIOPCIDevice/VFIODisplay\0\0\0\x01\x07\x07";
        for size in SPACES {
            for msix in [None, Some(1), Some(8), Some(9), Some(2048)] {
                for subsection in [b"", display] {
                    let bytes = config(size, msix, subsection);
                    let config = decoded(&bytes);
                    let pci = config.pci().unwrap_or_else(|| panic!("{config:?}"));
                    assert_eq!((pci.version, pci.vendor(), pci.device()), (2, 0x1af4, 0x10f5));
                    assert_eq!((pci.space.len(), pci.irq_state), (size, [1; 4]));
                    let counts = pci.msix.map(|m| (m.count(), m.pending.len()));
                    assert_eq!(counts, msix.map(|n| (usize::from(n), usize::from(n).div_ceil(8))));
                    assert_eq!(pci.subsection, subsection);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_kept_with_a_reason() {
        let reason = |bytes: &[u8]| match decoded(bytes) {
            Config::Raw { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(b"x"), "it is shorter than a conventional config space");
        let odd = "its length is that of no config space with these capabilities";
        assert_eq!(reason(&config(256, Some(8), b"x")), odd);
        let whole = config(4096, Some(8), b"");
        assert_eq!(reason(&whole[..whole.len() - 1]), odd);
        assert_eq!(decoded(b""), Config::Empty);
    }

    #[test]
    fn a_list_in_a_circle_ends() {
        let mut bytes = config(256, None, b"");
        bytes[4 + 0x41] = 0x40;
        assert_eq!(decoded(&bytes).pci().unwrap().capabilities().count(), 48);
        bytes[4 + 0x41] = 0xfc;
        let found: Vec<_> = decoded(&bytes).pci().unwrap().capabilities().map(|c| (c.offset, c.id)).collect();
        assert_eq!(found, [(0x40, 1), (0xfc, 0)]);
        bytes[4 + 0x06] = 0;
        assert_eq!(decoded(&bytes).pci().unwrap().capabilities().count(), 0);
    }

    #[test]
    fn config_packets() {
        let (begin, end) = (b"\xff\xff\xff\xff\xef\x10\0\x02", b"\xff\xff\xff\xff\xef\x10\0\x01");
        let parse = |parts: &[&[u8]]| {
            let data = parts.concat();
            let packet = ConfigPacket::parse(&data, 12).map_err(|e| e.to_string())?;
            Ok::<_, String>((packet.config.to_vec(), packet.trailing.to_vec()))
        };
        assert_eq!(parse(&[begin, b"abc", end]), Ok((b"abc".to_vec(), vec![])));
        assert_eq!(parse(&[begin, end]), Ok((vec![], vec![])));
        assert_eq!(parse(&[begin, end, end]), Ok((end.to_vec(), vec![])));
        assert_eq!(parse(&[begin, b"abc", end, b"more"]), Ok((b"abc".to_vec(), b"more".to_vec())));
        insta::assert_snapshot!(parse(&[end]).unwrap_err(), @"VFIO config packet: END_OF_STATE where DEV_CONFIG_STATE was expected (main channel, offset 0xc)");
        insta::assert_snapshot!(parse(&[&begin[..7]]).unwrap_err(), @"VFIO config packet: it ends inside its DEV_CONFIG_STATE (main channel, offset 0x13)");
        insta::assert_snapshot!(parse(&[begin, b"abc"]).unwrap_err(), @"VFIO config packet: it ends without END_OF_STATE (main channel, offset 0x17)");
    }
}
