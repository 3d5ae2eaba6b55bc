//! The file under a recording: whole blocks or nothing, times in order, the first failure kept.
//!
//! ```text
//! first bytes, and what is no file    writev(head, data, padding, tail, head, ..)
//! from BEGIN on                       Stage, which has them written by a thread of its own
//! ```

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};

use super::block::{self, MAX_PACKET, PACKET_HEAD, PACKET_TAIL};
use super::index;
use super::recorder::{DOING, Summary};
use super::seal::Ledger;
use super::stage::{Broken, Stage};
use super::{Direction, Timestamp};
use crate::Error;
use crate::limits::{MAX_CAPTURE_INTERFACES, MAX_CAPTURE_NAME};

/// Most packets handed to the operating system in one call: 4 MiB of data, 4 slices a packet, below `IOV_MAX`.
const PACKETS_A_CALL: usize = 16;

/// Length from which on a file is written by a thread of its own. A short one is not worth it.
const BEGIN: u64 = 1 << 20;

pub(super) struct Sink {
    out: Option<Box<dyn Write + Send>>,
    /// The same file again, to cut off a block that a full disk left half-written, and for the stage.
    file: Option<File>,
    stage: Option<Stage>,
    settle: Settle,
    failure: Option<Failure>,
    summary: Summary,
    /// Bytes that were to be recorded.
    offered: u64,
    last_time: u64,
    index: index::Writer,
    ledger: Ledger,
}

/// Calls [`Sink::settle`], from whatever thread.
pub(super) type Settle = std::sync::Arc<dyn Fn() + Send + Sync>;

/// The first failure. `io::Error` cannot be cloned, so kind and text are kept for strict callers.
struct Failure {
    error: Option<io::Error>,
    kind: io::ErrorKind,
    text: String,
}

impl Sink {
    /// `file` is what `out` writes to, if that is a regular file.
    pub(super) fn new(out: Box<dyn Write + Send>, file: Option<File>, settle: Settle) -> Self {
        Self {
            out: Some(out),
            file,
            stage: None,
            settle,
            failure: None,
            summary: Summary::default(),
            offered: 0,
            last_time: 0,
            index: index::Writer::default(),
            ledger: Ledger::default(),
        }
    }

    /// What was written.
    pub(super) fn summary(&self) -> Summary {
        self.summary
    }

    /// How many bytes should have been written besides.
    pub(super) fn lost(&self) -> u64 {
        self.offered - self.summary.bytes
    }

    /// So many bytes are to be recorded.
    pub(super) fn offer(&mut self, len: usize) {
        self.offered += len as u64;
    }

    pub(super) fn is_open(&self) -> bool {
        self.out.is_some()
    }

