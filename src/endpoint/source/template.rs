//! A stream that gives another one its shape: everything but the pages.
//!
//! ```text
//! survey   header configuration | START .. PART .. END | FULL .. EOF description      once, pages skipped
//!                               ^setup  ^rounds
//! send     the same again, with other commands and other pages in one PART
//! ```
//! A template is a raw stream, the main channel of a recording, or a [`Blank`]. It is read again whenever it is needed,
//! and never held: it may be larger than memory.

use std::fs::File;
use std::io::{self, Cursor, Read as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blank::Blank;
use crate::capture::{self, ChannelBytes, Direction, FileKind, Reader};
use crate::channel::{Feed, Input, Located, Seeking, Streaming};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::stream::{Block, Event, Grammar, Parser};
use crate::wire::{Command, SectionKind};

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
    Recording { path: PathBuf, interface: usize },
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
    /// Section id of RAM, if there is any.
    pub(super) ram: Option<u32>,
    pub(super) footers: bool,
    /// Highest section id.
    pub(super) last_section: u32,
    pub(super) return_path: bool,
}

impl Template {
    /// The template in a file: a raw stream, or a recording with a main channel.
    ///
    /// # Errors
    /// If there is none in it, if it ends early, or if it cannot be sent as a precopy stream (postcopy, mapped-ram).
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(DOING, path.display().to_string(), e);
        let mut first = Vec::new();
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            let message = format!("{}: a template is read twice, so it must be a file", path.display());
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        file.take(FileKind::ENOUGH as u64).read_to_end(&mut first).map_err(failed)?;
        let origin = match FileKind::of(&first) {
            FileKind::Stream => Origin::Stream(path.to_owned()),
            FileKind::Pcapng => Origin::Recording { path: path.to_owned(), interface: main_channel(path)? },
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

    fn survey(origin: Origin) -> Result<Self> {
        let mut survey = Survey::default();
        let mut parser = Parser::new().with_elision();
        Feed::new(origin.open()?).run(&mut parser, |located, parser| {
            survey.note(located, parser.grammar())?;
            Ok(ControlFlow::Continue(()))
        })?;
        let grammar = parser.grammar();
        survey.page_size = grammar.page_size();
        survey.blocks = grammar.blocks().to_vec();
        survey.pages.resize(survey.blocks.len(), 0);
        survey.footers = grammar.footers().unwrap_or(true);
        Ok(Self { origin, survey })
    }
}

impl Survey {
    fn note(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<()> {
        let at = located.range.start;
        let in_configuration = matches!(
            located.event,
            Event::Header(_) | Event::Configuration(_) | Event::ConfigurationSubsection(_)
        );
        if in_configuration {
            self.setup = located.range.end;
        }
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

fn unsupported(at: u64, message: &str) -> Error {
    Error::new(ErrorKind::Unsupported, at, DOING, message)
}

/// Number of the interface in a recording that holds the main channel.
fn main_channel(path: &Path) -> Result<usize> {
    let file = File::open(path).map_err(|e| Error::io(DOING, path.display().to_string(), e))?;
    let listing = capture::channels(file)?;
    if let Some(error) = listing.error {
        return Err(error);
    }
    let main = listing.channels.iter().find(|channel| channel.channel() == Some(ChannelId::Main));
    main.map(|channel| channel.interface).ok_or_else(|| {
        let message = format!("{}: the recording has no main channel", path.display());
        Error::nowhere(ErrorKind::Unsupported, DOING, message).on(ChannelId::Container)
    })
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
            Self::Recording { path, interface } => {
                let reader = Reader::new(open(path)?)?;
                Bytes::Channel(Box::new(Streaming(ChannelBytes::new(
                    reader,
                    *interface,
                    Direction::ToDestination,
                ))))
            }
        })
    }
}

/// A template's bytes, wherever they are.
pub(super) enum Bytes {
    Here(Streaming<Cursor<Arc<[u8]>>>),
    File(Seeking<File>),
    Channel(Box<Streaming<ChannelBytes<File>>>),
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
