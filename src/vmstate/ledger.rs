//! What the sections of a stream really measured, held against its description.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use super::Description;
use crate::limits::MAX_SECTIONS;
use crate::stream::Event;
use crate::wire::{Name, SectionKind};

/// Payload sizes of the FULL sections of a stream, in stream order. Show it every event.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
    open: bool,
    left_out: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    idstr: Box<[u8]>,
    instance_id: u32,
    offset: u64,
    size: u64,
}

/// Where description and stream differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disagreement {
    /// Both know the section, with different sizes.
    Size {
        /// Section name and instance.
        section: (Box<[u8]>, u32),
        /// Where its payload begins.
        offset: u64,
        /// Bytes in the stream.
        found: u64,
        /// Bytes that the description adds up to.
        described: u64,
    },
    /// The description has a section that the stream has not.
    Absent {
        /// Section name and instance.
        section: (Box<[u8]>, u32),
        /// Bytes that the description adds up to.
        described: u64,
    },
    /// The stream has a FULL section that the description does not mention.
    Undescribed {
        /// Section name and instance.
        section: (Box<[u8]>, u32),
        /// Where its payload begins.
        offset: u64,
        /// Bytes in the stream.
        found: u64,
    },
}

impl Ledger {
    /// Takes note of `event`, which begins at `offset` and ends at `end`.
    pub fn note(&mut self, event: &Event<'_>, end: u64) {
        match event {
            Event::Section(head) if head.kind == SectionKind::FULL => {
                let Some(identity) = head.identity.filter(|i| i.idstr.0 != b"ram") else { return };
                self.open = self.entries.len() < MAX_SECTIONS;
                if self.open {
                    let entry = Entry {
                        idstr: identity.idstr.0.into(),
                        instance_id: identity.instance_id,
                        offset: end,
                        size: 0,
                    };
                    self.entries.push(entry);
                } else {
                    self.left_out += 1;
                }
            }
            Event::Payload(bulk) if self.open => {
                if let Some(entry) = self.entries.last_mut() {
                    entry.size += bulk.len();
                }
            }
            _ => self.open = false,
        }
    }

    /// Number of FULL sections seen.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no FULL section was seen.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Where `description` is not what the stream has.
    pub fn compare(&self, description: &Description) -> Vec<Disagreement> {
        let mut described: HashMap<(&[u8], u32), VecDeque<u64>> = HashMap::new();
        for device in &description.devices {
            described
                .entry((device.name.as_bytes(), device.instance_id))
                .or_default()
                .push_back(device.size());
        }
        let mut found = Vec::new();
        for entry in &self.entries {
            let section = (entry.idstr.clone(), entry.instance_id);
            match described.get_mut(&(&*entry.idstr, entry.instance_id)).and_then(VecDeque::pop_front) {
                Some(size) if size == entry.size => {}
                Some(size) => found.push(Disagreement::Size {
                    section,
                    offset: entry.offset,
                    found: entry.size,
                    described: size,
                }),
                None => {
                    found.push(Disagreement::Undescribed {
                        section,
                        offset: entry.offset,
                        found: entry.size,
                    });
                }
            }
        }
        // In the order of the description, which a map has not kept. What was left out of the ledger may be there.
        if self.left_out == 0 {
            for device in &description.devices {
                let key = (device.name.as_bytes(), device.instance_id);
                if described.get_mut(&key).and_then(VecDeque::pop_back).is_some() {
                    let section = (device.name.as_bytes().into(), device.instance_id);
                    found.push(Disagreement::Absent { section, described: device.size() });
                }
            }
        }
        found
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { section: (name, instance), offset, found, described } => write!(
                f,
                "section {:?} {instance} at {offset:#x} has {found} bytes, the VM description says {described}",
                Name(name)
            ),
            Self::Absent { section: (name, instance), described } => write!(
                f,
                "the VM description has a section {:?} {instance} of {described} bytes, the stream has not",
                Name(name)
            ),
            Self::Undescribed { section: (name, instance), offset, found } => write!(
                f,
                "section {:?} {instance} at {offset:#x} of {found} bytes is not in the VM description",
                Name(name)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Bulk, SectionFooter, SectionHead, SectionIdentity};

    fn ledger(sections: &[(&str, u32, usize)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (name, instance_id, size) in sections {
            let identity =
                SectionIdentity { idstr: (*name).into(), instance_id: *instance_id, version_id: 1 };
            let head = SectionHead { kind: SectionKind::FULL, section_id: 1, identity: Some(identity) };
            ledger.note(&Event::Section(head), 100);
            for byte in vec![0; *size].chunks(2) {
                ledger.note(&Event::Payload(Bulk::Bytes(byte)), 0);
            }
            ledger.note(&Event::Footer(SectionFooter { section_id: 1 }), 0);
        }
        ledger
    }

    fn description(sections: &[(&str, u32, usize)]) -> Description {
        let device = |(name, instance, size): &(&str, u32, usize)| {
            format!(r#"{{"name": "{name}", "instance_id": {instance}, "size": {size}, "fields": []}}"#)
        };
        let devices: Vec<_> = sections.iter().map(device).collect();
        Description::parse(format!(r#"{{"devices": [{}]}}"#, devices.join(",")).as_bytes(), 0).unwrap()
    }

    #[test]
    fn equal_sections_agree_even_if_they_come_twice() {
        let sections = [("slirp", 0, 5), ("slirp", 0, 7), ("timer", 0, 0), ("cpu", 1, 3)];
        assert!(ledger(&sections).compare(&description(&sections)).is_empty());
        assert_eq!(ledger(&sections).len(), 4);
    }

    #[test]
    fn every_difference_is_named_once() {
        let differences = ledger(&[("a", 0, 4), ("a", 0, 5), ("b", 0, 1)]).compare(&description(&[
            ("a", 0, 4),
            ("a", 0, 6),
            ("c", 2, 9),
        ]));
        let text: Vec<_> = differences.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(text.join("\n"), @r#"
section "a" 0 at 0x64 has 5 bytes, the VM description says 6
section "b" 0 at 0x64 of 1 bytes is not in the VM description
the VM description has a section "c" 2 of 9 bytes, the stream has not
"#);
    }
}
