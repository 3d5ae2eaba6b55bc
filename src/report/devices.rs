//! VFIO devices of a file: their sections on the main channel and their packets, put together.

use std::collections::BTreeMap;

use crate::channel::Located;
use crate::container::Item;
use crate::device_state::{Assembler, DeviceId, DeviceReport, Settings, Slot, VfioSection};
use crate::dialect::Dialect;
use crate::error::{ChannelId, Error, Result};
use crate::limits::MAX_COMPLAINTS;
use crate::multifd::{Packet, PacketParser};
use crate::stream::{Event, Grammar};
use crate::wire::{Command, SectionKind};

/// What section names of VFIO devices end with: the device's path stands in front, where it has one (`hw/vfio/migration.c`).
const VFIO: &[u8] = b"vfio";

/// Takes what concerns devices.
pub(super) struct Devices {
    dialect: Dialect,
    assembler: Assembler,
    /// Devices by the id of their section.
    known: BTreeMap<u32, DeviceId>,
    /// The section that is being read.
    open: Option<(DeviceId, SectionKind, VfioSection)>,
    /// The packet that is being read, a channel each.
    slots: BTreeMap<u8, Slot>,
    /// Without a main channel nothing announces a device, and its first packet must do.
    has_main: bool,
    faults: Vec<Error>,
}

impl Devices {
    pub(super) fn new(dialect: Dialect, has_main: bool) -> Self {
        Self {
            dialect,
            assembler: Assembler::new(Settings::default()),
            known: BTreeMap::new(),
            open: None,
            slots: BTreeMap::new(),
            has_main,
            faults: Vec::new(),
        }
    }

    /// Takes an item; what is wrong with it is kept.
    pub(super) fn take(&mut self, item: Item<'_, '_>) {
        let outcome = match item {
            Item::Main(located, grammar) => self.main(located, grammar),
            Item::Packet { channel, located, parser } => {
                self.packet(channel, located, parser).map_err(|e| e.on(ChannelId::Multifd(channel)))
            }
        };
        if let Err(error) = outcome
            && self.faults.len() < MAX_COMPLAINTS
        {
            self.faults.push(error);
        }
    }

    /// What became of every device, and what was wrong. A device that was refused something is not complete, and that is told
    /// already.
    pub(super) fn finish(mut self) -> (Vec<DeviceReport>, Vec<Error>) {
        if let Err(error) = self.close() {
            self.faults.push(error);
        }
        (self.assembler.finish(&mut |_, _| {}), self.faults)
    }

    fn main(&mut self, located: &Located<'_, Event<'_>>, grammar: &Grammar) -> Result<()> {
        match &located.event {
            Event::Section(head) => {
                self.open = None;
                let Some((kind, id, section)) = grammar.current_section() else { return Ok(()) };
                if !is_vfio(section.name().0) {
                    return Ok(());
                }
                let device = match (self.known.get(&id), head.identity) {
                    (Some(device), _) => *device,
                    (None, Some(identity)) => match self.assembler.find(identity.idstr, identity.instance_id)
                    {
                        Some(device) => device,
                        None => self.assembler.set_up(identity.idstr, identity.instance_id)?,
                    },
                    (None, None) => return Ok(()),
                };
                self.known.insert(id, device);
                self.open = Some((device, kind, VfioSection::new(self.dialect, located.range.end)));
                Ok(())
            }
            Event::Payload(bulk) => {
                let Some((device, kind, section)) = &mut self.open else { return Ok(()) };
                let (device, kind, assembler) = (*device, *kind, &mut self.assembler);
                let bytes = bulk.bytes().unwrap_or_default();
                let outcome = section
                    .handle(bytes, |event| assembler.handle_main(device, kind, &event, &mut |_, _| {}));
                // The rest of a section with a fault means nothing.
                if outcome.is_err() {
                    self.open = None;
                }
                outcome
            }
            Event::Command(Command::SwitchoverStart) => {
                self.close()?;
                self.assembler.switchover(&mut |_, _| {})
            }
            Event::Footer(_) | Event::Eof => self.close(),
            _ => Ok(()),
        }
    }

    /// The section is over.
    fn close(&mut self) -> Result<()> {
        let Some((device, kind, section)) = self.open.take() else { return Ok(()) };
        let assembler = &mut self.assembler;
        section.finish(|event| assembler.handle_main(device, kind, &event, &mut |_, _| {}))
    }

    fn packet(
        &mut self,
        channel: u8,
        located: &Located<'_, Packet<'_>>,
        parser: &PacketParser,
    ) -> Result<()> {
        match &located.event {
            Packet::Device(packet) => {
                self.slots.remove(&channel);
                let (name, instance) = (packet.idstr.name(), packet.instance_id);
                if !self.has_main && self.assembler.find(name, instance).is_none() {
                    self.assembler.set_up(name, instance)?;
                }
                let here = ChannelId::Multifd(channel);
                let slot = self.assembler.begin(packet, here, located.range.end)?;
                self.slots.insert(channel, slot);
                Ok(())
            }
            Packet::DeviceData(bulk) => {
                let Some(mut slot) = self.slots.remove(&channel) else { return Ok(()) };
                let outcome =
                    self.assembler.piece(&mut slot, bulk.bytes().unwrap_or_default(), &mut |_, _| {});
                if parser.batch().left() > 0 {
                    self.slots.insert(channel, slot);
                    return outcome;
                }
                outcome.and(self.assembler.end(slot, &mut |_, _| {}))
            }
            _ => Ok(()),
        }
    }
}

fn is_vfio(name: &[u8]) -> bool {
    name == VFIO || name.strip_suffix(VFIO).is_some_and(|path| path.ends_with(b"/"))
}
