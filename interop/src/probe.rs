//! What a build says about itself before any case runs.
//!
//! A cell may be called unsupported only because of something found here: a capability, parameter, machine type or
//! transport that a build does not list, or a capability that it lists and refuses on this host. A failing migration
//! never makes a cell unsupported; harnesses that did so hid real failures for months.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::failure::{Class, Failure, Run};
use crate::peers::Peer;
use crate::process::{Deadline, Ledger};
use crate::qemu::{Machine, Place, Vm, VmSpec};

/// A build that takes longer to introduce itself is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Capabilities that a build may list and still refuse on this host. Asked for once, in the probe.
const HOST_DEPENDENT: &[&str] = &["background-snapshot"];

/// Capabilities that some builds have but do not take together.
pub(crate) const PAIRS: &[(&str, [&str; 2])] = &[("multifd with postcopy-ram", ["multifd", "postcopy-ram"])];

/// What one build can do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probe {
    pub(crate) version: (u64, u64, u64),
    /// The packager's addition to the version, for instance `Debian 1:7.2+dfsg-7`.
    pub(crate) package: String,
    pub(crate) capabilities: BTreeSet<String>,
    /// Listed, but refused on this host, with the build's words.
    pub(crate) refused: BTreeMap<String, String>,
    pub(crate) parameters: BTreeSet<String>,
    pub(crate) machines: BTreeMap<String, MachineType>,
    /// Address types of `migrate`, from the schema; the older builds have no such type and list only what is certain.
    pub(crate) transports: BTreeSet<String>,
    /// Values of `multifd-compression`.
    pub(crate) compressions: BTreeSet<String>,
}

/// One entry of `query-machines`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MachineType {
    pub(crate) deprecated: bool,
    /// Name of the main RAM block when no backend is given.
    pub(crate) ram_id: Option<String>,
    /// What this type changes about migration itself, as words for `-global`. Builds before 9.1 do not tell.
    pub(crate) migration_properties: Vec<String>,
}

/// A peer and what came out of asking it.
#[derive(Debug, Clone)]
pub(crate) struct Build {
    pub(crate) peer: Peer,
    /// Or the reason why it cannot take part.
    pub(crate) probe: Result<Probe, String>,
}

impl Probe {
    pub(crate) fn version_text(&self) -> String {
        let (major, minor, micro) = self.version;
        format!("{major}.{minor}.{micro}")
    }

    /// Whether the migration object has this property, as far as any machine type changes it.
    pub(crate) fn has_property(&self, name: &str) -> bool {
        let prefix = format!("migration.{name}=");
        let mut properties = self.machines.values().flat_map(|machine| &machine.migration_properties);
        properties.any(|word| word.starts_with(&prefix))
    }

    /// Why this capability cannot be used, if so.
    pub(crate) fn lacks_capability(&self, name: &str) -> Option<String> {
        if !self.capabilities.contains(name) {
            return Some(format!("has no capability {name} (query-migrate-capabilities)"));
        }
        self.refused.get(name).map(|words| format!("refuses capability {name} on this host: {words}"))
    }
}

/// Starts the build with machine `none` and asks it everything. Its talk is kept in `dir`.
pub(crate) fn probe(peer: &Peer, dir: &Path, sockets: &Path) -> Build {
    let probe = if peer.path.is_file() {
        ask(peer, dir, sockets).map_err(|failure| format!("cannot be probed: {failure}"))
    } else {
        Err(format!("no such file: {}", peer.path.display()))
    };
    Build { peer: peer.clone(), probe }
}

