//! Channels made by hand, in both modes, whole and broken.

use std::path::PathBuf;

use super::*;
use crate::channel::ChannelEvent as _;
use crate::container;
use crate::multifd::Framer;
use crate::wire::{
    Configuration, FileHeader, Method, MultifdHello, RamBlock, SectionFooter, SectionHead, SectionIdentity,
    Wire as _,
};

const PAGE: u64 = 4096;

/// A main channel: START, one PART a round, END; FLUSH in front of every EOS or nowhere.
fn main_channel(rounds: usize, flush: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut emit = |event: &Event<'_>| event.emit(&mut out);
    emit(&Event::Header(FileHeader::CURRENT));
    emit(&Event::Configuration(Configuration { machine: "none".into() }));
    for round in 0..rounds {
        let (kind, identity) = match round {
            0 => (
                SectionKind::START,
                Some(SectionIdentity { idstr: "ram".into(), instance_id: 0, version_id: 4 }),
            ),
            _ if round + 1 == rounds => (SectionKind::END, None),
            _ => (SectionKind::PART, None),
        };
        emit(&Event::Section(SectionHead { kind, section_id: 1, identity }));
        if round == 0 {
            emit(&Event::RamWord(PageWord::new(16 * PAGE, RamFlags::MEM_SIZE)));
            emit(&Event::RamBlock(RamBlock::new("ram".into(), 16 * PAGE)));
        }
        if flush {
            emit(&Event::RamWord(PageWord::new(0, RamFlags::MULTIFD_FLUSH)));
        }
        emit(&Event::RamWord(PageWord::new(0, RamFlags::EOS)));
        emit(&Event::Footer(SectionFooter { section_id: 1 }));
    }
    emit(&Event::Eof);
    out
}

/// A multifd channel: SYNC, then a page and a SYNC a round.
fn multifd(id: u8, syncs: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut framer = Framer::new(Dialect::ANY, PAGE);
    MultifdHello::new(id, [0; 16]).emit(&mut out);
    for sync in 0..syncs {
        if sync > 0 {
            out.extend_from_slice(framer.pages(b"ram", &[sync * PAGE], &[], Method::NONE, PAGE as u32, sync));
            out.extend_from_slice(&[id; PAGE as usize]);
        }
        out.extend_from_slice(framer.sync(sync));
    }
    out
}

