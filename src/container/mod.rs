//! What streams come wrapped in, and how to get at the channels inside.
//!
//! ```text
//! plain stream            -> main channel
//! pcapng recording        -> every connection, both directions
//! qcow2 image             -> the VM state of every internal snapshot
//! raw dumps of channels   -> each what its first bytes say; several are one migration
//! directory of such dumps -> the same, with the direction in the name of the file
//! gzip, libvirt, TLS, ..  -> an error that says what it is and what to do
//! ```
//! [`open`] looks at the first bytes only and gives [`Part`]s; a part opens its own [`ChannelInput`] when it is asked to. A
//! part that can be sought in also gives the VM description at its end, before anything else is read.

mod directory;
mod holes;
mod mapped;
mod pages;
mod places;
pub mod qcow2;
mod sealed;
mod together;
mod trailer;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use directory::join;
pub use mapped::Mapped;
pub use pages::{MultifdPage, Pages};
pub use places::Places;
pub use together::{ChannelEnd, Item, Together, TogetherOptions};
pub use trailer::Trailer;

use crate::capture::{self, ChannelBytes, Direction, FileKind, Reader};
use crate::channel::{Input, Seeking, Streaming};
use crate::error::{ChannelId, Error, ErrorKind, Result};
use sealed::Sealed;

const DOING: &str = "opening";

/// Something to read that can be read once only: standard input, a pipe.
type Once = Box<dyn Read + Send>;

/// What a file holds.
pub struct Contents {
    /// Its name, as it was given.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// The channels in it.
    pub parts: Vec<Part>,
    /// Why there may be more in it than that: a recording that is cut off.
    pub fault: Option<Error>,
    /// What was left out, and is no fault.
    pub notes: Vec<String>,
    /// What its recorder knew about the migration, a JSON object.
    pub about: Option<String>,
}

/// One channel.
pub struct Part {
    /// What it is called apart from its channel, where a file has several: the name of a snapshot, of a connection.
    pub label: Option<String>,
    /// Which channel it is.
    pub channel: ChannelId,
    /// Between whom it was, if a recording says so.
    pub peers: Option<String>,
    place: Place,
}

enum Place {
    File(PathBuf),
    Once(Option<Once>),
    Bytes(Arc<[u8]>),
    Recorded {
        path: PathBuf,
        interface: usize,
        direction: Direction,
        places: Option<Arc<[capture::Place]>>,
        sealed: Option<Sealed>,
    },
    Snapshot {
        path: PathBuf,
        index: usize,
        id: String,
    },
}

/// How a channel will be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// From end to end.
    Whole,
    /// Skipping pages, with a parser that elides them.
    Outline,
}

/// Opens a file. `lenient` also takes files of unknown kind, as a main channel.
///
/// # Errors
/// `Io` if it cannot be opened, `Unsupported` and `Malformed` if there is nothing in it that can be read here.
pub fn open(path: &Path, lenient: bool) -> Result<Contents> {
    let name = path.display().to_string();
    let failed = |e| Error::io(DOING, name.clone(), e).on(ChannelId::Container);
    let mut file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return directory::open(path, lenient);
    }
    if file.seek(SeekFrom::End(0)).is_err() {
        return open_once(Box::new(file), name, lenient);
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let first = first_bytes(&mut file).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let kind = FileKind::of(&first);
    let mut contents =
        Contents { name, kind, parts: Vec::new(), fault: None, notes: Vec::new(), about: None };
    match kind {
        FileKind::Pcapng => recorded(path, file, &mut contents)?,
        FileKind::Qcow2 => contents.parts = snapshots(path, file)?,
        _ => {
            let channel = channel_of(kind, &first, &contents.name, lenient)?;
            contents.parts.push(Part::plain(channel, Place::File(path.into())));
        }
    }
    Ok(contents)
}

/// Takes what can be read once only.
///
/// # Errors
/// As [`open`]; also for what must be read more than once.
pub fn open_once(mut input: Once, name: String, lenient: bool) -> Result<Contents> {
    let first =
        first_bytes(&mut input).map_err(|e| Error::io(DOING, name.clone(), e).on(ChannelId::Container))?;
    let kind = FileKind::of(&first);
    if matches!(kind, FileKind::Pcapng | FileKind::Qcow2) {
        let message = format!("{name} is {kind}, which must be a file to be read, not a pipe");
        return Err(Error::nowhere(ErrorKind::Unsupported, DOING, message).on(ChannelId::Container));
    }
    let channel = channel_of(kind, &first, &name, lenient)?;
    let input: Once = Box::new(io::Cursor::new(first).chain(input));
    let parts = vec![Part::plain(channel, Place::Once(Some(input)))];
    Ok(Contents { name, kind, parts, fault: None, notes: Vec::new(), about: None })
}

