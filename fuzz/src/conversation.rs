//! The conversation of postcopy, in any order: what a source hears and does, the commands of a main channel, and the account that a
//! destination keeps. The bytes are a recipe.
//!
//! No panic; pages are asked for only where a source listens, and only such as there are; commands are taken in their order or
//! refused; the account agrees with a set that knows nothing of bits.

use std::collections::BTreeSet;
use std::sync::Arc;

use migwire::dialect::Dialect;
use migwire::postcopy::{PageSet, Reply, RequestPattern, Requests, Said, SourceDialogue};
use migwire::stream::{Block, Event, Grammar, Mode, Postcopy};
use migwire::wire::{
    Advise, BitmapHead, Bulk, Command, Discard, DiscardRange, FileHeader, Message, Name, PageWord,
    RECV_BITMAP_END, RamBlock, RamFlags, SectionFooter, SectionHead, SectionIdentity, SectionKind,
};

const PAGE: u64 = 4096;
const NAMES: [&str; 3] = ["ram", "huge", "tape"];

/// Takes numbers from bytes; 0 when there are none left.
struct Recipe<'a>(&'a [u8]);

impl Recipe<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first) % limit
    }
}

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    listen(&mut Recipe(bytes));
    command(&mut Recipe(bytes));
    account(&mut Recipe(bytes));
}

fn blocks() -> Arc<[Block]> {
    let block = |name: &str, pages, huge_page| Block {
        name: name.as_bytes().into(),
        used_length: pages * PAGE,
        huge_page,
    };
    [block(NAMES[0], 150, None), block(NAMES[1], 16, Some(4 * PAGE))].into()
}

/// A source that hears anything at any time.
fn listen(recipe: &mut Recipe<'_>) {
    let blocks = blocks();
    let mut dialogue = SourceDialogue::new(Dialect::ANY, Arc::clone(&blocks), PAGE);
    let (mut listens, mut paused, mut resume, mut pings) = (false, 0, false, Vec::new());
    while !recipe.0.is_empty() {
        let value = recipe.below(4) as u32;
        let start = recipe.below(170) * PAGE + recipe.below(2);
        let length = (recipe.below(3) * PAGE) as u32;
        let block = Name::from(NAMES[recipe.below(3) as usize]);
        let word = [recipe.below(256) as u8; 11];
        let reply = match recipe.below(16) {
            0 => {
                dialogue.note_ping(value);
                pings.push(value);
                continue;
            }
            1 => {
                dialogue.note_listen();
                listens = true;
                continue;
            }
            2 => {
                paused += 1;
                dialogue.note_pause(paused);
                (listens, resume) = (false, false);
                pings.clear();
                continue;
            }
            3 => {
                dialogue.note_resume();
                resume = true;
                continue;
            }
            4 => Reply::Message(Message::Pong(value)),
            5 | 6 => Reply::Message(Message::ReqPagesId { start, length, block }),
            7 => Reply::Message(Message::ReqPages { start, length }),
            8 => Reply::Message(Message::RecvBitmap { block }),
            9 => Reply::Bitmap(BitmapHead { size: 8 * u64::from(value) }),
            10 | 11 => Reply::BitmapBits(Bulk::Bytes(&word[..1 + value as usize * 3])),
            12 => Reply::BitmapEnd(if value == 0 { 1 } else { RECV_BITMAP_END }),
            13 => Reply::Message(Message::ResumeAck(value)),
            14 => Reply::Message(Message::SwitchoverAck),
            _ => Reply::Message(Message::Shut(value)),
        };
        match dialogue.handle(&reply, 0) {
            Ok(Said::Pages { block, start, length }) => {
                assert!(listens, "nobody listens");
                let end = start + length;
                assert!(start.is_multiple_of(PAGE) && length > 0 && end <= blocks[block].used_length);
            }
            Ok(Said::Pong(value)) => {
                let at = pings.iter().position(|ping| *ping == value);
                pings.remove(at.unwrap_or_else(|| unreachable!("nobody has asked for {value}")));
            }
            Ok(Said::Received { block, pages, .. }) => {
                assert!(paused > 0);
                assert!(pages.next_gap(blocks[block].used_length / PAGE) == blocks[block].used_length / PAGE);
            }
            Ok(Said::Resumed) => {
                assert!(resume && paused > 0);
                listens = true;
            }
            Ok(Said::Shut(_)) => listens = false,
            Ok(Said::Nothing | Said::SwitchoverAck) | Err(_) => {}
        }
    }
}

