//! `migwire verify`: parses, re-emits, compares.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use clap::Args;
use migwire::multifd::codec;
use migwire::report::Account;
use migwire::report::packets::PacketCounts;
use migwire::report::verify::Verification;
use migwire::report::{Whole, prove_all};
use migwire::wire::Method;
use migwire::{ChannelId, Error, ErrorKind};
use serde::Serialize;
use serde_json::{Value, json};

use super::Verdict;
use super::given::{Given, complain, note};
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
    /// Of all channels of a migration, if it has multifd channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    together: Option<Value>,
    /// The pages of a postcopy migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    postcopy: Option<Account>,
    /// The same of further migrations, if there are more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    together_more: Vec<Value>,
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
    /// Not what was recorded, by the seal of the recording.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    altered: bool,
    #[serde(flatten)]
    packets: Option<PacketCounts>,
    verdict: &'static str,
    error: Option<Value>,
    complaints: Vec<Value>,
    notes: Vec<String>,
}

impl Verify {
    pub(crate) fn run(&self) -> anyhow::Result<Verdict> {
        let mut reading = self.given.reading()?;
        let mut report = Report {
            verdict: "identical",
            channels: Vec::new(),
            together: None,
            together_more: Vec::new(),
            postcopy: None,
        };
        let all = self.given.open()?;
        let are_many = all.len() > 1;
        for opened in all {
            let file = are_many.then(|| opened.name.clone());
            let mut tell = |channel, label: Option<String>, found: Verification| {
                let line = Channel::new(channel, file.clone(), label, &found);
                let told = self.tell(&line, &found);
                report.verdict = worse(report.verdict, line.verdict);
                report.channels.push(line);
                told
            };
            let failed = |error| Verification { error: Some(error), ..Verification::default() };
            match opened.outcome {
                Err(error) => tell(error.channel(), None, failed(error))?,
                Ok(mut contents) => {
                    note(&contents.notes);
                    reading.legs = reading.legs_of(&mut contents.parts);
                    let mut told = Ok(());
                    let whole = prove_all(&mut contents.parts, &reading, |part, found| {
                        if told.is_ok() {
                            told = tell(part.channel, part.label.clone(), found);
                        }
                    });
                    told?;
                    if let Some(fault) = contents.fault {
                        tell(ChannelId::Container, None, failed(fault))?;
                    }
                    if let Some(account) = reading.legs.account() {
                        let is_lost = account.complete && account.missing > 0;
                        report.verdict = worse(report.verdict, if is_lost { "failed" } else { "identical" });
                        report.postcopy = Some(account);
                        if !self.given.json {
                            writeln!(io::stdout(), "{}", postcopy_text(&account))?;
                        }
                    }
                    if let Some(whole) = whole {
                        let verdict = if whole.is_consistent() { "identical" } else { "failed" };
                        report.verdict = worse(report.verdict, verdict);
                        self.tell_whole(file.as_deref(), &whole)?;
                        let mut value = whole_json(&whole);
                        if let Some(file) = &file {
                            value["file"] = json!(file);
                        }
                        match &report.together {
                            None => report.together = Some(value),
                            Some(_) => report.together_more.push(value),
                        }
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
        note(&found.notes);
        Ok(())
    }

    fn tell_whole(&self, file: Option<&str>, whole: &Whole) -> io::Result<()> {
        if !self.given.json {
            let file = file.map_or_else(String::new, |file| format!("{file}: "));
            writeln!(io::stdout(), "{file}{}", whole_text(whole))?;
        }
        for fault in whole.faults.iter().skip(1) {
            complain("together", fault);
        }
        note(&whole.notes);
        Ok(())
    }
}

/// The pages of a postcopy migration, in one line.
fn postcopy_text(account: &Account) -> String {
    let Account { discarded, missing, complete } = *account;
    let found = match (missing, complete) {
        (0, _) => "every page has come".to_owned(),
        (missing, true) => format!("failed: {missing} pages never came"),
        (missing, false) => format!("{missing} pages have not come, and the stream has not ended"),
    };
    format!("postcopy: {discarded} pages were discarded: {found}")
}

/// All channels together, in one line.
fn whole_text(whole: &Whole) -> String {
    let mut line = format!("together: {} multifd channels, ", whole.channels);
    let _ = match whole.sync {
        Some(mode) => write!(line, "{} {mode} synchronisations", whole.synchronisations),
        None => write!(line, "no synchronisation"),
    };
    if whole.unmatched > 0 {
        let _ = write!(line, " ({} SYNC unmatched)", whole.unmatched);
    }
    if let Some(method) = whole.compression {
        let _ = write!(line, ", {} payloads decoded ({})", whole.payloads, method_name(method));
    }
    if !whole.devices.is_empty() {
        let complete = whole.devices.iter().filter(|device| device.incomplete.is_none()).count();
        let _ = write!(line, ", state of {complete} of {} devices complete", whole.devices.len());
    }
    match whole.faults.first() {
        Some(fault) => format!("{line}: failed: {}", output::whole_text(fault)),
        None => format!("{line}: consistent"),
    }
}

fn whole_json(whole: &Whole) -> Value {
    let mut value = json!({
        "verdict": if whole.is_consistent() { "consistent" } else { "failed" },
        "channels": whole.channels,
        "sync": whole.sync.map(|mode| mode.to_string()),
        "synchronisations": whole.synchronisations,
        "unmatched": whole.unmatched,
        "compression": whole.compression.map(method_name),
        "payloads": whole.payloads,
        "devices": whole.devices.iter().map(super::recv::device_json).collect::<Vec<_>>(),
        "errors": whole.faults.iter().map(output::error_json).collect::<Vec<_>>(),
        "notes": whole.notes,
    });
    if let (Some(value), Ok(Value::Object(counts))) =
        (value.as_object_mut(), serde_json::to_value(whole.counts))
    {
        value.extend(counts);
    }
    value
}

fn method_name(method: Method) -> String {
    codec::name(method).map_or_else(|| format!("{:#x}", method.0), str::to_owned)
}

impl Channel {
    fn new(channel: ChannelId, file: Option<String>, label: Option<String>, found: &Verification) -> Self {
        let verdict = match (&found.error, found.difference) {
            (Some(error), _) if is_unsupported(error) => "unsupported",
            (Some(_), _) => "failed",
            (None, Some(_)) => "different",
            (None, None) if found.altered => "different",
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
            altered: found.altered,
            packets: found.packets,
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
            (Some(error), _) if found.altered => format!("failed: {}; {ALTERED}", output::whole_text(error)),
            (Some(error), _) => format!("failed: {}", output::whole_text(error)),
            (None, Some(at)) => format!("different: the byte at {at:#x} is not given back as it came"),
            (None, None) if found.altered => ALTERED.to_owned(),
            (None, None) => "byte-identical".to_owned(),
        };
        let counts = match &self.packets {
            Some(packets) => packet_words(packets),
            None if self.channel.starts_with("return path") => format!("{} messages", self.events),
            None => format!("{} sections, {} pages", self.sections, self.pages),
        };
        format!("{line}: {} bytes, {counts}: {outcome}", self.bytes)
    }
}

/// What the seal of a recording has shown.
const ALTERED: &str = "different: by the seal of the recording, these are not the bytes that were recorded";

fn packet_words(packets: &PacketCounts) -> String {
    let mut words = format!(
        "{} packets, {} syncs, {} pages ({} zero)",
        packets.packets, packets.syncs, packets.pages, packets.zero_pages
    );
    if packets.device_packets > 0 {
        let _ = write!(words, ", {} of device state", packets.device_packets);
    }
    words
}

/// Whether a channel was not even begun, because nothing here reads its kind.
fn is_unsupported(error: &Error) -> bool {
    error.kind() == ErrorKind::Unsupported
        && matches!(error.channel(), ChannelId::Resumed(_) | ChannelId::Connection(_))
}

/// The overall verdict: a channel that could not be read is no success either.
fn worse(before: &'static str, channel: &'static str) -> &'static str {
    match (before, channel) {
        ("failed", _) | (_, "failed" | "unsupported") => "failed",
        ("different", _) | (_, "different") => "different",
        _ => "identical",
    }
}
