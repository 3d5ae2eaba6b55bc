//! Stand-in destination: a stock source migrates into it and completes.
//!
//! ```text
//! source: header config | OPEN_RETURN_PATH PING 1 | START PART* END FULL* EOF DESCRIPTION
//! here:                                    PONG 1                                        SHUT 0
//! ```
//! Nothing is kept unless it is asked for. The return path is answered when the source opens it: without SHUT a source waits
//! for ever. Page requests are never made; a postcopy source then sends every page by itself.

mod answers;
mod patient;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::pace::{Limits, Pace};
use crate::capture::ChannelTap;
use crate::channel::{Feed, Located};
use crate::dialect::{Dialect, Difference};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::Memory;
use crate::stream::{Event, Grammar, Mode, Parser, Phase};
use crate::transport::Connection;
use crate::wire::{Command, Message, PageBody};
use answers::Answers;
use patient::Patient;

/// Whether SWITCHOVER_ACK is sent. Capability `switchover-ack` is not visible on the wire: a source that has it waits for
/// the acknowledgement, one that has not may fail over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// Not at all.
    #[default]
    Never,
    /// As a stock destination of the dialect does that has the capability on: once from 8.1 on, and not unasked where the
    /// source counts (11.1, unless the machine type is older).
    Auto,
    /// So many times.
    Times(u32),
}

/// What a stand-in destination does with a migration.
pub struct Destination {
    dialect: Dialect,
    mode: Mode,
    limits: Limits,
    reply: bool,
    acknowledge: Acknowledge,
    memory: Memory,
    tap: Option<ChannelTap>,
}

/// How far a migration has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Bytes of the main channel.
    pub bytes: u64,
    /// Pages of all kinds.
    pub pages: u64,
    /// Passes over the guest's memory that have begun.
    pub iterations: u64,
    /// Time since the connection was taken over.
    pub elapsed: Duration,
}

/// What has arrived: everything up to the end or up to the fault.
#[derive(Debug)]
pub struct Arrival {
    /// Machine name of the configuration record.
    pub machine: Option<String>,
    /// Bytes of the main channel, in whole records.
    pub bytes: u64,
    /// Sections.
    pub sections: u64,
    /// Pages of all kinds.
    pub pages: u64,
    /// Pages that came as one byte.
    pub zero_pages: u64,
    /// Pages that came as deltas.
    pub xbzrle_pages: u64,
    /// Pages that came compressed.
    pub compressed_pages: u64,
    /// Passes over the guest's memory, by the order of the pages.
    pub iterations: u64,
    /// Whether the source opened the return path.
    pub return_path: bool,
    /// Whether the migration ended as postcopy.
    pub postcopy: bool,
    /// Time from taking over the connection to the last answer.
    pub elapsed: Duration,
    /// The guest's memory as far as it was kept.
    pub memory: Memory,
    /// What a strict reading would have refused.
    pub complaints: Vec<Error>,
    /// Why the migration failed; `None` if it completed.
    pub error: Option<Error>,
}

impl Default for Destination {
    fn default() -> Self {
        Self::new()
    }
}

impl Destination {
    /// A destination that takes any release, answers, and keeps nothing.
    pub fn new() -> Self {
        Self {
            dialect: Dialect::ANY,
            mode: Mode::Strict,
            limits: Limits::default(),
            reply: true,
            acknowledge: Acknowledge::Never,
            memory: Memory::new(),
            tap: None,
        }
    }

    /// The same, reading as that dialect does.
    #[must_use]
    pub fn with_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// The same, with that grammar.
    #[must_use]
    pub fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// The same, with that much patience.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same, mute: nothing is said on the return path.
    #[must_use]
    pub fn without_replies(mut self) -> Self {
        self.reply = false;
        self
    }

    /// The same, acknowledging the switchover.
    #[must_use]
    pub fn with_acknowledge(mut self, acknowledge: Acknowledge) -> Self {
        self.acknowledge = acknowledge;
        self
    }

    /// The same, keeping the guest's memory as `memory` does.
    #[must_use]
    pub fn with_memory(mut self, memory: Memory) -> Self {
        self.memory = memory;
        self
    }

    /// The same, recording both directions of the main channel.
    #[must_use]
    pub fn with_tap(mut self, tap: ChannelTap) -> Self {
        self.tap = Some(tap);
        self
    }

