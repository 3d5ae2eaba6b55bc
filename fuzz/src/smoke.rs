//! The corpus: run on every toolchain, with mutations from a fixed seed; and written anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use migwire::capture::{Direction, Recorder, RecorderOptions, Timestamp};

use crate::small;

fn corpus(body: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(body)
}

/// Runs `body` over its corpus, and over `mutations` mutations of it.
pub(crate) fn over(body: &str, mutations: usize, run: impl Fn(&[u8])) {
    let mut seeds = read(&corpus(body));
    assert!(seeds.len() >= 3, "the corpus of {body} has {} files", seeds.len());
    if ["whole_parse", "reemit", "cut_anywhere", "lenient"].contains(&body) {
        seeds.extend(read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/bad")));
    }
    run(&[]);
    for (name, seed) in &seeds {
        println!("{name}");
        run(seed);
    }
    let seeds: Vec<_> = seeds.into_values().filter(|seed| !seed.is_empty()).collect();
    // Each mutation has its own seed, so that the one that failed can be repeated alone.
    for number in 0..mutations {
        let mut random = Random(number as u64 + 1);
        let mut bytes = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(3) {
            mutate(&mut random, &mut bytes, &seeds);
        }
        println!("mutation {number}");
        run(&bytes);
    }
}

fn read(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("the corpus is there");
    let files = entries.map(|entry| entry.expect("it can be listed").path()).filter(|path| path.is_file());
    files
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(&path).expect("and read"))
        })
        .collect()
}

