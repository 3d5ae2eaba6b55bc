//! Stand-in source: migrates a guest that does not run into a destination that cannot tell.
//!
//! ```text
//! here:        header config | OPEN_RETURN_PATH PING 1 | START PART.. END FULL.. EOF DESCRIPTION
//! destination:                                   PONG 1                                         SHUT 0
//! ```
//! A [`Template`] gives the stream its shape: block list, devices, description. Its pages stay, or come from images or a
//! [`Pattern`]. What leaves has passed a strict emitter, so that no stock destination can hang on it.

mod blank;
mod content;
mod devices;
mod output;
mod replies;
mod template;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use super::pace::Pace;
use super::{Limits, Progress};
use crate::capture::ChannelTap;
use crate::channel::{ChannelParser as _, Feed};
use crate::dialect::{Dialect, Difference};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{Memory, Pattern, XbzrleCache};
use crate::stream::{Event, Grammar, Parser};
use crate::transport::Connection;
use crate::wire::{Command, PageWord, RamFlags, SectionFooter, SectionHead, SectionKind};
use content::{Content, Image, Whole};
use output::Output;
use replies::Replies;
use template::Bytes;

pub use blank::{Blank, RunState};
pub use template::Template;

const DOING: &str = "sending";

/// What a stand-in source sends, and how.
pub struct Source {
    template: Template,
    contents: Vec<Content>,
    dialect: Dialect,
    limits: Limits,
    return_path: Option<bool>,
    rounds: u64,
    xbzrle: Option<usize>,
    copy: Memory,
    tap: Option<ChannelTap>,
}

/// What has been sent: everything up to the end or up to the fault.
#[derive(Debug)]
pub struct Departure {
    /// Machine name of the configuration record.
    pub machine: Option<String>,
    /// Bytes of the main channel that the system took.
    pub bytes: u64,
    /// Pages of all kinds.
    pub pages: u64,
    /// Pages that went as one byte.
    pub zero_pages: u64,
    /// Pages that were sent as deltas.
    pub xbzrle_pages: u64,
    /// Whether the return path was opened.
    pub return_path: bool,
    /// Whether the destination answered PING.
    pub pong: bool,
    /// The status in the destination's SHUT, if it came.
    pub peer_status: Option<u32>,
    /// Time from taking over the connection to the last answer.
    pub elapsed: Duration,
    /// The guest's memory as the destination should have it, as far as it was kept.
    pub memory: Memory,
    /// Why the migration failed; `None` if it completed.
    pub error: Option<Error>,
}

impl Source {
    /// A source of that shape, with the template's own pages.
    pub fn new(template: Template) -> Self {
        let contents = template.blocks().iter().map(|_| Content::Kept).collect();
        Self {
            template,
            contents,
            dialect: Dialect::ANY,
            limits: Limits::default(),
            return_path: None,
            rounds: 1,
            xbzrle: None,
            copy: Memory::new(),
            tap: None,
        }
    }

