//! A migration that the recorder breaks on purpose, and what becomes of both ends.
//!
//! ```text
//! source (guest at work) -> migwire record --trouble SCRIPT -> destination
//!        both are asked until both have ended, or nothing happens any more -> outcome.rs
//! ```
//!
//! A rule that did not apply has shown nothing, whatever the ends did.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Bench, CAPTURE, TOOL_END, pair, proxy};
use crate::failure::{Class, Failure, Run};
use crate::outcome::{End, Outcome};
use crate::process::Fate;
use crate::qemu::Vm;
use crate::tool::ToolProcess;

/// Ends that have shown nothing new for so long show nothing more.
const PATIENCE: Duration = Duration::from_secs(8);

/// From the end of a migration that failed to the next sign of its guest.
const RESUMED: Duration = Duration::from_secs(5);

/// Between two questions.
const TURN: Duration = Duration::from_millis(20);

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    let pair::Ends { mut source, mut destination } = pair::Ends::of(bench)?;
    let target = destination.migrate_incoming(&pair::listen_address(bench))?;
    let mut arguments = proxy::arguments(bench, &pair::listen_address(bench), &target, CAPTURE);
    arguments.extend([String::from("--trouble"), bench.cell.case.variant.trouble.clone()]);
    let mut recorder = ToolProcess::spawn(bench.tool(), "record", &arguments, &bench.place)?;
    let address = recorder.address(&bench.place)?;
    source.set_parameters(super::open())?;
    let before = bench.console_length(&source);
    source.migrate(&address)?;
    let [source_end, destination_end] = watch(bench, &mut source, &mut destination)?;
    let found = assess(bench, (source, source_end), (destination, destination_end), before)?;
    // Both are gone now, so it ends; how it ended is not its own doing.
    let report = recorder.finish_anyhow(bench.place.deadline.within(TOOL_END))?;
    check(&report)?;
    bench.found.borrow_mut().outcome = Some(found);
    Ok(())
}

/// What an end has come to so far, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    end: End,
    words: String,
}

/// Asks both until both have ended, or until nothing has happened for a while.
fn watch(bench: &Bench<'_>, source: &mut Vm, destination: &mut Vm) -> Run<[Seen; 2]> {
    let is_over = |seen: &Seen| !matches!(seen.end, End::Waiting);
    let (mut last, mut since): (Option<[Seen; 2]>, _) = (None, Instant::now());
    let mut has_left = false;
    loop {
        // Who does not answer is killed, and its death says nothing more about it.
        let gone = |which: usize| {
            let seen = last.as_ref().map(|last| last[which].clone());
            seen.filter(|seen| matches!(seen.end, End::Gone | End::Crashed | End::Silent))
        };
        let now = [
            gone(0).map_or_else(|| look(source, true), Ok)?,
            gone(1).map_or_else(|| look(destination, false), Ok)?,
        ];
        // A bad end may be followed by another word of the same end, such as the death of its process.
        let is_settled = now.iter().all(is_over);
        if is_settled && (has_left || now.iter().all(|seen| seen.end == End::Completed)) {
            return Ok(now);
        }
        has_left = is_settled;
        if now[0].words.contains("pre-switchover") {
            source.command("migrate-continue", serde_json::json!({"state": "pre-switchover"}))?;
        }
        if last.as_ref() != Some(&now) {
            (last, since) = (Some(now), Instant::now());
        } else if since.elapsed() > PATIENCE || bench.place.deadline.remaining().is_zero() {
            return Ok(now);
        }
        if crate::process::interrupted() {
            return Err(Failure::new(Class::Interrupted, "interrupted"));
        }
        std::thread::sleep(if is_settled { PATIENCE / 16 } else { TURN });
    }
}

