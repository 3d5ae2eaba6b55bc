//! Recordings that are long enough for threads, pipes and the disk: complete, in order, and readable whatever happens.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use migwire::capture::{self, ChannelBytes, Direction, Reader, Recorder, RecorderOptions, Timestamp};
use migwire::endpoint::{Limits, Proxy};
use migwire::transport::{Address, Listener};

use Direction::{ToDestination, ToSource};

/// Bytes of which every eight say where they stand, and in which channel.
fn bytes(from: usize, len: usize, channel: u8) -> Vec<u8> {
    let words = from / 8..(from + len).div_ceil(8);
    let mut all = Vec::with_capacity(len + 16);
    for word in words {
        all.extend_from_slice(&(word as u64 | u64::from(channel) << 56).to_le_bytes());
    }
    all.truncate(from % 8 + len);
    all.drain(..from % 8);
    all
}

/// Name, direction, bytes.
type Channel = (String, Direction, Vec<u8>);

/// The recorded channels, and what is wrong with the file.
fn recorded(file: &Path) -> (Vec<Channel>, Option<migwire::Error>) {
    let listing = capture::channels(File::open(file).unwrap()).unwrap();
    let read = |channel: &capture::ChannelSummary| {
        let reader = Reader::new(File::open(file).unwrap()).unwrap();
        let mut bytes = Vec::new();
        // What is behind a cut is not there.
        let _ = ChannelBytes::new(reader, channel.interface, channel.direction).read_to_end(&mut bytes);
        bytes
    };
    (listing.channels.iter().map(|c| (c.name.clone(), c.direction, read(c))).collect(), listing.error)
}

fn times(file: &Path) -> Vec<(u64, usize, Direction)> {
    let mut reader = Reader::new(File::open(file).unwrap()).unwrap();
    let mut times = Vec::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        times.push((packet.time.0, packet.interface, packet.direction));
    }
    times
}

#[test]
fn channels_that_rush_through_a_proxy_are_recorded_whole_and_in_order() {
    const LEN: usize = 40 << 20;
    const ANSWERS: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("migration.pcapng");
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Tcp { port, .. } = *listener.local_address() else { panic!("a tcp listener") };
    let to = Address::Tcp { host: "127.0.0.1".into(), port: target.local_addr().unwrap().port() };
    let recorder = Recorder::create(&file, RecorderOptions::default()).unwrap();
    let limits = Limits { silence: Duration::from_secs(20), total: None };
    let proxy = Proxy::new(to).with_limits(limits).with_recorder(recorder.clone());
    let proxy = thread::spawn(move || proxy.run(&listener, |_| {}));

    let first = |channel: u8| match channel {
        0 => b"QEVM\0\0\0\x03".to_vec(),
        id => [&b"\x11\x22\x33\x44\0\0\0\x01"[..], &[0; 16], &[id], &[0; 39]].concat(),
    };
    let ends: Vec<_> = (0..3u8)
        .map(|channel| {
            let mut source = TcpStream::connect(("127.0.0.1", port)).unwrap();
            source.write_all(&first(channel)).unwrap();
            let destination = target.accept().unwrap().0;
            (channel, source, destination)
        })
        .collect();
    thread::scope(|scope| {
        for (channel, source, destination) in ends {
            let (mut writer, mut answers) = (source.try_clone().unwrap(), source);
            let (mut reader, mut answerer) = (destination.try_clone().unwrap(), destination);
            scope.spawn(move || {
                (0..LEN / (1 << 20)).for_each(|i| {
                    writer.write_all(&bytes(i << 20, 1 << 20, channel)).unwrap();
                });
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut got = vec![0; first(channel).len()];
                reader.read_exact(&mut got).unwrap();
                // Every answer is to bytes that have just come.
                for i in 0..ANSWERS {
                    let mut part = vec![0; LEN / ANSWERS];
                    reader.read_exact(&mut part).unwrap();
                    assert!(part == bytes(i * part.len(), part.len(), channel));
                    answerer.write_all(&[i as u8; 8]).unwrap();
                }
            });
            scope.spawn(move || {
                let mut got = Vec::new();
                answers.read_to_end(&mut got).unwrap();
                assert_eq!(got.len(), 8 * ANSWERS);
            });
        }
    });
    let passage = proxy.join().unwrap();
    assert!(passage.error.is_none(), "{:?}", passage.error);
    let summary = recorder.finish().unwrap();
    assert_eq!(summary.bytes, passage.bytes());
    assert_eq!(summary.file_bytes, file.metadata().unwrap().len());

    let (mut channels, error) = recorded(&file);
    assert!(error.is_none(), "{error:?}");
    channels.sort();
    let names: Vec<_> = channels.iter().map(|(name, direction, _)| (&**name, *direction)).collect();
    let expected = ["main", "multifd-1", "multifd-2"].map(|name| [(name, ToDestination), (name, ToSource)]);
    assert_eq!(names, expected.concat());
    for (number, pair) in channels.chunks(2).enumerate() {
        let head = first(number as u8);
        assert!(pair[0].2.strip_prefix(&head[..]) == Some(&bytes(0, LEN, number as u8)), "{number}");
        assert_eq!(pair[1].2.len(), 8 * ANSWERS);
    }
    let times = times(&file);
    assert!(times.is_sorted_by_key(|(time, ..)| *time));
    // An answer stands behind what it answers, but for what was not yet known to be forwarded when the answer came: the system
    // says so of half a megabyte at a time.
    const ROUND: usize = 512 << 10;
    for interface in 0..3 {
        let mut seen = [0, 0];
        let mut reader = Reader::new(File::open(&file).unwrap()).unwrap();
        while let Some(packet) = reader.next_packet().unwrap() {
            if packet.interface == interface {
                seen[packet.direction as usize] += packet.data.len();
                assert!(seen[0] + ROUND >= seen[1] / 8 * (LEN / ANSWERS), "{seen:?}");
            }
        }
    }
}

