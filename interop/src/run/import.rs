//! One migration, recorded by the proxy and captured from the network at once: what is imported from the capture is what was recorded.
//!
//! ```text
//! source -> migwire record -> (lo) -> destination        capture.pcapng -> migwire export -> recorded.channels/
//!                               `-> tcpdump              network.pcap -> migwire import -> imported.pcapng -> .. -> imported.channels/
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::{Bench, CAPTURE, TOOL_END, pair, proxy};
use crate::capture::Capture;
use crate::failure::{Class, Failure, Run};
use crate::tool::{ToolProcess, error_text};

const NETWORK: &str = "network.pcap";
const IMPORTED: &str = "imported.pcapng";

pub(super) fn run(bench: &Bench<'_>) -> Run<()> {
    let capture = RefCell::new(None);
    let interface = bench.cell.case.variant.capture_on.as_deref().unwrap_or("lo");
    let start = |target: &str| {
        let port = target.rsplit(':').next().unwrap_or_default();
        *capture.borrow_mut() = Some(Capture::start(interface, port, &bench.path(NETWORK), &bench.place)?);
        Ok(())
    };
    proxy::live_with(bench, pair::Ends::of(bench)?, "record", CAPTURE, start)?;
    if let Some(capture) = capture.take() {
        capture.finish(&bench.place)?;
    }
    bench.verify(CAPTURE)?;
    let words = ["import", &bench.word(NETWORK), "-o", &bench.word(IMPORTED), "--json"];
    check_import(&ask(bench, "import", &words)?).map_err(|text| Failure::new(Class::Failed, text))?;
    bench.verify(IMPORTED)?;
    let recorded = channels(bench, CAPTURE, "recorded")?;
    let imported = channels(bench, IMPORTED, "imported")?;
    compare(&recorded, &imported)
}

fn ask(bench: &Bench<'_>, name: &str, words: &[&str]) -> Run<Value> {
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    ToolProcess::spawn(bench.tool(), name, &words, &bench.place)?
        .finish(bench.place.deadline.within(TOOL_END))
}

/// One migration, and nothing missing of it.
fn check_import(report: &Value) -> Result<(), String> {
    if report["verdict"] != "complete" {
        return Err(format!("import: {}: {}", report["verdict"], error_text(report)));
    }
    let migrations = report["migrations"].as_array().map(Vec::as_slice).unwrap_or_default();
    match migrations {
        [one] if one["channels"].as_array().is_some_and(|channels| !channels.is_empty()) => Ok(()),
        _ => Err(format!("import: {} migrations, but there was one", migrations.len())),
    }
}

/// The files of both directions of a channel.
type Files = [PathBuf; 2];

/// Takes a recording apart into raw channels, by name.
fn channels(bench: &Bench<'_>, file: &str, name: &str) -> Run<BTreeMap<String, Files>> {
    let folder = format!("{name}.channels/");
    let name = format!("export-{name}");
    let report = ask(bench, &name, &["export", &bench.word(file), "-o", &bench.word(&folder), "--json"])?;
    let names = report["channels"].as_array().map(Vec::as_slice).unwrap_or_default();
    let file = |number: usize, way: &str| bench.path(&folder).join(format!("conn{number:02}.{way}.bin"));
    let files = |(number, channel): (usize, &Value)| {
        let name = channel["channel"].as_str().unwrap_or_default().to_owned();
        (name, ["src-to-dst", "dst-to-src"].map(|way| file(number, way)))
    };
    let found: BTreeMap<_, _> = names.iter().enumerate().map(files).collect();
    if found.is_empty() || found.len() != names.len() {
        return Err(Failure::new(Class::Failed, format!("{name}: channels {}", report["channels"])));
    }
    Ok(found)
}

/// Every channel has its counterpart, and both have the same bytes.
fn compare(recorded: &BTreeMap<String, Files>, imported: &BTreeMap<String, Files>) -> Run<()> {
    let mismatch = |text: String| Err(Failure::new(Class::Mismatch, text));
    if !recorded.keys().eq(imported.keys()) {
        let names = |map: &BTreeMap<String, Files>| map.keys().cloned().collect::<Vec<_>>().join(", ");
        return mismatch(format!("recorded are {}, imported {}", names(recorded), names(imported)));
    }
    for (name, files) in recorded {
        for (way, (recorded, imported)) in ["sent", "answered"].iter().zip(files.iter().zip(&imported[name]))
        {
            // What says nothing may have no file.
            let read = |path: &PathBuf| match std::fs::read(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
                read => read.map_err(|e| Failure::environment(path.display(), e)),
            };
            let (left, right) = (read(recorded)?, read(imported)?);
            if left != right {
                let at = left.iter().zip(&right).take_while(|(left, right)| left == right).count();
                let (left, right) = (left.len(), right.len());
                let text =
                    format!("{name}: {left} bytes {way} in the recording, {right} in what was imported");
                return mismatch(format!("{text}; they differ from {at:#x} on"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_whole_migration_is_wanted() {
        let one = json!({"channels": [{"channel": "main"}]});
        let report = |verdict: &str, migrations: &[&Value]| {
            check_import(&json!({"verdict": verdict, "migrations": migrations}))
        };
        assert_eq!(report("complete", &[&one]), Ok(()));
        assert!(report("incomplete", &[&one]).is_err());
        assert!(report("complete", &[&one, &one]).is_err());
        assert!(report("complete", &[]).is_err());
        assert!(report("complete", &[&json!({"channels": []})]).is_err());
    }

    #[test]
    fn a_byte_that_differs_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let none = dir.path().join("none");
        let map = |name: &str, file: PathBuf| BTreeMap::from([(name.to_owned(), [file, none.clone()])]);
        let (a, same, other) = (put("a", b"xyz"), put("same", b"xyz"), put("other", b"xy!"));
        assert_eq!(compare(&map("main", a.clone()), &map("main", same)), Ok(()));
        let failure = compare(&map("main", a.clone()), &map("main", other)).unwrap_err();
        assert!(failure.text.contains("from 0x2 on"), "{failure}");
        assert!(compare(&map("main", a.clone()), &map("main", none.clone())).is_err());
        assert!(compare(&map("main", a.clone()), &map("multifd-0", a)).is_err());
    }
}
