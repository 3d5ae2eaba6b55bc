//! What a file is, by its first bytes, and what the user can do with it.
//!
//! Nobody reads "bad magic" with profit. Migration bytes come wrapped in a dozen ways, and half of the files handed
//! to a tool like this are one step away from what it wants; so every kind has a name and a sentence.

use std::fmt;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// No byte at all.
    Empty,
    /// A main migration stream, version 3 (`QEVM`, 00 00 00 03).
    Stream,
    /// A migration stream of another version: 2 is from before 2009 and refused by QEMU.
    OldStream(u32),
    /// A multifd channel: `MultiFDInit_t` or `MultiFDPacket_t`, magic 11223344.
    Multifd,
    /// The reverse direction of the main channel. It has no magic: a plausible first message, no more than that.
    ReturnPath,
    /// A pcapng file: a recording of ours, or a network capture.
    Pcapng,
    /// A classic pcap file.
    Pcap {
        /// Whether its numbers are big-endian.
        big_endian: bool,
        /// Whether its times are in nanoseconds.
        nanoseconds: bool,
    },
    /// A qcow2 disk image, which may hold snapshots.
    Qcow2,
    /// A libvirt save image.
    LibvirtSave,
    /// A libvirt save image that was never finished.
    LibvirtPartial,
    /// Compressed with the program of this name.
    Compressed(&'static str),
    /// TLS records.
    Tls,
    /// An ELF file: a program or a memory dump.
    Elf,
    /// A kdump file, plain or flattened.
    Kdump,
    /// The external vmstate file of the `qemu-snapshot` proposal.
    QemuSnapshot,
    /// A PANDA record.
    Panda,
    /// A Proxmox backup.
    Vma,
    /// A directory with the channels of a migration, a file each. No first bytes tell that.
    Directory,
    /// Files with one channel each, given together. No first bytes tell that either.
    Files,
    /// None of these.
    Unknown,
}

impl FileKind {
    /// So many first bytes are enough for [`of`](Self::of); fewer are, too, for most kinds.
    pub const ENOUGH: usize = 16;

    /// Tells a file by its first bytes.
    pub fn of(first: &[u8]) -> Self {
        // Magics that need no second look. The return path comes last, because it has none.
        const MAGICS: &[(&[u8], FileKind)] = &[
            (&[0x0a, 0x0d, 0x0d, 0x0a], FileKind::Pcapng),
            (&[0xd4, 0xc3, 0xb2, 0xa1], FileKind::Pcap { big_endian: false, nanoseconds: false }),
            (&[0xa1, 0xb2, 0xc3, 0xd4], FileKind::Pcap { big_endian: true, nanoseconds: false }),
            (&[0x4d, 0x3c, 0xb2, 0xa1], FileKind::Pcap { big_endian: false, nanoseconds: true }),
            (&[0xa1, 0xb2, 0x3c, 0x4d], FileKind::Pcap { big_endian: true, nanoseconds: true }),
            (&[0x11, 0x22, 0x33, 0x44], FileKind::Multifd),
            (&[b'Q', b'F', b'I', 0xfb], FileKind::Qcow2),
            (b"LibvirtQemudSave", FileKind::LibvirtSave),
            (b"LibvirtQemudPart", FileKind::LibvirtPartial),
            (&[0x1f, 0x8b], FileKind::Compressed("gzip")),
            (&[0x28, 0xb5, 0x2f, 0xfd], FileKind::Compressed("zstd")),
            (&[0xfd, b'7', b'z', b'X', b'Z'], FileKind::Compressed("xz")),
            (b"BZh", FileKind::Compressed("bzip2")),
            (&[0x89, b'L', b'Z', b'O'], FileKind::Compressed("lzop")),
            (&[0x04, 0x22, 0x4d, 0x18], FileKind::Compressed("lz4")),
            (&[0x7f, b'E', b'L', b'F'], FileKind::Elf),
            (b"KDUMP   ", FileKind::Kdump),
            (b"makedumpfile", FileKind::Kdump),
            (b"STVM", FileKind::QemuSnapshot),
            (b"PANDA_RR", FileKind::Panda),
            (b"VMA\0", FileKind::Vma),
        ];
        if first.is_empty() {
            return Self::Empty;
        }
        if let Some(version) = first.strip_prefix(b"QEVM").and_then(|rest| rest.first_chunk()) {
            return match u32::from_be_bytes(*version) {
                3 => Self::Stream,
                version => Self::OldStream(version),
            };
        }
        if let Some((_, kind)) = MAGICS.iter().find(|(magic, _)| first.starts_with(magic)) {
            return *kind;
        }
        match first {
            // Any record type of a connection's life, any version from SSL 3.0 to TLS 1.3, a length that is legal.
            [20..=23, 3, 0..=4, high, low, ..] if (1..=16384 + 256).contains(&be16(*high, *low)) => Self::Tls,
            _ if is_return_path(first) => Self::ReturnPath,
            _ => Self::Unknown,
        }
    }