/// What fuzzers do, in small: numbers that hurt, cut, copied and spliced pieces.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    match random.below(7) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x7e, 0x7f, 0x80, 0xff][random.below(13)],
        2 => bytes.truncate(at),
        3 => {
            let end = (at + 1 + random.below(16)).min(bytes.len());
            bytes.drain(at..end);
        }
        4 => {
            let end = (at + 1 + random.below(32)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        5 => {
            let end = (at + [1, 2, 4, 8][random.below(4)]).min(bytes.len());
            bytes[at..end].fill([0, 0xff][random.below(2)]);
        }
        _ => {
            let other = &seeds[random.below(seeds.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len())..]);
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// Seeds that are made: the hand-made streams, and the bytes of other bodies. Seeds that fuzzing has found stand beside
/// them under names of their own. `UPDATE=1 cargo test -p migwire-fuzz seeds` writes them.
fn made() -> Vec<(&'static str, String, Vec<u8>)> {
    let streams = small::all().into_iter().map(|(name, bytes)| ("whole_parse", format!("{name}.bin"), bytes));
    let replies: [(&str, &[u8]); 5] = [
        ("precopy", b"\0\x02\0\x04\0\0\0\x01\0\x01\0\x04\0\0\0\0"),
        ("switchover-ack", b"\0\x07\0\0\0\x01\0\x04\0\0\0\x01"),
        (
            "postcopy",
            b"\0\x03\0\x10\0\0\0\0\0\0\x10\0\0\0\x10\0\x03ram\0\x04\0\x0c\0\0\0\0\0\0\x20\0\0\0\x10\0\0\x02\0\x04\0\0\0\x42",
        ),
        (
            "recovery",
            b"\0\x05\0\x04\x03ram\0\0\0\0\0\0\0\x08abcdefgh\x01\x23\x45\x67\x89\xab\xcd\xef\0\x06\0\x04\0\0\0\x01",
        ),
        ("odd", b"\0\x09\0\x01?\0\x01\0\0"),
    ];
    let deltas: [(&str, &[u8]); 4] = [
        ("two-runs", b"\x02\x01A\x03\x02BC"),
        ("long-run", b"\x80\x07\x02xy"),
        ("first-run-0", b"\0\x01a"),
        ("overrun", b"\xff\x07\x02ab"),
    ];
    let state: [(&str, &[u8]); 8] = [
        ("start", b"\0\xff\xff\xff\xff\xef\x10\0\x03\xff\xff\xff\xff\xef\x10\0\x01"),
        ("part", b"\0\xff\xff\xff\xff\xef\x10\0\x04\0\0\0\0\0\0\0\x03abc\xff\xff\xff\xff\xef\x10\0\x05"),
        ("full", b"\0\xff\xff\xff\xff\xef\x10\0\x02config\xff\xff\xff\xff\xef\x10\0\x01"),
        (
            "end-5-2",
            b"\0\xff\xff\xff\xff\xef\x10\0\x02config\xff\xff\xff\xff\xef\x10\0\x01\xff\xff\xff\xff\xef\x10\0\x04\0\0\0\0\0\0\0\x01x\xff\xff\xff\xff\xef\x10\0\x01",
        ),
        // Switchover; idx 1 with two bytes on channel 1, then idx 0 with one on channel 0.
        (
            "two-packets",
            b"\x01\0\x07\x10\0\x0e\x12\x0e\0\0\0\0\0\0\0\x01\0\0\0\0ab\x14\0\0\x0d\x02\x0d\0\0\0\0\0\0\0\0\0\0\0\0c\x04",
        ),
        // A PART without data, and a config packet.
        (
            "part-and-config",
            b"\x01\0\x06\x08\xff\xff\xff\xff\xef\x10\0\x01\0\0\x22\x02\x22\0\0\0\0\0\0\0\0\0\0\0\x01\xff\xff\xff\xff\xef\x10\0\x02config\xff\xff\xff\xff\xef\x10\0\x01\x04",
        ),
        ("devices", b"\x02\0\x02\0\x50\x01\x40the seed\0\x20\x40\x01\x20\x02\x20another!\x01\x40and whose turn it is: 0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz"),
        ("stock-device", b"\x02\x01\0\0\xa0\x01\xffthe seed\x01\x7f0123012301230123456789abcdefghijklmnopqrstuvwxyzZYXWVUTSRQPONMLKJIHGFEDCBA9876543210"),
    ];
    let payloads: [(&str, &[u8]); 6] = [
        (
            "none",
            b"\x00\x00\x00\x00\x10\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a\x5a",
        ),
        (
            "zlib",
            b"\x01\x00\x01\x00\x1e\x78\x01\x8a\x8a\x1a\x05\xa3\x21\x30\x1a\x02\xa3\x21\x30\x1a\x02\xa3\x21\x30\
              \x1a\x02\x23\x2d\x04\x00\x00\x00\x00\xff\xff\x00\x01\x1c\x62\x60\x64\x62\x66\x61\x65\x63\xe7\xe0\
              \xe4\xe2\xe6\xe1\xe5\xe3\x17\x10\x14\x12\x16\x11\x15\x13\x97\x90\x94\x92\x96\x91\x95\x93\x57\x50\
              \x54\x52\x56\x51\x55\x53\xd7\xd0\xd4\xd2\xd6\xd1\xd5\xd3\x37\x30\x34\x32\x36\x31\x35\x33\xb7\xb0\
              \xb4\xb2\xb6\xb1\xb5\xb3\x77\x70\x74\x72\x76\x71\x75\x73\xf7\xf0\xf4\xf2\xf6\xf1\xf5\xf3\x0f\x08\
              \x0c\x0a\x0e\x09\x0d\x0b\x8f\x88\x8c\x8a\x8e\x89\x8d\x8b\x4f\x48\x4c\x4a\x4e\x49\x4d\x4b\xcf\xc8\
              \xcc\xca\xce\xc9\xcd\xcb\x2f\x28\x2c\x2a\x2e\x29\x2d\x2b\xaf\xa8\xac\xaa\xae\xa9\xad\xab\x6f\x68\
              \x6c\x6a\x6e\x69\x6d\x6b\xef\xe8\xec\xea\xee\xe9\xed\xeb\x9f\x30\x71\xd2\xe4\x29\x53\xa7\x4d\x9f\
              \x31\x73\xd6\xec\x39\x73\xe7\xcd\x5f\xb0\x70\xd1\xe2\x25\x4b\x97\x2d\x5f\xb1\x72\xd5\xea\x35\x6b\
              \xd7\xad\xdf\xb0\x71\xd3\xe6\x2d\x5b\xb7\x6d\xdf\xb1\x73\xd7\xee\x3d\x7b\xf7\xed\x3f\x70\xf0\xd0\
              \xe1\x23\x47\x8f\x1d\x3f\x71\xf2\xd4\xe9\x33\x67\xcf\x9d\xbf\x70\xf1\xd2\xe5\x2b\x57\xaf\x5d\xbf\
              \x71\xf3\xd6\xed\x3b\x77\xef\xdd\x7f\xf0\xf0\xd1\xe3\x27\x4f\x9f\x3d\x7f\xf1\xf2\xd5\xeb\x37\x6f\
              \xdf\xbd\xff\xf0\xf1\xd3\xe7\x2f\x5f\xbf\x7d\xff\xf1\xf3\xd7\xef\x3f\x7f\xff\xfd\x1f\xf5\xff\x68\
              \xfc\x8f\xe4\xf4\x0f\x00\x00\x00\xff\xff",
        ),
        (
            "zstd",
            b"\x02\x00\x01\x00\x0a\x28\xb5\x2f\xfd\x00\x18\x02\x40\x00\x5a\x00\x00\x0b\x02\x10\x00\x01\x02\x10\
              \x00\x02\x00\x00\x00",
        ),
        (
            "qpl",
            b"\x03\x00\x01\x00\x22\x00\x00\x00\x0d\x00\x00\x00\x0d\x8b\x8a\x1a\x05\xa3\x21\x30\x1a\x02\x23\x35\
              \x04\x00\x8b\x8a\x1a\x05\xa3\x21\x30\x1a\x02\x23\x35\x04\x00",
        ),
        (
            "uadk",
            b"\x04\x00\x01\x00\x2e\x00\x00\x00\x13\x00\x00\x00\x13\x78\x01\x8b\x8a\x1a\x05\xa3\x21\x30\x1a\x02\
              \x23\x35\x04\x00\xe2\x30\x68\x10\x78\x01\x8b\x8a\x1a\x05\xa3\x21\x30\x1a\x02\x23\x35\x04\x00\xe2\
              \x30\x68\x10",
        ),
        (
            "qatzip",
            b"\x05\x00\x02\x00\x64\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x0c\x00\x51\x5a\x08\x00\x00\x08\x00\
              \x00\x17\x00\x00\x00\x8b\x8a\x1a\x05\xa3\x21\x30\x1a\x02\xa3\x21\x30\x1a\x02\xa3\x21\x30\x1a\x02\
              \x23\x2d\x04\x00\xc3\x12\xc5\x9c\x00\x08\x00\x00\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x0c\x00\
              \x51\x5a\x08\x00\x00\x04\x00\x00\x0d\x00\x00\x00\x8b\x8a\x1a\x05\xa3\x21\x30\x1a\x02\x23\x35\x04\
              \x00\xa6\x8a\xda\xa9\x00\x04\x00\x00",
        ),
    ];
    let others = [
        ("return_path", &replies[..]),
        ("xbzrle", &deltas[..]),
        ("device_state", &state[..]),
        ("codec", &payloads[..]),
    ];
    let others = others.into_iter().flat_map(|(body, seeds)| {
        seeds.iter().map(move |(name, bytes)| (body, format!("{name}.bin"), bytes.to_vec()))
    });
    let recipes: [(&str, &[u8]); 4] = [
        ("one-channel", b"\x00\x00\x01\x00\x03\x00\x04\x01\x02\x03\x04"),
        (
            "three-rounds",
            b"\x01\x03\x02\x00\x05\x01\x04\x09\x08\x07\x06\x02\x03\x01\x01\x02\x03\x04\x05\x06\x07\x08",
        ),
        ("a-sync-is-missing", b"\x02\x02\x01\x07\x01\x04\x00\x03\x01\x02"),
        ("slow", b"\x00\x04\x04\x00\x07\x00\x04\x01\x01\x01\x02\x01\x00\x02\x00\x03\x00\x04\x00"),
    ];
    let recipes =
        recipes.into_iter().map(|(name, bytes)| ("interleave", format!("{name}.bin"), bytes.to_vec()));
    streams
        .chain(others)
        .chain(recipes)
        .chain(packets())
        .chain(captures())
        .chain(recordings())
        .chain(replays())
        .chain(conversions())
        .chain(troubles())
        .collect()
}

/// Recipes for migrations and what is to become of them; streams made by hand, with options in front.
fn conversions() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, first) in [("one-channel", 0), ("old", 1), ("postcopy", 2), ("multifd", 3), ("dense", 4)] {
        let mut random = Random(first);
        let mut bytes = vec![0];
        bytes.extend((0..160).map(|_| random.below(256) as u8));
        seeds.push(("convert", format!("{name}.bin"), bytes));
    }
    for (name, stream) in small::all().into_iter().filter(|(_, stream)| stream.len() < 20_000) {
        let mut bytes = vec![2, 0, 2, 3, 0, 4, 0, 2, 1, 0, 0, 0, 0];
        bytes.extend_from_slice(&stream);
        seeds.push(("convert", format!("hand-{name}.bin"), bytes));
    }
    seeds
}

