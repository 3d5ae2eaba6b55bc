//! A stream that gives another one its shape: everything but the pages.
//!
//! ```text
//! survey   header configuration | START .. PART .. END | FULL .. EOF description      once, pages skipped
//!                               ^setup  ^rounds
//! send     the same again, with other commands and other pages in one PART
//! ```
//! A template is a raw stream, a recording or directory of all channels, or a [`Blank`]. It is read again whenever it is needed,
//! and never held: it may be larger than memory. Pages on multifd channels are its pages too, decoded and in an order in which
//! they can be applied.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blank::Blank;
use crate::capture::FileKind;
use crate::channel::{Feed, Input, Located, Seeking, Streaming};
use crate::container::{self, Access, ChannelInput, Item, Pages, Part, Together, TogetherOptions};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::MAX_RAM_BLOCKS;
use crate::multifd::{Packet, PacketParser};
use crate::stream::{Block, Event, Grammar, Parser};
use crate::wire::{Bulk, Command, Page, PageBody, PageWord, RamFlags, SectionKind};

const DOING: &str = "reading the template";

/// A stream, surveyed.
#[derive(Debug)]
pub struct Template {
    origin: Origin,
    survey: Survey,
}

#[derive(Clone, Debug)]
enum Origin {
    Bytes(Arc<[u8]>),
    Stream(PathBuf),
    /// All channels of a migration.
    Channels(PathBuf),
}

/// What one reading of the template tells.
#[derive(Clone, Debug, Default)]
pub(super) struct Survey {
    pub(super) machine: Option<String>,
    pub(super) page_size: u64,
    pub(super) blocks: Vec<Block>,
    /// Pages that the template has of each block.
    pub(super) pages: Vec<u64>,
    /// Whether blocks may be left out because both sides share their memory (`x-ignore-shared`).
    pub(super) ignores_shared: bool,
    /// Offset behind the configuration.
    pub(super) setup: u64,
    /// Offset of the first PART or END of RAM, of SWITCHOVER_START, or of EOF.
    pub(super) rounds: u64,
    /// Offset of the first FULL behind that, and of EOF.
    pub(super) devices: u64,
    pub(super) end: u64,
    /// Offset of the first record between these two that is no FULL.
    pub(super) stray: Option<u64>,
    /// Section id of RAM, if there is any.
    pub(super) ram: Option<u32>,
    pub(super) footers: bool,
    /// Highest section id.
    pub(super) last_section: u32,
    pub(super) return_path: bool,
}

