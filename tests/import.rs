//! `import` and `export`: what stock QEMU builds said, as a capture of a network and back, whole and damaged.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{files, place};
use migwire::capture::{Direction, FrameWriter, Frames, LinkType, Reader, Timestamp};
use serde_json::{Value, json};

/// Runs the command; `timeout` ends it if it hangs, and answers 124 then.
fn migwire(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_migwire")]).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Code and JSON answer.
fn answer(arguments: &[&str]) -> (i32, Value) {
    let output = migwire(&[arguments, &["--json"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {error}"));
    (output.status.code().unwrap(), value)
}

/// The same, where all is well.
fn good(arguments: &[&str]) -> Value {
    let (code, value) = answer(arguments);
    assert_eq!(code, 0, "{arguments:?}: {value:#}");
    value
}

type Bytes = BTreeMap<(String, Direction), Vec<u8>>;

/// The bytes of every interface of a recording.
fn bytes(recording: &Path) -> Bytes {
    let mut reader = Reader::new(fs::File::open(recording).unwrap()).unwrap();
    let mut found = Bytes::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        let (interface, direction, data) = (packet.interface, packet.direction, packet.data.to_vec());
        let name = reader.interfaces()[interface].name.clone();
        found.entry((name, direction)).or_default().extend(data);
    }
    found
}

/// The same of a directory of raw channels, by the names of its files.
fn raw(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = files(directory, "bin").into_iter().map(|(name, path)| (name, fs::read(path).unwrap()));
    all.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

fn sorted(all: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort();
    all
}

/// Migrations with multifd channels, as directories.
fn migrations() -> Vec<PathBuf> {
    let mut found: Vec<_> = files(&place("fixtures/multifd"), "bin")
        .into_iter()
        .filter(|(name, _)| name.ends_with("conn00.src-to-dst.bin"))
        .map(|(_, path)| path.parent().unwrap().to_owned())
        .collect();
    found.dedup();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// A migration with three channels, as a recording and as a capture.
fn example(directory: &Path) -> (PathBuf, PathBuf) {
    let (recording, capture) = (directory.join("recording.pcapng"), directory.join("capture.pcapng"));
    let channels = place("fixtures/multifd/qemu-11.1/none");
    good(&["import", text(&channels), "-o", text(&recording)]);
    good(&["export", text(&recording), "-o", text(&capture), "--segment", "100"]);
    (recording, capture)
}

/// The frames of a capture.
fn frames(capture: &Path) -> Vec<(Timestamp, Vec<u8>)> {
    let mut frames = Frames::new(fs::File::open(capture).unwrap()).unwrap();
    let mut found = Vec::new();
    while let Some(frame) = frames.next_frame().unwrap() {
        found.push((frame.time, frame.data.to_vec()));
    }
    found
}

/// A capture of these frames, which begin with that link type's header.
fn capture(path: &Path, link: u16, frames: &[(Timestamp, Vec<u8>)]) {
    let mut writer = FrameWriter::new(Vec::new(), LinkType(link), None).unwrap();
    for (time, data) in frames {
        writer.write(*time, &[], data).unwrap();
    }
    fs::write(path, writer.finish().unwrap()).unwrap();
}

#[test]
fn every_migration_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let [recording, wire, back] = [at("a.pcapng"), at("b.pcapng"), at("c.pcapng")];
    for (number, channels) in migrations().iter().enumerate() {
        println!("{}", channels.display());
        good(&["import", text(channels), "-o", text(&recording)]);
        let options: &[&str] = match number % 3 {
            0 => &[],
            1 => &["--ipv6"],
            _ => &["--segment", "1448"],
        };
        good(&[&["export", text(&recording), "-o", text(&wire)], options].concat());
        let told = good(&["import", text(&wire), "-o", text(&back)]);
        assert_eq!(told["verdict"], "complete");
        assert!(bytes(&recording) == bytes(&back), "{}", channels.display());
        // And from raw channels, into raw channels.
        let [raw_wire, raw_back] = [at("d.pcapng"), at(&format!("raw-{number}/"))];
        good(&["export", text(channels), "-o", text(&raw_wire)]);
        good(&["import", text(&raw_wire), "-o", text(&raw_back)]);
        assert!(sorted(raw(&raw_back).into_values()) == sorted(raw(channels).into_values()));
        assert_eq!(raw(&raw_back)["conn00.src-to-dst.bin"], raw(channels)["conn00.src-to-dst.bin"]);
    }
}

#[test]
fn a_migration_that_paused_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let recording = place("fixtures/postcopy/qemu-7.2-preempt-cut.pcapng");
    good(&["export", text(&recording), "-o", text(&at("wire.pcapng"))]);
    good(&["import", text(&at("wire.pcapng")), "-o", text(&at("back.pcapng"))]);
    assert!(bytes(&recording) == bytes(&at("back.pcapng")));
    assert_eq!(migwire(&["verify", text(&at("back.pcapng"))]).status.code(), Some(0));
}

#[test]
fn what_tcpdump_saw_is_what_the_proxy_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let found = files(&place("fixtures/traffic"), "pcap");
    assert!(found.len() >= 2, "{found:?}");
    for (name, path) in found {
        let back = directory.path().join("back.pcapng");
        let told = good(&["import", text(&path), "-o", text(&back)]);
        assert_eq!(told["migrations"].as_array().map(Vec::len), Some(1), "{name}");
        let recorded = path.with_extension("pcapng");
        assert!(bytes(&recorded) == bytes(&back), "{name}");
        let verified = migwire(&["verify", text(&back)]);
        assert_eq!(verified.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&verified.stdout));
    }
}

#[test]
fn other_links_say_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, wire) = example(directory.path());
    let expected = bytes(&recording);
    let ip = |frame: &[u8]| frame[14..].to_vec();
    let tagged = |frame: &[u8]| [&frame[..12], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2], &frame[12..]].concat();
    let sll = |frame: &[u8]| [&[0, 0, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0][..], &frame[12..]].concat();
    let sll2 = |frame: &[u8]| {
        [&frame[12..14], &[0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0], &frame[14..]].concat()
    };
    let null = |frame: &[u8]| [&[2, 0, 0, 0], &frame[14..]].concat();
    let padded = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame.resize(frame.len().max(60), 0);
        frame
    };
    // What a card cuts into segments later has no length yet.
    let offloaded = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame[16..18].fill(0);
        frame
    };
    type Change<'a> = (u16, &'a dyn Fn(&[u8]) -> Vec<u8>);
    let changes: [Change<'_>; 7] =
        [(101, &ip), (1, &tagged), (113, &sll), (276, &sll2), (0, &null), (1, &padded), (1, &offloaded)];
    for (number, (link, change)) in changes.into_iter().enumerate() {
        let changed: Vec<_> = frames(&wire).into_iter().map(|(time, data)| (time, change(&data))).collect();
        let [wire, back] = ["changed.pcapng", "back.pcapng"].map(|name| directory.path().join(name));
        capture(&wire, link, &changed);
        good(&["import", text(&wire), "-o", text(&back)]);
        assert!(bytes(&back) == expected, "change {number}");
    }
}

