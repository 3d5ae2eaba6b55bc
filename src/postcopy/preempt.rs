//! The preempt channel: pages that were asked for, past those that were not.
//!
//! ```text
//! be64 word  [str8 block]  page | fill     as on the main channel, over and over
//! be64 0x10                                EOS, from a source before 8.0 or with x-preempt-pre-7-2
//! ```
//! No magic, no sections. CONTINUE refers to the pages of this channel. Source: `migration/postcopy-ram.c`,
//! `postcopy_preempt_thread`; `migration/ram.c`, `ram_load_postcopy`.

use std::sync::Arc;

use crate::channel::{ChannelEvent, ChannelParser, Located, Step, Tail};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::stream::{Block, HostPage, Mode};
use crate::wire::{Cursor, Fault, Page, PageBody, PageWord, RamFlags, Sink, Wire as _};

const DOING: &str = "preempt channel";

/// What comes on a preempt channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Urgent<'a> {
    /// A page.
    Page(Page<'a>),
    /// A word that names no page: EOS, the last of the channel.
    Word(PageWord),
}

impl ChannelEvent for Urgent<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Page(_) => "RAM page",
            Self::Word(_) => "RAM word",
        }
    }

    fn emit(&self, out: &mut impl Sink) {
        match self {
            Self::Page(page) => page.emit(out),
            Self::Word(word) => word.emit(out),
        }
    }

    fn wire_len(&self) -> u64 {
        match self {
            Self::Page(page) => page.wire_len(),
            Self::Word(word) => word.wire_len() as u64,
        }
    }

    fn elided(&self) -> u64 {
        match self {
            Self::Page(page) => page.wire_len() - page.head_len() as u64,
            Self::Word(_) => 0,
        }
    }
}

/// Step parser of a preempt channel. Where the main channel's blocks are known, pages are held against them.
#[derive(Clone, Debug)]
pub struct PreemptParser {
    channel: ChannelId,
    mode: Mode,
    page_size: u64,
    blocks: Option<Arc<[Block]>>,
    elide: bool,
    offset: u64,
    current: Option<usize>,
    has_name: bool,
    host_page: HostPage,
    ended: bool,
}

impl PreemptParser {
    /// A parser for pages of that size.
    pub fn new(mode: Mode, page_size: u64) -> Self {
        Self {
            channel: ChannelId::Preempt,
            mode,
            page_size,
            blocks: None,
            elide: false,
            offset: 0,
            current: None,
            has_name: false,
            host_page: HostPage::default(),
            ended: false,
        }
    }

    /// The same, of a guest with these blocks.
    #[must_use]
    pub fn with_blocks(mut self, blocks: Arc<[Block]>) -> Self {
        self.blocks = Some(blocks);
        self
    }

    /// The same, of the channel that was opened again after a pause.
    #[must_use]
    pub fn on(mut self, channel: ChannelId) -> Self {
        self.channel = channel;
        self
    }

    /// The same, that leaves pages unread.
    #[must_use]
    pub fn with_elision(mut self) -> Self {
        self.elide = true;
        self
    }

    /// The block of the last page, by its place in the block list, if that is known.
    pub fn current_block(&self) -> Option<usize> {
        self.current
    }

    /// Target page size.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Whether the source has said that nothing more comes.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn lex<'a>(&self, input: &mut Cursor<'a>) -> Result<Urgent<'a>, Fault> {
        let word = PageWord(input.clone().be64("page word")?);
        if word.flags(self.page_size).is_page() {
            Page::parse(input, self.page_size, self.elide).map(Urgent::Page)
        } else {
            PageWord::parse(input).map(Urgent::Word)
        }
    }

    fn admit(&mut self, event: &Urgent<'_>) -> Result<()> {
        let wrong = match event {
            _ if self.ended => Some((ErrorKind::OutOfOrder, "behind EOS".to_owned())),
            Urgent::Word(word) => match word.flags(self.page_size).action() {
                RamFlags::EOS => {
                    self.ended = true;
                    None
                }
                flags => {
                    Some((ErrorKind::Malformed, format!("flags {flags:?}, where a page or EOS is expected")))
                }
            },
            Urgent::Page(page) => self.wrong_with(page),
        };
        match wrong {
            Some((kind, message)) if self.mode == Mode::Strict => Err(self.error(kind, message)),
            _ => Ok(()),
        }
    }

    fn wrong_with(&mut self, page: &Page<'_>) -> Option<(ErrorKind, String)> {
        if let Some(name) = page.block {
            self.has_name = true;
            let blocks = self.blocks.as_deref().unwrap_or_default();
            self.current = blocks.iter().position(|block| *block.name == *name.0);
            if self.current.is_none() && self.blocks.is_some() {
                return Some((
                    ErrorKind::Malformed,
                    format!("a page of block {name:?}, which the guest does not have"),
                ));
            }
        }
        if !self.has_name {
            return Some((
                ErrorKind::Malformed,
                "CONTINUE, but no page before it has named a block".to_owned(),
            ));
        }
        if matches!(page.body, PageBody::Xbzrle { .. }) {
            return Some((
                ErrorKind::OutOfOrder,
                "a delta, where pages come whole or as one byte".to_owned(),
            ));
        }
        let index = self.current?;
        let block = self.blocks.as_deref()?.get(index)?;
        let at = page.word.offset(self.page_size);
        if at >= block.used_length {
            let message = format!(
                "offset {at:#x} is past the end of its block, which has {:#x} bytes",
                block.used_length
            );
            return Some((ErrorKind::Malformed, message));
        }
        if !self.host_page.take((index, block), at, self.page_size) {
            let message = "a page before all of the host page that was begun: they must follow each other";
            return Some((ErrorKind::OutOfOrder, message.to_owned()));
        }
        None
    }

    fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, self.offset, DOING, message).on(self.channel)
    }
}

