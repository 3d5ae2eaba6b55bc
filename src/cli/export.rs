//! `migwire export`: a migration as a capture of a network, or as raw channels.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use migwire::capture::{FrameWriter, LinkType, Timestamp};
use migwire::tcp::{Conversation, MAX_SEGMENT};
use migwire::{Error, ErrorKind};
use serde_json::json;

use super::Verdict;
use super::behind::Behind;
use super::channels::{Bit, Channels};
use super::files::{Files, Target};
use super::output;

const DOING: &str = "exporting";

/// Write a migration as a capture of a network
///
/// Puts every channel of a recording, or of a directory of raw channels, into a TCP connection that Wireshark puts together again,
/// and `migwire import` as well.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A recording, a directory of raw channels, or raw channels
    #[arg(required = true, value_name = "CAPTURE")]
    files: Vec<PathBuf>,

    /// FILE.pcapng: a capture of a network; DIR/: raw channels, `connNN.src-to-dst.bin`
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// IPv6 instead of IPv4
    #[arg(long)]
    ipv6: bool,

    /// Most bytes in a segment
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SEGMENT as u32, value_parser = clap::value_parser!(u32).range(1..=MAX_SEGMENT as i64))]
    segment: u32,

    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

impl Export {
    pub(crate) fn run(self) -> anyhow::Result<Verdict> {
        let target = Target::new(&self.output)?;
        let all = Channels::open(&self.files, Some(Box::new(std::io::stdin())))?;
        let [mut channels] = <[_; 1]>::try_from(all).map_err(|all: Vec<_>| {
            let message = format!("{} migrations, where one is wanted", all.len());
            Error::nowhere(ErrorKind::Misuse, DOING, message)
        })?;
        let mut files = Files::new(target.clone(), String::new(), None)?;
        for path in self.files.iter().filter(|path| path.as_os_str() != "-") {
            files.spare(path)?;
        }
        let packets = match target {
            Target::Directory(_) => {
                channels.each(|bit| {
                    let words = || (bit.name.to_owned(), None);
                    files.put(0, bit.slot, bit.time, bit.data, &words)
                })?;
                files.close(0)?;
                None
            }
            Target::Recording(path) => {
                files.check_spared(&path)?;
                let file = File::create(&path).map_err(|e| failed(&path, e))?;
                let comment = format!("exported from {}", output::names(&self.files));
                let wire = FrameWriter::new(Behind::new()?.file(file), LinkType(1), Some(&comment));
                let mut wire = Wire::new(self.ipv6, self.segment, wire.map_err(|e| failed(&path, e))?);
                channels.each(|bit| wire.put(bit))?;
                let packets = wire.packets;
                wire.finish()?;
                Some(packets)
            }
        };
        self.tell(&channels, packets)
    }

    fn tell(&self, channels: &Channels, packets: Option<u64>) -> anyhow::Result<Verdict> {
        let fault = channels.fault();
        let verdict = if fault.is_none() { "complete" } else { "incomplete" };
        if self.json {
            let counts = channels.connections().iter().map(|connection| {
                let [to_destination, to_source] = connection.bytes;
                json!({ "channel": connection.name, "to_destination": to_destination, "to_source": to_source })
            });
            output::print_json(&json!({
                "verdict": verdict,
                "output": self.output.display().to_string(),
                "packets": packets,
                "channels": counts.collect::<Vec<_>>(),
                "error": fault.map(output::error_json),
            }))?;
        } else {
            for connection in channels.connections() {
                let [to_destination, to_source] = connection.bytes.map(output::bytes);
                let name = &connection.name;
                eprintln!(
                    "{name:<14} {to_destination:>12} to the destination, {to_source:>12} to the source"
                );
            }
            if let Some(fault) = fault {
                super::given::complain("incomplete", fault);
            }
            eprintln!("{verdict}: {}", self.output.display());
        }
        Ok(if fault.is_none() { Verdict::Good } else { Verdict::Bad })
    }
}

/// The connections of the migration, as far as they have begun.
struct Wire<W: std::io::Write> {
    ipv6: bool,
    segment: u32,
    sink: FrameWriter<W>,
    packets: u64,
    open: BTreeMap<usize, Line>,
    last: Timestamp,
}

struct Line {
    conversation: Conversation,
    /// Where each direction is.
    offsets: [u64; 2],
    closed: bool,
}

impl<W: std::io::Write> Wire<W> {
    fn new(ipv6: bool, segment: u32, sink: FrameWriter<W>) -> Self {
        Self { ipv6, segment, sink, packets: 0, open: BTreeMap::new(), last: Timestamp(0) }
    }

    fn put(&mut self, bit: &Bit<'_>) -> Result<(), Error> {
        let Self { sink, packets, open, last, .. } = self;
        let time = bit.time;
        *last = time.max(*last);
        let mut emit = |head: &[u8], data: &[u8]| {
            *packets += 1;
            sink.write(time, head, data).map_err(|e| Error::io(DOING, "the capture cannot be written", e))
        };
        let line = match open.get_mut(&bit.slot.connection) {
            Some(line) => line,
            None => {
                let mut conversation = conversation(self.ipv6, self.segment as usize, bit.slot.connection);
                conversation.open(&mut emit)?;
                open.entry(bit.slot.connection).or_insert(Line {
                    conversation,
                    offsets: [0; 2],
                    closed: false,
                })
            }
        };
        let at = &mut line.offsets[bit.slot.direction as usize];
        if bit.offset > *at {
            line.conversation.skip(bit.slot.direction, bit.offset - *at);
        }
        *at = bit.offset + bit.data.len() as u64;
        line.conversation.say(bit.slot.direction, bit.data, &mut emit)?;
        if bit.is_last && !line.closed {
            line.closed = true;
            line.conversation.close(&mut emit)?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), Error> {
        let Self { mut sink, open, last, .. } = self;
        for mut line in open.into_values().filter(|line| !line.closed) {
            line.conversation.close(&mut |head, data| {
                sink.write(last, head, data).map_err(|e| Error::io(DOING, "the capture cannot be written", e))
            })?;
        }
        sink.finish().map(drop).map_err(|e| Error::io(DOING, "the capture cannot be written", e))
    }
}

/// Addresses for documentation, QEMU's usual port, and numbers that differ from connection to connection.
fn conversation(ipv6: bool, segment: usize, connection: usize) -> Conversation {
    let [source, destination]: [IpAddr; 2] = match ipv6 {
        false => [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()],
        true => [[0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2].into()],
    };
    let source = SocketAddr::new(source, 49_152 + (connection % 16_384) as u16);
    let number = (connection as u32 + 1).wrapping_mul(0x9e37_79b9);
    Conversation::new(source, SocketAddr::new(destination, 4444), [number, number.rotate_left(16)])
        .with_segments(segment)
}

#[cold]
fn failed(path: &std::path::Path, e: std::io::Error) -> Error {
    Error::io(DOING, path.display().to_string(), e)
}
