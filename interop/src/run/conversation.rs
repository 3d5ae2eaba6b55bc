//! A migration followed at its source: held back, switched over or to postcopy, broken and taken up again.
//!
//! ```text
//! migrate -> held back -> [migrate-start-postcopy -> [cut -> both paused -> migrate-recover, migrate resume]*] -> completed
//!                      \-> [pre-switchover -> migrate-continue] -> ...
//! ```
//!
//! States pass between two questions, so what the source went through is read from its events in the end.

use serde_json::{Value, json};
use std::time::Duration;

use super::Bench;
use super::steps::migration_failure;
use crate::cases::Kind;
use crate::failure::{Class, Failure, Run};
use crate::process::Deadline;
use crate::qemu::Vm;
use crate::variant::Until;

/// How long a held-back source may take to show what the case is about.
const HOLD: Duration = Duration::from_secs(25);

/// From a break to the word of both ends that they are paused. A source that waits for an answer notices late.
const PAUSED: Duration = Duration::from_secs(15);

impl Bench<'_> {
    /// Starts the migration and follows it to its end at the source.
    pub(super) fn migrate(&self, vm: &mut Vm, uri: &str) -> Run<Value> {
        self.converse(vm, uri, |_, _| Ok(()))
    }

    /// The same for a conversation that breaks. `mend` is called for each break, with its number from 1; it takes the conversation up again.
    pub(super) fn converse(
        &self,
        vm: &mut Vm,
        uri: &str,
        mut mend: impl FnMut(&mut Vm, usize) -> Run<()>,
    ) -> Run<Value> {
        let (variant, deadline) = (&self.cell.case.variant, self.place.deadline);
        let hold = self.hold();
        let mut pace = match hold {
            Some(_) if variant.postcopy => slower_than_the_guest(),
            Some(_) => brake(),
            None => open(),
        };
        if let Some(pace) = pace.as_object_mut() {
            // A case may need another pace to show what it is about.
            pace.extend(variant.source.parameters.clone());
        }
        vm.set_parameters(pace)?;
        vm.migrate(uri)?;
        let reply = if variant.postcopy {
            switch_to_postcopy(vm, hold, deadline)?;
            for number in 1..=variant.cut.len() {
                mend(vm, number)?;
            }
            follow(vm, None, deadline)?
        } else {
            follow(vm, hold, deadline)?
        };
        self.check_way(vm, &reply)?;
        Ok(reply)
    }

    /// A dirtying guest is held for a few passes, so that pages are really sent again.
    fn hold(&self) -> Option<Until> {
        let passes = || Until { field: "ram.dirty-sync-count".into(), at_least: 3 };
        self.cell.case.variant.until.clone().or_else(|| self.dirtying().then(passes))
    }

    /// Whether the source went through what the case is about; otherwise it has shown nothing.
    fn check_way(&self, vm: &Vm, reply: &Value) -> Run<()> {
        let variant = &self.cell.case.variant;
        let failed = |text: String| Err(Failure::new(Class::Failed, text).of(vm.label()));
        let wanted: Vec<&str> = variant.states.iter().map(|state| &**state).collect();
        let way: Vec<&str> = vm.states().collect();
        if !goes_through(&way, &wanted) {
            return failed(format!("went through {}, and not {}", way.join(", "), wanted.join(", ")));
        }
        if variant.postcopy && vm.times("postcopy-active") == 0 {
            return failed("completed without having been in postcopy, so nothing was shown".into());
        }
        if vm.times("postcopy-paused") != variant.cut.len() {
            let pauses = vm.times("postcopy-paused");
            return failed(format!("paused {pauses} times, but {} were wanted", variant.cut.len()));
        }
        let asked = Until { field: "ram.postcopy-requests".into(), at_least: 1 };
        if variant.asks(self.cell.case.kind) && !asked.is_met(reply) {
            return failed("was asked for no page, although the destination was to ask".into());
        }
        Ok(())
    }

    /// Takes a conversation between two stock ends up again, at both.
    pub(super) fn mend(&self, source: &mut Vm, destination: &mut Vm, number: usize, way: &Way) -> Run<()> {
        if self.cell.case.kind == Kind::Direct {
            let bytes = self.cell.case.variant.cut.get(number - 1).and_then(|cut| cut.rsplit_once('+'));
            let bytes = bytes.and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(0);
            break_off(source, number, bytes, self.place.deadline)?;
        }
        self.await_pause(source, number)?;
        self.await_pause(destination, number)?;
        destination.command("migrate-recover", json!({"uri": way.at_destination}))?;
        source.resume_migration(&way.to_source)
    }

    /// Waits until an end has noticed the break of this number.
    pub(super) fn await_pause(&self, vm: &mut Vm, number: usize) -> Run<()> {
        let deadline = self.place.deadline.within(PAUSED);
        loop {
            let reply = vm.query_migrate()?;
            let status = reply["status"].as_str().unwrap_or("none").to_owned();
            match &*status {
                "postcopy-paused" if vm.times("postcopy-paused") >= number => return Ok(()),
                "failed" | "cancelled" => return Err(migration_failure(vm, &reply)),
                "completed" => {
                    let text = format!("completed without break {number}, so nothing was shown");
                    return Err(Failure::new(Class::Failed, text).of(vm.label()));
                }
                _ => vm.pause(deadline, &format!("break {number} to be noticed (status {status})"))?,
            }
        }
    }
}

