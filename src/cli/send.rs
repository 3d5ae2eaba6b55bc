//! `migwire send`: the stand-in source.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use migwire::capture::{Recorder, RecorderOptions};
use migwire::device_state::Arrangement;
use migwire::dialect::{Dialect, Difference};
use migwire::endpoint::{
    Blank, ChannelDeparture, Cut, Departure, Devices, Limits, Misconduct, Multifd, Postcopy, RunState,
    Source, Template, Troubled, Turn,
};
use migwire::guest::{Memory, Pattern, file_name};
use migwire::multifd::ZeroPages;
use migwire::transport::{self, Address};
use migwire::wire::Method;
use migwire::{ChannelId, Error, ErrorKind};
use serde_json::{Value, json};

use super::Verdict;
use super::about::About;
use super::output::{self, ProgressLine};
use super::trouble::{self, TroubleOptions};

/// Migrate a guest that does not run, as a source
///
/// Connects to ADDRESS and sends one migration: of a machine without devices (--machine), or after the model of a recorded
/// stream (--template) with other RAM. Waits until the destination says that it has finished, where there is a return path.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("shape").required(true).args(["template", "machine"])))]
#[command(group(clap::ArgGroup::new("content").args(["fill", "ram_in"])))]
pub(crate) struct Send {
    /// Where to connect: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT; or where to write: file:PATH[,offset=N], exec:COMMAND, fd:N, -
    address: Address,

    /// Keep everything but the pages of this recorded stream (a raw stream, or a recording by migwire)
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,

    /// Make a machine of this name, without devices: `none` is one that every QEMU has
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,

    /// RAM of the machine [default: 16M, or as large as its image]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "template")]
    memory: Option<u64>,

    /// The machine's RAM has pages of this size, which must not be split in postcopy (2M, 1G); the destination's must have the same
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "template")]
    huge_page: Option<u64>,

    /// RAM block of the machine [default: ram], or block of the template to fill [default: the largest]
    #[arg(long, value_name = "NAME")]
    block: Option<String>,

    /// Fill the block: zero, byte=0xNN, count, random=SEED, mixed=SEED
    #[arg(long, value_name = "PATTERN")]
    fill: Option<Pattern>,

    /// Take images from this directory: DIR/<block>.ram, as `recv --ram-out` writes them
    #[arg(long, value_name = "DIR")]
    ram_in: Option<PathBuf>,

    /// Write what was sent into this directory, one image a block
    #[arg(long, value_name = "DIR")]
    ram_out: Option<PathBuf>,

    /// Print a digest a RAM block
    #[arg(long)]
    digest: bool,

    /// Write as this release does: 5.2 .. 11.1, or 11.1-on-5.2 for its machine types of 5.2; `any` is what all of them take, and
    /// leaves a template as it is, with multifd channels as in the newest
    #[arg(long, value_name = "NAME", default_value_t = Dialect::ANY)]
    dialect: Dialect,

    /// The machine's guest was stopped before, and stays so
    #[arg(long, conflicts_with = "template")]
    paused: bool,

    /// Open the return path, and wait for the destination's last word [default: as the template; on for a machine and a socket]
    #[arg(long, value_name = "on|off", value_parser = parse_switch, action = ArgAction::Set)]
    return_path: Option<bool>,

    /// Send all pages so many times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,

    /// Send deltas (XBZRLE) against a cache of this size; pages of a pattern then change a little from round to round
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "fill")]
    xbzrle: Option<u64>,

    /// Send pages on so many multifd channels; the destination must have as many [default: none]
    #[arg(long, value_name = "N", default_value_t = 0)]
    channels: u8,

    #[command(flatten)]
    multifd: MultifdOptions,

    #[command(flatten)]
    devices: DeviceOptions,

    #[command(flatten)]
    postcopy: PostcopyOptions,

    #[command(flatten)]
    trouble: TroubleOptions,

    /// Record both directions (pcapng)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Longest time in which the destination takes nothing, or says nothing at the end
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = output::parse_seconds)]
    timeout: Duration,

    /// Longest time for everything
    #[arg(long, value_name = "SECONDS", value_parser = output::parse_seconds)]
    deadline: Option<Duration>,

    #[command(flatten)]
    about: About,

    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// What multifd channels are like.
