//! What a recording asks of whoever plays it: which connections there are, and what each has to wait for.
//!
//! ```text
//! main       QEVM .. RAM START ..| PING .. RAM .. RECV_BITMAP |  RESUME |  .. EOF |
//!                                |                            ^ bitmap  ^ ACK     ^ SHUT
//! multifd-0  hello SYNC          | pages ..      not before the main channel has come this far
//! ```
//! Time does not matter, only what happened before what. A source goes on when it has had an answer, so the main channel waits where
//! the recorded source had one. Channels are not held against each other any further: destinations wait for whom they need (SYNC), and
//! a channel that waited for another one without need could wait for ever.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use super::received::{Received, is_urgent};
use super::words::{Word, Words};
use crate::capture::{Place, interface_name};
use crate::channel::Feed;
use crate::container::{Access, Part};
use crate::dialect::Dialect;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::postcopy::ReturnParser;
use crate::stream::{Event, Mode, Parser, Phase};
use crate::wire::{Command, MessageKind, MultifdHello, SectionKind};

const DOING: &str = "reading the recording";

/// Bytes of the hello of a multifd channel (`MultiFDInit_t`).
const MULTIFD_HELLO: u64 = MultifdHello::LEN as u64;

/// All connections between two breaks of a migration.
pub(super) struct Leg {
    /// How often the migration had paused before.
    pub(super) pause: u32,
    /// In the order in which they are opened; the main channel is the first.
    pub(super) voices: Vec<Voice>,
    /// What the recorded destination said.
    pub(super) words: Vec<Word>,
    /// The source asked the destination to answer.
    pub(super) has_return_path: bool,
    /// The main channel comes to its end here.
    pub(super) is_complete: bool,
}

/// What one connection has to say.
pub(super) struct Voice {
    pub(super) channel: ChannelId,
    pub(super) part: Part,
    /// Bytes, if they are known before they are read.
    pub(super) length: Option<u64>,
    /// What has to have happened before the byte there is sent, in order.
    pub(super) gates: Vec<(u64, Gate)>,
    /// Where it stops, before the recording does.
    pub(super) stop: Option<u64>,
}

impl Voice {
    /// What of it is not played.
    fn note(&self) -> Option<String> {
        let (stop, size) = (self.stop?, self.part.size()?);
        let name = interface_name(self.channel);
        (stop < size).then(|| {
            let left = size - stop;
            format!("{left} bytes of {name} are not played: the recorded destination had not taken them in when it paused")
        })
    }
}

/// What a voice waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gate {
    /// The destination has said so many words of that kind.
    Heard(u16, usize),
    /// So many bytes of the main channel are on their way.
    Sent(u64),
    /// All other channels have come to their end, and the destination has had time for what was on them.
    Alone,
}

/// A migration to be played.
pub(super) struct Score {
    pub(super) legs: Vec<Leg>,
    /// What is not played, and why.
    pub(super) notes: Vec<String>,
}

