//! What the control and the proxy have in common: two stock ends, equal memory, a guest that goes on.

use super::Bench;
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

/// Both ends are up and talk at once; `between` turns the destination's address into the one for the source.
pub(super) fn live(
    bench: &Bench<'_>,
    between: impl FnOnce(&str) -> Run<String>,
    after: impl FnOnce() -> Run<()>,
) -> Run<()> {
    let mut source = bench.source()?;
    let mut destination = bench.destination(&bench.path("source.ram"))?;
    let target = destination.migrate_incoming(&listen_address(bench))?;
    let address = between(&target)?;
    let sent = bench.migrate(&mut source, &address);
    let loaded = bench.arrival(&mut destination, sent.is_ok());
    match both(sent, loaded) {
        // An end may keep a channel open for as long as it lives, and whoever stands between is not done before that.
        Ok(_) => {
            settle(bench, source, destination)?;
            after()
        }
        Err(failure) => {
            // The report of whoever stood between may hold the reason; the ends' failure is the news all the same.
            let _ = after();
            Err(failure)
        }
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
fn settle(bench: &Bench<'_>, source: Vm, mut destination: Vm) -> Run<()> {
    bench.compare(&bench.path("source.ram"), &bench.path("destination.ram"))?;
    source.quit()?;
    bench.resume(&mut destination, "destination")?;
    destination.quit()
}
