//! The truth of a run: `results.json`.
//!
//! ```text
//! schema        1
//! judge         version of this program
//! started       seconds since 1970
//! seconds       duration of the run
//! cores, jobs   what it ran on, and how many cells at a time
//! migwire       {path, version | null, reason | null}
//! filtered      true if --only, --exclude or --short left cells out
//! shard         {index, count} | null
//! peers[]       {name, path, about, version, package, capabilities, machines, transports | reason}
//! cells[]       {id, case, kind, source, destination, machine, machine_type, transport, return_path, guest, variant,
//!                verdict, outcome, reason, class, expected, seconds, replay, dir, processes[], artifacts[], reproduce}
//!                `outcome`: what became of a migration that was troubled on purpose. `replay`: {build, reason | null,
//!                seconds}, where its recording was played to a fresh destination (--replay); without a reason it went well
//! expected[]    {entry, matched, waiting}: every line of expected.toml, how many cells it decided, how many it might
//!                have decided that did not run
//! problems[]    sentences about the run itself: stale lines, missing peers, an interrupt
//! ```
//!
//! `verdict` is `pass`, `fail`, `unsupported`, `expected-fail` or `not-run`; only `fail` is unexpected. A cell that
//! passes against an entry of `expected.toml` is a `fail` whose reason says so. Everything else, the pages and tables,
//! is made from this file alone and can be made again with `merge`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cases::{Cell, Guest, Kind, MachineAxis, Transport};
use crate::expected::Entry;
use crate::failure::Class;
use crate::outcome::Outcome;
use crate::process::ProcessRecord;
use crate::select::Shard;

/// Raised when a reader of the old shape would misunderstand the new one.
pub(crate) const SCHEMA: u32 = 1;

/// What became of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Pass,
    Fail,
    Unsupported,
    ExpectedFail,
    NotRun,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) schema: u32,
    pub(crate) judge: String,
    pub(crate) started: u64,
    pub(crate) seconds: f64,
    pub(crate) cores: usize,
    pub(crate) jobs: usize,
    pub(crate) migwire: ToolResult,
    pub(crate) filtered: bool,
    pub(crate) shard: Option<Shard>,
    pub(crate) peers: Vec<PeerResult>,
    pub(crate) cells: Vec<CellResult>,
    pub(crate) expected: Vec<EntryResult>,
    pub(crate) problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToolResult {
    pub(crate) path: String,
    pub(crate) version: Option<String>,
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerResult {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) about: String,
    pub(crate) version: Option<String>,
    pub(crate) package: Option<String>,
    #[serde(default)]
    pub(crate) capabilities: Vec<String>,
    /// Listed by the build but refused on this host.
    #[serde(default)]
    pub(crate) refused: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) machines: Vec<String>,
    #[serde(default)]
    pub(crate) transports: Vec<String>,
    /// Why it did not take part.
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CellResult {
    pub(crate) id: String,
    pub(crate) case: String,
    pub(crate) kind: Kind,
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) machine: MachineAxis,
    /// The versioned type that was used.
    pub(crate) machine_type: Option<String>,
    pub(crate) transport: Transport,
    pub(crate) return_path: bool,
    pub(crate) guest: Guest,
    pub(crate) variant: Option<String>,
    pub(crate) verdict: Verdict,
    /// What became of a migration that somebody broke on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
    pub(crate) reason: Option<String>,
    pub(crate) class: Option<Class>,
    /// The entry of `expected.toml` that had a say.
    pub(crate) expected: Option<Entry>,
    pub(crate) seconds: f64,
    /// Its recording, played to a fresh destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replay: Option<Encore>,
    /// Folder of its files, relative to the results.
    pub(crate) dir: Option<String>,
    pub(crate) processes: Vec<ProcessRecord>,
    /// Further files in that folder that were kept.
    pub(crate) artifacts: Vec<String>,
    pub(crate) reproduce: String,
}

/// A recording that was played once more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Encore {
    /// The build that it was played to.
    pub(crate) build: String,
    /// Why it did not go well; nothing if it did.
    pub(crate) reason: Option<String>,
    pub(crate) seconds: f64,
}

/// What one line of `expected.toml` did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EntryResult {
    pub(crate) entry: Entry,
    /// Cells that ran and were decided by it.
    pub(crate) matched: usize,
    /// Cells that it is about and that were left out or could not run here.
    pub(crate) waiting: usize,
}

impl CellResult {
    /// A result for a cell of which nothing is known yet.
    pub(crate) fn new(cell: &Cell) -> Self {
        let case = &cell.case;
        Self {
            id: cell.id(),
            case: case.id.clone(),
            kind: case.kind,
            source: cell.source.clone(),
            destination: cell.destination.clone(),
            machine: case.machine,
            machine_type: None,
            transport: case.transport,
            return_path: case.return_path,
            guest: case.guest,
            variant: Some(case.variant.name.clone()).filter(|name| !name.is_empty()),
            verdict: Verdict::NotRun,
            outcome: None,
            reason: None,
            class: None,
            expected: None,
            seconds: 0.0,
            replay: None,
            dir: None,
            processes: Vec::new(),
            artifacts: Vec::new(),
            reproduce: String::new(),
        }
    }

    /// Whether somebody has lost something by the migration that was broken on purpose.
    pub(crate) fn is_harmed(&self) -> bool {
        self.outcome.is_some_and(Outcome::is_harm)
    }

    /// Name of its folder below `cells/`; no character in it needs care in a shell, an archive or a link.
    pub(crate) fn dir_name(&self) -> String {
        format!("{}@{}@{}", self.case.replace('/', "."), self.source, self.destination)
    }
}

impl Results {
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.cells.iter().filter(|cell| cell.verdict == verdict).count()
    }

    /// Recordings that were played once more.
    pub(crate) fn encores(&self) -> impl Iterator<Item = (&CellResult, &Encore)> {
        self.cells.iter().filter_map(|cell| cell.replay.as_ref().map(|encore| (cell, encore)))
    }

    /// Cells that ended in another way than somebody had said they would.
    pub(crate) fn unexpected(&self) -> impl Iterator<Item = &CellResult> {
        self.cells.iter().filter(|cell| cell.verdict == Verdict::Fail)
    }
}

impl Verdict {
    /// One letter for a crowded table.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Pass => 'P',
            Self::Fail => 'F',
            Self::Unsupported => 'U',
            Self::ExpectedFail => 'X',
            Self::NotRun => '-',
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Unsupported => "unsupported",
            Self::ExpectedFail => "expected-fail",
            Self::NotRun => "not-run",
        })
    }
}
