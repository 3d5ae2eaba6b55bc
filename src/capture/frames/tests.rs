//! Captures of networks as other programs write them, and damaged ones.

use std::io::Write as _;

use super::*;

/// A block of pcapng, in either byte order.
fn block(big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let padding = body.len().next_multiple_of(4) - body.len();
    let size = (12 + body.len() + padding) as u32;
    let words = [u32s(big, &[kind, size]), body.to_vec(), vec![0; padding], u32s(big, &[size])];
    words.concat()
}

fn u32s(big: bool, words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| if big { word.to_be_bytes() } else { word.to_le_bytes() }).collect()
}

fn u16s(big: bool, words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| if big { word.to_be_bytes() } else { word.to_le_bytes() }).collect()
}

fn section(big: bool) -> Vec<u8> {
    let body = [u32s(big, &[0x1a2b_3c4d]), u16s(big, &[1, 0]), vec![0xff; 8]].concat();
    block(big, 0x0a0d_0d0a, &body)
}

fn interface(big: bool, link: u16, snap: u32, options: &[u8]) -> Vec<u8> {
    block(big, 1, &[u16s(big, &[link, 0]), u32s(big, &[snap]), options.to_vec()].concat())
}

fn enhanced(big: bool, interface: u32, ticks: u64, kept: u32, length: u32, data: &[u8]) -> Vec<u8> {
    let words = [interface, (ticks >> 32) as u32, ticks as u32, kept, length];
    block(big, 6, &[u32s(big, &words), data.to_vec()].concat())
}

fn pcap(big: bool, magic: u32, link: u32, packets: &[(u32, u32, &[u8], u32)]) -> Vec<u8> {
    let mut file = u32s(big, &[magic]);
    file.extend(u16s(big, &[2, 4]));
    file.extend(u32s(big, &[0, 0, 262_144, link]));
    for (seconds, parts, data, length) in packets {
        file.extend(u32s(big, &[*seconds, *parts, data.len() as u32, *length]));
        file.extend_from_slice(data);
    }
    file
}

type Seen = (u16, u64, Vec<u8>, usize);

