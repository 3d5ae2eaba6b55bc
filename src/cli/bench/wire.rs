//! Stand-ins and proxy over loopback, against plain threads that do the same without knowing what they move.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use migwire::capture::{ChannelTap, Direction, Recorder, RecorderOptions};
use migwire::container;
use migwire::endpoint::{Blank, Destination, Replay, Source, Template};
use migwire::guest::Pattern;
use migwire::transport::{self, Address, Listener};

use super::stream::{CHUNK, Ready, Scratch, discard};
use super::{Conditions, Found, Rate};

/// Nothing here takes that long, unless something is wrong.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What images are sent beside.
#[derive(Clone, Copy)]
pub(super) enum Beside {
    /// A writer that has its bytes already.
    Writer,
    /// One that reads a file as well, which costs as much as sending it.
    Copier,
}

pub(super) fn send_pattern(pattern: Pattern, conditions: &Conditions) -> anyhow::Result<Found> {
    let source = || Source::new(machine(conditions)?).with_pattern(None, pattern);
    conditions.compare(|| send(source()?), || plain(conditions.size))
}

pub(super) fn send_images(beside: Beside, conditions: &Conditions) -> anyhow::Result<Found> {
    let scratch = Scratch::new(conditions)?;
    let path = scratch.path().join("ram.ram");
    let mut image = BufWriter::with_capacity(CHUNK, File::create(&path)?);
    let mut page = [0; 4096];
    for offset in (0..conditions.size).step_by(page.len()) {
        Pattern::Count.fill(offset, &mut page);
        image.write_all(&page)?;
    }
    image.flush()?;
    let source = || Source::new(machine(conditions)?).with_images(scratch.path());
    conditions.compare(
        || send(source()?),
        || match beside {
            Beside::Writer => plain(conditions.size),
            Beside::Copier => between(|to| copy(File::open(&path)?, TcpStream::connect(to)?)),
        },
    )
}

pub(super) fn recv(conditions: &Conditions) -> anyhow::Result<Found> {
    let ready = Ready::new(conditions.size)?;
    let ours = || {
        let listener = Listener::bind(&loopback(0))?;
        let to = peer(listener.local_address());
        thread::scope(|scope| {
            let writer = scope.spawn(|| ready.write(TcpStream::connect(to)?));
            let connection =
                listener.accept(Some(PATIENCE))?.ok_or_else(|| anyhow::anyhow!("nobody connected"))?;
            let begin = Instant::now();
            let arrival = Destination::new().receive(connection, |_| {});
            let elapsed = begin.elapsed();
            joined(writer)?;
            arrival.error.map_or(Ok(()), Err)?;
            Ok(Rate { bytes: arrival.bytes, elapsed })
        })
    };
    conditions.compare(ours, || plain(ready.len()))
}

pub(super) fn replay(conditions: &Conditions) -> anyhow::Result<Found> {
    let scratch = Scratch::new(conditions)?;
    let path = scratch.path().join("capture.pcapng");
    let recorder = Recorder::create(&path, RecorderOptions { strict: true, ..RecorderOptions::default() })?;
    let tap = recorder.channel("main");
    Ready::new(conditions.size)?.write(BufWriter::with_capacity(CHUNK, Recorded(tap)))?;
    recorder.finish()?;
    let ours = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        thread::scope(|scope| {
            let reader = scope.spawn(move || discard(listener.accept()?.0));
            // What has to be read of the recording beforehand counts as well.
            let begin = Instant::now();
            let parts = container::open(&path, true)?.parts;
            let performance = Replay::new(loopback(port)).play(parts)?;
            let elapsed = begin.elapsed();
            performance.error.map_or(Ok(()), Err)?;
            Ok(Rate { bytes: joined(reader)?, elapsed })
        })
    };
    conditions.compare(ours, || plain(conditions.size))
}

/// A channel of a recording as something to write to.
struct Recorded(ChannelTap);

impl io::Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.record(Direction::ToDestination, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn machine(conditions: &Conditions) -> migwire::Result<Template> {
    Template::blank(&Blank::new("none", "ram", conditions.size))
}

fn send(source: Source) -> anyhow::Result<Rate> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::scope(|scope| {
        let reader = scope.spawn(move || discard(listener.accept()?.0));
        let connection = transport::connect(&loopback(port), PATIENCE)?;
        let begin = Instant::now();
        let departure = source.with_return_path(false).send(connection, |_| {});
        departure.error.map_or(Ok(()), Err)?;
        let bytes = joined(reader)?;
        Ok(Rate { bytes, elapsed: begin.elapsed() })
    })
}

/// A writer and a reader, and nothing between them.
fn plain(size: u64) -> anyhow::Result<Rate> {
    between(|to| pour(size, to))
}

/// A writer of any kind, and a reader.
fn between(write: impl FnOnce(SocketAddr) -> io::Result<()>) -> anyhow::Result<Rate> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = listener.local_addr()?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || discard(listener.accept()?.0));
        let begin = Instant::now();
        write(to)?;
        Ok(Rate { bytes: joined(reader)?, elapsed: begin.elapsed() })
    })
}

/// What a program does that knows nothing better.
pub(super) fn copy(mut from: impl io::Read, mut to: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

pub(super) fn pour(size: u64, to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let buffer = vec![0x5a; CHUNK];
    let mut left = size;
    while left > 0 {
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        stream.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    stream.shutdown(Shutdown::Write)
}

pub(super) fn loopback(port: u16) -> Address {
    Address::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port }
}

pub(super) fn peer(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp { port, .. } => (Ipv4Addr::LOCALHOST, *port).into(),
        _ => (Ipv4Addr::LOCALHOST, 0).into(),
    }
}

pub(super) fn joined<T>(thread: thread::ScopedJoinHandle<'_, io::Result<T>>) -> anyhow::Result<T> {
    let result = thread.join().map_err(|_| anyhow::anyhow!("a thread of the measurement has panicked"))?;
    Ok(result?)
}