/// Scripts, and streams made by hand that have their places.
fn troubles() -> Vec<(&'static str, String, Vec<u8>)> {
    let scripts = [
        ("cut", "cut in page 1; flip bit 3 of data in page 0"),
        ("drop", "drop page 0; duplicate page 1; stall 5ms at eos 0"),
        ("sections", "drop section ram; trickle 7 B/ms after section device; set id to 9 in section ram 1"),
        (
            "commands",
            "flip bit 1 of code in POSTCOPY_ADVISE; duplicate POSTCOPY_RUN; half-close at POSTCOPY_LISTEN",
        ),
        ("chance", "?"),
    ];
    let streams = small::all().into_iter().filter(|(_, stream)| stream.len() < 20_000);
    let main = streams
        .zip(scripts.iter().cycle())
        .map(|((name, stream), (kind, script))| (format!("{name}-{kind}.bin"), 0, *script, stream));
    let channels = packets().into_iter().map(|(_, name, bytes)| {
        let script = "swap channels; drop packet 1; duplicate SYNC 0; set pages to 7 in packet 2; delay idx 0 1ms; duplicate multifd-0";
        (format!("channel-{name}"), 3, script, bytes[1..].to_vec())
    });
    let answers: &[u8] = b"\0\x02\0\x04\0\0\0\x01\0\x01\0\x04\0\0\0\0";
    let answers = [("answers.bin".to_owned(), 1, "drop PONG; duplicate SHUT", answers.to_vec())];
    main.chain(channels)
        .chain(answers)
        .map(|(name, channel, script, stream)| {
            let head = [channel, 100, script.len() as u8];
            ("trouble", name, [&head, script.as_bytes(), &stream].concat())
        })
        .collect()
}

