//! How a synthetic device moves: which record carries which part of its state.
//!
//! ```text
//!            while the guest runs             when it is stopped
//! Main       PART: data on main               END: data   FULL: config                            up to 9.2, and where it is off
//! Downtime   PART: data on main               packets: data, config   END, FULL: END_OF_STATE     stock, 10.0 and later
//! Live       packets: data   PART: nothing    packets: data, config   END, FULL: END_OF_STATE     no stock source so far
//! ```

use std::ops::Range;

use super::SyntheticDevice;
use crate::dialect::{Dialect, Difference};
use crate::wire::{
    DevicePacket, MultifdFlags, PacketHead, PaddedName, Sink as _, VfioPacketHead, VfioTag, Wire as _,
};

/// Where a device's state travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// All of it on the main channel.
    Main,
    /// On multifd channels from the stop of the guest on.
    Downtime,
    /// On multifd channels from the beginning.
    Live,
}

/// A part of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A word.
    Tag(VfioTag),
    /// DEV_DATA_STATE with this part of the state.
    Data {
        /// From here on.
        offset: u64,
        /// So many bytes, at most a chunk.
        length: u32,
    },
    /// DEV_CONFIG_STATE and the config.
    Config,
}

/// How a device moves: the bodies of its sections, and its packets.
///
/// ```
/// use migwire::device_state::{Arrangement, SyntheticDevice};
/// use migwire::dialect::Dialect;
/// let device = SyntheticDevice::new("0000:00:04.0/vfio", 0, 1 << 20, 256 << 10, 7)?;
/// let plan = device.plan(Arrangement::Live, Dialect::ANY);
/// assert_eq!((plan.live_packets(), plan.stop_packets()), (0..2, 2..5));
/// let mut body = Vec::new();
/// plan.start().for_each(|record| plan.emit(record, &mut body));
/// let mut payload = Vec::new();
/// plan.packet(4, &mut payload);
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    device: SyntheticDevice,
    arrangement: Arrangement,
    dialect: Dialect,
    live: u64,
    initial_data_sent: bool,
    load_ready: bool,
}

impl Plan {
    pub(super) fn new(device: SyntheticDevice, arrangement: Arrangement, dialect: Dialect) -> Self {
        let live = device.live_share();
        Self { device, arrangement, dialect, live, initial_data_sent: false, load_ready: false }
    }

    /// Sends so many bytes while the guest runs, rounded down to whole chunks.
    #[must_use]
    pub fn with_live_share(mut self, bytes: u64) -> Self {
        let chunk = u64::from(self.device.chunk);
        self.live = bytes.min(self.device.size) / chunk * chunk;
        self
    }

    /// Sends DEV_INIT_DATA_SENT in the last PART with a live share, if the release knows it: for destinations that acknowledge
    /// the switchover. On the main channel it may overtake live packets; a source that must not let it puts a synchronisation between.
    #[must_use]
    pub fn with_initial_data_sent(mut self, on: bool) -> Self {
        self.initial_data_sent = on && self.dialect.has(Difference::VfioInitDataSent);
        self
    }

    /// Sends DEV_CONFIG_LOAD_READY in the FULL section (`x-migration-load-config-after-iter`), if the release knows it.
    #[must_use]
    pub fn with_load_ready(mut self, on: bool) -> Self {
        self.load_ready = on && self.dialect.has(Difference::VfioLoadReady);
        self
    }

    /// The device.
    pub fn device(&self) -> &SyntheticDevice {
        &self.device
    }

    /// Where its state travels.
    pub fn arrangement(&self) -> Arrangement {
        self.arrangement
    }

    /// Body of the START section.
    pub fn start(&self) -> impl Iterator<Item = Record> + use<> {
        [VfioTag::DEV_SETUP_STATE, VfioTag::END_OF_STATE].map(Record::Tag).into_iter()
    }

    /// Number of PART sections that have something to say, at least one. More of them may follow, without anything.
    pub fn parts(&self) -> u64 {
        self.live.div_ceil(u64::from(self.device.chunk)).max(1)
    }

