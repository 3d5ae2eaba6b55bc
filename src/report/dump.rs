//! Every byte of a channel, and what it is.
//!
//! ```text
//! event  event  event      one range each, without gap
//! [--------------] row     like pages in a row, pieces of one payload: one row with their number
//! [ PART EOS FOOTER ]*n    parts of RAM without a page: one row for all of them
//! ```
//! Rows tile the channel as the events do; a dump that does not is an error, not a shorter dump.

use std::io;
use std::ops::ControlFlow;

use super::reading::{Reading, unsupported};
use super::words;
use crate::channel::{Feed, Located};
use crate::container::{Access, Part, unwrap_error};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::multifd::Packet;
use crate::stream::{Event, Grammar};
use crate::wire::{Bulk, PageBody, RamFlags, SectionKind};

/// First bytes that a row shows.
const SHOWN: usize = 16;

/// A run of bytes and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where it begins in the channel.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
    /// The first of them, at most 16.
    pub first: Vec<u8>,
    /// How deep it stands inside of others: sections in a package, words in a section.
    pub depth: usize,
    /// How many like records it stands for.
    pub count: u64,
    /// What it is.
    pub what: String,
    tag: Option<Tag>,
}

/// What can be merged with what.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tag {
    /// Pieces of the same thing.
    Piece(&'static str),
    /// Pages of one kind and block; the next one would be at this offset.
    Pages {
        kind: &'static str,
        block: Option<usize>,
        first: u64,
        next: u64,
    },
    /// PART of RAM, its EOS, its footer.
    Part(u32),
    Eos,
    Footer(u32),
}

/// What came of a dump.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Bytes that were dumped.
    pub bytes: u64,
    /// Why it stopped before the end.
    pub error: Option<Error>,
    /// What was forgiven.
    pub complaints: Vec<Error>,
}

/// Dumps a channel: `show` gets every row.
///
/// # Errors
/// Those of `show`. A fault of the channel is part of the [`Outcome`].
pub fn dump(
    part: &mut Part,
    reading: &Reading,
    show: &mut dyn FnMut(&Row) -> io::Result<()>,
) -> io::Result<Outcome> {
    let mut rows = Rows::new(show);
    let mut outcome = Outcome::default();
    let size = part.size();
    let result = match part.channel {
        ChannelId::Main => main_channel(part, reading, &mut rows, &mut outcome),
        ChannelId::ReturnPath | ChannelId::ResumedReturnPath(_) => return_path(part, reading, &mut rows),
        ChannelId::Preempt | ChannelId::ResumedPreempt(_) => preempt(part, reading, &mut rows),
        ChannelId::Resumed(pause) => resumed(pause, part, reading, &mut rows, &mut outcome),
        ChannelId::Multifd(_) => multifd(part, reading, &mut rows, &mut outcome),
        other => Err(unsupported(other)),
    };
    let end = rows.finish()?;
    outcome.bytes = end;
    outcome.error = match result {
        // A connection that broke in postcopy may end inside of a record.
        Err(error) if error.kind() == ErrorKind::Truncated && reading.legs.goes_on(part.channel) => {
            outcome.complaints.push(unwrap_error(error));
            None
        }
        Err(error) => Some(unwrap_error(error)),
        Ok(()) => size.filter(|size| *size != end).map(|size| {
            let message = format!("the rows end here, the channel has {size} bytes");
            Error::new(ErrorKind::Misuse, end, "dumping", message).on(part.channel)
        }),
    };
    Ok(outcome)
}

fn main_channel(
    part: &mut Part,
    reading: &Reading,
    rows: &mut Rows<'_>,
    outcome: &mut Outcome,
) -> Result<()> {
    // Pages are skipped, wherever they come from, so that the rows are the same.
    let (mut feed, mut parser) = reading.main_channel(part, Access::Outline)?;
    let result = feed.run(&mut parser, |located, parser| rows.main_event(located, parser.grammar()));
    outcome.complaints = parser.grammar().complaints().to_vec();
    result
}

fn resumed(
    pause: u32,
    part: &mut Part,
    reading: &Reading,
    rows: &mut Rows<'_>,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut parser = reading.legs.resumed(pause, Access::Outline)?;
    let mut feed = Feed::new(part.input(Access::Outline)?);
    let result = feed.run(&mut parser, |located, parser| rows.main_event(located, parser.grammar()));
    outcome.complaints = parser.grammar().complaints().to_vec();
    result.map_err(|error| error.on(part.channel))
}

