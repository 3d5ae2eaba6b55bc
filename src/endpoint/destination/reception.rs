//! The main channel of a migration that is being received, event by event.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::answers::Answers;
use super::channels::{Channels, Closed};
use super::devices::Devices;
use super::patient::Patient;
use super::{Arrival, Progress};
use crate::channel::{Feed, Located};
use crate::endpoint::fault::Cuts;
use crate::endpoint::pace::Pace;
use crate::error::{Error, ErrorKind, Result};
use crate::multifd::SyncMode;
use crate::stream::{Event, Grammar, Parser, Phase, Postcopy};
use crate::wire::{Command, Message, PageBody, PageWord, RamFlags, SectionKind};

/// A migration that is being received.
pub(super) struct Reception<'a, 'b> {
    pub(super) answers: Answers,
    pub(super) arrival: Arrival,
    /// Block and offset of the last page: a step back begins a new pass.
    pub(super) place: (usize, u64),
    pub(super) channels: &'a Channels,
    pub(super) devices: Devices,
    pub(super) pace: &'b Pace,
    pub(super) watch: &'a mut dyn FnMut(&Progress),
    pub(super) watched: Instant,
    pub(super) cuts: Cuts,
    /// Bytes of the connections before this one.
    pub(super) before: u64,
}

/// How often the watcher is told, at most.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// How long nothing may come of the pages that are missing at the end of the main channel.
const URGENT: Duration = Duration::from_secs(2);

/// Pages between two looks at the clock.
const WATCH_PAGES: u64 = 4096;

impl Reception<'_, '_> {
    /// Reads the main channel to its end, and waits for what belongs to it on the others.
    pub(super) fn run(&mut self, feed: &mut Feed<Patient<'_>>, parser: &mut Parser) -> Result<()> {
        // Reading is left twice: at EOF, when little more is to come, and at the end.
        loop {
            feed.run(parser, |located, parser| self.take(located, parser.grammar()))?;
            match parser.grammar().phase() {
                // Nothing is read behind EOF in postcopy.
                Phase::AfterEof if !parser.grammar().is_postcopy() && !feed.input().lingering => {
                    feed.input_mut().lingering = true;
                }
                _ => break,
            }
        }
        self.devices.complete(self.channels, self.pace)?;
        self.await_urgent(parser.grammar())
    }

    /// What the preempt channel brings may come behind the end of the main one, and so may the channel itself: a source that nobody asks
    /// for anything may open it, fill it and be done before anyone has looked at it.
    fn await_urgent(&self, grammar: &Grammar) -> Result<()> {
        if !grammar.is_postcopy() {
            return Ok(());
        }
        let (mut fewest, mut begin) = (u64::MAX, Instant::now());
        loop {
            let missing = self.channels.missing_pages();
            if missing < fewest {
                (fewest, begin) = (missing, Instant::now());
            }
            if missing == 0 || begin.elapsed() >= URGENT || self.channels.is_over() {
                return self.channels.check_all_pages();
            }
            std::thread::sleep(URGENT / 100);
        }
    }

