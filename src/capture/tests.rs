//! Recorder and reader against each other, against a second implementation, against Wireshark's tools, and against
//! damage.

use std::io::{self, Cursor, Read, Write};
use std::sync::{Arc, Mutex};

use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{Block, PcapBlockOwned, PcapError, PcapNGReader, ToVec};

use super::*;
use crate::limits::{MAX_CAPTURE_BLOCK, MAX_CAPTURE_INTERFACES, MAX_CAPTURE_NAME};
use crate::{Error, ErrorKind, Result};

use Direction::{ToDestination, ToSource};

/// A sink whose bytes stay reachable.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A source that delivers a few bytes at a time and is interrupted now and then.
struct Slow<'a>(&'a [u8], usize);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        if self.1.is_multiple_of(5) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = buffer.len().min(3);
        self.0.read(&mut buffer[..n])
    }
}

/// Bytes in which no two neighbouring places look the same.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

fn record(fill: impl FnOnce(&Recorder)) -> Vec<u8> {
    let sink = Shared::default();
    let recorder = Recorder::new(
        sink.clone(),
        RecorderOptions { strict: true, comment: Some("a test".into()), ..RecorderOptions::default() },
    );
    fill(&recorder);
    let summary = recorder.finish().unwrap();
    let file = std::mem::take(&mut *sink.0.lock().unwrap());
    assert_eq!(summary.file_bytes, file.len() as u64);
    file
}

fn small() -> Vec<u8> {
    record(|r| {
        let main = r.channel("main");
        main.record(ToDestination, b"QEVM\0\0\0\x03").unwrap();
        let multifd = r.channel("connection-1");
        multifd.set_name("multifd-0").unwrap();
        multifd.set_description("127.0.0.1:4444").unwrap();
        multifd.record(ToDestination, &[0x11, 0x22, 0x33, 0x44, 0]).unwrap();
        main.record(ToSource, &[0, 2, 0, 4, 0, 0, 0, 0]).unwrap();
        main.record(ToDestination, &[7]).unwrap();
    })
}

type Seen = (String, Direction, Vec<u8>);

/// The recording by its index, which has to fit.
fn indexed(file: &[u8]) -> Listing {
    let listing = listing(Cursor::new(file)).unwrap();
    assert!(listing.error.is_none() && listing.note.is_none(), "{listing:?}");
    assert!(listing.seal.is_some());
    listing
}

fn read(source: impl Read) -> (Vec<Seen>, Option<Error>) {
    let mut seen = Vec::new();
    let mut reader = match Reader::new(source) {
        Ok(reader) => reader,
        Err(e) => return (seen, Some(e)),
    };
    loop {
        match next(&mut reader) {
            Ok(Some(packet)) => seen.push(packet),
            Ok(None) => return (seen, None),
            Err(e) => {
                assert!(next(&mut reader).unwrap().is_none(), "a fault is reported once");
                return (seen, Some(e));
            }
        }
    }
}

fn next(reader: &mut Reader<impl Read>) -> Result<Option<Seen>> {
    let found = reader.next_packet()?.map(|p| (p.interface, p.direction, p.data.to_vec()));
    Ok(found.map(|(i, direction, data)| (reader.interfaces()[i].name.clone(), direction, data)))
}

fn small_seen() -> Vec<Seen> {
    vec![
        ("main".into(), ToDestination, b"QEVM\0\0\0\x03".to_vec()),
        ("multifd-0".into(), ToDestination, vec![0x11, 0x22, 0x33, 0x44, 0]),
        ("main".into(), ToSource, vec![0, 2, 0, 4, 0, 0, 0, 0]),
        ("main".into(), ToDestination, vec![7]),
    ]
}

#[test]
fn what_was_recorded_is_read() {
    let file = small();
    assert_eq!(FileKind::of(&file), FileKind::Pcapng);
    for (seen, error) in [read(&file[..]), read(Slow(&file, 0))] {
        assert!(error.is_none(), "{error:?}");
        assert_eq!(seen, small_seen());
    }
    let mut reader = Reader::new(&file[..]).unwrap();
    while reader.next_packet().unwrap().is_some() {}
    assert_eq!(reader.interfaces()[1].description.as_deref(), Some("127.0.0.1:4444"));
}

#[test]
fn a_recording_of_nothing_is_a_recording() {
    let file = record(|r| drop(r.channel("main")));
    let (seen, error) = read(&file[..]);
    assert!(seen.is_empty() && error.is_none());
    let listing = channels(&file[..]).unwrap();
    assert!(listing.channels.is_empty() && listing.error.is_none());
}

