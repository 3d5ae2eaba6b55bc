//! A directory for what does not fit into memory. It holds guest memory, so nobody else may look into it.

use std::fs::DirBuilder;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::DOING;
use crate::error::{Error, Result};

/// A new directory, removed with all that is in it when this is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Creates one in `place`.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn new(place: &Path) -> Result<Self> {
        let mut number = 0;
        loop {
            let path = place.join(format!(".migwire-convert-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == IoKind::AlreadyExists => number += 1,
                Err(e) => return Err(Error::io(DOING, path.display().to_string(), e)),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_gone_afterwards() {
        let place = tempfile::tempdir().unwrap();
        let (one, two) = (Scratch::new(place.path()).unwrap(), Scratch::new(place.path()).unwrap());
        std::fs::write(one.path().join("page"), "secret").unwrap();
        drop((one, two));
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        assert!(Scratch::new(&place.path().join("none")).is_err());
    }
}
