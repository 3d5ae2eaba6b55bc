//! All multifd channels of a source, as its main thread sees them.
//!
//! ```text
//! pages --gather--> job --Dealer, round-robin--> queue of one --> Worker 0
//!                                           '--> queue of one --> Worker 1
//! synchronise: SYNC to every queue, and wait until all are written
//! ```
//! As in stock sources, a channel that is busy is passed over. Source: `migration/multifd.c`, `multifd_send`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};

use crossbeam_channel::{Select, Sender, TrySendError, bounded};

use super::batch::{Gather, Job};
use super::misconduct::{Misconduct, Misdeeds};
use super::multifd::{ChannelDeparture, Multifd};
use super::shared::Shared;
use super::worker::{Line, Worker};
use crate::capture::{Recorder, interface_name};
use crate::dialect::Dialect;
use crate::endpoint::pace::Pace;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::multifd::codec::{self, Codec};
use crate::multifd::{Framer, ZeroPages};
use crate::transport::Connection;
use crate::wire::{MULTIFD_PACKET_SIZE, Method, MultifdHello, packet_page_count};

/// Jobs that wait for a channel that has another one under way. One, so that it need not wait for the main thread; more
/// would only have to be worked off before a synchronisation.
const QUEUE: usize = 1;

/// The channels, and the pages that wait for them.
pub(super) struct Team<'s> {
    shared: &'s Shared<'s>,
    threads: Vec<ScopedJoinHandle<'s, ChannelDeparture>>,
    queues: Vec<Sender<Job>>,
    /// The channels that pages take.
    pages: Arc<Dealer>,
    /// The channels that device state takes.
    devices: Arc<Dealer>,
    gather: Gather,
    page_count: usize,
    /// SYNCs that were asked for, on all channels.
    syncs: u64,
    misdeeds: Misdeeds,
    /// Pages were sent twice, as one of the misdeeds is.
    doubled: bool,
    departures: Vec<ChannelDeparture>,
}

/// How to open the channels.
pub(super) struct Opening<'a> {
    pub(super) multifd: Multifd,
    pub(super) dialect: Dialect,
    /// Whether device state has half of the channels for itself.
    pub(super) dedicated: bool,
    pub(super) recorder: Option<&'a Recorder>,
    pub(super) pace: &'a Pace,
    pub(super) connect: &'a mut dyn FnMut(ChannelId) -> Result<Connection>,
}

impl<'s> Team<'s> {
    /// A team without channels.
    pub(super) fn new(shared: &'s Shared<'s>, misdeeds: &Misdeeds) -> Self {
        Self {
            shared,
            threads: Vec::new(),
            queues: Vec::new(),
            pages: Arc::default(),
            devices: Arc::default(),
            gather: Gather::default(),
            page_count: packet_page_count(shared.page_size),
            syncs: 0,
            misdeeds: misdeeds.clone(),
            doubled: false,
            departures: Vec::new(),
        }
    }

    /// Opens the channels, each of which says hello by itself.
    pub(super) fn open(&mut self, scope: &'s Scope<'s, '_>, opening: Opening<'_>) -> Result<()> {
        let Opening { multifd, dialect, dedicated, recorder, pace, connect } = opening;
        let (shared, misdeeds) = (self.shared, &self.misdeeds);
        let count = match multifd.channels {
            count if misdeeds.has(Misconduct::FewerChannels) => count - 1,
            count if misdeeds.has(Misconduct::MoreChannels) => count.saturating_add(1),
            count => count,
        };
        let mut queues = Vec::new();
        for number in 0..count {
            let connection =
                connect(ChannelId::Multifd(number)).map_err(|e| e.on(ChannelId::Multifd(number)).at(0))?;
            shared.lines.add(connection.clone());
            let tap = recorder.map(|recorder| recorder.channel(interface_name(ChannelId::Multifd(number))));
            let (queue, jobs) = bounded(QUEUE);
            let worker = Worker {
                shared,
                jobs,
                line: Line {
                    shared,
                    connection,
                    tap,
                    pace: shared.pace(pace),
                    departure: ChannelDeparture { id: number, ..ChannelDeparture::default() },
                },
                hello: hello(number, count, &multifd, misdeeds),
                framer: Framer::new(dialect, shared.page_size),
                codec: codec(&multifd)?,
                misdeeds: misdeeds.clone(),
                buffer: Vec::new(),
                payload: Vec::new(),
                has_pages: false,
            };
            let thread = thread::Builder::new().name(format!("multifd-{number}"));
            let thread = thread.spawn_scoped(scope, || worker.run());
            self.threads.push(thread.map_err(|e| Error::io("sending", "a thread cannot be started", e))?);
            queues.push(queue);
        }
        if misdeeds.has(Misconduct::SilentChannel) {
            // Its thread says hello, and finds that there is nothing to do.
            queues.pop();
        }
        self.queues = queues;
        self.share_out(dedicated);
        Ok(())
    }

    /// The channels that device state takes.
    pub(super) fn devices(&self) -> &Arc<Dealer> {
        &self.devices
    }

    /// Says which channels are for whom.
    fn share_out(&mut self, dedicated: bool) {
        let lower = if dedicated { self.queues.len().div_ceil(2) } else { self.queues.len() };
        self.pages = Arc::new(Dealer::new(self.queues[..lower].to_vec()));
        self.devices = match dedicated {
            true => Arc::new(Dealer::new(self.queues[lower..].to_vec())),
            false => Arc::clone(&self.pages),
        };
    }

