//! Who wrote a stream: the releases that fit everything it shows.
//!
//! No stream names the release that wrote it. But releases differ in bytes ([`Difference`]), and what is there, or
//! is not there although it would have to be, leaves a range of them.

use crate::channel::Located;
use crate::dialect::{Dialect, Difference, Release};
use crate::stream::Event;
use crate::vmstate::{Description, Field, Style, Vmsd};
use crate::wire::{Command, ConfigurationSubsection, Method, MultifdFlags, PageBody, RamFlags, RamPacket};

/// Something that a stream shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The difference between releases that it decides.
    pub difference: Difference,
    /// Whether the stream has it.
    pub holds: bool,
    /// What was seen, in words.
    pub what: &'static str,
}

/// Facts, and what follows from them.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    facts: Vec<Fact>,
    machine: Option<Release>,
}

impl Evidence {
    /// Takes note of an event. Pages come by the million, so that they are looked at with one comparison.
    pub fn note(&mut self, located: &Located<'_, Event<'_>>) {
        match &located.event {
            Event::Page(page) => {
                if matches!(page.body, PageBody::Compressed(_)) {
                    self.add(Difference::CompressPage, true, "pages are compressed one by one");
                }
            }
            Event::RamWord(word) if word.0 & 0x3ff == RamFlags::MULTIFD_FLUSH.0 => {
                self.add(Difference::MultifdFlush, true, "RAM has MULTIFD_FLUSH words");
            }
            Event::Configuration(configuration) => {
                self.machine = machine_release(&configuration.machine.text());
            }
            Event::ConfigurationSubsection(ConfigurationSubsection::Capabilities { names, .. })
                if names.contains(&"mapped-ram".into()) =>
            {
                self.add(Difference::MappedRam, true, "the capability mapped-ram is on");
            }
            Event::Command(Command::SwitchoverStart) => {
                self.add(Difference::SwitchoverStart, true, "the switchover is announced (SWITCHOVER_START)");
            }
            Event::Command(Command::EnableColo) => {
                self.add(Difference::EnableColo, true, "COLO is announced (ENABLE_COLO)");
            }
            Event::Command(Command::Ping(0x42)) => {
                self.add(Difference::PackageLoadedPing, true, "the postcopy package asks for PONG 0x42");
            }
            _ => {}
        }
    }

    /// Takes note of a multifd packet. `before`: bytes of payload of the channel's last packet that had any, 0 if none had.
    pub fn note_packet(&mut self, packet: &RamPacket<'_>, before: u32) {
        let flags = packet.head.flags;
        let has_sync = flags.contains(MultifdFlags::SYNC);
        if packet.normal_pages == 0 && packet.zero_pages == 0 {
            if !has_sync {
                self.add(
                    Difference::MultifdDataWithSync,
                    true,
                    "there are packets with neither pages nor SYNC",
                );
            }
            match packet.pages_alloc {
                0 => self.add(Difference::MultifdStaleFields, false, "packets without pages are all zero"),
                _ => {
                    self.add(
                        Difference::MultifdStaleFields,
                        true,
                        "packets show what earlier ones have left",
                    );
                }
            }
            match packet.payload_size {
                0 if before > 0 && packet.pages_alloc > 0 => {
                    self.add(
                        Difference::MultifdStaleSize,
                        false,
                        "packets without pages have no payload size",
                    );
                }
                size if size > 0 => {
                    self.add(Difference::MultifdStaleSize, true, "packets without pages have a payload size");
                }
                _ => {}
            }
            return;
        }
        if has_sync {
            self.add(Difference::MultifdDataWithSync, true, "there are packets with pages and SYNC");
        }
        if packet.zero_pages > 0 {
            self.add(Difference::MultifdZeroPages, true, "zero pages stand in packets");
        }
        if matches!(flags.method(), Method::QPL | Method::UADK | Method::QATZIP) {
            self.add(Difference::MultifdWideMethod, true, "pages are encoded by a method of 9.1 or later");
        }
    }

