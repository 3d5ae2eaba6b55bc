//! What memory is when all channels of a migration have been taken in, worked out from the bytes once more.

use std::ops::ControlFlow;
use std::sync::Arc;

use migwire::ChannelId;
use migwire::channel::{Feed, Input as _};
use migwire::container::{Access, Item, Pages, Part, Together, TogetherOptions};
use migwire::guest::is_zero;
use migwire::multifd::codec;
use migwire::postcopy::{PreemptParser, Urgent};
use migwire::report::Reading;
use migwire::stream::{Block, Event, Mode, Parser};
use migwire::wire::{MappedRamHeader, Method, Page, PageBody, xbzrle};

use super::made::Ram;

/// Pages that are not zero by block and offset, and how many came.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pages: Ram,
    /// The block list, as far as it has come; another one may follow.
    blocks: Vec<Block>,
    page_size: u64,
    /// Pages on the main channel, on multifd channels, and on the preempt channel.
    pub(crate) came: [u64; 3],
    /// Block and offset of each, in order, but for those of the preempt channel.
    pub(crate) order: Vec<(usize, u64)>,
}

/// Takes all channels in.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn memory(parts: &mut [Part]) -> migwire::Result<Memory> {
    let mut mapped = Vec::new();
    // A description at the end may name another page size than the one that is usual.
    let page_size = Reading::default().page_size_of(parts).unwrap_or(4096);
    let parser = Parser::new().with_page_size(page_size);
    let options = TogetherOptions { parser, mode: Mode::Lenient, ..TogetherOptions::default() };
    let mut together = Together::open(parts, &options)?;
    let mut memory = Memory::default();
    let mut pages = Pages::default();
    together.run(|item| {
        pages.take(item, |page| {
            if let Some(block) = page.block {
                memory.came[1] += 1;
                memory.order.push((block, page.offset));
                memory.put((block, page.offset), page.content.unwrap_or_default());
            }
            Ok(())
        })?;
        if let Item::Main(located, grammar) = item {
            memory.page_size = grammar.page_size();
            if let Event::RamBlock(_) = &located.event {
                memory.blocks = grammar.blocks().to_vec();
            }
            if let Event::RamBlock(block) = &located.event
                && let Some(header) = block.mapped
                && header.pages_offset != 0
            {
                mapped.push((grammar.blocks().len() - 1, block.used_length, header));
            }
            if let (Event::Page(page), Some(block)) = (&located.event, grammar.current_block()) {
                memory.came[0] += 1;
                memory.order.push((block, page.word.offset(memory.page_size)));
                memory.take(page, block);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if let Some(fault) = together.faults().iter().chain(pages.faults()).next() {
        return Err(fault.clone());
    }
    if let Some(part) = parts.iter_mut().find(|part| part.channel == ChannelId::Main) {
        let mut bytes = Vec::new();
        if !mapped.is_empty() {
            let mut feed = part.input(Access::Whole)?;
            let mut piece = vec![0; 1 << 16];
            while let Ok(count @ 1..) = feed.read(&mut piece) {
                bytes.extend_from_slice(&piece[..count]);
            }
        }
        for (block, length, header) in mapped {
            memory.map(&bytes, block, length, header);
        }
    }
    if let Some(part) = parts.iter_mut().find(|part| part.channel == ChannelId::Preempt) {
        let parser = PreemptParser::new(Mode::Strict, memory.page_size);
        let mut parser = parser.with_blocks(Arc::from(&*memory.blocks));
        Feed::new(part.input(Access::Whole)?).run(&mut parser, |located, parser| {
            if let (Urgent::Page(page), Some(block)) = (&located.event, parser.current_block()) {
                memory.came[2] += 1;
                memory.take(page, block);
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(memory)
}

impl Memory {
    /// Pages that are not zero.
    pub(crate) fn ram(&self) -> Ram {
        self.pages.clone()
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn take(&mut self, page: &Page<'_>, block: usize) {
        let size = self.page_size as usize;
        let key = (block, page.word.offset(self.page_size));
        let bytes = match page.body {
            PageBody::Zero(0) => return self.put(key, &[]),
            PageBody::Zero(fill) => vec![fill; size],
            PageBody::Raw(bulk) => return self.put(key, bulk.bytes().unwrap_or_default()),
            PageBody::Xbzrle { delta, .. } => {
                let mut bytes = self.pages.remove(&self.name(key)).unwrap_or_else(|| vec![0; size]);
                // What is broken stays as far as it came.
                let _ = xbzrle::decode(delta, &mut bytes);
                bytes
            }
            PageBody::Compressed(stream) => {
                let mut payload = (stream.len() as u32).to_be_bytes().to_vec();
                payload.extend_from_slice(stream);
                let mut bytes = vec![0; size];
                if let Ok(mut codec) = codec::open(Method::UADK, None) {
                    let _ = codec.decode(&payload, size, &mut bytes);
                }
                bytes
            }
        };
        self.put(key, &bytes);
    }

    /// Pages of a mapped-ram file stand where its header says; those without a bit are zero.
    fn map(&mut self, file: &[u8], block: usize, length: u64, header: MappedRamHeader) {
        let byte = |at: u64| file.get(at as usize).copied().unwrap_or_default();
        for page in 0..length / self.page_size {
            let is_there = byte(header.bitmap_offset + page / 8) & 1 << (page % 8) != 0;
            let at = (header.pages_offset + page * self.page_size) as usize;
            let bytes = file.get(at..at + self.page_size as usize).filter(|_| is_there);
            self.put((block, page * self.page_size), bytes.unwrap_or_default());
        }
    }

    fn put(&mut self, key: (usize, u64), bytes: &[u8]) {
        let name = self.name(key);
        match is_zero(bytes) {
            true => self.pages.remove(&name),
            false => self.pages.insert(name, bytes.to_vec()),
        };
    }

    fn name(&self, (block, offset): (usize, u64)) -> (Box<[u8]>, u64) {
        (self.blocks[block].name.clone(), offset)
    }
}
