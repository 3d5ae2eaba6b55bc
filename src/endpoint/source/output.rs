//! Events to the destination: strict emitter, one buffer, limits, recording.
//!
//! ```text
//! event --> Emitter::strict --> buffer --> connection (--> tap)
//! page  --made in place-----------^
//! ```
//! A page is made where it leaves from: at these speeds each copy of it costs a tenth of the throughput.

use std::io::{self, IoSliceMut, Write as _};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::replies::{self, Replies};
use super::shared::Shared;
use super::switch::IN_PACKAGE;
use crate::capture::{ChannelTap, Direction};
use crate::channel::ChannelEvent as _;
use crate::endpoint::pace::Pace;
use crate::endpoint::{Cuts, Progress};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::{Coded, XbzrleCache, is_zero};
use crate::limits::PIECE;
use crate::postcopy::PACKAGE_LOADED;
use crate::stream::{Block, Emitter, Event};
use crate::transport::Connection;
use crate::wire::{Bulk, Command, Name, Page, PageBody, PageWord, RamFlags, Sink};

/// Bytes that go to the system at once. More would fall out of the second-level cache between filling and sending, less
/// would cost a system call too often.
const BUFFER: usize = 256 << 10;

/// Longest event: a piece of a payload, or a command, with its head.
const ROOM: usize = PIECE + (4 << 10);

/// Longest time that a cut waits for the destination to load the package.
const BEFORE_CUT: Duration = Duration::from_secs(5);

/// Time in which a destination gets from the last PING of the package to POSTCOPY_RUN, which comes next.
const AFTER_LOADING: Duration = Duration::from_millis(50);

/// How often the watcher is told, at most.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The main channel, from the source's side.
pub(super) struct Output<'a> {
    connection: Connection,
    tap: Option<ChannelTap>,
    pace: &'a Pace,
    pub(super) replies: Option<Replies>,
    emitter: Emitter,
    buffer: Box<[u8]>,
    used: usize,
    channel: ChannelId,
    /// Bytes that the system has taken on this connection, and on those before it.
    pub(super) sent: u64,
    earlier: u64,
    /// Where the connections are to break on purpose.
    cuts: Cuts,
    /// Whether they have, on this connection.
    pub(super) was_cut: bool,
    /// Where POSTCOPY_RUN ends, once it is written.
    run: Option<u64>,
    shared: &'a Shared<'a>,
    blocks: &'a [Block],
    page_size: usize,
    /// The block that the last page belonged to; CONTINUE refers to it, across sections too.
    block: Option<usize>,
    pub(super) page_count: u64,
    pub(super) zero_pages: u64,
    pub(super) xbzrle_pages: u64,
    /// What was sent of the pages that are made by a rule, to send deltas against.
    pub(super) cache: Option<XbzrleCache>,
    delta: Vec<u8>,
    pub(super) round: u64,
    /// Rounds that follow this one.
    pub(super) rounds_left: u64,
    watch: &'a mut dyn FnMut(&Progress),
    watched: Instant,
}

impl<'a> Output<'a> {
    pub(super) fn new(
        connection: Connection,
        tap: Option<ChannelTap>,
        pace: &'a Pace,
        shared: &'a Shared<'a>,
        cuts: Cuts,
        watch: &'a mut dyn FnMut(&Progress),
    ) -> Self {
        Self {
            connection,
            tap,
            pace,
            replies: None,
            emitter: Emitter::strict(),
            buffer: vec![0; BUFFER + ROOM].into(),
            used: 0,
            channel: ChannelId::Main,
            sent: 0,
            earlier: 0,
            cuts,
            was_cut: false,
            run: None,
            shared,
            blocks: shared.blocks,
            page_size: shared.page_size as usize,
            block: None,
            page_count: 0,
            zero_pages: 0,
            xbzrle_pages: 0,
            cache: None,
            delta: Vec::new(),
            round: 0,
            rounds_left: 0,
            watch,
            watched: Instant::now(),
        }
    }

    /// Writes an event.
    pub(super) fn emit(&mut self, event: &Event<'_>) -> Result<()> {
        self.make_room(event.wire_len())?;
        let at = self.emitter.offset();
        let mut sink = Tail { free: &mut self.buffer[self.used..], used: 0 };
        self.emitter.emit(event, &mut sink)?;
        self.used += sink.used;
        if let Event::Command(command) = event {
            self.note_command(command);
        }
        self.note(event, at)
    }

