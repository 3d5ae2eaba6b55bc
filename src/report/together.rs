//! All channels of a migration together: do they wait for each other as they must, and does what they bring fit?

use std::collections::BTreeMap;

use super::devices::Devices;
use super::packets::PacketCounts;
use crate::container::{Item, Pages, Together};
use crate::device_state::{DeviceReport, SyntheticVerdict};
use crate::dialect::Dialect;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::multifd::{Packet, SyncMode};
use crate::stream::{Event, Grammar};
use crate::wire::{ConfigurationSubsection, Method};

const DOING: &str = "reading all channels together";

/// What the channels of a migration are to each other.
#[derive(Debug, Default)]
pub struct Whole {
    /// What the main channel's marker is.
    pub sync: Option<SyncMode>,
    /// Markers.
    pub synchronisations: u64,
    /// Multifd channels.
    pub channels: usize,
    /// SYNC packets that no marker has answered, of all channels.
    pub unmatched: u64,
    /// How pages are encoded.
    pub compression: Option<Method>,
    /// Payloads that were decoded.
    pub payloads: u64,
    /// All packets.
    pub counts: PacketCounts,
    /// Devices whose state comes as such.
    pub devices: Vec<DeviceReport>,
    /// What is wrong.
    pub faults: Vec<Error>,
    /// What is worth knowing but no fault.
    pub notes: Vec<String>,
}

impl Whole {
    /// Whether nothing is wrong.
    pub fn is_consistent(&self) -> bool {
        self.faults.is_empty()
    }

    /// Channels that cannot be put together, for this reason.
    pub(super) fn failed(error: Error) -> Self {
        Self { faults: vec![error], ..Self::default() }
    }
}

/// Takes all items, and judges.
pub(super) struct Judge {
    pages: Pages,
    devices: Devices,
    channels: BTreeMap<u8, Channel>,
    uuid: Option<[u8; 16]>,
    /// The main channel came to EOF.
    complete: bool,
}

/// What one channel has brought, and when.
#[derive(Default)]
struct Channel {
    counts: PacketCounts,
    uuid: Option<[u8; 16]>,
    /// SYNCs in front of the last packet that brought something, and where it begins.
    last: Option<(u64, u64)>,
    /// The same for the last packet with pages, and for the first one.
    last_pages: Option<(u64, u64)>,
    first_pages: Option<(u64, u64)>,
}

impl Judge {
    pub(super) fn new(dialect: Dialect, together: &Together) -> Self {
        Self {
            pages: Pages::default(),
            devices: Devices::new(dialect, together.has_main()),
            channels: together.channels().map(|end| (end.id, Channel::default())).collect(),
            uuid: None,
            complete: false,
        }
    }

    /// Takes an item with its payload.
    pub(super) fn take(&mut self, item: Item<'_, '_>) -> Result<()> {
        self.devices.take(item);
        match item {
            Item::Main(located, _) => match &located.event {
                Event::ConfigurationSubsection(ConfigurationSubsection::Uuid { uuid, .. }) => {
                    self.uuid = Some(*uuid);
                }
                Event::Eof => self.complete = true,
                _ => {}
            },
            Item::Packet { channel, located, parser } => {
                let found = self.channels.entry(channel).or_default();
                let here = (found.counts.syncs, located.range.start);
                found.counts.note(located, parser);
                match &located.event {
                    Packet::Hello(hello) => found.uuid = Some(hello.uuid),
                    Packet::Ram(_) => {
                        let batch = parser.batch();
                        if !batch.normal().is_empty() || !batch.zero().is_empty() {
                            found.first_pages.get_or_insert(here);
                            (found.last, found.last_pages) = (Some(here), Some(here));
                        }
                    }
                    Packet::Device(_) => found.last = Some(here),
                    Packet::Payload(_) | Packet::DeviceData(_) => {}
                }
            }
        }
        self.pages.take(item, |_| Ok(()))
    }

    /// What it came to. Faults of single channels, which are told with them, are left out.
    pub(super) fn finish(self, together: &Together) -> Whole {
        let (devices, of_devices) = self.devices.finish();
        let mut whole = Whole {
            sync: together.mode(),
            synchronisations: together.markers(),
            channels: self.channels.len(),
            unmatched: together.channels().map(|end| end.unmatched).sum(),
            compression: self.pages.method(),
            payloads: self.pages.payloads(),
            devices,
            ..Whole::default()
        };
        for channel in self.channels.values() {
            whole.counts.add(&channel.counts);
        }
        whole.faults.extend(together.missing().cloned());
        whole.faults.extend(self.pages.faults().iter().cloned());
        whole.faults.extend(of_devices);
        identities(&self.channels, self.uuid, &mut whole.faults);
        if together.has_main() {
            order(&self.channels, together, self.complete, &mut whole);
        } else {
            whole.unmatched = 0;
            whole.notes.push("there is no main channel: whether anything is missing cannot be told".into());
        }
        incomplete(&mut whole, self.complete);
        whole
    }
}

