//! One migration, from the file header to the destination's last word.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread::Scope;

use super::content::{Content, Stretch};
use super::fleet::{Fleet, Stage};
use super::misconduct::Misconduct;
use super::multifd::ChannelDeparture;
use super::outlet::Outlet;
use super::replies::{self, Dialogue, Ear, Replies};
use super::service::share;
use super::serving::Serving;
use super::shared::{Failure, Shared};
use super::team::{Opening, Team};
use super::template::Bytes;
use super::{DOING, Departure, Source};
use crate::capture::ChannelTap;
use crate::channel::{ChannelParser as _, Feed};
use crate::dialect::{Dialect, Difference};
use crate::endpoint::pace::Pace;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::MAX_PAGE_REQUESTS;
use crate::multifd::SyncPlace;
use crate::postcopy::page_count;
use crate::stream::{Event, Grammar, Parser};
use crate::transport::Connection;
use crate::wire::{Command, RamFlags, SectionKind};

/// A migration that is being sent.
pub(super) struct Sending<'s, 'a> {
    pub(super) source: &'a Source,
    pub(super) scope: &'s Scope<'s, 'a>,
    pub(super) shared: &'s Shared<'s>,
    pub(super) pace: &'a Pace,
    /// The recording of the main channel.
    pub(super) tap: Option<ChannelTap>,
    pub(super) connection: Connection,
    pub(super) connect: &'a mut dyn FnMut(ChannelId) -> Result<Connection>,
    pub(super) out: Outlet<'s, 'a>,
    pub(super) dialogue: Dialogue,
    /// What is needed behind the switch to postcopy, if there is to be one.
    pub(super) serving: Option<Serving<'s>>,
    pub(super) return_path: bool,
    pub(super) parser: Parser,
    pub(super) filter: Filter,
}

impl Sending<'_, '_> {
    pub(super) fn run(&mut self) -> Result<()> {
        self.source.check()?;
        let mut template = self.source.template.feed()?;
        self.header(&mut template)?;
        self.open_channels()?;
        self.open_preempt_early()?;
        self.open_return_path()?;
        self.advise()?;
        self.setup(&mut template)?;
        self.rounds()?;
        if self.serving.is_some() {
            let switched = self.switch(&mut template);
            return self.converse(switched);
        }
        self.completion(&mut template)?;
        self.await_shut()
    }

    /// File header and configuration.
    fn header(&mut self, template: &mut Feed<Bytes>) -> Result<()> {
        self.copy_until(self.source.template.facts().setup, template)
    }

    /// The main channel was connected first, so that destinations that tell connections apart by their order take it for that.
    fn open_channels(&mut self) -> Result<()> {
        let Some(multifd) = self.source.multifd else { return Ok(()) };
        self.out.main.flush()?;
        let opening = Opening {
            multifd,
            dialect: self.source.dialect,
            dedicated: self.source.devices.as_ref().is_some_and(|devices| devices.dedicated),
            recorder: self.source.recorder.as_ref(),
            pace: self.pace,
            connect: &mut *self.connect,
        };
        let team = Team::new(self.shared, &self.source.misdeeds);
        self.out.team.insert(team).open(self.scope, opening)?;
        match self.source.misdeeds.has(Misconduct::PageBeforeSetup) {
            true => self.out.page_before_setup(),
            false => Ok(()),
        }
    }

