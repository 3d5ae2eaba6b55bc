//! Cases as data: what `cases/*.toml` says, and its expansion into cells.
//!
//! ```text
//! [[case]]                                    one entry: lists of axis values, multiplied out
//! kind = "stock-to-proxy-to-stock"
//! machine = ["none", "pc"]                 -> precopy/proxy/none/tcp/rp/idle   } case ids: for ever the same
//! peers = "ring+1"                            precopy/proxy/pc/tcp/rp/idle     }
//!                                          -> precopy/proxy/pc/tcp/rp/idle@7.2:10.0   cell id: a case between two peers
//! ```
//!
//! An id holds every axis in a fixed order, so a new value or a new axis member never renames an old case. The full
//! product is never run: entries choose which axis values meet, and `peers` how many pairs of builds meet them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::peers::STANDIN;
use crate::spread::Spread;
use crate::variant::Variant;

/// Time for one cell unless its entry says otherwise.
const TIMEOUT: u64 = 60;

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The control: two stock builds without us.
    Direct,
    StockToStandin,
    StandinToStock,
    /// Both ends are ours: what no stock build can show, because it has no such device or does not do it yet.
    StandinToStandin,
    StockToProxyToStock,
    /// An internal snapshot in a qcow2 image: save, verify, load in a fresh process.
    Savevm,
    /// Saved while the guest runs, loaded in a fresh process.
    BackgroundSnapshot,
    /// Recorded between two stock ends of one build, and played to a fresh destination.
    Replay,
    /// Recorded, shown not to load elsewhere, converted, and played there.
    Convert,
    /// Recorded, and captured from the network at the same time: both are the same migration.
    Import,
    /// Broken on purpose by the recorder: what becomes of both ends.
    Trouble,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MachineAxis {
    None,
    /// The oldest versioned types that all supported builds have: every pair can use them.
    Pc,
    Q35,
    /// The newest versioned types that both ends have.
    PcNewest,
    Q35Newest,
    /// Writes neither configuration record nor footers; only 5.2 and 7.2 still have it.
    #[serde(rename = "pc-2.3")]
    Pc23,
    /// Writes no description either, so that nothing says where its devices end.
    #[serde(rename = "pc-2.2")]
    Pc22,
}

impl MachineAxis {
    /// Whether its streams begin with a configuration record, which names the machine.
    pub(crate) fn names_itself(self) -> bool {
        !matches!(self, Self::Pc23 | Self::Pc22)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transport {
    Tcp,
    Unix,
    Exec,
    File,
    Qcow2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Guest {
    /// Never started; memory is filled by the judge.
    Idle,
    /// Runs and writes to its memory for ever.
    Dirty,
}

/// One thing to try, between whichever peers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) machine: MachineAxis,
    pub(crate) transport: Transport,
    pub(crate) return_path: bool,
    pub(crate) guest: Guest,
    pub(crate) variant: Arc<Variant>,
    pub(crate) timeout: u64,
}

/// One case between two peers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cell {
    pub(crate) case: Arc<Case>,
    pub(crate) source: String,
    pub(crate) destination: String,
    /// Part of the quick selection.
    pub(crate) short: bool,
}

/// All case files, read and checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cases(Vec<(Arc<Case>, Spread, Option<Spread>)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// First part of every id in this file.
    group: String,
    #[serde(default)]
    variant: BTreeMap<String, Variant>,
    #[serde(default)]
    case: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: Many<Kind>,
    machine: Many<MachineAxis>,
    transport: Many<Transport>,
    return_path: Many<bool>,
    guest: Many<Guest>,
    #[serde(default)]
    variant: Option<Many<String>>,
    peers: String,
    /// Which of these pairs are part of `--short`.
    #[serde(default)]
    short: Option<String>,
    #[serde(default)]
    timeout: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Many<T> {
    One(T),
    List(Vec<T>),
}

impl<T> Many<T> {
    fn values(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::List(values) => values,
        }
    }
}

