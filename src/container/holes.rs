//! What is missing in a recording that was made from a capture with losses.
//!
//! ```text
//! main             0 .. 0x80cd
//! main+0x9083      0x9083 .. 0x1b000       0x80cd .. 0x9083 was lost
//! ```
//! A channel is read as far as its first hole; a parser finds no way behind it. What is there is named, so that nobody takes a channel
//! that ends between two records for a whole one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::capture::{ChannelSummary, Direction, hole_of};
use crate::error::{ChannelId, Error, ErrorKind};

/// Holes that are named one by one.
const NAMED: usize = 8;

/// An error that names the holes in these channels, if there are any.
pub(super) fn find(channels: &[ChannelSummary]) -> Option<Error> {
    let mut runs: BTreeMap<(&str, Direction), Vec<(u64, u64)>> = BTreeMap::new();
    for channel in channels {
        let (name, offset) = hole_of(&channel.name).unwrap_or((&channel.name, 0));
        runs.entry((name, channel.direction)).or_default().push((offset, channel.bytes));
    }
    let (mut text, mut count, mut lost) = (String::new(), 0, 0u64);
    for ((name, direction), mut runs) in runs {
        runs.sort_unstable();
        let mut end = 0u64;
        for (from, bytes) in runs {
            if from > end {
                count += 1;
                lost = lost.saturating_add(from - end);
                if count <= NAMED {
                    let way = if direction == Direction::ToSource { ", back" } else { "" };
                    let separator = if count > 1 { "; " } else { "" };
                    let _ = write!(text, "{separator}{name}{way}: {end:#x} to {from:#x}");
                }
            }
            end = from.saturating_add(bytes).max(end);
        }
    }
    if count == 0 {
        return None;
    }
    if count > NAMED {
        let _ = write!(text, "; and {} more", count - NAMED);
    }
    let message =
        format!("{lost} bytes were lost when this was captured, and what follows them is not read ({text})");
    Some(Error::nowhere(ErrorKind::Truncated, super::DOING, message).on(ChannelId::Container))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Timestamp;

    fn channel(name: &str, direction: Direction, bytes: u64) -> ChannelSummary {
        let (first, last) = (Timestamp(0), Timestamp(0));
        ChannelSummary {
            interface: 0,
            name: name.into(),
            description: None,
            direction,
            bytes,
            packets: 1,
            first,
            last,
        }
    }

    #[test]
    fn holes_are_named() {
        use Direction::{ToDestination, ToSource};
        let whole = [channel("main", ToDestination, 8), channel("multifd-0", ToDestination, 9)];
        assert!(find(&whole).is_none());
        let mut all = whole.to_vec();
        all.push(channel("main+0x20", ToDestination, 16));
        all.push(channel("main+0x10", ToDestination, 16));
        all.push(channel("main+0x3", ToSource, 5));
        assert_eq!(
            find(&all).unwrap().to_string(),
            "opening: 11 bytes were lost when this was captured, and what follows them is not read \
             (main: 0x8 to 0x10; main, back: 0x0 to 0x3)"
        );
        all.extend((1..=10).map(|n| channel(&format!("multifd-0+{:#x}", 100 * n), ToDestination, 1)));
        assert!(find(&all).unwrap().message().ends_with("; and 4 more)"));
        let odd = [channel("main+0xffffffffffffffff", ToDestination, 9)];
        assert!(find(&odd).unwrap().message().contains("18446744073709551615 bytes were lost"));
    }
}
