//! Packets in every order, and what no destination takes.

use proptest::prelude::*;

use super::*;
use crate::channel::Located;
use crate::device_state::{Arrangement, Plan, SyntheticDevice, SyntheticVerdict, VfioEvent, VfioSection};
use crate::dialect::Dialect;
use crate::limits::MAX_QUEUED_PACKETS;
use crate::wire::{DevicePacket, VfioTag};
use crate::wire::{MultifdFlags, PacketHead, PaddedName, SectionKind, VfioPacketHead, Wire as _};

const NAME: &str = "0000:00:04.0/vfio";
const END: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x01";
const CONFIG: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x02config\xff\xff\xff\xff\xef\x10\0\x01";
const READY: &[u8] = b"\xff\xff\xff\xff\xef\x10\0\x06";

/// A destination with one device, and what that has been given.
struct Bench {
    assembler: Assembler,
    device: DeviceId,
    state: Vec<u8>,
}

impl Bench {
    fn new(ability: Ability) -> Self {
        Self::with(Settings { ability, ..Settings::default() })
    }

    fn with(settings: Settings) -> Self {
        let mut assembler = Assembler::new(settings);
        let device = assembler.set_up(Name(NAME.as_bytes()), 0).unwrap();
        Self { assembler, device, state: Vec::new() }
    }

    /// A destination that takes packets at once.
    fn live() -> Self {
        let mut bench = Self::new(Ability::Live);
        bench.section(SectionKind::PART, END).unwrap();
        bench
    }

    fn section(&mut self, kind: SectionKind, body: &[u8]) -> Result<()> {
        let Self { assembler, device, state } = self;
        let mut section = VfioSection::new(Dialect::ANY, 0x100);
        let mut each = |located: Located<'_, VfioEvent<'_>>| {
            assembler
                .handle_main(*device, kind, &located, &mut |_, bytes: &[u8]| state.extend_from_slice(bytes))
        };
        section.handle(body, &mut each)?;
        section.finish(each)
    }

    fn switchover(&mut self) -> Result<()> {
        let Self { assembler, state, .. } = self;
        assembler.switchover(&mut |_, bytes: &[u8]| state.extend_from_slice(bytes))
    }

    fn begin(&mut self, channel: u8, size: usize) -> Result<Slot> {
        self.begin_as(NAME, 0, channel, size)
    }

    fn begin_as(&mut self, name: &str, instance_id: u32, channel: u8, size: usize) -> Result<Slot> {
        let mut field = [0; 256];
        PaddedName::pad(name.as_bytes(), &mut field);
        self.assembler.begin(&packet(&field, instance_id, size), ChannelId::Multifd(channel), 0x40)
    }

    fn piece(&mut self, slot: &mut Slot, bytes: &[u8]) -> Result<()> {
        let Self { assembler, state, .. } = self;
        assembler.piece(slot, bytes, &mut |_, bytes: &[u8]| state.extend_from_slice(bytes))
    }

    fn end(&mut self, slot: Slot) -> Result<()> {
        let Self { assembler, state, .. } = self;
        assembler.end(slot, &mut |_, bytes: &[u8]| state.extend_from_slice(bytes))
    }

    /// A whole packet on channel 0.
    fn packet(&mut self, head: VfioPacketHead, data: &[u8]) -> Result<()> {
        let mut payload = Vec::new();
        head.emit(&mut payload);
        payload.extend_from_slice(data);
        let mut slot = self.begin(0, payload.len())?;
        let result = self.piece(&mut slot, &payload);
        result.and(self.end(slot))
    }

    fn data(&mut self, idx: u32, data: &[u8]) -> Result<()> {
        self.packet(VfioPacketHead::data(idx), data)
    }

    fn config(&mut self, idx: u32) -> Result<()> {
        self.packet(VfioPacketHead::config(idx), CONFIG)
    }

    fn report(&mut self) -> DeviceReport {
        let Self { assembler, state, .. } = self;
        assembler.finish(&mut |_, bytes: &[u8]| state.extend_from_slice(bytes)).remove(0)
    }

    fn incomplete(&mut self) -> String {
        self.report().incomplete.unwrap_or_default()
    }
}