fn ask(peer: &Peer, dir: &Path, sockets: &Path) -> Run<Probe> {
    std::fs::create_dir_all(dir).map_err(|e| Failure::environment(dir.display(), e))?;
    let spec = VmSpec::bare(Machine { kind: "none".into(), ram_id: "ram".into(), ram_bytes: 16 << 20 });
    let place = Place {
        dir: dir.into(),
        sockets: sockets.into(),
        ledger: Ledger::default(),
        deadline: Deadline::after(PATIENCE),
    };
    let mut vm = Vm::start("probe", peer, &spec, &place)?;
    let version = vm.command("query-version", json!({}))?;
    let capabilities = vm.command("query-migrate-capabilities", json!({}))?;
    let parameters = vm.command("query-migrate-parameters", json!({}))?;
    let schema = vm.command("query-qmp-schema", json!({}))?;
    // The argument came with 9.1; a build that does not know it says so, and then there is nothing to list.
    let machines = match vm.try_command("query-machines", json!({"compat-props": true}))? {
        Ok(machines) => machines,
        Err(_refused) => vm.command("query-machines", json!({}))?,
    };
    let mut probe = read(&version, &capabilities, &parameters, &schema, &machines)?;
    for (name, pair) in PAIRS {
        if pair.iter().any(|name| !probe.capabilities.contains(*name)) {
            continue;
        }
        let state = |state: bool| {
            let list: Vec<Value> =
                pair.iter().map(|name| json!({"capability": name, "state": state})).collect();
            json!({"capabilities": list})
        };
        match vm.try_command("migrate-set-capabilities", state(true))? {
            Err(words) => drop(probe.refused.insert((*name).into(), words)),
            Ok(_) => drop(vm.command("migrate-set-capabilities", state(false))?),
        }
    }
    for &name in HOST_DEPENDENT {
        if !probe.capabilities.contains(name) {
            continue;
        }
        let on = json!({"capabilities": [{"capability": name, "state": true}]});
        if let Err(words) = vm.try_command("migrate-set-capabilities", on)? {
            probe.refused.insert(name.into(), words);
        }
    }
    vm.quit()?;
    Ok(probe)
}

fn read(
    version: &Value,
    capabilities: &Value,
    parameters: &Value,
    schema: &Value,
    machines: &Value,
) -> Run<Probe> {
    let number = |key| version["qemu"][key].as_u64();
    let (Some(major), Some(minor), Some(micro)) = (number("major"), number("minor"), number("micro")) else {
        return Err(Failure::new(Class::Failed, format!("query-version without a version: {version}")));
    };
    let names = |list: &Value, key: &str| -> BTreeSet<String> {
        let entries = list.as_array().into_iter().flatten();
        entries.filter_map(|entry| entry[key].as_str().map(String::from)).collect()
    };
    let machines = machines.as_array().into_iter().flatten().filter_map(|entry| {
        let machine = MachineType {
            deprecated: entry["deprecated"].as_bool().unwrap_or(false),
            ram_id: entry["default-ram-id"].as_str().map(String::from),
            migration_properties: migration_properties(&entry["compat-props"]),
        };
        Some((entry["name"].as_str()?.to_owned(), machine))
    });
    Ok(Probe {
        version: (major, minor, micro),
        package: version["package"].as_str().unwrap_or_default().trim_matches([' ', '(', ')']).to_owned(),
        capabilities: names(capabilities, "capability"),
        refused: BTreeMap::new(),
        parameters: parameters.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect(),
        machines: machines.collect(),
        transports: transports(schema),
        compressions: compressions(schema),
    })
}

/// The compat properties of the migration object itself.
fn migration_properties(properties: &Value) -> Vec<String> {
    let own = properties.as_array().into_iter().flatten().filter(|entry| entry["qom-type"] == "migration");
    let word = |entry: &Value| {
        Some(format!("migration.{}={}", entry["property"].as_str()?, entry["value"].as_str()?))
    };
    own.filter_map(word).collect()
}

