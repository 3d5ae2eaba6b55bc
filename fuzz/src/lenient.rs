//! Lenient reading fails nowhere where strict reading succeeds, and keeps few complaints; and any sequence of events, written
//! by an obedient emitter, is read again without panic.

use arbitrary::{Result, Unstructured};
use migwire::channel::{ChannelEvent as _, ChannelParser as _, Step, Tail};
use migwire::dialect::Dialect;
use migwire::stream::{Emitter, Event, Mode, Parser};
use migwire::wire::{
    Advise, Bulk, Command, CommandCode, Configuration, ConfigurationSubsection, DescriptionHead, Discard,
    DiscardRange, FileHeader, MappedRamHeader, Name, Page, PageBody, PageWord, RamBlock, RamFlags,
    SectionFooter, SectionHead, SectionIdentity, SectionKind,
};

use crate::reading::{read, whole};

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    forgives(bytes);
    let mut source = Unstructured::new(bytes);
    let mut emitter = Emitter::obedient();
    let mut out = Vec::new();
    // The generator runs dry at the end of the bytes, which is when the sequence is long enough.
    while !source.is_empty() && out.len() < 64 << 10 {
        let Ok(event) = event(&mut source) else { break };
        emitter.emit(&event, &mut out).expect("an obedient emitter writes whatever has its bytes");
        assert_eq!(out.len() as u64, emitter.offset(), "{event:?} has another length than it says");
        assert_eq!(event.elided(), 0);
    }
    forgives(&out);
}

fn forgives(bytes: &[u8]) {
    let strict = read(&mut Parser::new(), bytes, whole);
    let mut parser = Parser::with(Mode::Lenient, Dialect::ANY);
    let lenient = read(&mut parser, bytes, whole);
    let common = strict.events.len();
    assert!(lenient.events.len() >= common, "lenient reading stops earlier: {:?}", lenient.error);
    assert!(lenient.events[..common] == strict.events, "lenient reading gives other events");
    if strict.error.is_none() {
        assert_eq!(lenient, strict);
        assert_eq!(parser.grammar().complaint_count(), 0, "{:?}", parser.grammar().complaints());
    }
    let complaints = parser.grammar().complaints();
    assert!(complaints.len() <= 64);
    assert!(complaints.len() as u64 <= parser.grammar().complaint_count());
    assert!(complaints.iter().all(|c| c.offset().is_some_and(|at| at <= bytes.len() as u64)));
    // The first complaint is what strict reading fails with, unless that fails with something that cannot be forgiven.
    if let (Some(error), Some(first)) = (&strict.error, complaints.first()) {
        assert_eq!(*error, first.to_string());
    }
    let mut parser = Parser::with(Mode::Lenient, Dialect::ANY).with_elision();
    let mut start = 0;
    while let Some(Ok(Step::Event(located))) = bytes.get(start..).map(|b| parser.step(b, Tail::Closed)) {
        start += located.raw.len() + usize::try_from(located.event.elided()).unwrap_or(0);
    }
}

/// Any event at all, with a bias to what makes sense.
fn event<'a>(u: &mut Unstructured<'a>) -> Result<Event<'a>> {
    Ok(match u.int_in_range(0..=17)? {
        0 => Event::Header(match u.ratio(7, 8)? {
            true => FileHeader::CURRENT,
            false => FileHeader { magic: u.arbitrary()?, version: u.arbitrary()? },
        }),
        1 => Event::Configuration(Configuration { machine: name(u)? }),
        2 => Event::ConfigurationSubsection(subsection(u)?),
        3 | 4 => Event::Section(section(u)?),
        5 => Event::RamWord(PageWord(u64::from(u.arbitrary::<u16>()?))),
        6 => Event::RamWord(PageWord::new(u64::from(u.arbitrary::<u16>()?) << 12, RamFlags::MEM_SIZE)),
        7 => Event::RamWord(PageWord::new(0, RamFlags::EOS)),
        8 => Event::RamBlock(block(u)?),
        9 => Event::MappedRam(bulk(u)?),
        10 | 11 => Event::Page(page(u)?),
        12 => Event::Payload(bulk(u)?),
        13 => Event::Footer(SectionFooter { section_id: id(u)? }),
        14 => Event::Command(command(u)?),
        15 => Event::Eof,
        16 => Event::Description(DescriptionHead { length: u.arbitrary::<u8>()?.into() }),
        _ => match u.arbitrary()? {
            true => Event::DescriptionText(bulk(u)?),
            false => Event::Trailing(bulk(u)?),
        },
    })
}

fn name<'a>(u: &mut Unstructured<'a>) -> Result<Name<'a>> {
    Ok(match u.int_in_range(0..=5)? {
        0 => Name(b"ram"),
        1 => Name(b"a"),
        2 => Name(b"device"),
        3 => Name(b""),
        _ => {
            let len = usize::from(u.arbitrary::<u8>()?).min(u.len());
            Name(u.bytes(len)?)
        }
    })
}

/// Few ids, so that records refer to each other.
fn id(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(if u.ratio(15, 16)? { u.int_in_range(0..=3)? } else { u.arbitrary()? })
}

