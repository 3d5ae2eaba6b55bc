//! One multifd channel of a destination: packets to pages.

use std::cell::Cell;
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use super::channels::{ChannelArrival, Channels};
use crate::capture::{ChannelTap, Direction, interface_name};
use crate::channel::{ChannelParser as _, Feed, Input, Located};
use crate::device_state::Slot;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::multifd::codec::{self, Codec};
use crate::multifd::{Batch, Packet, PacketParser};
use crate::stream::Block;
use crate::transport::Connection;
use crate::wire::{Method, RamPacket};

/// Reads a channel to its end. `first` has been read of it already.
pub(super) fn serve(channels: &Channels, connection: &Connection, first: Vec<u8>) -> Result<()> {
    let settings = &channels.settings;
    let mut parser = PacketParser::with(settings.mode, settings.dialect, 4096);
    if let Some(method) = settings.method {
        parser = parser.with_method(method);
    }
    if !channels.keeps {
        parser = parser.with_elision();
    }
    connection.set_read_timeout(Some(settings.limits.silence))?;
    let between = Rc::new(Cell::new(false));
    let input = Awaited {
        connection: connection.clone(),
        first,
        held: Vec::new(),
        tap: None,
        scrap: Vec::new(),
        between: Rc::clone(&between),
        channels,
    };
    let mut feed = Feed::new(input);
    let met = feed.run(&mut parser, |_, _| Ok(ControlFlow::Break(())));
    let hello = met.and_then(|()| match parser.hello() {
        Some(hello) => channels.join(hello).map(|joined| (hello.id, joined)),
        None => Err(Error::nowhere(ErrorKind::Truncated, "multifd hello", "the connection ended before it")),
    });
    channels.note_known(connection);
    let (id, joined) = hello.map_err(|e| e.on(parser.channel()))?;
    if !joined {
        channels.dismiss(connection);
        let message = "a channel more than took part in the first synchronisation was dropped";
        channels
            .complain(Error::new(ErrorKind::OutOfOrder, 0, "multifd hello", message).on(parser.channel()));
        return Ok(());
    }
    if let Some(recorder) = &settings.recorder {
        feed.input_mut().record(recorder.channel(interface_name(ChannelId::Multifd(id))));
    }
    let Some(page_size) = channels.page_size() else { return Ok(()) };
    parser.set_page_size(page_size);
    let mut serving = Serving::new(channels, id, page_size);
    serving.arrival.bytes = parser.offset();
    between.set(true);
    let outcome = feed.run(&mut parser, |located, parser| {
        between.set(parser.is_between());
        serving.take(located, parser)
    });
    let outcome = outcome.map_err(|e| e.on(ChannelId::Multifd(id)));
    channels.note_arrival(id, serving.arrival);
    for complaint in parser.complaints() {
        channels.complain(complaint.clone());
    }
    match outcome {
        Ok(()) => {
            channels.leave(id);
            Ok(())
        }
        // The end came while the source was still writing what nobody waits for.
        Err(e) if channels.is_complete() && e.kind() == ErrorKind::Truncated => Ok(()),
        outcome => outcome,
    }
}

/// A channel that is being read.
struct Serving<'a> {
    channels: &'a Channels,
    id: u8,
    page_size: u64,
    arrival: ChannelArrival,
    /// Block of the packet, with its place in the list.
    place: Option<Place>,
    /// Encoded pages, collected.
    payload: Vec<u8>,
    pages: Vec<u8>,
    codec: Option<Box<dyn Codec>>,
    /// The device packet that is being read.
    slot: Option<Slot>,
}

struct Place {
    blocks: Arc<[Block]>,
    index: usize,
}

impl<'a> Serving<'a> {
    fn new(channels: &'a Channels, id: u8, page_size: u64) -> Self {
        Self {
            channels,
            id,
            page_size,
            arrival: ChannelArrival::default(),
            place: None,
            payload: Vec::new(),
            pages: Vec::new(),
            codec: None,
            slot: None,
        }
    }