    fn take(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<ControlFlow<()>> {
        self.cut(located)?;
        let arrival = &mut self.arrival;
        arrival.bytes = self.before + located.range.end;
        self.pace.note_record();
        match &located.event {
            Event::Page(page) => {
                arrival.pages += 1;
                match page.body {
                    PageBody::Zero(_) => arrival.zero_pages += 1,
                    PageBody::Xbzrle { .. } => arrival.xbzrle_pages += 1,
                    PageBody::Compressed(_) => arrival.compressed_pages += 1,
                    PageBody::Raw(_) => {}
                }
                let place = (grammar.current_block().unwrap_or(0), page.word.offset(grammar.page_size()));
                if place <= self.place || arrival.iterations == 0 {
                    arrival.iterations += 1;
                }
                self.place = place;
                if arrival.pages.is_multiple_of(WATCH_PAGES) {
                    self.tell();
                }
            }
            Event::Configuration(configuration) => {
                self.arrival.machine = Some(configuration.machine.text().into_owned());
            }
            Event::Section(_) => {
                if arrival.sections == 0 {
                    self.channels.set_page_size(grammar.page_size());
                }
                arrival.sections += 1;
                // Without footers, the end of the last device is an EOF that nothing may follow.
                self.pace.set_hurry(grammar.phase() == Phase::Payload && grammar.footers() == Some(false));
            }
            Event::Command(command) => {
                self.answer(command, grammar)?;
            }
            Event::RamBlock(_) if grammar.phase() == Phase::RamWord => self.channels.begin_paging(grammar),
            Event::RamWord(word) => self.synchronise(*word, grammar)?,
            _ => {}
        }
        self.devices.take(located, grammar, self.channels)?;
        let initial = std::mem::take(&mut self.devices.initial_data_sent);
        if self.answers.acknowledge_each {
            (0..initial).try_for_each(|_| self.answers.say(&Message::SwitchoverAck))?;
        }
        let is_for_memory = match located.event {
            Event::Page(_) => self.channels.keeps,
            Event::RamBlock(_) => true,
            _ => false,
        };
        if is_for_memory {
            self.channels.memory().handle(&located.event, grammar, located.range.start)?;
        }
        if let (Event::Page(page), true, Some(block)) =
            (&located.event, grammar.ram_fields().page_size, grammar.current_block())
        {
            self.channels.note_pages(block, [page.word.offset(grammar.page_size())])?;
        }
        match grammar.phase() {
            Phase::AfterEof | Phase::Trailing if grammar.package_end().is_none() => {
                Ok(ControlFlow::Break(()))
            }
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    /// Breaks the connection in front of a record that is not to come any more.
    fn cut(&mut self, located: &Located<'_, Event<'_>>) -> Result<()> {
        if self.cuts.is_empty() {
            return Ok(());
        }
        if self.cuts.is_due() {
            let e = std::io::Error::other("it was cut on purpose");
            return Err(Error::io("receiving", "the connection broke", e).at(located.range.start));
        }
        self.cuts.note_passed(located.range.end - located.range.start);
        if let Event::Command(command) = &located.event {
            self.cuts.note_command(command, located.range.end);
        }
        Ok(())
    }

    /// A word of RAM may be where the multifd channels have to have come as far.
    fn synchronise(&mut self, word: PageWord, grammar: &Grammar) -> Result<()> {
        if grammar.is_postcopy() {
            // No pages come over multifd any more. Sources up to 8.2 still write SYNC before every EOS, those from 10.1 on do not, and
            // nothing says which this one is: the channels are left where they stand.
            return Ok(());
        }
        let in_start = grammar.current_section().is_some_and(|(kind, ..)| kind == SectionKind::START);
        let mode = match (word.flags(grammar.page_size()).action(), self.channels.sync_mode()) {
            (RamFlags::MULTIFD_FLUSH, None | Some(SyncMode::PerRound)) => SyncMode::PerRound,
            // A source that writes the word has written it before the first EOS.
            (RamFlags::EOS, None) if in_start => SyncMode::PerSection,
            (RamFlags::EOS, Some(SyncMode::PerSection)) => SyncMode::PerSection,
            _ => return Ok(()),
        };
        self.channels.synchronise(mode, grammar.blocks(), self.pace)?;
        self.pace.note_record();
        Ok(())
    }

    fn answer(&mut self, command: &Command<'_>, grammar: &Grammar) -> Result<()> {
        match command {
            Command::OpenReturnPath => {
                self.arrival.return_path = true;
                self.answers.open()
            }
            // In postcopy the main channel tells whether the connection is broken; what has come over it is not lost.
            Command::Ping(value) => match self.answers.say(&Message::Pong(*value)) {
                Err(e) if e.kind() == ErrorKind::Io && grammar.is_postcopy() => Ok(()),
                said => said,
            },
            Command::PostcopyRamDiscard(discard) => {
                self.channels.discard(discard, grammar);
                Ok(())
            }
            Command::PostcopyListen => {
                self.channels.note_listening();
                Ok(())
            }
            Command::PostcopyRun => {
                self.channels.note_recoverable();
                self.ask_for_pages()
            }
            Command::RecvBitmap { block } => match grammar.block_index(*block) {
                Some(block) => self.channels.tell_received(block, &mut self.answers),
                None => Ok(()),
            },
            Command::PostcopyResume if grammar.postcopy() == Postcopy::Running => {
                self.answers.say(&Message::ResumeAck(1))?;
                self.ask_for_pages()
            }
            _ => Ok(()),
        }
    }

    fn ask_for_pages(&self) -> Result<()> {
        self.channels.paging().as_mut().map_or(Ok(()), |paging| paging.begin(&self.answers))
    }

    fn tell(&mut self) {
        if self.watched.elapsed() >= WATCH_INTERVAL {
            self.watched = Instant::now();
            (self.watch)(&progress(&self.arrival, self.channels, self.pace));
        }
    }

    /// An error of silence, if it is not silence that ended it.
    pub(super) fn overdue(&self, e: Error) -> Error {
        match (e.kind(), self.pace.is_overdue()) {
            (ErrorKind::Timeout, true) => {
                let message = "the migration took longer than it may";
                Error::new(ErrorKind::Timeout, self.arrival.bytes, "receiving", message)
            }
            _ => e,
        }
    }
}

/// A main channel that has ended, well or not.
pub(super) struct Received {
    pub(super) answers: Option<Answers>,
    pub(super) arrival: Arrival,
    pub(super) outcome: Result<()>,
    pub(super) pace: Pace,
}

impl Received {
    /// Says the last word to the source, and closes the books.
    pub(super) fn close(mut self, channels: Channels, watch: &mut dyn FnMut(&Progress)) -> Arrival {
        let bytes = channels.bytes.load(Ordering::Relaxed);
        let closed: Closed = channels.close();
        let mut memory = closed.memory;
        // What came before a failure is kept as well.
        let written = memory.flush();
        // A channel that has failed has ended the main channel too; its error is the reason.
        let outcome = closed.failure.map_or(Ok(()), Err).and(self.outcome).and(written);
        // A source that waits for SHUT learns of the failure by it; that nobody reads it any more changes nothing.
        let shut = Message::Shut(u32::from(outcome.is_err()));
        let told = self.answers.map_or(Ok(()), |mut answers| answers.say(&shut));
        let arrival = &mut self.arrival;
        arrival.error = outcome.and(told).err();
        for channel in closed.arrivals.values() {
            arrival.pages += channel.pages;
            arrival.zero_pages += channel.zero_pages;
        }
        arrival.complaints.extend(closed.complaints);
        arrival.channels = closed.arrivals;
        arrival.sync_mode = closed.sync_mode;
        arrival.synchronisations = closed.synchronisations;
        arrival.method = closed.method;
        arrival.devices = closed.devices;
        arrival.preempt = closed.preempt;
        arrival.pauses = closed.pauses;
        arrival.missing_pages = closed.missing_pages;
        arrival.requests = closed.requests;
        arrival.memory = memory;
        arrival.elapsed = self.pace.elapsed();
        let Arrival { pages, iterations, elapsed, .. } = *arrival;
        watch(&Progress { bytes: arrival.bytes + bytes, pages, iterations, elapsed });
        self.arrival
    }
}

fn progress(arrival: &Arrival, channels: &Channels, pace: &Pace) -> Progress {
    Progress {
        bytes: arrival.bytes + channels.bytes.load(Ordering::Relaxed),
        pages: arrival.pages + channels.pages.load(Ordering::Relaxed),
        iterations: arrival.iterations,
        elapsed: pace.elapsed(),
    }
}
