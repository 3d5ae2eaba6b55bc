//! `migwire-interop bench`: whether the stand-in destination slows a stock source down.
//!
//! ```text
//! stock source -> a socket that discards     bytes a second, as the source counts them
//! stock source -> migwire recv               the same source, the same memory, in turn
//! ```
//! The two are run in turn, and what counts is the ratio of the medians of one run: single figures of a shared machine mean
//! little. The source's memory holds no zero page, so that every page crosses the wire.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::cli;
use crate::failure::{Failure, Run};
use crate::peers::{self, Peer};
use crate::process::{Deadline, Ledger};
use crate::qemu::{Machine, Place, Ram, Vm, VmSpec};
use crate::ram;
use crate::run::{follow, open};
use crate::tool::{Tool, ToolProcess};

/// Longest time for one migration.
const RUN_LIMIT: Duration = Duration::from_secs(180);

/// Measure the speed of a stock source into migwire recv and into a socket that discards, in turn.
#[derive(Debug, Args)]
pub(crate) struct Speed {
    /// Build of the source; all that are there otherwise. May be repeated.
    #[arg(long = "source", value_name = "NAME")]
    sources: Vec<String>,
    /// Add a build, or replace the one of that name. May be repeated.
    #[arg(long = "peer", value_name = "NAME=PATH")]
    peers: Vec<String>,
    /// Memory of the guest, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u64,
    /// Multifd channels; 0 for a plain migration.
    #[arg(long, value_name = "N", default_value_t = 0)]
    channels: u8,
    /// Migrations into each receiver.
    #[arg(long, value_name = "N", default_value_t = 5)]
    runs: usize,
    /// The command under test. Default: `migwire` beside this program.
    #[arg(long, value_name = "PATH")]
    migwire: Option<PathBuf>,
    /// Folder for the guest's memory: a file system in memory, or a fast one.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    dir: PathBuf,
    /// What `${QEMU_DIR}` in peers.toml means.
    #[arg(long, value_name = "DIR", env = "MIGWIRE_QEMU_DIR")]
    qemu_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Bytes a second of one source into the two receivers, run by run.
struct Figures {
    source: String,
    discard: Vec<f64>,
    recv: Vec<f64>,
}

impl Speed {
    pub(crate) fn run(&self, data: &Path) -> Result<()> {
        let qemu_dir = self.qemu_dir.clone().unwrap_or_else(|| data.join("../target/qemu"));
        let manifest = std::fs::read_to_string(data.join("peers.toml")).context("read peers.toml")?;
        let peers = peers::load(&manifest, &std::path::absolute(qemu_dir)?, &self.peers)?;
        let wanted = |peer: &&Peer| self.sources.is_empty() || self.sources.contains(&peer.name);
        let work = tempfile::Builder::new().prefix("migwire-bench").tempdir_in(&self.dir)?;
        let tool = Tool::probe(&cli::migwire_path(self.migwire.as_deref())?, work.path());
        if let Err(why) = &tool.version {
            bail!("no migwire command: {why}");
        }
        let memory = work.path().join("source.ram");
        ram::fill_byte(&memory, self.memory << 20, 0x5a)
            .with_context(|| format!("fill {}", memory.display()))?;
        let mut all = Vec::new();
        for peer in peers.iter().filter(wanted) {
            if !peer.path.exists() {
                eprintln!("migwire-interop: NOT RUN: {}: no such file: {}", peer.name, peer.path.display());
                continue;
            }
            let figures =
                self.measure(peer, &tool, &memory, work.path()).map_err(|failure| anyhow!(failure.text))?;
            if !self.json {
                println!("{figures}");
            }
            all.push(figures);
        }
        if all.is_empty() {
            bail!("no source to measure");
        }
        if self.json {
            println!(
                "{}",
                json!({ "memory_mib": self.memory, "sources": all.iter().map(Figures::json).collect::<Vec<_>>() })
            );
        }
        Ok(())
    }

