//! The return path: bytes to replies and back, a step at a time.

use crate::channel::{ChannelEvent, ChannelParser, Located, Step, Tail};
use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::{MAX_RECEIVED_BITMAP, MAX_RETURN_PATH_PAYLOAD, PIECE};
use crate::stream::Mode;
use crate::wire::{BitmapHead, Bulk, Cursor, Fault, Message, MessageKind, RECV_BITMAP_END, Sink, Wire};

/// What comes on the return path: messages, and the bitmap that follows RECV_BITMAP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A message.
    Message(Message<'a>),
    /// Length of the bitmap behind RECV_BITMAP.
    Bitmap(BitmapHead),
    /// A piece of the bitmap: bit i of byte i/8, least significant first, is page i.
    BitmapBits(Bulk<'a>),
    /// The word behind the bitmap.
    BitmapEnd(u64),
}

impl ChannelEvent for Reply<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Message(_) => "return-path message",
            Self::Bitmap(_) => "received bitmap",
            Self::BitmapBits(_) => "received bitmap bits",
            Self::BitmapEnd(_) => "received bitmap end",
        }
    }

    fn emit(&self, out: &mut impl Sink) {
        match self {
            Self::Message(message) => message.emit(out),
            Self::Bitmap(head) => head.emit(out),
            Self::BitmapBits(bits) => bits.emit(out),
            Self::BitmapEnd(mark) => out.be64(*mark),
        }
    }

    fn wire_len(&self) -> u64 {
        match self {
            Self::Message(message) => message.wire_len() as u64,
            Self::Bitmap(head) => head.wire_len() as u64,
            Self::BitmapBits(bits) => bits.len(),
            Self::BitmapEnd(_) => 8,
        }
    }
}

/// Step parser of a return path. A return path has no header and no end mark: it begins with a message, and is over when
/// the connection is, between two messages.
#[derive(Clone, Debug)]
pub struct ReturnParser {
    mode: Mode,
    dialect: Dialect,
    offset: u64,
    expect: Expect,
    shut: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Message,
    Bitmap,
    Bits(u64),
    BitmapEnd,
}

impl Default for ReturnParser {
    fn default() -> Self {
        Self::with(Mode::Strict, Dialect::ANY)
    }
}

impl ReturnParser {
    /// A parser of that mode and dialect.
    pub fn with(mode: Mode, dialect: Dialect) -> Self {
        Self { mode, dialect, offset: 0, expect: Expect::Message, shut: None }
    }

    /// The status that SHUT carried, once it has come.
    pub fn shut(&self) -> Option<u32> {
        self.shut
    }

