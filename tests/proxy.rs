//! The recording proxy between peers that behave, and between such that do not.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use migwire::ErrorKind;
use migwire::capture::{self, ChannelBytes, Direction, Reader, Recorder, RecorderOptions};
use migwire::endpoint::{Blank, Cut, Destination, Limits, Passage, Proxy, Source, Template};
use migwire::guest::{Memory, Pattern};
use migwire::transport::{self, Address, Listener};

/// A multifd channel's initial packet, of channel 3.
fn multifd() -> [u8; 64] {
    let mut packet = [0; 64];
    packet[..8].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01");
    packet[24] = 3;
    packet
}

fn patient() -> Limits {
    Limits { silence: Duration::from_secs(20), total: None }
}

/// A proxy at work: `play` is given the port to connect to and the listener behind the proxy.
fn between<T>(limits: Limits, file: &Path, play: impl FnOnce(u16, &TcpListener) -> T) -> (Passage, T) {
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let recorder = Recorder::create(file, RecorderOptions::default()).unwrap();
    let to = Address::Tcp { host: "127.0.0.1".into(), port: target.local_addr().unwrap().port() };
    let proxy = Proxy::new(to).with_limits(limits).with_recorder(recorder.clone());
    let port = port(listener.local_address());
    let proxy = thread::spawn(move || proxy.run(&listener, |_| {}));
    let result = play(port, &target);
    let passage = proxy.join().unwrap();
    recorder.finish().unwrap();
    (passage, result)
}

fn port(address: &Address) -> u16 {
    match address {
        Address::Tcp { port, .. } => *port,
        other => panic!("{other}"),
    }
}

/// The recorded channels: name, direction, bytes.
fn recorded(file: &Path) -> Vec<(String, Direction, Vec<u8>)> {
    let listing = capture::channels(File::open(file).unwrap()).unwrap();
    assert!(listing.error.is_none());
    let bytes = |channel: &capture::ChannelSummary| {
        let reader = Reader::new(File::open(file).unwrap()).unwrap();
        let mut bytes = Vec::new();
        ChannelBytes::new(reader, channel.interface, channel.direction).read_to_end(&mut bytes).unwrap();
        bytes
    };
    listing.channels.iter().map(|c| (c.name.clone(), c.direction, bytes(c))).collect()
}

fn names(passage: &Passage) -> Vec<&str> {
    passage.connections.iter().map(|c| &*c.channel).collect()
}

#[test]
fn a_whole_migration_passes_and_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("migration.pcapng");
    let inner = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let outer = Listener::bind(&Address::Unix(dir.path().join("socket"))).unwrap();
    let recorder = Recorder::create(&file, RecorderOptions::default()).unwrap();
    let proxy =
        Proxy::new(inner.local_address().clone()).with_limits(patient()).with_recorder(recorder.clone());
    let to = outer.local_address().clone();
    let proxy = thread::spawn(move || proxy.run(&outer, |_| {}));
    let destination = thread::spawn(move || {
        let connection = inner.accept(Some(Duration::from_secs(20))).unwrap().unwrap();
        Destination::new().with_memory(Memory::new().with_digest()).receive(connection, |_| {})
    });
    let template = Template::blank(&Blank::new("none", "ram", 8 << 20)).unwrap();
    let source = Source::new(template).with_pattern(None, Pattern::Mixed(1)).unwrap().with_return_path(true);
    let departure = source.send(transport::connect(&to, Duration::from_secs(20)).unwrap(), |_| {});
    let (arrival, passage) = (destination.join().unwrap(), proxy.join().unwrap());
    recorder.finish().unwrap();

    assert!(
        departure.error.is_none() && arrival.error.is_none() && passage.error.is_none(),
        "{:?}",
        passage.error
    );
    assert_eq!(names(&passage), ["main"]);
    assert_eq!((passage.connections[0].to_target, passage.connections[0].to_source), (departure.bytes, 16));
    assert_eq!(passage.bytes(), arrival.bytes + 16);
    let channels = recorded(&file);
    let found: Vec<_> =
        channels.iter().map(|(name, direction, bytes)| (&**name, *direction, bytes.len())).collect();
    let (there, back) = (Direction::ToDestination, Direction::ToSource);
    assert_eq!(found, [("main", there, departure.bytes as usize), ("main", back, 16)]);
    assert_eq!(channels[1].2, b"\0\x02\0\x04\0\0\0\x01\0\x01\0\x04\0\0\0\0");
}

