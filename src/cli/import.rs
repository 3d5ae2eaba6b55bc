//! `migwire import`: migrations out of captures of a network.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use migwire::capture::{Direction, FileKind, Frames, LINKTYPE, channel_of, interface_name};
use migwire::tcp::{
    ChannelReport, Counts, End, MigrationReport, Missing, Report, Selection, Traffic, Unread,
};
use migwire::{ChannelId, Error, ErrorKind};
use serde_json::{Value, json};

use super::Verdict;
use super::about::About;
use super::channels::Channels;
use super::files::{Files, Target};
use super::output;

const DOING: &str = "importing";

/// Take migrations out of a capture of a network
///
/// Reads what tcpdump, dumpcap or Wireshark have captured (pcap, pcapng), puts the TCP connections together again, finds out which
/// of them are migrations, and writes each as a recording or as raw channels. Names what was lost.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Captures (several are parts of one, in their order), or `-` for standard input; or raw channels, which are put into a
    /// recording as they are
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// FILE.pcapng: a recording; DIR/: raw channels, `connNN.src-to-dst.bin`. Further migrations go to FILE-2.pcapng, DIR-2/
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// Only connections from this source: IP:PORT, IP or :PORT. What is asked for is taken even if its beginning was not captured
    #[arg(long, value_name = "END")]
    from: Option<End>,

    /// Only connections to this destination
    #[arg(long, value_name = "END")]
    to: Option<End>,

    #[command(flatten)]
    about: About,

    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// What is wrong with the files.
#[derive(Default)]
struct Faults {
    first: Option<Error>,
    damaged: u64,
}

/// A file that has been looked at.
struct Opened<'a> {
    path: &'a Path,
    kind: FileKind,
    source: Box<dyn Read + Send>,
}

