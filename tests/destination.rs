//! The stand-in destination against scripted sources: what a peer may do wrong, and what is kept of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use migwire::ErrorKind;
use migwire::dialect::Dialect;
use migwire::endpoint::{Acknowledge, Arrival, Destination, Limits};
use migwire::guest::Memory;
use migwire::stream::{Emitter, Event};
use migwire::transport::{Connection, memory};
use migwire::wire::{
    Bulk, Command, Configuration, DescriptionHead, FileHeader, Page, PageBody, PageWord, RamBlock, RamFlags,
    SectionFooter, SectionHead, SectionIdentity, SectionKind,
};

const PAGE: [u8; 4096] = [7; 4096];

/// A whole migration of `-machine none` with two pages, as events.
fn migration(return_path: bool) -> Vec<Event<'static>> {
    let section = |kind, identity| Event::Section(SectionHead { kind, section_id: 1, identity });
    let ram = SectionIdentity { idstr: "ram".into(), instance_id: 0, version_id: 4 };
    let footer = Event::Footer(SectionFooter { section_id: 1 });
    let eos = Event::RamWord(PageWord::new(0, RamFlags::EOS));
    let mut events = vec![
        Event::Header(FileHeader::CURRENT),
        Event::Configuration(Configuration { machine: "none".into() }),
    ];
    if return_path {
        events.extend([Event::Command(Command::OpenReturnPath), Event::Command(Command::Ping(1))]);
    }
    let page = |offset, body| {
        let flags = if matches!(body, PageBody::Zero(_)) { RamFlags::ZERO } else { RamFlags::PAGE };
        Event::Page(Page { word: PageWord::new(offset, flags), block: Some("ram".into()), body })
    };
    events.extend([
        section(SectionKind::START, Some(ram)),
        Event::RamWord(PageWord::new(8192, RamFlags::MEM_SIZE)),
        Event::RamBlock(RamBlock::new("ram".into(), 8192)),
        eos.clone(),
        footer.clone(),
        section(SectionKind::PART, None),
        page(0, PageBody::Raw(Bulk::Bytes(&PAGE))),
        page(4096, PageBody::Zero(0)),
        eos.clone(),
        footer.clone(),
        section(SectionKind::END, None),
        eos,
        footer,
        Event::Eof,
        Event::Description(DescriptionHead { length: 0 }),
    ]);
    events
}

fn bytes(return_path: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut emitter = Emitter::strict();
    for event in migration(return_path) {
        emitter.emit(&event, &mut out).unwrap();
    }
    out
}

/// Runs `destination` against a source that is a closure; returns what arrived and what the source gave back.
fn play<T: Send + 'static>(
    destination: Destination,
    source: impl FnOnce(Connection) -> T + Send + 'static,
) -> (Arrival, T) {
    let (ours, theirs) = memory::pair();
    let source = thread::spawn(move || source(theirs));
    let arrival = destination.receive(ours, |_| {});
    (arrival, source.join().unwrap())
}

fn impatient() -> Limits {
    Limits { silence: Duration::from_millis(150), total: None }
}

fn read_all(mut connection: Connection) -> Vec<u8> {
    let mut answers = Vec::new();
    connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    connection.read_to_end(&mut answers).unwrap();
    answers
}

#[test]
fn a_migration_completes_and_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::new().with_images(dir.path()).unwrap().with_digest();
    let (arrival, answers) = play(Destination::new().with_memory(memory), |mut connection| {
        connection.write_all(&bytes(true)).unwrap();
        connection.shutdown_write().unwrap();
        read_all(connection)
    });
    assert!(arrival.error.is_none(), "{:?}", arrival.error);
    assert_eq!((arrival.pages, arrival.zero_pages, arrival.sections, arrival.iterations), (2, 1, 3, 1));
    assert_eq!(arrival.machine.as_deref(), Some("none"));
    assert_eq!(answers, b"\0\x02\0\x04\0\0\0\x01\0\x01\0\x04\0\0\0\0", "PONG 1, SHUT 0");
    let image = std::fs::read(dir.path().join("ram.ram")).unwrap();
    assert!(image[..4096] == PAGE && image[4096..] == [0; 4096]);
}

