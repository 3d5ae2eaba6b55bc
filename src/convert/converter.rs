//! Takes what the channels bring, in order, and writes the new ones.
//!
//! ```text
//! main: PART  page page  FLUSH .. EOS                  packets: page page SYNC
//!             '----'--> window --> place --> main          '----'--> the same
//!                        FLUSH and EOS wait here until the packets in front of them have come
//! ```

use std::sync::Arc;

use super::images::Images;
use super::mapped::MappedPages;
use super::packer::Packer;
use super::plan::{Plan, Urgency};
use super::scratch::Scratch;
use super::touched::Touched;
use super::urgent::{self, UrgentPages};
use super::window::{Content, Entry, Window};
use super::{Changes, DOING, GATHERED, Outlet};
use crate::channel::Located;
use crate::container::{MultifdPage, Part};
use crate::dialect::Difference;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::{Memory, inflate, is_zero};
use crate::multifd::{Packet, SyncMode, ZeroPages};
use crate::stream::{Block, Event, Grammar};
use crate::wire::{
    Bulk, Command, ConfigurationSubsection, Name, Page, PageBody, PageWord, RamBlock, RamFlags,
    SectionFooter, SectionHead, SectionKind, Wire as _,
};

pub(super) struct Converter<'a> {
    plan: &'a Plan,
    outlet: &'a mut dyn Outlet,
    changes: &'a mut Changes,
    /// Bytes of the main channel that are not written yet.
    main: Vec<u8>,
    packer: Packer,
    window: Window,
    touched: Touched,
    images: Option<Images>,
    /// What pages held before deltas, and where that is kept.
    memory: Option<(Memory, Scratch)>,
    mapped: Option<MappedPages>,
    urgent: Option<UrgentPages>,
    blocks: Arc<[Block]>,
    /// The list has changed since.
    is_list_stale: bool,
    page_size: u64,
    /// The RAM section that is open in the new migration.
    section: Option<u32>,
    /// Block of the last page on the main channel, and whether one came in this section.
    last: Option<usize>,
    is_named: bool,
    /// What comes next on the main channel when all pages that belong in front of it have come.
    pending: Option<Pending>,
    /// The section id of RAM, once pages of a mapped-ram file are due.
    unmap: Option<u32>,
    has_begun: bool,
    in_package: bool,
    in_postcopy: bool,
}

/// A word that waits.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Flush(PageWord),
    Eos(PageWord),
}

