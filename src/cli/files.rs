//! Where the channels of a migration go: a recording, or a directory of raw channels.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use migwire::capture::{ChannelTap, Direction, Recorder, RecorderOptions, Timestamp};
use migwire::tcp::{Output, Piece};
use migwire::{Error, ErrorKind};

use super::behind::{Behind, BehindFile};

const DOING: &str = "writing";

/// Most bytes that are put together into one packet of a recording: what it may have at most.
const RUN: usize = migwire::capture::MAX_PACKET;
/// Nanoseconds from the first byte of a packet of a recording to its last one.
const RUN_TIME: u64 = 1_000_000;

/// What is written.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// A recording of each migration.
    Recording(PathBuf),
    /// A directory with a file a direction.
    Directory(PathBuf),
}

impl Target {
    /// By its name: a directory ends in a slash, or is there.
    pub(crate) fn new(path: &Path) -> Result<Self, Error> {
        let text = path.as_os_str().as_encoded_bytes();
        if text.ends_with(b"/") || path.is_dir() {
            return Ok(Self::Directory(path.into()));
        }
        if path.extension().is_some_and(|extension| extension == "pcapng") {
            return Ok(Self::Recording(path.into()));
        }
        let message = format!("{} is neither FILE.pcapng nor a directory (DIR/)", path.display());
        Err(Error::nowhere(ErrorKind::Misuse, DOING, message))
    }

    /// The name of the migration of that number.
    fn path(&self, number: usize) -> PathBuf {
        match self {
            Self::Recording(path) | Self::Directory(path) if number == 0 => path.clone(),
            Self::Recording(path) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                path.with_file_name(format!("{stem}-{}.pcapng", number + 1))
            }
            Self::Directory(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                path.with_file_name(format!("{name}-{}", number + 1))
            }
        }
    }
}

/// The files of all migrations.
pub(crate) struct Files {
    target: Target,
    comment: String,
    /// What is known about the migrations.
    about: Option<String>,
    open: BTreeMap<usize, Place>,
    /// Bytes in a row, of the same channel, that make one packet.
    run: Vec<u8>,
    run_of: Option<(usize, Slot, Timestamp)>,
    /// Files that are read, by device and number: they are not overwritten.
    spared: Vec<(u64, u64)>,
    behind: Behind,
}

/// Bytes that go to the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    /// Which connection of the migration.
    pub(crate) connection: usize,
    /// Which way.
    pub(crate) direction: Direction,
    /// Where the hole in front of it ended, 0 without one.
    pub(crate) fragment: u64,
}

/// What a channel is called, and what else is said about it.
type Words<'a> = &'a dyn Fn() -> (String, Option<String>);

enum Place {
    Recording { recorder: Recorder, taps: HashMap<(usize, Option<Direction>, u64), ChannelTap> },
    Directory { path: PathBuf, files: HashMap<Slot, BehindFile>, behind: Behind },
}

impl Files {
    pub(crate) fn new(target: Target, comment: String, about: Option<String>) -> Result<Self, Error> {
        let behind = Behind::new().map_err(|e| Error::io(DOING, "no thread can be started", e))?;
        Ok(Self {
            target,
            comment,
            about,
            open: BTreeMap::new(),
            run: Vec::new(),
            run_of: None,
            spared: Vec::new(),
            behind,
        })
    }

    /// Where the migration of that number is.
    pub(crate) fn path(&self, number: usize) -> PathBuf {
        self.target.path(number)
    }

    /// A file that is being read must not be written.
    pub(crate) fn spare(&mut self, path: &Path) -> Result<(), Error> {
        let found = fs::metadata(path).map_err(|e| failed(path, e))?;
        self.spared.push((found.dev(), found.ino()));
        Ok(())
    }

