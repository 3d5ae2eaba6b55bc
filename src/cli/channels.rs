//! All channels of whatever holds a migration, bit by bit, in the order in which they passed.
//!
//! A recording has that order, and times. Channels in files of their own have neither: they come one after the other, the main
//! channel first, from the beginning of time on.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use migwire::capture::{self, Direction, FileKind, Reader, Timestamp, hole_of, interface_name};
use migwire::channel::Input as _;
use migwire::container::{self, Access, Contents, Part};
use migwire::{ChannelId, Error};

use super::files::Slot;

const DOING: &str = "opening";

/// Bytes of a channel.
pub(crate) struct Bit<'a> {
    /// Which connection of the migration, which way, behind which hole.
    pub(crate) slot: Slot,
    /// What the connection is called.
    pub(crate) name: &'a str,
    /// Where in the channel it is, with everything that was lost.
    pub(crate) offset: u64,
    pub(crate) time: Timestamp,
    pub(crate) data: &'a [u8],
    /// No other bit of the connection comes, and another migration does.
    pub(crate) is_last: bool,
}

/// What holds a migration.
pub(crate) struct Channels {
    content: Content,
    connections: Vec<Connection>,
    fault: Option<Error>,
}

enum Content {
    Recording { path: PathBuf, interfaces: Vec<Option<Interface>> },
    Parts(Vec<(usize, Direction, Part)>),
}

/// A connection, as a whole.
#[derive(Default)]
pub(crate) struct Connection {
    /// What it is called.
    pub(crate) name: String,
    /// Bytes to the destination, and to the source.
    pub(crate) bytes: [u64; 2],
    to_come: u64,
}

/// An interface of a recording: a connection, or what follows a hole in it.
struct Interface {
    connection: usize,
    fragment: u64,
    offsets: [u64; 2],
}

impl Channels {
    /// Opens recordings, and channels in files of their own, of which those that belong together become one. `piped` is what `-`
    /// stands for, once.
    pub(crate) fn open(files: &[PathBuf], piped: Option<Box<dyn Read + Send>>) -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        let mut piped = piped;
        for path in files {
            let input = if path.as_os_str() == "-" { piped.take() } else { None };
            all.push(match input {
                Some(input) => container::open_once(input, "standard input".into(), false)?,
                None => container::open(path, false)?,
            });
        }
        let opened = container::join(all).into_iter().map(|contents| match contents.kind {
            FileKind::Pcapng => Self::recording(Path::new(&contents.name)),
            _ => Ok(Self::parts(contents)),
        });
        Ok(opened.collect::<Result<_, _>>()?)
    }

    fn recording(path: &Path) -> Result<Self, Error> {
        let listing = capture::channels(open(path)?)?;
        // The first place is that of the main channel.
        let mut connections = vec![Connection::default()];
        let mut interfaces: Vec<Option<Interface>> = Vec::new();
        let has_main = listing.channels.iter().any(|channel| channel.name == "main");
        if !has_main {
            connections.clear();
        }
        let mut has_seen_main = false;
        for channel in &listing.channels {
            if interfaces.len() <= channel.interface {
                interfaces.resize_with(channel.interface + 1, || None);
            }
            let interface = interfaces[channel.interface].get_or_insert_with(|| {
                let (name, fragment) = hole_of(&channel.name).unwrap_or((&channel.name, 0));
                let before = connections.iter().rposition(|connection| connection.name == name);
                let connection = match before.filter(|_| fragment > 0) {
                    Some(before) => before,
                    None if name == "main" && !std::mem::replace(&mut has_seen_main, true) => 0,
                    None => {
                        connections.push(Connection::default());
                        connections.len() - 1
                    }
                };
                connections[connection].name = name.to_owned();
                Interface { connection, fragment, offsets: [fragment; 2] }
            });
            connections[interface.connection].to_come += channel.bytes;
        }
        let content = Content::Recording { path: path.into(), interfaces };
        Ok(Self { content, connections, fault: listing.error })
    }

    fn parts(contents: Contents) -> Self {
        let mut connections: Vec<Connection> = Vec::new();
        let mut parts = Vec::new();
        for part in contents.parts {
            // Of a channel of unknown kind, only the name of its file says which way it goes.
            let is_back = part.label.as_ref().is_some_and(|label| label.ends_with(", back"));
            let (channel, direction) = match part.channel {
                ChannelId::ReturnPath => (ChannelId::Main, Direction::ToSource),
                ChannelId::ResumedReturnPath(n) => (ChannelId::Resumed(n), Direction::ToSource),
                channel if is_back => (channel, Direction::ToSource),
                channel => (channel, Direction::ToDestination),
            };
            parts.push((channel, direction, part));
        }
        parts.sort_by_key(|(channel, direction, _)| (*channel != ChannelId::Main, *direction));
        let parts = parts.into_iter().map(|(channel, direction, part)| {
            let name = interface_name(channel);
            let at = connections.iter().position(|connection| connection.name == name);
            let at = at.unwrap_or_else(|| {
                connections.push(Connection { name, ..Connection::default() });
                connections.len() - 1
            });
            (at, direction, part)
        });
        let parts = parts.collect();
        Self { content: Content::Parts(parts), connections, fault: contents.fault }
    }

    /// Calls `take` for every bit of every channel.
    pub(crate) fn each(&mut self, mut take: impl FnMut(&Bit<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let Self { content, connections, fault } = self;
        match content {
            Content::Recording { path, interfaces } => {
                let ended = each_recorded(path, interfaces, connections, &mut take)?;
                if fault.is_none() {
                    *fault = ended;
                }
                Ok(())
            }
            Content::Parts(parts) => each_part(parts, connections, &mut take),
        }
    }

    /// All connections, with what has been taken of them.
    pub(crate) fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// Why there may be more.
    pub(crate) fn fault(&self) -> Option<&Error> {
        self.fault.as_ref()
    }
}

