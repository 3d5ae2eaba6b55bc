//! The command line: what is asked, in which order it is done, and with which exit code it ends.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | everything ended as expected |
//! | 1 | something did not: a failure, an unexpected pass, a stale entry, with `--baseline` a regression |
//! | 2 | the command line, a case file or a manifest is wrong |
//! | 3 | nothing could be run, no migwire command, interrupted, a shard or with `--require-peers` a peer is missing |

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bench::Speed;
use crate::cases::{Cases, Cell, Guest, Kind};
use crate::peers::{self, Peer};
use crate::probe::{Build, probe};
use crate::results::{CellResult, PeerResult, Results, SCHEMA, ToolResult, Verdict};
use crate::run::{Env, Templates, run_all};
use crate::select::{Pattern, Selection, Shard};
use crate::support::Inventory;
use crate::tool::Tool;
use crate::{baseline, disk, expected, merge, process, report};

/// Runs stock QEMU builds against migwire and each other, and writes the matrix.
#[derive(Debug, Parser)]
#[command(name = "migwire-interop", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Bench(Speed),
    /// Join the results of several shards into one report.
    Merge {
        #[arg(required = true, value_name = "RESULTS.json")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
}

/// Where results go and what they are held against.
#[derive(Debug, Args)]
struct Common {
    /// Folder for the report and the files of every cell.
    #[arg(long, value_name = "DIR", default_value = "target/interop")]
    out: PathBuf,
    /// Show only what changed since these results, and judge by that.
    #[arg(long, value_name = "RESULTS.json")]
    baseline: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Add a build, or replace the one of that name. May be repeated.
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<String>,
    /// Only cells whose id this is, or begins with, or matches as a glob. May be repeated.
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Not these cells. May be repeated.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// The quick selection.
    #[arg(long)]
    short: bool,
    /// Only part I of N; every cell is in exactly one part.
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Print the ids of the selected cells and stop.
    #[arg(long)]
    list: bool,
    /// Cells at a time.
    #[arg(long, value_name = "N", default_value_t = default_jobs())]
    jobs: usize,
    /// End with exit code 3 if a peer or the migwire command is missing.
    #[arg(long)]
    require_peers: bool,
    /// Which captures, streams and memory images to keep; logs are always kept.
    #[arg(long, value_enum, default_value = "failures")]
    keep: Keep,
    /// After every cell that passes, play its recording to a fresh destination of the same build, and compare memory.
    #[arg(long)]
    replay: bool,
    /// The command under test. Default: `migwire` beside this program.
    #[arg(long, value_name = "PATH")]
    migwire: Option<PathBuf>,
    /// Folder with peers.toml, expected.toml, cases and guest.
    #[arg(long, value_name = "DIR", default_value_os_t = default_data())]
    data: PathBuf,
    /// What `${QEMU_DIR}` in peers.toml means. Default: target/qemu of the repository.
    #[arg(long, value_name = "DIR", env = "MIGWIRE_QEMU_DIR")]
    qemu_dir: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Keep {
    #[value(alias = "all")]
    Always,
    Failures,
}

/// Why a build was not even asked.
const NOT_NEEDED: &str = "not needed by this selection";

/// How the run ends, beside what it printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    AsExpected = 0,
    Unexpected = 1,
    Usage = 2,
    Environment = 3,
}

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { code(End::Usage) } else { code(End::AsExpected) };
        }
    };
    let end = match cli.verb {
        Some(Verb::Merge { files, common }) => run_merge(&files, &common),
        Some(Verb::Bench(speed)) => environment(speed.run(&default_data())).map(|()| End::AsExpected),
        None => run(&cli.run),
    };
    match end {
        Ok(end) => code(end),
        Err((end, error)) => {
            eprintln!("migwire-interop: {error:#}");
            code(end)
        }
    }
}

fn code(end: End) -> ExitCode {
    ExitCode::from(end as u8)
}

/// An error with the exit code that it means.
type Outcome<T> = std::result::Result<T, (End, anyhow::Error)>;

fn usage<T>(result: Result<T>) -> Outcome<T> {
    result.map_err(|error| (End::Usage, error))
}

fn environment<T>(result: Result<T>) -> Outcome<T> {
    result.map_err(|error| (End::Environment, error))
}

