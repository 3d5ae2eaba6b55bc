//! Channels that are refused, that stall, and that end.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use migwire::endpoint::{Departure, Limits, Misconduct, Multifd, Source};
use migwire::transport::{Connection, memory};
use migwire::wire::Method;
use migwire::{ChannelId, Error, ErrorKind};

use super::{patient, source};

const SHUT_FAILED: &[u8] = b"\0\x01\0\x04\0\0\0\x01";

/// Runs `source` with `attend` as a thread for each connection: number 0 is the main channel.
fn play(source: Source, attend: impl Fn(usize, Connection) + Clone + Send + 'static) -> Departure {
    let (ours, theirs) = memory::pair();
    let mut threads = Vec::new();
    let mut number = 0;
    let mut start = |theirs| {
        let attend = attend.clone();
        let me = number;
        number += 1;
        threads.push(thread::spawn(move || attend(me, theirs)));
    };
    start(theirs);
    let connect = |_| {
        let (ours, theirs) = memory::pair();
        start(theirs);
        Ok(ours)
    };
    let departure = source.send_over(ours, connect, |_| {});
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    departure
}

fn drain(mut connection: Connection) {
    let mut some = [0; 4096];
    while matches!(connection.read(&mut some), Ok(1..)) {}
}

#[test]
fn a_channel_that_is_refused_is_named() {
    let (ours, _theirs) = memory::pair();
    let mut open = Vec::new();
    let connect = |number| match number {
        ChannelId::Multifd(0) => {
            let (ours, theirs) = memory::pair();
            open.push(theirs);
            Ok(ours)
        }
        _ => Err(Error::nowhere(ErrorKind::Io, "connecting", "connection refused")),
    };
    let departure = source(Multifd::new(3)).send_over(ours, connect, |_| {});
    let error = departure.error.unwrap();
    assert_eq!((error.kind(), error.channel()), (ErrorKind::Io, ChannelId::Multifd(1)), "{error}");
    assert_eq!(departure.channels.len(), 1);
}

#[test]
fn one_connection_is_not_enough() {
    let (ours, _theirs) = memory::pair();
    let error = source(Multifd::new(1)).send(ours, |_| {}).error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Misuse, "{error}");
}

#[test]
fn a_channel_that_ends_is_named_wherever_it_does() {
    for return_path in [true, false] {
        for cut in [0, 10, 64, 64 + 1344, 64 + 2000, 64 + 1344 + 200_000] {
            let source = source(Multifd::new(3)).with_return_path(return_path).with_rounds(3);
            let departure = play(source, move |number, connection| {
                if number == 2 {
                    let mut read = Vec::new();
                    (&connection).take(cut).read_to_end(&mut read).unwrap();
                } else {
                    drain(connection);
                }
            });
            let error = departure.error.unwrap();
            let place = (error.kind(), error.channel());
            assert_eq!(place, (ErrorKind::Io, ChannelId::Multifd(1)), "{return_path} {cut}: {error}");
            let sent = departure.channels.iter().find(|channel| channel.id == 1).unwrap().bytes;
            assert_eq!(error.offset(), Some(sent));
            assert!(sent >= cut, "{cut}: {sent}");
        }
    }
}

#[test]
fn a_channel_that_takes_nothing_is_given_up() {
    let limits = Limits { silence: Duration::from_millis(300), total: None };
    let (held, hold) = std::sync::mpsc::channel();
    let source = source(Multifd { method: Method::NONE, ..Multifd::new(2) }).with_limits(limits);
    let departure = play(source.with_rounds(50), move |number, connection| match number {
        // Kept open until everything is over.
        1 => held.send(connection).unwrap(),
        _ => drain(connection),
    });
    let error = departure.error.unwrap();
    assert_eq!((error.kind(), error.channel()), (ErrorKind::Timeout, ChannelId::Multifd(0)), "{error}");
    assert!(error.message().contains("took nothing"), "{error}");
    drop(hold);
}

#[test]
fn everything_together_has_a_limit() {
    let limits = Limits { silence: Duration::from_secs(20), total: Some(Duration::from_millis(300)) };
    let begin = Instant::now();
    let departure =
        play(source(Multifd::new(2)).with_limits(limits).with_rounds(1000), |_, mut connection| {
            let mut some = [0; 4096];
            while matches!(connection.read(&mut some), Ok(1..)) {
                thread::sleep(Duration::from_millis(5));
            }
        });
    let error = departure.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.message().contains("longer than it may"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_the_destination_says_frees_channels_that_are_stuck() {
    let begin = Instant::now();
    let (held, hold) = std::sync::mpsc::channel();
    let departure = play(
        source(Multifd::new(2)).with_return_path(true).with_rounds(50).with_limits(patient()),
        move |number, mut connection| match number {
            0 => {
                let mut first = [0; 60];
                connection.read_exact(&mut first).unwrap();
                // The channels are full by now, or soon will be.
                connection.write_all(SHUT_FAILED).unwrap();
                drain(connection);
            }
            _ => held.send(connection).unwrap(),
        },
    );
    let error = departure.error.unwrap();
    assert_eq!((error.kind(), departure.peer_status), (ErrorKind::Peer, Some(1)), "{error}");
    assert_eq!(error.channel(), ChannelId::ReturnPath);
    assert!(begin.elapsed() < Duration::from_secs(10));
    drop(hold);
}

#[test]
fn a_destination_that_is_gone_is_one_error() {
    let departure = play(source(Multifd::new(2)).with_rounds(20), |number, connection| {
        let mut read = Vec::new();
        (&connection).take(if number == 0 { 100 } else { 100_000 }).read_to_end(&mut read).unwrap();
    });
    let error = departure.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_eq!(departure.channels.len(), 2);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_sent() {
    let refused = |source: Source| {
        let error = source.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misuse, "{error}");
        error.message().to_owned()
    };
    assert!(refused(source(Multifd::new(2)).with_xbzrle(1 << 20)).contains("XBZRLE"));
    let rule = [Misconduct::BadMagic];
    assert!(refused(source(Multifd::new(0)).with_misconduct(rule)).contains("there are none"));
    assert!(refused(source(Multifd::new(1)).with_misconduct([Misconduct::DuplicateId])).contains("two"));
    assert!(
        refused(source(Multifd::new(255)).with_misconduct([Misconduct::MoreChannels]))
            .contains("no more than")
    );
    let old = source(Multifd::new(2)).with_dialect("7.2".parse().unwrap());
    assert!(refused(old.with_misconduct([Misconduct::NoFlush])).contains("7.2"));
    assert!(source(Multifd::new(255)).check().is_ok());
    let level = Multifd { method: Method::ZLIB, level: Some(10), ..Multifd::new(1) };
    assert!(refused(source(level)).contains("levels"));
    let unknown = Multifd { method: Method(0x3e), ..Multifd::new(1) };
    assert_eq!(source(unknown).check().unwrap_err().kind(), ErrorKind::Unsupported);
}
