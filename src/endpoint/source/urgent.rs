//! The preempt channel from the source's side: a thread that sends nothing but pages that were asked for.
//!
//! ```text
//! Request --queue--> Urgent --take--> word [block] page, word page ..          preempt channel
//!                       |                          finish: EOS, where the dialect has it
//!                       '--> Service: what is taken and not yet written, so that END waits for it
//! ```
//! The channel has a CONTINUE state of its own. Source: `migration/ram.c`, `ram_save_host_page_urgent`.

use std::io::{self, Write as _};
use std::sync::atomic::Ordering;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};

use super::service::{Request, Run};
use super::shared::Shared;
use crate::capture::{ChannelTap, Direction};
use crate::endpoint::pace::Pace;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::is_zero;
use crate::transport::Connection;
use crate::wire::{Bulk, Name, Page, PageBody, PageWord, RamFlags, Wire as _};

/// Bytes that are gathered while requests wait. More would let the first of them wait.
const BATCH: usize = 64 << 10;

/// Pages that are found at once.
const PAGES: u64 = 16;

/// What went over the preempt channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreemptDeparture {
    /// Bytes that the system took.
    pub bytes: u64,
    /// Pages in them.
    pub pages: u64,
}

/// What the thread needs.
pub(super) struct Opening<'a> {
    pub(super) connection: Connection,
    pub(super) channel: ChannelId,
    pub(super) tap: Option<ChannelTap>,
    pub(super) pace: &'a Pace,
    /// Whether EOS ends the channel.
    pub(super) has_end: bool,
    pub(super) requests: Receiver<Request>,
}

/// The thread, as others see it.
pub(super) struct Urgent<'s> {
    thread: ScopedJoinHandle<'s, PreemptDeparture>,
    finish: Sender<()>,
}

impl<'s> Urgent<'s> {
    pub(super) fn start(
        scope: &'s Scope<'s, '_>,
        shared: &'s Shared<'s>,
        opening: Opening<'_>,
    ) -> Result<Self> {
        let (finish, finished) = bounded(1);
        let line = Line {
            shared,
            connection: opening.connection,
            channel: opening.channel,
            tap: opening.tap,
            pace: shared.pace(opening.pace),
            has_end: opening.has_end,
            block: None,
            buffer: Vec::with_capacity(2 * BATCH),
            content: Vec::new(),
            taken: 0,
            departure: PreemptDeparture::default(),
        };
        let thread = Builder::new().name("preempt".to_owned());
        let thread = thread.spawn_scoped(scope, move || line.run(opening.requests, finished));
        let thread = thread.map_err(|e| Error::io("sending", "a thread cannot be started", e))?;
        Ok(Self { thread, finish })
    }

    /// Everything is sent; the channel ends as its dialect has it.
    pub(super) fn finish(&self) {
        // A thread that has failed has said so elsewhere.
        let _ = self.finish.try_send(());
    }

    /// Waits for the thread, which ends when nobody can ask for pages any more.
    pub(super) fn join(self) -> PreemptDeparture {
        let Self { thread, finish } = self;
        drop(finish);
        thread.join().unwrap_or_default()
    }
}

struct Line<'a> {
    shared: &'a Shared<'a>,
    connection: Connection,
    channel: ChannelId,
    tap: Option<ChannelTap>,
    pace: Pace,
    has_end: bool,
    /// The block that the last page belonged to.
    block: Option<usize>,
    buffer: Vec<u8>,
    content: Vec<u8>,
    /// Pages in the buffer.
    taken: u64,
    departure: PreemptDeparture,
}

