//! What the main channel says of a device.

use super::{Ability, Assembler, DeviceId, Fault, MIXED, Out, Settings};
use crate::channel::Located;
use crate::device_state::VfioEvent;
use crate::error::{ChannelId, ErrorKind, Result};
use crate::limits::MAX_DEVICE_CONFIG;
use crate::wire::{Bulk, SectionKind, VfioTag};

impl Assembler {
    /// Takes an event of a section of that device and kind.
    ///
    /// # Errors
    /// What a destination with this ability refuses.
    pub fn handle_main(
        &mut self,
        id: DeviceId,
        kind: SectionKind,
        located: &Located<'_, VfioEvent<'_>>,
        out: &mut Out<'_>,
    ) -> Result<()> {
        let result = match &located.event {
            VfioEvent::Tag(tag) => self.main_tag(id, kind, *tag, out),
            VfioEvent::DataSize(0) => Ok(()),
            VfioEvent::DataSize(_) => self.main_data(id),
            VfioEvent::Data(bulk) => {
                let device = &mut self.devices[id.0];
                device.main_bytes += bulk.len();
                device.deliver(id, bulk.bytes().unwrap_or_default(), out);
                Ok(())
            }
            VfioEvent::Config(bulk) => self.main_config(id, bulk),
        };
        result.map_err(|fault| self.fail(id, fault, ChannelId::Main, located.range.start))
    }

    fn main_tag(
        &mut self,
        id: DeviceId,
        kind: SectionKind,
        tag: VfioTag,
        out: &mut Out<'_>,
    ) -> Result<(), Fault> {
        let Settings { ability, load_ready, .. } = self.settings;
        let device = &mut self.devices[id.0];
        match tag {
            VfioTag::DEV_CONFIG_STATE => {
                if ability == Ability::Downtime || device.packets > 0 {
                    let message =
                        "DEV_CONFIG_STATE on the main channel, of a device that is doing multifd transfer";
                    return Err((ErrorKind::OutOfOrder, message.to_owned()));
                }
                if device.config.is_some() {
                    return Err((ErrorKind::OutOfOrder, "a second config".to_owned()));
                }
                device.main_config = Some(Vec::new());
                Ok(())
            }
            VfioTag::DEV_CONFIG_LOAD_READY => {
                let message = match (ability, load_ready) {
                    (Ability::Off, _) => {
                        "DEV_CONFIG_LOAD_READY, and this destination is not doing multifd transfer"
                    }
                    (_, Some(false)) => "DEV_CONFIG_LOAD_READY, which this destination does not wait for",
                    _ if device.load_ready => "a second DEV_CONFIG_LOAD_READY",
                    _ => {
                        device.load_ready = true;
                        return Ok(());
                    }
                };
                Err((ErrorKind::OutOfOrder, message.to_owned()))
            }
            VfioTag::DEV_INIT_DATA_SENT | VfioTag::END_OF_STATE => {
                if tag == VfioTag::DEV_INIT_DATA_SENT {
                    device.initial_data_sent = device.initial_data_sent.saturating_add(1);
                }
                match device.main_config.take() {
                    Some(config) => device.config = Some(config),
                    None => {
                        device.part_over |= kind == SectionKind::PART;
                        device.end_over |= kind == SectionKind::END;
                    }
                }
                self.drain(id, out);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Data begins on the main channel.
    fn main_data(&mut self, id: DeviceId) -> Result<(), Fault> {
        let device = &mut self.devices[id.0];
        if device.started || self.switched && device.packets > 0 {
            return Err((ErrorKind::OutOfOrder, MIXED.to_owned()));
        }
        device.late_main |= self.switched && self.settings.ability != Ability::Off;
        Ok(())
    }

    fn main_config(&mut self, id: DeviceId, bulk: &Bulk<'_>) -> Result<(), Fault> {
        let config = self.devices[id.0].main_config.get_or_insert_default();
        if config.len() as u64 + bulk.len() > MAX_DEVICE_CONFIG as u64 {
            let message = format!("a config of more than {MAX_DEVICE_CONFIG} bytes");
            return Err((ErrorKind::TooLarge, message));
        }
        config.extend_from_slice(bulk.bytes().unwrap_or_default());
        Ok(())
    }
}