#[derive(Debug, Args)]
struct MultifdOptions {
    /// Encode pages on multifd channels: none, zlib, zstd, qpl, uadk, qatzip; the destination must have the same
    #[arg(long, value_name = "METHOD", default_value = "none")]
    compression: Method,

    /// How hard, where the method has levels [default: as QEMU]
    #[arg(long, value_name = "N")]
    level: Option<u32>,

    /// Where pages of zeros go: legacy (the main channel), multifd (lists in packets), none (into packets, as others) [default: as
    /// the dialect]
    #[arg(long, value_name = "WAY")]
    zero_pages: Option<ZeroPages>,

    /// UUID of the virtual machine; the destination must have the same [default: none]
    #[arg(long, value_name = "UUID", value_parser = parse_uuid)]
    uuid: Option<[u8; 16]>,

    /// Break rules of multifd on purpose
    #[arg(long = "break", value_name = "RULE[,RULE]", value_delimiter = ',', long_help = misconduct_help())]
    misconduct: Vec<Misconduct>,
}

/// How it switches to postcopy, and what happens then.
#[derive(Debug, Args)]
struct PostcopyOptions {
    /// Switch to postcopy when so many per cent of the pages have been sent (0: none are); blocks that keep the template's pages are
    /// sent before. The destination must have postcopy-ram on
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    postcopy: Option<u8>,

    /// Send pages that are asked for on a channel of their own; when it is connected, and how it ends, follows from --dialect
    #[arg(long, requires = "postcopy")]
    preempt: bool,

    /// How long a broken postcopy tries to reach its destination again; 0: it fails, as it does with multifd channels of releases before
    /// 8.1, which need them in postcopy
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = output::parse_patience)]
    recover: Duration,

    /// Break all connections on purpose, at this place of the main channel: BYTES, run+BYTES behind POSTCOPY_RUN, resume+BYTES behind
    /// POSTCOPY_RESUME; several are made one after the other
    #[arg(long, value_name = "WHERE")]
    cut: Vec<Cut>,

    /// Announce postcopy (ADVISE), even if it does not follow
    #[arg(long)]
    advise: bool,
}

/// VFIO devices that are made up; a destination can tell by their state whether all of it has come.
#[derive(Debug, Args)]
struct DeviceOptions {
    /// Send the state of so many VFIO devices too, which are made up; stock destinations do not have them
    #[arg(long, value_name = "N", default_value_t = 0)]
    devices: u32,

    /// Bytes of state of each
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = parse_size)]
    device_size: u64,

    /// Bytes of it that move at once
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_chunk)]
    device_chunk: u32,

    /// Where it travels: main (sections), downtime (packets on multifd channels when the guest is stopped), live (packets from
    /// the beginning) [default: downtime where the dialect has it and there are channels without compression, else main]
    #[arg(long, value_name = "WAY", value_parser = parse_arrangement)]
    device_state: Option<Arrangement>,

    /// Which channels it takes: mixed (all), dedicated (the upper half; pages have the lower one)
    #[arg(long, value_name = "WHICH", default_value = "mixed", value_parser = parse_dedicated, action = ArgAction::Set)]
    device_channels: bool,

    /// Bytes of the state of each that move while the guest runs [default: about half]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    device_live: Option<u64>,
}

