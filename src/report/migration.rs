//! A summary of all channels of a migration: of each, and of what they are together.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::Serialize;

use super::evidence::Evidence;
use super::inspect::{Collector, Summary, Writer, forgive, inspect};
use super::legs::put_pages;
use super::packets::PacketCounts;
use super::reading::Reading;
use super::words;
use crate::channel::Located;
use crate::container::{Access, Item, Pages, Part, Together};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::Memory;
use crate::limits::{MAX_DEVICES, MAX_RAM_BLOCKS};
use crate::multifd::{Packet, PacketParser, SyncMode};
use crate::stream::Event;
use crate::wire::{Name, RamPacket};

/// What a multifd channel has.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PacketSummary {
    /// Its id.
    pub id: u8,
    /// The guest's UUID, if it has one.
    pub uuid: Option<String>,
    /// Its packets.
    #[serde(flatten)]
    pub counts: PacketCounts,
    /// How its pages are encoded.
    pub compression: Option<String>,
    /// Bytes of the pages in payloads for each byte of payload.
    pub ratio: Option<f64>,
    /// Packets of device state, a device each.
    pub devices: Vec<DevicePackets>,
}

/// Packets of device state of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DevicePackets {
    /// Name of its section.
    pub name: String,
    /// Instance of its section.
    pub instance: u32,
    /// How many.
    pub packets: u64,
    /// Bytes of payload in them.
    pub bytes: u64,
}

/// All channels of a migration together.
#[derive(Debug, Default, Serialize)]
pub struct MigrationSummary {
    /// Multifd channels.
    pub channels: usize,
    /// Bytes of the multifd channels.
    pub bytes: u64,
    /// What the main channel's marker is: `per-section` or `per-round`.
    pub sync: Option<String>,
    /// Markers on the main channel.
    pub synchronisations: u64,
    /// SYNC packets that no marker has answered.
    pub unmatched: u64,
    /// Packets of all channels.
    #[serde(flatten)]
    pub counts: PacketCounts,
    /// How pages are encoded.
    pub compression: Option<String>,
    /// Bytes of the pages in payloads for each byte of payload.
    pub ratio: Option<f64>,
    /// The smallest and the largest share that a channel has of the bytes.
    pub balance: Option<(f64, f64)>,
    /// Pages on multifd channels, a block each.
    pub blocks: Vec<BlockPages>,
    /// Packets of device state, a device each.
    pub devices: Vec<DevicePackets>,
    /// Who may have written it, by everything that its channels show.
    pub writer: Writer,
    /// Bytes of each channel.
    #[serde(skip)]
    shares: Vec<u64>,
    /// What does not fit together.
    #[serde(skip)]
    pub faults: Vec<Error>,
}

/// Pages of a RAM block on multifd channels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockPages {
    /// Its name.
    pub name: String,
    /// Pages in payloads.
    pub raw: u64,
    /// Pages that are only named, because they are zero.
    pub zero: u64,
}

/// Summarizes the channels of a file in their order; and, if there are multifd channels among them, all of them together.
///
/// With a `memory` everything is read, and every page put there: the memory's own images are what the destination would have had.
///
/// # Errors
/// Those of the memory, and pages that cannot be put into it.
pub fn inspect_all(
    parts: &mut [Part],
    reading: &Reading,
    memory: Option<&mut Memory>,
) -> Result<(Vec<Summary>, Option<MigrationSummary>)> {
    let has_multifd = parts.iter().any(|part| matches!(part.channel, ChannelId::Multifd(_)));
    let mains = parts.iter().filter(|part| part.channel == ChannelId::Main).count();
    if memory.is_some() && mains != 1 {
        let message =
            format!("RAM is that of one migration, and there are {mains} main channels (see --snapshot)");
        return Err(Error::nowhere(ErrorKind::Misuse, "RAM images", message).on(ChannelId::Container));
    }
    let (mut found, mut migration) = (BTreeMap::new(), None);
    if has_multifd || memory.is_some() {
        let access = if memory.is_some() { Access::Whole } else { Access::Outline };
        match reading.together(parts, access) {
            Ok(together) => {
                let mut memory = memory;
                let (summaries, whole) = walk(together, reading, memory.as_deref_mut())?;
                if let Some(memory) = memory {
                    put_pages(parts, reading, memory)?;
                }
                found = summaries;
                migration = has_multifd.then_some(whole);
            }
            Err(error) if memory.is_some() => return Err(error),
            Err(error) => {
                migration = Some(MigrationSummary { faults: vec![error], ..MigrationSummary::default() });
            }
        }
    }
    let summaries = parts.iter_mut().map(|part| {
        let found = found.remove(&part.channel).map(|found| {
            let mut found = Summary { label: part.label.clone(), ..found };
            forgive(&mut found, part.channel, reading);
            found
        });
        found.unwrap_or_else(|| inspect(part, reading))
    });
    Ok((summaries.collect(), migration))
}

