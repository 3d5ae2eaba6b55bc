//! Both halves of postcopy talking to each other, with connections that break anywhere: nothing is lost, every page comes, and it ends.
//!
//! The bytes are a recipe: who gets to act next, how much of what is on its way arrives, and where all of it is lost. A source asks
//! for bitmaps after each break and sends what is missing by them.

use std::collections::VecDeque;
use std::sync::Arc;

use migwire::channel::{ChannelEvent as _, ChannelParser as _, Step, Tail};
use migwire::dialect::Dialect;
use migwire::postcopy::Reply;
use migwire::postcopy::{
    PageSet, RequestPattern, Requests, ReturnParser, Said, SourceDialogue, bitmap_size, page_count,
};
use migwire::stream::Block;
use migwire::wire::{BitmapHead, Bulk, Message, Name, RECV_BITMAP_END};

const PAGE: u64 = 4096;

/// What the source says, as far as it matters here.
#[derive(Clone, Copy, Debug)]
enum Word {
    Page(usize, u64),
    AskBitmap(usize),
    Resume,
}

struct World {
    blocks: Arc<[Block]>,
    dialogue: SourceDialogue,
    parser: ReturnParser,
    /// Pages that the source still has to send.
    todo: Vec<PageSet>,
    urgent: VecDeque<(usize, u64)>,
    /// Whether the source may send pages.
    sends: bool,
    /// What is on its way to the destination, and back.
    forth: VecDeque<Word>,
    back: Vec<u8>,
    requests: Requests,
    listens: bool,
    pauses: u32,
}

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let mut world = World::new(bytes.first().copied().unwrap_or(0));
    for (i, byte) in bytes.iter().enumerate() {
        match byte % 8 {
            0 | 1 => world.send(1 + usize::from(byte / 8)),
            2 | 3 => world.deliver(1 + usize::from(byte / 8)),
            4 | 5 => world.answer(1 + usize::from(byte / 4)),
            6 => world.ask(),
            // Not all the time, or nothing would ever arrive.
            _ if i.is_multiple_of(3) => world.cut(usize::from(byte / 8)),
            _ => {}
        }
    }
    // From here on nothing breaks, and it has to end.
    for _ in 0..10_000 {
        if world.requests.missing() == 0 {
            break;
        }
        world.ask();
        world.answer(usize::MAX);
        world.send(8);
        world.deliver(usize::MAX);
    }
    assert_eq!(world.requests.missing(), 0, "after {} pauses", world.pauses);
}

impl World {
    fn new(seed: u8) -> Self {
        let block =
            |name: &[u8], pages, huge_page| Block { name: name.into(), used_length: pages * PAGE, huge_page };
        let blocks: Arc<[Block]> = [block(b"ram", 70, None), block(b"huge", 16, Some(4 * PAGE))].into();
        let mut dialogue = SourceDialogue::new(Dialect::ANY, Arc::clone(&blocks), PAGE);
        dialogue.note_listen();
        let pattern = match seed % 4 {
            0 => RequestPattern::None,
            1 => RequestPattern::Missing,
            2 => RequestPattern::Random(seed.into()),
            _ => RequestPattern::Hot(seed.into()),
        };
        let all = |block: &Block| {
            let mut set = PageSet::new();
            set.insert_range(0..page_count(block, PAGE)).unwrap_or_else(|e| unreachable!("{e}"));
            set
        };
        Self {
            dialogue,
            parser: ReturnParser::default(),
            todo: blocks.iter().map(all).collect(),
            urgent: VecDeque::new(),
            sends: true,
            forth: VecDeque::new(),
            back: Vec::new(),
            requests: Requests::new(Arc::clone(&blocks), PAGE, pattern, 3),
            blocks,
            listens: true,
            pauses: 0,
        }
    }