/// Asks one end how it is. Every answer is a finding, and so is none.
fn look(vm: &mut Vm, is_source: bool) -> Run<Seen> {
    match ask(vm) {
        Ok((status, state, error)) => {
            let error = error.map(|error| format!(": {error}")).unwrap_or_default();
            let end = match &*status {
                "completed" if is_source || state != "inmigrate" => End::Completed,
                "failed" | "cancelled" => End::Failed { runs: false },
                "postcopy-paused" => End::Paused,
                _ => End::Waiting,
            };
            Ok(Seen { end, words: format!("{status}, {state}{error}") })
        }
        Err(failure) => {
            let end = match (vm.fate(), failure.class) {
                (_, Class::Interrupted | Class::Environment) => return Err(failure),
                (Fate::Signalled(_), _) | (_, Class::Crashed) => End::Crashed,
                (_, Class::Hung) => End::Silent,
                _ => End::Gone,
            };
            Ok(Seen { end, words: failure.text })
        }
    }
}

fn ask(vm: &mut Vm) -> Run<(String, String, Option<String>)> {
    let reply = vm.query_migrate()?;
    let state = vm.run_state()?;
    let status = reply["status"].as_str().unwrap_or("none").to_owned();
    Ok((status, state, reply["error-desc"].as_str().map(String::from)))
}

/// Looks at what is left: whether the guest goes on, and whether memory is what it was.
fn assess(
    bench: &Bench<'_>,
    (mut source, mut at_source): (Vm, Seen),
    (mut destination, at_destination): (Vm, Seen),
    before: u64,
) -> Run<(Outcome, String)> {
    if at_source.end == (End::Failed { runs: false }) {
        let resumed = goes_on(bench, &mut source, before)?;
        at_source.end = End::Failed { runs: resumed.is_none() };
        let words = resumed.unwrap_or_else(|| String::from("its guest goes on"));
        at_source.words = format!("{}; {words}", at_source.words);
    }
    let mut words = vec![tell("source", &at_source), tell("destination", &at_destination)];
    let mut is_equal = false;
    if (at_source.end, at_destination.end) == (End::Completed, End::Completed) {
        let sent = bench.sent_by(source.role());
        source.quit()?;
        match bench.inspect(&mut destination, &sent) {
            Ok(()) => is_equal = true,
            Err(failure) if matches!(failure.class, Class::Environment | Class::Interrupted) => {
                return Err(failure);
            }
            Err(failure) => words.push(failure.text),
        }
    }
    Ok((Outcome::of(at_source.end, at_destination.end, is_equal), words.join("; ")))
}

fn tell(who: &str, seen: &Seen) -> String {
    if seen.words.starts_with(who) { seen.words.clone() } else { format!("{who}: {}", seen.words) }
}

/// Whether the guest of a source that failed is at work again; if not, why.
fn goes_on(bench: &Bench<'_>, vm: &mut Vm, before: u64) -> Run<Option<String>> {
    if !bench.dirtying() {
        return Ok(None);
    }
    let end = Instant::now() + RESUMED;
    let seen = bench.console_length(vm).max(before);
    while Instant::now() < end {
        if bench.console_length(vm) > seen + 1 {
            return Ok(None);
        }
        match vm.run_state() {
            Ok(state) if state != "running" => return Ok(Some(format!("its guest stays {state}"))),
            Ok(_) => std::thread::sleep(TURN),
            Err(failure) if failure.class == Class::Interrupted => return Err(failure),
            Err(failure) => return Ok(Some(failure.text)),
        }
    }
    Ok(Some("its guest shows no sign of life".into()))
}

/// Whether everything that was to be done was done.
fn check(report: &Value) -> Run<()> {
    let failed = |text: String| Err(Failure::new(Class::Failed, format!("record: {text}")));
    let rules = report["trouble"].as_array().map(Vec::as_slice).unwrap_or_default();
    if rules.is_empty() {
        return failed("reports no trouble, although it was told to make some".into());
    }
    match rules.iter().find(|rule| rule["done"] != true) {
        Some(rule) => failed(format!("the rule {} did not apply", rule["rule"])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rule_that_did_not_apply_has_shown_nothing() {
        let rule = |done: bool| json!({"rule": "cut at byte 1 of main", "done": done});
        assert_eq!(check(&json!({"trouble": [rule(true)]})), Ok(()));
        let failure = check(&json!({"trouble": [rule(true), rule(false)]})).unwrap_err();
        assert!(failure.text.contains("cut at byte 1 of main"), "{failure}");
        assert!(check(&json!({"trouble": []})).is_err() && check(&json!({})).is_err());
    }
}
