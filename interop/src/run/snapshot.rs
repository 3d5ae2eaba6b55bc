//! Snapshots: into a qcow2 image with the guest stopped, and into a file while it runs.

use super::{Bench, TOOL_END};
use crate::cases::Transport;
use crate::disk;
use crate::failure::{Failure, Run};
use crate::process::quote;
use crate::qemu::{Disk, Ram, Vm};
use crate::ram;
use crate::run::{follow, open};
use crate::variant::Settings;

/// Name of the snapshot in the image.
const NAME: &str = "interop";

/// `savevm`, a look at the image by migwire, and `-loadvm` in a fresh process.
pub(super) fn savevm(bench: &Bench<'_>) -> Run<()> {
    let image = bench.path("disk.qcow2");
    let boot = bench.env.inventory.boot.as_deref().unwrap_or_default();
    disk::write_qcow2(&image, boot).map_err(|e| Failure::environment(image.display(), e))?;

    let before = bench.path("source.ram");
    bench.fill(&before)?;
    let mut spec = bench.spec("source", &bench.cell.source, Ram::File(before.clone()), &Settings::default());
    spec.disk = Some(Disk::Qcow2(image.clone()));
    spec.running = bench.dirtying();
    let mut source = Vm::start("source", bench.peer(&bench.cell.source)?, &spec, &bench.place)?;
    if bench.dirtying() {
        bench.sign_of_life(&mut source, 0)?;
        source.stop()?;
    }
    source.human(&format!("savevm {NAME}"))?;
    source.quit()?;
    bench.verify("disk.qcow2")?;

    let after = bench.path("destination.ram");
    ram::fill_byte(&after, bench.setup.machine.ram_bytes, 0xa5)
        .map_err(|e| Failure::environment(after.display(), e))?;
    let mut spec =
        bench.spec("destination", &bench.cell.destination, Ram::File(after.clone()), &Settings::default());
    spec.disk = Some(Disk::Qcow2(image));
    spec.load_snapshot = Some(NAME.into());
    let mut destination =
        Vm::start("destination", bench.peer(&bench.cell.destination)?, &spec, &bench.place)?;
    bench.compare(&before, &after)?;
    bench.resume(&mut destination)?;
    destination.quit()
}

/// `background-snapshot` into a file, a look at the file by migwire, and a fresh process that loads and runs it.
///
/// The guest goes on while its memory is saved, so there is no moment at which both could be compared.
pub(super) fn background(bench: &Bench<'_>) -> Run<()> {
    let stream = bench.word("stream");
    let (out, back) = match bench.cell.case.transport {
        Transport::File => (format!("file:{stream}"), format!("file:{stream}")),
        _ => (format!("exec:cat > {}", quote(&stream)), format!("exec:cat {}", quote(&stream))),
    };
    let side = &bench.cell.case.variant.source;
    let mut spec = bench.spec("source", &bench.cell.source, Ram::Private, side);
    spec.running = true;
    let mut source = Vm::start("source", bench.peer(&bench.cell.source)?, &spec, &bench.place)?;
    bench.configure(&mut source, side, &["background-snapshot"])?;
    bench.sign_of_life(&mut source, 0)?;
    source.set_parameters(open())?;
    source.migrate(&out)?;
    follow(&mut source, None, bench.place.deadline.within(TOOL_END))?;
    let state = source.run_state()?;
    if state != "running" {
        let text = format!("a background snapshot leaves the guest running, not {state}");
        return Err(Failure::new(crate::failure::Class::Failed, text).of(source.label()));
    }
    source.quit()?;
    bench.verify("stream")?;

    let side = &bench.cell.case.variant.destination;
    let mut spec = bench.spec("destination", &bench.cell.destination, Ram::Private, side);
    spec.incoming = true;
    let mut destination =
        Vm::start("destination", bench.peer(&bench.cell.destination)?, &spec, &bench.place)?;
    destination.migrate_incoming(&back)?;
    bench.arrival(&mut destination, true)?;
    bench.resume(&mut destination)?;
    destination.quit()
}
