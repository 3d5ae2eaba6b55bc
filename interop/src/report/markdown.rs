//! `matrix.md`: one table for a README or a pull request.

use crate::report::{ends, tally};
use crate::results::{Results, Verdict};

pub(super) fn text(results: &Results) -> String {
    let mut text = matrix(results);
    text.push('\n');
    text.push_str(&summary(results));
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
    use crate::report::tests::sample;

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
