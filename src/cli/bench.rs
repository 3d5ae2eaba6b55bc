//! `migwire bench`: how fast this build is on this machine, against a plain writer and reader on the same machine.
//!
//! ```text
//! send     Source --loopback--> reader that discards        against  writer --loopback--> reader that discards
//! multifd-send  the same, with as many channels as there are writers and readers
//! recv     writer of a ready-made stream --loopback--> Destination    against the same
//! replay   recording in memory --loopback--> reader that discards    against  writer --loopback--> reader that discards
//! record   writer --> Proxy --> reader, file on a disk       against  a proxy that only copies, and the disk alone
//! postcopy   pages that are asked for: Source --loopback--> requester
//! verify, inspect                                           the verbs over a file in the page cache
//! devices  4 made-up devices over 4 channels --> Destination    against  4 writers --> 4 readers that discard, and against
//!          4 writers that make their bytes --> 4 readers that look at them
//! packets                                                   what a multifd packet costs, and the verbs over multifd channels
//! import   a capture of a network in the page cache            against reading it, and against copying it
//! codec                                                     payloads of multifd packets against zlib and zstd alone
//! memory                                                    peak of a verb over a stream of many gigabytes
//! ```
//! Absolute figures say more about the machine than about the program, so each is measured next to its yardstick, in turns, and
//! the median of the ratios counts.

mod codec;
mod devices;
mod memory;
mod multifd;
mod packets;
mod postcopy;
mod record;
mod stream;
mod traffic;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use migwire::device_state::Arrangement;
use migwire::guest::Pattern;
use migwire::wire::Method;
use serde_json::{Value, json};

use self::wire::Beside;
use super::Verdict;
use super::output;
use super::send::parse_size;

/// Measure throughput and memory
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What to measure
    #[arg(value_enum)]
    what: What,

    /// Bytes of guest memory a run [default: 2G; 16G for memory; 256M for codec]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    /// Runs of each kind
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,

    /// Where files are put for as long as it takes; should be in memory
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    dir: PathBuf,

    /// Where recordings are put for as long as it takes; should be on a disk
    #[arg(long, value_name = "DIR", default_value = ".")]
    disk: PathBuf,

    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    Send,
    MultifdSend,
    Devices,
    Recv,
    Record,
    Replay,
    Postcopy,
    Verify,
    Inspect,
    Packets,
    Import,
    Codec,
    Memory,
    All,
}

/// What a measurement found.
enum Found {
    /// Throughput, bytes a second, and that of the yardstick if there is one.
    Rate { ours: f64, plain: Option<f64> },
    /// The same, beside a second yardstick: nothing can be faster than either.
    Bounded { ours: f64, plain: f64, disk: f64 },
    /// Pages a second, and how many microseconds half of them, and 99 of a hundred, took at most.
    Pages { pages: f64, p50: f64, p99: f64 },
    /// Peak of resident memory, bytes.
    Peak(u64),
    /// Time that a packet takes, and the share of a core that packets of raw pages at 30 Gbit/s would take.
    Packet { nanoseconds: f64, share: f64 },
    /// This build cannot be measured in that way.
    Skipped(String),
}

/// A measurement.
struct Measurement {
    kind: What,
    name: &'static str,
    measure: fn(&Conditions) -> anyhow::Result<Found>,
}