    /// Adds a page whose content the channel finds by itself.
    pub(super) fn add(&mut self, block: usize, offset: u64) -> Result<()> {
        self.make_room(block, false)?;
        self.gather.offsets.push(offset);
        Ok(())
    }

    /// Adds a page with its content.
    pub(super) fn add_page(&mut self, block: usize, offset: u64, page: &[u8]) -> Result<()> {
        self.make_room(block, true)?;
        let bytes = self.gather.bytes.get_or_insert_with(|| {
            let mut buffer = self.shared.take_buffer();
            buffer.reserve(MULTIFD_PACKET_SIZE as usize);
            buffer
        });
        bytes.extend_from_slice(page);
        self.gather.offsets.push(offset);
        Ok(())
    }

    /// Whether the main thread has to know which pages are zero.
    pub(super) fn wants_zero_pages_on_main(&self) -> bool {
        self.shared.zero_pages == ZeroPages::Legacy
    }

    /// SYNC on every channel, behind everything so far; comes back when all are written.
    pub(super) fn synchronise(&mut self) -> Result<()> {
        self.deal()?;
        self.syncs += self.queues.len() as u64;
        for queue in &self.queues {
            queue.send(Job::Sync).map_err(|_| self.shared.reason())?;
        }
        self.shared.await_syncs(self.syncs)
    }

    /// Hands over the pages that wait.
    pub(super) fn deal(&mut self) -> Result<()> {
        let Some(job) = self.gather.take() else { return Ok(()) };
        if self.misdeeds.has(Misconduct::SamePageTwice)
            && !std::mem::replace(&mut self.doubled, true)
            && let Job::Pages { block, offsets, given } = &job
        {
            let again = Job::Pages { block: *block, offsets: offsets.clone(), given: given.clone() };
            self.hand_over(again)?;
        }
        self.hand_over(job)
    }

    /// Gives a job to the next channel that is not busy.
    pub(super) fn hand_over(&self, job: Job) -> Result<()> {
        self.pages.deal(job).map_err(|Gone| self.shared.reason())
    }

    /// Ends the channels when they have written everything. Their connections stay open.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.deal()?;
        self.join();
        self.shared.failure().map_or(Ok(()), |failure| Err(failure.error))
    }

    /// Ends the channels, whatever they do. What each has sent.
    pub(super) fn end(mut self) -> Vec<ChannelDeparture> {
        self.shared.set_over();
        self.shared.lines.cut_channels();
        self.join();
        std::mem::take(&mut self.departures)
    }

    /// Closes the last channel.
    pub(super) fn close_last(&mut self) -> Result<()> {
        self.deal()?;
        if let Some(last) = self.queues.pop() {
            last.send(Job::Close).map_err(|_| self.shared.reason())?;
        }
        self.share_out(false);
        Ok(())
    }

    fn make_room(&mut self, block: usize, is_given: bool) -> Result<()> {
        if self.gather.offsets.len() >= self.page_count || !self.gather.fits(block, is_given) {
            self.deal()?;
        }
        self.gather.block = block;
        Ok(())
    }

    fn join(&mut self) {
        // Without queues there is nothing to wait for.
        self.queues.clear();
        (self.pages, self.devices) = Default::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(departure) => self.departures.push(departure),
                Err(_) => {
                    let message = "the thread of a multifd channel has panicked";
                    self.shared.fail(Error::nowhere(ErrorKind::Misuse, "sending", message).into());
                }
            }
        }
    }
}

impl Drop for Team<'_> {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.shared.set_over();
            self.shared.lines.cut_channels();
            self.join();
        }
    }
}

/// Gives jobs to channels; several threads may.
#[derive(Default)]
pub(super) struct Dealer {
    queues: Vec<Sender<Job>>,
    next: AtomicUsize,
}

/// A channel takes no jobs any more.
#[derive(Debug)]
pub(super) struct Gone;

impl Dealer {
    fn new(queues: Vec<Sender<Job>>) -> Self {
        Self { queues, next: AtomicUsize::new(0) }
    }

    /// To the next channel in turn that is not busy, or the first that becomes idle.
    pub(super) fn deal(&self, mut job: Job) -> Result<(), Gone> {
        if self.queues.is_empty() {
            return Err(Gone);
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        loop {
            for i in 0..self.queues.len() {
                let number = (turn + i) % self.queues.len();
                job = match self.queues[number].try_send(job) {
                    Ok(()) => {
                        self.next.fetch_add(i, Ordering::Relaxed);
                        return Ok(());
                    }
                    Err(TrySendError::Full(job)) => job,
                    Err(TrySendError::Disconnected(_)) => return Err(Gone),
                };
            }
            let mut select = Select::new();
            for queue in &self.queues {
                select.send(queue);
            }
            select.ready();
        }
    }
}

/// What channel `number` of `count` says first.
fn hello(number: u8, count: u8, multifd: &Multifd, misdeeds: &Misdeeds) -> MultifdHello {
    let mut hello = MultifdHello::new(number, multifd.uuid);
    if number + 1 == count {
        if misdeeds.has(Misconduct::IdEqualCount) {
            hello.id = multifd.channels;
        }
        if misdeeds.has(Misconduct::DuplicateId) {
            hello.id = number.saturating_sub(1);
        }
        if misdeeds.has(Misconduct::WrongUuid) {
            hello.uuid = hello.uuid.map(|byte| !byte);
        }
    }
    hello
}

/// What encodes the pages of a channel; nothing, where they stay as they are.
pub(super) fn codec(multifd: &Multifd) -> Result<Option<Box<dyn Codec>>> {
    let codec = codec::open(multifd.method, multifd.level)?;
    Ok((multifd.method != Method::NONE).then_some(codec))
}
