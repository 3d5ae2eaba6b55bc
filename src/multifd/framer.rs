//! Packets as stock sources of each release make them, unused fields included.

use crate::dialect::{Dialect, Difference};
use crate::wire::{
    DevicePacket, Method, MultifdFlags, Offsets, PacketHead, PaddedName, RamPacket, Wire, packet_page_count,
};

/// Makes the packets of one channel. The payload is the caller's.
///
/// Sources up to 8.2 never clear the packet, so that names, offsets and (up to 8.1) sizes of earlier packets show in later ones: what
/// a packet looks like depends on those before it. Source: `migration/multifd.c`, `multifd_send_fill_packet`.
#[derive(Clone, Debug)]
pub struct Framer {
    /// Fields of earlier packets stay.
    stale: bool,
    /// The size of the payload, too.
    stale_size: bool,
    page_count: usize,
    size: u32,
    block: Box<[u8; PaddedName::LEN]>,
    offsets: Box<[u8]>,
    bytes: Vec<u8>,
}

impl Framer {
    /// A framer for a channel of a source of that dialect. `any` leaves unused fields empty, as the newest does.
    pub fn new(dialect: Dialect, page_size: u64) -> Self {
        let dialect = if dialect == Dialect::ANY { Dialect::newest() } else { dialect };
        let page_count = packet_page_count(page_size);
        Self {
            stale: dialect.has(Difference::MultifdStaleFields),
            stale_size: dialect.has(Difference::MultifdStaleSize),
            page_count,
            size: 0,
            block: Box::new([0; PaddedName::LEN]),
            offsets: vec![0; 8 * page_count].into(),
            bytes: Vec::with_capacity(RamPacket::len_with(page_count)),
        }
    }

    /// Number of pages that fit into a packet.
    pub fn page_count(&self) -> usize {
        self.page_count
    }

    /// A packet of pages: `normal` ones are in its payload, `zero` ones nowhere. Offsets beyond the room of a packet are left out.
    pub fn pages(
        &mut self,
        block: &[u8],
        normal: &[u64],
        zero: &[u64],
        method: Method,
        payload_size: u32,
        number: u64,
    ) -> &[u8] {
        PaddedName::pad(block, &mut self.block);
        if !self.stale {
            self.offsets.fill(0);
        }
        for (field, offset) in self.offsets.chunks_exact_mut(8).zip(normal.iter().chain(zero)) {
            field.copy_from_slice(&offset.to_be_bytes());
        }
        self.size = payload_size;
        self.frame(MultifdFlags::of(method), normal.len() as u32, zero.len() as u32, number)
    }

    /// The same packet, with SYNC: what sources up to 8.2 send when a packet is still waiting as the round ends.
    pub fn pages_with_sync(
        &mut self,
        block: &[u8],
        normal: &[u64],
        method: Method,
        payload_size: u32,
        number: u64,
    ) -> &[u8] {
        self.pages(block, normal, &[], method, payload_size, number);
        self.frame(MultifdFlags::of(method) | MultifdFlags::SYNC, normal.len() as u32, 0, number)
    }

    /// A packet that only synchronises.
    pub fn sync(&mut self, number: u64) -> &[u8] {
        self.without_pages(MultifdFlags::SYNC, number)
    }

    /// A packet of nothing, as sources up to 8.2 send behind a SYNC with pages.
    pub fn empty(&mut self, number: u64) -> &[u8] {
        self.without_pages(MultifdFlags::default(), number)
    }

    /// Head of a packet of device state.
    pub fn device(idstr: &[u8], instance_id: u32, payload_size: u32) -> [u8; DevicePacket::LEN] {
        let mut field = [0; PaddedName::LEN];
        PaddedName::pad(idstr, &mut field);
        let packet = DevicePacket {
            head: PacketHead::new(MultifdFlags::DEVICE_STATE),
            idstr: PaddedName::new(&field),
            instance_id,
            payload_size,
        };
        let mut bytes = Vec::with_capacity(DevicePacket::LEN);
        packet.emit(&mut bytes);
        let mut array = [0; DevicePacket::LEN];
        array.copy_from_slice(&bytes);
        array
    }

    fn without_pages(&mut self, flags: MultifdFlags, number: u64) -> &[u8] {
        if !self.stale {
            self.block.fill(0);
            self.offsets.fill(0);
        }
        if !self.stale_size {
            self.size = 0;
        }
        self.frame(flags, 0, 0, number)
    }

    fn frame(&mut self, flags: MultifdFlags, normal: u32, zero: u32, number: u64) -> &[u8] {
        let is_idle = normal + zero == 0;
        let packet = RamPacket {
            head: PacketHead::new(flags),
            pages_alloc: if is_idle && !self.stale { 0 } else { self.page_count as u32 },
            normal_pages: normal,
            payload_size: self.size,
            packet_num: number,
            zero_pages: zero,
            unused: [0; 28],
            block: PaddedName::new(&self.block),
            offsets: Offsets::new(&self.offsets),
        };
        self.bytes.clear();
        packet.emit(&mut self.bytes);
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Cursor;

    fn framer(release: &str) -> Framer {
        Framer::new(release.parse().unwrap(), 4096)
    }

    fn parse(bytes: &[u8]) -> RamPacket<'_> {
        RamPacket::parse(&mut Cursor::new(0, bytes), 128).unwrap()
    }

    #[test]
    fn a_new_source_leaves_nothing_behind() {
        let mut framer = framer("10.0");
        let data = framer.pages(b"pc.ram", &[0x1000, 0x3000], &[0x2000], Method::NONE, 8192, 6).to_vec();
        let mut expected = vec![0; 1344];
        expected[..12].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\0");
        (expected[15], expected[19], expected[22], expected[31], expected[35]) = (0x80, 2, 0x20, 6, 1);
        expected[64..70].copy_from_slice(b"pc.ram");
        (expected[326], expected[334], expected[342]) = (0x10, 0x30, 0x20);
        assert_eq!(data, expected);

        let mut sync = vec![0; 1344];
        sync[..12].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01\0\0\0\x01");
        sync[31] = 5;
        assert_eq!(framer.sync(5), sync);
    }

    #[test]
    fn an_old_source_shows_what_it_sent_before() {
        for (release, size) in [("5.2", 8192), ("7.2", 8192), ("8.2", 0)] {
            let mut framer = framer(release);
            let first = parse(framer.sync(0)).pages_alloc;
            assert_eq!(first, 128);
            framer.pages(b"pc.ram", &[0x1000, 0x3000], &[], Method::NONE, 8192, 1);
            framer.pages(b"ab", &[0x5000], &[], Method::NONE, 4096, 2);
            framer.pages(b"ab", &[0x6000], &[], Method::NONE, 8192, 2);
            let bytes = framer.sync(3).to_vec();
            let sync = parse(&bytes);
            assert_eq!(sync.payload_size, size, "{release}");
            assert_eq!(sync.block.name().0, b"ab");
            assert!(sync.block.bytes()[2..].iter().all(|b| *b == 0), "names are padded over older ones");
            assert_eq!(sync.offsets.iter().take(3).collect::<Vec<_>>(), [0x6000, 0x3000, 0]);
        }
    }

    #[test]
    fn pages_and_sync_in_one() {
        let mut framer = framer("7.2");
        let bytes = framer.pages_with_sync(b"pc.ram", &[0], Method::ZLIB, 77, 4).to_vec();
        let packet = parse(&bytes);
        assert_eq!((packet.head.flags, packet.normal_pages, packet.payload_size), (MultifdFlags(3), 1, 77));
        assert_eq!(parse(framer.empty(5)).head.flags, MultifdFlags(0));
    }
}
