//! Stand-in source: migrates a guest that does not run into a destination that cannot tell.
//!
//! ```text
//! here:        header config | OPEN_RETURN_PATH PING 1 | START PART.. END FULL.. EOF DESCRIPTION
//! destination:                                   PONG 1                                         SHUT 0
//! ```
//! A [`Template`] gives the stream its shape: block list, devices, description. Its pages stay, or come from images or a
//! [`Pattern`]. What leaves has passed a strict emitter, so that no stock destination can hang on it; with [`Misconduct`] it may.
//!
//! ```text
//! main thread --Output--> main channel          Outlet: which channel a page takes, when they wait for each other
//!      |   '--Team--> Worker, a thread a multifd channel: pages made or read, encoded, written
//!      '------Fleet-> a thread a device: its packets, handed to the workers
//! Replies, a thread <--- return path
//! ```
//! In postcopy, pages follow the devices ([`Postcopy`]): the main thread sends them, or a thread of the preempt channel those that are
//! asked for, out of one account (`service`). When the connections break, the migration goes on over new ones (`recovery`).

mod batch;
mod blank;
mod content;
mod devices;
mod fleet;
mod misconduct;
mod multifd;
mod outlet;
mod output;
mod postcopy;
mod recovery;
mod replies;
mod sending;
mod service;
mod serving;
mod shared;
mod switch;
mod team;
mod template;
mod urgent;
mod worker;

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::pace::Pace;
use super::{Cut, Cuts, Limits, Progress};
use crate::capture::{Recorder, interface_name};
use crate::device_state::Arrangement;
use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::{Memory, Pattern, XbzrleCache};
use crate::limits::MAX_MULTIFD_CHANNELS;
use crate::multifd::{SyncMode, SyncPlace, Synchronisation, ZeroPages};
use crate::postcopy::SourceDialogue;
use crate::stream::{Block, Parser};
use crate::transport::Connection;
use content::{Content, Image};
use misconduct::Misdeeds;
use outlet::Outlet;
use output::Output;
use postcopy::Notice;
use replies::Dialogue;
use sending::{Filter, Sending};
use serving::Serving;
use shared::Shared;

pub use blank::{Blank, RunState};
pub use fleet::{DeviceDeparture, Devices};
pub use misconduct::Misconduct;
pub use multifd::{ChannelDeparture, Multifd};
pub use postcopy::{Postcopy, PostcopyDeparture, Turn};
pub use service::PageRequests;
pub use template::Template;
pub use urgent::PreemptDeparture;

const DOING: &str = "sending";

/// What a stand-in source sends, and how.
pub struct Source {
    template: Template,
    contents: Vec<Content>,
    dialect: Dialect,
    limits: Limits,
    return_path: Option<bool>,
    rounds: u64,
    xbzrle: Option<usize>,
    copy: Memory,
    recorder: Option<Recorder>,
    multifd: Option<Multifd>,
    misdeeds: Misdeeds,
    devices: Option<Devices>,
    postcopy: Option<Postcopy>,
    advise: bool,
    cuts: Vec<Cut>,
    notice: Option<Notice>,
}

/// What has been sent: everything up to the end or up to the fault.
#[derive(Debug)]
pub struct Departure {
    /// Machine name of the configuration record.
    pub machine: Option<String>,
    /// Bytes of the main channel that the system took; of all its connections.
    pub bytes: u64,
    /// Pages of all kinds, on all channels.
    pub pages: u64,
    /// Pages that went as one byte, or as nothing but their place in a packet.
    pub zero_pages: u64,
    /// Pages that were sent as deltas.
    pub xbzrle_pages: u64,
    /// Whether the return path was opened.
    pub return_path: bool,
    /// Whether the destination answered PING.
    pub pong: bool,
    /// The status in the destination's SHUT, if it came.
    pub peer_status: Option<u32>,
    /// What went over each multifd channel.
    pub channels: Vec<ChannelDeparture>,
    /// What came of postcopy.
    pub postcopy: PostcopyDeparture,
    /// What was sent of each device that was made up.
    pub devices: Vec<DeviceDeparture>,
    /// Time from taking over the connection to the last answer.
    pub elapsed: Duration,
    /// The guest's memory as the destination should have it, as far as it was kept.
    pub memory: Memory,
    /// Why the migration failed; `None` if it completed.
    pub error: Option<Error>,
}

impl Source {
    /// A source of that shape, with the template's own pages.
    pub fn new(template: Template) -> Self {
        let contents = template.blocks().iter().map(|_| Content::Kept).collect();
        Self {
            template,
            contents,
            dialect: Dialect::ANY,
            limits: Limits::default(),
            return_path: None,
            rounds: 1,
            xbzrle: None,
            copy: Memory::new(),
            recorder: None,
            multifd: None,
            misdeeds: Misdeeds::default(),
            devices: None,
            postcopy: None,
            advise: false,
            cuts: Vec::new(),
            notice: None,
        }
    }

