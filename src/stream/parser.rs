//! Bytes to events, a step at a time.

use super::extent::{self, Extents, Found};
use super::{Event, Grammar, Mode, Phase};
use crate::channel::{ChannelEvent as _, ChannelParser, Located, Step, Tail};
use crate::dialect::Dialect;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::PIECE;
use crate::wire::{
    Bulk, Command, Configuration, ConfigurationSubsection, Cursor, DescriptionHead, Fault, FileHeader, Page,
    PageWord, RamBlock, SectionFooter, SectionHead, SectionKind, Wire,
};

/// Step parser of a main channel. Owns no buffer: the caller keeps the bytes that were not consumed and offers them again.
///
/// Method families: [`step`](ChannelParser::step) takes input and gives events; getters are nouns; the `with_` methods set up.
///
/// ```
/// use migwire::channel::{ChannelParser, Step, Tail};
/// use migwire::stream::Parser;
/// let mut parser = Parser::new();
/// match parser.step(b"QEVM\0\0\0\x03\x07", Tail::Open)? {
///     Step::Event(located) => assert_eq!((located.range, located.raw), (0..8, &b"QEVM\0\0\0\x03"[..])),
///     other => panic!("{other:?}"),
/// }
/// assert!(matches!(parser.step(b"\x07", Tail::Open)?, Step::More(4)));
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Parser {
    grammar: Grammar,
    offset: u64,
    elide: bool,
    extents: Extents,
    payload: Payload,
}

