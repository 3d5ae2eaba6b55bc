//! Captures of made-up migrations, whole and damaged.

use std::collections::BTreeMap;

use super::*;
use crate::capture::{Direction, LinkType};
use crate::tcp::{ChannelReport, Conversation, MigrationReport, Piece};

use Direction::{ToDestination, ToSource};

const MAIN: &[u8] = b"QEVM\0\0\0\x03 the main channel";
const BACK: &[u8] = b"\0\x02\0\x04\0\0\0\0";

/// What came out: the bytes of every interface and direction of every migration.
#[derive(Debug, Default)]
struct Seen {
    runs: BTreeMap<(usize, String, Direction), Vec<u8>>,
    times: Vec<Timestamp>,
    ended: Vec<usize>,
}

impl Output for Seen {
    fn piece(&mut self, piece: &Piece<'_>) -> Result<()> {
        assert!(!piece.data.is_empty());
        assert!(!self.ended.contains(&piece.migration), "bytes behind the end");
        let run = self.runs.entry((piece.migration, piece.name(), piece.direction)).or_default();
        run.extend_from_slice(piece.data);
        self.times.push(piece.time);
        Ok(())
    }

    fn end(&mut self, migration: usize) -> Result<()> {
        self.ended.push(migration);
        Ok(())
    }
}

impl Seen {
    fn run(&self, migration: usize, name: &str, direction: Direction) -> &[u8] {
        self.runs.get(&(migration, name.to_owned(), direction)).map_or(b"", |run| run)
    }

    fn names(&self) -> Vec<String> {
        self.runs
            .keys()
            .map(|(migration, name, direction)| format!("{migration} {name} {direction}"))
            .collect()
    }
}

/// A capture under construction.
#[derive(Clone, Default)]
struct Capture {
    packets: Vec<Vec<u8>>,
}

