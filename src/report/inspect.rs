//! A summary of a channel: what it is, what is in it, who may have written it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::ControlFlow;

use serde::Serialize;

use super::evidence::Evidence;
use super::migration::{PacketSummary, Packets};
use super::reading::{Chapter, Reading, unsupported};
use super::words;
use crate::channel::{Feed, Located};
use crate::container::{Access, Part, unwrap_error};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::{MAX_RAM_BLOCKS, MAX_SECTIONS, PIECE};
use crate::postcopy::{Reply, Urgent};
use crate::stream::{Event, Grammar, Parser};
use crate::vmstate::{Description, Style};
use crate::wire::{ConfigurationSubsection, Message, PageBody, RamBlock, SectionHead, SectionKind};

/// Commands and messages beyond this many are counted but not kept.
const MAX_LINES: usize = 1000;

/// Largest bitmap of a mapped-ram block that is counted: a bit a page, so 16 TiB of small pages.
const MAX_BITMAP: u64 = 512 << 20;

/// Summary of a channel.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Which channel, in words.
    pub channel: String,
    /// Its name, where a file has several of that kind.
    pub label: Option<String>,
    /// Bytes that were read.
    pub bytes: u64,
    /// Machine type, from the configuration record.
    pub machine: Option<String>,
    /// Target page size.
    pub page_size: u64,
    /// The guest's UUID, if it was sent.
    pub uuid: Option<String>,
    /// Capabilities that the configuration record names.
    pub capabilities: Vec<String>,
    /// Whether sections have footers; nobody knows without a section.
    pub footers: Option<bool>,
    /// The VM description.
    pub description: Option<DescriptionSummary>,
    /// Who may have written it.
    pub writer: Writer,
    /// Blocks of RAM, and their pages.
    pub blocks: Vec<BlockSummary>,
    /// All pages.
    pub pages: PageCounts,
    /// PART records of RAM.
    pub parts: u64,
    /// How often the sender went through memory: a page in front of its predecessor begins another time.
    pub iterations: u64,
    /// Sections in order of appearance.
    pub sections: Vec<SectionSummary>,
    /// Commands, or messages of a return path, in order; like ones in a row are one line.
    pub lines: Vec<Line>,
    /// How many of those were not kept.
    pub lines_left_out: u64,
    /// Whether a postcopy was begun.
    pub postcopy: bool,
    /// What a multifd channel has, if this is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd: Option<PacketSummary>,
    /// Status that the destination sent at the end of a return path.
    pub shut: Option<u32>,
    /// Bytes behind the end.
    pub trailing: u64,
    /// What is worth knowing but no fault.
    pub notes: Vec<String>,
    /// What was forgiven.
    #[serde(skip)]
    pub complaints: Vec<Error>,
    /// Why reading stopped before the end.
    #[serde(skip)]
    pub error: Option<Error>,
}

/// The VM description, in short.
#[derive(Debug, Serialize)]
pub struct DescriptionSummary {
    /// Bytes of text.
    pub bytes: u64,
    /// `spaced` or `compact`.
    pub style: Option<&'static str>,
    /// Sections that it describes.
    pub devices: usize,
}

/// Who may have written a stream.
#[derive(Debug, Default, Serialize)]
pub struct Writer {
    /// Releases that fit, oldest first.
    pub releases: Vec<String>,
    /// What it shows.
    pub evidence: Vec<String>,
}

/// Pages by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PageCounts {
    /// As they are.
    pub raw: u64,
    /// Of a single byte value.
    pub zero: u64,
    /// Deltas.
    pub xbzrle: u64,
    /// Compressed one by one.
    pub compressed: u64,
}

/// A block of RAM.
#[derive(Debug, Serialize)]
pub struct BlockSummary {
    /// Its name.
    pub name: String,
    /// Bytes in use.
    pub length: u64,
    /// Size of the pages behind it, where it was sent.
    pub page_size: Option<u64>,
    /// Guest physical address, where it was sent.
    pub gpa: Option<u64>,
    /// Pages by kind. In a mapped-ram file: present and absent ones, by the bitmap.
    pub pages: PageCounts,
    #[serde(skip)]
    mapped: Option<(u64, u64)>,
}

/// A section: all its records together.
#[derive(Debug, Serialize)]
pub struct SectionSummary {
    /// Number in the stream.
    pub id: u32,
    /// Name of the handler.
    pub name: String,
    /// Which of several of that name.
    pub instance_id: u32,
    /// Version of its layout.
    pub version_id: u32,
    /// `START` for sections that came in parts, `FULL` for those that came at once.
    pub kind: String,
    /// Number of records.
    pub records: u64,
    /// Bytes of payload in all of them.
    pub payload: u64,
}

