//! Import of captures of a network: one connection that carries a stream, in segments of a given size.
//!
//! ```text
//! against reading the capture            what any reader of it takes
//! against copying it                     as an import writes as much as it reads
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use migwire::capture::{Direction, FrameWriter, LinkType, Timestamp};
use migwire::tcp::Conversation;

use super::memory;
use super::stream::{CHUNK, Ready, Scratch, discard};
use super::{Conditions, Found, Rate};

/// Bytes of a connection that are lost where some are.
const LOST: u64 = 1;

/// What an import is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    Reader,
    Copier,
}

/// `import` of a capture in a file.
pub(super) fn import(segment: usize, beside: Beside, conditions: &Conditions) -> anyhow::Result<Found> {
    let scratch = Scratch::new(conditions)?;
    let [path, out] = ["capture.pcapng", "out.pcapng"].map(|name| scratch.path().join(name));
    let ready = Ready::new(conditions.size)?;
    let file = BufWriter::with_capacity(CHUNK, File::create(&path)?);
    capture(&ready, segment, file).with_context(|| format!("cannot write {}", path.display()))?;
    let bytes = fs::metadata(&path)?.len();
    let run = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("import").arg(&path).arg("-o").arg(&out).arg("--json");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let begin = Instant::now();
        let status = command.status()?;
        let elapsed = begin.elapsed();
        fs::remove_file(&out)?;
        Ok((status, Rate { bytes, elapsed }))
    };
    let (status, _): (_, Rate) = run()?;
    if !status.success() {
        return Ok(Found::Skipped(format!("`import` ended with {status}")));
    }
    conditions.compare(
        || run().map(|(_, rate): (_, Rate)| rate),
        || {
            let begin = Instant::now();
            match beside {
                Beside::Reader => drop(discard(File::open(&path)?)?),
                Beside::Copier => copy(&path, &out)?,
            }
            let elapsed = begin.elapsed();
            let _ = fs::remove_file(&out);
            Ok(Rate { bytes, elapsed })
        },
    )
}

/// Peak of memory of an import from standard input. `lossy`: of connections in which a byte is missing, and nobody says so.
pub(super) fn peak(lossy: bool, conditions: &Conditions) -> anyhow::Result<Found> {
    let scratch = Scratch::new(conditions)?;
    let out = scratch.path().join("out.pcapng");
    std::os::unix::fs::symlink("/dev/null", &out)?;
    let arguments = ["import", "-", "-o", &out.display().to_string()];
    let ready = Ready::new(conditions.size)?;
    memory::piped(&arguments, !lossy, |pipe| match lossy {
        false => capture(&ready, 65_495, BufWriter::with_capacity(CHUNK, pipe)),
        true => capture_with_losses(conditions.size, BufWriter::with_capacity(CHUNK, pipe)),
    })
}

/// One connection, from end to end.
fn capture(ready: &Ready, segment: usize, out: impl Write) -> io::Result<()> {
    let wire = FrameWriter::new(out, LinkType(1), None)?;
    let mut wire = Wire { wire, conversation: conversation(0, segment), time: 0, acknowledges: true };
    wire.say(|conversation, emit| conversation.open(emit))?;
    ready.write(&mut wire)?;
    wire.say(|conversation, emit| conversation.close(emit))?;
    wire.wire.finish().map(drop)
}

/// Eight connections, in each of which one byte is missing behind the first ones.
fn capture_with_losses(size: u64, out: impl Write) -> io::Result<()> {
    let mut sink = Some(FrameWriter::new(out, LinkType(1), None)?);
    let block = vec![0x5a; CHUNK];
    for number in 0..8 {
        let Some(wire) = sink.take() else { break };
        let mut wire =
            Wire { wire, conversation: conversation(number, 65_495), time: 0, acknowledges: false };
        wire.say(|conversation, emit| conversation.open(emit))?;
        wire.write_all(b"QEVM\0\0\0\x03")?;
        wire.conversation.skip(Direction::ToDestination, LOST);
        for _ in 0..size / 8 / CHUNK as u64 {
            wire.write_all(&block)?;
        }
        sink = Some(wire.wire);
    }
    sink.map_or(Ok(()), |wire| wire.finish().map(drop))
}

fn conversation(number: u16, segment: usize) -> Conversation {
    let ends = [([192, 0, 2, 1], 50_000 + number).into(), ([192, 0, 2, 2], 4444 + number).into()];
    Conversation::new(ends[0], ends[1], [1, 2]).with_segments(segment)
}

/// Whatever is written goes to the destination.
struct Wire<W: Write> {
    wire: FrameWriter<W>,
    conversation: Conversation,
    time: u64,
    /// Whether the destination's packets were captured.
    acknowledges: bool,
}

impl<W: Write> Wire<W> {
    fn say(
        &mut self,
        what: impl FnOnce(&mut Conversation, migwire::tcp::Emit<'_>) -> migwire::Result<()>,
    ) -> io::Result<()> {
        let Self { wire, conversation, time, acknowledges } = self;
        let mut failure = None;
        // Errors of the sink pass by the conversation, which knows only those of the library.
        let told = what(conversation, &mut |head, data| {
            *time += 1000;
            if (*acknowledges || !data.is_empty()) && failure.is_none() {
                failure = wire.write(Timestamp(*time), head, data).err();
            }
            Ok(())
        });
        told.map_err(io::Error::other)?;
        failure.map_or(Ok(()), Err)
    }
}

impl<W: Write> Write for Wire<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.say(|conversation, emit| conversation.say(Direction::ToDestination, data, emit))?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create(to)?);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}