/// Whether the channels are those of one migration, and all of them are there.
fn identities(channels: &BTreeMap<u8, Channel>, uuid: Option<[u8; 16]>, faults: &mut Vec<Error>) {
    let mut expected = uuid.map(|uuid| ("the main channel".to_owned(), uuid));
    for (id, channel) in channels {
        let Some(uuid) = channel.uuid else { continue };
        match &expected {
            Some((whose, other)) if *other != uuid => {
                let message = format!(
                    "UUID {} where {whose} has {}: a destination drops the channel",
                    super::words::uuid(&uuid),
                    super::words::uuid(other)
                );
                faults.push(
                    Error::new(ErrorKind::Malformed, 8, "multifd hello", message).on(ChannelId::Multifd(*id)),
                );
            }
            Some(_) => {}
            None => expected = Some((format!("channel {id}"), uuid)),
        }
    }
    let highest = channels.keys().last().copied().unwrap_or(0);
    let missing: Vec<String> =
        (0..highest).filter(|id| !channels.contains_key(id)).map(|id| id.to_string()).collect();
    if !missing.is_empty() {
        let message = format!(
            "multifd channel {} is not there, and channel {highest} is: a destination waits for it",
            missing.join(", ")
        );
        faults.push(Error::nowhere(ErrorKind::Truncated, DOING, message));
    }
}

/// Whether every packet is where a destination reads it in time.
fn order(channels: &BTreeMap<u8, Channel>, together: &Together, complete: bool, whole: &mut Whole) {
    let markers = together.markers();
    let mut left = Vec::new();
    for end in together.channels() {
        let Some(channel) = channels.get(&end.id) else { continue };
        let mut fault = |at, message: String| {
            let error = Error::new(ErrorKind::OutOfOrder, at, "multifd packet", message);
            whole.faults.push(error.on(ChannelId::Multifd(end.id)));
        };
        if let Some((0, at)) = channel.first_pages {
            let message = "pages before the first synchronisation, when the destination may not have set up its memory yet: stock \
                           destinations from 9.2 on crash";
            fault(at, message.to_owned());
        }
        match (channel.last, channel.last_pages) {
            (Some((syncs, at)), _) if syncs > markers => {
                let message = format!(
                    "it stands behind SYNC {syncs}, and the main channel has {markers} markers: no destination reads it"
                );
                fault(at, message);
            }
            // Before the first one they are told of already.
            (_, Some((syncs, at))) if complete && syncs == markers && syncs > 0 => {
                let message = "pages behind the last synchronisation: whether a stock destination still takes them is left to chance";
                fault(at, message.to_owned());
            }
            _ => {}
        }
        if end.unmatched > 0 {
            left.push(end.id.to_string());
        }
    }
    if !left.is_empty() && complete {
        let why = match together.grammar().is_some_and(Grammar::is_postcopy) {
            true => "sources up to 8.2 go on with them in postcopy, when nothing comes on these channels",
            false => "sources of 9.1 and 9.2 leave one",
        };
        let channels = left.join(", ");
        whole.notes.push(format!(
            "SYNCs of multifd channel {channels} are answered by nothing on the main channel: {why}"
        ));
    }
}

/// Devices that have not all of their state. Those of a migration that broke off are expected to be so.
fn incomplete(whole: &mut Whole, complete: bool) {
    for device in &whole.devices {
        let name = device.name.escape_ascii();
        let told = match (&device.incomplete, device.synthetic) {
            (Some(why), _) => format!("state of \"{name}\" is not complete: {why}"),
            (None, SyntheticVerdict::Different(at)) => {
                format!("state of \"{name}\" is wrong from byte {at:#x} on")
            }
            (None, SyntheticVerdict::Short(at)) => format!("state of \"{name}\" ends after {at:#x} bytes"),
            (None, _) => continue,
        };
        // What a device was refused is the first thing told about it.
        let is_told = whole.faults.iter().any(|fault| told.contains(&fault.to_string()));
        match complete {
            true if is_told => {}
            true => whole.faults.push(Error::nowhere(ErrorKind::Truncated, "device state", told)),
            false => whole.notes.push(told),
        }
    }
}
