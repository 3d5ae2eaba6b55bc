//! What is to be done: from what was asked for, and what there is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::DOING;
use crate::channel::{Feed, Input as _};
use crate::container::{Access, Part};
use crate::dialect::{Dialect, Difference};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::guest::file_name;
use crate::multifd::{SyncMode, ZeroPages};
use crate::stream::{Event, Mode, Parser};
use crate::wire::{Method, MultifdHello};

/// What is asked for; what is not stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The release that is to take it.
    pub dialect: Dialect,
    /// Number of multifd channels; 0: everything on the main channel.
    pub channels: Option<u8>,
    /// How pages on multifd channels are encoded.
    pub method: Option<Method>,
    /// How hard.
    pub level: Option<u32>,
    /// Where pages of zeros go.
    pub zero_pages: Option<ZeroPages>,
    /// Directory with images of RAM blocks, which replace what the pages hold.
    pub images: Option<PathBuf>,
    /// Pages in another order, as far as that makes no difference.
    pub shuffle: Option<u64>,
}

/// What is done.
pub(super) struct Plan {
    pub(super) dialect: Dialect,
    /// Channels of the new migration.
    pub(super) channels: u8,
    pub(super) had_channels: bool,
    pub(super) method: Method,
    pub(super) level: Option<u32>,
    pub(super) uuid: [u8; 16],
    pub(super) zero_pages: Option<ZeroPages>,
    /// As the release does; as the input does, if it is not known.
    pub(super) sync: Option<SyncMode>,
    pub(super) images: Option<PathBuf>,
    pub(super) shuffle: Option<u64>,
    /// Multifd channels are made anew.
    pub(super) reframes: bool,
    /// RAM sections are made anew.
    pub(super) changes_pages: bool,
    /// Nothing is asked for.
    pub(super) is_identity: bool,
    pub(super) losses: Vec<String>,
}