impl Part {
    fn plain(channel: ChannelId, place: Place) -> Self {
        Self { label: None, channel, peers: None, place }
    }

    /// A channel that is in memory already.
    pub fn of_bytes(channel: ChannelId, bytes: impl Into<Arc<[u8]>>) -> Self {
        Self::plain(channel, Place::Bytes(bytes.into()))
    }

    /// Opens the channel at its beginning. A part of a pipe can be opened once.
    ///
    /// # Errors
    /// `Io`, or what is wrong with the file around it.
    pub fn input(&mut self, access: Access) -> Result<ChannelInput> {
        match &mut self.place {
            Place::Once(input) => match input.take() {
                Some(input) => Ok(ChannelInput::Streaming(Streaming(input))),
                None => Err(Error::nowhere(ErrorKind::Misuse, DOING, "a pipe can be read once only")),
            },
            Place::Bytes(bytes) => {
                let bytes: Once = Box::new(io::Cursor::new(Arc::clone(bytes)));
                Ok(ChannelInput::Streaming(Streaming(bytes)))
            }
            Place::File(path) => file_input(path, access).map_err(|e| failed(path, e)),
            Place::Recorded { path, places: Some(places), sealed, .. } => {
                let file = File::open(&*path).map_err(|e| failed(path, e))?;
                let places = Places::new(file, Arc::clone(places)).map_err(|e| failed(path, e))?;
                let sealed = sealed.as_ref().filter(|_| access == Access::Whole);
                Ok(ChannelInput::Recorded(places.watched_by(sealed.map(Sealed::watch))))
            }
            Place::Recorded { path, interface, direction, sealed, .. } => {
                let reader = Reader::new(File::open(&*path).map_err(|e| failed(path, e))?)?;
                let bytes = ChannelBytes::new(reader, *interface, *direction);
                let bytes: Once = match sealed.as_ref().filter(|_| access == Access::Whole) {
                    Some(sealed) => Box::new(sealed.watch().over(bytes)),
                    None => Box::new(bytes),
                };
                Ok(ChannelInput::Streaming(Streaming(bytes)))
            }
            Place::Snapshot { path, index, .. } => {
                let state = open_snapshot(path, *index)?;
                Ok(ChannelInput::Snapshot(Seeking::new(state).map_err(|e| failed(path, e))?))
            }
        }
    }

    /// The VM description at the end of the channel, if it can be sought in and has one.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    pub fn trailer(&self) -> Result<Option<Trailer>> {
        match &self.place {
            _ if self.channel != ChannelId::Main => Ok(None),
            Place::File(path) => {
                File::open(path).and_then(|mut file| trailer::find(&mut file)).map_err(|e| failed(path, e))
            }
            Place::Snapshot { path, index, .. } => {
                trailer::find(&mut open_snapshot(path, *index)?).map_err(|e| failed(path, e))
            }
            Place::Bytes(bytes) => {
                trailer::find(&mut io::Cursor::new(bytes)).map_err(|e| Error::io(DOING, "bytes in memory", e))
            }
            Place::Once(_) | Place::Recorded { .. } => Ok(None),
        }
    }

    /// Number of bytes, where that is known without reading them.
    pub fn size(&self) -> Option<u64> {
        match &self.place {
            Place::File(path) => std::fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len()),
            Place::Snapshot { path, index, .. } => open_snapshot(path, *index).ok().map(|state| state.size()),
            Place::Recorded { places, .. } => {
                places.as_ref().map(|places| places.iter().map(|place| u64::from(place.len)).sum())
            }
            Place::Bytes(bytes) => Some(bytes.len() as u64),
            Place::Once(_) => None,
        }
    }

    /// Where its bytes stand in a recording, in order; what stands further on there passed later, whatever the channel.
    pub fn places(&self) -> Option<&[capture::Place]> {
        match &self.place {
            Place::Recorded { places, .. } => places.as_deref(),
            _ => None,
        }
    }

    /// The file that its bytes are in, and where in it they stand, in order.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    pub fn runs(&self) -> Result<Option<(File, Vec<capture::Place>)>> {
        match &self.place {
            Place::Recorded { path, places: Some(places), .. } => {
                let file = File::open(path).map_err(|e| failed(path, e))?;
                Ok(Some((file, places.to_vec())))
            }
            _ => Ok(None),
        }
    }

    /// The channel of a recording, from its beginning, with the times at which its bytes passed.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    pub fn timed(&self) -> Result<Option<ChannelBytes<File>>> {
        match &self.place {
            Place::Recorded { path, interface, direction, .. } => {
                let reader = Reader::new(File::open(path).map_err(|e| failed(path, e))?)?;
                Ok(Some(ChannelBytes::new(reader, *interface, *direction)))
            }
            _ => Ok(None),
        }
    }

    /// Whether its bytes are those that were recorded, by the seal of the recording; `None` if there is none. They are read for that
    /// unless somebody has read all of them.
    ///
    /// # Errors
    /// As [`input`](Self::input).
    pub fn is_as_sealed(&mut self) -> Result<Option<bool>> {
        let Place::Recorded { path, sealed: Some(sealed), .. } = &self.place else { return Ok(None) };
        let (sealed, path) = (sealed.clone(), path.clone());
        if sealed.verdict().is_none() {
            let mut input = self.input(Access::Whole)?;
            let mut buffer = vec![0; 256 << 10];
            while input.read(&mut buffer).map_err(|e| failed(&path, e))? > 0 {}
        }
        Ok(sealed.verdict())
    }

    /// Whether it can be opened more than once.
    pub fn is_lasting(&self) -> bool {
        !matches!(self.place, Place::Once(_))
    }

    /// Whether this is the snapshot of that name or id.
    pub fn is_snapshot(&self, wanted: &str) -> bool {
        match &self.place {
            Place::Snapshot { id, .. } => self.label.as_deref() == Some(wanted) || id == wanted,
            _ => false,
        }
    }

    /// The file that is the channel, byte for byte.
    pub fn file(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            _ => None,
        }
    }
}

