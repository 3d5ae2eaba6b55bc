//! JSON as QEMU writes it: keys keep their order, and a key may come again.
//!
//! A tree of values would cost a multiple of the text and lose repeated keys, so the text goes straight into the types of
//! [`description`](super::description): one visitor reads every object, since device, structure and field share their keys.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Description, Device, Field, Vmsd};
use crate::error::ErrorKind;

/// Deepest nesting of a description. Every nested structure costs four levels, and no device nests ten of them.
pub(super) const MAX_DEPTH: usize = 96;

/// Most fields of a description: a thousand CPUs have a quarter of that.
const MAX_FIELDS: u32 = 1 << 20;

/// What is wrong with a text, and where in it.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    pub(super) at: usize,
    pub(super) message: String,
}

/// Reads a description.
pub(super) fn parse(text: &[u8]) -> Result<Description, Fault> {
    // The depth is looked at first, because what is skipped would not be counted by anybody.
    if let Some(at) = too_deep(text) {
        let message = format!("nested deeper than {MAX_DEPTH} levels");
        return Err(Fault { kind: ErrorKind::Malformed, at, message });
    }
    let budget = Budget(Cell::new(MAX_FIELDS));
    let mut input = serde_json::Deserializer::from_slice(text);
    let outcome = Object { budget: &budget, top: true }
        .deserialize(&mut input)
        .and_then(|node| input.end().map(|()| node));
    let node = outcome.map_err(|error| fault(text, &error, &budget))?;
    Ok(Description { configuration: node.configuration, page_size: node.page_size, devices: node.devices })
}

