//! How much of a broken leg the recorded destination had taken in.
//!
//! ```text
//! leg 0, main     .. RUN | page page page page | page pa(cut)      recorded: everything that came out of the connection
//!                                        stop -^                   taken in: what the bitmaps say that open leg 1
//! ```
//! Bytes may have come that nobody looked at any more when the connection broke. The source of the recording sent those pages once
//! again, and a stock destination refuses a page that it has (userfaultfd, EEXIST).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::score::is_unreadable;
use crate::channel::Feed;
use crate::container::{Access, Part};
use crate::error::{ChannelId, Result};
use crate::postcopy::{PageBits, PageSet, PreemptParser, Reply, Urgent};
use crate::stream::{Block, Grammar, Mode};
use crate::wire::{Bulk, Message, Page};

/// Pages by block, as a destination says behind a pause; of no block, if it has not been asked.
#[derive(Default)]
pub(super) struct Received {
    blocks: BTreeMap<Box<[u8]>, PageSet>,
    /// The bitmap that is being read.
    current: Option<(Box<[u8]>, PageBits)>,
}

impl Received {
    /// Takes note of what a destination says.
    pub(super) fn handle(&mut self, reply: &Reply<'_>) -> Result<()> {
        match reply {
            Reply::Message(Message::RecvBitmap { block }) => {
                self.current = Some((block.0.into(), PageBits::default()));
            }
            Reply::BitmapBits(Bulk::Bytes(bytes)) => {
                if let Some((_, bits)) = &mut self.current {
                    bits.add(bytes)?;
                }
            }
            Reply::BitmapEnd(_) => {
                if let Some((block, bits)) = self.current.take() {
                    self.blocks.insert(block, bits.pages);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether that page had not been taken in, as far as is known.
    fn lacks(&self, block: Option<&Block>, page: &Page<'_>, page_size: u64) -> bool {
        let pages = block.and_then(|block| self.blocks.get(&*block.name));
        pages.is_some_and(|pages| !pages.contains(page.word.offset(page_size) / page_size))
    }

    /// Whether the page that has just been read on a main channel had not been taken in.
    pub(super) fn lacks_of_main(&self, page: &Page<'_>, grammar: &Grammar) -> bool {
        let block = grammar.current_block().and_then(|index| grammar.blocks().get(index));
        self.lacks(block, page, grammar.page_size())
    }

    /// Where the first page stands on a preempt channel that had not been taken in.
    pub(super) fn stop_of(&self, part: &mut Part, grammar: &Grammar) -> Result<Option<u64>> {
        let blocks: Arc<[Block]> = grammar.blocks().into();
        let parser = PreemptParser::new(Mode::Lenient, grammar.page_size()).on(part.channel);
        let mut parser = parser.with_blocks(Arc::clone(&blocks)).with_elision();
        let mut stop = None;
        let outcome = Feed::new(part.input(Access::Outline)?).run(&mut parser, |located, parser| {
            let block = parser.current_block().and_then(|index| blocks.get(index));
            match &located.event {
                Urgent::Page(page) if self.lacks(block, page, parser.page_size()) => {
                    stop = Some(located.range.start);
                    Ok(ControlFlow::Break(()))
                }
                _ => Ok(ControlFlow::Continue(())),
            }
        });
        match outcome {
            Err(e) if is_unreadable(&e) => Err(e.on(part.channel)),
            _ => Ok(stop),
        }
    }
}

/// Whether pages for which the destination waits come on that channel.
pub(super) fn is_urgent(channel: ChannelId) -> bool {
    matches!(channel, ChannelId::Preempt | ChannelId::ResumedPreempt(_))
}