    /// Body of a PART section.
    pub fn part(&self, number: u64) -> impl Iterator<Item = Record> + use<> {
        let on_main = self.arrangement != Arrangement::Live;
        let chunk = u64::from(self.device.chunk);
        let data = self.data(if on_main { 0..self.live } else { 0..0 });
        let data = data.skip(usize::try_from(number).unwrap_or(usize::MAX)).take(1);
        let last = number.checked_add(1) == Some(self.live.div_ceil(chunk).max(1));
        let end = match self.initial_data_sent && last {
            true => VfioTag::DEV_INIT_DATA_SENT,
            false => VfioTag::END_OF_STATE,
        };
        data.chain([Record::Tag(end)])
    }

    /// Body of the END section: a record at a time, as all of the state may be in it.
    pub fn end(&self) -> impl Iterator<Item = Record> + use<> {
        let on_main = self.arrangement == Arrangement::Main;
        let config = (on_main && !self.dialect.has(Difference::VfioConfigInFull))
            .then_some([Record::Config, Record::Tag(VfioTag::END_OF_STATE)]);
        let data = self.data(if on_main { self.live..self.device.size } else { 0..0 });
        config.into_iter().flatten().chain(data).chain([Record::Tag(VfioTag::END_OF_STATE)])
    }

    /// Body of the FULL section. Without a record there is no such section: 5.2 has none.
    pub fn full(&self) -> impl Iterator<Item = Record> + use<> {
        let in_full = self.dialect.has(Difference::VfioConfigInFull);
        let (config, end) = match self.arrangement {
            Arrangement::Main => {
                (in_full.then_some(Record::Config), in_full.then_some(VfioTag::END_OF_STATE))
            }
            _ if self.load_ready => (None, Some(VfioTag::DEV_CONFIG_LOAD_READY)),
            _ => (None, Some(VfioTag::END_OF_STATE)),
        };
        config.into_iter().chain(end.map(Record::Tag))
    }

    /// Bytes of a record.
    pub fn record_len(&self, record: Record) -> u64 {
        match record {
            Record::Tag(_) => 8,
            Record::Data { length, .. } => 16 + u64::from(length),
            Record::Config => 8 + self.device.config().len() as u64,
        }
    }

    /// Writes a record.
    pub fn emit(&self, record: Record, out: &mut Vec<u8>) {
        match record {
            Record::Tag(tag) => tag.emit(out),
            Record::Data { offset, length } => {
                VfioTag::DEV_DATA_STATE.emit(out);
                out.be64(u64::from(length));
                self.fill(offset, length, out);
            }
            Record::Config => {
                VfioTag::DEV_CONFIG_STATE.emit(out);
                out.put(&self.device.config());
            }
        }
    }

    /// Packets to send while the guest runs, by idx.
    pub fn live_packets(&self) -> Range<u32> {
        match self.arrangement {
            Arrangement::Live => 0..(self.live / u64::from(self.device.chunk)) as u32,
            _ => 0..0,
        }
    }

    /// Packets to send when it is stopped; the last one is the config.
    pub fn stop_packets(&self) -> Range<u32> {
        match self.arrangement {
            Arrangement::Main => 0..0,
            _ => self.live_packets().end..self.data_packets() + 1,
        }
    }

    /// Writes the payload of a packet.
    pub fn packet(&self, idx: u32, out: &mut Vec<u8>) {
        let from = out.len();
        out.resize(from + self.packet_len(idx) as usize, 0);
        self.packet_part(idx, 0, &mut out[from..]);
    }

    /// Writes as much of a packet's payload as `out` takes, from byte `from` on. What there is not of it leaves `out` as it is.
    pub fn packet_part(&self, idx: u32, from: u32, out: &mut [u8]) {
        let left = self.packet_len(idx).saturating_sub(from) as usize;
        let left = left.min(out.len());
        let out = &mut out[..left];
        let mut front = Vec::with_capacity(VfioPacketHead::LEN);
        let data = self.packet_data(idx);
        match data {
            Some(_) => VfioPacketHead::data(idx).emit(&mut front),
            None => {
                VfioPacketHead::config(idx).emit(&mut front);
                self.emit(Record::Config, &mut front);
                VfioTag::END_OF_STATE.emit(&mut front);
            }
        }
        let front = &front[front.len().min(from as usize)..];
        let (of_front, rest) = out.split_at_mut(left.min(front.len()));
        of_front.copy_from_slice(&front[..of_front.len()]);
        if let Some((offset, _)) = data {
            let begun = u64::from(from).saturating_sub(VfioPacketHead::LEN as u64);
            self.device.fill(offset + begun, rest);
        }
    }

