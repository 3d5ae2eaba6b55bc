//! Connections that break, on purpose or not, and what is agreed on then.

use std::time::Duration;

use migwire::capture::{self, Direction, Recorder, RecorderOptions};
use migwire::endpoint::{Cut, Limits, Postcopy, Source, Template};
use migwire::postcopy::PageSet;
use migwire::stream::Block;
use migwire::{ChannelId, ErrorKind};
use proptest::prelude::*;

use super::peer::{Asking, Good, Say, Script, bitmap, play};
use super::{DIALECTS, PAGES, PATTERN, blank, requests, source, source_of, with_preempt};

fn options(percent: u8, preempt: bool) -> Postcopy {
    if preempt { with_preempt(percent) } else { Postcopy::at(percent) }
}

#[test]
fn a_cut_in_every_dialect() {
    for (dialect, preempt) in DIALECTS {
        for preempt in [false, true].into_iter().take(1 + usize::from(preempt.is_some())) {
            let source = source(options(20, preempt)).with_dialect(dialect.parse().unwrap()).with_cuts([
                Cut::Run(100_000),
                Cut::Resume(0),
                Cut::Resume(50_000),
                Cut::Run(1_000_000),
            ]);
            let (departure, seen, turns) = play(source, PATTERN, Asking(requests()));
            let place = format!("{dialect}, {preempt}: {turns:?}");
            assert!(departure.error.is_none(), "{place}: {:?}", departure.error);
            assert_eq!((seen.missing(), seen.wrong, seen.ended), (0, 0, true), "{place}");
            assert_eq!(departure.postcopy.pauses, 4, "{place}");
            let resumed = turns.iter().filter(|turn| *turn == "resumed").count();
            // The second connection broke before the answer to RESUME could be heard.
            assert!((3..=4).contains(&resumed), "{place}");
            assert!(turns[0].contains("cut on purpose at run+100000 (main channel, offset"), "{place}");
            assert!(
                turns[2].contains("(main channel after pause 1, offset")
                    || turns[1].contains("after pause 1"),
                "{place}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_cut_anywhere_loses_nothing(
        first in prop_oneof![0..600u64, 0..1_000_000u64],
        second in prop_oneof![Just(None), (0..600u64).prop_map(Some), (0..500_000u64).prop_map(Some)],
        percent in 0..=100u8,
        preempt: bool,
        huge: bool,
        asks: bool,
    ) {
        let mut blank = blank(320);
        blank.huge_page = huge.then_some(16 << 10);
        let cuts = [Cut::Run(first)].into_iter().chain(second.map(Cut::Resume));
        let source = source_of(&blank, options(percent, preempt)).with_cuts(cuts);
        let asked = if asks { vec![super::ask(319 * 4096, 4096), super::ask(100 * 4096, 8192)] } else { Vec::new() };
        let (departure, seen, turns) = play(source, PATTERN, Asking(asked));
        prop_assert!(departure.error.is_none(), "{:?} {turns:?}", departure.error);
        prop_assert_eq!((seen.missing(), seen.wrong, seen.ended), (0, 0, true));
        // A cut behind the end does not come.
        prop_assert!(departure.postcopy.pauses <= 2);
    }
}

#[test]
fn a_cut_before_the_guest_runs_is_the_end() {
    for bytes in [0, 8, 100, 50_000] {
        let source = source(Postcopy::at(50)).with_cuts([Cut::Bytes(bytes)]);
        let (departure, _, turns) = play(source, PATTERN, Good);
        let e = departure.error.unwrap();
        assert!(e.message().contains("cut on purpose"), "{e}");
        assert_eq!((departure.bytes, departure.postcopy.switched, turns.len()), (bytes, false, 0));
    }
    // Without recovery it always is.
    let postcopy = Postcopy { recover: Duration::ZERO, ..Postcopy::at(0) };
    let (departure, _, turns) = play(source(postcopy).with_cuts([Cut::Run(5000)]), PATTERN, Good);
    assert!(departure.error.is_some() && departure.postcopy.switched && turns.is_empty());
}

/// Ends connections behind so many pages each time, without a word.
struct Leaving {
    after: Vec<u64>,
    admitted: u32,
}

impl Script for Leaving {
    fn page(&mut self, count: u64) -> Say {
        match self.after.first() {
            Some(after) if count >= *after => {
                self.after.remove(0);
                None
            }
            _ => Some(Vec::new()),
        }
    }

    fn admits(&mut self, pause: u32) -> bool {
        pause <= self.admitted
    }
}

#[test]
fn a_destination_that_breaks_off_is_reached_again() {
    for preempt in [false, true] {
        let script = Leaving { after: vec![1, 300, 301, 700], admitted: u32::MAX };
        let (departure, seen, turns) = play(source(options(0, preempt)), PATTERN, script);
        assert!(departure.error.is_none(), "{:?} {turns:?}", departure.error);
        assert_eq!((seen.missing(), seen.wrong, departure.postcopy.pauses), (0, 0, 4), "{turns:?}");
    }
}

#[test]
fn one_that_cannot_be_reached_is_given_up() {
    let postcopy = Postcopy { recover: Duration::from_millis(300), ..Postcopy::at(0) };
    let script = Leaving { after: vec![1], admitted: 0 };
    let (departure, _, turns) = play(source(postcopy), PATTERN, script);
    let e = departure.error.unwrap();
    assert_eq!(e.kind(), ErrorKind::Timeout);
    assert!(
        e.message().contains("could not be reached again") && e.message().contains("paused because"),
        "{e}"
    );
    assert_eq!((turns.len(), departure.postcopy.pauses), (1, 1), "{turns:?}");
}

/// Answers with bitmaps that are wrong, so many times.
struct Wrong<F> {
    times: u32,
    bitmap: F,
}

impl<F: Fn(&Block, &PageSet) -> Vec<u8> + Send + 'static> Script for Wrong<F> {
    fn bitmap(&mut self, pause: u32, block: &Block, received: &PageSet) -> Say {
        Some(if pause <= self.times { (self.bitmap)(block, received) } else { bitmap(block, received) })
    }
}

/// Makes a bitmap of what has arrived.
type Answer = fn(&Block, &PageSet) -> Vec<u8>;

#[test]
fn wrong_bitmaps_pause_it_again() {
    let patience = Limits { silence: Duration::from_millis(300), total: None };
    let wrong: [(Answer, &str); 5] = [
        (|block, set| bitmap(&Block { used_length: 4096, ..block.clone() }, set), "its block takes"),
        (|block, set| bitmap(&Block { name: b"tape"[..].into(), ..block.clone() }, set), "was not asked for"),
        (
            |block, set| {
                let mut bytes = bitmap(block, set);
                *bytes.last_mut().unwrap() ^= 1;
                bytes
            },
            "bitmap end mark",
        ),
        (|_, _| b"\0\x06\0\x04\0\0\0\x01".to_vec(), "nothing was to be resumed"),
        (|_, _| Vec::new(), "does not say what it has received"),
    ];
    for (bitmap, why) in wrong {
        let source = source(Postcopy::at(0)).with_cuts([Cut::Run(9000)]).with_limits(patience);
        let (departure, seen, turns) = play(source, PATTERN, Wrong { times: 2, bitmap });
        assert!(departure.error.is_none(), "{why}: {:?} {turns:?}", departure.error);
        assert_eq!((seen.missing(), departure.postcopy.pauses), (0, 3), "{why}: {turns:?}");
        assert!(turns[1].contains(why) && turns[2].contains(why), "{why}: {turns:?}");
    }
    // One that is never right does not keep the source for ever.
    let postcopy = Postcopy { recover: Duration::from_secs(1), ..Postcopy::at(0) };
    let source = source(postcopy).with_cuts([Cut::Run(9000)]);
    let (departure, _, turns) = play(source, PATTERN, Wrong { times: u32::MAX, bitmap: wrong[2].0 });
    let e = departure.error.unwrap();
    assert!(e.kind() == ErrorKind::Timeout && e.message().contains("bitmap end mark"), "{e} {turns:?}");
}

#[test]
fn what_the_bitmap_lacks_is_sent_again_and_nothing_else() {
    // The destination forgets pages that came before the switch.
    let forget = |block: &Block, received: &PageSet| {
        let mut received = received.clone();
        received.remove_range(3..7);
        bitmap(block, &received)
    };
    let source = source(Postcopy::at(50)).with_cuts([Cut::Run(9000)]);
    let (departure, seen, _) = play(source, PATTERN, Wrong { times: 1, bitmap: forget });
    assert!(departure.error.is_none(), "{:?}", departure.error);
    assert_eq!(seen.missing(), 0);
    let again: Vec<u64> = seen.order.iter().map(|page| page.1).filter(|page| (3..7).contains(page)).collect();
    assert_eq!(again, [3, 4, 5, 6]);
    assert_eq!(seen.repeated, 4);
}

#[test]
fn pages_of_the_template_cannot_be_sent_again() {
    let path = format!("{}/fixtures/streams/qemu-11.1/pc-small.bin", env!("CARGO_MANIFEST_DIR"));
    let zero = migwire::guest::Pattern::Zero;
    let postcopy = || {
        let source = Source::new(Template::open(path.as_ref()).unwrap()).with_postcopy(Postcopy::at(0));
        source.with_pattern(Some(b"pc.ram"), zero).unwrap()
    };
    let (departure, seen, turns) = play(postcopy().with_cuts([Cut::Run(0)]), zero, Good);
    assert!(departure.error.is_none(), "{:?} {turns:?}", departure.error);
    assert_eq!((seen.missing(), departure.postcopy.pauses), (0, 1));
    assert!(seen.order.iter().all(|(block, ..)| *seen.blocks[*block].name == *b"pc.ram"));
    let none = |block: &Block, _: &PageSet| bitmap(block, &PageSet::new());
    let (departure, ..) = play(postcopy().with_cuts([Cut::Run(0)]), zero, Wrong { times: 1, bitmap: none });
    let e = departure.error.unwrap();
    assert!(e.kind() == ErrorKind::Unsupported && e.message().contains("pages of block"), "{e}");
}

#[test]
fn recordings_have_a_channel_a_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture");
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    let source = source(with_preempt(0)).with_cuts([Cut::Run(50_000)]).with_recorder(recorder.clone());
    let (departure, ..) = play(source, PATTERN, Asking(requests()));
    recorder.finish().unwrap();
    assert!(departure.error.is_none(), "{:?}", departure.error);
    let listing = capture::channels(std::fs::File::open(&path).unwrap()).unwrap();
    assert!(listing.error.is_none());
    let length = |channel, direction| {
        let found =
            listing.channels.iter().find(|c| (c.channel(), c.direction) == (Some(channel), direction));
        found.map_or(0, |channel| channel.bytes)
    };
    let there = Direction::ToDestination;
    let main = length(ChannelId::Main, there);
    assert_eq!(main + length(ChannelId::Resumed(1), there), departure.bytes);
    let preempt = [ChannelId::Preempt, ChannelId::ResumedPreempt(1)].map(|channel| length(channel, there));
    assert_eq!(preempt.iter().sum::<u64>(), departure.postcopy.preempt.unwrap().bytes);
    assert!(length(ChannelId::ResumedReturnPath(1), Direction::ToSource) > PAGES / 8);
}