impl Score {
    pub(super) fn read(parts: Vec<Part>) -> Result<Self> {
        let mut notes = Vec::new();
        let mut legs: BTreeMap<u32, (Vec<Part>, Option<Part>)> = BTreeMap::new();
        for part in parts {
            match part.channel {
                ChannelId::Main | ChannelId::Multifd(_) | ChannelId::Preempt => {
                    legs.entry(0).or_default().0.push(part);
                }
                ChannelId::Resumed(n) | ChannelId::ResumedPreempt(n) => {
                    legs.entry(n).or_default().0.push(part);
                }
                ChannelId::ReturnPath => legs.entry(0).or_default().1 = Some(part),
                ChannelId::ResumedReturnPath(n) => legs.entry(n).or_default().1 = Some(part),
                ChannelId::Connection(_) | ChannelId::Container => {
                    let name = part.label.clone().unwrap_or_else(|| part.channel.to_string());
                    notes.push(format!("{name} is not played: what it is cannot be told"));
                }
            }
        }
        let mut parser = None;
        let mut score = Self { legs: Vec::new(), notes };
        let mut read = Vec::new();
        for (pause, (voices, answers)) in legs {
            if pause as usize != read.len() {
                let message = format!("the connections after pause {pause} are there, those before are not");
                return Err(Error::nowhere(ErrorKind::Malformed, DOING, message).on(ChannelId::Container));
            }
            read.push((voices, answers.map_or_else(|| Ok(Words::default()), Words::read)?));
        }
        // What had arrived before a pause is said behind it.
        let mut received: Vec<_> =
            read.iter_mut().map(|(_, words)| Some(std::mem::take(&mut words.received))).collect();
        for (pause, (voices, words)) in (0..).zip(read) {
            let received = received.get_mut(pause as usize + 1).and_then(Option::take);
            let (leg, next) = Leg::read(pause, voices, words, parser, received)?;
            score.notes.extend(leg.voices.iter().filter_map(Voice::note));
            score.legs.push(leg);
            parser = next;
        }
        if score.legs.is_empty() {
            let message = "there is no main channel in it";
            return Err(Error::nowhere(ErrorKind::Malformed, DOING, message).on(ChannelId::Container));
        }
        if !score.legs.last().is_some_and(|leg| leg.is_complete) {
            score.notes.push("the recorded migration does not come to its end".to_owned());
        }
        Ok(score)
    }
}

impl Leg {
    /// Reads one leg; `before` has read the main channel of the leg before, and its successor is returned. `received` has arrived by the
    /// time of the next one, if there is one.
    fn read(
        pause: u32,
        mut parts: Vec<Part>,
        words: Words,
        before: Option<Parser>,
        received: Option<Received>,
    ) -> Result<(Self, Option<Parser>)> {
        let is_main = |part: &Part| matches!(part.channel, ChannelId::Main | ChannelId::Resumed(_));
        let Some(main) = parts.iter_mut().find(|part| is_main(part)) else {
            let message = "there is no main channel in it, without which the others mean nothing";
            return Err(Error::nowhere(ErrorKind::Malformed, DOING, message).on(ChannelId::Container));
        };
        let parser = match pause {
            0 => Parser::with(Mode::Lenient, Dialect::ANY),
            _ => before.as_ref().and_then(Parser::resumed).ok_or_else(|| {
                let message = "the main channel that it goes on from had not come to RUN";
                Error::nowhere(ErrorKind::Malformed, DOING, message).on(main.channel)
            })?,
        };
        let (marks, parser) = Marks::of(main, parser, received.as_ref())?;
        let main_places = main.places().map(<[Place]>::to_vec);

        let mut gates = marks.gates(&words);
        if let Some(places) = &main_places {
            gates.extend(marks.heard(&words, places));
        }
        if let (Some(at), true) = (marks.end, parts.iter().any(|part| is_urgent(part.channel))) {
            gates.push((at, Gate::Alone));
        }
        gates.sort_unstable();
        gates.dedup();

        // By when they first spoke; where nobody knows, by number.
        parts.sort_by_key(|part| {
            let first = part.places().and_then(|places| places.first()).map(|place| place.offset);
            (!is_main(part), first, part.channel)
        });
        let mut voices = Vec::new();
        for mut part in parts {
            let stop = match &received {
                Some(_) if is_main(&part) => marks.stop,
                Some(received) if is_urgent(part.channel) => received.stop_of(&mut part, parser.grammar())?,
                _ => None,
            };
            let gates = match part.channel {
                channel if is_main(&part) && channel == part.channel => std::mem::take(&mut gates),
                _ => marks.entry(&part, main_places.as_deref()),
            };
            let length = stop.or(part.size());
            voices.push(Voice { channel: part.channel, length, part, gates, stop });
        }
        let has_return_path = marks.opens_return_path || pause > 0 || !words.list.is_empty();
        let leg = Self { pause, voices, words: words.list, has_return_path, is_complete: marks.is_complete };
        Ok((leg, Some(parser)))
    }
}