impl Cases {
    /// Reads every `*.toml` of a folder, in the order of their names.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| format!("cases in {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push((path.display().to_string(), std::fs::read_to_string(&path)?));
            }
        }
        files.sort();
        Self::parse(files.iter().map(|(name, text)| (&**name, &**text)))
    }

    fn parse<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut cases = Self::default();
        let mut ids = BTreeSet::new();
        for (name, text) in files {
            let file: File = toml::from_str(text).with_context(|| name.to_owned())?;
            let mut variants = BTreeMap::from([(String::from("plain"), Arc::new(Variant::default()))]);
            for (word, mut variant) in file.variant {
                variant.name.clone_from(&word);
                variants.insert(word, Arc::new(variant));
            }
            for (number, entry) in file.case.iter().enumerate() {
                entry
                    .expand(&file.group, &variants, &mut ids, &mut cases.0)
                    .with_context(|| format!("{name}: case {}", number + 1))?;
            }
        }
        Ok(cases)
    }

    /// Every case, whatever builds there are.
    #[cfg(test)]
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(case, ..)| &*case.id)
    }

    /// The cells for these builds, in the order of the files.
    pub(crate) fn cells(&self, builds: &[String]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (case, spread, short) in &self.0 {
            let quick = short.as_ref().map(|short| short.pairs(case.kind, builds)).unwrap_or_default();
            for (source, destination) in spread.pairs(case.kind, builds) {
                let short = quick.contains(&(source.clone(), destination.clone()));
                cells.push(Cell { case: Arc::clone(case), source, destination, short });
            }
        }
        cells
    }
}

