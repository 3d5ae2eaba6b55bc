//! Recorded migrations, played to live destinations.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use migwire::ChannelId;
use migwire::capture::{Direction, Recorder, RecorderOptions};
use migwire::container::{self, Part};
use migwire::endpoint::{
    Answers, Arrival, Blank, Cut, Destination, Limits, Multifd, Outcome, Performance, Postcopy, Replay,
    Source, Template, Timing,
};
use migwire::guest::{Memory, Pattern};
use migwire::postcopy::RequestPattern;
use migwire::report::outline::Outline;
use migwire::transport::{self, Address, Listener};
use migwire::wire::Method;

const MEMORY: u64 = 4 << 20;
const LIMITS: Limits = Limits { silence: Duration::from_secs(20), total: Some(Duration::from_secs(40)) };

fn loopback() -> Listener {
    Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap()
}

fn source(pattern: Pattern) -> Source {
    let template = Template::blank(&Blank::new("none", "ram", MEMORY)).unwrap();
    Source::new(template).with_pattern(None, pattern).unwrap().with_return_path(true).with_limits(LIMITS)
}

fn destination() -> Destination {
    let patience = Duration::from_secs(20);
    Destination::new().with_limits(LIMITS).with_memory(Memory::new().with_digest()).with_recovery(patience)
}

fn multifd(channels: u8) -> Multifd {
    Multifd { channels, method: Method::NONE, level: None, zero_pages: None, uuid: [0; 16] }
}

/// A live migration, recorded by its source; with the digest of what arrived.
fn record(path: &Path, source: Source, destination: Destination) -> String {
    let listener = loopback();
    let to = listener.local_address().clone();
    let receiver = thread::spawn(move || destination.listen(&listener, |_| {}).unwrap());
    let recorder = Recorder::create(path, RecorderOptions::default()).unwrap();
    let connect = |_| transport::connect(&to, Duration::from_secs(20));
    let source = source.with_recorder(recorder.clone());
    let departure = source.send_over(connect(ChannelId::Main).unwrap(), connect, |_| {});
    let arrival = receiver.join().unwrap();
    recorder.finish().unwrap();
    assert!(
        departure.error.is_none() && arrival.error.is_none(),
        "{:?} {:?}",
        departure.error,
        arrival.error
    );
    digest(&arrival)
}

fn digest(arrival: &Arrival) -> String {
    arrival.memory.blocks().iter().map(|block| block.digest().unwrap().to_string()).collect()
}

fn parts(path: &Path) -> Vec<Part> {
    container::open(path, true).unwrap().parts
}

/// Plays a recording to `destination`.
fn play(
    path: &Path,
    destination: Destination,
    change: impl FnOnce(Replay) -> Replay,
) -> (Performance, Arrival) {
    let listener = loopback();
    let to = listener.local_address().clone();
    let receiver = thread::spawn(move || destination.listen(&listener, |_| {}).unwrap());
    let replay = change(Replay::new(to).with_limits(LIMITS));
    let performance = replay.play(parts(path)).unwrap();
    (performance, receiver.join().unwrap())
}

fn assert_same(path: &Path, expected: &str, destination: Destination) -> Performance {
    let (performance, arrival) = play(path, destination, |replay| replay);
    assert!(arrival.error.is_none(), "{:?}", arrival.error);
    assert_eq!(performance.outcome, Outcome::Completed, "{:?}", performance.error);
    assert_eq!(performance.deviations, []);
    assert_eq!(digest(&arrival), expected);
    assert!(
        performance.channels.iter().all(|channel| Some(channel.bytes) == channel.of),
        "{:?}",
        performance.channels
    );
    performance
}

fn names(performance: &Performance) -> Vec<&str> {
    performance.channels.iter().map(|channel| &*channel.channel).collect()
}

#[test]
fn every_kind_of_migration_arrives_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");

    let expected = record(&path, source(Pattern::Mixed(1)), destination());
    let performance = assert_same(&path, &expected, destination());
    assert_eq!((names(&performance), performance.answers), (vec!["main"], 2));

    let channels = multifd(3);
    let expected = record(&path, source(Pattern::Mixed(2)).with_multifd(channels), destination());
    let performance = assert_same(&path, &expected, destination());
    let mut found = names(&performance);
    found.sort_unstable();
    assert_eq!(found, ["main", "multifd-0", "multifd-1", "multifd-2"]);

    let postcopy = Postcopy { percent: 30, preempt: true, recover: Duration::from_secs(20) };
    let asking = || destination().with_requests(RequestPattern::Random(3), 4);
    let expected = record(&path, source(Pattern::Mixed(3)).with_postcopy(postcopy), asking());
    // Nobody asks this time, and all pages come.
    let performance = assert_same(&path, &expected, destination());
    assert_eq!((names(&performance), performance.requests), (vec!["main", "preempt"], 0));
    let performance = assert_same(&path, &expected, asking());
    assert!(performance.requests > 0);
}