/// Places on a main channel at which somebody waits for something.
#[derive(Default)]
struct Marks {
    /// Where the START sections end.
    setup: Option<u64>,
    /// Where the source wants to know that it may switch over.
    switchover: Option<u64>,
    /// Behind each RECV_BITMAP.
    bitmaps: Vec<u64>,
    /// Behind LISTEN, or the package that it is in.
    listen: Option<u64>,
    /// Behind RESUME.
    resume: Option<u64>,
    /// Before the END of RAM, in postcopy.
    end: Option<u64>,
    /// Before the first page in postcopy that the destination had not taken in.
    stop: Option<u64>,
    /// Where the destination knows of each PING: behind it, or behind the package that it is in.
    pings: Vec<u64>,
    opens_return_path: bool,
    is_complete: bool,
}

impl Marks {
    /// Reads the outline of a main channel. A fault ends it where it is: what is broken is played as it is.
    fn of(main: &mut Part, parser: Parser, received: Option<&Received>) -> Result<(Self, Parser)> {
        let mut marks = Self::default();
        let mut parser = parser.with_elision();
        let mut feed = Feed::new(main.input(Access::Outline)?);
        let mut started = false;
        let outcome = feed.run(&mut parser, |located, parser| {
            match &located.event {
                Event::Section(head) if head.kind == SectionKind::START => started = true,
                Event::Section(head) => {
                    if started {
                        marks.setup.get_or_insert(located.range.start);
                    }
                    if head.kind == SectionKind::END {
                        marks.switchover.get_or_insert(located.range.start);
                        if marks.is_postcopy() {
                            marks.end.get_or_insert(located.range.start);
                        }
                    }
                }
                Event::Page(page)
                    if marks.is_postcopy()
                        && received
                            .is_some_and(|received| received.lacks_of_main(page, parser.grammar())) =>
                {
                    marks.stop.get_or_insert(located.range.start);
                }
                Event::Command(Command::OpenReturnPath) => marks.opens_return_path = true,
                Event::Command(Command::SwitchoverStart) => {
                    marks.switchover.get_or_insert(located.range.start);
                }
                Event::Command(Command::RecvBitmap { .. }) => marks.bitmaps.push(located.range.end),
                Event::Command(Command::Ping(_)) => {
                    // A package is executed when all of it is there.
                    let end = parser.grammar().package_end().unwrap_or(0);
                    marks.pings.push(located.range.end.max(end));
                }
                Event::Command(Command::PostcopyListen) => {
                    let end = parser.grammar().package_end().unwrap_or(0);
                    marks.listen = Some(located.range.end.max(end));
                }
                Event::Command(Command::PostcopyResume) => marks.resume = Some(located.range.end),
                Event::Eof if parser.grammar().package_end().is_none() => marks.is_complete = true,
                _ => {}
            }
            let is_over = parser.grammar().phase() == Phase::Trailing;
            Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        match outcome {
            Err(e) if is_unreadable(&e) => Err(e.on(main.channel)),
            _ => Ok((marks, parser)),
        }
    }

    /// Whether what follows comes behind the switch to postcopy.
    fn is_postcopy(&self) -> bool {
        self.listen.is_some() || self.resume.is_some()
    }

    /// Where the main channel cannot go on without an answer.
    fn gates(&self, words: &Words) -> Vec<(u64, Gate)> {
        let mut gates = Vec::new();
        let acks = words.count(MessageKind::SWITCHOVER_ACK);
        if let (Some(at), true) = (self.switchover, acks > 0) {
            gates.push((at, Gate::Heard(MessageKind::SWITCHOVER_ACK.0, acks)));
        }
        let bitmaps = self.bitmaps.iter().enumerate();
        gates.extend(bitmaps.map(|(i, at)| (*at, Gate::Heard(MessageKind::RECV_BITMAP.0, i + 1))));
        gates.extend(self.resume.map(|at| (at, Gate::Heard(MessageKind::RESUME_ACK.0, 1))));
        gates
    }

    /// By when on the main channel, whose bytes stand at `main`, the destination had said what. Whoever recorded it may have taken note
    /// of an answer before the question, so nothing is expected before its question is out.
    fn heard(&self, words: &Words, main: &[Place]) -> Vec<(u64, Gate)> {
        let mut counts = BTreeMap::new();
        let mut gates = Vec::new();
        let mut least = 0;
        for (word, position) in words.positions() {
            let count = counts.entry(word.kind.0).or_insert(0);
            let question = match word.kind {
                MessageKind::PONG => self.pings.get(*count).copied(),
                MessageKind::RECV_BITMAP => self.bitmaps.get(*count).copied(),
                MessageKind::RESUME_ACK => self.resume,
                MessageKind::SWITCHOVER_ACK => self.setup,
                // Nothing is sent behind SHUT, and what else there may be nobody waits for.
                _ => None,
            };
            *count += 1;
            let Some(question) = question else { continue };
            least = passed_before(main, position).max(question).max(least);
            gates.push((least, Gate::Heard(word.kind.0, *count)));
        }
        gates
    }

    /// What another channel waits for: its bytes that passed behind the main channel's START sections do not go before them, but for the
    /// hello, without which a destination answers nothing. Pages on a preempt channel do not go before anything that was there when
    /// its first one did, as far as the destination can then place them; more may wait for those pages.
    fn entry(&self, part: &Part, main: Option<&[Place]>) -> Vec<(u64, Gate)> {
        let (Some(own), Some(main)) = (part.places(), main) else { return Vec::new() };
        match part.channel {
            ChannelId::Multifd(_) => {
                let Some(setup) = self.setup else { return Vec::new() };
                let Some(position) = position_of(main, setup) else { return Vec::new() };
                let before = own.iter().take_while(|place| place.offset < position);
                let at: u64 = before.map(|place| u64::from(place.len)).sum();
                vec![(at.max(MULTIFD_HELLO), Gate::Sent(setup))]
            }
            _ => {
                let Some(first) = own.first() else { return Vec::new() };
                let ready = self.listen.or(self.resume).unwrap_or(u64::MAX);
                vec![(0, Gate::Sent(passed_before(main, first.offset).min(ready)))]
            }
        }
    }
}

/// Where in the file the byte at `offset` of a channel stands.
pub(super) fn position_of(places: &[Place], offset: u64) -> Option<u64> {
    let mut left = offset;
    for place in places {
        if left < u64::from(place.len) {
            return Some(place.offset + left);
        }
        left -= u64::from(place.len);
    }
    None
}

/// How many bytes of a channel stand before that position of the file.
pub(super) fn passed_before(places: &[Place], position: u64) -> u64 {
    places.iter().take_while(|place| place.offset < position).map(|place| u64::from(place.len)).sum()
}

/// Whether the operating system does not give the recording out. That it is broken is another matter: what is there is played.
pub(super) fn is_unreadable(error: &Error) -> bool {
    use std::error::Error as _;
    let cause = error.source().and_then(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    error.kind() == ErrorKind::Io && cause != Some(io::ErrorKind::InvalidData)
}

/// A parser of what destinations say, which takes everything.
pub(super) fn ear() -> ReturnParser {
    ReturnParser::with(Mode::Lenient, Dialect::ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_what_is_before_them() {
        let places = [(10, 5), (40, 3)].map(|(offset, len)| Place { offset, len });
        assert_eq!(
            [0, 4, 5, 7, 8].map(|at| position_of(&places, at)),
            [Some(10), Some(14), Some(40), Some(42), None]
        );
        assert_eq!([0, 10, 11, 40, 41, 99].map(|at| passed_before(&places, at)), [0, 0, 5, 5, 8, 8]);
    }
}
