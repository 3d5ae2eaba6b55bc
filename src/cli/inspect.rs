//! `migwire inspect`: what is in it, on a page.

mod multifd;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use migwire::container::Part;
use migwire::guest::Memory;
use migwire::report::inspect::{Summary, Writer};
use migwire::report::migration::inspect_all;
use migwire::{Error, ErrorKind};
use serde_json::{Value, json};

use super::given::{Given, complain, note};
use super::{Verdict, about, output};

/// Say what is in it: machine, who may have written it, memory, sections, commands
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    #[command(flatten)]
    given: Given,

    /// Write one image a RAM block into this directory, as `recv` does: what a destination would have had
    #[arg(long, value_name = "DIR")]
    ram_out: Option<PathBuf>,
}

impl Inspect {
    pub(crate) fn run(&self) -> anyhow::Result<Verdict> {
        let mut reading = self.given.reading()?;
        let mut files = Vec::new();
        let mut good = true;
        let all = self.given.open()?;
        if self.ram_out.is_some() && all.len() != 1 {
            let message = "RAM images are those of one migration, and several were given";
            return Err(Error::nowhere(ErrorKind::Misuse, "RAM images", message).into());
        }
        for opened in all {
            let mut contents = match opened.outcome {
                Ok(contents) => contents,
                Err(error) => {
                    good = false;
                    self.fault(&opened.name, &error);
                    files.push(
                        json!({ "file": opened.name, "channels": [], "error": output::error_json(&error) }),
                    );
                    continue;
                }
            };
            if !self.given.json {
                writeln!(io::stdout(), "{}: {}", opened.name, contents.kind)?;
                let about = contents.about.as_deref().map(about::lines);
                io::stdout().write_all(about.unwrap_or_default().as_bytes())?;
            }
            note(&contents.notes);
            if contents.parts.len() > 1 && reading.page_size.is_none() {
                reading.page_size = reading.page_size_of(&mut contents.parts);
            }
            reading.legs = reading.legs_of(&mut contents.parts);
            let mut memory = match &self.ram_out {
                Some(directory) => Some(Memory::new().with_images(directory)?.with_digest()),
                None => None,
            };
            let (summaries, together) = inspect_all(&mut contents.parts, &reading, memory.as_mut())?;
            let mut channels = Vec::new();
            for summary in &summaries {
                good &= summary.error.is_none();
                let is_it =
                    |part: &&Part| part.channel.to_string() == summary.channel && part.label == summary.label;
                let peers = contents.parts.iter().find(is_it).and_then(|part| part.peers.as_deref());
                if self.given.json {
                    let mut channel = as_json(summary)?;
                    if let Some(peers) = peers {
                        channel["peers"] = json!(peers);
                    }
                    channels.push(channel);
                } else {
                    io::stdout().write_all(page(summary, peers).as_bytes())?;
                    for complaint in &summary.complaints {
                        complain("forgiven", complaint);
                    }
                }
            }
            if let Some(together) = &together {
                good &= together.faults.is_empty();
                if !self.given.json {
                    io::stdout().write_all(multifd::together(together).as_bytes())?;
                }
            }
            if let (Some(memory), false) = (&memory, self.given.json) {
                writeln!(io::stdout(), "\nRAM images")?;
                output::print_digests(memory)?;
            }
            if let Some(fault) = &contents.fault {
                good = false;
                self.fault(&opened.name, fault);
            }
            let error = contents.fault.as_ref().map(output::error_json);
            let mut file = json!({ "file": opened.name, "kind": contents.kind.to_string(), "channels": channels, "error": error });
            if let Some(about) = &contents.about {
                file["about"] = about::value(about);
            }
            if let Some(together) = &together {
                file["together"] = serde_json::to_value(together)?;
                file["together"]["errors"] = together.faults.iter().map(output::error_json).collect();
            }
            if let Some(memory) = &memory {
                file["blocks"] = Value::from(output::blocks_json(memory));
            }
            files.push(file);
        }
        if self.given.json {
            output::print_json(&json!({ "files": files }))?;
        }
        Ok(if good { Verdict::Good } else { Verdict::Bad })
    }

    fn fault(&self, name: &str, error: &Error) {
        if !self.given.json {
            complain(name, error);
        }
    }
}

fn as_json(summary: &Summary) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(summary)?;
    value["complaints"] = summary.complaints.iter().map(output::error_json).collect();
    value["error"] = summary.error.as_ref().map_or(Value::Null, output::error_json);
    Ok(value)
}

