//! What is to be done: from what was asked for, and what there is.

use std::ops::ControlFlow;
use std::path::PathBuf;

use super::DOING;
use super::survey::Survey;
use crate::channel::{Feed, Input as _};
use crate::container::{Access, Part};
use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::multifd::{Packet, PacketParser, SyncMode, ZeroPages, codec};
use crate::stream::Mode;
use crate::wire::{Method, MultifdHello};

/// What is asked for; what is not stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The release that is to take it. Where it names no machine type, that of the stream counts.
    pub dialect: Dialect,
    /// Number of multifd channels; 0: everything on the main channel.
    pub channels: Option<u8>,
    /// How pages on multifd channels are encoded.
    pub method: Option<Method>,
    /// How hard.
    pub level: Option<u32>,
    /// Where pages of zeros go.
    pub zero_pages: Option<ZeroPages>,
    /// The guest's UUID, for multifd channels where there were none and the stream does not have it.
    pub uuid: Option<[u8; 16]>,
    /// Directory with images of RAM blocks, or the image of one, which replace what the pages hold.
    pub images: Option<PathBuf>,
    /// Pages in another order, as far as that makes no difference.
    pub shuffle: Option<u64>,
    /// Where guest memory may be kept for a while, if that is needed; the system's directory for temporary files by itself.
    pub scratch: Option<PathBuf>,
}

/// What is done.
pub(super) struct Plan {
    pub(super) options: Options,
    pub(super) survey: Survey,
    /// As which source it writes.
    pub(super) style: Dialect,
    /// Channels of the new migration.
    pub(super) channels: u8,
    pub(super) method: Method,
    pub(super) uuid: [u8; 16],
    /// `None`: as they came.
    pub(super) zero_pages: Option<ZeroPages>,
    pub(super) sync: SyncMode,
    /// Multifd channels are made anew.
    pub(super) reframes: bool,
    /// Nothing is asked for.
    pub(super) is_identity: bool,
    /// Deltas are written out.
    pub(super) resolves_deltas: bool,
    /// Pages of a mapped-ram file become a stream.
    pub(super) unmaps: bool,
    /// What is done with the preempt channel.
    pub(super) urgent: Urgency,
    pub(super) losses: Vec<String>,
}

/// What becomes of the preempt channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// It stays as it is, or there is none.
    Kept,
    /// Its pages are looked at, and its end is as the release has it.
    Remade {
        /// It ends with EOS; `None`: as it did.
        ends: Option<bool>,
    },
    /// Its pages go to the main channel.
    Merged,
}

impl Plan {
    pub(super) fn new(parts: &mut [Part], options: &Options) -> Result<Self> {
        let options = options.clone();
        let ids = channel_ids(parts);
        let had_channels = !ids.is_empty();
        let found = u8::try_from(ids.len()).unwrap_or(u8::MAX);
        let names_release = options.dialect != Dialect::ANY;
        let wants_channels = options.channels.is_some_and(|channels| channels != found);
        let wants_packets = wants_channels
            || options.method.is_some()
            || options.level.is_some()
            || options.zero_pages.is_some();
        let wants_pages = options.images.is_some() || options.shuffle.is_some();
        let is_identity = !(wants_packets || wants_pages || names_release);
        let channels = options.channels.unwrap_or(found);
        alone(parts)?;
        let has_urgent = parts.iter().any(|part| part.channel == ChannelId::Preempt);
        let survey = match parts.iter_mut().find(|part| part.channel == ChannelId::Main) {
            _ if is_identity => Survey::default(),
            Some(main) => Survey::of(main, options.dialect.on_any_machine())?,
            None => return Err(impossible("there is no main channel in it")),
        };
        let dialect = options.dialect;
        // An ordinary destination of the machine type, where nobody has said otherwise.
        let style = dialect.or_on_machine(survey.machine_version());
        let reframes = (had_channels || channels > 0) && !is_identity;
        let mut plan = Self {
            channels,
            method: Method::NONE,
            uuid: [0; 16],
            zero_pages: None,
            sync: SyncMode::PerRound,
            reframes,
            is_identity,
            resolves_deltas: survey.has_deltas && (reframes && channels > 0 || options.shuffle.is_some()),
            unmaps: survey.is_mapped && (wants_packets || wants_pages || !dialect.has(Difference::MappedRam)),
            urgent: Urgency::Kept,
            losses: Vec::new(),
            style,
            survey,
            options,
        };
        if is_identity {
            return Ok(plan);
        }
        plan.check(parts, &ids)?;
        plan.settle_packets(parts, had_channels)?;
        if has_urgent {
            let ends = names_release.then(|| !style.has(Difference::PreemptAtSwitch));
            plan.urgent = match plan.knows(Difference::PostcopyPreempt) {
                true => Urgency::Remade { ends },
                false => Urgency::Merged,
            };
        }
        plan.losses = plan.losses(&ids, has_urgent);
        Ok(plan)
    }

