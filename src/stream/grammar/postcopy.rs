//! The grammar of postcopy on the main channel: which command may come when, and what a page must be then.
//!
//! ```text
//! None --ADVISE--> Advised --DISCARD--> Discarding --LISTEN--> Listening --RUN--> Running -- pages --> EOF
//!                     '-----------------LISTEN----------------^                      |
//!                                                                   (cut, a new connection)
//!                                       Recovering --RESUME--> Running               v
//!                                           ^----------------------------------------'
//! ```
//! The way without DISCARD is open to dirty bitmaps alone. If RAM was announced, a stock destination takes LISTEN, prepares to discard
//! then, which puts it back into that state, and refuses RUN.
//!
//! Source: `migration/postcopy-ram.h` (`PostcopyState`), `migration/savevm.c` (`loadvm_postcopy_handle_*`), `migration/ram.c`
//! (`ram_load_postcopy`).

use super::{Grammar, Phase};
use crate::dialect::Difference;
use crate::error::{ErrorKind, Result};
use crate::stream::Block;
use crate::wire::{Command, Discard, Name, PageBody};

const COMMAND: &str = "command";

/// How far postcopy has come (`POSTCOPY_INCOMING_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Postcopy {
    /// Nobody has spoken of it.
    #[default]
    None,
    /// It may follow.
    Advised,
    /// The destination drops pages that are stale.
    Discarding,
    /// The destination answers the page faults of its devices.
    Listening,
    /// The connection is a new one, after a pause; pages may follow when RESUME has come.
    Recovering,
    /// The guest runs at the destination.
    Running,
}

impl Postcopy {
    /// Whether pages come after the switch.
    pub fn is_switched(self) -> bool {
        self >= Self::Listening
    }
}

/// Target pages of a larger host page, which must follow each other (`ram_load_postcopy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostPage {
    /// Block, beginning of the host page, and target pages that are missing.
    open: Option<(usize, u64, u64)>,
}

impl HostPage {
    /// Takes the page at `offset` of that block; `false` if another host page had to be finished first.
    pub(crate) fn take(&mut self, (index, block): (usize, &Block), offset: u64, page_size: u64) -> bool {
        let size = block.huge_page.unwrap_or(page_size).max(page_size);
        if size == page_size && self.open.is_none() {
            return true;
        }
        let start = offset - offset % size;
        let left = match self.open {
            None => size / page_size,
            Some((other, at, left)) if (other, at) == (index, start) => left,
            Some(_) => return false,
        };
        self.open = (left > 1).then_some((index, start, left - 1));
        true
    }

    /// Whether target pages are missing.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }
}

impl Grammar {
    /// How far postcopy has come.
    pub fn postcopy(&self) -> Postcopy {
        self.postcopy
    }

    /// The state on the new connection of a migration that paused: no header comes, sections and blocks are those from before, and
    /// the first page names its block. `None` if it could not pause, since the guest does not run at the destination yet.
    pub fn resumed(&self) -> Option<Self> {
        if !matches!(self.postcopy, Postcopy::Running | Postcopy::Recovering) {
            return None;
        }
        let mut grammar = self.clone();
        grammar.phase = Phase::Record;
        grammar.postcopy = Postcopy::Recovering;
        grammar.subsections = None;
        grammar.section = None;
        grammar.complaints.clear();
        grammar.complaint_count = 0;
        grammar.package = None;
        grammar.ram.current = None;
        grammar.ram.host_page = HostPage::default();
        Some(grammar)
    }

    pub(super) fn admit_postcopy(&mut self, command: &Command<'_>, offset: u64) -> Result<()> {
        use Postcopy::{Advised, Discarding, Listening, None, Recovering, Running};
        let (allowed, next): (&[Postcopy], _) = match command {
            Command::PostcopyAdvise(_) => (&[None], Advised),
            Command::PostcopyRamDiscard(_) => (&[Advised, Discarding], Discarding),
            Command::PostcopyListen => (&[Advised, Discarding], Listening),
            Command::PostcopyRun => (&[Listening], Running),
            // A destination that is not paused takes no notice of it.
            Command::PostcopyResume if self.postcopy == Recovering => (&[Recovering], Running),
            _ => return Ok(()),
        };
        let before = self.postcopy;
        let is_allowed = allowed.contains(&before);
        if matches!(command, Command::PostcopyListen) && before == Advised {
            self.skipped_discard = self.ram.fields.page_size;
        }
        // Where a second one is forgiven, nothing goes back.
        self.postcopy = before.max(next);
        if before == Recovering && next == Running {
            self.postcopy = Running;
        }
        if !is_allowed {
            let message = format!("{} in the wrong postcopy state ({before:?})", command.code());
            return self.refuse(ErrorKind::OutOfOrder, offset + 1, COMMAND, message);
        }
        match command {
            Command::PostcopyRamDiscard(discard) => self.check_discard(discard, offset),
            Command::PostcopyRun if self.skipped_discard => {
                let message = "POSTCOPY_RUN, and no POSTCOPY_RAM_DISCARD has come before POSTCOPY_LISTEN: no stock destination runs then";
                self.refuse(ErrorKind::OutOfOrder, offset + 1, COMMAND, message)
            }
            _ => Ok(()),
        }
    }

