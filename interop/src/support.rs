//! Decides before a cell runs whether it can: from what the builds declared, and from nothing else.

use std::collections::BTreeMap;

use crate::cases::{Cell, Guest, Kind, MachineAxis, Transport};
use crate::peers::STANDIN;
use crate::probe::{Build, MachineType, PAIRS, Probe};
use crate::qemu::Machine;
use crate::tool::Tool;
use crate::variant::Settings;

/// Version of the machine types that the axis values `pc` and `q35` mean.
const BASE: (u64, u64) = (5, 2);

const MIB: u64 = 1 << 20;

/// What can be done with a cell.
#[derive(Debug)]
pub(crate) enum Decision {
    Run(Box<Setup>),
    /// A build says that it cannot, with its name and the question that it was asked.
    Unsupported(String),
    /// Something is missing here, so nothing was learned.
    NotRun(String),
}

/// What a cell will be run with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) machine: Machine,
    /// How many SWITCHOVER_ACK messages the source waits for, if it has that capability.
    pub(crate) acknowledgements: u32,
    /// Words for `-global` at the source and at the destination.
    pub(crate) source_globals: Vec<String>,
    pub(crate) destination_globals: Vec<String>,
    /// What the stand-in source has to write: the destination's release, and the version of the machine type.
    pub(crate) dialect: String,
    /// Zero pages may come listed in multifd packets, if there are any. A stock destination leaves its memory alone then, and trusts that it is zero.
    pub(crate) zero_pages_in_packets: bool,
    /// Whether a source of this case synchronises its multifd channels by a word of their own (8.1 and later machine types).
    pub(crate) per_round: bool,
}

/// What the decision needs to know about this host.
#[derive(Debug)]
pub(crate) struct Inventory {
    pub(crate) builds: BTreeMap<String, Build>,
    pub(crate) tool: Tool,
    /// The boot sector, or why there is none.
    pub(crate) boot: Result<Vec<u8>, String>,
}

impl Inventory {
    pub(crate) fn decide(&self, cell: &Cell) -> Decision {
        match self.find(cell) {
            Ok(setup) => Decision::Run(Box::new(setup)),
            Err(decision) => decision,
        }
    }

    fn find(&self, cell: &Cell) -> Result<Setup, Decision> {
        let case = &cell.case;
        let mut probes: Vec<(&str, &Probe)> = Vec::new();
        for name in cell.builds() {
            let probe = match self.builds.get(name) {
                Some(Build { probe: Ok(probe), .. }) => probe,
                Some(Build { probe: Err(reason), .. }) => {
                    return Err(Decision::NotRun(format!("peer {name}: {reason}")));
                }
                None => return Err(Decision::NotRun(format!("peer {name}: unknown"))),
            };
            probes.push((name, probe));
        }
        if let (true, Err(reason)) = (case.kind.needs_migwire(), &self.tool.version) {
            return Err(Decision::NotRun(reason.clone()));
        }
        if let (Guest::Dirty, Err(reason)) = (case.guest, &self.boot) {
            return Err(Decision::NotRun(reason.clone()));
        }
        let machine = machine(case.machine, &probes).map_err(Decision::Unsupported)?;
        let reasons = [
            transport(case.transport, &probes),
            self.capabilities(cell, &cell.source, &[&case.variant.both, &case.variant.source]),
            self.capabilities(cell, &cell.destination, &[&case.variant.both, &case.variant.destination]),
            // Where the recording is made, the source's build is its destination too.
            match case.kind {
                Kind::Replay | Kind::Convert => {
                    self.capabilities(cell, &cell.source, &[&case.variant.both, case.variant.recorded()])
                }
                _ => None,
            },
        ];
        match reasons.into_iter().flatten().next() {
            Some(reason) => Err(Decision::Unsupported(reason)),
            None => Ok(Setup {
                source_globals: hold_back(&machine, &cell.source, &probes),
                destination_globals: hold_back(&machine, &cell.destination, &probes),
                acknowledgements: acknowledgements(&machine, &cell.source, &probes),
                dialect: dialect(&machine, &cell.destination, &probes),
                zero_pages_in_packets: zero_pages_in_packets(&machine, cell, &probes),
                per_round: per_round(&machine, &cell.source, &probes),
                machine,
            }),
        }
    }

