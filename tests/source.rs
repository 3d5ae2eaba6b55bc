//! The stand-in source against our own destination, and against scripted ones that misbehave.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use migwire::ErrorKind;
use migwire::capture::{self, Direction, Recorder, RecorderOptions};
use migwire::channel::{Feed, Streaming};
use migwire::endpoint::{Arrival, Blank, Departure, Destination, Limits, RunState, Source, Template};
use migwire::guest::{Memory, Pattern, file_name};
use migwire::stream::{Event, Parser};
use migwire::transport::{Address, Connection, connect, memory};
use migwire::wire::{Command, SectionKind};

const RELEASES: [&str; 4] = ["5.2", "7.2", "10.0", "11.1"];

/// PONG 1, SHUT 0, SHUT 1, SWITCHOVER_ACK as they are on the wire.
const PONG: &[u8] = b"\0\x02\0\x04\0\0\0\x01";
const SHUT_OK: &[u8] = b"\0\x01\0\x04\0\0\0\0";
const SHUT_FAILED: &[u8] = b"\0\x01\0\x04\0\0\0\x01";
const ACK: &[u8] = b"\0\x07\0\0";

fn fixture(release: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/streams/qemu-{release}/{name}.bin"))
}

fn blank(memory: u64) -> Template {
    Template::blank(&Blank::new("none", "ram", memory)).unwrap()
}

/// A source of so much memory that no buffer between it and its destination holds it.
fn source(return_path: bool) -> Source {
    let source = Source::new(blank(2 << 20)).with_pattern(None, Pattern::Count).unwrap();
    source.with_return_path(return_path).with_limits(patient())
}

fn patient() -> Limits {
    Limits { silence: Duration::from_secs(20), total: None }
}

fn impatient() -> Limits {
    Limits { silence: Duration::from_millis(150), total: None }
}

/// Runs `source` against a destination that is a closure; returns what was sent and what the destination gives back.
fn play<T: Send + 'static>(
    source: Source,
    destination: impl FnOnce(Connection) -> T + Send + 'static,
) -> (Departure, T) {
    let (ours, theirs) = memory::pair();
    let destination = thread::spawn(move || destination(theirs));
    let departure = source.send(ours, |_| {});
    (departure, destination.join().unwrap())
}

/// Runs `source` against our own destination.
fn migrate(source: Source, memory: Memory) -> (Departure, Arrival) {
    play(source.with_limits(patient()), |connection| {
        Destination::new().with_limits(patient()).with_memory(memory).receive(connection, |_| {})
    })
}