/// A command or message, perhaps several times in a row.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Where the first one begins.
    pub offset: u64,
    /// What it says.
    pub what: String,
    /// How often it comes in a row.
    pub count: u64,
}

impl PageCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.raw + self.zero + self.xbzrle + self.compressed
    }

    fn add(&mut self, body: &PageBody<'_>) {
        *match body {
            PageBody::Raw(_) => &mut self.raw,
            PageBody::Zero(_) => &mut self.zero,
            PageBody::Xbzrle { .. } => &mut self.xbzrle,
            PageBody::Compressed(_) => &mut self.compressed,
        } += 1;
    }
}

/// Summarizes a channel.
#[must_use]
pub fn inspect(part: &mut Part, reading: &Reading) -> Summary {
    let mut summary =
        Summary { channel: part.channel.to_string(), label: part.label.clone(), ..Summary::default() };
    let result = match part.channel {
        ChannelId::Main => main_channel(part, reading, &mut summary),
        ChannelId::ReturnPath | ChannelId::ResumedReturnPath(_) => return_path(part, reading, &mut summary),
        ChannelId::Preempt | ChannelId::ResumedPreempt(_) => preempt(part, reading, &mut summary),
        ChannelId::Resumed(pause) => resumed(pause, part, reading, &mut summary),
        ChannelId::Multifd(id) => multifd(id, part, reading, &mut summary),
        other => Err(unsupported(other)),
    };
    summary.error = result.err().map(unwrap_error);
    forgive(&mut summary, part.channel, reading);
    summary
}

/// A connection that broke in postcopy may end inside of a record.
pub(super) fn forgive(summary: &mut Summary, channel: ChannelId, reading: &Reading) {
    let Some(error) = &summary.error else { return };
    if error.kind() == ErrorKind::Truncated && reading.legs.goes_on(channel) {
        summary
            .notes
            .push(format!("the connection broke off ({error}); the migration went on over another one"));
        summary.error = None;
    }
}

fn resumed(pause: u32, part: &mut Part, reading: &Reading, summary: &mut Summary) -> Result<()> {
    let mut parser = reading.legs.resumed(pause, Access::Outline)?;
    let mut collector = Collector::new(summary);
    let result = Feed::new(part.input(Access::Outline)?).run(&mut parser, |located, parser: &Parser| {
        collector.note(located, parser.grammar());
        Ok(ControlFlow::Continue(()))
    });
    collector.finish(parser.grammar(), reading, result).1.map_err(|error| error.on(part.channel))
}

fn preempt(part: &mut Part, reading: &Reading, summary: &mut Summary) -> Result<()> {
    let mut parser = reading.preempt(part.channel, Access::Outline);
    summary.page_size = parser.page_size();
    Feed::new(part.input(Access::Outline)?).run(&mut parser, |located, _| {
        summary.bytes = located.range.end;
        match &located.event {
            Urgent::Page(page) => summary.pages.add(&page.body),
            Urgent::Word(_) => summary.line(located.range.start, "EOS".to_owned()),
        }
        Ok(ControlFlow::Continue(()))
    })
}

fn main_channel(part: &mut Part, reading: &Reading, summary: &mut Summary) -> Result<()> {
    let (mut feed, mut parser) = reading.main_channel(part, Access::Outline)?;
    let mut collector = Collector::new(summary);
    let result = feed.run(&mut parser, |located, parser: &Parser| {
        collector.note(located, parser.grammar());
        Ok(ControlFlow::Continue(()))
    });
    let (_, outcome) = collector.finish(parser.grammar(), reading, result);
    if let Some(path) = part.file() {
        let counted = File::open(path).and_then(|mut file| count_mapped(&mut file, &mut summary.blocks));
        if let Err(e) = counted {
            summary.notes.push(format!("the bitmaps of mapped-ram cannot be read: {e}"));
        }
    }
    outcome
}

fn multifd(id: u8, part: &mut Part, reading: &Reading, summary: &mut Summary) -> Result<()> {
    let (mut feed, mut parser) = reading.multifd(part, Access::Outline)?;
    let mut packets = Packets::default();
    let result = feed.run(&mut parser, |located, parser| {
        packets.note(located, parser);
        Ok(ControlFlow::Continue(()))
    });
    packets.summarize(id, parser.page_size(), summary);
    summary.complaints = parser.complaints().to_vec();
    result.map_err(|error| error.on(part.channel))
}

