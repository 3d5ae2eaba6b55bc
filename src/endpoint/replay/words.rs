//! What a destination says, in words that can be compared: those of a recording with those of a live one.
//!
//! Requests for pages are counted only: when a guest touches which page is a matter of chance, and every page comes anyway. All other
//! words are compared with those of the same kind, in order; of a bitmap, how many pages it says have arrived.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use super::received::Received;
use super::score::{ear, is_unreadable, position_of};
use crate::capture::Place;
use crate::channel::{Feed, Located};
use crate::container::{Access, Part};
use crate::error::{ChannelId, Result};
use crate::limits::MAX_COMPLAINTS;
use crate::postcopy::{Reply, RequestPattern, Wanted};
use crate::wire::{Bulk, Message, MessageKind};

/// Words of one kind that are kept to be compared; a destination says a handful.
const MAX_WORDS: usize = 4096;

/// Requests of a recording that are made again.
const MAX_REQUESTS: usize = 1 << 18;

/// One thing that a destination said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) kind: MessageKind,
    pub(super) text: String,
    /// Where it ends on the return path.
    pub(super) end: u64,
}

/// What the recorded destination said.
#[derive(Default)]
pub(super) struct Words {
    pub(super) list: Vec<Word>,
    /// What had arrived before.
    pub(super) received: Received,
    /// Where they stand in the recording, if that has an order.
    places: Option<Vec<Place>>,
}

impl Words {
    /// Reads a recorded return path, as far as it can be read.
    pub(super) fn read(mut part: Part) -> Result<Self> {
        let mut listener = Listener::default();
        let mut list = Vec::new();
        let mut received = Received::default();
        let mut feed = Feed::new(part.input(Access::Whole)?);
        let outcome = feed.run(&mut ear(), |located, _| {
            received.handle(&located.event)?;
            list.extend(listener.handle(located).filter(|_| list.len() < MAX_WORDS));
            Ok(ControlFlow::Continue(()))
        });
        match outcome {
            Err(e) if is_unreadable(&e) => Err(e.on(part.channel)),
            _ => Ok(Self { list, received, places: part.places().map(<[Place]>::to_vec) }),
        }
    }

    pub(super) fn count(&self, kind: MessageKind) -> usize {
        self.list.iter().filter(|word| word.kind == kind).count()
    }

    /// Each with where it ended in the recording, if that has an order.
    pub(super) fn positions(&self) -> impl Iterator<Item = (&Word, u64)> {
        let places = self.places.as_deref().unwrap_or_default();
        let end = |word: &Word| position_of(places, word.end.saturating_sub(1));
        self.list.iter().filter_map(move |word| Some((word, end(word)?)))
    }
}

/// What a recorded destination answered, for whoever is to answer in its place.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The pages that it asked for, in that order.
    pub requests: RequestPattern,
    /// How often it acknowledged that the source may switch over.
    pub acknowledgements: u32,
    /// The status of its SHUT.
    pub status: Option<u32>,
}

impl Answers {
    /// Reads them from the return paths of a recording.
    ///
    /// # Errors
    /// `Io`, if they cannot be read at all.
    pub fn of(parts: &mut [Part]) -> Result<Self> {
        let mut wanted = Vec::new();
        let mut answers = Self { requests: RequestPattern::None, acknowledgements: 0, status: None };
        let is_back = |part: &&mut Part| {
            matches!(part.channel, ChannelId::ReturnPath | ChannelId::ResumedReturnPath(_))
        };
        for part in parts.iter_mut().filter(is_back) {
            let mut last: Option<Box<[u8]>> = None;
            let mut ask = |start, length: u32, block: Option<&Box<[u8]>>| {
                if let Some(block) = block.filter(|_| wanted.len() < MAX_REQUESTS) {
                    wanted.push(Wanted { block: block.clone(), start, length: length.into() });
                }
            };
            let outcome = Feed::new(part.input(Access::Whole)?).run(&mut ear(), |located, _| {
                match &located.event {
                    Reply::Message(Message::ReqPagesId { start, length, block }) => {
                        ask(*start, *length, Some(last.insert(block.0.into())));
                    }
                    Reply::Message(Message::ReqPages { start, length }) => {
                        ask(*start, *length, last.as_ref());
                    }
                    Reply::Message(Message::SwitchoverAck) => answers.acknowledgements += 1,
                    Reply::Message(Message::Shut(status)) => answers.status = Some(*status),
                    _ => {}
                }
                Ok(ControlFlow::Continue(()))
            });
            if let Err(e) = outcome
                && is_unreadable(&e)
            {
                return Err(e.on(part.channel));
            }
        }
        if !wanted.is_empty() {
            answers.requests = RequestPattern::List(wanted.into());
        }
        Ok(answers)
    }
}

/// Makes words of the replies as they come.
#[derive(Default)]
pub(super) struct Listener {
    /// A bitmap that is being read: its block, and pages so far.
    bitmap: Option<(String, u64)>,
    /// Messages that asked for pages.
    pub(super) requests: u64,
}

