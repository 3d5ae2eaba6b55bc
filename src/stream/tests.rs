//! The main channel where no integration test reaches: limits, lenient reading, and what a parser holds.

use super::{Event, Grammar, Mode, Parser, Phase};
use crate::channel::{ChannelParser as _, Step, Tail};
use crate::dialect::Dialect;
use crate::error::{ErrorKind, Result};
use crate::limits::{MAX_SECTIONS, PIECE};
use crate::wire::{Command, FileHeader, SectionFooter, SectionHead, SectionIdentity, SectionKind};

const FULL: SectionKind = SectionKind::FULL;

fn lenient() -> Grammar {
    let mut grammar = Grammar::new(Mode::Lenient, Dialect::ANY);
    grammar.admit(&Event::Header(FileHeader::CURRENT), 0).unwrap();
    grammar
}

fn full(section_id: u32) -> Event<'static> {
    let identity = Some(SectionIdentity { idstr: "device".into(), instance_id: 0, version_id: 1 });
    Event::Section(SectionHead { kind: FULL, section_id, identity })
}

#[test]
fn a_late_footer_is_one_complaint_and_closes_its_section() {
    let mut grammar = lenient();
    for event in [full(1), full(2), Event::Footer(SectionFooter { section_id: 2 })] {
        grammar.admit(&event, 0).unwrap();
    }
    assert_eq!(grammar.phase(), Phase::Record);
    assert!(grammar.current_section().is_none());
    grammar.admit(&Event::Eof, 0).unwrap();
    assert_eq!(grammar.complaint_count(), 1, "{:?}", grammar.complaints());
}

#[test]
fn sections_that_nobody_announced_are_bounded_too() {
    let mut grammar = lenient();
    let part = |id| Event::Section(SectionHead { kind: SectionKind::PART, section_id: id, identity: None });
    let outcome: Result<()> = (0..=MAX_SECTIONS as u32).try_for_each(|id| grammar.admit(&part(id), 0));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(grammar.complaints().len(), 64);
    assert_eq!(grammar.complaint_count(), MAX_SECTIONS as u64);
    // Known ones may come again.
    grammar.admit(&part(0), 0).unwrap();
}

/// A payload without footer in a package, followed by one command after the other: none of them is held for long.
#[test]
fn a_chain_of_commands_is_not_held() {
    use crate::channel::ChannelEvent as _;
    let mut stream = Vec::new();
    let commands = 8_000;
    let size = (1 + 4 + 1 + 6 + 8) + 9 * commands + 1;
    for event in [Event::Header(FileHeader::CURRENT), Event::Command(Command::Packaged { size }), full(1)] {
        event.emit(&mut stream);
    }
    (0..commands).for_each(|i| Event::Command(Command::Ping(i)).emit(&mut stream));
    let mut parser = Parser::new();
    let (mut start, mut end, mut most) = (0, 0, 0);
    loop {
        match parser.step(&stream[start..end], Tail::Open).unwrap() {
            Step::End => panic!("it is not over"),
            Step::Event(located) => start += located.raw.len(),
            Step::More(_) if end == stream.len() => break,
            Step::More(_) => end += 1,
        }
        most = most.max(end - start);
    }
    assert!(most <= PIECE + 1024, "{most} bytes were held");
}

/// The clock of a guest that reads like the footer of section 0 and the EOF of its package: a recording of 11.1 had it.
#[test]
fn a_clock_is_not_the_end_of_a_package() {
    use crate::channel::ChannelEvent as _;
    let timer = SectionIdentity { idstr: "timer".into(), instance_id: 0, version_id: 2 };
    let head = Event::Section(SectionHead { kind: FULL, section_id: 0, identity: Some(timer) });
    let mut inside = Vec::new();
    Event::Command(Command::PostcopyListen).emit(&mut inside);
    head.emit(&mut inside);
    inside.extend_from_slice(b"\0\0\0\x01\x7b\x4d\x1c\x7e\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05");
    Event::Footer(SectionFooter { section_id: 0 }).emit(&mut inside);
    Event::Command(Command::PostcopyRun).emit(&mut inside);
    let mut stream = Vec::new();
    for event in [
        Event::Header(FileHeader::CURRENT),
        Event::Command(Command::PostcopyAdvise(None)),
        full(1),
        Event::Footer(SectionFooter { section_id: 1 }),
        Event::Command(Command::Packaged { size: inside.len() as u32 }),
    ] {
        event.emit(&mut stream);
    }
    stream.extend_from_slice(&inside);
    stream.push(0);
    let mut parser = Parser::new();
    let (mut start, mut end, mut payloads) = (0, 0, Vec::new());
    loop {
        let tail = if end == stream.len() { Tail::Closed } else { Tail::Open };
        match parser.step(&stream[start..end], tail).unwrap() {
            Step::End => break,
            Step::Event(located) => {
                if let Event::Payload(bulk) = located.event {
                    payloads.push(bulk.len());
                }
                start += located.raw.len();
            }
            Step::More(_) => end += 1,
        }
    }
    assert_eq!(payloads, [24]);
}