/// What is known of the payload that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Payload {
    /// Bytes left if the hint is right.
    hint: Option<u64>,
    /// Bytes of the input that hold no candidate.
    searched: usize,
    /// The end has been found; the footer or the next record comes now.
    ended: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A strict parser for streams of any release, at offset 0.
    pub fn new() -> Self {
        Self::with(Mode::Strict, Dialect::ANY)
    }

    /// A parser of that mode and dialect.
    pub fn with(mode: Mode, dialect: Dialect) -> Self {
        Self {
            grammar: Grammar::new(mode, dialect),
            offset: 0,
            elide: false,
            extents: Extents::default(),
            payload: Payload::default(),
        }
    }

    /// The same parser, that leaves raw pages and mapped-ram areas unread: they come as [`Bulk::Elided`].
    #[must_use]
    pub fn with_elision(mut self) -> Self {
        self.elide = true;
        self
    }

    /// The same parser, that reads everything.
    #[must_use]
    pub fn without_elision(mut self) -> Self {
        self.elide = false;
        self
    }

    /// The same parser, with sizes of device payloads to try first.
    #[must_use]
    pub fn with_extents(mut self, extents: Extents) -> Self {
        self.extents = extents;
        self
    }

    /// The same parser, for a stream that begins at `offset` of its channel or file.
    #[must_use]
    pub fn with_offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// The same parser, for a target page size that the stream does not say. 4096 otherwise.
    #[must_use]
    pub fn with_page_size(mut self, page_size: u64) -> Self {
        self.grammar.set_page_size(page_size);
        self
    }

    /// A parser for the connection on which a migration goes on after a pause, from offset 0. `None` if it could not pause.
    pub fn resumed(&self) -> Option<Self> {
        let grammar = self.grammar.resumed()?;
        Some(Self { grammar, offset: 0, payload: Payload::default(), ..self.clone() })
    }

    /// State of the protocol behind the last event.
    pub fn grammar(&self) -> &Grammar {
        &self.grammar
    }

    /// Cuts the input at the end of the package that is being read.
    fn fence<'a>(&self, input: &'a [u8], tail: Tail) -> (&'a [u8], Tail, bool) {
        let left =
            self.grammar.package_end().map(|end| usize::try_from(end - self.offset).unwrap_or(usize::MAX));
        match left {
            Some(left) if left <= input.len() => (&input[..left], Tail::Closed, true),
            _ => (input, tail, false),
        }
    }

    fn doing(&self) -> &'static str {
        match self.grammar.phase() {
            Phase::Header => "file header",
            Phase::Configuration => "configuration",
            Phase::Record => "record",
            Phase::RamWord => "RAM section",
            Phase::RamBlock => "RAM block list",
            Phase::MappedRam { .. } => "mapped-ram area",
            Phase::Payload => "device payload",
            Phase::Footer => "section footer",
            Phase::AfterEof => "EOF",
            Phase::DescriptionText { .. } => "VM description",
            Phase::Trailing if self.grammar.package_end().is_some() => "package",
            Phase::Trailing => "trailing bytes",
        }
    }

    /// The next event by phase; `None` at an end that is allowed.
    fn lex<'a>(&mut self, input: &mut Cursor<'a>, tail: Tail) -> Result<Option<Event<'a>>, Fault> {
        if input.is_empty() && self.grammar.phase() == Phase::Trailing && self.grammar.package_end().is_some()
        {
            // A destination has taken in all of the package before it looks at its first byte.
            return Err(Fault::More { field: "the package", missing: 1 });
        }
        match self.grammar.phase() {
            Phase::RamWord => self.ram_word(input).map(Some),
            Phase::RamBlock => {
                RamBlock::parse(input, self.grammar.ram_fields()).map(|b| Some(Event::RamBlock(b)))
            }
            Phase::MappedRam { left } if self.elide => Ok(Some(Event::MappedRam(Bulk::Elided(left)))),
            Phase::MappedRam { left } => {
                piece(input, left, "mapped-ram area").map(|b| Some(Event::MappedRam(b)))
            }
            Phase::Payload if !self.payload.ended => match self.payload(input, tail)? {
                Some(event) => Ok(Some(event)),
                None => self.record(input).map(Some),
            },
            Phase::Payload | Phase::Footer | Phase::Record | Phase::Configuration => {
                self.record(input).map(Some)
            }
            Phase::Header => FileHeader::parse(input).map(|h| Some(Event::Header(h))),
            Phase::AfterEof | Phase::Trailing if input.is_empty() => match tail {
                Tail::Closed | Tail::Idle => Ok(None),
                Tail::Open => Err(Fault::More { field: "nothing", missing: 1 }),
            },
            Phase::AfterEof if input.rest().first() == Some(&SectionKind::VMDESCRIPTION.0) => {
                DescriptionHead::parse(input).map(|d| Some(Event::Description(d)))
            }
            Phase::AfterEof | Phase::Trailing => self.trailing(input, tail).map(Some),
            Phase::DescriptionText { left } => {
                piece(input, left, "text").map(|b| Some(Event::DescriptionText(b)))
            }
        }
    }

    fn record<'a>(&self, input: &mut Cursor<'a>) -> Result<Event<'a>, Fault> {
        let start = input.offset();
        let kind = SectionKind(input.peek("record type")?);
        match kind {
            SectionKind::EOF => input.u8("EOF").map(|_| Event::Eof),
            SectionKind::COMMAND => Command::parse(input).map(Event::Command),
            SectionKind::FOOTER if matches!(self.grammar.phase(), Phase::Payload | Phase::Footer) => {
                SectionFooter::parse(input).map(Event::Footer)
            }
            SectionKind::CONFIGURATION if self.grammar.phase() == Phase::Configuration => {
                Configuration::parse(input).map(Event::Configuration)
            }
            SectionKind::SUBSECTION if self.grammar.subsection_may_come() => {
                ConfigurationSubsection::parse(input).map(Event::ConfigurationSubsection)
            }
            kind if kind.is_section() => SectionHead::parse(input).map(Event::Section),
            SectionKind(other) => {
                let message = match kind.name() {
                    Some(name) => {
                        format!("{name} ({other:#04x}) where {} is expected", self.grammar.expected())
                    }
                    None => format!("unknown section type {other:#04x}"),
                };
                Err(Cursor::malformed(start, "record", message))
            }
        }
    }

    fn ram_word<'a>(&self, input: &mut Cursor<'a>) -> Result<Event<'a>, Fault> {
        let page_size = self.grammar.page_size();
        let word = PageWord(input.clone().be64("page word")?);
        if word.flags(page_size).is_page() {
            Page::parse(input, page_size, self.elide).map(Event::Page)
        } else {
            PageWord::parse(input).map(Event::RamWord)
        }
    }

    /// The next piece of a payload; `None` when it is over.
    fn payload<'a>(&mut self, input: &mut Cursor<'a>, tail: Tail) -> Result<Option<Event<'a>>, Fault> {
        let Payload { hint, searched, .. } = self.payload;
        let count = match extent::find(input.rest(), searched, hint, &self.grammar, tail) {
            Found::End(count) => {
                self.payload.ended = true;
                count
            }
            Found::Piece => PIECE,
            // Nothing is lost: what is there is handed out before the missing end is reported.
            Found::More { .. } if tail == Tail::Closed && !input.is_empty() => input.remaining(),
            Found::More { missing, searched } => {
                self.payload.searched = searched;
                return Err(Fault::More { field: "the end of the payload", missing });
            }
        };
        if count == 0 {
            return Ok(None);
        }
        self.payload.searched = 0;
        self.payload.hint = hint.and_then(|left| left.checked_sub(count as u64));
        input.take("payload", count).map(|bytes| Some(Event::Payload(Bulk::Bytes(bytes))))
    }

    fn trailing<'a>(&self, input: &mut Cursor<'a>, tail: Tail) -> Result<Event<'a>, Fault> {
        if tail == Tail::Open && input.remaining() < PIECE {
            return Err(Fault::More { field: "trailing bytes", missing: PIECE - input.remaining() });
        }
        input.take("trailing bytes", input.remaining().min(PIECE)).map(|b| Event::Trailing(Bulk::Bytes(b)))
    }
}

