//! The channels of one migration together, in the order that their synchronisations give.
//!
//! ```text
//! main       1 .. marker      3 .. marker      5 .. end
//! multifd-0        2 .. SYNC        4 .. SYNC        6 .. end
//! multifd-1        2 .. SYNC        4 .. SYNC        6 .. end
//! ```
//! A destination must not apply pages of the next round before the marker of this one, nor records behind the marker before the
//! pages in front of it; so that everything in a file can be applied one after the other in this order. Which word is the marker
//! is said by the dialect, or seen in the section that begins RAM: MULTIFD_FLUSH in front of its EOS, or nothing.
//!
//! A channel that breaks off, or misses its SYNC, is a fault that is kept with its place; the others are read on. A stock
//! destination would hang there.

use std::ops::ControlFlow;

use super::{Access, ChannelInput, Part, unwrap_error};
use crate::channel::{ChannelParser as _, Feed, Located};
use crate::dialect::Dialect;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::multifd::{Barrier, Packet, PacketParser, SyncMode};
use crate::stream::{Event, Grammar, Mode, Parser};
use crate::wire::{PageWord, RamFlags, SectionKind};

/// How the channels of a migration are read.
#[derive(Clone, Debug)]
pub struct TogetherOptions {
    /// Reads the main channel. It also knows the page size until the main channel says another, or if there is none.
    pub parser: Parser,
    /// How much is forgiven on multifd channels.
    pub mode: Mode,
    /// Whose bytes they are; the mode of synchronisation follows, unless it is `any`.
    pub dialect: Dialect,
    /// Whether payloads of multifd channels are read or left out. (The main channel's parser has been told already.)
    pub access: Access,
}

impl Default for TogetherOptions {
    fn default() -> Self {
        Self { parser: Parser::new(), mode: Mode::Strict, dialect: Dialect::ANY, access: Access::Whole }
    }
}

/// Something that was read.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a, 'b> {
    /// Of the main channel, with the state behind it.
    Main(&'a Located<'b, Event<'b>>, &'a Grammar),
    /// Of a multifd channel.
    Packet {
        /// Its id.
        channel: u8,
        /// The record, or the piece of a payload.
        located: &'a Located<'b, Packet<'b>>,
        /// The state behind it: the packet that a payload belongs to.
        parser: &'a PacketParser,
    },
}

/// The main channel and the multifd channels of one migration, opened.
pub struct Together {
    main: Option<MainChannel>,
    channels: Vec<Multifd>,
    mode: Option<SyncMode>,
    page_size: u64,
    markers: u64,
    faults: Vec<Error>,
}

struct MainChannel {
    feed: Feed<ChannelInput>,
    parser: Parser,
    ended: bool,
}

/// One multifd channel, and how far it has come.
struct Multifd {
    id: u8,
    feed: Feed<ChannelInput>,
    parser: Option<PacketParser>,
    options: (Mode, Dialect, Access),
    /// Of this channel alone, so that every channel that is missing is told of.
    barrier: Barrier,
    syncs: u64,
    ended: bool,
    failed: bool,
}

/// What a channel came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelEnd {
    /// Its id.
    pub id: u8,
    /// SYNC packets in it.
    pub syncs: u64,
    /// Of those, how many no marker of the main channel has answered. Sources of 9.1 and 9.2 leave one.
    pub unmatched: u64,
}

const DOING: &str = "reading all channels together";

impl Together {
    /// Opens the main channel and the multifd channels among `parts`; others are left alone.
    ///
    /// # Errors
    /// If they cannot be those of one migration, or cannot be opened.
    pub fn open(parts: &mut [Part], options: &TogetherOptions) -> Result<Self> {
        let mut main = None;
        let mut channels: Vec<Multifd> = Vec::new();
        for part in parts {
            let twice = match part.channel {
                ChannelId::Main => main.is_some(),
                ChannelId::Multifd(id) => channels.iter().any(|channel| channel.id == id),
                _ => continue,
            };
            if twice {
                let message = "it is there twice, and these are channels of one migration";
                return Err(Error::nowhere(ErrorKind::Malformed, DOING, message).on(part.channel));
            }
            let feed = Feed::new(part.input(options.access)?);
            match part.channel {
                ChannelId::Multifd(id) => channels.push(Multifd::new(id, feed, options)),
                _ => main = Some(MainChannel { feed, parser: options.parser.clone(), ended: false }),
            }
        }
        channels.sort_by_key(|channel| channel.id);
        let (mode, page_size) = (SyncMode::of(options.dialect), options.parser.grammar().page_size());
        Ok(Self { main, channels, mode, page_size, markers: 0, faults: Vec::new() })
    }