/// Commands in any order, strictly read: the state never goes back, but for a new connection.
fn command(recipe: &mut Recipe<'_>) {
    let mut grammar = Grammar::new(Mode::Strict, Dialect::ANY);
    let mut offset = 0;
    let mut say = |grammar: &mut Grammar, event: &Event<'_>| {
        let admitted = grammar.admit(event, offset);
        offset += 64;
        admitted
    };
    let identity = Some(SectionIdentity { idstr: "ram".into(), instance_id: 0, version_id: 4 });
    let setup = [
        Event::Header(FileHeader::CURRENT),
        Event::Section(SectionHead { kind: SectionKind::START, section_id: 1, identity }),
        Event::RamWord(PageWord::new(150 * PAGE, RamFlags::MEM_SIZE)),
        Event::RamBlock(RamBlock::new("ram".into(), 150 * PAGE)),
        Event::RamWord(PageWord(0x10)),
        Event::Footer(SectionFooter { section_id: 1 }),
    ];
    setup.iter().for_each(|event| say(&mut grammar, event).unwrap_or_else(|e| unreachable!("{e}")));
    while !recipe.0.is_empty() {
        let before = grammar.postcopy();
        let range = DiscardRange { start: recipe.below(160) * PAGE, length: recipe.below(8) * PAGE };
        let block = Name::from(NAMES[recipe.below(3) as usize]);
        let command = match recipe.below(8) {
            0 => Command::PostcopyAdvise(Some(Advise { page_size_summary: PAGE, target_page_size: PAGE })),
            1 => Command::PostcopyAdvise(None),
            2 => Command::PostcopyRamDiscard(Discard { version: 0, block, nil: 0, ranges: vec![range] }),
            3 => Command::PostcopyListen,
            4 => Command::PostcopyRun,
            5 => Command::PostcopyResume,
            6 => Command::RecvBitmap { block },
            _ => {
                if let Some(resumed) = grammar.resumed() {
                    assert!(matches!(before, Postcopy::Running | Postcopy::Recovering));
                    grammar = resumed;
                    assert_eq!(grammar.postcopy(), Postcopy::Recovering);
                }
                continue;
            }
        };
        let admitted = say(&mut grammar, &Event::Command(command.clone()));
        assert!(grammar.postcopy() >= before, "{command:?}");
        if admitted.is_ok() && matches!(command, Command::PostcopyRun) {
            assert_eq!(before, Postcopy::Listening);
        }
        if let (Ok(()), Command::PostcopyRamDiscard(_)) = (&admitted, &command) {
            assert!(range.start + range.length <= 150 * PAGE && block == Name::from("ram"));
        }
        if admitted.is_err() {
            return;
        }
    }
}

/// Pages, discards, requests and pauses in any order, against a set.
fn account(recipe: &mut Recipe<'_>) {
    let pattern = match recipe.below(4) {
        0 => RequestPattern::None,
        1 => RequestPattern::Missing,
        2 => RequestPattern::Random(recipe.below(256)),
        _ => RequestPattern::Hot(recipe.below(256)),
    };
    let blocks = blocks();
    let mut requests = Requests::new(Arc::clone(&blocks), PAGE, pattern, 1 + recipe.below(5) as usize);
    let mut model: BTreeSet<(usize, u64)> = BTreeSet::new();
    let mut asked: BTreeSet<(usize, u64)> = BTreeSet::new();
    let (mut now, mut named) = (0, None);
    while !recipe.0.is_empty() {
        now += 1 + recipe.below(9);
        let block = recipe.below(2) as usize;
        let pages = blocks[block].used_length / PAGE;
        let page = recipe.below(pages);
        match recipe.below(8) {
            0..=3 => {
                let arrived =
                    requests.handle_page(block, page * PAGE, now).unwrap_or_else(|e| unreachable!("{e}"));
                assert_eq!(arrived.is_new, model.insert((block, page)));
                if arrived.took.is_some() {
                    let size = if block == 0 { 1 } else { 4 };
                    assert!(asked.remove(&(block, page - page % size)));
                }
            }
            4 => {
                let count = recipe.below(20).min(pages - page);
                requests.handle_discard(block, page * PAGE, count * PAGE);
                model.retain(|(b, p)| *b != block || !(page..page + count).contains(p));
            }
            5 => {
                requests.resume();
                // The second block has host pages of four pages.
                let pages = blocks[1].used_length / PAGE;
                let parts = (0..pages).filter(|page| !model.contains(&(1, *page))).map(|page| page / 4);
                let parts: BTreeSet<u64> = parts.collect();
                model.retain(|(block, page)| *block == 0 || !parts.contains(&(page / 4)));
                named = None;
            }
            _ => {
                if let Some(message) = requests.poll_request(now) {
                    let (at, start) = match message {
                        Message::ReqPagesId { start, block, .. } => {
                            (NAMES.iter().position(|name| Name::from(*name) == block), start)
                        }
                        Message::ReqPages { start, .. } => (named, start),
                        other => unreachable!("{other:?}"),
                    };
                    named = at;
                    asked.insert((at.unwrap_or(0), start / PAGE));
                }
            }
        }
        let all: u64 = blocks.iter().map(|block| block.used_length / PAGE).sum();
        assert_eq!(requests.missing(), all - model.len() as u64);
        let first = (0..2).flat_map(|b| (0..blocks[b].used_length / PAGE).map(move |p| (b, p)));
        let first = first.clone().find(|place| !model.contains(place));
        assert_eq!(requests.first_missing(), first.map(|(b, p)| (b, p * PAGE)));
    }
    let copy: PageSet = requests.received(0).cloned().unwrap_or_default();
    assert_eq!(copy.len(), model.iter().filter(|(b, _)| *b == 0).count() as u64);
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("conversation", 1_000, super::run);
    }
}
