//! Pause and recovery: the connections of a postcopy broke, and the guest runs at the destination.
//!
//! ```text
//! here          RECV_BITMAP a, b, ..                  RESUME              PART .. END EOF      a new connection, without header
//! destination                         bitmaps of all           RESUME_ACK, requests again
//! ```
//! What is still to be sent is what the destination has not received, whatever was sent. Source: `migration/migration.c`,
//! `postcopy_pause`, `postcopy_do_resume`; `migration/ram.c`, `ram_dirty_bitmap_sync_all`.

use std::thread;
use std::time::{Duration, Instant};

use super::Source;
use super::content::Content;
use super::postcopy::Turn;
use super::sending::Sending;
use super::service::host_pages;
use crate::capture::interface_name;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::postcopy::{PageSet, page_count};
use crate::transport::Connection;
use crate::wire::{Command, Name};

const DOING: &str = "recovering";

/// What is being done when a connection can break.
const BREAKABLE: [&str; 5] =
    ["sending", "waiting for the destination", "return path", "connecting", "setting a timeout"];

/// Time between two tries to connect: it grows up to the longest.
const SHORTEST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

impl Sending<'_, '_> {
    /// Serves from the switch to the end, over as many connections as it takes.
    pub(super) fn converse(&mut self, switched: Result<()>) -> Result<()> {
        let mut outcome = switched.and_then(|()| self.serve());
        loop {
            let Err(error) = outcome else { return Ok(()) };
            let error = self.first_reason(error);
            if !self.may_pause(&error) {
                return Err(error);
            }
            outcome = self.recover(error).and_then(|()| self.serve());
        }
    }

    /// What went wrong first, if the preempt channel did and took the others with it.
    fn first_reason(&mut self, error: Error) -> Error {
        let is_consequence =
            matches!(error.kind(), ErrorKind::Io | ErrorKind::Peer) && !self.out.main.was_cut;
        match self.shared.service.take_failure() {
            Some(first) if is_consequence => first,
            _ => error,
        }
    }

    /// Whether it is a connection that broke, at a time when there is something to go on with.
    fn may_pause(&self, error: &Error) -> bool {
        let Some(serving) = &self.serving else { return false };
        let main = &self.out.main;
        let is_wanted = !serving.options.recover.is_zero() && !self.pace.is_overdue();
        let has_what_it_takes = !self.source.syncs_in_postcopy();
        // A destination that has said its last word will not listen again.
        let is_final = main.replies.as_ref().is_some_and(|replies| replies.status().is_some());
        let is_return_path =
            matches!(error.channel(), ChannelId::ReturnPath | ChannelId::ResumedReturnPath(_));
        let is_connection = is_return_path || BREAKABLE.contains(&error.doing());
        is_wanted
            && has_what_it_takes
            && main.is_running()
            && !is_final
            && is_connection
            && error.kind() != ErrorKind::Misuse
    }

    /// Pauses, reaches the destination again, and agrees with it on what is missing.
    fn recover(&mut self, reason: Error) -> Result<()> {
        self.hang_up();
        let Some(serving) = &mut self.serving else { return Err(reason) };
        serving.pauses += 1;
        let pause = serving.pauses;
        let within = serving.options.recover;
        let deadline = *serving.deadline.get_or_insert_with(|| Instant::now() + within);
        serving.tell(Turn::Paused(&reason));
        let connection = self.reconnect(pause, deadline, &reason)?;
        self.resume(pause, connection)
    }

    /// Ends all connections and whoever uses them.
    fn hang_up(&mut self) {
        self.shared.lines.cut();
        self.out.main.replies = None;
        if let Some(serving) = &mut self.serving {
            serving.join();
        }
        // What the preempt channel met with at the end is part of the same pause.
        let _ = self.shared.service.take_failure();
    }

