//! Trouble on purpose, between our own ends: what each rule does to a migration, and what is told about it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use migwire::capture::{self, ChannelBytes, Direction, Reader, Recorder, RecorderOptions};
use migwire::endpoint::{
    Arrival, Blank, Departure, Destination, Limits, Multifd, Passage, Proxy, Source, Template,
};
use migwire::guest::{Memory, Pattern};
use migwire::transport::{self, Address, Listener};
use migwire::trouble::{Channel, Script, random};
use migwire::wire::Method;

const MEMORY: u64 = 2 << 20;

/// Pages are told apart, and none is zero.
const PATTERN: Pattern = Pattern::Random(7);

/// Long enough for a machine under load, and short enough to wait for where something is never to come.
const LIMITS: Limits = Limits { silence: Duration::from_secs(2), total: Some(Duration::from_secs(30)) };

fn loopback() -> Listener {
    Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap()
}

fn source() -> Source {
    let template = Template::blank(&Blank::new("none", "ram", MEMORY)).unwrap();
    Source::new(template).with_pattern(None, PATTERN).unwrap().with_return_path(true).with_limits(LIMITS)
}

fn multifd() -> Source {
    source().with_multifd(Multifd {
        channels: 2,
        method: Method::NONE,
        level: None,
        zero_pages: None,
        uuid: [0; 16],
    })
}

/// A migration with trouble on the way.
struct Told {
    departure: Departure,
    arrival: Arrival,
    passage: Passage,
    /// What the destination made of the guest's memory.
    ram: Vec<u8>,
    /// What was sent on to it over the main channel, by the recording.
    main: Vec<u8>,
}

impl Told {
    /// Where the only rule was carried out.
    fn place(&self) -> (Channel, u64) {
        let done = &self.passage.trouble[0].done;
        assert_eq!((self.passage.trouble.len(), done.len()), (1, 1), "{:?}", self.passage.trouble);
        done[0]
    }

