//! Runs cells: a few at a time, each in a folder of its own, each with a verdict whatever happens to it.
//!
//! ```text
//! queue -> worker 1..jobs -> decide -> steps (direct, standin_dest, .., replay, trouble) -> verdict -> [encore] -> main
//! ```
//!
//! Whatever a cell started dies with it, also when the judge itself panics inside it: the panic becomes the cell's
//! verdict, and the processes are killed by their destructors on the way up.

mod about;
mod bitmaps;
mod conversation;
mod convert;
mod direct;
mod encore;
mod import;
mod pair;
mod proxy;
mod replay;
mod snapshot;
mod standin_dest;
mod standin_source;
mod standins;
mod steps;
mod template;
mod trouble;
mod verdict;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::cases::{Cell, Kind};
use crate::expected::{self, Entry};
use crate::failure::{Class, Failure, Run};
use crate::outcome::Outcome;
use crate::process::{Deadline, Ledger, interrupted};
use crate::qemu::Place;
use crate::report;
use crate::results::{CellResult, Verdict};
use crate::support::{Decision, Inventory, Setup};

pub(crate) use conversation::{follow, open};
pub(crate) use template::Templates;

/// Memory images are big; after so many failures their images are no news.
const KEPT_IMAGES: usize = 10;

/// The recording of a cell.
const CAPTURE: &str = "capture.pcapng";

/// For a migwire command to end once its peer is done.
const TOOL_END: Duration = Duration::from_secs(30);

/// What every cell may use.
pub(crate) struct Env {
    pub(crate) inventory: Inventory,
    /// The boot sector as a disk.
    pub(crate) boot_disk: PathBuf,
    /// Short path for UNIX sockets.
    pub(crate) sockets: PathBuf,
    pub(crate) out: PathBuf,
    pub(crate) templates: Templates,
    pub(crate) expected: Vec<Entry>,
    pub(crate) keep_always: bool,
    /// Whether each recording of a cell that passed is played to a fresh destination.
    pub(crate) replay: bool,
    /// The start of every reproducing command: program and the options that change what runs.
    pub(crate) reproduce: String,
    pub(crate) images_left: AtomicUsize,
}

impl Env {
    pub(crate) fn images_budget() -> AtomicUsize {
        AtomicUsize::new(KEPT_IMAGES)
    }
}

/// One cell at work: its folder and what its steps have to know.
pub(crate) struct Bench<'e> {
    env: &'e Env,
    cell: &'e Cell,
    setup: Setup,
    place: Place,
    /// Memory that must lie in a file system in memory; gone when the cell is over.
    scratch: RefCell<Vec<tempfile::TempPath>>,
    found: RefCell<Found>,
}

/// What a cell found out beside its success.
#[derive(Debug, Clone, Default)]
struct Found {
    /// What became of a migration that was troubled, and what was said about it.
    outcome: Option<(Outcome, String)>,
    /// What a reader of the table should know, although it went well.
    note: Option<String>,
    /// The image that a recording in this cell has to bring about.
    sent: Option<PathBuf>,
}

/// Runs all cells, `jobs` at a time, and hands each result over as soon as it is there.
///
/// The results come back in the order of the cells. After an interrupt the rest is `not-run`.
pub(crate) fn run_all(
    env: &Env,
    cells: &[Cell],
    jobs: usize,
    mut done: impl FnMut(&CellResult),
) -> Vec<CellResult> {
    let queue: Mutex<VecDeque<(usize, &Cell)>> = Mutex::new(cells.iter().enumerate().collect());
    let (sender, receiver) = mpsc::channel();
    let mut results: Vec<Option<CellResult>> = cells.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((at, cell)) = next else { return };
                    if sender.send((at, run_cell(env, cell))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (at, result) in receiver {
            done(&result);
            results[at] = Some(result);
        }
    });
    let missing =
        |(at, result): (usize, Option<CellResult>)| result.unwrap_or_else(|| CellResult::new(&cells[at]));
    results.into_iter().enumerate().map(missing).collect()
}