impl Line<'_> {
    fn run(mut self, requests: Receiver<Request>, finished: Receiver<()>) -> PreemptDeparture {
        if let Err(error) = self.serve(&requests, finished) {
            self.shared.service.fail(error.on(self.channel));
            self.shared.lines.cut();
        }
        self.departure
    }

    fn serve(&mut self, requests: &Receiver<Request>, mut finished: Receiver<()>) -> Result<()> {
        let mut is_finished = false;
        loop {
            select! {
                recv(requests) -> request => match request {
                    Ok(request) => self.answer(request, requests)?,
                    // The last word may come before the thread that has waited for it says so.
                    Err(_) => {
                        if !is_finished && finished.recv().is_ok() {
                            self.end();
                        }
                        return Ok(());
                    }
                },
                recv(finished) -> asked => {
                    (finished, is_finished) = (never(), true);
                    if asked.is_ok() {
                        self.end();
                    }
                }
            }
        }
    }

    /// Every page has been written before. A destination that knows that as well may have closed the channel by now.
    fn end(&mut self) {
        if self.has_end {
            PageWord::new(0, RamFlags::EOS).emit(&mut self.buffer);
            let _ = self.flush();
            self.buffer.clear();
        }
    }

    /// Sends the pages of a request, and of those that wait behind it.
    fn answer(&mut self, first: Request, requests: &Receiver<Request>) -> Result<()> {
        let service = &self.shared.service;
        let mut next = Some(first);
        while let Some(mut request) = next {
            service.note_request();
            while !request.pages.is_empty() {
                if let Some(run) = service.take_requested(&mut request, PAGES, true) {
                    self.add(&run)?;
                }
                if self.buffer.len() >= BATCH {
                    self.flush()?;
                }
            }
            next = requests.try_recv().ok();
        }
        self.flush()
    }

    fn add(&mut self, run: &Run) -> Result<()> {
        let (size, index) = (self.shared.page_size, run.block);
        let block = &self.shared.blocks[index];
        let mut pages = run.pages.clone();
        self.taken += run.count();
        while !pages.is_empty() {
            // A huge page is found in pieces.
            let some = pages.start..pages.end.min(pages.start + PAGES);
            pages.start = some.end;
            let offsets: Vec<u64> = some.map(|page| page * size).collect();
            self.content.resize(offsets.len() * size as usize, 0);
            let content = &self.shared.contents[index];
            content.find(&offsets, block.used_length, size as usize, &mut self.content)?;
            for (offset, bytes) in offsets.iter().zip(self.content.chunks_exact(size as usize)) {
                let (name, continues) = match self.block.replace(index) == Some(index) {
                    true => (None, RamFlags::CONTINUE),
                    false => (Some(Name(&block.name)), RamFlags::default()),
                };
                let (flag, body) = match is_zero(bytes) {
                    true => (RamFlags::ZERO, PageBody::Zero(0)),
                    false => (RamFlags::PAGE, PageBody::Raw(Bulk::Bytes(bytes))),
                };
                let word = PageWord::new(*offset, flag | continues);
                Page { word, block: name, body }.emit(&mut self.buffer);
                if self.shared.keeps {
                    self.shared.memory().set_page(index, *offset, bytes, size)?;
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let mut done = 0;
        self.pace.note_record();
        while done < self.buffer.len() {
            let Some(patience) = self.pace.patience() else { return Err(self.late()) };
            self.connection.set_write_timeout(Some(patience))?;
            match self.connection.write(&self.buffer[done..]) {
                Ok(0) => return Err(self.failed(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    // A recording that fails says so when it is finished; the migration goes on.
                    if let Some(tap) = &self.tap {
                        let _ = tap.record(Direction::ToDestination, &self.buffer[done..done + count]);
                    }
                    done += count;
                    self.departure.bytes += count as u64;
                    self.shared.activity.fetch_add(1, Ordering::Relaxed);
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        self.buffer.clear();
        let taken = std::mem::take(&mut self.taken);
        self.departure.pages += taken;
        self.shared.service.note_written(taken);
        Ok(())
    }

    fn late(&self) -> Error {
        let message = match self.pace.is_overdue() {
            true => "the migration took longer than it may",
            false => "the destination took nothing in time",
        };
        Error::new(ErrorKind::Timeout, self.departure.bytes, "sending", message)
    }

    fn failed(&self, e: io::Error) -> Error {
        self.connection.error("sending", e).at(self.departure.bytes)
    }
}
