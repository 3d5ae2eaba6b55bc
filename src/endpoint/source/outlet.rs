//! Main channel and multifd channels together: which of them a page takes, and when they wait for each other.
//!
//! ```text
//! main     START ..  FLUSH EOS | PART  FLUSH EOS | END  FLUSH EOS | FULL ..      where the dialect has FLUSH
//! channel   hello  SYNC          pages SYNC            SYNC
//! ```
//! A page is never sent twice without a synchronisation between: which of two comes first would be up to chance.

use std::collections::HashMap;
use std::time::Duration;

use super::batch::Job;
use super::fleet::{Fleet, Stage};
use super::misconduct::{Misconduct, Misdeeds};
use super::output::Output;
use super::shared::Shared;
use super::team::Team;
use crate::dialect::Dialect;
use crate::error::Result;
use crate::guest::is_zero;
use crate::limits::MAX_PAGE_BITS;
use crate::multifd::{Framer, SyncPlace, Synchronisation};
use crate::stream::Event;
use crate::wire::{Page, PageBody, PageWord, RamFlags, SectionFooter, SectionHead, SectionKind};

/// Time in which a destination reads a packet that comes too early: it stands before all that the main channel says next.
const BEFORE_SETUP: Duration = Duration::from_millis(300);

/// A page of zeros, of any size.
static ZEROS: [u8; 1 << MAX_PAGE_BITS] = [0; 1 << MAX_PAGE_BITS];

/// All channels, from the source's side.
pub(super) struct Outlet<'s, 'a> {
    pub(super) main: Output<'a>,
    pub(super) team: Option<Team<'s>>,
    pub(super) fleet: Option<Fleet<'s, 'a>>,
    shared: &'s Shared<'s>,
    dialect: Dialect,
    misdeeds: Misdeeds,
    /// Section id of RAM, and whether its sections have footers.
    ram: Option<(u32, bool)>,
    parts: u64,
    /// The guest runs at the destination, or is about to: pages take other channels than multifd.
    pub(super) is_postcopy: bool,
    /// Pages that were forwarded since the last synchronisation: block and number of the page / 64, and a bit each.
    forwarded: HashMap<(usize, u64), u64>,
}

impl<'s, 'a> Outlet<'s, 'a> {
    pub(super) fn new(
        main: Output<'a>,
        shared: &'s Shared<'s>,
        dialect: Dialect,
        misdeeds: Misdeeds,
        ram: Option<(u32, bool)>,
    ) -> Self {
        Self {
            main,
            team: None,
            fleet: None,
            shared,
            dialect,
            misdeeds,
            ram,
            parts: 0,
            is_postcopy: false,
            forwarded: HashMap::new(),
        }
    }

    /// Has the devices send the packets that are due.
    pub(super) fn launch(&mut self, stage: Stage) -> Result<()> {
        match (&mut self.fleet, &self.team) {
            (Some(fleet), Some(team)) => fleet.launch(stage, team.devices()),
            _ => Ok(()),
        }
    }

    /// Waits until they have.
    pub(super) fn join(&mut self) -> Result<()> {
        self.fleet.as_mut().map_or(Ok(()), Fleet::join)
    }

    /// Begins a PART of RAM.
    pub(super) fn begin_part(&mut self) -> Result<()> {
        let Some((section_id, _)) = self.ram else { return Ok(()) };
        self.parts += 1;
        let head = SectionHead { kind: SectionKind::PART, section_id, identity: None };
        self.main.emit(&Event::Section(head))?;
        match &self.team {
            Some(team) if self.parts == 1 && self.misdeeds.has(Misconduct::DeviceState) => {
                let payload = vec![0x5a; 64];
                let head = Box::new(Framer::device(b"0000:00:1e.7/vfio", 0, payload.len() as u32));
                team.hand_over(Job::Device { head, payload })
            }
            _ => Ok(()),
        }
    }

