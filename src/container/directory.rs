//! A migration whose channels are files of their own.
//!
//! ```text
//! conn00.src-to-dst.bin   main channel      conn00.dst-to-src.bin   return path
//! conn01.src-to-dst.bin   multifd channel   conn01.dst-to-src.bin   empty, as a rule
//! ```
//! In a directory the name says connection and direction; what kind of channel it is, its first bytes say. Files that are given
//! side by side have only those.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::{Contents, Part, Place, failed, first_bytes, multifd_id};
use crate::capture::{Direction, FileKind};
use crate::error::{ChannelId, Error, Result};

/// Opens a directory of `connNN.src-to-dst.bin` and `connNN.dst-to-src.bin`.
///
/// # Errors
/// `Io` if it cannot be read or has no such file with a byte in it.
pub(super) fn open(path: &Path, lenient: bool) -> Result<Contents> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| failed(path, e))? {
        let name = entry.map_err(|e| failed(path, e))?.file_name();
        if let Some((number, direction)) = name.to_str().and_then(connection) {
            files.push((number, direction, name));
        }
    }
    files.sort();
    let (mut parts, mut empty) = (Vec::new(), Vec::new());
    for (number, direction, name) in files {
        let path = path.join(&name);
        let first = File::open(&path).and_then(|mut file| first_bytes(&mut file));
        let first = first.map_err(|e| failed(&path, e))?;
        if first.is_empty() {
            empty.push(name.to_string_lossy().into_owned());
            continue;
        }
        let channel = match (FileKind::of(&first), direction) {
            (FileKind::Stream | FileKind::OldStream(_), Direction::ToDestination) => ChannelId::Main,
            (FileKind::Multifd, Direction::ToDestination) => ChannelId::Multifd(multifd_id(&first)),
            (FileKind::ReturnPath, Direction::ToSource) => ChannelId::ReturnPath,
            (FileKind::Unknown, Direction::ToDestination) if lenient && number == 0 => ChannelId::Main,
            _ => ChannelId::Connection(number),
        };
        let mut part = Part::plain(channel, Place::File(path));
        part.label = Some(match direction {
            Direction::ToDestination => format!("conn{number:02}"),
            Direction::ToSource => format!("conn{number:02}, back"),
        });
        parts.push(part);
    }
    if parts.is_empty() {
        let e = io::Error::from(io::ErrorKind::IsADirectory);
        let message = format!("{} has no connNN.src-to-dst.bin with a byte in it", path.display());
        return Err(Error::io(super::DOING, message, e).on(ChannelId::Container));
    }
    let name = path.display().to_string();
    let notes = if empty.is_empty() {
        Vec::new()
    } else {
        vec![format!("empty, and left out: {}", empty.join(", "))]
    };
    Ok(Contents { name, kind: FileKind::Directory, parts, fault: None, notes, about: None })
}

/// Number and direction in the name of a file.
fn connection(name: &str) -> Option<(u32, Direction)> {
    let (number, direction) = name.strip_prefix("conn")?.strip_suffix(".bin")?.split_once('.')?;
    let direction = match direction {
        "src-to-dst" => Direction::ToDestination,
        "dst-to-src" => Direction::ToSource,
        _ => return None,
    };
    Some((number.parse().ok().filter(|_| !number.starts_with('+'))?, direction))
}

/// Makes one migration of raw channels that were given side by side, if there is a multifd channel among them: alone it says
/// little. What is a container itself stays as it is.
#[must_use]
pub fn join(all: Vec<Contents>) -> Vec<Contents> {
    let is_raw = |contents: &Contents| {
        matches!(
            contents.kind,
            FileKind::Stream
                | FileKind::OldStream(_)
                | FileKind::Multifd
                | FileKind::ReturnPath
                | FileKind::Empty
        )
    };
    let is_multifd = |contents: &Contents| contents.kind == FileKind::Multifd;
    if all.iter().filter(|contents| is_raw(contents)).count() < 2 || !all.iter().any(is_multifd) {
        return all;
    }
    let (mut found, mut joined) = (Vec::new(), None);
    for mut contents in all {
        if !is_raw(&contents) {
            found.push(contents);
            continue;
        }
        for part in &mut contents.parts {
            part.label.get_or_insert_with(|| contents.name.clone());
        }
        match joined {
            None => {
                joined = Some(found.len());
                found.push(Contents { kind: FileKind::Files, ..contents });
            }
            Some(at) => {
                let whole: &mut Contents = &mut found[at];
                whole.name = format!("{}, {}", whole.name, contents.name);
                whole.parts.extend(contents.parts);
                whole.notes.extend(contents.notes);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn names_of_files() {
        assert_eq!(connection("conn00.src-to-dst.bin"), Some((0, Direction::ToDestination)));
        assert_eq!(connection("conn12.dst-to-src.bin"), Some((12, Direction::ToSource)));
        for other in [
            "conn00.bin",
            "conn.src-to-dst.bin",
            "conn+1.src-to-dst.bin",
            "timeline.jsonl",
            "conn00.src-to-dst",
        ] {
            assert_eq!(connection(other), None, "{other}");
        }
    }

    #[test]
    fn a_directory_is_a_migration() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
        write("README.md", b"x");
        let error = super::super::open(directory.path(), false).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Io);
        let mut hello = [0; 64];
        hello[..8].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01");
        hello[24] = 9;
        write("conn10.src-to-dst.bin", &hello);
        write("conn10.dst-to-src.bin", b"");
        write("conn02.src-to-dst.bin", b"\0\0\0\0\0\0\0\x08");
        write("conn00.src-to-dst.bin", b"QEVM\0\0\0\x03");
        write("conn00.dst-to-src.bin", b"\0\x02\0\x04\0\0\0\0");
        let contents = super::super::open(directory.path(), false).unwrap();
        let channels: Vec<_> = contents.parts.iter().map(|part| part.channel).collect();
        let expected =
            [ChannelId::Main, ChannelId::ReturnPath, ChannelId::Connection(2), ChannelId::Multifd(9)];
        assert_eq!(channels, expected);
        assert_eq!(contents.notes, ["empty, and left out: conn10.dst-to-src.bin"]);

        let open = |name: &str| super::super::open(&directory.path().join(name), false).unwrap();
        let [main, back, multifd] =
            ["conn00.src-to-dst.bin", "conn00.dst-to-src.bin", "conn10.src-to-dst.bin"].map(open);
        let joined = join(vec![main, back, multifd]);
        assert_eq!((joined.len(), joined[0].parts.len(), joined[0].kind), (1, 3, FileKind::Files));
        let [main, back] = ["conn00.src-to-dst.bin", "conn00.dst-to-src.bin"].map(open);
        assert_eq!(join(vec![main, back]).len(), 2, "as before");
    }
}
