//! Child processes that cannot be lost: own process group, output into files, killed and reaped on every path.
//!
//! ```text
//! spawn -> running -> wait (exit code, signal)          -> reaped
//!                  \-> drop, panic, interrupt, deadline -> group killed, reaped
//! ```
//!
//! The process *group* is what is killed, because a QEMU with an `exec:` channel has children of its own. Every
//! process writes its fate into the cell's [`Ledger`], so the report can name it even when the cell failed early.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use crate::failure::{Class, Failure, Run};

/// Between two looks at something that is not there yet.
const PAUSE: Duration = Duration::from_millis(10);

/// Lines of a peer's last words that go into a reason; the whole text stays in its file.
const LAST_WORDS: usize = 3;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Groups to kill when there is no time left for destructors.
static LIVE: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Whether the judge was told to stop. Every wait of the judge looks here.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Asks every running cell to stop: they kill and reap what they started.
pub(crate) fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Kills every process group of this judge. For the second Ctrl-C, when destructors will not run.
pub(crate) fn kill_all() {
    for group in LIVE.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        signal_group(*group, Signal::KILL);
    }
}

/// A moment by which something must have happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// This deadline, or one `time` from now if that is sooner.
    pub(crate) fn within(self, time: Duration) -> Self {
        Self(self.0.min(Instant::now() + time))
    }

    pub(crate) fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// One turn of a waiting loop: sleeps a little, fails when it is too late or the judge was interrupted.
    pub(crate) fn pause(self, waiting_for: &str) -> Run<()> {
        self.sleep(PAUSE, waiting_for)
    }

    /// The same with another length of the turn.
    pub(crate) fn sleep(self, turn: Duration, waiting_for: &str) -> Run<()> {
        if interrupted() {
            return Err(Failure::new(Class::Interrupted, "interrupted"));
        }
        if self.remaining().is_zero() {
            return Err(Failure::new(Class::Stuck, format!("gave up waiting for {waiting_for}")));
        }
        std::thread::sleep(turn.min(self.remaining()));
        Ok(())
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fate {
    Running,
    Exited(i32),
    /// Died of this signal, which the judge did not send.
    Signalled(i32),
    /// Killed by the judge.
    Killed,
}

/// What the report keeps of one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    pub(crate) name: String,
    /// The command line, quoted for a shell.
    pub(crate) command: String,
    /// File names relative to the cell's directory.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) qmp: Option<String>,
    pub(crate) fate: Fate,
}

/// All processes of one cell, in the order of their start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<ProcessRecord>>>);

impl Ledger {
    pub(crate) fn records(&self) -> Vec<ProcessRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a process; the answer is its place in the list.
    pub(crate) fn enter(&self, record: ProcessRecord) -> usize {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        records.push(record);
        records.len() - 1
    }

    pub(crate) fn change(&self, index: usize, change: impl FnOnce(&mut ProcessRecord)) {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = records.get_mut(index) {
            change(record);
        }
    }
}

/// A running child and its process group.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    group: i32,
    fate: Fate,
    stdout: PathBuf,
    stderr: PathBuf,
    ledger: Ledger,
    index: usize,
}

impl Process {
    /// Starts `program` with its output in `dir/<name>.stdout` and `dir/<name>.stderr`.
    pub(crate) fn spawn(
        name: &str,
        program: &Path,
        arguments: &[String],
        dir: &Path,
        ledger: &Ledger,
    ) -> Run<Self> {
        let (out_name, err_name) = (format!("{name}.stdout"), format!("{name}.stderr"));
        let (stdout, stderr) = (dir.join(&out_name), dir.join(&err_name));
        let create = |path: &Path| {
            File::create(path).map_err(|e| Failure::environment(format!("create {}", path.display()), e))
        };
        let command_line = shell_line(program, arguments);
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            .process_group(0)
            .spawn()
            .map_err(|e| Failure::environment(format!("start {}", program.display()), e))?;
        let group = child.id().cast_signed();
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
        let index = ledger.enter(ProcessRecord {
            name: name.to_owned(),
            command: command_line,
            stdout: out_name,
            stderr: err_name,
            qmp: None,
            fate: Fate::Running,
        });
        let ledger = ledger.clone();
        Ok(Self { name: name.to_owned(), child, group, fate: Fate::Running, stdout, stderr, ledger, index })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn stdout(&self) -> &Path {
        &self.stdout
    }

    pub(crate) fn stderr(&self) -> &Path {
        &self.stderr
    }

    /// Tells the report where this process's QMP log is.
    pub(crate) fn note_qmp(&self, file: &str) {
        self.ledger.change(self.index, |record| record.qmp = Some(file.to_owned()));
    }

    /// How it ended, if it did.
    pub(crate) fn fate(&mut self) -> Fate {
        if self.fate == Fate::Running
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.settle(fate_of(status));
        }
        self.fate
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, deadline: Deadline) -> Run<Fate> {
        loop {
            match self.fate() {
                Fate::Running => deadline.pause(&format!("{} to exit", self.name))?,
                fate => return Ok(fate),
            }
        }
    }

