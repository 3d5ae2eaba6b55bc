//! The connections of a postcopy migration, as far as each has to know of the others: which blocks there are, where a main channel
//! goes on that was cut, and whether every page has come in the end.
//!
//! ```text
//! main [.. RUN | pages .. (cut)   resumed-1 [RECV_BITMAP .. RESUME | pages .. (cut)   resumed-2 ..
//! preempt [pages                  resumed-1-preempt [pages
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;

use super::reading::Reading;
use crate::channel::Feed;
use crate::container::{Access, Item, Part};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::Memory;
use crate::multifd::Packet;
use crate::postcopy::{PreemptParser, RequestPattern, Requests, Urgent};
use crate::stream::{Block, Event, Grammar, Parser, Phase};
use crate::wire::{Command, PageBody};

/// What the connections of a migration need to know of each other.
#[derive(Clone, Debug, Default)]
pub struct Legs {
    channels: BTreeSet<ChannelId>,
    blocks: Option<Arc<[Block]>>,
    page_size: Option<u64>,
    /// For the main channel behind each pause.
    parsers: BTreeMap<u32, Parser>,
    account: Option<Account>,
}

/// The pages of a postcopy migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Pages that the source had the destination drop.
    pub discarded: u64,
    /// Pages that have not come, or not again.
    pub missing: u64,
    /// Whether the main channel came to its end.
    pub complete: bool,
}

impl Legs {
    /// What became of the pages, if the migration was one of postcopy.
    pub fn account(&self) -> Option<Account> {
        self.account
    }

    /// Whether a channel may end anywhere, because the migration went on over another connection.
    pub fn goes_on(&self, channel: ChannelId) -> bool {
        let next = match channel {
            ChannelId::Resumed(n) | ChannelId::ResumedReturnPath(n) | ChannelId::ResumedPreempt(n) => n + 1,
            _ => 1,
        };
        self.channels.contains(&ChannelId::Resumed(next))
    }

    /// A parser for the main channel behind that pause.
    ///
    /// # Errors
    /// If the connections before it are not there, or were not in postcopy.
    pub fn resumed(&self, pause: u32, access: Access) -> Result<Parser> {
        let parser = self.parsers.get(&pause).cloned().ok_or_else(|| {
            let message = "the main channel that it goes on from is not there, or had not come to RUN";
            Error::nowhere(ErrorKind::Unsupported, "reading", message).on(ChannelId::Resumed(pause))
        })?;
        Ok(if access == Access::Outline { parser.with_elision() } else { parser.without_elision() })
    }
}

impl Reading {
    /// A parser for a preempt channel.
    pub(super) fn preempt(&self, channel: ChannelId, access: Access) -> PreemptParser {
        let page_size = self.legs.page_size.or(self.page_size).unwrap_or(4096);
        let mut parser = PreemptParser::new(self.mode, page_size).on(channel);
        if let Some(blocks) = &self.legs.blocks {
            parser = parser.with_blocks(Arc::clone(blocks));
        }
        if access == Access::Outline { parser.with_elision() } else { parser }
    }

    /// How the channels of a postcopy migration belong together, which takes a reading of their outlines. Nothing, if this is none, or
    /// if it can be read only once. What is wrong with them is told when they are read in earnest.
    pub fn legs_of(&self, parts: &mut [Part]) -> Legs {
        let mut legs = Legs::default();
        if parts.iter().any(|part| !part.is_lasting())
            || !parts.iter().any(|part| part.channel == ChannelId::Main)
        {
            return legs;
        }
        legs.channels = parts.iter().map(|part| part.channel).collect();
        let is_extra = |channel: &ChannelId| {
            matches!(channel, ChannelId::Preempt | ChannelId::Resumed(_) | ChannelId::ResumedPreempt(_))
        };
        let mut survey = Survey { has_more: legs.channels.iter().any(is_extra), ..Survey::default() };
        // A fault ends the survey where it is.
        let _ = self.survey(parts, &mut legs, &mut survey);
        legs.account = survey.requests.filter(|_| survey.switched).map(|requests| Account {
            discarded: survey.discarded,
            missing: requests.missing(),
            complete: survey.complete,
        });
        legs
    }

    fn survey(&self, parts: &mut [Part], legs: &mut Legs, survey: &mut Survey) -> Result<()> {
        let mut together = self.together(parts, Access::Outline)?;
        together.run(|item| survey.take(item))?;
        legs.page_size = Some(together.page_size());
        let Some(mut parser) = together.parser().cloned() else { return Ok(()) };
        drop(together);
        legs.blocks = Some(parser.grammar().blocks().into());
        let last = legs.channels.iter().filter_map(|channel| match channel {
            ChannelId::Resumed(n) => Some(*n),
            _ => None,
        });
        for pause in 1..=last.max().unwrap_or(0) {
            let Some(resumed) = parser.resumed() else { break };
            parser = resumed.with_elision();
            legs.parsers.insert(pause, parser.clone());
            let Some(part) = parts.iter_mut().find(|part| part.channel == ChannelId::Resumed(pause)) else {
                break;
            };
            // A leg that was cut ends in the middle of something.
            let _ = Feed::new(part.input(Access::Outline)?)
                .run(&mut parser, |located, parser| survey.main(&located.event, parser.grammar()));
        }
        for part in parts.iter_mut() {
            let (ChannelId::Preempt | ChannelId::ResumedPreempt(_)) = part.channel else { continue };
            let reading = Self { legs: legs.clone(), ..self.clone() };
            let mut parser = reading.preempt(part.channel, Access::Outline);
            let _ = Feed::new(part.input(Access::Outline)?).run(&mut parser, |located, parser| {
                if let (Urgent::Page(page), Some(block)) = (&located.event, parser.current_block()) {
                    survey.page(block, page.word.offset(parser.page_size()))?;
                }
                Ok(ControlFlow::Continue(()))
            });
        }
        Ok(())
    }
}

