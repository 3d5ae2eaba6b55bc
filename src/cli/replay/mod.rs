//! `migwire replay`: a recorded migration, once more.

mod destination;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use migwire::capture::{Recorder, RecorderOptions};
use migwire::container;
use migwire::endpoint::{
    Deviation, Limits, Outcome, Performance, Replay as Player, Timing, Trouble, Troubled,
};
use migwire::transport::Address;
use migwire::{Error, ErrorKind};
use serde_json::json;

use super::Verdict;
use super::output;
use super::trouble::{self, TroubleOptions};

/// Play one side of a recorded migration to a live peer
///
/// As source: connects to ADDRESS and sends every channel of CAPTURE as it was recorded, waiting where the recorded source had an answer.
/// Says what the live destination answers otherwise than the recorded one. Behind a pause of the recording it connects again.
///
/// As destination: listens on ADDRESS, takes a migration in, answers as the recorded destination did, and says where the live stream has
/// another structure than the recorded one.
#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Recording (pcapng), directory of `connNN.src-to-dst.bin`, or raw stream
    capture: PathBuf,

    /// Where the destination listens, or where to listen as one: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT; or what to write:
    /// file:PATH[,offset=N], exec:COMMAND, fd:N, -
    address: Address,

    /// Which side to play
    #[arg(long = "as", value_enum, value_name = "SIDE", default_value_t = Side::Source)]
    side: Side,

    /// When to send: as soon as it may be, or not before its time in the recording
    #[arg(long, value_enum, default_value_t = When::Fast)]
    timing: When,

    /// Where the destination listens after a pause (migrate-recover) [default: ADDRESS]
    #[arg(long, value_name = "ADDRESS")]
    recover_target: Option<Address>,

    /// How long to wait for the peer after a pause
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = output::parse_seconds)]
    recover: Duration,

    /// Record what is sent and what is answered (pcapng)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Longest time in which the destination takes nothing and says nothing
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = output::parse_seconds)]
    timeout: Duration,

    /// Longest time for everything
    #[arg(long, value_name = "SECONDS", value_parser = output::parse_seconds)]
    deadline: Option<Duration>,

    #[command(flatten)]
    trouble: TroubleOptions,

    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Which side is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// The recorded source, to a live destination
    Source,
    /// The recorded destination, to a live source
    Destination,
}

/// When what was recorded is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    /// As soon as it may be
    Fast,
    /// Not before its time in the recording
    Recorded,
}

impl Replay {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        if self.address == Address::Stdio && self.json {
            let message = "standard output carries the stream, so no answer can be printed there";
            return Err(Error::nowhere(ErrorKind::Misuse, "replaying", message).into());
        }
        let mut contents = container::open(&self.capture, true)?;
        if self.side == Side::Destination {
            return self.receive(&mut contents.parts);
        }
        let recorder = match &self.output {
            Some(path) => Some(Recorder::create(path, RecorderOptions::default())?),
            None => None,
        };
        let timing = match self.timing {
            When::Fast => Timing::Fast,
            When::Recorded => Timing::Recorded,
        };
        let limits = Limits { silence: self.timeout, total: self.deadline };
        let troubled = self.trouble.in_front_of_source(&self.address, limits)?;
        let address = troubled.as_ref().map_or(&self.address, Troubled::address);
        let mut player = Player::new(address.clone())
            .with_timing(timing)
            .with_limits(limits)
            .with_recovery(self.recover_target.clone(), self.recover)
            .with_notices(|notice| eprintln!("{notice}"));
        if let Some(recorder) = &recorder {
            player = player.with_recorder(recorder.clone());
        }
        let mut performance = player.play(contents.parts)?;
        performance.notes.extend(contents.fault.iter().map(|fault| format!("the recording: {fault}")));
        let troubles = troubled.map(Troubled::finish).unwrap_or_default();
        trouble::tell(&troubles);
        self.report(&performance, &troubles)?;
        if let Some(recorder) = recorder {
            recorder.finish()?;
        }
        Ok(if performance.outcome == Outcome::Completed { Verdict::Good } else { Verdict::Bad })
    }

    fn report(&self, performance: &Performance, troubles: &[Trouble]) -> anyhow::Result<()> {
        let verdict = match performance.outcome {
            Outcome::Completed => "completed",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        };
        let bytes: u64 = performance.channels.iter().map(|channel| channel.bytes).sum();
        if self.json {
            let channels: Vec<_> = performance
                .channels
                .iter()
                .map(|c| json!({ "channel": c.channel, "bytes": c.bytes, "of": c.of }))
                .collect();
            let deviation = |d: &Deviation| json!({ "channel": d.channel, "offset": d.offset, "recorded": d.recorded, "live": d.live });
            return output::print_json(&json!({
                "verdict": verdict,
                "role": "source",
                "bytes": bytes,
                "seconds": performance.elapsed.as_secs_f64(),
                "channels": channels,
                "answers": performance.answers,
                "requests": performance.requests,
                "departures": performance.deviations.iter().map(deviation).collect::<Vec<_>>(),
                "pauses": performance.pauses,
                "trouble": trouble::as_json(troubles),
                "notes": performance.notes,
                "error": performance.error.as_ref().map(output::error_json),
            }));
        }
        for channel in &performance.channels {
            let of = channel.of.map(|of| format!(" of {}", output::bytes(of))).unwrap_or_default();
            eprintln!("{:<20} {:>12}{of}", channel.channel, output::bytes(channel.bytes));
        }
        for note in &performance.notes {
            eprintln!("note: {note}");
        }
        for deviation in &performance.deviations {
            eprintln!("departs: {deviation}");
        }
        if let Some(error) = &performance.error {
            eprintln!("migwire: {}", output::whole_text(error));
        }
        eprintln!(
            "{verdict}: {} in {}, {} answers, {} requests for pages",
            output::bytes(bytes),
            output::seconds(performance.elapsed),
            performance.answers,
            performance.requests
        );
        Ok(())
    }
}