    /// Bytes of a packet's payload.
    pub fn packet_len(&self, idx: u32) -> u32 {
        let data = match self.packet_data(idx) {
            Some((_, length)) => length,
            None => 16 + self.device.config().len() as u32,
        };
        VfioPacketHead::LEN as u32 + data
    }

    /// Head of a packet on its multifd channel; `field` takes the name.
    pub fn packet_head<'f>(&self, idx: u32, field: &'f mut [u8; 256]) -> DevicePacket<'f> {
        PaddedName::pad(self.device.name.as_bytes(), field);
        DevicePacket {
            head: PacketHead::new(MultifdFlags::DEVICE_STATE),
            idstr: PaddedName::new(field),
            instance_id: self.device.instance,
            payload_size: self.packet_len(idx),
        }
    }

    /// The part of the state that packets carry.
    fn in_packets(&self) -> Range<u64> {
        let from = if self.arrangement == Arrangement::Live { 0 } else { self.live };
        from..self.device.size
    }

    fn data_packets(&self) -> u32 {
        let bytes = self.in_packets();
        (bytes.end - bytes.start).div_ceil(u64::from(self.device.chunk)) as u32
    }

    /// What is in a packet: offset and length; nothing if it is the config.
    fn packet_data(&self, idx: u32) -> Option<(u64, u32)> {
        let bytes = self.in_packets();
        let chunk = u64::from(self.device.chunk);
        let offset = bytes.start + u64::from(idx) * chunk;
        (offset < bytes.end).then(|| (offset, (bytes.end - offset).min(chunk) as u32))
    }

    fn data(&self, bytes: Range<u64>) -> impl Iterator<Item = Record> + use<> {
        let chunk = u64::from(self.device.chunk);
        let count = (bytes.end - bytes.start).div_ceil(chunk);
        (0..count).map(move |n| {
            let offset = bytes.start + n * chunk;
            Record::Data { offset, length: (bytes.end - offset).min(chunk) as u32 }
        })
    }

    fn fill(&self, offset: u64, length: u32, out: &mut Vec<u8>) {
        let from = out.len();
        out.resize(from + length as usize, 0);
        self.device.fill(offset, &mut out[from..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_state::{SyntheticCheck, SyntheticVerdict, VfioEvent, VfioSection};
    use crate::wire::{Bulk, Cursor};

    fn device(size: u64) -> SyntheticDevice {
        SyntheticDevice::new("vfio", 0, size, 100, 5).unwrap()
    }

    /// Puts a body together, and hands its data to `check`; returns its tags.
    fn body(
        plan: &Plan,
        records: impl Iterator<Item = Record>,
        dialect: Dialect,
        check: &mut SyntheticCheck,
    ) -> Vec<VfioTag> {
        let mut bytes = Vec::new();
        for record in records {
            let from = bytes.len() as u64;
            plan.emit(record, &mut bytes);
            assert_eq!(bytes.len() as u64 - from, plan.record_len(record));
        }
        let mut tags = Vec::new();
        let mut each = |located: crate::channel::Located<'_, VfioEvent<'_>>| {
            match located.event {
                VfioEvent::Tag(tag) => tags.push(tag),
                VfioEvent::Data(Bulk::Bytes(bytes)) => check.handle(bytes),
                VfioEvent::Config(Bulk::Bytes(bytes)) => assert!(bytes == plan.device.config()),
                _ => {}
            }
            Ok(())
        };
        let mut section = VfioSection::new(dialect, 0);
        section.handle(&bytes, &mut each).unwrap();
        section.finish(&mut each).unwrap();
        tags
    }

    #[test]
    fn every_arrangement_carries_all_of_it_in_order() {
        use Arrangement::{Downtime, Live, Main};
        for size in [0, 32, 100, 101, 200, 950] {
            for arrangement in [Main, Downtime, Live] {
                for dialect in ["5.2", "7.2", "10.0", "11.1"] {
                    let dialect = dialect.parse().unwrap();
                    let plan = device(size).plan(arrangement, dialect).with_initial_data_sent(true);
                    let plan = plan.with_load_ready(true);
                    let mut check = SyntheticCheck::new(b"vfio", 0);
                    body(&plan, plan.start(), dialect, &mut check);
                    for number in 0..plan.parts() + 2 {
                        body(&plan, plan.part(number), dialect, &mut check);
                    }
                    let mut configs = 0;
                    for idx in plan.live_packets().chain(plan.stop_packets()) {
                        let mut payload = Vec::new();
                        plan.packet(idx, &mut payload);
                        assert_eq!(payload.len() as u32, plan.packet_len(idx));
                        let mut input = Cursor::new(0, &payload);
                        let head = VfioPacketHead::parse(&mut input).unwrap();
                        assert_eq!(head.idx, idx);
                        if head == VfioPacketHead::config(idx) {
                            assert_eq!(idx + 1, plan.stop_packets().end);
                            configs += 1;
                        } else {
                            assert_eq!(head, VfioPacketHead::data(idx));
                            check.handle(input.rest());
                        }
                    }
                    let mut tags = body(&plan, plan.end(), dialect, &mut check);
                    if plan.full().next().is_some() {
                        tags.extend(body(&plan, plan.full(), dialect, &mut check));
                    }
                    configs += tags.iter().filter(|tag| **tag == VfioTag::DEV_CONFIG_STATE).count();
                    assert_eq!(configs, 1, "{arrangement:?} {dialect} {size}");
                    let expected =
                        if size == 0 { SyntheticVerdict::Foreign } else { SyntheticVerdict::Equal };
                    assert_eq!(check.verdict(), expected, "{arrangement:?} {dialect} {size}");
                }
            }
        }
    }

    #[test]
    fn words_that_a_release_does_not_know_are_not_sent() {
        let tags = |dialect: &str| {
            let plan = device(950).plan(Arrangement::Downtime, dialect.parse().unwrap());
            let plan = plan.with_initial_data_sent(true).with_load_ready(true);
            let last = plan.part(plan.parts() - 1).last();
            (last, plan.full().collect::<Vec<_>>())
        };
        let (end, sent, ready) =
            (VfioTag::END_OF_STATE, VfioTag::DEV_INIT_DATA_SENT, VfioTag::DEV_CONFIG_LOAD_READY);
        assert_eq!(tags("8.0"), (Some(Record::Tag(end)), vec![Record::Tag(end)]));
        assert_eq!(tags("10.0"), (Some(Record::Tag(sent)), vec![Record::Tag(end)]));
        assert_eq!(tags("10.1"), (Some(Record::Tag(sent)), vec![Record::Tag(ready)]));
    }

    #[test]
    fn a_packet_in_parts_is_the_same() {
        let plan = device(250).plan(Arrangement::Live, Dialect::ANY);
        for idx in plan.live_packets().chain(plan.stop_packets()) {
            let mut whole = Vec::new();
            plan.packet(idx, &mut whole);
            for step in [1, 5, 12, 13, 50, 113, 5000] {
                let mut parts = vec![0xa5; whole.len()];
                for (n, part) in parts.chunks_mut(step).enumerate() {
                    plan.packet_part(idx, (n * step) as u32, part);
                }
                assert!(parts == whole, "{idx} in steps of {step}");
            }
            let mut behind = [0xa5; 3];
            plan.packet_part(idx, whole.len() as u32 - 1, &mut behind);
            assert_eq!(behind[1..], [0xa5; 2]);
        }
    }

    #[test]
    fn shares_are_whole_chunks() {
        let plan = device(950).plan(Arrangement::Live, Dialect::ANY);
        assert_eq!((plan.live_packets(), plan.stop_packets()), (0..5, 5..11));
        let plan = plan.with_live_share(299);
        assert_eq!((plan.live_packets(), plan.stop_packets()), (0..2, 2..11));
        let plan = plan.with_live_share(u64::MAX);
        assert_eq!((plan.live_packets(), plan.stop_packets()), (0..9, 9..11));
        let mut field = [0xa5; 256];
        let head = plan.packet_head(9, &mut field);
        assert_eq!((head.idstr.name().text().as_ref(), head.payload_size), ("vfio", 62));
    }
}
