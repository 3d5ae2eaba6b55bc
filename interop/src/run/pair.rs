//! What the control and the proxy have in common: two stock ends, equal memory, a guest that goes on.

use super::Bench;
use super::conversation::Way;
use crate::cases::Transport;
use crate::failure::{Run, both};
use crate::qemu::Vm;

/// Where a destination is told to listen.
pub(super) fn listen_address(bench: &Bench<'_>) -> String {
    match bench.cell.case.transport {
        Transport::Unix => bench.unix_address(),
        _ => String::from("tcp:127.0.0.1:0"),
    }
}

/// A source and a destination that are to meet.
pub(super) struct Ends {
    pub(super) source: Vm,
    pub(super) destination: Vm,
}

impl Ends {
    /// The two ends that most cells have.
    pub(super) fn of(bench: &Bench<'_>) -> Run<Self> {
        let source = bench.source()?;
        let destination = bench.destination(&bench.path("source.ram"))?;
        Ok(Self { source, destination })
    }
}

/// Both ends are up and talk at once; `between` turns the destination's address, and the one where it listens after a break, into the
/// one for the source.
pub(super) fn live(
    bench: &Bench<'_>,
    ends: Ends,
    between: impl FnOnce(&str, &str) -> Run<String>,
    after: impl FnOnce() -> Run<()>,
) -> Run<()> {
    let Ends { mut source, mut destination } = ends;
    let target = destination.migrate_incoming(&listen_address(bench))?;
    let again = listen_again(bench, &target);
    let address = between(&target, &again)?;
    // Whoever stands between keeps its address.
    let to_source = if address == target { again.clone() } else { address.clone() };
    let way = Way { to_source, at_destination: again };
    let sent = bench
        .converse(&mut source, &address, |source, number| bench.mend(source, &mut destination, number, &way));
    let loaded = bench.arrival(&mut destination, sent.is_ok());
    match both(sent, loaded) {
        // An end may keep a channel open for as long as it lives, and whoever stands between is not done before that.
        Ok(_) => {
            settle(bench, source, destination)?;
            after()
        }
        Err(failure) => {
            // Whoever stood between ends with the two, and its report may hold the reason; their failure is the news all the same.
            drop((source, destination));
            let _ = after();
            Err(failure)
        }
    }
}

/// Where a destination listens again after a break.
fn listen_again(bench: &Bench<'_>, target: &str) -> String {
    match bench.cell.case.transport {
        Transport::Unix => bench.unix_address(),
        _ => target.to_owned(),
    }
}

/// The source writes everything to a file first; then the destination reads it.
pub(super) fn stored(bench: &Bench<'_>, out: &str, after: impl FnOnce() -> Run<()>, back: &str) -> Run<()> {
    let mut source = bench.source()?;
    bench.migrate(&mut source, out)?;
    after()?;
    let mut destination = bench.destination(&bench.path("source.ram"))?;
    destination.migrate_incoming(back)?;
    bench.arrival(&mut destination, true)?;
    settle(bench, source, destination)
}

/// Memory is equal while both are stopped; then the guest goes on, and both end in peace.
fn settle(bench: &Bench<'_>, mut source: Vm, mut destination: Vm) -> Run<()> {
    bench.compare_bitmaps(&mut source, &mut destination)?;
    bench.check_release()?;
    let role = source.role().to_owned();
    source.quit()?;
    let sent = bench.sent_by(&role);
    bench.inspect(&mut destination, &sent)?;
    bench.found.borrow_mut().sent = Some(sent);
    destination.quit()
}