impl Send {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        if self.address == Address::Stdio && (self.json || self.digest) {
            let message = "standard output carries the stream, so no answer can be printed there";
            return Err(Error::nowhere(ErrorKind::Misuse, "sending", message).into());
        }
        // Whatever can be wrong on our side is found before anybody is connected to.
        let source = self.source()?;
        let recorder = match &self.output {
            Some(path) => {
                let facts = json!({
                    "addresses": { "target": self.address.to_string() },
                    "dialect": self.dialect.to_string(),
                });
                let about = Some(self.about.text("source", &facts));
                Some(Recorder::create(path, RecorderOptions { about, ..RecorderOptions::default() })?)
            }
            None => None,
        };
        let patience = self.deadline.map_or(self.timeout, |deadline| deadline.min(self.timeout));
        let limits = Limits { silence: self.timeout, total: self.deadline };
        let troubled = self.trouble.in_front_of_source(&self.address, limits)?;
        let address = troubled.as_ref().map_or(&self.address, Troubled::address).clone();
        let connection = transport::connect(&address, patience)?;
        let connect = |channel| {
            // One try to recover may not take longer than all of them.
            let is_recovery = matches!(channel, ChannelId::Resumed(_) | ChannelId::ResumedPreempt(_));
            let patience = if is_recovery { patience.min(self.postcopy.recover) } else { patience };
            transport::connect(&address, patience)
        };
        let source = match &recorder {
            Some(recorder) => source.with_recorder(recorder.clone()),
            None => source,
        };
        let mut line = ProgressLine::new();
        let departure = source.send_over(connection, connect, |progress| line.show(progress));
        line.end();
        trouble::tell(&troubled.map(Troubled::finish).unwrap_or_default());
        self.report(&departure)?;
        if let Some(recorder) = recorder {
            recorder.finish()?;
        }
        Ok(if departure.error.is_none() { Verdict::Good } else { Verdict::Bad })
    }

    fn source(&self) -> anyhow::Result<Source> {
        let mut copy = Memory::new();
        if let Some(directory) = &self.ram_out {
            copy = copy.with_images(directory)?;
        }
        if self.digest {
            copy = copy.with_digest();
        }
        let template = self.shape()?;
        let return_path = match (self.return_path, &self.template) {
            (Some(on), _) => on,
            _ if self.postcopy.advise || self.postcopy.postcopy.is_some() => true,
            (None, None) => self.address.is_socket(),
            (None, Some(_)) => template.has_return_path() && self.address.is_socket(),
        };
        let mut source = Source::new(template)
            .with_dialect(self.dialect)
            .with_limits(Limits { silence: self.timeout, total: self.deadline })
            .with_return_path(return_path)
            .with_rounds(self.rounds)
            .with_copy(copy);
        if let Some(bytes) = self.xbzrle {
            source = source.with_xbzrle(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        if let Some(directory) = &self.ram_in {
            source = source.with_images(directory)?;
        } else if self.fill.is_some() || self.template.is_none() {
            let block = self.block.as_deref().map(str::as_bytes);
            source = source.with_pattern(block, self.fill.unwrap_or(Pattern::Zero))?;
        }
        if self.channels > 0 && !self.address.is_socket() {
            let message = format!("{} is one connection, and multifd takes several", self.address);
            return Err(Error::nowhere(ErrorKind::Misuse, "sending", message).into());
        }
        if self.postcopy.postcopy.is_some() && !self.address.is_socket() {
            let message = format!("{} goes one way, and postcopy is a conversation", self.address);
            return Err(Error::nowhere(ErrorKind::Misuse, "sending", message).into());
        }
        let MultifdOptions { compression, level, zero_pages, uuid, misconduct } = &self.multifd;
        let source = source
            .with_multifd(Multifd {
                channels: self.channels,
                method: *compression,
                level: *level,
                zero_pages: *zero_pages,
                uuid: uuid.unwrap_or_default(),
            })
            .with_misconduct(misconduct.iter().copied())
            .with_devices(self.devices()?)
            .with_cuts(self.postcopy.cut.iter().copied())
            .with_notice(announce);
        let PostcopyOptions { postcopy, preempt, recover, advise, .. } = self.postcopy;
        let source = if advise { source.with_advise() } else { source };
        let source = match postcopy {
            Some(percent) => source.with_postcopy(Postcopy { percent, preempt, recover }),
            None => source,
        };
        source.check()?;
        Ok(source)
    }

    fn devices(&self) -> migwire::Result<Devices> {
        let DeviceOptions { devices, device_size, device_chunk, device_state, device_channels, device_live } =
            self.devices;
        let usual = self.channels > 0
            && self.multifd.compression == Method::NONE
            && self.dialect.has(Difference::MultifdDeviceState);
        let usual = if usual { Arrangement::Downtime } else { Arrangement::Main };
        let arrangement = device_state.unwrap_or(usual);
        let all = Devices::new(devices, device_size, device_chunk, arrangement)?;
        Ok(Devices { dedicated: device_channels, live: device_live, ..all })
    }

    fn shape(&self) -> anyhow::Result<Template> {
        let Some(machine) = &self.machine else {
            return Ok(Template::open(self.template.as_deref().unwrap_or("".as_ref()))?);
        };
        let block = self.block.as_deref().unwrap_or("ram");
        let memory = match (self.memory, &self.ram_in) {
            (Some(memory), _) => memory,
            (None, Some(directory)) => std::fs::metadata(directory.join(file_name(block.as_bytes())))
                .map_err(|e| anyhow::anyhow!("{}: no image of block {block}: {e}", directory.display()))?
                .len(),
            (None, None) => 16 << 20,
        };
        let mut blank = Blank::new(machine, block, memory);
        blank.state = if self.paused { RunState::Paused } else { RunState::Running };
        blank.dialect = self.dialect;
        blank.huge_page = self.huge_page;
        Ok(Template::blank(&blank)?)
    }

    fn report(&self, departure: &Departure) -> anyhow::Result<()> {
        if self.json {
            return output::print_json(&json(departure));
        }
        if self.digest {
            output::print_digests(&departure.memory)?;
        }
        if let Some(error) = &departure.error {
            eprintln!("migwire: {}", output::whole_text(error));
        }
        eprintln!(
            "{}: {} in {} ({} pages of which {} zero{}{}{})",
            if departure.error.is_none() { "completed" } else { "failed" },
            output::bytes(
                departure.bytes + departure.channels.iter().map(|channel| channel.bytes).sum::<u64>()
            ),
            output::seconds(departure.elapsed),
            departure.pages,
            departure.zero_pages,
            match departure.channels.len() {
                0 => String::new(),
                1 => ", on a multifd channel".to_owned(),
                count => format!(", on {count} multifd channels"),
            },
            postcopy_text(departure),
            match (departure.return_path, departure.peer_status) {
                (false, _) => String::new(),
                (true, None) => ", with return path, without an answer".to_owned(),
                (true, Some(status)) => format!(", with return path: SHUT {status}"),
            },
        );
        Ok(())
    }
}

fn postcopy_text(departure: &Departure) -> String {
    let postcopy = &departure.postcopy;
    if !postcopy.switched {
        return String::new();
    }
    let pauses = match postcopy.pauses {
        0 => String::new(),
        count => format!(", {count} pauses"),
    };
    format!(", in postcopy, {} of them asked for{pauses}", postcopy.requests.pages)
}

/// Tells of a pause when it happens.
fn announce(turn: Turn<'_>) {
    // Standard error may be closed; there is nobody left to tell then.
    let _ = match turn {
        Turn::Paused(reason) => writeln!(std::io::stderr(), "paused: {}", output::whole_text(reason)),
        Turn::Resumed => writeln!(std::io::stderr(), "resumed"),
    };
}

fn json(departure: &Departure) -> Value {
    json!({
        "verdict": if departure.error.is_none() { "completed" } else { "failed" },
        "machine": departure.machine,
        "bytes": departure.bytes,
        "seconds": departure.elapsed.as_secs_f64(),
        "pages": departure.pages,
        "zero_pages": departure.zero_pages,
        "xbzrle_pages": departure.xbzrle_pages,
        "return_path": departure.return_path,
        "pong": departure.pong,
        "peer_status": departure.peer_status,
        "blocks": output::blocks_json(&departure.memory),
        "channels": departure.channels.iter().map(channel_json).collect::<Vec<_>>(),
        "devices": departure.devices.iter().map(|device| json!({
            "name": device.name,
            "bytes": device.bytes,
            "packets": device.packets,
        })).collect::<Vec<_>>(),
        "postcopy": departure.postcopy.switched,
        "pauses": departure.postcopy.pauses,
        "preempt": departure.postcopy.preempt.map(|preempt| json!({
            "bytes": preempt.bytes,
            "pages": preempt.pages,
        })),
        "requests": departure.postcopy.switched.then(|| json!({
            "received": departure.postcopy.requests.received,
            "pages": departure.postcopy.requests.pages,
            "unneeded": departure.postcopy.requests.unneeded,
        })),
        "error": departure.error.as_ref().map(output::error_json),
    })
}

fn channel_json(channel: &ChannelDeparture) -> Value {
    json!({
        "channel": format!("multifd-{}", channel.id),
        "bytes": channel.bytes,
        "packets": channel.packets,
        "syncs": channel.syncs,
        "pages": channel.pages,
        "zero_pages": channel.zero_pages,
        "device_packets": channel.device_packets,
    })
}

fn misconduct_help() -> String {
    let lines = Misconduct::ALL.iter().map(|rule| format!("- {}: {}", rule, rule.what()));
    let lines: Vec<String> = lines.collect();
    format!("Break rules of multifd on purpose:\n{}", lines.join("\n"))
}

fn parse_chunk(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| "at most 4G".to_owned())
}

