//! Two stock ends with `migwire record` between them: nobody notices, and the recording is the migration.

use std::cell::RefCell;

use serde_json::Value;

use super::{Bench, CAPTURE, pair};
use crate::cases::Transport;
use crate::failure::{Class, Failure, Run};
use crate::process::quote;
use crate::tool::{PipedTool, ToolProcess, error_text};

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    match bench.cell.case.transport {
        Transport::Exec => piped(bench)?,
        _ => live(bench, pair::Ends::of(bench)?, "record", CAPTURE)?,
    }
    bench.verify(CAPTURE)
}

/// Lets two ends meet in front of a recorder of this name.
pub(super) fn live(bench: &Bench<'_>, ends: pair::Ends, name: &str, capture: &str) -> Run<()> {
    live_with(bench, ends, name, capture, |_| Ok(()))
}

/// The same, with something to do as soon as the destination's address is known.
pub(super) fn live_with(
    bench: &Bench<'_>,
    ends: pair::Ends,
    name: &str,
    capture: &str,
    before: impl FnOnce(&str) -> Run<()>,
) -> Run<()> {
    let recorder = RefCell::new(None);
    pair::live(
        bench,
        ends,
        |target, again| {
            before(target)?;
            let mut arguments = arguments(bench, &pair::listen_address(bench), target, capture);
            arguments.extend(cuts(bench, target, again));
            let mut process = ToolProcess::spawn(bench.tool(), name, &arguments, &bench.place)?;
            let address = process.address(&bench.place)?;
            *recorder.borrow_mut() = Some(process);
            Ok(address)
        },
        || match recorder.borrow_mut().as_mut() {
            Some(process) => check(bench, &process.finish(bench.place.deadline.within(super::TOOL_END))?),
            None => Ok(()),
        },
    )
}

fn piped(bench: &Bench<'_>) -> Run<()> {
    let stream = bench.word("stream");
    let arguments = arguments(bench, "-", &format!("file:{stream}"), CAPTURE);
    let recorder = PipedTool::new(bench.tool(), "record", &arguments, &bench.place);
    let uri = recorder.uri.clone();
    let after = || match recorder.finish(bench.place.deadline.within(super::TOOL_END))? {
        Some(report) => check(bench, &report),
        None => Err(Failure::new(Class::Failed, "record: no report")),
    };
    pair::stored(bench, &uri, after, &format!("exec:cat {}", quote(&stream)))
}

/// Words for a recorder.
pub(super) fn arguments(bench: &Bench<'_>, listen: &str, target: &str, capture: &str) -> Vec<String> {
    let mut arguments = ["record", listen, target, "-o", &bench.word(capture)].map(String::from).to_vec();
    arguments.extend(bench.about());
    arguments.extend(bench.bounds());
    arguments
}

/// Where to break what, and where its destination listens then.
fn cuts(bench: &Bench<'_>, target: &str, again: &str) -> Vec<String> {
    let elsewhere = ["--recover-target", again];
    let is_moved = again != target && !bench.cell.case.variant.cut.is_empty();
    let elsewhere = elsewhere.into_iter().filter(|_| is_moved).map(String::from);
    bench.cell.case.variant.cuts().chain(elsewhere).collect()
}

fn check(bench: &Bench<'_>, report: &Value) -> Run<()> {
    let failed = |text: String| Err(Failure::new(Class::Failed, format!("record: {text}")));
    if report["verdict"] != "completed" {
        return failed(error_text(report));
    }
    let connections = report["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
    let total = |key: &str| connections.iter().filter_map(|connection| connection[key].as_u64()).sum::<u64>();
    if total("to_target") == 0 {
        return failed("nothing went to the target".into());
    }
    // More than the mark that ends it in older releases: pages that were asked for.
    let urgent = connections.iter().any(|connection| {
        let channel = connection["channel"].as_str().unwrap_or_default();
        channel.ends_with("preempt") && connection["to_target"].as_u64() > Some(8)
    });
    if urgent != bench.cell.case.variant.preempt() {
        return failed(format!("pages on a preempt channel: {urgent}"));
    }
    let cuts = bench.cell.case.variant.cut.len();
    if cuts > 0 && report["pauses"].as_u64() != Some(cuts as u64) {
        return failed(format!("{} pauses, but {cuts} cuts", report["pauses"]));
    }
    if bench.cell.case.return_path != (total("to_source") > 0) {
        return failed(format!("{} bytes came back to the source", total("to_source")));
    }
    Ok(())
}