    fn take(&mut self, located: &Located<'_, Packet<'_>>, parser: &PacketParser) -> Result<ControlFlow<()>> {
        let before = self.arrival.pages;
        match &located.event {
            Packet::Hello(_) => {}
            Packet::Ram(packet) => self.begin(packet, parser, located.range.start)?,
            Packet::Payload(bulk) => {
                if let Some(bytes) = bulk.bytes() {
                    self.payload(bytes, parser.batch(), located.range.start)?;
                }
            }
            Packet::Device(packet) => {
                self.arrival.packets += 1;
                self.arrival.device_packets += 1;
                self.channels.await_device(packet);
                let here = ChannelId::Multifd(self.id);
                self.slot = Some(self.channels.devices().begin(packet, here, located.range.end)?);
            }
            Packet::DeviceData(bulk) => {
                self.device_data(bulk.bytes().unwrap_or_default(), parser.batch().left() == 0)?;
            }
        }
        self.arrival.bytes = located.range.end;
        self.channels.count(located.range.end - located.range.start, self.arrival.pages - before);
        if parser.is_at_sync() {
            self.arrival.syncs += 1;
            self.channels.note_arrival(self.id, self.arrival);
            return Ok(self.channels.arrive(self.id));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A packet has begun: its zero pages are there already.
    fn begin(&mut self, packet: &RamPacket<'_>, parser: &PacketParser, at: u64) -> Result<()> {
        let batch = parser.batch();
        self.arrival.packets += 1;
        self.payload.clear();
        let pages = batch.normal().len() + batch.zero().len();
        if pages == 0 {
            return Ok(());
        }
        if self.channels.is_complete() {
            let message = "pages behind the last synchronisation: whether a stock destination still takes them is left to chance";
            return Err(Error::new(ErrorKind::OutOfOrder, at, "multifd packet", message));
        }
        self.channels.note_method(batch.method());
        self.arrival.pages += pages as u64;
        self.arrival.zero_pages += batch.zero().len() as u64;
        let place = self.locate(packet, batch, at)?;
        self.channels.note_pages(place, batch.normal().iter().chain(batch.zero()).copied())?;
        if self.channels.keeps && !batch.zero().is_empty() {
            let mut memory = self.channels.memory();
            for offset in batch.zero() {
                memory.set_zero_page(place, *offset, self.page_size)?;
            }
        }
        Ok(())
    }

    /// The block of a packet, with its offsets checked.
    fn locate(&mut self, packet: &RamPacket<'_>, batch: &Batch, at: u64) -> Result<usize> {
        let fault =
            |kind, behind, message: String| Err(Error::new(kind, at + behind, "multifd packet", message));
        let is_same =
            |place: &Place| place.blocks.get(place.index).is_some_and(|block| *block.name == *batch.name().0);
        if !self.place.as_ref().is_some_and(is_same) {
            let Some(blocks) = self.channels.blocks() else {
                let message = "pages before the first synchronisation, when the destination may not have set up its memory yet: \
                               stock destinations from 9.2 on crash";
                return fault(ErrorKind::OutOfOrder, 0, message.to_owned());
            };
            let Some(index) = blocks.iter().position(|block| *block.name == *batch.name().0) else {
                return fault(
                    ErrorKind::Malformed,
                    64,
                    format!("there is no RAM block {:?}", packet.block.name()),
                );
            };
            self.place = Some(Place { blocks, index });
        }
        let Some(Place { blocks, index }) = &self.place else { return Ok(0) };
        let length = blocks[*index].used_length;
        let last = length.saturating_sub(self.page_size);
        for (i, offset) in batch.normal().iter().chain(batch.zero()).enumerate() {
            if *offset > last {
                let behind = (RamPacket::FIXED_LEN + 8 * i) as u64;
                let message = format!("offset {offset:#x} in block {:?} of {length:#x} bytes", batch.name());
                return fault(ErrorKind::Malformed, behind, message);
            }
        }
        Ok(*index)
    }

    /// A piece of device state.
    fn device_data(&mut self, bytes: &[u8], is_last: bool) -> Result<()> {
        let Some(mut slot) = self.slot.take() else { return Ok(()) };
        // As much as possible before the lock is taken.
        let piece = slot.look(bytes);
        let mut devices = self.channels.devices();
        let mut may_wait = true;
        while may_wait && devices.too_early(&slot, bytes).is_some() {
            drop(devices);
            may_wait = self.channels.await_room(self.id, || self.channels.devices().too_early(&slot, bytes));
            devices = self.channels.devices();
        }
        devices.piece(&mut slot, piece, &mut |_, _| {})?;
        if is_last {
            devices.end(slot, &mut |_, _| {})?;
            drop(devices);
            self.channels.notify();
        } else {
            self.slot = Some(slot);
        }
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8], batch: &Batch, at: u64) -> Result<()> {
        let Some(index) = self.place.as_ref().map(|place| place.index) else { return Ok(()) };
        if batch.method() == Method::NONE {
            let mut memory = self.channels.memory();
            return batch
                .pages(bytes)
                .try_for_each(|(offset, page)| memory.set_page(index, offset, page, self.page_size));
        }
        // As a rule a payload is one piece.
        let begin = at - self.payload.len() as u64;
        let whole = match (self.payload.is_empty(), batch.left()) {
            (true, 0) => bytes,
            (_, left) => {
                self.payload.extend_from_slice(bytes);
                if left > 0 {
                    return Ok(());
                }
                &self.payload
            }
        };
        if self.codec.is_none() {
            self.codec = Some(codec::open(batch.method(), None)?);
        }
        let Some(codec) = &mut self.codec else { return Ok(()) };
        let size = self.page_size as usize;
        self.pages.resize(batch.normal().len() * size, 0);
        let decoded = codec.decode(whole, size, &mut self.pages);
        decoded.map_err(|e| {
            let inside = e.offset().unwrap_or(0);
            e.at(begin + inside)
        })?;
        if self.channels.keeps {
            let mut memory = self.channels.memory();
            for (offset, page) in batch.normal().iter().zip(self.pages.chunks_exact(size)) {
                memory.set_page(index, *offset, page, self.page_size)?;
            }
        }
        Ok(())
    }
}

/// A multifd channel as something to read: it may be silent between two packets for as long as the migration lasts.
struct Awaited<'a> {
    connection: Connection,
    /// Bytes that have been read already.
    first: Vec<u8>,
    /// Bytes to be recorded when the channel has its name.
    held: Vec<u8>,
    tap: Option<ChannelTap>,
    /// Where bytes go that nobody wants.
    scrap: Vec<u8>,
    /// Whether no packet is under way, so that silence means nothing.
    between: Rc<Cell<bool>>,
    channels: &'a Channels,
}