impl Template {
    /// The template in a file: a raw stream, or a recording (or a directory) with a main channel, and multifd channels perhaps.
    ///
    /// # Errors
    /// If there is none in it, if it ends early, or if it cannot be sent as a precopy stream (postcopy, mapped-ram).
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(DOING, path.display().to_string(), e);
        let mut first = Vec::new();
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Self::survey(Origin::Channels(path.to_owned()));
        }
        if !metadata.is_file() {
            let message = format!("{}: a template is read twice, so it must be a file", path.display());
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        file.take(FileKind::ENOUGH as u64).read_to_end(&mut first).map_err(failed)?;
        let origin = match FileKind::of(&first) {
            FileKind::Stream => Origin::Stream(path.to_owned()),
            FileKind::Pcapng => Origin::Channels(path.to_owned()),
            other => {
                let message =
                    format!("{} is {other}, where a stream or a recording is needed", path.display());
                return Err(Error::nowhere(ErrorKind::Unsupported, DOING, message).on(ChannelId::Container));
            }
        };
        Self::survey(origin)
    }

    /// The template of a machine that never existed.
    ///
    /// # Errors
    /// For sizes and names that cannot be.
    pub fn blank(blank: &Blank) -> Result<Self> {
        Self::survey(Origin::Bytes(blank.stream()?.into()))
    }

    /// Class name of the machine type, if the stream has a configuration.
    pub fn machine(&self) -> Option<&str> {
        self.survey.machine.as_deref()
    }

    /// The RAM blocks in list order.
    pub fn blocks(&self) -> &[Block] {
        &self.survey.blocks
    }

    /// Whether the stream opens the return path.
    pub fn has_return_path(&self) -> bool {
        self.survey.return_path
    }

    pub(super) fn facts(&self) -> &Survey {
        &self.survey
    }

    /// The stream from its beginning.
    pub(super) fn feed(&self) -> Result<Feed<Bytes>> {
        self.origin.open().map(Feed::new)
    }

    /// Hands over all pages, of all channels, with the block of each. Deltas find what they refer to.
    pub(super) fn pages(&self, mut each: impl FnMut(usize, &Page<'_>) -> Result<()>) -> Result<()> {
        let Origin::Channels(path) = &self.origin else {
            return self.feed()?.run(&mut Parser::new(), |located, parser| {
                if let (Event::Page(page), Some(index)) = (&located.event, parser.grammar().current_block()) {
                    each(index, page)?;
                }
                let is_over = matches!(located.event, Event::Eof);
                Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            });
        };
        let mut pages = Pages::default();
        let mut together = Together::open(&mut parts(path)?, &TogetherOptions::default())?;
        together.run(|item| {
            if let Item::Main(located, grammar) = item
                && let (Event::Page(page), Some(index)) = (&located.event, grammar.current_block())
            {
                each(index, page)?;
            }
            pages.take(item, |page| {
                let Some(index) = page.block else { return Ok(()) };
                let (flags, body) = match page.content {
                    Some(content) => (RamFlags::PAGE, PageBody::Raw(Bulk::Bytes(content))),
                    None => (RamFlags::ZERO, PageBody::Zero(0)),
                };
                each(index, &Page { word: PageWord::new(page.offset, flags), block: None, body })
            })?;
            Ok(ControlFlow::Continue(()))
        })?;
        together.faults().iter().chain(pages.faults()).next().map_or(Ok(()), |fault| Err(fault.clone()))
    }

    fn survey(origin: Origin) -> Result<Self> {
        let mut survey = Survey::default();
        let parser = Parser::new().with_elision();
        match &origin {
            Origin::Channels(path) => survey.read_channels(path, parser)?,
            _ => survey.read_stream(origin.open()?, parser)?,
        }
        Ok(Self { origin, survey })
    }
}

impl Survey {
    fn read_stream(&mut self, stream: Bytes, mut parser: Parser) -> Result<()> {
        Feed::new(stream).run(&mut parser, |located, parser| {
            self.note(located, parser.grammar())?;
            Ok(ControlFlow::Continue(()))
        })?;
        self.close(parser.grammar());
        Ok(())
    }

