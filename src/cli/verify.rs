//! `migwire verify`: parses, re-emits, compares.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::Args;
use migwire::report::prove;
use migwire::report::verify::Verification;
use migwire::{ChannelId, Error, ErrorKind};
use serde::Serialize;
use serde_json::Value;

use super::Verdict;
use super::given::{Given, complain};
use super::output;

/// Proves that every byte is understood: parses, emits again, compares.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    given: Given,
}

#[derive(Serialize)]
struct Report {
    verdict: &'static str,
    channels: Vec<Channel>,
}

#[derive(Serialize)]
struct Channel {
    channel: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    bytes: u64,
    events: u64,
    sections: u64,
    pages: u64,
    verdict: &'static str,
    error: Option<Value>,
    complaints: Vec<Value>,
    notes: Vec<String>,
}

impl Verify {
    pub(crate) fn run(&self) -> anyhow::Result<Verdict> {
        let reading = self.given.reading()?;
        let mut report = Report { verdict: "identical", channels: Vec::new() };
        for opened in self.given.open()? {
            let file = self.given.are_many().then(|| opened.name.clone());
            let mut tell = |channel, label: Option<String>, found: Verification| {
                let line = Channel::new(channel, file.clone(), label, &found);
                self.tell(&line, &found)?;
                report.verdict = worse(report.verdict, line.verdict);
                report.channels.push(line);
                io::Result::Ok(())
            };
            let failed = |error| Verification { error: Some(error), ..Verification::default() };
            match opened.outcome {
                Err(error) => tell(error.channel(), None, failed(error))?,
                Ok(contents) => {
                    for mut part in contents.parts {
                        let found = prove(&mut part, &reading);
                        tell(part.channel, part.label, found)?;
                    }
                    if let Some(fault) = contents.fault {
                        tell(ChannelId::Container, None, failed(fault))?;
                    }
                }
            }
        }
        if self.given.json {
            output::print_json(&serde_json::to_value(&report)?)?;
        }
        Ok(if report.verdict == "identical" { Verdict::Good } else { Verdict::Bad })
    }

    fn tell(&self, line: &Channel, found: &Verification) -> io::Result<()> {
        if !self.given.json {
            writeln!(io::stdout(), "{}", line.text(found))?;
        }
        for complaint in &found.complaints {
            complain("forgiven", complaint);
        }
        for note in &found.notes {
            let _ = writeln!(io::stderr(), "note: {note}");
        }
        Ok(())
    }
}

impl Channel {
    fn new(channel: ChannelId, file: Option<String>, label: Option<String>, found: &Verification) -> Self {
        let verdict = match (&found.error, found.difference) {
            (Some(error), _) if is_unsupported(error) => "unsupported",
            (Some(_), _) => "failed",
            (None, Some(_)) => "different",
            (None, None) => "identical",
        };
        Self {
            channel: channel.to_string(),
            file,
            label,
            bytes: found.bytes,
            events: found.events,
            sections: found.sections,
            pages: found.pages,
            verdict,
            error: found.error.as_ref().map(output::error_json),
            complaints: found.complaints.iter().map(output::error_json).collect(),
            notes: found.notes.clone(),
        }
    }

    /// One line for people.
    fn text(&self, found: &Verification) -> String {
        let mut line = self.file.as_ref().map_or_else(String::new, |file| format!("{file}: "));
        line += &self.channel;
        if let Some(label) = &self.label {
            let _ = write!(line, " ({})", label.escape_debug());
        }
        let outcome = match (&found.error, found.difference) {
            (Some(error), _) if is_unsupported(error) => {
                return format!("{line}: unsupported: {}", error.message());
            }
            (Some(error), _) if error.channel() == ChannelId::Container && self.bytes == 0 => {
                return format!("{line}: failed: {}", output::whole_text(error));
            }
            (Some(error), _) => format!("failed: {}", output::whole_text(error)),
            (None, Some(at)) => format!("different: the byte at {at:#x} is not given back as it came"),
            (None, None) => "byte-identical".to_owned(),
        };
        let counts = match self.channel == ChannelId::ReturnPath.to_string() {
            true => format!("{} messages", self.events),
            false => format!("{} sections, {} pages", self.sections, self.pages),
        };
        format!("{line}: {} bytes, {counts}: {outcome}", self.bytes)
    }
}

/// Whether a channel was not even begun, because nothing here reads its kind.
fn is_unsupported(error: &Error) -> bool {
    error.kind() == ErrorKind::Unsupported
        && matches!(error.channel(), ChannelId::Multifd(_) | ChannelId::Preempt | ChannelId::Connection(_))
}

/// The overall verdict: a channel that could not be read is no success either.
fn worse(before: &'static str, channel: &'static str) -> &'static str {
    match (before, channel) {
        ("failed", _) | (_, "failed" | "unsupported") => "failed",
        ("different", _) | (_, "different") => "different",
        _ => "identical",
    }
}
