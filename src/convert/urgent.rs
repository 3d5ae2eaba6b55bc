//! The pages of the preempt channel: looked at, or on their way to the main channel.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::channel::Feed;
use crate::container::{Access, ChannelInput, Part, unwrap_error};
use crate::error::Result;
use crate::postcopy::{PreemptParser, Urgent};
use crate::stream::{Block, Mode};
use crate::wire::Page;

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
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn open(part: &mut Part) -> Result<Self> {
        Ok(Self { feed: Feed::new(part.input(Access::Whole)?) })
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
