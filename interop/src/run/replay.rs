//! A recorded migration, played to a fresh destination.
//!
//! ```text
//! source (A) -> migwire record -> recorded (A)      capture.pcapng, and the memory of the stopped source
//! live-source (A) -> migwire record -> live (B)     where B is another build: what such a destination makes of such a source
//!               migwire replay -> destination (B)   the same
//! ```
//!
//! With one build the replay has to complete, and memory has to be that of the source. With two it has to end as the live migration does:
//! where that completes so must the replay, and what a destination refuses live it has to refuse from a recording.

use serde_json::Value;

use super::{Bench, CAPTURE, TOOL_END, pair, proxy};
use crate::cases::Transport;
use crate::failure::{Class, Failure, Run, both};
use crate::process::last_lines;
use crate::qemu::Vm;
use crate::tool::{ToolProcess, error_text};
use crate::variant::Settings;

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    record(bench)?;
    let cell = bench.cell;
    let live = if cell.source == cell.destination { Ok(()) } else { live(bench) };
    if let Err(failure) = &live
        && matches!(failure.class, Class::Environment | Class::Interrupted)
    {
        return live;
    }
    let replayed = play(bench, &Performance::of(bench));
    match (live, replayed) {
        (Ok(()), replayed) => replayed.map_err(|failure| failure.of("replay")),
        (Err(live), Ok(())) => {
            let text = format!("the replay completes, although the live migration does not: {live}");
            Err(Failure::new(Class::Failed, text))
        }
        (Err(_), Err(failure)) if matches!(failure.class, Class::Environment | Class::Interrupted) => {
            Err(failure)
        }
        (Err(live), Err(replayed)) => {
            let words = |role: &str| last_lines(&bench.path(&format!("{role}.stderr")));
            let words = [words("live"), words("destination")];
            bench.found.borrow_mut().note = Some(alike(&live, &replayed, &words)?);
            Ok(())
        }
    }
}

/// Both failed: whether in the same way, and what a reader should know of it. `words` are those of the two destinations.
fn alike(live: &Failure, replayed: &Failure, words: &[String; 2]) -> Run<String> {
    // What a refusal is called depends on who noticed first; a crash or a hang is something else.
    let kind = |failure: &Failure| match failure.class {
        Class::Crashed | Class::Hung | Class::Stuck | Class::Mismatch => failure.class,
        _ => Class::Failed,
    };
    if kind(live) == kind(replayed) {
        return Ok(match words {
            [live, replayed] if live == replayed && !live.is_empty() => format!("refused alike: {live}"),
            _ => format!("refused alike, in other words: {replayed} [live: {live}]"),
        });
    }
    let text = format!("the replay ends otherwise than the live migration: {replayed}; live: {live}");
    Err(Failure::new(Class::Failed, text))
}

/// Two ends of the source's build, with the recorder between them.
pub(super) fn record(bench: &Bench<'_>) -> Run<()> {
    let (cell, variant) = (bench.cell, &bench.cell.case.variant);
    let source = bench.source()?;
    let destination =
        bench.destination_as("recorded", &cell.source, variant.recorded(), &bench.path("source.ram"))?;
    proxy::live(bench, pair::Ends { source, destination }, "record", CAPTURE)
        .map_err(|failure| failure.of("recording"))?;
    bench.verify(CAPTURE)
}

/// What the destination of this cell makes of a live source of this cell.
fn live(bench: &Bench<'_>) -> Run<()> {
    let (cell, variant) = (bench.cell, &bench.cell.case.variant);
    let sent = bench.found.borrow().sent.clone();
    let source = bench.source_as("live-source")?;
    let like = bench.path("live-source.ram");
    let destination = bench.destination_as("live", &cell.destination, &variant.destination, &like)?;
    let result = proxy::live(bench, pair::Ends { source, destination }, "record-live", "live.capture.pcapng");
    // The replay is of the other source.
    bench.found.borrow_mut().sent = sent;
    result
}

/// What to play to whom.
pub(super) struct Performance<'a> {
    pub(super) capture: &'a str,
    /// Names the files of the destination, and of the command.
    pub(super) roles: (&'a str, &'a str),
    pub(super) build: &'a str,
    pub(super) side: &'a Settings,
}

impl<'a> Performance<'a> {
    /// The recording of the cell, to its destination.
    pub(super) fn of(bench: &'a Bench<'_>) -> Self {
        let cell = bench.cell;
        Self {
            capture: CAPTURE,
            roles: ("destination", "replay"),
            build: &cell.destination,
            side: &cell.case.variant.destination,
        }
    }
}

/// Plays a recording to a fresh destination: all of it is sent, the destination completes, and its memory is that of the source.
pub(super) fn play(bench: &Bench<'_>, performance: &Performance<'_>) -> Run<()> {
    let Performance { capture, roles: (role, name), build, side } = *performance;
    let sent = bench.found.borrow().sent.clone();
    let sent =
        sent.ok_or_else(|| Failure::new(Class::Environment, "nothing was sent, so nothing is played"))?;
    let mut destination = bench.destination_as(role, build, side, &sent)?;
    match bench.cell.case.transport {
        Transport::Exec | Transport::File => from_file(bench, capture, name, &mut destination)?,
        _ => to_socket(bench, capture, name, &mut destination)?,
    }
    bench.inspect(&mut destination, &sent)?;
    destination.quit()
}

