//! One migration made of another: over other channels, in another encoding, for another release, with other RAM.
//!
//! ```text
//! parts --> Together: events and packets, in the order of their synchronisations
//!             '--> Converter --page--> images? --> Window (shuffled?) --> main channel: page records
//!                     |                                              '--> Packer: packets of N channels
//!                     '-- everything else, as it stands, but for what the release does not know
//! ```
//! Rounds are kept: a page that was sent twice is sent twice. What is not asked for stays as it is; where that cannot be, it is said.
//! If nothing is asked for, every byte stays as it is.

mod packer;
mod plan;
mod window;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use self::packer::Packer;
pub use self::plan::Options;
use self::plan::{Images, Plan};
use self::window::{Content, Entry, Window};
use crate::channel::{Input as _, Located};
use crate::container::{Access, Item, Pages, Part, Together, TogetherOptions, unwrap_error};
use crate::dialect::Difference;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::{inflate, is_zero};
use crate::multifd::{Packet, SyncMode, ZeroPages};
use crate::stream::{Event, Grammar, Mode, Parser};
use crate::wire::{
    Bulk, Command, Name, Page, PageBody, PageWord, RamFlags, SectionHead, SectionKind, Wire as _,
};

const DOING: &str = "converting";

/// Bytes of the main channel that are gathered before they are written.
const GATHERED: usize = 256 << 10;

/// Where the channels of the new migration go.
pub trait Outlet {
    /// Takes bytes of a channel, in order.
    ///
    /// # Errors
    /// If they cannot be kept.
    fn put(&mut self, channel: ChannelId, bytes: &[u8]) -> Result<()>;
}

/// What was changed, and what was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What was done, and how often.
    pub counts: BTreeMap<&'static str, u64>,
    /// What the new migration lacks, or may meet.
    pub losses: Vec<String>,
}

impl Changes {
    fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_insert(0) += 1;
    }
}