fn packet(field: &[u8; 256], instance_id: u32, size: usize) -> DevicePacket<'_> {
    DevicePacket {
        head: PacketHead::new(MultifdFlags::DEVICE_STATE),
        idstr: PaddedName::new(field),
        instance_id,
        payload_size: size as u32,
    }
}

fn data_record(bytes: &[u8]) -> Vec<u8> {
    [&VfioTag::DEV_DATA_STATE.0.to_be_bytes()[..], &(bytes.len() as u64).to_be_bytes(), bytes].concat()
}

#[test]
fn in_order_nothing_waits() {
    let mut bench = Bench::live();
    bench.data(0, b"ab").unwrap();
    bench.data(1, b"").unwrap();
    assert_eq!(bench.state, b"ab");
    bench.data(2, b"c").unwrap();
    assert!(!bench.assembler.is_complete());
    bench.config(3).unwrap();
    assert!(bench.assembler.is_complete());
    let report = bench.report();
    assert_eq!(bench.state, b"abc");
    assert_eq!((report.packets, report.multifd_bytes, report.main_bytes, report.queued_peak), (4, 3, 0, 0));
    assert_eq!((report.config.as_deref(), report.incomplete), (Some(&b"config"[..]), None));
}

#[test]
fn backwards_everything_waits() {
    let mut bench = Bench::live();
    bench.config(3).unwrap();
    bench.data(2, b"c").unwrap();
    bench.data(1, b"ab").unwrap();
    assert_eq!((&*bench.state, bench.assembler.queued()), (&b""[..], 25));
    bench.data(0, b"d").unwrap();
    assert_eq!((&*bench.state, bench.assembler.queued()), (&b"dabc"[..], 0));
    let report = bench.report();
    assert_eq!((report.queued_peak, report.incomplete), (25, None));
}

#[test]
fn a_packet_whose_turn_comes_while_it_is_received_waits_no_longer() {
    let mut bench = Bench::live();
    let mut one = bench.begin(1, 12 + 6).unwrap();
    bench.piece(&mut one, b"\0\0\0\0\0\0").unwrap();
    bench.piece(&mut one, b"\0\x01\0\0\0\0ab").unwrap();
    let mut two = bench.begin(2, 12 + 1).unwrap();
    bench.piece(&mut two, b"\0\0\0\0\0\0\0\x02\0\0\0\0z").unwrap();
    assert_eq!((&*bench.state, bench.assembler.queued()), (&b""[..], 7));
    bench.data(0, b"0").unwrap();
    assert_eq!((&*bench.state, bench.assembler.queued()), (&b"0ab"[..], 1));
    bench.piece(&mut one, b"cd").unwrap();
    assert_eq!(bench.state, b"0abcd");
    bench.end(two).unwrap();
    bench.piece(&mut one, b"ef").unwrap();
    bench.end(one).unwrap();
    assert_eq!(bench.state, b"0abcdefz");
}

#[test]
fn memory_is_bounded_and_does_not_depend_on_numbers() {
    let mut bench = Bench::with(Settings { memory: 10, ..Settings::default() });
    bench.section(SectionKind::PART, END).unwrap();
    bench.data(u32::MAX - 1, b"0123456789").unwrap();
    insta::assert_snapshot!(bench.data(7, b"x").unwrap_err(), @"device state: packet 7 of 0000:00:04.0/vfio must wait for packet 0: with its 1 bytes 11 would wait, and at most 10 may (multifd channel 0, offset 0x40)");
    // What is in turn needs no room.
    let mut bench = Bench::with(Settings { memory: 0, ..Settings::default() });
    bench.switchover().unwrap();
    bench.data(0, &[0; 5000]).unwrap();
    bench.config(1).unwrap();
    assert_eq!(bench.report().incomplete, None);
    let mut bench = Bench::with(Settings { memory: 0, ability: Ability::Downtime, load_ready: None });
    insta::assert_snapshot!(bench.data(0, b"x").unwrap_err(), @"device state: packet 0 of 0000:00:04.0/vfio must wait for SWITCHOVER_START: with its 1 bytes 1 would wait, and at most 0 may (multifd channel 0, offset 0x40)");
    // Packets without data take room all the same.
    let mut bench = Bench::live();
    for idx in 1..=MAX_QUEUED_PACKETS as u32 {
        bench.data(idx, b"").unwrap();
    }
    insta::assert_snapshot!(bench.data(u32::MAX - 1, b"").unwrap_err(), @"device state: packet 4294967294 of 0000:00:04.0/vfio must wait for packet 0, and 262144 packets wait already (multifd channel 0, offset 0x40)");
}