#[test]
fn a_migration_that_paused_pauses_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    let postcopy = Postcopy { percent: 0, preempt: false, recover: Duration::from_secs(20) };
    let cuts = [Cut::Run(100_000), Cut::Resume(200_000)];
    let source = source(Pattern::Count).with_postcopy(postcopy).with_cuts(cuts);
    let expected = record(&path, source, destination());
    let performance = assert_same(&path, &expected, destination());
    assert_eq!(names(&performance), ["main", "resumed-1", "resumed-2"]);
    assert_eq!(performance.pauses, 2);
}

/// Bytes that were on their way when the destination broke off: it gets the pages when they came again, and not twice.
#[test]
fn what_a_paused_destination_had_not_taken_in_is_not_played() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    for preempt in [false, true] {
        let postcopy = Postcopy { percent: 0, preempt, recover: Duration::from_secs(20) };
        let breaking = || destination().with_requests(RequestPattern::Random(2), 4);
        let cut = breaking().with_cuts([Cut::Run(100_000), Cut::Resume(200_000)]);
        let expected = record(&path, source(Pattern::Count).with_postcopy(postcopy), cut);
        // A destination that had taken them in would say so when it is asked what it has received, and that would be told.
        let performance = assert_same(&path, &expected, destination());
        assert_eq!(performance.pauses, 2);
        let is_told =
            |note: &&String| note.contains("of main are not played: the recorded destination had not");
        assert_eq!(performance.notes.iter().filter(is_told).count(), 1, "{:?}", performance.notes);
    }
}

#[test]
fn channels_in_files_of_their_own_have_no_order_and_are_played_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    let channels = multifd(2);
    let expected = record(&path, source(Pattern::Mixed(5)).with_multifd(channels), destination());
    let files = dir.path().join("channels");
    fs::create_dir(&files).unwrap();
    for mut part in parts(&path) {
        let name = match part.channel {
            ChannelId::Main => "conn00.src-to-dst.bin".to_owned(),
            ChannelId::ReturnPath => "conn00.dst-to-src.bin".to_owned(),
            ChannelId::Multifd(id) => format!("conn{:02}.src-to-dst.bin", id + 1),
            other => panic!("{other}"),
        };
        fs::write(files.join(name), bytes(&mut part)).unwrap();
    }
    assert_same(&files, &expected, destination());
}

fn bytes(part: &mut Part) -> Vec<u8> {
    use migwire::channel::Input as _;
    let mut input = part.input(container::Access::Whole).unwrap();
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match input.read(&mut buffer).unwrap() {
            0 => return all,
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

#[test]
fn time_passes_as_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    let stream = {
        let other = dir.path().join("stream.pcapng");
        record(&other, source(Pattern::Mixed(7)), destination());
        bytes(&mut parts(&other)[0])
    };
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    let tap = recorder.channel("main");
    let (head, tail) = stream.split_at(stream.len() / 2);
    tap.record(Direction::ToDestination, head).unwrap();
    thread::sleep(Duration::from_millis(700));
    tap.record(Direction::ToDestination, tail).unwrap();
    recorder.finish().unwrap();
    let begin = Instant::now();
    let (performance, arrival) = play(&path, destination(), |replay| replay.with_timing(Timing::Recorded));
    assert!(arrival.error.is_none() && performance.outcome == Outcome::Completed, "{:?}", performance.error);
    assert!(begin.elapsed() >= Duration::from_millis(700));
    // The recorded destination had said nothing, as far as the recording goes.
    assert_eq!(performance.deviations.len(), 2);
    assert_eq!(performance.deviations[1].to_string(), "main at 0x10: recorded nothing, now SHUT 0");
}

#[test]
fn a_destination_that_refuses_says_so_or_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    let channels = multifd(2);
    record(&path, source(Pattern::Mixed(1)).with_multifd(channels), destination());
    let (performance, arrival) = play(&path, destination().with_uuid([1; 16]), |replay| replay);
    assert!(arrival.error.is_some());
    assert_eq!(performance.outcome, Outcome::Refused, "{:?}", performance.error);

    let listener = loopback();
    let to = listener.local_address().clone();
    let rude = thread::spawn(move || drop(listener.accept(Some(Duration::from_secs(20))).unwrap()));
    let performance = Replay::new(to).with_limits(LIMITS).play(parts(&path)).unwrap();
    rude.join().unwrap();
    assert_eq!(performance.outcome, Outcome::Refused);
    assert!(performance.deviations.iter().any(|d| d.to_string() == "main: recorded SHUT 0, now nothing"));
}

