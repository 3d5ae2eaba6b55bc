//! How far an opaque device payload reaches.
//!
//! ```text
//! 04 id "0000:00:02.0/vga" 0 2 | ..payload.. | 7e id | 04 id "..." 0 1 | ..
//!                                             ^ here, because a footer of this section follows,
//!                                               and behind it something that may come next
//! ```
//! Nothing on the wire says how long a payload is. Three sources tell, and each is checked against what follows:
//! a **hint** of the size (from the JSON description of the same stream, which offline stands at the end of the file,
//! or learned from an earlier stream of the same build and machine), a **search** for the section's footer confirmed by
//! the record behind it, and on streams without footers a search for the head of that record itself.

use std::collections::{HashMap, VecDeque};

use super::grammar::Grammar;
use crate::channel::Tail;
use crate::limits::{MAX_DESCRIPTION, PIECE};
use crate::wire::{Command, CommandCode, Cursor, Fault, SectionFooter, SectionHead, SectionKind, Wire};

/// Sizes of device payloads by section name and instance, in stream order.
#[derive(Clone, Debug, Default)]
pub struct Extents {
    sizes: HashMap<(Box<[u8]>, u32), VecDeque<u64>>,
}

impl Extents {
    /// Adds the next payload of that section.
    pub fn push(&mut self, idstr: &[u8], instance_id: u32, size: u64) {
        self.sizes.entry((idstr.into(), instance_id)).or_default().push_back(size);
    }

    /// Whether no size is known.
    pub fn is_empty(&self) -> bool {
        self.sizes.values().all(VecDeque::is_empty)
    }

    /// Takes the next size of that section.
    pub(super) fn take(&mut self, idstr: &[u8], instance_id: u32) -> Option<u64> {
        self.sizes.get_mut(&(idstr.into(), instance_id))?.pop_front()
    }
}

/// What a search over the bytes at hand found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The payload ends after this many bytes.
    End(usize),
    /// It goes on for at least a whole piece.
    Piece,
    /// Undecided: at least this many more bytes are needed, and the first `searched` need not be looked at again.
    More { missing: usize, searched: usize },
}

/// Longest chain of commands that is looked through behind a payload without footer.
const LAST_COMMANDS: usize = 256;

/// Whether something could be the next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Yes,
    No,
    More(usize),
}

/// Searches `input`, which begins inside the payload of the grammar's current section. `hint` is the number of bytes that
/// are left if the hint was right.
pub(super) fn find(input: &[u8], from: usize, hint: Option<u64>, grammar: &Grammar, tail: Tail) -> Found {
    let Some((kind, id, _)) = grammar.current_section() else { return Found::End(0) };
    let search = Search { input, kind, id, grammar, tail };
    if let Some(hint) = hint
        && let Ok(hint) = usize::try_from(hint)
        && hint <= PIECE
    {
        match search.ends_at(hint) {
            Verdict::Yes => return Found::End(hint),
            Verdict::More(missing) => return Found::More { missing, searched: from },
            Verdict::No => {}
        }
    }
    let mut at = from;
    while at <= PIECE {
        let Some(next) = search.candidate(at) else { break };
        match search.ends_at(next) {
            Verdict::Yes => return Found::End(next),
            Verdict::More(missing) => return Found::More { missing, searched: next },
            Verdict::No => at = next + 1,
        }
    }
    // A footer that is cut by the end of the input must be seen again, so its length is held back.
    match input.len() >= PIECE + SectionFooter::LEN || tail == Tail::Closed {
        true if input.len() > PIECE => Found::Piece,
        _ => Found::More {
            missing: 1,
            searched: at.max(input.len().saturating_sub(SectionFooter::LEN - 1)).min(PIECE),
        },
    }
}

struct Search<'a> {
    input: &'a [u8],
    kind: SectionKind,
    id: u32,
    grammar: &'a Grammar,
    tail: Tail,
}

