//! COLO messages: what two ends say to each other behind the precopy, when they go on side by side (capability `x-colo`).
//!
//! ```text
//! be32 message            source to destination on the main channel, destination to source on its reverse direction
//! be64 size               behind VMSTATE_SIZE only: so many bytes of device state follow
//! ```
//! Source: `migration/colo.c`, `colo_send_message`, `colo_send_message_value`. They are read and written here, and not driven: a parser
//! gives what follows a stream with `x-colo` as trailing bytes.

use super::numbers::open_enum;
use super::{Cursor, Fault, Sink, Wire};

open_enum! {
    /// Number of a COLO message (`COLO_MESSAGE_*`).
    ColoCode(u32) {
        /// `COLO_MESSAGE_CHECKPOINT_READY`: the destination, once.
        CHECKPOINT_READY = 0,
        /// `COLO_MESSAGE_CHECKPOINT_REQUEST`: the source begins a checkpoint.
        CHECKPOINT_REQUEST = 1,
        /// `COLO_MESSAGE_CHECKPOINT_REPLY`: the destination has stopped its guest.
        CHECKPOINT_REPLY = 2,
        /// `COLO_MESSAGE_VMSTATE_SEND`: RAM follows, as END sections and EOF.
        VMSTATE_SEND = 3,
        /// `COLO_MESSAGE_VMSTATE_SIZE`: device state follows.
        VMSTATE_SIZE = 4,
        /// `COLO_MESSAGE_VMSTATE_RECEIVED`: the destination has all of it.
        VMSTATE_RECEIVED = 5,
        /// `COLO_MESSAGE_VMSTATE_LOADED`: and runs on with it.
        VMSTATE_LOADED = 6,
    }
}

/// A COLO message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColoMessage {
    /// So many bytes of device state follow.
    VmstateSize(u64),
    /// Any other one, which is its number.
    Plain(ColoCode),
}

impl<'a> Wire<'a> for ColoMessage {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        match ColoCode(input.be32("COLO message")?) {
            ColoCode::VMSTATE_SIZE => Ok(Self::VmstateSize(input.be64("size of the device state")?)),
            code => Ok(Self::Plain(code)),
        }
    }

    fn emit(&self, out: &mut impl Sink) {
        match self {
            Self::VmstateSize(size) => {
                out.be32(ColoCode::VMSTATE_SIZE.0);
                out.be64(*size);
            }
            Self::Plain(code) => out.be32(code.0),
        }
    }

    fn wire_len(&self) -> usize {
        match self {
            Self::VmstateSize(_) => 4 + 8,
            Self::Plain(_) => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn table() {
        round_trip(&ColoMessage::Plain(ColoCode::CHECKPOINT_READY), b"\0\0\0\0");
        round_trip(&ColoMessage::Plain(ColoCode::VMSTATE_LOADED), b"\0\0\0\x06");
        round_trip(&ColoMessage::VmstateSize(0x1234), b"\0\0\0\x04\0\0\0\0\0\0\x12\x34");
        round_trip(&ColoMessage::Plain(ColoCode(99)), b"\0\0\0\x63");
    }
}