#[test]
fn large_chunks_are_split_and_come_back_whole() {
    let data = pattern(17 * MAX_PACKET + 3, 1);
    let file = record(|r| {
        let main = r.channel("main");
        main.record(ToDestination, &data).unwrap();
        main.record(ToDestination, &data[..MAX_PACKET]).unwrap();
    });
    let mut reader = Reader::new(&file[..]).unwrap();
    let mut lens = Vec::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        lens.push(packet.data.len());
    }
    assert_eq!(lens, [vec![MAX_PACKET; 17], vec![3, MAX_PACKET]].concat());
    let mut back = Vec::new();
    ChannelBytes::new(Reader::new(&file[..]).unwrap(), 0, ToDestination).read_to_end(&mut back).unwrap();
    assert!(back == [&data[..], &data[..MAX_PACKET]].concat());
}

#[test]
fn channels_are_listed_and_taken_apart() {
    let file = small();
    let listing = channels(&file[..]).unwrap();
    assert!(listing.error.is_none());
    let brief: Vec<_> =
        listing.channels.iter().map(|c| (c.interface, c.channel(), c.bytes, c.packets)).collect();
    assert_eq!(
        brief,
        [
            (0, Some(ChannelId::Main), 9, 2),
            (0, Some(ChannelId::ReturnPath), 8, 1),
            (1, Some(ChannelId::Multifd(0)), 5, 1)
        ]
    );
    for channel in &listing.channels {
        assert!(channel.first <= channel.last && channel.first.0 > 1_600_000_000_000_000_000);
        let reader = Reader::new(&file[..]).unwrap();
        let mut bytes = ChannelBytes::new(reader, channel.interface, channel.direction);
        let mut back = Vec::new();
        bytes.read_to_end(&mut back).unwrap();
        assert_eq!(back.len() as u64, channel.bytes);
        assert_eq!(bytes.time(), Some(channel.last));
        assert!(bytes.file_offset().is_some() && bytes.take_error().is_none());
    }
}

#[test]
fn a_channel_that_ends_early_just_ends() {
    // After the long packet of `main` only short blocks follow, into which its place does not fit.
    let file = record(|r| {
        r.channel("main").record(ToDestination, &[1; 1000]).unwrap();
        r.channel("multifd-0").record(ToDestination, &[2]).unwrap();
    });
    for (cut, whole) in [(file.len(), true), (file.len() - 1, false)] {
        let mut bytes = ChannelBytes::new(Reader::new(&file[..cut]).unwrap(), 0, ToDestination);
        let mut back = Vec::new();
        let result = bytes.read_to_end(&mut back);
        assert_eq!((result.is_ok(), back.len()), (whole, 1000));
        assert_eq!(bytes.take_error().map(|e| e.kind()), (!whole).then_some(ErrorKind::Truncated));
        assert_eq!(bytes.read(&mut [0; 8]).unwrap(), 0, "and stays ended");
    }
}

#[test]
fn threads_share_a_recording() {
    let (threads, rounds) = (8u8, 200usize);
    let file = record(|r| {
        std::thread::scope(|scope| {
            for id in 0..threads {
                let tap = r.channel(interface_name(ChannelId::Multifd(id)));
                let answers = tap.clone();
                scope.spawn(move || {
                    (0..rounds).for_each(|n| tap.record(ToDestination, &pattern(n, id)).unwrap());
                });
                scope.spawn(move || (0..rounds).for_each(|_| answers.record(ToSource, &[id]).unwrap()));
            }
        });
    });
    let listing = channels(&file[..]).unwrap();
    assert_eq!(listing.channels.len(), 2 * usize::from(threads));
    for channel in listing.channels {
        let Some(ChannelId::Multifd(id)) = channel.channel() else { panic!("{}", channel.name) };
        let mut back = Vec::new();
        let reader = Reader::new(&file[..]).unwrap();
        ChannelBytes::new(reader, channel.interface, channel.direction).read_to_end(&mut back).unwrap();
        let sent: Vec<u8> = match channel.direction {
            ToDestination => (0..rounds).flat_map(|n| pattern(n, id)).collect(),
            ToSource => vec![id; rounds],
        };
        assert!(back == sent, "{}", channel.name);
    }
}