    /// Writes a page of block `index` that came out of another stream, with a word of its own.
    pub(super) fn forward_page(&mut self, index: usize, page: &Page<'_>) -> Result<()> {
        let size = self.page_size as u64;
        let (block, continues) = self.name(index);
        let flags = RamFlags(page.word.flags(size).action().0 | continues.0);
        let word = PageWord::new(page.word.offset(size), flags);
        self.page_count += 1;
        self.zero_pages += u64::from(matches!(page.body, PageBody::Zero(_)));
        self.xbzrle_pages += u64::from(matches!(page.body, PageBody::Xbzrle { .. }));
        self.emit(&Event::Page(Page { word, block, body: page.body }))
    }

    /// Writes a page of zeros.
    pub(super) fn zero_page(&mut self, index: usize, offset: u64) -> Result<()> {
        let (block, continues) = self.name(index);
        let word = PageWord::new(offset, RamFlags::ZERO | continues);
        self.page_count += 1;
        self.zero_pages += 1;
        self.emit(&Event::Page(Page { word, block, body: PageBody::Zero(0) }))
    }

    /// Writes the page that `fill` makes.
    pub(super) fn page(&mut self, index: usize, offset: u64, fill: impl FnOnce(&mut [u8])) -> Result<()> {
        self.make_room((self.head_len(index) + self.page_size) as u64)?;
        let place = self.used + self.head_len(index);
        fill(&mut self.buffer[place..][..self.page_size]);
        match self.code(index, offset, place) {
            Coded::Page => self.settle(index, offset, place),
            Coded::Unchanged => Ok(()),
            Coded::Delta => self.delta_page(index, offset),
        }
    }

    /// What to send of the page that stands at `place`: always itself, if there is no cache.
    fn code(&mut self, index: usize, offset: u64, place: usize) -> Coded {
        let Some(cache) = &mut self.cache else { return Coded::Page };
        let before: u64 = self.blocks[..index].iter().map(|block| block.used_length).sum();
        let key = (before + offset) / self.page_size as u64;
        let page = &self.buffer[place..][..self.page_size];
        if is_zero(page) {
            cache.set_zero(key);
            return Coded::Page;
        }
        cache.encode(key, page, &mut self.delta)
    }

    /// Writes the delta that was just made.
    fn delta_page(&mut self, index: usize, offset: u64) -> Result<()> {
        let (block, continues) = self.name(index);
        let word = PageWord::new(offset, RamFlags::XBZRLE | continues);
        let delta = std::mem::take(&mut self.delta);
        self.page_count += 1;
        self.xbzrle_pages += 1;
        let emitted = self.emit(&Event::Page(Page {
            word,
            block,
            body: PageBody::Xbzrle { encoding: 1, delta: &delta },
        }));
        self.delta = delta;
        emitted
    }

    /// Writes at most `wanted` pages from `offset` on that `read` gets all at once. Returns how many.
    ///
    /// They are read to where they will be if none of them is zero; those behind a zero page are moved up.
    pub(super) fn pages(
        &mut self,
        index: usize,
        offset: u64,
        wanted: u64,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<()>,
    ) -> Result<u64> {
        let stride = self.page_size + PageWord::LEN;
        if self.used + ROOM > BUFFER {
            self.flush()?;
        }
        let first = self.used + self.head_len(index);
        let count = ((BUFFER - first) / stride).min(usize::try_from(wanted).unwrap_or(usize::MAX));
        let places = self.buffer[first..].chunks_mut(stride).take(count);
        let mut pages: Vec<_> = places.map(|place| IoSliceMut::new(&mut place[..self.page_size])).collect();
        read(&mut pages)?;
        for i in 0..count {
            self.settle(index, offset + (i * self.page_size) as u64, first + i * stride)?;
        }
        Ok(count as u64)
    }

    /// Writes the page that stands at `place` of the buffer, at or behind where it belongs.
    fn settle(&mut self, index: usize, offset: u64, place: usize) -> Result<()> {
        let page = place..place + self.page_size;
        if is_zero(&self.buffer[page.clone()]) {
            return self.zero_page(index, offset);
        }
        let head = self.head_len(index);
        if self.used + head != place {
            self.buffer.copy_within(page, self.used + head);
        }
        let (block, continues) = self.name(index);
        let (head, rest) = self.buffer[self.used..].split_at_mut(head);
        let page = &rest[..self.page_size];
        let word = PageWord::new(offset, RamFlags::PAGE | continues);
        let event = Event::Page(Page { word, block, body: PageBody::Raw(Bulk::Bytes(page)) });
        let at = self.emitter.offset();
        self.emitter.emit(&event, &mut InPlace { head, used: 0, page })?;
        self.page_count += 1;
        if let Some(grammar) = self.emitter.grammar().filter(|_| self.shared.keeps) {
            self.shared.memory().handle(&event, grammar, at)?;
        }
        self.used += event.wire_len() as usize;
        Ok(())
    }

