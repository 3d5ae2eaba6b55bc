//! Return-path messages: what the destination says to the source on the main channel's reverse direction.
//!
//! ```text
//! be16 type   be16 length   raw[length]
//!   1 SHUT            be32 status                         5 RECV_BITMAP     str8 block, then a bitmap outside the message
//!   2 PONG            be32 value                          6 RESUME_ACK      be32 value
//!   3 REQ_PAGES_ID    be64 start  be32 length  str8 block 7 SWITCHOVER_ACK  nothing
//!   4 REQ_PAGES       be64 start  be32 length
//! bitmap   be64 size   raw[size]   be64 0x0123456789abcdef
//! ```
//! Source: `migration/migration.c`, `migrate_send_rp_message`, `source_return_path_thread`; bitmap: `migration/ram.c`,
//! `ramblock_recv_bitmap_send`. A payload without the layout of its type parses as [`Message::Other`].

use super::numbers::open_enum;
use super::{Cursor, Fault, Name, Sink, Wire};

open_enum! {
    /// Type of a return-path message (`MIG_RP_MSG_*`).
    MessageKind(u16) {
        /// `MIG_RP_MSG_INVALID`
        INVALID = 0,
        /// `MIG_RP_MSG_SHUT`
        SHUT = 1,
        /// `MIG_RP_MSG_PONG`
        PONG = 2,
        /// `MIG_RP_MSG_REQ_PAGES_ID`
        REQ_PAGES_ID = 3,
        /// `MIG_RP_MSG_REQ_PAGES`
        REQ_PAGES = 4,
        /// `MIG_RP_MSG_RECV_BITMAP`
        RECV_BITMAP = 5,
        /// `MIG_RP_MSG_RESUME_ACK`
        RESUME_ACK = 6,
        /// `MIG_RP_MSG_SWITCHOVER_ACK`: 8.1 and later.
        SWITCHOVER_ACK = 7,
    }
}

/// A return-path message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The destination is done; 0 means that it succeeded.
    Shut(u32),
    /// Answer to a PING.
    Pong(u32),
    /// Asks for pages of a named block.
    ReqPagesId {
        /// Offset in the block, in bytes.
        start: u64,
        /// Length in bytes.
        length: u32,
        /// RAM block.
        block: Name<'a>,
    },
    /// Asks for pages of the block that was named last.
    ReqPages {
        /// Offset in the block, in bytes.
        start: u64,
        /// Length in bytes.
        length: u32,
    },
    /// Which pages of a block have arrived; a bitmap follows outside the message.
    RecvBitmap {
        /// RAM block.
        block: Name<'a>,
    },
    /// The destination is ready to go on after a pause; 1.
    ResumeAck(u32),
    /// Initial device data is loaded, the source may switch over.
    SwitchoverAck,
    /// A type without a name, or a payload that does not have its layout.
    Other {
        /// Type of the message.
        kind: MessageKind,
        /// Payload as it stands.
        payload: &'a [u8],
    },
}

impl Message<'_> {
    /// Bytes in front of the payload.
    pub const HEAD_LEN: usize = 2 + 2;

    /// Type of the message.
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Shut(_) => MessageKind::SHUT,
            Self::Pong(_) => MessageKind::PONG,
            Self::ReqPagesId { .. } => MessageKind::REQ_PAGES_ID,
            Self::ReqPages { .. } => MessageKind::REQ_PAGES,
            Self::RecvBitmap { .. } => MessageKind::RECV_BITMAP,
            Self::ResumeAck(_) => MessageKind::RESUME_ACK,
            Self::SwitchoverAck => MessageKind::SWITCHOVER_ACK,
            Self::Other { kind, .. } => *kind,
        }
    }

    fn payload_len(&self) -> usize {
        match self {
            Self::Shut(_) | Self::Pong(_) | Self::ResumeAck(_) => 4,
            Self::ReqPagesId { block, .. } => 8 + 4 + 1 + block.0.len(),
            Self::ReqPages { .. } => 8 + 4,
            Self::RecvBitmap { block } => 1 + block.0.len(),
            Self::SwitchoverAck => 0,
            Self::Other { payload, .. } => payload.len(),
        }
    }
}

