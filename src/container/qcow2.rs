//! A qcow2 image with internal snapshots: where `savevm` puts a stream.
//!
//! ```text
//! header -> snapshot table -> snapshot { L1 table, VM state size, name }
//!                                          |
//!  guest offsets:  [ disk .............. ][ VM state ]      in the same L1 table, from the first entry that
//!                                          ^                 describes no part of the disk
//! L1 entry -> L2 table (one cluster) -> cluster
//! ```
//! Source: `docs/interop/qcow2.rst`. Only what leads to the VM state is read; memory is one L2 table and the snapshot list,
//! whatever the image claims.

use std::io::{self, Read, Seek, SeekFrom};

use byteorder::{BE, ByteOrder as _, ReadBytesExt as _};

use crate::error::{ChannelId, Error, ErrorKind, Result};

/// Most snapshots in an image, and most bytes of their table: what QEMU takes (`block/qcow2.h`) is 65536 and 64 MiB; nobody
/// keeps so many, and this bounds our memory.
const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_TABLE: u64 = 16 << 20;

/// Cluster sizes are from 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Bits of an L1 or L2 entry that hold a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whatever its offset (version 3).
const ZERO: u64 = 1;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id, a number as a rule.
    pub id: String,
    /// The name that was given to `savevm`.
    pub name: String,
    /// Bytes of VM state; 0 for a snapshot of the disk alone.
    pub vm_state_size: u64,
    /// Size of the disk at that time, which decides where the VM state begins.
    pub disk_size: u64,
    /// When it was made, in seconds since 1970.
    pub seconds: u32,
    l1_offset: u64,
    l1_size: u32,
}

/// An image whose header and snapshot table have been read.
#[derive(Debug)]
pub struct Image<R> {
    input: R,
    len: u64,
    cluster_bits: u32,
    version: u32,
    snapshots: Vec<Snapshot>,
}