    fn lex<'a>(&self, input: &mut Cursor<'a>) -> Result<Reply<'a>, Fault> {
        match self.expect {
            Expect::Message => {
                let start = input.offset();
                // The head is judged before its payload is waited for: a source does so too.
                let mut head = input.clone();
                let kind = MessageKind(head.be16("message type")?);
                let length = head.be16("message length")?;
                self.check(kind, length, start)?;
                Message::parse(input).map(Reply::Message)
            }
            Expect::Bitmap => {
                let start = input.offset();
                let head = BitmapHead::parse(input)?;
                if head.size > MAX_RECEIVED_BITMAP {
                    let message =
                        format!("a bitmap of {} bytes, at most {MAX_RECEIVED_BITMAP} are taken", head.size);
                    return Err(self.error(ErrorKind::TooLarge, start, message).into());
                }
                Ok(Reply::Bitmap(head))
            }
            Expect::Bits(left) => {
                let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                input.take("bitmap", count).map(|bytes| Reply::BitmapBits(Bulk::Bytes(bytes)))
            }
            Expect::BitmapEnd => {
                let start = input.offset();
                let mark = input.be64("bitmap end mark")?;
                if mark != RECV_BITMAP_END && self.mode == Mode::Strict {
                    let message = format!("bitmap end mark {mark:#018x}, expected {RECV_BITMAP_END:#018x}");
                    return Err(self.error(ErrorKind::Malformed, start, message).into());
                }
                Ok(Reply::BitmapEnd(mark))
            }
        }
    }

    fn check(&self, kind: MessageKind, length: u16, start: u64) -> Result<()> {
        if self.mode == Mode::Lenient {
            return Ok(());
        }
        if length > MAX_RETURN_PATH_PAYLOAD {
            let message = format!(
                "{kind} with {length} bytes of payload, a source takes at most {MAX_RETURN_PATH_PAYLOAD}"
            );
            return Err(self.error(ErrorKind::TooLarge, start + 2, message));
        }
        let fixed = match kind {
            MessageKind::SHUT | MessageKind::PONG | MessageKind::RESUME_ACK => Some(4),
            MessageKind::REQ_PAGES => Some(12),
            MessageKind::SWITCHOVER_ACK => Some(0),
            MessageKind::REQ_PAGES_ID | MessageKind::RECV_BITMAP => None,
            _ => {
                return Err(self.error(
                    ErrorKind::Malformed,
                    start,
                    format!("invalid message type {:#06x}", kind.0),
                ));
            }
        };
        if kind == MessageKind::SWITCHOVER_ACK && !self.dialect.has(Difference::SwitchoverAck) {
            let message = format!("SWITCHOVER_ACK, which QEMU {} does not know", self.dialect);
            return Err(self.error(ErrorKind::Unsupported, start, message));
        }
        match fixed {
            Some(fixed) if fixed != length => {
                let message = format!("{kind} with {length} bytes of payload instead of {fixed}");
                Err(self.error(ErrorKind::Malformed, start + 2, message))
            }
            _ => Ok(()),
        }
    }

    fn note(&mut self, reply: &Reply<'_>) -> Result<()> {
        self.expect = match (reply, self.expect) {
            (Reply::Message(Message::RecvBitmap { .. }), _) => Expect::Bitmap,
            (Reply::Message(Message::Other { kind, .. }), _) if self.mode == Mode::Strict => {
                return Err(self.error(
                    ErrorKind::Malformed,
                    self.offset,
                    format!("{kind} with a payload that is not its own"),
                ));
            }
            (Reply::Message(Message::Shut(status)), _) => {
                self.shut = Some(*status);
                Expect::Message
            }
            (Reply::Bitmap(head), _) => bits(head.size),
            (Reply::BitmapBits(bulk), Expect::Bits(left)) => bits(left - bulk.len()),
            _ => Expect::Message,
        };
        Ok(())
    }

    #[cold]
    fn error(&self, kind: ErrorKind, offset: u64, message: impl Into<String>) -> Error {
        Error::new(kind, offset, "return path", message).on(ChannelId::ReturnPath)
    }
}

fn bits(left: u64) -> Expect {
    if left == 0 { Expect::BitmapEnd } else { Expect::Bits(left) }
}

impl ChannelParser for ReturnParser {
    type Event<'a> = Reply<'a>;

