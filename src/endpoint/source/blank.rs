//! A stream from nothing: the migration of a machine without devices, as a template without pages.

use super::devices;
use crate::dialect::{Dialect, Difference, Release};
use crate::error::{Error, ErrorKind, Result};
use crate::stream::{Emitter, Event};
use crate::wire::{
    Advise, Bulk, Command, Configuration, DescriptionHead, FileHeader, Name, PageWord, RamBlock, RamFlags,
    SectionFooter, SectionHead, SectionIdentity, SectionKind,
};

/// A machine that never existed: what `-machine none` is, with any name, and RAM of any size.
///
/// ```
/// use migwire::endpoint::{Blank, Template};
/// let template = Template::blank(&Blank::new("none", "ram", 16 << 20))?;
/// assert_eq!(template.blocks()[0].used_length, 16 << 20);
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Blank {
    /// Class name of the machine type, without `-machine`.
    pub machine: String,
    /// Name of its RAM block.
    pub block: String,
    /// Bytes of RAM; a multiple of the page size.
    pub memory: u64,
    /// Page size of what backs the RAM, if that has larger pages than the host: 2 MiB, say. Postcopy needs to know, so that the stream
    /// announces it (ADVISE).
    pub huge_page: Option<u64>,
    /// What the guest does at the destination.
    pub state: RunState,
    /// As which release it is written. A source of no particular release writes what all of them take: what the oldest
    /// one does.
    pub dialect: Dialect,
}

/// What a guest was doing when it was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunState {
    /// It ran, and goes on at the destination.
    #[default]
    Running,
    /// It was stopped before, and stays so.
    Paused,
}

impl RunState {
    /// QEMU's name of the state (`RunState`, `qapi/run-state.json`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// Target page size of every target that a machine from nothing can stand for.
const PAGE_SIZE: u64 = 4096;

/// Section ids as releases from 8 on number them. Any numbers would do.
const TIMER: u32 = 0;
const RAM: u32 = 1;
const GLOBAL_STATE: u32 = 3;

impl Blank {
    /// A running machine of that name with one RAM block, written for all releases.
    pub fn new(machine: &str, block: &str, memory: u64) -> Self {
        Self {
            machine: machine.to_owned(),
            block: block.to_owned(),
            memory,
            huge_page: None,
            state: RunState::Running,
            dialect: Dialect::ANY,
        }
    }

    /// The stream without its PART.
    pub(super) fn stream(&self) -> Result<Vec<u8>> {
        let dialect =
            if self.dialect == Dialect::ANY { Dialect::release(Release::KNOWN[0]) } else { self.dialect };
        self.check()?;
        let mut out = Writer { emitter: Emitter::strict(), bytes: Vec::new() };
        out.event(&Event::Header(FileHeader::CURRENT))?;
        out.event(&Event::Configuration(Configuration { machine: Name(self.machine.as_bytes()) }))?;

        if let Some(huge_page) = self.huge_page {
            let advise = Advise { page_size_summary: huge_page, target_page_size: PAGE_SIZE };
            out.event(&Event::Command(Command::PostcopyAdvise(Some(advise))))?;
        }
        out.section(SectionKind::START, RAM, Some(("ram", 4)), |out| {
            out.event(&Event::RamWord(PageWord::new(self.memory, RamFlags::MEM_SIZE)))?;
            let block = RamBlock::new(Name(self.block.as_bytes()), self.memory);
            out.event(&Event::RamBlock(RamBlock { page_size: self.huge_page, ..block }))?;
            out.event(&Event::RamWord(PageWord::new(0, RamFlags::EOS)))
        })?;
        if dialect.has(Difference::SwitchoverStart) {
            out.event(&Event::Command(Command::SwitchoverStart))?;
        }
        out.section(SectionKind::END, RAM, None, |out| {
            out.event(&Event::RamWord(PageWord::new(0, RamFlags::EOS)))
        })?;

        let devices = [devices::timer(), devices::global_state(self.state, dialect)];
        for (device, id) in devices.iter().zip([TIMER, GLOBAL_STATE]) {
            out.section(SectionKind::FULL, id, Some((device.name, device.version)), |out| {
                out.event(&Event::Payload(Bulk::Bytes(&device.payload())))
            })?;
        }
        out.event(&Event::Eof)?;

        let text = devices::description(&self.machine, &devices, PAGE_SIZE, dialect);
        out.event(&Event::Description(DescriptionHead { length: text.len() as u32 }))?;
        out.event(&Event::DescriptionText(Bulk::Bytes(text.as_bytes())))?;
        Ok(out.bytes)
    }

    fn check(&self) -> Result<()> {
        let is_huge = |size: u64| size.is_power_of_two() && size > PAGE_SIZE;
        let message = if !self.huge_page.is_none_or(|size| is_huge(size) && self.memory.is_multiple_of(size))
        {
            "a huge page is a power of two, larger than a page, and the memory consists of whole ones"
                .to_owned()
        } else if self.memory == 0 || !self.memory.is_multiple_of(PAGE_SIZE) {
            format!("{} bytes of memory, where pages of {PAGE_SIZE} are needed", self.memory)
        } else if !(1..=255).contains(&self.block.len()) {
            "a block's name has 1 to 255 bytes".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::nowhere(ErrorKind::Misuse, "machine", message))
    }
}

struct Writer {
    emitter: Emitter,
    bytes: Vec<u8>,
}

impl Writer {
    fn event(&mut self, event: &Event<'_>) -> Result<()> {
        self.emitter.emit(event, &mut self.bytes)
    }

    fn section(
        &mut self,
        kind: SectionKind,
        section_id: u32,
        named: Option<(&str, u32)>,
        payload: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let identity = named.map(|(name, version_id)| SectionIdentity {
            idstr: name.into(),
            instance_id: 0,
            version_id,
        });
        self.event(&Event::Section(SectionHead { kind, section_id, identity }))?;
        payload(self)?;
        self.event(&Event::Footer(SectionFooter { section_id }))
    }
}
