//! Payload codecs, against the libraries below them doing the same work without knowing about packets.
//!
//! ```text
//! decode   Codec::decode, packet by packet     against  the library inflating one long stream into the same buffer
//! encode   Codec::encode, packet by packet     against  the library deflating the same pages, flushed where packets end
//! ```
//! Rates are of pages, not of payload.

use std::time::Instant;

use anyhow::{bail, ensure};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use migwire::guest::Pattern;
use migwire::multifd::codec::{self, Codec};
use migwire::wire::{MULTIFD_PACKET_SIZE, Method};
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, DCtx, InBuffer, OutBuffer};

use super::{Conditions, Found, Rate};

const PAGE: usize = 4096;

/// Bytes of pages in a packet.
const PACKET: usize = MULTIFD_PACKET_SIZE as usize;

/// The usual level of all methods.
const LEVEL: u32 = 1;

/// Bytes of pages that are held; larger sizes take them again and again.
const HELD: u64 = 64 << 20;

pub(super) fn decode(method: Method, pattern: Pattern, conditions: &Conditions) -> anyhow::Result<Found> {
    let work = Work::new(pattern, conditions);
    let mut codec = open(method)?;
    let mut payloads = Vec::new();
    for pages in work.packets() {
        let mut payload = Vec::new();
        codec.encode(pages, PAGE, &mut payload)?;
        payloads.push(payload);
    }
    let stream = payloads.concat();
    // Both into the same buffer; the pages are compared once, outside of what is timed.
    let mut buffer = vec![0; PACKET];
    let mut codec = open(method)?;
    for (payload, pages) in payloads.iter().zip(work.packets()) {
        codec.decode(payload, PAGE, &mut buffer)?;
        ensure!(buffer == pages, "the codec gives other pages than it was given");
    }
    let buffer = std::cell::RefCell::new(buffer);
    conditions.compare(
        || {
            let buffer = &mut buffer.borrow_mut();
            work.time(|| {
                let mut codec = open(method)?;
                payloads.iter().try_for_each(|payload| Ok(codec.decode(payload, PAGE, buffer)?))
            })
        },
        || {
            let buffer = &mut buffer.borrow_mut();
            work.time(|| match method {
                Method::ZLIB => inflate(&stream, payloads.len(), buffer),
                Method::ZSTD => decompress(&stream, payloads.len(), buffer),
                other => bail!("{other} has no library to compare with"),
            })
        },
    )
}

pub(super) fn encode(method: Method, pattern: Pattern, conditions: &Conditions) -> anyhow::Result<Found> {
    let work = Work::new(pattern, conditions);
    let out = std::cell::RefCell::new(Vec::with_capacity(2 * PACKET));
    conditions.compare(
        || {
            let out = &mut out.borrow_mut();
            work.time(|| {
                let mut codec = open(method)?;
                work.packets().try_for_each(|pages| {
                    out.clear();
                    Ok(codec.encode(pages, PAGE, out)?)
                })
            })
        },
        || {
            let out = &mut out.borrow_mut();
            work.time(|| match method {
                Method::ZLIB => deflate(&work, out),
                Method::ZSTD => compress(&work, out),
                other => bail!("{other} has no library to compare with"),
            })
        },
    )
}

/// Pages, and how often.
struct Work {
    pages: Vec<u8>,
    times: u64,
}

impl Work {
    fn new(pattern: Pattern, conditions: &Conditions) -> Self {
        let held = conditions.size.min(HELD).next_multiple_of(PACKET as u64);
        let mut pages = vec![0; held as usize];
        for (index, page) in pages.chunks_exact_mut(PAGE).enumerate() {
            pattern.fill((index * PAGE) as u64, page);
        }
        Self { pages, times: conditions.size.div_ceil(held) }
    }

    fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.pages.chunks_exact(PACKET)
    }

    fn time(&self, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Rate> {
        let begin = Instant::now();
        for _ in 0..self.times {
            run()?;
        }
        Ok(Rate { bytes: self.times * self.pages.len() as u64, elapsed: begin.elapsed() })
    }
}

fn open(method: Method) -> migwire::Result<Box<dyn Codec>> {
    codec::open(method, Some(LEVEL))
}

fn inflate(stream: &[u8], packets: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut inflater = Decompress::new(true);
    for packet in 1..=packets {
        let end = (packet * PACKET) as u64;
        while inflater.total_out() < end {
            let (rest, filled) =
                (&stream[inflater.total_in() as usize..], (end - inflater.total_out()) as usize);
            inflater.decompress(rest, &mut buffer[PACKET - filled..], FlushDecompress::None)?;
        }
    }
    Ok(())
}

fn deflate(work: &Work, out: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut deflater = Compress::new(Compression::new(LEVEL), true);
    for pages in work.packets() {
        out.clear();
        deflater.compress_vec(pages, out, FlushCompress::Sync)?;
        ensure!(out.len() < out.capacity(), "there was no room for the packet");
    }
    Ok(())
}

fn decompress(stream: &[u8], packets: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
    let mut frame = DCtx::create();
    let mut input = InBuffer::around(stream);
    for _ in 0..packets {
        let mut output = OutBuffer::around(&mut *buffer);
        while output.pos() < PACKET {
            frame.decompress_stream(&mut output, &mut input).map_err(zstd)?;
        }
    }
    Ok(())
}

fn compress(work: &Work, out: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut frame = CCtx::create();
    frame.set_parameter(CParameter::CompressionLevel(LEVEL.cast_signed())).map_err(zstd)?;
    for pages in work.packets() {
        out.clear();
        let (mut input, mut output) = (InBuffer::around(pages), OutBuffer::around(&mut *out));
        let flush = ZSTD_EndDirective::ZSTD_e_flush;
        let left = frame.compress_stream2(&mut output, &mut input, flush).map_err(zstd)?;
        ensure!(left == 0, "there was no room for the packet");
    }
    Ok(())
}

fn zstd(code: zstd_safe::ErrorCode) -> anyhow::Error {
    anyhow::anyhow!("zstd: {}", zstd_safe::get_error_name(code))
}
