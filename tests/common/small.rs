//! Streams of a few hundred bytes, made by hand: together they hold every kind of event.
//!
//! Valid ones are in [`all`]; [`Small`] puts together broken ones as well, as it writes what it is told.

use migwire::channel::ChannelEvent as _;
use migwire::stream::Event;
use migwire::wire::{
    Advise, Bulk, Command, CommandCode, Configuration, ConfigurationSubsection, DescriptionHead, Discard,
    DiscardRange, FileHeader, MappedRamHeader, Name, Page, PageBody, PageWord, RamBlock, RamFlags,
    SectionFooter, SectionHead, SectionIdentity, SectionKind,
};

/// Section id of `ram` in all of them.
pub(crate) const RAM: u32 = 2;
/// Section id of the device.
pub(crate) const DEVICE: u32 = 7;
/// Target page size of streams that say so (the smallest there is keeps them small), and of no others.
pub(crate) const SMALL_PAGE: u64 = 1024;

/// A stream under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Small(pub(crate) Vec<u8>);

impl Small {
    /// Any event.
    pub(crate) fn event(mut self, event: &Event<'_>) -> Self {
        event.emit(&mut self.0);
        self
    }

    /// Any bytes.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Header and configuration with that machine name.
    pub(crate) fn begin() -> Self {
        Self::default().event(&Event::Header(FileHeader::CURRENT)).configuration("none")
    }

    pub(crate) fn configuration(self, machine: &str) -> Self {
        self.event(&Event::Configuration(Configuration { machine: machine.into() }))
    }

    pub(crate) fn subsection(self, subsection: ConfigurationSubsection<'_>) -> Self {
        self.event(&Event::ConfigurationSubsection(subsection))
    }

    pub(crate) fn page_bits(self, bits: u32) -> Self {
        self.subsection(ConfigurationSubsection::TargetPageBits { version: 1, bits })
    }

