//! All channels of a migration: what is in them, and what is said of those that were damaged.

use std::fs;
use std::path::Path;

use migwire::capture::{Direction, Recorder, RecorderOptions};
use migwire::container;
use migwire::dialect::Dialect;
use migwire::guest::Memory;
use migwire::multifd::{Framer, SyncMode};
use migwire::report::migration::inspect_all;
use migwire::report::packets::PacketCounts;
use migwire::report::verify::Verification;
use migwire::report::{Reading, Whole, dump, prove_all};
use migwire::stream::Mode;
use migwire::{ChannelId, ErrorKind};

use crate::{PAGE, Story, code, copy, err, json, migwire, out, prove};

#[test]
fn every_channel_is_proven_and_all_of_them_fit_together() {
    for story in Story::all() {
        let (channels, whole) = story.prove();
        for (channel, found) in &channels {
            assert!(found.is_identical(), "{} {channel}: {found:?}", story.name);
        }
        assert!(whole.is_consistent(), "{}: {:?}", story.name, whole.faults);
        assert_eq!((whole.unmatched, &whole.notes[..]), (0, &[][..]), "{}", story.name);
        let per_section = matches!(story.release(), Some("5.2" | "7.2")) || story.kind() == "per-section";
        let mode = if per_section { SyncMode::PerSection } else { SyncMode::PerRound };
        assert_eq!(whole.sync, Some(mode), "{}", story.name);
        assert!(whole.synchronisations >= 3, "{}", story.name);
        let multifd: Vec<&PacketCounts> = channels.values().filter_map(|c| c.packets.as_ref()).collect();
        assert!(multifd.iter().all(|c| c.syncs == whole.synchronisations), "{}", story.name);
        let compression = whole.compression.and_then(migwire::multifd::codec::name);
        match story.kind() {
            "zlib" | "zstd" => assert_eq!(compression, Some(story.kind()), "{}", story.name),
            _ if story.release().is_some() => assert_eq!(compression, Some("none"), "{}", story.name),
            _ => assert_eq!(compression, None, "{}", story.name),
        }
        let pages: u64 = channels.values().map(|found| found.pages).sum();
        match story.kind() {
            "isapc" => assert_eq!(whole.counts.pages, 5),
            _ if story.release().is_some() => assert_eq!(pages, (4 << 20) / PAGE, "{}", story.name),
            _ => assert_eq!(pages, 0),
        }
    }
}

/// The pages that `scripts/record-fixtures.sh` puts into the guest's memory.
fn page(number: u64) -> Vec<u8> {
    if number.is_multiple_of(2) {
        return format!("page{number:4}").repeat(512).into_bytes();
    }
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::new();
    for _ in 0..512 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[test]
fn what_is_decoded_is_what_the_guest_had() {
    for story in Story::recorded() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("ram");
        let output = migwire(&["inspect", "--ram-out", out.to_str().unwrap(), story.path.to_str().unwrap()]);
        assert_eq!(code(&output), 0, "{}: {}", story.name, err(&output));
        let mut numbers = vec![5, 260, 514, 769];
        let mut size = 4 << 20;
        match story.kind() {
            "zlib" => numbers.extend((300..700).step_by(2)),
            "isapc" => (numbers, size) = (vec![6, 33, 130], 1 << 20),
            _ => {}
        }
        let mut expected = vec![0; size];
        for number in numbers {
            expected[(PAGE * number) as usize..][..PAGE as usize].copy_from_slice(&page(number));
        }
        assert!(fs::read(out.join("ram0.ram")).unwrap() == expected, "{}", story.name);
        if story.kind() == "isapc" {
            let bios = fs::read(out.join("pc.bios.ram")).unwrap();
            assert!(bios[4 * 4096..][..4096] == page(4) && bios[14 * 4096..][..4096] == page(14));
        }
    }
}