impl Capture {
    fn add(&mut self, make: impl FnOnce(crate::tcp::Emit<'_>) -> Result<()>) {
        let packets = &mut self.packets;
        make(&mut |head, data| {
            packets.push([head, data].concat());
            Ok(())
        })
        .unwrap();
    }

    /// A connection from that port, with what both sides say, to the end.
    fn connection(&mut self, port: u16, forth: &[u8], back: &[u8]) {
        let mut made = conversation(port);
        self.add(|emit| made.open(emit));
        self.add(|emit| made.say(ToDestination, forth, emit));
        self.add(|emit| made.say(ToSource, back, emit));
        self.add(|emit| made.close(emit));
    }

    fn import(&self) -> (Seen, Report) {
        self.import_with(Selection::default())
    }

    fn import_with(&self, selection: Selection) -> (Seen, Report) {
        let mut seen = Seen::default();
        let mut traffic = Traffic::new(selection);
        for (number, packet) in self.packets.iter().enumerate() {
            let time = Timestamp(1000 * number as u64);
            let frame = Frame { link: LinkType(1), time, data: packet, length: packet.len() };
            traffic.handle_frame(&frame, &mut seen).unwrap();
        }
        let report = traffic.finish(&mut seen).unwrap();
        assert_eq!(report.packets, self.packets.len() as u64);
        assert_eq!(seen.ended.len(), report.migrations.len());
        (seen, report)
    }
}

fn conversation(port: u16) -> Conversation {
    let ends = [([192, 0, 2, 1], port).into(), ([192, 0, 2, 2], 4444).into()];
    Conversation::new(ends[0], ends[1], [u32::from(port) * 77_777, 5]).with_segments(10)
}

fn hello(id: u8) -> Vec<u8> {
    let mut hello = vec![0; 64];
    hello[..8].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01");
    hello[24] = id;
    hello
}

fn channels(report: &Report, migration: usize) -> Vec<&ChannelReport> {
    report.migrations[migration].channels.iter().flatten().collect()
}

#[test]
fn a_whole_migration() {
    let mut capture = Capture::default();
    let mut main = conversation(1000);
    capture.add(|emit| main.open(emit));
    // The hello of a channel may be there before the header.
    capture.connection(1001, &hello(3), b"");
    capture.add(|emit| main.say(ToDestination, MAIN, emit));
    capture.add(|emit| main.say(ToSource, BACK, emit));
    capture.connection(1002, b"\0\0\0\0\0\0\x10\x08 a page", b"");
    capture.add(|emit| main.close(emit));
    let (seen, report) = capture.import();
    assert_eq!(
        seen.names(),
        [
            "0 main to destination",
            "0 main to source",
            "0 multifd-3 to destination",
            "0 preempt to destination"
        ]
    );
    assert_eq!(seen.run(0, "main", ToDestination), MAIN);
    assert_eq!(seen.run(0, "main", ToSource), BACK);
    assert_eq!(seen.run(0, "multifd-3", ToDestination), hello(3));
    assert!(seen.times.is_sorted());
    assert_eq!((report.ignored, report.unread), (0, [0; 5]));
    let [migration] = &report.migrations[..] else { panic!("{report:?}") };
    assert!(migration.is_complete(), "{migration:?}");
    assert_eq!(
        (migration.source.to_string(), migration.destination.to_string()),
        ("192.0.2.1:1000".into(), "192.0.2.2:4444".into())
    );
    let found: Vec<_> =
        channels(&report, 0).iter().map(|c| (c.channel, c.to_destination, c.to_source)).collect();
    let expected = [
        (crate::ChannelId::Main, MAIN.len() as u64, 8),
        (crate::ChannelId::Multifd(3), 64, 0),
        (crate::ChannelId::Preempt, 15, 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_migration_that_pauses() {
    let mut capture = Capture::default();
    capture.connection(1000, MAIN, BACK);
    capture.connection(1001, b"\x08\0\x03\0\x04\0\0\0\x01", b"\0\x06\0\x04\0\0\0\x01");
    let mut again = conversation(1002);
    capture.add(|emit| again.open(emit));
    capture.add(|emit| again.say(ToDestination, b"\x08\0\x03\0\x04\0\0\0\x02", emit));
    capture.connection(1003, b"\0\0\0\0\0\0\x20\x08 a page", b"");
    capture.add(|emit| again.close(emit));
    // Behind the end, nothing belongs to it but what takes it up again.
    capture.connection(1004, b"something else", b"");
    let (seen, report) = capture.import();
    let names = ["main", "main", "resumed-1", "resumed-1", "resumed-2", "resumed-2-preempt"];
    let ways = [
        " to destination",
        " to source",
        " to destination",
        " to source",
        " to destination",
        " to destination",
    ];
    let expected: Vec<_> = names.iter().zip(ways).map(|(name, way)| format!("0 {name}{way}")).collect();
    assert_eq!(seen.names(), expected);
    assert_eq!((report.ignored, report.migrations.len()), (1, 1));
}

#[test]
fn several_migrations_one_after_the_other() {
    let mut capture = Capture::default();
    for port in [1000, 1000, 3000] {
        capture.connection(port, MAIN, BACK);
        let mut main = conversation(port + 1);
        capture.add(|emit| main.open(emit));
        capture.add(|emit| main.say(ToDestination, MAIN, emit));
        capture.connection(port + 2, &hello(0), b"");
        capture.add(|emit| main.close(emit));
    }
    let (seen, report) = capture.import();
    assert_eq!(report.migrations.len(), 6);
    assert!(report.migrations.iter().all(MigrationReport::is_complete), "{report:?}");
    for number in 0..6 {
        assert_eq!(seen.run(number, "main", ToDestination), MAIN);
        let expected: &[u8] = if number % 2 == 1 { &hello(0) } else { b"" };
        assert_eq!(seen.run(number, "multifd-0", ToDestination), expected);
    }
    assert_eq!(seen.ended, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_port_is_used_again() {
    let mut capture = Capture::default();
    for round in 0..3 {
        let mut main = conversation(1000).with_numbers([1000 * round, 5000 * round]);
        capture.add(|emit| main.open(emit));
        capture.add(|emit| main.say(ToDestination, MAIN, emit));
        capture.add(|emit| main.say(ToDestination, &[round as u8; 30], emit));
        if round != 1 {
            capture.add(|emit| main.close(emit));
        }
    }
    let (seen, report) = capture.import();
    assert_eq!((report.migrations.len(), report.ignored), (3, 0));
    let complete: Vec<_> = report.migrations.iter().map(MigrationReport::is_complete).collect();
    assert_eq!(complete, [true, false, true]);
    for round in 0..3 {
        assert_eq!(seen.run(round, "main", ToDestination), [MAIN, &[round as u8; 30]].concat());
    }
}

#[test]
fn traffic_that_is_none_is_ignored() {
    let mut capture = Capture::default();
    capture.connection(999, b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n");
    capture.connection(998, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"");
    capture.connection(997, b"", b"");
    capture.packets.push(b"\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\x08\x06 arp".to_vec());
    capture.packets.push(b"short".to_vec());
    let (seen, report) = capture.import();
    assert!(seen.runs.is_empty() && report.migrations.is_empty());
    assert_eq!((report.ignored, report.encrypted, report.unread), (3, 1, [1, 0, 1, 0, 0]));
    // Nor do they become part of a migration that comes later.
    capture.connection(1000, MAIN, BACK);
    let (seen, report) = capture.import();
    assert_eq!(seen.names(), ["0 main to destination", "0 main to source"]);
    assert_eq!(report.ignored, 3);
}

#[test]
fn one_that_had_begun_before_its_migration_was_seen_joins_it() {
    let mut capture = Capture::default();
    let mut other = conversation(999);
    capture.add(|emit| other.open(emit));
    capture.add(|emit| other.say(ToDestination, b"what is this?", emit));
    capture.connection(1000, MAIN, BACK);
    capture.add(|emit| other.say(ToDestination, b" nobody knows", emit));
    capture.add(|emit| other.close(emit));
    let (seen, report) = capture.import();
    assert_eq!(seen.run(0, "preempt", ToDestination), b"what is this? nobody knows");
    assert_eq!(report.ignored, 0);
}

#[test]
fn lost_reordered_and_repeated_packets() {
    let stream: Vec<u8> = MAIN.iter().copied().chain((0..200).map(|i| i as u8)).collect();
    let mut whole = Capture::default();
    whole.connection(1000, &stream, BACK);
    // Three packets are the handshake; every third from then on is an acknowledgement.
    let mut capture = whole.clone();
    capture.packets.swap(6, 7);
    capture.packets.insert(12, whole.packets[9].clone());
    let (seen, report) = capture.import();
    assert_eq!(seen.run(0, "main", ToDestination), stream);
    let [main] = channels(&report, 0)[..] else { panic!() };
    assert!(main.is_complete());
    assert_eq!((main.counts.retransmitted, main.counts.out_of_order), (1, 1));

    let mut capture = whole.clone();
    capture.packets.remove(7);
    let (seen, report) = capture.import();
    let [main] = channels(&report, 0)[..] else { panic!() };
    assert!(!main.is_complete());
    assert_eq!(main.missing.len(), 1);
    let lost = main.missing[0].bytes.clone();
    assert_eq!((main.missing[0].direction, lost.end - lost.start), (ToDestination, 10));
    let (from, to) = (lost.start as usize, lost.end as usize);
    assert_eq!(seen.run(0, "main", ToDestination), &stream[..from]);
    assert_eq!(seen.run(0, &format!("main+{to:#x}"), ToDestination), &stream[to..]);
    assert_eq!(main.to_destination, stream.len() as u64 - 10);
}

#[test]
fn the_first_and_the_last_bytes_are_lost() {
    let mut whole = Capture::default();
    whole.connection(1000, MAIN, BACK);
    let mut capture = whole.clone();
    let last = capture.packets.iter().rposition(|packet| packet.ends_with(b"annel")).unwrap();
    capture.packets.remove(last);
    let (_, report) = capture.import();
    let main = channels(&report, 0)[0];
    assert_eq!(main.missing[0].bytes, 20..MAIN.len() as u64);

    let mut capture = whole.clone();
    let mut multifd = conversation(1001);
    capture.packets.insert(3, Vec::new());
    capture.packets.remove(3);
    capture.add(|emit| multifd.open(emit));
    capture.packets.remove(3);
    let (seen, report) = capture.import();
    assert!(seen.runs.is_empty() && report.migrations.is_empty(), "nothing says what it was");
    let selection = Selection { from: None, to: Some(":4444".parse().unwrap()) };
    let (seen, report) = capture.import_with(selection);
    assert_eq!(seen.run(0, "connection-1+0xa", ToDestination), &MAIN[10..]);
    let found = channels(&report, 0)[0];
    assert_eq!(found.missing[0].bytes, 0..10);
    assert!(!report.migrations[0].is_complete());
}

#[test]
fn a_capture_that_begins_late() {
    let mut whole = Capture::default();
    whole.connection(1000, MAIN, BACK);
    // Only the handshake is missing: the magic number tells.
    let mut capture = Capture { packets: whole.packets[3..].to_vec() };
    let (seen, report) = capture.import();
    assert_eq!(seen.run(0, "main", ToDestination), MAIN);
    assert!(report.migrations[0].is_complete(), "{report:?}");
    // One packet later, only who asks gets it.
    capture.packets.remove(0);
    assert!(capture.import().1.migrations.is_empty());
    let selection = Selection { from: None, to: Some("192.0.2.2:4444".parse().unwrap()) };
    let (seen, report) = capture.import_with(selection);
    assert_eq!(seen.run(0, "connection-1", ToDestination), &MAIN[10..]);
    assert_eq!(seen.run(0, "connection-1", ToSource), BACK);
    assert!(channels(&report, 0)[0].mid_stream);
    let elsewhere = Selection { from: None, to: Some(":4445".parse().unwrap()) };
    assert!(capture.import_with(elsewhere).1.migrations.is_empty());
}

#[test]
fn one_direction_only() {
    let mut whole = Capture::default();
    whole.connection(1000, MAIN, BACK);
    let from_source = |packet: &&Vec<u8>| packet[29] == 1;
    let capture = Capture { packets: whole.packets.iter().filter(from_source).cloned().collect() };
    let (seen, report) = capture.import();
    assert_eq!(seen.run(0, "main", ToDestination), MAIN);
    let main = channels(&report, 0)[0];
    assert!(main.one_way && main.closed && !main.mid_stream);
    // What was acknowledged is known to have been there.
    assert_eq!(main.missing[0].direction, ToSource);
    assert_eq!(main.missing[0].bytes.end, BACK.len() as u64);

    let capture = Capture { packets: whole.packets.iter().filter(|p| !from_source(p)).cloned().collect() };
    assert!(capture.import().1.migrations.is_empty());
}

#[test]
fn a_capture_that_ends_early() {
    let mut capture = Capture::default();
    capture.connection(1000, MAIN, BACK);
    let end = capture.packets.len() - 3;
    capture.packets.truncate(end);
    let (seen, report) = capture.import();
    assert_eq!(seen.run(0, "main", ToDestination), MAIN);
    let main = channels(&report, 0)[0];
    assert!(!main.closed && main.missing.is_empty() && !main.is_complete());
}

#[test]
fn the_destination_opens_the_connection() {
    let mut capture = Capture::default();
    let mut main = conversation(1000);
    capture.add(|emit| main.open(emit));
    capture.add(|emit| main.say(ToSource, MAIN, emit));
    capture.add(|emit| main.say(ToDestination, BACK, emit));
    capture.add(|emit| main.close(emit));
    let (seen, report) = capture.import();
    assert_eq!(seen.run(0, "main", ToDestination), MAIN);
    assert_eq!(seen.run(0, "main", ToSource), BACK);
    assert_eq!(report.migrations[0].destination.to_string(), "192.0.2.1:1000");
}

#[test]
fn more_connections_than_are_followed_make_room() {
    let mut capture = Capture::default();
    let mut main = conversation(1000);
    capture.add(|emit| main.open(emit));
    capture.add(|emit| main.say(ToDestination, MAIN, emit));
    for n in 0..MAX_TCP_CONNECTIONS as u32 + 10 {
        let host = [10, 1, (n >> 8) as u8, n as u8];
        let mut other = Conversation::new((host, 7).into(), ([10, 2, 0, 1], 80).into(), [n, n]);
        let mut first = true;
        capture.add(|emit| {
            other.open(&mut |head, data| if std::mem::take(&mut first) { emit(head, data) } else { Ok(()) })
        });
    }
    capture.add(|emit| main.say(ToDestination, b"goes on", emit));
    capture.add(|emit| main.close(emit));
    let (seen, report) = capture.import();
    assert!(seen.run(0, "main", ToDestination).ends_with(b"goes on"));
    assert_eq!(report.ignored, MAX_TCP_CONNECTIONS as u64 + 10);
    assert!(report.migrations[0].is_complete());
}

#[test]
fn what_waits_is_bounded() {
    let mut traffic = Traffic::default();
    let mut seen = Seen::default();
    let block = vec![0x5a; 64_000];
    let mut number = 0;
    for port in 1000..1010 {
        let mut made = conversation(port).with_segments(64_000);
        let mut feed = |head: &[u8], data: &[u8]| {
            let packet = [head, data].concat();
            let frame =
                Frame { link: LinkType(1), time: Timestamp(number), data: &packet, length: packet.len() };
            number += 1;
            traffic.handle_frame(&frame, &mut seen)?;
            assert!(traffic.held <= MAX_TCP_HELD);
            Ok(())
        };
        made.open(&mut feed).unwrap();
        made.say(ToDestination, &hello(port as u8), &mut feed).unwrap();
        made.skip(ToDestination, 1);
        // Its acknowledgements would tell at once that it is lost.
        let mut silent = |head: &[u8], data: &[u8]| if data.is_empty() { Ok(()) } else { feed(head, data) };
        for _ in 0..200 {
            made.say(ToDestination, &block, &mut silent).unwrap();
        }
    }
    assert!(traffic.held > MAX_TCP_HELD / 4);
    let report = traffic.finish(&mut seen).unwrap();
    let lost: Vec<_> = channels(&report, 0).iter().map(|c| (c.to_destination, c.missing.len())).collect();
    assert_eq!(lost, [(64 + 200 * 64_000, 1); 10]);
}

#[test]
fn too_many_holes_end_a_channel() {
    use crate::limits::MAX_IMPORT_FRAGMENTS;
    let mut capture = Capture::default();
    let mut main = conversation(1000);
    capture.add(|emit| main.open(emit));
    capture.add(|emit| main.say(ToDestination, MAIN, emit));
    for _ in 0..MAX_IMPORT_FRAGMENTS + 5 {
        main.skip(ToDestination, 3);
        capture.add(|emit| main.say(ToDestination, b"x", emit));
    }
    capture.add(|emit| main.close(emit));
    let (seen, report) = capture.import();
    assert_eq!(seen.runs.len(), MAX_IMPORT_FRAGMENTS + 1);
    let main = channels(&report, 0)[0];
    let end = MAIN.len() as u64 + 4 * (MAX_IMPORT_FRAGMENTS as u64 + 5);
    assert_eq!(main.missing.last().map(|missing| missing.bytes.clone()), Some(end - 20..end));
}
