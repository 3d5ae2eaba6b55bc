//! A small QMP client: one JSON object a line, over a UNIX socket.
//!
//! ```text
//! <- {"QMP": {"version": .., "capabilities": [..]}}
//! -> {"execute": "qmp_capabilities", "id": 1}
//! <- {"return": {}, "id": 1}            events may come between any two lines: {"event": .., "timestamp": ..}
//! ```
//!
//! Replies stay [`Value`]s: one judge talks to builds six years apart, and a closed type for a state or a capability
//! would turn every newer word into an error. Every read has a timeout, because some mismatches between two peers
//! hang QEMU's main loop for good. Every line of both directions goes into a log.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::process::{Deadline, interrupted};

/// A longer line is garbage: the longest known one, the schema of a recent build, is a few hundred KB.
const MAX_LINE: usize = 64 << 20;

/// Events nobody asked for are kept up to this number; a flood of them is no reason to grow.
const MAX_EVENTS: usize = 1000;

/// The longest a read stays blind to an interrupt of the judge.
const SLICE: Duration = Duration::from_millis(100);

/// Why a QMP exchange did not work.
#[derive(Debug)]
pub(crate) enum QmpError {
    /// The peer said nothing, or not enough, for this long.
    Timeout {
        doing: String,
        after: Duration,
    },
    /// The peer closed the connection.
    Closed {
        doing: String,
    },
    /// The peer said something that is not QMP.
    Garbage {
        doing: String,
        line: String,
    },
    /// The peer answered with an error.
    Refused {
        command: String,
        class: String,
        description: String,
    },
    Io {
        doing: String,
        source: io::Error,
    },
    /// The judge was told to stop.
    Interrupted,
}

/// One connection to one QEMU.
pub(crate) struct Qmp {
    stream: UnixStream,
    pending: Vec<u8>,
    events: VecDeque<Value>,
    log: Box<dyn Write + Send>,
    timeout: Duration,
    began: Instant,
    last_id: u64,
}

impl Qmp {
    /// Takes a connected socket through greeting and capabilities. `timeout` is for each answer.
    pub(crate) fn open(
        stream: UnixStream,
        log: Box<dyn Write + Send>,
        timeout: Duration,
    ) -> Result<Self, QmpError> {
        let io = |source| QmpError::Io { doing: String::from("prepare the socket"), source };
        stream.set_read_timeout(Some(SLICE)).map_err(io)?;
        stream.set_write_timeout(Some(timeout)).map_err(io)?;
        let mut qmp = Self {
            stream,
            pending: Vec::new(),
            events: VecDeque::new(),
            log,
            timeout,
            began: Instant::now(),
            last_id: 0,
        };
        let deadline = Deadline::after(timeout);
        loop {
            let greeting = qmp.read_object("the greeting", deadline)?;
            if greeting.contains_key("QMP") {
                break;
            }
            // 5.2 can be faster to tell what happens than who it is.
            if !greeting.contains_key("event") {
                return Err(QmpError::Garbage {
                    doing: "the greeting".into(),
                    line: elide(&json!(greeting)),
                });
            }
            qmp.keep_event(greeting);
        }
        qmp.command("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn keep_event(&mut self, event: Map<String, Value>) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Value::Object(event));
    }

    /// Runs a command and returns what it returned.
    pub(crate) fn command(&mut self, name: &str, arguments: Value) -> Result<Value, QmpError> {
        self.last_id += 1;
        let mut request = json!({"execute": name, "id": self.last_id});
        if arguments.as_object().is_some_and(|map| !map.is_empty()) {
            request["arguments"] = arguments;
        }
        self.write_line(name, &request)?;
        let deadline = Deadline::after(self.timeout);
        loop {
            let mut reply = self.read_object(name, deadline)?;
            if reply.contains_key("event") {
                self.keep_event(reply);
                continue;
            }
            // The late answer to a command that had timed out. QEMU sends an error without an id when it could not
            // even parse the line; that one is for us.
            if reply.get("id").is_some_and(|id| id != &json!(self.last_id)) {
                continue;
            }
            if let Some(value) = reply.remove("return") {
                return Ok(value);
            }
            let Some(error) = reply.get("error") else {
                return Err(QmpError::Garbage { doing: name.into(), line: elide(&json!(reply)) });
            };
            let word = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            return Err(QmpError::Refused {
                command: name.into(),
                class: word("class"),
                description: word("desc"),
            });
        }
    }

    /// Runs a human-monitor command; its text is the answer, and QEMU reports an error there as text too.
    pub(crate) fn human(&mut self, line: &str) -> Result<String, QmpError> {
        let reply = self.command("human-monitor-command", json!({"command-line": line}))?;
        Ok(reply.as_str().unwrap_or_default().trim().to_owned())
    }

    /// A different patience for the commands that follow, for those that do their whole work before they answer.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The events seen so far, oldest first, of which only so many are kept.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Value> {
        self.events.iter()
    }