fn run_cell(env: &Env, cell: &Cell) -> CellResult {
    let mut result = CellResult::new(cell);
    result.reproduce = format!("{} --only {}", env.reproduce, crate::process::quote(&result.id));
    if interrupted() {
        result.reason = Some("interrupted".into());
        return result;
    }
    let setup = match env.inventory.decide(cell) {
        Decision::Run(setup) => *setup,
        Decision::Unsupported(reason) => {
            result.verdict = Verdict::Unsupported;
            result.reason = Some(reason);
            return result;
        }
        Decision::NotRun(reason) => {
            result.reason = Some(reason);
            return result;
        }
    };
    let began = Instant::now();
    result.machine_type = Some(setup.machine.kind.clone());
    let dir = env.out.join("cells").join(result.dir_name());
    if let Err(failure) = prepare(&dir) {
        verdict::decide(&mut result, Err(failure), &Found::default(), None);
    } else {
        let place = Place {
            dir: dir.clone(),
            sockets: env.sockets.clone(),
            ledger: Ledger::default(),
            deadline: Deadline::after(Duration::from_secs(cell.case.timeout)),
        };
        let ledger = place.ledger.clone();
        let bench = Bench { env, cell, setup, place, scratch: RefCell::default(), found: RefCell::default() };
        let guarded = |work: &dyn Fn() -> Run<()>| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
                Err(Failure::new(Class::Environment, "the judge panicked; see its stderr"))
            })
        };
        let outcome = guarded(&|| bench.run());
        let found = bench.found.borrow().clone();
        let expectation = cell.case.variant.expectation(&cell.source, &cell.destination);
        verdict::decide(&mut result, outcome, &found, expectation);
        result.seconds = rounded(began);
        if env.replay && result.verdict == Verdict::Pass {
            result.replay = encore::play(&bench, &guarded);
        }
        result.processes = ledger.records();
    }
    expected::judge(&env.expected, &mut result);
    tidy(env, &dir, &mut result);
    result.dir = Some(format!("cells/{}", result.dir_name()));
    // A page that cannot be written is missed when it is looked for; the verdict stands in results.json.
    if let Err(error) = report::html::write_cell_page(&dir, &result) {
        eprintln!("migwire-interop: {}: {error:#}", dir.display());
    }
    result
}

fn rounded(began: Instant) -> f64 {
    (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

impl Bench<'_> {
    fn run(&self) -> Run<()> {
        match self.cell.case.kind {
            Kind::Direct => direct::run(self),
            Kind::StockToStandin => standin_dest::run(self),
            Kind::StandinToStock => standin_source::run(self),
            Kind::StandinToStandin => standins::run(self),
            Kind::StockToProxyToStock => proxy::run(self),
            Kind::Savevm => snapshot::savevm(self),
            Kind::BackgroundSnapshot => snapshot::background(self),
            Kind::Replay => replay::run(self),
            Kind::Convert => convert::run(self),
            Kind::Import => import::run(self),
            Kind::Trouble => trouble::run(self),
        }
    }
}

/// A fresh folder: what an earlier run left must not be taken for evidence of this one.
fn prepare(dir: &Path) -> Run<()> {
    let failed = |e| Failure::environment(dir.display(), e);
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    std::fs::create_dir_all(dir).map_err(failed)
}

/// Files that are logs rather than bulk are kept in any case.
fn is_log(name: &str) -> bool {
    ["stdout", "stderr", "qmp", "console"].iter().any(|end| name.ends_with(&format!(".{end}")))
}

/// Removes the bulk of a cell that went well, and the memory images of all but the first few that did not.
fn tidy(env: &Env, dir: &Path, result: &mut CellResult) {
    let is_replayed = result.replay.as_ref().is_none_or(|encore| encore.reason.is_none());
    let good = is_replayed && !matches!(result.verdict, Verdict::Fail | Verdict::ExpectedFail);
    let keep_images = env.keep_always
        || (result.class == Some(Class::Mismatch)
            && env
                .images_left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok());
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let image = name.ends_with(".ram") || name.ends_with(".images");
        if is_log(&name) || name == "index.html" {
            continue;
        }
        if (good && !env.keep_always) || (image && !keep_images) {
            let path = entry.path();
            // What cannot be removed stays and is listed as kept.
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if removed.is_ok() {
                continue;
            }
        }
        result.artifacts.push(name);
    }
    result.artifacts.sort();
}