    fn open_return_path(&mut self) -> Result<()> {
        if !self.return_path {
            return Ok(());
        }
        if !self.connection.is_bidirectional() {
            let message = format!("{} goes one way and has no return path", self.connection.label());
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        let out = &mut self.out.main;
        out.emit(&Event::Command(Command::OpenReturnPath))?;
        out.emit(&Event::Command(Command::Ping(replies::PING)))?;
        // Some destinations answer before they are asked.
        self.dialogue.lock().note_ping(replies::PING);
        self.listen(ChannelId::ReturnPath, self.tap.clone())?;
        // As a stock source does with every command: the destination can answer while we are busy with pages.
        self.out.main.flush()
    }

    /// Begins to listen to what is said on the connection of the main channel.
    pub(super) fn listen(&mut self, channel: ChannelId, tap: Option<ChannelTap>) -> Result<()> {
        let replies = Replies::listen(Ear {
            connection: self.connection.clone(),
            channel,
            tap,
            dialogue: self.dialogue.clone(),
            lines: Arc::clone(&self.shared.lines),
            page_size: self.shared.page_size,
            depth: if self.serving.is_some() { MAX_PAGE_REQUESTS } else { 1 },
        })?;
        self.out.main.replies = Some(replies);
        Ok(())
    }

    /// START sections, with the block list, and whatever else comes before the first pages.
    fn setup(&mut self, template: &mut Feed<Bytes>) -> Result<()> {
        let facts = self.source.template.facts();
        self.copy_until(facts.rounds, template)?;
        let Some(devices) = &self.source.devices else { return Ok(()) };
        let sections = (facts.last_section + 1, facts.footers);
        let fleet = Fleet::new(self.scope, self.shared, devices, self.source.dialect, sections);
        self.out.fleet.insert(fleet).start(&mut self.out.main)?;
        self.out.main.flush()?;
        self.out.launch(Stage::Live)
    }

    /// All pages in one PART, so many times.
    fn rounds(&mut self) -> Result<()> {
        let facts = self.source.template.facts();
        if facts.ram.is_none() {
            return Ok(());
        }
        for round in 1..=self.source.rounds {
            let main = &mut self.out.main;
            main.round = round;
            // Without deltas to send, all rounds send the same.
            main.rounds_left = if main.cache.is_some() { self.source.rounds - round } else { 0 };
            self.out.begin_part()?;
            self.kept_pages()?;
            let is_last = round == self.source.rounds;
            for index in 0..facts.blocks.len() {
                self.pages_of(index, is_last)?;
            }
            self.out.end_part()?;
            if let Some(fleet) = &mut self.out.fleet {
                fleet.parts(&mut self.out.main, is_last)?;
            }
        }
        self.out.join()
    }

    /// All pages of a block, or those that are to be sent before the switch.
    fn pages_of(&mut self, index: usize, is_last: bool) -> Result<()> {
        let facts = self.source.template.facts();
        let (block, content, page_size) =
            (&facts.blocks[index], &self.source.contents[index], facts.page_size);
        let length = block.used_length;
        let ranges = match &self.serving {
            Some(serving) if is_last => share(block, page_size, serving.options.percent.into()),
            _ => std::iter::once(0..page_count(block, page_size)).collect(),
        };
        for pages in ranges {
            let range = pages.start * page_size..(pages.end * page_size).min(length);
            content.send(&Stretch { index, range, length, page_size }, &mut self.out)?;
        }
        Ok(())
    }

    /// SWITCHOVER_START, END, FULLs, EOF and description.
    fn completion(&mut self, template: &mut Feed<Bytes>) -> Result<()> {
        self.copy_until(u64::MAX, template)?;
        self.out.main.flush()?;
        // What a channel has not written yet may be what the destination is waiting for.
        self.out.team.as_mut().map_or(Ok(()), Team::settle)
    }

    /// Without return path there is nobody to wait for.
    fn await_shut(&mut self) -> Result<()> {
        if self.return_path {
            self.out.main.await_shut()?;
        }
        self.out.main.close()
    }

    /// Sends the template up to `offset`, except for its pages and the commands that are ours to decide.
    pub(super) fn copy_until(&mut self, offset: u64, template: &mut Feed<Bytes>) -> Result<()> {
        let Self { out, parser, filter, .. } = self;
        if parser.offset() >= offset {
            return Ok(());
        }
        template.run(parser, |located, parser| {
            filter.take(&located.event, parser.grammar(), out)?;
            Ok(if located.range.end == offset { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
    }

    /// The template's pages of blocks that keep theirs, in the order of the template, so that deltas find what they refer to.
    fn kept_pages(&mut self) -> Result<()> {
        let facts = self.source.template.facts();
        let contents = &self.source.contents;
        let is_kept = |index: usize| matches!(contents.get(index), Some(Content::Kept));
        if !(0..contents.len()).any(|index| is_kept(index) && facts.pages[index] > 0) {
            return Ok(());
        }
        let out = &mut self.out;
        self.source.template.pages(|index, page| match is_kept(index) {
            true => out.forward(index, page),
            false => Ok(()),
        })
    }

    /// Closes the books.
    pub(super) fn finish(mut self, outcome: Result<()>) -> Departure {
        let outcome = outcome.map_err(|error| self.blame(error));
        if outcome.is_err() {
            // Nobody is to wait for what will not come; the destination may still say something on the return path.
            self.shared.lines.cut_channels();
        }
        let postcopy = self.close_serving();
        let Self { source, shared, out, return_path, .. } = self;
        let (mut main, team, mut fleet) = (out.main, out.team, out.fleet);
        let channels = team.map_or_else(Vec::new, Team::end);
        // Without channels, the threads of devices have ended as well.
        let _ = fleet.as_mut().map(Fleet::join);
        let memory = std::mem::take(&mut *shared.memory());
        let replies = main.replies.take();
        let sum = |count: fn(&ChannelDeparture) -> u64| channels.iter().map(count).sum::<u64>();
        let mut departure = Departure {
            machine: source.template.machine().map(str::to_owned),
            bytes: main.total(),
            pages: main.page_count + sum(|channel| channel.pages),
            zero_pages: main.zero_pages + sum(|channel| channel.zero_pages),
            xbzrle_pages: main.xbzrle_pages,
            return_path,
            pong: replies.as_ref().is_some_and(Replies::has_pong),
            peer_status: replies.as_ref().and_then(Replies::status),
            channels,
            postcopy,
            devices: fleet.map_or_else(Vec::new, Fleet::departures),
            elapsed: main.elapsed(),
            memory,
            error: None,
        };
        departure.error = outcome.and(departure.memory.flush()).err();
        departure
    }

    /// What the destination has said is worth more than what has failed here, and the channel that failed first more than
    /// what came of it.
    fn blame(&mut self, error: Error) -> Error {
        let Some(Failure { error: first, is_gone }) = self.shared.failure() else { return error };
        if error.channel() == ChannelId::ReturnPath {
            return error;
        }
        let said = self.out.main.replies.as_mut().and_then(|replies| match is_gone {
            true => replies.reason(),
            false => replies.poll().err(),
        });
        said.unwrap_or(first)
    }
}

/// Decides what of a template leaves as it is.
pub(super) struct Filter {
    dialect: Dialect,
    /// Packets of device state wait for it at the destination.
    needs_switchover: bool,
    /// Kind of the RAM section that this is in.
    ram: Option<SectionKind>,
    switched: bool,
    /// Whether ADVISE is ours to send.
    is_advised: bool,
    /// Whether pages follow the devices, and the end of RAM follows those.
    is_postcopy: bool,
}

impl Filter {
    pub(super) fn new(dialect: Dialect, needs_switchover: bool) -> Self {
        let (is_advised, is_postcopy) = (false, false);
        Self { dialect, needs_switchover, ram: None, switched: false, is_advised, is_postcopy }
    }

    /// The same, for a stream with ADVISE, and with a switch to postcopy perhaps.
    #[must_use]
    pub(super) fn advised(self, is_advised: bool, is_postcopy: bool) -> Self {
        Self { is_advised, is_postcopy, ..self }
    }

    fn take(&mut self, event: &Event<'_>, grammar: &Grammar, out: &mut Outlet<'_, '_>) -> Result<()> {
        if matches!(event, Event::Section(_) | Event::Command(_) | Event::Eof) {
            self.ram = None;
        }
        // A PART of RAM is left out as a whole.
        let is_left_out = |kind| kind == SectionKind::PART || kind == SectionKind::END && self.is_postcopy;
        let is_round = self.ram.is_some_and(is_left_out);
        match event {
            Event::Section(head)
                if grammar.current_section().is_some_and(|(_, _, section)| section.is_ram()) =>
            {
                self.ram = Some(head.kind);
                if head.kind == SectionKind::END && !self.switched {
                    match self.wants_switchover() {
                        Some(true) => Self::switch_over(out)?,
                        // The state follows all the same, for a destination that will wait for the word in vain.
                        _ => Self::launch(out)?,
                    }
                }
                if is_left_out(head.kind) { Ok(()) } else { out.main.emit(event) }
            }
            Event::Footer(_) if is_round => Ok(()),
            Event::Footer(_) if self.ram == Some(SectionKind::END) => {
                out.main.emit(event)?;
                Self::end_of_devices(out)
            }
            Event::Page(_) => Ok(()),
            Event::RamWord(word) => match word.flags(grammar.page_size()).action() {
                _ if is_round => Ok(()),
                RamFlags::MULTIFD_FLUSH | RamFlags::HOOK => Ok(()),
                RamFlags::EOS => self.end_of_ram(out),
                _ => out.main.emit(event),
            },
            Event::Command(Command::OpenReturnPath | Command::Ping(_)) => Ok(()),
            Event::Command(Command::PostcopyAdvise(_)) if self.is_advised => Ok(()),
            Event::Command(Command::SwitchoverStart) => {
                self.switched = true;
                if self.wants_switchover() == Some(false) {
                    Self::launch(out)
                } else {
                    Self::switch_over(out)
                }
            }
            Event::Eof => {
                if let Some(fleet) = &mut out.fleet {
                    fleet.full(&mut out.main)?;
                }
                out.main.emit(event)
            }
            _ => out.main.emit(event),
        }
    }

    /// The guest is stopped: what is left of the devices' state may follow.
    fn switch_over(out: &mut Outlet<'_, '_>) -> Result<()> {
        out.main.emit(&Event::Command(Command::SwitchoverStart))?;
        Self::launch(out)
    }

    fn launch(out: &mut Outlet<'_, '_>) -> Result<()> {
        match out.fleet {
            Some(_) => out.main.flush().and_then(|()| out.launch(Stage::Stop)),
            None => Ok(()),
        }
    }

    /// END sections of devices. Channels may be waiting for what was written on the main channel before.
    fn end_of_devices(out: &mut Outlet<'_, '_>) -> Result<()> {
        let Some(fleet) = &mut out.fleet else { return Ok(()) };
        fleet.end(&mut out.main)?;
        out.main.flush()?;
        out.join()
    }

    /// The end of START or END.
    fn end_of_ram(&self, out: &mut Outlet<'_, '_>) -> Result<()> {
        let places: &[SyncPlace] = match self.ram {
            Some(SectionKind::START) => &[SyncPlace::Setup],
            // A last look at RAM finds nothing, and comes round.
            _ => &[SyncPlace::Round, SyncPlace::Completion],
        };
        places.iter().try_for_each(|place| out.synchronise(*place))?;
        out.end_of_ram()
    }

    /// Whether SWITCHOVER_START belongs into the stream; `None`: as the template has it.
    fn wants_switchover(&self) -> Option<bool> {
        match self.dialect {
            Dialect::ANY => self.needs_switchover.then_some(true),
            dialect => Some(dialect.has(Difference::SwitchoverStart)),
        }
    }
}
