//! `migwire import`: migrations out of captures of a network.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use migwire::capture::{Direction, Frames, interface_name};
use migwire::tcp::{ChannelReport, End, MigrationReport, Missing, Report, Selection, Traffic, Unread};
use migwire::{Error, ErrorKind};
use serde_json::{Value, json};

use super::Verdict;
use super::files::{Files, Target};
use super::output;

/// Take migrations out of a capture of a network
///
/// Reads what tcpdump, dumpcap or Wireshark have captured (pcap, pcapng), puts the TCP connections together again, finds out which
/// of them are migrations, and writes each as a recording or as raw channels. Names what was lost.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Captures (several are parts of one, in their order), or `-` for standard input
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

impl Import {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        let target = Target::new(&self.output)?;
        let comment = format!("imported from {}", output::names(&self.files));
        let mut files = Files::new(target, comment);
        let mut traffic = Traffic::new(Selection { from: self.from, to: self.to });
        let mut faults = Faults::default();
        for path in &self.files {
            self.read(path, &mut traffic, &mut files, &mut faults)?;
        }
        let report = traffic.finish(&mut files)?;
        self.tell(&report, &files, &faults)
    }

    fn read(
        &self,
        path: &Path,
        traffic: &mut Traffic,
        files: &mut Files,
        faults: &mut Faults,
    ) -> anyhow::Result<()> {
        let name = path.display().to_string();
        let source: Box<dyn Read> = match name.as_str() {
            "-" => Box::new(io::stdin().lock()),
            _ => {
                let file = File::open(path).map_err(|e| Error::io("importing", name.clone(), e))?;
                files.spare(path)?;
                Box::new(file)
            }
        };
        let mut fail = |error: Error| -> anyhow::Result<()> {
            match error.kind() {
                ErrorKind::Io => Err(error.into()),
                _ => {
                    super::given::complain(&name, &error);
                    faults.first.get_or_insert(error);
                    Ok(())
                }
            }
        };
        let mut frames = match Frames::new(source) {
            Ok(frames) => frames,
            Err(error) => return fail(error),
        };
        loop {
            match frames.next_frame() {
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
                    "source": migration.source.to_string(),
                    "destination": migration.destination.to_string(),
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
            eprintln!("{}: {source} to {destination}", files.path(number).display());
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

/// Holes of a channel that are told to people.
const MISSING_SHOWN: usize = 20;

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
