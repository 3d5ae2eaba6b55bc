//! A stock source and `migwire recv`: it completes, and what arrived is the source's memory.

use std::time::Duration;

use serde_json::Value;

use super::{Bench, CAPTURE, TOOL_END, conversation, pair};
use crate::cases::Transport;
use crate::failure::{Class, Failure, Run, both};
use crate::ram::image_name;
use crate::tool::{PipedTool, ToolProcess, error_text};

const IMAGES: &str = "received.images";

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    let mut source = bench.source()?;
    let report = match bench.cell.case.transport {
        Transport::Exec => {
            let tool = PipedTool::new(bench.tool(), "recv", &arguments(bench, "-"), &bench.place);
            let sent = bench.migrate(&mut source, &tool.uri);
            let patience = if sent.is_ok() { TOOL_END } else { Duration::from_secs(3) };
            let received = tool.finish(bench.place.deadline.within(patience));
            both(sent, received)?.1.ok_or_else(|| Failure::new(Class::Failed, "recv: no report"))?
        }
        Transport::File => {
            let address = format!("file:{}", bench.word("stream"));
            bench.migrate(&mut source, &address)?;
            let mut tool =
                ToolProcess::spawn(bench.tool(), "recv", &arguments(bench, &address), &bench.place)?;
            tool.finish(bench.place.deadline.within(TOOL_END))?
        }
        _ => {
            let listen = arguments(bench, &pair::listen_address(bench));
            let mut tool = ToolProcess::spawn(bench.tool(), "recv", &listen, &bench.place)?;
            let address = tool.address(&bench.place)?;
            let sent = bench.converse(&mut source, &address, |source, number| {
                bench.await_pause(source, number)?;
                tool.await_lines("paused", number, bench.place.deadline.within(TOOL_END))?;
                source.resume_migration(&address)
            });
            // A source that failed has closed its connection, so its peer ends by itself and says what it saw.
            let received = tool.finish(bench.place.deadline.within(TOOL_END));
            both(sent, received)?.1
        }
    };
    check(bench, &report)?;
    if !bench.cell.case.variant.shared_ram {
        let image = bench.path(IMAGES).join(image_name(&bench.setup.machine.ram_id));
        bench.compare(&bench.path("source.ram"), &image)?;
    }
    bench.found.borrow_mut().sent = Some(bench.path("source.ram"));
    bench.verify(CAPTURE)?;
    source.quit()
}

fn arguments(bench: &Bench<'_>, address: &str) -> Vec<String> {
    let images = bench.word(IMAGES);
    let capture = bench.word(CAPTURE);
    let mut arguments =
        ["recv", address, "--ram-out", &images, "--digest", "-o", &capture].map(String::from).to_vec();
    let both = &bench.cell.case.variant.both.capabilities;
    if both.iter().any(|name| name == "switchover-ack") {
        // Nothing in the stream says that the source waits for one.
        arguments.extend([String::from("--switchover-ack"), bench.setup.acknowledgements.to_string()]);
    }
    if let Some(multifd) = bench.cell.case.variant.multifd() {
        arguments.extend([String::from("--channels"), multifd.channels.to_string()]);
    }
    arguments.extend(bench.cell.case.variant.recv.iter().cloned());
    arguments.extend(bench.cell.case.variant.cuts());
    arguments.extend(bench.about());
    arguments.extend(bench.bounds());
    arguments
}

/// What the stand-in says it saw must be what the judge knows was sent.
fn check(bench: &Bench<'_>, report: &Value) -> Run<()> {
    let case = &bench.cell.case;
    let failed = |text: String| Err(Failure::new(Class::Failed, format!("recv: {text}")));
    if report["verdict"] != "completed" {
        return failed(error_text(report));
    }
    let machine = case.machine.names_itself().then_some(&*bench.setup.machine.kind);
    if report["machine"].as_str() != machine {
        return failed(format!("machine {} and not {machine:?}", report["machine"]));
    }
    if report["return_path"] != case.return_path {
        return failed(format!("return path {}, but it was {}", report["return_path"], case.return_path));
    }
    let blocks = report["blocks"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !blocks.iter().any(|block| block["name"] == *bench.setup.machine.ram_id) {
        return failed(format!("no RAM block {} among {} blocks", bench.setup.machine.ram_id, blocks.len()));
    }
    for block in blocks.iter().filter(|_| !case.variant.shared_ram) {
        let name = block["name"].as_str().unwrap_or_default();
        let image = bench.path(IMAGES).join(image_name(name));
        let length = std::fs::metadata(&image).map(|metadata| metadata.len()).ok();
        if length != block["length"].as_u64() {
            return failed(format!(
                "RAM block {name}: length {}, but its image has {length:?}",
                block["length"]
            ));
        }
    }
    if case.variant.shared_ram && report["bytes"].as_u64() > Some(bench.setup.machine.ram_bytes / 2) {
        return failed(format!("{} bytes came, although memory was to be left out", report["bytes"]));
    }
    if let Some(multifd) = case.variant.multifd() {
        let channels = report["channels"].as_array().map_or(0, Vec::len) as u64;
        if channels != multifd.channels {
            return failed(format!("{channels} multifd channels, but there are {}", multifd.channels));
        }
        let sync = if bench.setup.per_round { "per-round" } else { "per-section" };
        if report["sync"] != sync {
            return failed(format!("synchronised {}, but it must be {sync}", report["sync"]));
        }
        if report["compression"] != *multifd.compression {
            return failed(format!(
                "compression {}, but it is {}",
                report["compression"], multifd.compression
            ));
        }
    }
    if case.variant.postcopy {
        if report["missing_pages"] != 0 {
            return failed(format!("{} pages are missing", report["missing_pages"]));
        }
        conversation::check(bench, report, "answered").or_else(failed)?;
    }
    if case.variant.name == "xbzrle" && report["xbzrle_pages"].as_u64().unwrap_or(0) == 0 {
        return failed("saw no XBZRLE page, although the source sent some".into());
    }
    Ok(())
}
