//! Devices without hardware: state that can be made again from a few numbers, and checked by whoever receives it.
//!
//! ```text
//! word 0      "migwire", 1
//! word 1..3   seed, length of the whole, hash of name and instance
//! word i      start + i * STEP, where the start follows from the seed
//! ```
//! A word is 8 bytes, little-endian, as that is cheap where this runs; the length need not be a multiple of it. The state tells by
//! itself what it must be, so that a destination can check what it has received without being told, and names the first byte
//! that is wrong. No two words of a device are equal: pieces that are lost, doubled or exchanged show.

mod check;
mod maker;
mod plan;

use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use check::{SyntheticCheck, SyntheticVerdict};
pub(super) use maker::{Maker, Run};
pub use plan::{Arrangement, Plan, Record};

use crate::dialect::Dialect;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::MAX_DEVICE_PACKET;
use crate::wire::{Sink as _, VfioPacketHead};

/// What the state begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"migwire\x01");
/// Words in front of those that count.
const HEADER_WORDS: usize = 4;
/// Bytes of the header.
const HEADER_LEN: u64 = 8 * HEADER_WORDS as u64;
/// Between two words: odd, so that none comes twice.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A device whose state is made up.
///
/// ```
/// use migwire::device_state::{SyntheticCheck, SyntheticDevice, SyntheticVerdict};
/// let device = SyntheticDevice::new("0000:00:04.0/vfio", 0, 1 << 20, 64 << 10, 7)?;
/// let mut state = vec![0; 1 << 20];
/// device.fill(0, &mut state);
/// let mut check = SyntheticCheck::new(b"0000:00:04.0/vfio", 0);
/// check.handle(&state);
/// assert_eq!(check.verdict(), SyntheticVerdict::Equal);
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntheticDevice {
    name: String,
    instance: u32,
    size: u64,
    chunk: u32,
    seed: u64,
}

impl SyntheticDevice {
    /// Vendor of our devices: the virtual one that QEMU's own devices have.
    pub const VENDOR: u16 = 0x1af4;
    /// Device id: from the range 10f0..10ff that QEMU's `docs/specs/pci-ids.rst` leaves to experiments. No guest has a driver for it.
    pub const DEVICE: u16 = 0x10f5;
    /// Interrupt messages in its MSI-X table.
    pub const MESSAGES: u16 = 10;

    /// A device with `size` bytes of state, moved in pieces of `chunk` bytes. The name is that of its section: `0000:00:04.0/vfio`.
    ///
    /// # Errors
    /// `Misuse`: a name that fits no packet, a size that holds no header (0 is allowed: a device without state), a chunk that is 0 or
    /// no packet takes, more chunks than there are numbers for packets.
    pub fn new(name: &str, instance: u32, size: u64, chunk: u32, seed: u64) -> Result<Self> {
        let wrong = |message: String| Err(Error::nowhere(ErrorKind::Misuse, "synthetic device", message));
        let most = MAX_DEVICE_PACKET - VfioPacketHead::LEN as u32;
        if name.is_empty() || name.len() > 255 {
            return wrong(format!("a name of {} bytes; it has 1 to 255", name.len()));
        }
        if (1..HEADER_LEN).contains(&size) {
            return wrong(format!("{size} bytes of state; it has none, or {HEADER_LEN} and more"));
        }
        if chunk == 0 || chunk > most {
            return wrong(format!("chunks of {chunk} bytes; they have 1 to {most}"));
        }
        if size.div_ceil(u64::from(chunk)) >= u64::from(u32::MAX) {
            return wrong(format!("{size} bytes in chunks of {chunk}: more than 2^32 - 2 packets"));
        }
        Ok(Self { name: name.to_owned(), instance, size, chunk, seed })
    }

    /// Name of its section.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Instance id of its section.
    pub fn instance(&self) -> u32 {
        self.instance
    }

    /// Bytes of state.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that move at once.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Bytes that are sent while the guest still runs, unless a plan says otherwise: half of them, in whole chunks.
    pub fn live_share(&self) -> u64 {
        let chunk = u64::from(self.chunk);
        self.size.div_ceil(chunk) / 2 * chunk
    }

    /// How it moves.
    pub fn plan(&self, arrangement: Arrangement, dialect: Dialect) -> Plan {
        Plan::new(self.clone(), arrangement, dialect)
    }