/// The bytes of a channel.
pub enum ChannelInput {
    /// A file that is skipped through.
    Mapped(Mapped),
    /// A file that is read from end to end.
    File(Seeking<File>),
    /// The VM state of a snapshot.
    Snapshot(Seeking<qcow2::VmState<File>>),
    /// A channel of a recording.
    Recorded(Places),
    /// A pipe, or a channel of a recording that has to be read as one.
    Streaming(Streaming<Once>),
}

impl Input for ChannelInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Mapped(input) => input.read(buffer),
            Self::File(input) => input.read(buffer),
            Self::Snapshot(input) => input.read(buffer),
            Self::Recorded(input) => input.read(buffer),
            Self::Streaming(input) => input.read(buffer),
        }
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        match self {
            Self::Mapped(input) => input.skip(count),
            Self::File(input) => input.skip(count),
            Self::Snapshot(input) => input.skip(count),
            Self::Recorded(input) => input.skip(count),
            Self::Streaming(input) => input.skip(count),
        }
    }

    fn stride(&self) -> usize {
        match self {
            Self::Mapped(input) => input.stride(),
            Self::File(input) => input.stride(),
            Self::Snapshot(input) => input.stride(),
            Self::Recorded(input) => input.stride(),
            Self::Streaming(input) => input.stride(),
        }
    }
}

/// What went wrong inside a container appears as an I/O error to whoever reads a channel; this gives back the error itself.
#[must_use]
pub fn unwrap_error(error: Error) -> Error {
    use std::error::Error as _;
    let inner = error.source().and_then(|e| e.downcast_ref::<io::Error>()).and_then(io::Error::get_ref);
    match inner.and_then(|e| e.downcast_ref::<Error>()) {
        Some(inner) => inner.clone(),
        None => error,
    }
}

fn file_input(path: &Path, access: Access) -> io::Result<ChannelInput> {
    let file = File::open(path)?;
    if access == Access::Outline
        && let Ok(mapped) = Mapped::new(file.try_clone()?)
    {
        return Ok(ChannelInput::Mapped(mapped));
    }
    Seeking::new(file).map(ChannelInput::File)
}

fn open_snapshot(path: &Path, index: usize) -> Result<qcow2::VmState<File>> {
    qcow2::Image::new(File::open(path).map_err(|e| failed(path, e))?)?.into_vm_state(index)
}

fn snapshots(path: &Path, file: File) -> Result<Vec<Part>> {
    let image = qcow2::Image::new(file)?;
    let with_state = image.snapshots().iter().enumerate().filter(|(_, s)| s.vm_state_size > 0);
    let parts: Vec<_> = with_state
        .map(|(index, snapshot)| Part {
            label: Some(snapshot.name.clone()),
            channel: ChannelId::Main,
            peers: None,
            place: Place::Snapshot { path: path.into(), index, id: snapshot.id.clone() },
        })
        .collect();
    if parts.is_empty() {
        let message = match image.snapshots().len() {
            0 => "the image has no internal snapshots, only a disk".to_owned(),
            n => format!("none of the image's {n} internal snapshots has VM state"),
        };
        return Err(Error::nowhere(ErrorKind::Unsupported, DOING, message).on(ChannelId::Container));
    }
    Ok(parts)
}