    /// Whether that is a file that is being read.
    pub(crate) fn check_spared(&self, path: &Path) -> Result<(), Error> {
        if let Ok(there) = fs::metadata(path)
            && self.spared.contains(&(there.dev(), there.ino()))
        {
            let message = format!("{} is what is being read", path.display());
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        Ok(())
    }

    /// Takes bytes of a migration. `words` are asked for when its channel begins.
    pub(crate) fn put(
        &mut self,
        migration: usize,
        slot: Slot,
        time: Timestamp,
        data: &[u8],
        words: Words<'_>,
    ) -> Result<(), Error> {
        let goes_on = self.run_of.is_some_and(|(run_migration, run_slot, since)| {
            (run_migration, run_slot) == (migration, slot)
                && self.run.len() + data.len() <= RUN
                && time.0.saturating_sub(since.0) <= RUN_TIME
        });
        if !goes_on {
            self.flush()?;
            self.begin(migration, slot, words)?;
            self.run_of = Some((migration, slot, time));
        }
        self.run.extend_from_slice(data);
        Ok(())
    }

    /// Nothing more comes of a migration.
    pub(crate) fn close(&mut self, migration: usize) -> Result<(), Error> {
        self.flush()?;
        match self.open.remove(&migration) {
            Some(Place::Recording { recorder, .. }) => recorder.finish().map(drop),
            Some(Place::Directory { path, files, .. }) => {
                files.into_values().try_for_each(|mut file| file.flush()).map_err(|e| failed(&path, e))
            }
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Error> {
        if let Some((migration, slot, time)) = self.run_of.take()
            && let Some(place) = self.open.get_mut(&migration)
        {
            place.put(slot, time, &self.run)?;
            self.run.clear();
        }
        Ok(())
    }

    fn begin(&mut self, migration: usize, slot: Slot, words: Words<'_>) -> Result<(), Error> {
        if !self.open.contains_key(&migration) {
            let path = self.target.path(migration);
            let place = match &self.target {
                Target::Recording(_) => self.record(&path)?,
                Target::Directory(_) => {
                    fs::create_dir_all(&path).map_err(|e| failed(&path, e))?;
                    check_empty(&path)?;
                    Place::Directory { path, files: HashMap::new(), behind: self.behind.clone() }
                }
            };
            self.open.insert(migration, place);
        }
        self.open.get_mut(&migration).map_or(Ok(()), |place| place.begin(slot, words))
    }

    fn record(&self, path: &Path) -> Result<Place, Error> {
        self.check_spared(path)?;
        let file = File::create(path).map_err(|e| failed(path, e))?;
        let comment = Some(self.comment.clone());
        let about = self.about.clone();
        let options = RecorderOptions { strict: true, comment, about };
        let recorder = Recorder::new(self.behind.file(file), options);
        Ok(Place::Recording { recorder, taps: HashMap::new() })
    }
}

impl Output for Files {
    fn piece(&mut self, piece: &Piece<'_>) -> Result<(), Error> {
        let Piece { connection, direction, fragment, .. } = *piece;
        let [source, destination] = piece.ends;
        let words = || (piece.name(), Some(format!("{source} to {destination}")));
        self.put(piece.migration, Slot { connection, direction, fragment }, piece.time, piece.data, &words)
    }

    fn end(&mut self, migration: usize) -> Result<(), Error> {
        self.close(migration)
    }
}

impl Place {
    /// Makes room for the bytes of a channel.
    fn begin(&mut self, slot: Slot, words: Words<'_>) -> Result<(), Error> {
        match self {
            Self::Recording { recorder, taps } => {
                taps.entry(interface(slot)).or_insert_with(|| {
                    let (name, description) = words();
                    let tap = recorder.channel(name);
                    if let Some(description) = description {
                        // Nothing is recorded yet, so it can be described.
                        let _ = tap.set_description(description);
                    }
                    tap
                });
            }
            Self::Directory { path, files, behind } => {
                if let Entry::Vacant(entry) = files.entry(slot) {
                    let path = path.join(file_name(slot));
                    let file = File::create(&path).map_err(|e| failed(&path, e))?;
                    entry.insert(behind.file(file));
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, slot: Slot, time: Timestamp, data: &[u8]) -> Result<(), Error> {
        match self {
            Self::Recording { taps, .. } => {
                taps.get(&interface(slot)).map_or(Ok(()), |tap| tap.record_at(slot.direction, time, data))
            }
            Self::Directory { path, files, .. } => match files.get_mut(&slot) {
                Some(file) => file.write_all(data).map_err(|e| failed(&path.join(file_name(slot)), e)),
                None => Ok(()),
            },
        }
    }
}

/// Channels of another migration would become part of this one.
fn check_empty(directory: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(|e| failed(directory, e))? {
        let name = entry.map_err(|e| failed(directory, e))?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("conn") && name.ends_with(".bin") {
            let message = format!("{} has channels already: {name}", directory.display());
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
    }
    Ok(())
}

/// Both directions of a connection share an interface; what follows a hole in one of them has nothing to do with the other one.
fn interface(slot: Slot) -> (usize, Option<Direction>, u64) {
    (slot.connection, (slot.fragment > 0).then_some(slot.direction), slot.fragment)
}

fn file_name(slot: Slot) -> String {
    let Slot { connection, direction, fragment } = slot;
    let direction = match direction {
        Direction::ToDestination => "src-to-dst",
        Direction::ToSource => "dst-to-src",
    };
    let hole = if fragment == 0 { String::new() } else { format!("+{fragment:#x}") };
    format!("conn{connection:02}{hole}.{direction}.bin")
}

#[cold]
fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::io(DOING, path.display().to_string(), error)
}