impl<'a> Converter<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        parts: &mut [Part],
        outlet: &'a mut dyn Outlet,
        changes: &'a mut Changes,
    ) -> Result<Self> {
        let main = parts.iter_mut().find(|part| part.channel == ChannelId::Main);
        let memory = match plan.resolves_deltas {
            true => {
                let place = plan.options.scratch.clone().unwrap_or_else(std::env::temp_dir);
                let scratch = Scratch::new(&place)?;
                Some((Memory::new().with_images(scratch.path())?, scratch))
            }
            false => None,
        };
        Ok(Self {
            images: plan.options.images.as_deref().map(Images::new).transpose()?,
            mapped: main.filter(|_| plan.unmaps).map(MappedPages::open).transpose()?,
            urgent: if plan.urgent == Urgency::Kept { None } else { super::urgent(parts)? },
            packer: Packer::new(plan)?,
            window: Window::new(plan.options.shuffle),
            touched: Touched::default(),
            memory,
            plan,
            outlet,
            changes,
            main: Vec::new(),
            blocks: Arc::new([]),
            is_list_stale: false,
            page_size: 4096,
            section: None,
            last: None,
            is_named: false,
            pending: None,
            unmap: None,
            has_begun: false,
            in_package: false,
            in_postcopy: false,
        })
    }

    /// An event of the main channel.
    pub(super) fn main(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<()> {
        self.settle()?;
        if !matches!(located.event, Event::Footer(_)) {
            self.unmap()?;
        }
        self.look_at(&located.event, grammar)?;
        if let Some((memory, _)) = &mut self.memory {
            memory.handle(&located.event, grammar, located.range.start)?;
        }
        let was_in_package = std::mem::replace(&mut self.in_package, grammar.package_end().is_some());
        match &located.event {
            Event::Command(Command::SwitchoverStart) if !self.plan.knows(Difference::SwitchoverStart) => {
                self.changes.note("SWITCHOVER_START dropped");
                return Ok(());
            }
            Event::Command(Command::Packaged { size }) => {
                let dropped = self.plan.survey.switchovers.get(&located.range.start).copied().unwrap_or(0);
                if dropped > 0 && !self.plan.knows(Difference::SwitchoverStart) {
                    Command::Packaged { size: size.saturating_sub(dropped) }.emit(&mut self.main);
                    return Ok(());
                }
            }
            // Its length is written already. No source has pages in there.
            Event::Page(_) if was_in_package => return Err(impossible("there are pages in a package")),
            _ if was_in_package => {}
            Event::ConfigurationSubsection(sub) if self.plan.unmaps => return self.configuration(sub),
            Event::Section(head) => return self.section(head, located.raw, grammar),
            Event::RamBlock(block) => return self.block(block, located.raw, grammar),
            Event::MappedRam(_) if self.plan.unmaps => return Ok(()),
            Event::RamWord(word) => match word.flags(self.page_size).action() {
                RamFlags::MULTIFD_FLUSH => {
                    self.pending = Some(Pending::Flush(*word));
                    return Ok(());
                }
                RamFlags::EOS => {
                    self.pending = Some(Pending::Eos(*word));
                    return Ok(());
                }
                _ => {}
            },
            Event::Page(page) => return self.record(page, located, grammar),
            Event::Footer(_) => {
                self.write(located.raw)?;
                return self.unmap();
            }
            _ => {}
        }
        self.write(located.raw)
    }

    /// A page of a packet.
    pub(super) fn listed(&mut self, page: &MultifdPage<'_>) -> Result<()> {
        let Some(block) = page.block else { return Ok(()) };
        if let Some((memory, _)) = &mut self.memory {
            match page.content {
                Some(bytes) => memory.set_page(block, page.offset, bytes, page.page_size)?,
                None => memory.set_zero_page(block, page.offset, page.page_size)?,
            }
        }
        let content = page.content.map_or(Content::Zero, Content::Raw);
        self.page(Entry { block, offset: page.offset, listed: true, content, record: None })
    }

    /// Device state among the packets that are made anew.
    pub(super) fn device(&mut self, channel: u8, located: &Located<'_, Packet<'_>>) -> Result<()> {
        if !matches!(located.event, Packet::Device(_) | Packet::DeviceData(_)) {
            return Ok(());
        }
        if self.plan.channels == 0 {
            return Err(impossible(
                "device state travels on its multifd channels, of which there are to be none",
            ));
        }
        if !self.plan.knows(Difference::MultifdDevicePackets) {
            let message = format!(
                "device state travels on its multifd channels, and {} knows no such packets",
                self.plan.options.dialect
            );
            return Err(impossible(&message));
        }
        self.packer.pass(channel, located.raw, self.outlet)
    }

    /// The channels are over.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.settle()?;
        self.unmap()?;
        self.empty_window()?;
        if self.packer.has_pages() {
            return Err(impossible(BEHIND));
        }
        self.flush()?;
        match (self.urgent.take(), self.plan.urgent) {
            (Some(pages), Urgency::Remade { ends }) => self.remake(pages, ends),
            (Some(pages), _) => pages.run(&self.blocks, self.page_size, |item, _| match item {
                urgent::Item::Page(..) => Err(impossible(
                    "there is no RAM section behind the postcopy switch that could take the pages of the preempt channel",
                )),
                urgent::Item::Word => Ok(()),
            }),
            (None, _) => Ok(()),
        }
    }

    /// What there is to know about the state that the main channel is in.
    fn look_at(&mut self, event: &Event<'_>, grammar: &Grammar) -> Result<()> {
        let page_size = grammar.page_size();
        if self.has_begun && page_size != self.page_size {
            let message = format!("the page size changes from {:#x} to {page_size:#x}", self.page_size);
            return Err(Error::nowhere(ErrorKind::Malformed, DOING, message).on(ChannelId::Main));
        }
        self.page_size = page_size;
        // It is complete behind its last entry, and copied once.
        if self.is_list_stale && !matches!(event, Event::RamBlock(_) | Event::MappedRam(_)) {
            self.blocks = grammar.blocks().into();
            self.is_list_stale = false;
        }
        self.in_postcopy = grammar.is_postcopy();
        Ok(())
    }

    /// A subsection of the configuration of a mapped-ram file.
    fn configuration(&mut self, sub: &ConfigurationSubsection<'_>) -> Result<()> {
        let mut sub = sub.clone();
        if let ConfigurationSubsection::Capabilities { names, .. } = &mut sub {
            names.retain(|name| name.0 != b"mapped-ram");
            if names.is_empty() {
                return Ok(());
            }
        }
        sub.emit(&mut self.main);
        Ok(())
    }

    fn section(&mut self, head: &SectionHead<'_>, raw: &[u8], grammar: &Grammar) -> Result<()> {
        if !std::mem::replace(&mut self.has_begun, true) && self.plan.has_lanes() {
            // The main channel is there first, for destinations that go by that.
            self.flush()?;
            self.packer.begin(self.page_size, self.outlet)?;
        }
        self.write(raw)?;
        self.section = None;
        if grammar.section(head.section_id).is_some_and(|section| section.is_ram()) {
            self.open(head.section_id);
            if self.in_postcopy && self.plan.urgent == Urgency::Merged {
                self.merge()?;
            }
        }
        Ok(())
    }

    fn open(&mut self, section: u32) {
        self.section = Some(section);
        self.is_named = false;
    }

    fn block(&mut self, block: &RamBlock<'_>, raw: &[u8], grammar: &Grammar) -> Result<()> {
        self.is_list_stale = true;
        match (&mut self.mapped, block.mapped) {
            (Some(mapped), Some(header)) => {
                mapped.add(grammar.blocks().len().saturating_sub(1), block.used_length, header);
                RamBlock { mapped: None, ..*block }.emit(&mut self.main);
                self.flush_if_full()
            }
            _ => self.write(raw),
        }
    }

    /// A page record of the main channel.
    fn record(&mut self, page: &Page<'_>, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<()> {
        let Some(block) = grammar.current_block() else {
            let message = "a page of which nobody knows to which block it belongs";
            let error = Error::new(ErrorKind::Malformed, located.range.start, DOING, message);
            return Err(error.on(ChannelId::Main));
        };
        let offset = page.word.offset(self.page_size);
        let made;
        let mut record = Some((located.raw, page.block.is_some()));
        let content = match &page.body {
            PageBody::Zero(0) => Content::Zero,
            PageBody::Zero(fill) if self.plan.knows(Difference::NonZeroFill) => Content::Fill(*fill),
            PageBody::Zero(fill) => {
                self.changes.note("filled pages written out");
                made = vec![*fill; self.page_size as usize];
                record = None;
                Content::Raw(&made)
            }
            PageBody::Raw(bulk) => Content::Raw(bulk.bytes().unwrap_or_default()),
            PageBody::Compressed(data)
                if !self.plan.knows(Difference::CompressPage) || self.plan.has_lanes() =>
            {
                self.changes.note("compressed pages inflated");
                made = inflate(data, self.page_size as usize, located.range.start)?;
                record = None;
                Content::Raw(&made)
            }
            PageBody::Compressed(data) => Content::Compressed(data),
            PageBody::Xbzrle { encoding, delta } => match &mut self.memory {
                None => Content::Delta(*encoding, delta),
                Some((memory, _)) => {
                    self.changes.note("deltas (XBZRLE) written out");
                    let mut bytes = vec![0; self.page_size as usize];
                    memory.page(block, offset, &mut bytes)?;
                    made = bytes;
                    record = None;
                    Content::Raw(&made)
                }
            },
        };
        self.page(Entry { block, offset, listed: false, content, record })
    }

    /// A page, wherever it came from.
    fn page(&mut self, entry: Entry<'_>) -> Result<()> {
        let Some(mut images) = self.images.take() else { return self.queue(entry) };
        let outcome = match images.page(&self.blocks, entry.block, entry.offset, self.page_size) {
            Ok(Some(bytes)) => {
                self.changes.note("pages replaced");
                self.queue(Entry { content: Content::Raw(bytes), record: None, ..entry })
            }
            Ok(None) => self.queue(entry),
            Err(error) => Err(error),
        };
        self.images = Some(images);
        outcome
    }

    /// Has the page wait for its turn, if pages change places. Behind the postcopy switch they do not: those of a host page belong
    /// together.
    fn queue(&mut self, entry: Entry<'_>) -> Result<()> {
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
        if !self.window.shuffles() {
            return Ok(());
        }
        let mut window = std::mem::replace(&mut self.window, Window::new(None));
        let outcome = window.drain(|entry| self.place(entry));
        self.window = window;
        outcome
    }

    /// Decides where a page goes.
    fn place(&mut self, entry: Entry<'_>) -> Result<()> {
        let Entry { block, offset, listed, content, mut record } = entry;
        if self.section.is_none() {
            return Err(impossible(BEHIND));
        }
        let content = match content {
            Content::Raw(bytes) if self.plan.looks_for_zeros() && is_zero(bytes) => {
                record = None;
                Content::Zero
            }
            content => content,
        };
        let zeros;
        let content = match content {
            Content::Zero if self.plan.zero_pages == Some(ZeroPages::None) => {
                zeros = vec![0; self.page_size as usize];
                record = None;
                Content::Raw(&zeros)
            }
            content => content,
        };
        if !self.plan.has_lanes() || self.in_postcopy {
            if listed {
                self.changes.note("pages moved to the main channel");
            }
            return self.put_on_main(block, offset, content, record);
        }
        if !self.touched.insert(block, offset, self.page_size) {
            self.separate()?;
            self.touched.insert(block, offset, self.page_size);
        }
        let way = self.plan.zero_pages.unwrap_or(if listed { ZeroPages::Multifd } else { ZeroPages::Legacy });
        let bytes = match content {
            Content::Raw(bytes) => Some(bytes),
            Content::Zero if way == ZeroPages::Multifd => None,
            other => return self.put_on_main(block, offset, other, record),
        };
        if !listed {
            self.changes.note("pages moved to multifd channels");
        }
        let name = self.blocks.get(block).map_or(&[][..], |block| &block.name);
        self.packer.add(name, offset, bytes, self.outlet)
    }

    fn put_on_main(
        &mut self,
        block: usize,
        offset: u64,
        content: Content<'_>,
        record: Option<(&[u8], bool)>,
    ) -> Result<()> {
        let is_same = self.last.replace(block) == Some(block);
        let was_named = std::mem::replace(&mut self.is_named, true);
        if let Some((raw, is_named)) = record
            && (is_named || is_same)
        {
            return self.write(raw);
        }
        let (flag, body) = match content {
            Content::Zero => (RamFlags::ZERO, PageBody::Zero(0)),
            Content::Fill(fill) => (RamFlags::ZERO, PageBody::Zero(fill)),
            Content::Raw(bytes) => (RamFlags::PAGE, PageBody::Raw(Bulk::Bytes(bytes))),
            Content::Compressed(data) => (RamFlags::COMPRESS_PAGE, PageBody::Compressed(data)),
            Content::Delta(encoding, delta) => (RamFlags::XBZRLE, PageBody::Xbzrle { encoding, delta }),
        };
        let goes_on = is_same && was_named;
        let flags = if goes_on { flag | RamFlags::CONTINUE } else { flag };
        let name = self.blocks.get(block).map(|block| Name(&block.name)).filter(|_| !goes_on);
        Page { word: PageWord::new(offset, flags), block: name, body }.emit(&mut self.main);
        self.flush_if_full()
    }

    /// Writes the word that waited for the pages in front of it.
    fn settle(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        self.empty_window()?;
        match pending {
            Pending::Eos(word) => self.end(word),
            Pending::Flush(word) if self.synchronises_per_round() => self.synchronise(Some(word)),
            Pending::Flush(_) => {
                self.changes.note("FLUSH words dropped");
                Ok(())
            }
        }
    }

    /// The end of a RAM section.
    fn end(&mut self, word: PageWord) -> Result<()> {
        let is_due = self.packer.has_pages() || !self.packer.has_synchronised();
        if self.synchronises_per_round() && is_due {
            self.synchronise(Some(FLUSH))?;
        }
        if self.synchronises_per_section() {
            self.synchronise(None)?;
        }
        word.emit(&mut self.main);
        if self.mapped.is_some() {
            self.unmap = self.section;
        }
        self.section = None;
        // Who plays this in the order in which it was written must not have to wait for what comes later.
        if self.plan.has_lanes() { self.flush() } else { self.flush_if_full() }
    }

    fn synchronises_per_round(&self) -> bool {
        self.plan.has_lanes() && self.plan.sync == SyncMode::PerRound && !self.in_postcopy
    }

    fn synchronises_per_section(&self) -> bool {
        let is_heard = !self.in_postcopy || self.plan.knows(Difference::MultifdPostcopySync);
        self.plan.has_lanes() && self.plan.sync == SyncMode::PerSection && is_heard
    }

    /// A synchronisation in the middle of a section: of pages that must not overtake each other.
    fn separate(&mut self) -> Result<()> {
        match self.plan.sync {
            SyncMode::PerRound => self.synchronise(Some(FLUSH)),
            SyncMode::PerSection => {
                let Some(section_id) = self.section else { return Ok(()) };
                self.synchronise(None)?;
                PageWord::new(0, RamFlags::EOS).emit(&mut self.main);
                if self.plan.survey.has_footers {
                    SectionFooter { section_id }.emit(&mut self.main);
                }
                SectionHead { kind: SectionKind::PART, section_id, identity: None }.emit(&mut self.main);
                self.open(section_id);
                Ok(())
            }
        }
    }

    fn synchronise(&mut self, marker: Option<PageWord>) -> Result<()> {
        self.changes.note("synchronisations");
        self.touched.clear();
        self.packer.sync(self.outlet)?;
        match marker {
            Some(word) => {
                word.emit(&mut self.main);
                self.flush()
            }
            None => Ok(()),
        }
    }

    /// Writes the pages of a mapped-ram file, in a section of their own, once the one with the block list is over.
    fn unmap(&mut self) -> Result<()> {
        let Some(section_id) = self.unmap.take() else { return Ok(()) };
        let Some(mut mapped) = self.mapped.take() else { return Ok(()) };
        SectionHead { kind: SectionKind::PART, section_id, identity: None }.emit(&mut self.main);
        self.open(section_id);
        mapped.run(self.page_size, |block, offset, bytes| {
            self.changes.note("pages of a mapped-ram file put in order");
            let content = bytes.map_or(Content::Zero, Content::Raw);
            self.page(Entry { block, offset, listed: false, content, record: None })
        })?;
        self.empty_window()?;
        self.end(PageWord::new(0, RamFlags::EOS))?;
        if self.plan.survey.has_footers {
            SectionFooter { section_id }.emit(&mut self.main);
        }
        Ok(())
    }

    /// Puts the pages of the preempt channel into the section that has just begun.
    fn merge(&mut self) -> Result<()> {
        let Some(pages) = self.urgent.take() else { return Ok(()) };
        let (blocks, page_size) = (Arc::clone(&self.blocks), self.page_size);
        pages.run(&blocks, page_size, |item, _| match item {
            urgent::Item::Page(page, block) => {
                self.changes.note("pages moved from the preempt channel");
                let content = match page.body {
                    PageBody::Zero(fill) if fill != 0 => Content::Fill(fill),
                    PageBody::Zero(_) => Content::Zero,
                    PageBody::Raw(bulk) => Content::Raw(bulk.bytes().unwrap_or_default()),
                    PageBody::Compressed(_) | PageBody::Xbzrle { .. } => {
                        return Err(impossible("a page on the preempt channel is neither whole nor zero"));
                    }
                };
                let offset = page.word.offset(page_size);
                self.page(Entry { block, offset, listed: false, content, record: None })
            }
            urgent::Item::Word => Ok(()),
        })
    }

    /// Writes the preempt channel again, with other pages perhaps, and with the end that it should have.
    fn remake(&mut self, pages: UrgentPages, ends: Option<bool>) -> Result<()> {
        let page_size = self.page_size;
        let mut had_end = false;
        let mut gathered = Vec::new();
        pages.run(&Arc::clone(&self.blocks), page_size, |item, raw| {
            match item {
                urgent::Item::Word => {
                    had_end = true;
                    if ends.unwrap_or(true) {
                        gathered.extend_from_slice(raw);
                    }
                }
                urgent::Item::Page(page, block) => {
                    let offset = page.word.offset(page_size);
                    let images = self.images.as_mut();
                    match images.map_or(Ok(None), |i| i.page(&self.blocks, block, offset, page_size))? {
                        None => gathered.extend_from_slice(raw),
                        Some(bytes) => {
                            self.changes.note("pages replaced");
                            let (flag, body) = match is_zero(bytes) {
                                true => (RamFlags::ZERO, PageBody::Zero(0)),
                                false => (RamFlags::PAGE, PageBody::Raw(Bulk::Bytes(bytes))),
                            };
                            let goes_on = page.block.is_none();
                            let flags = if goes_on { flag | RamFlags::CONTINUE } else { flag };
                            Page { word: PageWord::new(offset, flags), body, ..*page }.emit(&mut gathered);
                        }
                    }
                }
            }
            if gathered.len() >= GATHERED {
                self.outlet.put(ChannelId::Preempt, &gathered)?;
                gathered.clear();
            }
            Ok(())
        })?;
        if ends == Some(true) && !had_end {
            PageWord::new(0, RamFlags::EOS).emit(&mut gathered);
        }
        self.outlet.put(ChannelId::Preempt, &gathered)
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
}

const FLUSH: PageWord = PageWord(RamFlags::MULTIFD_FLUSH.0);

const BEHIND: &str = "pages came on multifd channels where the main channel has no RAM section: behind the last synchronisation";

#[cold]
fn impossible(message: &str) -> Error {
    Error::nowhere(ErrorKind::Unsupported, DOING, message)
}
