//! Multifd packets: what one costs to read, and the verbs over a whole migration with multifd channels.
//!
//! ```text
//! left out    hello, packet, packet, ..                   payloads are skipped, as a destination skips what it does not keep
//! in pieces   hello, packet, payload, packet, payload ..  payloads pass by in pieces, untouched, as a destination places them
//! ```
//! A link of 30 Gbit/s brings some seven thousand packets of raw pages a second; all others are for fewer bytes of wire.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use migwire::channel::{ChannelParser as _, Step, Tail};
use migwire::guest::Pattern;
use migwire::multifd::{Framer, Packet, PacketParser};
use migwire::stream::{Emitter, Event};
use migwire::wire::{
    Configuration, DescriptionHead, FileHeader, MULTIFD_PACKET_SIZE, Method, MultifdHello, PageWord,
    RamBlock, RamFlags, SectionFooter, SectionHead, SectionIdentity, SectionKind, Wire as _,
};

use super::stream::{Scratch, discard};
use super::{Conditions, Found, Rate};

const PAGE: u64 = 4096;

/// Packets that lie in memory, and are read again and again.
const PACKETS: u64 = 64;

/// Channels of the migration that is read by the verbs.
const CHANNELS: u8 = 2;

/// Bits a second of the link in question.
const LINK: f64 = 30e9;

/// Time a packet, over as many as `conditions.size` bytes of guest memory take.
pub(super) fn parse(with_payload: bool, conditions: &Conditions) -> anyhow::Result<Found> {
    let (mut bytes, begin) = packets(with_payload);
    let goal = (conditions.size / MULTIFD_PACKET_SIZE).max(PACKETS);
    let mut best = f64::MAX;
    // The least that it takes is what it costs; everything above it is somebody else's.
    for _ in 0..conditions.runs.max(3) {
        let mut parser = PacketParser::default();
        if !with_payload {
            parser = parser.with_elision();
        }
        let (mut at, mut count) = (0, 0);
        let start = Instant::now();
        while count < goal {
            match parser.step(&bytes[at..], Tail::Open)? {
                Step::Event(located) => {
                    at += located.raw.len();
                    count += u64::from(matches!(located.event, Packet::Ram(_)));
                    black_box(&located);
                }
                Step::More(_) | Step::End => {
                    ensure!(
                        at == bytes.len() && parser.is_between(),
                        "the packets are not read as they were made"
                    );
                    at = begin;
                }
            }
        }
        best = best.min(start.elapsed().as_secs_f64() / count as f64);
        // What is read again is not known to the compiler to be the same.
        black_box(&mut bytes);
    }
    let on_wire = (MULTIFD_PACKET_SIZE as f64 + 1344.0) * 8.0;
    Ok(Found::Packet { nanoseconds: best * 1e9, share: best * LINK / on_wire })
}

/// Hello and packets, full of pages; and where the first packet begins.
fn packets(with_payload: bool) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    MultifdHello::new(0, [0; 16]).emit(&mut bytes);
    let begin = bytes.len();
    let mut framer = Framer::new("any".parse().unwrap_or_default(), PAGE);
    for number in 0..PACKETS {
        packet(&mut framer, number, with_payload, &mut bytes);
    }
    (bytes, begin)
}

fn packet(framer: &mut Framer, number: u64, with_payload: bool, out: &mut Vec<u8>) {
    let first = number * MULTIFD_PACKET_SIZE;
    let offsets: Vec<u64> = (0..framer.page_count() as u64).map(|page| first + page * PAGE).collect();
    let size = MULTIFD_PACKET_SIZE as u32;
    out.extend_from_slice(framer.pages(b"pc.ram", &offsets, &[], Method::NONE, size, number));
    if with_payload {
        let start = out.len();
        out.resize(start + size as usize, 0);
        for (page, offset) in out[start..].chunks_exact_mut(PAGE as usize).zip(&offsets) {
            Pattern::Count.fill(*offset, page);
        }
    }
}

