//! Commands: what the source tells the destination's load loop.
//!
//! ```text
//! u8 0x08   be16 command   be16 length   raw[length]
//! ```
//! Source: `migration/savevm.c`, `mig_cmd_args`, `qemu_savevm_command_send`, `loadvm_process_command`. No footer. A payload that does
//! not have the layout of its command parses as [`Command::Other`], so that every command is given back byte for byte.

use super::numbers::open_enum;
use super::{Cursor, Fault, Name, SectionKind, Sink, Wire};

open_enum! {
    /// Number of a command (`MIG_CMD_*`).
    CommandCode(u16) {
        /// `MIG_CMD_INVALID`: always refused.
        INVALID = 0,
        /// `MIG_CMD_OPEN_RETURN_PATH`
        OPEN_RETURN_PATH = 1,
        /// `MIG_CMD_PING`
        PING = 2,
        /// `MIG_CMD_POSTCOPY_ADVISE`
        POSTCOPY_ADVISE = 3,
        /// `MIG_CMD_POSTCOPY_LISTEN`
        POSTCOPY_LISTEN = 4,
        /// `MIG_CMD_POSTCOPY_RUN`
        POSTCOPY_RUN = 5,
        /// `MIG_CMD_POSTCOPY_RAM_DISCARD`
        POSTCOPY_RAM_DISCARD = 6,
        /// `MIG_CMD_PACKAGED`
        PACKAGED = 7,
        /// `MIG_CMD_ENABLE_COLO`: up to 10.2; 11.0 refuses it.
        ENABLE_COLO = 8,
        /// `MIG_CMD_POSTCOPY_RESUME`
        POSTCOPY_RESUME = 9,
        /// `MIG_CMD_RECV_BITMAP`
        RECV_BITMAP = 10,
        /// `MIG_CMD_SWITCHOVER_START`: 10.0 and later.
        SWITCHOVER_START = 11,
    }
}

impl CommandCode {
    /// The payload length that a destination insists on, for the commands that have one.
    pub fn fixed_len(self) -> Option<u16> {
        match self {
            Self::OPEN_RETURN_PATH
            | Self::POSTCOPY_LISTEN
            | Self::POSTCOPY_RUN
            | Self::ENABLE_COLO
            | Self::POSTCOPY_RESUME
            | Self::SWITCHOVER_START => Some(0),
            Self::PING | Self::PACKAGED => Some(4),
            _ => None,
        }
    }
}

/// Page sizes that a postcopy source announces (payload of `POSTCOPY_ADVISE` when `postcopy-ram` is on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advise {
    /// Bitwise OR of the page sizes of all RAM blocks.
    pub page_size_summary: u64,
    /// Target page size.
    pub target_page_size: u64,
}

/// Ranges of one RAM block that the destination must drop (`POSTCOPY_RAM_DISCARD`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discard<'a> {
    /// `postcopy_ram_discard_version`, 0.
    pub version: u8,
    /// RAM block.
    pub block: Name<'a>,
    /// Byte behind the name; 0 ("missing nil" otherwise).
    pub nil: u8,
    /// Ranges, at most 12 from a stock source.
    pub ranges: Vec<DiscardRange>,
}

/// A range of a RAM block, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardRange {
    /// Offset in the block.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A command with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// The destination may use the reverse direction from now on.
    OpenReturnPath,
    /// Asks for a PONG with the same value: 1 at the start, 2 to 4 around the postcopy switch, 0x42 in packages of 10.2+.
    Ping(u32),
    /// Postcopy may follow. Without page sizes when only `dirty-bitmaps` wants it.
    PostcopyAdvise(Option<Advise>),
    /// The destination starts to serve page faults.
    PostcopyListen,
    /// The destination starts the guest.
    PostcopyRun,
    /// Pages that were sent already and are stale.
    PostcopyRamDiscard(Discard<'a>),
    /// A nested stream of this many bytes follows, outside the payload.
    Packaged {
        /// Bytes of the nested stream.
        size: u32,
    },
    /// COLO begins behind the precopy.
    EnableColo,
    /// A paused postcopy goes on.
    PostcopyResume,
    /// Asks for the received-page bitmap of a block.
    RecvBitmap {
        /// RAM block.
        block: Name<'a>,
    },
    /// The guest at the source is stopped; device state follows.
    SwitchoverStart,
    /// A command without a name, or one whose payload does not have its layout.
    Other {
        /// Number of the command.
        code: CommandCode,
        /// Payload as it stands.
        payload: &'a [u8],
    },
}