    /// The first failure so far.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.as_ref().map(|f| Error::io(DOING, "the recording cannot be written", f.copy()))
    }

    /// The first failure with its source, once; its text afterwards.
    pub(super) fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.as_mut().map(|f| f.error.take().unwrap_or_else(|| f.copy()))
    }

    /// Seals the recording, flushes, and takes nothing any more.
    pub(super) fn close(&mut self) {
        if self.is_open() && self.failure.is_none() {
            let (block, at) = self.index.block();
            let _ = self.append(&block) && self.append(&self.ledger.block(self.summary.file_bytes, at));
        }
        if let Some(stage) = self.stage.take()
            && let Err(broken) = stage.finish()
        {
            self.break_off(broken);
        }
        if let Some(mut out) = self.out.take()
            && self.failure.is_none()
            && let Err(e) = out.flush()
        {
            self.fail(e);
        }
        self.file = None;
    }

    /// Has everything written that waits for more.
    pub(super) fn settle(&mut self) {
        if let Some(Err(broken)) = self.stage.as_mut().map(Stage::settle) {
            self.break_off(broken);
        }
    }

    /// Begins the file.
    pub(super) fn begin(&mut self, userappl: &str, comment: Option<&str>, about: Option<&str>) {
        let block = block::section_header(userappl, comment, about);
        if self.append(&block) {
            self.index.note_other(block.len());
        }
    }

    /// Describes one more interface; its number.
    pub(super) fn add_interface(&mut self, name: &str, description: Option<&str>) -> Option<u32> {
        let index = self.summary.channels;
        if index as usize >= MAX_CAPTURE_INTERFACES {
            self.fail(io::Error::other(format!(
                "more than {MAX_CAPTURE_INTERFACES} channels in one recording"
            )));
            return None;
        }
        let name = cut(name, MAX_CAPTURE_NAME);
        let block = block::interface_description(name, description);
        if !self.append(&block) {
            return None;
        }
        self.index.note_interface(block.len());
        self.ledger.note_interface(name);
        self.summary.channels += 1;
        Some(index)
    }

    /// Writes one block.
    fn append(&mut self, block: &[u8]) -> bool {
        self.append_slices(&mut [IoSlice::new(block)])
    }

    /// Writes bytes as packets of at most [`MAX_PACKET`].
    pub(super) fn append_packets(
        &mut self,
        interface: u32,
        direction: Direction,
        time: Timestamp,
        data: &[u8],
    ) {
        let _ = self.append_batches(interface, direction, time, data);
    }

    fn append_batches(&mut self, interface: u32, direction: Direction, time: Timestamp, data: &[u8]) -> bool {
        let time = self.time(time);
        let flags = direction.flags();
        for batch in data.chunks(PACKETS_A_CALL * MAX_PACKET) {
            let mut heads = [[0; PACKET_HEAD]; PACKETS_A_CALL];
            let mut tails = [[0; PACKET_TAIL]; PACKETS_A_CALL];
            let mut slices = [IoSlice::new(&[]); 4 * PACKETS_A_CALL];
            let parts = heads.iter_mut().zip(&mut tails).zip(slices.chunks_exact_mut(4));
            let mut packets = 0;
            for (packet, ((head, tail), slices)) in batch.chunks(MAX_PACKET).zip(parts) {
                *head = block::packet_head(interface, time, packet.len());
                *tail = block::packet_tail(flags, packet.len());
                slices[0] = IoSlice::new(head);
                slices[1] = IoSlice::new(packet);
                slices[2] = IoSlice::new(&[0; 3][..block::padding(packet.len())]);
                slices[3] = IoSlice::new(tail);
                packets += 1;
            }
            if !self.append_slices(&mut slices[..4 * packets]) {
                return false;
            }
            self.summary.packets += packets as u64;
            self.summary.bytes += batch.len() as u64;
            for packet in batch.chunks(MAX_PACKET) {
                self.index.note_packet(interface, direction, packet.len());
                self.ledger.note_packet(interface, direction, packet);
            }
            if !self.keep_index() {
                return false;
            }
        }
        true
    }

    /// Writes what the index has gathered, if it is enough for a block.
    fn keep_index(&mut self) -> bool {
        if !self.index.is_full() {
            return true;
        }
        let (block, _) = self.index.block();
        self.append(&block)
    }

    /// Writes the next `len` bytes of `source`, which has them, as packets; they are taken from it in any case.
    pub(super) fn append_read(
        &mut self,
        interface: u32,
        direction: Direction,
        time: Timestamp,
        source: &mut dyn Read,
        len: usize,
    ) {
        let mut source = source.take(len as u64);
        let mut is_good = self.failure.is_none();
        while is_good && source.limit() > 0 {
            let count = MAX_PACKET.min(source.limit() as usize);
            is_good = self.append_read_packet(interface, direction, time, &mut source, count);
        }
        if !is_good {
            // What follows in it is somebody else's; these have nobody who is interested in them.
            let _ = io::copy(&mut source, &mut io::sink());
        }
    }

    fn append_read_packet(
        &mut self,
        interface: u32,
        direction: Direction,
        time: Timestamp,
        source: &mut dyn Read,
        len: usize,
    ) -> bool {
        if self.stage.is_none() {
            let mut data = vec![0; len];
            return match source.read_exact(&mut data) {
                Ok(()) => self.append_batches(interface, direction, time, &data),
                Err(e) => {
                    self.fail(e);
                    false
                }
            };
        }
        let time = self.time(time);
        let Some(stage) = &mut self.stage else { return false };
        let head = block::packet_head(interface, time, len);
        let tail = block::packet_tail(direction.flags(), len);
        let padding = &[0; 3][..block::padding(len)];
        let (mark, ledger) = (self.summary, &mut self.ledger);
        let staged = stage
            .append(&head, &mark)
            .and_then(|()| {
                stage.read(source, len, &mark, |data| ledger.note_bytes(interface, direction, data))
            })
            .and_then(|()| stage.append(padding, &mark))
            .and_then(|()| stage.append(&tail, &mark));
        if let Err(broken) = staged {
            self.break_off(broken);
            return false;
        }
        self.summary.file_bytes += (head.len() + len + padding.len() + tail.len()) as u64;
        self.summary.packets += 1;
        self.summary.bytes += len as u64;
        self.index.note_packet(interface, direction, len);
        self.ledger.note_end(interface, direction);
        self.keep_index()
    }

    /// Writes whole blocks, or nothing.
    fn append_slices(&mut self, slices: &mut [IoSlice<'_>]) -> bool {
        if self.failure.is_some() {
            return false;
        }
        let len: usize = slices.iter().map(|s| s.len()).sum();
        self.begin_stage();
        if let Some(stage) = &mut self.stage {
            let mark = self.summary;
            if let Err(broken) = slices.iter().try_for_each(|slice| stage.append(slice, &mark)) {
                self.break_off(broken);
                return false;
            }
        } else if let Some(out) = &mut self.out {
            if let Err(e) = write_all_vectored(out.as_mut(), slices) {
                self.cut_off();
                self.fail(e);
                return false;
            }
        } else {
            return false;
        }
        self.summary.file_bytes += len as u64;
        true
    }

    fn begin_stage(&mut self) {
        if self.stage.is_none()
            && self.summary.file_bytes >= BEGIN
            && let Some(file) = &self.file
        {
            let settle = std::sync::Arc::clone(&self.settle);
            // Without a thread it goes on as it began.
            self.stage = Stage::new(file, self.summary, move || settle()).ok();
        }
    }

    /// The stage has failed: what the file holds of the recording is what was whole in front of that.
    fn break_off(&mut self, (error, mark): Broken) {
        self.stage = None;
        self.summary = mark;
        self.cut_off();
        self.fail(error);
    }

    /// Cuts off what was left half-written.
    fn cut_off(&self) {
        if let Some(file) = &self.file {
            // If even this fails, the reader meets a cut block at the end, which it reports as such.
            let _ = file.set_len(self.summary.file_bytes);
        }
    }

    fn fail(&mut self, error: io::Error) {
        if self.failure.is_none() {
            self.failure = Some(Failure { kind: error.kind(), text: error.to_string(), error: Some(error) });
        }
    }

    /// That time, but never before the time of the packet before: clocks are set back, files are not.
    fn time(&mut self, given: Timestamp) -> u64 {
        self.last_time = self.last_time.max(given.0);
        self.last_time
    }
}

impl Failure {
    fn copy(&self) -> io::Error {
        io::Error::new(self.kind, self.text.clone())
    }
}

pub(super) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[..end]
}

fn write_all_vectored(out: &mut (dyn Write + Send), mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    // Also drops leading empty slices, so that a zero below means that the sink is full.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match out.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut slices, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
