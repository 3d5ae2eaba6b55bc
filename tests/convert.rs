//! One migration made of another: what must come out is worked out here once more, from the bytes.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::converting::{Channels, check, converted, is_impossible, machine, options, refused};
use common::made::{Made, Ram, Recipe, make};
use common::ram::memory;
use common::{files, place, small};
use migwire::container::{self, Part};
use migwire::convert::Options;
use migwire::dialect::Dialect;
use migwire::guest::file_name;
use migwire::multifd::ZeroPages;
use migwire::wire::Method;
use migwire::{ChannelId, ErrorKind};
use proptest::prelude::*;
use serde_json::Value;

/// Every recorded migration of the fixtures: a stream, a directory, a recording.
fn recorded() -> Vec<(String, PathBuf)> {
    let mut found = files(&place("fixtures/streams"), "bin");
    found.extend(files(&place("fixtures/postcopy"), "pcapng"));
    let directories = files(&place("fixtures/multifd"), "bin").into_iter().map(|(name, path)| {
        let (name, _) = name.rsplit_once('/').unwrap();
        (name.to_owned(), path.parent().unwrap().to_owned())
    });
    found.extend(directories.collect::<BTreeMap<_, _>>());
    assert!(found.len() >= 40, "only {} fixtures", found.len());
    found
}

fn parts(path: &Path) -> Vec<Part> {
    container::open(path, false).unwrap().parts
}

fn dialect(name: &str) -> Dialect {
    name.parse().unwrap()
}

fn asked() -> Vec<(&'static str, Options)> {
    let to = |name| Options { dialect: dialect(name), ..Options::default() };
    let on = |channels| Options { channels: Some(channels), ..Options::default() };
    let zeros = |way| Options { zero_pages: Some(way), channels: Some(2), ..Options::default() };
    let by = |method, level| Options { method: Some(method), level, channels: Some(3), ..Options::default() };
    vec![
        ("to 5.2", to("5.2")),
        ("to 7.2", to("7.2")),
        ("to 8.2", to("8.2")),
        ("to 10.0", to("10.0")),
        ("to 11.1", to("11.1")),
        ("to 11.1-on-11.1", to("11.1-on-11.1")),
        ("to 11.1-on-5.2", to("11.1-on-5.2")),
        ("0 channels", on(0)),
        ("1 channel", on(1)),
        ("2 channels", on(2)),
        ("7 channels", on(7)),
        ("none", by(Method::NONE, None)),
        ("zlib", by(Method::ZLIB, None)),
        ("zlib 9", by(Method::ZLIB, Some(9))),
        ("zstd 3", by(Method::ZSTD, Some(3))),
        ("qpl", by(Method::QPL, None)),
        ("legacy", zeros(ZeroPages::Legacy)),
        ("multifd", zeros(ZeroPages::Multifd)),
        ("none", zeros(ZeroPages::None)),
        ("shuffled", Options { shuffle: Some(1), ..Options::default() }),
        ("all", Options { shuffle: Some(2), level: Some(2), ..by(Method::ZLIB, None) }),
        ("all to 7.2", Options { shuffle: Some(2), dialect: dialect("7.2"), ..on(4) }),
        ("all to 11.1", Options { shuffle: Some(2), dialect: dialect("11.1"), ..by(Method::ZSTD, None) }),
    ]
}

#[test]
fn if_nothing_is_asked_for_every_byte_stays() {
    for (name, path) in recorded() {
        let mut expected = Channels::default();
        for part in &mut parts(&path) {
            use std::io::Read as _;
            struct Bytes(container::ChannelInput);
            impl std::io::Read for Bytes {
                fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                    migwire::channel::Input::read(&mut self.0, buffer)
                }
            }
            let mut bytes = Vec::new();
            Bytes(part.input(container::Access::Whole).unwrap()).read_to_end(&mut bytes).unwrap();
            expected.0.insert(part.channel, bytes);
        }
        let (found, changes) = converted(&mut parts(&path), &Options::default()).unwrap();
        assert!(found == expected, "{name}");
        assert!(changes.counts.is_empty() && changes.losses.is_empty(), "{name}: {changes:?}");
        // The same number of channels is nothing that is asked for either.
        let count = expected.0.keys().filter(|channel| matches!(channel, ChannelId::Multifd(_))).count();
        let same = Options { channels: Some(count as u8), ..Options::default() };
        assert!(converted(&mut parts(&path), &same).unwrap().0 == expected, "{name}");
    }
}