fn return_path(part: &mut Part, reading: &Reading, summary: &mut Summary) -> Result<()> {
    let (mut feed, mut parser) = reading.return_path(part)?;
    let mut evidence = Evidence::default();
    let result = feed.run(&mut parser, |located, _| {
        summary.bytes = located.range.end;
        if let Reply::Message(message) = &located.event {
            if matches!(message, Message::SwitchoverAck) {
                evidence.note_switchover_ack();
            }
            // Where each page was asked for matters to a dump; here their number does.
            let what = match message {
                Message::ReqPages { .. } | Message::ReqPagesId { .. } => "requests for pages".to_owned(),
                _ => words::reply(&located.event),
            };
            summary.line(located.range.start, what);
        }
        Ok(ControlFlow::Continue(()))
    });
    summary.shut = parser.shut();
    summary.writer = Writer::new(&evidence);
    result
}

impl Summary {
    fn line(&mut self, offset: u64, what: String) {
        let full = self.lines.len() >= MAX_LINES;
        match self.lines.last_mut() {
            Some(last) if last.what == what => last.count += 1,
            _ if full => self.lines_left_out += 1,
            _ => self.lines.push(Line { offset, what, count: 1 }),
        }
    }
}

impl Writer {
    pub(super) fn new(evidence: &Evidence) -> Self {
        let machine = evidence.machine().map(|release| format!("the machine type is of {release}"));
        Self {
            releases: evidence.candidates().iter().map(ToString::to_string).collect(),
            evidence: machine
                .into_iter()
                .chain(evidence.facts().iter().map(|fact| fact.what.to_owned()))
                .collect(),
        }
    }
}

/// What is collected while a main channel passes.
pub(super) struct Collector<'s> {
    summary: &'s mut Summary,
    evidence: Evidence,
    chapter: Chapter,
    /// Row of every block of the list that is in force; one that is not there for blocks beyond their cap.
    rows: Vec<usize>,
    /// Row of every block that ever was.
    named: HashMap<Box<[u8]>, usize>,
    /// Block and offset of the last page.
    place: Option<(usize, u64)>,
    /// Row of every section id.
    sections: HashMap<u32, usize>,
    /// The section that is open: its row, and where its payload begins.
    open: Option<(usize, u64)>,
}

impl<'s> Collector<'s> {
    pub(super) fn new(summary: &'s mut Summary) -> Self {
        Self {
            summary,
            evidence: Evidence::default(),
            chapter: Chapter::default(),
            rows: Vec::new(),
            named: HashMap::new(),
            place: None,
            sections: HashMap::new(),
            open: None,
        }
    }

    pub(super) fn note(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) {
        self.evidence.note(located);
        self.summary.bytes = located.range.end;
        if let Event::Page(page) = &located.event {
            self.summary.pages.add(&page.body);
            let Some(block) = grammar.current_block() else { return };
            if let Some(row) = self.rows.get(block).and_then(|row| self.summary.blocks.get_mut(*row)) {
                row.pages.add(&page.body);
            }
            let place = (block, page.word.offset(grammar.page_size()));
            if self.place.is_none_or(|before| place <= before) {
                self.summary.iterations += 1;
            }
            self.place = Some(place);
            return;
        }
        self.chapter.note(&located.event, located.range.end);
        match &located.event {
            Event::Configuration(configuration) => {
                self.summary.machine = Some(configuration.machine.to_string());
            }
            Event::ConfigurationSubsection(sub) => match sub {
                ConfigurationSubsection::Uuid { uuid, .. } => self.summary.uuid = Some(words::uuid(uuid)),
                ConfigurationSubsection::Capabilities { names, .. } => {
                    self.summary.capabilities = names.iter().map(ToString::to_string).collect();
                }
                ConfigurationSubsection::TargetPageBits { .. } => {}
            },
            Event::RamBlock(block) => self.block(block, grammar),
            Event::Section(head) => {
                self.close(located.range.start);
                self.section(head, located.range.end, grammar);
            }
            Event::Footer(_) | Event::Eof => self.close(located.range.start),
            Event::Command(command) => {
                self.close(located.range.start);
                self.summary.line(located.range.start, words::command(command));
            }
            Event::Trailing(bulk) => self.summary.trailing += bulk.len(),
            _ => {}
        }
    }

