//! The switch to postcopy: what a source says from ADVISE to the moment when the guest runs at the destination.
//!
//! ```text
//! OPEN_RETURN_PATH PING 1 ADVISE | START PART .. | [PART] [SWITCHOVER_START] ENDs of others | DISCARD .. PING 2
//! PACKAGED { LISTEN  FULL ..  PING 3  [PING 0x42]  RUN } PING 4
//! multifd channels: idle from the package on; releases before 8.1 go on with SYNC at every EOS
//! preempt channel: connected behind the configuration (releases before 8.0, their machine types), or behind PONG 1
//! ```
//! Source: `migration/migration.c`, `postcopy_start`; `migration/savevm.c`, `qemu_savevm_send_packaged`.

use super::content::Content;
use super::sending::Sending;
use super::service::share;
use super::team::Team;
use super::template::Bytes;
use super::{DOING, Source};
use crate::channel::Feed;
use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::MAX_PACKAGE;
use crate::multifd::SyncPlace;
use crate::postcopy::{PACKAGE_LOADED, PageSet, page_count};
use crate::stream::Event;
use crate::wire::Wire as _;
use crate::wire::{Advise, Command, Discard, DiscardRange, Name, SectionFooter, SectionHead, SectionKind};

/// Ranges in one DISCARD of a stock source (`MAX_DISCARDS_PER_COMMAND`).
const RANGES: usize = 12;

/// PINGs of a switch, in order; the last one waits in the package until it has been loaded.
const BEFORE_PACKAGE: u32 = 2;
pub(super) const IN_PACKAGE: u32 = 3;
const BEHIND_PACKAGE: u32 = 4;

/// Page of a block whose backing has no larger ones.
const ORDINARY_PAGE: u64 = 4096;

impl Sending<'_, '_> {
    /// Announces postcopy, if it is to be.
    pub(super) fn advise(&mut self) -> Result<()> {
        if !self.source.is_advised() {
            return Ok(());
        }
        let facts = self.source.template.facts();
        let ordinary = facts.page_size.max(ORDINARY_PAGE);
        let sizes = facts.blocks.iter().map(|block| block.huge_page.unwrap_or(ordinary));
        let advise = Advise {
            page_size_summary: sizes.fold(0, |all, size| all | size),
            target_page_size: facts.page_size,
        };
        self.out.main.emit(&Event::Command(Command::PostcopyAdvise(Some(advise))))?;
        self.out.main.flush()
    }

    /// Everything between the pages that come before and those that come after.
    pub(super) fn switch(&mut self, template: &mut Feed<Bytes>) -> Result<()> {
        let facts = self.source.template.facts();
        self.out.main.cache = None;
        self.open_preempt_late()?;
        if self.source.dialect.has(Difference::PostcopyPrepare) {
            self.out.begin_part()?;
            self.out.end_part()?;
        }
        self.copy_until(facts.devices, template)?;
        self.out.is_postcopy = true;
        let sets = self.source.to_serve()?;
        self.discard(&sets)?;
        self.shared.service.begin(&facts.blocks, facts.page_size, sets);
        self.ping(BEFORE_PACKAGE)?;
        self.package(template)?;
        self.ping(BEHIND_PACKAGE)?;
        self.out.main.flush()
    }

    /// Has the destination drop what is still to come: it may have been sent in an earlier round.
    fn discard(&mut self, sets: &[PageSet]) -> Result<()> {
        let facts = self.source.template.facts();
        for (block, set) in facts.blocks.iter().zip(sets) {
            let mut ranges = Vec::with_capacity(RANGES);
            let mut page = 0;
            while let Some(start) = set.next(page) {
                page = set.next_gap(start);
                let (at, length) = (start * facts.page_size, (page - start) * facts.page_size);
                ranges.push(DiscardRange { start: at, length });
                if ranges.len() == RANGES || set.next(page).is_none() {
                    let (version, nil, ranges) = (0, 0, std::mem::take(&mut ranges));
                    let discard = Discard { version, block: Name(&block.name), nil, ranges };
                    self.command(Command::PostcopyRamDiscard(discard))?;
                }
            }
        }
        Ok(())
    }

    /// The devices of the template between LISTEN and RUN. They are read twice, and never held.
    fn package(&mut self, template: &mut Feed<Bytes>) -> Result<()> {
        let facts = self.source.template.facts();
        let mut after = vec![Command::Ping(IN_PACKAGE)];
        if self.source.dialect.has(Difference::PackageLoadedPing) {
            after.push(Command::Ping(PACKAGE_LOADED));
        }
        after.push(Command::PostcopyRun);
        let commands: usize = after.iter().chain([&Command::PostcopyListen]).map(|c| c.wire_len()).sum();
        let size = facts.end - facts.devices + commands as u64;
        let Some(size) = u32::try_from(size).ok().filter(|size| *size <= MAX_PACKAGE) else {
            let message = format!("{size} bytes of device state, a package takes at most {MAX_PACKAGE}");
            return Err(Error::nowhere(ErrorKind::TooLarge, DOING, message));
        };
        self.command(Command::Packaged { size })?;
        self.dialogue.lock().note_listen();
        self.command(Command::PostcopyListen)?;
        self.copy_until(facts.end, template)?;
        after.into_iter().try_for_each(|command| self.command(command))
    }