fn run_merge(files: &[PathBuf], common: &Common) -> Outcome<End> {
    let (results, complete) = usage(merge::merge(files, &common.out))?;
    conclude(&results, common, !complete)
}

fn run(args: &RunArgs) -> Outcome<End> {
    let plan = usage(Plan::read(args))?;
    if args.list {
        let ids: String = plan.selected.iter().map(|cell| format!("{}\n", cell.id())).collect();
        print(&ids);
        return Ok(End::AsExpected);
    }
    if plan.selected.is_empty() {
        return Err((End::Usage, anyhow::anyhow!("no cell is selected; --list shows what there is")));
    }
    environment(watch_signals())?;
    let (began, started) = (Instant::now(), SystemTime::now());
    let out = environment(std::path::absolute(&args.common.out).map_err(Into::into))?;
    environment(std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display())))?;
    let sockets = environment(tempfile::Builder::new().prefix("mwi").tempdir().map_err(Into::into))?;
    let env = environment(plan.prepare(args, &out, sockets.path()))?;
    for line in missing(&env.inventory, &plan.selected) {
        eprintln!("migwire-interop: NOT RUN: {line}");
    }

    let mut progress = report::terminal::Progress::new(plan.selected.len());
    let cells = run_all(&env, &plan.selected, args.jobs, |cell| progress.handle_result(cell));
    progress.end();
    // A template is worth its space only to somebody who has to find out why it was not accepted.
    let wanted = |cell: &CellResult| cell.kind == Kind::StandinToStock && cell.verdict == Verdict::Fail;
    if args.keep != Keep::Always && !cells.iter().any(wanted) {
        env.templates.remove();
    }

    let chosen: std::collections::BTreeSet<String> = plan.selected.iter().map(Cell::id).collect();
    let others: Vec<(String, &Cell)> =
        plan.all.iter().map(|cell| (cell.id(), cell)).filter(|(id, _)| !chosen.contains(id)).collect();
    let left_out = others.iter().map(|(id, cell)| (&**id, &*cell.case.id, &*cell.source, &*cell.destination));
    let expected = expected::account(&env.expected, &cells, left_out);
    let mut problems: Vec<String> = merge::stale_lines(&expected).collect();
    problems.extend(cells.iter().filter_map(report::not_replayed));
    let missing = missing(&env.inventory, &plan.selected);
    problems.extend(missing.iter().cloned());
    if process::interrupted() {
        problems.push("interrupted".into());
    }
    let results = Results {
        schema: SCHEMA,
        judge: env!("CARGO_PKG_VERSION").into(),
        started: started.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
        seconds: began.elapsed().as_secs_f64(),
        cores: default_jobs(),
        jobs: args.jobs,
        migwire: tool_result(&env.inventory.tool),
        filtered: plan.selection.is_filtered(),
        shard: args.shard,
        peers: plan.peers.iter().map(|peer| peer_result(&env.inventory.builds[&peer.name])).collect(),
        cells,
        expected,
        problems,
    };
    // Without the command under test a run is not a small success but no run; a missing peer may be somebody's choice.
    let no_command = plan.needs_migwire() && env.inventory.tool.version.is_err();
    conclude(&results, &args.common, no_command || (args.require_peers && !missing.is_empty()))
}

/// Everything that is read before anything is started.
struct Plan {
    peers: Vec<Peer>,
    all: Vec<Cell>,
    selected: Vec<Cell>,
    selection: Selection,
    expected: Vec<expected::Entry>,
}