impl<R: Read + Seek> Image<R> {
    /// Reads header and snapshot table.
    ///
    /// # Errors
    /// `Malformed` or `Truncated` for what is no sound image, `Unsupported` for encryption, external data files and
    /// extended L2 entries, `Io`. All on [`ChannelId::Container`], with offsets in the image.
    pub fn new(mut input: R) -> Result<Self> {
        let len = input.seek(SeekFrom::End(0)).map_err(|e| fault_of(0, e))?;
        let mut head = [0; 104];
        let got = read_at(&mut input, 0, &mut head)?;
        if got < 72 {
            return Err(fault(ErrorKind::Truncated, got as u64, "the image ends inside its header"));
        }
        if head[..4] != *b"QFI\xfb" {
            return Err(fault(ErrorKind::Malformed, 0, "no qcow2 image"));
        }
        let version = BE::read_u32(&head[4..]);
        if !matches!(version, 2 | 3) {
            return Err(fault(
                ErrorKind::Unsupported,
                4,
                format!("qcow2 version {version}, 2 and 3 are known"),
            ));
        }
        let cluster_bits = BE::read_u32(&head[20..]);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            let message = format!("clusters of 2^{cluster_bits} bytes, they have 2^9 to 2^21");
            return Err(fault(ErrorKind::Malformed, 20, message));
        }
        match BE::read_u32(&head[32..]) {
            0 => {}
            method => {
                let message = format!("the image is encrypted (method {method}), only plain ones are read");
                return Err(fault(ErrorKind::Unsupported, 32, message));
            }
        }
        if version == 3 {
            if got < head.len() {
                return Err(fault(ErrorKind::Truncated, got as u64, "the image ends inside its header"));
            }
            check_features(BE::read_u64(&head[72..]))?;
        }
        let disk_size = BE::read_u64(&head[24..]);
        let count = BE::read_u32(&head[60..]);
        let table = BE::read_u64(&head[64..]);
        let mut image = Self { input, len, cluster_bits, version, snapshots: Vec::new() };
        image.read_snapshots(count, table, disk_size)?;
        Ok(image)
    }

    /// The internal snapshots, in table order.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// The VM state of the snapshot with that index.
    ///
    /// # Errors
    /// `Misuse` for an index that is not there or a snapshot without VM state; `Malformed` where the image cannot hold
    /// what the snapshot claims.
    pub fn into_vm_state(self, index: usize) -> Result<VmState<R>> {
        let Some(snapshot) = self.snapshots.get(index).cloned() else {
            let message = format!("snapshot {index} was asked for, there are {}", self.snapshots.len());
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message).on(ChannelId::Container));
        };
        let (size, name) = (snapshot.vm_state_size, &snapshot.name);
        if size == 0 {
            let message = format!("snapshot {name:?} has no VM state, only the disk");
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message).on(ChannelId::Container));
        }
        // Every byte of a VM state was written, so there cannot be more of them than there are bytes in the image.
        if size > self.len {
            let message = format!(
                "snapshot {name:?} claims {size} bytes of VM state in an image of {} bytes",
                self.len
            );
            return Err(fault(ErrorKind::Malformed, snapshot.l1_offset, message));
        }
        let table_bits = self.cluster_bits + self.cluster_bits - 3;
        let first = snapshot.disk_size.div_ceil(1 << table_bits);
        let needed =
            first.checked_add(size.div_ceil(1 << table_bits)).filter(|n| *n <= u64::from(snapshot.l1_size));
        if needed.is_none() {
            let message = format!("the L1 table of snapshot {name:?} is too small for its VM state");
            return Err(fault(ErrorKind::Malformed, snapshot.l1_offset, message));
        }
        let l1_end =
            snapshot.l1_offset.checked_add(u64::from(snapshot.l1_size) * 8).filter(|end| *end <= self.len);
        if l1_end.is_none() {
            let message = format!("the L1 table of snapshot {name:?} is outside of the image");
            return Err(fault(ErrorKind::Malformed, snapshot.l1_offset, message));
        }
        Ok(VmState {
            input: self.input,
            len: self.len,
            cluster_bits: self.cluster_bits,
            zero_flag: self.version >= 3,
            l1: snapshot.l1_offset + first * 8,
            size,
            at: 0,
            table: Vec::new(),
            table_index: None,
        })
    }

    /// Reads the snapshot table; every entry has its own length.
    fn read_snapshots(&mut self, count: u32, table: u64, disk_size: u64) -> Result<()> {
        if count > MAX_SNAPSHOTS {
            return Err(fault(
                ErrorKind::TooLarge,
                60,
                format!("{count} snapshots, at most {MAX_SNAPSHOTS} are read"),
            ));
        }
        let mut at = table;
        for _ in 0..count {
            let mut head = [0; 40];
            self.exact_at(at, &mut head)?;
            let id_len = BE::read_u16(&head[12..]);
            let name_len = BE::read_u16(&head[14..]);
            let extra_len = BE::read_u32(&head[36..]);
            let len = 40 + u64::from(extra_len) + u64::from(id_len) + u64::from(name_len);
            if at - table + len > MAX_TABLE {
                let message = format!("a snapshot table of more than {MAX_TABLE} bytes");
                return Err(fault(ErrorKind::TooLarge, at, message));
            }
            let mut extra = [0; 16];
            let known = extra.len().min(extra_len as usize);
            self.exact_at(at + 40, &mut extra[..known])?;
            let mut names = vec![0; usize::from(id_len) + usize::from(name_len)];
            self.exact_at(at + 40 + u64::from(extra_len), &mut names)?;
            let (id, name) = names.split_at(id_len.into());
            self.snapshots.push(Snapshot {
                id: String::from_utf8_lossy(id).into_owned(),
                name: String::from_utf8_lossy(name).into_owned(),
                vm_state_size: if known >= 8 {
                    BE::read_u64(&extra)
                } else {
                    BE::read_u32(&head[32..]).into()
                },
                disk_size: if known >= 16 { BE::read_u64(&extra[8..]) } else { disk_size },
                seconds: BE::read_u32(&head[16..]),
                l1_offset: BE::read_u64(&head[0..]),
                l1_size: BE::read_u32(&head[8..]),
            });
            at += len.next_multiple_of(8);
        }
        Ok(())
    }

    fn exact_at(&mut self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let got = read_at(&mut self.input, at, buffer)?;
        if got < buffer.len() {
            return Err(fault(
                ErrorKind::Truncated,
                at,
                "the snapshot table reaches past the end of the image",
            ));
        }
        Ok(())
    }
}

/// The VM state of a snapshot: a stream, as a file of its own.
///
/// A fault of the image appears as an `io::Error` of kind `InvalidData` with the [`Error`] inside.
#[derive(Debug)]
pub struct VmState<R> {
    input: R,
    len: u64,
    cluster_bits: u32,
    zero_flag: bool,
    /// Where the L1 entry of the first byte stands.
    l1: u64,
    size: u64,
    at: u64,
    /// The L2 table of `table_index`.
    table: Vec<u64>,
    table_index: Option<u64>,
}

/// Where a run of bytes is.
enum Run {
    Host(u64),
    Zero,
}

impl<R: Read + Seek> VmState<R> {
    /// Bytes of VM state.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the bytes from here on are, and how many of them lie in a row, up to `most`.
    fn run(&mut self, most: u64) -> Result<(Run, u64)> {
        let cluster = 1u64 << self.cluster_bits;
        let entries = cluster / 8;
        let number = self.at >> self.cluster_bits;
        let within = self.at & (cluster - 1);
        self.load(number / entries)?;
        let mut count = (cluster - within).min(most);
        let place = self.place(number % entries)?;
        let Run::Host(start) = place else { return Ok((Run::Zero, count)) };
        // Clusters of a VM state are allocated in a row as a rule.
        let mut next = number % entries + 1;
        while count < most && next < entries {
            match self.place(next) {
                Ok(Run::Host(host)) if host == start + (next - number % entries) * cluster => {}
                _ => break,
            }
            count = (count + cluster).min(most);
            next += 1;
        }
        Ok((Run::Host(start + within), count))
    }