/// What one reading of all channels tells.
#[derive(Default)]
struct Survey {
    /// There are channels that only postcopy has.
    has_more: bool,
    requests: Option<Requests>,
    discarded: u64,
    switched: bool,
    complete: bool,
}

impl Survey {
    fn take(&mut self, item: Item<'_, '_>) -> Result<ControlFlow<()>> {
        match item {
            Item::Main(located, grammar) => self.main(&located.event, grammar),
            Item::Packet { located, parser, .. } => {
                let batch = parser.batch();
                if let (Packet::Ram(_), Some(requests)) = (&located.event, &self.requests) {
                    let block = requests.blocks().iter().position(|block| *block.name == *batch.name().0);
                    if let Some(block) = block {
                        let offsets = batch.normal().iter().chain(batch.zero());
                        offsets.copied().try_for_each(|offset| self.page(block, offset))?;
                    }
                }
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    fn main(&mut self, event: &Event<'_>, grammar: &Grammar) -> Result<ControlFlow<()>> {
        match event {
            Event::RamBlock(_) if grammar.phase() == Phase::RamWord => {
                if grammar.ram_fields().page_size {
                    let blocks = grammar.blocks().into();
                    self.requests = Some(Requests::new(blocks, grammar.page_size(), RequestPattern::None, 0));
                } else if !self.has_more {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Event::Page(page) => {
                if let Some(block) = grammar.current_block() {
                    self.page(block, page.word.offset(grammar.page_size()))?;
                }
            }
            Event::Command(Command::PostcopyRamDiscard(discard)) => {
                if let (Some(requests), Some(block)) =
                    (&mut self.requests, grammar.block_index(discard.block))
                {
                    let before = requests.missing();
                    for range in &discard.ranges {
                        requests.handle_discard(block, range.start, range.length);
                    }
                    self.discarded += requests.missing() - before;
                }
            }
            Event::Command(Command::PostcopyListen) => self.switched = true,
            Event::Eof => self.complete = true,
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn page(&mut self, block: usize, offset: u64) -> Result<()> {
        match &mut self.requests {
            Some(requests) => requests.handle_page(block, offset, 0).map(drop),
            None => Ok(()),
        }
    }
}

/// Puts the pages of preempt channels, and of main channels behind pauses, into `memory`.
pub(super) fn put_pages(parts: &mut [Part], reading: &Reading, memory: &mut Memory) -> Result<()> {
    let mut order: Vec<&mut Part> = parts.iter_mut().collect();
    order.sort_by_key(|part| match part.channel {
        ChannelId::Resumed(n) | ChannelId::ResumedPreempt(n) => n,
        _ => 0,
    });
    for part in order {
        let channel = part.channel;
        let outcome = match channel {
            ChannelId::Resumed(pause) => {
                let mut parser = reading.legs.resumed(pause, Access::Whole)?;
                Feed::new(part.input(Access::Whole)?).run(&mut parser, |located, parser| {
                    memory.handle(&located.event, parser.grammar(), located.range.start)?;
                    Ok(ControlFlow::Continue(()))
                })
            }
            ChannelId::Preempt | ChannelId::ResumedPreempt(_) => {
                let mut parser = reading.preempt(channel, Access::Whole);
                Feed::new(part.input(Access::Whole)?).run(&mut parser, |located, parser| {
                    if let (Urgent::Page(page), Some(block)) = (&located.event, parser.current_block()) {
                        let (at, size) = (page.word.offset(parser.page_size()), parser.page_size());
                        match page.body {
                            PageBody::Zero(0) => memory.set_zero_page(block, at, size),
                            PageBody::Zero(fill) => {
                                memory.set_page(block, at, &vec![fill; size as usize], size)
                            }
                            PageBody::Raw(bulk) => {
                                memory.set_page(block, at, bulk.bytes().unwrap_or_default(), size)
                            }
                            PageBody::Xbzrle { .. } | PageBody::Compressed(_) => Ok(()),
                        }?;
                    }
                    Ok(ControlFlow::Continue(()))
                })
            }
            _ => Ok(()),
        };
        match outcome {
            Err(e) if e.kind() == ErrorKind::Truncated && reading.legs.goes_on(channel) => {}
            outcome => outcome?,
        }
    }
    memory.flush()
}