impl Plan {
    fn read(args: &RunArgs) -> Result<Self> {
        let file = |name: &str| {
            let path = args.data.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let data = std::path::absolute(&args.data)?;
        let root = data.parent().unwrap_or(&data);
        let qemu_dir = args.qemu_dir.clone().unwrap_or_else(|| root.join("target/qemu"));
        let qemu_dir = std::path::absolute(&qemu_dir)?;
        let peers = peers::load(&file("peers.toml")?, &qemu_dir, &args.peers).context("peers.toml")?;
        let expected = expected::parse(&file("expected.toml")?).context("expected.toml")?;
        let names: Vec<String> = peers.iter().map(|peer| peer.name.clone()).collect();
        let all = Cases::read(&args.data.join("cases"))?.cells(&names);
        let patterns = |words: &[String]| words.iter().map(|word| Pattern::new(word)).collect();
        let selection = Selection {
            only: patterns(&args.only),
            exclude: patterns(&args.exclude),
            short: args.short,
            shard: args.shard,
        };
        let selected = selection.apply(all.clone());
        Ok(Self { peers, all, selected, selection, expected })
    }

    fn needs_migwire(&self) -> bool {
        self.selected.iter().any(|cell| cell.case.kind.needs_migwire())
    }

    /// Asks every build that is needed, and lays out what the cells share.
    fn prepare(&self, args: &RunArgs, out: &Path, sockets: &Path) -> Result<Env> {
        let probes = out.join("probes");
        let tool = Tool::probe(&migwire_path(args.migwire.as_deref())?, &probes.join(peers::STANDIN));
        let mut builds: BTreeMap<String, Build> = BTreeMap::new();
        for peer in &self.peers {
            let needed = self.selected.iter().any(|cell| cell.builds().contains(&&*peer.name));
            let build = if needed {
                probe(peer, &probes.join(&peer.name), sockets)
            } else {
                Build { peer: peer.clone(), probe: Err(NOT_NEEDED.into()) }
            };
            builds.insert(peer.name.clone(), build);
        }
        let boot = read_boot(&args.data.join("guest/dirty.bin"));
        let boot_disk = out.join("boot.disk");
        disk::write_raw(&boot_disk, boot.as_deref().unwrap_or_default())
            .with_context(|| format!("write {}", boot_disk.display()))?;
        Ok(Env {
            inventory: Inventory { builds, tool, boot },
            boot_disk,
            sockets: sockets.to_owned(),
            out: out.to_owned(),
            templates: Templates::default(),
            expected: self.expected.clone(),
            keep_always: args.keep == Keep::Always,
            replay: args.replay,
            reproduce: self.reproduce(args, out),
            images_left: Env::images_budget(),
        })
    }

    /// The start of a command that runs one of these cells again, beside these results and not over them.
    fn reproduce(&self, args: &RunArgs, out: &Path) -> String {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("migwire-interop"));
        let mut words = Vec::new();
        if let Some(path) = &args.migwire {
            words.extend([String::from("--migwire"), path.display().to_string()]);
        }
        if let Some(path) = &args.qemu_dir {
            words.extend([String::from("--qemu-dir"), path.display().to_string()]);
        }
        if args.data != default_data() {
            words.extend([String::from("--data"), args.data.display().to_string()]);
        }
        for peer in self.peers.iter().filter(|peer| peer.given) {
            words.extend([String::from("--peer"), format!("{}={}", peer.name, peer.path.display())]);
        }
        words.extend(args.replay.then(|| String::from("--replay")));
        words.extend(["--keep", "always", "--out", &out.join("again").to_string_lossy()].map(String::from));
        process::shell_line(&program, &words)
    }
}

/// Writes the reports, prints what people want to see, and decides how it all went.
fn conclude(results: &Results, common: &Common, lacking: bool) -> Outcome<End> {
    environment(report::write_all(&common.out, results))?;
    let stale = merge::stale_lines(&results.expected).any(|line| results.problems.contains(&line));
    let is_not_replayed = results.encores().any(|(_, encore)| encore.reason.is_some());
    let mut bad = results.unexpected().next().is_some() || stale || is_not_replayed;
    if let Some(path) = &common.baseline {
        let old = usage(report::read(path))?;
        let changes = baseline::compare(&old, results);
        let mut text = String::new();
        for line in &changes.regressions {
            text.push_str(&format!("REGRESSION {line}\n"));
        }
        for line in &changes.repairs {
            text.push_str(&format!("repaired   {line}\n"));
        }
        let (worse, better) = (changes.regressions.len(), changes.repairs.len());
        text.push_str(&format!("{worse} regressions, {better} repairs since {}\n", path.display()));
        print(&text);
        bad = worse > 0;
    } else {
        print(&report::terminal::table(results, &common.out));
    }
    let nothing_ran = results.cells.iter().all(|cell| cell.verdict == Verdict::NotRun);
    let interrupted = results.problems.iter().any(|problem| problem == "interrupted");
    Ok(match (bad, nothing_ran || lacking || interrupted) {
        (true, _) => End::Unexpected,
        (false, true) => End::Environment,
        (false, false) => End::AsExpected,
    })
}