impl ChannelParser for Parser {
    type Event<'a> = Event<'a>;

    fn step<'a>(&mut self, input: &'a [u8], tail: Tail) -> Result<Step<'a, Event<'a>>> {
        let (input, tail, package) = self.fence(input, tail);
        let mut cursor = Cursor::new(self.offset, input);
        let event = match self.lex(&mut cursor, tail) {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Step::End),
            Err(Fault::Bad(error)) => return Err(error),
            Err(Fault::More { missing, .. }) if tail != Tail::Closed => return Ok(Step::More(missing)),
            Err(Fault::More { field, missing }) => {
                let at = self.offset + input.len() as u64;
                let what = if package { "the package" } else { "the stream" };
                let message = match (self.grammar.phase(), self.grammar.current_section(), missing) {
                    (Phase::Payload, Some((_, id, section)), _) if !self.payload.ended => {
                        format!(
                            "{what} ends here, and no end of section {id:#x} {:?} was found before",
                            section.name()
                        )
                    }
                    (_, _, 0 | 1) => format!("{what} ends here, inside {field}"),
                    (_, _, n) => format!("{what} ends here, {n} bytes short of {field}"),
                };
                let kind = if package { ErrorKind::Malformed } else { ErrorKind::Truncated };
                return Err(Error::new(kind, at, self.doing(), message));
            }
        };
        let start = self.offset;
        self.grammar.admit(&event, start)?;
        if let Event::Section(head) = &event {
            let hint = match head.identity {
                Some(identity) => self.extents.take(identity.idstr.0, identity.instance_id),
                None => None,
            };
            self.payload = Payload { hint, ..Payload::default() };
        }
        self.offset += event.wire_len();
        let consumed = (self.offset - start - event.elided()) as usize;
        Ok(Step::Event(Located { event, range: start..self.offset, raw: &input[..consumed] }))
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn expected(&self) -> &'static str {
        self.grammar.expected()
    }
}

/// The next piece of a run of bytes whose length is known.
fn piece<'a>(input: &mut Cursor<'a>, left: u64, field: &'static str) -> Result<Bulk<'a>, Fault> {
    let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    input.take(field, count).map(Bulk::Bytes)
}