/// Everything there is to measure: one line each.
const MEASUREMENTS: &[Measurement] = &[
    Measurement {
        kind: What::Send,
        name: "send, equal pages",
        measure: |c| wire::send_pattern(Pattern::Byte(0x5a), c),
    },
    Measurement {
        kind: What::Send,
        name: "send, counted pages",
        measure: |c| wire::send_pattern(Pattern::Count, c),
    },
    Measurement { kind: What::Send, name: "send, images", measure: |c| wire::send_images(Beside::Writer, c) },
    Measurement {
        kind: What::Send,
        name: "send, images, beside a copy",
        measure: |c| wire::send_images(Beside::Copier, c),
    },
    Measurement {
        kind: What::MultifdSend,
        name: "multifd-send 2, equal pages",
        measure: |c| multifd::send(Pattern::Byte(0x5a), 2, c),
    },
    Measurement {
        kind: What::MultifdSend,
        name: "multifd-send 2, counted pages",
        measure: |c| multifd::send(Pattern::Count, 2, c),
    },
    Measurement {
        kind: What::MultifdSend,
        name: "multifd-send 4, equal pages",
        measure: |c| multifd::send(Pattern::Byte(0x5a), 4, c),
    },
    Measurement {
        kind: What::MultifdSend,
        name: "multifd-send 4, counted pages",
        measure: |c| multifd::send(Pattern::Count, 4, c),
    },
    Measurement {
        kind: What::Devices,
        name: "4 devices, 4 channels, when stopped",
        measure: |c| devices::move_all(Arrangement::Downtime, 0, devices::Beside::Plain, c),
    },
    Measurement {
        kind: What::Devices,
        name: "4 devices, 4 channels, when stopped, beside bytes touched",
        measure: |c| devices::move_all(Arrangement::Downtime, 0, devices::Beside::Touched, c),
    },
    Measurement {
        kind: What::Devices,
        name: "4 devices, 4 channels, half of it live",
        measure: |c| devices::move_all(Arrangement::Live, c.size / 8, devices::Beside::Plain, c),
    },
    Measurement {
        kind: What::Devices,
        name: "4 devices, 4 channels, half of it live, beside bytes touched",
        measure: |c| devices::move_all(Arrangement::Live, c.size / 8, devices::Beside::Touched, c),
    },
    Measurement { kind: What::Recv, name: "recv", measure: wire::recv },
    Measurement { kind: What::Replay, name: "replay", measure: wire::replay },
    Measurement {
        kind: What::Record,
        name: "record",
        measure: |c| record::record(record::Medium::Disk, 1, c),
    },
    Measurement {
        kind: What::Record,
        name: "record, 4 channels",
        measure: |c| record::record(record::Medium::Disk, 4, c),
    },
    Measurement {
        kind: What::Record,
        name: "record, into memory",
        measure: |c| record::record(record::Medium::Memory, 1, c),
    },
    Measurement {
        kind: What::Record,
        name: "record, written nowhere",
        measure: |c| record::record(record::Medium::Nowhere, 1, c),
    },
    Measurement { kind: What::Record, name: "record, without recording", measure: record::forward },
    Measurement {
        kind: What::Postcopy,
        name: "postcopy, equal pages",
        measure: |c| postcopy::serve(Pattern::Byte(0x5a), false, c),
    },
    Measurement {
        kind: What::Postcopy,
        name: "postcopy, counted pages",
        measure: |c| postcopy::serve(Pattern::Count, false, c),
    },
    Measurement {
        kind: What::Postcopy,
        name: "postcopy, preempt channel",
        measure: |c| postcopy::serve(Pattern::Count, true, c),
    },
    Measurement { kind: What::Verify, name: "verify", measure: |c| stream::verb("verify", c) },
    Measurement { kind: What::Inspect, name: "inspect", measure: |c| stream::verb("inspect", c) },
    Measurement {
        kind: What::Packets,
        name: "packets, payload left out",
        measure: |c| packets::parse(false, c),
    },
    Measurement {
        kind: What::Packets,
        name: "packets, payload in pieces",
        measure: |c| packets::parse(true, c),
    },
    Measurement { kind: What::Packets, name: "verify, multifd", measure: |c| packets::verb("verify", c) },
    Measurement { kind: What::Packets, name: "inspect, multifd", measure: |c| packets::verb("inspect", c) },
    Measurement {
        kind: What::Import,
        name: "import, 64 KiB segments",
        measure: |c| traffic::import(65_495, traffic::Beside::Reader, c),
    },
    Measurement {
        kind: What::Import,
        name: "import, 64 KiB segments, beside a copy",
        measure: |c| traffic::import(65_495, traffic::Beside::Copier, c),
    },
    Measurement {
        kind: What::Import,
        name: "import, 1448-byte segments",
        measure: |c| traffic::import(1448, traffic::Beside::Reader, c),
    },
    Measurement {
        kind: What::Codec,
        name: "decode zlib, counted pages",
        measure: |c| codec::decode(Method::ZLIB, Pattern::Count, c),
    },
    Measurement {
        kind: What::Codec,
        name: "decode zlib, mixed pages",
        measure: |c| codec::decode(Method::ZLIB, Pattern::Mixed(1), c),
    },
    Measurement {
        kind: What::Codec,
        name: "decode zstd, counted pages",
        measure: |c| codec::decode(Method::ZSTD, Pattern::Count, c),
    },
    Measurement {
        kind: What::Codec,
        name: "decode zstd, mixed pages",
        measure: |c| codec::decode(Method::ZSTD, Pattern::Mixed(1), c),
    },
    Measurement {
        kind: What::Codec,
        name: "encode zlib, counted pages",
        measure: |c| codec::encode(Method::ZLIB, Pattern::Count, c),
    },
    Measurement {
        kind: What::Codec,
        name: "encode zlib, mixed pages",
        measure: |c| codec::encode(Method::ZLIB, Pattern::Mixed(1), c),
    },
    Measurement {
        kind: What::Codec,
        name: "encode zstd, counted pages",
        measure: |c| codec::encode(Method::ZSTD, Pattern::Count, c),
    },
    Measurement {
        kind: What::Codec,
        name: "encode zstd, mixed pages",
        measure: |c| codec::encode(Method::ZSTD, Pattern::Mixed(1), c),
    },
    Measurement { kind: What::Memory, name: "memory of send", measure: memory::send },
    Measurement {
        kind: What::Memory,
        name: "memory of recv -",
        measure: |c| memory::reading(&["recv", "-"], c),
    },
    Measurement {
        kind: What::Memory,
        name: "memory of recv - --digest",
        measure: |c| memory::reading(&["recv", "-", "--digest"], c),
    },
    Measurement {
        kind: What::Memory,
        name: "memory of verify -",
        measure: |c| memory::reading(&["verify", "-"], c),
    },
    Measurement {
        kind: What::Memory,
        name: "memory of inspect -",
        measure: |c| memory::reading(&["inspect", "-"], c),
    },
    Measurement { kind: What::Memory, name: "memory of import -", measure: |c| traffic::peak(false, c) },
    Measurement {
        kind: What::Memory,
        name: "memory of import -, bytes missing",
        measure: |c| traffic::peak(true, c),
    },
];

