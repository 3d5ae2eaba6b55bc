//! `migwire recv`: the stand-in destination.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use migwire::ChannelId;
use migwire::capture::{Recorder, RecorderOptions, interface_name};
use migwire::device_state::{Ability, Config, DeviceReport, Settings as DeviceSettings, SyntheticVerdict};
use migwire::dialect::Dialect;
use migwire::endpoint::{Acknowledge, Arrival, Cut, Destination, Expected, Limits, Troubled};
use migwire::guest::Memory;
use migwire::postcopy::{RequestPattern, parse_list};
use migwire::stream::Mode;
use migwire::transport::{Address, Listener};
use migwire::wire::Method;
use serde_json::{Value, json};

use super::Verdict;
use super::about::About;
use super::output::{self, ProgressLine};
use super::trouble::{self, TroubleOptions};

/// Take a migration, as a destination that keeps nothing unless it is asked to
///
/// Listens on ADDRESS, takes one migration, answers the return path if the source opens it, and says what has arrived.
#[derive(Debug, Args)]
pub(crate) struct Recv {
    /// Where to listen: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT; or what to read: file:PATH[,offset=N], exec:COMMAND, fd:N, -
    address: Address,

    /// Write one image a RAM block into this directory: DIR/<block>.ram
    #[arg(long, value_name = "DIR")]
    ram_out: Option<PathBuf>,

    /// Print a digest a RAM block
    #[arg(long)]
    digest: bool,

    #[command(flatten)]
    trouble: TroubleOptions,

    /// Record both directions (pcapng)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Take only what this release writes: 5.2 .. 11.1, or 11.1-on-5.2 for its machine types of 5.2
    #[arg(long, value_name = "NAME", default_value_t = Dialect::ANY)]
    dialect: Dialect,

    /// Whether to acknowledge the switchover: never, auto (as a stock destination of the dialect), or so many times
    #[arg(long, value_name = "WHEN", default_value = "never", value_parser = parse_acknowledge)]
    switchover_ack: Acknowledge,

    /// Multifd channels: so many, 0 for none, or auto: those that have connected by the first synchronisation
    #[arg(long, value_name = "N", default_value = "auto", value_parser = parse_channels)]
    channels: Expected,

    /// Encoding of pages on multifd channels: none, zlib, zstd, qpl, uadk, qatzip; auto takes what comes
    #[arg(long, value_name = "METHOD", default_value = "auto", value_parser = parse_compression)]
    compression: Encoding,

    /// State of VFIO devices: live (in every arrangement), downtime (as stock 10.0 to 11.1: packets wait for SWITCHOVER_START), or off
    /// (main channel only, as with x-migration-multifd-transfer=off)
    #[arg(long, value_name = "ABILITY", default_value = "live", value_parser = parse_ability)]
    device_state: Ability,

    /// Most bytes of device state that may wait for packets that are missing
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = super::send::parse_size)]
    device_memory: u64,

    /// Which pages to ask for in postcopy: none (the source sends all by itself), missing (in order), random[=SEED], hot[=SEED] (nine of
    /// ten in a tenth of the memory), list=FILE (lines of BLOCK OFFSET [LENGTH])
    #[arg(long, value_name = "PATTERN", default_value = "none", value_parser = parse_request)]
    request: RequestPattern,

    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    request_depth: usize,

    /// Most requests over one connection; after a pause there is another one [default: no limit]
    #[arg(long, value_name = "N")]
    request_limit: Option<u64>,

    /// How long a postcopy migration whose connections broke waits for its source to come back; 0: it fails
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = output::parse_patience)]
    recover: Duration,

    /// Break all connections on purpose: behind so many bytes of the main channel, run+BYTES (behind POSTCOPY_RUN) or resume+BYTES
    /// (behind POSTCOPY_RESUME); several are made one after the other
    #[arg(long, value_name = "WHERE")]
    cut: Vec<Cut>,

    /// Say nothing on the return path
    #[arg(long)]
    no_reply: bool,

    /// Longest time without a whole record
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = output::parse_seconds)]
    timeout: Duration,

    /// Longest time for everything, waiting for the source included
    #[arg(long, value_name = "SECONDS", value_parser = output::parse_seconds)]
    deadline: Option<Duration>,

    /// Go on over what a stock destination would refuse, where that is possible
    #[arg(long)]
    lenient: bool,

    #[command(flatten)]
    about: About,

    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// A method, or whatever comes.
#[derive(Clone, Copy, Debug)]
struct Encoding(Option<Method>);

