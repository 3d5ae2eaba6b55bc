//! The proxy, with and without a recording, against threads that only copy, and against the disk.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread;
use std::time::Instant;

use migwire::capture::{Recorder, RecorderOptions};
use migwire::endpoint::Proxy;
use migwire::transport::Listener;

use super::stream::{Scratch, discard};
use super::wire::{copy, joined, loopback, peer, pour};
use super::{Conditions, Found, Rate};

/// What is recorded on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    Disk,
    Memory,
    /// All is done but the writing.
    Nowhere,
}

pub(super) fn record(medium: Medium, channels: u32, conditions: &Conditions) -> anyhow::Result<Found> {
    let scratch = match medium {
        Medium::Disk => Scratch::below(&conditions.disk)?,
        Medium::Memory | Medium::Nowhere => Scratch::new(conditions)?,
    };
    let path = scratch.path().join("capture.pcapng");
    let ours = || {
        let recorder = match medium {
            Medium::Nowhere => Recorder::new(io::sink(), RecorderOptions::default()),
            _ => Recorder::create(&path, RecorderOptions::default())?,
        };
        let rate = proxied(conditions.size, channels, |proxy| proxy.with_recorder(recorder.clone()))?;
        recorder.finish()?;
        // Its blocks are free again before anything else is measured.
        let _ = std::fs::remove_file(&path);
        Ok(rate)
    };
    let mut disks = Vec::new();
    let found = conditions.compare(ours, || {
        if medium == Medium::Disk {
            disks.push(write_past_cache(&path, conditions.size)?.per_second());
        }
        copied(conditions.size, channels)
    })?;
    disks.sort_by(f64::total_cmp);
    Ok(match (found, disks.get(disks.len() / 2)) {
        (Found::Rate { ours, plain: Some(plain) }, Some(&disk)) => Found::Bounded { ours, plain, disk },
        (found, _) => found,
    })
}

pub(super) fn forward(conditions: &Conditions) -> anyhow::Result<Found> {
    conditions.compare(|| proxied(conditions.size, 1, |proxy| proxy), || copied(conditions.size, 1))
}

/// Writers, our proxy, and readers.
fn proxied(size: u64, channels: u32, with: impl FnOnce(Proxy) -> Proxy) -> anyhow::Result<Rate> {
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let listener = Listener::bind(&loopback(0))?;
    let proxy = with(Proxy::new(loopback(target.local_addr()?.port())));
    let to = peer(listener.local_address());
    thread::scope(|scope| {
        let target = &target;
        let readers: Vec<_> = (0..channels)
            .map(|_| {
                scope.spawn(move || {
                    let bytes = discard(target.accept()?.0)?;
                    Ok((bytes, Instant::now()))
                })
            })
            .collect();
        let begin = Instant::now();
        let part = size / u64::from(channels);
        let writers: Vec<_> = (0..channels).map(|_| scope.spawn(move || pour(part, to))).collect();
        let passage = proxy.run(&listener, |_| {});
        passage.error.map_or(Ok(()), Err)?;
        writers.into_iter().try_for_each(joined)?;
        // The proxy takes a moment to be sure that nobody else will come.
        let (mut bytes, mut end) = (0, begin);
        for reader in readers {
            let (read, ended) = joined(reader)?;
            (bytes, end) = (bytes + read, end.max(ended));
        }
        Ok(Rate { bytes, elapsed: end - begin })
    })
}

/// Writers, a proxy that only copies, and readers.
fn copied(size: u64, channels: u32) -> anyhow::Result<Rate> {
    let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (to, through) = (target.local_addr()?, listener.local_addr()?);
    thread::scope(|scope| {
        let (target, listener) = (&target, &listener);
        let all = 0..channels;
        let readers: Vec<_> = all.clone().map(|_| scope.spawn(move || discard(target.accept()?.0))).collect();
        let copiers: Vec<_> = all
            .clone()
            .map(|_| scope.spawn(move || copy(listener.accept()?.0, TcpStream::connect(to)?)))
            .collect();
        let begin = Instant::now();
        let part = size / u64::from(channels);
        let writers: Vec<_> = all.map(|_| scope.spawn(move || pour(part, through))).collect();
        let mut bytes = 0;
        for reader in readers {
            bytes += joined(reader)?;
        }
        let elapsed = begin.elapsed();
        writers.into_iter().chain(copiers).try_for_each(joined)?;
        Ok(Rate { bytes, elapsed })
    })
}

/// The disk alone: a file written past the page cache in large pieces, where that is possible.
fn write_past_cache(path: &Path, size: u64) -> anyhow::Result<Rate> {
    const PIECE: usize = 4 << 20;
    const ALIGN: usize = 4096;
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    let file = options.clone().custom_flags(direct).open(path).or_else(|_| options.open(path))?;
    let memory = vec![0x5a; PIECE + ALIGN];
    let piece = &memory[memory.as_ptr().align_offset(ALIGN).min(ALIGN)..][..PIECE];
    let begin = Instant::now();
    let mut bytes = 0;
    while bytes < size {
        file.write_all_at(piece, bytes)?;
        bytes += PIECE as u64;
    }
    let elapsed = begin.elapsed();
    std::fs::remove_file(path)?;
    Ok(Rate { bytes, elapsed })
}