    fn step<'a>(&mut self, input: &'a [u8], tail: Tail) -> Result<Step<'a, Reply<'a>>> {
        if input.is_empty() && self.expect == Expect::Message && tail != Tail::Open {
            return Ok(Step::End);
        }
        let mut cursor = Cursor::new(self.offset, input);
        match self.lex(&mut cursor) {
            Ok(event) => {
                self.note(&event)?;
                let start = self.offset;
                self.offset += event.wire_len();
                Ok(Step::Event(Located {
                    event,
                    range: start..self.offset,
                    raw: &input[..cursor.consumed()],
                }))
            }
            Err(Fault::Bad(error)) => Err(error),
            Err(Fault::More { missing, .. }) if tail != Tail::Closed => Ok(Step::More(missing)),
            Err(Fault::More { field, .. }) => {
                let at = self.offset + input.len() as u64;
                Err(self.error(
                    ErrorKind::Truncated,
                    at,
                    format!("the return path ends here, inside {field}"),
                ))
            }
        }
    }

    fn offset(&self) -> u64 {
        self.offset
    }

    fn expected(&self) -> &'static str {
        match self.expect {
            Expect::Message => "a return-path message",
            Expect::Bitmap => "a bitmap",
            Expect::Bits(_) => "bits of a bitmap",
            Expect::BitmapEnd => "the end mark of a bitmap",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(bytes: &[u8], mode: Mode, step: usize) -> Result<Vec<(String, std::ops::Range<u64>)>> {
        let mut parser = ReturnParser::with(mode, Dialect::ANY);
        let (mut start, mut end, mut found) = (0, 0, Vec::new());
        loop {
            let tail = if end == bytes.len() { Tail::Closed } else { Tail::Open };
            match parser.step(&bytes[start..end], tail)? {
                Step::End => return Ok(found),
                Step::More(_) => end = (end + step).min(bytes.len()),
                Step::Event(located) => {
                    let mut out = Vec::new();
                    located.event.emit(&mut out);
                    assert_eq!(out, located.raw);
                    start += located.raw.len();
                    found.push((format!("{:?}", located.event), located.range));
                }
            }
        }
    }

    /// PONG, a bitmap, SHUT.
    const TALK: &[u8] = b"\0\x02\0\x04\0\0\0\x01\0\x05\0\x04\x03ram\0\0\0\0\0\0\0\x08abcdefgh\x01\x23\x45\x67\x89\xab\xcd\xef\0\x01\0\x04\0\0\0\0";

    #[test]
    fn the_same_whole_and_byte_by_byte() {
        let whole = replies(TALK, Mode::Strict, TALK.len()).unwrap();
        assert_eq!(whole.len(), 6);
        assert_eq!(whole, replies(TALK, Mode::Strict, 1).unwrap());
        assert_eq!(whole.last().map(|(_, range)| range.end), Some(TALK.len() as u64));
    }

    #[test]
    fn a_cut_is_named_and_between_messages_it_is_the_end() {
        for cut in 0..TALK.len() {
            match replies(&TALK[..cut], Mode::Strict, cut.max(1)) {
                Ok(found) => assert!(matches!(cut, 0 | 8 | 40), "{cut}: {found:?}"),
                Err(e) => assert_eq!(
                    (e.kind(), e.offset(), e.channel()),
                    (ErrorKind::Truncated, Some(cut as u64), ChannelId::ReturnPath)
                ),
            }
        }
    }

    #[test]
    fn what_a_source_refuses() {
        let refused = |bytes: &[u8]| replies(bytes, Mode::Strict, bytes.len()).unwrap_err().to_string();
        insta::assert_snapshot!(refused(b"\0\0\0\0"), @"return path: invalid message type 0x0000 (return path, offset 0x0)");
        insta::assert_snapshot!(refused(b"\0\x08\0\0"), @"return path: invalid message type 0x0008 (return path, offset 0x0)");
        insta::assert_snapshot!(refused(b"\0\x01\0\x03abc"), @"return path: SHUT with 3 bytes of payload instead of 4 (return path, offset 0x2)");
        insta::assert_snapshot!(refused(b"\0\x03\x02\x01"), @"return path: REQ_PAGES_ID with 513 bytes of payload, a source takes at most 512 (return path, offset 0x2)");
        insta::assert_snapshot!(refused(b"\0\x05\0\x02\x03r"), @"return path: RECV_BITMAP with a payload that is not its own (return path, offset 0x0)");
        insta::assert_snapshot!(
            refused(b"\0\x05\0\x02\x01r\xff\0\0\0\0\0\0\0"),
            @"return path: a bitmap of 18374686479671623680 bytes, at most 536870912 are taken (return path, offset 0x6)"
        );
    }
}
