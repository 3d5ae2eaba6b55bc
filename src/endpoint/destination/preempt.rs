//! The preempt channel of a destination: pages that were asked for.

use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::channels::Channels;
use crate::capture::{ChannelTap, Direction, interface_name};
use crate::channel::{Feed, Input, Located};
use crate::error::Result;
use crate::postcopy::{PreemptParser, Urgent};
use crate::transport::Connection;
use crate::wire::PageBody;

/// What came over preempt channels, the ones after pauses included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreemptArrival {
    /// Bytes, in whole records.
    pub bytes: u64,
    /// Pages of all kinds.
    pub pages: u64,
    /// Pages that came as one byte.
    pub zero_pages: u64,
}

/// Reads the channel to its end. `first` has been read of it already.
pub(super) fn serve(channels: &Channels, connection: &Connection, first: Vec<u8>) -> Result<()> {
    let settings = &channels.settings;
    let channel = channels.begin_preempt();
    // It may wait for as long as nobody asks for anything; the end of the migration ends it.
    connection.set_read_timeout(None)?;
    channels.await_listening();
    let (blocks, page_size) = match &*channels.paging() {
        Some(paging) => (Arc::clone(paging.requests.blocks()), paging.requests.page_size()),
        None => return Ok(()),
    };
    let mut parser = PreemptParser::new(settings.mode, page_size).with_blocks(blocks).on(channel);
    if !channels.keeps {
        parser = parser.with_elision();
    }
    let tap = settings.recorder.as_ref().map(|recorder| recorder.channel(interface_name(channel)));
    let mut feed = Feed::new(Urgents { connection: connection.clone(), first, tap });
    let outcome = feed.run(&mut parser, |located, parser| take(channels, located, parser));
    let is_cut = channels.is_over() || channels.is_paused();
    match outcome {
        // The end of the migration cuts the channel off, wherever it stands.
        Err(_) if is_cut => Ok(()),
        outcome => outcome.map_err(|e| e.on(channel)),
    }
}

fn take(
    channels: &Channels,
    located: &Located<'_, Urgent<'_>>,
    parser: &PreemptParser,
) -> Result<ControlFlow<()>> {
    let mut news =
        PreemptArrival { bytes: located.range.end - located.range.start, ..PreemptArrival::default() };
    if let (Urgent::Page(page), Some(block)) = (&located.event, parser.current_block()) {
        let size = parser.page_size();
        let at = page.word.offset(size);
        news.pages = 1;
        match page.body {
            PageBody::Zero(0) => {
                news.zero_pages = 1;
                channels.memory().set_zero_page(block, at, size)?;
            }
            PageBody::Zero(fill) => {
                news.zero_pages = 1;
                channels.memory().set_page(block, at, &vec![fill; size as usize], size)?;
            }
            PageBody::Raw(bulk) => {
                if let Some(bytes) = bulk.bytes() {
                    channels.memory().set_page(block, at, bytes, size)?;
                }
            }
            PageBody::Compressed(_) | PageBody::Xbzrle { .. } => {}
        }
        channels.note_preempt(news);
        channels.note_pages(block, [at])?;
    } else {
        channels.note_preempt(news);
    }
    channels.count(0, 0);
    Ok(ControlFlow::Continue(()))
}

/// The channel as something to read.
struct Urgents {
    connection: Connection,
    first: Vec<u8>,
    tap: Option<ChannelTap>,
}

impl Input for Urgents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = if self.first.is_empty() {
            self.connection.read(buffer)?
        } else {
            let count = self.first.len().min(buffer.len());
            buffer[..count].copy_from_slice(&self.first[..count]);
            self.first.drain(..count);
            count
        };
        // A recording that fails says so when it is finished; the migration goes on.
        if let Some(tap) = &self.tap {
            let _ = tap.record(Direction::ToDestination, &buffer[..count]);
        }
        Ok(count)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut left = count;
        let mut scrap = [0; 4 << 10];
        while left > 0 {
            let want = scrap.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match self.read(&mut scrap[..want])? {
                0 => break,
                n => left -= n as u64,
            }
        }
        Ok(count - left)
    }
}
