//! tcpdump beside a migration: what goes over the network, as the network saw it.
//!
//! A capture that has lost a packet proves nothing about who reads it, so what tcpdump says about itself decides whether the cell was run
//! at all.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::failure::{Class, Failure, Run};
use crate::process::{Fate, Process};
use crate::qemu::Place;

/// From its start to the line that says that it listens.
const LISTENING: Duration = Duration::from_secs(10);

/// The kernel hands packets over in blocks, after a second at the latest: after so long a silence there are none left.
const SILENCE: Duration = Duration::from_millis(1300);

/// For the last block, and for the end of the process.
const END: Duration = Duration::from_secs(15);

/// KiB for packets on their way from the kernel.
const BUFFER: &str = "65536";

/// A running tcpdump that writes to a file.
pub(crate) struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Captures everything from and to this TCP port.
    pub(crate) fn start(interface: &str, port: &str, file: &Path, place: &Place) -> Run<Self> {
        let Some(program) = find("tcpdump") else {
            return Err(Failure::new(Class::Lacking, "no tcpdump in PATH"));
        };
        let path = file.to_string_lossy();
        let words = ["-i", interface, "-n", "-U", "-s", "0", "-B", BUFFER, "-w", &*path];
        let mut arguments = words.map(String::from).to_vec();
        if rustix::process::geteuid().is_root() {
            // Or it becomes somebody else, who cannot write here.
            arguments.extend(["-Z", "root"].map(String::from));
        }
        arguments.extend(["tcp", "port", port].map(String::from));
        let mut process = Process::spawn("tcpdump", &program, &arguments, &place.dir, &place.ledger)?;
        let deadline = place.deadline.within(LISTENING);
        while !said(&process).lines().any(|line| line.contains("listening on ")) {
            if process.fate() != Fate::Running {
                let text = format!("tcpdump cannot capture here: {}", process.last_words());
                return Err(Failure::new(Class::Lacking, text));
            }
            deadline.pause("tcpdump to listen")?;
        }
        Ok(Self { process, file: file.to_owned() })
    }

    /// Lets it take what has come, and ends it. One that has lost something has captured nothing.
    pub(crate) fn finish(mut self, place: &Place) -> Run<()> {
        let deadline = place.deadline.within(END);
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let (mut seen, mut since) = (length(&self.file), Instant::now());
        while since.elapsed() < SILENCE {
            deadline.pause("the last packets")?;
            let now = length(&self.file);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
        self.process.interrupt();
        self.process.wait(deadline)?;
        match dropped(&said(&self.process)) {
            Some(0) => Ok(()),
            Some(lost) => Err(Failure::new(Class::Lacking, format!("tcpdump lost {lost} packets"))),
            None => {
                let text = format!("tcpdump does not say what it lost: {}", self.process.last_words());
                Err(Failure::new(Class::Lacking, text))
            }
        }
    }
}

fn said(process: &Process) -> String {
    std::fs::read_to_string(process.stderr()).unwrap_or_default()
}

/// The number in `N packets dropped by kernel`, and of `.. by interface` if it says that.
fn dropped(text: &str) -> Option<u64> {
    let count = |line: &str| line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    let mut counts = text.lines().filter(|line| line.contains("dropped by ")).map(count).peekable();
    counts.peek()?;
    counts.sum()
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Where an ordinary user's path does not lead, but tcpdump is.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_counted() {
        let text = "12 packets captured\n24 packets received by filter\n0 packets dropped by kernel\n";
        assert_eq!(dropped(text), Some(0));
        assert_eq!(dropped("3 packets dropped by kernel\n1 packet dropped by interface"), Some(4));
        assert_eq!(dropped("12 packets captured"), None);
        assert_eq!(dropped("x packets dropped by kernel"), None);
    }

    #[test]
    fn a_program_that_is_nowhere_is_not_found() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}
