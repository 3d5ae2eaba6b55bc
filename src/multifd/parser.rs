//! Bytes of a multifd channel to packets, a step at a time.

use super::Packet;
use crate::channel::{ChannelEvent as _, ChannelParser, Located, Step, Tail};
use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::{MAX_COMPLAINTS, MAX_DEVICE_PACKET, MAX_MULTIFD_PAYLOAD, PIECE};
use crate::stream::Mode;
use crate::wire::{
    Bulk, Cursor, DevicePacket, Fault, MULTIFD_VERSION, Method, MultifdFlags, MultifdHello, Name, PacketHead,
    RamPacket, Wire, packet_page_count,
};

/// Step parser of a multifd channel. It has no end mark: a channel is over when its connection is, between two packets.
///
/// ```
/// use migwire::channel::{ChannelParser, Step, Tail};
/// use migwire::multifd::{Packet, PacketParser};
/// use migwire::wire::{MultifdHello, Wire};
/// let mut hello = Vec::new();
/// MultifdHello::new(3, [0; 16]).emit(&mut hello);
/// let mut parser = PacketParser::default();
/// match parser.step(&hello, Tail::Open)? {
///     Step::Event(located) => assert!(matches!(located.event, Packet::Hello(hello) if hello.id == 3)),
///     other => panic!("{other:?}"),
/// }
/// assert!(matches!(parser.step(b"", Tail::Closed)?, Step::End));
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PacketParser {
    mode: Mode,
    dialect: Dialect,
    page_size: u64,
    elide: bool,
    method: Option<Method>,
    offset: u64,
    expect: Expect,
    hello: Option<MultifdHello>,
    batch: Batch,
    complaints: Vec<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Hello,
    Packet,
    Payload(u64),
    DeviceData(u64),
}

/// What the packet that was read last is about. It stays until the next one, so that the pieces of its payload can be placed.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    flags: MultifdFlags,
    method: Option<Method>,
    number: u64,
    /// RAM block, or idstr of the device.
    name: Vec<u8>,
    instance_id: u32,
    offsets: Vec<u64>,
    normal: usize,
    payload: u64,
    left: u64,
    page_size: u64,
}

impl Batch {
    /// Flags of the packet.
    pub fn flags(&self) -> MultifdFlags {
        self.flags
    }

    /// How its pages are encoded.
    pub fn method(&self) -> Method {
        self.method.unwrap_or(Method::NONE)
    }

    /// Number of the packet.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Name of the RAM block, or of the device.
    pub fn name(&self) -> Name<'_> {
        Name(&self.name)
    }

    /// Instance of the device.
    pub fn instance_id(&self) -> u32 {
        self.instance_id
    }

    /// Offsets of the pages in the payload, in its order.
    pub fn normal(&self) -> &[u64] {
        &self.offsets[..self.normal]
    }

    /// Offsets of pages that are zero.
    pub fn zero(&self) -> &[u64] {
        &self.offsets[self.normal..]
    }

    /// Whether it is a packet of device state.
    pub fn is_device(&self) -> bool {
        self.method.is_none()
    }

    /// Bytes of payload.
    pub fn payload_len(&self) -> u64 {
        self.payload
    }

    /// Bytes of payload that are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The pages in a piece of payload that is not encoded, behind whose event this is: offset and content.
    pub fn pages<'a>(&'a self, piece: &'a [u8]) -> impl Iterator<Item = (u64, &'a [u8])> {
        let begin = self.payload - self.left - piece.len() as u64;
        let first = (begin / self.page_size.max(1)) as usize;
        let size = (self.page_size as usize).max(1);
        self.normal().iter().skip(first).copied().zip(piece.chunks_exact(size))
    }

    fn take(&mut self, packet: &RamPacket<'_>, method: Method, payload: u64) {
        self.flags = packet.head.flags;
        self.method = Some(method);
        self.number = packet.packet_num;
        self.name.clear();
        self.name.extend_from_slice(packet.block.name().0);
        self.offsets.clear();
        self.offsets.extend(packet.normal());
        self.normal = self.offsets.len();
        self.offsets.extend(packet.zero());
        (self.payload, self.left) = (payload, payload);
    }

    fn take_device(&mut self, packet: &DevicePacket<'_>) {
        self.flags = packet.head.flags;
        self.method = None;
        self.name.clear();
        self.name.extend_from_slice(packet.idstr.name().0);
        self.instance_id = packet.instance_id;
        self.offsets.clear();
        self.normal = 0;
        self.payload = packet.payload_size.into();
        self.left = self.payload;
    }
}