    fn capabilities(&self, cell: &Cell, name: &str, settings: &[&Settings]) -> Option<String> {
        // A template for the stand-in source is recorded by the build that it is sent to.
        let name =
            if name == STANDIN && cell.case.kind == Kind::StandinToStock { &cell.destination } else { name };
        let probe = self.builds.get(name)?.probe.as_ref().ok()?;
        let mut wanted: Vec<&str> =
            settings.iter().flat_map(|side| side.capabilities.iter().map(|word| &**word)).collect();
        if cell.case.kind == Kind::BackgroundSnapshot && name == cell.source {
            wanted.push("background-snapshot");
        }
        let lacks = wanted.iter().find_map(|word| probe.lacks_capability(word));
        let parameters = settings.iter().flat_map(|side| side.parameters.keys());
        let pair = PAIRS.iter().find(|(pair, names)| {
            probe.refused.contains_key(*pair) && names.iter().all(|name| wanted.contains(name))
        });
        let compression = settings.iter().find_map(|side| side.parameters.get("multifd-compression"));
        let compression = compression.and_then(|value| value.as_str());
        lacks
            .or_else(|| {
                let words = settings.iter().flat_map(|side| &side.arguments);
                let unknown = words
                    .filter_map(|word| migration_property(word))
                    .find(|name| !probe.has_property(name))?;
                Some(format!("has no property migration.{unknown} (query-machines)"))
            })
            .or_else(|| pair.map(|(pair, _)| format!("refuses {pair}: {}", probe.refused[*pair])))
            .or_else(|| {
                let unknown = compression.filter(|word| !probe.compressions.contains(*word));
                unknown.map(|word| format!("has no multifd-compression {word} (query-qmp-schema)"))
            })
            .or_else(|| {
                let unknown = parameters.into_iter().find(|word| !probe.parameters.contains(*word));
                unknown.map(|word| format!("has no parameter {word} (query-migrate-parameters)"))
            })
            .map(|reason| format!("{name} {reason}"))
    }
}

fn machine(axis: MachineAxis, probes: &[(&str, &Probe)]) -> Result<Machine, String> {
    let (prefix, newest) = match axis {
        MachineAxis::None => ("none", false),
        MachineAxis::Pc => ("pc-i440fx-", false),
        MachineAxis::Q35 => ("pc-q35-", false),
        MachineAxis::PcNewest => ("pc-i440fx-", true),
        MachineAxis::Q35Newest => ("pc-q35-", true),
        MachineAxis::Pc23 => ("pc-i440fx-2.3", false),
        MachineAxis::Pc22 => ("pc-i440fx-2.2", false),
    };
    let kind = match (axis, newest) {
        (MachineAxis::None | MachineAxis::Pc23 | MachineAxis::Pc22, _) => prefix.to_owned(),
        (_, false) => format!("{prefix}{}.{}", BASE.0, BASE.1),
        (_, true) => {
            let mut versions = probes.iter().map(|(_, probe)| versions(probe, prefix));
            let first = versions.next().unwrap_or_default();
            let common =
                versions.fold(first, |common, own| common.into_iter().filter(|v| own.contains(v)).collect());
            let (major, minor) = common
                .into_iter()
                .max()
                .ok_or_else(|| format!("no {prefix}* that all ends have (query-machines)"))?;
            format!("{prefix}{major}.{minor}")
        }
    };
    for (name, probe) in probes {
        if !probe.machines.contains_key(&kind) {
            return Err(format!("{name} has no machine type {kind} (query-machines)"));
        }
    }
    let known = probes.iter().find_map(|(_, probe)| probe.machines[&kind].ram_id.clone());
    let (fallback, ram_bytes) = if kind == "none" { ("ram", 16 * MIB) } else { ("pc.ram", 32 * MIB) };
    Ok(Machine { ram_id: known.unwrap_or_else(|| fallback.into()), kind, ram_bytes })
}

