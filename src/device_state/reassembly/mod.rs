//! Device state from many channels, put in order again.
//!
//! ```text
//! main channel        START ──> set_up   PART, END, FULL ──> handle_main   SWITCHOVER_START ──> switchover   end ──> finish
//! multifd channels    packet ──> begin ──> slot, piece .. piece, end                                          │
//!                                                       │ idx is the next one ──> straight to the device      │
//!                                                       └ idx is further on ──> waits, counted against a cap  └─> reports
//! ```
//! The packets of a device have numbers from 0 and come in any order, on any channel, several at a time; the device takes
//! their data in order. What is next is never stored. The config packet has the highest number and ends the state.
//!
//! # When packets may go to the device
//! Data on the main channel goes to the device as soon as it is read, and nothing says how it and packets follow each other. Stock
//! sources send live data on the main channel and packets behind SWITCHOVER_START; a channel may be read before the main channel is,
//! so that **packets that are there must not overtake**. [`Ability::Downtime`] waits for SWITCHOVER_START, as stock destinations do.
//! [`Ability::Live`] also begins when the main channel has shown that the device's live data is not on it: with the end of a PART
//! section, if no data has come there so far. If data comes on the main channel after that, order is lost, and that is an error.

mod device;
mod packet;
mod section;
mod sight;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use device::DeviceReport;
use device::{Device, Entry};
pub use packet::TooEarly;
use packet::{Flight, Route};
pub use sight::{Piece, Slot};

use super::config::ConfigPacket;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::MAX_DEVICES;
use crate::wire::Name;

/// What a destination can do with device state on multifd channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ability {
    /// Nothing: `x-migration-multifd-transfer` is off. Devices load from the main channel.
    Off,
    /// What stock 10.0 to 11.1 can do: queue packets until SWITCHOVER_START. Config on the main channel is refused.
    Downtime,
    /// Take packets while the guest still runs, and every other arrangement too.
    #[default]
    Live,
}

/// How a destination takes device state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What it can do.
    pub ability: Ability,
    /// Most bytes, of all devices together, that may wait for packets that are missing.
    pub memory: u64,
    /// `x-migration-load-config-after-iter`: whether DEV_CONFIG_LOAD_READY must come, or must not. `None` takes both.
    pub load_ready: Option<bool>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { ability: Ability::Live, memory: 256 << 20, load_ready: None }
    }
}

/// A device of an [`Assembler`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(usize);

/// Takes the state of devices in order: a device, and its next bytes.
pub type Out<'a> = dyn FnMut(DeviceId, &[u8]) + 'a;

/// Puts the device state of one migration together.
///
/// ```
/// use migwire::device_state::{Arrangement, Assembler, Settings, SyntheticDevice};
/// use migwire::dialect::Dialect;
/// use migwire::{ChannelId, wire::Name};
///
/// let device = SyntheticDevice::new("0000:00:04.0/vfio", 0, 1000, 300, 7)?;
/// let plan = device.plan(Arrangement::Downtime, Dialect::ANY).with_live_share(0);
/// let mut assembler = Assembler::new(Settings::default());
/// assembler.set_up(Name(b"0000:00:04.0/vfio"), 0)?;
///
/// let mut state = Vec::new();
/// let mut out = |_, bytes: &[u8]| state.extend_from_slice(bytes);
/// assembler.switchover(&mut out)?;
/// for idx in [2, 0, 4, 3, 1] {
///     let (mut field, mut payload) = ([0; 256], Vec::new());
///     plan.packet(idx, &mut payload);
///     let mut slot = assembler.begin(&plan.packet_head(idx, &mut field), ChannelId::Multifd(0), 0)?;
///     for piece in payload.chunks(100) {
///         assembler.piece(&mut slot, piece, &mut out)?;
///     }
///     assembler.end(slot, &mut out)?;
/// }
/// let reports = assembler.finish(&mut out);
/// assert_eq!((reports[0].incomplete.as_deref(), reports[0].packets), (None, 5));
/// assert_eq!(state.len(), 1000);
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Debug)]
pub struct Assembler {
    settings: Settings,
    /// Somebody wants the data, in order.
    is_taken: bool,
    devices: Vec<Device>,
    by_name: HashMap<Box<[u8]>, Vec<DeviceId>>,
    flights: Vec<Option<Flight>>,
    switched: bool,
    /// Bytes and packets that wait, of all devices.
    queued: u64,
    waiting: usize,
}

