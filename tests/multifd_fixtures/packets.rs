//! One channel at a time: however it is cut, given back, and made again from what it says.

use std::collections::BTreeMap;

use crate::common::reading::{Reading as Read, bytewise, read, two, whole};
use migwire::channel::{ChannelParser as _, Step, Tail};
use migwire::dialect::Dialect;
use migwire::multifd::{Framer, Packet, PacketParser};
use migwire::stream::Mode;
use migwire::wire::{MultifdFlags, MultifdHello, PaddedName, Wire as _};

use crate::{PAGE, Story};

fn all_channels() -> Vec<(String, Vec<u8>)> {
    Story::all().iter().flat_map(Story::channels).collect()
}

fn strict(bytes: &[u8]) -> Read {
    read(&mut PacketParser::default(), bytes, whole)
}

/// The rules of unused fields, held against stock bytes: every packet is made again from what it means.
#[test]
fn every_packet_is_made_again_by_a_framer_of_its_release() {
    let mut kinds: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for story in Story::all() {
        let release = story.release().unwrap_or("vfio").to_owned();
        for (name, bytes) in story.channels() {
            let mut framer = Framer::new(story.dialect(), PAGE);
            let mut parser = PacketParser::with(Mode::Strict, story.dialect(), PAGE);
            let mut start = 0;
            while let Step::Event(located) = parser.step(&bytes[start..], Tail::Closed).unwrap() {
                start += located.raw.len();
                let batch = parser.batch();
                let mut kind = |kind| *kinds.entry((release.clone(), kind)).or_default() += 1;
                let made = match &located.event {
                    Packet::Hello(hello) => {
                        let mut made = Vec::new();
                        MultifdHello::new(hello.id, hello.uuid).emit(&mut made);
                        made
                    }
                    Packet::Ram(packet) => {
                        let has_sync = packet.head.flags.contains(MultifdFlags::SYNC);
                        let (block, number) = (batch.name().0, packet.packet_num);
                        let (normal, zero) = (batch.normal(), batch.zero());
                        let size = batch.payload_len() as u32;
                        match (normal.len() + zero.len(), has_sync) {
                            (0, true) => {
                                kind("sync");
                                framer.sync(number)
                            }
                            (0, false) => {
                                kind("empty");
                                framer.empty(number)
                            }
                            (_, true) => {
                                kind("pages and sync");
                                framer.pages_with_sync(block, normal, batch.method(), size, number)
                            }
                            (_, false) => {
                                kind(if normal.is_empty() { "zero" } else { "pages" });
                                framer.pages(block, normal, zero, batch.method(), size, number)
                            }
                        }
                        .to_vec()
                    }
                    Packet::Device(packet) => {
                        kind("device");
                        let name = packet.idstr.name().0;
                        Framer::device(name, packet.instance_id, packet.payload_size).to_vec()
                    }
                    Packet::Payload(_) | Packet::DeviceData(_) => continue,
                };
                assert!(made == located.raw, "{name} at {:#x}: {:?}", located.range.start, located.event);
            }
            assert_eq!(start, bytes.len(), "{name}");
        }
    }
    // Every kind that a release has must have been seen, or nothing is proven about it.
    for (release, expected) in [
        ("5.2", &["pages", "pages and sync", "empty", "sync"][..]),
        ("7.2", &["pages", "pages and sync", "empty", "sync"]),
        ("10.0", &["pages", "zero", "sync"]),
        ("11.1", &["pages", "zero", "sync"]),
        ("vfio", &["device", "sync"]),
    ] {
        let seen: Vec<_> = kinds.keys().filter(|(r, _)| r == release).map(|(_, kind)| *kind).collect();
        for kind in expected {
            assert!(seen.contains(kind), "{release} has no packet of kind {kind:?}: {seen:?}");
        }
    }
}

#[test]
fn history_is_needed_to_make_the_packets_of_old_releases() {
    // The same packets from a framer that leaves nothing behind differ, so that the test above can fail.
    let mut differ = 0;
    for (_, bytes) in Story::named("qemu-5.2/zlib").channels() {
        let mut parser = PacketParser::default();
        let mut framer = Framer::new(Dialect::ANY, PAGE);
        let mut start = 0;
        while let Step::Event(located) = parser.step(&bytes[start..], Tail::Closed).unwrap() {
            start += located.raw.len();
            if let Packet::Ram(packet) = &located.event
                && packet.normal_pages == 0
                && packet.block != PaddedName::EMPTY
            {
                differ += usize::from(framer.sync(packet.packet_num) != located.raw);
            }
        }
    }
    assert!(differ >= 2, "{differ}");
}