type Take<'a> = &'a mut dyn FnMut(&Bit<'_>) -> Result<(), Error>;

/// What ended the reading before the end of the file, if anything did.
fn each_recorded(
    path: &Path,
    interfaces: &mut [Option<Interface>],
    connections: &mut [Connection],
    take: Take<'_>,
) -> Result<Option<Error>, Error> {
    let is_one = connections.iter().filter(|connection| connection.name == "main").count() <= 1;
    let mut reader = Reader::new(open(path)?)?;
    loop {
        let packet = match reader.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(error)),
        };
        let Some(Some(interface)) = interfaces.get_mut(packet.interface) else { continue };
        let Interface { connection, fragment, ref mut offsets } = *interface;
        let Some(whole) = connections.get_mut(connection) else { continue };
        let (direction, len) = (packet.direction, packet.data.len() as u64);
        let offset = offsets[direction as usize];
        offsets[direction as usize] += len;
        whole.bytes[direction as usize] += len;
        whole.to_come = whole.to_come.saturating_sub(len);
        take(&Bit {
            slot: Slot { connection, direction, fragment },
            name: &whole.name,
            offset,
            time: packet.time,
            data: packet.data,
            is_last: whole.to_come == 0 && !is_one,
        })?;
    }
}

fn each_part(
    parts: &mut [(usize, Direction, Part)],
    connections: &mut [Connection],
    take: Take<'_>,
) -> Result<(), Error> {
    let mut buffer = vec![0; capture::MAX_PACKET];
    let mut time = Timestamp(0);
    for (connection, direction, part) in parts {
        let (connection, direction) = (*connection, *direction);
        let mut input = part.input(Access::Whole)?;
        let Some(whole) = connections.get_mut(connection) else { continue };
        loop {
            let count = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(DOING, "a channel cannot be read", e).on(part.channel)),
            };
            let offset = whole.bytes[direction as usize];
            whole.bytes[direction as usize] += count as u64;
            let slot = Slot { connection, direction, fragment: 0 };
            let name = whole.name.as_str();
            take(&Bit { slot, name, offset, time, data: &buffer[..count], is_last: false })?;
            time.0 += 1000;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|e| Error::io(DOING, path.display().to_string(), e).on(ChannelId::Container))
}