#[test]
fn reordered_and_repeated_packets_change_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, wire) = example(directory.path());
    let mut all = frames(&wire);
    let handshakes = 9;
    let mut seed = 1u64;
    for at in handshakes..all.len() - 20 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if seed >> 61 == 0 {
            all.swap(at, at + 1 + (seed >> 40) as usize % 5);
        }
    }
    let repeated: Vec<_> = all.iter().flat_map(|frame| [frame.clone(), frame.clone()]).collect();
    for (frames, is_repeated) in [(all, false), (repeated, true)] {
        let [wire, back] = ["changed.pcapng", "back.pcapng"].map(|name| directory.path().join(name));
        capture(&wire, 1, &frames);
        let told = good(&["import", text(&wire), "-o", text(&back)]);
        assert!(bytes(&back) == bytes(&recording));
        let count = |what: &str| {
            let channels = told["migrations"][0]["channels"].as_array().unwrap();
            channels.iter().map(|channel| channel[what].as_u64().unwrap()).sum::<u64>()
        };
        assert!(count("out_of_order") > 0 && count("conflicting") == 0);
        assert_eq!(count("retransmitted") > 100, is_repeated);
    }
}

#[test]
fn lost_packets_are_named_with_their_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, wire) = example(directory.path());
    let whole = bytes(&recording);
    let all = frames(&wire);
    let long: Vec<usize> = (0..all.len()).filter(|at| all[*at].1.len() == 154).collect();
    let lost = [long[3], long[4], long[200]];
    let left: Vec<_> =
        all.iter().enumerate().filter(|(at, _)| !lost.contains(at)).map(|(_, frame)| frame.clone()).collect();
    let [wire, back] = ["changed.pcapng", "back.pcapng"].map(|name| directory.path().join(name));
    capture(&wire, 1, &left);
    let (code, told) = answer(&["import", text(&wire), "-o", text(&back)]);
    assert_eq!((code, &told["verdict"]), (1, &json!("incomplete")));
    let mut missing = 0;
    let found = bytes(&back);
    for channel in told["migrations"][0]["channels"].as_array().unwrap() {
        let name = channel["channel"].as_str().unwrap();
        let stream = &whole[&(name.to_owned(), Direction::ToDestination)];
        let run = |from: usize| {
            let interface = if from == 0 { name.to_owned() } else { format!("{name}+{from:#x}") };
            found.get(&(interface, Direction::ToDestination)).cloned().unwrap_or_default()
        };
        let mut from = 0;
        for hole in channel["missing"].as_array().unwrap() {
            assert_eq!(hole["direction"], "to-destination");
            let [start, end] = ["from", "to"].map(|key| hole[key].as_u64().unwrap() as usize);
            assert!(run(from) == stream[from..start], "{name} from {from:#x}");
            missing += end - start;
            from = end;
        }
        assert!(run(from) == stream[from..], "{name} from {from:#x}");
    }
    assert_eq!(missing, 300);

    // Whoever reads it is told; and another round loses nothing more.
    let verified = migwire(&["verify", text(&back)]);
    assert_eq!(verified.status.code(), Some(1));
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(said.contains("300 bytes were lost when this was captured"), "{said}");
    let inspected = migwire(&["inspect", text(&back)]);
    let said = String::from_utf8_lossy(&inspected.stdout) + String::from_utf8_lossy(&inspected.stderr);
    assert!(said.contains("300 bytes were lost when this was captured"), "{said}");
    assert!(said.lines().any(|line| line.split_whitespace().eq(["role", "import"])), "{said}");
    let [again, twice] = ["again.pcapng", "twice.pcapng"].map(|name| directory.path().join(name));
    migwire(&["export", text(&back), "-o", text(&again)]);
    let (code, told) = answer(&["import", text(&again), "-o", text(&twice)]);
    assert_eq!((code, &told["verdict"]), (1, &json!("incomplete")));
    assert!(bytes(&back) == bytes(&twice));
}