#[test]
fn without_return_path_nothing_is_said() {
    let (arrival, answers) = play(Destination::new(), |mut connection| {
        connection.write_all(&bytes(false)).unwrap();
        read_all(connection)
    });
    assert!(arrival.error.is_none() && !arrival.return_path);
    assert!(answers.is_empty());
}

#[test]
fn the_switchover_is_acknowledged_as_told() {
    let ack = b"\0\x07\0\0";
    let count = |acknowledge, dialect: &str| {
        let destination = Destination::new().with_acknowledge(acknowledge);
        let destination = destination.with_dialect(dialect.parse::<Dialect>().unwrap());
        let (_, answers) = play(destination, |mut connection| {
            connection.write_all(&bytes(true)).unwrap();
            read_all(connection)
        });
        answers.windows(4).filter(|w| w == ack).count()
    };
    assert_eq!(count(Acknowledge::Never, "10.0"), 0);
    assert_eq!(count(Acknowledge::Auto, "7.2"), 0);
    assert_eq!(count(Acknowledge::Auto, "10.0"), 1);
    assert_eq!(count(Acknowledge::Auto, "11.1"), 0);
    assert_eq!(count(Acknowledge::Auto, "11.1-on-5.2"), 1);
    assert_eq!(count(Acknowledge::Times(3), "any"), 3);
}

#[test]
fn a_cut_at_every_byte_is_an_error_and_loses_nothing() {
    let whole = bytes(true);
    let limit = Limits { silence: Duration::from_secs(5), total: None };
    // Behind EOF a destination must do without the description, as a stock one does.
    let eof = whole.len() - 6;
    for cut in (0..whole.len()).filter(|cut| cut % 97 == 0 || *cut < 140 || *cut > whole.len() - 60) {
        let part = whole[..cut].to_vec();
        let (arrival, answers) = play(Destination::new().with_limits(limit), move |mut connection| {
            connection.write_all(&part).unwrap();
            connection.shutdown_write().unwrap();
            read_all(connection)
        });
        match arrival.error {
            None => assert_eq!(cut, eof + 1),
            Some(error) => {
                assert_eq!(error.kind(), ErrorKind::Truncated, "{cut}: {error}");
                assert_eq!(error.offset(), Some(cut as u64), "{error}");
                assert!(arrival.bytes <= cut as u64);
                if arrival.return_path {
                    assert!(
                        answers.ends_with(b"\0\x01\0\x04\0\0\0\x01"),
                        "{cut}: the source learns of it by SHUT 1"
                    );
                }
            }
        }
    }
}

#[test]
fn a_silent_source_is_a_timeout() {
    let begin = Instant::now();
    let (arrival, ()) = play(Destination::new().with_limits(impatient()), |connection| {
        thread::sleep(Duration::from_millis(400));
        drop(connection);
    });
    let error = arrival.error.unwrap();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Timeout, Some(0)));
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_trickle_is_silence() {
    let (arrival, ()) = play(Destination::new().with_limits(impatient()), |mut connection| {
        for byte in bytes(false) {
            if connection.write_all(&[byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(30));
        }
    });
    assert_eq!(arrival.error.unwrap().kind(), ErrorKind::Timeout);
    assert!(arrival.bytes <= 8, "{}", arrival.bytes);
}

#[test]
fn the_deadline_ends_a_migration_that_never_stops() {
    let limits = Limits { silence: Duration::from_secs(9), total: Some(Duration::from_millis(200)) };
    let (arrival, ()) = play(Destination::new().with_limits(limits), |mut connection| {
        let _ = connection.write_all(&bytes(false)[..17]);
        let ping = b"\x08\0\x02\0\x04\0\0\0\x01";
        while connection.write_all(ping).is_ok() {
            thread::sleep(Duration::from_millis(5));
        }
    });
    let error = arrival.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.message().contains("longer"), "{error}");
}

#[test]
fn an_error_in_the_stream_is_told_to_the_source() {
    let (arrival, answers) = play(Destination::new(), |mut connection| {
        let mut stream = bytes(true);
        stream[31] = 0x42;
        connection.write_all(&stream).unwrap();
        read_all(connection)
    });
    let error = arrival.error.unwrap();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Malformed, Some(31)), "{error}");
    assert!(answers.ends_with(b"\0\x01\0\x04\0\0\0\x01"));
}
