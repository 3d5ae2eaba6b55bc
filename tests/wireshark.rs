//! Wireshark's tools open our recordings and find in them what we know of them; what they write anew, we read.
//!
//! Missing tools are said as SKIPPED (Debian: `tshark`, which brings capinfos, editcap and mergecap along).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use migwire::capture::{self, ChannelSummary, Direction, MAX_PACKET, Recorder, RecorderOptions, Timestamp};

use Direction::{ToDestination, ToSource};

/// 2026-01-02 03:04:05 UTC, and a bit.
const BEGIN: u64 = 1_767_323_045_123_456_789;

/// What a program prints; `None`, and said so, if it is not installed.
fn output(program: &str, args: &[&str]) -> Option<String> {
    // Its exit status 127 means that there is no such program.
    let run =
        Command::new("timeout").arg("60").arg(program).args(args).stdin(Stdio::null()).output().unwrap();
    if run.status.code() == Some(127) {
        eprintln!("SKIPPED a part of tests/wireshark.rs: no {program} (Debian: tshark)");
        return None;
    }
    let talk = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{program} {args:?}: {}: {talk}", run.status);
    Some(String::from_utf8(run.stdout).unwrap())
}

/// A recording whose packets are known: interface, direction, length, time.
fn record(path: &Path, seed: u64) -> Vec<(&'static str, Direction, usize, u64)> {
    let about = Some(r#"{"version":"x","role":"proxy"}"#.to_owned());
    let options = RecorderOptions { strict: true, comment: Some("a test".into()), about };
    let recorder = Recorder::create(path, options).unwrap();
    let names = ["main", "multifd-0", "multifd-3", "preempt", "resumed-1"];
    let taps = names.map(|name| recorder.channel(name));
    taps.iter().for_each(|tap| tap.set_description("tcp:a:1 to tcp:b:2").unwrap());
    let mut packets = Vec::new();
    let mut time = BEGIN + seed;
    for round in 0..60usize {
        for (number, (tap, name)) in taps.iter().zip(names).enumerate() {
            let direction = if number % 4 == 0 && round % 5 == 0 { ToSource } else { ToDestination };
            let len = [1, 3, 64, 4096, 70_001, MAX_PACKET][(round + number) % 6];
            time += 999_983;
            tap.record_at(direction, Timestamp(time), &vec![round as u8; len]).unwrap();
            packets.push((name, direction, len, time));
        }
    }
    recorder.finish().unwrap();
    packets
}

fn listed(path: &Path) -> Vec<ChannelSummary> {
    let listing = capture::listing(std::fs::File::open(path).unwrap()).unwrap();
    assert!(listing.error.is_none(), "{:?}", listing.error);
    listing.channels
}

/// The value of a line `name: value`.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
    let (_, value) = line.unwrap().split_once([':', '=']).unwrap();
    value.trim()
}

#[test]
fn capinfos_counts_what_we_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pcapng");
    let packets = record(&path, 0);
    let Some(infos) = output("capinfos", &["-M", path.to_str().unwrap()]) else { return };
    let total: usize = packets.iter().map(|(_, _, len, _)| len).sum();
    assert!(value(&infos, "File type").ends_with("pcapng"));
    assert_eq!(value(&infos, "Number of packets"), packets.len().to_string());
    assert_eq!(value(&infos, "Data size").split_whitespace().next(), Some(&*total.to_string()));
    assert_eq!(value(&infos, "Strict time order"), "True");
    assert_eq!(value(&infos, "File timestamp precision"), "nanoseconds (9)");
    assert!(value(&infos, "Capture application").starts_with("migwire "));
    assert_eq!(value(&infos, "Capture comment"), "a test");
    let last = packets.last().unwrap().3;
    let duration = format!("{:.9} seconds", (last - packets[0].3) as f64 / 1e9);
    assert_eq!(value(&infos, "Capture duration"), duration);
    // A paragraph an interface: its name, and how many packets it has.
    let mut counts = BTreeMap::new();
    for paragraph in infos.split("Interface #").skip(1) {
        counts.insert(value(paragraph, "Name").to_owned(), value(paragraph, "Number of packets").to_owned());
        assert_eq!(value(paragraph, "Description"), "tcp:a:1 to tcp:b:2");
    }
    let wanted = packets.iter().fold(BTreeMap::new(), |mut counts, (name, ..)| {
        *counts.entry((*name).to_owned()).or_insert(0) += 1;
        counts
    });
    let wanted: BTreeMap<_, _> = wanted.into_iter().map(|(name, n)| (name, n.to_string())).collect();
    assert_eq!(counts, wanted);
}

