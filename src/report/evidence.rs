//! Who wrote a stream: the releases that fit everything it shows.
//!
//! No stream names the release that wrote it. But releases differ in bytes ([`Difference`]), and what is there, or
//! is not there although it would have to be, leaves a range of them.

use crate::channel::Located;
use crate::dialect::{Dialect, Difference, Release};
use crate::stream::Event;
use crate::vmstate::{Description, Field, Style, Vmsd};
use crate::wire::{Command, ConfigurationSubsection, PageBody, RamFlags};

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
