//! Streams of any length for measuring, and verbs that read them from a file.
//!
//! ```text
//! head: header .. START, PART, first page | run: 64 pages, over and over | tail: EOS, END, EOF, empty description
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use migwire::guest::Pattern;
use migwire::stream::{Emitter, Event};
use migwire::wire::{
    Bulk, Configuration, DescriptionHead, FileHeader, Page, PageBody, PageWord, RamBlock, RamFlags,
    SectionFooter, SectionHead, SectionIdentity, SectionKind,
};

use super::{Conditions, Found, Rate};

/// Bytes of a read or write in the yardsticks, as in what they are held against.
pub(super) const CHUNK: usize = 256 << 10;

const PAGE: u64 = 4096;

/// Pages in the run that is repeated.
const PAGES: u64 = 64;

/// A stream as three parts. The run names its block by CONTINUE, so it may be repeated: the same pages come again.
pub(super) struct Ready {
    head: Vec<u8>,
    run: Vec<u8>,
    tail: Vec<u8>,
    runs: u64,
}

impl Ready {
    /// A stream with about `size` bytes of pages.
    pub(super) fn new(size: u64) -> migwire::Result<Self> {
        let section_id = 1;
        let head = |kind| {
            let identity = SectionIdentity { idstr: "ram".into(), instance_id: 0, version_id: 4 };
            let identity = (kind == SectionKind::START).then_some(identity);
            Event::Section(SectionHead { kind, section_id, identity })
        };
        let eos = Event::RamWord(PageWord::new(0, RamFlags::EOS));
        let footer = Event::Footer(SectionFooter { section_id });
        let mut emitter = Emitter::strict();
        let mut parts = [const { Vec::new() }; 3];
        let mut emit = |part: usize, event: &Event<'_>| emitter.emit(event, &mut parts[part]);

        emit(0, &Event::Header(FileHeader::CURRENT))?;
        emit(0, &Event::Configuration(Configuration { machine: "none".into() }))?;
        emit(0, &head(SectionKind::START))?;
        emit(0, &Event::RamWord(PageWord::new(PAGES * PAGE, RamFlags::MEM_SIZE)))?;
        emit(0, &Event::RamBlock(RamBlock::new("ram".into(), PAGES * PAGE)))?;
        emit(0, &eos)?;
        emit(0, &footer)?;
        emit(0, &head(SectionKind::PART))?;
        let zero = PageBody::Zero(0);
        emit(
            0,
            &Event::Page(Page {
                word: PageWord::new(0, RamFlags::ZERO),
                block: Some("ram".into()),
                body: zero,
            }),
        )?;
        for offset in (0..PAGES).map(|page| page * PAGE) {
            let mut bytes = [0; PAGE as usize];
            Pattern::Count.fill(offset, &mut bytes);
            let word = PageWord::new(offset, RamFlags::PAGE | RamFlags::CONTINUE);
            emit(1, &Event::Page(Page { word, block: None, body: PageBody::Raw(Bulk::Bytes(&bytes)) }))?;
        }
        for event in [&eos, &footer, &head(SectionKind::END), &eos, &footer, &Event::Eof] {
            emit(2, event)?;
        }
        emit(2, &Event::Description(DescriptionHead { length: 0 }))?;
        let [head, run, tail] = parts;
        Ok(Self { runs: (size / run.len() as u64).max(1), head, run, tail })
    }

    pub(super) fn len(&self) -> u64 {
        (self.head.len() + self.tail.len()) as u64 + self.runs * self.run.len() as u64
    }

    pub(super) fn write(&self, mut out: impl Write) -> io::Result<()> {
        out.write_all(&self.head)?;
        for _ in 0..self.runs {
            out.write_all(&self.run)?;
        }
        out.write_all(&self.tail)
    }
}

/// A directory that is gone when it is no longer needed.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(conditions: &Conditions) -> anyhow::Result<Self> {
        Self::below(&conditions.dir)
    }

    pub(super) fn below(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(format!("migwire-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left for whoever looks after the directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A verb over a stream in a file, against reading that file.
pub(super) fn verb(name: &str, conditions: &Conditions) -> anyhow::Result<Found> {
    let scratch = Scratch::new(conditions)?;
    let path = scratch.path().join("stream.bin");
    let ready = Ready::new(conditions.size)?;
    ready.write(File::create(&path)?).with_context(|| format!("cannot write {}", path.display()))?;
    let run = || {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(name)
            .arg(&path)
            .args(["--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let begin = Instant::now();
        let status = command.status()?;
        Ok((status, Rate { bytes: ready.len(), elapsed: begin.elapsed() }))
    };
    // The first run also brings the file and the program into the page cache.
    let (status, _): (_, Rate) = run()?;
    if !status.success() {
        return Ok(Found::Skipped(format!("`{name}` ended with {status}")));
    }
    conditions.compare(|| run().map(|(_, rate): (_, Rate)| rate), || read(&path))
}

fn read(path: &Path) -> anyhow::Result<Rate> {
    let begin = Instant::now();
    let bytes = discard(File::open(path)?)?;
    Ok(Rate { bytes, elapsed: begin.elapsed() })
}

/// Reads everything and keeps nothing.
pub(super) fn discard(mut input: impl io::Read) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(total),
            count => total += count as u64,
        }
    }
}
