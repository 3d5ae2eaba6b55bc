//! One channel out of a recording, as if it were a connection; and the list of channels there are.
//!
//! A recording interleaves its channels. Whoever parses one of them wants a plain `Read` with that channel's bytes,
//! so the file is read again for every channel: memory stays at one block, and no index has to be believed.

use std::io::{self, BufRead, Read, Seek};
use std::ops::Range;

use super::index;
use super::reader::Found;
use super::seal::Seal;
use super::{Direction, Interface, Reader, Timestamp, channel_of};
use crate::limits::MAX_CAPTURE_PLACES;
use crate::{ChannelId, Error, Result};

/// Bytes of a block in front of its body: type and length.
const BLOCK_HEAD: u64 = 8;

/// The bytes of one interface and direction, in order, out of the whole recording.
///
/// A fault in the recording appears as an `io::Error` of kind `InvalidData`, after every byte in front of it; the
/// [`Error`] itself is the inner error and is also given by [`take_error`](Self::take_error).
pub struct ChannelBytes<R> {
    reader: Reader<R>,
    interface: usize,
    direction: Direction,
    rest: Range<usize>,
    place: Option<(u64, Timestamp)>,
    error: Option<Error>,
}

impl<R: Read> ChannelBytes<R> {
    /// The bytes of interface number `interface` in the direction `direction`, from where `reader` stands.
    pub fn new(reader: Reader<R>, interface: usize, direction: Direction) -> Self {
        Self { reader, interface, direction, rest: 0..0, place: None, error: None }
    }

    /// When the bytes last read passed.
    pub fn time(&self) -> Option<Timestamp> {
        self.place.map(|(_, time)| time)
    }

    /// Where in the file the block starts that the bytes last read came from.
    pub fn file_offset(&self) -> Option<u64> {
        self.place.map(|(offset, _)| offset)
    }