    /// Whether the release that is to take it knows that, on whatever machine type.
    pub(super) fn knows(&self, difference: Difference) -> bool {
        self.options.dialect.on_any_machine().has(difference)
    }

    /// Whether sources of that release, on the machine type of the stream, write that; all do as long as no release is named.
    pub(super) fn writes(&self, difference: Difference) -> bool {
        self.options.dialect == Dialect::ANY || self.style.has(difference)
    }

    /// Whether pages go to multifd channels, while there is no postcopy.
    pub(super) fn has_lanes(&self) -> bool {
        self.reframes && self.channels > 0
    }

    /// Whether a page of zeros that came as another page is to be found out.
    pub(super) fn looks_for_zeros(&self) -> bool {
        let is_new = self.options.images.is_some() || self.options.zero_pages.is_some();
        is_new && self.zero_pages != Some(ZeroPages::None)
    }

    /// What cannot be converted at all.
    fn check(&self, parts: &[Part], ids: &[u8]) -> Result<()> {
        if parts.iter().any(|part| matches!(part.channel, ChannelId::Resumed(_))) {
            return Err(impossible("what was sent behind a pause depends on what had arrived before it"));
        }
        if parts.iter().any(|part| matches!(part.channel, ChannelId::Connection(_))) {
            return Err(impossible("there is a connection in it of which nobody knows what it is"));
        }
        if let Some(missing) = (0..=u8::MAX).zip(ids).find(|(expected, id)| expected != *id) {
            let message = format!("multifd channel {} is not in it, and so its pages are not", missing.0);
            return Err(impossible(&message));
        }
        if let Some(error) = &self.survey.device {
            return Err(impossible(&format!(
                "the state of a VFIO device is not what the release reads: {error}"
            )));
        }
        if self.survey.is_colo {
            return Err(impossible(
                "COLO goes on behind the stream, in checkpoints, which cannot be made anew",
            ));
        }
        Ok(())
    }

    /// What packets are like, and when they are synchronised.
    fn settle_packets(&mut self, parts: &mut [Part], had_channels: bool) -> Result<()> {
        let dialect = self.options.dialect;
        self.zero_pages = match self.options.zero_pages {
            Some(ZeroPages::Multifd) if !self.knows(Difference::MultifdZeroPages) => {
                return Err(impossible(&format!("{dialect} knows no lists of zero pages in packets")));
            }
            // As the releases do.
            Some(ZeroPages::Multifd) if self.channels == 0 => Some(ZeroPages::Legacy),
            None if !self.writes(Difference::MultifdZeroPages) => Some(ZeroPages::Legacy),
            None if !had_channels => Some(ZeroPages::of(self.style)),
            asked => asked,
        };
        self.sync = match (SyncMode::of(dialect), had_channels && self.survey.has_flush) {
            (Some(_), _) => SyncMode::of(self.style).unwrap_or(SyncMode::PerRound),
            (None, true) => SyncMode::PerRound,
            (None, false) if had_channels => SyncMode::PerSection,
            (None, false) => SyncMode::of(self.style).unwrap_or(SyncMode::PerRound),
        };
        let hello = hello(parts)?;
        self.uuid = self.survey.uuid.or(hello).or(self.options.uuid).unwrap_or_default();
        let found = match had_channels {
            true => found_method(parts, self.survey.page_size)?,
            false => Method::NONE,
        };
        self.method = match self.options.method {
            Some(method) if method != Method::NONE && self.channels == 0 => {
                let message = "pages are encoded on multifd channels only, and there are to be none";
                return Err(misuse(message));
            }
            Some(method) if is_wide(method) && !self.knows(Difference::MultifdWideMethod) => {
                let name = codec::name(method).unwrap_or("that method");
                return Err(impossible(&format!("{dialect} knows no {name}")));
            }
            Some(method) => method,
            None if self.channels == 0 => Method::NONE,
            None if is_wide(found) && !self.knows(Difference::MultifdWideMethod) => Method::NONE,
            None => found,
        };
        if self.method == Method::NONE && self.options.level.is_some() {
            return Err(misuse(
                "there is nothing that could be compressed harder: the pages are not encoded",
            ));
        }
        if self.has_lanes() && self.method != Method::NONE {
            // Better now than when the first page has come.
            codec::open(self.method, self.options.level)?;
        }
        Ok(())
    }

