//! VFIO devices of a destination: what the main channel says of them, and whether all of their state has come.
//!
//! ```text
//! main     START .. PART .. SWITCHOVER_START .. END .. FULL --> VfioSection --.
//! multifd  device packets -----------------------------------------------------+--> Assembler --> reports
//! ```

use std::collections::BTreeMap;

use super::channels::Channels;
use crate::channel::Located;
use crate::device_state::{Ability, DeviceId, DeviceReport, SyntheticVerdict, VfioEvent, VfioSection};
use crate::dialect::Dialect;
use crate::endpoint::pace::Pace;
use crate::error::{Error, ErrorKind, Result};
use crate::stream::{Event, Grammar};
use crate::wire::{SectionKind, VfioTag};

/// What section names of VFIO devices end with: the device's path stands in front, where it has one (`hw/vfio/migration.c`).
const VFIO: &[u8] = b"vfio";

/// The VFIO sections of a main channel.
pub(super) struct Devices {
    dialect: Dialect,
    /// Devices by the id of their live section.
    known: BTreeMap<u32, DeviceId>,
    /// The section that is being read.
    open: Option<(DeviceId, SectionKind, VfioSection)>,
    /// DEV_INIT_DATA_SENT records that nobody has acknowledged.
    pub(super) initial_data_sent: u32,
    switched: bool,
}

impl Devices {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self { dialect, known: BTreeMap::new(), open: None, initial_data_sent: 0, switched: false }
    }

    /// Takes an event of the main channel.
    pub(super) fn take(
        &mut self,
        located: &Located<'_, Event<'_>>,
        grammar: &Grammar,
        channels: &Channels,
    ) -> Result<()> {
        match &located.event {
            Event::Section(head) => {
                self.open = None;
                let Some((kind, id, section)) = grammar.current_section() else { return Ok(()) };
                if kind != SectionKind::START {
                    channels.note_running();
                }
                if !is_vfio(section.name().0) {
                    return Ok(());
                }
                let device = match (self.known.get(&id), head.identity) {
                    (Some(device), _) => *device,
                    (None, Some(identity)) => {
                        let mut assembler = channels.devices();
                        match assembler.find(identity.idstr, identity.instance_id) {
                            Some(device) => device,
                            None => assembler.set_up(identity.idstr, identity.instance_id)?,
                        }
                    }
                    (None, None) => return Ok(()),
                };
                self.known.insert(id, device);
                channels.notify();
                self.open = Some((device, kind, VfioSection::new(self.dialect, located.range.end)));
            }
            Event::Payload(bulk) => {
                if let (Some((device, kind, section)), Some(bytes)) = (&mut self.open, bulk.bytes()) {
                    let initial = &mut self.initial_data_sent;
                    section.handle(bytes, |event| note(channels, *device, *kind, &event, initial))?;
                }
            }
            Event::Command(crate::wire::Command::SwitchoverStart) => {
                self.close(channels)?;
                self.switched = true;
                channels.note_running();
                channels.devices().switchover(&mut |_, _| {})?;
                channels.notify();
            }
            Event::Footer(_) | Event::Eof => self.close(channels)?,
            _ => {}
        }
        Ok(())
    }

    /// The section is over.
    fn close(&mut self, channels: &Channels) -> Result<()> {
        let Some((device, kind, section)) = self.open.take() else { return Ok(()) };
        let initial = &mut self.initial_data_sent;
        section.finish(|event| note(channels, device, kind, &event, initial))?;
        channels.notify();
        Ok(())
    }

    /// The main channel is over: waits until every device has all of its state, or never will have.
    pub(super) fn complete(&self, channels: &Channels, pace: &Pace) -> Result<()> {
        if self.known.is_empty() {
            return Ok(());
        }
        loop {
            // Asked first: what comes until the reports are made is in them.
            let are_silent = channels.are_silent();
            let reports = channels.devices().finish(&mut |_, _| {});
            let Some(report) = reports.iter().find(|report| report.incomplete.is_some()) else {
                return reports.iter().try_for_each(is_as_made);
            };
            if let Some(failure) = channels.failure() {
                return Err(failure);
            }
            // Channels that stand at a SYNC which nothing answers will not read what is behind it.
            let never_starts = channels.settings.devices.ability == Ability::Downtime && !self.switched;
            if never_starts || are_silent || !channels.wait_for_devices(pace) {
                return Err(incomplete(report, never_starts, channels));
            }
        }
    }
}

fn note(
    channels: &Channels,
    device: DeviceId,
    kind: SectionKind,
    event: &Located<'_, VfioEvent<'_>>,
    initial: &mut u32,
) -> Result<()> {
    if matches!(event.event, VfioEvent::Tag(VfioTag::DEV_INIT_DATA_SENT)) {
        *initial += 1;
    }
    channels.devices().handle_main(device, kind, event, &mut |_, _| {})
}

fn incomplete(report: &DeviceReport, never_starts: bool, channels: &Channels) -> Error {
    let name = report.name.escape_ascii();
    let mut why = report.incomplete.clone().unwrap_or_default();
    // Whether a packet has come by now is up to chance; that it would wait for ever is not.
    if never_starts && !why.contains("SWITCHOVER_START") {
        why.push_str("; no SWITCHOVER_START has come, which packets of state wait for");
    }
    let waiting: Vec<String> = channels.waiting().iter().map(u8::to_string).collect();
    let stands = match waiting.is_empty() {
        true => String::new(),
        false => format!(
            "; multifd channel {} stands at a SYNC that nothing on the main channel answers, and what is behind it is not read",
            waiting.join(", ")
        ),
    };
    let message = format!("state of \"{name}\" is not complete: {why}{stands}");
    Error::nowhere(ErrorKind::Truncated, "device state", message)
}

/// A synthetic device tells by itself what its state must be.
fn is_as_made(report: &DeviceReport) -> Result<()> {
    let wrong = match report.synthetic {
        SyntheticVerdict::Foreign | SyntheticVerdict::Equal => return Ok(()),
        SyntheticVerdict::Different(at) => format!("is wrong from byte {at:#x} on"),
        SyntheticVerdict::Short(at) => format!("ends after {at:#x} bytes"),
    };
    let message = format!("state of \"{}\" {wrong}", report.name.escape_ascii());
    Err(Error::nowhere(ErrorKind::Malformed, "device state", message))
}

fn is_vfio(name: &[u8]) -> bool {
    name == VFIO || name.strip_suffix(VFIO).is_some_and(|path| path.ends_with(b"/"))
}
