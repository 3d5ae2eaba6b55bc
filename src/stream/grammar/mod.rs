//! What may come now, and what it refers to.
//!
//! ```text
//! Header -> Configuration -> Record <------------------------------------------+
//!                              |  COMMAND (PACKAGED: the same records, nested)  |
//!                              |  START/PART/END/FULL of "ram" -> RamWord       |
//!                              |      MEM_SIZE -> RamBlock (-> MappedRam) ..    |
//!                              |      page | FLUSH | HOOK                       |
//!                              |      EOS -> Footer ----------------------------+
//!                              |  START/PART/END/FULL of others -> Payload -> Footer
//!                              |  EOF -> AfterEof -> DescriptionText -> Trailing
//! ```
//! Parser and emitter both ask. In [`Mode::Strict`] what a stock destination would refuse is an error; in
//! [`Mode::Lenient`] it is a complaint that is kept, and the reading goes on wherever the bytes still make sense.

mod postcopy;
mod ram;

use std::collections::HashMap;

pub(crate) use postcopy::HostPage;
pub use postcopy::Postcopy;
pub use ram::Block;
use ram::Ram;

use super::Event;
use crate::channel::ChannelEvent as _;
use crate::dialect::{Dialect, Difference};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{
    MAX_COMPLAINTS, MAX_CONFIGURATION_SUBSECTIONS, MAX_DESCRIPTION, MAX_PACKAGE, MAX_PAGE_BITS,
};
use crate::limits::{MAX_SECTIONS, MIN_PAGE_BITS};
use crate::wire::{
    Command, CommandCode, ConfigurationSubsection, FileHeader, Name, RamFields, SectionHead, SectionKind,
    Wire as _,
};

/// How much is forgiven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// What a stock destination refuses is an error.
    #[default]
    Strict,
    /// It is a complaint instead, where reading can go on.
    Lenient,
}

/// What the next event may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The file header.
    Header,
    /// The configuration record, or already the first record (old machine types).
    Configuration,
    /// A section, a command or EOF; behind the configuration's name also its subsections.
    Record,
    /// A page, or a word of a RAM payload.
    RamWord,
    /// An entry of the block list.
    RamBlock,
    /// Bytes of a mapped-ram file between two entries.
    MappedRam {
        /// How many.
        left: u64,
    },
    /// A device payload.
    Payload,
    /// The footer of the section, or already the next record if footers are off or not yet known to be on.
    Footer,
    /// The description, or nothing.
    AfterEof,
    /// Text of the description.
    DescriptionText {
        /// How many bytes.
        left: u64,
    },
    /// Bytes that no destination reads.
    Trailing,
}

/// A section that START or FULL has announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name of the handler.
    pub idstr: Box<[u8]>,
    /// Which of several of that name.
    pub instance_id: u32,
    /// Version of its layout.
    pub version_id: u32,
}

impl Section {
    /// Whether the payload is RAM, which this library reads, or opaque.
    pub fn is_ram(&self) -> bool {
        &*self.idstr == b"ram"
    }

    /// Name of the handler.
    pub fn name(&self) -> Name<'_> {
        Name(&self.idstr)
    }
}

/// State of the protocol on one main channel.
#[derive(Clone, Debug)]
pub struct Grammar {
    mode: Mode,
    dialect: Dialect,
    phase: Phase,
    subsections: Option<usize>,
    footers: Option<bool>,
    sections: HashMap<u32, Section>,
    section: Option<(SectionKind, u32)>,
    ram: Ram,
    package: Option<u64>,
    postcopy: Postcopy,
    /// LISTEN has come, for RAM, without a DISCARD before it.
    skipped_discard: bool,
    colo: bool,
    overrun: bool,
    complaints: Vec<Error>,
    complaint_count: u64,
}

impl Grammar {
    /// The state in front of the file header.
    pub fn new(mode: Mode, dialect: Dialect) -> Self {
        Self {
            mode,
            dialect,
            phase: Phase::Header,
            subsections: None,
            footers: None,
            sections: HashMap::new(),
            section: None,
            ram: Ram::new(),
            package: None,
            postcopy: Postcopy::None,
            skipped_discard: false,
            colo: false,
            overrun: false,
            complaints: Vec::new(),
            complaint_count: 0,
        }
    }