    pub(crate) fn capabilities(self, names: &[&'static str]) -> Self {
        let names = names.iter().map(|&name| name.into()).collect();
        self.subsection(ConfigurationSubsection::Capabilities { version: 1, names })
    }

    /// START or FULL.
    pub(crate) fn named(self, kind: SectionKind, section_id: u32, idstr: &str, version_id: u32) -> Self {
        let identity = Some(SectionIdentity { idstr: idstr.into(), instance_id: 0, version_id });
        self.event(&Event::Section(SectionHead { kind, section_id, identity }))
    }

    /// PART or END.
    pub(crate) fn again(self, kind: SectionKind, section_id: u32) -> Self {
        self.event(&Event::Section(SectionHead { kind, section_id, identity: None }))
    }

    pub(crate) fn footer(self, section_id: u32) -> Self {
        self.event(&Event::Footer(SectionFooter { section_id }))
    }

    pub(crate) fn word(self, offset: u64, flags: RamFlags) -> Self {
        self.event(&Event::RamWord(PageWord::new(offset, flags)))
    }

    /// MEM_SIZE and the entries of the list.
    pub(crate) fn list(self, total: u64, blocks: &[RamBlock<'_>]) -> Self {
        let list = self.word(total, RamFlags::MEM_SIZE);
        blocks.iter().fold(list, |list, block| list.event(&Event::RamBlock(*block)))
    }

    /// An entry of a mapped-ram list on small pages, with bitmap and pages behind it where its header says so.
    pub(crate) fn mapped(
        self,
        name: &str,
        pages: u64,
        twist: impl Fn(MappedRamHeader) -> MappedRamHeader,
    ) -> Self {
        let length = pages * SMALL_PAGE;
        let end = (self.0.len() + 1 + name.len() + 8 + 8 + 28) as u64;
        let pages_offset = (end + 8).next_multiple_of(SMALL_PAGE);
        let header = MappedRamHeader { version: 1, page_size: SMALL_PAGE, bitmap_offset: end, pages_offset };
        let header = twist(header);
        let block = RamBlock { gpa: Some(0), mapped: Some(header), ..RamBlock::new(name.into(), length) };
        let entry = self.event(&Event::RamBlock(block));
        match header.pages_offset {
            0 => entry,
            _ => entry
                .raw(&[3, 0, 0, 0, 0, 0, 0, 0])
                .raw(&vec![0; (pages_offset - end - 8) as usize])
                .raw(&vec![0xaa; length as usize]),
        }
    }

    pub(crate) fn eos(self) -> Self {
        self.word(0, RamFlags::EOS)
    }

    /// START of `ram` with one block, and its footer.
    pub(crate) fn ram(self, block: &str, length: u64) -> Self {
        self.named(SectionKind::START, RAM, "ram", 4)
            .list(length, &[RamBlock::new(block.into(), length)])
            .eos()
            .footer(RAM)
    }

    /// A page; without a block it has CONTINUE.
    pub(crate) fn page(self, offset: u64, block: Option<&str>, body: PageBody<'_>) -> Self {
        let action = match body {
            PageBody::Zero(_) => RamFlags::ZERO,
            PageBody::Raw(_) => RamFlags::PAGE,
            PageBody::Xbzrle { .. } => RamFlags::XBZRLE,
            PageBody::Compressed(_) => RamFlags::COMPRESS_PAGE,
        };
        let flags = if block.is_none() { action | RamFlags::CONTINUE } else { action };
        self.event(&Event::Page(Page {
            word: PageWord::new(offset, flags),
            block: block.map(Name::from),
            body,
        }))
    }

    /// A whole FULL section with footer.
    pub(crate) fn device(self, idstr: &str, payload: &[u8]) -> Self {
        self.named(SectionKind::FULL, DEVICE, idstr, 1).raw(payload).footer(DEVICE)
    }

    pub(crate) fn command(self, command: Command<'_>) -> Self {
        self.event(&Event::Command(command))
    }

    /// PACKAGED, around what `inside` has.
    pub(crate) fn package(self, inside: &Self) -> Self {
        self.command(Command::Packaged { size: inside.0.len() as u32 }).raw(&inside.0)
    }

    /// A command whose payload is anything.
    pub(crate) fn odd_command(self, code: CommandCode, payload: &[u8]) -> Self {
        self.command(Command::Other { code, payload })
    }

    pub(crate) fn eof(self) -> Self {
        self.event(&Event::Eof)
    }

    pub(crate) fn description(self, text: &str) -> Self {
        self.event(&Event::Description(DescriptionHead { length: text.len() as u32 })).raw(text.as_bytes())
    }
}

const START: SectionKind = SectionKind::START;
const PART: SectionKind = SectionKind::PART;
const END: SectionKind = SectionKind::END;
const FULL: SectionKind = SectionKind::FULL;

/// A description of a stream with the section `device`.
pub(crate) const DESCRIPTION: &str = r#"{"page_size": 4096, "devices": [{"name": "device", "instance_id": 0, "vmsd_name": "device", "version": 1, "fields": [{"name": "value", "type": "uint32", "size": 4}]}]}"#;

/// The valid ones, by name.
pub(crate) fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("bare", Small::default().event(&Event::Header(FileHeader::CURRENT)).eof().0),
        ("empty", Small::begin().eof().description("").0),
        ("precopy", precopy()),
        ("raw-page", raw_page()),
        ("pages", pages()),
        ("configuration", configuration()),
        ("ignore-shared", ignore_shared()),
        ("mapped-ram", mapped_ram()),
        ("postcopy", postcopy()),
        ("recovery", recovery()),
        ("colo", colo()),
        ("no-footers", no_footers()),
        ("no-configuration", no_configuration()),
        ("payload-looks-like-records", payload_looks_like_records()),
        ("live-device", live_device()),
    ]
}

