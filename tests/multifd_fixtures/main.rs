//! What stock QEMU builds wrote on multifd channels: read, given back, made again from what it says, put together.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, helpers included")]

#[path = "../common/mod.rs"]
mod common;
mod packets;
mod together;
mod verbs;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::place;
use migwire::ChannelId;
use migwire::container::{self, Contents};
use migwire::dialect::Dialect;
use migwire::report::verify::Verification;
use migwire::report::{Reading, Whole, prove_all};
use serde_json::Value;

pub(crate) const PAGE: u64 = 4096;

/// A migration of the fixtures.
pub(crate) struct Story {
    /// `qemu-10.0/zlib`.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl Story {
    pub(crate) fn all() -> Vec<Self> {
        let root = place("fixtures/multifd");
        let mut found = Vec::new();
        for producer in fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
            for path in fs::read_dir(producer).unwrap().map(|e| e.unwrap().path()) {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push(Self { name, path });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(found.len() >= 19, "only {} fixtures", found.len());
        found
    }

    /// Those that a stock build was asked for over a socket.
    pub(crate) fn recorded() -> Vec<Self> {
        Self::all().into_iter().filter(|story| story.release().is_some()).collect()
    }

    pub(crate) fn named(name: &str) -> Self {
        Self::all().into_iter().find(|story| story.name == name).unwrap()
    }

    pub(crate) fn release(&self) -> Option<&str> {
        self.name.strip_prefix("qemu-").map(|rest| rest.split_once('/').unwrap().0)
    }

    pub(crate) fn kind(&self) -> &str {
        self.name.split_once('/').unwrap().1
    }

    /// Whose packets these are.
    pub(crate) fn dialect(&self) -> Dialect {
        match (self.release(), self.kind()) {
            (Some(release), "per-section") => format!("{release}-on-8.0").parse().unwrap(),
            (Some(release), _) => release.parse().unwrap(),
            (None, kind) if kind.contains("-11to") => "11.1".parse().unwrap(),
            (None, _) => "10.0".parse().unwrap(),
        }
    }

    pub(crate) fn open(&self) -> Contents {
        container::open(&self.path, false).unwrap()
    }

    /// Bytes of the multifd channels.
    pub(crate) fn channels(&self) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        for (name, path) in common::files(&self.path, "bin") {
            let bytes = fs::read(path).unwrap();
            if bytes.starts_with(b"\x11\x22\x33\x44") {
                found.push((format!("{}/{name}", self.name), bytes));
            }
        }
        assert!(found.len() >= 2, "{}", self.name);
        found
    }

    pub(crate) fn prove(&self) -> (BTreeMap<ChannelId, Verification>, Whole) {
        prove(self.open())
    }
}

pub(crate) fn prove(mut contents: Contents) -> (BTreeMap<ChannelId, Verification>, Whole) {
    let mut channels = BTreeMap::new();
    let whole = prove_all(&mut contents.parts, &Reading::default(), |part, found| {
        assert!(channels.insert(part.channel, found).is_none(), "{}", part.channel);
    });
    (channels, whole.unwrap())
}

/// A copy that may be damaged.
pub(crate) fn copy(story: &Story) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&story.path).unwrap().map(|e| e.unwrap()) {
        fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    directory
}

pub(crate) fn migwire(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["60", env!("CARGO_BIN_EXE_migwire")]).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

pub(crate) fn json(arguments: &[&str]) -> (i32, Value) {
    let output = migwire(&[arguments, &["--json"]].concat());
    (
        code(&output),
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", err(&output))),
    )
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