#[test]
fn a_snap_length_leaves_beginnings() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, wire) = example(directory.path());
    // Classic pcap, as it says how long packets were.
    let mut file = b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\x5e\0\0\0\x01\0\0\0".to_vec();
    for (time, data) in frames(&wire) {
        let kept = &data[..data.len().min(94)];
        for word in [time.0 / 1_000_000_000, time.0 / 1000 % 1_000_000, kept.len() as u64, data.len() as u64]
        {
            file.extend((word as u32).to_le_bytes());
        }
        file.extend_from_slice(kept);
    }
    let [wire, back] = ["cut.pcap", "back.pcapng"].map(|name| directory.path().join(name));
    fs::write(&wire, file).unwrap();
    let (code, told) = answer(&["import", text(&wire), "-o", text(&back)]);
    assert_eq!((code, &told["verdict"]), (1, &json!("incomplete")));
    let (whole, found) = (bytes(&recording), bytes(&back));
    let main = ("main".to_owned(), Direction::ToDestination);
    // 14 + 20 + 20 bytes of headers.
    assert!(found[&main] == whole[&main][..40]);
    let next = &found[&("main+0x64".to_owned(), Direction::ToDestination)];
    assert!(whole[&main][100..].starts_with(next) && next.len() == 40);
}

#[test]
fn several_migrations_several_files_and_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (recording, wire) = example(directory.path());
    let mut twice = frames(&wire);
    let count = twice.len();
    twice.extend(twice.clone());
    // The second one from other ports; those above 49152 are the source's.
    for (_, frame) in &mut twice[count..] {
        let at = if frame[34] >= 0xc0 { 34 } else { 36 };
        frame[at] += 1;
    }
    capture(&at("twice.pcapng"), 1, &twice);
    let told = good(&["import", text(&at("twice.pcapng")), "-o", text(&at("out.pcapng"))]);
    let outputs: Vec<_> =
        told["migrations"].as_array().unwrap().iter().map(|m| m["output"].as_str().unwrap()).collect();
    assert_eq!(outputs, [text(&at("out.pcapng")), text(&at("out-2.pcapng"))]);
    for output in outputs {
        assert!(bytes(Path::new(output)) == bytes(&recording));
    }

    // Cut between two packets, into two files.
    capture(&at("part1.pcapng"), 1, &twice[..100]);
    capture(&at("part2.pcapng"), 1, &twice[100..twice.len() / 2]);
    let parts = [at("part1.pcapng"), at("part2.pcapng")];
    good(&["import", text(&parts[0]), text(&parts[1]), "-o", text(&at("out.pcapng"))]);
    assert!(bytes(&at("out.pcapng")) == bytes(&recording));

    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_migwire"), "import", "-", "-o", text(&at("piped.pcapng"))]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(&wire).unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(bytes(&at("piped.pcapng")) == bytes(&recording));

    let (code, told) = answer(&["import", text(&wire), "-o", text(&at("none.pcapng")), "--to", ":1"]);
    assert_eq!((code, &told["verdict"], &told["ignored"]), (1, &json!("failed"), &json!(3)));
    assert!(!at("none.pcapng").exists());
    good(&[
        "import",
        text(&wire),
        "-o",
        text(&at("to.pcapng")),
        "--to",
        "192.0.2.2:4444",
        "--from",
        "192.0.2.1",
    ]);
    assert!(bytes(&at("to.pcapng")) == bytes(&recording));
}