    /// The same, with that pattern in a block; in the largest one, if none is named.
    ///
    /// # Errors
    /// If there is no such block.
    pub fn with_pattern(mut self, block: Option<&[u8]>, pattern: Pattern) -> Result<Self> {
        let mut blocks = self.template.blocks().iter().enumerate();
        let found = match block {
            Some(name) => blocks.find(|(_, block)| *block.name == *name),
            // Of equals the first: `max_by_key` would take the last.
            None => blocks.rev().max_by_key(|(_, block)| block.used_length),
        };
        let Some((index, _)) = found else {
            let names: Vec<String> =
                self.template.blocks().iter().map(|b| b.name.escape_ascii().to_string()).collect();
            let message = format!("there is no such RAM block; there are: {}", names.join(", "));
            return Err(Error::nowhere(ErrorKind::Misuse, "filling a block", message));
        };
        self.contents[index] = Content::Pattern(pattern);
        Ok(self)
    }

    /// The same, with the images in `directory` in the blocks they are named after; at least one must be there.
    ///
    /// # Errors
    /// If none is there or one has another size than its block; those of the file system.
    pub fn with_images(mut self, directory: &Path) -> Result<Self> {
        let mut found = false;
        for (block, content) in self.template.blocks().iter().zip(&mut self.contents) {
            if let Some(image) = Image::find(directory, &block.name, block.used_length)? {
                *content = Content::Image(image);
                found = true;
            }
        }
        match found {
            true => Ok(self),
            false => {
                let message = format!("{} has no image of any block", directory.display());
                Err(Error::nowhere(ErrorKind::Misuse, "opening RAM images", message))
            }
        }
    }

    /// The same, written as that release does where releases differ in what a template can say either way: with or without
    /// SWITCHOVER_START. Otherwise that stays as it is in the template. Multifd channels are as that release has them, or the newest.
    #[must_use]
    pub fn with_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// The same, with that much patience.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same, with or without return path. Otherwise as the template has it.
    #[must_use]
    pub fn with_return_path(mut self, on: bool) -> Self {
        self.return_path = Some(on);
        self
    }

    /// The same, sending all pages so many times.
    #[must_use]
    pub fn with_rounds(mut self, rounds: u64) -> Self {
        self.rounds = rounds;
        self
    }

    /// The same, sending deltas of pages that come from a pattern, against a cache of that many bytes. Pages of every round
    /// but the last then differ a little from what they are in the end.
    #[must_use]
    pub fn with_xbzrle(mut self, cache_bytes: usize) -> Self {
        self.xbzrle = Some(cache_bytes);
        self
    }

    /// The same, keeping what was sent as `memory` does.
    #[must_use]
    pub fn with_copy(mut self, memory: Memory) -> Self {
        self.copy = memory;
        self
    }

