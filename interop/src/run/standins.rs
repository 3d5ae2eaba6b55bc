//! `migwire send` and `migwire recv` against each other: old and new behaviour that no stock build can show alone.

use serde_json::Value;

use super::{Bench, CAPTURE, TOOL_END, pair};
use crate::failure::{Class, Failure, Run, both};
use crate::ram::image_name;
use crate::tool::{ToolProcess, error_text};

/// A peer that says nothing for so long is not going to.
const PATIENCE: &str = "4";

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    let mut receiver = ToolProcess::spawn(bench.tool(), "recv", &receive(bench), &bench.place)?;
    let address = receiver.address(&bench.place)?;
    let mut sender = ToolProcess::spawn(bench.tool(), "send", &send(bench, &address), &bench.place)?;
    let sent = sender.finish(bench.place.deadline).and_then(|report| completed("send", report));
    let received = receiver.finish(bench.place.deadline.within(TOOL_END));
    let received = received.and_then(|report| completed("recv", report));
    // What the destination says is the news, as with a stock one.
    let (_, report) = both(sent, received)?;
    check(bench, &report)?;
    let image = image_name(&bench.setup.machine.ram_id);
    bench.compare(&bench.path("sent.images").join(&image), &bench.path("received.images").join(&image))?;
    bench.verify(CAPTURE)
}

fn receive(bench: &Bench<'_>) -> Vec<String> {
    let variant = &bench.cell.case.variant;
    let images = bench.word("received.images");
    let mut arguments =
        ["recv", &pair::listen_address(bench), "--ram-out", &images, "-o", &bench.word(CAPTURE)]
            .map(String::from)
            .to_vec();
    if let Some(multifd) = variant.multifd()
        && !variant.recv.iter().any(|word| word == "--channels")
    {
        arguments.extend([String::from("--channels"), multifd.channels.to_string()]);
    }
    arguments.extend(variant.recv.iter().cloned());
    arguments.extend(bench.about());
    arguments.extend(["--timeout", PATIENCE, "--deadline", "15", "--json"].map(String::from));
    arguments
}

fn send(bench: &Bench<'_>, address: &str) -> Vec<String> {
    let variant = &bench.cell.case.variant;
    let fill = format!("mixed={}", bench.seed() >> 1);
    let machine = &bench.setup.machine;
    let (size, images) = (machine.ram_bytes.to_string(), bench.word("sent.images"));
    let words = [
        "send",
        address,
        "--machine",
        &machine.kind,
        "--memory",
        &size,
        "--fill",
        &fill,
        "--ram-out",
        &images,
    ];
    let mut arguments = words.map(String::from).to_vec();
    if let Some(multifd) = variant.multifd() {
        let channels = multifd.channels.to_string();
        arguments.extend(["--channels", &channels, "--compression", &multifd.compression].map(String::from));
    }
    arguments.extend(variant.send.iter().cloned());
    arguments.extend(["--timeout", PATIENCE, "--deadline", "15", "--json"].map(String::from));
    arguments
}

fn completed(who: &str, report: Value) -> Run<Value> {
    match report["verdict"] == "completed" {
        true => Ok(report),
        false => Err(Failure::new(Class::Failed, format!("{who}: {}", error_text(&report)))),
    }
}

/// Every device that was sent has arrived, and is what it says of itself.
fn check(bench: &Bench<'_>, report: &Value) -> Run<()> {
    let failed = |text: String| Err(Failure::new(Class::Failed, format!("recv: {text}")));
    let words = &bench.cell.case.variant.send;
    let wanted =
        words.iter().position(|word| word == "--devices").and_then(|at| words.get(at + 1)?.parse().ok());
    let devices = report["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    if devices.len() != wanted.unwrap_or(0) {
        return failed(format!("{} devices, but {wanted:?} were sent", devices.len()));
    }
    for device in devices {
        if device["complete"] != true || device["synthetic"] != "equal" {
            return failed(format!(
                "device {}: {}, {}",
                device["name"], device["incomplete"], device["synthetic"]
            ));
        }
    }
    Ok(())
}
