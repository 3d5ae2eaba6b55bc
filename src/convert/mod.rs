//! One migration made of another: over other channels, in another encoding, for another release, with other RAM.
//!
//! ```text
//! parts --> survey: what is in it --> plan: what is to be done, and what cannot
//!       '-> Together: events and packets, in the order of their synchronisations
//!             '--> Converter --page--> images? --> window (shuffled?) --> main channel: page records
//!                     |                                              '--> packer: packets of N channels
//!                     '-- everything else, as it stands, but for what the release does not know
//! ```
//! Rounds are kept: a page that was sent twice is sent twice, and a synchronisation stands between the two. What is not asked for
//! stays as it is; where that cannot be, it is said. If nothing is asked for, every byte stays as it is.
//!
//! Guest memory is not held: a page passes by. Deltas that must be written out need the page before them; then there is an image
//! of the guest in a file for as long as it takes.

mod converter;
mod images;
mod mapped;
mod packer;
mod plan;
mod scratch;
mod survey;
mod touched;
mod urgent;
mod window;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use self::converter::Converter;
pub use self::plan::Options;
use self::plan::{Plan, Urgency};
use self::urgent::UrgentPages;
use crate::channel::Input as _;
use crate::container::{Access, Item, Pages, Part, Together, TogetherOptions, unwrap_error};
use crate::error::{ChannelId, Error, Result};
use crate::stream::Mode;

const DOING: &str = "converting";

/// Bytes that are gathered before they are written.
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
/// `Unsupported` for what cannot be converted, with the reason, and `Misuse` for what makes no sense; faults of the channels; those of
/// `outlet`.
pub fn convert(parts: &mut [Part], options: &Options, outlet: &mut dyn Outlet) -> Result<Changes> {
    let plan = Plan::new(parts, options)?;
    let mut changes = Changes { losses: plan.losses.clone(), ..Changes::default() };
    if plan.is_identity {
        for part in parts.iter_mut() {
            copy(part, outlet)?;
        }
        return Ok(changes);
    }
    let mut together = open(parts)?;
    let mut converter = Converter::new(&plan, parts, outlet, &mut changes)?;
    let mut pages = Pages::default();
    together.run(|item| {
        if let Item::Packet { channel, located, .. } = item {
            converter.device(channel, located)?;
        } else {
            // Blocks are counted there as well.
            pages.take(item, |_| Ok(()))?;
        }
        match item {
            Item::Main(located, grammar) => converter.main(located, grammar)?,
            Item::Packet { .. } => pages.take(item, |page| converter.listed(&page))?,
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if let Some(fault) = together.faults().iter().chain(pages.faults()).next() {
        return Err(fault.clone());
    }
    converter.finish()?;
    // What the destination said, and what was asked for, belongs to the migration.
    for part in parts.iter_mut() {
        match part.channel {
            ChannelId::Main | ChannelId::Multifd(_) => {}
            ChannelId::Preempt if plan.urgent != Urgency::Kept => {}
            _ => copy(part, outlet)?,
        }
    }
    Ok(changes)
}

fn open(parts: &mut [Part]) -> Result<Together> {
    let main = parts.iter().find(|part| part.channel == ChannelId::Main);
    let parser = main.map(survey::parser).transpose()?.unwrap_or_default();
    let options = TogetherOptions { parser, mode: Mode::Lenient, ..TogetherOptions::default() };
    Together::open(parts, &options)
}

/// The preempt channel, if there is one.
fn urgent(parts: &mut [Part]) -> Result<Option<UrgentPages>> {
    let part = parts.iter_mut().find(|part| part.channel == ChannelId::Preempt);
    part.map(UrgentPages::open).transpose()
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
