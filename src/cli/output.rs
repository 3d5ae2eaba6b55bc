//! What all verbs print in the same way.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use migwire::endpoint::Progress;
use migwire::guest::{Memory, MemoryBlock};
use migwire::{Error, ErrorKind};
use serde_json::{Value, json};

/// Prints one JSON object as the verb's answer.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    // serde_json hides the kind of an I/O error, and a reader that has gone is none to us.
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

/// Prints one line of the verb's answer.
pub(crate) fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}

/// The RAM blocks of a migration as data.
pub(crate) fn blocks_json(memory: &Memory) -> Vec<Value> {
    let block = |block: &MemoryBlock| {
        let digest = block.digest().map(ToString::to_string);
        json!({ "name": block.name().text(), "length": block.length(), "digest": digest })
    };
    memory.blocks().iter().map(block).collect()
}

/// Prints a digest a block, as `sha256sum` does.
pub(crate) fn print_digests(memory: &Memory) -> anyhow::Result<()> {
    for block in memory.blocks() {
        let digest = block
            .digest()
            .map_or_else(|| "unknown (deltas without --ram-out)".to_owned(), ToString::to_string);
        print_line(&format!("{digest}  {:>12}  {}", block.length(), block.name()))?;
    }
    Ok(())
}

/// The names of files, for people.
pub(crate) fn names(files: &[PathBuf]) -> String {
    files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// An error as data.
pub(crate) fn error_json(error: &Error) -> Value {
    json!({
        "kind": kind_name(error.kind()),
        "channel": error.channel().to_string(),
        "offset": error.offset(),
        "doing": error.doing(),
        "message": error.message(),
        "text": whole_text(error),
    })
}

/// An error with its source, on one line.
pub(crate) fn whole_text(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Malformed => "malformed",
        ErrorKind::OutOfOrder => "out-of-order",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::TooLarge => "too-large",
        ErrorKind::Truncated => "truncated",
        ErrorKind::Timeout => "timeout",
        ErrorKind::Io => "io",
        ErrorKind::Peer => "peer",
        ErrorKind::Misuse => "misuse",
    }
}

/// A line on standard error that is rewritten as a migration goes on, if somebody is there to watch it.
pub(crate) struct ProgressLine {
    enabled: bool,
    last: Progress,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        Self { enabled: io::stderr().is_terminal(), last: Progress::default() }
    }

    pub(crate) fn show(&mut self, now: &Progress) {
        if !self.enabled {
            return;
        }
        let rate =
            (now.bytes - self.last.bytes) as f64 / (now.elapsed - self.last.elapsed).as_secs_f64().max(1e-3);
        self.last = *now;
        let line = format!(
            "\r\x1b[K{} in {} pages, iteration {}, {}/s",
            bytes(now.bytes),
            now.pages,
            now.iterations,
            bytes(rate as u64)
        );
        let _ = io::stderr().write_all(line.as_bytes());
    }

    /// Leaves the line alone from now on.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.enabled) {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = "bytes";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "bytes" { format!("{count} bytes") } else { format!("{value:.1} {unit}") }
}

/// A duration for people.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Reads a number of seconds, fractions allowed.
/// A time that may be none at all.
pub(crate) fn parse_patience(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_seconds(text) }
}

/// A time.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value < 1e9 => Ok(Duration::from_secs_f64(value)),
        _ => Err("a number of seconds, more than 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)],
            ["0 bytes", "1023 bytes", "1.5 KiB", "5.0 GiB"]
        );
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(["0", "-1", "x", "nan", "inf"].iter().all(|bad| parse_seconds(bad).is_err()));
    }
}
