//! One device: what of its state has come, and on which way.

use std::collections::BTreeMap;

use super::{Ability, DeviceId, Out};
use crate::device_state::synthetic::{Maker, Run};
use crate::device_state::{SyntheticCheck, SyntheticVerdict};
use crate::wire::Name;

/// State of one device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: Box<[u8]>,
    pub(super) instance: u32,
    /// The idx that the device takes next.
    pub(super) next: u32,
    /// The slot of packet `next`, while it goes straight through.
    pub(super) direct: Option<usize>,
    /// Packets that wait, or are being received out of order.
    pub(super) queue: BTreeMap<u32, Entry>,
    /// Idx of the config packet, once it has begun to come.
    pub(super) last: Option<u32>,
    /// The highest idx that has come.
    pub(super) highest: Option<u32>,
    /// Something of the packets has gone to the device.
    pub(super) started: bool,
    /// A PART or END section ended; whether data was in one of them, see `main_bytes`.
    pub(super) part_over: bool,
    /// The END section ended: nothing but FULL can follow on the main channel.
    pub(super) end_over: bool,
    /// Data came on the main channel although the packets' turn had come.
    pub(super) late_main: bool,
    pub(super) main_bytes: u64,
    pub(super) multifd_bytes: u64,
    pub(super) packets: u64,
    pub(super) queued: u64,
    pub(super) queued_peak: u64,
    /// The config of the main channel, while it comes.
    pub(super) main_config: Option<Vec<u8>>,
    pub(super) config: Option<Vec<u8>>,
    pub(super) load_ready: bool,
    pub(super) initial_data_sent: u32,
    pub(super) check: SyntheticCheck,
    /// What the state seems to be made of, by a packet whose turn has not come.
    pub(super) guess: Option<Maker>,
    /// The error that this device ended with.
    pub(super) failed: Option<String>,
}

/// A packet that waits: what can be made again, and what stands behind it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) run: Option<Run>,
    pub(super) data: Vec<u8>,
    /// Bytes of data that it has when it is whole.
    pub(super) size: usize,
    /// Bytes that are counted against the cap for it.
    pub(super) charge: u64,
    /// The slot that still fills it.
    pub(super) slot: Option<usize>,
}

/// What became of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// Name of its section.
    pub name: Box<[u8]>,
    /// Instance of its section.
    pub instance: u32,
    /// Bytes of data on the main channel, without tags and config.
    pub main_bytes: u64,
    /// Bytes of data on multifd channels, without heads and config.
    pub multifd_bytes: u64,
    /// Packets, the config's included.
    pub packets: u64,
    /// The most bytes that waited at any time.
    pub queued_peak: u64,
    /// How often DEV_INIT_DATA_SENT came.
    pub initial_data_sent: u32,
    /// Whether DEV_CONFIG_LOAD_READY came.
    pub load_ready: bool,
    /// Its config, to be [decoded](crate::device_state::Config::decode).
    pub config: Option<Vec<u8>>,
    /// Whether its state is what it says of itself.
    pub synthetic: SyntheticVerdict,
    /// Why it is not complete, if it is not.
    pub incomplete: Option<String>,
}

impl Entry {
    /// Adds the next bytes of the packet, which may have been found to be `run`.
    pub(super) fn add(&mut self, bytes: &[u8], run: Option<Run>) {
        let joined = match (run, &self.run) {
            _ if !self.data.is_empty() => None,
            (Some(run), Some(before)) => before.joined(&run),
            (run, None) => run,
            (None, Some(_)) => None,
        };
        if joined.is_some() {
            self.run = joined;
            return;
        }
        if self.data.is_empty() {
            let before = self.run.map_or(0, |run| run.length as usize);
            self.data.reserve_exact(self.size.saturating_sub(before));
        }
        self.data.extend_from_slice(bytes);
    }
}

impl Device {
    pub(super) fn new(name: Name<'_>, instance: u32) -> Self {
        Self {
            name: name.0.into(),
            instance,
            next: 0,
            direct: None,
            queue: BTreeMap::new(),
            last: None,
            highest: None,
            started: false,
            part_over: false,
            end_over: false,
            late_main: false,
            main_bytes: 0,
            multifd_bytes: 0,
            packets: 0,
            queued: 0,
            queued_peak: 0,
            main_config: None,
            config: None,
            load_ready: false,
            initial_data_sent: 0,
            check: SyntheticCheck::new(name.0, instance),
            guess: None,
            failed: None,
        }
    }

