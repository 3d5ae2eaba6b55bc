//! Postcopy behind the switch: pages that are asked for, pages that are not, and the end.
//!
//! ```text
//! without preempt channel   [asked asked] back back back [asked] back ..     one thread, the main one; it looks between a few pages
//! with                       main:    back back back ..                      each page is taken once, by whoever comes first
//!                            preempt: asked asked ..
//! ```

use std::time::Instant;

use crossbeam_channel::never;

use super::content::Stretch;
use super::postcopy::{Notice, Postcopy, PostcopyDeparture, Turn};
use super::sending::Sending;
use super::service::{Request, Run};
use super::urgent::{Opening, PreemptDeparture, Urgent};
use crate::capture::interface_name;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::postcopy::PACKAGE_LOADED;
use crate::transport::Connection;

/// Pages that nobody has asked for, between two looks at the requests.
const BACKGROUND: u64 = 16;

/// Pages that were asked for, at once.
const ASKED: u64 = 64;

/// Bytes that wait to be handed to the system, at most: a page that is asked for stands behind them.
const WAITING: usize = 64 << 10;

/// Pieces of requests that are answered before others get their turn.
const TURNS: usize = 256;

/// What a source needs behind the switch.
pub(super) struct Serving<'s> {
    pub(super) options: Postcopy,
    notice: Option<Notice>,
    /// A request that is being answered.
    current: Option<Request>,
    /// The preempt channel, before and after it has a thread.
    line: Option<(Connection, ChannelId)>,
    urgent: Option<Urgent<'s>>,
    preempt: Option<PreemptDeparture>,
    pub(super) pauses: u32,
    /// Until when the destination must be reached again.
    pub(super) deadline: Option<Instant>,
    /// Pages that were missing when it was reached last.
    pub(super) least: u64,
}

impl Serving<'_> {
    pub(super) fn new(options: Postcopy, notice: Option<Notice>) -> Self {
        Self {
            options,
            notice,
            current: None,
            line: None,
            urgent: None,
            preempt: options.preempt.then(PreemptDeparture::default),
            pauses: 0,
            deadline: None,
            least: u64::MAX,
        }
    }

    pub(super) fn tell(&mut self, turn: Turn<'_>) {
        if let Some(notice) = &mut self.notice {
            notice(turn);
        }
    }

    /// Waits for the thread of the preempt channel, whose conversation is over.
    pub(super) fn join(&mut self) {
        self.line = None;
        self.current = None;
        if let (Some(urgent), Some(preempt)) = (self.urgent.take(), &mut self.preempt) {
            let PreemptDeparture { bytes, pages } = urgent.join();
            preempt.bytes += bytes;
            preempt.pages += pages;
        }
    }
}