/// What came when: `F` FLUSH, `E` EOS, `.` other events of the main channel at their beginning, pages as `channel:offset`, `channel!` SYNC.
fn order(channels: &[Vec<u8>], options: &TogetherOptions) -> (String, Together) {
    let directory = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..channels.len()).map(|n| directory.path().join(n.to_string())).collect();
    let mut parts = Vec::new();
    for (path, bytes) in paths.iter().zip(channels) {
        std::fs::write(path, bytes).unwrap();
        parts.extend(container::open(path, false).unwrap().parts);
    }
    let mut together = Together::open(&mut parts, options).unwrap();
    let mut seen = Vec::new();
    together
        .run(|item| {
            match item {
                Item::Main(located, _) => match located.event {
                    Event::RamWord(word) if word.0 == RamFlags::MULTIFD_FLUSH.0 => seen.push("F".to_owned()),
                    Event::RamWord(word) if word.0 == RamFlags::EOS.0 => seen.push("E".to_owned()),
                    _ => {}
                },
                Item::Packet { channel, located, parser } => {
                    if let Packet::Payload(_) = located.event {
                        seen.push(format!("{channel}:{}", parser.batch().normal()[0] / PAGE));
                    }
                    if parser.is_at_sync() {
                        seen.push(format!("{channel}!"));
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    (seen.join(" "), together)
}

#[test]
fn rounds_come_in_order_in_both_modes() {
    // Channels come in any order; the main channel, too.
    let channels = |flush| [multifd(1, 3), main_channel(3, flush), multifd(0, 3)];
    let (seen, together) = order(&channels(true), &TogetherOptions::default());
    assert_eq!(seen, "F 0! 1! E F 0:1 0! 1:1 1! E F 0:2 0! 1:2 1! E");
    assert_eq!((together.mode(), together.markers()), (Some(SyncMode::PerRound), 3));
    assert!(together.faults().is_empty() && together.channels().all(|c| (c.syncs, c.unmatched) == (3, 0)));

    let (seen, together) = order(&channels(false), &TogetherOptions::default());
    assert_eq!(seen, "E 0! 1! E 0:1 0! 1:1 1! E 0:2 0! 1:2 1!");
    assert_eq!((together.mode(), together.markers()), (Some(SyncMode::PerSection), 3));
    assert!(together.faults().is_empty());

    // A dialect that knows both words says which of them counts.
    let options = TogetherOptions { dialect: "11.1".parse().unwrap(), ..TogetherOptions::default() };
    let (seen, together) = order(&channels(false), &options);
    assert_eq!(seen, "E E E 0! 1! 0:1 0! 1:1 1! 0:2 0! 1:2 1!");
    assert_eq!((together.markers(), together.channels().map(|c| c.unmatched).sum::<u64>()), (0, 6));
}

#[test]
fn one_sync_too_many_is_left_over_and_one_too_few_is_a_fault() {
    let options = TogetherOptions::default();
    let (_, together) = order(&[main_channel(3, true), multifd(0, 4), multifd(7, 3)], &options);
    assert_eq!(together.channels().map(|c| (c.id, c.unmatched)).collect::<Vec<_>>(), [(0, 1), (7, 0)]);
    assert!(together.faults().is_empty());

    let (seen, together) = order(&[main_channel(3, true), multifd(0, 3), multifd(7, 1)], &options);
    assert_eq!(seen, "F 0! 7! E F 0:1 0! E F 0:2 0! E", "the others go on");
    let faults: Vec<_> = together.faults().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(faults.join("\n"), @"synchronising: multifd channel 7 was closed after 1 SYNC packets, and the main channel has come to its synchronisation 2; a stock destination waits here for ever (its marker ends at 0x58 of the main channel) (multifd channel 7, offset 0x580)");
}

#[test]
fn what_is_cut_off_is_read_as_far_as_it_goes() {
    let options = TogetherOptions::default();
    let mut cut = multifd(1, 3);
    cut.truncate(64 + 1344 + 1344 + 100);
    let (seen, together) = order(&[main_channel(3, true), multifd(0, 3), cut], &options);
    assert_eq!(seen, "F 0! 1! E F 0:1 0! E F 0:2 0! E");
    let faults: Vec<_> = together.faults().iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(faults.join("\n"), @"multifd payload: the channel ends here, 3996 bytes short of payload (multifd channel 1, offset 0xb24)");

    let mut main = main_channel(3, true);
    main.truncate(70);
    let (seen, together) = order(&[main, multifd(0, 3), multifd(1, 2)], &options);
    assert_eq!(seen, "F 0! 1! E 0:1 0! 1:1 1! 0:2 0!", "the rest, round by round");
    assert_eq!(together.faults().len(), 1);
    assert_eq!(together.faults()[0].channel(), ChannelId::Main);
}

#[test]
fn channels_without_their_main_channel() {
    let (seen, together) = order(&[multifd(3, 2), multifd(0, 3)], &TogetherOptions::default());
    assert_eq!(seen, "0! 3! 0:1 0! 3:1 3! 0:2 0!");
    assert_eq!((together.mode(), together.faults().len(), together.page_size()), (None, 0, PAGE));
}

#[test]
fn a_channel_that_is_there_twice_is_refused_and_whoever_looks_may_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    std::fs::write(&path, multifd(0, 1)).unwrap();
    let open = || container::open(&path, false).unwrap().parts;
    let mut parts: Vec<_> = open().into_iter().chain(open()).collect();
    let error = Together::open(&mut parts, &TogetherOptions::default()).err().unwrap();
    assert_eq!((error.kind(), error.channel()), (ErrorKind::Malformed, ChannelId::Multifd(0)));

    let mut together = Together::open(&mut open(), &TogetherOptions::default()).unwrap();
    let mut count = 0;
    together
        .run(|_| {
            count += 1;
            Ok(ControlFlow::Break(()))
        })
        .unwrap();
    let refused = Error::nowhere(ErrorKind::Misuse, "test", "no");
    assert_eq!(together.run(|_| Err(refused.clone())).unwrap_err().message(), "no");
    assert_eq!(count, 1);
}