#[test]
fn what_comes_too_early_is_known_before_it_is_refused() {
    let mut bench = Bench::with(Settings { memory: 20, ..Settings::default() });
    let head = |idx: u8| [0, 0, 0, 0, 0, 0, 0, idx, 0, 0, 0, 0];
    let slot = bench.begin(1, 12 + 10).unwrap();
    assert_eq!(bench.assembler.too_early(&slot, &head(0)), Some(TooEarly::Start));
    bench.section(SectionKind::PART, END).unwrap();
    assert_eq!(bench.assembler.too_early(&slot, &head(0)), None);
    assert_eq!(bench.assembler.too_early(&slot, &head(1)), Some(TooEarly::Packet));
    assert_eq!(bench.assembler.too_early(&slot, &head(1)[..11]), None, "nobody knows");
    bench.end(slot).unwrap_err();
    // Half of the packet: there is room.
    let slot = bench.begin(2, 12 + 5).unwrap();
    assert_eq!(bench.assembler.too_early(&slot, &head(1)), None);
    bench.data(3, b"0123").unwrap();
    assert_eq!(bench.assembler.too_early(&slot, &head(1)), Some(TooEarly::Packet));
}

#[test]
fn packets_that_multifd_refuses() {
    let mut bench = Bench::live();
    insta::assert_snapshot!(bench.begin(3, 0).unwrap_err(), @"device state: empty device state of 0000:00:04.0/vfio (multifd channel 3, offset 0x40)");
    insta::assert_snapshot!(bench.begin(3, (16 << 20) + 1).unwrap_err(), @"device state: 16777217 bytes of state of 0000:00:04.0/vfio, at most 16777216 are taken (multifd channel 3, offset 0x40)");
    insta::assert_snapshot!(bench.begin_as("0000:00:05.0/vfio", 0, 3, 16).unwrap_err(), @"device state: state of 0000:00:05.0/vfio instance 0, where no device that takes packets was set up (multifd channel 3, offset 0x40)");
    insta::assert_snapshot!(bench.begin_as(NAME, 1, 3, 16).unwrap_err(), @"device state: state of 0000:00:04.0/vfio instance 1, an instance that was not set up (multifd channel 3, offset 0x40)");
    insta::assert_snapshot!(bench.begin_as("ram", 0, 3, 16).unwrap_err(), @"device state: state of ram instance 0, where no device that takes packets was set up (multifd channel 3, offset 0x40)");
    let field = [b'a'; 256];
    let packet = |flags| DevicePacket { head: PacketHead::new(flags), ..packet(&field, 0, 16) };
    let begin = |bench: &mut Bench, flags| {
        bench.assembler.begin(&packet(flags), ChannelId::Multifd(3), 0x40).unwrap_err()
    };
    insta::assert_snapshot!(begin(&mut bench, MultifdFlags::DEVICE_STATE), @"device state: idstr without a NUL at its end (multifd channel 3, offset 0x40)");
    insta::assert_snapshot!(begin(&mut bench, MultifdFlags(0x41)), @"device state: a device-state packet with SYNC (multifd channel 3, offset 0x40)");
    insta::assert_snapshot!(Bench::new(Ability::Off).begin(3, 16).unwrap_err(), @"device state: a packet for 0000:00:04.0/vfio, and this destination is not doing multifd transfer (multifd channel 3, offset 0x40)");
    // The method is ignored.
    let mut field = [0; 256];
    PaddedName::pad(NAME.as_bytes(), &mut field);
    let packet = DevicePacket { head: PacketHead::new(MultifdFlags(0xc2)), ..self::packet(&field, 0, 16) };
    bench.assembler.begin(&packet, ChannelId::Multifd(3), 0x40).unwrap();
    assert_eq!(bench.begin(3, 16).unwrap_err().kind(), ErrorKind::Misuse);
}