    fn check_discard(&mut self, discard: &Discard<'_>, offset: u64) -> Result<()> {
        let Some(message) = self.wrong_with(discard) else { return Ok(()) };
        self.refuse(ErrorKind::Malformed, offset, "POSTCOPY_RAM_DISCARD", message)
    }

    fn wrong_with(&self, discard: &Discard<'_>) -> Option<String> {
        if self.package.is_some() {
            return Some(
                "inside a package, where a destination reads its ranges from the main channel".to_owned(),
            );
        }
        if discard.version != 0 {
            return Some(format!("version {}, the only one is 0", discard.version));
        }
        if discard.nil != 0 {
            return Some("no NUL behind the name of the block".to_owned());
        }
        if discard.ranges.is_empty() {
            return Some("no range".to_owned());
        }
        let Some(index) = self.block_index(discard.block) else {
            return Some(format!("block {:?}, which the block list does not have", discard.block));
        };
        let (length, page_size) = (self.ram.blocks[index].used_length, self.ram.page_size);
        let is_wrong = |start: u64, size: u64| {
            !start.is_multiple_of(page_size)
                || !size.is_multiple_of(page_size)
                || start.checked_add(size).is_none_or(|end| end > length)
        };
        let range = discard.ranges.iter().find(|range| is_wrong(range.start, range.length))?;
        Some(format!(
            "range {:#x}+{:#x} of block {:?}, which has {length:#x} bytes in pages of {page_size:#x}",
            range.start, range.length, discard.block
        ))
    }

    /// The block of that name.
    pub fn block_index(&self, name: Name<'_>) -> Option<usize> {
        self.ram.by_name.get(name.0).copied()
    }

    /// What a destination in postcopy refuses about a page of block `index`.
    pub(super) fn admit_postcopy_page(
        &mut self,
        index: usize,
        at: u64,
        body: &PageBody<'_>,
        offset: u64,
    ) -> Result<()> {
        let is_wrong = match body {
            PageBody::Xbzrle { .. } => true,
            PageBody::Compressed(_) => !self.dialect.has(Difference::CompressPage),
            PageBody::Zero(_) | PageBody::Raw(_) => false,
        };
        if is_wrong {
            let message = "of this kind in postcopy, where pages come whole or as one byte";
            return self.refuse(ErrorKind::OutOfOrder, offset, "RAM page", message);
        }
        let ram = &mut self.ram;
        match ram.host_page.take((index, &ram.blocks[index]), at, ram.page_size) {
            true => Ok(()),
            false => {
                self.ram.host_page = HostPage::default();
                let message = "before all pages of the host page that was begun: they must follow each other";
                self.refuse(ErrorKind::OutOfOrder, offset, "RAM page", message)
            }
        }
    }

    /// A bitmap is asked for: of a block that there is.
    pub(super) fn check_bitmap(&mut self, block: Name<'_>, offset: u64) -> Result<()> {
        if self.block_index(block).is_some() {
            return Ok(());
        }
        let message = format!("block {block:?}, which the block list does not have");
        self.refuse(ErrorKind::Malformed, offset, "RECV_BITMAP", message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Dialect;
    use crate::stream::{Event, Mode};
    use crate::wire::{Advise, FileHeader};

    #[test]
    fn only_bitmaps_go_without_discard() {
        let advise = Advise { page_size_summary: 0x1000, target_page_size: 0x1000 };
        let complaints = |mode, advise| -> Result<usize> {
            let mut grammar = Grammar::new(mode, Dialect::ANY);
            let commands = [Command::PostcopyAdvise(advise), Command::PostcopyListen, Command::PostcopyRun];
            grammar.admit(&Event::Header(FileHeader::CURRENT), 0)?;
            commands.into_iter().try_for_each(|command| grammar.admit(&Event::Command(command), 8))?;
            assert_eq!(grammar.postcopy(), Postcopy::Running);
            Ok(grammar.complaints().len())
        };
        assert_eq!(complaints(Mode::Strict, None).unwrap(), 0, "dirty bitmaps alone");
        let error = complaints(Mode::Strict, Some(advise)).unwrap_err();
        assert!(error.kind() == ErrorKind::OutOfOrder && error.message().contains("DISCARD"), "{error}");
        assert_eq!(complaints(Mode::Lenient, Some(advise)).unwrap(), 1);
    }
}
