//! The steps that cells are made of: a source, a destination, a migration followed at both ends, a comparison.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{Bench, bitmaps};
use crate::cases::{Guest, Kind};
use crate::failure::{Class, Failure, Run};
use crate::guest;
use crate::peers::Peer;
use crate::process::Fate;
use crate::qemu::{Disk, Ram, Vm, VmSpec};
use crate::ram;
use crate::tool::{Tool, ToolProcess};
use crate::variant::Settings;

/// Once the source is done, the destination has only its last bytes to load.
const ARRIVAL: Duration = Duration::from_secs(15);

/// A destination is asked for its side of a failure, but not for long.
const AUTOPSY: Duration = Duration::from_secs(3);

/// From power-on, or from `cont`, to the next sign of life of the guest.
const SIGN_OF_LIFE: Duration = Duration::from_secs(25);

/// Patience for one QMP answer of a peer that is expected to hang.
const SHORT_ANSWER: Duration = Duration::from_secs(4);

/// A file system in memory.
const TMPFS: &str = "/dev/shm";

/// Offset and length of memory that neither the guest nor its firmware uses.
const UNTOUCHED: (u64, u64) = (10 << 20, 1 << 20);

/// What memory holds at a destination before anything arrives: a byte that nobody sent stays visible.
const UNWRITTEN: u8 = 0xa5;

