//! Images made by hand: small clusters, so that every table has few entries and every bit can be flipped.

use std::io::Cursor;

use super::*;

const CLUSTER: usize = 512;

/// An image of 512-byte clusters with a disk of `disk` bytes and one snapshot "first" that holds `state`.
fn image(version: u32, disk: u64, state: &[u8]) -> Vec<u8> {
    let per_table = CLUSTER / 8;
    let clusters = state.len().div_ceil(CLUSTER);
    let tables = clusters.div_ceil(per_table);
    let first = disk.div_ceil((CLUSTER * per_table) as u64) as usize;
    let l1_clusters = ((first + tables) * 8).div_ceil(CLUSTER);
    // Header, snapshot table, L1, then the L2 tables, then the data in reverse, so that no two clusters lie in a row.
    let (table_at, l1_at) = (CLUSTER, 2 * CLUSTER);
    let l2_at = l1_at + l1_clusters * CLUSTER;
    let data_at = l2_at + tables * CLUSTER;
    let mut file = vec![0; data_at + clusters * CLUSTER];
    file[..4].copy_from_slice(b"QFI\xfb");
    BE::write_u32(&mut file[4..], version);
    BE::write_u32(&mut file[20..], 9);
    BE::write_u64(&mut file[24..], disk);
    BE::write_u32(&mut file[60..], 1);
    BE::write_u64(&mut file[64..], table_at as u64);
    BE::write_u64(&mut file[table_at..], l1_at as u64);
    BE::write_u32(&mut file[table_at + 8..], (first + tables) as u32);
    BE::write_u16(&mut file[table_at + 12..], 1);
    BE::write_u16(&mut file[table_at + 14..], 5);
    BE::write_u32(&mut file[table_at + 32..], state.len() as u32);
    let mut names_at = table_at + 40;
    if version == 3 {
        BE::write_u32(&mut file[table_at + 36..], 16);
        BE::write_u64(&mut file[table_at + 40..], state.len() as u64);
        BE::write_u64(&mut file[table_at + 48..], disk);
        names_at += 16;
    }
    file[names_at..names_at + 6].copy_from_slice(b"1first");
    for table in 0..tables {
        let at = l2_at + table * CLUSTER;
        BE::write_u64(&mut file[l1_at + (first + table) * 8..], at as u64 | 1 << 63);
    }
    for (number, bytes) in state.chunks(CLUSTER).enumerate() {
        let at = data_at + (clusters - 1 - number) * CLUSTER;
        BE::write_u64(&mut file[l2_at + number * 8..], at as u64 | 1 << 63);
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }
    file
}

fn state(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8).collect()
}

fn read(file: &[u8]) -> Result<Vec<u8>> {
    let mut input = Image::new(Cursor::new(file))?.into_vm_state(0)?;
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).map_err(|e| match e.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(inner) => inner.clone(),
        None => Error::io("test", "", e),
    })?;
    Ok(bytes)
}

#[test]
fn reads_what_was_put_in() {
    for version in [2, 3] {
        for disk in [0, 1, 32 << 10, 1 << 20] {
            for len in [1, CLUSTER, CLUSTER + 1, 40_000, 100_000] {
                assert_eq!(
                    read(&image(version, disk, &state(len))).unwrap(),
                    state(len),
                    "{version} {disk} {len}"
                );
            }
        }
    }
}

#[test]
fn lists_snapshots_and_seeks() {
    let file = image(3, 1 << 20, &state(5000));
    let image = Image::new(Cursor::new(&file)).unwrap();
    let [snapshot] = image.snapshots() else { panic!("{:?}", image.snapshots()) };
    assert_eq!((&*snapshot.id, &*snapshot.name, snapshot.vm_state_size), ("1", "first", 5000));
    let mut input = image.into_vm_state(0).unwrap();
    let mut byte = [0; 4];
    for at in [4996, 0, 511, 1023, 4000] {
        input.seek(SeekFrom::Start(at)).unwrap();
        input.read_exact(&mut byte).unwrap();
        assert_eq!(byte, state(5000)[at as usize..][..4]);
    }
    assert_eq!(input.seek(SeekFrom::End(-1)).unwrap(), 4999);
    assert_eq!(input.seek(SeekFrom::Start(u64::MAX)).unwrap(), u64::MAX);
    assert_eq!(input.read(&mut byte).unwrap(), 0);
    assert!(input.seek(SeekFrom::Current(1)).is_err());
}