fn bulk<'a>(u: &mut Unstructured<'a>) -> Result<Bulk<'a>> {
    let len = usize::from(u.arbitrary::<u8>()?).min(u.len());
    Ok(Bulk::Bytes(u.bytes(len)?))
}

fn subsection<'a>(u: &mut Unstructured<'a>) -> Result<ConfigurationSubsection<'a>> {
    let version = if u.ratio(7, 8)? { 1 } else { u.arbitrary()? };
    Ok(match u.int_in_range(0..=3)? {
        0 => ConfigurationSubsection::TargetPageBits { version, bits: u.int_in_range(8..=17)? },
        1 => ConfigurationSubsection::Uuid { version, uuid: u.arbitrary()? },
        2 => ConfigurationSubsection::Capabilities { version, names: vec![name(u)?, name(u)?] },
        _ => {
            let names = vec![Name(if u.arbitrary()? { b"mapped-ram" } else { b"x-ignore-shared" })];
            ConfigurationSubsection::Capabilities { version, names }
        }
    })
}

fn section<'a>(u: &mut Unstructured<'a>) -> Result<SectionHead<'a>> {
    let section_id = id(u)?;
    Ok(match u.arbitrary()? {
        true => {
            let kind = if u.arbitrary()? { SectionKind::START } else { SectionKind::FULL };
            let identity = SectionIdentity { idstr: name(u)?, instance_id: id(u)?, version_id: 4 };
            SectionHead { kind, section_id, identity: Some(identity) }
        }
        false => {
            let kind = if u.arbitrary()? { SectionKind::PART } else { SectionKind::END };
            SectionHead { kind, section_id, identity: None }
        }
    })
}

fn block<'a>(u: &mut Unstructured<'a>) -> Result<RamBlock<'a>> {
    let mapped = match u.ratio(1, 4)? {
        true => Some(MappedRamHeader {
            version: 1,
            page_size: 1024,
            bitmap_offset: u.arbitrary::<u16>()?.into(),
            pages_offset: u.arbitrary::<u16>()?.into(),
        }),
        false => None,
    };
    let length = match u.ratio(7, 8)? {
        true => u64::from(u.arbitrary::<u8>()?) << 12,
        false => u.arbitrary()?,
    };
    Ok(RamBlock {
        page_size: if u.ratio(1, 8)? { Some(1 << u.int_in_range(0..=63)?) } else { None },
        gpa: if u.ratio(1, 8)? { Some(u.arbitrary()?) } else { None },
        mapped,
        ..RamBlock::new(name(u)?, length)
    })
}

fn page<'a>(u: &mut Unstructured<'a>) -> Result<Page<'a>> {
    let offset = u64::from(u.arbitrary::<u8>()?) << 10;
    let (flag, body) = match u.int_in_range(0..=4)? {
        0 | 1 => (RamFlags::ZERO, PageBody::Zero(0)),
        2 => (RamFlags::PAGE, PageBody::Raw(bulk(u)?)),
        3 => {
            let Bulk::Bytes(delta) = bulk(u)? else { return Err(arbitrary::Error::IncorrectFormat) };
            (RamFlags::XBZRLE, PageBody::Xbzrle { encoding: 1, delta })
        }
        _ => {
            let Bulk::Bytes(data) = bulk(u)? else { return Err(arbitrary::Error::IncorrectFormat) };
            (RamFlags::COMPRESS_PAGE, PageBody::Compressed(data))
        }
    };
    let block = if u.arbitrary()? { Some(name(u)?) } else { None };
    let flags = if block.is_none() { flag | RamFlags::CONTINUE } else { flag };
    Ok(Page { word: PageWord::new(offset, flags), block, body })
}

fn command<'a>(u: &mut Unstructured<'a>) -> Result<Command<'a>> {
    Ok(match u.int_in_range(0..=11)? {
        0 => Command::OpenReturnPath,
        1 => Command::Ping(u.arbitrary()?),
        2 => Command::PostcopyAdvise(match u.arbitrary()? {
            true => Some(Advise {
                page_size_summary: u.arbitrary()?,
                target_page_size: 1 << u.int_in_range(0..=63)?,
            }),
            false => None,
        }),
        3 => Command::PostcopyListen,
        4 => Command::PostcopyRun,
        5 => Command::PostcopyRamDiscard(Discard {
            version: 0,
            block: name(u)?,
            nil: 0,
            ranges: vec![DiscardRange { start: u.arbitrary()?, length: u.arbitrary()? }],
        }),
        6 => Command::Packaged { size: u.arbitrary::<u8>()?.into() },
        7 => Command::EnableColo,
        8 => Command::PostcopyResume,
        9 => Command::RecvBitmap { block: name(u)? },
        10 => Command::SwitchoverStart,
        _ => {
            let Bulk::Bytes(payload) = bulk(u)? else { return Err(arbitrary::Error::IncorrectFormat) };
            Command::Other { code: CommandCode(u.arbitrary()?), payload }
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("lenient", 8_000, super::run);
    }
}
