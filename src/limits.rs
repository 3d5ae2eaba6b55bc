//! Every cap on a number that a peer chooses, each with its reason.
//!
//! A length read from the wire meets its cap before anything is reserved for it. Most records are never collected at
//! all (pages, device payloads and descriptions pass through in pieces); the caps below are for what must be held at
//! once, and for lengths that no honest source comes near, so that a broken stream is named as broken and not waited for.

/// Longest machine name in a configuration record. QEMU bounds it by memory only (be32); class names in the tree are
/// below 40 bytes, distributions' own below 64.
pub const MAX_MACHINE_NAME: u32 = 4096;

/// Most capability names in `configuration/capabilities`. QEMU 11.1 knows 21 of them, the largest number so far was 23.
pub const MAX_CAPABILITIES: u32 = 256;

/// Most subsections of a configuration record: three kinds exist, each comes at most once.
pub const MAX_CONFIGURATION_SUBSECTIONS: usize = 16;

/// Most RAM blocks in a block list. A large guest has some tens; hot-plugged memory tops out at a few hundred.
pub const MAX_RAM_BLOCKS: usize = 16_384;

/// Most sections that may be open in one stream: each keeps its name for as long as the stream lasts.
pub const MAX_SECTIONS: usize = 65_536;

/// Longest VM description (JSON) that is taken for one. Real ones are 0.5 KiB to 2 MiB; the field is be32.
pub const MAX_DESCRIPTION: u32 = 64 << 20;

/// Largest `MIG_CMD_PACKAGED` blob that is taken for one. It holds the device state of a postcopy migration, some
/// megabytes in practice. It is never collected here, but a stock destination reads all of it into memory.
pub const MAX_PACKAGE: u32 = 1 << 30;

/// Largest target page of any QEMU target is 64 KiB (aarch64); larger values in a stream are not believed.
pub const MAX_PAGE_BITS: u32 = 16;

/// Smallest target page of any QEMU target: 1 KiB (arm).
pub const MIN_PAGE_BITS: u32 = 10;

/// Opaque bytes (device payloads, descriptions) are reported in pieces of this size, counted from where they begin, so
/// that the pieces do not depend on how the bytes arrived. Together with the look-ahead it bounds the parser's input.
pub const PIECE: usize = 64 << 10;

/// Longest payload of a return-path message; the source refuses more than 512 (`migration/migration.c`,
/// `source_return_path_thread`).
pub const MAX_RETURN_PATH_PAYLOAD: u16 = 512;

/// Largest received-page bitmap: one bit a 4 KiB page of 16 TiB. It is passed through in pieces, never collected.
pub const MAX_RECEIVED_BITMAP: u64 = 512 << 20;

/// Parts of a block of 32768 pages each of which it is known which pages have arrived, if any has: 4 KiB each, of 2 TiB of memory
/// with pages of 4 KiB. It takes one page for a peer to open one.
pub const MAX_PAGE_SET_PARTS: usize = 1 << 14;

/// Page requests that wait to be served; a destination that goes on asking then has to wait as well. A stock one asks for as many
/// pages as it has virtual CPUs and device threads.
pub const MAX_PAGE_REQUESTS: usize = 1 << 16;

/// Longest block of a recording that is held in memory. Wireshark itself reads packets of up to 256 KiB; some tools write larger.
pub const MAX_CAPTURE_BLOCK: u32 = 16 << 20;

/// Most interfaces in one recording: QEMU opens at most 255 multifd channels and two others, some times over if a
/// postcopy migration recovers again and again.
pub const MAX_CAPTURE_INTERFACES: usize = 4096;

/// Most packets of a recording whose places are kept, so that a channel can be read without all others: 16 bytes each. A
/// recording with more is read from its beginning for every channel.
pub const MAX_CAPTURE_PLACES: usize = 1 << 20;

/// Most bytes of index that are read: that of some terabytes. A recording with more is read from end to end.
pub const MAX_CAPTURE_INDEX: u64 = 64 << 20;

/// Longest seal of a recording: a line of some 100 bytes for each direction of each interface.
pub const MAX_CAPTURE_SEAL: u32 = 4 << 20;

/// Longest interface name in a recording; ours have at most 16 bytes.
pub const MAX_CAPTURE_NAME: usize = 256;

/// Largest payload of a multifd packet of pages, where its method has any say in the size. It is the buffer of stock receivers,
/// twice what a packet holds in pages: 10.0.13 and 11.1 refuse more, others write past its end.
pub const MAX_MULTIFD_PAYLOAD: u32 = 1 << 20;

/// Most history that a zstd frame on a multifd channel may ask for, as a power of two: 32 MiB, which is what the highest level
/// that a source can be given (20) takes. It is reserved when the frame begins, on a channel each.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 25;

/// Multifd channels of one migration: their id is a byte, and `multifd-channels` is at most 255.
pub const MAX_MULTIFD_CHANNELS: usize = 255;

/// Complaints of a lenient parser that are kept; a channel of nothing but errors would fill memory with them.
pub const MAX_COMPLAINTS: usize = 64;

/// Longest payload of a device-state packet. A stock source sends at most 1 MiB and 12 bytes (`VFIO_MIG_STOP_DATA_BUFFER_SIZE`),
/// and a config of some KiB; the field is be32, and a stock destination allocates whatever it says. 16 MiB leaves room for
/// sources with larger buffers, and is what one channel can make us hold.
pub const MAX_DEVICE_PACKET: u32 = 16 << 20;

/// Longest config of a VFIO device: 4 KiB of config space and the largest MSI-X table (2048 entries) make 37 KiB, and a
/// subsection of some bytes may follow.
pub const MAX_DEVICE_CONFIG: usize = 1 << 20;

/// Longest `DEV_DATA_STATE` record of a main channel. From 8.1 on it has at most 1 MiB; before, the device's driver chose its
/// migration region. It passes through in pieces, never collected.
pub const MAX_DEVICE_DATA: u64 = 4 << 30;

/// Most packets of device state that may wait for one that is missing: an empty packet takes no memory that counts, but a place
/// in a map. With the 1 MiB of a stock source that is 256 GiB of state, far more than may wait anyway.
pub const MAX_QUEUED_PACKETS: usize = 1 << 18;

/// Most devices of one guest whose state comes as such. QEMU limits them by PCI slots; some tens are a lot.
pub const MAX_DEVICES: usize = 4096;

/// TCP connections that are followed at a time in a capture of a network: some hundreds of bytes each. Those that have nothing of a
/// migration make room when there are more.
pub const MAX_TCP_CONNECTIONS: usize = 16_384;

/// Bytes that may wait for one that is missing in front of them, in all connections of a capture, with what their segments cost
/// beside them.
pub const MAX_TCP_HELD: usize = 64 << 20;

/// Migrations in one capture of a network. Each becomes a file.
pub const MAX_IMPORT_MIGRATIONS: usize = 256;

/// Connections of one migration in a capture of a network: 255 multifd channels, and as many for everything else.
pub const MAX_IMPORT_CONNECTIONS: usize = 512;

/// Holes in one migration behind which its bytes are kept; each begins an interface of its own, and of these a recording has
/// [`MAX_CAPTURE_INTERFACES`].
pub const MAX_IMPORT_FRAGMENTS: usize = 1024;
