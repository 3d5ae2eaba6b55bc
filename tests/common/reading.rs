//! Reads a channel in slices, checks what must hold for every event, and writes down what came of it.

use std::ops::Range;

use migwire::channel::{ChannelEvent as _, ChannelParser, Step, Tail};

/// The most that a parser may ask its caller to hold: a piece and the longest record behind it (a command), with room.
/// See `migwire::limits::PIECE`.
const WINDOW: usize = 192 << 10;

/// What came of reading a channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// Events, in order.
    pub(crate) events: Vec<Seen>,
    /// Text of the error that ended the reading.
    pub(crate) error: Option<String>,
    /// Offset of the first byte that no event took.
    pub(crate) end: u64,
}

/// An event, as far as two readings can be compared: its bytes are those of its range.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    /// Name of the event.
    pub(crate) name: &'static str,
    /// Its place.
    pub(crate) range: Range<u64>,
    /// The event, printed.
    pub(crate) text: String,
}

/// Reads `bytes`, which are the whole channel. `slice` says how many bytes come next, given how many have come.
///
/// # Panics
/// If an event does not give back its bytes, if ranges leave a gap, or if the parser wants to hold too much.
pub(crate) fn read<P: ChannelParser>(
    parser: &mut P,
    bytes: &[u8],
    mut slice: impl FnMut(usize) -> usize,
) -> Reading {
    let mut found = Reading { end: parser.offset(), ..Reading::default() };
    let (mut start, mut end) = (0, slice(0).min(bytes.len()));
    let mut last = end;
    loop {
        let tail = if end == bytes.len() { Tail::Closed } else { Tail::Open };
        match parser.step(&bytes[start..end], tail) {
            Err(error) => {
                found.error = Some(error.to_string());
                return found;
            }
            Ok(Step::End) => return found,
            Ok(Step::More(missing)) => {
                assert!(missing > 0, "asks for nothing at {:#x}", found.end);
                assert_eq!(tail, Tail::Open, "asks for more than there is at {:#x}", found.end);
                assert!(end - start <= WINDOW + last, "holds {} bytes at {:#x}", end - start, found.end);
                last = slice(end).clamp(1, bytes.len() - end);
                end += last;
            }
            Ok(Step::Event(located)) => {
                let event = &located.event;
                assert_eq!(located.range.start, found.end, "{event:?} leaves a gap");
                assert!(!located.range.is_empty(), "{event:?} at {:#x} has no byte", found.end);
                assert_eq!(located.range.end - located.range.start, event.wire_len(), "{event:?}");
                assert_eq!(event.wire_len(), located.raw.len() as u64 + event.elided(), "{event:?}");
                let mut out = Vec::new();
                event.emit(&mut out);
                assert!(out == located.raw, "{event:?} at {:#x} is not given back as it came", found.end);
                found.end = located.range.end;
                let name = event.name();
                let text = format!("{event:?}");
                let elided = event.elided();
                found.events.push(Seen { name, range: located.range.clone(), text });
                start += located.raw.len();
                // What is elided is skipped; a reader of a stream that ends before that has nothing more to offer.
                match usize::try_from(elided).ok().and_then(|n| start.checked_add(n)) {
                    Some(next) if next <= bytes.len() => start = next,
                    _ => return found,
                }
                end = end.max(start);
            }
        }
    }
}

/// All of it at once.
pub(crate) fn whole(_: usize) -> usize {
    usize::MAX
}

/// Byte by byte.
pub(crate) fn bytewise(_: usize) -> usize {
    1
}

/// In two slices, cut at `at`.
pub(crate) fn two(at: usize) -> impl FnMut(usize) -> usize {
    move |come| if come < at { at - come } else { usize::MAX }
}