    /// What may come now.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether a configuration subsection may come now.
    pub fn subsection_may_come(&self) -> bool {
        self.phase == Phase::Record && self.subsections.is_some()
    }

    /// Whether sections have footers, once that is known.
    pub fn footers(&self) -> Option<bool> {
        self.footers
    }

    /// Target page size: 4096 until the stream says otherwise.
    pub fn page_size(&self) -> u64 {
        self.ram.page_size
    }

    /// Sets the target page size for a stream that does not say it. Powers of two from 1 KiB to 64 KiB.
    pub fn set_page_size(&mut self, page_size: u64) {
        if page_size.is_power_of_two()
            && (MIN_PAGE_BITS..=MAX_PAGE_BITS).contains(&page_size.trailing_zeros())
        {
            self.ram.page_size = page_size;
        }
    }

    /// Optional fields of the block list's entries.
    pub fn ram_fields(&self) -> RamFields {
        self.ram.fields
    }

    /// RAM blocks, in list order.
    pub fn blocks(&self) -> &[Block] {
        &self.ram.blocks
    }

    /// Index of the block that the last page belongs to.
    pub fn current_block(&self) -> Option<usize> {
        self.ram.current
    }

    /// The section that is open, with the kind of its record.
    pub fn current_section(&self) -> Option<(SectionKind, u32, &Section)> {
        let (kind, id) = self.section?;
        Some((kind, id, self.sections.get(&id)?))
    }

    /// The section of that id.
    pub fn section(&self, id: u32) -> Option<&Section> {
        self.sections.get(&id)
    }

    /// Where the package that is being read ends.
    pub fn package_end(&self) -> Option<u64> {
        self.package
    }

    /// Whether the destination was told to listen: the stream is in postcopy, and has no description.
    pub fn is_postcopy(&self) -> bool {
        self.postcopy.is_switched()
    }

    /// What was forgiven, oldest first; at most 64 of them are kept, see [`complaint_count`](Self::complaint_count).
    pub fn complaints(&self) -> &[Error] {
        &self.complaints
    }

    /// How often something was forgiven.
    pub fn complaint_count(&self) -> u64 {
        self.complaint_count
    }

    /// Takes note of `event`, which begins at `offset`.
    ///
    /// # Errors
    /// `OutOfOrder` if it may not come now; in strict mode also what a stock destination would refuse about it.
    pub fn admit(&mut self, event: &Event<'_>, offset: u64) -> Result<()> {
        if let Some(end) = self.package
            && offset + event.wire_len() > end
        {
            let message = format!("it reaches past the end of the package at {end:#x}");
            return Err(Error::new(ErrorKind::Malformed, offset, event.name(), message));
        }
        self.dispatch(event, offset)?;
        self.leave_package(event, offset)
    }

