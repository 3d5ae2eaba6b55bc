//! The stand-in source in postcopy, against a destination by hand.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

mod hostile;
mod multifd;
mod peer;
mod recovery;

use std::time::Duration;

use migwire::endpoint::{Blank, Limits, Postcopy, Source, Template};
use migwire::guest::{Memory, Pattern};
use migwire::wire::Message;
use migwire::{ErrorKind, Result};
use peer::{Asking, Good, Say, Script, ask, message, play};

/// More than all buffers between a source and its destination hold.
const PAGES: u64 = 1000;

const PATTERN: Pattern = Pattern::Mixed(5);

fn blank(pages: u64) -> Blank {
    Blank::new("none", "ram", pages * 4096)
}

fn source_of(blank: &Blank, postcopy: Postcopy) -> Source {
    let source = Source::new(Template::blank(blank).unwrap()).with_pattern(None, PATTERN).unwrap();
    let limits = Limits { silence: Duration::from_secs(20), total: None };
    source.with_postcopy(postcopy).with_limits(limits)
}

fn source(postcopy: Postcopy) -> Source {
    source_of(&blank(PAGES), postcopy)
}

fn with_preempt(percent: u8) -> Postcopy {
    Postcopy { preempt: true, ..Postcopy::at(percent) }
}

/// The dialects between which anything differs in postcopy, and whether they have a preempt channel, and EOS at its end.
const DIALECTS: [(&str, Option<bool>); 8] = [
    ("5.2", None),
    ("7.1", Some(true)),
    ("7.2", Some(true)),
    ("10.0", Some(false)),
    ("11.1", Some(false)),
    ("11.1-on-7.2", Some(true)),
    ("11.1-on-5.2", Some(true)),
    ("any", Some(false)),
];

#[test]
fn every_page_arrives_once_in_every_dialect() {
    for (dialect, preempt) in DIALECTS {
        for percent in [0, 37, 100] {
            for options in [Some(Postcopy::at(percent)), preempt.map(|_| with_preempt(percent))] {
                let Some(options) = options else { continue };
                let place = format!("{dialect}, {options:?}");
                let source = source(options).with_dialect(dialect.parse().unwrap());
                let (departure, seen, turns) = play(source, PATTERN, Good);
                assert!(departure.error.is_none(), "{place}: {:?}", departure.error);
                assert!(
                    seen.errors.is_empty() && seen.ended && turns.is_empty(),
                    "{place}: {:?}",
                    seen.errors
                );
                // One page comes again where nothing is left: something has to be discarded.
                let again = u64::from(percent == 100);
                assert_eq!((seen.missing(), seen.repeated, seen.wrong), (0, 0, 0), "{place}");
                assert_eq!(seen.early, PAGES * u64::from(percent) / 100, "{place}");
                assert_eq!(departure.pages, PAGES + again, "{place}");
                assert!(departure.postcopy.switched && departure.peer_status == Some(0), "{place}");
                assert_eq!(departure.postcopy.preempt.is_some(), options.preempt, "{place}");
                let ends = u64::from(options.preempt && preempt == Some(true));
                assert_eq!(seen.preempt_ends, ends, "{place}");
                assert!(seen.discards > 0, "{place}");
            }
        }
    }
}

#[test]
fn the_commands_stand_where_stock_sources_have_them() {
    let commands = |dialect: &str, options| {
        let source = source_of(&blank(10), options).with_dialect(dialect.parse().unwrap());
        let (_, seen, _) = play(source, PATTERN, Good);
        seen.commands.join(" ")
    };
    insta::assert_snapshot!(commands("5.2", Postcopy::at(50)), @"OPEN_RETURN_PATH PING POSTCOPY_ADVISE POSTCOPY_RAM_DISCARD PING PACKAGED POSTCOPY_LISTEN PING POSTCOPY_RUN PING");
    insta::assert_snapshot!(commands("10.0", Postcopy::at(100)), @"OPEN_RETURN_PATH PING POSTCOPY_ADVISE SWITCHOVER_START POSTCOPY_RAM_DISCARD PING PACKAGED POSTCOPY_LISTEN PING POSTCOPY_RUN PING");
    insta::assert_snapshot!(commands("11.1", Postcopy::at(50)), @"OPEN_RETURN_PATH PING POSTCOPY_ADVISE SWITCHOVER_START POSTCOPY_RAM_DISCARD PING PACKAGED POSTCOPY_LISTEN PING PING POSTCOPY_RUN PING");
}

