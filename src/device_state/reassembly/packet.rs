//! What multifd channels bring.

use super::device::{Device, Entry};
use super::{Ability, Assembler, DOING, DeviceId, Fault, MIXED, Out, Piece, Slot, at};
use crate::device_state::ConfigPacket;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::{MAX_DEVICE_CONFIG, MAX_DEVICE_PACKET, MAX_QUEUED_PACKETS};
use crate::wire::{Cursor, DevicePacket, MultifdFlags, VfioPacketFlags, VfioPacketHead, Wire as _};

/// A packet that is being received.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) device: DeviceId,
    channel: ChannelId,
    /// Of the payload in its channel.
    offset: u64,
    size: u32,
    come: u32,
    head: [u8; VfioPacketHead::LEN],
    pub(super) route: Route,
}

/// Where the data of a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Its head is not there yet.
    Unknown,
    /// Straight to the device.
    Direct,
    /// To the queue, at this idx.
    Queue(u32),
    /// Nowhere: it was refused.
    Refused,
}

/// What a packet waits for that comes too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooEarly {
    /// Packets with lower numbers, on multifd channels.
    Packet,
    /// The main channel: it has not said yet that no more data comes before packets.
    Start,
}

impl Assembler {
    /// A packet begins, whose payload stands at `offset` of its channel.
    ///
    /// # Errors
    /// What a destination refuses by the head alone; `Misuse` if the channel has not ended its last packet.
    pub fn begin(&mut self, packet: &DevicePacket<'_>, channel: ChannelId, offset: u64) -> Result<Slot> {
        let id = match self.owner(packet) {
            Ok(id) => id,
            Err((kind, message)) => {
                let error = at(kind, offset, message).on(channel);
                return Err(match self.find(packet.idstr.name(), packet.instance_id) {
                    Some(id) => self.remember(id, error),
                    None => error,
                });
            }
        };
        if self.flights.iter().flatten().any(|flight| flight.channel == channel) {
            let message = "a packet begins where another one has not ended";
            return Err(at(ErrorKind::Misuse, offset, message).on(channel));
        }
        let flight = Flight {
            device: id,
            channel,
            offset,
            size: packet.payload_size,
            come: 0,
            head: [0; VfioPacketHead::LEN],
            route: Route::Unknown,
        };
        let slot = match self.flights.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.flights.push(None);
                self.flights.len() - 1
            }
        };
        self.flights[slot] = Some(flight);
        let device = &self.devices[id.0];
        Ok(Slot::new(slot, device.maker(), device.check.owner()))
    }

    /// What a packet whose payload begins with `first` would have to wait for, if there is no room for it to wait. Where that comes on
    /// another channel, it helps to read there first.
    pub fn too_early(&self, slot: &Slot, first: &[u8]) -> Option<TooEarly> {
        let flight = self.flights.get(slot.number)?.as_ref()?;
        let head = VfioPacketHead::parse(&mut Cursor::new(0, first)).ok()?;
        let device = &self.devices[flight.device.0];
        let is_crowded = self.queued + u64::from(flight.size) > self.settings.memory;
        if flight.come > 0 || !is_crowded {
            return None;
        }
        match device.may_start(self.settings.ability, self.switched) {
            true => (head.idx > device.next).then_some(TooEarly::Packet),
            false => Some(TooEarly::Start),
        }
    }

    /// Takes the next bytes of a packet's payload.
    ///
    /// # Errors
    /// What a destination refuses, once the packet's own head is there; the rest of the packet may come and is dropped. `Misuse`: more
    /// bytes than the payload has.
    pub fn piece<'b>(
        &mut self,
        slot: &mut Slot,
        piece: impl Into<Piece<'b>>,
        out: &mut Out<'_>,
    ) -> Result<()> {
        let Piece { mut bytes, run } = piece.into();
        let flight = open(&mut self.flights, slot.number)?;
        let id = flight.device;
        if bytes.len() > (flight.size - flight.come) as usize {
            let message = format!("more than the {} bytes of the packet", flight.size);
            return Err(at(ErrorKind::Misuse, flight.offset, message).on(flight.channel));
        }
        if flight.route == Route::Unknown {
            let come = flight.come as usize;
            let (of_head, rest) = bytes.split_at(bytes.len().min(VfioPacketHead::LEN - come));
            flight.head[come..come + of_head.len()].copy_from_slice(of_head);
            flight.come += of_head.len() as u32;
            if (flight.come as usize) < VfioPacketHead::LEN {
                return Ok(());
            }
            bytes = rest;
            let (channel, offset) = (flight.channel, flight.offset);
            match self.admit(slot.number) {
                Ok(route) => open(&mut self.flights, slot.number)?.route = route,
                Err(fault) => {
                    open(&mut self.flights, slot.number)?.route = Route::Refused;
                    return Err(self.fail(id, fault, channel, offset));
                }
            }
        }
        let flight = open(&mut self.flights, slot.number)?;
        flight.come += bytes.len() as u32;
        let device = &mut self.devices[id.0];
        device.guess = device.guess.or(run.map(|run| run.maker));
        match flight.route {
            Route::Direct => device.deliver_seen(id, bytes, run.as_ref(), out),
            Route::Queue(idx) if device.last == Some(idx) => {
                if let Some(entry) = device.queue.get_mut(&idx) {
                    entry.add(bytes, None);
                }
            }
            // Nobody takes it, and it will not be looked at.
            Route::Queue(_) if !self.is_taken && device.check.is_settled() => {}
            Route::Queue(idx) => {
                if let Some(entry) = device.queue.get_mut(&idx) {
                    entry.add(bytes, run);
                }
            }
            Route::Unknown | Route::Refused => {}
        }
        Ok(())
    }

    /// The payload is over.
    ///
    /// # Errors
    /// A config packet that is none. `Misuse`: the payload is not over.
    pub fn end(&mut self, slot: Slot, out: &mut Out<'_>) -> Result<()> {
        let flight = open(&mut self.flights, slot.number)?;
        let (id, channel, offset, route) = (flight.device, flight.channel, flight.offset, flight.route);
        if flight.come < flight.size && route != Route::Refused {
            let missing = flight.size - flight.come;
            let message = format!("{missing} of {} bytes of the packet are missing", flight.size);
            return Err(at(ErrorKind::Misuse, offset, message).on(channel));
        }
        self.flights[slot.number] = None;
        let device = &mut self.devices[id.0];
        match route {
            Route::Direct => {
                device.next += 1;
                device.direct = None;
            }
            Route::Queue(idx) => {
                let is_config = device.last == Some(idx);
                if let Some(entry) = device.queue.get_mut(&idx) {
                    entry.slot = None;
                    let data = offset + VfioPacketHead::LEN as u64;
                    if is_config && let Err(error) = ConfigPacket::parse(&entry.data, data) {
                        return Err(self.remember(id, error.on(channel)));
                    }
                }
            }
            Route::Unknown | Route::Refused => return Ok(()),
        }
        self.drain(id, out);
        Ok(())
    }

    /// Whose packet it is.
    fn owner(&self, packet: &DevicePacket<'_>) -> Result<DeviceId, Fault> {
        let name = packet.idstr.name();
        let instance = packet.instance_id;
        if packet.head.flags.contains(MultifdFlags::SYNC) {
            return Err((ErrorKind::Malformed, "a device-state packet with SYNC".to_owned()));
        }
        if packet.payload_size == 0 {
            return Err((ErrorKind::Malformed, format!("empty device state of {name}")));
        }
        if !packet.idstr.is_terminated() {
            return Err((ErrorKind::Malformed, "idstr without a NUL at its end".to_owned()));
        }
        if packet.payload_size > MAX_DEVICE_PACKET {
            let size = packet.payload_size;
            let message = format!("{size} bytes of state of {name}, at most {MAX_DEVICE_PACKET} are taken");
            return Err((ErrorKind::TooLarge, message));
        }
        let Some(id) = self.find(name, instance) else {
            let message = match self.by_name.contains_key(name.0) {
                true => format!("state of {name} instance {instance}, an instance that was not set up"),
                false => format!(
                    "state of {name} instance {instance}, where no device that takes packets was set up"
                ),
            };
            return Err((ErrorKind::OutOfOrder, message));
        };
        if self.settings.ability == Ability::Off {
            let message = format!("a packet for {name}, and this destination is not doing multifd transfer");
            return Err((ErrorKind::Unsupported, message));
        }
        if (packet.payload_size as usize) < VfioPacketHead::LEN {
            let message = format!(
                "{} bytes of state of {name}, less than the {} of a VFIO head",
                packet.payload_size,
                VfioPacketHead::LEN
            );
            return Err((ErrorKind::Malformed, message));
        }
        Ok(id)
    }

    /// Decides where a packet goes whose head has come.
    fn admit(&mut self, slot: usize) -> Result<Route, Fault> {
        let Some(flight) = &self.flights[slot] else { return Ok(Route::Refused) };
        let id = flight.device;
        let size = u64::from(flight.size) - VfioPacketHead::LEN as u64;
        let Ok(head) = VfioPacketHead::parse(&mut Cursor::new(0, &flight.head)) else {
            return Ok(Route::Refused);
        };
        let device = &self.devices[id.0];
        check_head(device, head, size)?;

        let is_config = head.flags.contains(VfioPacketFlags::CONFIG_STATE);
        let in_turn = head.idx == device.next && device.may_start(self.settings.ability, self.switched);
        // The config is held until it is whole, but does not wait for anything else.
        let charge = if in_turn { 0 } else { size };
        if !in_turn {
            self.make_room(device, head.idx, size)?;
        }
        let device = &mut self.devices[id.0];
        device.packets += 1;
        device.highest = device.highest.max(Some(head.idx));
        if is_config {
            device.last = Some(head.idx);
        } else {
            device.multifd_bytes += size;
        }
        if in_turn && !is_config {
            device.started = true;
            device.direct = Some(slot);
            return Ok(Route::Direct);
        }
        device.queued += charge;
        device.queued_peak = device.queued_peak.max(device.queued);
        self.queued += charge;
        self.waiting += 1;
        let entry = Entry { run: None, data: Vec::new(), size: size as usize, charge, slot: Some(slot) };
        device.queue.insert(head.idx, entry);
        Ok(Route::Queue(head.idx))
    }

    /// Whether a packet may wait.
    fn make_room(&self, device: &Device, idx: u32, size: u64) -> Result<(), Fault> {
        let waits_for = match device.may_start(self.settings.ability, self.switched) {
            true => format!("packet {}", device.next),
            false => "SWITCHOVER_START".to_owned(),
        };
        let title = device.title();
        if self.queued + size > self.settings.memory {
            let message = format!(
                "packet {idx} of {title} must wait for {waits_for}: with its {size} bytes {} would wait, and at most {} may",
                self.queued + size,
                self.settings.memory
            );
            return Err((ErrorKind::TooLarge, message));
        }
        if self.waiting >= MAX_QUEUED_PACKETS {
            let message = format!(
                "packet {idx} of {title} must wait for {waits_for}, and {MAX_QUEUED_PACKETS} packets wait already"
            );
            return Err((ErrorKind::TooLarge, message));
        }
        Ok(())
    }
}

