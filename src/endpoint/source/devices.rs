//! The two devices that every machine has, `-machine none` too: their payloads, and the description of them.
//!
//! ```text
//! timer        version 2   be64 cpu_ticks_offset   8 unused bytes   be64 cpu_clock_offset
//! globalstate  version 1   be32 size   raw[100]: the run state, NUL, and from 9.0 on two flags in its unused part
//! ```
//! One table gives payload and description, so that they cannot disagree. Source: `system/cpu-timers.c` and
//! `migration/global_state.c`; the description's keys: `migration/vmstate.c`.

use super::RunState;
use crate::dialect::{Dialect, Difference};

/// A device with everything that a FULL section and the description say about it.
pub(super) struct Device {
    pub(super) name: &'static str,
    pub(super) version: u32,
    fields: Vec<Field>,
}

struct Field {
    name: &'static str,
    kind: &'static str,
    bytes: Vec<u8>,
}

impl Device {
    /// The bytes of the FULL section, without its head.
    pub(super) fn payload(&self) -> Vec<u8> {
        self.fields.iter().flat_map(|field| &field.bytes).copied().collect()
    }
}

/// Clocks of a guest that was never started.
pub(super) fn timer() -> Device {
    let word = |name| Field { name, kind: "int64", bytes: vec![0; 8] };
    let unused = Field { name: "unused", kind: "unused_buffer", bytes: vec![0; 8] };
    Device {
        name: "timer",
        version: 2,
        fields: vec![word("cpu_ticks_offset"), unused, word("cpu_clock_offset")],
    }
}

/// What the guest was doing when it was stopped: a destination that may start it does so if it was running.
pub(super) fn global_state(state: RunState, dialect: Dialect) -> Device {
    const LENGTH: usize = 100;
    let name = state.name();
    let text = |length| {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(length, 0);
        Field { name: "runstate", kind: "buffer", bytes }
    };
    let size = (name.len() + 1) as u32;
    let mut fields = vec![Field { name: "size", kind: "uint32", bytes: size.to_be_bytes().to_vec() }];
    if dialect.has(Difference::GlobalStateSuspended) {
        let flag = |name, value| Field { name, kind: "uint8", bytes: vec![value] };
        fields.push(text(32));
        fields.push(flag("has_vm_was_suspended", 1));
        fields.push(flag("vm_was_suspended", 0));
        fields.push(Field { name: "unused", kind: "buffer", bytes: vec![0; LENGTH - 32 - 2] });
    } else {
        fields.push(text(LENGTH));
    }
    Device { name: "globalstate", version: 1, fields }
}

/// The description of a machine of that name with these devices.
pub(super) fn description(machine: &str, devices: &[Device], page_size: u64, dialect: Dialect) -> String {
    let mut keys = Vec::new();
    if dialect.has(Difference::DescriptionConfiguration) {
        let fields = vec![field("len", "uint32", 4), field("name", "buffer", machine.len())];
        keys.push(("configuration", Json::Object(vmsd("configuration", 1, fields))));
    }
    keys.push(("page_size", Json::Number(page_size)));
    keys.push(("devices", Json::List(devices.iter().map(described).collect())));
    let mut text = String::new();
    Json::Object(keys).write(dialect.has(Difference::DescriptionSpaced), &mut text);
    text
}

fn described(device: &Device) -> Json {
    let fields = device.fields.iter().map(|f| field(f.name, f.kind, f.bytes.len())).collect();
    let mut keys = vec![("name", Json::Text(device.name)), ("instance_id", Json::Number(0))];
    keys.extend(vmsd(device.name, device.version, fields));
    Json::Object(keys)
}

fn vmsd(name: &'static str, version: u32, fields: Vec<Json>) -> Vec<(&'static str, Json)> {
    vec![
        ("vmsd_name", Json::Text(name)),
        ("version", Json::Number(version.into())),
        ("fields", Json::List(fields)),
    ]
}

fn field(name: &'static str, kind: &'static str, size: usize) -> Json {
    Json::Object(vec![
        ("name", Json::Text(name)),
        ("type", Json::Text(kind)),
        ("size", Json::Number(size as u64)),
    ])
}

/// As much of JSON as a description needs. Its blanks are part of the wire format, so no library writes it.
enum Json {
    Number(u64),
    /// Letters, digits and underscores: nothing that would have to be escaped.
    Text(&'static str),
    List(Vec<Self>),
    Object(Vec<(&'static str, Self)>),
}

impl Json {
    fn write(&self, spaced: bool, out: &mut String) {
        let (inner, colon) = if spaced { (" ", " : ") } else { ("", ": ") };
        match self {
            Self::Number(value) => out.push_str(&value.to_string()),
            Self::Text(text) => out.extend(["\"", text, "\""]),
            Self::List(items) => {
                out.extend(["[", inner]);
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { ", " });
                    item.write(spaced, out);
                }
                out.extend([inner, "]"]);
            }
            Self::Object(keys) => {
                out.extend(["{", inner]);
                for (i, (key, value)) in keys.iter().enumerate() {
                    out.extend([if i == 0 { "\"" } else { ", \"" }, key, "\"", colon]);
                    value.write(spaced, out);
                }
                out.extend([inner, "}"]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(release: &str) -> (usize, String) {
        let dialect: Dialect = release.parse().unwrap();
        let devices = [timer(), global_state(RunState::Running, dialect)];
        let payloads = devices.iter().map(|d| d.payload().len()).sum();
        (payloads, description("none", &devices, 4096, dialect))
    }

    #[test]
    fn as_long_as_those_of_stock_builds() {
        // Lengths of the descriptions in the recorded streams of `-machine none`.
        for (release, length) in [("5.2", 535), ("7.2", 486), ("10.0", 823), ("11.1", 823)] {
            let (payloads, text) = of(release);
            assert_eq!((payloads, text.len()), (24 + 104, length), "{release}: {text}");
        }
    }

    #[test]
    #[cfg(feature = "json")]
    fn both_styles_are_json() {
        for release in ["5.2", "7.2", "8.2", "11.1"] {
            let (_, text) = of(release);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            let fields = value["devices"][1]["fields"].as_array().unwrap();
            let sizes: u64 = fields.iter().map(|f| f["size"].as_u64().unwrap()).sum();
            assert_eq!(sizes, 104, "{text}");
        }
    }
}
