//! The stand-in destination and its multifd channels against scripted sources: what a source may do wrong, and what is kept.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use migwire::dialect::Dialect;
use migwire::endpoint::{Arrival, Destination, Expected, Limits};
use migwire::guest::Memory;
use migwire::multifd::{Framer, SyncMode};
use migwire::stream::{Emitter, Event};
use migwire::transport::{self, Address, Connection, Listener};
use migwire::wire::{
    Command, Configuration, DescriptionHead, FileHeader, Method, MultifdHello, PageWord, RamBlock, RamFlags,
    SectionFooter, SectionHead, SectionIdentity, SectionKind, Wire as _,
};
use migwire::{ChannelId, ErrorKind};

const PAGE: u64 = 4096;
const PAGES: u64 = 64;

/// A source by hand: the main channel, and multifd channels as they are opened.
struct Script {
    address: Address,
    main: Connection,
    emitter: Emitter,
    channels: Vec<Connection>,
    framers: Vec<Framer>,
    number: u64,
}

impl Script {
    /// Writes the header, so that the main channel is known as such.
    fn begin(address: &Address) -> Self {
        let mut script = Self {
            address: address.clone(),
            main: transport::connect(address, Duration::from_secs(5)).unwrap(),
            emitter: Emitter::strict(),
            channels: Vec::new(),
            framers: Vec::new(),
            number: 0,
        };
        script.say(&[
            Event::Header(FileHeader::CURRENT),
            Event::Configuration(Configuration { machine: "none".into() }),
        ]);
        script
    }

