//! The VM description: names, types and sizes of every field of every FULL section.
//!
//! ```text
//! { "configuration": VMSD, "page_size": 4096, "devices": [ DEVICE .. ] }
//! DEVICE   {"name", "instance_id", "vmsd_name", "version", "fields": [FIELD ..], "subsections": [VMSD ..]}
//!    old   {"name", "instance_id", "size", "fields": [{"name": "data", "size", "type": "buffer"}]}
//! FIELD    {"name", "index" | "array_len", "type", "struct": VMSD, "size"}
//!  list    {"name", "type", { "vmsd_name", "version", "fields" }*, "size"}      the same keys once an element
//! ```
//! Source: `migration/vmstate.c`, `vmsd_desc_field_start`, `vmsd_desc_field_end`; `migration/savevm.c`, `vmstate_save`. The text
//! is read as it is written: keys in order, repeated ones as the list that they are.

use super::json;
use crate::error::{Error, Result};
use crate::stream::Extents;
use crate::wire::SectionKind;

/// How the text is laid out, which tells who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Blanks inside braces and in front of colons: 5.2 and older.
    Spaced,
    /// None: 6.0 and later.
    Compact,
}

/// A VM description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The configuration record (8.2 and later).
    pub configuration: Option<Vmsd>,
    /// Target page size.
    pub page_size: Option<u64>,
    /// The FULL sections, in stream order.
    pub devices: Vec<Device>,
}

/// A FULL section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Section name (idstr).
    pub name: Box<str>,
    /// Which of several of that name.
    pub instance_id: u32,
    /// Size of the payload, of devices without a description of their own.
    pub size: Option<u64>,
    /// What it consists of.
    pub body: Vmsd,
}

/// A described structure: fields, then subsections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vmsd {
    /// Its name, empty for old-style devices. A subsection's name is on the wire.
    pub name: Box<str>,
    /// Version of its layout.
    pub version: u32,
    /// Fields in wire order.
    pub fields: Vec<Field>,
    /// Subsections that were sent, in wire order.
    pub subsections: Vec<Self>,
}

/// A field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// Its name: a member expression of the C source, not unique.
    pub name: Box<str>,
    /// Type: a name of a primitive encoding, `struct`, `vstruct`, `tmp`, `qtailq`..
    pub kind: Box<str>,
    /// Position in an array whose elements are described one by one.
    pub index: Option<u32>,
    /// Number of elements, where only the first is described.
    pub array_len: Option<u64>,
    /// Bytes of what is described, that is of one element; subsections of nested structures included.
    pub size: u64,
    /// Structures inside: one for `struct`, one an element for lists.
    pub bodies: Vec<Vmsd>,
}

impl Description {
    /// Reads the text, which begins at `offset` of its channel or file.
    ///
    /// # Errors
    /// `Malformed` if it is not JSON, nested deeper than 96 levels, or JSON of another shape; `TooLarge` beyond
    /// a million fields. The error's offset is where in the channel the text goes wrong.
    pub fn parse(text: &[u8], offset: u64) -> Result<Self> {
        json::parse(text).map_err(|fault| {
            Error::new(fault.kind, offset + fault.at as u64, "VM description", fault.message)
        })
    }

    /// How the text is laid out; `None` if there is too little of it.
    pub fn style(text: &[u8]) -> Option<Style> {
        match text {
            [b'{', b' ', ..] => Some(Style::Spaced),
            [b'{', b'"', ..] => Some(Style::Compact),
            _ => None,
        }
    }

    /// Sizes of the payloads, as hints for a [`Parser`](crate::stream::Parser) of this stream or of one like it.
    pub fn extents(&self) -> Extents {
        let mut extents = Extents::default();
        for device in &self.devices {
            extents.push(device.name.as_bytes(), device.instance_id, device.size());
        }
        extents
    }
}

impl Device {
    /// Bytes of the payload, if the description is right.
    pub fn size(&self) -> u64 {
        self.size.unwrap_or_else(|| self.body.size())
    }

    /// Whether it has no description but its size.
    pub fn is_opaque(&self) -> bool {
        self.size.is_some()
    }
}

impl Vmsd {
    /// Bytes of fields and subsections, without a head of its own.
    pub fn size(&self) -> u64 {
        let fields = self.fields.iter().map(Field::total);
        let subsections = self.subsections.iter().map(|s| s.head_len().saturating_add(s.size()));
        fields.chain(subsections).fold(0, u64::saturating_add)
    }

    /// Bytes in front of a subsection: mark, counted name, version.
    fn head_len(&self) -> u64 {
        const MARK: SectionKind = SectionKind::SUBSECTION;
        (size_of_val(&MARK) + 1 + self.name.len() + size_of::<u32>()) as u64
    }
}

