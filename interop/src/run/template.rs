//! Recorded streams for the stand-in source to follow: one for each build, machine and guest, made when first needed.
//!
//! A stand-in source knows no device. It sends the device state that the build itself once wrote, so the template comes
//! from the very build that will load it, recorded in the same run. A template that could not be made is not tried
//! again: every cell that needs it gets the same reason.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Bench;
use crate::cases::Case;
use crate::failure::{Failure, Run};
use crate::process::{Deadline, Ledger, quote};
use crate::qemu::{Place, Ram, Vm};
use crate::ram;

/// For booting the guest and writing a file.
const PATIENCE: Duration = Duration::from_secs(60);

/// The templates of one run.
#[derive(Debug, Default)]
pub(crate) struct Templates(Mutex<BTreeMap<String, Slot>>);

/// Locked while its template is being made, so two cells do not make the same one.
type Slot = Arc<Mutex<Option<Run<PathBuf>>>>;

impl Templates {
    /// The template that this cell needs.
    pub(super) fn get(&self, bench: &Bench<'_>) -> Run<PathBuf> {
        let case = &bench.cell.case;
        let mut key = format!("{}.{}.{}", bench.cell.destination, bench.setup.machine.kind, case.guest);
        if !case.variant.name.is_empty() && !case.variant.plain_template {
            key = format!("{key}.{}", case.variant.name);
        }
        let slot = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(key.clone()).or_default())
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let record =
            || record(bench, &key).map_err(|failure| failure.of(format!("recording templates/{key}")));
        slot.get_or_insert_with(record).clone()
    }

    /// Removes the streams, which are big; the logs of how they were made stay.
    pub(crate) fn remove(&self) {
        for slot in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            if let Some(Ok(path)) = &*slot.lock().unwrap_or_else(PoisonError::into_inner) {
                // What cannot be removed costs space and nothing else.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn record(bench: &Bench<'_>, key: &str) -> Run<PathBuf> {
    let dir = bench.env.out.join("templates").join(key);
    std::fs::create_dir_all(&dir).map_err(|e| Failure::environment(dir.display(), e))?;
    // Its own time and its own list: the cell that happens to come first must not pay for all.
    let place = Place {
        dir: dir.clone(),
        sockets: bench.place.sockets.clone(),
        ledger: Ledger::default(),
        deadline: Deadline::after(PATIENCE),
    };
    let mut cell = bench.cell.clone();
    if cell.case.variant.plain_template {
        cell.case = Arc::new(Case { variant: Arc::default(), ..Case::clone(&cell.case) });
    }
    let setup = bench.setup.clone();
    let (env, scratch, found) = (bench.env, RefCell::default(), RefCell::default());
    let bench = Bench { place, setup, env, cell: &cell, scratch, found };
    let side = &cell.case.variant.source;
    let memory = dir.join("source.ram");
    // An idle template is sent with other memory in place of its own, so its own may be empty.
    ram::fill_byte(&memory, bench.setup.machine.ram_bytes, 0)
        .map_err(|e| Failure::environment(memory.display(), e))?;
    let mut spec = bench.spec("source", &cell.destination, Ram::File(memory.clone()), side);
    spec.running = bench.dirtying();
    let mut vm = Vm::start("source", bench.peer(&bench.cell.destination)?, &spec, &bench.place)?;
    bench.configure(&mut vm, side, &[])?;
    if bench.dirtying() {
        bench.sign_of_life(&mut vm, 0)?;
    }
    let file = dir.join("stream");
    bench.migrate(&mut vm, &format!("exec:cat > {}", quote(&file.to_string_lossy())))?;
    vm.quit()?;
    // Only the stream is wanted.
    let _ = std::fs::remove_file(&memory);
    Ok(file)
}
