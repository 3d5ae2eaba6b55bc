//! The rules of the house that a compiler does not check: which module may use which, and what the inner ones must not know.
//!
//! The order of modules is the table in `src/lib.rs`; this test reads it from there. Comments, and tests within the source, are
//! left out of account.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::{files, place};

/// A source file without comments and tests.
struct Source {
    /// Name below `src/`, with slashes.
    name: String,
    /// Module path: `["stream", "parser"]`.
    path: Vec<String>,
    code: String,
}

fn sources() -> Vec<Source> {
    let found: Vec<_> = files(&place("src"), "rs")
        .into_iter()
        .filter(|(name, _)| !name.ends_with("tests.rs"))
        .map(|(name, file)| {
            let text = fs::read_to_string(file).expect("source is text");
            let mut path: Vec<_> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
            path.pop_if(|last| matches!(last.as_str(), "mod" | "lib" | "main"));
            Source { path, code: code(&text), name }
        })
        .collect();
    assert!(found.len() > 30, "only {} source files", found.len());
    found
}

/// `text` up to its tests, without comments.
fn code(text: &str) -> String {
    // Inline test modules stand last in their file.
    let is_tests = |at: usize| {
        let next = text[at..].lines().nth(2).unwrap_or_default();
        next.contains("mod ") && next.ends_with('{')
    };
    let end = text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at).find(|at| is_tests(*at));
    text[..end.unwrap_or(text.len())]
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Names that follow `root` (`crate::`, say) in `code`, those in braces too.
fn names(code: &str, root: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = code[at + root.len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => found.extend(members(group)),
            None => found.push(identifier(rest)),
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// First names of the members of a group, whose opening brace is gone.
fn members(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut found = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(String::new()),
            c => found.last_mut().expect("there is one").push(c),
        }
    }
    found.iter().map(|member| identifier(member.trim_start())).filter(|name| !name.is_empty()).collect()
}

/// Modules as the table in `src/lib.rs` orders them; the command comes last.
fn layers() -> Vec<String> {
    let text = fs::read_to_string(place("src/lib.rs")).expect("it is there");
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | "));
    let names = rows.map(|row| row.trim_start_matches(['[', '`']));
    let mut found: Vec<_> = names.map(identifier).filter(|n| !matches!(n.as_str(), "" | "module")).collect();
    found.push("cli".to_owned());
    found
}

#[test]
fn every_module_has_its_layer() {
    let named: BTreeSet<_> = layers().into_iter().collect();
    let there: BTreeSet<_> = sources().into_iter().filter_map(|s| s.path.into_iter().next()).collect();
    assert_eq!(named, there, "the table in src/lib.rs, and what is in src/");
    assert_eq!(named.len(), layers().len(), "a module is named twice");
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let layers = layers();
    let level = |name: &str| layers.iter().position(|layer| layer == name);
    let mut uses = 0;
    for source in sources() {
        let Some(here) = source.path.first().and_then(|top| level(top)) else { continue };
        let mut found = names(&source.code, "crate::");
        // As many `super` as the path is long lead to the root of the crate.
        let root = "super::".repeat(source.path.len());
        found.extend(names(&source.code, &root));
        for name in found {
            // What the root exports is from `error`.
            let Some(there) = level(&name) else {
                assert!(
                    ["ChannelId", "Error", "ErrorKind", "Result"].contains(&name.as_str()),
                    "src/{}: crate::{name} is no module",
                    source.name
                );
                continue;
            };
            uses += 1;
            assert!(there <= here, "src/{}: {} must not use {name}", source.name, layers[here]);
        }
    }
    assert!(uses > 50, "only {uses} uses were seen");
}

/// Invariant 4: what reads and writes bytes knows no socket, file, clock or thread.
#[test]
fn inner_modules_know_no_operating_system() {
    const INNER: [&str; 10] = [
        "error",
        "limits",
        "dialect",
        "wire",
        "channel",
        "stream",
        "multifd",
        "postcopy",
        "device_state",
        "tcp",
    ];
    const OUTER: [&str; 7] = ["net", "fs", "thread", "time", "process", "env", "os"];
    let mut seen = 0;
    for source in sources() {
        if !source.path.first().is_some_and(|top| INNER.contains(&top.as_str())) {
            continue;
        }
        for name in names(&source.code, "std::") {
            seen += 1;
            assert!(!OUTER.contains(&name.as_str()), "src/{}: std::{name}", source.name);
        }
        for krate in ["rustix::", "socket2::", "memmap2::", "crossbeam_channel::"] {
            assert!(names(&source.code, krate).is_empty(), "src/{}: {krate}", source.name);
        }
    }
    assert!(seen > 20, "only {seen} uses of std were seen");
}

/// Invariant 7: releases are compared in `dialect.rs` and nowhere else.
#[test]
fn releases_are_compared_in_one_place() {
    for source in sources().iter().filter(|s| s.name != "dialect.rs") {
        // A container has a format version of its own, which has nothing to do with releases.
        let own = |line: &&str| {
            !(source.path[..].first().is_some_and(|top| top == "container") && line.contains("self.version"))
        };
        for line in source.code.lines().filter(own) {
            assert!(!compares_releases(line), "src/{}: {}", source.name, line.trim());
        }
    }
    let dialect = fs::read_to_string(place("src/dialect.rs")).expect("it is there");
    assert!(code(&dialect).lines().any(compares_releases), "this test sees no comparison where there is one");
}

fn compares_releases(line: &str) -> bool {
    let ordered = [" >= ", " <= ", " > ", " < "].iter().any(|operator| line.contains(operator));
    let versions = ["version >= ", "version <= ", "version() >= ", "version() <= ", "r >= s", "m >= s"];
    let release = line.contains("release") || line.contains("Release");
    ordered && release
        || versions.iter().any(|v| line.contains(v))
        || line.contains(".major")
        || line.contains(".minor")
}

/// Invariant 8: the parser library stays in one file, and out of its signatures.
#[test]
fn nom_stays_under_the_cursor() {
    for source in sources() {
        if source.name == "wire/cursor.rs" {
            assert!(!names(&source.code, "nom::").is_empty(), "this test sees no use where there is one");
            for line in source.code.lines().filter(|line| line.trim_start().starts_with("pub")) {
                assert!(!line.to_lowercase().contains("nom"), "src/{}: {}", source.name, line.trim());
            }
        } else {
            assert!(names(&source.code, "nom::").is_empty(), "src/{} uses nom", source.name);
        }
    }
}

/// The tests above read source with these.
#[test]
fn names_are_found() {
    let code = code(
        "use crate::{a::{b, c}, d};\nuse crate::e; // crate::f\nlet x = crate::g::h();\nmycrate::i;\n#[cfg(test)]\nmod tests {\nuse crate::j;",
    );
    assert_eq!(names(&code, "crate::"), ["a", "d", "e", "g"]);
    assert_eq!(names("use super::super::x;", "super::super::"), ["x"]);
}
