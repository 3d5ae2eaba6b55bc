//! Which pages have arrived, and the requests for the others.
//!
//! ```text
//! main channel, multifd channels, preempt channel --note--> Paging --REQ_PAGES--> return path
//! ```
//! Whoever brings a page may make room for the next request, and sends it at once.

use std::sync::PoisonError;
use std::time::Instant;

use super::answers::Answers;
use super::channels::Channels;
use crate::error::{Error, ErrorKind, Result};
use crate::postcopy::Requests;
use crate::stream::Grammar;
use crate::wire::{Discard, Wire as _};

/// Account of a guest's pages, from POSTCOPY_ADVISE on.
pub(super) struct Paging {
    pub(super) requests: Requests,
    begin: Instant,
    /// The return path, as long as requests may be sent.
    voice: Option<Answers>,
    out: Vec<u8>,
}

/// What became of the requests of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestReport {
    /// Requests that were sent, those that were repeated after a pause included.
    pub sent: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Nanoseconds that half of the answers did not exceed.
    pub p50: Option<u64>,
    /// Nanoseconds that 99 of a hundred did not exceed.
    pub p99: Option<u64>,
    /// Nanoseconds of the slowest.
    pub max: Option<u64>,
}

impl Paging {
    fn new(requests: Requests) -> Self {
        Self { requests, begin: Instant::now(), voice: None, out: Vec::new() }
    }

    /// Pages may be asked for from now on.
    pub(super) fn begin(&mut self, voice: &Answers) -> Result<()> {
        self.voice = Some(voice.clone());
        self.ask()
    }

    /// The connection has broken; what was asked for is asked for again on the next one.
    pub(super) fn pause(&mut self) {
        self.voice = None;
        self.requests.resume();
    }

    /// Pages of a block have arrived.
    pub(super) fn note(&mut self, block: usize, offsets: impl IntoIterator<Item = u64>) -> Result<()> {
        let now = match self.voice {
            Some(_) => self.now(),
            None => 0,
        };
        for offset in offsets {
            self.requests.handle_page(block, offset, now)?;
        }
        self.ask()
    }

    pub(super) fn report(&self) -> RequestReport {
        let latencies = self.requests.latencies();
        RequestReport {
            sent: self.requests.sent(),
            answered: latencies.count(),
            p50: latencies.percentile(50.0),
            p99: latencies.percentile(99.0),
            max: latencies.max(),
        }
    }

    /// Sends as many requests as may be under way, all at once.
    fn ask(&mut self) -> Result<()> {
        let now = self.now();
        let Some(voice) = &mut self.voice else { return Ok(()) };
        while let Some(message) = self.requests.poll_request(now) {
            message.emit(&mut self.out);
        }
        if self.out.is_empty() {
            return Ok(());
        }
        let said = voice.put(&self.out);
        self.out.clear();
        match said {
            // The channel that is read tells of it as well, behind what has come over it.
            Err(e) if e.kind() == ErrorKind::Io => {
                self.voice = None;
                Ok(())
            }
            said => said,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Channels {
    /// The block list is there: pages are kept account of, if postcopy may follow.
    pub(super) fn begin_paging(&self, grammar: &Grammar) {
        if grammar.ram_fields().page_size {
            let settings = &self.settings;
            let requests = Requests::new(
                grammar.blocks().into(),
                grammar.page_size(),
                settings.request.clone(),
                settings.request_depth,
            )
            .with_limit(settings.request_limit);
            *self.paging() = Some(Paging::new(requests));
        }
        self.change(|state| state.surveyed = true);
    }

    /// Pages of a block have arrived.
    pub(super) fn note_pages(&self, block: usize, offsets: impl IntoIterator<Item = u64>) -> Result<()> {
        self.paging().as_mut().map_or(Ok(()), |paging| paging.note(block, offsets))
    }

    /// Pages are not there any more.
    pub(super) fn discard(&self, discard: &Discard<'_>, grammar: &Grammar) {
        if let (Some(paging), Some(block)) = (&mut *self.paging(), grammar.block_index(discard.block)) {
            for range in &discard.ranges {
                paging.requests.handle_discard(block, range.start, range.length);
            }
        }
    }

    /// Whether a connection may be a preempt channel, which says nothing of itself. That depends on what the main channel says at its
    /// beginning, which is waited for if there is a main channel.
    pub(super) fn may_have_preempt(&self) -> bool {
        let mut state = self.state();
        while state.has_main && !state.surveyed && state.end.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.paging().is_some()
    }

    /// Nothing more is discarded: pages of the preempt channel may be taken.
    pub(super) fn note_listening(&self) {
        self.change(|state| state.listens = true);
    }

    /// Waits for that, or for the end. A source fills the preempt channel behind LISTEN only; but that goes over another connection, and
    /// what overtakes a DISCARD there would be thrown away by it. Stock destinations begin to read the channel at LISTEN.
    pub(super) fn await_listening(&self) {
        let mut state = self.state();
        while !state.listens && !state.paused && state.end.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says which pages of a block have arrived.
    pub(super) fn tell_received(&self, block: usize, voice: &mut Answers) -> Result<()> {
        let paging = self.paging();
        let Some(requests) = paging.as_ref().map(|paging| &paging.requests) else { return Ok(()) };
        let (Some(received), Some(found)) = (requests.received(block), requests.blocks().get(block)) else {
            return Ok(());
        };
        voice.say_received(found, requests.page_size(), received)
    }

    /// Pages that have not come.
    pub(super) fn missing_pages(&self) -> u64 {
        self.paging().as_ref().map_or(0, |paging| paging.requests.missing())
    }

    /// An error if pages have not come.
    pub(super) fn check_all_pages(&self) -> Result<()> {
        let paging = self.paging();
        let Some(requests) = paging.as_ref().map(|paging| &paging.requests) else { return Ok(()) };
        let Some((block, offset)) = requests.first_missing() else { return Ok(()) };
        let message = format!(
            "postcopy has ended, and {} pages have not come, first {offset:#x} of block \"{}\"",
            requests.missing(),
            requests.blocks()[block].name.escape_ascii()
        );
        Err(Error::nowhere(ErrorKind::Peer, "postcopy", message))
    }
}