/// What makes a build behave like the older of both ends where the machine type does not.
///
/// Machine `none` has no versions and so promises nothing: a 10.0 source sends SWITCHOVER_START, which no older
/// destination knows. The newer build is therefore given what its own table says about the PC of the older release.
fn hold_back(machine: &Machine, name: &str, probes: &[(&str, &Probe)]) -> Vec<String> {
    let release = |probe: &Probe| (probe.version.0, probe.version.1);
    let Some((_, own)) = probes.iter().find(|(known, _)| *known == name) else { return Vec::new() };
    let Some((major, minor)) = probes.iter().map(|(_, probe)| release(probe)).min() else {
        return Vec::new();
    };
    if machine.kind != "none" || (major, minor) == release(own) {
        return Vec::new();
    }
    let table = own.machines.get(&format!("pc-i440fx-{major}.{minor}"));
    table.map(|machine| machine.migration_properties.clone()).unwrap_or_default()
}

/// A source waits for exactly one acknowledgement, unless it is new enough to count the devices that asked for one;
/// the machines here have no such device, and then even one is an error. Which of both, the build's own table says.
fn acknowledgements(machine: &Machine, source: &str, probes: &[(&str, &Probe)]) -> u32 {
    const LEGACY: &str = "migration.switchover-ack-legacy=on";
    let is_legacy = |machine: &MachineType| machine.migration_properties.iter().any(|word| word == LEGACY);
    let Some((_, probe)) = probes.iter().find(|(known, _)| *known == source) else { return 1 };
    let counts = probe.machines.values().any(is_legacy);
    let legacy = probe.machines.get(&machine.kind).is_some_and(is_legacy);
    if counts && !legacy { 0 } else { 1 }
}

/// The property in `migration.PROPERTY=VALUE`.
fn migration_property(word: &str) -> Option<&str> {
    Some(word.strip_prefix("migration.")?.split_once('=')?.0)
}

/// First machine version on which multifd channels are synchronised by a word of their own.
const PER_ROUND: (u64, u64) = (8, 1);