    /// What to do with such a file: a sentence for the user.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Empty => {
                "nothing was written; the migration failed before its first byte, or the path is wrong"
            }
            Self::Stream => "give it to `inspect`, `dump` or `verify` as it is",
            Self::OldStream(_) => {
                "no QEMU of this decade writes or reads that version; migwire knows version 3"
            }
            Self::Multifd => "this is one of several channels; give the main channel's file together with it",
            Self::ReturnPath => {
                "this is the answering half of a connection; give the main channel's file together with it"
            }
            Self::Pcapng => {
                "a recording by migwire is read as it is; `migwire import` makes one of a network capture"
            }
            Self::Pcap { .. } => {
                "a network capture; `migwire import FILE -o OUT.pcapng` takes the migrations out of it"
            }
            Self::Qcow2 => {
                "a disk image; its internal snapshots hold migration streams (`qemu-img snapshot -l` lists them)"
            }
            Self::LibvirtSave => {
                "a libvirt save image: a header and XML in front of the stream, which may be compressed"
            }
            Self::LibvirtPartial => {
                "libvirt never finished writing this save image; the stream in it is likely cut off"
            }
            Self::Compressed("gzip") => "decompress it first: gzip -dc FILE | migwire inspect -",
            Self::Compressed("zstd") => "decompress it first: zstd -dc FILE | migwire inspect -",
            Self::Compressed("xz") => "decompress it first: xz -dc FILE | migwire inspect -",
            Self::Compressed("bzip2") => "decompress it first: bzip2 -dc FILE | migwire inspect -",
            Self::Compressed("lzop") => "decompress it first: lzop -dc FILE | migwire inspect -",
            Self::Compressed(_) => "decompress it first, and pipe it into `migwire inspect -`",
            Self::Tls => {
                "the channel is encrypted; record at the endpoint, behind the decryption, or without TLS"
            }
            Self::Elf => "a memory dump or a program, not a migration stream; crash, gdb or drgn read dumps",
            Self::Kdump => "a memory dump, not a migration stream; crash or drgn read it",
            Self::QemuSnapshot => {
                "the qemu-snapshot proposal wraps the stream in a file of its own; migwire does not read it"
            }
            Self::Panda => "PANDA's own container; `rrpack.py` unpacks the snapshot in it",
            Self::Vma => {
                "a Proxmox backup of disks, without a migration stream in it; `vma extract` unpacks it"
            }
            Self::Directory | Self::Files => "give them to `inspect`, `dump` or `verify` together",
            Self::Unknown => {
                "nothing that migwire knows begins with these bytes; a main stream begins with `QEVM`"
            }
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty file",
            Self::Stream => "a migration stream",
            Self::OldStream(version) => return write!(f, "a migration stream of version {version}"),
            Self::Multifd => "a multifd channel",
            Self::ReturnPath => "what looks like a return path",
            Self::Pcapng => "a pcapng file",
            Self::Pcap { .. } => "a pcap file",
            Self::Qcow2 => "a qcow2 image",
            Self::LibvirtSave => "a libvirt save image",
            Self::LibvirtPartial => "an unfinished libvirt save image",
            Self::Compressed(by) => return write!(f, "a file compressed by {by}"),
            Self::Tls => "a TLS connection",
            Self::Elf => "an ELF file",
            Self::Kdump => "a kdump file",
            Self::QemuSnapshot => "a qemu-snapshot vmstate file",
            Self::Panda => "a PANDA record",
            Self::Vma => "a Proxmox backup",
            Self::Directory => "a directory of channels",
            Self::Files => "channels in a file each",
            Self::Unknown => "an unknown file",
        })
    }
}

