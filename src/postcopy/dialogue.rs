//! The source's half of the conversation: what a message on the return path means now, and whether it may come.
//!
//! ```text
//! here: PING --> PONG                 here: LISTEN --> REQ_PAGES_ID, REQ_PAGES ..  --> SHUT
//! here: (pause) RECV_BITMAP a, b --> RECV_BITMAP a + bits, b + bits;   RESUME --> RESUME_ACK, requests again
//! ```
//! Source: `migration/migration.c`, `source_return_path_thread`; `migration/ram.c`, `ram_save_queue_pages`, `ram_dirty_bitmap_reload`.

use std::sync::Arc;

use super::PageSet;
use super::page_set::PageBits;
use super::return_path::Reply;
use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::limits::MAX_COMPLAINTS;
use crate::stream::Block;
use crate::wire::{Message, RECV_BITMAP_END};

const DOING: &str = "return path";

/// What a source has to do about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing, or nothing yet.
    Nothing,
    /// A PING was answered: this one.
    Pong(u32),
    /// These pages are needed now: whole pages of that block.
    Pages {
        /// Block, by its place in the block list.
        block: usize,
        /// Offset in the block.
        start: u64,
        /// Length in bytes.
        length: u64,
    },
    /// The source may switch over, as far as one more device is concerned.
    SwitchoverAck,
    /// The pages of a block that have arrived. `complete`: it was the last block that was asked for.
    Received {
        /// Block, by its place in the block list.
        block: usize,
        /// Its pages.
        pages: PageSet,
        /// Whether every bitmap that was asked for is there.
        complete: bool,
    },
    /// The destination is ready to go on.
    Resumed,
    /// The destination is done, well (0) or not.
    Shut(u32),
}

/// State of the conversation at the source. Takes every event of the return path, in order; connections that follow each other
/// are one conversation.
#[derive(Clone, Debug)]
pub struct SourceDialogue {
    dialect: Dialect,
    channel: ChannelId,
    blocks: Arc<[Block]>,
    page_size: u64,
    /// Smallest unit of a request: host pages of this machine.
    stage: Stage,
    /// PINGs that were not answered.
    pings: Vec<u32>,
    last_block: Option<usize>,
    /// Blocks whose bitmaps are still to come, in the order in which they were asked for, and the one that is coming.
    awaited: Vec<usize>,
    bitmap: Option<Bitmap>,
    resume_sent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Precopy,
    Postcopy,
    Recovering,
    Done,
}

#[derive(Clone, Debug)]
struct Bitmap {
    block: usize,
    bits: PageBits,
}

impl SourceDialogue {
    /// The conversation of a source that has these blocks.
    pub fn new(dialect: Dialect, blocks: Arc<[Block]>, page_size: u64) -> Self {
        Self {
            dialect,
            channel: ChannelId::ReturnPath,
            blocks,
            page_size,
            stage: Stage::Precopy,
            pings: Vec::new(),
            last_block: None,
            awaited: Vec::new(),
            bitmap: None,
            resume_sent: false,
        }
    }

    /// A PING of that value leaves.
    pub fn note_ping(&mut self, value: u32) {
        // A destination that never answers is asked a few times at most.
        if self.pings.len() < MAX_COMPLAINTS {
            self.pings.push(value);
        }
    }

    /// LISTEN leaves: from now on pages may be asked for.
    pub fn note_listen(&mut self) {
        self.stage = Stage::Postcopy;
    }

    /// The connection broke, and what is said next is said on the `pause`-th new one. Bitmaps of all blocks are asked for there.
    pub fn note_pause(&mut self, pause: u32) {
        self.channel = ChannelId::ResumedReturnPath(pause);
        self.stage = Stage::Recovering;
        self.pings.clear();
        self.last_block = None;
        self.awaited = (0..self.blocks.len()).rev().collect();
        self.bitmap = None;
        self.resume_sent = false;
    }

    /// RESUME leaves.
    pub fn note_resume(&mut self) {
        self.resume_sent = true;
    }

    /// Whether the destination owes an answer to this PING.
    pub fn awaits_pong(&self, value: u32) -> bool {
        self.pings.contains(&value)
    }

    /// Takes an event of the return path, which begins at `offset`.
    ///
    /// # Errors
    /// What a stock source fails over, or, in postcopy, pauses.
    pub fn handle(&mut self, reply: &Reply<'_>, offset: u64) -> Result<Said> {
        self.take(reply).map_err(|(kind, message)| Error::new(kind, offset, DOING, message).on(self.channel))
    }

