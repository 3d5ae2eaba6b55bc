//! The pages in multifd packets, decoded, with the block that each belongs to.
//!
//! ```text
//! Item --> packet: block, offsets --> payload, collected where it is encoded --> codec of the channel --> page by page
//! ```
//! Encoded payloads are the only ones that are collected, one packet at a time. A channel whose payload cannot be decoded has lost
//! its history, as a rule, and gives no more pages; a page that has no place in the block list is left out. Both are faults that
//! are kept.

use std::collections::{BTreeMap, HashMap};

use super::Item;
use crate::channel::Located;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::MAX_COMPLAINTS;
use crate::multifd::codec::{self, Codec};
use crate::multifd::{Batch, Packet, PacketParser};
use crate::stream::Event;
use crate::wire::{Method, RamPacket};

/// A page of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultifdPage<'a> {
    /// The channel that it came on.
    pub channel: u8,
    /// Index of its block in the main channel's list; `None` if there is no main channel.
    pub block: Option<usize>,
    /// Offset in the block.
    pub offset: u64,
    /// Its bytes; `None` for a page of zeros that was only named.
    pub content: Option<&'a [u8]>,
    /// Target page size.
    pub page_size: u64,
}

/// Takes the packets of all channels, and gives their pages.
#[derive(Default)]
pub struct Pages {
    /// Index and length of every block.
    blocks: HashMap<Box<[u8]>, (usize, u64)>,
    /// Without a main channel nobody knows what blocks there are.
    has_list: bool,
    channels: BTreeMap<u8, Channel>,
    method: Option<Method>,
    payloads: u64,
    faults: Vec<Error>,
}

#[derive(Default)]
struct Channel {
    /// What has come of an encoded payload.
    payload: Vec<u8>,
    pages: Vec<u8>,
    codec: Option<Box<dyn Codec>>,
    place: Place,
    /// Nothing more can be decoded.
    broken: bool,
}

/// Where the pages of the packet that is being read belong.
#[derive(Clone, Copy, Default)]
enum Place {
    Block(usize),
    Unlisted,
    #[default]
    Nowhere,
}