#[test]
fn tshark_shows_every_packet_as_it_was_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pcapng");
    let packets = record(&path, 0);
    let fields = [
        "frame.number",
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.len",
        "frame.cap_len",
        "frame.time_epoch",
    ];
    let fields = fields.iter().flat_map(|field| ["-e", field]);
    let args: Vec<_> = ["-r", path.to_str().unwrap(), "-T", "fields"].into_iter().chain(fields).collect();
    let Some(table) = output("tshark", &args) else { return };
    let found: Vec<_> = table.lines().map(|line| line.split('\t').collect::<Vec<_>>()).collect();
    assert_eq!(found.len(), packets.len());
    for (number, (row, (name, direction, len, time))) in found.iter().zip(&packets).enumerate() {
        // Some releases print the direction in hexadecimal.
        let flags: u32 = row[2].trim_start_matches("0x").parse().unwrap();
        assert_eq!((row[0], row[1]), (&*(number + 1).to_string(), *name));
        assert_eq!(flags, if *direction == ToDestination { 2 } else { 1 });
        assert_eq!((row[3], row[4]), (&*len.to_string(), &*len.to_string()));
        assert_eq!(row[5], Timestamp(*time).to_string());
    }
}

#[test]
fn what_editcap_writes_anew_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pcapng");
    let copy = dir.path().join("copy.pcapng");
    record(&path, 0);
    let (from, to) = (path.to_str().unwrap(), copy.to_str().unwrap());
    let Some(_) = output("editcap", &["-F", "pcapng", from, to]) else { return };
    assert_eq!(listed(&path), listed(&copy));
    let listing = capture::listing(std::fs::File::open(&copy).unwrap()).unwrap();
    assert_eq!(listing.about.as_deref(), Some(r#"{"version":"x","role":"proxy"}"#));
    // The first packets only.
    let Some(_) = output("editcap", &["-F", "pcapng", "-r", from, to, "1-10"]) else { return };
    assert_eq!(listed(&copy).iter().map(|c| c.packets).sum::<u64>(), 10);
}

#[test]
fn what_mergecap_makes_of_two_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other, both] = ["1.pcapng", "2.pcapng", "3.pcapng"].map(|name| dir.path().join(name));
    let packets = record(&one, 0).len() + record(&other, 7).len();
    let args = ["-F", "pcapng", "-I", "none", "-w"].map(str::to_owned);
    let files = [&both, &one, &other].map(|path| path.to_str().unwrap().to_owned());
    let args: Vec<_> = args.iter().chain(&files).map(String::as_str).collect();
    let Some(_) = output("mergecap", &args) else { return };
    let channels = listed(&both);
    assert_eq!(channels.iter().map(|c| c.packets).sum::<u64>(), packets as u64);
    // The channels of both, in whatever order.
    let names = |channels: &[ChannelSummary]| {
        let mut names: Vec<_> = channels.iter().map(|c| (c.name.clone(), c.direction, c.bytes)).collect();
        names.sort();
        names
    };
    assert_eq!(names(&channels), names(&[listed(&one), listed(&other)].concat()));
}

#[test]
fn a_recording_cut_short_is_still_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pcapng");
    let packets = record(&path, 0);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let listing = capture::listing(std::fs::File::open(&path).unwrap()).unwrap();
    let ours = listing.channels.iter().map(|c| c.packets).sum::<u64>();
    assert!(listing.error.is_some() && ours > 10 && ours < packets.len() as u64);
    // tshark says that the file is cut, and shows what we see.
    let run = Command::new("timeout").args(["60", "tshark", "-r", path.to_str().unwrap()]).output().unwrap();
    if run.status.code() == Some(127) {
        eprintln!("SKIPPED a part of tests/wireshark.rs: no tshark (Debian: tshark)");
        return;
    }
    let lines = run.stdout.iter().filter(|b| **b == b'\n').count();
    assert_eq!(lines as u64, ours, "{}", String::from_utf8_lossy(&run.stderr));
}
