//! Makes the packets of the new migration's multifd channels: pages are gathered by block, and packets dealt out in turn.

use super::Outlet;
use super::plan::Plan;
use crate::dialect::Dialect;
use crate::error::{ChannelId, Result};
use crate::multifd::Framer;
use crate::multifd::codec::{self, Codec};
use crate::wire::{Method, MultifdHello, Wire as _};

pub(super) struct Packer {
    lanes: Vec<Lane>,
    dialect: Dialect,
    method: Method,
    uuid: [u8; 16],
    page_size: u64,
    /// Pages of a packet.
    room: usize,
    block: Vec<u8>,
    normal: Vec<u64>,
    zero: Vec<u64>,
    pages: Vec<u8>,
    next: usize,
    number: u64,
    /// A packet, as it goes out.
    packet: Vec<u8>,
    /// Pages went out since the last synchronisation.
    is_dirty: bool,
    has_synchronised: bool,
}

/// One channel.
struct Lane {
    framer: Framer,
    codec: Option<Box<dyn Codec>>,
}

impl Packer {
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        let mut lanes = Vec::new();
        // A source of any release leaves unused fields empty, as the newest does.
        let dialect = match plan.style.release_number() {
            Some(_) => plan.style,
            None => Dialect::ANY,
        };
        let channels = if plan.has_lanes() { plan.channels } else { 0 };
        for _ in 0..channels {
            let codec = match plan.method {
                Method::NONE => None,
                method => Some(codec::open(method, plan.options.level)?),
            };
            // The page size is known when the channels begin.
            lanes.push(Lane { framer: Framer::new(dialect, 4096), codec });
        }
        Ok(Self {
            lanes,
            dialect,
            method: plan.method,
            uuid: plan.uuid,
            page_size: 4096,
            room: 0,
            block: Vec::new(),
            normal: Vec::new(),
            zero: Vec::new(),
            pages: Vec::new(),
            next: 0,
            number: 0,
            packet: Vec::new(),
            is_dirty: false,
            has_synchronised: false,
        })
    }

    /// Opens the channels.
    pub(super) fn begin(&mut self, page_size: u64, outlet: &mut dyn Outlet) -> Result<()> {
        self.page_size = page_size;
        for (id, lane) in (0..).zip(&mut self.lanes) {
            lane.framer = Framer::new(self.dialect, page_size);
            self.room = lane.framer.page_count();
            let hello = MultifdHello { version: 1, uuid: self.uuid, id, unused: [0; 39] };
            let mut bytes = Vec::with_capacity(MultifdHello::LEN);
            hello.emit(&mut bytes);
            outlet.put(ChannelId::Multifd(id), &bytes)?;
        }
        Ok(())
    }

    /// Takes a page; `None` is one of zeros that is only listed.
    pub(super) fn add(
        &mut self,
        block: &[u8],
        offset: u64,
        bytes: Option<&[u8]>,
        outlet: &mut dyn Outlet,
    ) -> Result<()> {
        if self.block != block || self.normal.len() + self.zero.len() >= self.room {
            self.send(outlet)?;
            self.block.clear();
            self.block.extend_from_slice(block);
        }
        match bytes {
            Some(bytes) => {
                self.normal.push(offset);
                self.pages.extend_from_slice(bytes);
            }
            None => self.zero.push(offset),
        }
        self.is_dirty = true;
        Ok(())
    }

    /// Whether there are pages that no synchronisation has followed.
    pub(super) fn has_pages(&self) -> bool {
        self.is_dirty
    }

    /// Whether there was a synchronisation.
    pub(super) fn has_synchronised(&self) -> bool {
        self.has_synchronised
    }

    /// Sends what is there, and SYNC on every channel.
    pub(super) fn sync(&mut self, outlet: &mut dyn Outlet) -> Result<()> {
        self.send(outlet)?;
        self.is_dirty = false;
        self.has_synchronised = true;
        for (id, lane) in (0..).zip(&mut self.lanes) {
            outlet.put(ChannelId::Multifd(id), lane.framer.sync(self.number))?;
            self.number += 1;
        }
        Ok(())
    }

    /// Bytes of a packet of device state, which came on channel `from`.
    pub(super) fn pass(&mut self, from: u8, bytes: &[u8], outlet: &mut dyn Outlet) -> Result<()> {
        let id = usize::from(from) % self.lanes.len().max(1);
        outlet.put(ChannelId::Multifd(id as u8), bytes)
    }

    fn send(&mut self, outlet: &mut dyn Outlet) -> Result<()> {
        if self.normal.is_empty() && self.zero.is_empty() {
            return Ok(());
        }
        let id = self.next;
        self.next = (id + 1) % self.lanes.len().max(1);
        let Some(lane) = self.lanes.get_mut(id) else { return Ok(()) };
        let mut payload = Vec::new();
        match &mut lane.codec {
            Some(codec) if !self.normal.is_empty() => {
                codec.encode(&self.pages, self.page_size as usize, &mut payload)?;
                self.pages.clear();
            }
            _ => std::mem::swap(&mut payload, &mut self.pages),
        }
        let size = payload.len() as u32;
        let head = lane.framer.pages(&self.block, &self.normal, &self.zero, self.method, size, self.number);
        self.packet.clear();
        self.packet.extend_from_slice(head);
        self.packet.extend_from_slice(&payload);
        self.number += 1;
        self.normal.clear();
        self.zero.clear();
        // The buffer is used again.
        payload.clear();
        if self.pages.capacity() < payload.capacity() {
            self.pages = payload;
        }
        outlet.put(ChannelId::Multifd(id as u8), &self.packet)
    }
}