impl Pages {
    /// Takes the next item of a migration, and hands its pages to `each`. Payloads must not have been left out.
    ///
    /// # Errors
    /// Those of `each`; `Misuse` for payloads that were left out. What is wrong with packets is in [`faults`](Self::faults).
    pub fn take(
        &mut self,
        item: Item<'_, '_>,
        mut each: impl FnMut(MultifdPage<'_>) -> Result<()>,
    ) -> Result<()> {
        match item {
            Item::Main(located, grammar) => {
                if let Event::RamBlock(block) = &located.event {
                    if grammar.blocks().len() == 1 {
                        self.blocks.clear();
                    }
                    self.has_list = true;
                    let index = grammar.blocks().len() - 1;
                    self.blocks.insert(block.name.0.into(), (index, block.used_length));
                }
                Ok(())
            }
            Item::Packet { channel: id, located, parser } => {
                let mut channel = self.channels.remove(&id).unwrap_or_default();
                let outcome = self.packet(id, &mut channel, located, parser, &mut each);
                self.channels.insert(id, channel);
                outcome
            }
        }
    }

    /// How pages are encoded, once there was one.
    pub fn method(&self) -> Option<Method> {
        self.method
    }

    /// Payloads that were decoded.
    pub fn payloads(&self) -> u64 {
        self.payloads
    }

    /// What was wrong: payloads that hold something else than their pages, pages that belong nowhere. The first 64.
    pub fn faults(&self) -> &[Error] {
        &self.faults
    }

    fn packet(
        &mut self,
        id: u8,
        channel: &mut Channel,
        located: &Located<'_, Packet<'_>>,
        parser: &PacketParser,
        each: &mut dyn FnMut(MultifdPage<'_>) -> Result<()>,
    ) -> Result<()> {
        let (batch, page_size) = (parser.batch(), parser.page_size());
        let at = located.range.start;
        match &located.event {
            Packet::Ram(packet) => {
                channel.payload.clear();
                if batch.normal().is_empty() && batch.zero().is_empty() {
                    return Ok(());
                }
                self.method.get_or_insert(batch.method());
                channel.place = self.locate(packet, batch, page_size).unwrap_or_else(|(behind, message)| {
                    self.fault(
                        Error::new(ErrorKind::Malformed, at + behind, "multifd packet", message)
                            .on(ChannelId::Multifd(id)),
                    );
                    Place::Nowhere
                });
                let Some(block) = channel.place.block() else { return Ok(()) };
                let zero = |offset: &u64| MultifdPage {
                    channel: id,
                    block,
                    offset: *offset,
                    content: None,
                    page_size,
                };
                batch.zero().iter().map(zero).try_for_each(each)
            }
            Packet::Payload(bulk) => {
                let Some(bytes) = bulk.bytes() else {
                    return Err(Error::new(
                        ErrorKind::Misuse,
                        at,
                        "multifd payload",
                        "an outline has no pages to give",
                    ));
                };
                if channel.broken {
                    return Ok(());
                }
                let block = channel.place.block();
                let page = |(offset, bytes)| {
                    block.map_or(Ok(()), |block| {
                        each(MultifdPage { channel: id, block, offset, content: Some(bytes), page_size })
                    })
                };
                if batch.method() == Method::NONE {
                    self.payloads += u64::from(batch.left() == 0);
                    return batch.pages(bytes).try_for_each(page);
                }
                match channel.decode(bytes, batch, page_size as usize) {
                    Ok(false) => Ok(()),
                    Ok(true) => {
                        self.payloads += 1;
                        batch
                            .normal()
                            .iter()
                            .copied()
                            .zip(channel.pages.chunks_exact(page_size as usize))
                            .try_for_each(page)
                    }
                    Err(error) => {
                        channel.broken = true;
                        // The payload ends with this piece.
                        let begin = located.range.end - batch.payload_len();
                        self.fault(
                            error.clone().at(begin + error.offset().unwrap_or(0)).on(ChannelId::Multifd(id)),
                        );
                        Ok(())
                    }
                }
            }
            Packet::Hello(_) | Packet::Device(_) | Packet::DeviceData(_) => Ok(()),
        }
    }

    /// The block of a packet; where in the packet the fault is and what it is, if its pages have no place there.
    fn locate(&self, packet: &RamPacket<'_>, batch: &Batch, page_size: u64) -> Result<Place, (u64, String)> {
        const BLOCK: u64 = 64;
        if !self.has_list {
            return Ok(Place::Unlisted);
        }
        let name = packet.block.name();
        let Some((index, length)) = self.blocks.get(name.0).copied() else {
            return Err((BLOCK, format!("there is no RAM block {name:?}")));
        };
        let last = length.saturating_sub(page_size);
        match batch.normal().iter().chain(batch.zero()).enumerate().find(|(_, offset)| **offset > last) {
            None => Ok(Place::Block(index)),
            Some((i, offset)) => {
                let behind = (RamPacket::FIXED_LEN + 8 * i) as u64;
                Err((behind, format!("offset {offset:#x} in block {name:?} of {length:#x} bytes")))
            }
        }
    }

    fn fault(&mut self, error: Error) {
        if self.faults.len() < MAX_COMPLAINTS {
            self.faults.push(error);
        }
    }
}

impl Place {
    fn block(self) -> Option<Option<usize>> {
        match self {
            Self::Block(index) => Some(Some(index)),
            Self::Unlisted => Some(None),
            Self::Nowhere => None,
        }
    }
}

impl Channel {
    /// Takes a piece of an encoded payload; whether that was the last one, and its pages are there.
    fn decode(&mut self, bytes: &[u8], batch: &Batch, page_size: usize) -> Result<bool> {
        // As a rule a payload is one piece.
        let whole = match (self.payload.is_empty(), batch.left()) {
            (true, 0) => bytes,
            (_, left) => {
                self.payload.extend_from_slice(bytes);
                if left > 0 {
                    return Ok(false);
                }
                &self.payload
            }
        };
        // A lenient reading goes on where the method changes.
        if self.codec.as_ref().is_none_or(|codec| codec.method() != batch.method()) {
            self.codec = Some(codec::open(batch.method(), None)?);
        }
        let Some(codec) = &mut self.codec else { return Ok(false) };
        self.pages.resize(batch.normal().len() * page_size, 0);
        codec.decode(whole, page_size, &mut self.pages)?;
        Ok(true)
    }
}
