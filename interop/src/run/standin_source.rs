//! `migwire send` and a stock destination: it loads everything, and its memory is what was sent.
//!
//! With an idle guest the judge makes up the memory and the device state comes from a template; with a running guest
//! the template is sent as it is, and then the guest has to go on where the template left it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Bench, CAPTURE, TOOL_END, conversation, pair};
use crate::cases::Transport;
use crate::failure::{Class, Failure, Run, both};
use crate::qemu::Vm;
use crate::ram::{fill_mixed, image_name};
use crate::relay::Relay;
use crate::tool::{PipedTool, ToolProcess, error_text};

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    let case = &bench.cell.case;
    let plan = Plan::of(bench)?;
    let mut destination = bench.destination(&plan.memory)?;
    match case.transport {
        Transport::Exec => {
            let tool = PipedTool::new(bench.tool(), "send", &plan.arguments(bench, "-"), &bench.place);
            destination.migrate_incoming(&tool.uri)?;
            let loaded = bench.arrival(&mut destination, true);
            let sent = tool.finish(bench.place.deadline.within(TOOL_END));
            both(sent, loaded)?;
        }
        Transport::File => {
            let address = format!("file:{}", bench.word("stream"));
            let mut tool =
                ToolProcess::spawn(bench.tool(), "send", &plan.arguments(bench, &address), &bench.place)?;
            check(bench, &tool.finish(bench.place.deadline.within(TOOL_END))?)?;
            destination.migrate_incoming(&address)?;
            bench.arrival(&mut destination, true)?;
        }
        _ => {
            let address = destination.migrate_incoming(&pair::listen_address(bench))?;
            let (relay, to_source) = slow_line(bench, &address)?;
            let mut tool =
                ToolProcess::spawn(bench.tool(), "send", &plan.arguments(bench, &to_source), &bench.place)?;
            let mended = mend(bench, &mut tool, &mut destination, &address, relay.as_ref());
            let sent = mended.and_then(|()| tool.finish(bench.place.deadline));
            let sent = sent.and_then(|report| check(bench, &report));
            let loaded = bench.arrival(&mut destination, sent.is_ok());
            both(sent, loaded)?;
        }
    }
    bench.inspect(&mut destination, &plan.memory)?;
    bench.found.borrow_mut().sent = Some(plan.memory);
    // A stream that breaks a rule on purpose is not one that verifies.
    if !case.variant.send.iter().any(|word| word == "--break") {
        bench.verify(CAPTURE)?;
    }
    destination.quit()
}

/// Puts a slow line in front of a destination, if the case wants one, and tells where it begins.
fn slow_line(bench: &Bench<'_>, address: &str) -> Run<(Option<Relay>, String)> {
    let Some(pace) = bench.cell.case.variant.pace else { return Ok((None, address.to_owned())) };
    let begin = bench.unix_address();
    let channels = bench.cell.case.variant.multifd().map_or(0, |multifd| multifd.channels as usize);
    let connections = conversation_connections(bench) + channels;
    let path = |address: &str| PathBuf::from(address.trim_start_matches("unix:"));
    let relay = Relay::start(&path(&begin), &path(address), connections, pace)
        .map_err(|e| Failure::environment("a slow line", e))?;
    Ok((Some(relay), begin))
}

/// Connections behind the switch to postcopy: the channel for urgent pages is the second one. No others come back behind a pause.
fn conversation_connections(bench: &Bench<'_>) -> usize {
    1 + usize::from(bench.cell.case.variant.preempt())
}

/// Makes images of what a template leaves in memory.
fn unpack(bench: &Bench<'_>, template: &Path, folder: &str) -> Run<()> {
    let address = format!("file:{}", template.display());
    let arguments = ["recv", &address, "--ram-out", &bench.word(folder), "--json"].map(String::from);
    let mut tool = ToolProcess::spawn(bench.tool(), "unpack", &arguments, &bench.place)?;
    tool.finish(bench.place.deadline.within(TOOL_END)).map(drop)
}

/// Takes a broken conversation up again at the destination; the stand-in comes back by itself.
fn mend(
    bench: &Bench<'_>,
    tool: &mut ToolProcess,
    destination: &mut Vm,
    address: &str,
    relay: Option<&Relay>,
) -> Run<()> {
    for number in 1..=bench.cell.case.variant.cut.len() {
        tool.await_lines("paused", number, bench.place.deadline.within(TOOL_END))?;
        bench.await_pause(destination, number)?;
        destination.command("migrate-recover", json!({"uri": address}))?;
        relay
            .map_or(Ok(()), |relay| relay.open(conversation_connections(bench)))
            .map_err(|e| Failure::environment("a slow line", e))?;
    }
    Ok(())
}