/// What a source without any option writes.
fn precopy() -> Vec<u8> {
    Small::begin()
        .command(Command::OpenReturnPath)
        .command(Command::Ping(1))
        .ram("ram", 0x4000)
        .again(PART, RAM)
        .page(0, Some("ram"), PageBody::Zero(0))
        .page(0x1000, None, PageBody::Zero(0))
        .eos()
        .footer(RAM)
        .command(Command::SwitchoverStart)
        .again(END, RAM)
        .page(0x3000, None, PageBody::Zero(0))
        .eos()
        .footer(RAM)
        .device("device", b"\0\0\x01\x02")
        .eof()
        .description(DESCRIPTION)
        .0
}

fn raw_page() -> Vec<u8> {
    let page: Vec<u8> = (0..4096).map(|i| (i % 251) as u8).collect();
    Small::begin()
        .ram("ram", 0x2000)
        .again(END, RAM)
        .page(0x1000, Some("ram"), PageBody::Raw(Bulk::Bytes(&page)))
        .eos()
        .footer(RAM)
        .eof()
        .description("{}")
        .0
}

/// Every kind of page and word, on small pages.
fn pages() -> Vec<u8> {
    let page = [0x5a; SMALL_PAGE as usize];
    Small::begin()
        .page_bits(10)
        .named(START, RAM, "ram", 4)
        .list(0x1400, &[RamBlock::new(Name(b"a"), 0x1000), RamBlock::new(Name(b"/rom@b"), 0x400)])
        .word(0, RamFlags::MULTIFD_FLUSH)
        .word(0, RamFlags::HOOK)
        .eos()
        .footer(RAM)
        .again(PART, RAM)
        .page(0, Some("a"), PageBody::Raw(Bulk::Bytes(&page)))
        .page(0x400, None, PageBody::Zero(0x55))
        .page(0, Some("/rom@b"), PageBody::Raw(Bulk::Bytes(&page)))
        .page(0, Some("a"), PageBody::Xbzrle { encoding: 1, delta: b"\x02\x01A\x03\x02BC" })
        .page(0, None, PageBody::Xbzrle { encoding: 1, delta: b"" })
        .page(0x800, None, PageBody::Compressed(b"\x78\x9c\x03\0\0\0\0\x01"))
        .word(0, RamFlags::EOS | RamFlags::CONTINUE)
        .footer(RAM)
        .eof()
        .description("{}")
        .0
}

fn configuration() -> Vec<u8> {
    Small::default()
        .event(&Event::Header(FileHeader::CURRENT))
        .configuration("virt-7.2")
        .page_bits(16)
        .capabilities(&["xbzrle", "events"])
        .subsection(ConfigurationSubsection::Uuid { version: 1, uuid: *b"0123456789abcdef" })
        .eof()
        .description("")
        .0
}

fn ignore_shared() -> Vec<u8> {
    let block = RamBlock { gpa: Some(0x1_0000_0000), ..RamBlock::new(Name(b"shared"), 0x10_0000) };
    Small::begin()
        .capabilities(&["x-ignore-shared"])
        .named(START, RAM, "ram", 4)
        .list(0x10_0000, &[block])
        .eos()
        .footer(RAM)
        .eof()
        .description("{}")
        .0
}

/// Three blocks, one of them not in the file. Pages are nearer than a real writer puts them, which a reader does not mind.
fn mapped_ram() -> Vec<u8> {
    Small::begin()
        .page_bits(10)
        .capabilities(&["x-ignore-shared", "mapped-ram"])
        .named(START, RAM, "ram", 4)
        .list(0x8c00, &[])
        .mapped("a", 2, |header| header)
        .mapped("shared", 32, |header| MappedRamHeader { bitmap_offset: 0, pages_offset: 0, ..header })
        .mapped("b", 1, |header| header)
        .eos()
        .footer(RAM)
        .again(END, RAM)
        .eos()
        .footer(RAM)
        .eof()
        .description("{}")
        .0
}

