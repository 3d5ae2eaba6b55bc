//! The recorded destination, to a live source.

use std::path::{Path, PathBuf};

use migwire::ErrorKind;
use migwire::capture::{Recorder, RecorderOptions};
use migwire::container::{self, Part};
use migwire::endpoint::{Acknowledge, Answers, Arrival, Destination, Limits};
use migwire::report::outline::{Difference, Line, Outline};
use migwire::transport::Listener;
use serde_json::json;

use super::{Replay, Verdict, output};

impl Replay {
    /// Takes a migration in as the recorded destination did, and compares it with the recorded one.
    pub(super) fn receive(&self, recorded: &mut [Part]) -> anyhow::Result<Verdict> {
        let answers = Answers::of(recorded)?;
        let expected = Outline::of(recorded)?;
        let listener = Listener::bind(&self.address)?;
        // What comes is read twice: as it comes, and when it is compared.
        let live = Live::new(self.output.as_deref());
        let recorder = Recorder::create(live.path(), RecorderOptions::default())?;
        if listener.is_socket() {
            eprintln!("listening on {}", listener.local_address());
        }
        let arrival = Destination::new()
            .with_limits(Limits { silence: self.timeout, total: self.deadline })
            .with_acknowledge(match answers.acknowledgements {
                0 => Acknowledge::Never,
                times => Acknowledge::Times(times),
            })
            .with_requests(answers.requests.clone(), 1)
            .with_recovery(self.recover)
            .with_notices(|notice| eprintln!("{notice}"))
            .with_recorder(recorder.clone())
            .listen(&listener, |_| {})?;
        recorder.finish()?;
        let mut found = container::open(live.path(), true).map(|contents| contents.parts).unwrap_or_default();
        let departures = expected.differences(&Outline::of(&mut found)?);
        self.tell(&arrival, &answers, &departures)?;
        Ok(if arrival.error.is_none() { Verdict::Good } else { Verdict::Bad })
    }

    fn tell(&self, arrival: &Arrival, answers: &Answers, departures: &[Difference]) -> anyhow::Result<()> {
        let verdict = match &arrival.error {
            None => "completed",
            Some(error) if error.kind() == ErrorKind::Peer => "refused",
            Some(_) => "failed",
        };
        let channels = arrival.channels.values().map(|channel| channel.bytes).sum::<u64>();
        let bytes = arrival.bytes + channels + arrival.preempt.map_or(0, |preempt| preempt.bytes);
        let mut notes = Vec::new();
        if let Some(status) = answers.status.filter(|status| *status != 0) {
            notes.push(format!(
                "the recorded destination said that it had failed (SHUT {status}); this one does not"
            ));
        }
        if self.json {
            let departure = |d: &Difference| {
                json!({
                    "channel": "main",
                    "offset": d.theirs.as_ref().or(d.ours.as_ref()).and_then(|line| line.offset),
                    "recorded": text(d.ours.as_ref()),
                    "live": text(d.theirs.as_ref()),
                })
            };
            return output::print_json(&json!({
                "verdict": verdict,
                "role": "destination",
                "bytes": bytes,
                "seconds": arrival.elapsed.as_secs_f64(),
                "channels": [],
                "answers": answers.acknowledgements,
                "requests": arrival.requests.map_or(0, |requests| requests.sent),
                "departures": departures.iter().map(departure).collect::<Vec<_>>(),
                "pauses": arrival.pauses,
                "notes": notes,
                "error": arrival.error.as_ref().map(output::error_json),
            }));
        }
        for note in notes {
            eprintln!("note: {note}");
        }
        for Difference { ours, theirs } in departures {
            let at = theirs.as_ref().or(ours.as_ref()).and_then(|line| line.offset);
            let at = at.map(|at| format!(" at {at:#x}")).unwrap_or_default();
            eprintln!("departs: main{at}: recorded {}, now {}", text(ours.as_ref()), text(theirs.as_ref()));
        }
        if let Some(error) = &arrival.error {
            eprintln!("migwire: {}", output::whole_text(error));
        }
        eprintln!("{verdict}: {} in {}", output::bytes(bytes), output::seconds(arrival.elapsed));
        Ok(())
    }
}

fn text(line: Option<&Line>) -> &str {
    line.map_or("nothing", |line| &line.text)
}

/// Where what comes is recorded: where it was asked for, or in a file that is gone afterwards.
struct Live {
    path: PathBuf,
    is_kept: bool,
}

impl Live {
    fn new(output: Option<&Path>) -> Self {
        let temporary = || std::env::temp_dir().join(format!("migwire-replay-{}.pcapng", std::process::id()));
        Self { path: output.map_or_else(temporary, Path::to_path_buf), is_kept: output.is_some() }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed is left for whoever looks after the directory.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