#[test]
fn device_state_is_put_together() {
    let name = |whole: &Whole| -> Vec<String> {
        whole.devices.iter().map(|device| device.name.escape_ascii().to_string()).collect()
    };
    let (_, whole) = Story::named("vfio/a3-10to10-on-2dev-4ch").prove();
    assert_eq!(name(&whole), ["0000:00:02.0/vfio", "0000:00:03.0/vfio"]);
    // What came before the guest was stopped is on the main channel.
    assert!(whole.devices.iter().all(|d| (d.packets, d.main_bytes > 0, &d.incomplete) == (2, true, &None)));

    let (_, whole) = Story::named("vfio/c1-10to10-off").prove();
    let device = &whole.devices[0];
    assert_eq!((device.packets, device.multifd_bytes, device.incomplete.as_ref()), (0, 0, None));
    assert!(device.main_bytes > 0);

    let (_, whole) = Story::named("vfio/b4-11to11-on-config-after-iter").prove();
    assert!(whole.devices[0].load_ready && whole.devices[0].config.is_some());

    // Without its last packet a device is not complete, and that is a fault.
    let directory = copy(&Story::named("vfio/a3-10to10-on-2dev-4ch"));
    let path = directory.path().join("conn02.src-to-dst.bin");
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(4).rposition(|w| w == b"\0\0\0\x40").unwrap() - 8;
    let size = u32::from_be_bytes(bytes[at + 272..at + 276].try_into().unwrap()) as usize;
    fs::write(&path, [&bytes[..at], &bytes[at + 276 + size..]].concat()).unwrap();
    let (channels, whole) = prove(container::open(directory.path(), false).unwrap());
    assert!(channels.values().all(Verification::is_identical));
    assert_eq!(whole.faults.len(), 1, "{:?}", whole.faults);
    assert_eq!((whole.faults[0].kind(), whole.faults[0].doing()), (ErrorKind::Truncated, "device state"));
}