    /// Asks it to end, as Ctrl-C does.
    pub(crate) fn interrupt(&mut self) {
        if self.fate() == Fate::Running {
            signal_group(self.group, Signal::INT);
        }
    }

    /// Kills the whole group and reaps the child. Harmless when it is over already.
    pub(crate) fn kill(&mut self) {
        if self.fate() == Fate::Running {
            signal_group(self.group, Signal::KILL);
            // An error means that somebody reaped the child for us; nothing is left to do then.
            let _ = self.child.wait();
            self.settle(Fate::Killed);
        }
    }

    /// The last lines it wrote to stderr, as one line.
    pub(crate) fn last_words(&self) -> String {
        last_lines(&self.stderr)
    }

    /// The failure that its death means.
    pub(crate) fn obituary(&mut self, doing: &str) -> Failure {
        let words = match self.last_words() {
            words if words.is_empty() => String::from("it said nothing"),
            words => words,
        };
        match self.fate() {
            Fate::Signalled(signal) => {
                Failure::new(Class::Crashed, format!("died of signal {signal} while {doing}: {words}"))
            }
            Fate::Exited(code) => {
                Failure::new(Class::Failed, format!("exited with status {code} while {doing}: {words}"))
            }
            Fate::Killed => Failure::new(Class::Stuck, format!("was killed while {doing}: {words}")),
            Fate::Running => {
                Failure::new(Class::Failed, format!("closed its connection while {doing}: {words}"))
            }
        }
    }

    fn settle(&mut self, fate: Fate) {
        // Grandchildren outlive their leader. They are killed now and not later, because the number of an empty
        // group may be given to somebody else.
        signal_group(self.group, Signal::KILL);
        self.fate = fate;
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.group);
        self.ledger.change(self.index, |record| record.fate = fate);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command line as a person would type it.
pub(crate) fn shell_line(program: &Path, arguments: &[String]) -> String {
    let mut line = quote(&program.to_string_lossy());
    for argument in arguments {
        line.push(' ');
        line.push_str(&quote(argument));
    }
    line
}

/// One word, quoted for a POSIX shell if it needs to be.
pub(crate) fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./,:=@%+".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The last few lines of a text file, joined; empty if there are none.
pub(crate) fn last_lines(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(4096)..];
    let text = String::from_utf8_lossy(tail);
    // What the judge itself waited for is no news.
    let news = |line: &&str| !line.is_empty() && !line.starts_with("listening on ");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(news).collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].join(" | ")
}

fn fate_of(status: ExitStatus) -> Fate {
    match (status.code(), status.signal()) {
        (Some(code), _) => Fate::Exited(code),
        (None, Some(signal)) => Fate::Signalled(signal),
        (None, None) => Fate::Exited(-1),
    }
}

fn signal_group(group: i32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group) {
        // ESRCH: the group is gone, which is what was wanted.
        let _ = kill_process_group(group, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, dir: &Path, ledger: &Ledger) -> Process {
        Process::spawn("sh", Path::new("/bin/sh"), &["-c".into(), script.into()], dir, ledger).unwrap()
    }

    #[test]
    fn exit_code_and_output_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::default();
        let mut process = sh("echo data; echo talk >&2; exit 7", dir.path(), &ledger);
        let fate = process.wait(Deadline::after(Duration::from_secs(10))).unwrap();
        assert_eq!(fate, Fate::Exited(7));
        assert_eq!(std::fs::read_to_string(process.stdout()).unwrap(), "data\n");
        assert_eq!(process.last_words(), "talk");
        assert_eq!(ledger.records()[0].fate, Fate::Exited(7));
        assert_eq!(ledger.records()[0].command, "/bin/sh -c 'echo data; echo talk >&2; exit 7'");
    }

    #[test]
    fn a_signal_is_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = sh("kill -SEGV $$", dir.path(), &Ledger::default());
        process.wait(Deadline::after(Duration::from_secs(10))).unwrap();
        assert_eq!(process.obituary("testing").class, Class::Crashed);
    }

    #[test]
    fn drop_kills_grandchildren_too() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::default();
        let pid_file = dir.path().join("pid");
        let process =
            sh(&format!("sleep 1000 & echo $! > {}; wait", pid_file.display()), dir.path(), &ledger);
        let deadline = Deadline::after(Duration::from_secs(10));
        let grandchild = loop {
            match std::fs::read_to_string(&pid_file).unwrap_or_default().trim().parse::<i32>() {
                Ok(pid) => break pid,
                Err(_) => deadline.pause("the grandchild").unwrap(),
            }
        };
        drop(process);
        assert_eq!(ledger.records()[0].fate, Fate::Killed);
        // Nobody but init may reap the grandchild, so "gone" means: no such process, or a zombie.
        let stat = || std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
        while !stat().is_empty() && !stat().contains(") Z ") {
            deadline.pause("the grandchild to die").unwrap();
        }
    }

    #[test]
    fn a_slow_process_is_stuck_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = sh("sleep 1000", dir.path(), &Ledger::default());
        let failure = process.wait(Deadline::after(Duration::from_millis(50))).unwrap_err();
        assert_eq!(failure.class, Class::Stuck);
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quote("tcp:127.0.0.1:0"), "tcp:127.0.0.1:0");
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }
}