    /// What the release will not take, or what is lost, as far as the stream shows it.
    fn losses(&self, ids: &[u8], has_urgent: bool) -> Vec<String> {
        let Self { survey, options, .. } = self;
        let mut losses = Vec::new();
        let mut say = |is_so: bool, what: &dyn Fn() -> String| {
            if is_so {
                losses.push(what());
            }
        };
        let dialect = options.dialect.on_any_machine();
        if let Some(complaint) = &survey.complaint {
            say(true, &|| {
                format!("there is something in it that a destination refuses, and it stays: {complaint}")
            });
        }
        say(survey.has_flush && ids.is_empty(), &|| {
            "its main channel synchronises multifd channels, and there are none in it: their pages are missing".into()
        });
        if let Some(version) = survey.machine_version().filter(|version| !dialect.has_machine(*version)) {
            let machine = survey.machine.as_deref().unwrap_or_default();
            let when = if dialect.is_before(version) { "yet" } else { "any more" };
            say(true, &|| format!("{dialect} does not know machine type {machine} {when}"));
        }
        if let Some(code) = survey.strange {
            say(true, &|| format!("command {code:#x} is known to no release, and it stays"));
        }
        say(survey.has_disk && !self.knows(Difference::BlockMigration), &|| {
            format!("{dialect} takes no disks with the migration (section \"block\")")
        });
        let refuses = options.dialect != Dialect::ANY && self.knows(Difference::MultifdWithoutPostcopy);
        say(survey.is_postcopy && self.channels > 0 && refuses, &|| {
            format!("{dialect} refuses postcopy together with multifd")
        });
        say(has_urgent && !self.knows(Difference::PostcopyPreempt), &|| {
            format!("{dialect} knows no preempt channel: pages on it come first on the main channel")
        });
        let has_uuid = survey.uuid.is_some() || options.uuid.is_some();
        say(ids.is_empty() && self.channels > 0 && !has_uuid, &|| {
            "the stream does not say the guest's UUID, which multifd channels begin with: it is zero there"
                .into()
        });
        say(ids.is_empty() && self.channels > 0 && options.dialect == Dialect::ANY, &|| {
            "multifd channels are made as the newest release makes them, since none was named: older ones may refuse them".into()
        });
        say(options.images.is_some(), &|| {
            "devices are in the state that belongs to the memory that was there before".into()
        });
        losses
    }
}

fn impossible(message: &str) -> Error {
    Error::nowhere(ErrorKind::Unsupported, DOING, message)
}

fn misuse(message: &str) -> Error {
    Error::nowhere(ErrorKind::Misuse, DOING, message)
}

/// Refuses what is more than one migration: an image with several snapshots, say.
fn alone(parts: &[Part]) -> Result<()> {
    for (at, part) in parts.iter().enumerate() {
        let is_known = !matches!(part.channel, ChannelId::Connection(_));
        if is_known && parts[..at].iter().any(|other| other.channel == part.channel) {
            let message = "it is there more than once, and one migration is converted at a time";
            return Err(misuse(message).on(part.channel));
        }
    }
    Ok(())
}

/// Whether the method's number needs the two upper bits of its field.
fn is_wide(method: Method) -> bool {
    !matches!(method, Method::NONE | Method::ZLIB | Method::ZSTD)
}

/// Ids of the multifd channels, in order.
fn channel_ids(parts: &[Part]) -> Vec<u8> {
    let id = |part: &Part| match part.channel {
        ChannelId::Multifd(id) => Some(id),
        _ => None,
    };
    let mut ids: Vec<_> = parts.iter().filter_map(id).collect();
    ids.sort_unstable();
    ids
}

/// The UUID of the machine, as a multifd channel says it.
fn hello(parts: &mut [Part]) -> Result<Option<[u8; 16]>> {
    let Some(part) = parts.iter_mut().find(|part| matches!(part.channel, ChannelId::Multifd(_))) else {
        return Ok(None);
    };
    let mut bytes = [0; MultifdHello::LEN];
    let mut input = part.input(Access::Whole)?;
    let mut filled = 0;
    while filled < bytes.len() {
        let failed = |e| Error::io(DOING, "the channel cannot be read", e).on(part.channel);
        match input.read(&mut bytes[filled..]).map_err(failed)? {
            0 => return Ok(None),
            count => filled += count,
        }
    }
    Ok(bytes[8..24].try_into().ok())
}

/// How the pages of the input are encoded.
fn found_method(parts: &mut [Part], page_size: u64) -> Result<Method> {
    for part in parts.iter_mut().filter(|part| matches!(part.channel, ChannelId::Multifd(_))) {
        let mut method = None;
        let mut parser = PacketParser::with(Mode::Lenient, Dialect::ANY, page_size).with_elision();
        let mut feed = Feed::new(part.input(Access::Outline)?);
        // What is wrong with it is told when it is read in earnest.
        let _ = feed.run(&mut parser, |located, parser| {
            if matches!(located.event, Packet::Ram(_)) && !parser.batch().normal().is_empty() {
                method = Some(parser.batch().method());
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        });
        if let Some(method) = method {
            return Ok(method);
        }
    }
    Ok(Method::NONE)
}