/// A verb over a migration with `conditions.size` bytes of pages on its channels, against reading their files.
pub(super) fn verb(name: &str, conditions: &Conditions) -> anyhow::Result<Found> {
    let scratch = Scratch::new(conditions)?;
    let total = write(scratch.path(), conditions.size).context("cannot write the channels")?;
    let run = || {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(name)
            .arg(scratch.path())
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let begin = Instant::now();
        let status = command.status()?;
        Ok((status, Rate { bytes: total, elapsed: begin.elapsed() }))
    };
    let (status, _): (_, Rate) = run()?;
    if !status.success() {
        return Ok(Found::Skipped(format!("`{name}` ended with {status}")));
    }
    conditions.compare(
        || run().map(|(_, rate): (_, Rate)| rate),
        || {
            let begin = Instant::now();
            let mut bytes = 0;
            for entry in fs::read_dir(scratch.path())? {
                bytes += discard(File::open(entry?.path())?)?;
            }
            Ok(Rate { bytes, elapsed: begin.elapsed() })
        },
    )
}

/// Writes the channels of a migration; how many bytes they have.
fn write(directory: &Path, size: u64) -> anyhow::Result<u64> {
    let block = PACKETS * MULTIFD_PACKET_SIZE;
    let mut total = 0;
    let mut put = |connection: u8, pieces: &[&[u8]]| -> io::Result<()> {
        let file = File::create(directory.join(format!("conn{connection:02}.src-to-dst.bin")))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        for piece in pieces {
            file.write_all(piece)?;
            total += piece.len() as u64;
        }
        file.flush()
    };
    put(0, &[&main_channel(block)?])?;
    for id in 0..CHANNELS {
        let mut framer = Framer::new("any".parse()?, PAGE);
        let mut head = Vec::new();
        MultifdHello::new(id, [0; 16]).emit(&mut head);
        head.extend_from_slice(framer.sync(u64::from(id)));
        let mut run = Vec::new();
        for number in 0..PACKETS {
            packet(&mut framer, number, true, &mut run);
        }
        let tail = framer.sync(u64::from(id)).to_vec();
        let times = (size / u64::from(CHANNELS) / block).max(1) as usize;
        let mut pieces: Vec<&[u8]> = vec![&head];
        pieces.extend(std::iter::repeat_n(&run[..], times));
        pieces.push(&tail);
        put(id + 1, &pieces)?;
    }
    Ok(total)
}

/// A main channel that synchronises twice.
fn main_channel(block: u64) -> migwire::Result<Vec<u8>> {
    let section_id = 1;
    let (mut emitter, mut out) = (Emitter::strict(), Vec::new());
    let mut emit = |event: &Event<'_>| emitter.emit(event, &mut out);
    emit(&Event::Header(FileHeader::CURRENT))?;
    emit(&Event::Configuration(Configuration { machine: "none".into() }))?;
    for kind in [SectionKind::START, SectionKind::END] {
        let identity = SectionIdentity { idstr: "ram".into(), instance_id: 0, version_id: 4 };
        let identity = (kind == SectionKind::START).then_some(identity);
        emit(&Event::Section(SectionHead { kind, section_id, identity }))?;
        if kind == SectionKind::START {
            emit(&Event::RamWord(PageWord::new(block, RamFlags::MEM_SIZE)))?;
            emit(&Event::RamBlock(RamBlock::new("pc.ram".into(), block)))?;
        }
        emit(&Event::RamWord(PageWord::new(0, RamFlags::MULTIFD_FLUSH)))?;
        emit(&Event::RamWord(PageWord::new(0, RamFlags::EOS)))?;
        emit(&Event::Footer(SectionFooter { section_id }))?;
    }
    emit(&Event::Eof)?;
    emit(&Event::Description(DescriptionHead { length: 0 }))?;
    Ok(out)
}
