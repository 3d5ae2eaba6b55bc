//! `verify`, `inspect` and `dump` on what stock QEMU builds wrote, and on what is left of it when somebody has damaged it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use migwire::capture::{Direction, Recorder, RecorderOptions};
use migwire::container;
use migwire::report::{Reading, dump, inspect, prove};
use migwire::stream::Mode;
use serde_json::Value;

/// Runs the command; `timeout` ends it if it hangs, and answers 124 then.
fn migwire(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_migwire")]).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(arguments: &[&str]) -> (i32, Value) {
    let output = migwire(&[arguments, &["--json"]].concat());
    (
        code(&output),
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", err(&output))),
    )
}

fn fixture(name: &str) -> String {
    format!("{}/fixtures/streams/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn fixtures() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for producer in fs::read_dir(fixture("")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        let files = fs::read_dir(producer).unwrap().map(|e| e.unwrap().path());
        found.extend(files.filter(|path| path.extension().is_some_and(|e| e == "bin")));
    }
    found.sort();
    assert!(found.len() >= 20, "{found:?}");
    found
}

/// A copy of a fixture in which `from` has become `to`, once.
fn damaged(directory: &Path, name: &str, from: &[u8], to: &[u8]) -> String {
    let bytes = fs::read(fixture(name)).unwrap();
    let at = bytes.windows(from.len()).rposition(|window| window == from).unwrap();
    let path = directory.join("damaged.bin");
    fs::write(&path, [&bytes[..at], to, &bytes[at + from.len()..]].concat()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_fixture_is_understood_and_its_description_is_right() {
    for path in fixtures() {
        let name = path.to_str().unwrap();
        let (code, report) = json(&["verify", name]);
        assert_eq!((code, report["verdict"].as_str()), (0, Some("identical")), "{report}");
        let channel = &report["channels"][0];
        assert_eq!(channel["bytes"].as_u64(), Some(fs::metadata(&path).unwrap().len()));
        let expected = usize::from(name.ends_with("pc-2.2.bin"));
        assert_eq!(channel["notes"].as_array().unwrap().len(), expected, "{report}");

        // On standard input nothing but the search tells where payloads end, and the description checks it.
        let mut command = Command::new("timeout");
        command
            .args(["60", env!("CARGO_BIN_EXE_migwire"), "verify", "-"])
            .stdin(fs::File::open(&path).unwrap());
        let output = command.output().unwrap();
        assert!(out(&output).ends_with(": byte-identical\n"), "{name}: {}", out(&output));
        assert_eq!(err(&output).lines().count(), expected, "{name}: {}", err(&output));
    }
}

#[test]
fn dumps_tile_every_fixture() {
    for path in fixtures() {
        let (code, dump) = json(&["dump", path.to_str().unwrap()]);
        assert_eq!((code, dump["verdict"].as_str()), (0, Some("ok")));
        let mut end = 0;
        for row in dump["channels"][0]["rows"].as_array().unwrap() {
            assert_eq!(row["offset"].as_u64(), Some(end), "{path:?}: {row}");
            end += row["bytes"].as_u64().unwrap();
        }
        assert_eq!(end, fs::metadata(&path).unwrap().len(), "{path:?}");
    }
}

#[test]
fn dumps_and_summaries_read_like_this() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../fixtures/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| {
        for (name, file) in [
            ("none-16m-5.2", "qemu-5.2/none-16m.bin"),
            ("none-dirty-bitmaps-10.0", "qemu-10.0/none-dirty-bitmaps.bin"),
            ("none-x-ignore-shared-11.1", "qemu-11.1/none-x-ignore-shared.bin"),
            ("pc-2.2-7.2", "qemu-7.2/pc-2.2.bin"),
        ] {
            insta::assert_snapshot!(format!("dump-{name}"), out(&migwire(&["dump", &fixture(file)])));
        }
        for (name, file) in [
            ("none-validate-uuid-7.2", "qemu-7.2/none-validate-uuid.bin"),
            ("none-x-ignore-shared-10.0", "qemu-10.0/none-x-ignore-shared.bin"),
            ("pc-2.3-5.2", "qemu-5.2/pc-2.3.bin"),
            ("pc-xbzrle-11.1", "qemu-11.1/pc-xbzrle.bin"),
        ] {
            let text = out(&migwire(&["inspect", &fixture(file)]));
            let (_, body) = text.split_once('\n').unwrap();
            insta::assert_snapshot!(format!("inspect-{name}"), body);
        }
    });
}