    fn reconnect(&mut self, pause: u32, deadline: Instant, reason: &Error) -> Result<Connection> {
        let mut wait = SHORTEST_WAIT;
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.pace.is_overdue() {
                let last = last.map_or_else(String::new, |e: Error| format!(": {e}"));
                let message = format!(
                    "the destination could not be reached again in time{last}; the migration was paused because of this: {reason}"
                );
                return Err(Error::nowhere(ErrorKind::Timeout, DOING, message));
            }
            // The destination needs a while to listen again in any case.
            thread::sleep(wait.min(left));
            wait = (wait * 2).min(LONGEST_WAIT);
            match (self.connect)(ChannelId::Resumed(pause)) {
                Ok(connection) if connection.is_bidirectional() => return Ok(connection),
                Ok(connection) => {
                    let message = format!("{} goes one way", connection.label());
                    return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
                }
                Err(error) => last = Some(error),
            }
        }
    }

    fn resume(&mut self, pause: u32, connection: Connection) -> Result<()> {
        let facts = self.source.template.facts();
        let channel = ChannelId::Resumed(pause);
        self.shared.lines.replace(connection.clone());
        self.connection = connection.clone();
        let recorder = self.source.recorder.as_ref();
        let tap = recorder.map(|recorder| recorder.channel(interface_name(channel)));
        self.out.main.reconnect((connection, channel), tap.clone())?;
        self.dialogue.lock().note_pause(pause);
        self.listen(ChannelId::ResumedReturnPath(pause), tap)?;
        if self.wants_preempt() && self.source.preempt_comes_first() {
            self.open_preempt(ChannelId::ResumedPreempt(pause))?;
        }
        let missing = self.missing()?;
        let left: u64 = missing.iter().map(PageSet::len).sum();
        self.shared.service.begin(&facts.blocks, facts.page_size, missing);
        if self.wants_preempt() && !self.source.preempt_comes_first() {
            self.open_preempt(ChannelId::ResumedPreempt(pause))?;
        }
        self.dialogue.lock().note_resume();
        self.command(Command::PostcopyResume)?;
        self.out.main.flush()?;
        let message = "the destination does not say that it is ready to go on (RESUME_ACK)";
        self.out.main.await_reply(|replies| replies.is_resumed, message)?;
        let Some(serving) = &mut self.serving else { return Ok(()) };
        // A destination that receives nothing between two pauses does not get another while each time.
        if left < serving.least {
            serving.least = left;
            serving.deadline = None;
        }
        serving.tell(Turn::Resumed);
        Ok(())
    }

    /// Asks what has arrived. What has not, of every block.
    fn missing(&mut self) -> Result<Vec<PageSet>> {
        let facts = self.source.template.facts();
        for block in &facts.blocks {
            self.command(Command::RecvBitmap { block: Name(&block.name) })?;
        }
        self.out.main.flush()?;
        let message = "the destination does not say what it has received (RECV_BITMAP)";
        self.out.main.await_reply(|replies| replies.is_complete, message)?;
        let replies = self.out.main.replies.as_mut();
        let received = replies.map_or_else(Vec::new, |replies| std::mem::take(&mut replies.received));
        let mut missing: Vec<PageSet> = facts.blocks.iter().map(|_| PageSet::new()).collect();
        for (index, pages) in received {
            missing[index] = self.source.complement(index, &pages)?;
        }
        Ok(missing)
    }
}

impl Source {
    /// The pages of a block that are to be sent if these have been received. Host pages that are there in part are sent again.
    fn complement(&self, index: usize, received: &PageSet) -> Result<PageSet> {
        let facts = self.template.facts();
        let (block, page_size) = (&facts.blocks[index], facts.page_size);
        let (count, host) = (page_count(block, page_size), host_pages(block, page_size));
        let mut missing = PageSet::new();
        if matches!(self.contents[index], Content::Kept) {
            let there = received.len();
            if facts.pages[index] > 0 && there < count {
                let message = format!(
                    "{} pages of block \"{}\" are missing at the destination; they are the template's own, were sent before the switch, \
                     and cannot be sent again",
                    count - there,
                    block.name.escape_ascii()
                );
                return Err(Error::nowhere(ErrorKind::Unsupported, DOING, message));
            }
            return Ok(missing);
        }
        let mut page = 0;
        loop {
            let start = received.next_gap(page);
            if start >= count {
                return Ok(missing);
            }
            page = received.next(start).unwrap_or(count).min(count);
            missing.insert_range(start / host * host..page.next_multiple_of(host).min(count))?;
        }
    }
}