impl Import {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        let target = Target::new(&self.output)?;
        let comment = format!("imported from {}", output::names(&self.files));
        let from: Vec<_> = self.files.iter().map(|path| path.display().to_string()).collect();
        let about = self.about.text("import", &json!({ "from": from }));
        let mut files = Files::new(target, comment, Some(about))?;
        let mut opened = Vec::new();
        for path in &self.files {
            let found = Opened::new(path)?;
            if path.as_os_str() != "-" {
                files.spare(path)?;
            }
            opened.push(found);
        }
        if opened.iter().any(Opened::is_raw) {
            if let Some(other) = opened.iter().find(|found| !found.is_raw()) {
                let (name, kind) = (other.path.display(), other.kind);
                let message =
                    format!("{name} is {kind}, and others hold raw channels: one or the other, please");
                return Err(Error::nowhere(ErrorKind::Misuse, DOING, message).into());
            }
            return self.gather(opened, files);
        }
        let mut traffic = Traffic::new(Selection { from: self.from, to: self.to });
        let mut faults = Faults::default();
        for found in opened {
            read(found, &mut traffic, &mut files, &mut faults)?;
        }
        let report = traffic.finish(&mut files)?;
        self.tell(&report, &files, &faults)
    }

    /// Channels that are there already, in files of their own.
    fn gather(&self, opened: Vec<Opened<'_>>, mut files: Files) -> anyhow::Result<Verdict> {
        let mut faults = Faults::default();
        let mut report = Report::default();
        let nowhere = SocketAddr::from(([0; 4], 0));
        let piped = opened.into_iter().find(|found| found.path.as_os_str() == "-");
        let all = Channels::open(&self.files, piped.map(|found| found.source))?;
        for (number, mut channels) in all.into_iter().enumerate() {
            channels.each(|bit| {
                let words = || (bit.name.to_owned(), None);
                files.put(number, bit.slot, bit.time, bit.data, &words)
            })?;
            files.close(number)?;
            if let Some(error) = channels.fault() {
                super::given::complain("incomplete", error);
                faults.first.get_or_insert(error.clone());
            }
            let whole = channels.connections().iter().map(|connection| ChannelReport {
                channel: channel_of(&connection.name, Direction::ToDestination).unwrap_or_default(),
                to_destination: connection.bytes[0],
                to_source: connection.bytes[1],
                missing: Vec::new(),
                mid_stream: false,
                one_way: false,
                closed: true,
                counts: Counts::default(),
            });
            let channels = whole.map(Some).collect();
            report.migrations.push(MigrationReport { source: nowhere, destination: nowhere, channels });
        }
        self.tell(&report, &files, &faults)
    }

    fn tell(&self, report: &Report, files: &Files, faults: &Faults) -> anyhow::Result<Verdict> {
        let is_complete = report.migrations.iter().all(MigrationReport::is_complete);
        let verdict = match report.migrations.is_empty() {
            true => "failed",
            false if is_complete && faults.first.is_none() && faults.damaged == 0 => "complete",
            false => "incomplete",
        };
        if self.json {
            output::print_json(&self.answer(verdict, report, files, faults))?;
        } else {
            self.explain(verdict, report, files);
        }
        Ok(if verdict == "complete" { Verdict::Good } else { Verdict::Bad })
    }

    fn answer(&self, verdict: &str, report: &Report, files: &Files, faults: &Faults) -> Value {
        let migrations: Vec<_> = report
            .migrations
            .iter()
            .enumerate()
            .map(|(number, migration)| {
                json!({
                    "output": files.path(number).display().to_string(),
                    "source": end(migration.source),
                    "destination": end(migration.destination),
                    "main": migration.channels.first().is_some_and(Option::is_some),
                    "channels": migration.channels.iter().flatten().map(channel_json).collect::<Vec<_>>(),
                })
            })
            .collect();
        json!({
            "verdict": verdict,
            "packets": report.packets,
            "unread": report.unread.iter().sum::<u64>(),
            "damaged": faults.damaged,
            "ignored": report.ignored,
            "encrypted": report.encrypted,
            "migrations": migrations,
            "error": faults.first.as_ref().map(output::error_json),
        })
    }

    fn explain(&self, verdict: &str, report: &Report, files: &Files) {
        for (number, migration) in report.migrations.iter().enumerate() {
            let MigrationReport { source, destination, channels } = migration;
            let ends = end(*source).zip(end(*destination)).map(|(from, to)| format!(": {from} to {to}"));
            eprintln!("{}{}", files.path(number).display(), ends.unwrap_or_default());
            if channels.first().is_none_or(Option::is_none) {
                eprintln!("  no main channel was found");
            }
            for channel in channels.iter().flatten() {
                eprintln!("  {}", channel_text(channel));
                for Missing { direction, bytes } in channel.missing.iter().take(MISSING_SHOWN) {
                    let (from, to, count) = (bytes.start, bytes.end, bytes.end - bytes.start);
                    eprintln!("    missing {direction}: {from:#x} to {to:#x} ({count} bytes)");
                }
                if let Some(more) = channel.missing.len().checked_sub(MISSING_SHOWN + 1) {
                    eprintln!("    and {} more", more + 1);
                }
            }
        }
        for (why, count) in Unread::ALL.iter().zip(report.unread).filter(|(_, count)| *count > 0) {
            eprintln!("{count} packets left out: {}", why.words());
        }
        let encrypted = match report.encrypted {
            0 => String::new(),
            count => format!(" ({count} encrypted: TLS)"),
        };
        eprintln!(
            "{verdict}: {} migrations in {} packets; {} other connections{encrypted}",
            report.migrations.len(),
            report.packets,
            report.ignored,
        );
        if report.migrations.is_empty() && report.ignored > 0 {
            eprintln!(
                "no connection begins like a migration; --to IP:PORT takes what goes there all the same"
            );
        }
    }
}

impl<'a> Opened<'a> {
    fn new(path: &'a Path) -> Result<Self, Error> {
        let failed = |e| Error::io(DOING, path.display().to_string(), e);
        if path.is_dir() {
            return Ok(Self { path, kind: FileKind::Directory, source: Box::new(io::empty()) });
        }
        let mut source: Box<dyn Read + Send> = match path.as_os_str() == "-" {
            true => Box::new(io::stdin()),
            false => Box::new(File::open(path).map_err(failed)?),
        };
        let mut first = Vec::new();
        source.by_ref().take(FileKind::ENOUGH as u64).read_to_end(&mut first).map_err(failed)?;
        let kind = FileKind::of(&first);
        Ok(Self { path, kind, source: Box::new(io::Cursor::new(first).chain(source)) })
    }