/// Whether a return-path message could begin here: be16 type, be16 length, and the length that this type has
/// (`migration/migration.c`: `rp_cmd_args`).
fn is_return_path(first: &[u8]) -> bool {
    let [t0, t1, l0, l1, ..] = *first else { return false };
    let len = be16(l0, l1);
    match be16(t0, t1) {
        // SHUT, PONG, RESUME_ACK.
        1 | 2 | 6 => len == 4,
        // REQ_PAGES_ID: start, length, counted name.
        3 => (13..=268).contains(&len),
        // REQ_PAGES.
        4 => len == 12,
        // RECV_BITMAP: counted name.
        5 => (1..=256).contains(&len),
        // SWITCHOVER_ACK.
        7 => len == 0,
        _ => false,
    }
}

fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_kind() {
        let cases: &[(&[u8], FileKind)] = &[
            (b"", FileKind::Empty),
            (b"QEVM\0\0\0\x03\x07", FileKind::Stream),
            (b"QEVM\0\0\0\x02", FileKind::OldStream(2)),
            (b"QEVM\0\0", FileKind::Unknown),
            (b"\x11\x22\x33\x44\0\0\0\x01", FileKind::Multifd),
            (b"\x0a\x0d\x0d\x0a", FileKind::Pcapng),
            (b"\xd4\xc3\xb2\xa1", FileKind::Pcap { big_endian: false, nanoseconds: false }),
            (b"\xa1\xb2\x3c\x4d", FileKind::Pcap { big_endian: true, nanoseconds: true }),
            (b"QFI\xfb\0\0\0\x03", FileKind::Qcow2),
            (b"LibvirtQemudSave\x02", FileKind::LibvirtSave),
            (b"LibvirtQemudPart\x02", FileKind::LibvirtPartial),
            (b"\x1f\x8b\x08\0", FileKind::Compressed("gzip")),
            (b"\x28\xb5\x2f\xfd", FileKind::Compressed("zstd")),
            (b"\xfd7zXZ\0", FileKind::Compressed("xz")),
            (b"BZh9", FileKind::Compressed("bzip2")),
            (b"\x89LZO\0", FileKind::Compressed("lzop")),
            (b"\x16\x03\x01\x02\0\x01", FileKind::Tls),
            (b"\x16\x03\x01\xff\xff\x01", FileKind::Unknown),
            (b"\x7fELF\x02", FileKind::Elf),
            (b"KDUMP   ", FileKind::Kdump),
            // OPEN_RETURN_PATH is answered by PONG 0, QEMU's first word on the return path.
            (b"\0\x02\0\x04\0\0\0\0", FileKind::ReturnPath),
            (b"\0\x07\0\0", FileKind::ReturnPath),
            (b"\0\x01\0\x05", FileKind::Unknown),
            (b"\0\x08\0\0", FileKind::Unknown),
            (b"\0\0\0\0", FileKind::Unknown),
            (b"VMA\0\0\0\0\x01", FileKind::Vma),
            (b"hello", FileKind::Unknown),
        ];
        for (first, kind) in cases {
            assert_eq!(FileKind::of(first), *kind, "{first:02x?}");
            assert!(!kind.advice().is_empty() && !kind.to_string().is_empty());
        }
    }

    #[test]
    fn enough_is_enough() {
        let mut first = [0u8; FileKind::ENOUGH];
        first.copy_from_slice(b"LibvirtQemudSave");
        assert_eq!(FileKind::of(&first), FileKind::LibvirtSave);
    }

    #[test]
    fn no_short_input_panics() {
        for a in 0..=255u8 {
            for b in [0, 1, 3, 0x22, 0xff] {
                let bytes = [a, b, 0, 4, b];
                (0..=5).for_each(|n| {
                    FileKind::of(&bytes[..n]);
                });
            }
        }
    }
}
