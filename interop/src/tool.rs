//! The `migwire` command, seen from outside: its processes, their command lines and the JSON they print.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::failure::{Class, Failure, Run};
use crate::process::{Deadline, Fate, Ledger, Process, ProcessRecord, last_lines, quote, shell_line};
use crate::qemu::Place;

/// From the start of a process to its `listening on` line.
const LISTENING: Duration = Duration::from_secs(10);

/// The command under test, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    pub(crate) path: PathBuf,
    /// What `--version` said, or why it cannot be used.
    pub(crate) version: Result<String, String>,
}

impl Tool {
    /// Looks whether the command is there and answers.
    pub(crate) fn probe(path: &Path, dir: &Path) -> Self {
        let version = ask_version(path, dir).map_err(|failure| failure.text);
        Self { path: path.to_owned(), version }
    }
}

fn ask_version(path: &Path, dir: &Path) -> Run<String> {
    if !path.is_file() {
        return Err(Failure::new(Class::Environment, format!("no migwire command at {}", path.display())));
    }
    std::fs::create_dir_all(dir).map_err(|e| Failure::environment(dir.display(), e))?;
    let mut process = Process::spawn("version", path, &["--version".into()], dir, &Ledger::default())?;
    let fate = process.wait(Deadline::after(Duration::from_secs(10)))?;
    let text = std::fs::read_to_string(process.stdout()).unwrap_or_default();
    match (fate, text.trim().strip_prefix("migwire ")) {
        (Fate::Exited(0), Some(version)) => Ok(version.to_owned()),
        _ => {
            let said = format!("{} --version said {:?} and ended with {fate:?}", path.display(), text.trim());
            Err(Failure::new(Class::Environment, said))
        }
    }
}

/// A running migwire command whose last output is one JSON object.
pub(crate) struct ToolProcess {
    process: Process,
}

impl ToolProcess {
    pub(crate) fn spawn(tool: &Tool, name: &str, arguments: &[String], place: &Place) -> Run<Self> {
        let process = Process::spawn(name, &tool.path, arguments, &place.dir, &place.ledger)?;
        Ok(Self { process })
    }

    /// The address from its `listening on` line.
    pub(crate) fn address(&mut self, place: &Place) -> Run<String> {
        let deadline = place.deadline.within(LISTENING);
        loop {
            let text = std::fs::read_to_string(self.process.stderr()).unwrap_or_default();
            // Only whole lines: the last one may still be growing.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(address) = whole.lines().find_map(|line| line.strip_prefix("listening on ")) {
                return Ok(address.trim().to_owned());
            }
            if self.process.fate() != Fate::Running {
                return Err(self.process.obituary("starting to listen").of(self.process.name()));
            }
            deadline.pause("its \"listening on\" line").map_err(|failure| failure.of(self.process.name()))?;
        }
    }

    /// Waits until it has written so many lines that begin like this.
    pub(crate) fn await_lines(&mut self, start: &str, count: usize, deadline: Deadline) -> Run<()> {
        loop {
            let text = std::fs::read_to_string(self.process.stderr()).unwrap_or_default();
            if text.lines().filter(|line| line.starts_with(start)).count() >= count {
                return Ok(());
            }
            let waiting = format!("its {start:?} line {count}");
            if self.process.fate() != Fate::Running {
                return Err(self.process.obituary(&format!("waiting for {waiting}")).of(self.process.name()));
            }
            deadline.pause(&waiting).map_err(|failure| failure.of(self.process.name()))?;
        }
    }

    /// Waits for its end, and takes its report however it ended.
    pub(crate) fn finish_anyhow(&mut self, deadline: Deadline) -> Run<Value> {
        match self.process.wait(deadline) {
            Ok(Fate::Exited(_)) => report(self.process.stdout()),
            Ok(_) => Err(self.process.obituary("working")),
            Err(failure) => {
                self.process.kill();
                Err(failure)
            }
        }
        .map_err(|failure| failure.of(self.process.name()))
    }

    /// Waits for its end, and takes its report if it ended well.
    pub(crate) fn finish(&mut self, deadline: Deadline) -> Run<Value> {
        match self.process.wait(deadline) {
            Ok(Fate::Exited(0)) => report(self.process.stdout()),
            Ok(_) => {
                // Its own report names the place of an error better than its last line does.
                let failure = self.process.obituary("working");
                match report(self.process.stdout()) {
                    Ok(report) => {
                        Err(Failure { text: format!("{}; {}", failure.text, error_text(&report)), ..failure })
                    }
                    Err(_) => Err(failure),
                }
            }
            Err(failure) => {
                self.process.kill();
                let class = if failure.class == Class::Stuck { Class::Hung } else { failure.class };
                Err(Failure::new(class, format!("{}; killed: {}", failure.text, self.process.last_words())))
            }
        }
        .map_err(|failure| failure.of(self.process.name()))
    }
}