    fn write_line(&mut self, doing: &str, request: &Value) -> Result<(), QmpError> {
        let mut line = request.to_string();
        self.note("->", &line);
        line.push('\n');
        self.stream.write_all(line.as_bytes()).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                QmpError::Closed { doing: doing.into() }
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                QmpError::Timeout { doing: doing.into(), after: self.timeout }
            }
            _ => QmpError::Io { doing: doing.into(), source },
        })
    }

    fn read_object(&mut self, doing: &str, deadline: Deadline) -> Result<Map<String, Value>, QmpError> {
        let line = self.read_line(doing, deadline)?;
        self.note("<-", &line);
        match serde_json::from_str(&line) {
            Ok(Value::Object(object)) => Ok(object),
            _ => Err(QmpError::Garbage { doing: doing.into(), line: shorten(&line) }),
        }
    }

    fn read_line(&mut self, doing: &str, deadline: Deadline) -> Result<String, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.pending[searched..].iter().position(|&b| b == b'\n') {
                let rest = self.pending.split_off(searched + at + 1);
                let line = std::mem::replace(&mut self.pending, rest);
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            searched = self.pending.len();
            if searched > MAX_LINE {
                let start = String::from_utf8_lossy(&self.pending[..80]).into_owned();
                return Err(QmpError::Garbage { doing: doing.into(), line: start });
            }
            if interrupted() {
                return Err(QmpError::Interrupted);
            }
            if deadline.remaining().is_zero() {
                return Err(QmpError::Timeout { doing: doing.into(), after: self.timeout });
            }
            let mut chunk = [0; 64 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed { doing: doing.into() }),
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed { doing: doing.into() });
                }
                Err(source) => return Err(QmpError::Io { doing: doing.into(), source }),
            }
        }
    }

    fn note(&mut self, arrow: &str, line: &str) {
        // A full disk must not change a verdict; the missing log shows by itself.
        let _ = writeln!(self.log, "{:9.3} {arrow} {line}", self.began.elapsed().as_secs_f64());
    }
}