    /// Receives one migration over `connection`. `watch` is told how far it has come, some times a second.
    pub fn receive(self, connection: Connection, mut watch: impl FnMut(&Progress)) -> Arrival {
        let pace = Pace::new(self.limits);
        let mut parser = Parser::with(self.mode, self.dialect);
        let mut reception = Reception {
            answers: Answers {
                connection: connection.clone(),
                tap: self.tap.clone(),
                enabled: self.reply && connection.is_bidirectional(),
                is_open: false,
                acknowledge: self.acknowledgements(),
            },
            arrival: Arrival::new(self.memory),
            place: (0, 0),
            pace: &pace,
            watch: &mut watch,
            watched: Instant::now(),
        };
        let input = Patient { connection, tap: self.tap, pace: &pace, lingering: false };
        let outcome = reception.run(&mut Feed::new(input), &mut parser);
        let mut arrival = reception.finish(outcome);
        arrival.postcopy = parser.grammar().is_postcopy();
        arrival.complaints = parser.grammar().complaints().to_vec();
        arrival.elapsed = pace.elapsed();
        arrival
    }

    fn acknowledgements(&self) -> u32 {
        match self.acknowledge {
            Acknowledge::Never => 0,
            Acknowledge::Times(n) => n,
            Acknowledge::Auto if self.dialect == Dialect::ANY => 1,
            Acknowledge::Auto if self.dialect.has(Difference::SwitchoverAckCounted) => 0,
            Acknowledge::Auto => u32::from(self.dialect.has(Difference::SwitchoverAck)),
        }
    }
}

impl Arrival {
    fn new(memory: Memory) -> Self {
        Self {
            machine: None,
            bytes: 0,
            sections: 0,
            pages: 0,
            zero_pages: 0,
            xbzrle_pages: 0,
            compressed_pages: 0,
            iterations: 0,
            return_path: false,
            postcopy: false,
            elapsed: Duration::ZERO,
            memory,
            complaints: Vec::new(),
            error: None,
        }
    }
}

/// A migration that is being received.
struct Reception<'a> {
    answers: Answers,
    arrival: Arrival,
    /// Block and offset of the last page: a step back begins a new pass.
    place: (usize, u64),
    pace: &'a Pace,
    watch: &'a mut dyn FnMut(&Progress),
    watched: Instant,
}

/// How often the watcher is told, at most.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Pages between two looks at the clock.
const WATCH_PAGES: u64 = 4096;

impl Reception<'_> {
    fn run(&mut self, feed: &mut Feed<Patient<'_>>, parser: &mut Parser) -> Result<()> {
        // Reading is left twice: at EOF, when little more is to come, and at the end.
        loop {
            feed.run(parser, |located, parser| self.take(located, parser.grammar()))?;
            match parser.grammar().phase() {
                // Nothing is read behind EOF in postcopy.
                Phase::AfterEof if !parser.grammar().is_postcopy() && !feed.input().lingering => {
                    feed.input_mut().lingering = true;
                }
                _ => return Ok(()),
            }
        }
    }

    fn take(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<ControlFlow<()>> {
        let arrival = &mut self.arrival;
        arrival.bytes = located.range.end;
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
                arrival.sections += 1;
                // Without footers, the end of the last device is an EOF that nothing may follow.
                self.pace.set_hurry(grammar.phase() == Phase::Payload && grammar.footers() == Some(false));
            }
            Event::Command(command) => self.answer(command)?,
            _ => {}
        }
        self.arrival.memory.handle(&located.event, grammar, located.range.start)?;
        match grammar.phase() {
            Phase::AfterEof | Phase::Trailing if grammar.package_end().is_none() => {
                Ok(ControlFlow::Break(()))
            }
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    fn answer(&mut self, command: &Command<'_>) -> Result<()> {
        match command {
            Command::OpenReturnPath => {
                self.arrival.return_path = true;
                self.answers.open()
            }
            Command::Ping(value) => self.answers.say(&Message::Pong(*value)),
            _ => Ok(()),
        }
    }

    fn tell(&mut self) {
        if self.watched.elapsed() >= WATCH_INTERVAL {
            self.watched = Instant::now();
            let Arrival { bytes, pages, iterations, .. } = self.arrival;
            (self.watch)(&Progress { bytes, pages, iterations, elapsed: self.pace.elapsed() });
        }
    }

    /// Says the last word to the source, and closes the books.
    fn finish(mut self, outcome: Result<()>) -> Arrival {
        let outcome = outcome.map_err(|e| match (e.kind(), self.pace.is_overdue()) {
            (ErrorKind::Timeout, true) => {
                let message = "the migration took longer than it may";
                Error::new(ErrorKind::Timeout, self.arrival.bytes, "receiving", message)
            }
            _ => e,
        });
        let outcome = outcome.and(self.arrival.memory.flush());
        // A source that waits for SHUT learns of the failure by it; that nobody reads it any more changes nothing.
        let told = self.answers.say(&Message::Shut(u32::from(outcome.is_err())));
        self.arrival.error = outcome.and(told).err();
        let Arrival { bytes, pages, iterations, .. } = self.arrival;
        (self.watch)(&Progress { bytes, pages, iterations, elapsed: self.pace.elapsed() });
        self.arrival
    }
}
