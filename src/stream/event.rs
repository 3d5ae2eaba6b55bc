//! The one vocabulary of the main channel.

use crate::channel::ChannelEvent;
use crate::wire::{
    Bulk, Command, Configuration, ConfigurationSubsection, DescriptionHead, FileHeader, Page, PageWord,
    RamBlock, SectionFooter, SectionHead, SectionKind, Sink, Wire,
};

/// A record, or a piece of one that is too large to hold. Every byte of a channel belongs to exactly one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// `QEVM` and the version.
    Header(FileHeader),
    /// Machine name of the configuration record.
    Configuration(Configuration<'a>),
    /// A subsection of the configuration record.
    ConfigurationSubsection(ConfigurationSubsection<'a>),
    /// START, PART, END or FULL; its payload follows.
    Section(SectionHead<'a>),
    /// A word of a RAM payload that names no page: MEM_SIZE, EOS, MULTIFD_FLUSH, HOOK.
    RamWord(PageWord),
    /// An entry of the block list behind MEM_SIZE.
    RamBlock(RamBlock<'a>),
    /// Bytes of a mapped-ram file between a block's header and the next record: bitmap, holes and pages.
    MappedRam(Bulk<'a>),
    /// A page.
    Page(Page<'a>),
    /// A piece of a payload that only its device understands.
    Payload(Bulk<'a>),
    /// Footer of a section.
    Footer(SectionFooter),
    /// A command.
    Command(Command<'a>),
    /// `QEMU_VM_EOF`, of the stream or of a package in it.
    Eof,
    /// Head of the JSON description.
    Description(DescriptionHead),
    /// A piece of the JSON description.
    DescriptionText(Bulk<'a>),
    /// Bytes behind the end, which no destination reads.
    Trailing(Bulk<'a>),
}

impl ChannelEvent for Event<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Header(_) => "file header",
            Self::Configuration(_) => "configuration",
            Self::ConfigurationSubsection(_) => "configuration subsection",
            Self::Section(_) => "section",
            Self::RamWord(_) => "RAM word",
            Self::RamBlock(_) => "RAM block",
            Self::MappedRam(_) => "mapped-ram area",
            Self::Page(_) => "RAM page",
            Self::Payload(_) => "device payload",
            Self::Footer(_) => "section footer",
            Self::Command(_) => "command",
            Self::Eof => "EOF",
            Self::Description(_) => "VM description",
            Self::DescriptionText(_) => "VM description text",
            Self::Trailing(_) => "trailing bytes",
        }
    }

    /// Elided bytes are not written; [`Emitter`](super::Emitter) refuses them.
    fn emit(&self, out: &mut impl Sink) {
        match self {
            Self::Header(record) => record.emit(out),
            Self::Configuration(record) => record.emit(out),
            Self::ConfigurationSubsection(record) => record.emit(out),
            Self::Section(record) => record.emit(out),
            Self::RamWord(record) => record.emit(out),
            Self::RamBlock(record) => record.emit(out),
            Self::Page(record) => record.emit(out),
            Self::Footer(record) => record.emit(out),
            Self::Command(record) => record.emit(out),
            Self::Eof => out.u8(SectionKind::EOF.0),
            Self::Description(record) => record.emit(out),
            Self::MappedRam(bulk)
            | Self::Payload(bulk)
            | Self::DescriptionText(bulk)
            | Self::Trailing(bulk) => {
                bulk.emit(out);
            }
        }
    }

    fn wire_len(&self) -> u64 {
        match self {
            Self::Header(record) => record.wire_len() as u64,
            Self::Configuration(record) => record.wire_len() as u64,
            Self::ConfigurationSubsection(record) => record.wire_len() as u64,
            Self::Section(record) => record.wire_len() as u64,
            Self::RamWord(record) => record.wire_len() as u64,
            Self::RamBlock(record) => record.wire_len() as u64,
            Self::Page(record) => record.wire_len(),
            Self::Footer(record) => record.wire_len() as u64,
            Self::Command(record) => record.wire_len() as u64,
            Self::Eof => 1,
            Self::Description(record) => record.wire_len() as u64,
            Self::MappedRam(bulk)
            | Self::Payload(bulk)
            | Self::DescriptionText(bulk)
            | Self::Trailing(bulk) => bulk.len(),
        }
    }

    fn elided(&self) -> u64 {
        match self {
            Self::Page(page) => page.wire_len() - page.head_len() as u64,
            Self::MappedRam(Bulk::Elided(len))
            | Self::Payload(Bulk::Elided(len))
            | Self::DescriptionText(Bulk::Elided(len))
            | Self::Trailing(Bulk::Elided(len)) => *len,
            _ => 0,
        }
    }
}