#[test]
fn packets_that_a_device_refuses() {
    let mut bench = Bench::live();
    insta::assert_snapshot!(bench.begin(3, 11).unwrap_err(), @"device state: 11 bytes of state of 0000:00:04.0/vfio, less than the 12 of a VFIO head (multifd channel 3, offset 0x40)");
    let odd = |version, idx| VfioPacketHead { version, ..VfioPacketHead::data(idx) };
    insta::assert_snapshot!(Bench::live().packet(odd(1, 0), b"x").unwrap_err(), @"device state: 0000:00:04.0/vfio: version 1 of a VFIO packet, expected 0 (multifd channel 0, offset 0x40)");
    insta::assert_snapshot!(Bench::live().packet(odd(0, u32::MAX), b"x").unwrap_err(), @"device state: 0000:00:04.0/vfio: idx 0xffffffff of a VFIO packet, which none can have (multifd channel 0, offset 0x40)");
    // Twice: in turn, waiting, being received.
    bench.data(0, b"x").unwrap();
    insta::assert_snapshot!(bench.data(0, b"x").unwrap_err(), @"device state: packet 0 of 0000:00:04.0/vfio has come already, its place is filled (multifd channel 0, offset 0x40)");
    let mut bench = Bench::live();
    bench.data(4, b"x").unwrap();
    insta::assert_snapshot!(bench.data(4, b"x").unwrap_err(), @"device state: packet 4 of 0000:00:04.0/vfio has come already, its place is filled (multifd channel 0, offset 0x40)");
    let mut slot = bench.begin(1, 13).unwrap();
    bench.piece(&mut slot, &[0; 12]).unwrap();
    insta::assert_snapshot!(bench.data(0, b"x").unwrap_err(), @"device state: packet 0 of 0000:00:04.0/vfio has come already, its place is filled (multifd channel 0, offset 0x40)");
    // Around the config.
    let mut bench = Bench::live();
    bench.config(4).unwrap();
    insta::assert_snapshot!(bench.data(5, b"x").unwrap_err(), @"device state: packet 5 of 0000:00:04.0/vfio is behind the config, packet 4 (multifd channel 0, offset 0x40)");
    insta::assert_snapshot!(bench.config(6).unwrap_err(), @"device state: packet 6 of 0000:00:04.0/vfio is a second config, packet 4 was the first (multifd channel 0, offset 0x40)");
    insta::assert_snapshot!(bench.config(4).unwrap_err(), @"device state: packet 4 of 0000:00:04.0/vfio is a second config, packet 4 was the first (multifd channel 0, offset 0x40)");
    let mut bench = Bench::live();
    bench.data(5, b"x").unwrap();
    insta::assert_snapshot!(bench.config(4).unwrap_err(), @"device state: packet 4 of 0000:00:04.0/vfio is the config, and packet 5 is behind it (multifd channel 0, offset 0x40)");
    let mut bench = Bench::live();
    bench.config(0).unwrap();
    insta::assert_snapshot!(bench.data(0, b"x").unwrap_err(), @"device state: packet 0 of 0000:00:04.0/vfio, which has its config already (multifd channel 0, offset 0x40)");
    insta::assert_snapshot!(bench.data(1, b"x").unwrap_err(), @"device state: packet 1 of 0000:00:04.0/vfio, which has its config already (multifd channel 0, offset 0x40)");
    // Configs that are none; the error is what the report says.
    let config = |bytes: &[u8]| Bench::live().packet(VfioPacketHead::config(0), bytes).unwrap_err();
    insta::assert_snapshot!(config(b"config"), @"VFIO config packet: it ends inside its DEV_CONFIG_STATE (multifd channel 0, offset 0x52)");
    insta::assert_snapshot!(config(END), @"VFIO config packet: END_OF_STATE where DEV_CONFIG_STATE was expected (multifd channel 0, offset 0x4c)");
    insta::assert_snapshot!(config(&CONFIG[..14]), @"VFIO config packet: it ends without END_OF_STATE (multifd channel 0, offset 0x5a)");
    insta::assert_snapshot!(config(&[0; (1 << 20) + 1]), @"device state: 0000:00:04.0/vfio: a config of 1048577 bytes, at most 1048576 are taken (multifd channel 0, offset 0x40)");
    let mut bench = Bench::live();
    bench.packet(VfioPacketHead::config(0), b"config").unwrap_err();
    insta::assert_snapshot!(bench.incomplete(), @"VFIO config packet: it ends inside its DEV_CONFIG_STATE (multifd channel 0, offset 0x52)");
    // Unknown flags are ignored.
    let mut bench = Bench::live();
    let mut head = VfioPacketHead::data(0);
    head.flags.0 = 0x8000_0000;
    bench.packet(head, b"x").unwrap();
    assert_eq!(bench.state, b"x");
}