/// A summary for people.
fn page(summary: &Summary, peers: Option<&str>) -> String {
    let mut text = String::new();
    let label =
        summary.label.as_ref().map_or_else(String::new, |label| format!(" ({})", label.escape_debug()));
    let _ = writeln!(text, "\n{}{label}: {} bytes", summary.channel, summary.bytes);
    if let Some(peers) = peers {
        line(&mut text, "  peers", &peers.escape_debug().to_string());
    }
    if !summary.sections.is_empty() || summary.machine.is_some() {
        facts(&mut text, summary);
    }
    if let Some(packets) = &summary.multifd {
        multifd::channel(&mut text, packets);
    } else if !summary.writer.evidence.is_empty() {
        writer(&mut text, &summary.writer);
    } else if !summary.sections.is_empty() {
        line(&mut text, "  written by", "nothing in it tells");
    }
    if !summary.blocks.is_empty() {
        memory(&mut text, summary);
    }
    if !summary.sections.is_empty() {
        sections(&mut text, summary);
    }
    if !summary.lines.is_empty() {
        let rows = summary.lines.iter().map(|l| {
            let times = if l.count > 1 { format!(" ({} times)", l.count) } else { String::new() };
            vec![format!("{:#x}", l.offset), format!("{}{times}", l.what)]
        });
        let title =
            if summary.shut.is_some() || summary.sections.is_empty() { "messages" } else { "commands" };
        text += &table(&["offset", title], "><", rows.collect());
        if summary.lines_left_out > 0 {
            let _ = writeln!(text, "  .. and {} more", summary.lines_left_out);
        }
    }
    for note in &summary.notes {
        line(&mut text, "  note", note);
    }
    match &summary.error {
        Some(error) if error.kind() == ErrorKind::Unsupported && summary.bytes == 0 => {
            line(&mut text, "  unsupported", error.message());
        }
        Some(error) => line(&mut text, "  stopped", &output::whole_text(error)),
        None => {}
    }
    text
}

fn facts(text: &mut String, summary: &Summary) {
    line(text, "  machine", summary.machine.as_deref().unwrap_or("not said (no configuration record)"));
    line(text, "  target pages", &format!("{} bytes", summary.page_size));
    if let Some(uuid) = &summary.uuid {
        line(text, "  uuid", uuid);
    }
    if !summary.capabilities.is_empty() {
        line(text, "  capabilities", &summary.capabilities.join(", "));
    }
    let footers = match summary.footers {
        Some(true) => "behind every section",
        Some(false) => "none",
        None => "unknown, there is no section",
    };
    line(text, "  footers", footers);
    let description = match &summary.description {
        Some(d) => format!(
            "{} bytes of JSON ({}), {} sections",
            d.bytes,
            d.style.unwrap_or("of no known style"),
            d.devices
        ),
        None => "none".to_owned(),
    };
    line(text, "  description", &description);
    if summary.postcopy {
        line(text, "  postcopy", "was begun");
    }
    if summary.trailing > 0 {
        line(text, "  trailing", &format!("{} bytes that nobody reads", summary.trailing));
    }
}

fn writer(text: &mut String, writer: &Writer) {
    let releases = &writer.releases;
    let range = match (releases.first(), releases.last()) {
        (Some(first), Some(last)) if first == last => format!("QEMU {first}"),
        (Some(first), Some(last)) => format!("QEMU {first} to {last}"),
        _ => "no known release: what it shows contradicts itself".to_owned(),
    };
    line(text, "  written by", &range);
    for fact in &writer.evidence {
        line(text, "", fact);
    }
}

fn memory(text: &mut String, summary: &Summary) {
    let total: u64 = summary.blocks.iter().fold(0, |sum, block| sum.saturating_add(block.length));
    let pages = summary.pages.total();
    let sent = if pages == 0 && summary.capabilities.iter().any(|name| name == "mapped-ram") {
        "its pages stand beside the stream (mapped-ram)".to_owned()
    } else {
        let [pages, parts, times] = [(pages, "page"), (summary.parts, "part"), (summary.iterations, "time")]
            .map(|(n, what)| counted(n, what));
        format!("{pages} in {parts}, {times} through it")
    };
    line(
        text,
        "  memory",
        &format!("{} in {}; {sent}", output::bytes(total), counted(summary.blocks.len() as u64, "block")),
    );
    let rows = summary.blocks.iter().map(|block| {
        let p = &block.pages;
        let mut row = vec![block.name.clone(), block.length.to_string()];
        row.extend(
            [p.raw, p.zero, p.xbzrle, p.compressed]
                .map(|count| if count == 0 { "-".into() } else { count.to_string() }),
        );
        row
    });
    text.push_str(&table(
        &["block", "bytes", "raw", "zero", "xbzrle", "compressed"],
        "<>>>>>",
        rows.collect(),
    ));
}

fn sections(text: &mut String, summary: &Summary) {
    let rows = summary.sections.iter().map(|s| {
        vec![
            s.name.clone(),
            s.instance_id.to_string(),
            s.version_id.to_string(),
            s.id.to_string(),
            s.records.to_string(),
            s.payload.to_string(),
        ]
    });
    text.push_str(&table(
        &["section", "instance", "version", "id", "records", "payload"],
        "<>>>>>",
        rows.collect(),
    ));
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key:<16}{value}");
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Columns as wide as they must be, numbers to the right.
fn table(head: &[&str], align: &str, rows: Vec<Vec<String>>) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::from("\n");
    let head = head.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&head).chain(&rows) {
        let mut out = String::new();
        for ((cell, width), align) in row.iter().zip(&widths).zip(align.chars()) {
            let _ = match align {
                '>' => write!(out, "  {cell:>width$}"),
                _ => write!(out, "  {cell:<width$}"),
            };
        }
        let _ = writeln!(text, "{}", out.trim_end());
    }
    text
}
