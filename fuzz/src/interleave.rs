//! Several channels at once: however the bytes of main channel and multifd channels are interleaved, the memory is the same.
//!
//! The bytes are a recipe. From them a source is made up that keeps the rules (rounds, pages, synchronisations), and an order in
//! which a destination gets to read its channels. A barrier holds whoever has to wait; in the end every page must be what the
//! last round wrote, and nobody may be left waiting. Some recipes leave a SYNC out: then the destination must get stuck, and
//! say on which channel.

use std::collections::BTreeMap;

use migwire::channel::{ChannelParser as _, Step, Tail};
use migwire::dialect::Dialect;
use migwire::multifd::{Barrier, Framer, Packet, PacketParser};
use migwire::wire::{Method, MultifdHello, Wire as _};

const PAGE: u64 = 4096;
const PAGES: u64 = 32;

/// Takes numbers from bytes; 0 when there are none left.
struct Recipe<'a>(&'a [u8]);

impl Recipe<'_> {
    fn below(&mut self, limit: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % limit
    }
}

/// What a source has written, and what must come of it.
struct Migration {
    channels: Vec<Vec<u8>>,
    /// Markers on the main channel.
    markers: u64,
    memory: BTreeMap<u64, u8>,
    /// The channel that lacks a SYNC, if one does.
    broken: Option<u8>,
}

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let mut recipe = Recipe(bytes);
    let migration = make(&mut recipe);
    let (memory, stuck) = receive(&migration, &mut recipe);
    match migration.broken {
        None => {
            assert!(stuck.is_empty(), "channels {stuck:?} are still waited for");
            assert_eq!(memory, migration.memory);
        }
        Some(id) => assert_eq!(stuck, [id]),
    }
}

fn make(recipe: &mut Recipe<'_>) -> Migration {
    let dialect: Dialect = ["11.1", "7.2", "9.2"][recipe.below(3)].parse().unwrap_or_default();
    let count = 1 + recipe.below(5);
    let rounds = 1 + recipe.below(5);
    // The last round's SYNC is left out on one channel.
    let broken = (recipe.below(8) == 7).then(|| recipe.below(count) as u8);
    let mut framers = vec![Framer::new(dialect, PAGE); count];
    let mut channels: Vec<Vec<u8>> = (0..count)
        .map(|id| {
            let mut bytes = Vec::new();
            MultifdHello::new(id as u8, [0; 16]).emit(&mut bytes);
            bytes
        })
        .collect();
    let mut memory = BTreeMap::new();
    let mut number = 0;
    let mut sync = |channels: &mut Vec<Vec<u8>>, framers: &mut Vec<Framer>, without: Option<u8>| {
        for (id, (bytes, framer)) in channels.iter_mut().zip(framers).enumerate() {
            if without != Some(id as u8) {
                bytes.extend_from_slice(framer.sync(number));
                number += 1;
            }
        }
    };
    sync(&mut channels, &mut framers, None);
    for round in 0..rounds {
        // No page twice in a round.
        let mut free: Vec<u64> = (0..PAGES).collect();
        for _ in 0..recipe.below(8) {
            let channel = recipe.below(count);
            let mut take = |most| -> Vec<u64> {
                let wanted = recipe.below(most).min(free.len());
                (0..wanted).map(|_| free.swap_remove(recipe.below(free.len()))).collect()
            };
            let (normal, zero) = (take(5), take(3));
            let fill = (round * 40 + channel + 1) as u8;
            memory.extend(normal.iter().map(|page| (page * PAGE, fill)));
            memory.extend(zero.iter().map(|page| (page * PAGE, 0)));
            let offsets = |pages: &[u64]| pages.iter().map(|page| page * PAGE).collect::<Vec<_>>();
            let size = normal.len() * PAGE as usize;
            let head = framers[channel].pages(
                b"ram",
                &offsets(&normal),
                &offsets(&zero),
                Method::NONE,
                size as u32,
                0,
            );
            channels[channel].extend_from_slice(head);
            channels[channel].extend(std::iter::repeat_n(fill, size));
        }
        let is_last = round + 1 == rounds;
        sync(&mut channels, &mut framers, broken.filter(|_| is_last));
    }
    Migration { channels, markers: rounds as u64 + 1, memory, broken }
}

/// Reads all channels in the order that the recipe says, as far as the barrier lets them.
fn receive(migration: &Migration, recipe: &mut Recipe<'_>) -> (BTreeMap<u64, u8>, Vec<u8>) {
    let count = migration.channels.len();
    let mut barrier = Barrier::new(0..count as u8);
    let mut parsers = vec![PacketParser::default(); count];
    let mut at = vec![0; count];
    let mut come = vec![0_usize; count];
    let mut memory = BTreeMap::new();
    let mut markers = 0;
    let mut idle = 0;
    // Once the recipe is used up, everybody's turn comes round.
    let mut turn = 0;
    while idle <= 2 * count + 2 {
        let who = if recipe.0.is_empty() { turn } else { recipe.below(count + 1) };
        turn = (turn + 1) % (count + 1);
        let moved = match who.checked_sub(1) {
            // The main channel writes its next marker down as soon as it is past the one before.
            None if markers < migration.markers && barrier.may_go_on().unwrap_or(false) => {
                barrier.mark();
                markers += 1;
                true
            }
            None => false,
            Some(channel) if !barrier.may_read(channel as u8) => false,
            Some(channel) => {
                // A slow sender, as long as the recipe lasts.
                let more = if recipe.0.is_empty() { usize::MAX } else { 97 * recipe.below(64) };
                let all = &migration.channels[channel];
                come[channel] = come[channel].saturating_add(more).min(all.len());
                let input = &all[at[channel]..come[channel]];
                let parser = &mut parsers[channel];
                let step = parser.step(input, Tail::Open);
                assert!(step.is_ok(), "channel {channel}: {step:?}");
                if let Ok(Step::Event(located)) = step {
                    at[channel] += located.raw.len();
                    note(&located.event, parser, &mut memory);
                    if parser.is_at_sync() {
                        barrier.arrive(channel as u8);
                    }
                    true
                } else {
                    false
                }
            }
        };
        idle = if moved || !recipe.0.is_empty() { 0 } else { idle + 1 };
        assert!(barrier.markers() <= migration.markers);
    }
    (memory, barrier.missing().collect())
}

fn note(event: &Packet<'_>, parser: &PacketParser, memory: &mut BTreeMap<u64, u8>) {
    match event {
        Packet::Ram(_) => memory.extend(parser.batch().zero().iter().map(|offset| (*offset, 0))),
        Packet::Payload(bulk) => {
            let bytes = bulk.bytes().unwrap_or_default();
            for (offset, page) in parser.batch().pages(bytes) {
                assert!(page.iter().all(|b| *b == page[0]), "two pages in one");
                memory.insert(offset, page[0]);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("interleave", 4_000, super::run);
    }
}
