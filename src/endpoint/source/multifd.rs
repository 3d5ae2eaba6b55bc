//! Multifd from the source's side: what is asked for, and what came of it.

use crate::multifd::ZeroPages;
use crate::wire::Method;

/// Multifd channels of a stand-in source. Where it synchronises, and what it leaves in unused fields, follows from its dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multifd {
    /// Number of channels (`multifd-channels`); the destination must expect as many.
    pub channels: u8,
    /// How pages are encoded (`multifd-compression`); the destination must expect the same.
    pub method: Method,
    /// How hard, where the method has levels. Otherwise as QEMU does by itself.
    pub level: Option<u32>,
    /// Where pages of zeros go (`zero-page-detection`). Otherwise as the dialect does by itself.
    pub zero_pages: Option<ZeroPages>,
    /// UUID of the virtual machine, in the byte order of RFC 4122; zero if it has none. The destination must have the same.
    pub uuid: [u8; 16],
}

impl Multifd {
    /// So many channels, with pages as they are, of a machine without UUID.
    pub fn new(channels: u8) -> Self {
        Self { channels, method: Method::NONE, level: None, zero_pages: None, uuid: [0; 16] }
    }
}

/// What was sent on one multifd channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelDeparture {
    /// Its number, as its hello says.
    pub id: u8,
    /// Bytes that the system took.
    pub bytes: u64,
    /// Packets of all kinds.
    pub packets: u64,
    /// Packets with SYNC.
    pub syncs: u64,
    /// Pages of all kinds.
    pub pages: u64,
    /// Pages that packets only list.
    pub zero_pages: u64,
    /// Packets of device state.
    pub device_packets: u64,
}
