//! `--baseline OLD.json`: only what changed. For people who have known failures and want to know about new ones.

use std::collections::BTreeMap;

use crate::results::{CellResult, Results, Verdict};

/// What changed since the baseline.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// One sentence each. Any of them makes the run a failure.
    pub(crate) regressions: Vec<String>,
    pub(crate) repairs: Vec<String>,
}

/// Compares verdicts cell by cell; cells that only the baseline has are not looked at, a selection may be narrower.
///
/// A cell that passed and is now unsupported or not run is a regression too: that is how failures hide.
pub(crate) fn compare(old: &Results, new: &Results) -> Changes {
    let before: BTreeMap<&str, &CellResult> = old.cells.iter().map(|cell| (&*cell.id, cell)).collect();
    let mut changes = Changes::default();
    for cell in &new.cells {
        let was = before.get(&*cell.id).map(|cell| cell.verdict);
        let line = || {
            let was = was.map_or_else(|| String::from("new"), |verdict| verdict.to_string());
            let reason = cell.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{}: {was} -> {}{reason}", cell.id, cell.verdict)
        };
        let regressed = match (was, cell.verdict) {
            (Some(Verdict::Fail), _) => false,
            (_, Verdict::Fail) => true,
            (Some(Verdict::Pass), verdict) => verdict != Verdict::Pass,
            _ => false,
        };
        let repaired =
            matches!(was, Some(Verdict::Fail | Verdict::ExpectedFail)) && cell.verdict == Verdict::Pass;
        if regressed {
            changes.regressions.push(line());
        } else if repaired {
            changes.repairs.push(line());
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    fn changes(old: Option<Verdict>, new: Verdict) -> (usize, usize) {
        let mut before = sample();
        let mut after = sample();
        after.cells.truncate(1);
        after.cells[0].verdict = new;
        match old {
            Some(verdict) => before.cells[0].verdict = verdict,
            None => drop(before.cells.remove(0)),
        }
        let changes = compare(&before, &after);
        (changes.regressions.len(), changes.repairs.len())
    }

    #[test]
    fn only_changes_for_the_worse_count() {
        use Verdict::{ExpectedFail, Fail, NotRun, Pass, Unsupported};
        assert_eq!(changes(Some(Pass), Pass), (0, 0));
        assert_eq!(changes(Some(Fail), Fail), (0, 0));
        assert_eq!(changes(Some(Pass), Fail), (1, 0));
        assert_eq!(changes(Some(NotRun), Fail), (1, 0));
        assert_eq!(changes(None, Fail), (1, 0));
        assert_eq!(changes(None, Pass), (0, 0));
        assert_eq!(changes(Some(Fail), Pass), (0, 1));
        assert_eq!(changes(Some(ExpectedFail), Pass), (0, 1));
        assert_eq!(changes(Some(Unsupported), NotRun), (0, 0));
        for hidden in [Unsupported, NotRun, ExpectedFail] {
            assert_eq!(changes(Some(Pass), hidden), (1, 0), "{hidden}");
        }
    }

    #[test]
    fn a_line_names_both_verdicts() {
        let mut old = sample();
        let mut new = sample();
        old.cells[1].verdict = Verdict::Pass;
        new.cells[1].reason = Some("why".into());
        let changes = compare(&old, &new);
        assert_eq!(changes.regressions, [format!("{}: pass -> fail: why", new.cells[1].id)]);
    }
}