type Found = BTreeMap<ChannelId, Summary>;

fn walk(
    mut together: Together,
    reading: &Reading,
    mut memory: Option<&mut Memory>,
) -> Result<(Found, MigrationSummary)> {
    let mut main = Summary { channel: ChannelId::Main.to_string(), ..Summary::default() };
    let mut collector = Collector::new(&mut main);
    let mut channels: BTreeMap<u8, Packets> =
        together.channels().map(|end| (end.id, Packets::default())).collect();
    let mut pages = Pages::default();
    let mut complete = false;
    together.run(|item| {
        if let Some(memory) = memory.as_deref_mut() {
            if let Item::Main(located, grammar) = item {
                if grammar.ram_fields().mapped && matches!(located.event, Event::RamBlock(_)) {
                    let message =
                        "the pages of mapped-ram stand beside the stream, and are not put into images here";
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        located.range.start,
                        "RAM images",
                        message,
                    ));
                }
                memory.handle(&located.event, grammar, located.range.start)?;
            }
            pages.take(item, |page| match (page.block, page.content) {
                (Some(block), Some(bytes)) => memory.set_page(block, page.offset, bytes, page.page_size),
                (Some(block), None) => memory.set_zero_page(block, page.offset, page.page_size),
                (None, _) => Ok(()),
            })?;
        }
        match item {
            Item::Main(located, grammar) => {
                complete |= matches!(located.event, Event::Eof);
                collector.note(located, grammar);
            }
            Item::Packet { channel, located, parser } => {
                channels.entry(channel).or_default().note(located, parser);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if let Some(memory) = memory {
        memory.flush()?;
        if let Some(error) = pages.faults().first() {
            return Err(error.clone());
        }
    }
    let fault = |channel| together.fault_of(channel).cloned();
    let (mut found, mut evidence) = (Found::new(), Evidence::default());
    match together.grammar() {
        Some(grammar) => {
            let result = fault(ChannelId::Main).map_or(Ok(()), Err);
            let (shown, outcome) = collector.finish(grammar, reading, result);
            (evidence, main.error) = (shown, outcome.err());
            found.insert(ChannelId::Main, main);
        }
        None => drop(collector),
    }
    let mut whole = MigrationSummary {
        channels: channels.len(),
        sync: together.mode().map(|mode| mode.to_string()),
        synchronisations: together.markers(),
        unmatched: if together.has_main() { together.channels().map(|end| end.unmatched).sum() } else { 0 },
        faults: together.missing().cloned().collect(),
        ..MigrationSummary::default()
    };
    let is_precopy = together.grammar().is_some_and(|grammar| !grammar.is_postcopy());
    let is_told =
        complete && is_precopy && together.mode() == Some(SyncMode::PerRound) && whole.faults.is_empty();
    if is_told && whole.synchronisations > 0 {
        evidence.note_trailing_sync(whole.unmatched == channels.len() as u64);
    }
    let page_size = together.page_size();
    for (id, channel) in channels {
        evidence.merge(&channel.evidence);
        whole.add(&channel);
        let mut summary = Summary { channel: ChannelId::Multifd(id).to_string(), ..Summary::default() };
        channel.summarize(id, page_size, &mut summary);
        summary.error = fault(ChannelId::Multifd(id));
        summary.complaints = together.packet_parser(id).map_or_else(Vec::new, |p| p.complaints().to_vec());
        found.insert(ChannelId::Multifd(id), summary);
    }
    whole.compression = whole.counts.method.map(words::method);
    whole.ratio = ratio(&whole.counts, page_size);
    whole.writer = Writer::new(&evidence);
    Ok((found, whole))
}

impl MigrationSummary {
    fn add(&mut self, channel: &Packets) {
        self.bytes += channel.bytes;
        self.counts.add(&channel.counts);
        for (name, (raw, zero)) in &channel.blocks {
            let name = Name(name).to_string();
            let row = match self.blocks.iter_mut().find(|row| row.name == name) {
                Some(row) => row,
                None => {
                    self.blocks.push(BlockPages { name, ..BlockPages::default() });
                    let last = self.blocks.len() - 1;
                    &mut self.blocks[last]
                }
            };
            row.raw += raw;
            row.zero += zero;
        }
        for device in &channel.devices {
            match self.devices.iter_mut().find(|d| (&d.name, d.instance) == (&device.name, device.instance)) {
                Some(row) => {
                    row.packets += device.packets;
                    row.bytes += device.bytes;
                }
                None => self.devices.push(device.clone()),
            }
        }
        self.shares.push(channel.bytes);
        let total = self.bytes.max(1) as f64;
        let share = |bytes: Option<&u64>| bytes.map_or(0.0, |bytes| *bytes as f64 / total);
        self.balance = Some((share(self.shares.iter().min()), share(self.shares.iter().max())));
    }
}

/// Bytes of pages for each byte of payload, of what is in payloads.
fn ratio(counts: &PacketCounts, page_size: u64) -> Option<f64> {
    (counts.payload_bytes > 0).then(|| counts.page_bytes(page_size) as f64 / counts.payload_bytes as f64)
}

/// What is collected while a multifd channel passes.
#[derive(Debug, Default)]
pub(super) struct Packets {
    bytes: u64,
    counts: PacketCounts,
    uuid: Option<[u8; 16]>,
    /// Pages in payloads and zero pages, a block each.
    blocks: BTreeMap<Box<[u8]>, (u64, u64)>,
    devices: Vec<DevicePackets>,
    evidence: Evidence,
    /// Bytes of the last payload.
    before: u32,
}

impl Packets {
    pub(super) fn note(&mut self, located: &Located<'_, Packet<'_>>, parser: &PacketParser) {
        self.bytes = located.range.end;
        self.counts.note(located, parser);
        match &located.event {
            Packet::Hello(hello) => self.uuid = Some(hello.uuid).filter(|uuid| *uuid != [0; 16]),
            Packet::Ram(packet) => self.ram(packet, parser),
            Packet::Device(packet) => {
                self.evidence.note_device_packet();
                let (name, instance) = (packet.idstr.name().to_string(), packet.instance_id);
                let bytes = u64::from(packet.payload_size);
                let is_full = self.devices.len() >= MAX_DEVICES;
                match self.devices.iter_mut().find(|d| (&d.name, d.instance) == (&name, instance)) {
                    Some(row) => {
                        row.packets += 1;
                        row.bytes += bytes;
                    }
                    None if is_full => {}
                    None => self.devices.push(DevicePackets { name, instance, packets: 1, bytes }),
                }
            }
            Packet::Payload(_) | Packet::DeviceData(_) => {}
        }
    }

    fn ram(&mut self, packet: &RamPacket<'_>, parser: &PacketParser) {
        self.evidence.note_packet(packet, self.before);
        if packet.normal_pages > 0 {
            self.before = packet.payload_size;
        }
        let batch = parser.batch();
        let (raw, zero) = (batch.normal().len() as u64, batch.zero().len() as u64);
        if raw + zero == 0 {
            return;
        }
        // Looked up first, because a name need not be made for most packets.
        let is_full = self.blocks.len() >= MAX_RAM_BLOCKS;
        match self.blocks.get_mut(batch.name().0) {
            Some(row) => *row = (row.0 + raw, row.1 + zero),
            None if is_full => {}
            None => {
                self.blocks.insert(batch.name().0.into(), (raw, zero));
            }
        }
    }

    pub(super) fn summarize(self, id: u8, page_size: u64, summary: &mut Summary) {
        summary.bytes = self.bytes;
        summary.page_size = page_size;
        summary.writer = Writer::new(&self.evidence);
        summary.multifd = Some(PacketSummary {
            id,
            uuid: self.uuid.map(|uuid| words::uuid(&uuid)),
            compression: self.counts.method.map(words::method),
            ratio: ratio(&self.counts, page_size),
            counts: self.counts,
            devices: self.devices,
        });
    }
}