#[test]
fn however_a_channel_is_cut_its_events_are_the_same() {
    for (name, bytes) in all_channels() {
        let expected = strict(&bytes);
        assert_eq!((expected.error.clone(), expected.end), (None, bytes.len() as u64), "{name}");
        for stride in [1, 61, 4099] {
            if stride > 1 || bytes.len() < 6000 {
                assert!(
                    expected == read(&mut PacketParser::default(), &bytes, |_| stride),
                    "{name} by {stride}"
                );
            }
        }
        for at in (0..=bytes.len()).step_by(1 + bytes.len() / 20) {
            assert!(expected == read(&mut PacketParser::default(), &bytes, two(at)), "{name} cut at {at}");
        }
    }
}

#[test]
fn every_prefix_asks_for_more_or_gives_the_same_event() {
    for (name, bytes) in all_channels() {
        let mut parser = PacketParser::default();
        let mut start = 0;
        loop {
            let before = parser.clone();
            let Step::Event(expected) = parser.step(&bytes[start..], Tail::Closed).unwrap() else { break };
            let len = expected.raw.len();
            let cuts =
                (0..len.min(80)).chain((80..len).step_by(311)).chain([len - 1, len, len + 1, len + 12]);
            for cut in cuts.filter(|cut| start + cut < bytes.len()) {
                match before.clone().step(&bytes[start..start + cut], Tail::Open).unwrap() {
                    Step::More(missing) => {
                        assert!(cut < len && missing > 0, "{name} at {start:#x}, {cut} shown");
                    }
                    Step::Event(found) => assert_eq!(found, expected, "{name} at {start:#x}, {cut} shown"),
                    Step::End => panic!("{name} at {start:#x}, {cut} shown: the end"),
                }
            }
            start += len;
        }
        assert_eq!(start, bytes.len(), "{name}");
    }
}

#[test]
fn a_channel_that_is_cut_is_truncated_there_or_ends_between_packets() {
    for (name, bytes) in all_channels() {
        let complete = strict(&bytes);
        // Behind every hello, packet without payload, and payload.
        let names: Vec<_> = complete.events.iter().map(|e| e.name).chain([""]).collect();
        let ends: Vec<u64> = (complete.events.iter().enumerate())
            .filter(|(i, _)| !matches!(names[i + 1], "multifd payload" | "device state"))
            .map(|(_, e)| e.range.end)
            .collect();
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 60).chain(ends.iter().map(|end| *end as usize))
        {
            let expected = read(&mut PacketParser::default(), &bytes[..cut], whole);
            match &expected.error {
                None => assert!(ends.contains(&(cut as u64)), "{name} cut at {cut} is taken for whole"),
                Some(error) => {
                    assert!(error.ends_with(&format!("offset {cut:#x})")), "{name} cut at {cut}: {error}");
                }
            }
            if cut < 2000 {
                assert_eq!(
                    expected,
                    read(&mut PacketParser::default(), &bytes[..cut], bytewise),
                    "{name} at {cut}"
                );
            }
        }
    }
}

#[test]
fn outlines_have_the_same_ranges_and_lenient_reading_is_silent() {
    for (name, bytes) in all_channels() {
        let complete = strict(&bytes);
        let found = read(&mut PacketParser::default().with_elision(), &bytes, |_| 4096);
        assert_eq!((found.error.clone(), found.end), (None, complete.end), "{name}");
        let mut lenient = PacketParser::with(Mode::Lenient, Dialect::ANY, PAGE);
        assert!(complete == read(&mut lenient, &bytes, whole) && lenient.complaints().is_empty(), "{name}");
        // A payload of several pieces is one in an outline.
        let heads = |reading: &Read| -> Vec<_> {
            let heads = reading.events.iter().filter(|e| e.name != "multifd payload");
            heads.map(|e| (e.name, e.range.clone())).collect()
        };
        assert_eq!(heads(&found), heads(&complete), "{name}");
    }
}