#[test]
fn cut_anywhere_everything_before_the_cut_is_read() {
    let file = small();
    let ends = block_ends(&file);
    let mut clean = 0;
    for cut in 0..file.len() {
        let (seen, error) = read(&file[..cut]);
        assert_eq!(seen, small_seen()[..seen.len()], "cut at {cut}");
        // A cut between two blocks cannot be told from the end; any other is an error at the block it is in.
        match ends.iter().position(|&end| end == cut) {
            Some(_) => {
                assert!(error.is_none(), "cut at {cut}: {error:?}");
                clean += 1;
            }
            None => {
                let error = error.unwrap();
                let start = ends.iter().rev().find(|&&end| end < cut).copied().unwrap_or(0);
                if cut >= 4 {
                    assert_eq!(error.kind(), ErrorKind::Truncated, "cut at {cut}: {error}");
                }
                assert_eq!((error.offset(), error.channel()), (Some(start as u64), ChannelId::Container));
            }
        }
    }
    // One section, two interfaces, four packets, an index, and the seal that ends the file.
    assert_eq!((ends.len(), clean), (9, 8));
}

#[test]
fn an_index_says_what_reading_everything_says() {
    let file = record(|r| {
        r.channel("preempt").announce();
        r.channel("main").record(ToDestination, &[1, 2, 3]).unwrap();
        r.channel("multifd-0").announce();
        r.channel("main").record(ToSource, &[4]).unwrap();
    });
    let (by_index, by_reading) = (indexed(&file), channels(&file[..]).unwrap());
    assert_eq!(by_reading.channels.len(), 3);
    assert_eq!(by_index.channels, by_reading.channels);
    assert_eq!(by_index.places, by_reading.places);
    let many = record(|r| {
        let taps: Vec<_> = (0..200).map(|id| r.channel(format!("multifd-{id}"))).collect();
        for round in 0..400usize {
            for (id, tap) in taps.iter().enumerate() {
                let direction = if (round + id) % 3 == 0 { ToSource } else { ToDestination };
                tap.record(direction, &[7; 300][..1 + (round * 7 + id * 13) % 300]).unwrap();
            }
        }
    });
    let (by_index, by_reading) = (indexed(&many), channels(&many[..]).unwrap());
    assert_eq!(by_index.channels, by_reading.channels);
    assert_eq!(by_index.places, by_reading.places);
    // It took several blocks, none of them larger than Wireshark likes.
    let blocks = |kind| {
        let ends = block_ends(&many);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let blocks = starts.zip(&ends).map(|(start, end)| &many[start..*end]);
        blocks
            .filter(|b| block::read_local(b).is_some_and(|(k, _)| k == kind))
            .map(<[u8]>::len)
            .collect::<Vec<_>>()
    };
    let index = blocks(index::INDEX);
    assert!(index.len() > 2 && index.iter().all(|len| *len < 256 << 10), "{index:?}");
    assert_eq!(blocks(seal::SEAL).len(), 1);
}

#[test]
fn the_seal_says_what_was_recorded() {
    let file = small();
    let seal = indexed(&file).seal.unwrap();
    let names: Vec<_> = seal.halves.iter().map(|h| (&*h.name, h.direction, h.bytes, h.packets)).collect();
    assert_eq!(
        names,
        [("main", ToDestination, 9, 2), ("main", ToSource, 8, 1), ("multifd-0", ToDestination, 5, 1)]
    );
    assert_eq!(seal.halves[0].digest, xxhash_rust::xxh3::xxh3_128(b"QEVM\0\0\0\x03\x07"));
    assert_eq!(seal.half(1, ToDestination), Some(&seal.halves[2]));
    assert_eq!(seal.half(1, ToSource), None);
}

#[test]
fn an_indexed_file_is_not_read() {
    /// Counts what is read.
    struct Counted<'a>(Cursor<&'a [u8]>, &'a mut u64);
    impl Read for Counted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read(buffer)?;
            *self.1 += n as u64;
            Ok(n)
        }
    }
    impl io::Seek for Counted<'_> {
        fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }
    let file = record(|r| {
        let main = r.channel("main");
        (0..40).for_each(|i| main.record(ToDestination, &pattern(MAX_PACKET, i)).unwrap());
    });
    let mut count = 0;
    let found = listing(Counted(Cursor::new(&file), &mut count)).unwrap();
    assert_eq!(found.channels[0].bytes, 40 * MAX_PACKET as u64);
    assert!(count < 4096, "{count} of {} bytes were read", file.len());
}