#[test]
fn what_is_missing_is_named() {
    let missing = |idxs: &[u32], config: Option<u32>| {
        let mut bench = Bench::live();
        idxs.iter().for_each(|idx| bench.data(*idx, b"x").unwrap());
        config.into_iter().for_each(|idx| bench.config(idx).unwrap());
        bench.incomplete()
    };
    insta::assert_snapshot!(missing(&[], None), @"no config has come on any channel");
    insta::assert_snapshot!(missing(&[0, 1, 2], None), @"the config packet is missing; of packets 0 to 2 none");
    insta::assert_snapshot!(missing(&[0, 3, 4], None), @"the config packet is missing; of packets 0 to 4 these: 1 to 2");
    insta::assert_snapshot!(missing(&[0, 2, 7], Some(9)), @"of packets 0 to 9 these are missing: 1, 3 to 6, 8");
    insta::assert_snapshot!(missing(&[], Some(u32::MAX - 1)), @"of packets 0 to 4294967294 these are missing: 0 to 4294967293");
    let odd: Vec<_> = (0..40).map(|n| 2 * n + 1).collect();
    insta::assert_snapshot!(missing(&odd, Some(100)), @"of packets 0 to 100 these are missing: 0, 2, 4, 6, 8, 10, 12, 14 and more, 60 in all");
    // A packet that was cut off is not there.
    let mut bench = Bench::live();
    bench.config(1).unwrap();
    let mut slot = bench.begin(2, 20).unwrap();
    bench.piece(&mut slot, &[0; 19]).unwrap();
    insta::assert_snapshot!(bench.end(slot).unwrap_err(), @"device state: 1 of 20 bytes of the packet are missing (multifd channel 2, offset 0x40)");
    insta::assert_snapshot!(bench.incomplete(), @"of packets 0 to 1 these are missing: 0");
}

#[test]
fn a_stock_destination_waits_for_switchover_start() {
    let mut bench = Bench::new(Ability::Downtime);
    bench.section(SectionKind::PART, END).unwrap();
    bench.data(0, b"ab").unwrap();
    bench.config(1).unwrap();
    assert!(bench.state.is_empty() && !bench.assembler.is_complete());
    insta::assert_snapshot!(bench.incomplete(), @"no SWITCHOVER_START has come: a stock destination completes without the state of its 2 packets, and does not say so");
    bench.switchover().unwrap();
    bench.switchover().unwrap();
    let report = bench.report();
    assert_eq!((&*bench.state, report.incomplete, report.queued_peak), (&b"ab"[..], None, 24));

    let mut bench = Bench::new(Ability::Downtime);
    insta::assert_snapshot!(bench.section(SectionKind::FULL, CONFIG).unwrap_err(), @"device state: 0000:00:04.0/vfio: DEV_CONFIG_STATE on the main channel, of a device that is doing multifd transfer (main channel, offset 0x100)");
    bench.data(0, b"x").unwrap();
    bench.switchover().unwrap();
    insta::assert_snapshot!(bench.switchover().unwrap_err(), @"device state: a second SWITCHOVER_START while packets are loaded; a stock destination aborts");
}