impl Default for PacketParser {
    fn default() -> Self {
        Self::with(Mode::Strict, Dialect::ANY, 4096)
    }
}

impl PacketParser {
    /// A parser for targets of that page size, which is a power of two.
    pub fn with(mode: Mode, dialect: Dialect, page_size: u64) -> Self {
        Self {
            mode,
            dialect,
            page_size,
            elide: false,
            method: None,
            offset: 0,
            expect: Expect::Hello,
            hello: None,
            batch: Batch { page_size, ..Batch::default() },
            complaints: Vec::new(),
        }
    }

    /// The same parser, that leaves pages unread. Encoded ones are read all the same.
    #[must_use]
    pub fn with_elision(mut self) -> Self {
        self.elide = true;
        self
    }

    /// The same parser, that takes pages of this method only. Otherwise the first packet with pages decides.
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Sets the page size, which the main channel says, behind the hello.
    pub fn set_page_size(&mut self, page_size: u64) {
        self.page_size = page_size;
        self.batch.page_size = page_size;
    }

    /// Target page size: how long packets are.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// What the channel began with.
    pub fn hello(&self) -> Option<&MultifdHello> {
        self.hello.as_ref()
    }

    /// The packet that was read last.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Method of the channel's pages, as far as it is known.
    pub fn method(&self) -> Option<Method> {
        self.method
    }

    /// Whether the last event has completed a packet.
    pub fn is_between(&self) -> bool {
        self.expect == Expect::Packet
    }

    /// Whether the last event has completed a packet behind which the channel waits for the others.
    pub fn is_at_sync(&self) -> bool {
        self.is_between() && !self.batch.is_device() && self.batch.flags.contains(MultifdFlags::SYNC)
    }

    /// What a strict parser would have refused.
    pub fn complaints(&self) -> &[Error] {
        &self.complaints
    }

    /// The channel, by what it has said of itself.
    pub fn channel(&self) -> ChannelId {
        ChannelId::Multifd(self.hello.map_or(0, |hello| hello.id))
    }