#[test]
fn what_does_not_fit_together_is_said_with_its_place() {
    let faults = |damage: &dyn Fn(&Path)| -> String {
        let directory = copy(&Story::named("qemu-11.1/zlib"));
        damage(directory.path());
        let (channels, whole) = prove(container::open(directory.path(), false).unwrap());
        let of_channels = channels.values().filter_map(|found| found.error.as_ref());
        of_channels.chain(&whole.faults).map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let change = |name: &'static str, change: fn(&mut Vec<u8>)| {
        move |directory: &Path| {
            let path = directory.join(name);
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
        }
    };
    assert_eq!(faults(&|_| ()), "");
    let one = "conn01.src-to-dst.bin";
    // The last SYNC is missing.
    insta::assert_snapshot!(faults(&change(one, |b| b.truncate(b.len() - 1344))), @"synchronising: multifd channel 0 was closed after 2 SYNC packets, and the main channel has come to its synchronisation 3; a stock destination waits here for ever (its marker ends at 0x8a of the main channel) (multifd channel 0, offset 0x3feb)");
    // A channel that is not there at all.
    insta::assert_snapshot!(faults(&|d| fs::remove_file(d.join("conn02.src-to-dst.bin")).unwrap()), @"");
    // Somebody else's channel.
    insta::assert_snapshot!(faults(&change(one, |b| b[8..24].fill(7))), @"multifd hello: UUID 00000000-0000-0000-0000-000000000000 where channel 0 has 07070707-0707-0707-0707-070707070707: a destination drops the channel (multifd channel 1, offset 0x8)");
    // The name of a block.
    insta::assert_snapshot!(faults(&change(one, |b| b[64 + 1344 + 64] = b'R')), @r#"multifd packet: there is no RAM block "Ram0" (multifd channel 0, offset 0x5c0)"#);
    // An offset of a page.
    insta::assert_snapshot!(faults(&change(one, |b| b[64 + 1344 + 320 + 4] = 1)), @r#"multifd packet: offset 0x1005000 in block "ram0" of 0x400000 bytes (multifd channel 0, offset 0x6c0)"#);
    // The first byte of the first payload.
    insta::assert_snapshot!(faults(&change(one, |b| b[64 + 2 * 1344] ^= 0xff)), @"zlib pages: this is no continuation of the channel's zlib stream (multifd channel 0, offset 0xac2)");
    // Pages in front of the first SYNC, and behind the last one.
    insta::assert_snapshot!(faults(&change(one, |b| {
        let sync: Vec<u8> = b.drain(64..64 + 1344).collect();
        b.splice(64 + 1344..64 + 1344, []);
        let size = u32::from_be_bytes(b[64 + 20..64 + 24].try_into().unwrap()) as usize;
        let end = 64 + 1344 + size;
        b.splice(end..end, sync);
    })), @"multifd packet: pages before the first synchronisation, when the destination may not have set up its memory yet: stock destinations from 9.2 on crash (multifd channel 0, offset 0x40)");
    insta::assert_snapshot!(faults(&change(one, |b| {
        let mut framer = Framer::new(Dialect::ANY, PAGE);
        b.extend_from_slice(framer.pages(b"ram0", &[], &[0], migwire::wire::Method::ZLIB, 0, 99));
    })), @"multifd packet: pages behind the last synchronisation: whether a stock destination still takes them is left to chance (multifd channel 0, offset 0x452b)");
}

/// Numbers that look random and are the same in every run.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[test]
fn damaged_channels_end_in_words_and_three_readers_agree() {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let (mut failed, mut rounds) = (0, 0);
    for name in ["qemu-5.2/zlib", "qemu-7.2/isapc", "qemu-11.1/zstd", "vfio/b4-11to11-on-config-after-iter"] {
        let story = Story::named(name);
        let files = crate::common::files(&story.path, "bin");
        for round in 0..30 {
            let directory = copy(&story);
            for _ in 0..1 + round % 3 {
                let (name, path) = &files[noise.below(files.len())];
                let mut bytes = fs::read(path).unwrap();
                // Half of the damage goes where the records are dense.
                let at = if noise.below(2) == 0 {
                    noise.below(bytes.len().min(4096))
                } else {
                    noise.below(bytes.len())
                };
                match noise.below(8) {
                    0 => bytes.truncate(at),
                    1 => drop(bytes.drain(at..(at + noise.below(2000)).min(bytes.len()))),
                    2 => bytes[at] = 0xff,
                    3 => bytes[at] = noise.below(256) as u8,
                    _ => bytes[at] ^= 1 << noise.below(8),
                }
                fs::write(directory.path().join(name), bytes).unwrap();
            }
            for mode in [Mode::Strict, Mode::Lenient] {
                let open = || container::open(directory.path(), mode == Mode::Lenient);
                let Ok(mut contents) = open() else { continue };
                rounds += 1;
                let mut reading = Reading { mode, ..Reading::default() };
                let mut proven = Vec::new();
                let whole = prove_all(&mut contents.parts, &reading, |part, found| {
                    assert_eq!(found.difference, None, "{name} {round} {}", part.channel);
                    proven.push((part.channel, found.bytes, found.error.map(|e| e.to_string())));
                });
                let is_bad = |whole: &Whole| !whole.is_consistent();
                failed +=
                    usize::from(proven.iter().any(|p| p.2.is_some()) || whole.as_ref().is_some_and(is_bad));
                // Channels that nothing can put together are read with whatever page size there is, one by one.
                let is_one = whole.is_some_and(|whole| whole.channels > 0);
                reading.page_size = reading.page_size_of(&mut contents.parts);
                let summaries = inspect_all(&mut contents.parts, &reading, None).unwrap().0;
                for ((part, summary), (channel, bytes, error)) in
                    contents.parts.iter_mut().zip(&summaries).zip(&proven)
                {
                    let mut end = 0;
                    let outcome = dump::dump(part, &reading, &mut |row| {
                        assert_eq!(row.offset, end, "{name} {round}");
                        end += row.len;
                        Ok(())
                    });
                    let of_description = [error.clone(), summary.error.as_ref().map(ToString::to_string)]
                        .iter()
                        .flatten()
                        .any(|e| e.starts_with("VM description"));
                    if !is_one || of_description || matches!(channel, ChannelId::Connection(_)) {
                        continue;
                    }
                    // A payload that is cut is skipped in one go, and read in pieces.
                    let texts =
                        [outcome.unwrap().error, summary.error.clone()].map(|e| e.map(|e| e.to_string()));
                    assert_eq!(
                        texts.clone().map(|t| t.is_some()),
                        [error.is_some(); 2],
                        "{name} {round} {channel}: {texts:?} {error:?}"
                    );
                    assert_eq!(end, summary.bytes, "{name} {round} {channel}");
                    assert!(end >= *bytes, "{name} {round} {channel}");
                }
                let out = directory.path().join("ram");
                let mut memory = Memory::new().with_images(&out).unwrap();
                // It may be refused, but in words.
                let _ = inspect_all(&mut open().unwrap().parts, &reading, Some(&mut memory));
            }
        }
    }
    assert!(failed > 60 && rounds > 200, "{failed} of {rounds} were refused");
}

#[test]
fn the_same_in_a_recording_in_a_directory_and_in_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.pcapng");
    for name in ["qemu-5.2/none", "qemu-11.1/three-channels", "vfio/a3-10to10-on-2dev-4ch"] {
        let story = Story::named(name);
        let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
        let files = crate::common::files(&story.path, "bin");
        let mut channels: Vec<_> = files
            .iter()
            .filter(|(name, _)| name.contains("src-to-dst"))
            .map(|(_, path)| {
                let bytes = fs::read(path).unwrap();
                let name =
                    if bytes.starts_with(b"QEVM") { "main".into() } else { format!("multifd-{}", bytes[24]) };
                (recorder.channel(name), bytes, 0)
            })
            .collect();
        // In pieces of odd sizes, in turns.
        let mut step = 1;
        while channels.iter().any(|(_, bytes, at)| *at < bytes.len()) {
            for (tap, bytes, at) in &mut channels {
                step = step * 7 % 5003;
                let end = (*at + step).min(bytes.len());
                tap.record(Direction::ToDestination, &bytes[*at..end]).unwrap();
                *at = end;
            }
        }
        recorder.finish().unwrap();
        let line = |arguments: &[&str]| {
            let output = migwire(arguments);
            assert_eq!(code(&output), 0, "{name}: {}{}", out(&output), err(&output));
            out(&output).lines().last().unwrap().to_owned()
        };
        let expected = line(&["verify", story.path.to_str().unwrap()]);
        assert!(expected.starts_with("together: ") && expected.ends_with(": consistent"), "{expected}");
        assert_eq!(line(&["verify", path.to_str().unwrap()]), expected);
        let mut arguments = vec!["verify"];
        arguments.extend(files.iter().rev().map(|(_, path)| path.to_str().unwrap()));
        let empty = directory.path().join("empty.bin");
        fs::write(&empty, b"").unwrap();
        arguments.push(empty.to_str().unwrap());
        assert_eq!(line(&arguments), expected);
        assert!(err(&migwire(&arguments)).contains("note: empty, and left out: "));

        // A recording that is cut off: everything in front of the cut is read, and the cut is told.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
        let (code, report) = json(&["verify", path.to_str().unwrap()]);
        assert_eq!((code, report["verdict"].as_str()), (1, Some("failed")));
        let channels = report["channels"].as_array().unwrap();
        assert!(channels.iter().any(|channel| channel["channel"] == "container"), "{report}");
    }
}

#[test]
fn other_connections_stay_unsupported() {
    let directory = copy(&Story::named("qemu-10.0/none"));
    fs::write(directory.path().join("conn03.src-to-dst.bin"), b"\0\0\0\0\0\0\0\x08").unwrap();
    let (code, report) = json(&["verify", directory.path().to_str().unwrap()]);
    assert_eq!((code, report["verdict"].as_str()), (1, Some("failed")));
    let verdicts: Vec<_> =
        report["channels"].as_array().unwrap().iter().map(|c| c["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["identical", "identical", "identical", "unsupported"]);
    assert_eq!(report["together"]["verdict"], "consistent");
}

#[test]
fn a_channel_alone_is_read_too() {
    let channels = Story::named("qemu-11.1/three-channels").channels();
    let (name, bytes) = channels.into_iter().find(|(_, bytes)| bytes[24] == 2).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let (code, report) = json(&["verify", file.path().to_str().unwrap()]);
    assert_eq!((code, report["channels"][0]["verdict"].as_str()), (1, Some("identical")), "{name}");
    insta::assert_snapshot!(report["together"]["errors"][0]["text"].as_str().unwrap(), @"reading all channels together: multifd channel 0, 1 is not there, and channel 2 is: a destination waits for it");
}