impl Plan {
    pub(super) fn new(parts: &mut [Part], options: &Options) -> Result<Self> {
        let Options { dialect, channels, method, level, zero_pages, images, shuffle } = options.clone();
        let ids = parts.iter().filter(|part| matches!(part.channel, ChannelId::Multifd(_))).count();
        let had_channels = ids > 0;
        let names_release = dialect != Dialect::ANY;
        let wants_pages = channels.is_some() || method.is_some() || level.is_some() || zero_pages.is_some();
        let count = channels.unwrap_or(u8::try_from(ids).unwrap_or(u8::MAX));
        let reframes = (had_channels || count > 0)
            && (wants_pages || names_release || images.is_some() || shuffle.is_some());
        if method.is_some_and(|method| method != Method::NONE) && count == 0 {
            let message = "pages are encoded on multifd channels only, and there are to be none";
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        let is_identity = !wants_pages && !names_release && images.is_none() && shuffle.is_none();
        if !is_identity {
            check(parts, reframes)?;
        }
        let zero_pages = match zero_pages {
            Some(ZeroPages::Multifd) if !dialect.has(Difference::MultifdZeroPages) => {
                let message = format!("{dialect} knows no lists of zero pages in packets");
                return Err(Error::nowhere(ErrorKind::Unsupported, DOING, message));
            }
            None if names_release && !dialect.has(Difference::MultifdZeroPages) => Some(ZeroPages::Legacy),
            None if !had_channels => Some(ZeroPages::of(dialect)),
            zero_pages => zero_pages,
        };
        let hello = hello(parts)?;
        let method = match method {
            Some(method) => method,
            None if had_channels && reframes => found_method(parts)?,
            None => Method::NONE,
        };
        Ok(Self {
            losses: losses(parts, dialect)?,
            dialect,
            channels: count,
            had_channels,
            method,
            level,
            uuid: hello.unwrap_or_default(),
            zero_pages,
            sync: SyncMode::of(dialect),
            changes_pages: reframes || names_release || images.is_some() || shuffle.is_some(),
            images,
            shuffle,
            reframes,
            is_identity,
        })
    }

    /// Whether the release that is to take it knows that.
    pub(super) fn knows(&self, difference: Difference) -> bool {
        self.dialect.has(difference)
    }

    /// Whether a page of zeros that came as another page is to be found out.
    pub(super) fn looks_for_zeros(&self) -> bool {
        self.images.is_some() || matches!(self.zero_pages, Some(ZeroPages::Multifd)) && !self.had_channels
    }
}

/// What cannot be converted at all.
fn check(parts: &[Part], reframes: bool) -> Result<()> {
    let impossible = |message: &str| Err(Error::nowhere(ErrorKind::Unsupported, DOING, message));
    let has = |is: fn(&ChannelId) -> bool| parts.iter().any(|part| is(&part.channel));
    if has(|channel| matches!(channel, ChannelId::Resumed(_))) {
        return impossible("what was sent behind a pause depends on what had arrived before it");
    }
    if reframes && has(|channel| *channel == ChannelId::Preempt) {
        return impossible("pages on the preempt channel have no place among multifd channels");
    }
    if !has(|channel| *channel == ChannelId::Main) {
        return impossible("there is no main channel in it");
    }
    Ok(())
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
fn found_method(parts: &mut [Part]) -> Result<Method> {
    use crate::multifd::{Packet, PacketParser};
    use std::ops::ControlFlow;
    let mut method = Method::NONE;
    for part in parts.iter_mut().filter(|part| matches!(part.channel, ChannelId::Multifd(_))) {
        let mut parser = PacketParser::with(Mode::Lenient, Dialect::ANY, 4096).with_elision();
        let mut feed = Feed::new(part.input(Access::Outline)?);
        // What is wrong with it is told when it is read in earnest.
        let _ = feed.run(&mut parser, |located, parser| {
            if let Packet::Ram(_) = &located.event
                && !parser.batch().normal().is_empty()
            {
                method = parser.batch().method();
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        });
        if method != Method::NONE {
            break;
        }
    }
    Ok(method)
}

/// What the release will not take, as far as the beginning of the main channel shows it.
fn losses(parts: &mut [Part], dialect: Dialect) -> Result<Vec<String>> {
    use std::ops::ControlFlow;
    let Some(main) = parts.iter_mut().find(|part| part.channel == ChannelId::Main) else {
        return Ok(Vec::new());
    };
    let mut machine = None;
    let mut feed = Feed::new(main.input(Access::Outline)?);
    let mut parser = Parser::with(Mode::Lenient, Dialect::ANY).with_elision();
    let _ = feed.run(&mut parser, |located, _| {
        if let Event::Configuration(configuration) = &located.event {
            machine = Some(configuration.machine.text().into_owned());
        }
        let goes_on = matches!(located.event, Event::Header(_));
        Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
    let machine = machine.unwrap_or_default();
    let is_unknown = dialect.knows_machine(&machine) == Some(false);
    let loss = || format!("machine {machine:?} is newer than {dialect}, which does not know it");
    Ok(is_unknown.then(loss).into_iter().collect())
}

/// Images of RAM blocks.
pub(super) struct Images {
    directory: PathBuf,
    /// By block; `None`: there is none.
    open: HashMap<usize, Option<File>>,
}

impl Images {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), open: HashMap::new() }
    }

    /// Reads a page of the image of a block, if it has one.
    pub(super) fn page(
        &mut self,
        blocks: &[Box<[u8]>],
        block: usize,
        offset: u64,
        page_size: u64,
        into: &mut Vec<u8>,
    ) -> Result<bool> {
        let Some(name) = blocks.get(block) else { return Ok(false) };
        let path = self.directory.join(file_name(name));
        let failed = |e| Error::io(DOING, path.display().to_string(), e);
        let file = match self.open.entry(block) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(match File::open(&path) {
                Ok(file) => Some(file),
                Err(e) if e.kind() == IoKind::NotFound => None,
                Err(e) => return Err(failed(e)),
            }),
        };
        let Some(file) = file else { return Ok(false) };
        into.resize(page_size as usize, 0);
        file.read_exact_at(into, offset).map_err(failed)?;
        Ok(true)
    }
}