    /// The same, with that pattern in a block; in the largest one, if none is named.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn with_pattern(mut self, block: Option<&[u8]>, pattern: Pattern) -> Result<Self> {
        let mut blocks = self.template.blocks().iter().enumerate();
        let found = match block {
            Some(name) => blocks.find(|(_, block)| *block.name == *name),
            // Of equals the first: `max_by_key` would take the last.
            None => blocks.rev().max_by_key(|(_, block)| block.used_length),
        };
        let Some((index, _)) = found else {
            let names: Vec<String> =
                self.template.blocks().iter().map(|b| b.name.escape_ascii().to_string()).collect();
            let message = format!("there is no such RAM block; there are: {}", names.join(", "));
            return Err(Error::nowhere(ErrorKind::Misuse, "filling a block", message));
        };
        self.contents[index] = Content::Pattern(pattern);
        Ok(self)
    }

    /// The same, with the images in `directory` in the blocks they are named after; at least one must be there.
    ///
    /// # Errors
    /// If none is there or one has another size than its block; those of the file system.
    pub fn with_images(mut self, directory: &Path) -> Result<Self> {
        let mut found = false;
        for (block, content) in self.template.blocks().iter().zip(&mut self.contents) {
            if let Some(image) = Image::find(directory, &block.name, block.used_length)? {
                *content = Content::Image(image);
                found = true;
            }
        }
        match found {
            true => Ok(self),
            false => {
                let message = format!("{} has no image of any block", directory.display());
                Err(Error::nowhere(ErrorKind::Misuse, "opening RAM images", message))
            }
        }
    }

    /// The same, written as that release does where releases differ in what a template can say either way: with or without
    /// SWITCHOVER_START. Otherwise that stays as it is in the template.
    #[must_use]
    pub fn with_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// The same, with that much patience.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same, with or without return path. Otherwise as the template has it.
    #[must_use]
    pub fn with_return_path(mut self, on: bool) -> Self {
        self.return_path = Some(on);
        self
    }

    /// The same, sending all pages so many times.
    #[must_use]
    pub fn with_rounds(mut self, rounds: u64) -> Self {
        self.rounds = rounds;
        self
    }

    /// The same, sending deltas of pages that come from a pattern, against a cache of that many bytes. Pages of every round
    /// but the last then differ a little from what they are in the end.
    #[must_use]
    pub fn with_xbzrle(mut self, cache_bytes: usize) -> Self {
        self.xbzrle = Some(cache_bytes);
        self
    }

    /// The same, keeping what was sent as `memory` does.
    #[must_use]
    pub fn with_copy(mut self, memory: Memory) -> Self {
        self.copy = memory;
        self
    }

    /// The same, recording both directions of the main channel.
    #[must_use]
    pub fn with_tap(mut self, tap: ChannelTap) -> Self {
        self.tap = Some(tap);
        self
    }

    /// Sends one migration over `connection`. `watch` is told how far it has come, some times a second.
    pub fn send(mut self, connection: Connection, mut watch: impl FnMut(&Progress)) -> Departure {
        let pace = Pace::new(self.limits);
        let copy = std::mem::take(&mut self.copy);
        let facts = self.template.facts();
        let pages = (&*facts.blocks, facts.page_size);
        let mut out = Output::new(connection.clone(), self.tap.clone(), &pace, copy, pages, &mut watch);
        let page_size = self.template.facts().page_size as usize;
        // No cache need be larger than the guest.
        let guest: u64 = pages.0.iter().map(|block| block.used_length).sum();
        let most = usize::try_from(guest.next_power_of_two()).unwrap_or(usize::MAX);
        out.cache = self.xbzrle.map(|bytes| XbzrleCache::new(bytes.min(most), page_size));
        let return_path = self.return_path.unwrap_or(self.template.has_return_path());
        let filter = Filter { dialect: self.dialect, is_round: false, switched: false };
        let mut sending =
            Sending { source: &self, connection, out, return_path, parser: Parser::new(), filter };
        let outcome = sending.run();
        sending.finish(outcome)
    }

    /// Whether every block has pages to send: one that keeps the template's must have some there.
    ///
    /// # Errors
    /// If not. [`send`](Self::send) looks as well; this is for looking before anybody is connected to.
    pub fn check(&self) -> Result<()> {
        let facts = self.template.facts();
        for ((block, content), pages) in facts.blocks.iter().zip(&self.contents).zip(&facts.pages) {
            if matches!(content, Content::Kept)
                && *pages == 0
                && block.used_length > 0
                && !facts.ignores_shared
            {
                let message = format!(
                    "the template has no pages of block \"{}\" (multifd carries them in other channels); give an \
                     image or a pattern for it",
                    block.name.escape_ascii()
                );
                return Err(Error::nowhere(ErrorKind::Unsupported, DOING, message));
            }
        }
        Ok(())
    }
}

/// A migration that is being sent.
struct Sending<'a> {
    source: &'a Source,
    connection: Connection,
    out: Output<'a>,
    return_path: bool,
    parser: Parser,
    filter: Filter,
}