    /// The fault that ended the channel, if one did.
    pub fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    fn next_packet(&mut self) -> Result<bool> {
        while let Some(Found { interface, direction, time, offset, data }) = self.reader.next_found()? {
            if (interface, direction) == (self.interface, self.direction) && !data.is_empty() {
                (self.rest, self.place) = (data, Some((offset, time)));
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl<R: Read> BufRead for ChannelBytes<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            // The block it pointed into is about to be replaced, even if no packet of this channel follows.
            self.rest = 0..0;
            self.next_packet().map_err(|error| {
                let e = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
                self.error = Some(error);
                e
            })?;
        }
        Ok(self.reader.bytes(self.rest.clone()))
    }

    fn consume(&mut self, amount: usize) {
        self.rest.start += amount.min(self.rest.len());
    }
}

impl<R: Read> Read for ChannelBytes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let data = self.fill_buf()?;
        let n = data.len().min(buffer.len());
        buffer[..n].copy_from_slice(&data[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// One direction of one connection, as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelSummary {
    /// Number of the interface, for [`ChannelBytes::new`].
    pub interface: usize,
    /// Name of the interface.
    pub name: String,
    /// What else is said about it: its peers.
    pub description: Option<String>,
    /// Which way.
    pub direction: Direction,
    /// How many bytes.
    pub bytes: u64,
    /// In how many packets.
    pub packets: u64,
    /// When the first byte passed.
    pub first: Timestamp,
    /// When the last one did.
    pub last: Timestamp,
}

impl ChannelSummary {
    /// What channel that is, if its name says so.
    pub fn channel(&self) -> Option<ChannelId> {
        channel_of(&self.name, self.direction)
    }

    /// A channel on which no byte passed, if it is one that somebody waits for all the same: a preempt channel.
    pub(super) fn silent(interface: usize, described: &Interface) -> Option<Self> {
        let Interface { name, description, .. } = described;
        let direction = Direction::ToDestination;
        let may_be_silent =
            matches!(channel_of(name, direction), Some(ChannelId::Preempt | ChannelId::ResumedPreempt(_)));
        may_be_silent.then(|| Self {
            interface,
            name: name.clone(),
            description: description.clone(),
            direction,
            bytes: 0,
            packets: 0,
            first: Timestamp::default(),
            last: Timestamp::default(),
        })
    }
}

/// What a recording holds, as far as it can be read.
#[derive(Debug)]
pub struct Listing {
    /// Every direction of every connection on which bytes passed, by interface, then to the destination first.
    pub channels: Vec<ChannelSummary>,
    /// Where the bytes of each of them are in the file. Nobody knows if reading stopped early, or if there are too many places.
    pub places: Option<Vec<Vec<Place>>>,
    /// What stopped the reading before the end of the file.
    pub error: Option<Error>,
    /// What the recorder knew about the migration, a JSON object; nobody has looked at it.
    pub about: Option<String>,
    /// What it says at its end that it holds.
    pub seal: Option<Seal>,
    /// Why it had to be read from end to end, if it should not have been necessary.
    pub note: Option<String>,
}

/// Bytes of one channel in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where they begin in the file.
    pub offset: u64,
    /// How many they are.
    pub len: u32,
}

/// One half of a connection, and where its bytes are.
type Half = (ChannelSummary, Vec<Place>);

/// Lists the channels of a recording, by its index if it has one that fits; otherwise reads it whole.
///
/// # Errors
/// As for [`channels`].
pub fn listing<S: Read + Seek>(mut source: S) -> Result<Listing> {
    // What cannot be read here cannot be read below either, and that says where.
    let sealed = Seal::find(&mut source).ok().flatten();
    let mut note = None;
    if let Some((seal, at)) = &sealed {
        let found = (seal.at == *at).then(|| index::read(&mut source, seal.index, *at).ok().flatten());
        match found.flatten() {
            Some(index::Found { channels, places, about }) => {
                let seal = sealed.map(|(seal, _)| seal);
                return Ok(Listing { channels, places, error: None, about, seal, note: None });
            }
            None => note = Some("its index does not fit any more, so it was read from end to end".to_owned()),
        }
    }
    source.rewind().map_err(|e| {
        Error::io("reading a recording", "the file cannot be read", e).on(ChannelId::Container)
    })?;
    Ok(Listing { seal: sealed.map(|(seal, _)| seal), note, ..channels(source)? })
}

/// Reads a whole recording and lists its channels.
///
/// # Errors
/// If it is no recording at all. A fault further on is part of the [`Listing`].
pub fn channels(source: impl Read) -> Result<Listing> {
    let mut reader = Reader::new(source)?;
    let mut found: Vec<[Option<Half>; 2]> = Vec::new();
    let mut count = 0usize;
    let error = loop {
        match reader.next_found() {
            Ok(Some(packet)) => {
                if found.len() <= packet.interface {
                    found.resize(packet.interface + 1, [None, None]);
                }
                let summary = &mut found[packet.interface][packet.direction as usize];
                let (summary, places) = summary.get_or_insert_with(|| {
                    let summary = ChannelSummary {
                        interface: packet.interface,
                        name: reader.interfaces()[packet.interface].name.clone(),
                        description: reader.interfaces()[packet.interface].description.clone(),
                        direction: packet.direction,
                        bytes: 0,
                        packets: 0,
                        first: packet.time,
                        last: packet.time,
                    };
                    (summary, Vec::new())
                });
                count += 1;
                if count <= MAX_CAPTURE_PLACES {
                    let offset = packet.offset + BLOCK_HEAD + packet.data.start as u64;
                    places.push(Place { offset, len: packet.data.len() as u32 });
                }
                summary.bytes += packet.data.len() as u64;
                summary.packets += 1;
                summary.first = summary.first.min(packet.time);
                summary.last = summary.last.max(packet.time);
            }
            Ok(None) => break None,
            Err(e) => break Some(e),
        }
    };
    found.resize(reader.interfaces().len().max(found.len()), [None, None]);
    for (number, (halves, interface)) in found.iter_mut().zip(reader.interfaces()).enumerate() {
        if halves.iter().all(Option::is_none) {
            halves[0] = ChannelSummary::silent(number, interface).map(|summary| (summary, Vec::new()));
        }
    }
    let (channels, places) = found.into_iter().flatten().flatten().unzip();
    let places = Some(places).filter(|_| error.is_none() && count <= MAX_CAPTURE_PLACES);
    let about = reader.about().map(str::to_owned);
    Ok(Listing { channels, places, error, about, seal: None, note: None })
}
