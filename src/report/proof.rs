//! The proof for channels of a file, with everything that the file says about them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::packets::PacketCounts;
use super::reading::{Chapter, Reading, unsupported};
use super::together::{Judge, Whole};
use super::verify::{self, Verification};
use crate::channel::Feed;
use crate::container::{self, Access, Item, Part};
use crate::error::{ChannelId, ErrorKind, Result};
use crate::postcopy::Urgent;
use crate::stream::{Grammar, Mode};

/// Verifies the channels of a file, in their order; and, if there are multifd channels among them, all of them together, in the same
/// reading. `tell` hears of every channel.
pub fn prove_all(
    parts: &mut [Part],
    reading: &Reading,
    mut tell: impl FnMut(&Part, Verification),
) -> Option<Whole> {
    let is_multifd = |part: &Part| matches!(part.channel, ChannelId::Multifd(_));
    let together = parts.iter().any(is_multifd).then(|| prove_together(parts, reading));
    let (mut found, whole) = match together {
        Some(Ok((found, whole))) => (found, Some(whole)),
        Some(Err(error)) => (BTreeMap::new(), Some(Whole::failed(error))),
        None => (BTreeMap::new(), None),
    };
    for part in parts {
        let mut found = match found.remove(&part.channel) {
            Some(mut found) => {
                forgive(&mut found, part.channel, reading);
                found
            }
            None => prove(part, reading),
        };
        match part.is_as_sealed() {
            Ok(as_sealed) => found.altered = as_sealed == Some(false),
            Err(error) => found.error = found.error.or(Some(error)),
        }
        tell(part, found);
    }
    whole
}

/// Verifies a channel of a file, and the description in it: that it is JSON, and says what the sections are.
pub fn prove(part: &mut Part, reading: &Reading) -> Verification {
    let outcome = match part.channel {
        ChannelId::Main => described(part, reading),
        ChannelId::Preempt | ChannelId::ResumedPreempt(_) => part.input(Access::Whole).map(|input| {
            let mut parser = reading.preempt(part.channel, Access::Whole);
            verify::channel(&mut Feed::new(input), &mut parser, |found, located| {
                found.pages += u64::from(matches!(located.event, Urgent::Page(_)));
            })
        }),
        ChannelId::Resumed(pause) => resumed(pause, part, reading),
        ChannelId::ReturnPath | ChannelId::ResumedReturnPath(_) => {
            reading.return_path(part).map(|(mut feed, mut parser)| {
                let mut found = verify::channel(&mut feed, &mut parser, |_, _| {});
                if let Some(status) = parser.shut().filter(|status| *status != 0) {
                    found.notes.push(format!(
                        "the destination ended with status {status}: it could not load what is here"
                    ));
                }
                found
            })
        }
        ChannelId::Multifd(_) => multifd(part, reading),
        other => Err(unsupported(other)),
    };
    let mut found =
        outcome.unwrap_or_else(|error| Verification { error: Some(error), ..Verification::default() });
    found.error = found.error.map(container::unwrap_error).map(|error| match error.channel() {
        ChannelId::Main | ChannelId::ReturnPath => error.on(part.channel),
        _ => error,
    });
    forgive(&mut found, part.channel, reading);
    found
}

/// A connection that broke in postcopy may end inside of a record.
fn forgive(found: &mut Verification, channel: ChannelId, reading: &Reading) {
    let Some(error) = &found.error else { return };
    if error.kind() == ErrorKind::Truncated && reading.legs.goes_on(channel) {
        found
            .notes
            .push(format!("the connection broke off ({error}); the migration went on over another one"));
        found.error = None;
    }
}

fn resumed(pause: u32, part: &mut Part, reading: &Reading) -> Result<Verification> {
    let mut parser = reading.legs.resumed(pause, Access::Whole)?;
    Ok(verify::main_channel(&mut Feed::new(part.input(Access::Whole)?), &mut parser))
}

fn described(part: &mut Part, reading: &Reading) -> Result<Verification> {
    let (mut feed, mut parser) = reading.main_channel(part, Access::Whole)?;
    let mut chapter = Chapter::default();
    let mut found = verify::main_channel_with(&mut feed, &mut parser, |located| {
        chapter.note(&located.event, located.range.end);
    });
    hold_against(&mut found, &chapter, parser.grammar(), reading);
    Ok(found)
}

/// Holds the sections against the description.
fn hold_against(found: &mut Verification, chapter: &Chapter, grammar: &Grammar, reading: &Reading) {
    // A stream that ended early has its fault already, and a part of a description is none.
    if found.error.is_some() {
        return;
    }
    match chapter.description() {
        Some(Ok(description)) => found.notes = chapter.disagreements(&description),
        Some(Err(error)) if reading.mode == Mode::Lenient => found.complaints.push(error),
        Some(Err(error)) => found.error = Some(error),
        None if reading.schema.is_some() => {
            found.notes = reading.schema.iter().flat_map(|schema| chapter.strangers(schema)).collect();
        }
        None if grammar.footers() == Some(false) => {
            found.notes.push(
                "no footers and no VM description: where payloads end is a guess, confirmed by what follows"
                    .into(),
            );
        }
        None => {}
    }
}

fn multifd(part: &mut Part, reading: &Reading) -> Result<Verification> {
    let (mut feed, mut parser) = reading.multifd(part, Access::Whole)?;
    let mut found = Verification::default();
    let mut counts = PacketCounts::default();
    let outcome = feed.run(&mut parser, |located, parser| {
        counts.note(located, parser);
        found.compare(located);
        Ok(ControlFlow::Continue(()))
    });
    found.error = outcome.err().map(|error| error.on(part.channel));
    found.pages = counts.pages;
    found.packets = Some(counts);
    found.complaints = parser.complaints().to_vec();
    Ok(found)
}

type Found = BTreeMap<ChannelId, Verification>;

/// Verifies main channel and multifd channels in one reading.
fn prove_together(parts: &mut [Part], reading: &Reading) -> Result<(Found, Whole)> {
    let mut together = reading.together(parts, Access::Whole)?;
    let mut judge = Judge::new(reading.dialect, &together);
    let mut chapter = Chapter::default();
    let mut main = Verification::default();
    let mut multifd: BTreeMap<u8, (Verification, PacketCounts)> =
        together.channels().map(|end| (end.id, Default::default())).collect();
    together.run(|item| {
        match item {
            Item::Main(located, _) => {
                chapter.note(&located.event, located.range.end);
                main.count(&located.event);
                main.compare(located);
            }
            Item::Packet { channel, located, parser } => {
                if let Some((found, counts)) = multifd.get_mut(&channel) {
                    counts.note(located, parser);
                    found.compare(located);
                }
            }
        }
        judge.take(item)?;
        Ok(ControlFlow::Continue(()))
    })?;
    let error = |channel| together.fault_of(channel).cloned();
    let mut all = Found::new();
    if let Some(grammar) = together.grammar() {
        main.error = error(ChannelId::Main);
        main.complaints = grammar.complaints().to_vec();
        hold_against(&mut main, &chapter, grammar, reading);
        all.insert(ChannelId::Main, main);
    }
    for (id, (mut found, counts)) in multifd {
        found.error = error(ChannelId::Multifd(id));
        found.pages = counts.pages;
        found.packets = Some(counts);
        found.complaints =
            together.packet_parser(id).map_or_else(Vec::new, |parser| parser.complaints().to_vec());
        all.insert(ChannelId::Multifd(id), found);
    }
    Ok((all, judge.finish(&together)))
}
