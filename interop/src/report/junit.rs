//! `junit.xml` for CI systems: a suite for each kind of case, a test case for each cell.

use anyhow::Result;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::results::{CellResult, Results, Verdict};

pub(super) fn text(results: &Results) -> Result<String> {
    let mut report = Report::new("migwire-interop");
    let mut suites: Vec<(String, TestSuite)> = Vec::new();
    for cell in &results.cells {
        // `precopy/recv`, the first two parts of the id.
        let name: String = cell.case.splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
        let at = suites.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            suites.push((name.clone(), TestSuite::new(name.clone())));
            suites.len() - 1
        });
        suites[at].1.add_test_case(test_case(cell));
    }
    report.add_test_suites(suites.into_iter().map(|(_, suite)| suite));
    Ok(report.to_string()?)
}

fn test_case(cell: &CellResult) -> TestCase {
    let reason = cell.reason.clone().unwrap_or_default();
    let status = match cell.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Fail => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let class = cell.class.map_or_else(|| "unexpected-pass".to_owned(), |class| class.to_string());
            status.set_type(class).set_message(reason).set_description(cell.reproduce.clone());
            status
        }
        Verdict::Unsupported | Verdict::ExpectedFail | Verdict::NotRun => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(format!("{}: {reason}", cell.verdict));
            status
        }
    };
    let mut case = TestCase::new(cell.id.clone(), status);
    case.set_classname(cell.case.clone());
    case.set_time(std::time::Duration::from_secs_f64(cell.seconds.clamp(0.0, 1e6)));
    case
}

#[cfg(test)]
mod tests {
    use crate::report::tests::sample;

    #[test]
    fn cells_become_test_cases_and_reasons_are_escaped() {
        let results = sample();
        let text = super::text(&results).unwrap();
        assert_eq!(text.matches("<testcase ").count(), results.cells.len());
        assert_eq!(text.matches("<failure ").count(), results.unexpected().count());
        assert!(!text.contains("<b>bad"), "{text}");
        assert!(text.contains(r#"type="mismatch""#), "{text}");
        assert!(text.contains("t/proxy"), "{text}");
    }
}