impl Field {
    /// Bytes of all elements.
    pub fn total(&self) -> u64 {
        self.size.saturating_mul(self.array_len.unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const COMPACT: &str = concat!(
        r#"{"configuration": {"vmsd_name": "configuration", "version": 1, "fields": []}, "page_size": 4096, "devices": ["#,
        r#"{"name": "timer", "instance_id": 0, "vmsd_name": "timer", "version": 2, "fields": ["#,
        r#"{"name": "cpu_ticks_offset", "type": "int64", "size": 8}, {"name": "unused", "array_len": 3, "type": "uint16", "size": 2}], "#,
        r#""subsections": [{"vmsd_name": "timer/icount", "version": 1, "fields": [{"name": "bias", "type": "int64", "size": 8}]}]}, "#,
        r#"{"name": "old", "instance_id": 4294967295, "size": 77, "fields": [{"name": "data", "size": 77, "type": "buffer"}]}]}"#
    );

    #[test]
    fn sizes_count_arrays_and_the_heads_of_subsections() {
        let description = Description::parse(COMPACT.as_bytes(), 0).unwrap();
        assert_eq!(description.page_size, Some(4096));
        let [timer, old] = &description.devices[..] else { panic!("{description:?}") };
        assert_eq!((&*timer.name, timer.body.version, timer.size()), ("timer", 2, 8 + 6 + 6 + 12 + 8));
        assert_eq!((old.instance_id, old.size(), old.is_opaque()), (u32::MAX, 77, true));
        assert!(!description.extents().is_empty());
    }

    #[test]
    fn the_spaced_style_reads_the_same() {
        let spaced = COMPACT.replace(':', " : ").replace('{', "{ ").replace('}', " }").replace(',', ", ");
        assert_eq!(
            Description::parse(spaced.as_bytes(), 0).unwrap(),
            Description::parse(COMPACT.as_bytes(), 0).unwrap()
        );
        assert_eq!(Description::style(spaced.as_bytes()), Some(Style::Spaced));
        assert_eq!(Description::style(COMPACT.as_bytes()), Some(Style::Compact));
        assert_eq!(Description::style(b"{"), None);
    }

    #[test]
    fn repeated_keys_are_a_list() {
        let text = r#"{"devices": [{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [
            {"name": "queue", "type": "qtailq", "vmsd_name": "e", "version": 1, "fields": [{"name": "a", "type": "uint8", "size": 1}],
             "vmsd_name": "e", "version": 1, "fields": [{"name": "a", "type": "uint8", "size": 1}], "size": 5}]}]}"#;
        let description = Description::parse(text.as_bytes(), 0).unwrap();
        let queue = &description.devices[0].body.fields[0];
        assert_eq!((queue.bodies.len(), queue.total()), (2, 5));
        assert!(queue.bodies.iter().all(|b| &*b.name == "e" && b.fields.len() == 1));
    }

    #[test]
    fn names_the_place_of_a_fault() {
        let refused = |text: &str| Description::parse(text.as_bytes(), 0x1000).unwrap_err().to_string();
        insta::assert_snapshot!(refused("nonsense"), @"VM description: not JSON: expected ident (main channel, offset 0x1001)");
        insta::assert_snapshot!(refused("{\"devices\":\n [}"), @"VM description: not JSON: expected value (main channel, offset 0x100e)");
        insta::assert_snapshot!(refused("{\"devices\": [{\"name\": \"x\""), @"VM description: not JSON: EOF while parsing an object (main channel, offset 0x1019)");
        insta::assert_snapshot!(refused(""), @"VM description: not JSON: EOF while parsing a value (main channel, offset 0x1000)");
        insta::assert_snapshot!(refused("{} {}"), @"VM description: not JSON: trailing characters (main channel, offset 0x1003)");
        insta::assert_snapshot!(refused("[1]"), @"VM description: JSON, but not a VM description: invalid type: sequence, expected an object (main channel, offset 0x1000)");
        insta::assert_snapshot!(refused("{\"devices\": 7}"), @"VM description: JSON, but not a VM description: invalid type: integer `7`, expected an array of objects (main channel, offset 0x100c)");
        insta::assert_snapshot!(refused("{\"page_size\": -1}"), @"VM description: JSON, but not a VM description: invalid value: integer `-1`, expected u64 (main channel, offset 0x100f)");
    }

    #[test]
    fn depth_is_bounded_wherever_it_is() {
        for (open, close) in [("[", "]"), ("{\"devices\":[", "]}"), ("{\"x\":", "}")] {
            for levels in [200, 100_000] {
                let text = format!("{}0{}", open.repeat(levels), close.repeat(levels));
                let error = Description::parse(text.as_bytes(), 0).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Malformed);
                assert!(error.message().contains("levels"), "{error}");
            }
        }
        let strings = format!("{{\"x\": \"{}\\\"[\"}}", "[".repeat(1000));
        Description::parse(strings.as_bytes(), 0).unwrap();
    }

    #[test]
    fn sizes_saturate() {
        let text = r#"{"devices": [{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [
            {"name": "a", "array_len": 18446744073709551615, "type": "x", "size": 18446744073709551615},
            {"name": "a", "array_len": 18446744073709551615, "type": "x", "size": 2}]}]}"#;
        assert_eq!(Description::parse(text.as_bytes(), 0).unwrap().devices[0].size(), u64::MAX);
    }
}
