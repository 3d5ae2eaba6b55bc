//! Invariants 1, 4 and 5 on real and on hand-made streams: however the bytes of a channel are cut, the events, their ranges
//! and the text of the error are the same; ranges tile the channel; every event gives back its bytes.

mod common;

use common::reading::{Reading, bytewise, read, two, whole};
use common::{fixtures, small};
use migwire::channel::{ChannelParser as _, Step, Tail};
use migwire::dialect::Dialect;
use migwire::stream::{Emitter, Mode, Parser};

/// Real and hand-made streams.
fn streams() -> Vec<(String, Vec<u8>)> {
    let made = small::all().into_iter().map(|(name, bytes)| (format!("small/{name}"), bytes));
    made.chain(fixtures()).collect()
}

fn strict(bytes: &[u8]) -> Reading {
    read(&mut Parser::new(), bytes, whole)
}

fn lenient() -> Parser {
    Parser::with(Mode::Lenient, Dialect::ANY)
}

#[test]
fn every_stream_is_read_to_its_end_and_tiled() {
    for (name, bytes) in streams() {
        // `read` checks that no range leaves a gap and that every event gives back its bytes.
        let found = strict(&bytes);
        assert_eq!(found.error, None, "{name}");
        assert_eq!(found.end, bytes.len() as u64, "{name}");
        assert!(found.events.len() >= 2, "{name}");
    }
}

#[test]
fn byte_by_byte_as_whole() {
    for (name, bytes) in streams() {
        let expected = strict(&bytes);
        match bytes.len() {
            0..=65536 => assert!(expected == read(&mut Parser::new(), &bytes, bytewise), "{name}"),
            // A prime, so that every kind of field gets cut at every place sooner or later; and one above a page.
            _ => {
                for stride in [61, 4099] {
                    assert!(expected == read(&mut Parser::new(), &bytes, |_| stride), "{name} by {stride}");
                }
            }
        }
    }
}

/// A parser's state changes only with an event (but for what a search has looked at already). So two ways to cut a
/// stream cannot differ if, in front of every event, every prefix of what follows either asks for more or gives that event.
#[test]
fn every_prefix_asks_for_more_or_gives_the_same_event() {
    for (name, bytes) in streams() {
        let mut parser = Parser::new();
        let mut start = 0;
        loop {
            let before = parser.clone();
            let step = parser.step(&bytes[start..], Tail::Closed);
            let Step::Event(expected) = step.expect("it is valid") else { break };
            let len = expected.raw.len();
            // Cuts in the middle of a page or a long payload are all alike.
            let inside =
                (0..len.min(64)).chain((64..len).step_by(509)).chain(len.saturating_sub(8).max(64)..len);
            let behind = [0, 1, 2, 4, 5, 8, 14, 40].map(|more| len + more);
            let mut probe = before.clone();
            for cut in inside.chain(behind).filter(|cut| start + cut < bytes.len()) {
                match probe.step(&bytes[start..start + cut], Tail::Open) {
                    Ok(Step::More(_)) => {}
                    Ok(Step::Event(found)) => {
                        assert_eq!(found, expected, "{name} at {start:#x}, {cut} bytes shown");
                        probe = before.clone();
                    }
                    other => panic!("{name} at {start:#x}, {cut} bytes shown: {other:?}"),
                }
            }
            start += len;
        }
        assert_eq!(start, bytes.len(), "{name}");
    }
}

#[test]
fn small_ones_cut_in_two_everywhere() {
    for (name, bytes) in streams().into_iter().filter(|(_, bytes)| bytes.len() <= 1500) {
        let expected = strict(&bytes);
        for at in 0..=bytes.len() {
            assert_eq!(expected, read(&mut Parser::new(), &bytes, two(at)), "{name} cut at {at}");
        }
    }
}

/// A stream that ends too early: the same events and the same error text whether it came whole or byte by byte, and the
/// error names the end of the bytes.
#[test]
fn truncated_everywhere() {
    for (name, bytes) in small::all() {
        let complete = strict(&bytes);
        let mut ends = 0;
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 1500) {
            for parser in [Parser::new(), lenient()] {
                let expected = read(&mut parser.clone(), &bytes[..cut], whole);
                assert_eq!(
                    expected,
                    read(&mut parser.clone(), &bytes[..cut], bytewise),
                    "{name} cut at {cut}"
                );
                let Some(error) = &expected.error else {
                    // Behind EOF nothing need follow. Without footers any 0 at the end may be that EOF.
                    let eof = complete.events.iter().rfind(|e| e.name == "EOF").map(|e| e.range.end as usize);
                    let guess = name == "no-footers" && bytes[cut - 1] == 0;
                    assert!(
                        eof.is_some_and(|eof| eof <= cut) || guess,
                        "{name} cut at {cut} is taken for whole"
                    );
                    ends += 1;
                    continue;
                };
                let place = format!("offset {cut:#x})");
                assert!(error.ends_with(&place), "{name} cut at {cut}: {error}");
            }
        }
        assert!(ends < 40, "{name}: {ends} cuts were taken for whole");
    }
}

/// Bytes that parse are given back by both emitters, and offsets agree.
#[test]
fn emitters_give_back_every_stream() {
    for (name, bytes) in streams() {
        for mut emitter in [Emitter::obedient(), Emitter::strict()] {
            let mut parser = Parser::new();
            let mut out = Vec::with_capacity(bytes.len());
            let mut start = 0;
            while let Step::Event(located) = parser.step(&bytes[start..], Tail::Closed).expect("it is valid")
            {
                assert_eq!(emitter.offset(), located.range.start, "{name}");
                emitter.emit(&located.event, &mut out).unwrap_or_else(|e| panic!("{name}: {e}"));
                start += located.raw.len();
            }
            assert!(out == bytes, "{name} is not given back");
        }
    }
}

/// Leaving pages unread changes nothing but that: the same names and ranges.
#[test]
fn outlines_have_the_same_ranges() {
    for (name, bytes) in streams() {
        let mut parser = Parser::new().with_elision();
        let found = read(&mut parser, &bytes, |_| 4096);
        let complete = strict(&bytes);
        assert_eq!(found.error, None, "{name}");
        assert_eq!(found.end, bytes.len() as u64, "{name}");
        let places = |reading: &Reading| -> Vec<_> {
            let pages = reading.events.iter().filter(|e| e.name != "mapped-ram area");
            pages.map(|e| (e.name, e.range.clone())).collect()
        };
        assert_eq!(places(&found), places(&complete), "{name}");
    }
}

/// A lenient reading of what a strict one accepts has nothing to complain about.
#[test]
fn lenient_is_silent_about_valid_streams() {
    for (name, bytes) in streams() {
        let mut parser = lenient();
        let found = read(&mut parser, &bytes, whole);
        assert!(found == strict(&bytes), "{name}");
        assert_eq!(parser.grammar().complaint_count(), 0, "{name}: {:?}", parser.grammar().complaints());
    }
}