    fn say(&mut self, events: &[Event<'_>]) {
        let mut bytes = Vec::new();
        for event in events {
            self.emitter.emit(event, &mut bytes).unwrap();
        }
        // Whether the destination still listens is what many a test is about.
        let _ = self.main.write_all(&bytes);
    }

    fn open(&self) -> Connection {
        transport::connect(&self.address, Duration::from_secs(5)).unwrap()
    }

    /// Opens a channel with this hello.
    fn join(&mut self, hello: MultifdHello) -> usize {
        let mut bytes = Vec::new();
        hello.emit(&mut bytes);
        let connection = self.open();
        let mut writer = &connection;
        writer.write_all(&bytes).unwrap();
        self.channels.push(connection);
        self.framers.push(Framer::new(Dialect::ANY, PAGE));
        self.channels.len() - 1
    }

    fn joined(&mut self, count: u8) {
        for id in 0..count {
            self.join(MultifdHello::new(id, [0; 16]));
        }
    }

    fn put(&mut self, channel: usize, bytes: &[u8]) {
        let _ = self.channels[channel].write_all(bytes);
    }

    fn sync(&mut self, channel: usize) {
        let bytes = self.framers[channel].sync(self.number).to_vec();
        self.number += 1;
        self.put(channel, &bytes);
    }

    /// A packet with these pages, each filled with its number.
    fn pages(&mut self, channel: usize, pages: &[u64], zero: &[u64]) {
        let offsets: Vec<u64> = pages.iter().map(|page| page * PAGE).collect();
        let zero: Vec<u64> = zero.iter().map(|page| page * PAGE).collect();
        let size = (offsets.len() as u64 * PAGE) as u32;
        let head =
            self.framers[channel].pages(b"ram", &offsets, &zero, Method::NONE, size, self.number).to_vec();
        self.number += 1;
        self.put(channel, &head);
        for page in pages {
            self.put(channel, &[*page as u8; PAGE as usize]);
        }
    }

    fn start(&mut self) {
        let ram = SectionIdentity { idstr: "ram".into(), instance_id: 0, version_id: 4 };
        let head = SectionHead { kind: SectionKind::START, section_id: 1, identity: Some(ram) };
        self.say(&[
            Event::Section(head),
            Event::RamWord(PageWord::new(PAGES * PAGE, RamFlags::MEM_SIZE)),
            Event::RamBlock(RamBlock::new("ram".into(), PAGES * PAGE)),
        ]);
    }

    fn part(&mut self, kind: SectionKind) {
        self.say(&[Event::Section(SectionHead { kind, section_id: 1, identity: None })]);
    }

    fn flush(&mut self) {
        self.say(&[Event::RamWord(PageWord::new(0, RamFlags::MULTIFD_FLUSH))]);
    }

    fn eos(&mut self) {
        let footer = Event::Footer(SectionFooter { section_id: 1 });
        self.say(&[Event::RamWord(PageWord::new(0, RamFlags::EOS)), footer]);
    }

    fn end(&mut self) {
        self.say(&[Event::Eof, Event::Description(DescriptionHead { length: 0 })]);
    }

    /// START with its synchronisation, on `count` channels.
    fn set_up(address: &Address, count: u8) -> Self {
        let mut script = Self::begin(address);
        script.joined(count);
        (0..count.into()).for_each(|channel| script.sync(channel));
        script.start();
        script.flush();
        script.eos();
        script
    }

    /// PART and END with a synchronisation in each, EOF.
    fn complete(&mut self) {
        for kind in [SectionKind::PART, SectionKind::END] {
            (0..self.channels.len()).for_each(|channel| self.sync(channel));
            self.part(kind);
            self.flush();
            self.eos();
        }
        self.end();
    }
}

/// Runs `destination` against a scripted source. The source's connections stay open until the destination is done.
fn play(
    destination: Destination,
    source: impl FnOnce(&Address) -> Vec<Connection> + Send + 'static,
) -> Arrival {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_address().clone();
    let source = thread::spawn(move || source(&address));
    let arrival = destination.listen(&listener, |_| {}).unwrap();
    drop(source.join().unwrap());
    arrival
}

fn scripted(destination: Destination, script: impl FnOnce(&Address) -> Script + Send + 'static) -> Arrival {
    let source = move |address: &Address| {
        let Script { main, mut channels, .. } = script(address);
        channels.push(main);
        channels
    };
    play(destination, source)
}

fn impatient() -> Destination {
    Destination::new().with_limits(Limits { silence: Duration::from_millis(400), total: None })
}

fn digested() -> Destination {
    impatient().with_memory(Memory::new().with_digest())
}

#[test]
fn pages_of_all_channels_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let destination = impatient().with_memory(Memory::new().with_images(dir.path()).unwrap());
    let arrival = scripted(destination, |address| {
        let mut script = Script::set_up(address, 3);
        script.pages(0, &[1, 2], &[]);
        script.pages(2, &[3], &[4]);
        script.pages(1, &[63], &[]);
        script.complete();
        script
    });
    assert!(arrival.error.is_none(), "{:?}", arrival.error);
    assert_eq!((arrival.pages, arrival.zero_pages, arrival.synchronisations), (5, 1, 3));
    assert_eq!((arrival.sync_mode, arrival.method), (Some(SyncMode::PerRound), Some(Method::NONE)));
    let packets: Vec<_> = arrival.channels.values().map(|channel| (channel.packets, channel.syncs)).collect();
    assert_eq!(packets, [(4, 3); 3]);
    let image = std::fs::read(dir.path().join("ram.ram")).unwrap();
    let expected: Vec<u8> = (0..PAGES as u8)
        .flat_map(|page| [if matches!(page, 1..=3 | 63) { page } else { 0 }; PAGE as usize])
        .collect();
    assert!(image == expected);
}

#[test]
fn the_order_of_rounds_decides_which_page_stays() {
    let arrival = scripted(digested(), |address| {
        let mut script = Script::set_up(address, 2);
        script.pages(0, &[5], &[]);
        script.sync(0);
        // Quicker than channel 1, and held until that has come as far.
        script.pages(0, &[], &[5]);
        script.sync(0);
        thread::sleep(Duration::from_millis(50));
        script.sync(1);
        script.part(SectionKind::PART);
        script.flush();
        script.eos();
        script.sync(1);
        script.part(SectionKind::END);
        script.flush();
        script.eos();
        script.end();
        script
    });
    assert!(arrival.error.is_none(), "{:?}", arrival.error);
    let empty = migwire::guest::BlockDigest::new(PAGES * PAGE, PAGE);
    assert_eq!(arrival.memory.blocks()[0].digest().unwrap().value(), empty.value());
}

