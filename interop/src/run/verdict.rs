//! From what happened in a cell, and what was to happen, to its verdict.

use super::Found;
use crate::cases::Kind;
use crate::failure::{Class, Failure, Run};
use crate::outcome::Outcome;
use crate::results::{CellResult, Verdict};
use crate::variant::Expect;

/// Fills in verdict, class, outcome and reason.
pub(super) fn decide(result: &mut CellResult, ended: Run<()>, found: &Found, expect: Option<&Expect>) {
    result.outcome = found.outcome.as_ref().map(|(outcome, _)| *outcome);
    let (verdict, class, reason) = match (ended, &found.outcome) {
        (Ok(()), Some((outcome, text))) => troubled(*outcome, text, expect),
        (ended, _) => plain(ended, found, expect.filter(|_| result.kind != Kind::Trouble)),
    };
    (result.verdict, result.class, result.reason) = (verdict, class, reason);
}

type Decision = (Verdict, Option<Class>, Option<String>);

/// A migration that somebody broke: any end is a finding, and the right one is a pass.
fn troubled(outcome: Outcome, text: &str, expect: Option<&Expect>) -> Decision {
    match expect {
        None if outcome == Outcome::Unharmed => (Verdict::Pass, None, None),
        None => (Verdict::Fail, None, Some(format!("{outcome}, but it was to go well [{text}]"))),
        Some(expect) if expect.allows(outcome, text) => {
            (Verdict::Pass, None, Some(format!("{outcome}, as expected: {} [{text}]", expect.reason)))
        }
        Some(expect) => {
            let wanted = match expect.text.is_empty() {
                true => expect.words(),
                false => format!("{} with {:?}", expect.words(), expect.text),
            };
            (Verdict::Fail, None, Some(format!("{outcome}, but {wanted} was expected [{text}]")))
        }
    }
}

fn plain(ended: Run<()>, found: &Found, expect: Option<&Expect>) -> Decision {
    match (ended, expect) {
        (Ok(()), None) => (Verdict::Pass, None, found.note.clone()),
        (Ok(()), Some(expect)) if expect.outcome.contains(&Outcome::Luck) => {
            (Verdict::Pass, None, Some(format!("{}, as may be: {}", Outcome::Luck, expect.reason)))
        }
        (Ok(()), Some(expect)) => {
            let text = format!("went well, but {} was expected: {}", expect.words(), expect.reason);
            (Verdict::Fail, None, Some(text))
        }
        (Err(failure), _) if matches!(failure.class, Class::Interrupted | Class::Lacking) => {
            (Verdict::NotRun, Some(failure.class), Some(failure.text))
        }
        (Err(failure), Some(expect)) => match expect.is_met(&failure) {
            Some(outcome) => {
                let text = format!("{outcome}, as expected: {} [{}]", expect.reason, failure.text);
                (Verdict::Pass, Some(failure.class), Some(text))
            }
            None => failed(&failure, format!("{} was expected, but: {}", expect.words(), failure.text)),
        },
        (Err(failure), None) => failed(&failure, failure.text.clone()),
    }
}

fn failed(failure: &Failure, text: String) -> Decision {
    (Verdict::Fail, Some(failure.class), Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::tests::sample_cells;

    fn expect(words: &str) -> Option<Expect> {
        Some(toml::from_str(&format!("{words}\nreason = 'so it is'")).unwrap())
    }

    fn decided(kind: Kind, ended: Run<()>, found: &Found, expect: Option<Expect>) -> CellResult {
        let mut result = CellResult { kind, ..CellResult::new(&sample_cells()[0]) };
        decide(&mut result, ended, found, expect.as_ref());
        result
    }

    fn trouble(outcome: Outcome, expect: Option<Expect>) -> CellResult {
        let found = Found { outcome: Some((outcome, "what was seen".into())), ..Found::default() };
        decided(Kind::Trouble, Ok(()), &found, expect)
    }

    #[test]
    fn trouble_has_to_end_as_it_was_said() {
        let lost = || expect("outcome = ['vm-lost', 'hang']");
        assert_eq!(trouble(Outcome::Unharmed, None).verdict, Verdict::Pass);
        assert_eq!(trouble(Outcome::ResumedSource, None).verdict, Verdict::Fail);
        let met = trouble(Outcome::VmLost, lost());
        assert_eq!((met.verdict, met.outcome), (Verdict::Pass, Some(Outcome::VmLost)));
        assert_eq!(met.reason.unwrap(), "VM lost, as expected: so it is [what was seen]");
        let other = trouble(Outcome::Unharmed, lost());
        assert_eq!(other.verdict, Verdict::Fail);
        assert_eq!(other.reason.unwrap(), "unharmed, but VM lost or hang was expected [what was seen]");
        let words = expect("outcome = ['vm-lost']\ntext = 'other words'");
        assert_eq!(trouble(Outcome::VmLost, words).verdict, Verdict::Fail);
    }

    #[test]
    fn trouble_that_was_none_is_no_pass_whatever_was_expected() {
        let failure = Failure::new(Class::Failed, "the rule did not apply");
        let expect = expect("outcome = ['clean-failure']");
        let result = decided(Kind::Trouble, Err(failure), &Found::default(), expect);
        assert_eq!((result.verdict, result.outcome), (Verdict::Fail, None));
    }

    #[test]
    fn what_is_not_there_is_not_run() {
        let failure = Failure::new(Class::Lacking, "no tcpdump");
        let result = decided(Kind::Import, Err(failure), &Found::default(), None);
        assert_eq!((result.verdict, result.reason.as_deref()), (Verdict::NotRun, Some("no tcpdump")));
    }

    #[test]
    fn a_pass_may_have_something_to_say() {
        let found = Found { note: Some("refused alike".into()), ..Found::default() };
        let result = decided(Kind::Replay, Ok(()), &found, None);
        assert_eq!((result.verdict, result.reason.as_deref()), (Verdict::Pass, Some("refused alike")));
    }
}
