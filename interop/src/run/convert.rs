//! A recording that a destination refuses, and its conversion, which it loads.
//!
//! ```text
//! source (A) -> migwire record -> recorded (A)     capture.pcapng, and the memory of the stopped source
//!               migwire replay -> raw (B)          where the case says so: refused, or loaded
//!               migwire convert                    converted.pcapng
//!               migwire replay -> destination (B)  loaded, memory equal to the source's
//! ```

use serde_json::Value;

use super::replay::{self, Performance};
use super::{Bench, CAPTURE, TOOL_END};
use crate::failure::{Class, Failure, Run};
use crate::tool::{ToolProcess, error_text};
use crate::variant::Raw;

const CONVERTED: &str = "converted.pcapng";

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    replay::record(bench)?;
    let mut notes = Vec::new();
    if let Some(raw) = bench.cell.case.variant.raw {
        notes.push(as_it_is(bench, raw)?);
    }
    let report = convert(bench)?;
    notes.push(changes(&report));
    bench.verify(CONVERTED).map_err(|failure| failure.of("the converted recording"))?;
    let performance = Performance { capture: CONVERTED, ..Performance::of(bench) };
    replay::play(bench, &performance).map_err(|failure| failure.of("the converted recording"))?;
    bench.found.borrow_mut().note = Some(notes.join("; "));
    Ok(())
}

/// What the destination makes of the recording before it is converted. Without a refusal a conversion would have shown nothing.
fn as_it_is(bench: &Bench<'_>, raw: Raw) -> Run<String> {
    let performance = Performance { roles: ("raw", "replay-raw"), ..Performance::of(bench) };
    match (replay::play(bench, &performance), raw) {
        (Ok(()), Raw::Loads) => Ok("loads as it is, too".into()),
        (Ok(()), Raw::Refused) => {
            Err(Failure::new(Class::Failed, "the recording loads as it is, so nothing was shown"))
        }
        (Err(failure), Raw::Refused) if matches!(failure.class, Class::Environment | Class::Interrupted) => {
            Err(failure)
        }
        (Err(failure), Raw::Refused) => Ok(format!("as it is: {failure}")),
        (Err(failure), Raw::Loads) => Err(failure.of("the recording as it is")),
    }
}

fn convert(bench: &Bench<'_>) -> Run<Value> {
    let mut arguments =
        ["convert", &bench.word(CAPTURE), "-o", &bench.word(CONVERTED)].map(String::from).to_vec();
    let dialect = |word: &String| word.replace("{dialect}", &bench.setup.dialect);
    arguments.extend(bench.cell.case.variant.convert.iter().map(dialect));
    arguments.push("--json".into());
    let mut process = ToolProcess::spawn(bench.tool(), "convert", &arguments, &bench.place)?;
    let report = process.finish(bench.place.deadline.within(TOOL_END))?;
    if report["verdict"] != "converted" {
        let text = format!("convert: {}: {}", report["verdict"], error_text(&report));
        return Err(Failure::new(Class::Failed, text));
    }
    Ok(report)
}

/// What was changed and what was lost, for a reader.
fn changes(report: &Value) -> String {
    let list = |key: &str| report[key].as_array().map(Vec::as_slice).unwrap_or_default().to_vec();
    let count =
        |change: &Value| format!("{} {}", change["count"], change["what"].as_str().unwrap_or("of something"));
    let mut text = format!("converted: {}", list("changes").iter().map(count).collect::<Vec<_>>().join(", "));
    for loss in list("losses") {
        text.push_str(&format!("; lost: {}", loss.as_str().unwrap_or_default()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_lost_is_said() {
        let report = json!({"changes": [{"what": "commands left out", "count": 2}], "losses": ["the UUID"]});
        assert_eq!(changes(&report), "converted: 2 commands left out; lost: the UUID");
    }
}