impl Command<'_> {
    /// Bytes in front of the payload.
    pub const HEAD_LEN: usize = 1 + 2 + 2;

    /// Number of the command.
    pub fn code(&self) -> CommandCode {
        match self {
            Self::OpenReturnPath => CommandCode::OPEN_RETURN_PATH,
            Self::Ping(_) => CommandCode::PING,
            Self::PostcopyAdvise(_) => CommandCode::POSTCOPY_ADVISE,
            Self::PostcopyListen => CommandCode::POSTCOPY_LISTEN,
            Self::PostcopyRun => CommandCode::POSTCOPY_RUN,
            Self::PostcopyRamDiscard(_) => CommandCode::POSTCOPY_RAM_DISCARD,
            Self::Packaged { .. } => CommandCode::PACKAGED,
            Self::EnableColo => CommandCode::ENABLE_COLO,
            Self::PostcopyResume => CommandCode::POSTCOPY_RESUME,
            Self::RecvBitmap { .. } => CommandCode::RECV_BITMAP,
            Self::SwitchoverStart => CommandCode::SWITCHOVER_START,
            Self::Other { code, .. } => *code,
        }
    }

    /// Bytes of payload.
    pub fn payload_len(&self) -> usize {
        match self {
            Self::Ping(_) | Self::Packaged { .. } => 4,
            Self::PostcopyAdvise(Some(_)) => 16,
            Self::PostcopyRamDiscard(d) => 1 + 1 + d.block.0.len() + 1 + 16 * d.ranges.len(),
            Self::RecvBitmap { block } => 1 + block.0.len(),
            Self::Other { payload, .. } => payload.len(),
            _ => 0,
        }
    }
}

impl<'a> Wire<'a> for Command<'a> {
    fn parse(input: &mut Cursor<'a>) -> Result<Self, Fault> {
        let start = input.offset();
        match SectionKind(input.u8("command mark")?) {
            SectionKind::COMMAND => {}
            other => {
                let message = format!("{:#04x} where the command mark 0x08 was expected", other.0);
                return Err(Cursor::malformed(start, "command", message));
            }
        }
        let code = CommandCode(input.be16("command number")?);
        let length = input.be16("command length")?;
        let payload = input.take("command payload", usize::from(length))?;
        Ok(typed(code, payload).unwrap_or(Self::Other { code, payload }))
    }

    fn emit(&self, out: &mut impl Sink) {
        out.u8(SectionKind::COMMAND.0);
        out.be16(self.code().0);
        out.be16(self.payload_len() as u16);
        match self {
            Self::Ping(value) => out.be32(*value),
            Self::Packaged { size } => out.be32(*size),
            Self::PostcopyAdvise(Some(advise)) => {
                out.be64(advise.page_size_summary);
                out.be64(advise.target_page_size);
            }
            Self::PostcopyRamDiscard(discard) => {
                out.u8(discard.version);
                out.str8(discard.block);
                out.u8(discard.nil);
                for range in &discard.ranges {
                    out.be64(range.start);
                    out.be64(range.length);
                }
            }
            Self::RecvBitmap { block } => out.str8(*block),
            Self::Other { payload, .. } => out.put(payload),
            Self::PostcopyAdvise(None)
            | Self::OpenReturnPath
            | Self::PostcopyListen
            | Self::PostcopyRun
            | Self::EnableColo
            | Self::PostcopyResume
            | Self::SwitchoverStart => {}
        }
    }

    fn wire_len(&self) -> usize {
        Self::HEAD_LEN + self.payload_len()
    }
}