impl<'a> Wire<'a> for Message<'a> {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        let kind = MessageKind(input.be16("message type")?);
        let length = input.be16("message length")?;
        let payload = input.take("message payload", usize::from(length))?;
        Ok(typed(kind, payload).unwrap_or(Self::Other { kind, payload }))
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be16(self.kind().0);
        out.be16(self.payload_len() as u16);
        match self {
            Self::Shut(value) | Self::Pong(value) | Self::ResumeAck(value) => out.be32(*value),
            Self::ReqPagesId { start, length, block } => {
                out.be64(*start);
                out.be32(*length);
                out.str8(*block);
            }
            Self::ReqPages { start, length } => {
                out.be64(*start);
                out.be32(*length);
            }
            Self::RecvBitmap { block } => out.str8(*block),
            Self::SwitchoverAck => {}
            Self::Other { payload, .. } => out.put(payload),
        }
    }

    fn wire_len(&self) -> usize {
        Self::HEAD_LEN + self.payload_len()
    }
}

/// The message that `payload` spells out, if it has exactly the layout of `kind`.
fn typed(kind: MessageKind, payload: &[u8]) -> Option<Message<'_>> {
    let mut input = Cursor::new(0, payload);
    let message = match kind {
        MessageKind::SHUT => Message::Shut(input.be32("status").ok()?),
        MessageKind::PONG => Message::Pong(input.be32("value").ok()?),
        MessageKind::REQ_PAGES_ID => Message::ReqPagesId {
            start: input.be64("start").ok()?,
            length: input.be32("length").ok()?,
            block: input.str8("block").ok()?,
        },
        MessageKind::REQ_PAGES => {
            Message::ReqPages { start: input.be64("start").ok()?, length: input.be32("length").ok()? }
        }
        MessageKind::RECV_BITMAP => Message::RecvBitmap { block: input.str8("block").ok()? },
        MessageKind::RESUME_ACK => Message::ResumeAck(input.be32("value").ok()?),
        MessageKind::SWITCHOVER_ACK => Message::SwitchoverAck,
        _ => return None,
    };
    input.is_empty().then_some(message)
}

/// Last word of a received-page bitmap (`RAMBLOCK_RECV_BITMAP_ENDING`).
pub const RECV_BITMAP_END: u64 = 0x0123_4567_89ab_cdef;

/// Length of a received-page bitmap; the bits follow, then [`RECV_BITMAP_END`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapHead {
    /// Bytes of bitmap, a multiple of 8.
    pub size: u64,
}

impl<'a> Wire<'a> for BitmapHead {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        Ok(Self { size: input.be64("bitmap size")? })
    }

    fn emit(&self, out: &mut impl Sink) {
        out.be64(self.size);
    }

    fn wire_len(&self) -> usize {
        8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn table() {
        round_trip(&Message::Shut(1), b"\0\x01\0\x04\0\0\0\x01");
        round_trip(&Message::Pong(0x42), b"\0\x02\0\x04\0\0\0\x42");
        round_trip(
            &Message::ReqPagesId { start: 0x1000, length: 0x1000, block: Name(b"ram") },
            b"\0\x03\0\x10\0\0\0\0\0\0\x10\0\0\0\x10\0\x03ram",
        );
        round_trip(
            &Message::ReqPages { start: 0x1000, length: 0x1000 },
            b"\0\x04\0\x0c\0\0\0\0\0\0\x10\0\0\0\x10\0",
        );
        round_trip(&Message::RecvBitmap { block: Name(b"ram") }, b"\0\x05\0\x04\x03ram");
        round_trip(&Message::ResumeAck(1), b"\0\x06\0\x04\0\0\0\x01");
        round_trip(&Message::SwitchoverAck, b"\0\x07\0\0");
        round_trip(&BitmapHead { size: 512 }, b"\0\0\0\0\0\0\x02\0");
    }

    #[test]
    fn odd_payloads_are_kept() {
        round_trip(&Message::Other { kind: MessageKind(9), payload: b"?" }, b"\0\x09\0\x01?");
        round_trip(&Message::Other { kind: MessageKind::SHUT, payload: b"" }, b"\0\x01\0\0");
    }
}