#[test]
fn channels_are_told_by_their_first_bytes_however_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("migration.pcapng");
    let firsts: [&[u8]; 6] =
        [b"QEVM\0\0\0\x03", &multifd(), b"\0\0\0\0\0\0\x10\x08", b"\x08\0\x0a\0\x04\x03ram", b"QE", b""];
    let (passage, ()) = between(patient(), &file, |port, target| {
        let mut open = Vec::new();
        for first in firsts {
            let mut source = TcpStream::connect(("127.0.0.1", port)).unwrap();
            source.set_nodelay(true).unwrap();
            let mut destination = target.accept().unwrap().0;
            for byte in first {
                source.write_all(&[*byte]).unwrap();
                // Each byte arrives by itself, so the proxy has seen it by itself.
                let mut got = [0];
                destination.read_exact(&mut got).unwrap();
                assert_eq!(got, [*byte]);
            }
            open.push((source, destination));
        }
    });
    assert!(passage.error.is_none(), "{:?}", passage.error);
    let expected = ["main", "multifd-3", "preempt", "connection-3", "connection-4", "connection-5"];
    assert_eq!(names(&passage), expected);
    let mut channels = recorded(&file);
    channels.sort();
    let found: Vec<_> = channels.iter().map(|(name, _, bytes)| (&**name, &**bytes)).collect();
    let pick = |i: usize| (expected[i], firsts[i]);
    assert_eq!(found, [pick(3), pick(4), pick(0), pick(1), pick(2)]);
}

#[test]
fn half_closes_pass_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("migration.pcapng");
    for source_first in [true, false] {
        let (passage, ()) = between(patient(), &file, |port, target| {
            let source = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let destination = target.accept().unwrap().0;
            let (mut one, mut other) =
                if source_first { (source, destination) } else { (destination, source) };
            let mut got = Vec::new();
            one.write_all(b"QEVMone").unwrap();
            one.shutdown(Shutdown::Write).unwrap();
            other.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"QEVMone");
            // The other direction is still open.
            got.clear();
            other.write_all(b"QEVMother").unwrap();
            drop(other);
            one.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"QEVMother");
        });
        assert!(passage.error.is_none(), "{:?}", passage.error);
        let counts = (passage.connections[0].to_target, passage.connections[0].to_source);
        assert_eq!(counts, if source_first { (7, 9) } else { (9, 7) });
        assert_eq!(recorded(&file).len(), 2);
    }
}

#[test]
fn a_target_that_refuses_is_an_error_that_the_source_sees() {
    let dir = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let port = port(listener.local_address());
    let proxy = Proxy::new(Address::Unix(dir.path().join("nobody")));
    let proxy = thread::spawn(move || proxy.run(&listener, |_| {}));
    let mut source = TcpStream::connect(("127.0.0.1", port)).unwrap();
    source.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(matches!(source.read(&mut [0; 8]), Ok(0)));
    let passage = proxy.join().unwrap();
    let error = passage.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.message().contains("nobody"), "{error}");
    assert!(passage.connections.is_empty());
}

#[test]
fn a_reset_ends_everything_and_what_came_before_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("migration.pcapng");
    for target_resets in [true, false] {
        let begin = Instant::now();
        let (passage, ()) = between(patient(), &file, |port, target| {
            let mut source = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let mut destination = target.accept().unwrap().0;
            // Another channel, which nobody closes: the proxy has to.
            let mut idle = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let _idle = target.accept().unwrap().0;
            source.write_all(b"QEVM\0\0\0\x03").unwrap();
            destination.read_exact(&mut [0; 8]).unwrap();
            let (mut left, leaving) =
                if target_resets { (source, destination) } else { (destination, source) };
            let leaving = socket2::Socket::from(leaving);
            leaving.set_linger(Some(Duration::ZERO)).unwrap();
            drop(leaving);
            left.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let learned = left.read(&mut [0; 8]);
            assert!(
                matches!(learned, Ok(0))
                    || learned.is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock)
            );
            idle.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert!(matches!(idle.read(&mut [0; 8]), Ok(0)));
        });
        let error = passage.error.as_ref().unwrap();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.message().contains("closed the connection"), "{error}");
        // Beside a main channel, who says nothing is a preempt channel.
        assert_eq!(names(&passage), ["main", "preempt"]);
        let there = Direction::ToDestination;
        let mut channels = recorded(&file);
        channels.sort();
        let main = ("main".to_owned(), there, b"QEVM\0\0\0\x03".to_vec());
        assert_eq!(channels, [main, ("preempt".to_owned(), there, Vec::new())]);
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn silence_and_absence_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("migration.pcapng");
    let limits = Limits { silence: Duration::from_millis(200), total: None };
    let begin = Instant::now();
    let (passage, ()) = between(limits, &file, |port, target| {
        let mut source = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _destination = target.accept().unwrap().0;
        source.write_all(b"QEVM\0\0\0\x03").unwrap();
        // Both ends stay open until the proxy closes them.
        source.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(matches!(source.read(&mut [0; 8]), Ok(0)));
    });
    let error = passage.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.message().contains("nothing passed"), "{error}");
    assert!(begin.elapsed() >= Duration::from_millis(200) && begin.elapsed() < Duration::from_secs(10));

    let limits = Limits { silence: Duration::from_secs(20), total: Some(Duration::from_millis(200)) };
    let (passage, ()) = between(limits, &file, |_, _| {});
    assert_eq!(passage.error.unwrap().kind(), ErrorKind::Timeout);
    assert!(passage.connections.is_empty());
}