impl Recv {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        let listener =
            Listener::bind(&self.address).with_context(|| format!("cannot listen on {}", self.address))?;
        let recorder = match &self.output {
            Some(path) => {
                let listening = if listener.is_socket() { listener.local_address() } else { &self.address };
                let facts = json!({
                    "addresses": { "listen": listening.to_string() },
                    "dialect": self.dialect.to_string(),
                });
                let about = Some(self.about.text("destination", &facts));
                Some(Recorder::create(path, RecorderOptions { about, ..RecorderOptions::default() })?)
            }
            None => None,
        };
        if listener.is_socket() {
            eprintln!("listening on {}", listener.local_address());
        }
        let limits = Limits { silence: self.timeout, total: self.deadline };
        let (troubled, listener) = self.trouble.in_front_of_destination(listener, limits)?;
        let mut memory = Memory::new();
        if let Some(directory) = &self.ram_out {
            memory = memory.with_images(directory)?;
        }
        if self.digest {
            memory = memory.with_digest();
        }
        let mode = if self.lenient { Mode::Lenient } else { Mode::Strict };
        let mut destination = Destination::new()
            .with_dialect(self.dialect)
            .with_mode(mode)
            .with_limits(Limits { silence: self.timeout, total: self.deadline })
            .with_acknowledge(self.switchover_ack)
            .with_channels(self.channels)
            .with_devices(DeviceSettings {
                ability: self.device_state,
                memory: self.device_memory,
                ..DeviceSettings::default()
            })
            .with_requests(self.request.clone(), self.request_depth)
            .with_request_limit(self.request_limit.unwrap_or(u64::MAX))
            .with_recovery(self.recover)
            .with_cuts(self.cut.iter().copied())
            .with_notices(|notice| eprintln!("{notice}"))
            .with_memory(memory);
        if self.no_reply {
            destination = destination.without_replies();
        }
        if let Encoding(Some(method)) = self.compression {
            destination = destination.with_compression(method);
        }
        if let Some(recorder) = &recorder {
            destination = destination.with_recorder(recorder.clone());
        }
        let mut line = ProgressLine::new();
        let arrival = destination.listen(&listener, |progress| line.show(progress))?;
        line.end();
        trouble::tell(&troubled.map(Troubled::finish).unwrap_or_default());
        // What was received is told first; that its recording failed is an error of its own.
        self.report(&arrival)?;
        if let Some(recorder) = recorder {
            recorder.finish()?;
        }
        Ok(if arrival.error.is_none() { Verdict::Good } else { Verdict::Bad })
    }

    fn report(&self, arrival: &Arrival) -> anyhow::Result<()> {
        if self.json {
            return output::print_json(&self.json(arrival));
        }
        if self.digest {
            output::print_digests(&arrival.memory)?;
        }
        for complaint in &arrival.complaints {
            eprintln!("migwire: {complaint}");
        }
        if let Some(error) = &arrival.error {
            eprintln!("migwire: {}", output::whole_text(error));
        }
        eprintln!(
            "{}: {} in {} ({} sections, {} pages of which {} zero, {} iterations{})",
            if arrival.error.is_none() { "completed" } else { "failed" },
            output::bytes(
                arrival.bytes + arrival.channels.values().map(|channel| channel.bytes).sum::<u64>()
            ),
            output::seconds(arrival.elapsed),
            arrival.sections,
            arrival.pages,
            arrival.zero_pages,
            arrival.iterations,
            if arrival.return_path { ", with return path" } else { "" },
        );
        if let Some(mode) = arrival.sync_mode {
            eprintln!(
                "{} multifd channels ({}), synchronised {} times {mode}",
                arrival.channels.len(),
                arrival.method.map_or_else(|| "no pages".to_owned(), method_name),
                arrival.synchronisations,
            );
        }
        if let Some(missing) = arrival.missing_pages {
            eprintln!("{}", postcopy_text(arrival, missing));
        }
        for device in &arrival.devices {
            let why = device.incomplete.as_deref().unwrap_or("complete");
            let bytes = output::bytes(device.main_bytes + device.multifd_bytes);
            eprintln!("{}: {bytes} in {} packets: {why}", device.name.escape_ascii(), device.packets);
        }
        Ok(())
    }

    fn json(&self, arrival: &Arrival) -> Value {
        json!({
            "verdict": if arrival.error.is_none() { "completed" } else { "failed" },
            "machine": arrival.machine,
            "bytes": arrival.bytes,
            "seconds": arrival.elapsed.as_secs_f64(),
            "sections": arrival.sections,
            "pages": arrival.pages,
            "zero_pages": arrival.zero_pages,
            "xbzrle_pages": arrival.xbzrle_pages,
            "compressed_pages": arrival.compressed_pages,
            "iterations": arrival.iterations,
            "return_path": arrival.return_path,
            "postcopy": arrival.postcopy,
            "pauses": arrival.pauses,
            "missing_pages": arrival.missing_pages,
            "preempt": arrival.preempt.map(|p| json!({
                "bytes": p.bytes,
                "pages": p.pages,
                "zero_pages": p.zero_pages,
            })),
            "requests": arrival.requests.map(|r| json!({
                "sent": r.sent,
                "answered": r.answered,
                "p50_us": r.p50.map(microseconds),
                "p99_us": r.p99.map(microseconds),
                "max_us": r.max.map(microseconds),
            })),
            "channels": channels_json(arrival),
            "sync": arrival.sync_mode.map(|mode| mode.to_string()),
            "synchronisations": arrival.synchronisations,
            "compression": arrival.method.map(method_name),
            "devices": arrival.devices.iter().map(device_json).collect::<Vec<_>>(),
            "dialect": self.dialect.to_string(),
            "blocks": output::blocks_json(&arrival.memory),
            "complaints": arrival.complaints.iter().map(output::error_json).collect::<Vec<_>>(),
            "error": arrival.error.as_ref().map(output::error_json),
            "recording": self.output.as_ref().map(|path| path.display().to_string()),
        })
    }
}

