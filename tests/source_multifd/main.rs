//! The stand-in source and its multifd channels, against a destination by hand.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

mod devices;
mod errors;
mod misconduct;
mod reframing;
mod stage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use migwire::capture::{self, Recorder, RecorderOptions};
use migwire::endpoint::{Blank, Limits, Multifd, Source, Template};
use migwire::guest::{Memory, Pattern, file_name};
use migwire::multifd::ZeroPages;
use migwire::wire::{Method, SectionKind};
use stage::{Said, kind, play};

/// Every kind of synchronisation, and of packets.
const DIALECTS: [&str; 10] = ["5.2", "7.2", "8.0", "8.1", "9.0", "9.1", "10.0", "11.1", "11.1-on-5.2", "any"];

fn fixture(release: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/streams/qemu-{release}/{name}.bin"))
}

/// More pages than three packets hold, a quarter of them zero; written for all releases.
fn source(multifd: Multifd) -> Source {
    let template = Template::blank(&Blank::new("none", "ram", 500 * 4096)).unwrap();
    let source = Source::new(template).with_pattern(None, Pattern::Mixed(5)).unwrap();
    source.with_multifd(multifd).with_limits(patient()).with_copy(Memory::new().with_digest())
}

fn patient() -> Limits {
    Limits { silence: Duration::from_secs(20), total: None }
}

fn digesting() -> Memory {
    Memory::new().with_digest()
}

fn digests(memory: &Memory) -> Vec<(String, String)> {
    let digest = |block: &migwire::guest::MemoryBlock| block.digest().unwrap().to_string();
    memory.blocks().iter().map(|block| (block.name().to_string(), digest(block))).collect()
}

#[test]
fn every_dialect_synchronises_where_it_does() {
    let (start, part, end) = (kind(SectionKind::START), kind(SectionKind::PART), kind(SectionKind::END));
    for dialect in DIALECTS {
        for channels in [1, 3] {
            let (departure, seen) = play(source(Multifd::new(channels)).with_rounds(2), dialect, digesting());
            let place = format!("{dialect} with {channels}");
            assert!(departure.error.is_none(), "{place}: {:?}", departure.error);
            assert!(seen.errors.is_empty() && seen.misplaced == 0, "{place}: {:?}", seen.errors);
            assert_eq!(seen.repeated, 0, "{place}");
            assert_eq!(digests(&seen.memory), digests(&departure.memory), "{place}");

            // What stands on the main channel, and how many SYNCs belong to it.
            let per_section = ["5.2", "7.2", "8.0", "11.1-on-5.2"].contains(&dialect);
            let (at_end, syncs): (&[&str], _) = match dialect {
                _ if per_section => (&["EOS"], 4),
                "8.1" | "9.0" => (&["FLUSH", "FLUSH", "EOS"], 5),
                // One more, which no word answers.
                "9.1" => (&["FLUSH", "EOS"], 5),
                _ => (&["FLUSH", "EOS"], 4),
            };
            let round: &[&str] = if per_section { &["EOS"] } else { &["FLUSH", "EOS"] };
            let mut expected = Vec::new();
            for (kind, words) in [(&start, round), (&part, round), (&part, round), (&end, at_end)] {
                expected.push(kind.clone());
                expected.extend(words.iter().map(|word| word.to_string()));
            }
            if dialect.starts_with("10") || dialect == "11.1" {
                expected.insert(expected.len() - 1 - at_end.len(), "SWITCHOVER".to_owned());
            }
            assert_eq!(seen.main, expected, "{place}");
            assert_eq!(seen.syncs(), vec![syncs; channels.into()], "{place}");

            // Each number once, whatever channel it is on.
            assert_eq!(seen.numbers(), (0..seen.numbers().len() as u64).collect::<Vec<_>>(), "{place}");
            for (id, track) in seen.channels.iter().enumerate() {
                let hello = track.hello.unwrap();
                assert_eq!((usize::from(hello.id), hello.uuid), (id, [0; 16]), "{place}");
                assert!(matches!(track.said[0], Said::Sync(_)), "{place}: pages before the setup is done");
            }
        }
    }
}

