//! Failures that somebody has explained: `expected.toml`.
//!
//! ```text
//! [[expect]]
//! cell = "precopy/proxy/q35/*"        case id, prefix or glob, as for --only
//! source = "5.2"                      optional, also globs
//! destination = "11.1"
//! reason = "in one sentence, for a reader who has the table in front of him"
//! link = "https://..."                optional
//! ```
//!
//! The file is strict in both directions: a cell that passes although it is in here is an error, because the entry is
//! no longer true; and an entry that no cell needs is an error, because nobody would ever remove it.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::results::{CellResult, EntryResult, Verdict};
use crate::select::Pattern;

/// One explained failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) cell: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) destination: Option<String>,
    pub(crate) reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    expect: Vec<Entry>,
}

pub(crate) fn parse(text: &str) -> Result<Vec<Entry>> {
    let file: File = toml::from_str(text)?;
    for entry in &file.expect {
        ensure!(!entry.reason.trim().is_empty(), "{}: a reason is needed", entry.cell);
    }
    Ok(file.expect)
}

impl Entry {
    /// Whether it is about this cell.
    pub(crate) fn covers(&self, id: &str, case: &str, source: &str, destination: &str) -> bool {
        let cell = Pattern::new(&self.cell);
        let peer = |pattern: &Option<String>, name: &str| {
            pattern.as_ref().is_none_or(|pattern| Pattern::new(pattern).matches(name))
        };
        (cell.matches(case) || cell.matches(id))
            && peer(&self.source, source)
            && peer(&self.destination, destination)
    }

    fn covers_result(&self, cell: &CellResult) -> bool {
        self.covers(&cell.id, &cell.case, &cell.source, &cell.destination)
    }
}

/// Turns the bare outcome of a cell into its verdict. The first entry that covers it decides.
pub(crate) fn judge(entries: &[Entry], cell: &mut CellResult) {
    let Some(entry) = entries.iter().find(|entry| entry.covers_result(cell)) else { return };
    match cell.verdict {
        Verdict::Fail => {
            cell.verdict = Verdict::ExpectedFail;
            cell.expected = Some(entry.clone());
        }
        Verdict::Pass => {
            cell.verdict = Verdict::Fail;
            cell.reason = Some(format!("unexpected pass: expected.toml says it fails: {}", entry.reason));
            cell.expected = Some(entry.clone());
        }
        Verdict::Unsupported | Verdict::NotRun | Verdict::ExpectedFail => {}
    }
}

/// Counts what each entry did. `left_out` are the ids of cells that exist but were not selected.
pub(crate) fn account<'a>(
    entries: &[Entry],
    cells: &[CellResult],
    left_out: impl Iterator<Item = (&'a str, &'a str, &'a str, &'a str)>,
) -> Vec<EntryResult> {
    let mut accounts: Vec<EntryResult> =
        entries.iter().map(|entry| EntryResult { entry: entry.clone(), matched: 0, waiting: 0 }).collect();
    for cell in cells {
        match (&cell.expected, cell.verdict) {
            (Some(entry), _) => {
                for account in accounts.iter_mut().filter(|account| account.entry == *entry) {
                    account.matched += 1;
                }
            }
            (None, Verdict::NotRun) => {
                for account in accounts.iter_mut().filter(|account| account.entry.covers_result(cell)) {
                    account.waiting += 1;
                }
            }
            (None, _) => {}
        }
    }
    for (id, case, source, destination) in left_out {
        for account in accounts.iter_mut().filter(|a| a.entry.covers(id, case, source, destination)) {
            account.waiting += 1;
        }
    }
    accounts
}