    /// Bytes in front of the next page, if it belongs to block `index`.
    fn head_len(&self, index: usize) -> usize {
        match self.block == Some(index) {
            true => PageWord::LEN,
            false => PageWord::LEN + 1 + self.blocks[index].name.len(),
        }
    }

    /// Hands everything to the system.
    pub(super) fn flush(&mut self) -> Result<()> {
        let mut done = 0;
        // The time that it took to fill the buffer was not the destination's.
        self.pace.note_record();
        while done < self.used {
            if let Some(replies) = &mut self.replies {
                replies.poll()?;
            }
            let Some(patience) = self.pace.patience() else { return Err(self.late()) };
            self.connection.set_write_timeout(Some(patience))?;
            let end = done + self.cuts.admit(self.used - done);
            if end == done {
                return Err(self.cut());
            }
            match self.connection.write(&self.buffer[done..end]) {
                Ok(0) => return Err(self.failed(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    // A recording that fails says so when it is finished; the migration goes on.
                    if let Some(tap) = &self.tap {
                        let _ = tap.record(Direction::ToDestination, &self.buffer[done..done + count]);
                    }
                    done += count;
                    self.sent += count as u64;
                    self.cuts.note_passed(count as u64);
                    self.pace.note_record();
                }
                // Over and over until patience has run out: a multifd channel may have got on.
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
        self.used = 0;
        self.tell();
        if self.cuts.is_due() { Err(self.cut()) } else { Ok(()) }
    }

    /// Bytes that wait to be handed to the system.
    pub(super) fn waiting(&self) -> usize {
        self.used
    }

    /// All bytes of the main channel that the system has taken.
    pub(super) fn total(&self) -> u64 {
        self.earlier + self.sent
    }

    /// Whether the guest runs at the destination, or will as soon as it has read what was sent.
    pub(super) fn is_running(&self) -> bool {
        self.run.is_some_and(|run| self.channel != ChannelId::Main || self.sent >= run)
    }

    /// Goes on over a new connection. What was not sent yet is forgotten.
    pub(super) fn reconnect(
        &mut self,
        (connection, channel): (Connection, ChannelId),
        tap: Option<ChannelTap>,
    ) -> Result<()> {
        let Some(emitter) = self.emitter.resumed() else {
            let message = "the guest does not run at the destination yet, so there is nothing to go on with";
            return Err(Error::nowhere(ErrorKind::Misuse, "sending", message));
        };
        (self.connection, self.channel, self.tap, self.emitter) = (connection, channel, tap, emitter);
        self.earlier += std::mem::take(&mut self.sent);
        self.used = 0;
        self.block = None;
        self.was_cut = false;
        self.cuts.note_connection();
        self.pace.note_record();
        Ok(())
    }

    /// Waits until the destination says that it is done, and returns its status.
    pub(super) fn await_shut(&mut self) -> Result<u32> {
        let message = "everything was sent, but the destination does not say that it is done (SHUT)";
        self.await_reply(|replies| replies.status().is_some(), message)?;
        Ok(self.replies.as_ref().and_then(Replies::status).unwrap_or(0))
    }

    /// Waits until the destination has said something.
    ///
    /// # Errors
    /// With that message, if it does not say it in time.
    pub(super) fn await_reply(&mut self, is_there: fn(&Replies) -> bool, message: &str) -> Result<()> {
        let Some(replies) = &mut self.replies else { return Ok(()) };
        self.pace.note_record();
        let patience = self.pace.patience().unwrap_or_default();
        match replies.wait(patience, is_there, &self.shared.service)? {
            true => Ok(()),
            false if self.pace.is_overdue() => Err(self.late()),
            false => {
                let doing = "waiting for the destination";
                Err(Error::new(ErrorKind::Timeout, self.sent, doing, message).on(self.channel))
            }
        }
    }

    /// Ends writing; a child process has to end as well.
    pub(super) fn close(&mut self) -> Result<()> {
        self.connection.close(self.pace.patience().unwrap_or_default())
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.pace.elapsed()
    }

    fn make_room(&mut self, wanted: u64) -> Result<()> {
        if self.used >= BUFFER {
            self.flush()?;
        }
        match wanted <= ROOM as u64 {
            true => Ok(()),
            false => {
                let message = format!("a record of {wanted} bytes, at most {ROOM} can be sent");
                Err(Error::new(ErrorKind::TooLarge, self.emitter.offset(), "sending", message))
            }
        }
    }

    /// How block `index` is named in the next page.
    fn name(&mut self, index: usize) -> (Option<Name<'a>>, RamFlags) {
        if self.block.replace(index) == Some(index) {
            (None, RamFlags::CONTINUE)
        } else {
            (Some(Name(&self.blocks[index].name)), RamFlags::default())
        }
    }

    fn note_command(&mut self, command: &Command<'_>) {
        let end = self.emitter.offset();
        self.cuts.note_command(command, end);
        match command {
            Command::PostcopyRun => self.run = Some(end),
            Command::Ping(value) => {
                if let Some(replies) = &self.replies {
                    replies.note_ping(*value);
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, event: &Event<'_>, at: u64) -> Result<()> {
        let is_for_memory = match event {
            Event::Page(_) => self.shared.keeps,
            Event::RamBlock(_) => true,
            _ => false,
        };
        match self.emitter.grammar() {
            Some(grammar) if is_for_memory => self.shared.memory().handle(event, grammar, at),
            _ => Ok(()),
        }
    }

    /// Tells the watcher how far it has come, from time to time.
    pub(super) fn tell(&mut self) {
        if self.watched.elapsed() >= WATCH_INTERVAL {
            self.watched = Instant::now();
            let bytes = self.total() + self.shared.bytes.load(Ordering::Relaxed);
            let pages = self.page_count + self.shared.pages.load(Ordering::Relaxed);
            let iterations = self.round;
            (self.watch)(&Progress { bytes, pages, iterations, elapsed: self.pace.elapsed() });
        }
    }

    /// The destination takes nothing any more, or everything takes too long.
    fn late(&self) -> Error {
        let message = match self.pace.is_overdue() {
            true => "the migration took longer than it may",
            false => "the destination took nothing in time",
        };
        Error::new(ErrorKind::Timeout, self.sent, "sending", message).on(self.channel)
    }

    /// A destination whose guest does not run yet cannot pause, and would fail. It has loaded the package by the time when it answers
    /// from the end of it.
    fn let_it_run(&mut self) {
        let Some(replies) = &mut self.replies else { return };
        let patience = self.pace.patience().unwrap_or_default().min(BEFORE_CUT);
        let is_loaded =
            |replies: &Replies| !replies.awaits_pong(IN_PACKAGE) && !replies.awaits_pong(PACKAGE_LOADED);
        // Nothing is sent any more: what is asked for now is asked for again on the next connection.
        replies.requests = crossbeam_channel::never();
        // Whatever comes of it, the connections break.
        if replies.wait(patience, is_loaded, &self.shared.service).is_ok_and(|is_loaded| is_loaded) {
            std::thread::sleep(AFTER_LOADING);
        }
    }

    /// All connections break here, because it was asked for.
    fn cut(&mut self) -> Error {
        if self.is_running() && self.channel == ChannelId::Main {
            self.let_it_run();
        }
        let place = self.cuts.take().map_or_else(String::new, |cut| format!(" at {cut}"));
        self.was_cut = true;
        self.shared.lines.cut();
        let message = format!("the connections were cut on purpose{place}");
        Error::io("sending", message, io::ErrorKind::ConnectionAborted.into()).on(self.channel).at(self.sent)
    }

    /// A write failed: what the destination has said is worth more than that it is gone.
    fn failed(&mut self, e: io::Error) -> Error {
        let said = match &mut self.replies {
            Some(replies) if replies::is_gone(&e) => replies.reason(),
            _ => None,
        };
        match said {
            Some(error) => error,
            None => self.connection.error("sending", e).on(self.channel).at(self.sent),
        }
    }
}

/// The free part of the buffer, as a sink.
struct Tail<'a> {
    free: &'a mut [u8],
    used: usize,
}

impl Sink for Tail<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.free[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }
}

/// A sink for a page that stands at its place already: only what is in front of it is written.
struct InPlace<'a> {
    head: &'a mut [u8],
    used: usize,
    page: &'a [u8],
}

impl Sink for InPlace<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.head[self.used..][..bytes.len()].copy_from_slice(bytes);
        self.used += bytes.len();
    }

    fn put_bulk(&mut self, bytes: &[u8]) {
        assert!(
            std::ptr::eq(bytes, self.page) && self.used == self.head.len(),
            "the page is not where it belongs"
        );
    }
}
