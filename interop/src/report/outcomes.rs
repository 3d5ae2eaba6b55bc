//! What became of migrations that were broken on purpose: a table of words, a row for each trouble, a column for each pair of builds.

use crate::report::ends;
use crate::results::{CellResult, Results};

/// The table, if there is anything in it.
pub(super) struct Outcomes<'r> {
    pub(super) columns: Vec<(&'r str, &'r str)>,
    /// Case, and its cells in the order of the columns.
    pub(super) rows: Vec<(&'r str, Vec<Option<&'r CellResult>>)>,
}

impl<'r> Outcomes<'r> {
    pub(super) fn of(results: &'r Results) -> Option<Self> {
        let cells: Vec<&CellResult> = results.cells.iter().filter(|cell| cell.outcome.is_some()).collect();
        let (mut columns, mut cases): (Vec<(&str, &str)>, Vec<&str>) = Default::default();
        for cell in &cells {
            let pair = (&*cell.source, &*cell.destination);
            if !columns.contains(&pair) {
                columns.push(pair);
            }
            if !cases.contains(&&*cell.case) {
                cases.push(&cell.case);
            }
        }
        let order = |name: &str| ends(results).iter().position(|known| *known == name);
        // Builds with themselves first: what they do to each other is read against that.
        columns
            .sort_by_key(|(source, destination)| (source != destination, order(source), order(destination)));
        let row = |case: &'r str| {
            let of = |pair: &(&str, &str)| {
                let is_it =
                    |cell: &&&CellResult| cell.case == case && (&*cell.source, &*cell.destination) == *pair;
                cells.iter().find(is_it).copied()
            };
            (case, columns.iter().map(of).collect())
        };
        let rows: Vec<_> = cases.into_iter().map(row).collect();
        (!rows.is_empty()).then_some(Self { columns, rows })
    }
}

/// The word in a square. One that is not the right one is marked.
pub(super) fn word(cell: &CellResult) -> Option<String> {
    let outcome = cell.outcome?;
    let mark = if cell.verdict == crate::results::Verdict::Fail { " (!)" } else { "" };
    Some(format!("{outcome}{mark}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use crate::report::tests::sample;

    #[test]
    fn every_outcome_has_its_square() {
        let mut results = sample();
        assert!(Outcomes::of(&results).is_none());
        results.cells[0].outcome = Some(Outcome::ResumedSource);
        results.cells[1].outcome = Some(Outcome::VmLost);
        let table = Outcomes::of(&results).unwrap();
        let squares = table.rows.iter().flat_map(|(_, cells)| cells).flatten();
        let words: Vec<String> = squares.filter_map(|cell| word(cell)).collect();
        assert_eq!(words, ["resumed source", "VM lost (!)"]);
    }
}