    /// Takes note of a multifd packet of device state.
    pub fn note_device_packet(&mut self) {
        self.add(Difference::MultifdDevicePackets, true, "device state is in multifd packets");
    }

    /// Takes note of all channels of a migration that came to its end, synchronised by words of the main channel: whether each
    /// channel has a SYNC at its end that nothing answers.
    pub fn note_trailing_sync(&mut self, is_there: bool) {
        match is_there {
            true => self.add(
                Difference::MultifdTrailingSync,
                true,
                "the last SYNC of every channel is not answered",
            ),
            false => self.add(Difference::MultifdTrailingSync, false, "every SYNC is answered"),
        }
    }

    /// Takes over what another channel of the same migration shows.
    pub fn merge(&mut self, other: &Self) {
        for fact in &other.facts {
            self.add(fact.difference, fact.holds, fact.what);
        }
        self.machine = self.machine.or(other.machine);
    }

    /// Takes note of the description. `configured`: the stream has a configuration record, which the description may name.
    pub fn note_description(&mut self, text: &[u8], description: &Description, configured: bool) {
        match Description::style(text) {
            Some(Style::Spaced) => {
                self.add(Difference::DescriptionSpaced, true, "the VM description is spaced out");
            }
            Some(Style::Compact) => {
                self.add(Difference::DescriptionSpaced, false, "the VM description is compact");
            }
            None => {}
        }
        if configured {
            match description.configuration {
                Some(_) => self.add(
                    Difference::DescriptionConfiguration,
                    true,
                    "the VM description has the configuration record",
                ),
                None => self.add(
                    Difference::DescriptionConfiguration,
                    false,
                    "the VM description lacks the configuration record",
                ),
            }
        }
        if let Some(state) = description.devices.iter().find(|device| &*device.name == "globalstate") {
            match state.body.fields.iter().any(|field| field.name.contains("vm_was_suspended")) {
                true => self.add(
                    Difference::GlobalStateSuspended,
                    true,
                    "the global state says whether the VM was suspended",
                ),
                false => {
                    self.add(
                        Difference::GlobalStateSuspended,
                        false,
                        "the global state has nothing but the run state",
                    );
                }
            }
        }
        match description.devices.iter().find_map(|device| index_style(&device.body)) {
            Some(true) => self.add(Difference::DescriptionIndex, true, "array elements have an index"),
            Some(false) => self.add(Difference::DescriptionIndex, false, "array elements have no index"),
            None => {}
        }
    }

    /// Takes note of a return path on which the switchover was acknowledged.
    pub fn note_switchover_ack(&mut self) {
        self.add(Difference::SwitchoverAck, true, "the destination acknowledges the switchover");
    }

    /// What was seen.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Version of the machine type, where its name has one: no older release has it.
    pub fn machine(&self) -> Option<Release> {
        self.machine
    }

    /// The known releases that fit all of it, oldest first.
    pub fn candidates(&self) -> Vec<Release> {
        let oldest = self.machine.unwrap_or(Release::KNOWN[0]);
        let fits = |release: &Release| {
            self.facts.iter().all(|fact| Dialect::release(*release).has(fact.difference) == fact.holds)
        };
        Release::with_machine(oldest).filter(fits).collect()
    }

    fn add(&mut self, difference: Difference, holds: bool, what: &'static str) {
        let fact = Fact { difference, holds, what };
        if !self.facts.contains(&fact) {
            self.facts.push(fact);
        }
    }
}

/// The version at the end of a machine name: `pc-q35-7.2`.
fn machine_release(name: &str) -> Option<Release> {
    name.rsplit_once('-')?.1.parse().ok()
}