#[test]
fn a_blocked_target_does_not_block_the_other_connections() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("migration.pcapng");
    let (passage, ()) = between(patient(), &file, |port, target| {
        let mut stuck = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut unread = target.accept().unwrap().0;
        let writer = thread::spawn(move || stuck.write_all(&vec![1; 32 << 20]).map(|()| stuck));
        let mut other = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut read = target.accept().unwrap().0;
        for _ in 0..100 {
            other.write_all(&multifd()).unwrap();
            read.read_exact(&mut [0; 64]).unwrap();
        }
        let mut taken = vec![0; 32 << 20];
        unread.read_exact(&mut taken).unwrap();
        assert!(taken.iter().all(|b| *b == 1));
        drop(writer.join().unwrap().unwrap());
    });
    assert!(passage.error.is_none(), "{:?}", passage.error);
    assert_eq!(passage.bytes(), (32 << 20) + 6400);
    let channels = recorded(&file);
    assert_eq!(channels.iter().map(|(_, _, bytes)| bytes.len()).sum::<usize>(), (32 << 20) + 6400);
}

#[test]
fn one_way_addresses_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to, file) =
        (dir.path().join("from"), dir.path().join("to"), dir.path().join("migration.pcapng"));
    let stream = [b"QEVM\0\0\0\x03".as_slice(), &vec![7; 1 << 20]].concat();
    std::fs::write(&from, &stream).unwrap();
    let listener = Listener::bind(&Address::File { path: from, offset: 0 }).unwrap();
    let recorder = Recorder::create(&file, RecorderOptions::default()).unwrap();
    let proxy = Proxy::new(Address::File { path: to.clone(), offset: 0 }).with_recorder(recorder.clone());
    let passage = proxy.run(&listener, |_| {});
    recorder.finish().unwrap();
    assert!(passage.error.is_none(), "{:?}", passage.error);
    assert_eq!(names(&passage), ["main"]);
    assert!(std::fs::read(to).unwrap() == stream);
    assert!(recorded(&file) == [("main".to_owned(), Direction::ToDestination, stream)]);
}

#[test]
fn a_command_that_fails_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::write(&from, b"QEVM\0\0\0\x03").unwrap();
    let listener = Listener::bind(&Address::File { path: from, offset: 0 }).unwrap();
    let passage = Proxy::new(Address::Exec("cat > /dev/null; echo out of space >&2; exit 3".into()))
        .run(&listener, |_| {});
    let error = passage.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Peer);
    assert!(error.message().contains("out of space"), "{error}");
    assert_eq!(passage.connections[0].to_target, 8);
}

/// Reads until nothing comes for a while, or the end; whether it is the end.
fn read_on(connection: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    connection.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return true,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(e) => return e.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// A destination that has not executed RUN when its connection breaks cannot pause; that it has not is seen by what it does not answer.
#[test]
fn a_cut_behind_run_waits_for_the_answers_from_the_package() {
    let stream = common::small::all().into_iter().find(|(name, _)| *name == "postcopy").unwrap().1;
    let run = stream.windows(5).rposition(|bytes| bytes == b"\x08\0\x05\0\0").unwrap() + 5;
    let pong = |value: u8| [0, 2, 0, 4, 0, 0, 0, value];
    // With the cut in front of RUN, nothing is waited for: nothing could be saved.
    for (cut, end) in [(Cut::Run(0), run), (Cut::Run(3), run + 3), (Cut::Bytes(run as u64 - 1), run - 1)] {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let to = Address::Tcp { host: "127.0.0.1".into(), port: target.local_addr().unwrap().port() };
        let proxy = Proxy::new(to).with_limits(patient()).with_cuts([cut]);
        let port = port(listener.local_address());
        let proxy = thread::spawn(move || proxy.run(&listener, |_| {}));
        let mut source = TcpStream::connect(("127.0.0.1", port)).unwrap();
        source.write_all(&stream).unwrap();
        let mut destination = target.accept().unwrap().0;
        let mut arrived = Vec::new();
        let waits = end >= run;
        assert_eq!(read_on(&mut destination, &mut arrived), !waits, "{cut}");
        if waits {
            destination.write_all(&[pong(1), pong(3)].concat()).unwrap();
            assert!(!read_on(&mut destination, &mut arrived), "{cut}: one has not come");
            destination.write_all(&pong(0x42)).unwrap();
            let begin = Instant::now();
            while !read_on(&mut destination, &mut arrived) {
                assert!(begin.elapsed() < Duration::from_secs(3), "{cut}");
            }
            let mut answers = Vec::new();
            read_on(&mut source, &mut answers);
            assert!(answers.starts_with(&[pong(1), pong(3), pong(0x42)].concat()), "{cut}: {answers:x?}");
        }
        assert!(arrived == stream[..end], "{cut}: {} bytes", arrived.len());
        let passage = proxy.join().unwrap();
        assert_eq!((passage.pauses, passage.connections[0].to_target), (1, end as u64), "{cut}");
    }
}
