//! Peak memory of a verb over a stream of many gigabytes, which passes through a pipe or a socket and is never stored.

use std::fs;
use std::io::{self, Read as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use migwire::transport::Listener;

use super::stream::{CHUNK, Ready};
use super::{Conditions, Found};

/// Nothing here takes that long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Longest time in which the source says nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// How much passes between two looks at the peak.
const LOOK: u64 = 64 << 20;

/// Peak of a verb that reads a stream from its standard input.
pub(super) fn reading(arguments: &[&str], conditions: &Conditions) -> anyhow::Result<Found> {
    let ready = Ready::new(conditions.size)?;
    piped(arguments, true, |pipe| ready.write(pipe))
}

/// Peak of a verb that is given whatever `write` writes. `succeeds`: it is to end well.
pub(super) fn piped(
    arguments: &[&str],
    succeeds: bool,
    write: impl FnOnce(&ChildStdin) -> io::Result<()>,
) -> anyhow::Result<Found> {
    let child = start(arguments, Stdio::piped())?;
    let id = child.id();
    watched(child, succeeds, |stdin| {
        let Some(pipe) = stdin else { return Ok(None) };
        match write(&pipe) {
            // The peak is read while the process still waits for the end of its input.
            Ok(()) => Ok(Some(peak(id)?)),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(None),
            Err(e) => Err(e.into()),
        }
    })
}

/// Peak of the stand-in source.
pub(super) fn send(conditions: &Conditions) -> anyhow::Result<Found> {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse()?)?;
    let address = listener.local_address().to_string();
    let size = conditions.size.to_string();
    let arguments = [
        "send",
        &address,
        "--machine",
        "none",
        "--memory",
        &size,
        "--fill",
        "mixed=1",
        "--return-path",
        "off",
    ];
    let child = start(&arguments, Stdio::null())?;
    let id = child.id();
    watched(child, true, |_| {
        let Some(mut connection) = listener.accept(Some(SILENCE))? else { return Ok(None) };
        connection.set_read_timeout(Some(SILENCE))?;
        let mut buffer = vec![0; CHUNK];
        let (mut highest, mut since) = (None, LOOK);
        loop {
            match connection.read(&mut buffer)? {
                0 => return Ok(highest),
                count => since += count as u64,
            }
            if since >= LOOK {
                // Behind the last look, the process may be gone already.
                highest = peak(id).ok().or(highest);
                since = 0;
            }
        }
    })
}

fn start(arguments: &[&str], stdin: Stdio) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start myself")
}

/// Measures a process, which is killed when it takes too long.
fn watched(
    mut child: Child,
    succeeds: bool,
    measure: impl FnOnce(Option<ChildStdin>) -> anyhow::Result<Option<u64>>,
) -> anyhow::Result<Found> {
    let stdin = child.stdin.take();
    let (done, over) = mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        // Told, or the measurement has failed: then the process is not wanted any more.
        let is_over = over.recv_timeout(PATIENCE).is_ok();
        if !is_over {
            let _ = child.kill();
        }
        child.wait()
    });
    let measured = measure(stdin);
    if measured.is_ok() {
        let _ = done.send(());
    }
    drop(done);
    let status = watchdog.join().map_err(|_| anyhow::anyhow!("the watchdog has panicked"))??;
    match measured? {
        Some(peak) if status.success() || !succeeds && status.code() == Some(1) => Ok(Found::Peak(peak)),
        _ => Ok(Found::Skipped(format!("it ended with {status}"))),
    }
}

/// `VmHWM`: the most that was ever resident.
fn peak(process: u32) -> anyhow::Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{process}/status")).context("cannot read the peak of memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
    kib.map(|kib| kib << 10).context("there is no VmHWM")
}