    /// Writes the state from byte `offset` on.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        Maker::new(self.name.as_bytes(), self.instance, self.size, self.seed).fill(offset, out);
    }

    /// Its config: that of a PCI Express endpoint with one memory region and [`MESSAGES`](Self::MESSAGES) interrupt messages.
    pub fn config(&self) -> Vec<u8> {
        let mut space = [0; 4096];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &Self::VENDOR.to_le_bytes());
        put(0x02, &Self::DEVICE.to_le_bytes());
        // Memory and bus master on, a list of capabilities, revision 1, class ff: none of those that are defined.
        put(0x04, &[0x06, 0x00, 0x10, 0x00, 0x01, 0x00, 0x00, 0xff]);
        // Region 0: memory at fe000000.
        put(0x10, &0xfe00_0000_u32.to_le_bytes());
        put(0x2c, &[Self::VENDOR.to_le_bytes(), Self::DEVICE.to_le_bytes()].concat());
        put(0x34, &[0x40]);
        // MSI-X, on; table and pending bits in region 0.
        put(0x40, &[0x11, 0x60]);
        put(0x42, &(0x8000 | (Self::MESSAGES - 1)).to_le_bytes());
        put(0x48, &0x0800_u32.to_le_bytes());
        // PCI Express, version 2, endpoint.
        put(0x60, &[0x10, 0x00, 0x02, 0x00]);

        let mut out = Vec::with_capacity(4096 + 256);
        out.be32(2);
        out.put(&space);
        out.put(&[0; 16]);
        for message in 0..u32::from(Self::MESSAGES) {
            // Address, its upper half, data, control.
            for word in [0xfee0_0000, 0, 0x4000 | (self.seed as u32 & 0xff) << 4 | message, message & 1] {
                out.put(&word.to_le_bytes());
            }
        }
        out.put(&[0; (Self::MESSAGES as usize).div_ceil(8)]);
        out
    }
}

/// What stands for a device in the header of its state.
fn owner(name: &[u8], instance: u32) -> u64 {
    xxh3_64_with_seed(name, u64::from(instance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_state::Config;

    #[test]
    fn any_cut_of_the_state_is_the_same() {
        let device = SyntheticDevice::new("0000:00:04.0/vfio", 1, 203, 50, 7).unwrap();
        let mut whole = vec![0xa5; 203];
        device.fill(0, &mut whole);
        assert_eq!(whole[..8], *b"migwire\x01");
        for from in 0..203 {
            for to in from..=203 {
                let mut part = vec![0x5a; to - from];
                device.fill(from as u64, &mut part);
                assert!(part == whole[from..to], "{from}..{to}");
            }
        }
    }

    #[test]
    fn the_config_is_one() {
        let device = SyntheticDevice::new("vfio", 0, 0, 1, 0x21).unwrap();
        let bytes = device.config();
        let config = Config::decode(&bytes);
        let pci = config.pci().unwrap();
        assert_eq!((pci.vendor(), pci.device(), pci.space.len()), (0x1af4, 0x10f5, 4096));
        assert_eq!(pci.msix.map(|m| m.count()), Some(10));
        assert_eq!(pci.capabilities().map(|c| c.id).collect::<Vec<_>>(), [0x11, 0x10]);
        assert!(pci.subsection.is_empty());
    }

    #[test]
    fn devices_that_cannot_be_are_refused() {
        let refused = |name: &str, size, chunk| {
            SyntheticDevice::new(name, 0, size, chunk, 0).unwrap_err().message().to_owned()
        };
        insta::assert_snapshot!(refused("", 0, 1), @"a name of 0 bytes; it has 1 to 255");
        insta::assert_snapshot!(refused("vfio", 31, 1), @"31 bytes of state; it has none, or 32 and more");
        insta::assert_snapshot!(refused("vfio", 64, 0), @"chunks of 0 bytes; they have 1 to 16777204");
        insta::assert_snapshot!(refused("vfio", 64, 16 << 20), @"chunks of 16777216 bytes; they have 1 to 16777204");
        insta::assert_snapshot!(refused("vfio", 1 << 32, 1), @"4294967296 bytes in chunks of 1: more than 2^32 - 2 packets");
    }
}
