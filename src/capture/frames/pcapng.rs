//! The blocks of a pcapng file that have to do with packets.

use std::io::Read;

use super::{LinkType, Step, Window, is_too_long};
use crate::capture::Timestamp;
use crate::capture::block::{self, Order};
use crate::limits::MAX_CAPTURE_INTERFACES;
use crate::{ErrorKind, Result};

/// Type and length in front of a block's body, and the length behind it.
const HEAD: usize = 8;
const TAIL: usize = 4;

#[derive(Default)]
pub(super) struct File {
    order: Option<Order>,
    interfaces: Vec<Interface>,
    /// The time of the packet before, for blocks that have none.
    time: Timestamp,
}

#[derive(Clone, Copy)]
struct Interface {
    link: LinkType,
    snap: u32,
    resolution: u8,
    offset: i64,
}

impl File {
    pub(super) fn step(&mut self, window: &mut Window<impl Read>) -> Result<Step> {
        if !window.need(HEAD + TAIL, "the head of a block")? {
            return Ok(Step::End);
        }
        let head = window.rest();
        // Reads the same in both byte orders; only behind it stands which one it is.
        let is_section = Order::Little.u32(head) == block::SECTION_HEADER;
        if is_section {
            self.order = match Order::Little.u32(&head[8..]) {
                block::BYTE_ORDER_MAGIC => Some(Order::Little),
                magic if magic.swap_bytes() == block::BYTE_ORDER_MAGIC => Some(Order::Big),
                magic => {
                    let message = format!("byte-order magic {magic:#010x}, where 0x1a2b3c4d was expected");
                    return Err(window.error(ErrorKind::Malformed, 8, message));
                }
            };
        }
        let order = self.order.unwrap_or(Order::Little);
        let (kind, size) = (order.u32(head), order.u32(&head[4..]));
        let least = match kind {
            block::SECTION_HEADER => 28,
            block::INTERFACE_DESCRIPTION => 20,
            block::ENHANCED_PACKET | block::OBSOLETE_PACKET => 32,
            block::SIMPLE_PACKET => 16,
            _ => 12,
        };
        if size < least || size % 4 != 0 {
            let message = format!("a block of type {kind:#x} cannot be {size} bytes long");
            return Err(window.error(ErrorKind::Malformed, 4, message));
        }
        let is_ours = matches!(
            kind,
            block::SECTION_HEADER
                | block::INTERFACE_DESCRIPTION
                | block::ENHANCED_PACKET
                | block::OBSOLETE_PACKET
                | block::SIMPLE_PACKET
        );
        if !is_ours {
            return Ok(Step::Skip(size.into()));
        }
        if is_too_long(size.into()) {
            let message = format!("a block of {size} bytes: no packet is that long");
            return Err(window.error(ErrorKind::TooLarge, 4, message));
        }
        let size = size as usize;
        window.need(size, "a block")?;
        let whole = &window.rest()[..size];
        let again = order.u32(&whole[size - TAIL..]);
        if again as usize != size {
            let message = format!("the block's length is {size} at its start and {again} at its end");
            return Err(window.error(ErrorKind::Malformed, size as u64 - 4, message));
        }
        let body = &whole[HEAD..size - TAIL];
        let step = match kind {
            block::SECTION_HEADER => {
                let major = order.u16(&body[4..]);
                if major != 1 {
                    let message = format!("pcapng version {major}, where 1 is known");
                    return Err(window.error(ErrorKind::Unsupported, 12, message));
                }
                self.interfaces.clear();
                Step::Other(size)
            }
            block::INTERFACE_DESCRIPTION => match self.interface(order, body) {
                Ok(()) => Step::Other(size),
                Err(what) => Step::Broken(size, what),
            },
            block::ENHANCED_PACKET => self.enhanced(order, body, size),
            block::OBSOLETE_PACKET => self.obsolete(order, body, size),
            _ => self.simple(order, body, size),
        };
        Ok(step)
    }

    fn interface(&mut self, order: Order, body: &[u8]) -> Result<(), &'static str> {
        if self.interfaces.len() >= MAX_CAPTURE_INTERFACES {
            return Err("more interfaces than any capture has");
        }
        let link = LinkType(order.u16(body));
        let mut found = Interface { link, snap: order.u32(&body[4..]), resolution: 6, offset: 0 };
        let mut rest = &body[8..];
        // An option that does not fit ends the list; what stands before it counts.
        while let Some((head, more)) = rest.split_first_chunk::<4>() {
            let (code, len) = (order.u16(head), usize::from(order.u16(&head[2..])));
            let Some(value) = more.get(..len).filter(|_| code != block::OPT_END) else { break };
            match (code, len) {
                (block::IF_TSRESOL, 1) => found.resolution = value[0],
                (block::IF_TSOFFSET, 8) => found.offset = order.i64(value),
                _ => {}
            }
            rest = more.get(len + block::padding(len)..).unwrap_or_default();
        }
        self.interfaces.push(found);
        Ok(())
    }

    fn enhanced(&mut self, order: Order, body: &[u8], size: usize) -> Step {
        let word = |i: usize| order.u32(&body[4 * i..]);
        self.packet(word(0), Some([word(1), word(2)]), word(3), word(4), body, size)
    }

    /// Interface and number of lost packets are 16 bits each; the rest is as above.
    fn obsolete(&mut self, order: Order, body: &[u8], size: usize) -> Step {
        let word = |i: usize| order.u32(&body[4 * i..]);
        self.packet(order.u16(body).into(), Some([word(1), word(2)]), word(3), word(4), body, size)
    }

    fn packet(
        &mut self,
        interface: u32,
        time: Option<[u32; 2]>,
        kept: u32,
        length: u32,
        body: &[u8],
        size: usize,
    ) -> Step {
        const DATA: usize = 20;
        let Some(interface) = self.interfaces.get(interface as usize) else {
            return Step::Broken(size, "a packet on an interface that is not there");
        };
        if kept as usize > body.len() - DATA {
            return Step::Broken(size, "a packet with more data than its block has room for");
        }
        if let Some([high, low]) = time {
            let ticks = (u64::from(high) << 32) | u64::from(low);
            self.time = block::nanoseconds(ticks, interface.resolution, interface.offset);
        }
        let data = HEAD + DATA..HEAD + DATA + kept as usize;
        Step::Packet { size, data, link: interface.link, time: self.time, length: length as usize }
    }

    /// Only the length on the wire: on the first interface, cut at its snap length, at no time.
    fn simple(&mut self, order: Order, body: &[u8], size: usize) -> Step {
        const DATA: usize = 4;
        let Some(interface) = self.interfaces.first() else {
            return Step::Broken(size, "a packet on an interface that is not there");
        };
        let length = order.u32(body) as usize;
        let snap = if interface.snap == 0 { usize::MAX } else { interface.snap as usize };
        let kept = length.min(snap);
        if kept > body.len() - DATA {
            return Step::Broken(size, "a packet with more data than its block has room for");
        }
        let data = HEAD + DATA..HEAD + DATA + kept;
        Step::Packet { size, data, link: interface.link, time: self.time, length }
    }
}