/// Where the text first nests too deeply.
fn too_deep(text: &[u8]) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Some(at);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => {
                at += 1;
                while let Some(skip) = memchr::memchr2(b'"', b'\\', text.get(at..)?) {
                    at += skip;
                    if text[at] == b'"' {
                        break;
                    }
                    at += 2;
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// serde_json's error as a place in the text; it counts lines and columns from 1.
fn fault(text: &[u8], error: &serde_json::Error, budget: &Budget) -> Fault {
    use serde_json::error::Category;
    let line = error.line().saturating_sub(1);
    let line_start = match line.checked_sub(1) {
        Some(nth) => memchr::memchr_iter(b'\n', text).nth(nth).map_or(0, |at| at + 1),
        None => 0,
    };
    let place = (line_start + error.column().saturating_sub(1)).min(text.len());
    let whole = error.to_string();
    let what = whole.rfind(" at line ").map_or(&*whole, |at| &whole[..at]);
    let (kind, at, what) = match error.classify() {
        _ if budget.0.get() == 0 => (ErrorKind::TooLarge, place, format!("more than {MAX_FIELDS} fields")),
        Category::Eof => (ErrorKind::Malformed, text.len(), format!("not JSON: {what}")),
        Category::Data => (ErrorKind::Malformed, place, format!("JSON, but not a VM description: {what}")),
        Category::Syntax | Category::Io => (ErrorKind::Malformed, place, format!("not JSON: {what}")),
    };
    Fault { kind, at, message: what }
}

/// Objects that may still be made.
struct Budget(Cell<u32>);

impl Budget {
    fn spend<E: serde::de::Error>(&self) -> Result<(), E> {
        match self.0.get().checked_sub(1) {
            Some(left) if left > 0 => {
                self.0.set(left);
                Ok(())
            }
            _ => {
                self.0.set(0);
                Err(E::custom("too many fields"))
            }
        }
    }
}

/// Any object of a description: the keys of all of them together.
#[derive(Default)]
struct Node {
    configuration: Option<Vmsd>,
    page_size: Option<u64>,
    devices: Vec<Device>,
    name: Option<Box<str>>,
    kind: Option<Box<str>>,
    instance_id: Option<u64>,
    index: Option<u64>,
    array_len: Option<u64>,
    size: Option<u64>,
    /// From `struct`, or inlined; every `vmsd_name` begins another.
    bodies: Vec<Vmsd>,
}

impl Node {
    /// The inlined structure that is being read.
    fn body(&mut self) -> &mut Vmsd {
        if self.bodies.is_empty() {
            self.bodies.push(Vmsd::default());
        }
        let last = self.bodies.len() - 1;
        &mut self.bodies[last]
    }

    fn into_vmsd(mut self) -> Vmsd {
        if self.bodies.is_empty() { Vmsd::default() } else { self.bodies.swap_remove(0) }
    }

    fn into_device<E: serde::de::Error>(self) -> Result<Device, E> {
        let name = self.name.clone().ok_or_else(|| E::missing_field("name"))?;
        let instance_id = self.instance_id.ok_or_else(|| E::missing_field("instance_id"))? as u32;
        Ok(Device { name, instance_id, size: self.size, body: self.into_vmsd() })
    }

    fn into_field(self) -> Field {
        Field {
            name: self.name.unwrap_or_default(),
            kind: self.kind.unwrap_or_default(),
            index: self.index.and_then(|i| u32::try_from(i).ok()),
            array_len: self.array_len,
            size: self.size.unwrap_or(0),
            bodies: self.bodies,
        }
    }
}

/// Reads an object. Keys that mean nothing at its place are skipped, as any that a later release may add.
#[derive(Clone, Copy)]
struct Object<'b> {
    budget: &'b Budget,
    top: bool,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Node, D::Error> {
        self.budget.spend()?;
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut node = Node::default();
        let inner = Object { top: false, ..self };
        while let Some(key) = map.next_key::<String>()? {
            match (&*key, self.top) {
                ("configuration", true) => node.configuration = Some(map.next_value_seed(inner)?.into_vmsd()),
                ("page_size", true) => node.page_size = Some(map.next_value()?),
                ("devices", true) => {
                    let make = |node: Node| node.into_device::<A::Error>();
                    node.devices = map.next_value_seed(List { each: inner, make })?;
                }
                ("name", false) => node.name = Some(map.next_value()?),
                ("type", false) => node.kind = Some(map.next_value()?),
                // An instance of -1 is printed signed by some releases.
                ("instance_id", false) => node.instance_id = Some(map.next_value::<i64>()? as u64),
                ("index", false) => node.index = Some(map.next_value()?),
                ("array_len", false) => node.array_len = Some(map.next_value()?),
                ("size", false) => node.size = Some(map.next_value()?),
                ("vmsd_name", false) => {
                    let name = map.next_value()?;
                    self.budget.spend()?;
                    node.bodies.push(Vmsd { name, ..Vmsd::default() });
                }
                ("version", false) => node.body().version = map.next_value::<i64>()? as u32,
                ("fields", false) => {
                    let make = |node: Node| Ok::<_, A::Error>(node.into_field());
                    node.body().fields = map.next_value_seed(List { each: inner, make })?;
                }
                ("subsections", false) => {
                    let make = |node: Node| Ok::<_, A::Error>(node.into_vmsd());
                    node.body().subsections = map.next_value_seed(List { each: inner, make })?;
                }
                ("struct", false) => node.bodies.push(map.next_value_seed(inner)?.into_vmsd()),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(node)
    }
}

/// Reads an array of objects.
struct List<'b, F> {
    each: Object<'b>,
    make: F,
}

impl<'de, T, F, E> DeserializeSeed<'de> for List<'_, F>
where
    F: FnMut(Node) -> Result<T, E>,
    E: fmt::Display,
{
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Vec<T>, D::Error> {
        input.deserialize_seq(self)
    }
}

impl<'de, T, F, E> Visitor<'de> for List<'_, F>
where
    F: FnMut(Node) -> Result<T, E>,
    E: fmt::Display,
{
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut found = Vec::new();
        while let Some(node) = list.next_element_seed(self.each)? {
            found.push((self.make)(node).map_err(A::Error::custom)?);
        }
        Ok(found)
    }
}