    fn read_channels(&mut self, path: &Path, parser: Parser) -> Result<()> {
        let options = TogetherOptions { parser, access: Access::Outline, ..TogetherOptions::default() };
        let mut together = Together::open(&mut parts(path)?, &options)?;
        let mut pages = HashMap::new();
        together.run(|item| {
            match item {
                Item::Main(located, grammar) => self.note(located, grammar)?,
                Item::Packet { located, parser, .. } => note_packet(located, parser, &mut pages)?,
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(fault) = together.faults().first() {
            return Err(fault.clone());
        }
        let Some(grammar) = together.grammar() else { return Err(headless(path)) };
        self.close(grammar);
        for (block, count) in self.blocks.iter().zip(&mut self.pages) {
            *count += pages.get(&*block.name).unwrap_or(&0);
        }
        Ok(())
    }

    /// Takes note of what is known in the end.
    fn close(&mut self, grammar: &Grammar) {
        self.page_size = grammar.page_size();
        self.blocks = grammar.blocks().to_vec();
        self.pages.resize(self.blocks.len(), 0);
        self.footers = grammar.footers().unwrap_or(true);
    }

    fn note(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<()> {
        let at = located.range.start;
        let in_configuration = matches!(
            located.event,
            Event::Header(_) | Event::Configuration(_) | Event::ConfigurationSubsection(_)
        );
        if in_configuration {
            self.setup = located.range.end;
        }
        self.note_devices(&located.event, at);
        match &located.event {
            Event::Configuration(configuration) => {
                self.machine = Some(configuration.machine.text().into_owned());
            }
            Event::Section(head) => {
                self.last_section = self.last_section.max(head.section_id);
                if let Some((_, id, section)) = grammar.current_section()
                    && section.is_ram()
                {
                    self.ram = Some(id);
                    let is_round = matches!(head.kind, SectionKind::PART | SectionKind::END);
                    if is_round && self.rounds == 0 {
                        self.rounds = at;
                    }
                }
            }
            Event::Eof | Event::Command(Command::SwitchoverStart) if self.rounds == 0 => self.rounds = at,
            Event::RamBlock(block) => self.ignores_shared |= block.gpa.is_some(),
            Event::Page(_) => {
                if let Some(index) = grammar.current_block() {
                    if self.pages.len() <= index {
                        self.pages.resize(index + 1, 0);
                    }
                    self.pages[index] += 1;
                }
            }
            Event::Command(Command::OpenReturnPath) => self.return_path = true,
            Event::Command(Command::PostcopyListen | Command::Packaged { .. } | Command::PostcopyResume) => {
                return Err(unsupported(at, "a postcopy stream cannot be sent again as a template"));
            }
            Event::MappedRam(_) => {
                return Err(unsupported(at, "pages of a mapped-ram file stand outside of its stream"));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Survey {
    /// Behind the rounds, device state comes in one piece, which is what a package of postcopy consists of.
    fn note_devices(&mut self, event: &Event<'_>, at: u64) {
        match event {
            Event::Eof => {
                self.end = at;
                if self.devices == 0 {
                    self.devices = at;
                }
            }
            Event::Section(head) if head.kind == SectionKind::FULL && self.devices > 0 => {}
            Event::Section(head) if head.kind == SectionKind::FULL && self.rounds > 0 => self.devices = at,
            Event::Section(_) | Event::Command(_) if self.devices > 0 && self.stray.is_none() => {
                self.stray = Some(at);
            }
            _ => {}
        }
    }
}

fn unsupported(at: u64, message: &str) -> Error {
    Error::new(ErrorKind::Unsupported, at, DOING, message)
}

/// Counts the pages of a packet.
fn note_packet(
    located: &Located<'_, Packet<'_>>,
    parser: &PacketParser,
    pages: &mut HashMap<Box<[u8]>, u64>,
) -> Result<()> {
    let batch = parser.batch();
    match located.event {
        Packet::Ram(_) if !batch.normal().is_empty() || !batch.zero().is_empty() => {
            let count = (batch.normal().len() + batch.zero().len()) as u64;
            // A hostile template can name more blocks than there may be.
            if pages.len() < MAX_RAM_BLOCKS || pages.contains_key(batch.name().0) {
                *pages.entry(batch.name().0.into()).or_default() += count;
            }
            Ok(())
        }
        Packet::Device(_) => {
            let message = "device state on multifd channels cannot be sent again as a template";
            Err(unsupported(located.range.start, message).on(parser.channel()))
        }
        _ => Ok(()),
    }
}

/// The channels in a recording or a directory.
fn parts(path: &Path) -> Result<Vec<Part>> {
    let contents = container::open(path, false)?;
    contents.fault.map_or(Ok(contents.parts), Err)
}

fn headless(path: &Path) -> Error {
    let message = format!("{} has no main channel", path.display());
    Error::nowhere(ErrorKind::Unsupported, DOING, message).on(ChannelId::Container)
}

impl Origin {
    fn open(&self) -> Result<Bytes> {
        let open =
            |path: &Path| File::open(path).map_err(|e| Error::io(DOING, path.display().to_string(), e));
        Ok(match self {
            Self::Bytes(bytes) => Bytes::Here(Streaming(Cursor::new(Arc::clone(bytes)))),
            Self::Stream(path) => {
                let file = Seeking::new(open(path)?);
                Bytes::File(file.map_err(|e| Error::io(DOING, path.display().to_string(), e))?)
            }
            Self::Channels(path) => {
                let mut parts = parts(path)?;
                let main = parts.iter_mut().find(|part| part.channel == ChannelId::Main);
                let main = main.ok_or_else(|| headless(path))?;
                Bytes::Channel(Box::new(main.input(Access::Whole)?))
            }
        })
    }
}

/// A template's bytes, wherever they are.
pub(super) enum Bytes {
    Here(Streaming<Cursor<Arc<[u8]>>>),
    File(Seeking<File>),
    Channel(Box<ChannelInput>),
}

impl Input for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Here(input) => input.read(buffer),
            Self::File(input) => input.read(buffer),
            Self::Channel(input) => input.read(buffer),
        }
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        match self {
            Self::Here(input) => input.skip(count),
            Self::File(input) => input.skip(count),
            Self::Channel(input) => input.skip(count),
        }
    }

    fn stride(&self) -> usize {
        match self {
            Self::Here(input) => input.stride(),
            Self::File(input) => input.stride(),
            Self::Channel(input) => input.stride(),
        }
    }
}