#[test]
fn damaged_files_give_what_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, wire) = example(directory.path());
    let whole = fs::read(&wire).unwrap();
    let expected = bytes(&recording);
    let [bad, back] = ["bad.pcapng", "back.pcapng"].map(|name| directory.path().join(name));
    let import = |file: &[u8]| {
        fs::write(&bad, file).unwrap();
        let _ = fs::remove_file(&back);
        let (code, told) = answer(&["import", text(&bad), "-o", text(&back)]);
        let verdict = told["verdict"].as_str().unwrap().to_owned();
        assert_eq!(code, i32::from(verdict != "complete"), "{told:#}");
        (verdict, told, if back.exists() { bytes(&back) } else { Bytes::new() })
    };
    for part in 1..12 {
        let end = whole.len() * part / 12 + part;
        let (verdict, told, found) = import(&whole[..end]);
        assert_ne!(verdict, "complete", "cut at {end}");
        assert!(told["error"]["text"].as_str().unwrap().contains("the file ends inside"), "{told:#}");
        for (channel, bytes) in found {
            assert!(expected[&channel].starts_with(&bytes), "{channel:?}");
        }
    }
    // One byte of a thousand is another one. Whatever that does, it ends, and says something.
    let mut seed = 7u64;
    for _ in 0..30 {
        let mut file = whole.clone();
        for _ in 0..file.len() / 1000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 33) as usize % file.len();
            file[at] ^= 1 << (seed >> 60 & 7);
        }
        import(&file);
    }
    for file in [&b""[..], b"\x0a\x0d\x0d\x0a", &whole[..28], &whole[..200]] {
        let (verdict, ..) = import(file);
        assert_eq!(verdict, "failed");
    }
}