#[test]
fn long_recordings_from_many_threads_come_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.pcapng");
    let recorder = Recorder::create(&file, RecorderOptions::default()).unwrap();
    let sizes = [1, 7, 4096, 65_537, 300_000, 5 << 20];
    thread::scope(|scope| {
        for id in 0..4u8 {
            let tap = recorder.channel(format!("multifd-{id}"));
            scope.spawn(move || {
                let mut at = 0;
                for round in 0..24 {
                    let len = sizes[(round + usize::from(id)) % sizes.len()];
                    let data = bytes(at, len, id);
                    if round % 2 == 0 {
                        tap.record(ToDestination, &data).unwrap();
                    } else {
                        tap.record_from(ToDestination, Timestamp::now(), &mut &data[..], len).unwrap();
                    }
                    at += len;
                }
            });
        }
    });
    let summary = recorder.finish().unwrap();
    assert_eq!(summary.file_bytes, file.metadata().unwrap().len());
    let (channels, error) = recorded(&file);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(channels.len(), 4);
    let total = sizes.iter().sum::<usize>() * 4;
    for (name, _, data) in channels {
        let id = name.strip_prefix("multifd-").unwrap().parse().unwrap();
        assert!(data == bytes(0, total, id), "{name}");
    }
    assert!(times(&file).is_sorted_by_key(|(time, ..)| *time));
}

#[test]
fn what_is_not_finished_is_written_when_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.pcapng");
    let recorder = Recorder::create(&file, RecorderOptions::default()).unwrap();
    let data = bytes(0, 11 << 20, 1);
    recorder.channel("main").record(ToDestination, &data[..2 << 20]).unwrap();
    recorder.channel("main").record(ToSource, &data[2 << 20..]).unwrap();
    drop(recorder);
    let (channels, error) = recorded(&file);
    assert!(error.is_none(), "{error:?}");
    assert!(channels.iter().flat_map(|(_, _, data)| data).eq(&data));
}

/// `migwire record` as a process, listening.
struct Recording {
    child: Child,
    port: u16,
}