#[test]
fn recorded_migrations_are_taken_and_hold_the_same_memory() {
    let mut done = 0;
    for (number, (name, path)) in recorded().into_iter().enumerate() {
        let ram = memory(&mut parts(&path)).map(|memory| memory.ram());
        // One large story is as good as the other.
        let large = name.starts_with("qemu-") && name.contains("/none-") && !name.contains("shared");
        for (what, options) in
            asked().into_iter().skip(if large { number % 5 } else { 0 }).step_by(if large { 5 } else { 1 })
        {
            let (found, _) = match converted(&mut parts(&path), &options) {
                Ok(found) => found,
                Err(error) => {
                    let expected = match () {
                        () if name.contains("preempt-cut") => "what was sent behind a pause",
                        () if error.message().contains("VFIO section: ") => "the state of a VFIO device",
                        () if name.starts_with("vfio/") => "device state travels on its multifd channels",
                        () => panic!("{name}, {what}: {error}"),
                    };
                    assert!(error.message().starts_with(expected), "{name}, {what}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    continue;
                }
            };
            if name.contains("preempt-cut") {
                assert!(found.0 == copied(&path), "nothing was asked for: {what}");
                continue;
            }
            let refused = refused(&found, options.dialect, machine(&found));
            assert_eq!(refused, None, "{name}, {what}");
            let after = memory(&mut found.parts()).unwrap();
            assert!(after.ram() == *ram.as_ref().unwrap(), "{name}, {what}");
            let expected = match options.channels {
                Some(count) => usize::from(count),
                None => found.0.len() - 1 - usize::from(found.0.contains_key(&ChannelId::ReturnPath)),
            };
            let count = found.0.keys().filter(|channel| matches!(channel, ChannelId::Multifd(_))).count();
            assert_eq!(count, expected, "{name}, {what}");
            done += 1;
        }
    }
    assert!(done > 600, "only {done}");
}

/// What a release does not know must not be there, wherever it came from.
#[test]
fn nothing_of_a_newer_release_is_left() {
    for story in ["qemu-11.1/none", "qemu-10.0/zstd", "qemu-11.1/three-channels"] {
        let path = place("fixtures/multifd").join(story);
        let before = Channels(copied(&path));
        let text = refused(&before, dialect("7.2"), None).unwrap();
        assert!(text.contains("MULTIFD_FLUSH") || text.contains("0x200"), "{text}");
        let options = Options { dialect: dialect("7.2"), ..Options::default() };
        let (after, changes) = converted(&mut parts(&path), &options).unwrap();
        assert_eq!(refused(&after, dialect("7.2"), None), None);
        assert_eq!(changes.counts["SWITCHOVER_START dropped"], 1);
        assert!(!contains(&after.0[&ChannelId::Main], b"\x08\0\x0b\0\0"));
    }
}

fn copied(path: &Path) -> BTreeMap<ChannelId, Vec<u8>> {
    converted(&mut parts(path), &Options::default()).unwrap().0.0
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}

#[test]
fn a_stream_that_has_nothing_to_change_stays_as_it_is() {
    for (name, path) in files(&place("fixtures/streams"), "bin") {
        let release = name.strip_prefix("qemu-").unwrap().split_once('/').unwrap().0.to_owned();
        for to in [release, "11.1-on-11.1".to_owned()] {
            let options = Options { dialect: dialect(&to), ..Options::default() };
            let (found, changes) = converted(&mut parts(&path), &options).unwrap();
            assert!(found.0[&ChannelId::Main] == fs::read(&path).unwrap(), "{name} to {to}");
            assert!(changes.counts.is_empty(), "{name} to {to}: {changes:?}");
        }
    }
}

#[test]
fn rounds_are_kept() {
    let path = place("fixtures/streams/qemu-11.1/pc-xbzrle.bin");
    let before = memory(&mut parts(&path)).unwrap();
    let options = Options { channels: Some(3), ..Options::default() };
    let (channels, changes) = converted(&mut parts(&path), &options).unwrap();
    let after = memory(&mut channels.parts()).unwrap();
    assert_eq!(after.came[0] + after.came[1], before.came[0], "pages sent twice are sent twice");
    assert!(changes.counts["deltas (XBZRLE) written out"] > 0);
    // And back again.
    let back = Options { channels: Some(0), ..Options::default() };
    let (back, _) = converted(&mut channels.parts(), &back).unwrap();
    let back = memory(&mut back.parts()).unwrap();
    assert_eq!(back.came, [before.came[0], 0, 0]);
    assert!(back.ram() == before.ram());
}

#[test]
fn shuffled_pages_are_the_same_pages_in_another_order() {
    let path = place("fixtures/multifd/qemu-11.1/none");
    let shuffled = |seed| {
        let options = Options { shuffle: Some(seed), ..Options::default() };
        converted(&mut parts(&path), &options).unwrap().0
    };
    assert!(shuffled(1) == shuffled(1) && shuffled(1) != shuffled(2));
    let [before, after] = [memory(&mut parts(&path)).unwrap(), memory(&mut shuffled(1).parts()).unwrap()];
    assert_ne!(before.order, after.order);
    let sorted = |mut order: Vec<_>| {
        order.sort_unstable();
        order
    };
    assert_eq!(sorted(before.order), sorted(after.order));
}

#[test]
fn memory_is_replaced() {
    for name in ["streams/qemu-7.2/pc-small.bin", "multifd/qemu-11.1/zlib", "streams/qemu-11.1/pc-xbzrle.bin"]
    {
        let path = place("fixtures").join(name);
        let blocks = memory(&mut parts(&path)).unwrap().blocks().to_vec();
        let directory = tempfile::tempdir().unwrap();
        let mut expected = Ram::new();
        for block in &blocks {
            let mut image = vec![0; block.used_length as usize];
            for (number, page) in
                image.chunks_exact_mut(4096).enumerate().filter(|(number, _)| number % 3 != 1)
            {
                page[17..].fill(number as u8 | 1);
                expected.insert((block.name.clone(), number as u64 * 4096), page.to_vec());
            }
            fs::write(directory.path().join(file_name(&block.name)), image).unwrap();
        }
        for more in [None, Some(0), Some(2)] {
            let images = Some(directory.path().to_owned());
            let options = Options { images, channels: more, ..Options::default() };
            let (found, changes) = converted(&mut parts(&path), &options).unwrap();
            assert!(memory(&mut found.parts()).unwrap().ram() == expected, "{name}, {more:?}");
            assert_eq!(refused(&found, Dialect::ANY, None), None);
            assert!(changes.counts["pages replaced"] > 0 && changes.losses.len() < 4, "{changes:?}");
        }
        // One image, of the block of its size.
        let largest = blocks.iter().max_by_key(|block| block.used_length).unwrap();
        let options =
            Options { images: Some(directory.path().join(file_name(&largest.name))), ..Options::default() };
        let (found, _) = converted(&mut parts(&path), &options).unwrap();
        let mut one = memory(&mut parts(&path)).unwrap().ram();
        one.retain(|(name, _), _| *name != largest.name);
        expected.retain(|(name, _), _| *name == largest.name);
        one.append(&mut expected);
        assert!(memory(&mut found.parts()).unwrap().ram() == one, "{name}");
    }
}

/// Streams by hand hold every kind of event, mapped-ram and COLO too.
#[test]
fn streams_made_by_hand() {
    for (name, bytes) in small::all() {
        for (what, options) in asked() {
            let mut parts = [Part::of_bytes(ChannelId::Main, bytes.clone())];
            match converted(&mut parts, &options) {
                // What was deflated is no page there.
                Err(error) if name == "pages" => assert_eq!(error.kind(), ErrorKind::Malformed),
                Err(error) => assert!(is_impossible(error.kind()), "{name}, {what}: {error}"),
                Ok((found, _)) => {
                    let before = memory(&mut parts).unwrap();
                    let after = memory(&mut found.parts()).unwrap();
                    assert!(after.ram() == before.ram(), "{name}, {what}");
                    let stays = found.0[&ChannelId::Main] == bytes;
                    if name.contains("mapped") && !stays {
                        assert!(before.came == [0; 3] && after.came != [0; 3], "{name}, {what}");
                    }
                }
            }
        }
    }
}

#[test]
fn broken_streams_are_refused_or_stay_broken() {
    for (name, path) in files(&place("fixtures/bad"), "bin") {
        let bytes = fs::read(&path).unwrap();
        for (what, options) in asked() {
            let mut parts = [Part::of_bytes(ChannelId::Main, bytes.clone())];
            if let Ok((found, changes)) = converted(&mut parts, &options) {
                if found.0[&ChannelId::Main] == bytes {
                    continue;
                }
                let is_said = changes.losses.iter().any(|loss| loss.contains("a destination refuses"));
                let harmless = ["configuration-twice", "page-compressed", "header", "description"];
                let is_harmless = harmless.iter().any(|part| name.contains(part));
                assert!(is_said || is_harmless, "{name}, {what}: {changes:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn made_up_migrations(bytes in prop::collection::vec(any::<u8>(), 8..400)) {
        check_made(&mut Recipe(&bytes));
    }
}

fn check_made(recipe: &mut Recipe<'_>) {
    let options = options(recipe);
    let Made { channels, ram } = make(recipe);
    let before = Channels(channels);
    assert_eq!(refused(&before, Dialect::ANY, None), None);
    assert!(memory(&mut before.parts()).unwrap().ram() == ram, "as it was made");
    check(&before, &options, true);
}

/// Runs the command; `timeout` ends it if it hangs, and answers 124 then.
fn migwire(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_migwire")]).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn json(arguments: &[&str]) -> (Option<i32>, Value) {
    let output = migwire(&[arguments, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {text}")))
}

#[test]
fn the_command_says_what_it_did_and_what_it_cannot() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let fixture = |name: &str| place("fixtures").join(name).to_str().unwrap().to_owned();
    let story = fixture("multifd/qemu-11.1/none");
    let recording = path("new.pcapng");

    let (code, answer) = json(&["convert", &story, "-o", &recording, "--to", "7.2"]);
    assert_eq!((code, answer["verdict"].as_str()), (Some(0), Some("converted")), "{answer}");
    let whats: Vec<_> =
        answer["changes"].as_array().unwrap().iter().map(|c| c["what"].as_str().unwrap()).collect();
    assert_eq!(whats, ["FLUSH words dropped", "SWITCHOVER_START dropped", "synchronisations"]);
    assert_eq!(json(&["verify", &recording, "--dialect", "7.2"]).0, Some(0));

    // A recording of a recording, onto one channel, as a stream, in a file and to standard output.
    let (stream, again) = (path("stream.bin"), path("again.pcapng"));
    assert_eq!(json(&["convert", &recording, "-o", &stream, "--channels", "0"]).0, Some(0));
    let output = migwire(&["convert", &recording, "-o", "-", "--channels", "0"]);
    assert!(output.status.success() && output.stdout == fs::read(&stream).unwrap());
    assert_eq!(json(&["convert", &stream, "-o", &again, "--channels", "2", "--to", "7.2"]).0, Some(0));
    assert_eq!(json(&["verify", &again]).0, Some(0));
    let same = path("same.pcapng");
    assert_eq!(json(&["convert", &recording, "-o", &same]).0, Some(0));
    assert_eq!(copied(Path::new(&same)), copied(Path::new(&recording)));

    for (arguments, expected) in [
        (&[&*story, "-o", &path("x.bin")][..], "multifd channel 0 has no place in a single stream"),
        (
            &[&*story, "-o", &path("x.pcapng"), "--to", "7.2", "--zero-pages", "multifd"],
            "no lists of zero pages",
        ),
        (&[&*story, "-o", &path("x.pcapng"), "--to", "7.2", "--compression", "qpl"], "7.2 knows no qpl"),
        (
            &[&*story, "-o", &path("x.pcapng"), "--channels", "0", "--compression", "zlib"],
            "there are to be none",
        ),
        (&[&*story, "-o", &path("x.pcapng"), "--level", "3"], "not encoded"),
        (&[&*stream, "-o", &stream], "would be overwritten"),
        (
            &[&*fixture("multifd/vfio/a3-10to10-on-2dev-4ch"), "-o", &path("x.pcapng"), "--to", "9.2"],
            "9.2 knows no such",
        ),
    ] {
        let (code, answer) = match json_or_text(&[&["convert"], arguments].concat()) {
            Ok(found) => found,
            Err((code, text)) => {
                assert!(text.contains(expected) && code != Some(0), "{arguments:?}: {text}");
                continue;
            }
        };
        assert_eq!((code, answer["verdict"].as_str()), (Some(1), Some("impossible")), "{answer}");
        assert!(answer["error"]["text"].as_str().unwrap().contains(expected), "{answer}");
    }
    let (code, answer) = json(&["convert", &stream, "-o", &path("x.pcapng"), "--channels", "1"]);
    assert_eq!((code, answer["losses"].as_array().unwrap().len()), (Some(0), 2), "UUID, release: {answer}");
    let inspected = json(&["inspect", &path("x.pcapng")]).1;
    let about = &inspected["files"][0]["about"];
    assert_eq!(
        (&about["role"], &about["from"]),
        (&Value::from("conversion"), &Value::from(stream)),
        "{inspected}"
    );
}

fn json_or_text(arguments: &[&str]) -> Result<(Option<i32>, Value), (Option<i32>, String)> {
    let output = migwire(&[arguments, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout)
        .map(|answer| (output.status.code(), answer))
        .map_err(|_| (output.status.code(), text))
}