    fn lex<'a>(&self, input: &mut Cursor<'a>) -> Result<Packet<'a>, Fault> {
        match self.expect {
            Expect::Hello => MultifdHello::parse(input).map(Packet::Hello),
            Expect::Packet => {
                let head = PacketHead::parse(&mut input.clone())?;
                let reads_device = self.dialect.has(Difference::MultifdDevicePackets);
                if reads_device && head.flags.contains(MultifdFlags::DEVICE_STATE) {
                    DevicePacket::parse(input).map(Packet::Device)
                } else {
                    RamPacket::parse(input, packet_page_count(self.page_size)).map(Packet::Ram)
                }
            }
            Expect::Payload(left) if self.elide && self.batch.method() == Method::NONE => {
                Ok(Packet::Payload(Bulk::Elided(left)))
            }
            Expect::Payload(left) => {
                let count = left.min(PIECE as u64) as usize;
                input.take("payload", count).map(|bytes| Packet::Payload(Bulk::Bytes(bytes)))
            }
            Expect::DeviceData(left) => {
                let count = left.min(PIECE as u64) as usize;
                input.take("device state", count).map(|bytes| Packet::DeviceData(Bulk::Bytes(bytes)))
            }
        }
    }

    /// Whether the event may come, and what comes behind it.
    fn admit(&mut self, event: &Packet<'_>) -> Result<()> {
        self.expect = match event {
            Packet::Hello(hello) => {
                self.check_version(hello.version, "hello")?;
                self.hello = Some(*hello);
                Expect::Packet
            }
            Packet::Ram(packet) => {
                let (method, payload) = self.check_ram(packet)?;
                self.batch.take(packet, method, payload);
                if payload == 0 { Expect::Packet } else { Expect::Payload(payload) }
            }
            Packet::Device(packet) => {
                self.check_device(packet)?;
                self.batch.take_device(packet);
                match packet.payload_size {
                    0 => Expect::Packet,
                    size => Expect::DeviceData(size.into()),
                }
            }
            Packet::Payload(bulk) => {
                self.batch.left -= bulk.len();
                if self.batch.left == 0 { Expect::Packet } else { Expect::Payload(self.batch.left) }
            }
            Packet::DeviceData(bulk) => {
                self.batch.left -= bulk.len();
                if self.batch.left == 0 { Expect::Packet } else { Expect::DeviceData(self.batch.left) }
            }
        };
        Ok(())
    }

    /// Method and payload length of a packet of pages.
    fn check_ram(&mut self, packet: &RamPacket<'_>) -> Result<(Method, u64)> {
        self.check_version(packet.head.version, "packet")?;
        let room = packet.offsets.len() as u64;
        let (alloc, normal) = (u64::from(packet.pages_alloc), u64::from(packet.normal_pages));
        // Releases that know no zero pages do not look at the field.
        let zero = match self.dialect.has(Difference::MultifdZeroPages) {
            true => u64::from(packet.zero_pages),
            false => 0,
        };
        if alloc > room {
            let message = format!("pages_alloc {alloc}, a packet has room for {room} pages");
            self.complain(ErrorKind::Malformed, 12, message)?;
        }
        if normal > room || normal + zero > alloc {
            let message = format!("{normal} pages and {zero} zero pages where {alloc} fit");
            // Nothing could be placed by such offsets.
            return Err(self.error(ErrorKind::Malformed, 16, message));
        }
        let method = match self.dialect.has(Difference::MultifdWideMethod) {
            true => packet.head.flags.method(),
            false => Method(packet.head.flags.0 & OLD_METHOD_MASK),
        };
        if normal + zero > 0 {
            self.check_method(method)?;
        }
        let size = packet.payload_size;
        match (normal, method) {
            (0, Method::NONE) => Ok((method, 0)),
            (0, _) if zero > 0 && size != 0 => {
                let message = format!("a payload of {size} bytes for zero pages only");
                self.complain(ErrorKind::Malformed, 20, message)?;
                Ok((method, 0))
            }
            // The size of an earlier packet, or nothing.
            (0, _) => Ok((method, 0)),
            // The number of pages counts, and not the size; every release does so.
            (_, Method::NONE) => Ok((method, normal * self.page_size)),
            (_, _) if size > MAX_MULTIFD_PAYLOAD => {
                let message = format!("a payload of {size} bytes, at most {MAX_MULTIFD_PAYLOAD} are taken");
                Err(self.error(ErrorKind::TooLarge, 20, message))
            }
            (_, _) => Ok((method, size.into())),
        }
    }

    fn check_method(&mut self, method: Method) -> Result<()> {
        match self.method {
            Some(expected) if expected != method => {
                let message = format!(
                    "pages are encoded as {method} where {expected} was expected (multifd-compression must be the same \
                     on both ends)"
                );
                self.complain(ErrorKind::OutOfOrder, 8, message)
            }
            Some(_) => Ok(()),
            None if method.name().is_none() => {
                let message = format!("encoding {method}, which no release has");
                self.complain(ErrorKind::Malformed, 8, message)
            }
            None => {
                self.method = Some(method);
                Ok(())
            }
        }
    }

    fn check_device(&mut self, packet: &DevicePacket<'_>) -> Result<()> {
        self.check_version(packet.head.version, "packet")?;
        if packet.head.flags.contains(MultifdFlags::SYNC) {
            self.complain(ErrorKind::Malformed, 8, "device state together with SYNC".to_owned())?;
        }
        if !packet.idstr.is_terminated() {
            self.complain(ErrorKind::Malformed, 12, "the device's name has no end".to_owned())?;
        }
        match packet.payload_size {
            0 => self.complain(ErrorKind::Malformed, 272, "a packet of device state without any".to_owned()),
            size if size > MAX_DEVICE_PACKET => {
                let message = format!("device state of {size} bytes, at most {MAX_DEVICE_PACKET} are taken");
                Err(self.error(ErrorKind::TooLarge, 272, message))
            }
            _ => Ok(()),
        }
    }

    fn check_version(&mut self, version: u32, what: &str) -> Result<()> {
        if version == MULTIFD_VERSION {
            return Ok(());
        }
        self.complain(
            ErrorKind::Malformed,
            4,
            format!("{what} of version {version}, expected {MULTIFD_VERSION}"),
        )
    }

    /// An error, or a complaint from a lenient parser.
    fn complain(&mut self, kind: ErrorKind, at: u64, message: String) -> Result<()> {
        let error = self.error(kind, at, message);
        match self.mode {
            Mode::Strict => Err(error),
            Mode::Lenient => {
                if self.complaints.len() < MAX_COMPLAINTS {
                    self.complaints.push(error);
                }
                Ok(())
            }
        }
    }

    /// An error `at` bytes behind the beginning of the event.
    #[cold]
    fn error(&self, kind: ErrorKind, at: u64, message: impl Into<String>) -> Error {
        let doing = match self.expect {
            Expect::Hello => "multifd hello",
            Expect::Packet => "multifd packet",
            Expect::Payload(_) => "multifd payload",
            Expect::DeviceData(_) => "device state",
        };
        Error::new(kind, self.offset + at, doing, message).on(self.channel())
    }
}