/// What `fill` records, as a file.
fn recorded(about: Option<&str>, fill: impl FnOnce(&Recorder)) -> Vec<u8> {
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Shared {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let sink = Shared::default();
    let options = RecorderOptions { about: about.map(str::to_owned), ..RecorderOptions::default() };
    let recorder = Recorder::new(sink.clone(), options);
    fill(&recorder);
    let _ = recorder.finish();
    std::mem::take(&mut *sink.0.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Recordings that were finished: of nothing, of two channels, and of many packets.
fn recordings() -> Vec<(&'static str, String, Vec<u8>)> {
    let record = |name: &str, rounds: u64, channels: &[&str]| {
        let about = Some(r#"{"role":"proxy"}"#).filter(|_| rounds > 1);
        let bytes = recorded(about, |recorder| {
            let taps: Vec<_> = channels.iter().map(|name| recorder.channel(*name)).collect();
            for round in 0..rounds {
                for (number, tap) in taps.iter().enumerate() {
                    let direction =
                        [Direction::ToDestination, Direction::ToSource][(round % 3 == 2) as usize];
                    let data = [number as u8; 9];
                    let len = 1 + (round as usize + number) % 9;
                    let _ = tap.record_at(direction, Timestamp(1_000 + round), &data[..len]);
                }
            }
            recorder.channel("preempt").announce();
        });
        ("recording", format!("{name}.bin"), bytes)
    };
    vec![
        record("nothing", 0, &[]),
        record("two-channels", 3, &["main", "multifd-0"]),
        record("many-packets", 60, &["main", "connection-1"]),
    ]
}

/// Recipes for migrations, for how they were recorded and for who takes them; streams made by hand, recorded with some answers, in
/// front of which stands what the live destination says.
fn replays() -> Vec<(&'static str, String, Vec<u8>)> {
    const PONG: &[u8] = b"\0\x02\0\x04\0\0\0\x01";
    const SHUT: &[u8] = b"\0\x01\0\x04\0\0\0\0";
    let mut seeds = Vec::new();
    for (name, kind) in [("recipe", 0), ("again", 1), ("in-time", 4), ("closing", 8), ("both", 13)] {
        let mut random = Random(u64::from(kind));
        let mut bytes = vec![kind];
        bytes.extend((0..200).map(|_| random.below(256) as u8));
        seeds.push(("replay", format!("{name}.bin"), bytes));
    }
    let kept = ["precopy", "postcopy", "recovery", "configuration", "colo"];
    for (name, stream) in small::all().into_iter().filter(|(name, _)| kept.contains(name)) {
        let mut bytes = vec![3, (PONG.len() + SHUT.len()) as u8];
        bytes.extend_from_slice(PONG);
        bytes.extend_from_slice(SHUT);
        bytes.extend(recorded(None, |recorder| {
            let main = recorder.channel("main");
            let (first, second) = stream.split_at(stream.len() / 2);
            for (time, direction, data) in [
                (1_000, Direction::ToDestination, first),
                (2_000, Direction::ToSource, PONG),
                (3_000, Direction::ToDestination, second),
                (4_000, Direction::ToSource, SHUT),
            ] {
                let _ = main.record_at(direction, Timestamp(time), data);
            }
        }));
        seeds.push(("replay", format!("hand-{name}.bin"), bytes));
    }
    seeds
}

/// Multifd channels of some releases; the first byte chooses page size and release, as the body reads it.
fn packets() -> Vec<(&'static str, String, Vec<u8>)> {
    use migwire::multifd::Framer;
    use migwire::wire::{Method, MultifdHello, Wire as _};
    let mut seeds = Vec::new();
    for (name, choice, release, page_size) in
        [("5.2", 7 + 2, "5.2", 4096), ("9.0-16k", 21 + 4, "9.0", 16384), ("11.1-64k", 28 + 6, "11.1", 65536)]
    {
        let mut framer = Framer::new(release.parse().unwrap_or_default(), page_size);
        let mut bytes = vec![choice];
        MultifdHello::new(1, [7; 16]).emit(&mut bytes);
        bytes.extend_from_slice(framer.sync(0));
        let zero: &[u64] = if release == "5.2" { &[] } else { &[3 * page_size] };
        bytes.extend_from_slice(framer.pages(b"pc.ram", &[page_size], zero, Method::ZLIB, 7, 1));
        bytes.extend_from_slice(b"\x78\x01 zlib");
        bytes.extend_from_slice(framer.pages_with_sync(b"pc.ram", &[0], Method::ZLIB, 3, 2));
        bytes.extend_from_slice(b"abc");
        bytes.extend_from_slice(framer.empty(3));
        bytes.extend_from_slice(&Framer::device(b"0000:00:04.0/vfio", 0, 5));
        bytes.extend_from_slice(b"state");
        seeds.push(("multifd", format!("{name}.bin"), bytes));
    }
    seeds
}

/// A small migration as a capture of a network, in the three ways in which the body reads it.
fn captures() -> Vec<(&'static str, String, Vec<u8>)> {
    use migwire::capture::{FrameWriter, LinkType};
    use migwire::tcp::{Conversation, Emit};
    use migwire::wire::{MultifdHello, Wire as _};
    let mut hello = Vec::new();
    MultifdHello::new(1, [7; 16]).emit(&mut hello);
    let said: [(&[u8], &[u8]); 3] = [
        (b"QEVM\0\0\0\x03\x07\0\0\0\x04none\x00", b"\0\x01\0\x04\0\0\0\0"),
        (&hello, b""),
        (b"\0\0\0\0\0\0\x10\x08", b""),
    ];
    let mut seeds = Vec::new();
    for (name, ipv6) in [("ipv4", false), ("ipv6", true)] {
        let mut frames: Vec<Vec<u8>> = Vec::new();
        let mut take = |head: &[u8], data: &[u8]| {
            frames.push([head, data].concat());
            Ok(())
        };
        let emit: Emit<'_> = &mut take;
        let made = (50000u16..).zip(&said).map(|(port, said)| {
            let ends: [std::net::SocketAddr; 2] = match ipv6 {
                false => [([192, 0, 2, 1], port).into(), ([192, 0, 2, 2], 4444).into()],
                true => [
                    ([0xfe80, 0, 0, 0, 0, 0, 0, 1], port).into(),
                    ([0xfe80, 0, 0, 0, 0, 0, 0, 2], 4444).into(),
                ],
            };
            (Conversation::new(ends[0], ends[1], [u32::MAX - 5, 7]).with_segments(10), said)
        });
        let mut made: Vec<_> = made.collect();
        for (conversation, (forth, back)) in &mut made {
            conversation.open(emit).expect("it takes all");
            conversation.say(Direction::ToDestination, forth, emit).expect("it takes all");
            conversation.say(Direction::ToSource, back, emit).expect("it takes all");
        }
        for (conversation, _) in &mut made {
            conversation.close(emit).expect("it takes all");
        }
        let mut file = FrameWriter::new(vec![0], LinkType(1), None).expect("memory takes all");
        let mut packets = vec![1, 0, 1];
        let mut classic = b"\0\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\x04\0\x01\0\0\0".to_vec();
        for (number, frame) in frames.iter().enumerate() {
            file.write(Timestamp(1000 * number as u64), &[], frame).expect("memory takes all");
            packets.extend_from_slice(&(frame.len() as u16).to_be_bytes());
            packets.extend_from_slice(frame);
            for word in [number as u32, 0, frame.len() as u32, frame.len() as u32] {
                classic.extend_from_slice(&word.to_le_bytes());
            }
            classic.extend_from_slice(frame);
        }
        seeds.push(("import", format!("{name}.pcapng"), file.finish().expect("memory takes all")));
        seeds.push(("import", format!("{name}.packets"), packets));
        seeds.push(("import", format!("{name}.pcap"), classic));
    }
    let segments: &[u8] = b"\x02\xff\xff\xff\xf0\0\x10\x10\x04\0\0\x10\x04\0\x20\x20\x03\0\x60\x08\x07\0\x68\0\0\0\x68\0\x01\0\0\0\x02\0\x08\x40\x05";
    seeds.push(("import", "segments.bin".into(), segments.to_vec()));
    seeds
}

#[test]
fn seeds() {
    let update = std::env::var_os("UPDATE").is_some();
    for (body, name, bytes) in made() {
        let path = corpus(body).join(&name);
        if update {
            fs::create_dir_all(corpus(body)).expect("a directory can be made");
            fs::write(&path, &bytes).expect("a seed can be written");
        }
        let found = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(found == bytes, "{} is stale; run with UPDATE=1", path.display());
    }
}