    fn take(&mut self, reply: &Reply<'_>) -> Result<Said, (ErrorKind, String)> {
        use ErrorKind::{Malformed, OutOfOrder};
        match reply {
            Reply::Message(Message::Pong(value)) => match self.pings.iter().position(|ping| ping == value) {
                Some(at) => {
                    self.pings.remove(at);
                    Ok(Said::Pong(*value))
                }
                None => Err((OutOfOrder, format!("PONG {value:#x}, which answers no PING"))),
            },
            Reply::Message(Message::Shut(status)) => {
                self.stage = Stage::Done;
                Ok(Said::Shut(*status))
            }
            Reply::Message(Message::SwitchoverAck) if self.dialect.has(Difference::SwitchoverAck) => {
                Ok(Said::SwitchoverAck)
            }
            Reply::Message(Message::SwitchoverAck) => {
                Err((OutOfOrder, format!("SWITCHOVER_ACK, which QEMU {} does not know", self.dialect)))
            }
            Reply::Message(Message::ReqPagesId { start, length, block }) => {
                let index = self.blocks.iter().position(|b| *b.name == *block.0);
                let Some(index) = index else {
                    return Err((
                        Malformed,
                        format!("pages of block {block:?} are asked for, which there is not"),
                    ));
                };
                self.last_block = Some(index);
                self.pages(index, *start, *length)
            }
            Reply::Message(Message::ReqPages { start, length }) => match self.last_block {
                Some(index) => self.pages(index, *start, *length),
                None => Err((OutOfOrder, "REQ_PAGES, and no request before it has named a block".to_owned())),
            },
            Reply::Message(Message::RecvBitmap { block }) => {
                let index = self.blocks.iter().position(|b| *b.name == *block.0);
                match (index, self.awaited.last()) {
                    (Some(index), Some(next)) if index == *next && self.stage == Stage::Recovering => {
                        self.bitmap = Some(Bitmap { block: index, bits: PageBits::default() });
                        Ok(Said::Nothing)
                    }
                    _ => Err((
                        OutOfOrder,
                        format!("bitmap of block {block:?}, which was not asked for, or not now"),
                    )),
                }
            }
            Reply::Message(Message::ResumeAck(1)) if self.stage == Stage::Recovering && self.resume_sent => {
                self.stage = Stage::Postcopy;
                Ok(Said::Resumed)
            }
            Reply::Message(Message::ResumeAck(1)) => {
                Err((OutOfOrder, "RESUME_ACK, and nothing was to be resumed".to_owned()))
            }
            Reply::Message(Message::ResumeAck(value)) => {
                Err((Malformed, format!("RESUME_ACK {value:#x}, expected 1")))
            }
            Reply::Message(Message::Other { kind, .. }) => {
                Err((Malformed, format!("{kind}, which nobody knows")))
            }
            Reply::Bitmap(head) => self.begin_bitmap(head.size),
            Reply::BitmapBits(bulk) => match (self.bitmap.as_mut(), bulk.bytes()) {
                (Some(bitmap), Some(bytes)) => bitmap
                    .bits
                    .add(bytes)
                    .map_err(|e| (e.kind(), e.message().to_owned()))
                    .map(|()| Said::Nothing),
                _ => Err((OutOfOrder, "bits that belong to no bitmap".to_owned())),
            },
            Reply::BitmapEnd(mark) => self.end_bitmap(*mark),
        }
    }

    fn pages(&self, index: usize, start: u64, length: u32) -> Result<Said, (ErrorKind, String)> {
        let wrong = |kind, message: &str| {
            let name = self.blocks[index].name.escape_ascii();
            Err((kind, format!("request for {start:#x}+{length:#x} of block \"{name}\": {message}")))
        };
        let length = u64::from(length);
        if self.stage != Stage::Postcopy {
            return wrong(ErrorKind::OutOfOrder, "nobody listens for requests yet (LISTEN, or RESUME)");
        }
        if !start.is_multiple_of(self.page_size) || !length.is_multiple_of(self.page_size) || length == 0 {
            return wrong(ErrorKind::Malformed, "these are no whole pages");
        }
        if start.checked_add(length).is_none_or(|end| end > self.blocks[index].used_length) {
            return wrong(ErrorKind::Malformed, "it reaches past the end");
        }
        Ok(Said::Pages { block: index, start, length })
    }

    fn begin_bitmap(&self, size: u64) -> Result<Said, (ErrorKind, String)> {
        let Some(bitmap) = &self.bitmap else {
            return Err((ErrorKind::OutOfOrder, "a bitmap that belongs to no block".to_owned()));
        };
        let expected = bitmap_size(&self.blocks[bitmap.block], self.page_size);
        match size == expected {
            true => Ok(Said::Nothing),
            false => {
                Err((ErrorKind::Malformed, format!("a bitmap of {size} bytes, its block takes {expected}")))
            }
        }
    }

    fn end_bitmap(&mut self, mark: u64) -> Result<Said, (ErrorKind, String)> {
        let Some(Bitmap { block, bits }) = self.bitmap.take() else {
            return Err((ErrorKind::OutOfOrder, "the end of no bitmap".to_owned()));
        };
        if mark != RECV_BITMAP_END {
            return Err((ErrorKind::Malformed, format!("bitmap end mark {mark:#018x}")));
        }
        self.awaited.pop();
        let mut pages = bits.pages;
        // Bits behind the end mean nothing.
        pages.remove_range(page_count(&self.blocks[block], self.page_size)..u64::MAX);
        Ok(Said::Received { block, pages, complete: self.awaited.is_empty() })
    }
}