    /// Whether it is channels as they are. What is neither that nor a capture is refused as a capture.
    fn is_raw(&self) -> bool {
        matches!(
            self.kind,
            FileKind::Stream
                | FileKind::OldStream(_)
                | FileKind::Multifd
                | FileKind::ReturnPath
                | FileKind::Directory
        )
    }
}

/// Reads a file to its end, or to what is wrong with it.
fn read(
    opened: Opened<'_>,
    traffic: &mut Traffic,
    files: &mut Files,
    faults: &mut Faults,
) -> anyhow::Result<()> {
    let name = opened.path.display().to_string();
    let mut fail = |error: Error| -> anyhow::Result<()> {
        if error.kind() == ErrorKind::Io {
            return Err(error.into());
        }
        super::given::complain(&name, &error);
        faults.first.get_or_insert(error);
        Ok(())
    };
    let mut frames = match Frames::new(opened.source) {
        Ok(frames) => frames,
        Err(error) => return fail(error),
    };
    loop {
        match frames.next_frame() {
            Ok(Some(frame)) if frame.link.0 == LINKTYPE => {
                let message = "a recording of migration channels: it is what an import would make of it";
                fail(Error::nowhere(ErrorKind::Unsupported, DOING, message).on(ChannelId::Container))?;
                break;
            }
            Ok(Some(frame)) => traffic.handle_frame(&frame, files)?,
            Ok(None) => break,
            Err(error) => {
                fail(error)?;
                break;
            }
        }
    }
    let damage = frames.damage();
    if let Some((offset, what)) = damage.first {
        eprintln!("{name}: {} packets left out, the first at offset {offset:#x}: {what}", damage.packets);
        faults.damaged += damage.packets;
    }
    Ok(())
}

/// Holes of a channel that are told to people.
const MISSING_SHOWN: usize = 20;

/// An end of a connection, of those that were connections.
fn end(end: SocketAddr) -> Option<String> {
    (end.port() != 0).then(|| end.to_string())
}

fn channel_text(found: &ChannelReport) -> String {
    let mut line = format!(
        "{:<14} {:>12} to the destination, {:>12} to the source",
        interface_name(found.channel),
        output::bytes(found.to_destination),
        output::bytes(found.to_source),
    );
    let oddities = [
        (found.counts.retransmitted, "retransmitted"),
        (found.counts.out_of_order, "out of order"),
        (found.counts.conflicting, "bytes conflicting"),
    ];
    for (count, what) in oddities.into_iter().filter(|(count, _)| *count > 0) {
        line += &format!(", {count} {what}");
    }
    let flags = [
        (found.mid_stream, "its beginning was not captured"),
        (found.one_way, "one direction only was captured"),
        (!found.closed, "its end was not captured"),
    ];
    for (_, what) in flags.into_iter().filter(|(is_so, _)| *is_so) {
        line += &format!("; {what}");
    }
    line
}

fn channel_json(found: &ChannelReport) -> Value {
    let direction = |direction: Direction| match direction {
        Direction::ToDestination => "to-destination",
        Direction::ToSource => "to-source",
    };
    let missing = |missing: &Missing| json!({ "direction": direction(missing.direction), "from": missing.bytes.start, "to": missing.bytes.end });
    json!({
        "channel": interface_name(found.channel),
        "to_destination": found.to_destination,
        "to_source": found.to_source,
        "missing": found.missing.iter().map(missing).collect::<Vec<_>>(),
        "mid_stream": found.mid_stream,
        "one_way": found.one_way,
        "closed": found.closed,
        "retransmitted": found.counts.retransmitted,
        "out_of_order": found.counts.out_of_order,
        "conflicting": found.counts.conflicting,
    })
}