    /// The source sends host pages: what was asked for first.
    fn send(&mut self, count: usize) {
        for _ in 0..count {
            if !self.sends {
                return;
            }
            let next = self.urgent.pop_front().or_else(|| {
                let mut left = self.todo.iter().enumerate();
                left.find_map(|(block, set)| set.next(0).map(|page| (block, page)))
            });
            let Some((block, page)) = next else { return };
            let size = self.blocks[block].huge_page.unwrap_or(PAGE) / PAGE;
            let first = page - page % size;
            for page in first..first + size {
                if self.todo[block].remove(page) {
                    self.forth.push_back(Word::Page(block, page));
                }
            }
        }
    }

    /// Some of what is on its way arrives at the destination.
    fn deliver(&mut self, count: usize) {
        for _ in 0..count.min(self.forth.len()) {
            match self.forth.pop_front() {
                Some(Word::Page(block, page)) => {
                    let arrived = self
                        .requests
                        .handle_page(block, page * PAGE, 0)
                        .unwrap_or_else(|e| unreachable!("{e}"));
                    assert!(arrived.is_new, "page {page} of block {block} comes twice");
                }
                Some(Word::AskBitmap(index)) => {
                    let block = &self.blocks[index];
                    let received =
                        self.requests.received(index).unwrap_or_else(|| unreachable!("the block is there"));
                    let words: Vec<u8> =
                        received.wire_words(page_count(block, PAGE)).flat_map(u64::to_le_bytes).collect();
                    for reply in [
                        Reply::Message(Message::RecvBitmap { block: Name(&block.name) }),
                        Reply::Bitmap(BitmapHead { size: bitmap_size(block, PAGE) }),
                        Reply::BitmapBits(Bulk::Bytes(&words)),
                        Reply::BitmapEnd(RECV_BITMAP_END),
                    ] {
                        reply.emit(&mut self.back);
                    }
                }
                Some(Word::Resume) => {
                    Reply::Message(Message::ResumeAck(1)).emit(&mut self.back);
                    self.listens = true;
                }
                None => return,
            }
        }
    }

    /// The destination asks for a page.
    fn ask(&mut self) {
        if self.listens
            && let Some(message) = self.requests.poll_request(0)
        {
            Reply::Message(message).emit(&mut self.back);
        }
    }

    /// So many bytes of what the destination has said arrive, as whole events.
    fn answer(&mut self, count: usize) {
        let mut taken = 0;
        let mut heard = Vec::new();
        while taken < count {
            let window = &self.back[taken..count.min(self.back.len())];
            match self.parser.step(window, Tail::Open) {
                Ok(Step::Event(located)) => {
                    let said = self.dialogue.handle(&located.event, located.range.start);
                    heard.push(said.unwrap_or_else(|e| unreachable!("{e}")));
                    taken += located.raw.len();
                }
                Ok(Step::More(_) | Step::End) => break,
                Err(e) => unreachable!("{e}"),
            }
        }
        self.back.drain(..taken);
        for said in heard {
            match said {
                Said::Pages { block, start, length } => {
                    let pages = start / PAGE..(start + length) / PAGE;
                    self.urgent.extend(
                        pages.filter(|page| self.todo[block].contains(*page)).map(|page| (block, page)),
                    );
                }
                Said::Received { block, pages, complete } => {
                    let mut todo = PageSet::new();
                    for page in
                        (0..page_count(&self.blocks[block], PAGE)).filter(|page| !pages.contains(*page))
                    {
                        todo.insert(page).unwrap_or_else(|e| unreachable!("{e}"));
                    }
                    self.todo[block] = todo;
                    if complete {
                        self.dialogue.note_resume();
                        self.forth.push_back(Word::Resume);
                    }
                }
                Said::Resumed => self.sends = true,
                _ => {}
            }
        }
    }

    /// The connections break; some of what was on its way still arrives.
    fn cut(&mut self, arrives: usize) {
        self.deliver(arrives);
        self.pauses += 1;
        self.forth.clear();
        self.back.clear();
        self.parser = ReturnParser::default();
        self.urgent.clear();
        self.sends = false;
        self.listens = false;
        self.requests.resume();
        self.dialogue.note_pause(self.pauses);
        self.forth.extend((0..self.blocks.len()).map(Word::AskBitmap));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("recovery", 200, super::run);
    }
}