/// The command that `payload` spells out, if it has exactly the layout of `code`.
fn typed(code: CommandCode, payload: &[u8]) -> Option<Command<'_>> {
    let mut input = Cursor::new(0, payload);
    let command = match code {
        CommandCode::OPEN_RETURN_PATH => Command::OpenReturnPath,
        CommandCode::PING => Command::Ping(input.be32("value").ok()?),
        CommandCode::POSTCOPY_ADVISE if payload.is_empty() => Command::PostcopyAdvise(None),
        CommandCode::POSTCOPY_ADVISE => Command::PostcopyAdvise(Some(Advise {
            page_size_summary: input.be64("page size summary").ok()?,
            target_page_size: input.be64("target page size").ok()?,
        })),
        CommandCode::POSTCOPY_LISTEN => Command::PostcopyListen,
        CommandCode::POSTCOPY_RUN => Command::PostcopyRun,
        CommandCode::POSTCOPY_RAM_DISCARD => Command::PostcopyRamDiscard(Discard {
            version: input.u8("version").ok()?,
            block: input.str8("block").ok()?,
            nil: input.u8("nil").ok()?,
            ranges: ranges(&mut input)?,
        }),
        CommandCode::PACKAGED => Command::Packaged { size: input.be32("size").ok()? },
        CommandCode::ENABLE_COLO => Command::EnableColo,
        CommandCode::POSTCOPY_RESUME => Command::PostcopyResume,
        CommandCode::RECV_BITMAP => Command::RecvBitmap { block: input.str8("block").ok()? },
        CommandCode::SWITCHOVER_START => Command::SwitchoverStart,
        _ => return None,
    };
    input.is_empty().then_some(command)
}

fn ranges(input: &mut Cursor<'_>) -> Option<Vec<DiscardRange>> {
    let mut ranges = Vec::with_capacity(input.remaining() / 16);
    while !input.is_empty() {
        ranges.push(DiscardRange { start: input.be64("start").ok()?, length: input.be64("length").ok()? });
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    #[test]
    fn table() {
        round_trip(&Command::OpenReturnPath, b"\x08\0\x01\0\0");
        round_trip(&Command::Ping(0x42), b"\x08\0\x02\0\x04\0\0\0\x42");
        round_trip(&Command::PostcopyAdvise(None), b"\x08\0\x03\0\0");
        round_trip(
            &Command::PostcopyAdvise(Some(Advise { page_size_summary: 0x1000, target_page_size: 0x1000 })),
            b"\x08\0\x03\0\x10\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x10\0",
        );
        round_trip(&Command::PostcopyListen, b"\x08\0\x04\0\0");
        round_trip(&Command::PostcopyRun, b"\x08\0\x05\0\0");
        round_trip(
            &Command::PostcopyRamDiscard(Discard {
                version: 0,
                block: Name(b"pc.rom"),
                nil: 0,
                ranges: vec![DiscardRange { start: 0, length: 0x20000 }],
            }),
            b"\x08\0\x06\0\x19\0\x06pc.rom\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0",
        );
        round_trip(&Command::Packaged { size: 7 }, b"\x08\0\x07\0\x04\0\0\0\x07");
        round_trip(&Command::EnableColo, b"\x08\0\x08\0\0");
        round_trip(&Command::PostcopyResume, b"\x08\0\x09\0\0");
        round_trip(&Command::RecvBitmap { block: Name(b"ram") }, b"\x08\0\x0a\0\x04\x03ram");
        round_trip(&Command::SwitchoverStart, b"\x08\0\x0b\0\0");
    }

    #[test]
    fn odd_payloads_are_kept() {
        let other = |code, payload| Command::Other { code, payload };
        round_trip(&other(CommandCode(0x42), b"xyz"), b"\x08\0\x42\0\x03xyz");
        round_trip(&other(CommandCode::PING, b"\0\0"), b"\x08\0\x02\0\x02\0\0");
        round_trip(&other(CommandCode::OPEN_RETURN_PATH, b"\0"), b"\x08\0\x01\0\x01\0");
        round_trip(&other(CommandCode::RECV_BITMAP, b"\x09ram"), b"\x08\0\x0a\0\x04\x09ram");
        round_trip(&other(CommandCode::POSTCOPY_RAM_DISCARD, b"\0\x01a\0\0"), b"\x08\0\x06\0\x05\0\x01a\0\0");
    }
}