fn postcopy() -> Vec<u8> {
    let advise = Advise { page_size_summary: 0x20_1000, target_page_size: 0x1000 };
    let huge = RamBlock { page_size: Some(0x20_0000), ..RamBlock::new(Name(b"huge"), 0x20_0000) };
    let discard = Discard {
        version: 0,
        block: Name(b"ram"),
        nil: 0,
        ranges: vec![DiscardRange { start: 0x1000, length: 0x2000 }],
    };
    let inside = Small::default()
        .command(Command::PostcopyListen)
        .device("device", b"\x7e\0\0\0\x06\0")
        .command(Command::Ping(3))
        .command(Command::Ping(0x42))
        .command(Command::PostcopyRun);
    Small::begin()
        .command(Command::OpenReturnPath)
        .command(Command::PostcopyAdvise(Some(advise)))
        .named(START, RAM, "ram", 4)
        .list(0x20_4000, &[huge, RamBlock::new(Name(b"ram"), 0x4000)])
        .eos()
        .footer(RAM)
        .again(PART, RAM)
        .page(0, Some("ram"), PageBody::Zero(0))
        .eos()
        .footer(RAM)
        .command(Command::PostcopyRamDiscard(discard))
        .package(&inside)
        .again(PART, RAM)
        .page(0x1000, Some("ram"), PageBody::Zero(0))
        .eos()
        .footer(RAM)
        .again(END, RAM)
        .eos()
        .footer(RAM)
        .eof()
        .0
}

/// Commands that a recovered postcopy has; a package that ends with EOF.
fn recovery() -> Vec<u8> {
    let inside = Small::default().device("device", b"1234").eof();
    Small::begin()
        .command(Command::PostcopyAdvise(None))
        .ram("ram", 0x4000)
        .command(Command::RecvBitmap { block: Name(b"ram") })
        .command(Command::PostcopyResume)
        .package(&inside)
        .eof()
        .0
}

/// COLO talks on behind the end.
fn colo() -> Vec<u8> {
    Small::begin().command(Command::EnableColo).eof().description("{}").raw(b"\0\0\0\x01\0\0\0\x02").0
}

fn no_footers() -> Vec<u8> {
    Small::begin()
        .named(START, RAM, "ram", 4)
        .list(0x1000, &[RamBlock::new(Name(b"ram"), 0x1000)])
        .eos()
        .again(END, RAM)
        .page(0, Some("ram"), PageBody::Zero(0))
        .eos()
        .named(FULL, 8, "timer", 2)
        .raw(b"\x99\x88\x77")
        .named(FULL, 9, "cpu", 12)
        .raw(b"\x66\x55")
        .eof()
        .description(DESCRIPTION)
        .0
}

fn no_configuration() -> Vec<u8> {
    Small::default()
        .event(&Event::Header(FileHeader::CURRENT))
        .ram("ram", 0x1000)
        .device("device", b"\xff")
        .eof()
        .0
}

/// A payload with the head of a section and its own footer in it; only what stands behind a footer tells them apart.
fn payload_looks_like_records() -> Vec<u8> {
    let payload = Small::default().named(FULL, 9, "cpu", 1).raw(b"\0\0").footer(DEVICE).raw(b"\xff\xff\0");
    Small::begin()
        .ram("ram", 0x1000)
        .device("device", &payload.0)
        .device("device", b"")
        .eof()
        .description(DESCRIPTION)
        .0
}

/// A live section that is not RAM, as `dirty-bitmap` is.
fn live_device() -> Vec<u8> {
    Small::begin()
        .ram("ram", 0x1000)
        .named(START, 3, "dirty-bitmap", 1)
        .raw(b"\x81\x01a")
        .footer(3)
        .again(PART, 3)
        .raw(b"\x01")
        .footer(3)
        .again(END, 3)
        .footer(3)
        .eof()
        .description("{}")
        .0
}