#[test]
fn everything_may_go_over_the_main_channel() {
    for ability in [Ability::Off, Ability::Live] {
        let mut bench = Bench::new(ability);
        bench
            .section(SectionKind::START, &[&VfioTag::DEV_SETUP_STATE.0.to_be_bytes(), END].concat())
            .unwrap();
        bench.section(SectionKind::PART, &[&data_record(b"ab")[..], END].concat()).unwrap();
        bench.section(SectionKind::PART, &VfioTag::DEV_INIT_DATA_SENT.0.to_be_bytes()).unwrap();
        bench.switchover().unwrap();
        bench.section(SectionKind::END, &[&data_record(b"c")[..], &data_record(b"d"), END].concat()).unwrap();
        insta::allow_duplicates!(
            insta::assert_snapshot!(bench.incomplete(), @"no config has come on any channel")
        );
        bench.section(SectionKind::FULL, CONFIG).unwrap();
        let report = bench.report();
        assert_eq!((&*bench.state, report.incomplete), (&b"abcd"[..], None));
        assert_eq!((report.main_bytes, report.initial_data_sent), (4, 1));
        assert_eq!(report.config.as_deref(), Some(&b"config"[..]));
        bench.section(SectionKind::FULL, CONFIG).unwrap_err();
    }
    // The config of 5.2 comes first.
    let mut bench = Bench::new(Ability::Off);
    bench.section(SectionKind::END, &[CONFIG, &data_record(b"x"), END].concat()).unwrap();
    assert_eq!((bench.report().incomplete, &*bench.state), (None, &b"x"[..]));
}

/// Live data on the main channel, the rest in packets that are read before it: the order is kept.
#[test]
fn packets_do_not_overtake_the_main_channel() {
    for ability in [Ability::Downtime, Ability::Live] {
        let mut bench = Bench::new(ability);
        bench.data(0, b"c").unwrap();
        bench.section(SectionKind::PART, &[&data_record(b"a")[..], END].concat()).unwrap();
        bench.section(SectionKind::PART, END).unwrap();
        bench.data(1, b"d").unwrap();
        bench.section(SectionKind::PART, &[&data_record(b"b")[..], END].concat()).unwrap();
        bench.config(2).unwrap();
        bench.switchover().unwrap();
        bench.section(SectionKind::END, END).unwrap();
        bench.section(SectionKind::FULL, END).unwrap();
        assert_eq!((bench.report().incomplete, &*bench.state), (None, &b"abcd"[..]));
    }
}

#[test]
fn data_on_main_behind_packets_is_refused() {
    let part = [&data_record(b"x")[..], END].concat();
    // Packets went to the device, the guest still running.
    let mut bench = Bench::live();
    bench.data(0, b"x").unwrap();
    insta::assert_snapshot!(bench.section(SectionKind::PART, &part).unwrap_err(), @"device state: 0000:00:04.0/vfio: data on the main channel and in packets, whose order nothing tells (main channel, offset 0x108)");
    insta::assert_snapshot!(bench.incomplete(), @"device state: 0000:00:04.0/vfio: data on the main channel and in packets, whose order nothing tells (main channel, offset 0x108)");
    // None went: the first PART said too little.
    let mut bench = Bench::live();
    bench.data(1, b"z").unwrap();
    bench.section(SectionKind::PART, &part).unwrap();
    bench.data(0, b"y").unwrap();
    bench.switchover().unwrap();
    assert_eq!(bench.state, b"xyz");
    for ability in [Ability::Downtime, Ability::Live] {
        // Behind SWITCHOVER_START: packets first, or data first.
        let mut bench = Bench::new(ability);
        bench.switchover().unwrap();
        bench.data(3, b"x").unwrap();
        bench.section(SectionKind::END, &part).unwrap_err();
        let mut bench = Bench::new(ability);
        bench.switchover().unwrap();
        bench.section(SectionKind::END, &part).unwrap();
        bench.data(0, b"x").unwrap_err();
        // A config there, and packets.
        let mut bench = Bench::new(Ability::Live);
        bench.section(SectionKind::FULL, CONFIG).unwrap();
        insta::allow_duplicates!(
            insta::assert_snapshot!(bench.data(0, b"x").unwrap_err(), @"device state: packet 0 of 0000:00:04.0/vfio, which has its config already (multifd channel 0, offset 0x40)")
        );
    }
}