impl Recording {
    fn new(to: u16, file: &Path) -> Self {
        let mut child = Command::new("timeout")
            .args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_migwire"), "record", "tcp:127.0.0.1:0"])
            .args([format!("tcp:127.0.0.1:{to}").as_ref(), "-o".as_ref(), file.as_os_str()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        Self { child, port: port.unwrap_or_else(|| panic!("{line:?}")) }
    }

    /// Ends it as a crash does. `timeout` itself passes no such signal on.
    fn kill(&mut self) {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let pid = std::fs::read_to_string(children).unwrap();
        let killed = Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap();
    }
}

#[test]
fn a_proxy_that_is_killed_leaves_what_it_recorded() {
    const LEN: usize = 30 << 20;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.pcapng");
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut proxy = Recording::new(target.local_addr().unwrap().port(), &file);
    let mut source = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
    let mut destination = target.accept().unwrap().0;
    let data = Arc::new([&b"QEVM"[..], &bytes(0, LEN, 9)].concat());
    let writer = {
        let data = Arc::clone(&data);
        thread::spawn(move || source.write_all(&data).map(|()| source))
    };
    let mut got = vec![0; data.len()];
    destination.read_exact(&mut got).unwrap();
    assert!(got == *data);
    // Nothing follows, and what came is in the file soon, although nobody has finished it.
    let deadline = Instant::now() + Duration::from_secs(20);
    while file.metadata().unwrap().len() < data.len() as u64 {
        assert!(Instant::now() < deadline, "only {} bytes are in the file", file.metadata().unwrap().len());
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(100));
    proxy.kill();
    let (channels, error) = recorded(&file);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(channels.len(), 1);
    assert!(channels[0].2 == *data);
    drop(writer.join());
}

#[test]
fn a_proxy_that_is_killed_while_bytes_rush_leaves_a_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.pcapng");
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut proxy = Recording::new(target.local_addr().unwrap().port(), &file);
    let mut source = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
    let mut destination = target.accept().unwrap().0;
    let writer = thread::spawn(move || {
        // Until the proxy is gone.
        (0..).map(|i| bytes(i << 20, 1 << 20, 3)).find_map(|data| source.write_all(&data).err())
    });
    let reader = thread::spawn(move || std::io::copy(&mut destination, &mut std::io::sink()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while file.metadata().unwrap().len() < 20 << 20 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(5));
    }
    proxy.kill();
    assert!(writer.join().unwrap().is_some());
    drop(reader.join());
    let (channels, error) = recorded(&file);
    assert!(error.is_none_or(|e| e.kind() == migwire::ErrorKind::Truncated));
    let data = &channels[0].2;
    assert!(data.len() > 19 << 20);
    assert!(*data == bytes(0, data.len(), 3));
}

#[test]
fn a_full_disk_ends_the_recording_and_not_the_migration() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let stream = [&b"QEVM"[..], &bytes(0, 24 << 20, 5)].concat();
    std::fs::write(&from, &stream).unwrap();
    // The limit of a file's length stands for the end of the disk: 8 MiB and a bit, in blocks of 512 bytes. It holds for the
    // recording only, because the other side is a command, which writes to a pipe.
    let line = "trap '' XFSZ; ulimit -f 16400; exec \"$0\" record \"file:$1\" \"exec:cat | md5sum | cut -d' ' -f1 >&2\" -o \"$2\" --json";
    let recording = dir.path().join("x.pcapng");
    let run = Command::new("timeout")
        .args(["60", "dash", "-c", line, env!("CARGO_BIN_EXE_migwire")])
        .args([&from, &recording])
        .output();
    let run = match run {
        Ok(run) if run.status.code() != Some(127) => run,
        _ => {
            eprintln!("SKIPPED a_full_disk_ends_the_recording_and_not_the_migration: no dash");
            return;
        }
    };
    let talk = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(3), "{talk}");
    assert!(talk.contains("the recording is incomplete"), "{talk}");
    let answer = String::from_utf8_lossy(&run.stdout);
    assert!(answer.contains(&format!("\"to_target\":{}", stream.len())), "{answer}");
    let (channels, error) = recorded(&recording);
    assert!(error.is_none(), "{error:?}");
    let kept = &channels[0].2;
    assert!(kept.len() > 3 << 20 && kept.len() < stream.len(), "{}", kept.len());
    assert!(stream.starts_with(kept));
    let lost = stream.len() - kept.len();
    assert!(talk.contains(&format!("{} bytes were written, {lost} were lost", kept.len())), "{lost}: {talk}");
}

/// Runs the command to its end: exit code, standard output, standard error.
fn migwire(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_migwire")]).args(arguments).stdin(Stdio::null());
    let run = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (run.status.code().unwrap(), text(run.stdout), text(run.stderr))
}

#[test]
fn a_recording_tells_of_itself_and_of_what_was_changed_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (stream, recording) = (path("stream"), path("x.pcapng"));
    let to = format!("file:{stream}");
    let (code, _, talk) =
        migwire(&["send", &to, "--machine", "none", "--memory", "8M", "--fill", "count", "--timeout", "20"]);
    assert_eq!(code, 0, "{talk}");
    let from = format!("file:{stream}");
    let (code, _, talk) = migwire(&[
        "record",
        &from,
        "exec:cat > /dev/null",
        "-o",
        &recording,
        "--about",
        "build=QEMU 11.1",
        "--about",
        "capabilities=[\"multifd\"]",
    ]);
    assert_eq!(code, 0, "{talk}");

    let (code, page, _) = migwire(&["inspect", &recording]);
    assert_eq!(code, 0);
    for wanted in
        ["  role          proxy", "  build         QEMU 11.1", "  capabilities  [\"multifd\"]", "  peers"]
    {
        assert!(page.contains(wanted), "{wanted:?} is missing in\n{page}");
    }
    let (_, answer, _) = migwire(&["inspect", &recording, "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let about = &answer["files"][0]["about"];
    assert_eq!((&about["build"], &about["capabilities"][0]), (&"QEMU 11.1".into(), &"multifd".into()));
    assert_eq!(about["addresses"]["listen"], from);

    let (code, said, _) = migwire(&["verify", &recording]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("byte-identical"), "{said}");
    // A byte of a page is changed, which no parser can see.
    let mut bytes = std::fs::read(&recording).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&recording, &bytes).unwrap();
    let (code, said, _) = migwire(&["verify", &recording]);
    assert_eq!(code, 1);
    assert!(said.contains("main") && said.contains("by the seal of the recording"), "{said}");
    let (_, answer, _) = migwire(&["verify", &recording, "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["verdict"], "different");
    assert_eq!(answer["channels"][0]["altered"], true);
    // Without its end it is a recording that nobody has finished: there is nothing to hold it against.
    let seal = bytes.len() - u32::from_le_bytes(*bytes.last_chunk().unwrap()) as usize;
    std::fs::write(&recording, &bytes[..seal]).unwrap();
    let (code, said, _) = migwire(&["verify", &recording]);
    assert_eq!(code, 0, "{said}");
    let (code, _, talk) = migwire(&["record", &from, "-", "-o", &recording, "--about", "nothing"]);
    assert_eq!(code, 2, "{talk}");
}