/// Bytes that are dropped at once.
const SCRAP: usize = 1 << 20;

impl Awaited<'_> {
    /// Records from now on, and what has come before.
    fn record(&mut self, tap: ChannelTap) {
        // A recording that fails says so when it is finished; the migration goes on.
        let _ = tap.record(Direction::ToDestination, &std::mem::take(&mut self.held));
        self.tap = Some(tap);
    }

    fn note(&mut self, bytes: &[u8]) {
        match &self.tap {
            Some(tap) => {
                let _ = tap.record(Direction::ToDestination, bytes);
            }
            None if self.channels.settings.recorder.is_some() => self.held.extend_from_slice(bytes),
            None => {}
        }
    }
}

impl Input for Awaited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = if self.first.is_empty() {
            loop {
                match self.connection.read(buffer) {
                    Err(e) if e.kind() == io::ErrorKind::TimedOut && self.between.get() => {}
                    other => break other?,
                }
            }
        } else {
            let count = self.first.len().min(buffer.len());
            buffer[..count].copy_from_slice(&self.first[..count]);
            self.first.drain(..count);
            count
        };
        self.note(&buffer[..count]);
        Ok(count)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut scrap = std::mem::take(&mut self.scrap);
        scrap.resize(SCRAP, 0);
        let mut left = count;
        while left > 0 {
            let want = SCRAP.min(usize::try_from(left).unwrap_or(SCRAP));
            let skipped = match self.tap {
                None => self.connection.discard(&mut scrap[..want])?,
                Some(_) => self.read(&mut scrap[..want])?,
            };
            left -= skipped as u64;
            if skipped == 0 {
                break;
            }
        }
        self.scrap = scrap;
        Ok(count - left)
    }
}