impl Sending<'_> {
    fn run(&mut self) -> Result<()> {
        self.source.check()?;
        let mut template = self.source.template.feed()?;
        self.header(&mut template)?;
        self.open_return_path()?;
        self.setup(&mut template)?;
        self.rounds()?;
        self.completion(&mut template)?;
        self.await_shut()
    }

    /// File header and configuration.
    fn header(&mut self, template: &mut Feed<Bytes>) -> Result<()> {
        self.copy_until(self.source.template.facts().setup, template)
    }

    fn open_return_path(&mut self) -> Result<()> {
        if !self.return_path {
            return Ok(());
        }
        if !self.connection.is_bidirectional() {
            let message = format!("{} goes one way and has no return path", self.connection.label());
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        self.out.replies = Some(Replies::listen(&self.connection, self.source.tap.clone(), Dialect::ANY)?);
        self.out.emit(&Event::Command(Command::OpenReturnPath))?;
        self.out.emit(&Event::Command(Command::Ping(replies::PING)))?;
        // As a stock source does with every command: the destination can answer while we are busy with pages.
        self.out.flush()
    }

    /// START sections, with the block list, and whatever else comes before the first pages.
    fn setup(&mut self, template: &mut Feed<Bytes>) -> Result<()> {
        self.copy_until(self.source.template.facts().rounds, template)
    }

    /// All pages in one PART, so many times.
    fn rounds(&mut self) -> Result<()> {
        let facts = self.source.template.facts();
        let Some(section_id) = facts.ram else { return Ok(()) };
        for round in 1..=self.source.rounds {
            self.out.round = round;
            // Without deltas to send, all rounds send the same.
            self.out.rounds_left = if self.out.cache.is_some() { self.source.rounds - round } else { 0 };
            self.out.emit(&Event::Section(SectionHead {
                kind: SectionKind::PART,
                section_id,
                identity: None,
            }))?;
            self.kept_pages()?;
            for (index, (block, content)) in facts.blocks.iter().zip(&self.source.contents).enumerate() {
                let block = Whole { index, length: block.used_length, page_size: facts.page_size };
                content.send(&block, &mut self.out)?;
            }
            self.out.emit(&Event::RamWord(PageWord::new(0, RamFlags::EOS)))?;
            if facts.footers {
                self.out.emit(&Event::Footer(SectionFooter { section_id }))?;
            }
        }
        Ok(())
    }

    /// SWITCHOVER_START, END, FULLs, EOF and description.
    fn completion(&mut self, template: &mut Feed<Bytes>) -> Result<()> {
        self.copy_until(u64::MAX, template)?;
        self.out.flush()
    }

    /// Without return path there is nobody to wait for.
    fn await_shut(&mut self) -> Result<()> {
        if self.return_path {
            self.out.await_shut()?;
        }
        self.out.close()
    }

    /// Sends the template up to `offset`, except for its pages and the commands that are ours to decide.
    fn copy_until(&mut self, offset: u64, template: &mut Feed<Bytes>) -> Result<()> {
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
        self.source.template.feed()?.run(&mut Parser::new(), |located, parser| {
            match (&located.event, parser.grammar().current_block()) {
                (Event::Page(page), Some(index)) if is_kept(index) => out.forward_page(index, page)?,
                (Event::Eof, _) => return Ok(ControlFlow::Break(())),
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn finish(self, outcome: Result<()>) -> Departure {
        let Self { source, mut out, return_path, .. } = self;
        let outcome = outcome.and(out.copy.flush());
        let replies = out.replies.take();
        Departure {
            machine: source.template.machine().map(str::to_owned),
            bytes: out.sent,
            pages: out.page_count,
            zero_pages: out.zero_pages,
            xbzrle_pages: out.xbzrle_pages,
            return_path,
            pong: replies.as_ref().is_some_and(Replies::has_pong),
            peer_status: replies.as_ref().and_then(Replies::status),
            elapsed: out.elapsed(),
            memory: std::mem::take(&mut out.copy),
            error: outcome.err(),
        }
    }
}

/// Decides what of a template leaves as it is.
struct Filter {
    dialect: Dialect,
    /// Inside a PART of RAM, which is left out as a whole.
    is_round: bool,
    switched: bool,
}

impl Filter {
    fn take(&mut self, event: &Event<'_>, grammar: &Grammar, out: &mut Output<'_>) -> Result<()> {
        if matches!(event, Event::Section(_) | Event::Command(_) | Event::Eof) {
            self.is_round = false;
        }
        match event {
            Event::Section(head)
                if grammar.current_section().is_some_and(|(_, _, section)| section.is_ram()) =>
            {
                self.is_round = head.kind == SectionKind::PART;
                if head.kind == SectionKind::END && self.wants_switchover() == Some(true) && !self.switched {
                    out.emit(&Event::Command(Command::SwitchoverStart))?;
                }
                if self.is_round { Ok(()) } else { out.emit(event) }
            }
            Event::Footer(_) if self.is_round => Ok(()),
            Event::Page(_) => Ok(()),
            Event::RamWord(word) => match word.flags(grammar.page_size()).action() {
                _ if self.is_round => Ok(()),
                RamFlags::MULTIFD_FLUSH | RamFlags::HOOK => Ok(()),
                _ => out.emit(event),
            },
            Event::Command(Command::OpenReturnPath | Command::Ping(_)) => Ok(()),
            Event::Command(Command::SwitchoverStart) => {
                self.switched = true;
                if self.wants_switchover() == Some(false) { Ok(()) } else { out.emit(event) }
            }
            _ => out.emit(event),
        }
    }

    /// Whether SWITCHOVER_START belongs into the stream; `None`: as the template has it.
    fn wants_switchover(&self) -> Option<bool> {
        (self.dialect != Dialect::ANY).then(|| self.dialect.has(Difference::SwitchoverStart))
    }
}
