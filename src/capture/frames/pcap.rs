//! Classic pcap: a header of 24 bytes, and records.
//!
//! ```text
//! magic  u16 2  u16 4  i32 zone  u32 accuracy  u32 snap length  u32 link type (upper bits: frame check sequence)
//! u32 seconds  u32 parts  u32 bytes kept  u32 bytes on the wire  data
//! ```

use std::io::Read;

use super::{LinkType, Step, Window, is_too_long, since_epoch};
use crate::capture::block::Order;
use crate::{ErrorKind, Result};

const HEADER: usize = 24;
const RECORD: usize = 16;

pub(super) struct File {
    order: Order,
    nanoseconds: bool,
    link: LinkType,
}

impl File {
    pub(super) fn new(window: &mut Window<impl Read>, big_endian: bool, nanoseconds: bool) -> Result<Self> {
        let order = if big_endian { Order::Big } else { Order::Little };
        window.need(HEADER, "its header")?;
        let header = window.rest();
        let (major, link) = (order.u16(&header[4..]), order.u32(&header[20..]));
        if major != 2 {
            let message = format!("pcap version {major}, where 2 is known");
            return Err(window.error(ErrorKind::Unsupported, 4, message));
        }
        window.take(HEADER);
        Ok(Self { order, nanoseconds, link: LinkType(link as u16) })
    }

    pub(super) fn step(&mut self, window: &mut Window<impl Read>) -> Result<Step> {
        if !window.need(RECORD, "the head of a packet")? {
            return Ok(Step::End);
        }
        let word = |i: usize| self.order.u32(&window.rest()[4 * i..]);
        let [seconds, parts, kept, length] = [0, 1, 2, 3].map(word);
        if is_too_long(kept.into()) {
            let message = format!("a packet of {kept} bytes: no packet begins here");
            return Err(window.error(ErrorKind::Malformed, 8, message));
        }
        let size = RECORD + kept as usize;
        window.need(size, "a packet")?;
        let parts = u64::from(parts);
        let time = since_epoch(seconds.into(), if self.nanoseconds { parts } else { parts * 1000 });
        Ok(Step::Packet { size, data: RECORD..size, link: self.link, time, length: length as usize })
    }
}