    /// Name and instance, for errors.
    pub(super) fn title(&self) -> String {
        let name = Name(&self.name);
        if self.instance == 0 { name.to_string() } else { format!("{name} instance {}", self.instance) }
    }

    /// Whether its packets may go to the device now.
    pub(super) fn may_start(&self, ability: Ability, switched: bool) -> bool {
        match ability {
            Ability::Off => false,
            Ability::Downtime => switched,
            // A source whose live data goes on main says so with its first PART.
            Ability::Live => switched || self.end_over || self.part_over && self.main_bytes == 0,
        }
    }

    /// Whether all of it has been taken.
    pub(super) fn is_complete(&self) -> bool {
        self.config.is_some()
    }

    /// What its state is made of, as far as that is known.
    pub(super) fn maker(&self) -> Option<Maker> {
        self.check.maker().or(self.guess)
    }

    /// Hands data to the device that was found to be `run`, if anything was found.
    pub(super) fn deliver_seen(&mut self, id: DeviceId, bytes: &[u8], run: Option<&Run>, out: &mut Out<'_>) {
        match run {
            Some(run) if self.check.pass(run) => out(id, bytes),
            _ => self.deliver(id, bytes, out),
        }
    }

    /// Hands over what has waited. `is_taken`: somebody wants the bytes.
    pub(super) fn deliver_entry(&mut self, id: DeviceId, entry: &Entry, is_taken: bool, out: &mut Out<'_>) {
        if let Some(run) = &entry.run
            && (is_taken || !self.check.pass(run))
        {
            run.make(|bytes| self.deliver(id, bytes, out));
        }
        self.deliver(id, &entry.data, out);
    }

    /// Hands data to the device.
    pub(super) fn deliver(&mut self, id: DeviceId, bytes: &[u8], out: &mut Out<'_>) {
        if !bytes.is_empty() {
            self.check.handle(bytes);
            out(id, bytes);
        }
    }

    pub(super) fn report(&self, ability: Ability, switched: bool, wants_ready: bool) -> DeviceReport {
        DeviceReport {
            name: self.name.clone(),
            instance: self.instance,
            main_bytes: self.main_bytes,
            multifd_bytes: self.multifd_bytes,
            packets: self.packets,
            queued_peak: self.queued_peak,
            initial_data_sent: self.initial_data_sent,
            load_ready: self.load_ready,
            config: self.config.clone(),
            synthetic: self.check.verdict(),
            incomplete: self.incomplete(ability, switched, wants_ready),
        }
    }

    fn incomplete(&self, ability: Ability, switched: bool, wants_ready: bool) -> Option<String> {
        if let Some(failed) = &self.failed {
            return Some(failed.clone());
        }
        if ability == Ability::Downtime && !switched && self.packets > 0 {
            let packets = self.packets;
            return Some(format!(
                "no SWITCHOVER_START has come: a stock destination completes without the state of its {packets} packets, and does not say so"
            ));
        }
        if self.is_complete() {
            let waits = wants_ready && self.packets > 0 && !self.load_ready;
            return waits.then(|| "DEV_CONFIG_LOAD_READY has not come".to_owned());
        }
        if self.packets == 0 {
            return Some("no config has come on any channel".to_owned());
        }
        let end = self.highest.map_or(0, |highest| highest + 1);
        let missing = self.missing(end);
        let of = format!("of packets 0 to {}", end.saturating_sub(1));
        Some(match (self.last, missing.is_empty()) {
            (Some(_), _) => format!("{of} these are missing: {missing}"),
            (None, true) => format!("the config packet is missing; {of} none"),
            (None, false) => format!("the config packet is missing; {of} these: {missing}"),
        })
    }

    /// Which packets in front of `end` are missing. What is being received is not there yet.
    fn missing(&self, end: u32) -> String {
        const MOST: usize = 8;
        let mut from = self.next;
        let (mut text, mut ranges, mut packets) = (String::new(), 0, 0);
        let whole = self.queue.iter().filter(|(_, entry)| entry.slot.is_none()).map(|(idx, _)| *idx);
        for idx in whole.chain([end]) {
            if from < idx {
                ranges += 1;
                packets += u64::from(idx - from);
                if ranges <= MOST {
                    text.push_str(if ranges == 1 { "" } else { ", " });
                    text.push_str(&if idx - from == 1 {
                        from.to_string()
                    } else {
                        format!("{from} to {}", idx - 1)
                    });
                }
            }
            from = idx.saturating_add(1);
        }
        if ranges > MOST {
            text.push_str(&format!(" and more, {packets} in all"));
        }
        text
    }
}