fn preempt(part: &mut Part, reading: &Reading, rows: &mut Rows<'_>) -> Result<()> {
    let channel = part.channel;
    let mut parser = reading.preempt(channel, Access::Outline);
    Feed::new(part.input(Access::Outline)?).run(&mut parser, |located, parser| {
        let what = words::urgent(&located.event, parser.page_size());
        rows.push(Row::new(located.range.start, located.range.end, located.raw, what), channel)
    })
}

fn return_path(part: &mut Part, reading: &Reading, rows: &mut Rows<'_>) -> Result<()> {
    let (mut feed, mut parser) = reading.return_path(part)?;
    feed.run(&mut parser, |located, _| {
        let what = words::reply(&located.event);
        rows.push(Row::new(located.range.start, located.range.end, located.raw, what), part.channel)
    })
}

fn multifd(part: &mut Part, reading: &Reading, rows: &mut Rows<'_>, outcome: &mut Outcome) -> Result<()> {
    let channel = part.channel;
    let (mut feed, mut parser) = reading.multifd(part, Access::Outline)?;
    let result = feed.run(&mut parser, |located, parser| {
        let what = words::packet(&located.event, parser);
        let mut row = Row::new(located.range.start, located.range.end, located.raw, what);
        if let Packet::Payload(_) | Packet::DeviceData(_) = located.event {
            (row.depth, row.tag) = (1, Some(Tag::Piece("payload")));
        }
        rows.push(row, channel)
    });
    outcome.complaints = parser.complaints().to_vec();
    result.map_err(|error| error.on(channel))
}

impl Row {
    fn new(start: u64, end: u64, raw: &[u8], what: String) -> Self {
        let first = raw[..raw.len().min(SHOWN)].to_vec();
        Self { offset: start, len: end - start, first, depth: 0, count: 1, what, tag: None }
    }

    fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Takes in `next`, if it is more of the same.
    fn absorb(&mut self, next: &Self) -> bool {
        match (&mut self.tag, &next.tag) {
            (Some(Tag::Piece(kind)), Some(Tag::Piece(other))) if kind == other => {
                let room = SHOWN - self.first.len();
                self.first.extend(next.first.iter().take(room));
            }
            (
                Some(Tag::Pages { kind, block, next: expected, .. }),
                Some(Tag::Pages { kind: other, block: other_block, first, next: after }),
            ) if (&*kind, &*block, &*expected) == (other, other_block, first) => {
                *expected = *after;
                self.count += 1;
            }
            _ => return false,
        }
        self.len += next.len;
        true
    }

    /// The row in its final words.
    fn told(mut self, block: impl FnOnce() -> String) -> Self {
        if let Some(Tag::Pages { kind, first, next, .. }) = &self.tag {
            let block = block();
            self.what = match self.count {
                1 => format!("{kind} page {first:#x} of {block}"),
                count => format!("{count} {kind} pages {first:#x}..{next:#x} of {block}"),
            };
        }
        self
    }
}

/// Merges rows and hands them on.
struct Rows<'s> {
    show: &'s mut dyn FnMut(&Row) -> io::Result<()>,
    /// An error of `show`, which is the caller's and not the channel's.
    failure: Option<io::Error>,
    end: u64,
    pending: Option<Row>,
    /// Name of the block of the pages that are pending.
    block: String,
    /// The first rows of what may be another part without pages.
    held: Vec<Row>,
    /// Parts without pages: the rows of the first, and how many there were.
    run: Option<(Vec<Row>, u64, u64)>,
}

impl<'s> Rows<'s> {
    fn new(show: &'s mut dyn FnMut(&Row) -> io::Result<()>) -> Self {
        Self { show, failure: None, end: 0, pending: None, block: String::new(), held: Vec::new(), run: None }
    }