#[test]
fn an_index_that_does_not_fit_is_not_used() {
    let file = small();
    let ends = block_ends(&file);
    // A packet is left out, one comes twice, or something stands in front of everything.
    let without = [&file[..ends[1]], &file[ends[2]..]].concat();
    let twice = [&file[..ends[2]], &file[ends[1]..]].concat();
    let shifted =
        [&file[..ends[0]], &foreign(0x0bad, &[1, 2, 3, 4], u32::to_le_bytes), &file[ends[0]..]].concat();
    for moved in [without, twice, shifted] {
        let by_reading = channels(&moved[..]).unwrap();
        let found = listing(Cursor::new(&moved)).unwrap();
        assert_eq!((&found.channels, &found.places), (&by_reading.channels, &by_reading.places));
        assert!(found.note.is_some());
        // What it holds by its own account is known all the same.
        assert!(found.seal.is_some());
    }
    // Cut off before its end, it is one that nobody has finished.
    let found = listing(Cursor::new(&file[..ends[6]])).unwrap();
    assert!(found.note.is_none() && found.seal.is_none() && found.channels.len() == 3);
}

#[test]
fn an_index_that_lies_is_found_out_or_harmless() {
    let file = small();
    let by_reading = channels(&file[..]).unwrap();
    let index = block_ends(&file)[6];
    for at in index..file.len() {
        for bit in 0..8 {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << bit;
            // Either the index is not believed, and then reading may find a broken block; or it says the same.
            if let Ok(found) = listing(Cursor::new(&damaged)) {
                assert_eq!(found.channels, by_reading.channels, "bit {bit} at {at}");
                assert!(found.places.is_none() || found.places == by_reading.places);
            }
        }
    }
}

#[test]
fn what_is_known_about_a_recording_stays_with_it() {
    let sink = Shared::default();
    let about = r#"{"role":"proxy","comment":"\u00e4"}"#;
    let options = RecorderOptions { about: Some(about.into()), ..RecorderOptions::default() };
    let recorder = Recorder::new(sink.clone(), options);
    recorder.channel("main").record(ToDestination, &[1]).unwrap();
    recorder.finish().unwrap();
    let file = std::mem::take(&mut *sink.0.lock().unwrap());
    assert_eq!(Reader::new(&file[..]).unwrap().about(), Some(about));
    assert_eq!(indexed(&file).about.as_deref(), Some(about));
    assert_eq!(channels(&file[..]).unwrap().about.as_deref(), Some(about));
    assert_eq!(Reader::new(&small()[..]).unwrap().about(), None);
    let options = RecorderOptions { about: Some("x".repeat(40_000)), ..RecorderOptions::default() };
    let refused = Recorder::create(std::path::Path::new("/nonexistent/x"), options).map(drop);
    assert_eq!(refused.map_err(|e| e.kind()), Err(ErrorKind::Misuse));
}

#[test]
fn no_flipped_bit_panics_or_invents_bytes() {
    let file = small();
    let total: usize = small_seen().iter().map(|(_, _, data)| data.len()).sum();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (seen, _) = read(&damaged[..]);
        assert!(seen.iter().map(|(_, _, data)| data.len()).sum::<usize>() <= total + 3, "bit {bit}");
        let _ = channels(&damaged[..]);
        let _ = listing(Cursor::new(&damaged[..]));
    }
}

#[test]
fn hostile_lengths_are_refused_without_memory() {
    let good = small();
    let packet = block_ends(&good)[1];
    let cases: &[(usize, u32, ErrorKind)] = &[
        (packet + 4, u32::MAX, ErrorKind::Malformed),
        (packet + 4, 0xffff_fffc, ErrorKind::TooLarge),
        (packet + 4, MAX_CAPTURE_BLOCK, ErrorKind::Truncated),
        (packet + 4, 0, ErrorKind::Malformed),
        (packet + 4, 28, ErrorKind::Malformed),
        (packet + 8, 1, ErrorKind::Malformed),
        (packet + 8, u32::MAX, ErrorKind::Malformed),
        (packet + 20, u32::MAX, ErrorKind::Malformed),
        (packet + 20, 0xffff_fffc, ErrorKind::Malformed),
        (packet + 24, 9, ErrorKind::Truncated),
        // The flags option: too long for the block; then without a direction.
        (packet + 36, 0xffff_0002, ErrorKind::Malformed),
        (packet + 40, 0, ErrorKind::Malformed),
        (packet, 3, ErrorKind::Unsupported),
        (packet, 2, ErrorKind::Unsupported),
        // An unknown block of 4 GiB is skipped as far as the file goes.
        (12, 0x0000_0002, ErrorKind::Unsupported),
    ];
    for &(at, value, kind) in cases {
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let (seen, error) = read(&bad[..]);
        let error = error.unwrap();
        assert_eq!(error.kind(), kind, "{value:#x} at {at}: {error}");
        assert_eq!(error.channel(), ChannelId::Container);
        assert!(seen.is_empty());
    }
    let mut unknown = good[..packet].to_vec();
    unknown.extend([0xad, 0x0b, 0, 0, 0xfc, 0xff, 0xff, 0xff]);
    let (_, error) = read(unknown.chain(io::repeat(0).take(1 << 20)));
    assert_eq!(error.unwrap().kind(), ErrorKind::Truncated);
}