/// Entries that no cell needed, and none that did not run could still need.
pub(crate) fn stale(accounts: &[EntryResult]) -> impl Iterator<Item = &Entry> {
    accounts
        .iter()
        .filter(|account| account.matched == 0 && account.waiting == 0)
        .map(|account| &account.entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::tests::sample_cells;

    fn entries(text: &str) -> Vec<Entry> {
        parse(text).unwrap()
    }

    fn cell(id: &str, verdict: Verdict) -> CellResult {
        let cell = sample_cells().into_iter().find(|cell| cell.id() == id).unwrap();
        CellResult { verdict, ..CellResult::new(&cell) }
    }

    fn judged(entries: &[Entry], id: &str, verdict: Verdict) -> CellResult {
        let mut cell = cell(id, verdict);
        judge(entries, &mut cell);
        cell
    }

    const ONE: &str = r#"
        [[expect]]
        cell = "t/direct/pc"
        source = "a"
        reason = "a is broken"
        link = "https://example.org/1"
    "#;

    #[test]
    fn a_failure_is_expected_only_where_the_entry_says() {
        let entries = entries(ONE);
        let hit = judged(&entries, "t/direct/pc/tcp/rp/idle@a:b", Verdict::Fail);
        assert_eq!(hit.verdict, Verdict::ExpectedFail);
        assert_eq!(hit.expected.unwrap().reason, "a is broken");
        assert_eq!(judged(&entries, "t/direct/pc/tcp/rp/idle@b:c", Verdict::Fail).verdict, Verdict::Fail);
        assert_eq!(judged(&entries, "t/direct/none/tcp/rp/idle@a:b", Verdict::Fail).verdict, Verdict::Fail);
    }

    #[test]
    fn an_unexpected_pass_is_an_error() {
        let cell = judged(&entries(ONE), "t/direct/pc/tcp/rp/idle@a:b", Verdict::Pass);
        assert_eq!(cell.verdict, Verdict::Fail);
        assert_eq!(cell.reason.unwrap(), "unexpected pass: expected.toml says it fails: a is broken");
    }

    #[test]
    fn what_did_not_run_is_left_alone() {
        for verdict in [Verdict::Unsupported, Verdict::NotRun] {
            let cell = judged(&entries(ONE), "t/direct/pc/tcp/rp/idle@a:b", verdict);
            assert_eq!((cell.verdict, cell.expected), (verdict, None));
        }
    }

    #[test]
    fn an_entry_that_decides_nothing_is_stale() {
        let entries = entries(ONE);
        let account = |cells: &[CellResult], left_out: &[&str]| {
            let parts = |id: &&'static str| (*id, id.split('@').next().unwrap(), "a", "b");
            let left_out: Vec<&'static str> = left_out.iter().map(|id| &*String::from(*id).leak()).collect();
            let accounts = account(&entries, cells, left_out.iter().map(parts));
            (accounts[0].matched, accounts[0].waiting, stale(&accounts).count())
        };
        let hit = judged(&entries, "t/direct/pc/tcp/rp/idle@a:b", Verdict::Fail);
        let missed = judged(&entries, "t/direct/pc/tcp/rp/idle@b:c", Verdict::Pass);
        let no_peer = judged(&entries, "t/direct/pc/tcp/rp/idle@a:b", Verdict::NotRun);
        let unsupported = judged(&entries, "t/direct/pc/tcp/rp/idle@a:b", Verdict::Unsupported);
        assert_eq!(account(&[hit], &[]), (1, 0, 0));
        // Needed by nothing that exists.
        assert_eq!(account(&[missed], &[]), (0, 0, 1));
        assert_eq!(account(&[unsupported], &[]), (0, 0, 1));
        // A missing peer or a narrow selection proves nothing about the entry.
        assert_eq!(account(&[no_peer], &[]), (0, 1, 0));
        assert_eq!(account(&[], &["t/direct/pc/tcp/rp/idle@a:b"]), (0, 1, 0));
    }

    #[test]
    fn the_file_is_strict() {
        assert!(parse("[[expect]]\ncell = 'x'").is_err());
        assert!(parse("[[expect]]\ncell = 'x'\nreason = ' '").is_err());
        assert!(parse("[[expect]]\ncell = 'x'\nreason = 'r'\npeer = 'y'").is_err());
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn the_shipped_file_is_valid() {
        parse(include_str!("../expected.toml")).unwrap();
    }
}