#[test]
fn says_what_it_cannot_read() {
    let good = image(3, 1 << 20, &state(5000));
    let l1_at = 2 * CLUSTER + 32 * 8;
    let l2_at = 3 * CLUSTER;
    let refused = |at: usize, value: u64| {
        let mut bad = good.clone();
        BE::write_u64(&mut bad[at..], value);
        read(&bad).unwrap_err().to_string()
    };
    let cases = [
        ("version", refused(4 - 4, 0x5146_49fb_0000_0004)),
        ("cluster bits", refused(20, 63 << 32)),
        ("encryption", refused(28, 2 | 1 << 52)),
        ("external data", refused(72, 1 << 2)),
        ("extended L2", refused(72, 1 << 4)),
        ("unknown feature", refused(72, 1 << 40)),
        ("snapshot count", refused(60, u64::MAX)),
        ("no snapshot", refused(60, 0)),
        ("table offset", refused(64, u64::MAX)),
        ("table past the end", refused(64, 1 << 30)),
        ("L1 offset", refused(CLUSTER, u64::MAX)),
        ("L1 size", refused(CLUSTER + 8, 1 << 32)),
        ("state size", refused(CLUSTER + 40, u64::MAX)),
        ("no state", refused(CLUSTER + 40, 0)),
        ("disk size", refused(CLUSTER + 48, u64::MAX)),
        ("extra size", refused(CLUSTER + 32, u64::MAX)),
        ("L2 in the data", refused(l1_at, 0x1300 | 1 << 63)),
        ("L2 past the end", refused(l1_at, 1 << 40)),
        ("compressed", refused(l2_at, COMPRESSED | 0x1000)),
        ("cluster past the end", refused(l2_at, 1 << 40)),
    ];
    let text: Vec<_> = cases.iter().map(|(what, error)| format!("{what}: {error}")).collect();
    insta::assert_snapshot!(text.join("\n"), @r#"
version: reading a qcow2 image: qcow2 version 4, 2 and 3 are known (container, offset 0x4)
cluster bits: reading a qcow2 image: clusters of 2^63 bytes, they have 2^9 to 2^21 (container, offset 0x14)
encryption: reading a qcow2 image: the image is encrypted (method 2), only plain ones are read (container, offset 0x20)
external data: reading a qcow2 image: the image has an external data file, which migwire does not read (container, offset 0x48)
extended L2: reading a qcow2 image: the image has extended L2 entries, which migwire does not read (container, offset 0x48)
unknown feature: reading a qcow2 image: the image has unknown incompatible features 0x10000000000, which migwire does not read (container, offset 0x48)
snapshot count: reading a qcow2 image: 4294967295 snapshots, at most 65536 are read (container, offset 0x3c)
no snapshot: reading a qcow2 image: snapshot 0 was asked for, there are 0
table offset: reading a qcow2 image: the snapshot table reaches past the end of the image (container, offset 0xffffffffffffffff)
table past the end: reading a qcow2 image: the snapshot table reaches past the end of the image (container, offset 0x40000000)
L1 offset: reading a qcow2 image: the L1 table of snapshot "first" is outside of the image (container, offset 0xffffffffffffffff)
L1 size: reading a qcow2 image: the L1 table of snapshot "" is too small for its VM state (container, offset 0x400)
state size: reading a qcow2 image: snapshot "first" claims 18446744073709551615 bytes of VM state in an image of 7168 bytes (container, offset 0x400)
no state: reading a qcow2 image: snapshot "first" has no VM state, only the disk
disk size: reading a qcow2 image: the L1 table of snapshot "first" is too small for its VM state (container, offset 0x400)
extra size: reading a qcow2 image: a snapshot table of more than 16777216 bytes (container, offset 0x200)
L2 in the data: reading a qcow2 image: a cluster of the VM state at 0x25262626262600, which is no place for one (container, offset 0x25262626262600)
L2 past the end: reading a qcow2 image: an L2 table reaches past the end of the image (container, offset 0x10000000000)
compressed: reading a qcow2 image: a compressed cluster in the VM state, which no QEMU writes (container, offset 0x1000)
cluster past the end: reading a qcow2 image: a cluster of the VM state at 0x10000000000, which is no place for one (container, offset 0x10000000000)
"#);
}

#[test]
fn holes_read_as_zeros_and_flags_are_obeyed() {
    let (file, l2_at) = (image(3, 0, &state(2000)), 3 * CLUSTER);
    for entry in [0, 1, 1 << 63 | 0x800 | 1] {
        let mut holed = file.clone();
        BE::write_u64(&mut holed[l2_at + 8..], entry);
        let bytes = read(&holed).unwrap();
        assert_eq!(bytes[CLUSTER..2 * CLUSTER], [0; CLUSTER]);
        assert_eq!(bytes[2 * CLUSTER..], state(2000)[2 * CLUSTER..]);
    }
    let mut whole = file;
    BE::write_u64(&mut whole[2 * CLUSTER..], 0);
    assert_eq!(read(&whole).unwrap(), [0; 2000]);
}

#[test]
fn a_table_that_describes_itself_ends() {
    let mut file = image(3, 0, &state(5000));
    let (l1_at, l2_at) = (2 * CLUSTER as u64, 3 * CLUSTER as u64);
    for target in [0x200, l1_at, l2_at] {
        BE::write_u64(&mut file[l1_at as usize..], target | 1 << 63);
        if let Ok(bytes) = read(&file) {
            assert_eq!(bytes.len(), 5000);
        }
    }
}

#[test]
fn cut_anywhere_it_is_an_error() {
    let file = image(3, 1 << 16, &state(3000));
    for cut in 0..file.len() {
        match read(&file[..cut]) {
            // Data lie in reverse, so the file's last cluster is the first one of the state and full.
            Ok(bytes) => panic!("{cut}: {} bytes", bytes.len()),
            Err(e) => assert!(matches!(e.kind(), ErrorKind::Truncated | ErrorKind::Malformed), "{cut}: {e}"),
        }
    }
}

#[test]
fn no_flipped_bit_panics_or_makes_the_state_longer_than_the_image() {
    let file = image(2, 1 << 16, &state(3000));
    let data_at = file.len() - 3072;
    for bit in 0..data_at * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(bytes) = read(&damaged) {
            assert!(bytes.len() <= file.len(), "bit {bit}");
        }
    }
}

#[test]
fn a_stream_in_an_image_is_a_main_channel() {
    use crate::container::{Access, open};
    let stream = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\0\x06\0\0\0\x0f{\"devices\": []}";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image(3, 1 << 20, stream)).unwrap();
    let mut contents = open(file.path(), false).unwrap();
    let [part] = &mut contents.parts[..] else { panic!("{}", contents.parts.len()) };
    assert_eq!(
        (part.channel, part.label.as_deref(), part.size()),
        (ChannelId::Main, Some("first"), Some(38))
    );
    assert!(part.is_snapshot("1") && part.is_snapshot("first") && !part.is_snapshot("2"));
    assert_eq!(part.trailer().unwrap().map(|t| (t.offset, t.text.len())), Some((23, 15)));
    let mut input = part.input(Access::Whole).unwrap();
    let mut bytes = vec![0; 64];
    let count = crate::channel::Input::read(&mut input, &mut bytes).unwrap();
    assert_eq!(&bytes[..count], stream);
    std::fs::write(file.path(), image(2, 1 << 20, b"")).unwrap();
    assert_eq!(open(file.path(), false).err().map(|e| e.kind()), Some(ErrorKind::Unsupported));
}