fn parse_arrangement(text: &str) -> Result<Arrangement, String> {
    match text {
        "main" => Ok(Arrangement::Main),
        "downtime" => Ok(Arrangement::Downtime),
        "live" => Ok(Arrangement::Live),
        _ => Err("main, downtime or live".to_owned()),
    }
}

fn parse_dedicated(text: &str) -> Result<bool, String> {
    match text {
        "mixed" => Ok(false),
        "dedicated" => Ok(true),
        _ => Err("mixed or dedicated".to_owned()),
    }
}

/// Reads 8-4-4-4-12 digits, as QEMU does.
pub(super) fn parse_uuid(text: &str) -> Result<[u8; 16], String> {
    let wrong = || "a UUID, such as 8c5d4f0e-9a6b-4c3d-8e2f-0123456789ab".to_owned();
    let groups: Vec<&str> = text.split('-').collect();
    if groups.iter().map(|group| group.len()).collect::<Vec<_>>() != [8, 4, 4, 4, 12] || !text.is_ascii() {
        return Err(wrong());
    }
    let digits = groups.concat();
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    u128::from_str_radix(&digits, 16).map(u128::to_be_bytes).map_err(|_| wrong())
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".to_owned()),
    }
}

/// Reads a number of bytes: 4096, 64K, 16M, 1G.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    number
        .filter(|_| !digits.starts_with('+'))
        .ok_or_else(|| "a number of bytes, such as 4096, 16M or 1G".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::{PostcopyOptions, parse_size, parse_uuid};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        postcopy: PostcopyOptions,
    }

    #[test]
    fn no_patience_to_recover_is_no_error() {
        let recover =
            |seconds| Line::try_parse_from(["send", "--recover", seconds]).map(|line| line.postcopy.recover);
        assert_eq!(recover("0").unwrap(), Duration::ZERO);
        assert_eq!(recover("0.5").unwrap(), Duration::from_millis(500));
        assert!(recover("-1").is_err() && recover("soon").is_err());
    }

    #[test]
    fn uuids() {
        let uuid = parse_uuid("00112233-4455-6677-8899-aAbBcCdDeEfF").unwrap();
        assert_eq!(uuid, std::array::from_fn(|i| i as u8 * 0x11));
        for bad in ["", "00112233445566778899aabbccddeeff", "+0112233-4455-6677-8899-aabbccddeeff"] {
            assert!(parse_uuid(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in
            [("4096", 4096), ("16M", 16 << 20), ("1G", 1 << 30), ("2k", 2048), ("3T", 3 << 40)]
        {
            assert_eq!(parse_size(text), Ok(size));
        }
        assert!(["", "M", "-1", "+1", "1.5G", "16777216T", "é"].iter().all(|bad| parse_size(bad).is_err()));
    }
}