fn to_socket(bench: &Bench<'_>, capture: &str, name: &str, destination: &mut Vm) -> Run<()> {
    let target = destination.migrate_incoming(&pair::listen_address(bench))?;
    // A player comes back at once. Where it has been, the destination may still listen, and takes or leaves who comes too early.
    let again = bench.unix_address();
    let mut arguments = ["replay", &bench.word(capture), &target].map(String::from).to_vec();
    if !bench.cell.case.variant.cut.is_empty() {
        arguments.extend([String::from("--recover-target"), again.clone()]);
    }
    arguments.extend(bench.bounds());
    let mut player = ToolProcess::spawn(bench.tool(), name, &arguments, &bench.place)?;
    let played = mend(bench, &mut player, destination, &again)
        .and_then(|()| player.finish(bench.place.deadline))
        .and_then(|report| check(&report));
    let loaded = bench.arrival(destination, played.is_ok());
    both(played, loaded).map(drop)
}

/// A one-way channel: what is played goes into a file, and the destination reads that.
fn from_file(bench: &Bench<'_>, capture: &str, name: &str, destination: &mut Vm) -> Run<()> {
    let file = format!("file:{}", bench.word("replayed.stream"));
    let mut arguments = ["replay", &bench.word(capture), &file].map(String::from).to_vec();
    arguments.extend(bench.bounds());
    let mut player = ToolProcess::spawn(bench.tool(), name, &arguments, &bench.place)?;
    check(&player.finish(bench.place.deadline.within(TOOL_END))?)?;
    let back = match bench.cell.case.transport {
        Transport::File => file,
        _ => format!("exec:cat {}", crate::process::quote(&bench.word("replayed.stream"))),
    };
    destination.migrate_incoming(&back)?;
    bench.arrival(destination, true)
}

/// Where the recording breaks, the destination is told to listen again; the player comes back by itself.
fn mend(bench: &Bench<'_>, player: &mut ToolProcess, destination: &mut Vm, again: &str) -> Run<()> {
    for number in 1..=bench.cell.case.variant.cut.len() {
        player.await_lines("paused", number, bench.place.deadline.within(TOOL_END))?;
        bench.await_pause(destination, number)?;
        destination.command("migrate-recover", serde_json::json!({"uri": again}))?;
        // It goes on listening there, and would take the player in at the next pause before anybody has seen that.
        player.await_lines("resumed", number, bench.place.deadline.within(TOOL_END))?;
        let socket = again.trim_start_matches("unix:");
        match std::fs::remove_file(socket) {
            // Some builds listen for one source only.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::environment(socket, e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether everything was played.
fn check(report: &Value) -> Run<()> {
    let failed = |text: String| Err(Failure::new(Class::Failed, format!("replay: {text}")));
    if report["verdict"] != "completed" {
        return failed(format!("{}: {}", report["verdict"], error_text(report)));
    }
    let channels = report["channels"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !channels.iter().any(|channel| channel["bytes"].as_u64() > Some(0)) {
        return failed("nothing was sent".into());
    }
    for channel in channels {
        if channel["bytes"] != channel["of"] && !channel["of"].is_null() {
            let text = format!("{} of {} bytes of {}", channel["bytes"], channel["of"], channel["channel"]);
            return failed(format!("completed, but only {text} were sent"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_whole_recording_is_played() {
        let report = |verdict: &str, bytes: u64, of: Value| {
            check(&json!({"verdict": verdict, "channels": [{"channel": "main", "bytes": bytes, "of": of}]}))
        };
        assert_eq!(report("completed", 9, json!(9)), Ok(()));
        assert_eq!(report("completed", 9, Value::Null), Ok(()));
        assert!(report("completed", 8, json!(9)).is_err());
        assert!(report("completed", 0, json!(0)).is_err());
        assert!(report("refused", 9, json!(9)).is_err());
        assert!(check(&json!({"verdict": "completed"})).is_err());
    }

    #[test]
    fn a_crash_and_a_refusal_are_not_alike() {
        let alike = |live, replayed, words: [&str; 2]| {
            let failure = |class| Failure::new(class, "text");
            alike(&failure(live), &failure(replayed), &words.map(String::from))
        };
        let (other, nothing) = (["a", "b"], ["", ""]);
        assert_eq!(alike(Class::FalseComplete, Class::Failed, ["a", "a"]).unwrap(), "refused alike: a");
        let text = "refused alike, in other words: text [live: text]";
        assert_eq!(alike(Class::Crashed, Class::Crashed, other).unwrap(), text);
        assert_eq!(alike(Class::Crashed, Class::Crashed, nothing).unwrap(), text);
        assert!(alike(Class::Crashed, Class::Failed, other).is_err());
        assert!(alike(Class::Failed, Class::Mismatch, other).is_err());
    }
}