    fn block(&mut self, block: &RamBlock<'_>, grammar: &Grammar) {
        // The list may come again; blocks that were there before keep their row.
        self.rows.truncate(grammar.blocks().len().saturating_sub(1));
        let row = match self.named.get(block.name.0) {
            Some(row) => *row,
            None if self.summary.blocks.len() >= MAX_RAM_BLOCKS => usize::MAX,
            None => {
                let row = self.summary.blocks.len();
                self.named.insert(block.name.0.into(), row);
                self.summary.blocks.push(BlockSummary {
                    name: block.name.to_string(),
                    length: block.used_length,
                    page_size: block.page_size,
                    gpa: block.gpa,
                    pages: PageCounts::default(),
                    mapped: block.mapped.map(|mapped| (mapped.bitmap_offset, mapped.page_size)),
                });
                row
            }
        };
        self.rows.push(row);
    }

    fn section(&mut self, head: &SectionHead<'_>, payload: u64, grammar: &Grammar) {
        let id = head.section_id;
        let known = self.sections.get(&id).copied().filter(|row| {
            let row = &self.summary.sections[*row];
            head.identity
                .is_none_or(|i| (&row.name, row.instance_id) == (&i.idstr.to_string(), i.instance_id))
        });
        let row = known.or_else(|| {
            let section = grammar.section(id).filter(|_| self.summary.sections.len() < MAX_SECTIONS)?;
            self.summary.sections.push(SectionSummary {
                id,
                name: section.name().to_string(),
                instance_id: section.instance_id,
                version_id: section.version_id,
                kind: head.kind.to_string(),
                records: 0,
                payload: 0,
            });
            Some(self.summary.sections.len() - 1)
        });
        if let Some(row) = row {
            self.sections.insert(id, row);
            self.summary.sections[row].records += 1;
            self.open = Some((row, payload));
        }
        if head.kind == SectionKind::PART && grammar.section(id).is_some_and(|section| section.is_ram()) {
            self.summary.parts += 1;
        }
    }

    fn close(&mut self, end: u64) {
        if let Some((row, start)) = self.open.take() {
            self.summary.sections[row].payload += end - start;
        }
    }

    /// Completes the summary; what the channel shows, and why it could not be read to its end.
    pub(super) fn finish(
        mut self,
        grammar: &Grammar,
        reading: &Reading,
        result: Result<()>,
    ) -> (Evidence, Result<()>) {
        // A section that the stream ends in has what has come of it.
        self.close(self.summary.bytes);
        let summary = self.summary;
        summary.page_size = grammar.page_size();
        summary.footers = grammar.footers();
        summary.postcopy = grammar.is_postcopy();
        summary.complaints = grammar.complaints().to_vec();
        let mut fault = result.err();
        if let Some(text) = self.chapter.text().filter(|_| fault.is_none()) {
            let read = self.chapter.description().unwrap_or_else(|| Ok(Description::default()));
            summary.description = Some(DescriptionSummary {
                bytes: text.len() as u64,
                style: Description::style(text).map(|style| match style {
                    Style::Spaced => "spaced",
                    Style::Compact => "compact",
                }),
                devices: read.as_ref().map_or(0, |description| description.devices.len()),
            });
            match read {
                Ok(description) => {
                    self.evidence.note_description(text, &description, summary.machine.is_some());
                    summary.notes = self.chapter.disagreements(&description);
                }
                Err(error) => fault = Some(error),
            }
        } else if let Some(schema) = &reading.schema {
            summary.notes = self.chapter.strangers(schema);
        }
        summary.writer = Writer::new(&self.evidence);
        (self.evidence, fault.map_or(Ok(()), Err))
    }
}

/// Counts the pages that the bitmaps of a mapped-ram file say are there.
fn count_mapped(file: &mut (impl Read + Seek), blocks: &mut [BlockSummary]) -> io::Result<()> {
    for block in blocks {
        let Some((bitmap, page_size)) = block.mapped.filter(|(_, page_size)| page_size.is_power_of_two())
        else {
            continue;
        };
        let pages = block.length.div_ceil(page_size);
        let bytes = pages.div_ceil(64) * 8;
        // An ignored block has no bitmap (both offsets are 0).
        if bitmap == 0 || bytes > MAX_BITMAP {
            continue;
        }
        file.seek(SeekFrom::Start(bitmap))?;
        let mut bits = (&mut *file).take(bytes);
        let mut buffer = vec![0; PIECE];
        let mut present = 0u64;
        loop {
            match bits.read(&mut buffer)? {
                0 => break,
                count => {
                    present += buffer[..count].iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
                }
            }
        }
        block.pages = PageCounts {
            raw: present.min(pages),
            zero: pages.saturating_sub(present),
            ..PageCounts::default()
        };
    }
    Ok(())
}