/// A migwire command as the child of a QEMU's `exec:` channel, with its output and exit status in files.
#[derive(Debug, Clone)]
pub(crate) struct PipedTool {
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    status: PathBuf,
    ledger: Ledger,
    index: usize,
    /// What to hand to `migrate`.
    pub(crate) uri: String,
}

impl PipedTool {
    /// Nothing starts yet; QEMU does that. `send` writes the channel to standard output, so it cannot report there.
    pub(crate) fn new(tool: &Tool, name: &str, arguments: &[String], place: &Place) -> Self {
        let file = |suffix: &str| place.dir.join(format!("{name}.{suffix}"));
        let (stdout, stderr, status) = (file("stdout"), file("stderr"), file("status"));
        let path = |path: &Path| quote(&path.to_string_lossy());
        let line = shell_line(&tool.path, arguments);
        let writes_channel = arguments.first().is_some_and(|verb| verb == "send");
        let redirect = if writes_channel { String::new() } else { format!(" > {}", path(&stdout)) };
        // The status appears under its name only when it is complete.
        let script = format!(
            "{line}{redirect} 2> {err}; s=$?; echo $s > {status}.new; mv {status}.new {status}; exit $s",
            err = path(&stderr),
            status = path(&status),
        );
        let ledger = place.ledger.clone();
        let index = ledger.enter(ProcessRecord {
            name: name.to_owned(),
            command: line,
            stdout: format!("{name}.stdout"),
            stderr: format!("{name}.stderr"),
            qmp: None,
            fate: Fate::Running,
        });
        Self { name: name.to_owned(), stdout, stderr, status, ledger, index, uri: format!("exec:{script}") }
    }

    /// Waits until the command has ended.
    pub(crate) fn finish(&self, deadline: Deadline) -> Run<Option<Value>> {
        let failed = |failure: Failure| failure.of(&self.name);
        loop {
            match std::fs::read_to_string(&self.status) {
                Ok(status) if status.trim() == "0" => {
                    self.ledger.change(self.index, |record| record.fate = Fate::Exited(0));
                    return if self.stdout.exists() {
                        report(&self.stdout).map(Some).map_err(failed)
                    } else {
                        Ok(None)
                    };
                }
                Ok(status) => {
                    let code = status.trim().parse().unwrap_or(-1);
                    self.ledger.change(self.index, |record| record.fate = Fate::Exited(code));
                    let mut text =
                        format!("exited with status {}: {}", status.trim(), last_lines(&self.stderr));
                    if let Ok(report) = report(&self.stdout) {
                        text = format!("{text}; {}", error_text(&report));
                    }
                    return Err(failed(Failure::new(Class::Failed, text)));
                }
                Err(_) => deadline.pause("it to end").map_err(failed)?,
            }
        }
    }
}