/// Postcopy in a line.
fn postcopy_text(arrival: &Arrival, missing: u64) -> String {
    let mut text = match (arrival.postcopy, missing) {
        (false, _) => return "postcopy was announced, and not entered".to_owned(),
        (true, 0) => "postcopy: all pages have come".to_owned(),
        (true, missing) => format!("postcopy: {missing} pages are missing"),
    };
    if let Some(requests) = arrival.requests.filter(|requests| requests.sent > 0) {
        text += &format!(", {} of {} requests were answered", requests.answered, requests.sent);
        if let (Some(p50), Some(p99)) = (requests.p50, requests.p99) {
            text += &format!(" (p50 {:.0} us, p99 {:.0} us)", microseconds(p50), microseconds(p99));
        }
    }
    if let Some(preempt) = arrival.preempt {
        text += &format!(", {} pages on the preempt channel", preempt.pages);
    }
    if arrival.pauses > 0 {
        text += &format!(", {} pauses", arrival.pauses);
    }
    text
}

fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

fn channels_json(arrival: &Arrival) -> Vec<Value> {
    let channel = |(id, channel): (&u8, &migwire::endpoint::ChannelArrival)| {
        json!({
            "channel": interface_name(ChannelId::Multifd(*id)),
            "bytes": channel.bytes,
            "packets": channel.packets,
            "syncs": channel.syncs,
            "pages": channel.pages,
            "zero_pages": channel.zero_pages,
            "device_packets": channel.device_packets,
        })
    };
    arrival.channels.iter().map(channel).collect()
}

pub(super) fn device_json(device: &DeviceReport) -> Value {
    let config = device.config.as_deref().map(Config::decode);
    json!({
        "name": device.name.escape_ascii().to_string(),
        "instance": device.instance,
        "main_bytes": device.main_bytes,
        "multifd_bytes": device.multifd_bytes,
        "packets": device.packets,
        "queued_peak": device.queued_peak,
        "complete": device.incomplete.is_none(),
        "incomplete": device.incomplete,
        "synthetic": match device.synthetic {
            SyntheticVerdict::Foreign => None,
            SyntheticVerdict::Equal => Some("equal"),
            SyntheticVerdict::Different(_) | SyntheticVerdict::Short(_) => Some("different"),
        },
        "config": config.as_ref().and_then(Config::pci).map(|pci| json!({
            "vendor": pci.vendor(),
            "device": pci.device(),
            "msix": pci.msix.as_ref().map(migwire::device_state::Msix::count),
        })),
    })
}

fn parse_request(text: &str) -> Result<RequestPattern, String> {
    let (kind, value) = text.split_once('=').map_or((text, None), |(kind, value)| (kind, Some(value)));
    let seed = || value.map_or(Ok(0), str::parse).map_err(|_| format!("{text:?}: the seed is a number"));
    match (kind, value) {
        ("none", None) => Ok(RequestPattern::None),
        ("missing", None) => Ok(RequestPattern::Missing),
        ("random", _) => seed().map(RequestPattern::Random),
        ("hot", _) => seed().map(RequestPattern::Hot),
        ("list", Some(path)) => {
            let lines = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
            parse_list(&lines).map_err(|e| format!("{path}: {e}"))
        }
        _ => Err("none, missing, random[=SEED], hot[=SEED] or list=FILE".to_owned()),
    }
}

fn parse_ability(text: &str) -> Result<Ability, String> {
    match text {
        "live" => Ok(Ability::Live),
        "downtime" => Ok(Ability::Downtime),
        "off" => Ok(Ability::Off),
        _ => Err("live, downtime or off".to_owned()),
    }
}

/// The name of a method, as `multifd-compression` has it.
fn method_name(method: Method) -> String {
    method.name().map_or_else(|| method.to_string(), str::to_lowercase)
}

fn parse_channels(text: &str) -> Result<Expected, String> {
    match text {
        "auto" => Ok(Expected::Auto),
        _ => text.parse().map(Expected::Exactly).map_err(|_| "auto, or a number up to 255".to_owned()),
    }
}

fn parse_compression(text: &str) -> Result<Encoding, String> {
    if text == "auto" {
        return Ok(Encoding(None));
    }
    let found = Method::KNOWN.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
    found
        .map(|(method, _)| Encoding(Some(*method)))
        .ok_or_else(|| "auto, none, zlib, zstd, qpl, uadk or qatzip".to_owned())
}

fn parse_acknowledge(text: &str) -> Result<Acknowledge, String> {
    match text {
        "never" => Ok(Acknowledge::Never),
        "auto" => Ok(Acknowledge::Auto),
        _ => text.parse().map(Acknowledge::Times).map_err(|_| "never, auto, or a number".to_owned()),
    }
}