impl Listener {
    pub(super) fn handle(&mut self, located: &Located<'_, Reply<'_>>) -> Option<Word> {
        let end = located.range.end;
        let (kind, text) = match &located.event {
            Reply::Message(message) => match message {
                Message::ReqPages { .. } | Message::ReqPagesId { .. } => {
                    self.requests += 1;
                    return None;
                }
                Message::RecvBitmap { block } => {
                    self.bitmap = Some((block.to_string(), 0));
                    return None;
                }
                Message::Shut(status) => (MessageKind::SHUT, format!("SHUT {status}")),
                Message::Pong(value) => (MessageKind::PONG, format!("PONG {value:#x}")),
                Message::ResumeAck(value) => (MessageKind::RESUME_ACK, format!("RESUME_ACK {value}")),
                Message::SwitchoverAck => (MessageKind::SWITCHOVER_ACK, "SWITCHOVER_ACK".to_owned()),
                Message::Other { kind, payload } => {
                    (*kind, format!("message {kind} with {} bytes", payload.len()))
                }
            },
            Reply::Bitmap(_) => return None,
            Reply::BitmapBits(bits) => {
                if let (Some((_, pages)), Bulk::Bytes(bytes)) = (&mut self.bitmap, bits) {
                    *pages += bytes.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
                }
                return None;
            }
            Reply::BitmapEnd(_) => {
                let (block, pages) = self.bitmap.take()?;
                (MessageKind::RECV_BITMAP, format!("RECV_BITMAP {block}, {pages} pages"))
            }
        };
        Some(Word { kind, text, end })
    }
}

/// Where a live destination says something else than the recorded one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// Connection, as its interface in a recording is named.
    pub channel: String,
    /// Where on it.
    pub offset: Option<u64>,
    /// What was recorded there; `nothing` if there is more now.
    pub recorded: String,
    /// What there is instead; `nothing` if it is not there.
    pub live: String,
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.channel)?;
        if let Some(offset) = self.offset {
            write!(f, " at {offset:#x}")?;
        }
        write!(f, ": recorded {}, now {}", self.recorded, self.live)
    }
}

/// Holds what is said against what was said.
pub(super) struct Comparison<'a> {
    channel: String,
    recorded: &'a [Word],
    seen: BTreeMap<u16, usize>,
    pub(super) deviations: Vec<Deviation>,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(channel: String, recorded: &'a [Word]) -> Self {
        Self { channel, recorded, seen: BTreeMap::new(), deviations: Vec::new() }
    }

    /// The next word of a live destination. Returns how many of its kind there were with it.
    pub(super) fn take(&mut self, word: &Word) -> usize {
        let seen = self.seen.entry(word.kind.0).or_insert(0);
        let recorded = self.recorded.iter().filter(|other| other.kind == word.kind).nth(*seen);
        *seen += 1;
        let count = *seen;
        match recorded {
            Some(recorded) if recorded.text == word.text => {}
            Some(recorded) => self.note(Some(word.end), recorded.text.clone(), word.text.clone()),
            None => self.note(Some(word.end), "nothing".to_owned(), word.text.clone()),
        }
        count
    }

    /// It says nothing more.
    pub(super) fn finish(mut self) -> Vec<Deviation> {
        let mut seen = std::mem::take(&mut self.seen);
        for word in self.recorded {
            match seen.get_mut(&word.kind.0) {
                Some(count) if *count > 0 => *count -= 1,
                _ => self.note(None, word.text.clone(), "nothing".to_owned()),
            }
        }
        self.deviations
    }

    fn note(&mut self, offset: Option<u64>, recorded: String, live: String) {
        if self.deviations.len() < MAX_COMPLAINTS {
            self.deviations.push(Deviation { channel: self.channel.clone(), offset, recorded, live });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Streaming;

    fn words(bytes: &[u8]) -> (Vec<Word>, u64) {
        let mut listener = Listener::default();
        let mut list = Vec::new();
        Feed::new(Streaming(bytes))
            .run(&mut ear(), |located, _| {
                list.extend(listener.handle(located));
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        (list, listener.requests)
    }

    #[test]
    fn bitmaps_are_counted_and_requests_left_out() {
        let mut bytes = b"\0\x02\0\x04\0\0\0\x01\0\x05\0\x04\x03ram".to_vec();
        bytes.extend_from_slice(&8u64.to_be_bytes());
        bytes.extend_from_slice(&[0xff, 0, 0, 0, 0, 0, 0, 0x01]);
        bytes.extend_from_slice(&0x0123_4567_89ab_cdef_u64.to_be_bytes());
        bytes.extend_from_slice(b"\0\x04\0\x0c\0\0\0\0\0\0\x10\0\0\0\x10\0\0\x01\0\x04\0\0\0\0");
        let (list, requests) = words(&bytes);
        let texts: Vec<_> = list.iter().map(|word| &word.text[..]).collect();
        assert_eq!(texts, ["PONG 0x1", "RECV_BITMAP ram, 9 pages", "SHUT 0"]);
        assert_eq!(requests, 1);
    }

    #[test]
    fn words_are_compared_by_kind() {
        let (recorded, _) =
            words(b"\0\x02\0\x04\0\0\0\x01\0\x07\0\0\0\x02\0\x04\0\0\0\x02\0\x01\0\x04\0\0\0\0");
        let (live, _) = words(b"\0\x07\0\0\0\x02\0\x04\0\0\0\x01\0\x02\0\x04\0\0\0\x03\0\x07\0\0");
        let mut comparison = Comparison::new("main".to_owned(), &recorded);
        let counts: Vec<_> = live.iter().map(|word| comparison.take(word)).collect();
        assert_eq!(counts, [1, 1, 2, 2]);
        let found: Vec<_> = comparison.finish().iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "main at 0x14: recorded PONG 0x2, now PONG 0x3",
                "main at 0x18: recorded nothing, now SWITCHOVER_ACK",
                "main: recorded SHUT 0, now nothing"
            ]
        );
    }
}