    /// The same, recording all channels. The caller finishes the recording.
    #[must_use]
    pub fn with_recorder(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// The same, with pages on multifd channels. No channels are no multifd.
    #[must_use]
    pub fn with_multifd(mut self, multifd: Multifd) -> Self {
        self.multifd = (multifd.channels > 0).then_some(multifd);
        self
    }

    /// The same, with devices that the template does not have. No devices are nothing at all.
    #[must_use]
    pub fn with_devices(mut self, devices: Devices) -> Self {
        self.devices = (!devices.devices.is_empty()).then_some(devices);
        self
    }

    /// The same, breaking these rules of multifd.
    #[must_use]
    pub fn with_misconduct(mut self, rules: impl IntoIterator<Item = Misconduct>) -> Self {
        self.misdeeds = Misdeeds::new(rules);
        self
    }

    /// The same, switching to postcopy. It needs the return path, and opens it.
    #[must_use]
    pub fn with_postcopy(mut self, postcopy: Postcopy) -> Self {
        self.postcopy = Some(postcopy);
        self
    }

    /// The same, announcing postcopy (ADVISE), which may then follow or not. It needs the return path, and opens it.
    #[must_use]
    pub fn with_advise(mut self) -> Self {
        self.advise = true;
        self
    }

    /// The same, breaking all its connections on purpose, at these places one after the other.
    #[must_use]
    pub fn with_cuts(mut self, cuts: impl IntoIterator<Item = Cut>) -> Self {
        self.cuts = cuts.into_iter().collect();
        self
    }

    /// The same, telling of pauses of postcopy.
    #[must_use]
    pub fn with_notice(mut self, notice: impl FnMut(Turn<'_>) + Send + 'static) -> Self {
        self.notice = Some(Box::new(notice));
        self
    }

    /// Sends one migration over `connection`, and nothing else. `watch` is told how far it has come, some times a second.
    pub fn send(self, connection: Connection, watch: impl FnMut(&Progress)) -> Departure {
        let connect = |_| {
            let message = "this migration takes more than one connection";
            Err(Error::nowhere(ErrorKind::Misuse, DOING, message))
        };
        self.send_over(connection, connect, watch)
    }

    /// Sends one migration with `main` as its main channel; `connect` opens a connection to the same destination for another channel:
    /// a multifd channel, the preempt channel, or the main channel after a pause.
    pub fn send_over(
        mut self,
        main: Connection,
        mut connect: impl FnMut(ChannelId) -> Result<Connection>,
        mut watch: impl FnMut(&Progress),
    ) -> Departure {
        let copy = std::mem::take(&mut self.copy);
        let notice = self.notice.take();
        let source = &self;
        let facts = source.template.facts();
        let pages = (&*facts.blocks, facts.page_size);
        let zero_pages = source.multifd.and_then(|multifd| multifd.zero_pages);
        let zero_pages = zero_pages.unwrap_or(ZeroPages::of(source.dialect));
        let shared = Shared::new(pages, &source.contents, zero_pages, source.limits, copy, main.clone());
        let pace = Pace::new(source.limits).with_others(Arc::clone(&shared.activity));
        thread::scope(|scope| {
            let tap = source.recorder.as_ref().map(|r| r.channel(interface_name(ChannelId::Main)));
            let cuts = Cuts::new(source.cuts.iter().copied());
            let mut out = Output::new(main.clone(), tap.clone(), &pace, &shared, cuts, &mut watch);
            out.cache = source.cache();
            let ram = facts.ram.map(|id| (id, facts.footers));
            let mut sending = Sending {
                source,
                scope,
                shared: &shared,
                pace: &pace,
                tap,
                connection: main,
                connect: &mut connect,
                out: Outlet::new(out, &shared, source.dialect, source.misdeeds.clone(), ram),
                dialogue: Dialogue::new(SourceDialogue::new(
                    Dialect::ANY,
                    facts.blocks.clone().into(),
                    facts.page_size,
                )),
                serving: source.postcopy.map(|options| Serving::new(options, notice)),
                return_path: source
                    .return_path
                    .unwrap_or(source.is_advised() || source.template.has_return_path()),
                parser: Parser::new(),
                filter: Filter::new(source.dialect, source.has_packets_of_devices())
                    .advised(source.is_advised(), source.postcopy.is_some()),
            };
            let outcome = sending.run();
            sending.finish(outcome)
        })
    }

    /// What deltas are made against, if any are.
    fn cache(&self) -> Option<XbzrleCache> {
        let facts = self.template.facts();
        // No cache need be larger than the guest.
        let guest: u64 = facts.blocks.iter().map(|block| block.used_length).sum();
        let most = usize::try_from(guest.next_power_of_two()).unwrap_or(usize::MAX);
        self.xbzrle.map(|bytes| XbzrleCache::new(bytes.min(most), facts.page_size as usize))
    }

    /// Whether everything that was asked for can be done, and every block has pages to send: one that keeps the template's must
    /// have some there.
    ///
    /// # Errors
    /// If not. [`send`](Self::send) looks as well; this is for looking before anybody is connected to.
    pub fn check(&self) -> Result<()> {
        self.check_multifd()?;
        self.check_devices()?;
        self.check_postcopy()?;
        let facts = self.template.facts();
        for ((block, content), pages) in facts.blocks.iter().zip(&self.contents).zip(&facts.pages) {
            if matches!(content, Content::Kept)
                && *pages == 0
                && block.used_length > 0
                && !facts.ignores_shared
            {
                let message = format!(
                    "the template has no pages of block \"{}\" (multifd carries them in other channels, which are \
                     not in it); give an image or a pattern for it",
                    block.name.escape_ascii()
                );
                return Err(Error::nowhere(ErrorKind::Unsupported, DOING, message));
            }
        }
        Ok(())
    }

    /// Whether multifd channels are needed behind the switch to postcopy, which none of their connections survives.
    fn syncs_in_postcopy(&self) -> bool {
        self.multifd.is_some() && Synchronisation::at(SyncPlace::Postcopy, self.dialect).sync
    }

    /// Whether device state travels on multifd channels.
    fn has_packets_of_devices(&self) -> bool {
        self.devices.as_ref().is_some_and(|devices| devices.arrangement != Arrangement::Main)
    }

    /// Whether ADVISE is sent.
    fn is_advised(&self) -> bool {
        self.advise || self.postcopy.is_some()
    }

    fn check_postcopy(&self) -> Result<()> {
        let refuse = |kind, message: String| Err(Error::nowhere(kind, DOING, message));
        if self.is_advised() && self.return_path == Some(false) {
            return refuse(ErrorKind::Misuse, "postcopy needs the return path".to_owned());
        }
        let Some(postcopy) = &self.postcopy else { return Ok(()) };
        let facts = self.template.facts();
        if facts.ram.is_none() {
            let message = "a stream without RAM has no pages for postcopy";
            return refuse(ErrorKind::Misuse, message.to_owned());
        }
        // Somebody has to be left whose pages can be sent again: a destination does not run before it has dropped some.
        let mut blocks = facts.blocks.iter().zip(&self.contents);
        if blocks.all(|(block, content)| matches!(content, Content::Kept) || block.used_length == 0) {
            let message = "all blocks keep the template's pages, which cannot be sent behind the switch; give one of them other content";
            return refuse(ErrorKind::Misuse, message.to_owned());
        }
        if self.devices.is_some() {
            let message = "postcopy together with devices that are made up";
            return refuse(ErrorKind::Unsupported, message.to_owned());
        }
        let is_refused = self.dialect != Dialect::ANY && self.dialect.has(Difference::MultifdWithoutPostcopy);
        if self.multifd.is_some() && is_refused {
            let message = format!("QEMU {} refuses postcopy together with multifd channels", self.dialect);
            return refuse(ErrorKind::Misuse, message);
        }
        if postcopy.preempt && !self.dialect.has(Difference::PostcopyPreempt) {
            return refuse(ErrorKind::Misuse, format!("QEMU {} has no preempt channel", self.dialect));
        }
        if let Some(at) = facts.stray {
            let message = format!(
                "the template has more than device state behind its first device (offset {at:#x}), which does not fit into the \
                 package of a postcopy stream"
            );
            return refuse(ErrorKind::Unsupported, message);
        }
        let is_odd = |(block, content): &(&Block, &Content)| {
            let page = block.huge_page.unwrap_or(facts.page_size).max(facts.page_size);
            !matches!(content, Content::Kept) && !block.used_length.is_multiple_of(page)
        };
        if let Some((block, _)) = facts.blocks.iter().zip(&self.contents).find(is_odd) {
            let message = format!("block \"{}\" does not consist of whole pages", block.name.escape_ascii());
            return refuse(ErrorKind::Unsupported, message);
        }
        Ok(())
    }

    fn check_devices(&self) -> Result<()> {
        let misuse = |message: String| Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        let Some(devices) = &self.devices else { return Ok(()) };
        let facts = self.template.facts();
        if facts.ram.is_none() || !facts.footers {
            return misuse("a stream without RAM or footers has no room for more devices".to_owned());
        }
        if facts.last_section.checked_add(devices.devices.len() as u32).is_none() {
            return misuse("the template leaves no section ids for more devices".to_owned());
        }
        let channels = self.multifd.map_or(0, |multifd| multifd.channels);
        if devices.dedicated && channels < 2 {
            return misuse("channels of their own for devices take two channels".to_owned());
        }
        if !self.has_packets_of_devices() {
            return Ok(());
        }
        if channels == 0 {
            return misuse("device state in packets takes multifd channels, and there are none".to_owned());
        }
        if !self.dialect.has(Difference::MultifdDevicePackets) {
            return misuse(format!("QEMU {} has no packets of device state", self.dialect));
        }
        Ok(())
    }

    fn check_multifd(&self) -> Result<()> {
        let misuse = |message: String| Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        let Some(multifd) = &self.multifd else {
            return match self.misdeeds.is_empty() {
                true => Ok(()),
                false => {
                    misuse("the rules to break are about multifd channels, and there are none".to_owned())
                }
            };
        };
        let has = |rule| self.misdeeds.has(rule);
        if self.xbzrle.is_some() {
            return misuse("deltas (XBZRLE) do not travel on multifd channels".to_owned());
        }
        let one = [Misconduct::FewerChannels, Misconduct::DuplicateId, Misconduct::SamePageTwice];
        if let Some(rule) = one.into_iter().find(|rule| multifd.channels == 1 && has(*rule)) {
            return misuse(format!("{rule} takes two channels"));
        }
        if has(Misconduct::MoreChannels) && usize::from(multifd.channels) == MAX_MULTIFD_CHANNELS {
            return misuse(format!("there are no more than {MAX_MULTIFD_CHANNELS} channels"));
        }
        if has(Misconduct::NoFlush) && SyncMode::of(self.dialect) == Some(SyncMode::PerSection) {
            return misuse(format!("QEMU {} has no FLUSH that could be left out", self.dialect));
        }
        team::codec(multifd).map(|_| ())
    }
}
