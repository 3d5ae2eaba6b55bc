//! Migrations made of others: whatever the channels are and whatever is asked for, what comes out holds the same memory.
//!
//! The first byte says what the others are: a recipe for options and for a migration that keeps the rules, which must then be taken by
//! the release that it was made for; or options and the bytes of channels. Of those, a strict reading must still take what it took.

use std::collections::BTreeMap;

use migwire::ChannelId;

use crate::converting::{Channels, check, options};
use crate::made::{Made, Recipe, make};
use crate::ram::memory;

/// Bytes that options are taken from, where channels follow.
const OPTIONS: usize = 12;

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 | 1 => {
            let mut recipe = Recipe(rest);
            let options = options(&mut recipe);
            let Made { channels, ram } = make(&mut recipe);
            let before = Channels(channels);
            assert_eq!(memory(&mut before.parts()).map(|memory| memory.ram()).ok(), Some(ram));
            check(&before, &options, true);
        }
        kind => {
            let (asked, rest) = rest.split_at(rest.len().min(OPTIONS));
            let options = options(&mut Recipe(asked));
            let (lanes, main) = if kind == 2 { (BTreeMap::new(), rest) } else { lanes(rest) };
            let mut channels = lanes;
            channels.insert(ChannelId::Main, main.to_vec());
            check(&Channels(channels), &options, false);
        }
    }
}

/// One byte says how many multifd channels there are, two each how long it is; the main channel comes last.
fn lanes(bytes: &[u8]) -> (BTreeMap<ChannelId, Vec<u8>>, &[u8]) {
    let Some((count, mut rest)) = bytes.split_first() else { return (BTreeMap::new(), bytes) };
    let mut lanes = BTreeMap::new();
    for id in 0..count % 4 {
        let Some((length, behind)) = rest.split_first_chunk::<2>() else { break };
        let length = usize::from(u16::from_be_bytes(*length)).min(behind.len());
        let (lane, behind) = behind.split_at(length);
        lanes.insert(ChannelId::Multifd(id), lane.to_vec());
        rest = behind;
    }
    (lanes, rest)
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("convert", 3_000, super::run);
    }
}
