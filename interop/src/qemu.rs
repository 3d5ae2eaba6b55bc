//! One stock QEMU: its command line, its process and its monitor.
//!
//! The virtual machine is as small as it can be and still be a real one: TCG, no default devices, main memory in a
//! shared file so that the judge can read it byte for byte from outside, and if a guest is asked for a disk whose boot
//! sector writes to memory for ever and a debug console that shows its progress.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::failure::{Class, Failure, Run};
use crate::peers::Peer;
use crate::process::{Deadline, Fate, Ledger, Process};
use crate::qmp::{Qmp, QmpError};

/// Patience for one QMP answer, where nothing else is said.
const ANSWER: Duration = Duration::from_secs(15);

/// From the start of the process to its first word on QMP.
const GREETING: Duration = Duration::from_secs(20);

/// `savevm` and `loadvm` do all their work before they answer.
const LONG_ANSWER: Duration = Duration::from_secs(60);

/// Between two questions to the same monitor; each makes two lines of a log.
const POLL: Duration = Duration::from_millis(20);

/// Numbers the sockets of this judge: their paths have to be short.
static SOCKETS: AtomicU64 = AtomicU64::new(0);

/// Where a process of a cell lives: its files, its sockets, the list it is entered in and its last moment.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    /// A folder with a short path: a UNIX socket address has room for 107 bytes.
    pub(crate) sockets: PathBuf,
    pub(crate) ledger: Ledger,
    pub(crate) deadline: Deadline,
}