impl<'s> Sending<'s, '_> {
    pub(super) fn wants_preempt(&self) -> bool {
        self.serving.as_ref().is_some_and(|serving| serving.options.preempt)
    }

    /// Connects the preempt channel. It is used when pages can be asked for.
    pub(super) fn open_preempt(&mut self, channel: ChannelId) -> Result<()> {
        let connection = (self.connect)(channel).map_err(|e| e.on(channel).at(0))?;
        self.shared.lines.add(connection.clone());
        if let Some(serving) = &mut self.serving {
            serving.line = Some((connection, channel));
        }
        Ok(())
    }

    /// Sends everything that is left, and waits for the destination's last word.
    pub(super) fn serve(&mut self) -> Result<()> {
        self.start_urgent()?;
        if self.shared.service.left() > 0 {
            self.out.begin_part()?;
            self.pages()?;
            self.out.end_part()?;
        }
        self.out.main.flush()?;
        let patience = self.pace.patience().unwrap_or_default();
        if !self.shared.service.settle(patience)? {
            let message = "the preempt channel does not get on";
            return Err(Error::nowhere(ErrorKind::Timeout, "sending", message));
        }
        let message = "the destination does not say that it has loaded the devices (PONG 0x42)";
        self.out.main.await_reply(|replies| !replies.awaits_pong(PACKAGE_LOADED), message)?;
        self.end()?;
        if let Some(urgent) = self.serving.as_ref().and_then(|serving| serving.urgent.as_ref()) {
            urgent.finish();
        }
        self.out.main.await_shut()?;
        // What was asked for before that is known by now.
        if let Some(replies) = &self.out.main.replies {
            replies.requests.try_iter().for_each(|request| self.shared.service.note_unneeded(&request));
        }
        self.out.main.close()
    }

    fn start_urgent(&mut self) -> Result<()> {
        let (Some(serving), Some(replies)) = (&mut self.serving, &mut self.out.main.replies) else {
            return Ok(());
        };
        let Some((connection, channel)) = serving.line.take() else { return Ok(()) };
        let recorder = self.source.recorder.as_ref();
        let tap = recorder.map(|recorder| recorder.channel(interface_name(channel)));
        // It may remain silent, and was there all the same.
        if let Some(tap) = &tap {
            tap.announce();
        }
        let opening = Opening {
            connection,
            channel,
            tap,
            pace: self.pace,
            has_end: self.source.preempt_has_end(),
            requests: std::mem::replace(&mut replies.requests, never()),
        };
        serving.urgent = Some(Urgent::start(self.scope, self.shared, opening)?);
        Ok(())
    }

    /// All pages that are left, those that are asked for first.
    fn pages(&mut self) -> Result<()> {
        loop {
            self.requested()?;
            let Some(run) = self.shared.service.take_next(BACKGROUND) else { return Ok(()) };
            self.send_run(&run)?;
            if self.out.main.waiting() >= WAITING {
                self.out.main.flush()?;
            }
            self.look_for_the_end()?;
        }
    }

    /// A destination that says that it is done while pages are missing cannot be helped.
    fn look_for_the_end(&mut self) -> Result<()> {
        match self.out.main.replies.as_ref().and_then(|replies| replies.status()) {
            None => Ok(()),
            Some(status) => {
                let message = format!(
                    "the destination says that it is done (SHUT {status}), and {} pages have not been sent",
                    self.shared.service.left()
                );
                Err(Error::nowhere(ErrorKind::Peer, "sending", message).on(ChannelId::ReturnPath))
            }
        }
    }

    /// The pages that are asked for, if they do not have a channel of their own.
    fn requested(&mut self) -> Result<()> {
        let mut is_due = false;
        for _ in 0..TURNS {
            let Some(run) = self.next_requested() else { break };
            if let Some(run) = run {
                self.send_run(&run)?;
                is_due = true;
            }
            if self.out.main.waiting() >= 2 * WAITING {
                self.out.main.flush()?;
            }
        }
        if is_due { self.out.main.flush() } else { Ok(()) }
    }

    /// `None`: nobody asks. `Some(None)`: for nothing that is left, so far.
    fn next_requested(&mut self) -> Option<Option<Run>> {
        let (serving, replies) = (self.serving.as_mut()?, self.out.main.replies.as_ref()?);
        let service = &self.shared.service;
        let mut request = match serving.current.take() {
            Some(request) => request,
            None => {
                let request = replies.requests.try_recv().ok()?;
                service.note_request();
                request
            }
        };
        let run = service.take_requested(&mut request, ASKED, false);
        serving.current = (!request.pages.is_empty()).then_some(request);
        Some(run)
    }

    fn send_run(&mut self, run: &Run) -> Result<()> {
        let (size, index) = (self.shared.page_size, run.block);
        let length = self.shared.blocks[index].used_length;
        let range = run.pages.start * size..(run.pages.end * size).min(length);
        let stretch = Stretch { index, range, length, page_size: size };
        self.shared.contents[index].send_few(&stretch, &mut self.out.main)
    }

    /// Ends whatever is left of postcopy. What came of it.
    pub(super) fn close_serving(&mut self) -> PostcopyDeparture {
        let Some(serving) = &mut self.serving else { return PostcopyDeparture::default() };
        // A thread that serves requests waits as long as somebody can ask.
        if serving.urgent.is_some()
            && let Some(replies) = &mut self.out.main.replies
        {
            replies.stop();
        }
        serving.join();
        PostcopyDeparture {
            switched: self.out.main.is_running(),
            pauses: serving.pauses,
            preempt: serving.preempt,
            requests: self.shared.service.requests(),
        }
    }
}