    fn refusal(&self) -> String {
        self.arrival.error.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Bytes of memory that are not as they were sent.
    fn damage(&self) -> Vec<(usize, u8, u8)> {
        let sent = sent();
        assert_eq!(self.ram.len(), sent.len());
        let both = sent.iter().zip(&self.ram).enumerate();
        both.filter(|(_, (was, is))| was != is).map(|(at, (was, is))| (at, *was, *is)).collect()
    }

    fn assert_unharmed(&self) {
        assert_eq!(
            (&*self.refusal(), self.departure.peer_status),
            ("", Some(0)),
            "{:?}",
            self.departure.error
        );
        assert_eq!(self.damage(), []);
    }
}

fn sent() -> Vec<u8> {
    let mut page = vec![0; 4096];
    let pages = 0..MEMORY / 4096;
    pages
        .flat_map(|number| {
            PATTERN.fill(number * 4096, &mut page);
            page.clone()
        })
        .collect()
}

fn trouble(script: &str, source: Source) -> Told {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trouble.pcapng");
    let (inner, outer) = (loopback(), loopback());
    let recorder = Recorder::create(&file, RecorderOptions::default()).unwrap();
    let script: Script = script.parse().unwrap();
    let proxy = Proxy::new(inner.local_address().clone())
        .with_limits(Limits { silence: Duration::from_secs(10), ..LIMITS })
        .with_recorder(recorder.clone())
        .with_trouble(script);
    let to = outer.local_address().clone();
    let memory = Memory::new().with_images(dir.path()).unwrap();
    let (departure, arrival, passage) = thread::scope(|scope| {
        let proxy = scope.spawn(|| proxy.run(&outer, |_| {}));
        let destination = Destination::new().with_limits(LIMITS).with_memory(memory);
        let destination = scope.spawn(|| destination.listen(&inner, |_| {}).unwrap());
        let connect = |_| transport::connect(&to, Duration::from_secs(10));
        let main = connect(migwire::ChannelId::Main).unwrap();
        let departure = source.send_over(main, connect, |_| {});
        (departure, destination.join().unwrap(), proxy.join().unwrap())
    });
    recorder.finish().unwrap();
    let ram = fs::read(dir.path().join("ram.ram")).unwrap_or_default();
    Told { departure, arrival, passage, ram, main: recorded(&file) }
}

fn recorded(file: &Path) -> Vec<u8> {
    let listing = capture::channels(File::open(file).unwrap()).unwrap();
    assert!(listing.error.is_none());
    let main = |channel: &&capture::ChannelSummary| {
        channel.name == "main" && channel.direction == Direction::ToDestination
    };
    let channel = listing.channels.iter().find(main).unwrap();
    let reader = Reader::new(File::open(file).unwrap()).unwrap();
    let mut bytes = Vec::new();
    ChannelBytes::new(reader, channel.interface, channel.direction).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_nobody_notices() {
    for (script, is_multifd) in [
        ("stall 100ms in page 40", false),
        ("trickle 8000 B/ms at page 40", false),
        ("delay SYNC 0 of multifd-1 100ms", true),
        ("duplicate packet 1 of multifd-0", true),
        ("swap channels", true),
    ] {
        let told = trouble(script, if is_multifd { multifd() } else { source() });
        told.assert_unharmed();
        assert!(told.passage.trouble.iter().all(|trouble| !trouble.done.is_empty()), "{script}");
    }
}

#[test]
fn a_rule_without_its_place_is_told_and_does_nothing() {
    let told = trouble("drop page 100000", source());
    told.assert_unharmed();
    assert_eq!(told.passage.trouble[0].done, []);
    assert_eq!(told.main.len() as u64, told.departure.bytes);
}

#[test]
fn one_bit_is_wrong() {
    let told = trouble("flip bit 3 of data in page 250", source());
    assert_eq!((&*told.refusal(), told.departure.peer_status), ("", Some(0)));
    let [(at, was, is)] = told.damage()[..] else { panic!("{:?}", told.damage().len()) };
    // As one number, high byte first.
    assert_eq!((at % 4096, was ^ is), (4095, 8));
    let (channel, offset) = told.place();
    assert_eq!(
        (channel, told.main[offset as usize]),
        (Channel::Main, is),
        "the recording has what was sent on"
    );
}

#[test]
fn a_page_is_lost_and_a_packet_too() {
    let told = trouble("drop page 250", source());
    assert_eq!(told.refusal(), "");
    let lost: std::collections::BTreeSet<_> = told.damage().iter().map(|(at, ..)| at / 4096).collect();
    assert_eq!(lost.len(), 1);
    assert!(told.damage().iter().all(|(_, _, is)| *is == 0));
    assert!((told.main.len() as u64) < told.departure.bytes);

    let told = trouble("drop packet 1 of multifd-1", multifd());
    assert_eq!((&*told.refusal(), told.damage().is_empty()), ("", false));
}

#[test]
fn the_connection_ends_in_a_page() {
    for script in ["cut in page 100", "reset in page 100", "half-close in page 100"] {
        let told = trouble(script, source());
        assert!(told.departure.error.is_some() || told.departure.peer_status == Some(1), "{script}");
        let (channel, offset) = told.place();
        assert_eq!((channel, told.main.len() as u64), (Channel::Main, offset), "{script}");
        let error = told.arrival.error.as_ref().unwrap();
        assert_eq!(error.channel(), migwire::ChannelId::Main);
        // What was whole is kept. Who breaks a connection off throws away what the other end has not read.
        let first = told.damage().first().map(|(at, ..)| (at / 4096) as u64);
        assert_eq!(first, Some(told.arrival.pages), "{script}");
        if !script.starts_with("reset") {
            assert_eq!(
                (error.kind(), told.arrival.pages),
                (migwire::ErrorKind::Truncated, 100),
                "{script}: {error}"
            );
        }
    }
}

#[test]
fn a_flag_that_nobody_knows_is_refused_where_it_is() {
    let told = trouble("flip bit 11 of flags in page 100", source());
    let (_, offset) = told.place();
    let error = told.arrival.error.as_ref().unwrap();
    assert!(error.offset().is_some_and(|at| at <= offset && at + 8 > offset), "{error}");
    assert_eq!(told.departure.peer_status, Some(1), "the source is told");
}

#[test]
fn answers_are_lost() {
    let told = trouble("drop return path", source());
    assert_eq!((&*told.refusal(), told.damage()), ("", vec![]), "the destination has everything");
    assert_eq!(
        (told.departure.peer_status, told.departure.error.is_some()),
        (None, true),
        "and nobody knows"
    );
    assert_eq!(told.passage.connections[0].to_source, 0);
}

#[test]
fn nothing_comes_any_more() {
    let told = trouble("stall in page 100", source());
    assert_eq!(told.arrival.error.as_ref().unwrap().kind(), migwire::ErrorKind::Timeout);
    assert!(told.departure.error.is_some());

    let told = trouble("drop SYNC 0 of multifd-1", multifd());
    assert!(told.refusal().contains("multifd channel 1"), "{}", told.refusal());
}

#[test]
fn who_is_not_who_he_says() {
    let told = trouble("set id to 9 in hello of multifd-1", multifd());
    assert!(told.refusal().contains('9'), "{}", told.refusal());

    let told = trouble("flip bit 0 of magic in packet 1 of multifd-0", multifd());
    assert!(told.refusal().contains("multifd channel 0"), "{}", told.refusal());

    let told = trouble("duplicate multifd-0", multifd());
    let complaints: String = told.arrival.complaints.iter().map(ToString::to_string).collect();
    assert!(format!("{} {complaints}", told.refusal()).contains("0"), "{} {complaints}", told.refusal());
}

#[test]
fn chance_can_be_repeated() {
    let scripts: Vec<String> = (0..64).map(|seed| random(seed).to_string()).collect();
    for (seed, script) in scripts.iter().enumerate() {
        assert_eq!(random(seed as u64).to_string(), *script);
        assert_eq!(script.parse::<Script>().unwrap().to_string(), *script, "can be given again");
    }
    let different: std::collections::BTreeSet<_> = scripts.iter().collect();
    assert!(different.len() > 48, "{}", different.len());
    // Whatever chance brings, everybody comes to an end.
    for (seed, script) in scripts.iter().enumerate().take(4) {
        let told = trouble(script, if seed % 2 == 0 { multifd() } else { source() });
        assert_eq!(told.passage.trouble.len(), random(seed as u64).rules.len());
    }
}

/// Runs the command; `timeout` ends it if it hangs, and answers 124 then.
fn migwire(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["40", env!("CARGO_BIN_EXE_migwire")]).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A destination in this process, and a verb that sends to it.
fn into_destination(arguments: impl FnOnce(&Address) -> Vec<String>) -> (Output, Arrival) {
    let listener = loopback();
    let arguments = arguments(listener.local_address());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    thread::scope(|scope| {
        let destination = Destination::new().with_limits(LIMITS).with_memory(Memory::new().with_digest());
        let destination = scope.spawn(|| destination.listen(&listener, |_| {}).unwrap());
        (migwire(&arguments), destination.join().unwrap())
    })
}

#[test]
fn every_verb_that_moves_bytes_makes_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("capture.pcapng").display().to_string();
    let rules = dir.path().join("rules.txt");
    fs::write(&rules, "# a page is lost\n\ndrop page 100   # this one\n").unwrap();
    let machine = "--machine none --memory 2M --fill random=7 --return-path on";
    let send = |to: &Address, more: &[&str]| -> Vec<String> {
        let words = ["send".to_owned(), to.to_string()].into_iter();
        let words = words.chain(machine.split(' ').map(String::from));
        words.chain(more.iter().map(ToString::to_string)).collect()
    };
    let digest = |arrival: &Arrival| arrival.memory.blocks()[0].digest().unwrap().to_string();

    let (output, whole) = into_destination(|to| send(to, &["-o", &file]));
    assert_eq!((output.status.code(), whole.error.is_none()), (Some(0), true), "{}", text(&output));
    let rules = rules.display().to_string();
    let (output, arrival) = into_destination(|to| send(to, &["--trouble", &rules]));
    assert_eq!((output.status.code(), arrival.error.is_none()), (Some(0), true), "{}", text(&output));
    assert!(text(&output).contains("trouble: drop page 100: on main at byte "), "{}", text(&output));
    assert_ne!(digest(&arrival), digest(&whole));

    let words = |to: &Address| {
        ["replay", &file, &to.to_string(), "--trouble", "drop page 100"].map(String::from).to_vec()
    };
    let (output, again) = into_destination(words);
    assert_eq!((output.status.code(), digest(&again)), (Some(0), digest(&arrival)), "{}", text(&output));
    assert!(text(&output).contains("trouble: drop page 100: on main at byte "), "{}", text(&output));

    let socket = format!("unix:{}", dir.path().join("s").display());
    let received = thread::scope(|scope| {
        let arguments =
            ["recv", &socket, "--digest", "--json", "--timeout", "2", "--trouble", "cut in page 100"];
        let receiver = scope.spawn(move || migwire(&arguments));
        let to: Address = socket.parse().unwrap();
        let departure =
            source().send(transport::connect_within(&to, Duration::from_secs(20)).unwrap(), |_| {});
        assert!(departure.error.is_some() || departure.peer_status == Some(1));
        receiver.join().unwrap()
    });
    assert_eq!(received.status.code(), Some(1), "{}", text(&received));
    assert!(text(&received).contains("trouble: cut in page 100: on main at byte "), "{}", text(&received));
}

#[test]
fn what_is_no_script_is_a_mistake_in_usage() {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("binary");
    fs::write(&binary, b"cut in page 1; \xff\xfe").unwrap();
    let binary = binary.display().to_string();
    for script in [
        "burn page 1",
        "cut",
        "cut in page",
        "drop page 99999999999999999999999",
        "flip bit 3 of nonsense in page 1",
        "trickle 0 B/ms",
        "swap main multifd-1",
        &binary,
    ] {
        let output = migwire(&[
            "record",
            "tcp:127.0.0.1:0",
            "tcp:127.0.0.1:9",
            "-o",
            "/dev/null",
            "--trouble",
            script,
        ]);
        assert_eq!(output.status.code(), Some(2), "{script}: {}", text(&output));
    }
}