/// Whether the report of a stand-in shows what the case is about: breaks, a channel for urgent pages, and pages that were asked for, in the
/// number called `asked`.
pub(super) fn check(bench: &Bench<'_>, report: &Value, asked: &str) -> Result<(), String> {
    let case = &bench.cell.case;
    let cuts = case.variant.cut.len();
    if report["pauses"].as_u64() != Some(cuts as u64) {
        return Err(format!("{} pauses, but {cuts} breaks", report["pauses"]));
    }
    if report["preempt"].is_null() == case.variant.preempt() {
        return Err(format!("preempt channel {}", report["preempt"]));
    }
    let requests = report["requests"][asked].as_u64().unwrap_or(0);
    let asks = case.variant.asks(case.kind);
    if asks != (requests > 0) {
        return Err(format!("{requests} requests {asked}"));
    }
    // A silent channel counts as one too, and what was asked for may have come in its turn over the main channel. A guest that asks may
    // always do so too late; the stand-in asks for what is far away.
    let must_be_used = asks && case.variant.preempt() && case.kind == Kind::StockToStandin;
    if must_be_used && report["preempt"]["pages"].as_u64().unwrap_or(0) == 0 {
        return Err("no page over the preempt channel, although pages were asked for".to_owned());
    }
    Ok(())
}

/// Where a broken conversation is taken up again.
pub(super) struct Way {
    /// What the source is told.
    pub(super) to_source: String,
    /// What the destination is told.
    pub(super) at_destination: String,
}

/// Little faster than the guest, which touches 16 MiB a second, so that it takes many passes to catch up with it.
fn brake() -> Value {
    json!({"max-bandwidth": 24u64 << 20, "downtime-limit": 1})
}

/// Slower than the guest, so that it never catches up with it. Postcopy is for such a guest, and has a pace of its own.
fn slower_than_the_guest() -> Value {
    json!({"max-bandwidth": 8u64 << 20, "downtime-limit": 1})
}

/// So fast and patient that it ends with the next pass.
pub(crate) fn open() -> Value {
    json!({"max-bandwidth": 16u64 << 30, "downtime-limit": 10_000})
}

/// Follows a migration at its source.
pub(crate) fn follow(vm: &mut Vm, mut hold: Option<Until>, deadline: Deadline) -> Run<Value> {
    let held = deadline.within(HOLD);
    // It may take a moment to leave the state in which it was told to go on.
    let mut is_told = false;
    loop {
        let reply = vm.query_migrate()?;
        let status = reply["status"].as_str().unwrap_or("none");
        if hold.as_ref().is_some_and(|hold| hold.is_met(&reply)) {
            hold = None;
            vm.set_parameters(open())?;
        }
        match (status, &hold) {
            ("completed", None) => return Ok(reply),
            ("completed", Some(Until { field, at_least })) => {
                let text = format!("completed before {field} reached {at_least}, so nothing was shown");
                return Err(Failure::new(Class::Failed, text).of(vm.label()));
            }
            ("failed" | "cancelled", _) => return Err(migration_failure(vm, &reply)),
            // It was told to wait here, and goes on when it is told so.
            ("pre-switchover", _) if !is_told => {
                is_told = true;
                vm.command("migrate-continue", json!({"state": "pre-switchover"}))?;
            }
            (_, Some(until)) => vm.pause(held, &until.to_string())?,
            (_, None) => vm.pause(deadline, &format!("the migration to complete (status {status})"))?,
        }
    }
}

/// Holds a migration back as long as it should be, and switches it to postcopy.
fn switch_to_postcopy(vm: &mut Vm, hold: Option<Until>, deadline: Deadline) -> Run<()> {
    let held = deadline.within(HOLD);
    while let Some(until) = &hold {
        let reply = vm.query_migrate()?;
        let is_over = matches!(reply["status"].as_str(), Some("completed" | "failed" | "cancelled"));
        if is_over || until.is_met(&reply) {
            break;
        }
        vm.pause(held, &until.to_string())?;
    }
    vm.command("migrate-start-postcopy", json!({})).map(drop)
}

/// Tells a source to pause when it has sent so much since it is in postcopy for the `number`-th time.
fn break_off(vm: &mut Vm, number: usize, bytes: u64, deadline: Deadline) -> Run<()> {
    let sent = Until { field: "ram.transferred".into(), at_least: 0 };
    let mut begin = None;
    loop {
        let reply = vm.query_migrate()?;
        let status = reply["status"].as_str().unwrap_or("none").to_owned();
        match &*status {
            "postcopy-active" if vm.times("postcopy-active") >= number => {
                let now = sent.value(&reply);
                if now >= *begin.get_or_insert(now) + bytes {
                    return vm.command("migrate-pause", json!({})).map(drop);
                }
            }
            "completed" | "failed" | "cancelled" => return Err(migration_failure(vm, &reply)),
            _ => {}
        }
        vm.pause(deadline, &format!("{bytes} bytes in postcopy (status {status})"))?;
    }
}

/// Whether `wanted` is in `way`, in its order.
fn goes_through(way: &[&str], wanted: &[&str]) -> bool {
    let mut way = way.iter();
    wanted.iter().all(|state| way.any(|been| been == state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_compared_in_its_order() {
        let way = ["setup", "active", "device", "completed"];
        assert!(goes_through(&way, &["active", "completed"]));
        assert!(goes_through(&way, &[]));
        for wanted in [&["device", "active"][..], &["pre-switchover"], &["active", "active"]] {
            assert!(!goes_through(&way, wanted), "{wanted:?}");
        }
    }
}