#[test]
fn too_many_interfaces_are_refused() {
    let mut file = small();
    let interface = block::interface_description("x", None);
    (0..MAX_CAPTURE_INTERFACES).for_each(|_| file.extend_from_slice(&interface));
    assert_eq!(read(&file[..]).1.unwrap().kind(), ErrorKind::TooLarge);
    let mut file = small();
    file.extend(block::interface_description(&"x".repeat(MAX_CAPTURE_NAME + 1), None));
    assert_eq!(read(&file[..]).1.unwrap().kind(), ErrorKind::TooLarge);
}

#[test]
fn foreign_files_are_named() {
    let mut ethernet = small();
    let interface = block_ends(&ethernet)[0];
    ethernet[interface + 8] = 1;
    let error = read(&ethernet[..]).1.unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("main") && error.message().contains("Ethernet"), "{error}");
    for (file, word) in [
        (&b"QEVM\0\0\0\x03"[..], "migration stream"),
        (b"\xd4\xc3\xb2\xa1", "pcap"),
        (b"", "empty"),
        (b"x", "unknown"),
    ] {
        let error = read(file).1.unwrap();
        assert!(error.message().contains(word), "{error}");
    }
    let mut magic = small();
    magic[8] = 0;
    assert_eq!(read(&magic[..]).1.unwrap().kind(), ErrorKind::Malformed);
}

#[test]
fn both_byte_orders_sections_and_unknown_blocks_are_read() {
    let mut file = small();
    // A block that nobody knows, then a big-endian section with microseconds, an offset and no end of options.
    file.extend(foreign(0x0bad, &[1, 2, 3, 4], u32::to_le_bytes));
    let be = u32::to_be_bytes;
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
    file.extend(foreign(
        block::SECTION_HEADER,
        &words(&[block::BYTE_ORDER_MAGIC, 0x0001_0000, 0xffff_ffff, 0xffff_ffff]),
        be,
    ));
    let mut interface = words(&[u32::from(LINKTYPE) << 16, 0, 0x0002_0007]);
    interface.extend(b"preempt\0");
    interface.extend(words(&[0x000e_0008, 0, 100]));
    file.extend(foreign(block::INTERFACE_DESCRIPTION, &interface, be));
    let mut packet = words(&[0, 0, 2_000_001, 3, 3]);
    packet.extend(b"abc\0");
    packet.extend(words(&[0x0002_0004, 1]));
    file.extend(foreign(block::ENHANCED_PACKET, &packet, be));
    let (seen, error) = read(&file[..]);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen[..4], small_seen());
    assert_eq!(seen[4..], [("preempt".to_owned(), ToSource, b"abc".to_vec())]);
    let last = channels(&file[..]).unwrap().channels.pop().unwrap();
    assert_eq!((last.interface, last.first), (2, Timestamp(102_000_001_000)));
    assert_eq!(last.first.to_string(), "102.000001000");
}

#[test]
fn any_timestamp_resolution_is_harmless() {
    for resolution in 0..=255 {
        let mut file = block::section_header("test", None, None);
        let mut interface = block::interface_description("main", None);
        let at = interface.len() - 12;
        interface[at] = resolution;
        file.extend(interface);
        file.extend(block::packet_head(0, u64::MAX, 4));
        file.extend(*b"data");
        file.extend(block::packet_tail(2, 4));
        let mut reader = Reader::new(&file[..]).unwrap();
        let time = reader.next_packet().unwrap().unwrap().time;
        let wanted = match resolution {
            9 => Some(u64::MAX),
            6 => Some(u64::MAX),
            12 => Some(u64::MAX / 1000),
            0x80 => Some(u64::MAX),
            0xa0 => Some(4_294_967_295_999_999_999),
            _ => None,
        };
        assert_eq!(time.0, wanted.unwrap_or(time.0), "{resolution:#x}");
    }
}