#[test]
fn a_release_is_among_those_that_may_have_written_its_streams() {
    for path in fixtures() {
        let release = path
            .parent()
            .unwrap()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_start_matches("qemu-")
            .to_owned();
        let (code, report) = json(&["inspect", path.to_str().unwrap()]);
        assert_eq!(code, 0);
        let channel = &report["files"][0]["channels"][0];
        let releases = channel["writer"]["releases"].as_array().unwrap();
        assert!(releases.contains(&Value::from(release)), "{path:?}: {releases:?}");
        assert_eq!(channel["error"], Value::Null);
        assert!(
            channel["blocks"].as_array().unwrap().iter().any(|block| block["name"] == "ram"
                || block["name"] == "pc.ram"
                || block["name"] == "shared0")
        );
    }
}

#[test]
fn a_schema_from_a_sister_machine_tells_where_payloads_end() {
    for release in ["5.2", "7.2"] {
        let [stream, schema] =
            ["pc-2.2", "pc-2.3"].map(|story| fixture(&format!("qemu-{release}/{story}.bin")));
        let output = migwire(&["verify", &stream, "--schema", &schema]);
        assert_eq!((code(&output), err(&output)), (0, String::new()));
    }
    // A schema of another build does not fit, and that is said.
    let output =
        migwire(&["verify", &fixture("qemu-7.2/pc-2.2.bin"), "--schema", &fixture("qemu-5.2/pc-small.bin")]);
    assert_eq!(code(&output), 0);
    assert!(err(&output).contains("the schema does not fit: section \"fw_cfg\""), "{}", err(&output));
    let output =
        migwire(&["verify", &stream_without_description(), "--schema", &stream_without_description()]);
    assert_eq!(code(&output), 1, "{}", err(&output));
}

fn stream_without_description() -> String {
    fixture("qemu-5.2/pc-2.2.bin")
}

#[test]
fn a_description_that_is_not_json_is_named_with_its_offset() {
    let directory = tempfile::tempdir().unwrap();
    let path = damaged(directory.path(), "qemu-11.1/none-16m.bin", b"\"devices\": [", b"\"devices\": }");
    let at = fs::read(&path).unwrap().windows(4).rposition(|window| window == b": }{").unwrap() as u64 + 2;
    let (code, report) = json(&["verify", &path]);
    assert_eq!((code, report["verdict"].as_str()), (1, Some("failed")));
    let error = &report["channels"][0]["error"];
    assert_eq!((error["kind"].as_str(), error["offset"].as_u64()), (Some("malformed"), Some(at)), "{error}");
    let output = migwire(&["verify", &path, "--lenient"]);
    assert_eq!(self::code(&output), 0);
    assert!(err(&output).contains("not JSON"), "{}", err(&output));
    let deep = damaged(directory.path(), "qemu-11.1/none-16m.bin", b"\"devices\": [", b"[[[[[[[[[[[[");
    assert_eq!(self::code(&migwire(&["inspect", &deep])), 1);
}

#[test]
fn a_description_that_is_wrong_is_noted() {
    let directory = tempfile::tempdir().unwrap();
    for (from, to, note) in [
        (&b"\"size\": 100"[..], &b"\"size\": 101"[..], "has 104 bytes, the VM description says 105"),
        (b"\"name\": \"timer\"", b"\"name\": \"toner\"", "is not in the VM description"),
    ] {
        for story in ["qemu-7.2/none-16m.bin", "qemu-10.0/none-16m.bin"] {
            if story.starts_with("qemu-10") && from.ends_with(b"100") {
                continue;
            }
            let path = damaged(directory.path(), story, from, to);
            let output = migwire(&["verify", &path]);
            assert_eq!(code(&output), 0);
            assert!(out(&output).ends_with("byte-identical\n"));
            assert!(err(&output).contains(note), "{}", err(&output));
        }
    }
}

