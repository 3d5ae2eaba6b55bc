//! `merge`: the results of several shards, or of several hosts, as one report.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::expected;
use crate::report;
use crate::results::{EntryResult, Results};
use crate::select::Shard;

/// Reads all files, joins them and copies the pages of their cells to `out`. Also tells whether no shard is missing.
pub(crate) fn merge(files: &[PathBuf], out: &Path) -> Result<(Results, bool)> {
    let mut parts = Vec::new();
    for file in files {
        parts.push(report::read(file)?);
    }
    let (merged, complete) = join(parts)?;
    std::fs::create_dir_all(out)?;
    for file in files {
        let from = file.parent().unwrap_or(Path::new("."));
        for dir in merged.cells.iter().filter_map(|cell| cell.dir.as_deref()) {
            copy_page(from, out, dir).with_context(|| format!("copy {dir} from {}", from.display()))?;
        }
    }
    Ok((merged, complete))
}

/// Copies the page of a cell with the logs beside it. Bulk stays where it is.
fn copy_page(from: &Path, out: &Path, dir: &str) -> Result<()> {
    // The name comes out of a file, so it must not lead anywhere else.
    ensure!(
        Path::new(dir).components().all(|part| matches!(part, std::path::Component::Normal(_))),
        "{dir:?} is not a folder below the results"
    );
    let (source, target) = (from.join(dir), out.join(dir));
    if !source.is_dir() || std::path::absolute(&source)? == std::path::absolute(&target)? {
        return Ok(());
    }
    std::fs::create_dir_all(&target)?;
    for entry in std::fs::read_dir(&source)? {
        let entry = entry?;
        let name = entry.file_name();
        let wanted =
            [".html", ".stderr", ".stdout", ".qmp"].iter().any(|end| name.to_string_lossy().ends_with(end));
        if wanted && entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), target.join(name))?;
        }
    }
    Ok(())
}

fn join(parts: Vec<Results>) -> Result<(Results, bool)> {
    let mut parts = parts.into_iter();
    let mut merged = parts.next().context("nothing to merge")?;
    let mut shards: Vec<_> = merged.shard.into_iter().collect();
    let mut stale: BTreeSet<String> = stale_lines(&merged.expected).collect();
    for part in parts {
        ensure!(part.judge == merged.judge, "results of judge {} and {}", merged.judge, part.judge);
        merged.started = merged.started.min(part.started);
        merged.seconds = merged.seconds.max(part.seconds);
        merged.filtered |= part.filtered;
        merged.jobs = merged.jobs.max(part.jobs);
        merged.cores = merged.cores.max(part.cores);
        stale.extend(stale_lines(&part.expected));
        shards.extend(part.shard);
        for peer in part.peers {
            match merged.peers.iter_mut().find(|known| known.name == peer.name) {
                // One host may have a build that another lacks.
                Some(known) if known.version.is_none() => *known = peer,
                Some(known) if peer.version.is_some() && peer.version != known.version => {
                    bail!(
                        "peer {} is {:?} in one part and {:?} in another",
                        peer.name,
                        known.version,
                        peer.version
                    );
                }
                Some(_) => {}
                None => merged.peers.push(peer),
            }
        }
        if merged.migwire.version.is_none() {
            merged.migwire = part.migwire;
        }
        let known: BTreeSet<&str> = merged.cells.iter().map(|cell| &*cell.id).collect();
        if let Some(twice) = part.cells.iter().find(|cell| known.contains(&*cell.id)) {
            bail!("{} is in two of the parts", twice.id);
        }
        merged.cells.extend(part.cells);
        for account in part.expected {
            if !merged.expected.iter().any(|known| known.entry == account.entry) {
                merged.expected.push(account);
            }
        }
        for problem in part.problems {
            if !merged.problems.contains(&problem) {
                merged.problems.push(problem);
            }
        }
    }
    // What one part left out another may have run, so the question is asked again for all of them together.
    let missing = missing_shards(&shards);
    let entries: Vec<_> = merged.expected.iter().map(|account| account.entry.clone()).collect();
    merged.expected = expected::account(&entries, &merged.cells, std::iter::empty());
    if missing.is_empty() && !merged.filtered {
        merged.problems.retain(|problem| !stale.contains(problem));
        merged.problems.extend(stale_lines(&merged.expected).collect::<Vec<_>>());
    }
    for shard in &missing {
        merged.problems.push(format!("shard {}/{} is not here", shard.index, shard.count));
    }
    merged.shard = None;
    Ok((merged, missing.is_empty()))
}

