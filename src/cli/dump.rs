//! `migwire dump`: offset, bytes and meaning of everything.

use std::io::{self, BufWriter, Write};

use clap::Args;
use migwire::Error;
use migwire::container::Part;
use migwire::report::Reading;
use migwire::report::dump::{self, Row};
use serde_json::{Value, json};

use super::given::{Given, complain, note};
use super::{Verdict, output};

/// Say what every byte is: offset, length, first bytes, meaning
///
/// Long runs are one row: pages in a row, a payload, parts of RAM without a page. The rows tile the channel; a channel that
/// they do not cover to its end is a failure.
#[derive(Debug, Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    given: Given,
}

impl Dump {
    pub(crate) fn run(&self) -> anyhow::Result<Verdict> {
        let mut reading = self.given.reading()?;
        let given = reading.page_size;
        let mut page =
            Page { out: BufWriter::new(io::stdout().lock()), json: self.given.json, channels: 0, good: true };
        page.begin()?;
        let all = self.given.open()?;
        let are_many = all.len() > 1;
        for opened in all {
            match opened.outcome {
                Err(error) => page.failed(&opened.name, &error)?,
                Ok(mut contents) => {
                    note(&contents.notes);
                    let several = are_many || contents.parts.len() > 1;
                    if contents.parts.len() > 1 {
                        reading.page_size = given.or_else(|| reading.page_size_of(&mut contents.parts));
                    }
                    reading.legs = reading.legs_of(&mut contents.parts);
                    for mut part in contents.parts {
                        page.channel(&opened.name, several, &mut part, &reading)?;
                    }
                    if let Some(fault) = &contents.fault {
                        page.failed(&opened.name, fault)?;
                    }
                }
            }
        }
        page.end()?;
        Ok(if page.good { Verdict::Good } else { Verdict::Bad })
    }
}

/// Where rows go: as text, or as one JSON object that is written as it grows.
struct Page<W: Write> {
    out: W,
    json: bool,
    channels: u64,
    good: bool,
}

impl<W: Write> Page<W> {
    fn begin(&mut self) -> io::Result<()> {
        if self.json { self.out.write_all(b"{\"channels\":[") } else { Ok(()) }
    }

    fn end(&mut self) -> io::Result<()> {
        if self.json {
            let verdict = if self.good { "ok" } else { "failed" };
            writeln!(self.out, "],\"verdict\":\"{verdict}\"}}")?;
        }
        self.out.flush()
    }

    fn channel(&mut self, file: &str, several: bool, part: &mut Part, reading: &Reading) -> io::Result<()> {
        let heading = match &part.label {
            Some(label) => format!("{file}: {} ({})", part.channel, label.escape_debug()),
            None => format!("{file}: {}", part.channel),
        };
        let (json, channels) = (self.json, self.channels);
        self.channels += 1;
        let out = &mut self.out;
        if json {
            if channels > 0 {
                out.write_all(b",")?;
            }
            write!(
                out,
                "{{\"channel\":{},\"file\":{},\"rows\":[",
                text(&part.channel.to_string()),
                text(file)
            )?;
        } else {
            if several {
                writeln!(out, "{}{heading}", if channels > 0 { "\n" } else { "" })?;
            }
            writeln!(out, "{:>12} {:>12}  {:<47}  meaning", "offset", "bytes", "first bytes")?;
        }
        let mut first = true;
        let outcome = dump::dump(part, reading, &mut |row| {
            if !json {
                return show(out, row);
            }
            if !std::mem::take(&mut first) {
                out.write_all(b",")?;
            }
            serde_json::to_writer(&mut *out, &row_json(row)).map_err(io::Error::from)
        })?;
        if json {
            let error = outcome.error.as_ref().map_or(Value::Null, output::error_json);
            write!(self.out, "],\"bytes\":{},\"error\":{error}}}", outcome.bytes)?;
        }
        self.out.flush()?;
        for complaint in &outcome.complaints {
            complain("forgiven", complaint);
        }
        if let Some(error) = &outcome.error {
            complain(&heading, error);
            self.good = false;
        }
        Ok(())
    }

    /// A file or a recording with nothing (more) in it to dump.
    fn failed(&mut self, file: &str, error: &Error) -> io::Result<()> {
        self.good = false;
        if self.json {
            let comma = if self.channels > 0 { "," } else { "" };
            let channel = text(&error.channel().to_string());
            let error = output::error_json(error);
            write!(
                self.out,
                "{comma}{{\"channel\":{channel},\"file\":{},\"rows\":[],\"error\":{error}}}",
                text(file)
            )?;
        }
        self.channels += 1;
        self.out.flush()?;
        complain(file, error);
        Ok(())
    }
}

fn show(out: &mut impl Write, row: &Row) -> io::Result<()> {
    let mut hex = String::with_capacity(3 * row.first.len());
    for byte in &row.first {
        hex += &format!("{byte:02x} ");
    }
    let indent = 2 * row.depth;
    writeln!(out, "{:>#12x} {:>12}  {:<47}  {:indent$}{}", row.offset, row.len, hex.trim_end(), "", row.what)
}

fn row_json(row: &Row) -> Value {
    let first: String = row.first.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({ "offset": row.offset, "bytes": row.len, "first": first, "depth": row.depth, "count": row.count, "what": row.what })
}

fn text(text: &str) -> Value {
    Value::from(text)
}
