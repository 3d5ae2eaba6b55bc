//! Disks for the guest: the boot sector in a raw file, or in a qcow2 image that can take snapshots.
//!
//! ```text
//! cluster (64 KiB)  0 header | 1 refcount table | 2 refcount block | 3 L1 table | 4 L2 table | 5 boot sector
//! ```
//!
//! The qcow2 image is written by hand because that is forty lines, and `qemu-img` is in another package than QEMU.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// The firmware refuses a smaller disk.
const DISK_BYTES: u64 = 1 << 20;

const CLUSTER: u64 = 64 << 10;

/// Largest boot code: it has to fit where the firmware and the image put it.
pub(crate) const MAX_BOOT: usize = 4096;

/// A raw disk that starts with `boot`.
pub(crate) fn write_raw(path: &Path, boot: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(boot)?;
    file.set_len(DISK_BYTES)
}

/// A qcow2 image, version 3, without a snapshot yet, whose virtual disk starts with `boot`.
pub(crate) fn write_qcow2(path: &Path, boot: &[u8]) -> io::Result<()> {
    let mut header = Vec::new();
    let mut be32 = |value: u32| header.extend_from_slice(&value.to_be_bytes());
    be32(0x5146_49fb);
    be32(3);
    // No backing file.
    be32(0);
    be32(0);
    be32(0);
    be32(CLUSTER.ilog2());
    be32(0);
    be32(u32::try_from(DISK_BYTES).unwrap_or(u32::MAX));
    // Not encrypted; one entry in the L1 table covers 512 MiB.
    be32(0);
    be32(1);
    let mut be64 = |value: u64| header.extend_from_slice(&value.to_be_bytes());
    be64(3 * CLUSTER);
    be64(CLUSTER);
    header.extend_from_slice(&1u32.to_be_bytes());
    // No snapshots.
    header.extend_from_slice(&0u32.to_be_bytes());
    let mut be64 = |value: u64| header.extend_from_slice(&value.to_be_bytes());
    be64(0);
    // Incompatible, compatible and automatically cleared features.
    be64(0);
    be64(0);
    be64(0);
    // References are counted in 2^4 bits; the header ends here, without extensions.
    header.extend_from_slice(&4u32.to_be_bytes());
    header.extend_from_slice(&104u32.to_be_bytes());

    /// Set in an L1 or L2 entry whose cluster has exactly one reference.
    const COPIED: u64 = 1 << 63;
    let mut file = File::create(path)?;
    let mut put = |cluster: u64, bytes: &[u8]| {
        file.seek(SeekFrom::Start(cluster * CLUSTER))?;
        file.write_all(bytes)
    };
    put(0, &header)?;
    put(1, &(2 * CLUSTER).to_be_bytes())?;
    put(2, &[0, 1].repeat(6))?;
    put(3, &((4 * CLUSTER) | COPIED).to_be_bytes())?;
    put(4, &((5 * CLUSTER) | COPIED).to_be_bytes())?;
    put(5, boot)?;
    file.set_len(6 * CLUSTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_what_the_image_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        write_qcow2(&path, b"boot").unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() as u64, 6 * CLUSTER);
        assert_eq!(&bytes[..8], b"QFI\xfb\0\0\0\x03");
        // Offset 24: virtual size; 40: L1 table; 48: refcount table; 100: header length.
        assert_eq!(bytes[24..32], DISK_BYTES.to_be_bytes());
        assert_eq!(bytes[40..48], (3 * CLUSTER).to_be_bytes());
        assert_eq!(bytes[48..56], CLUSTER.to_be_bytes());
        assert_eq!(bytes[100..104], 104u32.to_be_bytes());
        assert_eq!(&bytes[5 * CLUSTER as usize..][..5], b"boot\0");
    }

    #[test]
    fn the_raw_disk_is_padded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        write_raw(&path, b"boot").unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!((bytes.len() as u64, &bytes[..5]), (DISK_BYTES, &b"boot\0"[..]));
    }
}