/// A stock destination from 10.1 on says nothing before all channels have said hello, and a proxy may have come to record the answer first.
#[test]
fn a_hello_that_was_recorded_behind_the_answer_waits_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    record(&path, source(Pattern::Mixed(1)).with_multifd(multifd(1)), destination());
    let channel = |wanted| bytes(parts(&path).iter_mut().find(|part| part.channel == wanted).unwrap());
    let (main, lane, back) =
        (channel(ChannelId::Main), channel(ChannelId::Multifd(0)), channel(ChannelId::ReturnPath));
    let late = dir.path().join("late.pcapng");
    let recorder = Recorder::create(&late, RecorderOptions::default()).unwrap();
    let [main_tap, lane_tap] = ["main", "multifd-0"].map(|name| recorder.channel(name));
    main_tap.record(Direction::ToSource, &back).unwrap();
    main_tap.record(Direction::ToDestination, &main).unwrap();
    lane_tap.record(Direction::ToDestination, &lane).unwrap();
    recorder.finish().unwrap();

    let listener = loopback();
    let to = listener.local_address().clone();
    let patience = Some(Duration::from_secs(20));
    let stock = thread::spawn(move || {
        let accept = || listener.accept(patience).unwrap().unwrap();
        let (mut main, mut lane) = (accept(), accept());
        let mut taken = vec![0; 64];
        lane.read_exact(&mut taken).unwrap();
        main.write_all(&back).unwrap();
        let rest = thread::spawn(move || std::io::copy(&mut main, &mut std::io::sink()));
        lane.read_to_end(&mut taken).unwrap();
        rest.join().unwrap().unwrap();
        taken
    });
    let limits = Limits { silence: Duration::from_secs(5), total: None };
    let performance = Replay::new(to).with_limits(limits).play(parts(&late)).unwrap();
    assert_eq!(performance.outcome, Outcome::Completed, "{:?}", performance.error);
    assert_eq!(performance.deviations, []);
    assert!(stock.join().unwrap() == lane);
}

#[test]
fn a_destination_that_takes_nothing_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    record(&path, source(Pattern::Mixed(1)), destination());
    let listener = loopback();
    let to = listener.local_address().clone();
    let limits = Limits { silence: Duration::from_millis(300), total: None };
    let performance = Replay::new(to).with_limits(limits).play(parts(&path)).unwrap();
    assert_eq!(performance.outcome, Outcome::Failed);
    let text = performance.error.unwrap().to_string();
    assert!(text.contains("gave up waiting for"), "{text}");
    drop(listener);
}

#[test]
fn what_is_there_of_a_cut_recording_is_played() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    record(&path, source(Pattern::Mixed(1)), destination());
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length * 2 / 3).unwrap();
    let (performance, arrival) = play(&path, destination(), |replay| replay);
    assert!(arrival.error.is_some() && arrival.pages > 0);
    assert_eq!(performance.outcome, Outcome::Refused, "{:?}", performance.error);
    assert!(
        performance.notes.iter().any(|note| note.contains("does not come to its end")),
        "{:?}",
        performance.notes
    );
}

#[test]
fn no_recording_of_a_migration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("capture.pcapng");
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    recorder.channel("multifd-0").record(Direction::ToDestination, &[0; 64]).unwrap();
    recorder.finish().unwrap();
    let error = Replay::new(Address::Stdio).play(parts(&path)).unwrap_err();
    assert!(error.to_string().contains("no main channel"), "{error}");
}

#[test]
fn answers_and_structure_of_a_recording() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { dir.path().join(name) };
    let postcopy = Postcopy { percent: 0, preempt: false, recover: Duration::from_secs(20) };
    let asking = destination().with_requests(RequestPattern::Missing, 4).with_request_limit(9);
    record(&path("a"), source(Pattern::Mixed(3)).with_postcopy(postcopy), asking);
    record(&path("b"), source(Pattern::Mixed(4)), destination());

    let answers = Answers::of(&mut parts(&path("a"))).unwrap();
    let RequestPattern::List(list) = &answers.requests else { panic!("{:?}", answers.requests) };
    assert_eq!((list.len(), &*list[0].block, list[0].length), (9, &b"ram"[..], 4096));
    assert_eq!((answers.acknowledgements, answers.status), (0, Some(0)));

    let outline = |name| Outline::of(&mut parts(&path(name))).unwrap();
    assert_eq!(outline("a").differences(&outline("a")), []);
    let found = outline("b").differences(&outline("a"));
    let gone = found.iter().filter_map(|d| d.theirs.as_ref()).any(|line| line.text.contains("POSTCOPY_RUN"));
    assert!(gone, "{found:?}");

    let mut file = fs::OpenOptions::new().append(true).open(path("b")).unwrap();
    file.write_all(b"\x06\0\0\0").unwrap();
    assert!(container::open(&path("b"), true).unwrap().fault.is_some());
}