impl Assembler {
    /// An assembler without devices.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            is_taken: true,
            devices: Vec::new(),
            by_name: HashMap::new(),
            flights: Vec::new(),
            switched: false,
            queued: 0,
            waiting: 0,
        }
    }

    /// An assembler for those who do not want the data, but only know whether it is as it must be. What waits is counted against the cap
    /// all the same, but kept only where it has to be looked at. `out` is not told everything then, and should do nothing.
    pub fn without_data(settings: Settings) -> Self {
        Self { is_taken: false, ..Self::new(settings) }
    }

    /// A START section has announced a device. Packets that come before belong to nobody.
    ///
    /// # Errors
    /// `OutOfOrder` if it is there already, `TooLarge` if there are too many.
    pub fn set_up(&mut self, name: Name<'_>, instance: u32) -> Result<DeviceId> {
        if self.find(name, instance).is_some() {
            let message = format!("{name} instance {instance} is set up already");
            return Err(Error::nowhere(ErrorKind::OutOfOrder, DOING, message));
        }
        if self.devices.len() >= MAX_DEVICES {
            let message = format!("more than {MAX_DEVICES} devices");
            return Err(Error::nowhere(ErrorKind::TooLarge, DOING, message));
        }
        let id = DeviceId(self.devices.len());
        self.devices.push(Device::new(name, instance));
        self.by_name.entry(name.0.into()).or_default().push(id);
        Ok(id)
    }

    /// The device of that name and instance.
    pub fn find(&self, name: Name<'_>, instance: u32) -> Option<DeviceId> {
        let ids = self.by_name.get(name.0)?;
        ids.iter().copied().find(|id| self.devices[id.0].instance == instance)
    }

    /// Name and instance of a device.
    pub fn device(&self, id: DeviceId) -> (Name<'_>, u32) {
        let device = &self.devices[id.0];
        (Name(&device.name), device.instance)
    }

    /// Bytes that wait now, of all devices.
    pub fn queued(&self) -> u64 {
        self.queued
    }

    /// Whether every device has all of its state.
    pub fn is_complete(&self) -> bool {
        self.devices.iter().all(|device| device.is_complete() && device.failed.is_none())
    }

    /// SWITCHOVER_START has come: the guest at the source is stopped.
    ///
    /// # Errors
    /// `OutOfOrder` the second time, if packets are being loaded: a stock destination aborts.
    pub fn switchover(&mut self, out: &mut Out<'_>) -> Result<()> {
        let loading = |device: &Device| device.packets > 0 && !device.is_complete();
        if self.switched && self.settings.ability == Ability::Downtime && self.devices.iter().any(loading) {
            let message = "a second SWITCHOVER_START while packets are loaded; a stock destination aborts";
            return Err(Error::nowhere(ErrorKind::OutOfOrder, DOING, message));
        }
        self.switched = true;
        self.drain_all(out);
        Ok(())
    }

    /// The migration is over: what became of each device.
    pub fn finish(&mut self, out: &mut Out<'_>) -> Vec<DeviceReport> {
        if self.settings.ability == Ability::Live {
            // Nothing can come on the main channel any more that packets might overtake.
            self.devices.iter_mut().for_each(|device| device.end_over = true);
            self.drain_all(out);
        }
        let wants_ready = self.settings.load_ready == Some(true);
        let report = |device: &Device| device.report(self.settings.ability, self.switched, wants_ready);
        self.devices.iter().map(report).collect()
    }

    fn drain_all(&mut self, out: &mut Out<'_>) {
        (0..self.devices.len()).for_each(|n| self.drain(DeviceId(n), out));
    }

    /// Hands over what is next, as long as it is there.
    fn drain(&mut self, id: DeviceId, out: &mut Out<'_>) {
        let device = &mut self.devices[id.0];
        if !device.may_start(self.settings.ability, self.switched) || device.failed.is_some() {
            return;
        }
        while device.direct.is_none() {
            let is_config = device.last == Some(device.next);
            let ready = |entry: &Entry| !is_config || entry.slot.is_none();
            if !device.queue.get(&device.next).is_some_and(ready) {
                break;
            }
            let Some(entry) = device.queue.remove(&device.next) else { break };
            device.queued -= entry.charge;
            self.queued -= entry.charge;
            self.waiting -= 1;
            device.started = true;
            if is_config {
                // It was found to be one when it ended.
                device.config = ConfigPacket::parse(&entry.data, 0).ok().map(|packet| packet.config.to_vec());
                device.next += 1;
                break;
            }
            device.deliver_entry(id, &entry, self.is_taken, out);
            match entry.slot {
                // The rest of it need not wait any more.
                Some(slot) => {
                    device.direct = Some(slot);
                    if let Some(Some(flight)) = self.flights.get_mut(slot) {
                        flight.route = Route::Direct;
                    }
                }
                None => device.next += 1,
            }
        }
    }

    #[cold]
    fn fail(&mut self, id: DeviceId, (kind, message): Fault, channel: ChannelId, offset: u64) -> Error {
        let title = self.devices[id.0].title();
        let message = if message.contains(&title) { message } else { format!("{title}: {message}") };
        self.remember(id, at(kind, offset, message).on(channel))
    }

    #[cold]
    fn remember(&mut self, id: DeviceId, error: Error) -> Error {
        self.devices[id.0].failed.get_or_insert_with(|| error.to_string());
        error
    }
}

const DOING: &str = "device state";
const MIXED: &str = "data on the main channel and in packets, whose order nothing tells";

/// What is wrong, without its place.
type Fault = (ErrorKind, String);

fn at(kind: ErrorKind, offset: u64, message: impl Into<String>) -> Error {
    Error::new(kind, offset, DOING, message)
}