#[test]
fn a_recording_has_both_directions_and_what_cannot_be_read_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.pcapng");
    let record = |more: bool| {
        let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
        let main = recorder.channel("main");
        let other = more.then(|| recorder.channel("connection-1"));
        for piece in fs::read(fixture("qemu-10.0/none-16m.bin")).unwrap().chunks(1000) {
            main.record(Direction::ToDestination, piece).unwrap();
            if let Some(other) = &other {
                other.record(Direction::ToDestination, &[0, 0, 0, 0x08]).unwrap();
            }
        }
        main.record(Direction::ToSource, b"\0\x02\0\x04\0\0\0\x01\0\x07\0\0\0\x01\0\x04\0\0\0\0").unwrap();
        recorder.finish().unwrap();
        path.to_str().unwrap()
    };
    let output = migwire(&["verify", record(false)]);
    insta::assert_snapshot!(out(&output), @r#"
main channel: 37987 bytes, 5 sections, 4096 pages: byte-identical
return path: 20 bytes, 3 messages: byte-identical
"#);
    assert_eq!(code(&output), 0);
    let (_, report) = json(&["inspect", record(false)]);
    assert_eq!(report["files"][0]["channels"][1]["shut"], 0);

    let output = migwire(&["verify", record(true)]);
    insta::assert_snapshot!(out(&output), @r#"
main channel: 37987 bytes, 5 sections, 4096 pages: byte-identical
return path: 20 bytes, 3 messages: byte-identical
connection 1: unsupported: connection of unknown kind
"#);
    assert_eq!(code(&output), 1);

    // A recording that is cut off: what is there is read, and the cut is a failure.
    let whole = fs::read(record(false)).unwrap();
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    let (code, report) = json(&["verify", path.to_str().unwrap()]);
    assert_eq!((code, report["verdict"].as_str()), (1, Some("failed")), "{report}");
    assert!(
        report["channels"].as_array().unwrap().iter().any(|channel| channel["channel"] == "container"),
        "{report}"
    );
}

#[test]
fn channels_can_be_given_as_files_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let replies = directory.path().join("replies.bin");
    fs::write(&replies, b"\0\x02\0\x04\0\0\0\x01\0\x01\0\x04\0\0\0\0").unwrap();
    let main = fixture("qemu-10.0/none-16m.bin");
    let (code, report) = json(&["verify", &main, replies.to_str().unwrap()]);
    assert_eq!(code, 0);
    assert_eq!(report["channels"][1]["channel"], "return path");
    assert_eq!(report["channels"][1]["events"], 2);
}

#[test]
fn other_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    for (bytes, word) in [
        (&b"\x1f\x8b\x08\0"[..], "gzip -dc"),
        (b"\x28\xb5\x2f\xfd", "zstd -dc"),
        (b"\xfd7zXZ\0", "xz -dc"),
        (b"LibvirtQemudSave\x02", "libvirt"),
        (b"", "empty"),
        (b"hello", "unknown"),
        (b"QFI\xfb\0\0\0\x03", "qcow2"),
    ] {
        fs::write(&path, bytes).unwrap();
        for verb in ["verify", "inspect", "dump"] {
            let output = migwire(&[verb, path.to_str().unwrap()]);
            assert_eq!(code(&output), 1, "{verb} {word}");
            assert!(
                format!("{}{}", out(&output), err(&output)).contains(word),
                "{verb} {word}: {}",
                err(&output)
            );
            assert_eq!(json(&[verb, path.to_str().unwrap()]).0, 1);
        }
    }
}