#[test]
fn channels_may_come_before_the_main_one_and_leave_at_any_packet() {
    let arrival = scripted(impatient().with_channels(Expected::Exactly(2)), |address| {
        let mut script = Script::begin(address);
        // A main channel that only connects says nothing for a while.
        script.join(MultifdHello::new(1, [7; 16]));
        thread::sleep(Duration::from_millis(30));
        script.join(MultifdHello::new(0, [7; 16]));
        (0..2).for_each(|channel| script.sync(channel));
        script.start();
        script.eos();
        script.pages(1, &[9], &[]);
        for kind in [SectionKind::PART, SectionKind::END] {
            (0..2).for_each(|channel| script.sync(channel));
            script.part(kind);
            script.eos();
        }
        script.channels.iter().for_each(|channel| channel.shutdown_write().unwrap());
        script.end();
        script
    });
    assert!(arrival.error.is_none(), "{:?}", arrival.error);
    assert_eq!((arrival.sync_mode, arrival.synchronisations), (Some(SyncMode::PerSection), 3));
}

#[test]
fn a_trailing_sync_that_nobody_answers_is_harmless() {
    let arrival = scripted(impatient(), |address| {
        let mut script = Script::set_up(address, 2);
        script.pages(0, &[1], &[]);
        (0..2).for_each(|channel| script.sync(channel));
        script.part(SectionKind::PART);
        script.flush();
        script.eos();
        (0..2).for_each(|channel| script.sync(channel));
        script.part(SectionKind::END);
        script.eos();
        script.end();
        script
    });
    assert!(arrival.error.is_none(), "{:?}", arrival.error);
    assert_eq!((arrival.synchronisations, arrival.channels[&1].syncs), (2, 3));
}

/// What goes wrong, who is to blame and what is said.
fn refused(
    destination: Destination,
    script: impl FnOnce(&Address) -> Script + Send + 'static,
) -> (ErrorKind, ChannelId, String) {
    let begin = Instant::now();
    let arrival = scripted(destination, script);
    assert!(begin.elapsed() < Duration::from_secs(5), "it took {:?}", begin.elapsed());
    let error = arrival.error.expect("something is wrong");
    (error.kind(), error.channel(), error.to_string())
}

/// A first packet behind the set-up, made from a good one by `change`.
fn packet(change: impl FnOnce(&mut Vec<u8>) + Send + 'static) -> String {
    let (.., text) = refused(impatient(), |address| {
        let mut script = Script::set_up(address, 1);
        let mut bytes = script.framers[0].pages(b"ram", &[0, PAGE], &[], Method::NONE, 8192, 1).to_vec();
        change(&mut bytes);
        script.put(0, &bytes);
        script.put(0, &[1; 8192]);
        script.complete();
        script
    });
    text
}

