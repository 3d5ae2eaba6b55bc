//! After a cell that went well: its recording, played to a fresh destination (`--replay`).
//!
//! A recording that completed is the whole migration, so a destination of the same build has to load it, and has to have the memory that
//! was sent. What took it the first time may have been a stand-in; then it is played to the build that it came from.

use std::time::{Duration, Instant};

use super::replay::{self, Performance};
use super::{Bench, CAPTURE, rounded};
use crate::cases::Kind;
use crate::failure::{Class, Run};
use crate::process::Deadline;
use crate::qemu::Place;
use crate::results::Encore;

/// Runs work in which the judge may panic.
type Guard<'g> = dyn Fn(&dyn Fn() -> Run<()>) -> Run<()> + 'g;

/// Plays the recording of this cell, if it has one that is a whole migration between two ends.
pub(super) fn play(bench: &Bench<'_>, guarded: &Guard<'_>) -> Option<Encore> {
    let build = build(bench)?;
    let began = Instant::now();
    // Its own time: the cell has used its own up.
    let deadline = Deadline::after(Duration::from_secs(bench.cell.case.timeout.max(30)));
    let again = Bench {
        env: bench.env,
        cell: bench.cell,
        setup: bench.setup.clone(),
        place: Place { deadline, ..bench.place.clone() },
        scratch: std::cell::RefCell::default(),
        found: std::cell::RefCell::new(bench.found.borrow().clone()),
    };
    let performance = Performance {
        capture: CAPTURE,
        roles: ("encore", "replay-again"),
        build,
        side: &bench.cell.case.variant.destination,
    };
    let played = guarded(&|| replay::play(&again, &performance));
    if played.as_ref().is_err_and(|failure| failure.class == Class::Interrupted) {
        return None;
    }
    let reason = played.err().map(|failure| format!("[{}] {failure}", failure.class));
    Some(Encore { build: build.to_owned(), reason, seconds: rounded(began) })
}

/// Who is to load it: the stock destination that has done so, or else the build that has sent it.
fn build<'a>(bench: &Bench<'a>) -> Option<&'a str> {
    let cell = bench.cell;
    // A cell that had to end badly has no recording of a migration, and one that broke rules has one of a migration that must not load.
    if cell.case.variant.expectation(&cell.source, &cell.destination).is_some()
        || cell.case.variant.send.iter().any(|word| word == "--break")
        || !bench.path(CAPTURE).is_file()
        || bench.found.borrow().sent.is_none()
    {
        return None;
    }
    match cell.case.kind {
        Kind::StandinToStock | Kind::StockToProxyToStock | Kind::Import => Some(&*cell.destination),
        // Nor can it take a recording if it takes no such migration.
        Kind::StockToStandin if cell.case.variant.expectation(&cell.source, &cell.source).is_some() => None,
        Kind::StockToStandin => Some(&*cell.source),
        // The first two have none, the third has no stock build, and the rest are about nothing else.
        Kind::Direct
        | Kind::Savevm
        | Kind::BackgroundSnapshot
        | Kind::StandinToStandin
        | Kind::Replay
        | Kind::Convert
        | Kind::Trouble => None,
    }
}
