//! Recordings: an index that lies about places and counts, a seal that lies about everything, blocks that are cut or not what they say.
//!
//! Nothing panics, nothing is made as large as a number in the file says, no byte comes from outside the file or twice, and where the
//! index is believed, its places are packets of the file.

use std::io::{Cursor, Read as _};

use migwire::capture::{self, ChannelBytes, Listing, Reader};

/// Reads `bytes` as a recording, by its index and from end to end.
pub fn run(bytes: &[u8]) {
    let by_reading = capture::channels(bytes);
    let by_index = capture::listing(Cursor::new(bytes));
    if let Ok(by_reading) = &by_reading {
        check(by_reading, bytes);
        for channel in &by_reading.channels {
            let reader = Reader::new(bytes).expect("it was one before");
            let mut data = Vec::new();
            let outcome =
                ChannelBytes::new(reader, channel.interface, channel.direction).read_to_end(&mut data);
            assert_eq!(data.len() as u64, channel.bytes);
            assert_eq!(outcome.is_err(), by_reading.error.is_some());
        }
    }
    let Ok(by_index) = by_index else {
        assert!(by_reading.is_err(), "it can be read only from end to end");
        return;
    };
    check(&by_index, bytes);
    if by_index.seal.is_some() && by_index.note.is_none() && by_index.error.is_none() {
        // The index was believed. What it passes over is in the file, and nobody's.
        let Ok(by_reading) = by_reading else { return };
        if by_reading.error.is_none() && by_reading.channels.iter().all(|c| c.packets < 8) {
            // Of times in disorder, an index knows those of the first packet and of the last one only.
            let what = |listing: &Listing| {
                let channels = listing.channels.iter();
                channels
                    .map(|c| (c.interface, c.name.clone(), c.direction, c.bytes, c.packets))
                    .collect::<Vec<_>>()
            };
            assert_eq!(what(&by_index), what(&by_reading));
            assert_eq!(by_index.places, by_reading.places);
        }
    }
}

fn check(listing: &Listing, bytes: &[u8]) {
    let total: u64 = listing.channels.iter().map(|c| c.bytes).sum();
    assert!(total <= bytes.len() as u64, "{total} bytes out of {}", bytes.len());
    let Some(places) = &listing.places else { return };
    assert_eq!(places.len(), listing.channels.len());
    let mut all: Vec<_> = places.iter().flatten().map(|p| (p.offset, u64::from(p.len))).collect();
    all.sort_unstable();
    assert!(all.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "places overlap");
    assert!(all.last().is_none_or(|(at, len)| at + len <= bytes.len() as u64), "a place behind the end");
    for (channel, places) in listing.channels.iter().zip(places) {
        assert_eq!(places.iter().map(|p| u64::from(p.len)).sum::<u64>(), channel.bytes);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("recording", 4000, super::run);
    }
}