/// The version at the end of a machine type's name.
fn machine_version(machine: &Machine) -> Option<(u64, u64)> {
    let (major, minor) = machine.kind.rsplit_once('-')?.1.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn release(name: &str, probes: &[(&str, &Probe)]) -> Option<(u64, u64)> {
    let (_, probe) = probes.iter().find(|(known, _)| *known == name)?;
    Some((probe.version.0, probe.version.1))
}

/// What a stand-in source has to write for this destination.
fn dialect(machine: &Machine, destination: &str, probes: &[(&str, &Probe)]) -> String {
    let Some((major, minor)) = release(destination, probes) else { return String::from("any") };
    match machine_version(machine) {
        Some((on_major, on_minor)) => format!("{major}.{minor}-on-{on_major}.{on_minor}"),
        None => format!("{major}.{minor}"),
    }
}

/// Whether zero pages may come in packets to a destination that knows what they are.
fn zero_pages_in_packets(machine: &Machine, cell: &Cell, probes: &[(&str, &Probe)]) -> bool {
    const FIRST: (u64, u64) = (9, 0);
    let is_forced =
        cell.case.variant.source.parameters.get("zero-page-detection").is_some_and(|v| v == "multifd");
    // What was recorded by a stand-in may be played to the build that it came from.
    let reader = if cell.destination == STANDIN { &cell.source } else { &cell.destination };
    release(reader, probes).is_some_and(|release| release >= FIRST)
        && (is_forced || machine_version(machine).is_none_or(|version| version >= FIRST))
}

/// Whether a stock source synchronises in rounds.
fn per_round(machine: &Machine, source: &str, probes: &[(&str, &Probe)]) -> bool {
    const EACH_SECTION: &str = "migration.multifd-flush-after-each-section=on";
    let is_new = release(source, probes).is_some_and(|release| release >= PER_ROUND);
    let held_back = hold_back(machine, source, probes).iter().any(|word| word == EACH_SECTION);
    is_new && !held_back && machine_version(machine).is_none_or(|version| version >= PER_ROUND)
}

/// The plain `MAJOR.MINOR` versions of a family; a distribution's own names are not portable.
fn versions(probe: &Probe, prefix: &str) -> Vec<(u64, u64)> {
    let version = |name: &String| {
        let (major, minor) = name.strip_prefix(prefix)?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    probe.machines.keys().filter_map(version).collect()
}

fn transport(transport: Transport, probes: &[(&str, &Probe)]) -> Option<String> {
    let word = transport.to_string();
    // A qcow2 image is a drive, not an address.
    if transport == Transport::Qcow2 {
        return None;
    }
    let (name, _) = probes.iter().find(|(_, probe)| !probe.transports.contains(&word))?;
    Some(format!("{name} has no {word}: transport (query-qmp-schema)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::tests::sample_cells;
    use crate::peers::Peer;

    fn probe(types: &[&str], capabilities: &[&str]) -> Probe {
        let machine = |name: &&str| (String::from(*name), MachineType::default());
        Probe {
            machines: types.iter().map(machine).collect(),
            capabilities: capabilities.iter().map(ToString::to_string).collect(),
            transports: ["tcp", "unix", "exec"].map(String::from).into(),
            ..Probe::default()
        }
    }

    fn inventory(builds: &[(&str, Result<Probe, String>)], tool: bool) -> Inventory {
        let build = |(name, probe): &(&str, Result<Probe, String>)| {
            let peer = Peer { name: (*name).into(), path: "/q".into(), about: String::new(), given: false };
            (String::from(*name), Build { peer, probe: probe.clone() })
        };
        Inventory {
            builds: builds.iter().map(build).collect(),
            tool: Tool {
                path: "/m".into(),
                version: if tool { Ok("1".into()) } else { Err("no command".into()) },
            },
            boot: Ok(vec![0]),
        }
    }

    fn decide(inventory: &Inventory, id: &str) -> String {
        let cell = sample_cells().into_iter().find(|cell| cell.id() == id).unwrap();
        match inventory.decide(&cell) {
            Decision::Run(setup) => format!("run {}", setup.machine.kind),
            Decision::Unsupported(reason) => format!("unsupported: {reason}"),
            Decision::NotRun(reason) => format!("not-run: {reason}"),
        }
    }

    fn full() -> Probe {
        let types = [
            "none",
            "pc-i440fx-5.2",
            "pc-q35-5.2",
            "pc-q35-9.2",
            "pc-q35-10.0",
            "pc-q35-4.0.1",
            "pc-q35-jammy",
        ];
        probe(&types, &["return-path", "x"])
    }

    #[test]
    fn a_missing_peer_is_not_run() {
        let inventory = inventory(&[("a", Ok(full())), ("b", Err("no such file: /q".into()))], true);
        assert_eq!(decide(&inventory, "t/direct/none/tcp/rp/idle@a:b"), "not-run: peer b: no such file: /q");
        assert_eq!(decide(&inventory, "t/direct/none/tcp/rp/idle@b:c"), "not-run: peer b: no such file: /q");
        assert_eq!(decide(&inventory, "t/recv/pc/unix/rp/dirty@a:migwire"), "run pc-i440fx-5.2");
    }

    #[test]
    fn without_the_command_only_the_control_runs() {
        let inventory = inventory(&[("a", Ok(full())), ("b", Ok(full()))], false);
        assert_eq!(decide(&inventory, "t/direct/none/tcp/rp/idle@a:b"), "run none");
        assert_eq!(decide(&inventory, "t/recv/pc/unix/rp/dirty@a:migwire"), "not-run: no command");
    }

    #[test]
    fn a_capability_is_missed_by_its_name_and_owner() {
        let plain = probe(&["pc-i440fx-5.2"], &["return-path"]);
        let inventory = inventory(&[("a", Ok(plain)), ("b", Ok(full()))], true);
        let reason = "unsupported: a has no capability x (query-migrate-capabilities)";
        assert_eq!(decide(&inventory, "t/recv/pc/unix/rp/dirty/fast@a:migwire"), reason);
        assert_eq!(decide(&inventory, "t/send/pc/unix/rp/dirty/fast@migwire:a"), reason);
        assert_eq!(decide(&inventory, "t/recv/pc/unix/rp/dirty/fast@b:migwire"), "run pc-i440fx-5.2");
    }

    #[test]
    fn a_machine_without_versions_is_held_back_by_the_newer_build_s_table() {
        let mut old = full();
        old.version = (5, 2, 0);
        let mut new = full();
        new.version = (10, 0, 13);
        let properties = vec![String::from("migration.send-switchover-start=off")];
        let entry = new.machines.entry("pc-i440fx-5.2".into()).or_default();
        entry.migration_properties.clone_from(&properties);
        let inventory = inventory(&[("a", Ok(new)), ("b", Ok(old)), ("c", Ok(full()))], true);
        let globals = |id: &str| {
            let cell = sample_cells().into_iter().find(|cell| cell.id() == id).unwrap();
            match inventory.decide(&cell) {
                Decision::Run(setup) => (setup.source_globals, setup.destination_globals),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(globals("t/direct/none/tcp/rp/idle@a:b"), (properties, vec![]));
        // A versioned machine does this by itself, and one build needs no holding back from itself.
        assert_eq!(globals("t/direct/pc/tcp/rp/idle@a:b"), (vec![], vec![]));
        assert_eq!(globals("t/recv/pc/unix/rp/dirty@a:migwire"), (vec![], vec![]));
    }

    #[test]
    fn a_counting_source_waits_for_no_acknowledgement_unless_its_machine_is_old() {
        let machine = |kind: &str| Machine { kind: kind.into(), ram_id: "pc.ram".into(), ram_bytes: 0 };
        let old = full();
        let mut new = full();
        new.machines.entry("pc-q35-10.0".into()).or_default().migration_properties =
            vec!["migration.switchover-ack-legacy=on".into()];
        let wait = |kind: &str, probe: &Probe| acknowledgements(&machine(kind), "a", &[("a", probe)]);
        assert_eq!(wait("pc-q35-10.0", &old), 1);
        assert_eq!(wait("pc-q35-10.0", &new), 1);
        assert_eq!(wait("none", &new), 0);
    }

    #[test]
    fn the_newest_common_machine_is_compared_by_number() {
        let old = probe(&["pc-q35-5.2", "pc-q35-9.2"], &[]);
        let inventory =
            inventory(&[("a", Ok(full())), ("b", Ok(old)), ("c", Ok(probe(&["none"], &[])))], true);
        assert_eq!(decide(&inventory, "t/proxy/q35-newest/tcp/rp/idle@a:a"), "run pc-q35-10.0");
        assert_eq!(decide(&inventory, "t/proxy/q35-newest/tcp/rp/idle@a:b"), "run pc-q35-9.2");
        assert_eq!(
            decide(&inventory, "t/proxy/q35-newest/tcp/rp/idle@b:c"),
            "unsupported: no pc-q35-* that all ends have (query-machines)"
        );
        assert_eq!(
            decide(&inventory, "t/direct/pc/tcp/rp/idle@c:a"),
            "unsupported: c has no machine type pc-i440fx-5.2 (query-machines)"
        );
    }
}