impl Entry {
    fn expand(
        &self,
        group: &str,
        variants: &BTreeMap<String, Arc<Variant>>,
        ids: &mut BTreeSet<String>,
        out: &mut Vec<(Arc<Case>, Spread, Option<Spread>)>,
    ) -> Result<()> {
        let plain = [String::from("plain")];
        let names = self.variant.as_ref().map_or(&plain[..], Many::values);
        for &kind in self.kind.values() {
            let spread = Spread::parse(&self.peers, kind)?;
            let short = self.short.as_deref().map(|word| Spread::parse(word, kind)).transpose()?;
            for &machine in self.machine.values() {
                for &transport in self.transport.values() {
                    for &return_path in self.return_path.values() {
                        for &guest in self.guest.values() {
                            for name in names {
                                let variant = variants
                                    .get(name)
                                    .with_context(|| format!("unknown variant {name:?}"))?;
                                let mut case = Case {
                                    id: String::new(),
                                    kind,
                                    machine,
                                    transport,
                                    return_path,
                                    guest,
                                    variant: Arc::clone(variant),
                                    timeout: self.timeout.unwrap_or(TIMEOUT),
                                };
                                case.id = case.make_id(group);
                                case.check().with_context(|| case.id.clone())?;
                                ensure!(ids.insert(case.id.clone()), "{} is there twice", case.id);
                                out.push((Arc::new(case), spread.clone(), short.clone()));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl Case {
    fn make_id(&self, group: &str) -> String {
        let return_path = if self.return_path { "rp" } else { "norp" };
        let Self { kind, machine, transport, guest, .. } = self;
        let mut id = format!("{group}/{}/{machine}/{transport}/{return_path}/{guest}", kind.short());
        if !self.variant.name.is_empty() {
            id.push('/');
            id.push_str(&self.variant.name);
        }
        id
    }

    /// Refuses combinations that cannot mean anything. They are mistakes in a case file, not findings.
    fn check(&self) -> Result<()> {
        let two_way = matches!(self.transport, Transport::Tcp | Transport::Unix);
        ensure!(two_way || !self.return_path, "a {} channel has no return path", self.transport);
        ensure!(
            self.machine != MachineAxis::None || self.guest == Guest::Idle,
            "machine none has no CPU that could run a guest"
        );
        ensure!(
            (self.kind == Kind::Savevm) == (self.transport == Transport::Qcow2),
            "savevm, and only savevm, goes into a qcow2 image"
        );
        if self.kind == Kind::BackgroundSnapshot {
            ensure!(
                !two_way && self.guest == Guest::Dirty,
                "a background snapshot of a running guest into a file"
            );
        }
        ensure!(
            !(self.kind == Kind::StockToProxyToStock && self.transport == Transport::File),
            "there is no place for a proxy between QEMU and a file"
        );
        ensure!(
            self.kind != Kind::StandinToStandin
                || (self.machine == MachineAxis::None && self.transport == Transport::Tcp),
            "two stand-ins talk about machine none over tcp"
        );
        ensure!(
            !self.variant.from_nothing
                || (self.kind == Kind::StandinToStock && self.machine == MachineAxis::None),
            "only machine none can be made from nothing, and only by a stand-in source"
        );
        let Variant { postcopy, running, cut, .. } = &*self.variant;
        ensure!(
            *postcopy || (!running && cut.is_empty()),
            "only in postcopy a guest can go on, and only postcopy can be taken up again"
        );
        ensure!(!running || self.guest == Guest::Dirty, "an idle guest does not go on");
        ensure!(
            self.variant.pace.is_none()
                || (self.kind == Kind::StandinToStock && self.transport == Transport::Unix),
            "the judge's slow line is of UNIX sockets, and in front of a stock destination"
        );
        self.check_recorded(two_way)?;
        ensure!(
            !self.variant.source_has("release-ram") || self.guest == Guest::Idle,
            "what a source has released cannot be compared, so its guest must not have changed it"
        );
        Ok(())
    }
}

impl Case {
    /// The same for what begins with a recording of two stock ends.
    fn check_recorded(&self, two_way: bool) -> Result<()> {
        let Variant { convert, trouble, capture_on, recorded, .. } = &*self.variant;
        let is_recorded = matches!(self.kind, Kind::Replay | Kind::Convert | Kind::Import | Kind::Trouble);
        ensure!(!is_recorded || two_way, "the recorder stands between two ends that are there at once");
        ensure!(
            !is_recorded || !self.variant.source_has("release-ram"),
            "what a source has released cannot be compared once more"
        );
        let belongs = |is_set: bool, kinds: &[Kind]| is_set == kinds.contains(&self.kind);
        ensure!(belongs(!convert.is_empty(), &[Kind::Convert]), "a conversion says what to convert");
        ensure!(belongs(!trouble.is_empty(), &[Kind::Trouble]), "trouble says what trouble");
        ensure!(
            capture_on.is_none() || (self.kind == Kind::Import && self.transport == Transport::Tcp),
            "only tcp goes over a network"
        );
        ensure!(
            self.kind != Kind::Import || self.transport == Transport::Tcp,
            "only tcp goes over a network"
        );
        ensure!(
            recorded.is_none() || matches!(self.kind, Kind::Replay | Kind::Convert),
            "there is no second destination"
        );
        Ok(())
    }
}

impl Cell {
    pub(crate) fn id(&self) -> String {
        format!("{}@{}:{}", self.case.id, self.source, self.destination)
    }

    /// The stock builds that take part, each once.
    pub(crate) fn builds(&self) -> Vec<&str> {
        let mut builds: Vec<&str> = Vec::new();
        for name in [&*self.source, &*self.destination] {
            if name != STANDIN && !builds.contains(&name) {
                builds.push(name);
            }
        }
        builds
    }
}

impl Kind {
    /// The word in ids.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::StockToStandin => "recv",
            Self::StandinToStock => "send",
            Self::StandinToStandin => "pair",
            Self::StockToProxyToStock => "proxy",
            Self::Savevm => "savevm",
            Self::BackgroundSnapshot => "background",
            Self::Replay => "replay",
            Self::Convert => "convert",
            Self::Import => "import",
            Self::Trouble => "trouble",
        }
    }

    /// Whether the migwire command has a part in it.
    pub(crate) fn needs_migwire(self) -> bool {
        self != Self::Direct
    }
}

impl fmt::Display for MachineAxis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Pc => "pc",
            Self::Q35 => "q35",
            Self::PcNewest => "pc-newest",
            Self::Q35Newest => "q35-newest",
            Self::Pc23 => "pc-2.3",
            Self::Pc22 => "pc-2.2",
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Exec => "exec",
            Self::File => "file",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Dirty => "dirty",
        })
    }
}

#[cfg(test)]
#[path = "cases_tests.rs"]
pub(crate) mod tests;