/// What `source` sends without return path.
fn sent(source: Source) -> Vec<u8> {
    let (departure, bytes) = play(source.with_return_path(false), |mut connection| {
        let mut bytes = Vec::new();
        connection.read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert!(departure.error.is_none(), "{:?}", departure.error);
    assert_eq!(departure.bytes, bytes.len() as u64);
    bytes
}

/// The events of a stream in words, without what differs between two runs or two machines: section ids and clocks.
fn story(bytes: &[u8]) -> Vec<String> {
    let mut story = Vec::new();
    let mut parser = Parser::new();
    Feed::new(Streaming(bytes))
        .run(&mut parser, |located, parser| {
            let section = parser.grammar().current_section().map(|(_, _, section)| section.idstr.to_vec());
            story.push(match &located.event {
                Event::Section(head) => format!("{:?} {:?}", head.kind, head.identity),
                Event::Footer(_) => "footer".to_owned(),
                Event::Payload(payload) if section.as_deref() == Some(b"timer") => {
                    format!("clocks {}", payload.len())
                }
                Event::Payload(payload) => format!("payload {:?}", payload.bytes()),
                Event::DescriptionText(text) => String::from_utf8(text.bytes().unwrap().to_vec()).unwrap(),
                other => format!("{other:?}"),
            });
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    story
}

fn commands(bytes: &[u8]) -> Vec<String> {
    story(bytes).into_iter().filter(|words| words.starts_with("Command")).collect()
}

fn digests(memory: &Memory) -> Vec<(String, String)> {
    let digest = |block: &migwire::guest::MemoryBlock| block.digest().unwrap().to_string();
    memory.blocks().iter().map(|block| (block.name().to_string(), digest(block))).collect()
}

/// What a destination has in its memory after the stream in `path`.
fn digests_of(path: &Path) -> Vec<(String, String)> {
    let images = tempfile::tempdir().unwrap();
    let mut memory = Memory::new().with_images(images.path()).unwrap().with_digest();
    let mut parser = Parser::new();
    Feed::new(Streaming(std::fs::File::open(path).unwrap()))
        .run(&mut parser, |located, parser| {
            memory.handle(&located.event, parser.grammar(), located.range.start)?;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    digests(&memory)
}

#[test]
fn from_nothing_it_is_what_stock_builds_send() {
    for release in RELEASES {
        let mut blank = Blank::new("none", "ram", 16 << 20);
        blank.dialect = release.parse().unwrap();
        let source = Source::new(Template::blank(&blank).unwrap()).with_pattern(None, Pattern::Zero).unwrap();
        let ours = sent(source);
        let stock = std::fs::read(fixture(release, "none-16m")).unwrap();
        assert_eq!(ours.len(), stock.len(), "{release}");
        assert_eq!(story(&ours), story(&stock), "{release}");
    }
}

#[test]
fn for_no_release_it_is_what_all_of_them_take() {
    let bytes = sent(Source::new(blank(1 << 20)).with_pattern(None, Pattern::Zero).unwrap());
    assert!(commands(&bytes).is_empty(), "SWITCHOVER_START is refused by releases before 10.0");
}

#[test]
fn a_whole_migration_with_return_path() {
    let source = source(true).with_rounds(3).with_copy(Memory::new().with_digest());
    let (departure, arrival) = migrate(source, Memory::new().with_digest());
    assert!(
        departure.error.is_none() && arrival.error.is_none(),
        "{:?} {:?}",
        departure.error,
        arrival.error
    );
    assert_eq!((departure.return_path, departure.pong, departure.peer_status), (true, true, Some(0)));
    assert_eq!((departure.pages, departure.zero_pages, arrival.iterations), (3 * 512, 0, 3));
    assert_eq!(departure.bytes, arrival.bytes);
    assert_eq!(departure.machine.as_deref(), Some("none"));
    assert_eq!(digests(&departure.memory), digests(&arrival.memory));
}

#[test]
fn deltas_arrive_as_the_pages_they_make() {
    let images = tempfile::tempdir().unwrap();
    let memory = |name| Memory::new().with_images(&images.path().join(name)).unwrap().with_digest();
    let sent = source(true).with_rounds(3).with_xbzrle(16 << 20).with_copy(memory("sent"));
    let (departure, arrival) = migrate(sent, memory("arrived"));
    assert!(
        departure.error.is_none() && arrival.error.is_none(),
        "{:?} {:?}",
        departure.error,
        arrival.error
    );
    assert!(departure.xbzrle_pages > 0 && departure.xbzrle_pages == arrival.xbzrle_pages);
    assert_eq!(digests(&departure.memory), digests(&arrival.memory));
    // What is there in the end is the pattern itself, as without deltas.
    let (plain, _) = migrate(source(true).with_copy(Memory::new().with_digest()), Memory::new());
    assert_eq!(digests(&departure.memory), digests(&plain.memory));
}

#[test]
fn a_whole_migration_without_return_path() {
    let mut blank = Blank::new("none", "ram", 1 << 20);
    blank.state = RunState::Paused;
    let source = Source::new(Template::blank(&blank).unwrap()).with_pattern(None, Pattern::Mixed(4)).unwrap();
    let (departure, arrival) = migrate(source, Memory::new());
    assert!(departure.error.is_none() && arrival.error.is_none());
    assert_eq!((departure.return_path, departure.peer_status, arrival.return_path), (false, None, false));
    assert!(departure.zero_pages > 20 && departure.zero_pages == arrival.zero_pages);
}

#[test]
fn a_template_keeps_what_is_not_replaced() {
    for (release, name) in [("5.2", "pc-2.2"), ("5.2", "pc-2.3"), ("7.2", "pc-small"), ("11.1", "pc-small")] {
        let path = fixture(release, name);
        let whole = sent(Source::new(Template::open(&path).unwrap()));
        let stock = std::fs::read(&path).unwrap();
        let without_pages = |bytes: &[u8]| {
            let mut story = story(bytes);
            story.retain(|words| !words.starts_with("Page") && !words.starts_with("PART"));
            story.dedup();
            story
        };
        // Several PARTs became one, which leaves neighbours that are alike.
        assert_eq!(without_pages(&whole), without_pages(&stock), "{release} {name}");

        let images = tempfile::tempdir().unwrap();
        let template = Template::open(&path).unwrap();
        let largest = template.blocks().iter().max_by_key(|b| b.used_length).unwrap().name.to_vec();
        // Without footers and description, only the end of the connection tells where the last device ends.
        let return_path = name != "pc-2.2";
        let source = Source::new(template).with_pattern(None, Pattern::Random(1)).unwrap();
        let source = source.with_return_path(return_path);
        let memory = Memory::new().with_images(images.path()).unwrap().with_digest();
        let (departure, arrival) = migrate(source, memory);
        assert!(departure.error.is_none(), "{release} {name}: {:?}", departure.error);
        let changed: Vec<_> = digests(&arrival.memory)
            .into_iter()
            .zip(digests_of(&path))
            .filter(|(ours, template)| ours != template)
            .map(|(ours, _)| ours.0)
            .collect();
        assert_eq!(changed, [String::from_utf8(largest.clone()).unwrap()], "{release} {name}");
        let image = std::fs::read(images.path().join(file_name(&largest))).unwrap();
        for (i, page) in image.chunks(4096).enumerate() {
            let mut expected = [0; 4096];
            Pattern::Random(1).fill(i as u64 * 4096, &mut expected);
            assert!(*page == expected, "{release} {name}: page {i}");
        }
    }
}

#[test]
fn images_go_where_they_are_named_after() {
    let template = || Template::open(&fixture("10.0", "pc-small")).unwrap();
    let (given, taken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut expected = Vec::new();
    for (i, block) in template().blocks().iter().take(3).enumerate() {
        // Holes, data and pages that are zero but written, not on the borders of what is read at once.
        let mut image = vec![0; block.used_length as usize];
        for at in (0..image.len()).step_by(5 * 4096 + i) {
            image[at] = i as u8 + 1;
        }
        let half = image.len() / 8192 * 4096;
        image[..half].fill(0);
        let path = given.path().join(file_name(&block.name));
        std::fs::write(&path, &image).unwrap();
        expected.push((file_name(&block.name), image));
    }
    let sparse = std::fs::OpenOptions::new().write(true).open(given.path().join(&expected[0].0)).unwrap();
    let length = expected[0].1.len() as u64;
    sparse.set_len(100).unwrap();
    sparse.set_len(length).unwrap();
    expected[0].1[100..].fill(0);

    let source =
        Source::new(template()).with_images(given.path()).unwrap().with_return_path(true).with_rounds(2);
    let (departure, arrival) = migrate(source, Memory::new().with_images(taken.path()).unwrap());
    assert!(departure.error.is_none() && arrival.error.is_none(), "{:?}", departure.error);
    for (name, image) in expected {
        assert!(std::fs::read(taken.path().join(&name)).unwrap() == image, "{name}");
    }
}

#[test]
fn deltas_of_a_template_still_find_what_they_refer_to() {
    let path = fixture("11.1", "pc-xbzrle");
    let images = tempfile::tempdir().unwrap();
    let source = Source::new(Template::open(&path).unwrap()).with_return_path(true).with_rounds(2);
    let memory = Memory::new().with_images(images.path()).unwrap().with_digest();
    let (departure, arrival) = migrate(source, memory);
    assert!(departure.error.is_none(), "{:?}", departure.error);
    assert!(arrival.xbzrle_pages > 0);
    assert_eq!(digests(&arrival.memory), digests_of(&path));
}

#[test]
fn a_recording_is_a_template_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("migration.pcapng");
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    let (departure, _) = migrate(source(true).with_recorder(recorder.clone()), Memory::new());
    assert!(departure.error.is_none());
    recorder.finish().unwrap();
    let listing = capture::channels(std::fs::File::open(&path).unwrap()).unwrap();
    let found: Vec<_> = listing.channels.iter().map(|c| (c.direction, c.bytes)).collect();
    assert_eq!(found, [(Direction::ToDestination, departure.bytes), (Direction::ToSource, 16)]);

    let template = Template::open(&path).unwrap();
    assert!(template.has_return_path());
    let (again, arrival) = migrate(Source::new(template), Memory::new().with_digest());
    assert!(again.error.is_none() && again.return_path, "{:?}", again.error);
    assert_eq!(again.bytes, departure.bytes);
    let (_, first) = migrate(source(true), Memory::new().with_digest());
    assert_eq!(digests(&arrival.memory), digests(&first.memory));
}

#[test]
fn commands_follow_the_options() {
    let template = || Template::open(&fixture("10.0", "none-16m")).unwrap();
    let as_release =
        |release: &str| commands(&sent(Source::new(template()).with_dialect(release.parse().unwrap())));
    let switchover = format!("{:?}", Event::Command(Command::SwitchoverStart));
    assert_eq!(as_release("any"), [&*switchover]);
    assert_eq!(as_release("11.1"), [&*switchover]);
    assert_eq!(as_release("7.2"), [""; 0]);
    let old = Source::new(Template::open(&fixture("7.2", "none-16m")).unwrap());
    assert_eq!(commands(&sent(old.with_dialect("11.1".parse().unwrap()))), [&*switchover]);
    // In front of END, as stock builds place it.
    let bytes = sent(
        Source::new(Template::open(&fixture("7.2", "none-16m")).unwrap())
            .with_dialect("11.1".parse().unwrap()),
    );
    let story = story(&bytes);
    let at = story.iter().position(|words| *words == switchover).unwrap();
    assert!(story[at + 1].starts_with(&format!("{:?}", SectionKind::END)), "{}", story[at + 1]);
}

#[test]
fn a_destination_that_goes_away_is_an_error_wherever_it_does() {
    for return_path in [true, false] {
        for cut in [0, 1, 8, 13, 22, 100, 70_000, 1 << 20] {
            let (departure, ()) = play(source(return_path), move |connection| {
                let mut read = Vec::new();
                (&connection).take(cut).read_to_end(&mut read).unwrap();
            });
            let error = departure.error.unwrap();
            assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Peer), "{return_path} {cut}: {error}");
            assert!(departure.bytes < 1 << 21 && departure.bytes >= cut, "{cut}: {}", departure.bytes);
            assert_eq!(departure.peer_status, None);
        }
    }
}

#[test]
fn what_a_failing_destination_says_is_what_is_reported() {
    // It reads nothing more, and neither closes: the source is stuck in a write when SHUT comes.
    let begin = Instant::now();
    let (departure, _connection) = play(source(true), |mut connection| {
        let mut first = [0; 100];
        connection.read_exact(&mut first).unwrap();
        connection.write_all(SHUT_FAILED).unwrap();
        connection
    });
    let error = departure.error.unwrap();
    assert_eq!((error.kind(), departure.peer_status), (ErrorKind::Peer, Some(1)), "{error}");
    assert!(error.message().contains("SHUT 1"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));

    // At the end, and closing at once.
    let (departure, ()) = play(source(true), |mut connection| {
        read_all(&mut connection);
        connection.write_all(&[PONG, SHUT_FAILED].concat()).unwrap();
    });
    assert_eq!(departure.error.unwrap().kind(), ErrorKind::Peer);
    assert_eq!((departure.pong, departure.peer_status), (true, Some(1)));
}

#[test]
fn what_a_destination_may_and_may_not_say() {
    let say = |words: &[&[u8]]| {
        let words = words.concat();
        let (departure, ()) = play(source(true), move |mut connection| {
            connection.write_all(&words).unwrap();
            read_all(&mut connection);
        });
        departure
    };
    assert!(say(&[PONG, SHUT_OK]).error.is_none());
    assert!(say(&[PONG, ACK, SHUT_OK]).error.is_none());
    assert!(say(&[SHUT_OK]).error.is_none(), "PONG is optional");
    let kind = |words: &[&[u8]]| say(words).error.unwrap().kind();
    assert_eq!(kind(&[b"\0\x02\0\x04\0\0\0\x02", SHUT_OK]), ErrorKind::OutOfOrder, "PONG 2");
    assert_eq!(
        kind(&[b"\0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\x10\0", SHUT_OK]),
        ErrorKind::OutOfOrder,
        "REQ_PAGES"
    );
    assert_eq!(kind(&[b"QEVM\0\0\0\x03"]), ErrorKind::TooLarge, "not a return path");
    assert_eq!(kind(&[PONG]), ErrorKind::Peer, "closed without SHUT");
    assert_eq!(kind(&[&SHUT_OK[..5]]), ErrorKind::Truncated);
}

#[test]
fn a_silent_destination_is_given_up() {
    // It takes everything, and says nothing.
    let (departure, _connection) = play(source(true).with_limits(impatient()), |mut connection| {
        connection.write_all(PONG).unwrap();
        read_until_idle(&mut connection);
        connection
    });
    let error = departure.error.unwrap();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Timeout, Some(departure.bytes)), "{error}");
    assert!(error.message().contains("everything was sent"), "{error}");

    // It takes nothing.
    for return_path in [true, false] {
        let (ours, _theirs) = memory::pair();
        let departure = source(return_path).with_limits(impatient()).send(ours, |_| {});
        let error = departure.error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(error.message().contains("took nothing"), "{error}");
    }
}

#[test]
fn a_trickle_meets_the_deadline() {
    let limits = Limits { silence: Duration::from_secs(20), total: Some(Duration::from_millis(300)) };
    let begin = Instant::now();
    let (departure, ()) = play(source(false).with_limits(limits), |mut connection| {
        let mut some = [0; 4096];
        while matches!(connection.read(&mut some), Ok(1..)) {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let error = departure.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.message().contains("longer than it may"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_cannot_be_sent_is_refused_before_anything_is() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |result: migwire::Result<Source>| result.map(|_| ()).unwrap_err();
    let e = refused(Source::new(blank(1 << 20)).with_images(dir.path()));
    assert!(e.kind() == ErrorKind::Misuse && e.message().contains("no image"), "{e}");
    std::fs::write(dir.path().join("ram.ram"), [0; 4096]).unwrap();
    let e = refused(Source::new(blank(1 << 20)).with_images(dir.path()));
    assert!(e.kind() == ErrorKind::Misuse && e.message().contains("4096 bytes"), "{e}");
    let e = refused(Source::new(blank(1 << 20)).with_pattern(Some(b"pc.ram"), Pattern::Zero));
    assert!(e.message().contains("there are: ram"), "{e}");
    assert!(Template::blank(&Blank::new("none", "ram", 100)).is_err());
    assert!(Template::blank(&Blank::new("none", "", 4096)).is_err());

    // A block that keeps the template's pages, of which there are none.
    let e = Source::new(blank(1 << 20)).check().unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    let (departure, bytes) = play(Source::new(blank(1 << 20)), |mut connection| read_all(&mut connection));
    assert!(departure.error.is_some() && bytes == 0);

    let open = |bytes: &[u8]| {
        let path = dir.path().join("template");
        std::fs::write(&path, bytes).unwrap();
        Template::open(&path).map(|_| ()).unwrap_err()
    };
    assert_eq!(open(b"").kind(), ErrorKind::Unsupported);
    assert_eq!(open(b"#!/bin/sh").kind(), ErrorKind::Unsupported);
    let stock = std::fs::read(fixture("7.2", "none-16m")).unwrap();
    assert_eq!(open(&stock[..stock.len() / 2]).kind(), ErrorKind::Truncated);
    let postcopy = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\x08\0\x03\0\0\x08\0\x04\0\0";
    assert_eq!(open(postcopy).kind(), ErrorKind::Unsupported);
    let e = Template::open(dir.path()).map(|_| ()).unwrap_err();
    assert!(e.message().contains("src-to-dst.bin"), "{e}");
}

#[test]
fn a_file_has_no_return_path() {
    let dir = tempfile::tempdir().unwrap();
    let address = || Address::File { path: dir.path().join("stream"), offset: 0 };
    let connection = connect(&address(), Duration::from_secs(1)).unwrap();
    let departure = source(true).send(connection, |_| {});
    assert_eq!(departure.error.unwrap().kind(), ErrorKind::Misuse);
    let connection = connect(&address(), Duration::from_secs(1)).unwrap();
    let departure = source(false).send(connection, |_| {});
    assert!(departure.error.is_none());
    assert_eq!(std::fs::metadata(dir.path().join("stream")).unwrap().len(), departure.bytes);
}

/// Reads to the end of the stream as a destination finds it, without waiting for the source to close.
fn read_all(connection: &mut Connection) -> u64 {
    let mut parser = Parser::new();
    let mut bytes = 0;
    let _ = Feed::new(Streaming(connection)).run(&mut parser, |located, _| {
        bytes = located.range.end;
        let is_last = matches!(located.event, Event::DescriptionText(_));
        Ok(if is_last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    bytes
}

fn read_until_idle(connection: &mut Connection) {
    connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut some = [0; 4096];
    while matches!(connection.read(&mut some), Ok(1..)) {}
}