/// The address types of `migrate`. Names of types are hidden in the schema, so the enumeration is recognised by what
/// it holds; builds before it (8.2) take addresses as a string, of which `tcp`, `unix` and `exec` always existed.
fn transports(schema: &Value) -> BTreeSet<String> {
    let mut known: BTreeSet<String> = ["tcp", "unix", "exec"].map(String::from).into();
    for entry in schema.as_array().into_iter().flatten() {
        let values: Vec<&str> =
            entry["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if entry["meta-type"] == "enum" && ["socket", "exec", "file"].iter().all(|word| values.contains(word))
        {
            known.insert(String::from("file"));
        }
    }
    known
}

/// The values of `multifd-compression`: the only enumeration that has both `none` and `zlib`.
fn compressions(schema: &Value) -> BTreeSet<String> {
    let entries = schema.as_array().into_iter().flatten().filter(|entry| entry["meta-type"] == "enum");
    let values = entries.map(|entry| -> BTreeSet<String> {
        entry["values"].as_array().into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
    });
    values
        .into_iter()
        .find(|values| ["none", "zlib"].iter().all(|word| values.contains(*word)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(schema: &Value) -> Probe {
        read(
            &json!({"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": " (Debian 1:7.2)"}),
            &json!([{"capability": "xbzrle", "state": false}]),
            &json!({"max-bandwidth": 1, "downtime-limit": 300}),
            schema,
            &json!([{"name": "none", "default-ram-id": "ram"}, {"name": "pc-i440fx-7.2", "deprecated": true}]),
        )
        .unwrap()
    }

    #[test]
    fn a_build_is_read_from_its_own_words() {
        let probe = sample(&json!([]));
        assert_eq!(probe.version_text(), "7.2.22");
        assert_eq!(probe.package, "Debian 1:7.2");
        assert_eq!(probe.machines["none"].ram_id.as_deref(), Some("ram"));
        assert!(probe.machines["pc-i440fx-7.2"].deprecated);
        assert!(probe.parameters.contains("downtime-limit"));
    }

    #[test]
    fn compressions_are_found_by_what_they_hold() {
        let schema = json!([
            {"meta-type": "enum", "values": ["zlib", "zstd"]},
            {"meta-type": "enum", "values": ["none", "zlib", "zstd"]},
        ]);
        assert!(sample(&schema).compressions.contains("zstd"));
        assert!(sample(&json!([])).compressions.is_empty());
    }

    #[test]
    fn file_is_offered_only_if_the_schema_says_so() {
        assert!(!sample(&json!([])).transports.contains("file"));
        // An unrelated enumeration that happens to know `file` proves nothing.
        let chardev = json!([{"meta-type": "enum", "values": ["file", "socket", "pty"]}]);
        assert!(!sample(&chardev).transports.contains("file"));
        let address = json!([{"meta-type": "enum", "values": ["socket", "exec", "rdma", "file"]}]);
        assert!(sample(&address).transports.contains("file"));
    }

    #[test]
    fn only_properties_of_the_migration_object_are_taken() {
        let properties = json!([
            {"qom-type": "virtio-pci", "property": "x", "value": "off"},
            {"qom-type": "migration", "property": "send-switchover-start", "value": "off"},
            {"qom-type": "migration"},
        ]);
        assert_eq!(migration_properties(&properties), ["migration.send-switchover-start=off"]);
        assert!(migration_properties(&Value::Null).is_empty());
    }

    #[test]
    fn what_is_missing_is_said_with_its_source() {
        let mut probe = sample(&json!([]));
        assert_eq!(probe.lacks_capability("xbzrle"), None);
        assert!(probe.lacks_capability("mapped-ram").unwrap().contains("query-migrate-capabilities"));
        probe.refused.insert("xbzrle".into(), "no userfaultfd".into());
        assert!(probe.lacks_capability("xbzrle").unwrap().contains("no userfaultfd"));
    }

    #[test]
    fn a_missing_binary_is_a_reason_not_an_error() {
        let peer =
            Peer { name: "x".into(), path: "/no/such/qemu".into(), about: String::new(), given: false };
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(probe(&peer, dir.path(), dir.path()).probe.unwrap_err(), "no such file: /no/such/qemu");
    }
}