impl std::fmt::Display for QmpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Timeout { doing, after } => {
                write!(f, "no answer to {doing} within {} s", after.as_secs_f32())
            }
            Self::Closed { doing } => write!(f, "QMP connection closed during {doing}"),
            Self::Garbage { doing, line } => write!(f, "not QMP during {doing}: {line}"),
            Self::Refused { command, class, description } => write!(f, "{command}: {description} ({class})"),
            Self::Io { doing, source } => write!(f, "QMP socket during {doing}: {source}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for QmpError {}

fn elide(value: &Value) -> String {
    shorten(&value.to_string())
}

fn shorten(line: &str) -> String {
    let mut short: String = line.chars().take(120).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::sync::{Arc, Mutex};
    use std::thread;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    /// A peer that greets, accepts capabilities, then answers each line with what `answer` returns.
    fn fake(
        mut answer: impl FnMut(&Value) -> String + Send + 'static,
    ) -> (UnixStream, thread::JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let mut writer = theirs.try_clone().unwrap();
            writeln!(writer, "{GREETING}").unwrap();
            for line in BufReader::new(theirs).lines() {
                let Ok(line) = line else { return };
                let request: Value = serde_json::from_str(&line).unwrap();
                let reply = if request["execute"] == "qmp_capabilities" {
                    json!({"return": {}, "id": request["id"]}).to_string()
                } else {
                    answer(&request)
                };
                if reply.is_empty() || writeln!(writer, "{reply}").is_err() {
                    return;
                }
            }
        });
        (ours, thread)
    }

    fn open(stream: UnixStream) -> Result<Qmp, QmpError> {
        Qmp::open(stream, Box::new(io::sink()), Duration::from_millis(300))
    }

    #[test]
    fn returns_the_value_and_keeps_events_apart() {
        let (stream, _thread) = fake(|request| {
            let event = json!({"event": "STOP", "timestamp": {"seconds": 1}});
            format!("{event}\r\n{}", json!({"return": {"status": "running"}, "id": request["id"]}))
        });
        let mut qmp = open(stream).unwrap();
        assert_eq!(qmp.command("query-status", json!({})).unwrap()["status"], "running");
        assert_eq!(qmp.events().next().unwrap()["event"], "STOP");
    }

    #[test]
    fn a_refusal_carries_the_peer_s_words() {
        let (stream, _thread) = fake(|request| {
            json!({"error": {"class": "GenericError", "desc": "no such"}, "id": request["id"]}).to_string()
        });
        match open(stream).unwrap().command("migrate", json!({"uri": "x"})) {
            Err(QmpError::Refused { command, class, description }) => {
                assert_eq!((&*command, &*class, &*description), ("migrate", "GenericError", "no such"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn silence_is_a_timeout_and_a_late_answer_is_skipped() {
        let mut first = true;
        let (stream, _thread) = fake(move |request| {
            if std::mem::take(&mut first) {
                thread::sleep(Duration::from_millis(500));
            }
            json!({"return": request["execute"], "id": request["id"]}).to_string()
        });
        let mut qmp = open(stream).unwrap();
        assert!(matches!(qmp.command("slow", json!({})), Err(QmpError::Timeout { .. })));
        thread::sleep(Duration::from_millis(400));
        assert_eq!(qmp.command("quick", json!({})).unwrap(), "quick");
    }

    #[test]
    fn a_line_that_never_ends_is_a_timeout_too() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let _thread = thread::spawn(move || {
            for _ in 0..100 {
                if theirs.write_all(b"{\"QMP\": ").is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let began = Instant::now();
        assert!(matches!(open(ours), Err(QmpError::Timeout { .. })));
        assert!(began.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn an_event_may_be_faster_than_the_greeting() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let lines = format!("{{\"event\": \"MIGRATION\"}}\n{GREETING}\n{{\"return\": {{}}, \"id\": 1}}\n");
        theirs.write_all(lines.as_bytes()).unwrap();
        assert_eq!(open(ours).unwrap().events().next().unwrap()["event"], "MIGRATION");
    }

    #[test]
    fn garbage_is_named_and_nothing_panics() {
        for text in ["SSH-2.0-OpenSSH\n", "[]\n", "{}\n", "\n", "\u{0}\u{1}\n", "{\"QMP\":\n"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(text.as_bytes()).unwrap();
            assert!(matches!(open(ours), Err(QmpError::Garbage { .. })), "{text:?}");
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"\xff\xfe\n").unwrap();
        assert!(matches!(open(ours), Err(QmpError::Garbage { .. })));
    }

    #[test]
    fn an_answer_without_a_known_key_is_garbage() {
        let (stream, _thread) = fake(|request| json!({"id": request["id"]}).to_string());
        let mut qmp = open(stream).unwrap();
        assert!(matches!(qmp.command("query-status", json!({})), Err(QmpError::Garbage { .. })));
    }

    #[test]
    fn a_closed_connection_is_no_timeout() {
        let (stream, _thread) = fake(|_| String::new());
        let mut qmp = open(stream).unwrap();
        assert!(matches!(qmp.command("quit", json!({})), Err(QmpError::Closed { .. })));
    }

    #[test]
    fn every_line_is_logged() {
        #[derive(Clone, Default)]
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Shared::default();
        let (stream, _thread) = fake(|request| json!({"return": 1, "id": request["id"]}).to_string());
        let mut qmp = Qmp::open(stream, Box::new(log.clone()), Duration::from_secs(5)).unwrap();
        qmp.command("query-x", json!({"a": 1})).unwrap();
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let arrows: Vec<&str> = text.lines().map(|line| &line[10..12]).collect();
        assert_eq!(arrows, ["<-", "->", "<-", "->", "<-"]);
        assert!(text.contains(r#"-> {"execute":"query-x","id":2,"arguments":{"a":1}}"#), "{text}");
    }
}
