//! VFIO: the words between which a device's state travels on the main channel, and the head of its packets on multifd channels.
//!
//! ```text
//! main channel   be64 tag   and behind DEV_DATA_STATE  be64 size  raw[size]
//! packet         be32 version 0   be32 idx   be32 flags   raw[..]
//! ```
//! All numbers are big-endian in every release; snapshots from before 10.0 had packets in the order of the host. Source:
//! `hw/vfio/migration.c`, `hw/vfio/migration-multifd.c` (`VFIODeviceStatePacket`).

use std::fmt;

use super::numbers::open_enum;
use super::{Cursor, Fault, Sink, Wire};

open_enum! {
    /// A word of a VFIO section (`VFIO_MIG_FLAG_*`).
    VfioTag(u64) {
        /// `VFIO_MIG_FLAG_END_OF_STATE`
        END_OF_STATE = 0xffff_ffff_ef10_0001,
        /// `VFIO_MIG_FLAG_DEV_CONFIG_STATE`: what QEMU itself knows of the device, and END_OF_STATE behind it.
        DEV_CONFIG_STATE = 0xffff_ffff_ef10_0002,
        /// `VFIO_MIG_FLAG_DEV_SETUP_STATE`: the body of a START section, and END_OF_STATE behind it.
        DEV_SETUP_STATE = 0xffff_ffff_ef10_0003,
        /// `VFIO_MIG_FLAG_DEV_DATA_STATE`: a size and as many bytes for the device.
        DEV_DATA_STATE = 0xffff_ffff_ef10_0004,
        /// `VFIO_MIG_FLAG_DEV_INIT_DATA_SENT`: ends a body instead of END_OF_STATE (8.1 and later).
        DEV_INIT_DATA_SENT = 0xffff_ffff_ef10_0005,
        /// `VFIO_MIG_FLAG_DEV_CONFIG_LOAD_READY`: the config packet may be loaded; a body of its own (10.1 and later).
        DEV_CONFIG_LOAD_READY = 0xffff_ffff_ef10_0006,
    }
}

impl VfioTag {
    /// Bytes on the wire.
    pub const LEN: usize = 8;
}

impl<'a> Wire<'a> for VfioTag {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        input.be64("VFIO tag").map(Self)
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be64(self.0);
    }

    fn wire_len(&self) -> usize {
        Self::LEN
    }
}

/// Flags of a VFIO packet. Bits without a name are ignored by every release, and kept here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VfioPacketFlags(pub u32);

impl VfioPacketFlags {
    /// `VFIO_DEVICE_STATE_CONFIG_STATE`: the device's last packet, with what DEV_CONFIG_STATE has on the main channel.
    pub const CONFIG_STATE: Self = Self(0x01);

    /// Whether all bits of `other` are set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Display for VfioPacketFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.contains(Self::CONFIG_STATE), self.0 & !Self::CONFIG_STATE.0) {
            (false, 0) => f.write_str("none"),
            (true, 0) => f.write_str("CONFIG_STATE"),
            (false, rest) => write!(f, "{rest:#x}"),
            (true, rest) => write!(f, "CONFIG_STATE|{rest:#x}"),
        }
    }
}

impl fmt::Debug for VfioPacketFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {self}", self.0)
    }
}

/// What the payload of a device packet begins with (`VFIODeviceStatePacket`); the data follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfioPacketHead {
    /// `VFIO_DEVICE_STATE_PACKET_VER_CURRENT`, 0.
    pub version: u32,
    /// Place of the packet among those of its device, from 0; they may come in any order.
    pub idx: u32,
    /// Whether this is the last one.
    pub flags: VfioPacketFlags,
}

impl VfioPacketHead {
    /// Bytes on the wire.
    pub const LEN: usize = 12;

    /// The head of a packet with data for the device.
    pub fn data(idx: u32) -> Self {
        Self { version: 0, idx, flags: VfioPacketFlags::default() }
    }

    /// The head of a device's last packet.
    pub fn config(idx: u32) -> Self {
        Self { version: 0, idx, flags: VfioPacketFlags::CONFIG_STATE }
    }
}

impl<'a> Wire<'a> for VfioPacketHead {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        Ok(Self {
            version: input.be32("VFIO packet version")?,
            idx: input.be32("VFIO packet idx")?,
            flags: VfioPacketFlags(input.be32("VFIO packet flags")?),
        })
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be32(self.version);
        out.be32(self.idx);
        out.be32(self.flags.0);
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
    fn tags() {
        round_trip(&VfioTag::END_OF_STATE, b"\xff\xff\xff\xff\xef\x10\0\x01");
        round_trip(&VfioTag::DEV_CONFIG_STATE, b"\xff\xff\xff\xff\xef\x10\0\x02");
        round_trip(&VfioTag::DEV_SETUP_STATE, b"\xff\xff\xff\xff\xef\x10\0\x03");
        round_trip(&VfioTag::DEV_DATA_STATE, b"\xff\xff\xff\xff\xef\x10\0\x04");
        round_trip(&VfioTag::DEV_INIT_DATA_SENT, b"\xff\xff\xff\xff\xef\x10\0\x05");
        round_trip(&VfioTag::DEV_CONFIG_LOAD_READY, b"\xff\xff\xff\xff\xef\x10\0\x06");
        round_trip(&VfioTag(0x42), b"\0\0\0\0\0\0\0\x42");
        assert_eq!(VfioTag(0x42).to_string(), "VfioTag(0x42)");
    }

    #[test]
    fn packet_heads() {
        round_trip(&VfioPacketHead::data(7), b"\0\0\0\0\0\0\0\x07\0\0\0\0");
        round_trip(&VfioPacketHead::config(0x0102_0304), b"\0\0\0\0\x01\x02\x03\x04\0\0\0\x01");
        let odd = VfioPacketHead { version: 9, idx: u32::MAX, flags: VfioPacketFlags(0x8000_0001) };
        round_trip(&odd, b"\0\0\0\x09\xff\xff\xff\xff\x80\0\0\x01");
        assert_eq!(format!("{:?}", odd.flags), "0x80000001: CONFIG_STATE|0x80000000");
    }
}