    fn main_event(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<ControlFlow<()>> {
        let event = &located.event;
        let tag = tag(event, grammar);
        // Most events are pages that only lengthen a row, and need no words.
        let what = match tag {
            Some(Tag::Pages { .. }) => String::new(),
            _ => words::event(event, grammar),
        };
        let nested = usize::from(grammar.package_end().is_some_and(|end| located.range.end < end));
        let inside = matches!(
            event,
            Event::RamWord(_) | Event::RamBlock(_) | Event::MappedRam(_) | Event::Page(_) | Event::Payload(_)
        );
        let mut row = Row::new(located.range.start, located.range.end, located.raw, what);
        row.depth =
            nested + usize::from(inside || matches!(event, Event::Footer(_) | Event::DescriptionText(_)));
        row.tag = tag;
        let absorbed =
            self.pending.as_mut().is_some_and(|pending| pending.end() == row.offset && pending.absorb(&row));
        if absorbed {
            self.end = row.end();
            return Ok(ControlFlow::Continue(()));
        }
        let flow = self.push(row, ChannelId::Main)?;
        if matches!(event, Event::Page(_)) {
            self.block = words::current_block(grammar);
        }
        Ok(flow)
    }

    /// Takes the next row, which must begin where the last one ended.
    fn push(&mut self, row: Row, channel: ChannelId) -> Result<ControlFlow<()>> {
        if row.offset != self.end {
            let message = format!("a gap: this row begins at {:#x}", row.offset);
            return Err(Error::new(ErrorKind::Misuse, self.end, "dumping", message).on(channel));
        }
        self.end = row.end();
        if let Some(before) = self.pending.replace(row) {
            let told = before.told(|| std::mem::take(&mut self.block));
            if let Err(e) = self.collapse(told) {
                self.failure = Some(e);
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Collects parts of RAM without a page, of which an idle migration has tens of thousands.
    fn collapse(&mut self, row: Row) -> io::Result<()> {
        let fits = match (self.held.len(), &row.tag) {
            (0, Some(Tag::Part(_))) | (1, Some(Tag::Eos)) => true,
            (2, Some(Tag::Footer(id))) => self.held[0].tag == Some(Tag::Part(*id)),
            _ => false,
        };
        if !fits {
            self.release()?;
            if !matches!(row.tag, Some(Tag::Part(_))) {
                return (self.show)(&row);
            }
        }
        self.held.push(row);
        if self.held.len() == 3 {
            let unit = std::mem::take(&mut self.held);
            let len: u64 = unit.iter().map(|row| row.len).sum();
            match &mut self.run {
                Some((first, count, total)) if first[0].tag == unit[0].tag => {
                    *count += 1;
                    *total += len;
                }
                _ => {
                    self.release()?;
                    self.run = Some((unit, 1, len));
                }
            }
        }
        Ok(())
    }

    /// Shows what was collected and held.
    fn release(&mut self) -> io::Result<()> {
        if let Some((unit, count, total)) = self.run.take() {
            if count == 1 {
                unit.iter().try_for_each(|row| (self.show)(row))?;
            } else {
                let mut row = unit[0].clone();
                row.first = unit.iter().flat_map(|row| row.first.iter().copied()).take(SHOWN).collect();
                (row.len, row.count) = (total, count);
                row.what = format!("{count} times {} without a page (EOS, footer)", row.what);
                (self.show)(&row)?;
            }
        }
        std::mem::take(&mut self.held).iter().try_for_each(|row| (self.show)(row))
    }

    /// Shows what is left; gives the end of the last row.
    fn finish(mut self) -> io::Result<u64> {
        if let Some(e) = self.failure {
            return Err(e);
        }
        if let Some(row) = self.pending.take() {
            let told = row.told(|| std::mem::take(&mut self.block));
            self.collapse(told)?;
        }
        self.release()?;
        Ok(self.end)
    }
}

fn tag(event: &Event<'_>, grammar: &Grammar) -> Option<Tag> {
    let page_size = grammar.page_size();
    match event {
        Event::Page(page) => {
            let first = page.word.offset(page_size);
            let next = first.wrapping_add(page_size);
            let kind = match page.body {
                // Pages of another fill byte are rare, and shown one by one with it.
                PageBody::Zero(fill) if fill != 0 => return None,
                _ => words::page_kind(page),
            };
            Some(Tag::Pages { kind, block: grammar.current_block(), first, next })
        }
        Event::Payload(_) => Some(Tag::Piece("payload")),
        Event::DescriptionText(_) => Some(Tag::Piece("text")),
        Event::Trailing(_) => Some(Tag::Piece("trailing")),
        Event::MappedRam(Bulk::Bytes(_)) => Some(Tag::Piece("mapped-ram")),
        Event::Section(head) if head.kind == SectionKind::PART => {
            grammar.section(head.section_id).filter(|s| s.is_ram()).map(|_| Tag::Part(head.section_id))
        }
        Event::RamWord(word) if word.flags(page_size) == RamFlags::EOS => Some(Tag::Eos),
        Event::Footer(footer) => Some(Tag::Footer(footer.section_id)),
        _ => None,
    }
}
