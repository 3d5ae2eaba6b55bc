//! Which stock builds take part: `peers.toml`, changed by `--peer NAME=PATH`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// The name that stands for migwire itself wherever a peer is named.
pub(crate) const STANDIN: &str = "migwire";

/// One stock build, as somebody named it. What it can do is not written down but probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) about: String,
    /// Given on the command line, so a command that reproduces a cell has to repeat it.
    pub(crate) given: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    #[serde(default)]
    peer: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    path: String,
    about: String,
}

/// Reads a manifest and applies the `NAME=PATH` words of the command line, in this order.
pub(crate) fn load(manifest: &str, qemu_dir: &Path, given: &[String]) -> Result<Vec<Peer>> {
    let manifest: Manifest = toml::from_str(manifest)?;
    let mut peers = Vec::new();
    for entry in manifest.peer {
        let path = PathBuf::from(entry.path.replace("${QEMU_DIR}", &qemu_dir.to_string_lossy()));
        add(&mut peers, Peer { name: entry.name, path, about: entry.about, given: false })?;
    }
    for word in given {
        let (name, path) = word.split_once('=').with_context(|| format!("--peer {word}: not NAME=PATH"))?;
        let path = std::path::absolute(path)?;
        let peer = Peer { name: name.into(), path, about: "given with --peer".into(), given: true };
        match peers.iter_mut().find(|old: &&mut Peer| old.name == peer.name) {
            Some(old) => *old = peer,
            None => add(&mut peers, peer)?,
        }
    }
    Ok(peers)
}

fn add(peers: &mut Vec<Peer>, peer: Peer) -> Result<()> {
    // Names become parts of cell ids, file names and glob patterns.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if peer.name.is_empty() || !peer.name.bytes().all(plain) {
        bail!("peer name {:?}: letters, digits, '.', '_' and '-' only", peer.name);
    }
    if peer.name == STANDIN {
        bail!("peer name {STANDIN:?} is taken by the stand-in");
    }
    if peers.iter().any(|old| old.name == peer.name) {
        bail!("peer {:?} is named twice", peer.name);
    }
    peers.push(peer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        [[peer]]
        name = "5.2"
        path = "${QEMU_DIR}/5.2/q"
        about = "old"
        [[peer]]
        name = "11.1"
        path = "/opt/q"
        about = "new"
    "#;

    fn given(words: &[&str]) -> Result<Vec<Peer>> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        load(MANIFEST, Path::new("/builds"), &words)
    }

    #[test]
    fn the_folder_of_the_builds_is_put_in() {
        let peers = given(&[]).unwrap();
        assert_eq!(peers[0].path, Path::new("/builds/5.2/q"));
        assert_eq!(peers[1].path, Path::new("/opt/q"));
    }

    #[test]
    fn the_command_line_replaces_in_place_and_adds_at_the_end() {
        let peers = given(&["mine=/home/q", "5.2=/other/q"]).unwrap();
        let names: Vec<&str> = peers.iter().map(|peer| &*peer.name).collect();
        assert_eq!(names, ["5.2", "11.1", "mine"]);
        assert_eq!(peers[0].path, Path::new("/other/q"));
        assert!(peers[0].given && !peers[1].given && peers[2].given);
    }

    #[test]
    fn bad_names_are_refused() {
        for word in ["nopath", "=x", "a b=/x", "a/b=/x", "a:b=/x", "migwire=/x"] {
            assert!(given(&[word]).is_err(), "{word}");
        }
    }

    #[test]
    fn the_shipped_manifest_is_valid() {
        let peers = load(include_str!("../peers.toml"), Path::new("/q"), &[]).unwrap();
        let names: Vec<&str> = peers.iter().map(|peer| &*peer.name).collect();
        assert_eq!(names, ["5.2", "7.2", "10.0", "11.1"]);
    }
}
