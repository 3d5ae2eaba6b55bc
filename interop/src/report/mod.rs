//! What people and machines read of a run: everything here is made from [`Results`] alone.

mod cell_page;
pub(crate) mod html;
mod json;
mod junit;
mod markdown;
mod outcomes;
pub(crate) mod terminal;

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::results::{CellResult, Results};

pub(crate) use json::read;

/// Writes `results.json`, `junit.xml`, `matrix.md` and `index.html` into `out`.
pub(crate) fn write_all(out: &Path, results: &Results) -> Result<()> {
    let put = |name: &str, text: String| {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    put("results.json", json::text(results)?)?;
    put("junit.xml", junit::text(results)?)?;
    put("matrix.md", markdown::text(results))?;
    put("index.html", html::index(results))
}

/// Numbers for one square of a matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) pass: usize,
    pub(crate) expected_fail: usize,
    pub(crate) fail: usize,
    pub(crate) unsupported: usize,
    pub(crate) not_run: usize,
}

impl Tally {
    pub(crate) fn of<'a>(cells: impl Iterator<Item = &'a CellResult>) -> Self {
        use crate::results::Verdict;
        let mut tally = Self::default();
        for cell in cells {
            let count = match cell.verdict {
                Verdict::Pass => &mut tally.pass,
                Verdict::ExpectedFail => &mut tally.expected_fail,
                Verdict::Fail => &mut tally.fail,
                Verdict::Unsupported => &mut tally.unsupported,
                Verdict::NotRun => &mut tally.not_run,
            };
            *count += 1;
        }
        tally
    }

    /// Cells that were really tried.
    pub(crate) fn ran(self) -> usize {
        self.pass + self.expected_fail + self.fail
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// `12/12`; what did not run is said, so that a small number does not look like a whole one.
    pub(crate) fn text(self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let mut text =
            if self.ran() == 0 { String::from("–") } else { format!("{}/{}", self.pass, self.ran()) };
        if self.not_run > 0 {
            text.push_str(&format!(" ({} not run)", self.not_run));
        }
        text
    }
}

/// The sentence about a recording that a fresh destination did not load.
pub(crate) fn not_replayed(cell: &CellResult) -> Option<String> {
    let encore = cell.replay.as_ref()?;
    let reason = encore.reason.as_ref()?;
    Some(format!("the recording of {} does not replay to {}: {reason}", cell.id, encore.build))
}

/// `replayed 12 of 13`, if recordings were played once more.
pub(crate) fn replayed(results: &Results) -> Option<String> {
    let all = results.encores().count();
    let good = results.encores().filter(|(_, encore)| encore.reason.is_none()).count();
    (all > 0).then(|| format!("{good} of {all} recordings replayed into a fresh destination, memory equal"))
}

/// Rows or columns of the matrix: the builds in their order, then the stand-in.
pub(crate) fn ends(results: &Results) -> Vec<&str> {
    let mut names: Vec<&str> = results.peers.iter().map(|peer| &*peer.name).collect();
    names.push(crate::peers::STANDIN);
    names
}

/// The cells of one square.
pub(crate) fn tally(results: &Results, source: &str, destination: &str) -> Tally {
    Tally::of(results.cells.iter().filter(|cell| cell.source == source && cell.destination == destination))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cases::tests::sample_cells;
    use crate::failure::Class;
    use crate::results::{CellResult, PeerResult, SCHEMA, ToolResult, Verdict};

    /// A small run with every verdict and with text that must not reach a page unescaped.
    pub(crate) fn sample() -> Results {
        let verdicts = [
            Verdict::Pass,
            Verdict::Fail,
            Verdict::Unsupported,
            Verdict::ExpectedFail,
            Verdict::NotRun,
            Verdict::Pass,
        ];
        let cells = sample_cells().into_iter().zip(verdicts.into_iter().cycle()).map(|(cell, verdict)| {
            let mut result = CellResult { verdict, seconds: 1.5, ..CellResult::new(&cell) };
            result.dir = Some(format!("cells/{}", result.dir_name()));
            result.reproduce = format!("migwire-interop --only {}", result.id);
            if verdict != Verdict::Pass {
                result.reason = Some("<b>bad</b> & \"worse\" 'worst'".into());
            }
            if verdict == Verdict::Fail {
                result.class = Some(Class::Mismatch);
            }
            result
        });
        let peer = |name: &str| PeerResult {
            name: name.into(),
            path: "/q".into(),
            version: Some("1.2.3".into()),
            ..PeerResult::default()
        };
        Results {
            schema: SCHEMA,
            judge: "0.1.0".into(),
            started: 1_700_000_000,
            seconds: 12.0,
            cores: 2,
            jobs: 2,
            migwire: ToolResult { path: "/m".into(), version: Some("0.1.0".into()), reason: None },
            filtered: false,
            shard: None,
            peers: vec![
                peer("a"),
                peer("b"),
                PeerResult { reason: Some("no such file: <x>".into()), version: None, ..peer("c") },
            ],
            cells: cells.collect(),
            expected: Vec::new(),
            problems: vec!["peer c: no such file: <x>".into()],
        }
    }

    #[test]
    fn a_square_tells_what_did_not_run() {
        let tally = Tally { pass: 11, fail: 1, unsupported: 3, ..Tally::default() };
        assert_eq!(tally.text(), "11/12");
        assert_eq!(Tally { not_run: 2, ..tally }.text(), "11/12 (2 not run)");
        assert_eq!(Tally { not_run: 2, ..Tally::default() }.text(), "– (2 not run)");
        assert_eq!(Tally::default().text(), "");
    }

    #[test]
    fn every_report_is_written() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), &sample()).unwrap();
        for name in ["results.json", "junit.xml", "matrix.md", "index.html"] {
            assert!(dir.path().join(name).is_file(), "{name}");
        }
        let read = read(&dir.path().join("results.json")).unwrap();
        assert_eq!(read.cells.len(), sample().cells.len());
    }
}