/// Converts the channels of a migration. What was written when an error comes stays written.
///
/// # Errors
/// `Unsupported` for what cannot be converted, with the reason; faults of the channels; those of `outlet`.
pub fn convert(parts: &mut [Part], options: &Options, outlet: &mut dyn Outlet) -> Result<Changes> {
    let plan = Plan::new(parts, options)?;
    let mut changes = Changes { losses: plan.losses.clone(), ..Changes::default() };
    if plan.is_identity {
        for part in parts.iter_mut() {
            copy(part, outlet)?;
        }
        return Ok(changes);
    }
    let parser = Parser::with(Mode::Lenient, crate::dialect::Dialect::ANY);
    let together = TogetherOptions { parser, mode: Mode::Lenient, ..TogetherOptions::default() };
    let mut together = Together::open(parts, &together)?;
    let mut converter = Converter::new(&plan, outlet, &mut changes)?;
    let mut pages = Pages::default();
    together.run(|item| {
        match item {
            Item::Main(located, grammar) => {
                // Blocks are counted there as well.
                pages.take(item, |_| Ok(()))?;
                converter.main(located, grammar)?;
            }
            Item::Packet { channel, located, .. } if !plan.reframes => converter.packet(channel, located)?,
            Item::Packet { channel, located, .. } => {
                converter.device(channel, located)?;
                pages.take(item, |page| {
                    let Some(block) = page.block else { return Ok(()) };
                    let content = page.content.map_or(Content::Zero, Content::Raw);
                    converter.page(Entry { block, offset: page.offset, listed: true, content })
                })?;
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    converter.finish()?;
    if let Some(fault) = together.faults().iter().chain(pages.faults()).next() {
        return Err(fault.clone());
    }
    drop(together);
    // What the destination said, and what was asked for, belongs to the migration.
    for part in parts.iter_mut() {
        if !matches!(part.channel, ChannelId::Main | ChannelId::Multifd(_)) {
            copy(part, outlet)?;
        }
    }
    Ok(changes)
}

/// A channel as it stands.
fn copy(part: &mut Part, outlet: &mut dyn Outlet) -> Result<()> {
    let mut input = part.input(Access::Whole)?;
    let mut buffer = vec![0; GATHERED];
    loop {
        let failed = |e| unwrap_error(Error::io(DOING, "the channel cannot be read", e).on(part.channel));
        match input.read(&mut buffer).map_err(failed)? {
            0 => return Ok(()),
            count => outlet.put(part.channel, &buffer[..count])?,
        }
    }
}

struct Converter<'a> {
    plan: &'a Plan,
    outlet: &'a mut dyn Outlet,
    changes: &'a mut Changes,
    /// Bytes of the main channel that are not written yet.
    main: Vec<u8>,
    packer: Packer,
    window: Window,
    images: Option<Images>,
    blocks: Vec<Box<[u8]>>,
    page_size: u64,
    /// Block of the last page in the RAM section that is open.
    last: Option<usize>,
    /// The word that ends the RAM section, until all pages that belong in front of it have come.
    end: Option<(PageWord, SectionKind)>,
    /// What the input shows of its synchronisations.
    has_flush: bool,
    has_begun: bool,
    in_postcopy: bool,
}

impl<'a> Converter<'a> {
    fn new(plan: &'a Plan, outlet: &'a mut dyn Outlet, changes: &'a mut Changes) -> Result<Self> {
        Ok(Self {
            images: plan.images.as_deref().map(Images::new),
            packer: Packer::new(plan)?,
            window: Window::new(plan.shuffle),
            plan,
            outlet,
            changes,
            main: Vec::new(),
            blocks: Vec::new(),
            page_size: 4096,
            last: None,
            end: None,
            has_flush: false,
            has_begun: false,
            in_postcopy: false,
        })
    }

    /// An event of the main channel.
    fn main(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<()> {
        self.end_section()?;
        self.page_size = grammar.page_size();
        self.in_postcopy = grammar.is_postcopy();
        match &located.event {
            Event::Command(Command::SwitchoverStart) if !self.plan.knows(Difference::SwitchoverStart) => {
                self.changes.note("SWITCHOVER_START dropped");
                return Ok(());
            }
            Event::Section(head) => self.section(head)?,
            Event::RamBlock(block) => {
                if grammar.blocks().len() == 1 {
                    self.blocks.clear();
                }
                self.blocks.push(block.name.0.into());
            }
            Event::MappedRam(_) if self.plan.changes_pages => {
                return Err(self.impossible("pages of a mapped-ram file have places, and no order"));
            }
            Event::RamWord(word) if self.plan.changes_pages => match word.flags(self.page_size).action() {
                RamFlags::MULTIFD_FLUSH => {
                    self.has_flush = true;
                    return Ok(());
                }
                RamFlags::EOS => {
                    let kind = grammar.current_section().map_or(SectionKind::PART, |(kind, ..)| kind);
                    self.end = Some((*word, kind));
                    return Ok(());
                }
                _ => {}
            },
            Event::Page(page) if self.plan.changes_pages => {
                let Some(block) = grammar.current_block() else { return Ok(()) };
                let offset = page.word.offset(self.page_size);
                return self.record(page, block, offset);
            }
            _ => {}
        }
        self.write(located.raw)
    }

    fn section(&mut self, head: &SectionHead<'_>) -> Result<()> {
        self.last = None;
        if !std::mem::replace(&mut self.has_begun, true)
            && head.kind == SectionKind::START
            && self.plan.reframes
        {
            // The main channel is there first, for destinations that go by that.
            self.flush()?;
            self.packer.begin(self.page_size, self.outlet)?;
        }
        Ok(())
    }

    /// A page record of the main channel.
    fn record(&mut self, page: &Page<'_>, block: usize, offset: u64) -> Result<()> {
        let inflated;
        let content = match &page.body {
            PageBody::Zero(0) => Content::Zero,
            PageBody::Zero(fill) if self.plan.knows(Difference::NonZeroFill) => Content::Fill(*fill),
            PageBody::Zero(fill) => {
                self.changes.note("filled pages written out");
                inflated = vec![*fill; self.page_size as usize];
                Content::Raw(&inflated)
            }
            PageBody::Raw(bulk) => Content::Raw(bulk.bytes().unwrap_or_default()),
            PageBody::Compressed(data)
                if !self.plan.knows(Difference::CompressPage) || self.plan.reframes =>
            {
                self.changes.note("compressed pages inflated");
                inflated = inflate(data, self.page_size as usize, offset)?;
                Content::Raw(&inflated)
            }
            PageBody::Compressed(data) => Content::Compressed(data),
            PageBody::Xbzrle { .. } if self.plan.reframes => {
                return Err(self.impossible(
                    "a delta (XBZRLE) needs the page before it, which may be on a multifd channel",
                ));
            }
            PageBody::Xbzrle { .. } if self.plan.shuffle.is_some() => {
                return Err(self.impossible("deltas (XBZRLE) have an order that must not be changed"));
            }
            PageBody::Xbzrle { encoding, delta } => Content::Delta(*encoding, delta),
        };
        self.page(Entry { block, offset, listed: false, content })
    }

    /// A page, wherever it came from.
    fn page(&mut self, entry: Entry<'_>) -> Result<()> {
        let mut replaced = Vec::new();
        let entry = match &mut self.images {
            Some(images) => {
                match images.page(&self.blocks, entry.block, entry.offset, self.page_size, &mut replaced)? {
                    true => {
                        self.changes.note("pages replaced");
                        Entry { content: Content::Raw(&replaced), ..entry }
                    }
                    false => entry,
                }
            }
            None => entry,
        };
        if self.in_postcopy || !self.window.shuffles() {
            return self.place(entry);
        }
        if self.window.is_full() || self.window.holds(&entry) {
            self.empty_window()?;
        }
        self.window.push(entry);
        Ok(())
    }

    fn empty_window(&mut self) -> Result<()> {
        let mut window = std::mem::replace(&mut self.window, Window::new(None));
        let outcome = window.drain(|entry| self.place(entry));
        self.window = window;
        outcome
    }

    /// Decides where a page goes.
    fn place(&mut self, entry: Entry<'_>) -> Result<()> {
        let to_channels = self.plan.channels > 0 && self.plan.reframes && !self.in_postcopy;
        let Entry { block, offset, listed, content } = entry;
        let content = match content {
            // Whether it is one is looked at only where somebody may want to know.
            Content::Raw(bytes) if self.plan.looks_for_zeros() && is_zero(bytes) => Content::Zero,
            content => content,
        };
        if !to_channels {
            if listed {
                self.changes.note("pages moved to the main channel");
            }
            return self.put_on_main(block, offset, content);
        }
        let way = self.plan.zero_pages.unwrap_or(if listed { ZeroPages::Multifd } else { ZeroPages::Legacy });
        let zeros;
        let bytes = match content {
            Content::Raw(bytes) => Some(bytes),
            Content::Zero => match way {
                ZeroPages::Legacy => return self.put_on_main(block, offset, Content::Zero),
                ZeroPages::Multifd => None,
                ZeroPages::None => {
                    zeros = vec![0; self.page_size as usize];
                    Some(&zeros[..])
                }
            },
            other => return self.put_on_main(block, offset, other),
        };
        if !listed {
            self.changes.note("pages moved to multifd channels");
        }
        let name = self.blocks.get(block).map_or(&[][..], |name| name);
        self.packer.add(name, offset, bytes, self.outlet)
    }

    fn put_on_main(&mut self, block: usize, offset: u64, content: Content<'_>) -> Result<()> {
        let (flag, body) = match content {
            Content::Zero => (RamFlags::ZERO, PageBody::Zero(0)),
            Content::Fill(fill) => (RamFlags::ZERO, PageBody::Zero(fill)),
            Content::Raw(bytes) => (RamFlags::PAGE, PageBody::Raw(Bulk::Bytes(bytes))),
            Content::Compressed(data) => (RamFlags::COMPRESS_PAGE, PageBody::Compressed(data)),
            Content::Delta(encoding, delta) => (RamFlags::XBZRLE, PageBody::Xbzrle { encoding, delta }),
        };
        let is_same = self.last.replace(block) == Some(block);
        let flags = if is_same { flag | RamFlags::CONTINUE } else { flag };
        let name = self.blocks.get(block).map(|name| Name(name)).filter(|_| !is_same);
        Page { word: PageWord::new(offset, flags), block: name, body }.emit(&mut self.main);
        self.flush_if_full()
    }

    /// The RAM section that was to be ended, when everything that belongs in front of that has come.
    fn end_section(&mut self) -> Result<()> {
        let Some((word, kind)) = self.end.take() else { return Ok(()) };
        self.empty_window()?;
        if self.plan.channels > 0 && self.plan.reframes {
            let mode = self.plan.sync.unwrap_or(match self.has_flush || !self.plan.had_channels {
                true => SyncMode::PerRound,
                false => SyncMode::PerSection,
            });
            let is_due = kind == SectionKind::START || self.packer.has_pages();
            match mode {
                SyncMode::PerSection => self.synchronise()?,
                SyncMode::PerRound if is_due && !self.in_postcopy => {
                    self.synchronise()?;
                    PageWord::new(0, RamFlags::MULTIFD_FLUSH).emit(&mut self.main);
                }
                SyncMode::PerRound => {}
            }
        }
        word.emit(&mut self.main);
        self.flush_if_full()
    }

    fn synchronise(&mut self) -> Result<()> {
        self.changes.note("synchronisations");
        self.packer.sync(self.outlet)
    }

    /// A packet that stays as it is.
    fn packet(&mut self, channel: u8, located: &Located<'_, Packet<'_>>) -> Result<()> {
        self.outlet.put(ChannelId::Multifd(channel), located.raw)
    }

    /// Device state among the packets that are made anew.
    fn device(&mut self, channel: u8, located: &Located<'_, Packet<'_>>) -> Result<()> {
        if !matches!(located.event, Packet::Device(_) | Packet::DeviceData(_)) {
            return Ok(());
        }
        if self.plan.channels == 0 || !self.plan.knows(Difference::MultifdDeviceState) {
            return Err(
                self.impossible("device state travels on its multifd channels, which there are not to be")
            );
        }
        self.packer.pass(channel, located.raw, self.outlet)
    }

    fn finish(&mut self) -> Result<()> {
        self.end_section()?;
        self.empty_window()?;
        if self.packer.has_pages() {
            return Err(self.impossible("pages came on multifd channels behind the last synchronisation"));
        }
        self.flush()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.main.extend_from_slice(bytes);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.main.len() >= GATHERED { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if !self.main.is_empty() {
            self.outlet.put(ChannelId::Main, &self.main)?;
            self.main.clear();
        }
        Ok(())
    }

    #[cold]
    fn impossible(&self, message: &str) -> Error {
        Error::nowhere(ErrorKind::Unsupported, DOING, message)
    }
}