/// Whether the elements of arrays that are described one by one have an index; `None` if there is no such array. Some
/// releases leave it out at the last element, so that two neighbours without one are needed for a no.
fn index_style(body: &Vmsd) -> Option<bool> {
    let fields = &body.fields;
    let bare = |field: &Field| field.index.is_none() && field.array_len.is_none() && !field.bodies.is_empty();
    if fields.iter().any(|field| field.index.is_some()) {
        return Some(true);
    }
    let twins = fields.windows(2).any(|pair| pair[0].name == pair[1].name && pair.iter().all(bare));
    if twins {
        return Some(false);
    }
    let inner = fields.iter().flat_map(|field| &field.bodies).chain(&body.subsections);
    inner.into_iter().find_map(index_style)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(evidence: &Evidence) -> String {
        let candidates = evidence.candidates();
        match (candidates.first(), candidates.last()) {
            (Some(first), Some(last)) => format!("{first}..{last}"),
            _ => "none".into(),
        }
    }

    #[test]
    fn facts_narrow_the_range() {
        let mut evidence = Evidence::default();
        assert_eq!(range(&evidence), "5.2..11.1");
        evidence.machine = machine_release("pc-i440fx-7.2");
        assert_eq!(range(&evidence), "7.2..11.1");
        evidence.add(Difference::DescriptionConfiguration, true, "");
        assert_eq!(range(&evidence), "8.2..11.1");
        evidence.add(Difference::DescriptionIndex, true, "");
        evidence.add(Difference::SwitchoverStart, true, "");
        assert_eq!(range(&evidence), "10.0..11.0");
        evidence.add(Difference::DescriptionSpaced, true, "");
        assert_eq!(range(&evidence), "none");
    }

    #[test]
    fn packets_tell_who_made_them() {
        use crate::multifd::Framer;
        use crate::wire::Cursor;
        for release in Release::KNOWN {
            let dialect = Dialect::release(*release);
            let mut framer = Framer::new(dialect, 4096);
            let mut evidence = Evidence::default();
            let mut note = |bytes: &[u8], before| {
                let packet = RamPacket::parse(&mut Cursor::new(0, bytes), 128).unwrap();
                evidence.note_packet(&packet, before);
            };
            note(framer.sync(0), 0);
            let has_zero = dialect.has(Difference::MultifdZeroPages);
            let zero = if has_zero { &[4096][..] } else { &[] };
            note(framer.pages(b"ram", &[0], zero, Method::NONE, 4096, 1), 0);
            note(framer.sync(2), 4096);
            if dialect.has(Difference::MultifdDataWithSync) {
                note(framer.pages_with_sync(b"ram", &[0], Method::NONE, 4096, 3), 4096);
            }
            assert!(evidence.candidates().contains(release), "{release}: {}", range(&evidence));
            let expected = match release {
                _ if dialect.has(Difference::MultifdStaleSize) => "5.2..8.1",
                _ if dialect.has(Difference::MultifdStaleFields) => "8.2..8.2",
                _ => "9.0..11.1",
            };
            assert_eq!(range(&evidence), expected, "{release}");
        }
        let mut evidence = Evidence::default();
        evidence.add(Difference::MultifdZeroPages, true, "");
        let mut other = Evidence::default();
        other.note_trailing_sync(true);
        evidence.merge(&other);
        assert_eq!(range(&evidence), "9.1..9.2");
    }

    #[test]
    fn machine_names() {
        assert_eq!(machine_release("pc-q35-10.1"), Some(Release::new(10, 1)));
        assert_eq!(machine_release("none"), None);
        assert_eq!(machine_release("s390-ccw-virtio-5.2"), Some(Release::new(5, 2)));
        assert_eq!(machine_release("raspi4b"), None);
    }

    #[test]
    fn array_styles() {
        let style = |fields: &str| {
            let text = format!(
                r#"{{"devices": [{{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [{fields}]}}]}}"#
            );
            index_style(&Description::parse(text.as_bytes(), 0).unwrap().devices[0].body)
        };
        let element = |index: &str| {
            format!(r#"{{"name": "a"{index}, "type": "struct", "struct": {{"vmsd_name": "e"}}, "size": 1}}"#)
        };
        assert_eq!(style(&format!("{},{}", element(r#", "index": 0"#), element(""))), Some(true));
        assert_eq!(style(&format!("{},{}", element(""), element(""))), Some(false));
        assert_eq!(style(&element("")), None);
        assert_eq!(
            style(&format!("{},{}", element(r#", "array_len": 3"#), element(r#", "array_len": 2"#))),
            None
        );
    }
}