    /// END of RAM, and of the stream.
    pub(super) fn end(&mut self) -> Result<()> {
        let facts = self.source.template.facts();
        let Some(section_id) = facts.ram else { return Ok(()) };
        let head = SectionHead { kind: SectionKind::END, section_id, identity: None };
        self.out.main.emit(&Event::Section(head))?;
        self.out.synchronise(SyncPlace::Postcopy)?;
        self.out.end_of_ram()?;
        if facts.footers {
            self.out.main.emit(&Event::Footer(SectionFooter { section_id }))?;
        }
        self.out.main.emit(&Event::Eof)?;
        self.out.main.flush()?;
        self.out.team.as_mut().map_or(Ok(()), Team::settle)
    }

    /// The preempt channel of releases that open it first. The main channel was connected before, and destinations that look at
    /// first bytes must have seen some of it.
    pub(super) fn open_preempt_early(&mut self) -> Result<()> {
        match self.wants_preempt() && !self.source.dialect.has(Difference::PreemptAtSwitch) {
            true => {
                self.out.main.flush()?;
                self.open_preempt(ChannelId::Preempt)
            }
            false => Ok(()),
        }
    }

    /// The preempt channel of all others: the destination must have shown that it is there.
    fn open_preempt_late(&mut self) -> Result<()> {
        if !self.wants_preempt() || !self.source.dialect.has(Difference::PreemptAtSwitch) {
            return Ok(());
        }
        self.out.main.flush()?;
        let message = "the destination has not answered (PONG), and the preempt channel waits for that";
        self.out.main.await_reply(|replies| replies.has_pong(), message)?;
        self.open_preempt(ChannelId::Preempt)
    }

    pub(super) fn command(&mut self, command: Command<'_>) -> Result<()> {
        self.out.main.emit(&Event::Command(command))
    }

    fn ping(&mut self, value: u32) -> Result<()> {
        self.command(Command::Ping(value))
    }
}

impl Source {
    /// Pages that are left for postcopy, a set a block.
    fn to_serve(&self) -> Result<Vec<PageSet>> {
        let facts = self.template.facts();
        let percent = self.postcopy.map_or(100, |postcopy| postcopy.percent.into());
        let blocks = facts.blocks.iter().zip(&self.contents);
        let sets = blocks.map(|(block, content)| {
            let mut set = PageSet::new();
            if !matches!(content, Content::Kept) {
                set.insert_range(0..page_count(block, facts.page_size))?;
                let sent = share(block, facts.page_size, percent);
                sent.into_iter().for_each(|pages| set.remove_range(pages));
            }
            Ok(set)
        });
        let mut sets = sets.collect::<Result<Vec<_>>>()?;
        if sets.iter().all(PageSet::is_empty) {
            self.hold_one_back(&mut sets)?;
        }
        Ok(sets)
    }

    /// Something has to be discarded: a stock destination of any release that hears LISTEN without a DISCARD before it prepares for
    /// discards then, is back in that state, and refuses RUN.
    fn hold_one_back(&self, sets: &mut [PageSet]) -> Result<()> {
        let facts = self.template.facts();
        let blocks = facts.blocks.iter().zip(&self.contents).enumerate();
        let pages = |block| page_count(block, facts.page_size);
        let mut served =
            blocks.filter(|(_, (block, content))| !matches!(content, Content::Kept) && pages(block) > 0);
        match served.next() {
            Some((index, (block, _))) => {
                // A whole host page, or the destination would miss the others.
                let size = block.huge_page.unwrap_or(facts.page_size).max(facts.page_size) / facts.page_size;
                let last = pages(block) - 1;
                sets[index].insert_range(last - last % size..last + 1)
            }
            // Pages of the template cannot be sent again, so that there is no such source.
            None => Ok(()),
        }
    }

    /// Whether the preempt channel ends with EOS: in the releases, and on the machine types, that open it first.
    pub(super) fn preempt_has_end(&self) -> bool {
        !self.dialect.has(Difference::PreemptAtSwitch)
    }

    /// Whether a recovery begins with the preempt channel. Machine types have no say in this.
    pub(super) fn preempt_comes_first(&self) -> bool {
        self.dialect != Dialect::ANY && self.dialect.has(Difference::PreemptAtSetup)
    }
}
