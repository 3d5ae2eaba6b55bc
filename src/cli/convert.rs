//! `migwire convert`: one migration made of another.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use migwire::capture::{ChannelTap, Direction, Recorder, RecorderOptions, interface_name};
use migwire::container;
use migwire::convert::{Changes, Options, Outlet, convert};
use migwire::dialect::Dialect;
use migwire::multifd::ZeroPages;
use migwire::wire::Method;
use migwire::{ChannelId, Error, ErrorKind};
use serde_json::json;

use super::Verdict;
use super::about::{self, About};
use super::output;
use super::send::parse_uuid;

/// Make another migration of a recorded one
///
/// Over other channels, in another encoding, for another release, with other RAM, in another order. What is not asked for stays as it is.
/// What cannot be converted is said, and why.
#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// Recording (pcapng), directory of `connNN.src-to-dst.bin`, or raw stream
    capture: PathBuf,

    /// The new one: a recording, if its name ends in .pcapng; else the bytes of its only channel (`-`: standard output)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Release that is to take it, and as which source writes: 5.2 .. 11.1, or 11.1-on-7.2 for its machine types of 7.2
    #[arg(long, value_name = "NAME", default_value_t = Dialect::ANY)]
    to: Dialect,

    /// Pages on so many multifd channels; 0: on the main channel
    #[arg(long, value_name = "N")]
    channels: Option<u8>,

    /// Encode pages on multifd channels: none, zlib, zstd, qpl, uadk, qatzip
    #[arg(long, value_name = "METHOD")]
    compression: Option<Method>,

    /// How hard, where the method has levels
    #[arg(long, value_name = "N")]
    level: Option<u32>,

    /// Where pages of zeros go: legacy (the main channel), multifd (lists in packets), none (into packets, as others)
    #[arg(long, value_name = "WAY")]
    zero_pages: Option<ZeroPages>,

    /// The guest's UUID, for multifd channels where there were none and the stream does not say it
    #[arg(long, value_name = "UUID", value_parser = parse_uuid)]
    uuid: Option<[u8; 16]>,

    /// Replace what pages hold: by images from a directory, DIR/<block>.ram, as `recv --ram-out` writes them, or by one image, of the
    /// block of that size
    #[arg(long, value_name = "DIR|FILE")]
    ram_in: Option<PathBuf>,

    /// Send pages in another order, as far as that makes no difference
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,

    #[command(flatten)]
    about: About,

    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl Convert {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        let is_stdout = self.output == Path::new("-");
        if is_stdout && self.json {
            let message = "standard output carries the stream, so no answer can be printed there";
            return Err(Error::nowhere(ErrorKind::Misuse, "converting", message).into());
        }
        if is_same(&self.capture, &self.output) {
            let message = "what is converted would be overwritten; write to another file";
            return Err(Error::nowhere(ErrorKind::Misuse, "converting", message).into());
        }
        let mut contents = container::open(&self.capture, true)?;
        let options = Options {
            dialect: self.to,
            channels: self.channels,
            method: self.compression,
            level: self.level,
            zero_pages: self.zero_pages,
            uuid: self.uuid,
            images: self.ram_in.clone(),
            shuffle: self.shuffle,
            // Next to what is written there is room for as much again, as a rule.
            scratch: self.output.parent().filter(|_| !is_stdout).map(|parent| {
                match parent.as_os_str().is_empty() {
                    true => PathBuf::from("."),
                    false => parent.to_owned(),
                }
            }),
        };
        let outcome = match self.output.extension().is_some_and(|extension| extension == "pcapng") {
            true => {
                let comment = Some(format!("converted from {}", self.capture.display()));
                // What was known of the other one is kept with it.
                let before = contents.about.as_deref().map(about::value);
                let facts = json!({
                    "from": self.capture.display().to_string(),
                    "to": (self.to != Dialect::ANY).then(|| self.to.to_string()),
                    "about": before,
                });
                let about = Some(self.about.text("conversion", &facts));
                let strict = RecorderOptions { strict: true, comment, about };
                let recorder = Recorder::create(&self.output, strict)?;
                let mut recording = Recording { recorder: recorder.clone(), taps: HashMap::new() };
                let outcome = convert(&mut contents.parts, &options, &mut recording);
                recorder.finish()?;
                outcome
            }
            false => {
                let file: Box<dyn Write> = match is_stdout {
                    true => Box::new(io::stdout().lock()),
                    false => Box::new(
                        File::create(&self.output)
                            .with_context(|| format!("cannot create {}", self.output.display()))?,
                    ),
                };
                convert(&mut contents.parts, &options, &mut Stream(file))
            }
        };
        self.report(outcome, contents.fault)
    }

    fn report(&self, outcome: migwire::Result<Changes>, fault: Option<Error>) -> anyhow::Result<Verdict> {
        let (verdict, changes, error) = match (outcome, fault) {
            (Ok(changes), None) => ("converted", changes, None),
            (Ok(changes), Some(fault)) => ("failed", changes, Some(fault)),
            (Err(error), _) if error.kind() == ErrorKind::Io => return Err(error.into()),
            (Err(error), _) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Misuse) => {
                ("impossible", Changes::default(), Some(error))
            }
            (Err(error), _) => ("failed", Changes::default(), Some(error)),
        };
        if self.json {
            let counts: Vec<_> =
                changes.counts.iter().map(|(what, count)| json!({ "what": what, "count": count })).collect();
            output::print_json(&json!({
                "verdict": verdict,
                "changes": counts,
                "losses": changes.losses,
                "error": error.as_ref().map(output::error_json),
            }))?;
        } else {
            for (what, count) in &changes.counts {
                eprintln!("{count:>12}  {what}");
            }
            for loss in &changes.losses {
                eprintln!("note: {loss}");
            }
            if let Some(error) = &error {
                eprintln!("migwire: {}", output::whole_text(error));
            }
            eprintln!("{verdict}: {}", self.output.display());
        }
        Ok(if error.is_none() { Verdict::Good } else { Verdict::Bad })
    }
}