#[test]
fn packets_that_a_destination_refuses() {
    let be32 = |at: usize, value: u32| {
        move |packet: &mut Vec<u8>| packet[at..][..4].copy_from_slice(&value.to_be_bytes())
    };
    insta::assert_snapshot!(packet(be32(0, 0x1122_3345)), @"multifd packet: magic 0x11223345 where 0x11223344 was expected (multifd channel 0, offset 0x580)");
    insta::assert_snapshot!(packet(be32(4, 2)), @"multifd packet: packet of version 2, expected 1 (multifd channel 0, offset 0x584)");
    insta::assert_snapshot!(packet(be32(12, 129)), @"multifd packet: pages_alloc 129, a packet has room for 128 pages (multifd channel 0, offset 0x58c)");
    insta::assert_snapshot!(packet(be32(12, 12801)), @"multifd packet: pages_alloc 12801, a packet has room for 128 pages (multifd channel 0, offset 0x58c)");
    insta::assert_snapshot!(packet(be32(16, u32::MAX)), @"multifd packet: 4294967295 pages and 0 zero pages where 128 fit (multifd channel 0, offset 0x590)");
    insta::assert_snapshot!(packet(be32(32, u32::MAX)), @"multifd packet: 2 pages and 4294967295 zero pages where 128 fit (multifd channel 0, offset 0x590)");
    insta::assert_snapshot!(packet(|p| p[64] = b'x'), @r#"multifd packet: there is no RAM block "xam" (multifd channel 0, offset 0x5c0)"#);
    insta::assert_snapshot!(packet(|p| p[328] = 0x80), @r#"multifd packet: offset 0x8000000000001000 in block "ram" of 0x40000 bytes (multifd channel 0, offset 0x6c8)"#);
    insta::assert_snapshot!(packet(|p| p[320..328].copy_from_slice(&(PAGES * PAGE - 1).to_be_bytes())), @r#"multifd packet: offset 0x3ffff in block "ram" of 0x40000 bytes (multifd channel 0, offset 0x6c0)"#);
}

#[test]
fn packets_that_look_odd_and_are_taken() {
    let fine = |change: fn(&mut Vec<u8>)| {
        let arrival = scripted(impatient(), move |address| {
            let mut script = Script::set_up(address, 1);
            let mut bytes = script.framers[0].pages(b"ram", &[0, PAGE], &[], Method::NONE, 8192, 1).to_vec();
            change(&mut bytes);
            script.put(0, &bytes);
            script.put(0, &[1; 8192]);
            script.complete();
            script
        });
        assert!(arrival.error.is_none(), "{:?}", arrival.error);
    };
    fine(|packet| packet[8] = 0x80);
    fine(|packet| packet[24..32].fill(0xff));
    fine(|packet| packet[36..64].fill(0xff));
    // The number of pages counts, and not the size.
    fine(|packet| packet[20..24].fill(0xff));
    // Twice the same page.
    fine(|packet| packet.copy_within(328..336, 320));
    // A name that nobody looks up, in a packet without pages.
    let arrival = scripted(impatient(), |address| {
        let mut script = Script::set_up(address, 1);
        let mut bytes = script.framers[0].sync(1).to_vec();
        bytes[11] = 0;
        bytes[64..68].copy_from_slice(b"none");
        bytes[20..24].fill(0xff);
        script.put(0, &bytes);
        script.complete();
        script
    });
    assert!(arrival.error.is_none(), "{:?}", arrival.error);
}

#[test]
fn hellos_that_a_destination_refuses() {
    let hello = |expected, change: fn(&mut MultifdHello)| {
        let destination = impatient().with_channels(expected).with_uuid([0; 16]);
        let (_, _, text) = refused(destination, move |address| {
            let mut script = Script::begin(address);
            script.joined(1);
            let mut second = MultifdHello::new(1, [0; 16]);
            change(&mut second);
            script.join(second);
            script.start();
            script.flush();
            script.eos();
            script
        });
        text
    };
    let two = Expected::Exactly(2);
    insta::assert_snapshot!(hello(two, |h| h.version = 2), @"multifd hello: hello of version 2, expected 1 (multifd channel 0, offset 0x4)");
    insta::assert_snapshot!(hello(two, |h| h.uuid = [1; 16]), @"multifd hello: another UUID than expected, or than that of the other channels: -uuid must be the same on both ends (multifd channel 1, offset 0x8)");
    insta::assert_snapshot!(hello(two, |h| h.id = 2), @"multifd hello: channel id 2, and 2 channels are expected: multifd-channels must be the same on both ends (multifd channel 2, offset 0x18)");
    insta::assert_snapshot!(hello(two, |h| h.id = 0), @"multifd hello: a second channel with id 0 (multifd channel 0, offset 0x18)");
    let text = hello(Expected::Exactly(0), |_| ());
    assert!(text.starts_with("accepting: a multifd channel has connected, and none is expected"), "{text}");
}

#[test]
fn fewer_channels_than_expected() {
    let few = |expected, ids: &'static [u8]| {
        refused(impatient().with_channels(expected), move |address| {
            let mut script = Script::begin(address);
            for (i, id) in ids.iter().enumerate() {
                script.join(MultifdHello::new(*id, [0; 16]));
                script.sync(i);
            }
            script.start();
            script.flush();
            script.eos();
            script
        })
    };
    let (kind, _, text) = few(Expected::Exactly(4), &[0, 1]);
    assert_eq!(kind, ErrorKind::Timeout);
    insta::assert_snapshot!(text, @"multifd channels: 2 of 4 multifd channels have connected (ids [0, 1]): multifd-channels must be the same on both ends; a stock destination waits for the others for ever");
    insta::assert_snapshot!(few(Expected::Auto, &[0, 2]).2, @"multifd channels: 2 of 3 multifd channels have connected (ids [0, 2]): multifd-channels must be the same on both ends; a stock destination waits for the others for ever");
    insta::assert_snapshot!(few(Expected::Auto, &[]).2, @"multifd channels: the main channel speaks of multifd (MULTIFD_FLUSH), but no multifd channel has connected; their pages would be missing");
}

#[test]
fn synchronisations_that_cannot_come_about() {
    let (kind, _, text) = refused(impatient(), |address| {
        let mut script = Script::set_up(address, 2);
        script.sync(0);
        script.part(SectionKind::PART);
        script.flush();
        script.eos();
        script
    });
    assert_eq!(kind, ErrorKind::Timeout);
    insta::assert_snapshot!(text, @"synchronising: synchronisation 2 did not come about: no SYNC on multifd channel 1; a stock destination waits here for ever (multifd-channels must be the same on both ends, and so must multifd-flush-after-each-section)");

    let (kind, channel, text) = refused(impatient(), |address| {
        let mut script = Script::set_up(address, 2);
        script.sync(0);
        script.channels[1].shutdown_write().unwrap();
        script.part(SectionKind::PART);
        script.flush();
        script.eos();
        script
    });
    assert_eq!((kind, channel), (ErrorKind::OutOfOrder, ChannelId::Multifd(1)));
    insta::assert_snapshot!(text, @"synchronising: multifd channel 1 was closed after 1 SYNC packets, and the main channel has come to its synchronisation 2; a stock destination waits here for ever");
}

#[test]
fn a_channel_that_ends_inside_a_packet() {
    for cut in [5, 100, 1343, 1344 + 4000] {
        let (kind, channel, text) = refused(impatient(), move |address| {
            let mut script = Script::set_up(address, 2);
            let mut bytes = script.framers[1].pages(b"ram", &[0], &[], Method::NONE, 4096, 1).to_vec();
            bytes.resize(1344 + 4096, 7);
            script.put(1, &bytes[..cut]);
            script.channels[1].shutdown_write().unwrap();
            script
        });
        assert_eq!((kind, channel), (ErrorKind::Truncated, ChannelId::Multifd(1)), "{cut}: {text}");
    }
}

#[test]
fn silence_inside_a_packet_is_noticed() {
    let (kind, channel, _) = refused(impatient(), |address| {
        let mut script = Script::set_up(address, 2);
        let bytes = script.framers[1].pages(b"ram", &[0, PAGE], &[], Method::NONE, 8192, 1).to_vec();
        script.put(1, &bytes);
        script
    });
    assert_eq!(kind, ErrorKind::Timeout);
    assert!(matches!(channel, ChannelId::Multifd(1) | ChannelId::Main), "{channel}");
}

#[test]
fn pages_before_the_first_synchronisation() {
    let (kind, channel, text) = refused(impatient(), |address| {
        let mut script = Script::begin(address);
        script.joined(1);
        script.pages(0, &[1], &[]);
        script.start();
        script
    });
    assert_eq!((kind, channel), (ErrorKind::OutOfOrder, ChannelId::Multifd(0)));
    assert!(text.contains("stock destinations from 9.2 on crash"), "{text}");
}

#[test]
fn pages_behind_the_last_synchronisation() {
    let (kind, channel, text) = refused(impatient(), |address| {
        let mut script = Script::set_up(address, 2);
        (0..2).for_each(|channel| script.sync(channel));
        // Between SYNC and the marker that never comes: nobody reads them before the end.
        script.pages(1, &[1], &[]);
        script.part(SectionKind::END);
        script.eos();
        script.end();
        script
    });
    assert_eq!((kind, channel), (ErrorKind::OutOfOrder, ChannelId::Multifd(1)));
    assert!(text.contains("left to chance"), "{text}");
}

#[test]
fn another_compression_than_expected() {
    let (kind, _, text) = refused(impatient().with_compression(Method::ZSTD), |address| {
        let mut script = Script::set_up(address, 1);
        script.pages(0, &[1], &[]);
        script
    });
    assert_eq!(kind, ErrorKind::OutOfOrder);
    insta::assert_snapshot!(text, @"multifd packet: pages are encoded as NONE where ZSTD was expected (multifd-compression must be the same on both ends) (multifd channel 0, offset 0x588)");
}

#[test]
fn strangers_do_not_disturb() {
    let patient = Limits { silence: Duration::from_secs(5), total: None };
    let destination = Destination::new().with_limits(patient).with_channels(Expected::Exactly(2));
    let arrival = play(destination, |address| {
        let knock = |bytes: &[u8]| {
            let connection = transport::connect(address, Duration::from_secs(5)).unwrap();
            let mut writer = &connection;
            writer.write_all(bytes).unwrap();
            connection
        };
        // One that says nothing, one that is gone at once, one that begins and stops.
        let mut connections = vec![knock(b""), knock(b"\x11\x22")];
        drop(knock(b""));
        let mut script = Script::set_up(address, 2);
        // All channels are there when this is answered; a stock destination drops what comes now.
        script.say(&[Event::Command(Command::OpenReturnPath), Event::Command(Command::Ping(1))]);
        script.main.read_exact(&mut [0; 8]).unwrap();
        connections.push(knock(b"QEVM\0\0\0\x03"));
        connections.push(knock(b"GET / HTTP/1.1"));
        script.join(MultifdHello::new(1, [0; 16]));
        for _ in 0..400 {
            connections.push(knock(b""));
        }
        script.channels.pop();
        script.framers.pop();
        script.complete();
        connections.extend(script.channels);
        connections.push(script.main);
        connections
    });
    assert!(arrival.error.is_none(), "{:?}", arrival.error);
    assert_eq!(arrival.channels.len(), 2);
    let complaints: Vec<String> = arrival.complaints.iter().map(ToString::to_string).collect();
    assert!(complaints.iter().any(|c| c.contains("a second main channel")), "{complaints:?}");
    assert!(complaints.len() <= 64);
}

#[test]
fn tls_is_named() {
    let arrival = play(impatient(), |address| {
        let connection = transport::connect(address, Duration::from_secs(5)).unwrap();
        let mut writer = &connection;
        writer.write_all(b"\x16\x03\x01\x02\0\x01").unwrap();
        vec![connection]
    });
    let error = arrival.error.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("before the handshake"), "{error}");
}

#[test]
fn a_source_that_waits_for_shut_gets_it_when_the_channels_are_closed() {
    let answers = thread::scope(|scope| {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_address().clone();
        let source = scope.spawn(move || {
            let mut script = Script::begin(&address);
            script.say(&[Event::Command(Command::OpenReturnPath)]);
            script.joined(2);
            (0..2).for_each(|channel| script.sync(channel));
            script.start();
            script.flush();
            script.eos();
            script.complete();
            let mut answer = [0; 8];
            script.main.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            script.main.read_exact(&mut answer).unwrap();
            // Closed by then, as by a stock destination.
            let mut byte = [0; 1];
            script.channels[0].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            assert_eq!(script.channels[0].read(&mut byte).unwrap(), 0);
            answer
        });
        let arrival = impatient().listen(&listener, |_| {}).unwrap();
        assert!(arrival.error.is_none(), "{:?}", arrival.error);
        source.join().unwrap()
    });
    assert_eq!(answers, *b"\0\x01\0\x04\0\0\0\0");
}
