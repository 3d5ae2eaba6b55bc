//! `migwire record`: the recording proxy.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use migwire::capture::{Recorder, RecorderOptions};
use migwire::endpoint::{Cut, Limits, Passage, Proxy};
use migwire::transport::{Address, Listener};
use migwire::{Error, ErrorKind};
use serde_json::json;

use super::Verdict;
use super::about::About;
use super::output;
use super::trouble::{self, TroubleOptions};

/// Record a migration that passes through
///
/// Listens on LISTEN, connects to TARGET once for every connection that comes, and forwards both directions unchanged. Ends
/// when all connections have ended.
#[derive(Debug, Args)]
pub(crate) struct Record {
    /// Where the source connects: tcp:HOST:PORT, unix:PATH, vsock:CID:PORT; or what to read: file:PATH[,offset=N], exec:COMMAND, fd:N, -
    listen: Address,

    /// Where the destination listens, or what to write; an address as above
    target: Address,

    /// The recording (pcapng)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Longest time in which nothing passes, once a connection has come; a paused migration is silent
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = output::parse_seconds)]
    timeout: Duration,

    /// Longest time for everything, waiting for the source included
    #[arg(long, value_name = "SECONDS", value_parser = output::parse_seconds)]
    deadline: Option<Duration>,

    /// Break all connections on purpose: behind so many bytes of the main channel, run+BYTES (behind POSTCOPY_RUN) or resume+BYTES
    /// (behind POSTCOPY_RESUME); several are made one after the other
    #[arg(long, value_name = "WHERE")]
    cut: Vec<Cut>,

    /// How long to wait for the source of a postcopy migration whose connections broke [default: 0, and 30 with --cut]
    #[arg(long, value_name = "SECONDS", value_parser = output::parse_patience)]
    recover: Option<Duration>,

    /// Where the destination listens then (migrate-recover) [default: TARGET]
    #[arg(long, value_name = "ADDRESS")]
    recover_target: Option<Address>,

    #[command(flatten)]
    trouble: TroubleOptions,

    #[command(flatten)]
    about: About,

    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl Record {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        if self.target == Address::Stdio && self.json {
            let message = "standard output carries the stream, so no answer can be printed there";
            return Err(Error::nowhere(ErrorKind::Misuse, "recording", message).into());
        }
        let listener =
            Listener::bind(&self.listen).with_context(|| format!("cannot listen on {}", self.listen))?;
        let comment = Some(format!("{} to {}", self.listen, self.target));
        let listening = if listener.is_socket() { listener.local_address() } else { &self.listen };
        let addresses = json!({ "listen": listening.to_string(), "target": self.target.to_string() });
        let about = Some(self.about.text("proxy", &json!({ "addresses": addresses })));
        let recorder =
            Recorder::create(&self.output, RecorderOptions { comment, about, ..RecorderOptions::default() })?;
        if listener.is_socket() {
            eprintln!("listening on {}", listener.local_address());
        }
        let limits = Limits { silence: self.timeout, total: self.deadline };
        let usual = if self.cut.is_empty() { Duration::ZERO } else { Duration::from_secs(30) };
        let proxy = Proxy::new(self.target.clone())
            .with_limits(limits)
            .with_recorder(recorder.clone())
            .with_cuts(self.cut.iter().copied())
            .with_trouble(self.trouble.script())
            .with_recovery(self.recover.unwrap_or(usual), self.recover_target.clone())
            .with_notices(|notice| eprintln!("{notice}"));
        let is_watched = io::stderr().is_terminal();
        let passage = proxy.run(&listener, |bytes| {
            if is_watched {
                let _ = write!(io::stderr(), "\r\x1b[K{} passed", output::bytes(bytes));
            }
        });
        if is_watched {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        trouble::tell(&passage.trouble);
        self.report(&passage)?;
        recorder.finish()?;
        Ok(if passage.error.is_none() { Verdict::Good } else { Verdict::Bad })
    }

    fn report(&self, passage: &Passage) -> anyhow::Result<()> {
        let verdict = if passage.error.is_none() { "completed" } else { "failed" };
        if self.json {
            let connections: Vec<_> = passage
                .connections
                .iter()
                .map(|c| json!({ "channel": c.channel, "to_target": c.to_target, "to_source": c.to_source }))
                .collect();
            return output::print_json(&json!({
                "verdict": verdict,
                "connections": connections,
                "pauses": passage.pauses,
                "trouble": trouble::as_json(&passage.trouble),
                "bytes": passage.bytes(),
                "seconds": passage.elapsed.as_secs_f64(),
                "recording": self.output.display().to_string(),
                "error": passage.error.as_ref().map(output::error_json),
            }));
        }
        for connection in &passage.connections {
            eprintln!(
                "{:<14} {:>12} to the target, {:>12} to the source",
                connection.channel,
                output::bytes(connection.to_target),
                output::bytes(connection.to_source)
            );
        }
        if let Some(error) = &passage.error {
            eprintln!("migwire: {}", output::whole_text(error));
        }
        eprintln!(
            "{verdict}: {} in {} over {} connections, recorded in {}",
            output::bytes(passage.bytes()),
            output::seconds(passage.elapsed),
            passage.connections.len(),
            self.output.display()
        );
        Ok(())
    }
}