#[test]
fn load_ready() {
    let ready = |ability, load_ready, bodies: &[&[u8]]| {
        let mut bench = Bench::with(Settings { ability, load_ready, ..Settings::default() });
        bench.switchover().unwrap();
        if ability != Ability::Off {
            bench.config(0).unwrap();
        }
        for body in bodies {
            bench.section(SectionKind::FULL, body).map_err(|e| e.message().to_owned())?;
        }
        let report = bench.report();
        report.incomplete.map_or(Ok(report.load_ready), Err)
    };
    assert_eq!(ready(Ability::Live, None, &[END]), Ok(false));
    assert_eq!(ready(Ability::Live, None, &[READY]), Ok(true));
    assert_eq!(ready(Ability::Downtime, Some(true), &[READY]), Ok(true));
    assert_eq!(ready(Ability::Downtime, Some(false), &[END]), Ok(false));
    insta::assert_snapshot!(ready(Ability::Live, Some(true), &[END]).unwrap_err(), @"DEV_CONFIG_LOAD_READY has not come");
    insta::assert_snapshot!(ready(Ability::Live, Some(false), &[READY]).unwrap_err(), @"0000:00:04.0/vfio: DEV_CONFIG_LOAD_READY, which this destination does not wait for");
    insta::assert_snapshot!(ready(Ability::Live, None, &[READY, READY]).unwrap_err(), @"0000:00:04.0/vfio: a second DEV_CONFIG_LOAD_READY");
    insta::assert_snapshot!(ready(Ability::Off, None, &[READY]).unwrap_err(), @"0000:00:04.0/vfio: DEV_CONFIG_LOAD_READY, and this destination is not doing multifd transfer");
}

#[test]
fn devices_are_told_apart() {
    let mut assembler = Assembler::new(Settings::default());
    let one = assembler.set_up(Name(b"vfio"), 0).unwrap();
    let two = assembler.set_up(Name(b"vfio"), 1).unwrap();
    assert_eq!((assembler.find(Name(b"vfio"), 1), assembler.device(one)), (Some(two), (Name(b"vfio"), 0)));
    assert_eq!(assembler.set_up(Name(b"vfio"), 1).unwrap_err().kind(), ErrorKind::OutOfOrder);
    assert!(assembler.find(Name(b"vfio"), 2).is_none());
    for n in 2..MAX_DEVICES as u32 {
        assembler.set_up(Name(b"vfio"), n).unwrap();
    }
    assert_eq!(assembler.set_up(Name(b"x"), 0).unwrap_err().kind(), ErrorKind::TooLarge);
}

/// How packets are given to an assembler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As bytes.
    Plain,
    /// Looked at before.
    Looked,
    /// The same, to an assembler that keeps nothing it need not keep.
    WithoutData,
}