/// The error that a report carries, in its own words.
pub(crate) fn error_text(report: &Value) -> String {
    let error = &report["error"];
    let word = error["text"].as_str().or(error["message"].as_str()).or(error.as_str());
    match word {
        Some(word) => word.to_owned(),
        None => format!("verdict {}", report["verdict"]),
    }
}

fn report(path: &Path) -> Run<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::environment(path.display(), e))?;
    match serde_json::from_str::<Value>(text.trim()) {
        Ok(value) if value.is_object() => Ok(value),
        _ => {
            let start: String = text.chars().take(80).collect();
            Err(Failure::new(Class::Failed, format!("printed no JSON object but {start:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A command that does what `script` says, whatever it is asked.
    fn tool(dir: &Path, script: &str) -> Tool {
        let path = dir.join("migwire");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Tool { path, version: Ok("test".into()) }
    }

    fn place(dir: &Path) -> Place {
        Place {
            dir: dir.into(),
            sockets: dir.into(),
            ledger: Ledger::default(),
            deadline: Deadline::after(Duration::from_secs(10)),
        }
    }

    #[test]
    fn the_address_comes_from_the_listening_line() {
        let dir = tempfile::tempdir().unwrap();
        let tool = tool(
            dir.path(),
            "echo note >&2; echo listening on tcp:127.0.0.1:41233 >&2; echo '{\"verdict\":1}'",
        );
        let place = place(dir.path());
        let mut process = ToolProcess::spawn(&tool, "recv", &[], &place).unwrap();
        assert_eq!(process.address(&place).unwrap(), "tcp:127.0.0.1:41233");
        assert_eq!(process.finish(place.deadline).unwrap()["verdict"], 1);
    }

    #[test]
    fn a_negative_report_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let tool = tool(dir.path(), "echo '{\"error\":{\"text\":\"bad footer at 0x10\"}}'; exit 1");
        let mut process = ToolProcess::spawn(&tool, "recv", &[], &place(dir.path())).unwrap();
        let failure = process.finish(Deadline::after(Duration::from_secs(10))).unwrap_err();
        assert_eq!(failure.class, Class::Failed);
        assert!(
            failure.text.contains("status 1") && failure.text.contains("bad footer at 0x10"),
            "{failure}"
        );
    }

    #[test]
    fn one_that_never_listens_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let tool = tool(dir.path(), "echo cannot bind >&2; exit 3");
        let place = place(dir.path());
        let mut process = ToolProcess::spawn(&tool, "record", &[], &place).unwrap();
        let failure = process.address(&place).unwrap_err();
        assert_eq!(failure.text, "record: exited with status 3 while starting to listen: cannot bind");
    }

    #[test]
    fn a_piped_command_reports_through_files() {
        let dir = tempfile::tempdir().unwrap();
        let tool = tool(dir.path(), "cat > /dev/null; echo '{\"verdict\":\"completed\"}'; exit 0");
        let place = place(dir.path());
        let piped = PipedTool::new(&tool, "recv", &["recv".into(), "-".into()], &place);
        let script = piped.uri.strip_prefix("exec:").unwrap();
        let mut shell = Process::spawn(
            "sh",
            Path::new("/bin/sh"),
            &["-c".into(), script.into()],
            dir.path(),
            &place.ledger,
        )
        .unwrap();
        assert_eq!(piped.finish(place.deadline).unwrap().unwrap()["verdict"], "completed");
        assert_eq!(shell.wait(place.deadline).unwrap(), Fate::Exited(0));
    }

    #[test]
    fn only_something_that_calls_itself_migwire_is_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let good = tool(dir.path(), "echo migwire 0.1.0").path;
        assert_eq!(Tool::probe(&good, dir.path()).version.unwrap(), "0.1.0");
        let bad = tool(dir.path(), "exit 0").path;
        assert!(Tool::probe(&bad, dir.path()).version.is_err());
        assert!(
            Tool::probe(Path::new("/no/migwire"), dir.path()).version.unwrap_err().contains("no migwire")
        );
    }
}
