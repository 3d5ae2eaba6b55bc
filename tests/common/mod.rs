//! What the integration tests share.
#![allow(dead_code, reason = "every test program has its own copy of this module and uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) mod converting;
pub(crate) mod made;
pub(crate) mod ram;
pub(crate) mod reading;
pub(crate) mod small;

/// A directory of the repository.
pub(crate) fn place(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// Files below `directory` with that extension, by relative name, in order.
pub(crate) fn files(directory: &Path, extension: &str) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("a directory of the repository can be read") {
            let path = entry.expect("its entries too").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let name = path.strip_prefix(directory).expect("it is below").to_string_lossy().into_owned();
                found.push((name, path));
            }
        }
    }
    found.sort();
    found
}

/// The streams that stock builds of QEMU wrote, by name.
pub(crate) fn fixtures() -> Vec<(String, Vec<u8>)> {
    let found: Vec<_> = files(&place("fixtures/streams"), "bin")
        .into_iter()
        .map(|(name, path)| (name, fs::read(path).expect("a fixture can be read")))
        .collect();
    assert!(found.len() >= 20, "only {} fixtures", found.len());
    found
}