/// Sends what `plans` say over as many channels as there are queues, a piece at a time from a channel that `choose` names. The bits
/// of `flaw` are wrong in the data of one packet: its number in the order in which they begin, byte, bits.
fn interleave(
    (plans, ability, way): (&[Plan], Ability, Way),
    mut queues: Vec<Vec<(usize, u32)>>,
    piece: usize,
    flaw: (usize, usize, u8),
    mut choose: impl FnMut(usize) -> usize,
) -> Vec<DeviceReport> {
    let settings = Settings { ability, ..Settings::default() };
    let mut assembler = match way {
        Way::Plain | Way::Looked => Assembler::new(settings),
        Way::WithoutData => Assembler::without_data(settings),
    };
    for plan in plans {
        assembler.set_up(Name::from(plan.device().name()), plan.device().instance()).unwrap();
    }
    let mut states = vec![Vec::new(); plans.len()];
    let mut open: Vec<Option<(Slot, Vec<u8>, usize)>> = queues.iter().map(|_| None).collect();
    let steps = queues.iter().map(Vec::len).sum::<usize>();
    let mut switchover_in = choose(3 * steps + 1);
    let mut begun = 0;
    loop {
        let busy: Vec<_> =
            (0..queues.len()).filter(|c| open[*c].is_some() || !queues[*c].is_empty()).collect();
        let mut out = |id: DeviceId, bytes: &[u8]| states[id.0].extend_from_slice(bytes);
        if switchover_in == 0 || busy.is_empty() {
            assembler.switchover(&mut out).unwrap();
            switchover_in = usize::MAX;
        }
        switchover_in -= 1;
        if busy.is_empty() {
            break;
        }
        let channel = busy[choose(busy.len())];
        match open[channel].take() {
            None => {
                let (plan, idx) = queues[channel].remove(0);
                let (mut field, mut payload) = ([0; 256], Vec::new());
                plans[plan].packet(idx, &mut payload);
                let is_config = idx + 1 == plans[plan].stop_packets().end;
                if begun == flaw.0 && !is_config {
                    let data = &mut payload[VfioPacketHead::LEN..];
                    let at = flaw.1 % data.len();
                    data[at] ^= flaw.2;
                }
                begun += 1;
                let head = plans[plan].packet_head(idx, &mut field);
                let slot = assembler.begin(&head, ChannelId::Multifd(channel as u8), 0).unwrap();
                open[channel] = Some((slot, payload, 0));
            }
            Some((slot, payload, from)) if from == payload.len() => assembler.end(slot, &mut out).unwrap(),
            Some((mut slot, payload, from)) => {
                let to = payload.len().min(from + piece);
                let bytes = &payload[from..to];
                let piece = if way == Way::Plain { bytes.into() } else { slot.look(bytes) };
                assembler.piece(&mut slot, piece, &mut out).unwrap();
                open[channel] = Some((slot, payload, to));
            }
        }
    }
    let reports = assembler.finish(&mut |_, _| {});
    assert_eq!(assembler.queued(), 0);
    if way != Way::WithoutData && flaw.2 == 0 {
        for (plan, state) in plans.iter().zip(states) {
            let mut expected = vec![0; plan.device().size() as usize];
            plan.device().fill(0, &mut expected);
            assert!(state == expected, "{}", plan.device().name());
        }
    }
    reports
}

proptest! {
    #[test]
    fn any_interleaving_gives_the_same_bytes(
        sizes in prop::collection::vec(32_u64..3000, 1..4),
        channels in 1_usize..6,
        chunk in 1_u32..900,
        piece in 1_usize..1000,
        downtime in any::<bool>(),
        flaw in (0_usize..12, any::<usize>(), prop_oneof![Just(0), any::<u8>()]),
        choices in prop::collection::vec(any::<prop::sample::Index>(), 64),
    ) {
        let mut chosen = choices.iter().cycle();
        let mut choose = |n: usize| chosen.next().map_or(0, |index| index.index(n));
        let plans: Vec<_> = sizes.iter().enumerate().map(|(n, size)| {
            let device = SyntheticDevice::new("vfio", n as u32, *size, chunk.max(40), n as u64).unwrap();
            device.plan(Arrangement::Live, Dialect::ANY)
        }).collect();
        let mut queues = vec![Vec::new(); channels];
        for (n, plan) in plans.iter().enumerate() {
            for idx in 0..plan.stop_packets().end {
                let queue = &mut queues[choose(channels)];
                let at = choose(queue.len() + 1);
                queue.insert(at, (n, idx));
            }
        }
        let ability = if downtime { Ability::Downtime } else { Ability::Live };
        let [plain, looked, without_data] = [Way::Plain, Way::Looked, Way::WithoutData].map(|way| {
            let mut chosen = choices.iter().rev().cycle();
            let choose = |n: usize| chosen.next().map_or(0, |index| index.index(n));
            interleave((&plans, ability, way), queues.clone(), piece, flaw, choose)
        });
        prop_assert_eq!(&plain, &looked);
        prop_assert_eq!(&plain, &without_data);
        for (report, plan) in plain.iter().zip(&plans) {
            prop_assert_eq!(&report.incomplete, &None);
            prop_assert!(report.synthetic == SyntheticVerdict::Equal || flaw.2 != 0);
            prop_assert_eq!(report.multifd_bytes, plan.device().size());
            prop_assert_eq!(report.config.as_ref(), Some(&plan.device().config()));
        }
    }
}
