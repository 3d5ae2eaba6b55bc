//! How a channel is read for a report, and what every report needs to know about a main channel's description.

use std::ops::ControlFlow;

use super::legs::Legs;
use crate::channel::Feed;
use crate::container::{self, Access, ChannelInput, Part, Together, TogetherOptions};
use crate::dialect::Dialect;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::MAX_DESCRIPTION;
use crate::multifd::PacketParser;
use crate::postcopy::ReturnParser;
use crate::stream::{Event, Mode, Parser};
use crate::vmstate::{Description, Disagreement, Ledger};

/// How channels are read.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// How much is forgiven.
    pub mode: Mode,
    /// Whose bytes they are.
    pub dialect: Dialect,
    /// Description of another stream of the same build and machine, for streams that have none of their own.
    pub schema: Option<Description>,
    /// Target page size of multifd channels that are read without their main channel; see [`page_size_of`](Self::page_size_of).
    pub page_size: Option<u64>,
    /// How the connections of a postcopy migration belong together; see [`legs_of`](Self::legs_of).
    pub legs: Legs,
}

impl Reading {
    /// Opens `part` with a parser for a main channel. Sizes of payloads come from the description at the end of the part, or
    /// from the schema; without either the parser searches. A description that cannot be read is not used, and is found
    /// wanting again when it is reached.
    ///
    /// # Errors
    /// If the part cannot be opened.
    pub fn main_channel(&self, part: &mut Part, access: Access) -> Result<(Feed<ChannelInput>, Parser)> {
        let parser = self.main_parser(part, access)?;
        Ok((Feed::new(part.input(access)?), parser))
    }

    fn main_parser(&self, part: &Part, access: Access) -> Result<Parser> {
        let trailer = part.trailer()?;
        let own = trailer.and_then(|t| Description::parse(&t.text, t.offset).ok());
        let mut parser = Parser::with(self.mode, self.dialect);
        if let Some(description) = own.as_ref().or(self.schema.as_ref()) {
            parser = parser.with_extents(description.extents());
            if let Some(page_size) = description.page_size {
                parser = parser.with_page_size(page_size);
            }
        }
        if access == Access::Outline {
            parser = parser.with_elision();
        }
        Ok(parser)
    }

    /// Opens `part` with a parser for a multifd channel.
    ///
    /// # Errors
    /// If the part cannot be opened.
    pub fn multifd(&self, part: &mut Part, access: Access) -> Result<(Feed<ChannelInput>, PacketParser)> {
        let parser = PacketParser::with(self.mode, self.dialect, self.page_size.unwrap_or(4096));
        let parser = if access == Access::Outline { parser.with_elision() } else { parser };
        Ok((Feed::new(part.input(access)?), parser))
    }

    /// The page size that the main channel among `parts` says, if there is one that can be read twice: its multifd channels
    /// do not say it.
    pub fn page_size_of(&self, parts: &mut [Part]) -> Option<u64> {
        let main = parts.iter_mut().find(|part| part.channel == ChannelId::Main && part.is_lasting())?;
        let (mut feed, mut parser) = self.main_channel(main, Access::Outline).ok()?;
        // It is said before the first page, whatever comes of the rest.
        let _ = feed.run(&mut parser, |located, _| {
            Ok(match located.event {
                Event::RamWord(_) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })
        });
        Some(parser.grammar().page_size())
    }

    /// Opens the main channel and the multifd channels among `parts`, to be read in their order.
    ///
    /// # Errors
    /// If they cannot be opened, or are not those of one migration.
    pub fn together(&self, parts: &mut [Part], access: Access) -> Result<Together> {
        let main = parts.iter().position(|part| part.channel == ChannelId::Main);
        let parser = match main.map(|at| &parts[at]) {
            Some(part) => self.main_parser(part, access)?,
            None => Parser::with(self.mode, self.dialect).with_page_size(self.page_size.unwrap_or(4096)),
        };
        let options = TogetherOptions { parser, mode: self.mode, dialect: self.dialect, access };
        Together::open(parts, &options)
    }

    /// Opens `part` with a parser for a return path.
    ///
    /// # Errors
    /// If the part cannot be opened.
    pub fn return_path(&self, part: &mut Part) -> Result<(Feed<ChannelInput>, ReturnParser)> {
        Ok((Feed::new(part.input(Access::Whole)?), ReturnParser::with(self.mode, self.dialect)))
    }

    /// The description of a stream, as a schema for others: the one behind the first main channel that has one.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn learn(parts: &mut [Part]) -> Result<Description> {
        for part in parts.iter_mut().filter(|part| part.channel == ChannelId::Main) {
            if let Some(trailer) = part.trailer()? {
                return Description::parse(&trailer.text, trailer.offset);
            }
            let (mut feed, mut parser) =
                Self { mode: Mode::Lenient, ..Self::default() }.main_channel(part, Access::Outline)?;
            let mut chapter = Chapter::default();
            let outcome = feed.run(&mut parser, |located, _| {
                chapter.note(&located.event, located.range.end);
                Ok(ControlFlow::Continue(()))
            });
            outcome.map_err(container::unwrap_error)?;
            if let Some(description) = chapter.description() {
                return description;
            }
        }
        let message = "no stream in it has a VM description to learn from";
        Err(Error::nowhere(ErrorKind::Unsupported, "schema", message).on(ChannelId::Container))
    }
}

/// The error for a channel that is there but cannot be read yet.
#[must_use]
pub(super) fn unsupported(channel: ChannelId) -> Error {
    let kind = match channel {
        ChannelId::Container => "no channel",
        _ => "connection of unknown kind",
    };
    Error::nowhere(ErrorKind::Unsupported, "reading", kind).on(channel)
}

/// Collects the description as it passes, and the sizes of the sections to hold it against.
#[derive(Debug, Default)]
pub struct Chapter {
    ledger: Ledger,
    text: Option<(u64, Vec<u8>)>,
}

impl Chapter {
    /// Takes note of `event`, which ends at `end`.
    pub fn note(&mut self, event: &Event<'_>, end: u64) {
        match event {
            Event::Description(_) => self.text = Some((end, Vec::new())),
            Event::DescriptionText(bulk) => {
                if let (Some((_, text)), Some(bytes)) = (&mut self.text, bulk.bytes())
                    && text.len() + bytes.len() <= MAX_DESCRIPTION as usize
                {
                    text.extend_from_slice(bytes);
                }
            }
            _ => self.ledger.note(event, end),
        }
    }

    /// Sizes of the sections.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The text of the description. One of no length is none: a destination insists on its head only.
    pub fn text(&self) -> Option<&[u8]> {
        self.text.as_ref().map(|(_, text)| &**text).filter(|text| !text.is_empty())
    }

    /// The description, read.
    pub fn description(&self) -> Option<Result<Description>> {
        let (offset, text) = self.text.as_ref().filter(|(_, text)| !text.is_empty())?;
        Some(Description::parse(text, *offset))
    }

    /// Where a schema, which is of another stream, has other sizes than this one, in sentences. That sections are missing on
    /// either side is no surprise.
    pub fn strangers(&self, schema: &Description) -> Vec<String> {
        let differing = |d: &&Disagreement| matches!(d, Disagreement::Size { .. });
        let found = self.ledger.compare(schema);
        found.iter().filter(differing).map(|d| format!("the schema does not fit: {d}")).collect()
    }

    /// Where `description` is not what the stream has, in sentences.
    pub fn disagreements(&self, description: &Description) -> Vec<String> {
        self.ledger.compare(description).iter().map(ToString::to_string).collect()
    }
}