/// The channels of a recording, by the names that they were recorded under; by their first bytes where those say nothing.
fn recorded(path: &Path, file: File, contents: &mut Contents) -> Result<()> {
    let listing = capture::listing(file)?;
    contents.notes.extend(listing.note.as_ref().map(|note| format!("{}: {note}", contents.name)));
    contents.fault = listing.error.clone().or_else(|| missing(&listing));
    let mut places = listing.places.unwrap_or_default().into_iter();
    let mut connections = 0;
    let holes = holes::find(&listing.channels);
    for summary in listing.channels {
        let places_here = places.next();
        // What follows a hole cannot be read by itself.
        if capture::hole_of(&summary.name).is_some() {
            continue;
        }
        let seal = listing.seal.as_ref();
        let sealed =
            seal.map(|seal| Sealed::new(seal.half(summary.interface, summary.direction), &summary.name));
        let place = Place::Recorded {
            path: path.into(),
            interface: summary.interface,
            direction: summary.direction,
            places: places_here.map(Arc::from),
            sealed,
        };
        let channel = match summary.channel() {
            Some(channel) if !matches!(channel, ChannelId::Connection(_)) => channel,
            _ => {
                let reader = Reader::new(File::open(path).map_err(|e| failed(path, e))?)?;
                let mut bytes = ChannelBytes::new(reader, summary.interface, summary.direction);
                let first = first_bytes(&mut bytes).unwrap_or_default();
                connections += 1;
                match FileKind::of(&first) {
                    FileKind::Stream => ChannelId::Main,
                    FileKind::Multifd => ChannelId::Multifd(multifd_id(&first)),
                    FileKind::ReturnPath if summary.direction == Direction::ToSource => ChannelId::ReturnPath,
                    _ => ChannelId::Connection(connections),
                }
            }
        };
        let label = summary.channel().is_none().then(|| format!("{} {}", summary.name, summary.direction));
        contents.parts.push(Part { label, channel, peers: summary.description, place });
    }
    if contents.parts.is_empty() && listing.error.is_none() {
        let message = "the recording has no channel with a byte in it";
        return Err(Error::nowhere(ErrorKind::Malformed, DOING, message).on(ChannelId::Container));
    }
    contents.fault = contents.fault.take().or(holes);
    contents.about = listing.about;
    Ok(())
}

/// A half of a connection that the seal tells of, and of which no byte is left.
fn missing(listing: &capture::Listing) -> Option<Error> {
    let mut sealed = listing.seal.iter().flat_map(|seal| &seal.halves);
    let lost = sealed.find(|half| {
        let is_it =
            |c: &&capture::ChannelSummary| (c.interface, c.direction) == (half.interface, half.direction);
        !listing.channels.iter().any(|channel| is_it(&channel))
    })?;
    let message = format!(
        "by its seal, the recording had {} bytes of {} ({}), which are gone",
        lost.bytes, lost.name, lost.direction
    );
    Some(Error::nowhere(ErrorKind::Malformed, DOING, message).on(ChannelId::Container))
}

/// Which channel a file of that kind is by itself.
fn channel_of(kind: FileKind, first: &[u8], name: &str, lenient: bool) -> Result<ChannelId> {
    match kind {
        FileKind::Stream | FileKind::OldStream(_) => Ok(ChannelId::Main),
        FileKind::Multifd => Ok(ChannelId::Multifd(multifd_id(first))),
        FileKind::ReturnPath => Ok(ChannelId::ReturnPath),
        // A stream that is cut inside its header is named as that by the parser.
        FileKind::Unknown if lenient || first.starts_with(b"QEVM") => Ok(ChannelId::Main),
        _ => {
            let message = format!("{name} is {kind}: {}", kind.advice());
            Err(Error::nowhere(ErrorKind::Unsupported, DOING, message).on(ChannelId::Container))
        }
    }
}

/// The id in a multifd channel's initial packet: magic, version, UUID, id.
fn multifd_id(first: &[u8]) -> u8 {
    const ID: usize = 4 + 4 + 16;
    first.get(ID).copied().unwrap_or(0)
}

/// So many bytes tell what a file is, with the id of a multifd channel.
fn first_bytes(input: &mut impl Read) -> io::Result<Vec<u8>> {
    const ENOUGH: u64 = 32;
    let mut first = Vec::new();
    input.take(ENOUGH.max(FileKind::ENOUGH as u64)).read_to_end(&mut first)?;
    Ok(first)
}

#[cold]
fn failed(path: &Path, error: io::Error) -> Error {
    let error = Error::io(DOING, path.display().to_string(), error).on(ChannelId::Container);
    unwrap_error(error)
}