#[test]
fn advise_alone_changes_nothing_else() {
    let template = Template::blank(&blank(10)).unwrap();
    let source = Source::new(template).with_pattern(None, PATTERN).unwrap().with_advise();
    let (departure, seen, _) = play(source, PATTERN, Good);
    assert!(departure.error.is_none() && !departure.postcopy.switched, "{:?}", departure.error);
    assert_eq!(seen.commands, ["OPEN_RETURN_PATH", "PING", "POSTCOPY_ADVISE"]);
}

/// Pages from the end of the memory, which would come last.
fn requests() -> Vec<Vec<u8>> {
    let mut requests = vec![ask((PAGES - 1) * 4096, 4096)];
    requests
        .extend((2..20).map(|i| message(Message::ReqPages { start: (PAGES - 3 * i) * 4096, length: 8192 })));
    requests
}

#[test]
fn what_is_asked_for_comes_first() {
    let (departure, seen, _) = play(source(Postcopy::at(0)), PATTERN, Asking(requests()));
    assert!(departure.error.is_none() && seen.errors.is_empty(), "{:?} {:?}", departure.error, seen.errors);
    assert_eq!((seen.missing(), seen.repeated, seen.wrong), (0, 0, 0));
    // What stood in buffers by then was in front, and a loaded machine reads late.
    let place = seen.order.iter().position(|(_, page, _)| *page == PAGES - 1).unwrap();
    assert!(place < 700, "the page came as number {place} of {PAGES}");
    let counts = departure.postcopy.requests;
    assert_eq!((counts.received, counts.pages, counts.unneeded), (19, 37, 0));
}

#[test]
fn a_preempt_channel_carries_what_is_asked_for_and_nothing_else() {
    let (departure, seen, _) = play(source(with_preempt(0)), PATTERN, Asking(requests()));
    assert!(departure.error.is_none() && seen.errors.is_empty(), "{:?} {:?}", departure.error, seen.errors);
    assert_eq!((seen.missing(), seen.repeated, seen.wrong), (0, 0, 0));
    let urgent: Vec<u64> = seen.order.iter().filter(|page| page.2).map(|page| page.1).collect();
    assert!(urgent.len() >= 30 && urgent.contains(&(PAGES - 1)), "{urgent:?}");
    let preempt = departure.postcopy.preempt.unwrap();
    assert_eq!(preempt.pages, urgent.len() as u64);
    assert_eq!(departure.postcopy.requests.pages, preempt.pages);
    assert_eq!(departure.postcopy.requests.unneeded, 37 - preempt.pages);
    assert!(preempt.bytes > preempt.pages * 8 && departure.bytes > PAGES * 2000);
}

/// Closes the preempt channel, on which nothing has to come.
struct Closing;

impl Script for Closing {
    fn closes_preempt(&self) -> bool {
        true
    }

    fn ended(&mut self) -> Say {
        // Long enough for the source to notice.
        std::thread::sleep(Duration::from_millis(50));
        Some(message(Message::Shut(0)))
    }
}

#[test]
fn only_eos_may_find_the_preempt_channel_closed() {
    let source = source(with_preempt(100)).with_dialect("7.2".parse().unwrap());
    let (departure, seen, turns) = play(source, PATTERN, Closing);
    assert!(departure.error.is_none() && turns.is_empty(), "{:?} {turns:?}", departure.error);
    assert_eq!((seen.missing(), seen.preempt_ends, departure.peer_status), (0, 0, Some(0)));
}

#[test]
fn huge_pages_stay_whole() {
    const HUGE: u64 = 64 << 10;
    let mut blank = blank(PAGES / 16 * 16);
    blank.huge_page = Some(HUGE);
    for options in [Postcopy::at(30), with_preempt(30)] {
        // In the middle of huge pages, and one twice.
        let asked = [61, 33, 47, 33].map(|page| ask(page * HUGE + 0x3000, 0x1000)).to_vec();
        let (departure, seen, _) = play(source_of(&blank, options), PATTERN, Asking(asked));
        assert!(departure.error.is_none(), "{:?}", departure.error);
        // The parsers of the destination have seen to it that each is complete before the next.
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
        assert_eq!(seen.blocks[0].huge_page, Some(HUGE));
        assert_eq!((seen.missing(), seen.repeated, seen.wrong), (0, 0, 0));
        assert_eq!(seen.early % 16, 0);
    }
}