#[test]
fn another_implementation_reads_what_we_write() {
    let file = small();
    let mut reader = PcapNGReader::new(1 << 20, Cursor::new(&file)).unwrap();
    let (mut names, mut packets, mut ours) = (Vec::new(), Vec::new(), 0);
    loop {
        match reader.next() {
            Ok((len, block)) => {
                match block {
                    PcapBlockOwned::NG(Block::SectionHeader(b)) => {
                        assert!(b.shb_userappl().unwrap().unwrap().starts_with("migwire "));
                        assert_eq!(b.section_len, -1);
                    }
                    PcapBlockOwned::NG(Block::InterfaceDescription(b)) => {
                        assert_eq!((b.linktype.0, b.if_tsresol), (147, 9));
                        names.push(b.if_name().unwrap().unwrap().to_owned());
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(b)) => {
                        let flags = b.options[0].as_u32_le().unwrap();
                        packets.push((b.if_id, flags, b.data[..b.caplen as usize].to_vec()));
                    }
                    PcapBlockOwned::NG(Block::Unknown(b)) => {
                        assert_eq!(b.block_type, block::LOCAL);
                        ours += 1;
                    }
                    _ => panic!("a block we do not write"),
                }
                reader.consume(len);
            }
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(PcapError::Eof) => break,
            Err(e) => panic!("{e:?}"),
        }
    }
    assert_eq!(names, ["main", "multifd-0"]);
    let brief: Vec<_> = packets.iter().map(|(i, flags, data)| (*i, *flags, data.len())).collect();
    assert_eq!(brief, [(0, 2, 8), (1, 2, 5), (0, 1, 8), (0, 2, 1)]);
    // Index and seal.
    assert_eq!(ours, 2);
}

#[test]
fn what_another_implementation_writes_is_read() {
    let file = small();
    let mut reader = PcapNGReader::new(1 << 20, Cursor::new(&file)).unwrap();
    let mut rewritten = Vec::new();
    loop {
        match reader.next() {
            Ok((len, block)) => {
                match block {
                    PcapBlockOwned::NG(Block::SectionHeader(mut b)) => rewritten.extend(b.to_vec().unwrap()),
                    PcapBlockOwned::NG(Block::InterfaceDescription(mut b)) => {
                        rewritten.extend(b.to_vec().unwrap());
                    }
                    PcapBlockOwned::NG(Block::EnhancedPacket(mut b)) => rewritten.extend(b.to_vec().unwrap()),
                    PcapBlockOwned::NG(Block::Unknown(mut b)) => rewritten.extend(b.to_vec().unwrap()),
                    _ => panic!("a block we do not write"),
                }
                reader.consume(len);
            }
            Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
            Err(PcapError::Eof) => break,
            Err(e) => panic!("{e:?}"),
        }
    }
    let (seen, error) = read(&rewritten[..]);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen, small_seen());
}

#[test]
fn interface_names_round_trip() {
    let multifd = [0, 255].map(ChannelId::Multifd);
    for channel in [
        ChannelId::Main,
        ChannelId::Preempt,
        ChannelId::Connection(7),
        ChannelId::Resumed(1),
        ChannelId::ResumedPreempt(12),
    ]
    .into_iter()
    .chain(multifd)
    {
        assert_eq!(channel_of(&interface_name(channel), ToDestination), Some(channel));
    }
    assert_eq!(channel_of("main", ToSource), Some(ChannelId::ReturnPath));
    assert_eq!(channel_of("resumed-2", ToSource), Some(ChannelId::ResumedReturnPath(2)));
    for foreign in ["eth0", "multifd-256", "multifd-", "multifd-+1", "connection-x", ""] {
        assert_eq!(channel_of(foreign, ToDestination), None, "{foreign}");
    }
}

/// Where the blocks of a little-endian file end.
fn block_ends(file: &[u8]) -> Vec<usize> {
    let (mut ends, mut at) = (Vec::new(), 0);
    while at < file.len() {
        at += u32::from_le_bytes(file[at + 4..at + 8].try_into().unwrap()) as usize;
        ends.push(at);
    }
    ends
}

fn foreign(kind: u32, body: &[u8], order: fn(u32) -> [u8; 4]) -> Vec<u8> {
    let len = order(body.len() as u32 + 12);
    [&order(kind)[..], &len, body, &len].concat()
}