/// What to send, and the image that must arrive.
struct Plan {
    options: Vec<String>,
    memory: PathBuf,
}

impl Plan {
    fn of(bench: &Bench<'_>) -> Run<Self> {
        let case = &bench.cell.case;
        let image = image_name(&bench.setup.machine.ram_id);
        if case.variant.from_nothing {
            let size = bench.setup.machine.ram_bytes.to_string();
            let fill = format!("mixed={}", bench.seed() >> 1);
            let sent = bench.word("sent.images");
            let options = [
                "--machine",
                &bench.setup.machine.kind,
                "--memory",
                &size,
                "--block",
                &bench.setup.machine.ram_id,
            ];
            let mut options: Vec<String> = options.map(String::from).into();
            options.extend(["--fill", &fill, "--ram-out", &sent].map(String::from));
            options.extend(case.variant.send.iter().cloned());
            return Ok(Self { options, memory: bench.path("sent.images").join(image) });
        }
        let template = bench.env.templates.get(bench)?;
        let mut options = vec![String::from("--template"), template.to_string_lossy().into_owned()];
        // In postcopy the stand-in decides which page is sent when, so it needs the memory and not only the records.
        let is_given = case.variant.shared_ram || case.variant.postcopy || !bench.dirtying();
        let folder = if is_given { "given.images" } else { "sent.images" };
        let memory = bench.path(folder).join(image);
        if is_given && bench.dirtying() {
            unpack(bench, &template, folder)?;
        } else if is_given {
            let dir = bench.path(folder);
            let filled = std::fs::create_dir_all(dir)
                .and_then(|()| fill_mixed(&memory, bench.setup.machine.ram_bytes, bench.seed()));
            filled.map_err(|e| Failure::environment(memory.display(), e))?;
        }
        if !case.variant.shared_ram {
            let option = if is_given { "--ram-in" } else { "--ram-out" };
            options.extend([String::from(option), bench.word(folder)]);
        }
        Ok(Self { options, memory })
    }

    fn arguments(&self, bench: &Bench<'_>, address: &str) -> Vec<String> {
        let return_path = if bench.cell.case.return_path { "on" } else { "off" };
        let mut arguments = vec![String::from("send"), address.to_owned()];
        arguments.extend(self.options.iter().cloned());
        let variant = &bench.cell.case.variant;
        if let Some(multifd) = variant.multifd() {
            let channels = multifd.channels.to_string();
            let words = ["--channels", &channels, "--compression", &multifd.compression];
            arguments.extend(words.map(String::from));
        }
        if variant.multifd().is_some() || variant.postcopy {
            arguments.extend([String::from("--dialect"), bench.setup.dialect.clone()]);
        }
        if !bench.cell.case.variant.from_nothing {
            arguments.extend(bench.cell.case.variant.send.iter().cloned());
        }
        arguments.extend(variant.preempt().then(|| String::from("--preempt")));
        arguments.extend(variant.cuts());
        arguments.extend(["--return-path", return_path, "-o", &bench.word(CAPTURE)].map(String::from));
        arguments.extend(bench.about());
        let mut bounds = bench.bounds();
        // Standard output is the channel then, so there is no place for a report.
        if address == "-" {
            bounds.retain(|word| word != "--json");
        }
        arguments.extend(bounds);
        arguments
    }
}

fn check(bench: &Bench<'_>, report: &Value) -> Run<()> {
    let failed = |text: String| Err(Failure::new(Class::Failed, format!("send: {text}")));
    if report["verdict"] != "completed" {
        return failed(error_text(report));
    }
    if bench.cell.case.return_path && report["peer_status"] != 0 {
        return failed(format!("the destination reported status {}", report["peer_status"]));
    }
    if let Some(multifd) = bench.cell.case.variant.multifd() {
        let channels = report["channels"].as_array().map_or(0, Vec::len) as u64;
        if channels != multifd.channels {
            return failed(format!("{channels} multifd channels, but {} were asked for", multifd.channels));
        }
    }
    let variant = &bench.cell.case.variant;
    if variant.postcopy != (report["postcopy"] == true) {
        return failed(format!("postcopy {}, but it was to be {}", report["postcopy"], variant.postcopy));
    }
    if variant.postcopy {
        conversation::check(bench, report, "received").or_else(failed)?;
    }
    let deltas = bench.cell.case.variant.send.iter().any(|word| word == "--xbzrle");
    if deltas && report["xbzrle_pages"].as_u64().unwrap_or(0) == 0 {
        return failed("sent no delta, although it was to".into());
    }
    Ok(())
}