/// What the selected cells want and this host does not have.
fn missing(inventory: &Inventory, cells: &[Cell]) -> Vec<String> {
    let mut missing: Vec<String> = Vec::new();
    for (name, build) in &inventory.builds {
        if let Err(reason) = &build.probe
            && cells.iter().any(|cell| cell.builds().contains(&&**name))
        {
            missing.push(format!("peer {name}: {reason}"));
        }
    }
    if cells.iter().any(|cell| cell.case.kind.needs_migwire()) {
        missing.extend(inventory.tool.version.as_ref().err().cloned());
    }
    if cells.iter().any(|cell| cell.case.guest == Guest::Dirty) {
        missing.extend(inventory.boot.as_ref().err().cloned());
    }
    missing
}

fn tool_result(tool: &Tool) -> ToolResult {
    ToolResult {
        path: tool.path.display().to_string(),
        version: tool.version.clone().ok(),
        reason: tool.version.clone().err(),
    }
}

fn peer_result(build: &Build) -> PeerResult {
    let mut result = PeerResult {
        name: build.peer.name.clone(),
        path: build.peer.path.display().to_string(),
        about: build.peer.about.clone(),
        ..PeerResult::default()
    };
    match &build.probe {
        Ok(probe) => {
            result.version = Some(probe.version_text());
            result.package = Some(probe.package.clone()).filter(|package| !package.is_empty());
            result.capabilities = probe.capabilities.iter().cloned().collect();
            result.refused.clone_from(&probe.refused);
            result.machines = probe.machines.keys().cloned().collect();
            result.transports = probe.transports.iter().cloned().collect();
        }
        Err(reason) => result.reason = Some(reason.clone()).filter(|reason| reason != NOT_NEEDED),
    }
    result
}

fn read_boot(path: &Path) -> std::result::Result<Vec<u8>, String> {
    match std::fs::read(path) {
        Ok(boot) if boot.len() > disk::MAX_BOOT => Err(format!(
            "no guest: {} has {} bytes, {} is the most",
            path.display(),
            boot.len(),
            disk::MAX_BOOT
        )),
        Ok(boot) => Ok(boot),
        Err(error) => Err(format!("no guest: {}: {error}", path.display())),
    }
}

pub(crate) fn migwire_path(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(path) => Ok(std::path::absolute(path)?),
        None => Ok(std::env::current_exe().context("own path")?.with_file_name("migwire")),
    }
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The judge belongs to its checkout; a binary that was carried away needs `--data`.
fn default_data() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    if built.is_dir() { built } else { PathBuf::from("interop") }
}

/// The first signal lets running cells clean up; the second kills what they started and leaves.
fn watch_signals() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            if process::interrupted() {
                process::kill_all();
                std::process::exit(End::Environment as i32);
            }
            eprintln!("\nmigwire-interop: stopping; once more to kill");
            process::interrupt();
        }
    })?;
    Ok(())
}

/// Data on standard output. A reader that went away is no error.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_boot_sector_that_cannot_be_used_is_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dirty.bin");
        assert!(read_boot(&path).unwrap_err().starts_with("no guest: "));
        std::fs::write(&path, vec![0; disk::MAX_BOOT + 1]).unwrap();
        assert!(read_boot(&path).unwrap_err().contains("4097 bytes"));
        std::fs::write(&path, vec![0; 512]).unwrap();
        assert_eq!(read_boot(&path).unwrap().len(), 512);
    }

    #[test]
    fn merge_and_run_have_their_own_words() {
        assert!(Cli::try_parse_from(["x", "merge", "a.json", "--out", "o"]).is_ok());
        assert!(Cli::try_parse_from(["x", "merge"]).is_err());
        assert!(
            Cli::try_parse_from(["x", "--short", "--shard", "1/2", "--only", "a", "--only", "b"]).is_ok()
        );
        assert!(Cli::try_parse_from(["x", "--shard", "3/2"]).is_err());
    }
}