/// The shards of the same division that are not among these; none if nothing was divided.
fn missing_shards(shards: &[Shard]) -> Vec<Shard> {
    let Some(count) = shards.iter().map(|shard| shard.count).max() else { return Vec::new() };
    (1..=count).map(|index| Shard { index, count }).filter(|shard| !shards.contains(shard)).collect()
}

/// How a stale entry is told.
pub(crate) fn stale_lines(accounts: &[EntryResult]) -> impl Iterator<Item = String> {
    expected::stale(accounts).map(|entry| {
        format!("expected.toml: stale entry, no cell needs it: {} ({})", entry.cell, entry.reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expected::Entry;
    use crate::report::tests::sample;
    use crate::results::{CellResult, Verdict};

    fn entry() -> Entry {
        Entry { cell: "t/direct".into(), source: None, destination: None, reason: "known".into(), link: None }
    }

    /// Two shards of the sample, the second of which has the cell that needs the entry.
    fn shards() -> Vec<Results> {
        let all = sample();
        let part = |index: usize| {
            let mine = |(at, cell): (usize, CellResult)| (at % 2 == index - 1).then_some(cell);
            let mut part = Results {
                cells: all.cells.clone().into_iter().enumerate().filter_map(mine).collect(),
                shard: Some(Shard { index, count: 2 }),
                ..all.clone()
            };
            part.expected = vec![EntryResult { entry: entry(), matched: 0, waiting: 3 }];
            part
        };
        let mut parts = vec![part(1), part(2)];
        let cell = parts[1].cells.iter_mut().find(|cell| cell.case.starts_with("t/direct")).unwrap();
        cell.verdict = Verdict::ExpectedFail;
        cell.expected = Some(entry());
        parts
    }

    #[test]
    fn shards_become_the_whole() {
        let (merged, complete) = join(shards()).unwrap();
        assert!(complete);
        let mut ids: Vec<String> = merged.cells.iter().map(|cell| cell.id.clone()).collect();
        let mut all: Vec<String> = sample().cells.iter().map(|cell| cell.id.clone()).collect();
        ids.sort();
        all.sort();
        assert_eq!(ids, all);
        assert_eq!(merged.shard, None);
        assert_eq!(merged.expected[0].matched, 1);
        assert_eq!(merged.problems, sample().problems);
    }

    #[test]
    fn an_entry_is_stale_only_for_the_whole() {
        let mut parts = shards();
        for cell in parts.iter_mut().flat_map(|part| &mut part.cells) {
            cell.verdict = Verdict::Pass;
            cell.expected = None;
        }
        let (merged, _) = join(parts.clone()).unwrap();
        assert!(
            merged.problems.iter().any(|problem| problem.contains("stale entry")),
            "{:?}",
            merged.problems
        );
        parts.pop();
        let (alone, complete) = join(parts).unwrap();
        assert!(!complete);
        assert!(!alone.problems.iter().any(|problem| problem.contains("stale entry")));
        assert!(alone.problems.iter().any(|problem| problem == "shard 2/2 is not here"));
    }

    #[test]
    fn what_cannot_belong_together_is_refused() {
        let mut twice = shards();
        twice[1] = twice[0].clone();
        assert!(join(twice).unwrap_err().to_string().contains("two of the parts"));
        let mut versions = shards();
        versions[1].peers[0].version = Some("9.9.9".into());
        assert!(join(versions).unwrap_err().to_string().contains("peer a"));
        assert!(join(Vec::new()).is_err());
    }

    #[test]
    fn pages_are_copied_and_paths_stay_inside() {
        let (from, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let results = shards().swap_remove(0);
        let dir = results.cells[0].dir.clone().unwrap();
        std::fs::create_dir_all(from.path().join(&dir)).unwrap();
        for name in ["index.html", "source.qmp", "capture.pcapng"] {
            std::fs::write(from.path().join(&dir).join(name), "x").unwrap();
        }
        let file = from.path().join("results.json");
        std::fs::write(&file, serde_json::to_string(&results).unwrap()).unwrap();
        merge(&[file], out.path()).unwrap();
        assert!(out.path().join(&dir).join("index.html").is_file());
        assert!(out.path().join(&dir).join("source.qmp").is_file());
        assert!(!out.path().join(&dir).join("capture.pcapng").exists());
        assert!(copy_page(from.path(), out.path(), "../escape").is_err());
        assert!(copy_page(from.path(), out.path(), "/etc").is_err());
    }
}
