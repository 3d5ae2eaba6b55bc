//! `matrix.md`: one table for a README or a pull request.

use super::outcomes::{Outcomes, word};
use crate::report::{ends, tally};
use crate::results::{CellResult, Results, Verdict};

pub(super) fn text(results: &Results) -> String {
    let mut text = matrix(results);
    text.push('\n');
    text.push_str(&summary(results));
    if let Some(table) = Outcomes::of(results) {
        text.push_str(&troubles(&table));
    }
    for cell in results.unexpected() {
        let reason = escape(cell.reason.as_deref().unwrap_or_default());
        text.push_str(&format!("* **fail** `{}`: {reason}\n", cell.id));
    }
    for problem in &results.problems {
        text.push_str(&format!("* **problem**: {}\n", escape(problem)));
    }
    text
}

/// Rows send, columns receive; `passed/run` of every cell between the two.
fn matrix(results: &Results) -> String {
    let names = ends(results);
    let mut text = format!("| from \\ to | {} |\n", names.join(" | "));
    text.push_str(&format!("|---|{}\n", "---|".repeat(names.len())));
    for source in &names {
        text.push_str(&format!("| **{source}** |"));
        for destination in &names {
            text.push_str(&format!(" {} |", tally(results, source, destination).text()));
        }
        text.push('\n');
    }
    text
}

/// What became of migrations that were broken on purpose.
fn troubles(table: &Outcomes<'_>) -> String {
    let columns: Vec<String> = table.columns.iter().map(|(from, to)| format!("{from} → {to}")).collect();
    let mut text = format!("\n| trouble | {} |\n", columns.join(" | "));
    text.push_str(&format!("|---|{}\n", "---|".repeat(columns.len())));
    for (case, cells) in &table.rows {
        let square = |cell: &Option<&CellResult>| match cell.and_then(word) {
            // What has cost somebody a guest stands out.
            Some(word) if cell.is_some_and(CellResult::is_harmed) => format!("**{word}**"),
            word => word.unwrap_or_default(),
        };
        let words: Vec<String> = cells.iter().map(square).collect();
        text.push_str(&format!("| `{case}` | {} |\n", words.join(" | ")));
    }
    text.push('\n');
    text
}

/// One line of numbers.
pub(super) fn summary(results: &Results) -> String {
    let versions: Vec<String> = results
        .peers
        .iter()
        .filter_map(|peer| match (&peer.version, &peer.reason) {
            (Some(version), _) => Some(format!("{} = QEMU {version}", peer.name)),
            (None, Some(_)) => Some(format!("{} missing", peer.name)),
            (None, None) => None,
        })
        .collect();
    let count = |verdict| results.count(verdict);
    let mut text = format!(
        "{} cells: {} pass, {} fail, {} expected-fail, {} unsupported, {} not-run, in {:.0} s.\n\n{}.\n",
        results.cells.len(),
        count(Verdict::Pass),
        count(Verdict::Fail),
        count(Verdict::ExpectedFail),
        count(Verdict::Unsupported),
        count(Verdict::NotRun),
        results.seconds,
        versions.join(", "),
    );
    if let Some(words) = super::replayed(results) {
        text.push_str(&format!("\n{words}.\n"));
    }
    if results.unexpected().next().is_some() || !results.problems.is_empty() {
        text.push('\n');
    }
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use crate::outcome::Outcome;
    use crate::report::tests::sample;
    use crate::results::Encore;

    #[test]
    fn troubles_and_replays_are_said() {
        let mut results = sample();
        let text = super::text(&results);
        assert!(!text.contains("trouble") && !text.contains("replayed"), "{text}");
        results.cells[0].outcome = Some(Outcome::ResumedSource);
        for (at, reason) in [(2, None), (3, Some(String::from("memory")))] {
            results.cells[at].replay = Some(Encore { build: "a".into(), reason, seconds: 1.0 });
        }
        let text = super::text(&results);
        assert!(text.contains("| trouble | a → b |"), "{text}");
        assert!(text.contains("| resumed source |"), "{text}");
        assert!(text.contains("1 of 2 recordings replayed"), "{text}");
    }

    #[test]
    fn the_table_has_a_row_and_a_column_for_everybody() {
        let text = super::text(&sample());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "| from \\ to | a | b | c | migwire |");
        assert_eq!(lines[1], "|---|---|---|---|---|");
        for (line, name) in lines[2..6].iter().zip(["a", "b", "c", "migwire"]) {
            assert!(line.starts_with(&format!("| **{name}** |")), "{line}");
            assert_eq!(line.matches('|').count(), 6, "{line}");
        }
        assert!(!text.contains("<b>"), "{text}");
        assert!(text.contains("c missing"), "{text}");
    }
}
