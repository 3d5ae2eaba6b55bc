//! One multifd channel: a thread that makes packets of jobs and writes them.
//!
//! ```text
//! job: block, offsets --> pattern or image --> buffer --zero pages out--> codec --> head, payload --> connection (--> tap)
//! ```
//! Head and payload leave in one call, from where they were made.

use std::io::{self, IoSlice, Write as _};
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;

use super::batch::{Job, partition};
use super::misconduct::{Misconduct, Misdeeds};
use super::multifd::ChannelDeparture;
use super::shared::{Failure, Shared, failed_write};
use crate::capture::{ChannelTap, Direction};
use crate::device_state::Plan;
use crate::endpoint::pace::Pace;
use crate::error::{ChannelId, Error, ErrorKind};
use crate::multifd::codec::Codec;
use crate::multifd::{Framer, ZeroPages};
use crate::transport::Connection;
use crate::wire::{Method, MultifdHello, Wire as _};

/// Device state is made and written by so many bytes.
const DEVICE_PIECE: usize = 64 << 10;

/// A multifd channel, from the source's side.
pub(super) struct Worker<'s> {
    pub(super) shared: &'s Shared<'s>,
    pub(super) jobs: Receiver<Job>,
    pub(super) line: Line<'s>,
    pub(super) hello: MultifdHello,
    pub(super) framer: Framer,
    /// How pages are encoded; nothing for pages as they are.
    pub(super) codec: Option<Box<dyn Codec>>,
    pub(super) misdeeds: Misdeeds,
    /// Pages, as they are.
    pub(super) buffer: Vec<u8>,
    /// Pages, encoded.
    pub(super) payload: Vec<u8>,
    /// A packet of pages has been written.
    pub(super) has_pages: bool,
}

/// The connection, with everything that a write has to take care of.
pub(super) struct Line<'s> {
    pub(super) shared: &'s Shared<'s>,
    pub(super) connection: Connection,
    pub(super) tap: Option<ChannelTap>,
    pub(super) pace: Pace,
    pub(super) departure: ChannelDeparture,
}