    fn dispatch(&mut self, event: &Event<'_>, offset: u64) -> Result<()> {
        match (event, self.phase) {
            (Event::Page(page), Phase::RamWord) => self.admit_page(page, offset),
            (Event::RamWord(word), Phase::RamWord) => self.admit_ram_word(*word, offset),
            (Event::RamBlock(block), Phase::RamBlock) => self.admit_ram_block(block, offset),
            (Event::Payload(_), Phase::Payload) => Ok(()),
            (Event::MappedRam(bulk), Phase::MappedRam { left }) if bulk.len() <= left => {
                self.phase = match left - bulk.len() {
                    0 => self.after_block(),
                    left => Phase::MappedRam { left },
                };
                Ok(())
            }
            (Event::Footer(footer), Phase::Payload | Phase::Footer) => {
                self.admit_footer(footer.section_id, offset)
            }
            (Event::Header(header), Phase::Header) => self.admit_header(header, offset),
            (Event::Configuration(_), Phase::Configuration) => {
                self.phase = Phase::Record;
                self.subsections = Some(0);
                Ok(())
            }
            (Event::ConfigurationSubsection(sub), Phase::Record) if self.subsections.is_some() => {
                self.admit_subsection(sub, offset)
            }
            (
                Event::Section(_) | Event::Command(_) | Event::Eof,
                Phase::Configuration | Phase::Record | Phase::Payload | Phase::Footer,
            ) => {
                self.end_section(offset)?;
                self.subsections = None;
                match event {
                    Event::Section(head) => self.admit_section(head, offset),
                    Event::Command(command) => self.admit_command(command, offset),
                    _ => {
                        self.phase = if self.package.is_some() { Phase::Trailing } else { Phase::AfterEof };
                        Ok(())
                    }
                }
            }
            (Event::Description(head), Phase::AfterEof) => {
                if head.length > MAX_DESCRIPTION {
                    let message =
                        format!("{} bytes of text, at most {MAX_DESCRIPTION} are taken", head.length);
                    return Err(Error::new(ErrorKind::TooLarge, offset + 1, "VM description", message));
                }
                self.phase = match head.length {
                    0 => Phase::Trailing,
                    length => Phase::DescriptionText { left: u64::from(length) },
                };
                Ok(())
            }
            (Event::DescriptionText(bulk), Phase::DescriptionText { left }) if bulk.len() <= left => {
                self.phase = match left - bulk.len() {
                    0 => Phase::Trailing,
                    left => Phase::DescriptionText { left },
                };
                Ok(())
            }
            (Event::Trailing(_), Phase::AfterEof | Phase::Trailing) => self.admit_trailing(offset),
            _ => {
                let message = format!("it may not come here, where {} is expected", self.expected());
                Err(Error::new(ErrorKind::OutOfOrder, offset, event.name(), message))
            }
        }
    }