impl Search<'_> {
    /// The first position from `at` where the payload might end, up to a piece.
    fn candidate(&self, at: usize) -> Option<usize> {
        let limit = self.input.len().min(PIECE + SectionFooter::LEN);
        let window = self.input.get(at..limit)?;
        let found = match self.grammar.footers() {
            Some(true) => memchr::memmem::find(window, &self.footer()),
            _ => window.iter().position(|b| matches!(b, 0x00..=0x04 | 0x08 | 0x7e)),
        }?;
        (at + found <= PIECE).then_some(at + found)
    }

    fn footer(&self) -> [u8; SectionFooter::LEN] {
        let id = self.id.to_be_bytes();
        [SectionKind::FOOTER.0, id[0], id[1], id[2], id[3]]
    }

    /// Whether the payload can end after `at` bytes.
    fn ends_at(&self, at: usize) -> Verdict {
        let Some(rest) = self.input.get(at..) else { return self.starved(at - self.input.len() + 1) };
        let footers = self.grammar.footers();
        if footers != Some(false) {
            let footer = self.footer();
            let shown = rest.len().min(footer.len());
            if rest[..shown] == footer[..shown] && shown > 0 {
                return match shown == footer.len() {
                    true => self.next_record(&rest[shown..], true),
                    false => self.starved(footer.len() - shown),
                };
            }
        }
        match (footers, rest.is_empty()) {
            (Some(true), false) => Verdict::No,
            (_, true) => self.starved(1),
            (_, false) => self.next_record(rest, false),
        }
    }

    /// More input is needed to decide. When there is none to come, it is not what it would have had to be.
    fn starved(&self, missing: usize) -> Verdict {
        if self.tail == Tail::Open { Verdict::More(missing) } else { Verdict::No }
    }

    /// The same behind a footer: the input ends inside what has begun like a record, and the footer is proof enough.
    fn cut(&self, missing: usize, sure: bool) -> Verdict {
        if sure && self.tail == Tail::Closed { Verdict::Yes } else { self.starved(missing) }
    }

    /// Whether `rest` can begin with the record behind the section. `sure`: a footer stands in front of it, so that less
    /// is asked of the record; without one it must carry the proof alone.
    fn next_record(&self, rest: &[u8], sure: bool) -> Verdict {
        let Some(&first) = rest.first() else {
            return match sure && self.tail != Tail::Open {
                true => Verdict::Yes,
                false => self.starved(1),
            };
        };
        match SectionKind(first) {
            SectionKind::START | SectionKind::FULL => self.is_section_head(rest, sure),
            SectionKind::PART | SectionKind::END if sure || self.kind != SectionKind::FULL => {
                self.is_live_head(rest, sure)
            }
            SectionKind::COMMAND if sure || self.grammar.package_end().is_some() => {
                self.is_command(rest, sure)
            }
            SectionKind::EOF => self.is_eof(rest, sure),
            _ => Verdict::No,
        }
    }

    fn is_section_head(&self, rest: &[u8], sure: bool) -> Verdict {
        match SectionHead::parse(&mut Cursor::new(0, rest)) {
            Ok(SectionHead { section_id, identity: Some(identity), .. }) => {
                let known = self.grammar.section(section_id);
                let same = known
                    .is_none_or(|s| (&*s.idstr, s.instance_id) == (identity.idstr.0, identity.instance_id));
                let plausible = !identity.idstr.is_empty()
                    && identity.idstr.is_printable()
                    && identity.version_id < 0x1_0000
                    && section_id < 0x100_0000
                    && same;
                if plausible { Verdict::Yes } else { Verdict::No }
            }
            Ok(_) => Verdict::No,
            Err(Fault::More { missing, .. }) => {
                // What is there of the name can rule it out early.
                let printable = rest
                    .iter()
                    .skip(6)
                    .take(usize::from(rest.get(5).copied().unwrap_or(0)))
                    .all(|b| (0x20..0x7f).contains(b));
                if printable { self.cut(missing, sure) } else { Verdict::No }
            }
            Err(Fault::Bad(_)) => Verdict::No,
        }
    }

    fn is_live_head(&self, rest: &[u8], sure: bool) -> Verdict {
        let mut input = Cursor::new(0, rest);
        match SectionHead::parse(&mut input) {
            Ok(head) => match self.grammar.section(head.section_id) {
                Some(_) if sure => Verdict::Yes,
                Some(section) if section.is_ram() => match input.be64("page word") {
                    Ok(word) => {
                        let flags = crate::wire::PageWord(word).flags(self.grammar.page_size());
                        let legal = flags.is_page() || flags.action().0.is_power_of_two() && flags.0 <= 0x220;
                        if legal { Verdict::Yes } else { Verdict::No }
                    }
                    Err(_) => self.starved(1),
                },
                _ => Verdict::No,
            },
            Err(Fault::More { missing, .. }) => self.cut(missing, sure),
            Err(Fault::Bad(_)) => Verdict::No,
        }
    }

    /// Behind a footer one command is proof enough; without one, commands must lead up to the end of the package. A source
    /// puts two PINGs and RUN there, so that a longer chain is no proof, and need not be held either.
    fn is_command(&self, rest: &[u8], sure: bool) -> Verdict {
        let mut input = Cursor::new(0, rest);
        while !input.is_empty() {
            if input.consumed() > LAST_COMMANDS {
                return Verdict::No;
            }
            match Command::parse(&mut input) {
                Ok(Command::Other { code, .. }) if sure && code.name().is_some() => return Verdict::Yes,
                Ok(Command::Other { .. }) => return Verdict::No,
                Ok(command) if sure && command.code() != CommandCode::INVALID => return Verdict::Yes,
                Ok(_) => {}
                Err(Fault::More { missing, .. }) => return self.cut(missing, sure),
                Err(Fault::Bad(_)) => return Verdict::No,
            }
        }
        // The input is cut at the end of a package, so that running out of it is that end.
        if self.tail == Tail::Open { Verdict::More(1) } else { Verdict::Yes }
    }

    fn is_eof(&self, rest: &[u8], sure: bool) -> Verdict {
        let description = match rest.get(1) {
            Some(&mark) if SectionKind(mark) == SectionKind::VMDESCRIPTION => rest,
            // In a package it must be the last byte: the clock of a guest may well look like the footer of section 0.
            Some(_) if sure && self.grammar.is_postcopy() && self.grammar.package_end().is_none() => {
                return Verdict::Yes;
            }
            Some(_) => return Verdict::No,
            // A stream may end with EOF: no description, and a source that waits for an answer is silent here.
            None if self.tail == Tail::Open => return Verdict::More(1),
            None => return Verdict::Yes,
        };
        let mut input = Cursor::new(0, &description[2..]);
        match input.be32("description length") {
            // A destination takes any text; without a footer in front, only a real description is proof enough.
            Ok(_) if sure => Verdict::Yes,
            Ok(length) if !(8..=MAX_DESCRIPTION).contains(&length) => Verdict::No,
            Ok(_) => match input.take("description text", 3) {
                Ok(text) if text.starts_with(b"{\"") || text == b"{ \"" => Verdict::Yes,
                Ok(_) => Verdict::No,
                Err(_) => self.starved(input.remaining().abs_diff(3)),
            },
            Err(_) => self.cut(1, sure),
        }
    }
}