    /// Reads all of it, once, and hands every event to `handle`, which may stop it.
    ///
    /// # Errors
    /// Those of `handle`. What is wrong with the channels is in [`faults`](Self::faults) afterwards.
    pub fn run(&mut self, mut handle: impl FnMut(Item<'_, '_>) -> Result<ControlFlow<()>>) -> Result<()> {
        // Without a main channel there is nobody to wait for; its rounds are those of the channels.
        while let Some(main) = &mut self.main {
            let (stop, fault) = main.run(&mut self.mode, !self.channels.is_empty(), &mut handle)?;
            self.faults.extend(fault);
            match stop {
                Stop::Handled => return Ok(()),
                Stop::End => break,
                Stop::Here => {}
            }
            let page_size = main.parser.grammar().page_size();
            let at = main.parser.offset();
            self.markers += 1;
            for channel in &mut self.channels {
                channel.barrier.mark();
                if channel.run(page_size, self.markers, &mut handle, &mut self.faults)? == Stop::Handled {
                    return Ok(());
                }
                self.faults.extend(channel.missing(at));
            }
        }
        let page_size = self.page_size();
        // Channels go on with each other, round by round, also where no marker tells them.
        let mut rounds = self.markers;
        while self.channels.iter().any(|channel| !channel.ended) {
            rounds += 1;
            for channel in &mut self.channels {
                if channel.run(page_size, rounds, &mut handle, &mut self.faults)? == Stop::Handled {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Target page size, as far as it is known.
    pub fn page_size(&self) -> u64 {
        self.main.as_ref().map_or(self.page_size, |main| main.parser.grammar().page_size())
    }

    /// Whether there is a main channel.
    pub fn has_main(&self) -> bool {
        self.main.is_some()
    }

    /// State of the main channel.
    pub fn grammar(&self) -> Option<&Grammar> {
        self.main.as_ref().map(|main| main.parser.grammar())
    }

    /// The parser of the main channel.
    pub fn parser(&self) -> Option<&Parser> {
        self.main.as_ref().map(|main| &main.parser)
    }

    /// What the main channel's marker is, once that is known.
    pub fn mode(&self) -> Option<SyncMode> {
        self.mode
    }

    /// Markers on the main channel: so many synchronisations there were.
    pub fn markers(&self) -> u64 {
        self.markers
    }

    /// The multifd channels, by id, and what they came to.
    pub fn channels(&self) -> impl Iterator<Item = ChannelEnd> {
        self.channels.iter().map(|channel| ChannelEnd {
            id: channel.id,
            syncs: channel.syncs,
            unmatched: channel.syncs.saturating_sub(self.markers),
        })
    }

    /// State of the multifd channel of that id, once something was read of it.
    pub fn packet_parser(&self, id: u8) -> Option<&PacketParser> {
        self.channels.iter().find(|channel| channel.id == id).and_then(|channel| channel.parser.as_ref())
    }

    /// What is wrong with the channels, each with its place, in the order in which it was met: one fault a channel.
    pub fn faults(&self) -> &[Error] {
        &self.faults
    }

    /// Why a channel could not be read to its end.
    pub fn fault_of(&self, channel: ChannelId) -> Option<&Error> {
        self.faults.iter().find(|fault| fault.channel() == channel && !is_missing(fault))
    }

    /// Of the faults, those of channels that are whole, and have fewer SYNCs than the main channel has markers.
    pub fn missing(&self) -> impl Iterator<Item = &Error> {
        self.faults.iter().filter(|fault| is_missing(fault))
    }
}

/// Why reading a channel stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The channel is over.
    End,
    /// It is at its marker, or its SYNC.
    Here,
    /// Whoever looks at the items has had enough.
    Handled,
}

impl MainChannel {
    /// Reads up to the next marker.
    fn run(
        &mut self,
        mode: &mut Option<SyncMode>,
        synchronises: bool,
        handle: &mut impl FnMut(Item<'_, '_>) -> Result<ControlFlow<()>>,
    ) -> Result<(Stop, Option<Error>)> {
        if self.ended {
            return Ok((Stop::End, None));
        }
        let mut stop = Stop::End;
        let mut refused = None;
        let outcome = self.feed.run(&mut self.parser, |located, parser| {
            match handle(Item::Main(located, parser.grammar())) {
                Ok(ControlFlow::Continue(())) => {}
                other => {
                    stop = Stop::Handled;
                    refused = other.err();
                    return Ok(ControlFlow::Break(()));
                }
            }
            if let Event::RamWord(word) = located.event
                && synchronises
                && is_marker(word, parser.grammar(), mode)
            {
                stop = Stop::Here;
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        });
        if let Some(error) = refused {
            return Err(error);
        }
        self.ended = stop == Stop::End;
        Ok((stop, outcome.err().map(unwrap_error)))
    }
}

/// Whether the word that was read last is one at which a destination synchronises. The section that begins RAM shows what
/// mode it is, where nobody has said so.
fn is_marker(word: PageWord, grammar: &Grammar, mode: &mut Option<SyncMode>) -> bool {
    // Nothing comes over multifd channels in postcopy. Sources up to 8.2 synchronise them all the same, those from 10.1 on do not.
    if grammar.is_postcopy() {
        return false;
    }
    match word.flags(grammar.page_size()).action() {
        RamFlags::MULTIFD_FLUSH => *mode.get_or_insert(SyncMode::PerRound) == SyncMode::PerRound,
        RamFlags::EOS => match *mode {
            Some(mode) => mode == SyncMode::PerSection,
            // A stream without its beginning shows nothing before a FLUSH comes, if one does.
            None if grammar.current_section().is_some_and(|(kind, ..)| kind != SectionKind::START) => false,
            None => *mode.insert(SyncMode::PerSection) == SyncMode::PerSection,
        },
        _ => false,
    }
}

impl Multifd {
    fn new(id: u8, feed: Feed<ChannelInput>, options: &TogetherOptions) -> Self {
        Self {
            id,
            feed,
            parser: None,
            options: (options.mode, options.dialect, options.access),
            barrier: Barrier::new([id]),
            syncs: 0,
            ended: false,
            failed: false,
        }
    }

    /// Reads up to SYNC number `until`.
    fn run(
        &mut self,
        page_size: u64,
        until: u64,
        handle: &mut impl FnMut(Item<'_, '_>) -> Result<ControlFlow<()>>,
        faults: &mut Vec<Error>,
    ) -> Result<Stop> {
        if self.ended || self.syncs >= until {
            return Ok(if self.ended { Stop::End } else { Stop::Here });
        }
        let parser = self.parser.get_or_insert_with(|| {
            let (mode, dialect, access) = self.options;
            let parser = PacketParser::with(mode, dialect, page_size);
            if access == Access::Outline { parser.with_elision() } else { parser }
        });
        let (channel, syncs, barrier) = (self.id, &mut self.syncs, &mut self.barrier);
        let mut stop = Stop::End;
        let mut refused = None;
        let outcome = self.feed.run(parser, |located, parser| {
            match handle(Item::Packet { channel, located, parser }) {
                Ok(ControlFlow::Continue(())) => {}
                other => {
                    stop = Stop::Handled;
                    refused = other.err();
                    return Ok(ControlFlow::Break(()));
                }
            }
            if parser.is_at_sync() {
                *syncs += 1;
                barrier.arrive(channel);
                if *syncs >= until {
                    stop = Stop::Here;
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        });
        if let Some(error) = refused {
            return Err(error);
        }
        self.ended = stop == Stop::End;
        if self.ended {
            barrier.close(channel);
        }
        if let Err(error) = outcome {
            barrier.fail(channel);
            self.failed = true;
            // What its first bytes are wrong about may be its id.
            faults.push(unwrap_error(error).on(ChannelId::Multifd(channel)));
        }
        Ok(stop)
    }

    /// The fault of a channel that will never come to the SYNC that the main channel waits for, which is at `marker`. One that
    /// has failed has had its fault told.
    fn missing(&mut self, marker: u64) -> Option<Error> {
        if self.failed {
            return None;
        }
        let error = self.barrier.may_go_on().err()?;
        self.failed = true;
        let at = self.parser.as_ref().map_or(0, |parser| parser.offset());
        let message = format!("{} (its marker ends at {marker:#x} of the main channel)", error.message());
        Some(Error::new(error.kind(), at, MISSING, message).on(error.channel()))
    }
}

/// What is being done where a SYNC is missed.
const MISSING: &str = "synchronising";

fn is_missing(fault: &Error) -> bool {
    fault.doing() == MISSING
}

#[cfg(test)]
#[path = "together_tests.rs"]
mod tests;