#[test]
fn zero_pages_go_where_they_are_wanted() {
    let pages = 500;
    let zeros = (0..pages).filter(|page| Pattern::Mixed(5).is_zero(page * 4096)).count() as u64;
    for (dialect, usual) in [("8.2", ZeroPages::Legacy), ("11.1-on-8.2", ZeroPages::Legacy)]
        .into_iter()
        .chain([("9.0", ZeroPages::Multifd), ("any", ZeroPages::Multifd)])
    {
        for asked in [None, Some(ZeroPages::Legacy), Some(ZeroPages::Multifd), Some(ZeroPages::None)] {
            let way = asked.unwrap_or(usual);
            if way == ZeroPages::Multifd && dialect == "8.2" {
                // Its own destination does not see them.
                continue;
            }
            let multifd = Multifd { zero_pages: asked, ..Multifd::new(2) };
            let (departure, seen) = play(source(multifd), dialect, digesting());
            let on_channels = match way {
                ZeroPages::Legacy => (pages - zeros, 0),
                ZeroPages::Multifd => (pages, zeros),
                ZeroPages::None => (pages, 0),
            };
            assert_eq!(seen.pages(), on_channels, "{dialect} {asked:?}");
            let reported = if way == ZeroPages::None { 0 } else { zeros };
            assert_eq!((departure.pages, departure.zero_pages), (pages, reported), "{dialect} {asked:?}");
            assert_eq!(digests(&seen.memory), digests(&departure.memory), "{dialect} {asked:?}");
            assert_eq!(seen.repeated, 0);
        }
    }
}

#[test]
fn every_encoding_arrives() {
    let methods = [Method::NONE, Method::ZLIB, Method::ZSTD, Method::QPL, Method::UADK, Method::QATZIP];
    let mut digest = None;
    for method in methods {
        for level in [None, Some(9)] {
            let has_levels = [Method::ZLIB, Method::ZSTD, Method::QATZIP].contains(&method);
            let multifd = Multifd { method, level, ..Multifd::new(2) };
            if level.is_some() && !has_levels {
                assert!(source(multifd).check().unwrap_err().message().contains("level"), "{method}");
                continue;
            }
            let (departure, seen) = play(source(multifd).with_rounds(2), "any", digesting());
            assert!(departure.error.is_none() && seen.errors.is_empty(), "{method}: {:?}", seen.errors);
            let named = |said: &Said| !matches!(said, Said::Pages { method: other, .. } if *other != method);
            assert!(seen.said().all(named), "{method}");
            let arrived = digests(&seen.memory);
            assert_eq!(arrived, *digest.get_or_insert(arrived.clone()), "{method}");
        }
    }
}

#[test]
fn images_are_read_by_the_channels() {
    let template = || Template::open(&fixture("10.0", "pc-small")).unwrap();
    let given = tempfile::tempdir().unwrap();
    for (i, block) in template().blocks().iter().take(3).enumerate() {
        // Data, holes, and pages that are zero but written.
        let mut image = vec![0; block.used_length as usize];
        for at in (image.len() / 8..image.len()).step_by(5 * 4096 + i) {
            image[at] = i as u8 + 1;
        }
        let path = given.path().join(file_name(&block.name));
        std::fs::write(&path, &image).unwrap();
        if i == 0 {
            let sparse = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            sparse.set_len(image.len() as u64 / 2 + 100).unwrap();
            sparse.set_len(image.len() as u64).unwrap();
        }
    }
    for way in ZeroPages::ALL {
        let taken = tempfile::tempdir().unwrap();
        let multifd = Multifd { zero_pages: Some(way), ..Multifd::new(2) };
        let source = Source::new(template()).with_images(given.path()).unwrap();
        let source = source.with_multifd(multifd).with_rounds(2).with_limits(patient());
        let memory = Memory::new().with_images(taken.path()).unwrap();
        let (departure, mut seen) = play(source, "any", memory);
        assert!(departure.error.is_none() && seen.errors.is_empty(), "{way}: {:?}", departure.error);
        assert_eq!((seen.repeated, seen.misplaced), (0, 0));
        seen.memory.flush().unwrap();
        for block in template().blocks().iter().take(3) {
            let name = file_name(&block.name);
            let same = std::fs::read(taken.path().join(&name)).unwrap()
                == std::fs::read(given.path().join(&name)).unwrap();
            assert!(same, "{way} {name}");
        }
    }
}

