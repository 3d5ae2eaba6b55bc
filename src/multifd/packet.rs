//! The one vocabulary of a multifd channel.

use crate::channel::ChannelEvent;
use crate::wire::{Bulk, DevicePacket, MultifdHello, RamPacket, Sink, Wire};

/// A record, or a piece of a payload. Every byte of a channel belongs to exactly one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// The first 64 bytes.
    Hello(MultifdHello),
    /// A packet of pages, or of nothing (SYNC); the payload follows.
    Ram(RamPacket<'a>),
    /// A piece of the payload of a packet of pages. Pages that are not encoded never lie in two pieces.
    Payload(Bulk<'a>),
    /// A packet of device state; the payload follows.
    Device(DevicePacket<'a>),
    /// A piece of device state.
    DeviceData(Bulk<'a>),
}

impl ChannelEvent for Packet<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "multifd hello",
            Self::Ram(_) => "multifd packet",
            Self::Payload(_) => "multifd payload",
            Self::Device(_) => "device-state packet",
            Self::DeviceData(_) => "device state",
        }
    }

    fn emit(&self, out: &mut impl Sink) {
        match self {
            Self::Hello(hello) => hello.emit(out),
            Self::Ram(packet) => packet.emit(out),
            Self::Device(packet) => packet.emit(out),
            Self::Payload(bulk) | Self::DeviceData(bulk) => bulk.emit(out),
        }
    }

    fn wire_len(&self) -> u64 {
        match self {
            Self::Hello(hello) => hello.wire_len() as u64,
            Self::Ram(packet) => packet.wire_len() as u64,
            Self::Device(packet) => packet.wire_len() as u64,
            Self::Payload(bulk) | Self::DeviceData(bulk) => bulk.len(),
        }
    }

    fn elided(&self) -> u64 {
        match self {
            Self::Payload(Bulk::Elided(len)) | Self::DeviceData(Bulk::Elided(len)) => *len,
            _ => 0,
        }
    }
}