/// What both ends of a migration must agree on.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) kind: String,
    /// Name of the main RAM block.
    pub(crate) ram_id: String,
    pub(crate) ram_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ram {
    /// No backend is named; for a build that is only asked questions.
    Default,
    /// Anonymous memory, for what needs userfaultfd write protection.
    Private,
    /// This file, shared.
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Disk {
    /// Written to a temporary overlay only.
    Raw(PathBuf),
    /// Written to; holds snapshots.
    Qcow2(PathBuf),
}

/// One virtual machine to start.
#[derive(Debug, Clone)]
pub(crate) struct VmSpec {
    pub(crate) machine: Machine,
    pub(crate) ram: Ram,
    pub(crate) disk: Option<Disk>,
    /// Where port 0xe9 goes.
    pub(crate) console: Option<PathBuf>,
    pub(crate) arguments: Vec<String>,
    /// Whether the guest runs from the beginning.
    pub(crate) running: bool,
    pub(crate) incoming: bool,
    pub(crate) load_snapshot: Option<String>,
    /// Patience for one QMP answer. A main loop that is silent for so long on an idle host is hung.
    pub(crate) answer: Duration,
}

impl VmSpec {
    /// A stopped machine without anything else.
    pub(crate) fn bare(machine: Machine) -> Self {
        Self {
            machine,
            ram: Ram::Default,
            disk: None,
            console: None,
            arguments: Vec::new(),
            running: false,
            incoming: false,
            load_snapshot: None,
            answer: ANSWER,
        }
    }

    fn command_line(&self, qmp: &Path) -> Vec<String> {
        let mut line: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| line.extend(words.iter().map(ToString::to_string));
        let Machine { kind, ram_id, ram_bytes } = &self.machine;
        // Machine types of 3.1 and older would call the block by the backend's path instead.
        let backend = format!("id={ram_id},size={ram_bytes},x-use-canonical-path-for-ramblock-id=off");
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"]);
        match &self.ram {
            Ram::Default => add(&["-machine", kind]),
            Ram::Private => {
                add(&["-object", &format!("memory-backend-ram,{backend}")]);
                add(&["-machine", &format!("{kind},memory-backend={ram_id}")]);
            }
            Ram::File(path) => {
                let path = option_value(path);
                add(&[
                    "-object",
                    &format!("memory-backend-file,{backend},share=on,mem-path={path}"),
                    "-machine",
                    &format!("{kind},memory-backend={ram_id}"),
                ]);
            }
        }
        add(&["-m", &format!("{}", ram_bytes >> 20)]);
        match &self.disk {
            None => {}
            // Machine `none` has no bus to put a disk on; a snapshot needs only the drive.
            Some(Disk::Qcow2(path)) if kind == "none" => {
                add(&["-drive", &format!("if=none,format=qcow2,file={}", option_value(path))]);
            }
            Some(Disk::Qcow2(path)) => {
                add(&["-drive", &format!("if=ide,format=qcow2,file={}", option_value(path))]);
            }
            Some(Disk::Raw(path)) => {
                add(&["-drive", &format!("if=ide,format=raw,snapshot=on,file={}", option_value(path))]);
            }
        }
        if let Some(path) = &self.console {
            add(&["-debugcon", &format!("file:{}", option_value(path))]);
        }
        if !self.running {
            add(&["-S"]);
        }
        if self.incoming {
            add(&["-incoming", "defer"]);
        }
        if let Some(name) = &self.load_snapshot {
            add(&["-loadvm", name]);
        }
        for argument in &self.arguments {
            add(&[argument]);
        }
        add(&["-qmp", &format!("unix:{},server=on,wait=off", option_value(qmp))]);
        line
    }
}

/// A running stock QEMU.
pub(crate) struct Vm {
    /// `source`: how its files are called.
    role: String,
    /// `source (7.2)`: how every message names it.
    label: String,
    process: Process,
    qmp: Qmp,
    deadline: Deadline,
}

impl Vm {
    pub(crate) fn start(role: &str, peer: &Peer, spec: &VmSpec, place: &Place) -> Run<Self> {
        let label = format!("{role} ({})", peer.name);
        let number = SOCKETS.fetch_add(1, Ordering::Relaxed);
        let socket = place.sockets.join(format!("{number}.qmp"));
        let arguments = spec.command_line(&socket);
        let mut process = Process::spawn(role, &peer.path, &arguments, &place.dir, &place.ledger)?;
        let patience = if spec.load_snapshot.is_some() { LONG_ANSWER } else { GREETING };
        let deadline = place.deadline.within(patience);
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if process.fate() != Fate::Running {
                return Err(process.obituary("starting").of(label));
            }
            if let Err(failure) = deadline.pause("its QMP socket") {
                return Err(Failure { class: hung(failure.class), ..failure }.of(label));
            }
        };
        // The address is not needed once it is connected, and the folder stays small.
        let _ = std::fs::remove_file(&socket);
        let log_name = format!("{role}.qmp");
        let log_path = place.dir.join(&log_name);
        let log = File::create(&log_path).map_err(|e| Failure::environment(log_path.display(), e))?;
        process.note_qmp(&log_name);
        match Qmp::open(stream, Box::new(log), ANSWER.max(deadline.remaining())) {
            Ok(mut qmp) => {
                qmp.set_timeout(spec.answer);
                Ok(Self { role: role.to_owned(), label, process, qmp, deadline: place.deadline })
            }
            Err(error) => Err(diagnose(&mut process, error).of(label)),
        }
    }

    pub(crate) fn role(&self) -> &str {
        &self.role
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// Runs a command that has to work.
    pub(crate) fn command(&mut self, name: &str, arguments: Value) -> Run<Value> {
        self.try_command(name, arguments)?
            .map_err(|words| Failure::new(Class::Refused, format!("refused {name}: {words}")).of(&self.label))
    }

    /// Runs a command that the peer may refuse; the inner error is what it said then.
    pub(crate) fn try_command(&mut self, name: &str, arguments: Value) -> Run<Result<Value, String>> {
        match self.qmp.command(name, arguments) {
            Ok(value) => Ok(Ok(value)),
            Err(QmpError::Refused { description, .. }) => Ok(Err(description)),
            Err(error) => Err(diagnose(&mut self.process, error).of(&self.label)),
        }
    }

    /// Runs a human-monitor command that is silent when it works.
    pub(crate) fn human(&mut self, line: &str) -> Run<()> {
        self.qmp.set_timeout(LONG_ANSWER);
        let answer = self.qmp.human(line);
        self.qmp.set_timeout(ANSWER);
        match answer {
            Ok(words) if words.is_empty() => Ok(()),
            Ok(words) | Err(QmpError::Refused { description: words, .. }) => {
                Err(Failure::new(Class::Refused, format!("refused {line}: {words}")).of(&self.label))
            }
            Err(error) => Err(diagnose(&mut self.process, error).of(&self.label)),
        }
    }

    /// Runs a human-monitor command that talks when it works; nobody but a reader of the log wants its words.
    pub(crate) fn chat(&mut self, line: &str) -> Run<()> {
        self.command("human-monitor-command", json!({"command-line": line})).map(drop)
    }

    pub(crate) fn set_capabilities(&mut self, names: &[String]) -> Run<()> {
        if names.is_empty() {
            return Ok(());
        }
        let list: Vec<Value> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
        self.command("migrate-set-capabilities", json!({"capabilities": list})).map(drop)
    }

    pub(crate) fn set_parameters(&mut self, parameters: Value) -> Run<()> {
        if parameters.as_object().is_none_or(serde_json::Map::is_empty) {
            return Ok(());
        }
        self.command("migrate-set-parameters", parameters).map(drop)
    }

    pub(crate) fn migrate(&mut self, uri: &str) -> Run<()> {
        self.command("migrate", json!({"uri": uri})).map(drop)
    }

    /// Takes up a migration that is paused in postcopy.
    pub(crate) fn resume_migration(&mut self, uri: &str) -> Run<()> {
        self.command("migrate", json!({"uri": uri, "resume": true})).map(drop)
    }

    /// Lets a deferred destination listen, and tells the address that a source can connect to.
    pub(crate) fn migrate_incoming(&mut self, uri: &str) -> Run<String> {
        self.command("migrate-incoming", json!({"uri": uri}))?;
        if !uri.starts_with("tcp:") {
            return Ok(uri.to_owned());
        }
        let deadline = self.deadline.within(ANSWER);
        loop {
            let reply = self.query_migrate()?;
            if let Some(address) = reply["socket-address"].as_array().and_then(|list| list.first()) {
                let word = |key| address[key].as_str().unwrap_or_default();
                return Ok(format!("tcp:{}:{}", word("host"), word("port")));
            }
            deadline.pause("its listening address").map_err(|failure| failure.of(&self.label))?;
        }
    }

    /// The states that its migrations went through, as far as it told with events.
    pub(crate) fn states(&self) -> impl Iterator<Item = &str> {
        let events = self.qmp.events().filter(|event| event["event"] == "MIGRATION");
        events.filter_map(|event| event["data"]["status"].as_str())
    }

    /// How often it was in this state, as far as it told.
    pub(crate) fn times(&self, state: &str) -> usize {
        self.states().filter(|told| *told == state).count()
    }

    pub(crate) fn query_migrate(&mut self) -> Run<Value> {
        self.command("query-migrate", json!({}))
    }

    /// `running`, `paused`, `inmigrate`, ..
    pub(crate) fn run_state(&mut self) -> Run<String> {
        let reply = self.command("query-status", json!({}))?;
        Ok(reply["status"].as_str().unwrap_or("unknown").to_owned())
    }

    pub(crate) fn cont(&mut self) -> Run<()> {
        self.command("cont", json!({})).map(drop)
    }

    pub(crate) fn stop(&mut self) -> Run<()> {
        self.command("stop", json!({})).map(drop)
    }

    /// One turn of a waiting loop: fails also when the peer is gone.
    pub(crate) fn pause(&mut self, deadline: Deadline, waiting_for: &str) -> Run<()> {
        if self.process.fate() != Fate::Running {
            return Err(self.process.obituary(&format!("waiting for {waiting_for}")).of(&self.label));
        }
        deadline.sleep(POLL, waiting_for).map_err(|failure| failure.of(&self.label))
    }

    /// How the process ended, if it did.
    pub(crate) fn fate(&mut self) -> Fate {
        self.process.fate()
    }

    pub(crate) fn last_words(&self) -> String {
        self.process.last_words()
    }

    /// Ends it in the polite way, so that a crash on the way out is seen.
    pub(crate) fn quit(mut self) -> Run<()> {
        // The reply and the end of the connection race; either is fine.
        match self.qmp.command("quit", json!({})) {
            Ok(_) | Err(QmpError::Closed { .. }) => {}
            Err(error) => return Err(diagnose(&mut self.process, error).of(&self.label)),
        }
        match self.process.wait(self.deadline.within(ANSWER)) {
            Ok(Fate::Exited(0)) => Ok(()),
            Ok(_) => Err(self.process.obituary("quitting").of(&self.label)),
            Err(failure) => Err(Failure { class: hung(failure.class), ..failure }.of(&self.label)),
        }
    }
}

/// Turns a failed exchange into what it means for the process at the other end.
fn diagnose(process: &mut Process, error: QmpError) -> Failure {
    match error {
        QmpError::Timeout { .. } => {
            process.kill();
            Failure::new(Class::Hung, format!("hung: {error}; killed"))
        }
        QmpError::Closed { ref doing } => {
            // The socket closes a moment before the process can be reaped.
            let _ = process.wait(Deadline::after(Duration::from_secs(5)));
            process.obituary(&format!("answering {doing}"))
        }
        QmpError::Interrupted => Failure::new(Class::Interrupted, "interrupted"),
        QmpError::Refused { .. } => Failure::new(Class::Refused, error.to_string()),
        QmpError::Garbage { .. } | QmpError::Io { .. } => Failure::new(Class::Failed, error.to_string()),
    }
}

/// A peer that does not even come up or go down in time is hung, not merely slow.
fn hung(class: Class) -> Class {
    if class == Class::Stuck { Class::Hung } else { class }
}

/// A path inside a QEMU option, where a comma has to be doubled.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: impl FnOnce(&mut VmSpec)) -> String {
        let machine = Machine { kind: "pc-q35-5.2".into(), ram_id: "pc.ram".into(), ram_bytes: 32 << 20 };
        let mut spec = VmSpec::bare(machine);
        change(&mut spec);
        spec.command_line(Path::new("/s/0.qmp")).join(" ")
    }

    #[test]
    fn memory_is_a_shared_file_with_the_default_block_name() {
        let line = line(|spec| spec.ram = Ram::File("/a,b/ram".into()));
        assert!(
            line.contains("memory-backend-file,id=pc.ram,size=33554432,")
                && line.contains("share=on,mem-path=/a,,b/ram"),
            "{line}"
        );
        assert!(line.contains("-machine pc-q35-5.2,memory-backend=pc.ram"), "{line}");
        assert!(line.contains("-S"), "{line}");
    }

    #[test]
    fn a_destination_waits_for_its_orders() {
        let line = line(|spec| spec.incoming = true);
        assert!(line.contains("-incoming defer"), "{line}");
    }

    #[test]
    fn what_does_not_start_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let peer =
            Peer { name: "broken".into(), path: "/bin/false".into(), about: String::new(), given: true };
        let place = Place {
            dir: dir.path().into(),
            sockets: dir.path().into(),
            ledger: Ledger::default(),
            deadline: Deadline::after(Duration::from_secs(10)),
        };
        let machine = Machine { kind: "none".into(), ram_id: "ram".into(), ram_bytes: 1 << 20 };
        let Err(failure) = Vm::start("source", &peer, &VmSpec::bare(machine), &place) else {
            panic!("/bin/false is no QEMU");
        };
        assert_eq!(failure.class, Class::Failed);
        assert_eq!(failure.text, "source (broken): exited with status 1 while starting: it said nothing");
    }
}