#[test]
fn pages_of_a_template_change_over_to_the_channels() {
    for (release, name) in
        [("5.2", "pc-2.3"), ("7.2", "pc-small"), ("11.1", "pc-small"), ("11.1", "pc-xbzrle")]
    {
        let plain = |multifd: Option<Multifd>, dialect| {
            let images = tempfile::tempdir().unwrap();
            let source = Source::new(Template::open(&fixture(release, name)).unwrap()).with_limits(patient());
            let source = multifd.into_iter().fold(source, Source::with_multifd);
            let memory = Memory::new().with_images(images.path()).unwrap().with_digest();
            let (departure, seen) = play(source, dialect, memory);
            assert!(
                departure.error.is_none(),
                "{release} {name} {dialect}: {:?} {:?}",
                departure.error,
                seen.errors
            );
            assert_eq!((seen.errors.len(), seen.misplaced), (0, 0), "{release} {name}");
            (departure, seen)
        };
        let (before, on_main) = plain(None, "any");
        for (dialect, method) in [("any", Method::NONE), ("7.2", Method::ZLIB), ("8.2", Method::NONE)] {
            let multifd = Multifd { method, ..Multifd::new(3) };
            let (departure, seen) = plain(Some(multifd), dialect);
            let place = format!("{release} {name} as {dialect}");
            assert_eq!(digests(&seen.memory), digests(&on_main.memory), "{place}");
            assert_eq!(departure.pages, before.pages, "{place}");
            assert_eq!(departure.xbzrle_pages, before.xbzrle_pages, "{place}");
            assert_eq!(departure.xbzrle_pages > 0, name == "pc-xbzrle", "{place}");
            assert_eq!(seen.repeated, 0, "{place}: the guest wrote to a page, and it was sent again");
            assert!(!seen.main.contains(&"page".to_owned()), "{place}");
            assert!(seen.pages().0 > 0, "{place}");
        }
    }
}

#[test]
fn a_recording_has_every_channel() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("migration.pcapng");
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    let source = source(Multifd::new(2)).with_recorder(recorder.clone());
    let (departure, _) = play(source, "any", Memory::new());
    recorder.finish().unwrap();
    let listing = capture::channels(std::fs::File::open(&path).unwrap()).unwrap();
    let mut found: Vec<_> = listing.channels.iter().map(|c| (c.name.clone(), c.bytes)).collect();
    found.sort();
    let of = |id: usize| departure.channels[id].bytes;
    let expected = [("main", departure.bytes), ("main", 16), ("multifd-0", of(0)), ("multifd-1", of(1))]
        .map(|(name, bytes)| (name.to_owned(), bytes));
    let mut expected = expected.to_vec();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn what_was_sent_is_counted() {
    let multifd = Multifd { zero_pages: Some(ZeroPages::Multifd), ..Multifd::new(3) };
    let (departure, seen) = play(source(multifd).with_rounds(3), "10.0", Memory::new());
    for (channel, track) in departure.channels.iter().zip(&seen.channels) {
        let pages = track.said.iter().filter_map(|said| match said {
            Said::Pages { normal, zero, .. } => Some((*normal, *zero)),
            _ => None,
        });
        let (normal, zero) = pages.fold((0, 0), |sum, pages| (sum.0 + pages.0, sum.1 + pages.1));
        assert_eq!((channel.pages, channel.zero_pages), (normal + zero, zero));
        assert_eq!((channel.packets, channel.syncs), (track.said.len() as u64, 5));
        assert_eq!(channel.bytes, 64 + channel.packets * 1344 + normal * 4096);
    }
    assert_eq!(departure.pages, 1500);
}

#[test]
fn the_main_channel_is_the_first_to_be_seen() {
    use std::io::Read as _;
    let (ours, mut theirs) = migwire::transport::memory::pair();
    let mut first = None;
    let connect = |number| {
        // Would wait for ever if the header had not been written.
        let mut bytes = [0; 8];
        theirs.read_exact(&mut bytes).unwrap();
        first = Some((number, bytes));
        Err(migwire::Error::nowhere(migwire::ErrorKind::Io, "connecting", "enough"))
    };
    let departure = source(Multifd::new(2)).send_over(ours, connect, |_| {});
    assert!(departure.error.unwrap().message().contains("enough"));
    assert_eq!(first, Some((migwire::ChannelId::Multifd(0), *b"QEVM\0\0\0\x03")));
}
