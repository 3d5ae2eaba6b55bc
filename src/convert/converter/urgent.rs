//! The pages of the preempt channel: looked at, or on their way to the main channel.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::GATHERED;
use super::super::plan::{Plan, Urgency};
use super::super::window::{Content, Entry};
use super::{Converter, impossible};
use crate::channel::Feed;
use crate::container::{Access, ChannelInput, Part, unwrap_error};
use crate::error::{ChannelId, Result};
use crate::guest::is_zero;
use crate::postcopy::{PreemptParser, Urgent};
use crate::stream::{Block, Mode};
use crate::wire::{Bulk, Page, PageBody, PageWord, RamFlags, Wire as _};

impl Converter<'_> {
    /// What is left of it, when the main channel is over.
    pub(super) fn finish_urgent(&mut self) -> Result<()> {
        match (self.urgent.take(), self.plan.urgent) {
            (Some(pages), Urgency::Remade { ends }) => self.remake(pages, ends),
            (Some(pages), _) => pages.run(&self.blocks, self.page_size, |item, _| match item {
                Item::Page(..) => Err(impossible(
                    "there is no RAM section behind the postcopy switch that could take the pages of the preempt channel",
                )),
                Item::Word => Ok(()),
            }),
            (None, _) => Ok(()),
        }
    }

    /// Puts the pages of the preempt channel into the section that has just begun.
    pub(super) fn merge(&mut self) -> Result<()> {
        let Some(pages) = self.urgent.take() else { return Ok(()) };
        let (blocks, page_size) = (Arc::clone(&self.blocks), self.page_size);
        pages.run(&blocks, page_size, |item, _| match item {
            Item::Page(page, block) => {
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
            Item::Word => Ok(()),
        })
    }

    /// Writes the preempt channel again, with other pages perhaps, and with the end that it should have.
    fn remake(&mut self, pages: UrgentPages, ends: Option<bool>) -> Result<()> {
        let page_size = self.page_size;
        let mut had_end = false;
        let mut gathered = Vec::new();
        pages.run(&Arc::clone(&self.blocks), page_size, |item, raw| {
            match item {
                Item::Word => {
                    had_end = true;
                    if ends.unwrap_or(true) {
                        gathered.extend_from_slice(raw);
                    }
                }
                Item::Page(page, block) => {
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
}

/// The channel, opened.
pub(super) struct UrgentPages {
    feed: Feed<ChannelInput>,
}

/// What comes on it.
pub(super) enum Item<'a> {
    /// A page, and its block.
    Page(&'a Page<'a>, usize),
    /// EOS.
    Word,
}

impl UrgentPages {
    /// The one among `parts`, if something is to be done with it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn find(parts: &mut [Part], plan: &Plan) -> Result<Option<Self>> {
        let part = parts.iter_mut().find(|part| part.channel == ChannelId::Preempt);
        match part.filter(|_| plan.urgent != Urgency::Kept) {
            Some(part) => Ok(Some(Self { feed: Feed::new(part.input(Access::Whole)?) })),
            None => Ok(None),
        }
    }

    /// Gives all that is on it, with its bytes.
    ///
    /// # Errors
    /// What is wrong with the channel; those of `each`.
    pub(super) fn run(
        mut self,
        blocks: &[Block],
        page_size: u64,
        mut each: impl FnMut(Item<'_>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut parser = PreemptParser::new(Mode::Strict, page_size).with_blocks(Arc::from(blocks));
        let outcome = self.feed.run(&mut parser, |located, parser| {
            match &located.event {
                Urgent::Page(page) => {
                    if let Some(block) = parser.current_block() {
                        each(Item::Page(page, block), located.raw)?;
                    }
                }
                Urgent::Word(_) => each(Item::Word, located.raw)?,
            }
            Ok(ControlFlow::Continue(()))
        });
        outcome.map_err(unwrap_error)
    }
}