impl Worker<'_> {
    /// Works until there are no more jobs, or one fails.
    pub(super) fn run(mut self) -> ChannelDeparture {
        if let Err(failure) = self.serve() {
            self.shared.fail(failure);
        }
        self.line.departure
    }

    fn serve(&mut self) -> Result<(), Failure> {
        let mut hello = Vec::with_capacity(MultifdHello::LEN);
        self.hello.emit(&mut hello);
        self.line.write(&hello, &[])?;
        while let Ok(job) = self.jobs.recv() {
            match job {
                Job::Pages { block, offsets, given: None } => self.find_pages(block, offsets)?,
                Job::Pages { block, offsets, given: Some(mut bytes) } => {
                    self.pages(block, offsets, &mut bytes)?;
                    self.shared.give_back(bytes);
                }
                Job::Sync => {
                    self.line.write(self.framer.sync(self.shared.next_number()), &[])?;
                    self.line.departure.packets += 1;
                    self.line.departure.syncs += 1;
                    self.shared.note_sync();
                }
                Job::Device { head, payload } => {
                    self.line.write(&*head, &payload)?;
                    self.line.departure.packets += 1;
                    self.line.departure.device_packets += 1;
                    self.shared.give_back(payload);
                }
                Job::State { plan, idx } => self.state(&plan, idx)?,
                Job::Close => {
                    self.line.connection.shutdown_write()?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Makes a packet of device state in pieces, each of which is sent while the cache still has it.
    fn state(&mut self, plan: &Plan, idx: u32) -> Result<(), Failure> {
        let size = plan.packet_len(idx);
        let head = Framer::device(plan.device().name().as_bytes(), plan.device().instance(), size);
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < DEVICE_PIECE {
            buffer.resize(DEVICE_PIECE, 0);
        }
        for from in (0..size).step_by(DEVICE_PIECE) {
            let piece = &mut buffer[..DEVICE_PIECE.min((size - from) as usize)];
            plan.packet_part(idx, from, piece);
            let head: &[u8] = if from == 0 { &head } else { &[] };
            self.line.write(head, piece)?;
        }
        self.buffer = buffer;
        self.line.departure.packets += 1;
        self.line.departure.device_packets += 1;
        Ok(())
    }

    /// Makes or reads pages, and sends them.
    fn find_pages(&mut self, block: usize, offsets: Vec<u64>) -> Result<(), Failure> {
        let size = self.shared.page_size as usize;
        let mut buffer = std::mem::take(&mut self.buffer);
        // Never longer than the pages of a packet, which is what is reserved once.
        if buffer.len() < offsets.len() * size {
            buffer.resize(offsets.len() * size, 0);
        }
        let pages = &mut buffer[..offsets.len() * size];
        let length = self.shared.blocks[block].used_length;
        self.shared.contents[block].find(&offsets, length, size, pages)?;
        let sent = self.pages(block, offsets, pages);
        self.buffer = buffer;
        sent
    }

    /// Sends a packet of pages.
    fn pages(&mut self, block: usize, mut offsets: Vec<u64>, pages: &mut [u8]) -> Result<(), Failure> {
        let shared = self.shared;
        let size = shared.page_size as usize;
        let normal = match shared.zero_pages {
            ZeroPages::Multifd => partition(&mut offsets, pages, size),
            ZeroPages::Legacy | ZeroPages::None => offsets.len(),
        };
        let pages = &pages[..normal * size];
        if shared.keeps {
            let mut memory = shared.memory();
            for (offset, page) in offsets.iter().zip(pages.chunks_exact(size)) {
                memory.set_page(block, *offset, page, shared.page_size)?;
            }
            for offset in &offsets[normal..] {
                memory.set_zero_page(block, *offset, shared.page_size)?;
            }
        }
        let (method, payload) = match &mut self.codec {
            None => (Method::NONE, pages),
            Some(codec) if pages.is_empty() => (codec.method(), pages),
            Some(codec) => {
                self.payload.clear();
                codec.encode(pages, size, &mut self.payload)?;
                (codec.method(), &*self.payload)
            }
        };
        let (normal, zero) = offsets.split_at(normal);
        let number = shared.next_number();
        let name = &shared.blocks[block].name;
        let head = self.framer.pages(name, normal, zero, method, payload.len() as u32, number);
        let twisted = match self.misdeeds.is_empty() {
            true => None,
            false => twist(head, &self.misdeeds, !self.has_pages && self.hello.id == 0),
        };
        self.line.write(twisted.as_deref().unwrap_or(head), payload)?;
        self.has_pages = true;
        let departure = &mut self.line.departure;
        departure.packets += 1;
        departure.pages += offsets.len() as u64;
        departure.zero_pages += zero.len() as u64;
        shared.pages.fetch_add(offsets.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// The head of a packet that breaks rules.
fn twist(head: &[u8], misdeeds: &Misdeeds, is_first: bool) -> Option<Vec<u8>> {
    let mut twisted = head.to_vec();
    let mut put = |at: usize, word: u32| twisted[at..at + 4].copy_from_slice(&word.to_be_bytes());
    if misdeeds.has(Misconduct::WrongCodec) {
        let is_plain = head[8..12] == Method::NONE.0.to_be_bytes();
        put(8, if is_plain { Method::ZLIB.0 } else { Method::NONE.0 });
    }
    if is_first {
        for (rule, at, word) in [
            (Misconduct::BadMagic, 0, 0x4433_2211),
            (Misconduct::BadVersion, 4, 2),
            (Misconduct::BigPayload, 20, 1 << 31),
        ] {
            if misdeeds.has(rule) {
                put(at, word);
            }
        }
    }
    Some(twisted)
}

impl Line<'_> {
    /// Writes a head and what follows it.
    fn write(&mut self, head: &[u8], payload: &[u8]) -> Result<(), Failure> {
        let mut parts = [IoSlice::new(head), IoSlice::new(payload)];
        let mut parts = if payload.is_empty() { &mut parts[..1] } else { &mut parts[..] };
        // The time that it took to make this was not the destination's.
        self.pace.note_record();
        while !parts.is_empty() {
            let Some(patience) = self.pace.patience() else { return Err(self.late().into()) };
            self.connection.set_write_timeout(Some(patience))?;
            match self.connection.write_vectored(parts) {
                Ok(0) => return Err(self.failed(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.record(parts, count);
                    IoSlice::advance_slices(&mut parts, count);
                    self.departure.bytes += count as u64;
                    self.shared.bytes.fetch_add(count as u64, Ordering::Relaxed);
                    self.shared.activity.fetch_add(1, Ordering::Relaxed);
                }
                // Over and over until patience has run out: another channel may have got on.
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        Ok(())
    }

    /// A recording that fails says so when it is finished; the migration goes on.
    fn record(&self, parts: &[IoSlice<'_>], count: usize) {
        let Some(tap) = &self.tap else { return };
        let mut left = count;
        for part in parts {
            let some = part.len().min(left);
            let _ = tap.record(Direction::ToDestination, &part[..some]);
            left -= some;
        }
    }

    fn late(&self) -> Error {
        let message = match self.pace.is_overdue() {
            true => "the migration took longer than it may",
            false => "the destination took nothing in time",
        };
        let ChannelDeparture { id, bytes, .. } = self.departure;
        Error::new(ErrorKind::Timeout, bytes, "sending", message).on(ChannelId::Multifd(id))
    }

    fn failed(&self, e: io::Error) -> Failure {
        failed_write(&self.connection, e, self.departure.id, self.departure.bytes)
    }
}