    fn measure(&self, peer: &Peer, tool: &Tool, memory: &Path, work: &Path) -> Run<Figures> {
        let mut figures = Figures { source: peer.name.clone(), discard: Vec::new(), recv: Vec::new() };
        // One round in front is not counted: it brings files and memory into place.
        for round in 0..=self.runs {
            let place = Place {
                dir: work.into(),
                sockets: work.into(),
                ledger: Ledger::default(),
                deadline: Deadline::after(RUN_LIMIT),
            };
            let discard = self.to_discard(peer, memory, &place)?;
            let recv = self.to_recv(peer, tool, memory, &place)?;
            if round > 0 {
                figures.discard.push(discard);
                figures.recv.push(recv);
            }
        }
        Ok(figures)
    }

    fn to_discard(&self, peer: &Peer, memory: &Path, place: &Place) -> Run<f64> {
        let failed = |e| Failure::environment("a socket that discards", e);
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let connections = usize::from(self.channels) + 1;
        let accept = move || -> std::io::Result<()> {
            std::thread::scope(|scope| {
                let readers: std::io::Result<Vec<_>> = (0..connections)
                    .map(|_| listener.accept().map(|(one, _)| scope.spawn(move || discard(one))))
                    .collect();
                let panicked = |_| Err(std::io::Error::other("its thread panicked"));
                readers?.into_iter().try_for_each(|r| r.join().unwrap_or_else(panicked).map(|_| ()))
            })
        };
        let reader = std::thread::Builder::new().name("discard".into()).spawn(accept).map_err(failed)?;
        let rate = self.migrate(peer, memory, &format!("tcp:{address}"), place)?;
        match reader.join() {
            Ok(result) => result.map_err(failed)?,
            Err(_) => return Err(Failure::environment("a socket that discards", "its thread panicked")),
        };
        Ok(rate)
    }

    fn to_recv(&self, peer: &Peer, tool: &Tool, memory: &Path, place: &Place) -> Run<f64> {
        let channels = self.channels.to_string();
        let words = ["recv", "tcp:127.0.0.1:0", "--json", "--channels", &channels].map(String::from);
        let mut receiver = ToolProcess::spawn(tool, "recv", &words, place)?;
        let address = receiver.address(place)?;
        let rate = self.migrate(peer, memory, &address, place)?;
        receiver.finish(place.deadline)?;
        Ok(rate)
    }

    /// Bytes a second, by the source's own count of both.
    fn migrate(&self, peer: &Peer, memory: &Path, uri: &str, place: &Place) -> Run<f64> {
        let machine = Machine { kind: "none".into(), ram_id: "ram".into(), ram_bytes: self.memory << 20 };
        let spec = VmSpec { ram: Ram::File(memory.into()), ..VmSpec::bare(machine) };
        let mut vm = Vm::start("source", peer, &spec, place)?;
        vm.set_parameters(open())?;
        if self.channels > 0 {
            vm.set_capabilities(&["multifd".into()])?;
            vm.set_parameters(json!({ "multifd-channels": self.channels }))?;
        }
        vm.migrate(uri)?;
        let reply = follow(&mut vm, None, place.deadline)?;
        vm.quit()?;
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        Ok(number(&reply["ram"]["transferred"]) / (number(&reply["total-time"]) / 1e3))
    }
}

/// A plain reader: the least that a destination can do.
fn discard(mut connection: TcpStream) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}

impl Figures {
    fn ratio(&self) -> f64 {
        median(&self.recv) / median(&self.discard)
    }

    fn json(&self) -> Value {
        json!({
            "source": self.source,
            "discard_bytes_per_second": self.discard,
            "recv_bytes_per_second": self.recv,
            "ratio_of_medians": self.ratio(),
        })
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let gbit = |rates: &[f64]| median(rates) * 8.0 / 1e9;
        write!(
            f,
            "source {}: discard {:.1} Gbit/s, recv {:.1} Gbit/s, ratio {:.2} (medians of {})",
            self.source,
            gbit(&self.discard),
            gbit(&self.recv),
            self.ratio(),
            self.recv.len()
        )
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians() {
        let figures =
            Figures { source: "x".into(), discard: vec![4.0, 1.0, 100.0], recv: vec![2.0, 2.0, 0.0] };
        assert!((figures.ratio() - 0.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
