//! What the terminal shows: progress and bad news while it runs (standard error), the table at the end (standard
//! output).

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use super::{ends, tally};
use crate::results::{CellResult, Results, Verdict};

/// A counter that bad news scroll past.
pub(crate) struct Progress {
    total: usize,
    done: usize,
    bad: usize,
    /// A terminal redraws one line; a log gets a line now and then.
    live: bool,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        Self { total, done: 0, bad: 0, live: std::io::stderr().is_terminal() }
    }

    pub(crate) fn handle_result(&mut self, cell: &CellResult) {
        self.done += 1;
        if cell.verdict == Verdict::Fail {
            self.bad += 1;
            self.say(&format!("FAIL {} ({:.1} s): {}", cell.id, cell.seconds, reason(cell)));
        }
        if self.live {
            eprint!("\r[{}/{}] {} failed   {}\x1b[K", self.done, self.total, self.bad, cell.id);
            let _ = std::io::stderr().flush();
        } else if self.done.is_multiple_of(25) {
            eprintln!("[{}/{}] {} failed", self.done, self.total, self.bad);
        }
    }

    pub(crate) fn end(&self) {
        self.say("");
    }

    fn say(&self, line: &str) {
        if self.live {
            eprint!("\r\x1b[K");
        }
        if !line.is_empty() {
            eprintln!("{line}");
        }
    }
}

/// The final table, and everything that a reader must not miss.
pub(crate) fn table(results: &Results, out: &Path) -> String {
    let names = ends(results);
    let mut rows =
        vec![std::iter::once("from \\ to").chain(names.iter().copied()).map(String::from).collect()];
    for source in &names {
        let mut row = vec![(*source).to_owned()];
        row.extend(names.iter().map(|destination| tally(results, source, destination).text()));
        rows.push(row);
    }
    let mut text = align(&rows);
    text.push('\n');
    text.push_str(&super::markdown::summary(results));
    for cell in results.cells.iter().filter(|cell| cell.verdict == Verdict::Fail) {
        text.push_str(&format!("FAIL {}: {}\n     {}\n", cell.id, reason(cell), cell.reproduce));
    }
    let not_run = results.count(Verdict::NotRun);
    if not_run > 0 {
        text.push_str(&format!("NOT RUN: {not_run} cells:\n"));
        for (reason, count) in reasons(results, Verdict::NotRun) {
            text.push_str(&format!("     {count:4} {reason}\n"));
        }
    }
    for problem in &results.problems {
        text.push_str(&format!("PROBLEM {problem}\n"));
    }
    text.push_str(&format!("report: {}\n", out.join("index.html").display()));
    text
}

/// Every reason for a verdict, with its number, in the order of appearance.
pub(super) fn reasons(results: &Results, verdict: Verdict) -> Vec<(&str, usize)> {
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for cell in results.cells.iter().filter(|cell| cell.verdict == verdict) {
        let reason = cell.reason.as_deref().unwrap_or("no reason");
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => reasons.push((reason, 1)),
        }
    }
    reasons
}

fn reason(cell: &CellResult) -> String {
    let text = cell.reason.as_deref().unwrap_or("no reason");
    match cell.class {
        Some(class) => format!("[{class}] {text}"),
        None => text.to_owned(),
    }
}

fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::sample;

    #[test]
    fn nothing_that_failed_or_did_not_run_is_left_out() {
        let results = sample();
        let text = table(&results, Path::new("/out"));
        for cell in results.unexpected() {
            assert!(text.contains(&format!("FAIL {}: [mismatch]", cell.id)), "{text}");
            assert!(text.contains(&cell.reproduce), "{text}");
        }
        assert!(text.contains("NOT RUN: "), "{text}");
        assert!(text.contains("PROBLEM peer c: no such file"), "{text}");
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let rows = [["a", "–"], ["bbb", "c"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(align(&rows), "a    –\nbbb  c\n");
    }
}