    /// What may come now, in words.
    pub fn expected(&self) -> &'static str {
        match self.phase {
            Phase::Header => "the file header",
            Phase::Configuration => "the configuration or a record",
            Phase::Record => "a section, a command or EOF",
            Phase::RamWord => "a page or a RAM word",
            Phase::RamBlock => "an entry of the block list",
            Phase::MappedRam { .. } => "a mapped-ram area",
            Phase::Payload => "a device payload",
            Phase::Footer => "a section footer or a record",
            Phase::AfterEof => "the VM description or nothing",
            Phase::DescriptionText { .. } => "the text of the VM description",
            Phase::Trailing => "nothing",
        }
    }

    fn admit_header(&mut self, header: &FileHeader, offset: u64) -> Result<()> {
        self.phase = Phase::Configuration;
        if header.magic != FileHeader::MAGIC {
            let message = format!(
                "not a migration stream: magic {:#010x}, expected {:#010x}",
                header.magic,
                FileHeader::MAGIC
            );
            return self.refuse(ErrorKind::Malformed, offset, "file header", message);
        }
        match header.version {
            FileHeader::VERSION => Ok(()),
            2 => self.refuse(
                ErrorKind::Unsupported,
                offset + 4,
                "file header",
                "version 2 is obsolete, no QEMU since 0.13 loads it",
            ),
            other => self.refuse(
                ErrorKind::Unsupported,
                offset + 4,
                "file header",
                format!("version {other}, expected 3"),
            ),
        }
    }

    fn admit_subsection(&mut self, sub: &ConfigurationSubsection<'_>, offset: u64) -> Result<()> {
        const DOING: &str = "configuration subsection";
        let count = self.subsections.map_or(0, |n| n + 1);
        self.subsections = Some(count);
        if count > MAX_CONFIGURATION_SUBSECTIONS {
            let message = format!("more than {MAX_CONFIGURATION_SUBSECTIONS} subsections");
            return Err(Error::new(ErrorKind::TooLarge, offset, DOING, message));
        }
        match sub {
            ConfigurationSubsection::TargetPageBits { bits, .. } => {
                if !(MIN_PAGE_BITS..=MAX_PAGE_BITS).contains(bits) {
                    let message =
                        format!("{bits} target page bits, no target has fewer than 10 or more than 16");
                    return Err(Error::new(ErrorKind::Malformed, offset, DOING, message));
                }
                self.ram.page_size = 1 << bits;
            }
            ConfigurationSubsection::Capabilities { names, .. } => {
                self.ram.fields.gpa = names.contains(&"x-ignore-shared".into());
                self.ram.fields.mapped = names.contains(&"mapped-ram".into());
            }
            ConfigurationSubsection::Uuid { .. } => {}
        }
        if sub.version() > 1 {
            let message = format!("{} has version {}, the newest known is 1", sub.name(), sub.version());
            return self.refuse(ErrorKind::Unsupported, offset, DOING, message);
        }
        Ok(())
    }

    /// A record follows where a footer might have come.
    fn end_section(&mut self, offset: u64) -> Result<()> {
        let Some((_, id, section)) = self.current_section() else { return Ok(()) };
        let missing = format!("missing behind section {id:#x} {:?}", section.name());
        self.section = None;
        match self.footers {
            Some(true) => self.refuse(ErrorKind::Malformed, offset, "section footer", missing),
            _ => {
                self.footers = Some(false);
                Ok(())
            }
        }
    }

    fn admit_footer(&mut self, id: u32, offset: u64) -> Result<()> {
        let unexpected = self.footers == Some(false);
        self.footers = Some(true);
        self.phase = Phase::Record;
        let mismatch = self.current_section().filter(|(_, expected, _)| *expected != id).map(
            |(_, expected, section)| {
                format!("it names section {id:#x}, but closes section {expected:#x} {:?}", section.name())
            },
        );
        self.section = None;
        if unexpected {
            let message = "the sections before it had none";
            return self.refuse(ErrorKind::OutOfOrder, offset, "section footer", message);
        }
        mismatch.map_or(Ok(()), |message| {
            self.refuse(ErrorKind::Malformed, offset + 1, "section footer", message)
        })
    }

    fn admit_section(&mut self, head: &SectionHead<'_>, offset: u64) -> Result<()> {
        self.section = Some((head.kind, head.section_id));
        if self.sections.len() >= MAX_SECTIONS && !self.sections.contains_key(&head.section_id) {
            let message = format!("more than {MAX_SECTIONS} sections");
            return Err(Error::new(ErrorKind::TooLarge, offset, "section", message));
        }
        if let Some(identity) = head.identity {
            let section = Section {
                idstr: identity.idstr.0.into(),
                instance_id: identity.instance_id,
                version_id: identity.version_id,
            };
            let is_ram = section.is_ram();
            self.phase = if is_ram { Phase::RamWord } else { Phase::Payload };
            let before = self.sections.insert(head.section_id, section);
            if identity.idstr.is_empty() {
                return self.refuse(ErrorKind::Malformed, offset + 5, "section", "a section without a name");
            }
            if let Some(before) = before
                && (&*before.idstr, before.instance_id) != (identity.idstr.0, identity.instance_id)
            {
                let message = format!(
                    "id {:#x} is taken by {:?} {} and cannot be {:?} {} too",
                    head.section_id,
                    before.name(),
                    before.instance_id,
                    identity.idstr,
                    identity.instance_id
                );
                return self.refuse(ErrorKind::OutOfOrder, offset + 1, "section", message);
            }
            if is_ram && identity.version_id != 4 {
                let message = format!("version {} of \"ram\", every release has 4", identity.version_id);
                let at = offset + head.wire_len() as u64 - 4;
                return self.refuse(ErrorKind::Unsupported, at, "section", message);
            }
            return Ok(());
        }
        match self.sections.get(&head.section_id) {
            Some(section) => {
                self.phase = if section.is_ram() { Phase::RamWord } else { Phase::Payload };
                Ok(())
            }
            // Without a name the payload cannot be told from any other, so lenient reading takes it as opaque.
            None => {
                self.phase = Phase::Payload;
                let unknown = Section { idstr: Box::default(), instance_id: 0, version_id: 0 };
                self.sections.insert(head.section_id, unknown);
                let message = format!(
                    "{} of section {:#x}, which no START or FULL has announced",
                    head.kind, head.section_id
                );
                self.refuse(ErrorKind::OutOfOrder, offset + 1, "section", message)
            }
        }
    }

    fn admit_command(&mut self, command: &Command<'_>, offset: u64) -> Result<()> {
        self.phase = Phase::Record;
        match command {
            Command::PostcopyAdvise(Some(advise)) => {
                self.ram.fields.page_size = true;
                self.set_page_size(advise.target_page_size);
                return self.admit_postcopy(command, offset);
            }
            Command::PostcopyAdvise(None)
            | Command::PostcopyRamDiscard(_)
            | Command::PostcopyListen
            | Command::PostcopyResume => return self.admit_postcopy(command, offset),
            Command::RecvBitmap { block } => return self.check_bitmap(*block, offset),
            Command::EnableColo => self.colo = true,
            Command::Packaged { size } => return self.enter_package(*size, offset),
            Command::PostcopyRun => {
                if self.package.is_some() {
                    self.phase = Phase::Trailing;
                }
                return self.admit_postcopy(command, offset);
            }
            Command::Other { code, payload } => {
                let message = match code.fixed_len() {
                    Some(expected) => {
                        format!("{code} with {} bytes of payload instead of {expected}", payload.len())
                    }
                    None if code.name().is_none() || *code == CommandCode::INVALID => {
                        format!("unknown command {:#x} with {} bytes of payload", code.0, payload.len())
                    }
                    None => format!("{code} with a payload of {} bytes that is not its own", payload.len()),
                };
                return self.refuse(ErrorKind::Malformed, offset + 1, "command", message);
            }
            Command::SwitchoverStart if !self.dialect.has(Difference::SwitchoverStart) => {
                let message = format!("SWITCHOVER_START, which QEMU {} does not know", self.dialect);
                return self.refuse(ErrorKind::Unsupported, offset + 1, "command", message);
            }
            _ => {}
        }
        Ok(())
    }

    fn enter_package(&mut self, size: u32, offset: u64) -> Result<()> {
        if self.package.is_some() {
            let message = "a package inside a package";
            return Err(Error::new(ErrorKind::OutOfOrder, offset, "command", message));
        }
        if size > MAX_PACKAGE {
            let message = format!("a package of {size} bytes, at most {MAX_PACKAGE} are taken");
            return Err(Error::new(ErrorKind::TooLarge, offset + 5, "command", message));
        }
        self.package = Some(offset + Command::HEAD_LEN as u64 + 4 + u64::from(size));
        Ok(())
    }

    /// Closes the package when `event` was its last.
    fn leave_package(&mut self, event: &Event<'_>, offset: u64) -> Result<()> {
        let end = offset + event.wire_len();
        if self.package != Some(end) {
            return Ok(());
        }
        self.package = None;
        let finished = self.phase == Phase::Trailing;
        let between = matches!(self.phase, Phase::Record | Phase::Trailing);
        self.phase = Phase::Record;
        if !between {
            let message = match self.current_section() {
                Some((_, id, section)) => {
                    format!("the package ends inside section {id:#x} {:?}", section.name())
                }
                None => "the package ends inside a section".to_owned(),
            };
            return Err(Error::new(ErrorKind::Malformed, end, "package", message));
        }
        match finished {
            true => Ok(()),
            false => self.refuse(
                ErrorKind::Malformed,
                end,
                "package",
                "the package ends without POSTCOPY_RUN or EOF",
            ),
        }
    }

    fn admit_trailing(&mut self, offset: u64) -> Result<()> {
        self.phase = Phase::Trailing;
        // COLO goes on behind the end of the precopy, in messages of its own; and one complaint is enough.
        if self.colo || std::mem::replace(&mut self.overrun, true) {
            return Ok(());
        }
        let place = if self.package.is_some() { "the package" } else { "the stream" };
        self.refuse(
            ErrorKind::OutOfOrder,
            offset,
            "trailing bytes",
            format!("{place} is over, nothing may follow"),
        )
    }

    /// An error in strict mode, a complaint in lenient mode.
    #[cold]
    fn refuse(
        &mut self,
        kind: ErrorKind,
        offset: u64,
        doing: &'static str,
        message: impl Into<String>,
    ) -> Result<()> {
        let error = Error::new(kind, offset, doing, message);
        if self.mode == Mode::Strict {
            return Err(error);
        }
        self.complaint_count += 1;
        if self.complaints.len() < MAX_COMPLAINTS {
            self.complaints.push(error);
        }
        Ok(())
    }
}
