//! What the packets of a multifd channel come to.

use crate::channel::Located;
use crate::multifd::{Packet, PacketParser};
use crate::wire::{Method, MultifdFlags};

/// Packets of a channel, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "json", derive(serde::Serialize))]
pub struct PacketCounts {
    /// Packets of pages and of device state, SYNCs included.
    pub packets: u64,
    /// Packets with SYNC.
    pub syncs: u64,
    /// Pages, those that are zero included.
    pub pages: u64,
    /// Pages that are zero and only named.
    pub zero_pages: u64,
    /// Packets of device state.
    pub device_packets: u64,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// Bytes of payload in packets of pages.
    pub payload_bytes: u64,
    /// Packets with pages and SYNC.
    pub pages_with_sync: u64,
    /// Packets with neither.
    pub empty: u64,
    /// How pages are encoded, once there was one; the number of the method.
    #[cfg_attr(feature = "json", serde(skip))]
    pub method: Option<Method>,
}

impl PacketCounts {
    /// Takes note of an event; `parser` is the state behind it.
    pub fn note(&mut self, located: &Located<'_, Packet<'_>>, parser: &PacketParser) {
        let batch = parser.batch();
        match located.event {
            Packet::Hello(_) => {}
            Packet::Ram(_) => {
                let pages = (batch.normal().len() + batch.zero().len()) as u64;
                let has_sync = batch.flags().contains(MultifdFlags::SYNC);
                self.packets += 1;
                self.syncs += u64::from(has_sync);
                self.pages += pages;
                self.zero_pages += batch.zero().len() as u64;
                self.payload_bytes += batch.payload_len();
                match (pages, has_sync) {
                    (0, false) => self.empty += 1,
                    (0, true) => {}
                    (_, has_sync) => {
                        self.method.get_or_insert(batch.method());
                        self.pages_with_sync += u64::from(has_sync);
                    }
                }
            }
            Packet::Device(_) => {
                self.packets += 1;
                self.device_packets += 1;
                self.device_bytes += batch.payload_len();
            }
            Packet::Payload(_) | Packet::DeviceData(_) => {}
        }
    }

    /// Adds those of another channel.
    pub fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.syncs += other.syncs;
        self.pages += other.pages;
        self.zero_pages += other.zero_pages;
        self.device_packets += other.device_packets;
        self.device_bytes += other.device_bytes;
        self.payload_bytes += other.payload_bytes;
        self.pages_with_sync += other.pages_with_sync;
        self.empty += other.empty;
        self.method = self.method.or(other.method);
    }

    /// Bytes that the pages in payloads have when they are decoded.
    pub fn page_bytes(&self, page_size: u64) -> u64 {
        (self.pages - self.zero_pages) * page_size
    }
}