/// All frames, what was wrong with single ones, and what ended the file.
fn read(file: impl Read) -> (Vec<Seen>, Damage, Option<Error>) {
    let mut frames = match Frames::new(file) {
        Ok(frames) => frames,
        Err(error) => return (Vec::new(), Damage::default(), Some(error)),
    };
    let mut seen = Vec::new();
    let error = loop {
        match frames.next_frame() {
            Ok(Some(Frame { link, time, data, length })) => {
                seen.push((link.0, time.0, data.to_vec(), length));
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(frames.next_frame().unwrap().is_none(), "a fault is reported once");
    (seen, frames.damage(), error)
}

fn whole(file: &[u8]) -> Vec<Seen> {
    let (seen, damage, error) = read(file);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(damage, Damage::default());
    seen
}

#[test]
fn pcap_of_both_byte_orders_and_resolutions() {
    for big in [false, true] {
        let packets: &[(u32, u32, &[u8], u32)] =
            &[(7, 8, b"first", 5), (9, 10, b"cut", 1000), (9, 11, b"", 0)];
        // The upper bits of the link type are about frame check sequences.
        let file = pcap(big, 0xa1b2_c3d4, 0x2400_0001, packets);
        let expected = [
            (1, 7_000_008_000, b"first".to_vec(), 5),
            (1, 9_000_010_000, b"cut".to_vec(), 1000),
            (1, 9_000_011_000, vec![], 0),
        ];
        assert_eq!(whole(&file), expected);
        let file = pcap(big, 0xa1b2_3c4d, 276, packets);
        let seen = whole(&file);
        assert_eq!((seen[0].0, seen[0].1), (276, 7_000_000_008));
        for end in 0..file.len() {
            let (seen, _, error) = read(&file[..end]);
            let is_border = [24, 24 + 21, 24 + 21 + 19].contains(&end);
            assert_eq!(error.is_none(), is_border, "{end}: {error:?}");
            let count = [24 + 21, 24 + 21 + 19].iter().filter(|border| end >= **border).count();
            assert_eq!(seen.len(), count, "{end}");
        }
    }
}

#[test]
fn pcapng_with_all_kinds_of_packets() {
    for big in [false, true] {
        let nanoseconds = [u16s(big, &[9, 1]), vec![9, 0, 0, 0]].concat();
        let file = [
            section(big),
            interface(big, 1, 0, &[]),
            interface(big, 276, 4, &nanoseconds),
            block(big, 5, b"statistics of an interface"),
            enhanced(big, 0, 5_000_001, 5, 5, b"first"),
            enhanced(big, 1, 6_000_000_001, 6, 60, b"second"),
            block(big, 3, &[u32s(big, &[5]), b"third".to_vec()].concat()),
            block(big, 2, &[u16s(big, &[1, 9]), u32s(big, &[1, 2, 6, 6]), b"fourth".to_vec()].concat()),
            section(!big),
            interface(!big, 101, 3, &[]),
            block(!big, 3, &[u32s(!big, &[50]), b"fif".to_vec()].concat()),
        ]
        .concat();
        let expected = [
            (1, 5_000_001_000, b"first".to_vec(), 5),
            (276, 6_000_000_001, b"second".to_vec(), 60),
            (1, 6_000_000_001, b"third".to_vec(), 5),
            (276, (1 << 32) + 2, b"fourth".to_vec(), 6),
            (101, (1 << 32) + 2, b"fif".to_vec(), 50),
        ];
        assert_eq!(whole(&file), expected);
        for end in 0..file.len() {
            // Some of it, and a fault or none; never more than there is.
            let (seen, damage, _) = read(&file[..end]);
            assert!(seen.len() < 5 && expected.starts_with(&seen), "{end}");
            assert_eq!(damage, Damage::default());
        }
    }
}

#[test]
fn broken_packets_cost_themselves() {
    let file = [
        section(false),
        interface(false, 1, 0, &[9, 0, 200, 0]),
        enhanced(false, 1, 0, 1, 1, b"x"),
        enhanced(false, 0, 1, 5, 5, b"x"),
        enhanced(false, 0, 1, u32::MAX, 5, b"x"),
        enhanced(false, 0, 1, 4, 2, b"good"),
    ]
    .concat();
    let (seen, damage, error) = read(&file[..]);
    assert!(error.is_none());
    assert_eq!(seen, [(1, 1000, b"good".to_vec(), 4)]);
    let first = (section(false).len() + interface(false, 1, 0, &[0; 4]).len()) as u64;
    assert_eq!(
        damage,
        Damage { packets: 3, first: Some((first, "a packet on an interface that is not there")) }
    );
}

#[test]
fn broken_frames_end_the_file() {
    let begin = [section(false), interface(false, 1, 0, &[])].concat();
    let good = enhanced(false, 0, 1, 4, 4, b"good");
    let mut trailer = good.clone();
    trailer[32] ^= 1;
    for (bad, text) in [
        (u32s(false, &[6, 8, 0]), "a block of type 0x6 cannot be 8 bytes long"),
        (u32s(false, &[6, 33, 0]), "a block of type 0x6 cannot be 33 bytes long"),
        (u32s(false, &[99, 0, 0]), "a block of type 0x63 cannot be 0 bytes long"),
        (u32s(false, &[6, 0xffff_fffc, 0]), "a block of 4294967292 bytes: no packet is that long"),
        (u32s(false, &[99, 0xffff_fffc, 0]), "the file ends inside a block"),
        (u32s(false, &[0x0a0d_0d0a, 28, 7]), "byte-order magic 0x00000007, where 0x1a2b3c4d was expected"),
        (trailer, "the block's length is 36 at its start and 37 at its end"),
    ] {
        let file = [&begin[..], &good, &bad].concat();
        let (seen, _, error) = read(&file[..]);
        assert_eq!((seen.len(), error.unwrap().message()), (1, text));
    }
    let mut file = pcap(false, 0xa1b2_c3d4, 1, &[(1, 1, b"good", 4)]);
    file.extend(u32s(false, &[1, 1, 0x7fff_ffff, 4]));
    let (seen, _, error) = read(&file[..]);
    assert_eq!(
        (seen.len(), error.unwrap().message()),
        (1, "a packet of 2147483647 bytes: no packet begins here")
    );
}

#[test]
fn what_is_no_capture() {
    for (file, text) in [
        (&b""[..], "the file is empty"),
        (b"QEVM\0\0\0\x03", "neither pcap nor pcapng but a migration stream"),
        (b"\x1f\x8b\x08\0", "gzip -dc"),
        (b"\xd4\xc3\xb2\xa1\x01\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0", "pcap version 1"),
        (b"\xd4\xc3\xb2\xa1\x02\0", "the file ends inside its header"),
    ] {
        let error = Frames::new(file).err().unwrap();
        assert!(error.message().contains(text), "{error}");
    }
}

#[test]
fn packets_larger_than_the_window() {
    let large = vec![7; 3 * WINDOW];
    let file = pcap(false, 0xa1b2_c3d4, 1, &[(1, 1, b"a", 1), (2, 2, &large, 3), (3, 3, b"b", 1)]);
    let seen = whole(&file);
    assert_eq!(seen.iter().map(|frame| frame.2.len()).collect::<Vec<_>>(), [1, 3 * WINDOW, 1]);
    assert_eq!(seen[1].3, 3 * WINDOW, "no fewer than were kept");
    // A size that is not there is not reserved.
    let claim = [&file[..24], &u32s(false, &[0, 0, MAX_CAPTURE_BLOCK, 0])].concat();
    let mut frames = Frames::new(&claim[..]).unwrap();
    assert!(frames.next_frame().is_err());
    assert!(frames.window.bytes.len() <= WINDOW);
}

#[test]
fn what_was_written_is_read() {
    let mut writer = FrameWriter::new(Vec::new(), LinkType(1), Some("a test")).unwrap();
    writer.write(Timestamp(5), b"head", b"data and").unwrap();
    writer.write(Timestamp(1 << 40), b"", b"x").unwrap();
    let mut file = writer.finish().unwrap();
    file.flush().unwrap();
    let expected = [(1, 5, b"headdata and".to_vec(), 12), (1, 1 << 40, b"x".to_vec(), 1)];
    assert_eq!(whole(&file), expected);
}