impl Bench<'_> {
    pub(super) fn peer(&self, name: &str) -> Run<&Peer> {
        let build = self.env.inventory.builds.get(name);
        build
            .map(|build| &build.peer)
            .ok_or_else(|| Failure::new(Class::Environment, format!("unknown peer {name}")))
    }

    pub(super) fn tool(&self) -> &Tool {
        &self.env.inventory.tool
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.dir.join(name)
    }

    /// A file of this cell, as a word for a command line.
    pub(super) fn word(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// A short address for a UNIX socket of this cell.
    pub(super) fn unix_address(&self) -> String {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        format!("unix:{}", self.place.sockets.join(format!("{number}.sock")).display())
    }

    /// A number that differs from cell to cell and not from run to run.
    pub(super) fn seed(&self) -> u64 {
        self.cell
            .id()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    /// The guest writes to its memory, so the source never has nothing to do.
    pub(super) fn dirtying(&self) -> bool {
        self.cell.case.guest == Guest::Dirty
    }

    pub(super) fn spec(&self, role: &str, build: &str, ram: Ram, side: &Settings) -> VmSpec {
        let case = &self.cell.case;
        let mut spec = VmSpec::bare(self.setup.machine.clone());
        spec.ram = ram;
        spec.arguments =
            self.cell.case.variant.both.arguments.iter().chain(&side.arguments).cloned().collect();
        let is_bad = case.variant.expectation(&self.cell.source, &self.cell.destination).is_some();
        if is_bad || case.kind == Kind::Trouble {
            // It is expected to hang, perhaps; nobody has to wait for long to see that.
            spec.answer = SHORT_ANSWER;
        }
        if case.variant.bitmaps {
            spec.arguments.extend(bitmaps::arguments());
        }
        let is_source = build == self.cell.source;
        let globals = if is_source { &self.setup.source_globals } else { &self.setup.destination_globals };
        for property in globals {
            spec.arguments.extend([String::from("-global"), property.clone()]);
        }
        if self.dirtying() {
            spec.disk = Some(Disk::Raw(self.env.boot_disk.clone()));
            spec.console = Some(self.path(&format!("{role}.console")));
        }
        spec
    }

    /// Sets what the case wants at one end.
    pub(super) fn configure(&self, vm: &mut Vm, side: &Settings, more: &[&str]) -> Run<()> {
        let both = &self.cell.case.variant.both;
        // States may pass between two questions, so each is told of as well.
        let mut capabilities = vec![String::from("events")];
        capabilities.extend(more.iter().map(ToString::to_string));
        capabilities.extend(both.capabilities.iter().chain(&side.capabilities).cloned());
        vm.set_capabilities(&capabilities)?;
        let mut parameters = both.parameters.clone();
        parameters.extend(side.parameters.clone());
        vm.set_parameters(Value::Object(parameters))
    }

    /// A source with its guest at work, or with memory full of patterns, ready to `migrate`.
    pub(super) fn source(&self) -> Run<Vm> {
        self.source_as("source")
    }

    /// The same under another name, for a cell with more than one. Its memory is `ROLE.ram`.
    pub(super) fn source_as(&self, role: &str) -> Run<Vm> {
        let case = &self.cell.case;
        let build = &self.cell.source;
        let memory = self.path(&format!("{role}.ram"));
        self.fill(&memory)?;
        let side = &case.variant.source;
        let mut spec = self.spec(role, build, Ram::File(memory), side);
        spec.running = self.dirtying();
        let mut vm = Vm::start(role, self.peer(build)?, &spec, &self.place)?;
        self.configure(&mut vm, side, if case.return_path { &["return-path"] } else { &[] })?;
        if self.dirtying() {
            self.sign_of_life(&mut vm, 0)?;
        }
        if case.variant.bitmaps {
            self.make_bitmaps(&mut vm)?;
        }
        if self.releases() {
            let (memory, copy) = (self.path("source.ram"), self.sent_by(role));
            std::fs::copy(&memory, &copy).map_err(|e| Failure::environment(copy.display(), e))?;
        }
        Ok(vm)
    }

    /// Whether the source gives its memory away while it sends it.
    fn releases(&self) -> bool {
        self.cell.case.variant.source_has("release-ram")
    }

    /// The image of what the source of this name had to send.
    pub(super) fn sent_by(&self, role: &str) -> PathBuf {
        if self.releases() { self.path("before.ram") } else { self.path(&format!("{role}.ram")) }
    }

    /// A source that releases its memory has less of it in the end.
    pub(super) fn check_release(&self) -> Run<()> {
        use std::os::unix::fs::MetadataExt as _;
        if !self.releases() {
            return Ok(());
        }
        let memory = self.path("source.ram");
        let metadata = std::fs::metadata(&memory).map_err(|e| Failure::environment(memory.display(), e))?;
        // Blocks are of 512 bytes, whatever the file system's are.
        let (held, all) = (metadata.blocks() * 512, metadata.len());
        if held > all - all / 8 {
            let text = format!(
                "the source still has {held} of {all} bytes, although it was to release what it sent"
            );
            return Err(Failure::new(Class::Failed, text));
        }
        Ok(())
    }

    /// Memory of a machine that has not sent anything yet.
    pub(super) fn fill(&self, memory: &Path) -> Run<()> {
        let bytes = self.setup.machine.ram_bytes;
        let filled = if self.dirtying() {
            let filled = ram::fill_byte(memory, bytes, 0);
            // Something that the guest never touches: sent once, before the switch or after it.
            let (at, length) = UNTOUCHED;
            let put = |()| ram::put_mixed(memory, at, length, self.seed());
            if self.cell.case.variant.postcopy { filled.and_then(put) } else { filled }
        } else {
            ram::fill_mixed(memory, bytes, self.seed())
        };
        filled.map_err(|e| Failure::environment(memory.display(), e))
    }

    /// A destination that waits for its orders, stopped, with memory in which every missing byte shows.
    ///
    /// `like` is the image that it must share if the stream leaves memory out.
    pub(super) fn destination(&self, like: &Path) -> Run<Vm> {
        self.destination_as("destination", &self.cell.destination, &self.cell.case.variant.destination, like)
    }

    /// The same under another name, of another build, with other settings. Its memory is `ROLE.ram`.
    pub(super) fn destination_as(&self, role: &str, build: &str, side: &Settings, like: &Path) -> Run<Vm> {
        let case = &self.cell.case;
        let memory = self.path(&format!("{role}.ram"));
        let has = |name: &str| case.variant.both.has(name) || side.has(name);
        if has("postcopy-ram") {
            self.move_to_memory(&memory)?;
        }
        let filled = if case.variant.shared_ram {
            std::fs::copy(like, &memory).map(drop)
        } else {
            let unwritten = if self.setup.zero_pages_in_packets && has("multifd") { 0 } else { UNWRITTEN };
            ram::fill_byte(&memory, self.setup.machine.ram_bytes, unwritten)
        };
        filled.map_err(|e| Failure::environment(memory.display(), e))?;
        let mut spec = self.spec(role, build, Ram::File(memory), side);
        spec.incoming = true;
        spec.running = case.variant.running;
        let mut vm = Vm::start(role, self.peer(build)?, &spec, &self.place)?;
        self.configure(&mut vm, side, &[])?;
        Ok(vm)
    }

    /// Puts a link at `path` to a new file in a file system in memory: userfaultfd takes no other.
    fn move_to_memory(&self, path: &Path) -> Run<()> {
        let failed = |e| Failure::environment(format!("{TMPFS}, which postcopy needs"), e);
        let file = tempfile::Builder::new().prefix("migwire-").tempfile_in(TMPFS).map_err(failed)?;
        let file = file.into_temp_path();
        std::os::unix::fs::symlink(&file, path).map_err(failed)?;
        self.scratch.borrow_mut().push(file);
        Ok(())
    }

    /// Waits until the destination has loaded everything and says so. Its word counts, not the source's.
    pub(super) fn arrival(&self, vm: &mut Vm, source_is_done: bool) -> Run<()> {
        let patience = if source_is_done { ARRIVAL } else { AUTOPSY };
        let deadline = self.place.deadline.within(patience);
        loop {
            let reply = vm.query_migrate()?;
            let status = reply["status"].as_str().unwrap_or("none").to_owned();
            let state = vm.run_state()?;
            match &*status {
                "completed" if state != "inmigrate" => return Ok(()),
                "failed" | "cancelled" => return Err(migration_failure(vm, &reply)),
                _ => {}
            }
            let waiting = format!("the destination to load everything (status {status}, {state})");
            vm.pause(deadline, &waiting)?;
        }
    }

    /// Main memory of both ends, byte for byte.
    pub(super) fn compare(&self, left: &Path, right: &Path) -> Run<()> {
        match ram::compare(&self.setup.machine.ram_id, left, right) {
            Ok(None) => Ok(()),
            Ok(Some(difference)) => Err(Failure::new(Class::Mismatch, difference.to_string())),
            Err(e) => Err(Failure::environment("compare memory", e)),
        }
    }

    /// Looks at a destination that has everything: what it says, its memory, and whether its guest goes on.
    pub(super) fn inspect(&self, vm: &mut Vm, sent: &Path) -> Run<()> {
        let variant = &self.cell.case.variant;
        let received = self.path(&format!("{}.ram", vm.role()));
        if let Some(shows) = &variant.shows {
            let reply = vm.query_migrate()?;
            if !shows.is_met(&reply) {
                let text = format!(
                    "{} is {}, and must be {} or more",
                    shows.field,
                    shows.value(&reply),
                    shows.at_least
                );
                return Err(Failure::new(Class::Failed, text).of(vm.label()));
            }
        }
        if vm.times("postcopy-paused") != variant.cut.len()
            || vm.times("postcopy-recover") != variant.cut.len()
        {
            let way = vm.states().collect::<Vec<_>>().join(", ");
            let text = format!("{} breaks, but it went through {way}", variant.cut.len());
            return Err(Failure::new(Class::Failed, text).of(vm.label()));
        }
        if !variant.running {
            self.compare(sent, &received).map_err(|failure| self.keep(&received, failure))?;
            return self.resume(vm);
        }
        let before = self.console_length(vm);
        self.sign_of_life(vm, before)?;
        vm.stop()?;
        match guest::compare(sent, &received) {
            Ok(Ok(_passes)) => Ok(()),
            Ok(Err(text)) => Err(self.keep(&received, Failure::new(Class::Mismatch, text))),
            Err(e) => Err(Failure::environment("compare memory", e)),
        }
    }

    /// Puts a copy of an image in the place of a link to it: what a mismatch is about should be there when it is looked at.
    fn keep(&self, image: &Path, failure: Failure) -> Failure {
        let copy = self.path("copy");
        // What cannot be kept is missed by its reader; the verdict stands.
        let _ = std::fs::copy(image, &copy).and_then(|_| std::fs::rename(&copy, image));
        failure
    }

    /// Lets a loaded guest run, and sees it at work.
    pub(super) fn resume(&self, vm: &mut Vm) -> Run<()> {
        if !self.dirtying() {
            return Ok(());
        }
        let before = self.console_length(vm);
        vm.cont()?;
        self.sign_of_life(vm, before)?;
        match vm.run_state()? {
            state if state == "running" => vm.stop(),
            state => Err(Failure::new(Class::Failed, format!("resumed, and then {state}")).of(vm.label())),
        }
    }

    /// Waits until the guest has written a few characters more than `before`.
    pub(super) fn sign_of_life(&self, vm: &mut Vm, before: u64) -> Run<()> {
        let deadline = self.place.deadline.within(SIGN_OF_LIFE);
        while self.console_length(vm) < before + 2 {
            if let Err(failure) = vm.pause(deadline, "the guest to write to its debug console") {
                // A silent guest in a QEMU that answers is another finding than a QEMU that is hung.
                let state = if vm.fate() == Fate::Running { vm.run_state()? } else { return Err(failure) };
                return Err(Failure { text: format!("{} ({state})", failure.text), ..failure });
            }
        }
        Ok(())
    }

    /// How much a guest has written to its debug console.
    pub(super) fn console_length(&self, vm: &Vm) -> u64 {
        let console = self.path(&format!("{}.console", vm.role()));
        std::fs::metadata(console).map_or(0, |metadata| metadata.len())
    }

    /// Has the command parse, emit and compare a file. Only `identical` in every channel will do.
    pub(super) fn verify(&self, file: &str) -> Run<()> {
        let arguments = ["verify", &self.word(file), "--json"].map(String::from);
        let mut process = ToolProcess::spawn(self.tool(), "verify", &arguments, &self.place)?;
        let report = process.finish(self.place.deadline)?;
        let variant = &self.cell.case.variant;
        // Bitmaps alone are postcopy too, with all memory before the switch.
        let is_whole = variant.postcopy && variant.source_has("postcopy-ram");
        check_verified(&report)
            .and_then(|()| if is_whole { check_whole(&report) } else { Ok(()) })
            .map_err(|text| Failure::new(Class::Mismatch, format!("verify: {text}")))
    }

    /// Options with which every migwire process ends in time and reports.
    pub(super) fn bounds(&self) -> Vec<String> {
        let seconds = self.place.deadline.remaining().as_secs().max(1).to_string();
        ["--timeout", "20", "--deadline", &seconds, "--json"].map(String::from).to_vec()
    }
}

/// What a peer says about its failed migration: its error, or else its last words.
pub(super) fn migration_failure(vm: &mut Vm, reply: &Value) -> Failure {
    let status = reply["status"].as_str().unwrap_or("failed");
    let mut text = format!("migration {status}");
    if let Some(words) = reply["error-desc"].as_str() {
        text = format!("{text}: {words}");
    }
    let words = vm.last_words();
    if !words.is_empty() {
        text = format!("{text} [{words}]");
    }
    let class = if matches!(vm.fate(), Fate::Signalled(_)) { Class::Crashed } else { Class::Failed };
    Failure::new(class, text).of(vm.label())
}

/// Whether a report of `migwire verify` is worth a pass: something was there, and all of it came out the same.
fn check_verified(report: &Value) -> Result<(), String> {
    let channels = report["channels"].as_array().map(Vec::as_slice).unwrap_or_default();
    for channel in channels {
        if channel["verdict"] != "identical" {
            let error = &channel["error"]["text"];
            return Err(format!("channel {}: {}: {error}", channel["channel"], channel["verdict"]));
        }
    }
    if report["verdict"] != "identical" {
        return Err(format!("verdict {}: {}", report["verdict"], crate::tool::error_text(report)));
    }
    if !channels.iter().any(|channel| channel["sections"].as_u64() > Some(0)) {
        return Err(String::from("no channel with a section in it"));
    }
    Ok(())
}

/// Whether the recording of a migration in postcopy has every page.
fn check_whole(report: &Value) -> Result<(), String> {
    let postcopy = &report["postcopy"];
    match postcopy["missing"] == 0 && postcopy["complete"] == true {
        true => Ok(()),
        false => Err(format!("not all of it is in the recording: postcopy {postcopy}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn channel(verdict: &str, sections: u64) -> Value {
        json!({"channel": "main", "verdict": verdict, "sections": sections, "error": null})
    }

    #[test]
    fn only_identical_and_not_empty_is_verified() {
        let report = |verdict: &str, channels: &[Value]| json!({"verdict": verdict, "channels": channels});
        assert_eq!(
            check_verified(&report("identical", &[channel("identical", 9), channel("identical", 0)])),
            Ok(())
        );
        let bad = [
            report("identical", &[]),
            report("identical", &[channel("identical", 0)]),
            report("identical", &[channel("identical", 9), channel("different", 0)]),
            report("different", &[channel("identical", 9)]),
            json!({"verdict": "identical"}),
            json!({}),
        ];
        for report in bad {
            assert!(check_verified(&report).is_err(), "{report}");
        }
        let whole = |missing: u64, complete: bool| {
            check_whole(&json!({"postcopy": {"missing": missing, "complete": complete}}))
        };
        assert_eq!(whole(0, true), Ok(()));
        assert!(whole(1, true).is_err() && whole(0, false).is_err() && check_whole(&json!({})).is_err());
    }
}