/// Whether both are one file, under whatever name.
fn is_same(input: &Path, output: &Path) -> bool {
    match (input.canonicalize(), output.canonicalize()) {
        (Ok(input), Ok(output)) => input == output,
        // There is nothing yet that could be overwritten.
        _ => false,
    }
}

/// A recording that is being made.
struct Recording {
    recorder: Recorder,
    taps: HashMap<ChannelId, ChannelTap>,
}

impl Outlet for Recording {
    fn put(&mut self, channel: ChannelId, bytes: &[u8]) -> migwire::Result<()> {
        let direction = match channel {
            ChannelId::ReturnPath | ChannelId::ResumedReturnPath(_) => Direction::ToSource,
            _ => Direction::ToDestination,
        };
        // Both directions of a connection are one interface.
        let connection = match channel {
            ChannelId::ReturnPath => ChannelId::Main,
            ChannelId::ResumedReturnPath(n) => ChannelId::Resumed(n),
            channel => channel,
        };
        let tap =
            self.taps.entry(connection).or_insert_with(|| self.recorder.channel(interface_name(connection)));
        tap.record(direction, bytes)
    }
}

/// One channel as it is.
struct Stream(Box<dyn Write>);

impl Outlet for Stream {
    fn put(&mut self, channel: ChannelId, bytes: &[u8]) -> migwire::Result<()> {
        match channel {
            ChannelId::Main => self
                .0
                .write_all(bytes)
                .map_err(|e| Error::io("converting", "the stream cannot be written", e)),
            // What was answered has no place in a stream.
            ChannelId::ReturnPath => Ok(()),
            channel => {
                let message = format!(
                    "{channel} has no place in a single stream; write a recording (.pcapng), or --channels 0"
                );
                Err(Error::nowhere(ErrorKind::Misuse, "converting", message))
            }
        }
    }
}