/// Pages of a block.
pub fn page_count(block: &Block, page_size: u64) -> u64 {
    block.used_length.div_ceil(page_size)
}

/// Bytes of its received-page bitmap: a bit a page, in whole words.
pub fn bitmap_size(block: &Block, page_size: u64) -> u64 {
    page_count(block, page_size).div_ceil(64) * 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{BitmapHead, Bulk, Name};

    fn dialogue() -> SourceDialogue {
        let block = |name: &[u8], used_length| Block { name: name.into(), used_length, huge_page: None };
        SourceDialogue::new(Dialect::ANY, [block(b"ram", 0x43000), block(b"rom", 0x1000)].into(), 0x1000)
    }

    fn say(dialogue: &mut SourceDialogue, message: Message<'_>) -> Result<Said> {
        dialogue.handle(&Reply::Message(message), 0)
    }

    fn ask(start: u64, length: u32, block: &'static str) -> Message<'static> {
        Message::ReqPagesId { start, length, block: Name::from(block) }
    }

    #[test]
    fn pages_are_asked_for_when_somebody_listens() {
        let mut dialogue = dialogue();
        let early = say(&mut dialogue, ask(0, 0x1000, "ram")).unwrap_err();
        assert_eq!(early.kind(), ErrorKind::OutOfOrder);
        dialogue.note_listen();
        let pages = |block, start, length| Said::Pages { block, start, length };
        assert_eq!(say(&mut dialogue, ask(0x1000, 0x2000, "ram")).unwrap(), pages(0, 0x1000, 0x2000));
        assert_eq!(
            say(&mut dialogue, Message::ReqPages { start: 0, length: 0x1000 }).unwrap(),
            pages(0, 0, 0x1000)
        );
        for (wrong, why) in [
            (ask(0, 0x1000, "tape"), "which there is not"),
            (ask(0x800, 0x1000, "ram"), "no whole pages"),
            (ask(0, 0, "ram"), "no whole pages"),
            (ask(0x42000, 0x2000, "ram"), "past the end"),
            (ask(u64::MAX - 0xfff, 0x1000, "ram"), "past the end"),
        ] {
            let e = say(&mut dialogue, wrong).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
        dialogue.note_pause(1);
        let e = say(&mut dialogue, Message::ReqPages { start: 0, length: 0x1000 }).unwrap_err();
        assert_eq!(e.channel(), ChannelId::ResumedReturnPath(1));
    }

    #[test]
    fn a_pong_answers_a_ping() {
        let mut dialogue = dialogue();
        dialogue.note_ping(1);
        assert!(dialogue.awaits_pong(1));
        assert_eq!(say(&mut dialogue, Message::Pong(1)).unwrap(), Said::Pong(1));
        assert!(say(&mut dialogue, Message::Pong(1)).is_err());
    }

    fn bitmap(dialogue: &mut SourceDialogue, block: &'static str, words: &[u64]) -> Result<Said> {
        say(dialogue, Message::RecvBitmap { block: Name::from(block) })?;
        dialogue.handle(&Reply::Bitmap(BitmapHead { size: 8 * words.len() as u64 }), 0)?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        for piece in bytes.chunks(5) {
            dialogue.handle(&Reply::BitmapBits(Bulk::Bytes(piece)), 0)?;
        }
        dialogue.handle(&Reply::BitmapEnd(RECV_BITMAP_END), 0)
    }

    #[test]
    fn a_recovery() {
        let mut dialogue = dialogue();
        dialogue.note_listen();
        assert!(bitmap(&mut dialogue, "ram", &[1, 1]).is_err(), "nobody has asked");
        dialogue.note_pause(1);
        assert!(bitmap(&mut dialogue.clone(), "rom", &[1]).is_err(), "in the wrong order");
        assert!(bitmap(&mut dialogue.clone(), "ram", &[1]).is_err(), "too short");
        let Said::Received { block: 0, pages, complete: false } =
            bitmap(&mut dialogue, "ram", &[1, u64::MAX]).unwrap()
        else {
            panic!("another answer")
        };
        assert_eq!((pages.len(), pages.next(1)), (1 + 3, Some(64)), "bits behind the end are not there");
        assert!(say(&mut dialogue.clone(), Message::ResumeAck(1)).is_err(), "before RESUME");
        assert!(matches!(
            bitmap(&mut dialogue, "rom", &[0]),
            Ok(Said::Received { block: 1, complete: true, .. })
        ));
        dialogue.note_resume();
        assert!(say(&mut dialogue.clone(), Message::ResumeAck(2)).is_err());
        assert_eq!(say(&mut dialogue, Message::ResumeAck(1)).unwrap(), Said::Resumed);
        assert!(say(&mut dialogue, ask(0, 0x1000, "ram")).is_ok());
    }
}
