//! Where the records of a channel are, as it passes.

use crate::channel::{ChannelParser, Step, Tail};
use crate::dialect::Dialect;
use crate::multifd::{Packet, PacketParser};
use crate::postcopy::{Reply, ReturnParser};
use crate::stream::{Event, Mode, Parser};
use crate::wire::{
    CommandCode, DevicePacket, MessageKind, MultifdFlags, MultifdHello, RamFlags, SectionHead,
    VfioPacketHead, Wire as _,
};

use super::script::Channel;

/// What a record is, as far as rules can speak of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Page,
    Packet { is_sync: bool },
    Device { idx: Option<u64> },
    Hello,
    Section(String),
    Eos,
    Command(CommandCode),
    Message(MessageKind),
}

/// A record that begins at `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Where its content begins.
    pub(super) data: u64,
}

/// Reads a channel for its records.
pub(super) enum Tracker {
    Main(Box<Parser>),
    Multifd(Box<PacketParser>),
    ReturnPath(ReturnParser),
    /// Nothing in it can be told apart, or not any more.
    Blind,
}

impl Tracker {
    pub(super) fn new(channel: Channel) -> Self {
        match channel {
            Channel::Main => Self::Main(Box::new(Parser::with(Mode::Lenient, Dialect::ANY).with_elision())),
            Channel::Multifd(_) => {
                let parser = PacketParser::with(Mode::Lenient, Dialect::ANY, 4096);
                Self::Multifd(Box::new(parser.with_elision()))
            }
            Channel::ReturnPath => Self::ReturnPath(ReturnParser::with(Mode::Lenient, Dialect::ANY)),
            Channel::Preempt => Self::Blind,
        }
    }

    pub(super) fn is_blind(&self) -> bool {
        matches!(self, Self::Blind)
    }

    /// The next record at the beginning of `input`: how many of its bytes are decided with it (of which some may not have come yet), and
    /// what it is, if it is of interest. `None`: more bytes are needed.
    pub(super) fn step(&mut self, input: &[u8], tail: Tail) -> Option<(u64, Option<Record>)> {
        let found = match self {
            Self::Main(parser) => step(parser.as_mut(), input, tail, |event, range, raw, parser| {
                let page_size = parser.grammar().page_size();
                let data = |head: usize| range.start + head as u64;
                Some(match event {
                    Event::Page(page) => (Kind::Page, data(page.head_len().min(raw))),
                    Event::Section(head) => (Kind::Section(name(head, parser)), range.end),
                    Event::RamWord(word) if word.flags(page_size).action() == RamFlags::EOS => {
                        (Kind::Eos, range.end)
                    }
                    Event::Command(command) => (Kind::Command(command.code()), data(5)),
                    _ => return None,
                })
            }),
            Self::Multifd(_) if tail == Tail::Open && is_device(input) && input.len() < DEVICE => {
                return None;
            }
            Self::Multifd(parser) => {
                let found = step(parser.as_mut(), input, tail, |event, range, _, _| {
                    Some(match event {
                        Packet::Hello(_) => (Kind::Hello, range.end),
                        Packet::Ram(packet) => (
                            Kind::Packet { is_sync: packet.head.flags.0 & MultifdFlags::SYNC.0 != 0 },
                            range.end,
                        ),
                        Packet::Device(_) => (Kind::Device { idx: None }, range.end),
                        _ => return None,
                    })
                });
                // A packet is as long as its payload.
                let payload = parser.batch().payload_len();
                found.map(|found| {
                    found.map(|(decided, record)| {
                        let whole = record.map(|mut record| {
                            if record.kind != Kind::Hello {
                                record.end += payload;
                            }
                            if let Kind::Device { idx } = &mut record.kind {
                                *idx = input.get(DevicePacket::LEN..).and_then(number);
                            }
                            record
                        });
                        (decided, whole)
                    })
                })
            }
            Self::ReturnPath(parser) => step(parser, input, tail, |event, range, _, _| match event {
                Reply::Message(message) => Some((Kind::Message(message.kind()), range.start + 4)),
                _ => None,
            }),
            Self::Blind => None,
        };
        match found {
            Some(Some(found)) => Some(found),
            Some(None) => None,
            None => {
                *self = Self::Blind;
                None
            }
        }
    }

    /// Number of bytes at the beginning of a channel that its hello takes.
    pub(super) const HELLO: u64 = MultifdHello::LEN as u64;
}

/// One step of a parser: `None` if the channel cannot be read any further, `Some(None)` if more bytes are needed.
fn step<P: ChannelParser>(
    parser: &mut P,
    input: &[u8],
    tail: Tail,
    interest: impl FnOnce(&P::Event<'_>, &std::ops::Range<u64>, usize, &P) -> Option<(Kind, u64)>,
) -> Option<Option<(u64, Option<Record>)>> {
    match parser.step(input, tail) {
        Ok(Step::Event(located)) => {
            let range = located.range.clone();
            let raw = located.raw.len();
            let record = interest(&located.event, &range, raw, parser).map(|(kind, data)| Record {
                kind,
                start: range.start,
                end: range.end,
                data,
            });
            Some(Some((range.end - range.start, record)))
        }
        Ok(Step::More(_)) => Some(None),
        Ok(Step::End) | Err(_) => None,
    }
}

fn name(head: &SectionHead<'_>, parser: &Parser) -> String {
    let known = parser.grammar().section(head.section_id).map(|section| section.name().text().into_owned());
    head.identity.map(|identity| identity.idstr.text().into_owned()).or(known).unwrap_or_default()
}

/// Bytes that tell the number of a packet of device state.
const DEVICE: usize = DevicePacket::LEN + VfioPacketHead::LEN;

/// Whether a packet of device state stands there, which cannot be numbered before its payload begins.
fn is_device(input: &[u8]) -> bool {
    let flags = input.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    flags.is_some_and(|flags| flags & MultifdFlags::DEVICE_STATE.0 != 0)
}

/// The number of a packet of device state, from what it carries.
fn number(payload: &[u8]) -> Option<u64> {
    let mut input = crate::wire::Cursor::new(0, payload);
    VfioPacketHead::parse(&mut input).ok().map(|head| head.idx.into())
}