    /// Makes `index` the table at hand.
    fn load(&mut self, index: u64) -> Result<()> {
        if self.table_index == Some(index) {
            return Ok(());
        }
        let at = self.l1 + index * 8;
        let mut entry = [0; 8];
        if read_at(&mut self.input, at, &mut entry)? < entry.len() {
            return Err(fault(ErrorKind::Truncated, at, "the L1 table reaches past the end of the image"));
        }
        let offset = BE::read_u64(&entry) & OFFSET;
        let entries = 1usize << (self.cluster_bits - 3);
        self.table_index = None;
        self.table.clear();
        if offset == 0 {
            self.table.resize(entries, 0);
        } else {
            if offset & ((1 << self.cluster_bits) - 1) != 0 {
                return Err(fault(
                    ErrorKind::Malformed,
                    at,
                    format!("an L2 table at {offset:#x}, inside a cluster"),
                ));
            }
            self.table.resize(entries, 0);
            self.input.seek(SeekFrom::Start(offset)).map_err(|e| fault_of(offset, e))?;
            self.input.read_u64_into::<BE>(&mut self.table).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    fault(ErrorKind::Truncated, offset, "an L2 table reaches past the end of the image")
                }
                _ => fault_of(offset, e),
            })?;
        }
        self.table_index = Some(index);
        Ok(())
    }

    /// Where the cluster is that entry `index` of the table at hand describes.
    fn place(&self, index: u64) -> Result<Run> {
        let entry = self.table[index as usize];
        if entry & COMPRESSED != 0 {
            let message = "a compressed cluster in the VM state, which no QEMU writes";
            return Err(fault(ErrorKind::Unsupported, entry & OFFSET, message));
        }
        let offset = entry & OFFSET;
        if offset == 0 || self.zero_flag && entry & ZERO != 0 {
            return Ok(Run::Zero);
        }
        if offset & ((1 << self.cluster_bits) - 1) != 0 || offset >= self.len {
            let message = format!("a cluster of the VM state at {offset:#x}, which is no place for one");
            return Err(fault(ErrorKind::Malformed, offset, message));
        }
        Ok(Run::Host(offset))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = self.size.saturating_sub(self.at).min(buffer.len() as u64);
        if left == 0 {
            return Ok(0);
        }
        let (place, count) = self.run(left)?;
        let buffer = &mut buffer[..count as usize];
        match place {
            Run::Zero => buffer.fill(0),
            Run::Host(offset) => {
                // The last cluster of a file may be cut short where nothing was written to it.
                let got = read_at(&mut self.input, offset, buffer)?;
                if got == 0 {
                    return Err(fault(ErrorKind::Truncated, offset, "the image ends inside the VM state"));
                }
                self.at += got as u64;
                return Ok(got);
            }
        }
        self.at += count;
        Ok(count as usize)
    }
}

impl<R: Read + Seek> Read for VmState<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl<R: Read + Seek> Seek for VmState<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        self.at = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

const DOING: &str = "reading a qcow2 image";

fn check_features(bits: u64) -> Result<()> {
    let unsupported = |what: &str| {
        Err(fault(ErrorKind::Unsupported, 72, format!("the image has {what}, which migwire does not read")))
    };
    if bits & INCOMPATIBLE_DATA_FILE != 0 {
        return unsupported("an external data file");
    }
    if bits & INCOMPATIBLE_EXTENDED_L2 != 0 {
        return unsupported("extended L2 entries");
    }
    // An image that is dirty or corrupt has wrong reference counts, which matter only to a writer; and the compression
    // type only to compressed clusters.
    match bits & !(INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION) {
        0 => Ok(()),
        rest => unsupported(&format!("unknown incompatible features {rest:#x}")),
    }
}

/// Reads as much of `buffer` as there is at `offset`.
fn read_at<R: Read + Seek>(input: &mut R, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    input.seek(SeekFrom::Start(offset)).map_err(|e| fault_of(offset, e))?;
    let mut got = 0;
    while got < buffer.len() {
        match input.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fault_of(offset, e)),
        }
    }
    Ok(got)
}

#[cold]
fn fault(kind: ErrorKind, offset: u64, message: impl Into<String>) -> Error {
    Error::new(kind, offset, DOING, message).on(ChannelId::Container)
}

#[cold]
fn fault_of(offset: u64, source: io::Error) -> Error {
    // Beyond what a file offset can be, seeking fails: that is the image's fault.
    match source.kind() {
        io::ErrorKind::InvalidInput => fault(ErrorKind::Malformed, offset, "an offset that no file has"),
        _ => Error::io(DOING, "the image cannot be read", source).at(offset).on(ChannelId::Container),
    }
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