#[test]
fn pages_of_an_earlier_round_are_dropped_and_sent_again() {
    let (departure, seen, _) = play(source(Postcopy::at(50)).with_rounds(2), PATTERN, Good);
    assert!(departure.error.is_none(), "{:?}", departure.error);
    assert_eq!((seen.missing(), seen.repeated, seen.early), (0, 0, PAGES + PAGES / 2));
    assert_eq!(departure.pages, 2 * PAGES);
    assert!(seen.discards > 12, "{}", seen.discards);
}

#[test]
fn images_are_served_as_patterns_are() {
    let directory = tempfile::tempdir().unwrap();
    let mut image = vec![0; PAGES as usize * 4096];
    PATTERN.fill_all(&mut image);
    std::fs::write(directory.path().join("ram.ram"), &image).unwrap();
    for options in [Postcopy::at(50), with_preempt(50)] {
        let template = Template::blank(&blank(PAGES)).unwrap();
        let source = Source::new(template).with_images(directory.path()).unwrap().with_postcopy(options);
        let source = source.with_copy(Memory::new().with_digest());
        let (departure, seen, _) = play(source, PATTERN, Asking(requests()));
        assert!(departure.error.is_none() && seen.errors.is_empty(), "{:?}", departure.error);
        assert_eq!((seen.missing(), seen.repeated, seen.wrong), (0, 0, 0));
        let mut sent = migwire::guest::BlockDigest::new(image.len() as u64, 4096);
        for (page, bytes) in image.chunks(4096).enumerate() {
            sent.set(page as u64 * 4096, bytes);
        }
        assert_eq!(departure.memory.blocks()[0].digest().unwrap().to_string(), sent.to_string());
    }
}

trait FillAll {
    fn fill_all(self, bytes: &mut [u8]);
}

impl FillAll for Pattern {
    fn fill_all(self, bytes: &mut [u8]) {
        for (page, bytes) in bytes.chunks_mut(4096).enumerate() {
            self.fill(page as u64 * 4096, bytes);
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is() {
    let refused = |source: Source| source.check().unwrap_err();
    let e = refused(source(Postcopy::at(0)).with_return_path(false));
    assert_eq!(e.kind(), ErrorKind::Misuse, "{e}");
    let e = refused(source(with_preempt(0)).with_dialect("5.2".parse().unwrap()));
    assert!(e.message().contains("no preempt channel"), "{e}");
    // The template's pages alone: nothing could be dropped, and without that no destination runs.
    let kept = Source::new(Template::blank(&blank(PAGES)).unwrap()).with_postcopy(Postcopy::at(50));
    assert!(refused(kept).message().contains("keep the template's pages"));
    let odd: Result<Template> = Template::blank(&Blank { huge_page: Some(3 << 20), ..blank(PAGES) });
    assert_eq!(odd.unwrap_err().kind(), ErrorKind::Misuse);
}

/// Waits with its answer to the first PING.
struct Silent(u32);

impl Script for Silent {
    fn ping(&mut self, value: u32) -> Say {
        Some(if value == self.0 { Vec::new() } else { message(Message::Pong(value)) })
    }
}

#[test]
fn a_source_that_waits_for_a_pong_does_not_wait_for_ever() {
    let limits = Limits { silence: Duration::from_millis(200), total: None };
    // The preempt channel waits for the first, and the end for the last.
    let (departure, ..) = play(source(with_preempt(0)).with_limits(limits), PATTERN, Silent(1));
    let e = departure.error.unwrap();
    assert!(e.kind() == ErrorKind::Timeout && e.message().contains("preempt channel"), "{e}");
    let postcopy = Postcopy { recover: Duration::ZERO, ..Postcopy::at(0) };
    let (departure, seen, _) = play(source(postcopy).with_limits(limits), PATTERN, Silent(0x42));
    let e = departure.error.unwrap();
    assert!(e.kind() == ErrorKind::Timeout && e.message().contains("PONG 0x42"), "{e}");
    assert_eq!((seen.missing(), seen.ended), (0, false));
    // Releases before 10.2 do not ask.
    let old = source(postcopy).with_limits(limits).with_dialect("10.0".parse().unwrap());
    assert!(play(old, PATTERN, Silent(0x42)).0.error.is_none());
}