#[test]
fn exit_codes() {
    for verb in ["verify", "inspect", "dump"] {
        assert_eq!(code(&migwire(&[verb, "/no/such/file"])), 3);
        assert_eq!(code(&migwire(&[verb, "/"])), 3);
        assert_eq!(code(&migwire(&[verb])), 2);
        assert_eq!(code(&migwire(&[verb, "x", "--dialect", "nonsense"])), 2);
        assert_eq!(code(&migwire(&[verb, "x", "--schema", "/no/such/file"])), 3);
    }
    let cut = tempfile::NamedTempFile::new().unwrap();
    let bytes = fs::read(fixture("qemu-10.0/none-16m.bin")).unwrap();
    for at in [6, 100, bytes.len() - 1] {
        fs::write(cut.path(), &bytes[..at]).unwrap();
        for verb in ["verify", "inspect", "dump"] {
            let (code, report) = json(&[verb, cut.path().to_str().unwrap()]);
            assert_eq!(code, 1);
            assert!(report.to_string().contains("\"truncated\""), "{verb} {at}: {report}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let file = fixture("qemu-11.1/pc-xbzrle.bin");
    for arguments in [
        &["dump"][..],
        &["dump", "--json"],
        &["inspect"],
        &["inspect", "--json"],
        &["verify"],
        &["verify", "--json"],
    ] {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_migwire")]).args(arguments).arg(&file);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), err(&output)), (0, String::new()), "{arguments:?}");
    }
}

#[test]
fn standard_input_and_pipes_are_read_to_their_end() {
    let bytes = fs::read(fixture("qemu-7.2/pc-small.bin")).unwrap();
    let whole = out(&migwire(&["dump", &fixture("qemu-7.2/pc-small.bin")]));
    let mut command = Command::new("timeout");
    command
        .args(["60", env!("CARGO_BIN_EXE_migwire"), "dump", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(out(&output), whole);
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
fn damaged_streams_end_in_words_and_what_was_read_is_tiled() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut failed = 0;
    for story in [
        "qemu-5.2/none-16m.bin",
        "qemu-11.1/none-dirty-bitmaps.bin",
        "qemu-7.2/pc-2.2.bin",
        "qemu-10.0/none-x-ignore-shared.bin",
    ] {
        let good = fs::read(fixture(story)).unwrap();
        for round in 0..60 {
            let mut bytes = good.clone();
            for _ in 0..1 + round % 4 {
                // Half of the damage goes where the records are dense: both ends.
                let at = match noise.below(4) {
                    0 => noise.below(200),
                    1 => bytes.len() - 1 - noise.below(1300.min(bytes.len())),
                    _ => noise.below(bytes.len()),
                };
                bytes[at] = match noise.below(3) {
                    0 => 0xff,
                    1 => bytes[at] ^ (1 << noise.below(8)),
                    _ => noise.below(256) as u8,
                };
            }
            fs::write(file.path(), &bytes).unwrap();
            for mode in [Mode::Strict, Mode::Lenient] {
                let reading = Reading { mode, ..Reading::default() };
                let Ok(contents) = container::open(file.path(), mode == Mode::Lenient) else { continue };
                for mut part in contents.parts {
                    let found = prove(&mut part, &reading);
                    assert_eq!(found.difference, None, "{story} {round}");
                    let summary = inspect::inspect(&mut part, &reading);
                    let mut end = 0;
                    let outcome = dump::dump(&mut part, &reading, &mut |row| {
                        assert_eq!(row.offset, end, "{story} {round}");
                        end += row.len;
                        Ok(())
                    });
                    let outcome = outcome.unwrap();
                    failed += u32::from(found.error.is_some());
                    // A description that is no JSON is no reason to stop for a dump; anything else stops all three alike.
                    if found.error.is_none()
                        || found.error.as_ref().is_some_and(|e| e.doing() != "VM description")
                    {
                        assert_eq!(
                            found.error.map(|e| e.to_string()),
                            outcome.error.map(|e| e.to_string()),
                            "{story} {round}"
                        );
                    }
                    assert_eq!((found.bytes, found.bytes), (end, summary.bytes), "{story} {round}");
                }
            }
        }
    }
    assert!(failed > 100, "only {failed} of 480 were refused");
}

#[test]
fn a_migration_that_paused_is_read_as_one() {
    let file = "fixtures/postcopy/qemu-7.2-preempt-cut.pcapng";
    let (output, report) = json(&["verify", file]);
    assert_eq!(output, 0, "{report}");
    let channels: Vec<_> =
        report["channels"].as_array().unwrap().iter().map(|c| c["channel"].as_str().unwrap()).collect();
    assert_eq!(
        channels,
        [
            "main channel",
            "return path",
            "main channel after pause 1",
            "return path after pause 1",
            "preempt channel after pause 1"
        ]
    );
    assert_eq!(report["postcopy"], serde_json::json!({ "discarded": 0, "missing": 0, "complete": true }));
    // What came before the break and what came behind it make the guest's memory.
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    assert_eq!(code(&migwire(&["inspect", file, "--ram-out", out])), 0);
    let ram = fs::read(dir.path().join("ram.ram")).unwrap();
    assert_eq!(ram.len(), 4 << 20);
    for (page, bytes) in ram.chunks(4096).enumerate() {
        let expected = if page % 37 == 0 { (page % 255 + 1) as u8 } else { 0 };
        assert!(bytes.iter().all(|byte| *byte == expected), "page {page}");
    }
    let dump = out_of(&["dump", file]);
    assert!(dump.contains("bitmap of 128 bytes") && dump.contains("RECV_BITMAP of \"ram\""));
}

fn out_of(arguments: &[&str]) -> String {
    out(&migwire(arguments))
}