#[test]
fn mistakes_have_their_codes() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, wire) = example(directory.path());
    let at = |name: &str| text(&directory.path().join(name)).to_owned();
    let said = |arguments: &[&str]| {
        let output = migwire(arguments);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, message) = said(&["import", text(&wire), "-o", text(&wire)]);
    assert!(code == 2 && message.contains("is what is being read"), "{code} {message}");
    let (code, message) = said(&["export", text(&recording), "-o", text(&recording)]);
    assert!(code == 2 && message.contains("is what is being read"), "{code} {message}");
    let (code, message) = said(&["import", text(&wire), "-o", &at("out.bin")]);
    assert!(code == 2 && message.contains("neither FILE.pcapng nor a directory"), "{code} {message}");
    assert_eq!(said(&["import", text(&wire), "-o", &at("raw/")]).0, 0);
    let (code, message) = said(&["import", text(&wire), "-o", &at("raw/")]);
    assert!(code == 2 && message.contains("has channels already: conn0"), "{code} {message}");
    assert_eq!(said(&["import", &at("nothing.pcap"), "-o", &at("out.pcapng")]).0, 3);
    let (code, message) = said(&["import", text(&recording), "-o", &at("out.pcapng")]);
    assert!(code == 1 && message.contains("a recording of migration channels"), "{code} {message}");
    fs::write(at("x.gz"), b"\x1f\x8b\x08\0").unwrap();
    let (code, message) = said(&["import", &at("x.gz"), "-o", &at("out.pcapng")]);
    assert!(code == 1 && message.contains("gzip"), "{code} {message}");
    for verb in ["verify", "inspect", "dump"] {
        let output = migwire(&[verb, text(&wire)]);
        let all = [output.stdout, output.stderr].concat();
        let message = String::from_utf8_lossy(&all).into_owned();
        assert!(message.contains("`migwire import` takes the migrations out of it"), "{verb}: {message}");
    }
}

/// Wireshark's programs and tcpdump, where they are installed.
fn tool(name: &str, arguments: &[&str]) -> Option<String> {
    match Command::new("timeout").args(["60", name]).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) if output.status.code() == Some(127) => {
            eprintln!("SKIPPED: {name} is not installed");
            None
        }
        Ok(output) => {
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Err(e) => panic!("timeout: {e}"),
    }
}

#[test]
fn wireshark_puts_together_what_was_exported() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, wire) = example(directory.path());
    let expected = bytes(&recording);
    for options in [&[][..], &["--ipv6"]] {
        good(&[&["export", text(&recording), "-o", text(&wire)], options].concat());
        let bad = ["-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-r", text(&wire), "-Y"];
        let bad = [&bad[..], &["tcp.checksum.status != 1 || tcp.analysis.flags || _ws.malformed"]].concat();
        let Some(found) = tool("tshark", &bad) else { return };
        assert_eq!(found, "");
        let followed = tool("tshark", &["-r", text(&wire), "-q", "-z", "follow,tcp,raw,0"]).unwrap();
        let node = |line: &&str| line.bytes().all(|b| b.is_ascii_hexdigit()) && !line.is_empty();
        let hex: String = followed.lines().filter(node).collect();
        let first = expected[&("main".to_owned(), Direction::ToDestination)].iter();
        assert!(hex == first.map(|byte| format!("{byte:02x}")).collect::<String>(), "the main channel");
        let conversations = tool("tshark", &["-r", text(&wire), "-q", "-z", "conv,tcp"]).unwrap();
        assert_eq!(conversations.matches("<->").count(), 3, "{conversations}");
    }
}

#[test]
fn captures_that_editcap_and_tcpdump_have_rewritten() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, wire) = example(directory.path());
    let expected = bytes(&recording);
    let [changed, back] = ["changed", "back.pcapng"].map(|name| directory.path().join(name));
    for format in ["pcap", "nsecpcap", "pcapng"] {
        if tool("editcap", &["-F", format, text(&wire), text(&changed)]).is_none() {
            return;
        }
        good(&["import", text(&changed), "-o", text(&back)]);
        assert!(bytes(&back) == expected, "{format}");
    }
    // Without some packets.
    tool("editcap", &[text(&wire), text(&changed), "20", "21", "40-45"]).unwrap();
    let (code, told) = answer(&["import", text(&changed), "-o", text(&back)]);
    assert_eq!((code, &told["verdict"]), (1, &json!("incomplete")));
    tool("editcap", &["-s", "100", text(&wire), text(&changed)]).unwrap();
    let (code, told) = answer(&["import", text(&changed), "-o", text(&back)]);
    assert_eq!((code, &told["verdict"]), (1, &json!("incomplete")));
    if tool("tcpdump", &["-r", text(&wire), "-w", text(&changed), "tcp"]).is_some() {
        good(&["import", text(&changed), "-o", text(&back)]);
        assert!(bytes(&back) == expected, "tcpdump");
    }
}