impl ChannelParser for PreemptParser {
    type Event<'a> = Urgent<'a>;

    fn step<'a>(&mut self, input: &'a [u8], tail: Tail) -> Result<Step<'a, Urgent<'a>>> {
        if input.is_empty() {
            return match tail {
                Tail::Open => Ok(Step::More(1)),
                _ if self.host_page.is_open() && self.mode == Mode::Strict => {
                    Err(self.error(ErrorKind::Truncated, "the channel ends here, inside a host page"))
                }
                _ => Ok(Step::End),
            };
        }
        let mut cursor = Cursor::new(self.offset, input);
        let event = match self.lex(&mut cursor) {
            Ok(event) => event,
            Err(Fault::Bad(error)) => return Err(error.on(self.channel)),
            Err(Fault::More { missing, .. }) if tail != Tail::Closed => return Ok(Step::More(missing)),
            Err(Fault::More { field, .. }) => {
                let at = self.offset + input.len() as u64;
                let message = format!("the channel ends here, inside {field}");
                return Err(self.error(ErrorKind::Truncated, message).at(at));
            }
        };
        self.admit(&event)?;
        let start = self.offset;
        self.offset += event.wire_len();
        let consumed = (self.offset - start - event.elided()) as usize;
        Ok(Step::Event(Located { event, range: start..self.offset, raw: &input[..consumed] }))
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn expected(&self) -> &'static str {
        if self.ended { "nothing" } else { "a page" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Bulk, Name};

    fn blocks() -> Arc<[Block]> {
        [
            Block { name: b"ram"[..].into(), used_length: 0x4000, huge_page: None },
            Block { name: b"huge"[..].into(), used_length: 0x4000, huge_page: Some(0x2000) },
        ]
        .into()
    }

    fn page(block: Option<&'static str>, offset: u64, byte: u8) -> Vec<u8> {
        let flags = if block.is_none() { RamFlags::PAGE | RamFlags::CONTINUE } else { RamFlags::PAGE };
        let bytes = [byte; 4096];
        let body = PageBody::Raw(Bulk::Bytes(&bytes));
        let mut out = Vec::new();
        Page { word: PageWord::new(offset, flags), block: block.map(Name::from), body }.emit(&mut out);
        out
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<(&'static str, std::ops::Range<u64>)>> {
        let mut parser = PreemptParser::new(Mode::Strict, 4096).with_blocks(blocks());
        let (mut start, mut end, mut found) = (0, 0, Vec::new());
        loop {
            let tail = if end == bytes.len() { Tail::Closed } else { Tail::Open };
            match parser.step(&bytes[start..end], tail)? {
                Step::End => return Ok(found),
                Step::More(_) => end = (end + step).min(bytes.len()),
                Step::Event(located) => {
                    let mut out = Vec::new();
                    located.event.emit(&mut out);
                    assert_eq!(out, located.raw);
                    start += located.raw.len();
                    found.push((located.event.name(), located.range));
                }
            }
        }
    }

    #[test]
    fn pages_then_eos_whole_and_in_pieces() {
        let bytes =
            [page(Some("ram"), 0x1000, 1), page(None, 0x3000, 2), 0x10u64.to_be_bytes().into()].concat();
        let whole = read(&bytes, bytes.len()).unwrap();
        assert_eq!(whole.len(), 3);
        assert_eq!(whole.last(), Some(&("RAM word", bytes.len() as u64 - 8..bytes.len() as u64)));
        assert_eq!(whole, read(&bytes, 7).unwrap());
        assert_eq!(read(&[], 1).unwrap(), []);
    }

    #[test]
    fn what_a_destination_refuses() {
        let refused = |bytes: &[u8]| read(bytes, bytes.len()).unwrap_err().to_string();
        insta::assert_snapshot!(refused(&page(None, 0, 1)), @"preempt channel: CONTINUE, but no page before it has named a block (preempt channel, offset 0x0)");
        insta::assert_snapshot!(refused(&page(Some("rom"), 0, 1)), @r#"preempt channel: a page of block "rom", which the guest does not have (preempt channel, offset 0x0)"#);
        insta::assert_snapshot!(refused(&page(Some("ram"), 0x4000, 1)), @"preempt channel: offset 0x4000 is past the end of its block, which has 0x4000 bytes (preempt channel, offset 0x0)");
        let torn = [page(Some("huge"), 0, 1), page(None, 0x2000, 1)].concat();
        insta::assert_snapshot!(refused(&torn), @"preempt channel: a page before all of the host page that was begun: they must follow each other (preempt channel, offset 0x100d)");
        insta::assert_snapshot!(refused(&torn[..0x100d]), @"preempt channel: the channel ends here, inside a host page (preempt channel, offset 0x100d)");
        insta::assert_snapshot!(refused(&torn[..0x1000]), @"preempt channel: the channel ends here, inside page (preempt channel, offset 0x1000)");
        let late = [0x10u64.to_be_bytes().into(), page(Some("ram"), 0, 1)].concat();
        insta::assert_snapshot!(refused(&late), @"preempt channel: behind EOS (preempt channel, offset 0x8)");
        insta::assert_snapshot!(refused(&0x20u64.to_be_bytes()), @"preempt channel: flags 0x0: none, where a page or EOS is expected (preempt channel, offset 0x0)");
    }
}