/// `MULTIFD_FLAG_COMPRESSION_MASK` up to 9.0.
const OLD_METHOD_MASK: u32 = 0x0e;

impl ChannelParser for PacketParser {
    type Event<'a> = Packet<'a>;

    fn step<'a>(&mut self, input: &'a [u8], tail: Tail) -> Result<Step<'a, Packet<'a>>> {
        if input.is_empty() && self.expect == Expect::Packet && tail == Tail::Closed {
            return Ok(Step::End);
        }
        let mut cursor = Cursor::new(self.offset, input);
        match self.lex(&mut cursor) {
            Ok(event) => {
                self.admit(&event)?;
                let start = self.offset;
                self.offset += event.wire_len();
                let raw = &input[..cursor.consumed()];
                Ok(Step::Event(Located { event, range: start..self.offset, raw }))
            }
            Err(Fault::Bad(error)) => Err(error.on(self.channel())),
            Err(Fault::More { missing, .. }) if tail != Tail::Closed => Ok(Step::More(missing)),
            Err(Fault::More { field, missing }) => {
                let message = format!("the channel ends here, {missing} bytes short of {field}");
                Err(self.error(ErrorKind::Truncated, input.len() as u64, message))
            }
        }
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn expected(&self) -> &'static str {
        match self.expect {
            Expect::Hello => "the hello of a multifd channel",
            Expect::Packet => "a multifd packet",
            Expect::Payload(_) => "the payload of a multifd packet",
            Expect::DeviceData(_) => "device state",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::multifd::Framer;

    const PAGE: u64 = 4096;

    fn read(
        bytes: &[u8],
        mut parser: PacketParser,
        step: usize,
    ) -> Result<Vec<(String, std::ops::Range<u64>)>> {
        let (mut start, mut end, mut found) = (0, 0, Vec::new());
        loop {
            let tail = if end == bytes.len() { Tail::Closed } else { Tail::Open };
            match parser.step(&bytes[start..end], tail)? {
                Step::End => return Ok(found),
                Step::More(_) => end = (end + step).min(bytes.len()),
                Step::Event(located) => {
                    let mut out = Vec::new();
                    located.event.emit(&mut out);
                    assert_eq!(out, located.raw);
                    start += located.raw.len();
                    found.push((format!("{:?}", located.event), located.range));
                }
            }
        }
    }

    /// Hello, SYNC, three pages and a zero page, device state, an empty packet.
    fn talk() -> Vec<u8> {
        let mut framer = Framer::new("11.1".parse().unwrap(), PAGE);
        let mut bytes = Vec::new();
        MultifdHello::new(2, [7; 16]).emit(&mut bytes);
        bytes.extend_from_slice(framer.sync(0));
        bytes.extend_from_slice(framer.pages(
            b"pc.ram",
            &[0, 4096, 8192],
            &[12288],
            Method::NONE,
            3 * 4096,
            1,
        ));
        bytes.extend((0..3 * 4096u32).map(|i| (i / 4096) as u8 + 1));
        bytes.extend_from_slice(&Framer::device(b"0000:00:04.0/vfio", 0, 13));
        bytes.extend_from_slice(b"thirteen byte");
        let mut old = Framer::new("7.2".parse().unwrap(), PAGE);
        bytes.extend_from_slice(old.empty(9));
        bytes
    }

    #[test]
    fn the_same_whole_and_in_every_piece() {
        let bytes = talk();
        let whole = read(&bytes, PacketParser::default(), bytes.len()).unwrap();
        assert_eq!(whole.len(), 7, "{whole:?}");
        for step in [1, 7, 1344, 4096] {
            assert_eq!(whole, read(&bytes, PacketParser::default(), step).unwrap());
        }
        assert_eq!(whole.last().map(|(_, range)| range.end), Some(bytes.len() as u64));
    }

    #[test]
    fn a_cut_is_named_and_between_packets_it_is_the_end() {
        let bytes = talk();
        let ends: Vec<usize> =
            vec![64, 64 + 1344, 64 + 2 * 1344 + 12288, 64 + 2 * 1344 + 12288 + 276 + 13, bytes.len()];
        for cut in (0..bytes.len()).filter(|c| c % 97 < 3 || ends.contains(c)) {
            match read(&bytes[..cut], PacketParser::default(), cut.max(1)) {
                Ok(_) => assert!(ends.contains(&cut), "{cut}"),
                Err(e) => {
                    assert_eq!(
                        (e.kind(), e.offset()),
                        (ErrorKind::Truncated, Some(cut as u64)),
                        "{cut}: {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn pages_are_placed_by_piece() {
        let bytes = talk();
        let mut parser = PacketParser::default();
        let mut at = 0;
        let mut seen = Vec::new();
        while let Step::Event(located) = parser.step(&bytes[at..], Tail::Closed).unwrap() {
            at += located.raw.len();
            if let Packet::Payload(bulk) = located.event {
                seen.extend(parser.batch().pages(bulk.bytes().unwrap()).map(|(o, p)| (o, p[0], p.len())));
                assert_eq!(parser.batch().zero(), [12288]);
                assert_eq!(parser.batch().name(), Name(b"pc.ram"));
            }
        }
        assert_eq!(seen, [(0, 1, 4096), (4096, 2, 4096), (8192, 3, 4096)]);
    }

    /// A channel with one packet of zlib, changed by `change`.
    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut framer = Framer::new("11.1".parse().unwrap(), PAGE);
        let mut bytes = Vec::new();
        MultifdHello::new(1, [0; 16]).emit(&mut bytes);
        bytes.extend_from_slice(framer.pages(b"pc.ram", &[0, 4096], &[], Method::ZLIB, 4, 1));
        bytes.extend_from_slice(b"zlib");
        change(&mut bytes);
        match read(&bytes, PacketParser::default(), bytes.len()) {
            Ok(events) => format!("{} events", events.len()),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn what_a_destination_refuses() {
        let at = |offset: usize, value: u32| {
            move |b: &mut Vec<u8>| b[64 + offset..][..4].copy_from_slice(&value.to_be_bytes())
        };
        insta::assert_snapshot!(changed(|_| ()), @"3 events");
        insta::assert_snapshot!(changed(|b| b[0] = 0), @"multifd hello: magic 0x00223344 where 0x11223344 was expected (multifd channel 0, offset 0x0)");
        insta::assert_snapshot!(changed(|b| b[7] = 2), @"multifd hello: hello of version 2, expected 1 (multifd channel 0, offset 0x4)");
        insta::assert_snapshot!(changed(at(0, 0)), @"multifd packet: magic 0x00000000 where 0x11223344 was expected (multifd channel 1, offset 0x40)");
        insta::assert_snapshot!(changed(at(4, 9)), @"multifd packet: packet of version 9, expected 1 (multifd channel 1, offset 0x44)");
        insta::assert_snapshot!(changed(at(8, 0x80 | 2)), @"3 events");
        insta::assert_snapshot!(changed(at(8, 6)), @"multifd packet: encoding Method(0x6), which no release has (multifd channel 1, offset 0x48)");
        insta::assert_snapshot!(changed(at(12, 129)), @"multifd packet: pages_alloc 129, a packet has room for 128 pages (multifd channel 1, offset 0x4c)");
        insta::assert_snapshot!(changed(at(16, 129)), @"multifd packet: 129 pages and 0 zero pages where 128 fit (multifd channel 1, offset 0x50)");
        insta::assert_snapshot!(changed(at(32, 127)), @"multifd packet: 2 pages and 127 zero pages where 128 fit (multifd channel 1, offset 0x50)");
        insta::assert_snapshot!(changed(at(20, u32::MAX)), @"multifd packet: a payload of 4294967295 bytes, at most 1048576 are taken (multifd channel 1, offset 0x54)");
        insta::assert_snapshot!(changed(|b| { at(16, 0)(b); at(32, 1)(b); }), @"multifd packet: a payload of 4 bytes for zero pages only (multifd channel 1, offset 0x54)");
    }

    #[test]
    fn a_payload_size_without_pages_is_stale() {
        // Count 0 and size 4: what older sources leave behind. The four bytes are then no part of the packet.
        let text = changed(|b| {
            b[64 + 16..64 + 20].fill(0);
            b.truncate(64 + 1344);
        });
        assert_eq!(text, "2 events");
    }

    #[test]
    fn a_lenient_parser_goes_on_and_remembers() {
        let mut bytes = talk();
        bytes[7] = 3;
        bytes[64 + 4 + 3] = 4;
        let mut parser = PacketParser::with(Mode::Lenient, Dialect::ANY, PAGE);
        let mut at = 0;
        while let Step::Event(located) = parser.step(&bytes[at..], Tail::Closed).unwrap() {
            at += located.raw.len();
        }
        assert_eq!((at, parser.complaints().len()), (bytes.len(), 2));
    }

    #[test]
    fn an_old_destination_takes_device_state_for_pages() {
        let mut bytes = Vec::new();
        MultifdHello::new(0, [0; 16]).emit(&mut bytes);
        bytes.extend_from_slice(&Framer::device(b"0000:00:04.0/vfio", 0, 2000));
        bytes.extend_from_slice(&[0; 2000]);
        let old = PacketParser::with(Mode::Strict, "7.2".parse().unwrap(), PAGE);
        let error = read(&bytes, old, bytes.len()).unwrap_err();
        // The first letters of the name, read as a number.
        assert!(error.message().starts_with("pages_alloc 808464432"), "{error}");
    }
}