/// Whether a packet with this head may come now.
fn check_head(device: &Device, head: VfioPacketHead, size: u64) -> Result<(), Fault> {
    let idx = head.idx;
    let title = device.title();
    let out_of_order = |message: String| Err((ErrorKind::OutOfOrder, message));
    if head.version != 0 {
        return Err((ErrorKind::Malformed, format!("version {} of a VFIO packet, expected 0", head.version)));
    }
    if idx == u32::MAX {
        return Err((ErrorKind::Malformed, format!("idx {idx:#x} of a VFIO packet, which none can have")));
    }
    if device.main_config.is_some() || device.is_complete() {
        return out_of_order(format!("packet {idx} of {title}, which has its config already"));
    }
    if device.late_main {
        return out_of_order(MIXED.to_owned());
    }
    if head.flags.contains(VfioPacketFlags::CONFIG_STATE) {
        if let Some(last) = device.last {
            return out_of_order(format!(
                "packet {idx} of {title} is a second config, packet {last} was the first"
            ));
        }
        if size > MAX_DEVICE_CONFIG as u64 {
            let message = format!("a config of {size} bytes, at most {MAX_DEVICE_CONFIG} are taken");
            return Err((ErrorKind::TooLarge, message));
        }
    }
    // Where `next` goes straight through, it is not in the queue.
    let is_filled =
        idx < device.next || idx == device.next && device.direct.is_some() || device.queue.contains_key(&idx);
    if is_filled {
        return out_of_order(format!("packet {idx} of {title} has come already, its place is filled"));
    }
    match device.last {
        Some(last) if idx > last => {
            out_of_order(format!("packet {idx} of {title} is behind the config, packet {last}"))
        }
        None if head.flags.contains(VfioPacketFlags::CONFIG_STATE) => match device.highest {
            Some(highest) if highest > idx => out_of_order(format!(
                "packet {idx} of {title} is the config, and packet {highest} is behind it"
            )),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn open(flights: &mut [Option<Flight>], slot: usize) -> Result<&mut Flight> {
    let message = "no packet is being received";
    let flight = flights.get_mut(slot).and_then(Option::as_mut);
    flight.ok_or_else(|| Error::nowhere(ErrorKind::Misuse, DOING, message))
}