/// How to measure.
#[derive(Clone)]
struct Conditions {
    size: u64,
    runs: u32,
    dir: PathBuf,
    disk: PathBuf,
}

impl Conditions {
    /// Runs both in turns; the rates of the run whose ratio is the median.
    fn compare(
        &self,
        mut ours: impl FnMut() -> anyhow::Result<Rate>,
        mut plain: impl FnMut() -> anyhow::Result<Rate>,
    ) -> anyhow::Result<Found> {
        let mut pairs = Vec::new();
        for _ in 0..self.runs {
            let yardstick = plain()?.per_second();
            pairs.push((ours()?.per_second(), yardstick));
        }
        pairs.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let (ours, plain) = pairs[pairs.len() / 2];
        Ok(Found::Rate { ours, plain: Some(plain) })
    }
}

/// Bytes in a time.
struct Rate {
    bytes: u64,
    elapsed: Duration,
}

impl Rate {
    fn per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        let mut found = Vec::new();
        for measurement in MEASUREMENTS.iter().filter(|m| self.what == m.kind || self.what == What::All) {
            let usual = match measurement.kind {
                What::Memory => 16 << 30,
                What::Codec => 256 << 20,
                _ => 2 << 30,
            };
            let (dir, disk) = (self.dir.clone(), self.disk.clone());
            let conditions = Conditions { size: self.size.unwrap_or(usual), runs: self.runs, dir, disk };
            let result = (measurement.measure)(&conditions)?;
            if !self.json {
                output::print_line(&line(measurement.name, &result))?;
            }
            found.push(object(measurement.name, &conditions, &result));
        }
        if self.json {
            output::print_json(&json!({ "measurements": found }))?;
        }
        Ok(Verdict::Good)
    }
}

fn line(name: &str, found: &Found) -> String {
    match found {
        Found::Rate { ours, plain: Some(plain) } => {
            let (ours, plain, ratio) = (ours / 1e9, plain / 1e9, ours / plain);
            format!("{name:<28} {ours:6.2} GB/s, plain {plain:6.2} GB/s, ratio {ratio:.2}")
        }
        Found::Bounded { ours, plain, disk } => {
            let ratios =
                format!("ratio {:.2}, of the slower one {:.2}", ours / plain, ours / plain.min(*disk));
            let (ours, plain, disk) = (ours / 1e9, plain / 1e9, disk / 1e9);
            format!("{name:<28} {ours:6.2} GB/s, plain {plain:6.2} GB/s, disk {disk:6.2} GB/s, {ratios}")
        }
        Found::Rate { ours, plain: None } => format!("{name:<28} {:6.2} GB/s", ours / 1e9),
        Found::Packet { nanoseconds, share } => {
            format!("{name:<28} {nanoseconds:6.0} ns a packet, {:.3} % of a core at 30 Gbit/s", 100.0 * share)
        }
        Found::Pages { pages, p50, p99 } => {
            format!("{name:<28} {pages:6.0} pages/s, p50 {p50:.0} us, p99 {p99:.0} us")
        }
        Found::Peak(bytes) => format!("{name:<28} {}", output::bytes(*bytes)),
        Found::Skipped(why) => format!("{name:<28} skipped: {why}"),
    }
}

fn object(name: &str, conditions: &Conditions, found: &Found) -> Value {
    let mut value = json!({ "name": name, "size": conditions.size });
    match found {
        Found::Rate { ours, plain } => {
            value["bytes_per_second"] = json!(ours);
            value["plain_bytes_per_second"] = json!(plain);
            value["ratio"] = json!(plain.map(|plain| ours / plain));
        }
        Found::Bounded { ours, plain, disk } => {
            value["bytes_per_second"] = json!(ours);
            value["plain_bytes_per_second"] = json!(plain);
            value["disk_bytes_per_second"] = json!(disk);
            value["ratio"] = json!(ours / plain);
            value["ratio_to_slower"] = json!(ours / plain.min(*disk));
        }
        Found::Packet { nanoseconds, share } => {
            value["nanoseconds"] = json!(nanoseconds);
            value["core_share_at_30_gbit"] = json!(share);
        }
        Found::Pages { pages, p50, p99 } => {
            value["pages_per_second"] = json!(pages);
            value["p50_us"] = json!(p50);
            value["p99_us"] = json!(p99);
        }
        Found::Peak(bytes) => value["peak_bytes"] = json!(bytes),
        Found::Skipped(why) => value["skipped"] = json!(why),
    }
    value
}