    /// Ends it.
    pub(super) fn end_part(&mut self) -> Result<()> {
        let Some((section_id, footers)) = self.ram else { return Ok(()) };
        if self.parts == 1
            && self.misdeeds.has(Misconduct::CloseChannelEarly)
            && let Some(team) = &mut self.team
        {
            team.close_last()?;
        }
        match self.is_postcopy {
            true => self.synchronise(SyncPlace::Postcopy)?,
            false => {
                self.synchronise(SyncPlace::Round)?;
                self.synchronise(SyncPlace::SectionEnd)?;
            }
        }
        self.end_of_ram()?;
        match footers {
            true => self.main.emit(&Event::Footer(SectionFooter { section_id })),
            false => Ok(()),
        }
    }

    /// EOS. Channels may be waiting for it, and what is written to them next would wait too.
    pub(super) fn end_of_ram(&mut self) -> Result<()> {
        self.main.emit(&Event::RamWord(PageWord::new(0, RamFlags::EOS)))?;
        match self.team {
            Some(_) => self.main.flush(),
            None => Ok(()),
        }
    }

    /// Sends a page that the destination has no place for yet, and gives it the time to notice.
    pub(super) fn page_before_setup(&mut self) -> Result<()> {
        let Some(team) = &mut self.team else { return Ok(()) };
        let given = Some(vec![0x5a; self.shared.page_size as usize]);
        let block = self.shared.blocks.iter().position(|b| b.used_length > 0).unwrap_or(0);
        team.hand_over(Job::Pages { block, offsets: vec![0], given })?;
        std::thread::sleep(BEFORE_SETUP);
        Ok(())
    }

    /// Lets everybody wait for everybody, where the dialect does.
    pub(super) fn synchronise(&mut self, place: SyncPlace) -> Result<()> {
        let Some(team) = &mut self.team else { return Ok(()) };
        let mut what = Synchronisation::at(place, self.dialect);
        match place {
            SyncPlace::Setup => {}
            _ => {
                what.flush &= !self.misdeeds.has(Misconduct::NoFlush);
                what.sync &= !self.misdeeds.has(Misconduct::FlushWithoutSync);
            }
        }
        if what.sync {
            team.synchronise()?;
            self.forwarded.clear();
        }
        if what.flush {
            self.main.emit(&Event::RamWord(PageWord::new(0, RamFlags::MULTIFD_FLUSH)))?;
        }
        Ok(())
    }

    /// Sends a page that came out of another stream.
    pub(super) fn forward(&mut self, index: usize, page: &Page<'_>) -> Result<()> {
        if self.team.is_none() {
            return self.main.forward_page(index, page);
        }
        let offset = page.word.offset(self.shared.page_size);
        if self.is_repeated(index, offset) {
            self.end_part()?;
            self.begin_part()?;
            self.is_repeated(index, offset);
        }
        match page.body {
            PageBody::Zero(0) => self.page(index, offset, &ZEROS[..self.shared.page_size as usize]),
            PageBody::Raw(bulk) => match bulk.bytes() {
                Some(bytes) => self.page(index, offset, bytes),
                None => self.main.forward_page(index, page),
            },
            // What a channel cannot carry goes where it came from; what it refers to was synchronised before.
            _ => self.main.forward_page(index, page),
        }
    }

    /// Sends a page on a channel, unless it is zero and belongs elsewhere.
    fn page(&mut self, index: usize, offset: u64, page: &[u8]) -> Result<()> {
        match &mut self.team {
            Some(team) if !(team.wants_zero_pages_on_main() && is_zero(page)) => {
                team.add_page(index, offset, page)
            }
            _ => self.main.zero_page(index, offset),
        }
    }

    /// Whether the page was forwarded since the last synchronisation. From now on it was.
    fn is_repeated(&mut self, index: usize, offset: u64) -> bool {
        let page = offset / self.shared.page_size;
        let (word, bit) = (self.forwarded.entry((index, page / 64)).or_default(), 1 << (page % 64));
        let before = *word & bit != 0;
        *word |= bit;
        before
    }
}
