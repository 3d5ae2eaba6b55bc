//! What a case sets on top of a plain migration, and how it must end where it cannot end well.

use std::fmt;

use serde::Deserialize;

use crate::cases::Kind;
use crate::failure::Failure;
use crate::outcome::Outcome;

/// Settings on top of a plain migration. `[variant.NAME]` in a case file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Variant {
    #[serde(skip)]
    pub(crate) name: String,
    pub(crate) about: String,
    #[serde(default)]
    pub(crate) both: Settings,
    #[serde(default)]
    pub(crate) source: Settings,
    #[serde(default)]
    pub(crate) destination: Settings,
    /// The source is kept from finishing until `query-migrate` shows this; without it the case would prove nothing.
    #[serde(default)]
    pub(crate) until: Option<Until>,
    /// The stream leaves the main memory out, because both ends have it.
    #[serde(default)]
    pub(crate) shared_ram: bool,
    /// Changes nothing in a stream, so the stand-in source follows a template that was recorded without it.
    #[serde(default)]
    pub(crate) plain_template: bool,
    /// The stand-in source makes everything up instead of following a template.
    #[serde(default)]
    pub(crate) from_nothing: bool,
    /// What else to tell the stand-in source.
    #[serde(default)]
    pub(crate) send: Vec<String>,
    /// What else to tell the stand-in destination.
    #[serde(default)]
    pub(crate) recv: Vec<String>,
    /// The source is switched to postcopy when it has been held back for as long as it should.
    #[serde(default)]
    pub(crate) postcopy: bool,
    /// The guest at the destination goes on while its pages are on their way, and asks for those that it needs.
    #[serde(default)]
    pub(crate) running: bool,
    /// Where the conversation breaks, to be taken up again: `run+BYTES` behind the switch, `resume+BYTES` behind a resumption. Whoever of
    /// us takes part does it; between two stock builds the source is told to pause.
    #[serde(default)]
    pub(crate) cut: Vec<String>,
    /// Bytes a second on the way from the stand-in source, which is otherwise faster than a guest can ask.
    #[serde(default)]
    pub(crate) pace: Option<u64>,
    /// States that the source must go through, in this order; others may come between.
    #[serde(default)]
    pub(crate) states: Vec<String>,
    /// What `query-migrate` must show at the destination in the end.
    #[serde(default)]
    pub(crate) shows: Option<Until>,
    /// Both ends have a disk that nobody uses, and the source has dirty bitmaps on it, which must arrive.
    #[serde(default)]
    pub(crate) bitmaps: bool,
    /// What the destination of a recording needs, where another one than the case is about takes it.
    #[serde(default)]
    pub(crate) recorded: Option<Settings>,
    /// What to tell `migwire convert`; `{dialect}` is what the destination understands, by its release and machine type.
    #[serde(default)]
    pub(crate) convert: Vec<String>,
    /// What becomes of the recording as it is, at the destination that is to load the converted one.
    #[serde(default)]
    pub(crate) raw: Option<Raw>,
    /// What the recorder is to do to the migration: a script for `migwire record --trouble`.
    #[serde(default)]
    pub(crate) trouble: String,
    /// The interface that a migration is captured on.
    #[serde(default)]
    pub(crate) capture_on: Option<String>,
    /// How it must end if it must not end well. The first entry that fits the peers counts; without one it must end well.
    #[serde(default)]
    pub(crate) expect: Vec<Expect>,
}

/// A bad end that is the right one: what mismatched builds and settings do to each other.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    destination: Option<String>,
    /// One of these.
    pub(crate) outcome: Vec<Outcome>,
    /// Part of what is said about it.
    #[serde(default)]
    pub(crate) text: String,
    /// Why, for a reader of the table.
    pub(crate) reason: String,
}

/// What a destination makes of a recording that was not made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Raw {
    /// It must not load.
    Refused,
    /// It must load.
    Loads,
}

/// Multifd, as both ends are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Multifd {
    pub(crate) channels: u64,
    pub(crate) compression: String,
}

/// What one end needs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) capabilities: Vec<String>,
    pub(crate) parameters: serde_json::Map<String, serde_json::Value>,
    /// Further words for QEMU's command line.
    pub(crate) arguments: Vec<String>,
}

/// A number in the reply of `query-migrate`, by a dotted path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Until {
    pub(crate) field: String,
    pub(crate) at_least: u64,
}

impl Settings {
    /// Whether this capability is on.
    pub(crate) fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|name| name == capability)
    }
}

impl Until {
    /// The number in this reply; what is not there counts as nothing.
    pub(crate) fn value(&self, reply: &serde_json::Value) -> u64 {
        self.field.split('.').fold(reply, |value, key| &value[key]).as_u64().unwrap_or(0)
    }

    pub(crate) fn is_met(&self, reply: &serde_json::Value) -> bool {
        self.value(reply) >= self.at_least
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to reach {}", self.field, self.at_least)
    }
}

impl Variant {
    /// Multifd, if both ends have it on.
    pub(crate) fn multifd(&self) -> Option<Multifd> {
        let on = self.both.capabilities.iter().any(|name| name == "multifd");
        let parameter = |name| self.both.parameters.get(name);
        on.then(|| Multifd {
            channels: parameter("multifd-channels").and_then(serde_json::Value::as_u64).unwrap_or(2),
            compression: parameter("multifd-compression")
                .and_then(|v| v.as_str())
                .unwrap_or("none")
                .to_owned(),
        })
    }

    /// Options for whoever of us is to break the conversation.
    pub(crate) fn cuts(&self) -> impl Iterator<Item = String> {
        self.cut.iter().flat_map(|cut| [String::from("--cut"), cut.clone()])
    }

    /// Whether the destination asks for pages: its guest does when it runs, and the stand-in when it is told to.
    pub(crate) fn asks(&self, kind: Kind) -> bool {
        match kind {
            Kind::StockToStandin => self.recv.iter().any(|word| word == "--request"),
            _ => self.running,
        }
    }

    /// Whether urgent pages have a channel of their own.
    pub(crate) fn preempt(&self) -> bool {
        self.postcopy && self.source_has("postcopy-preempt") && self.destination_has("postcopy-preempt")
    }

    /// What the destination of a recording is told on top of what both are.
    pub(crate) fn recorded(&self) -> &Settings {
        self.recorded.as_ref().unwrap_or(&self.destination)
    }

    /// Whether this capability is on at the source, or at both ends.
    pub(crate) fn source_has(&self, capability: &str) -> bool {
        self.both.has(capability) || self.source.has(capability)
    }

    /// Whether this capability is on at the destination, or at both ends.
    pub(crate) fn destination_has(&self, capability: &str) -> bool {
        self.both.has(capability) || self.destination.has(capability)
    }

    /// How it must end between these peers, if badly.
    pub(crate) fn expectation(&self, source: &str, destination: &str) -> Option<&Expect> {
        let fits = |pattern: &Option<String>, name: &str| {
            pattern.as_ref().is_none_or(|pattern| pattern.split(' ').any(|word| word == name))
        };
        self.expect.iter().find(|e| fits(&e.source, source) && fits(&e.destination, destination))
    }
}

impl Expect {
    /// Whether a failure is the one that was expected.
    pub(crate) fn is_met(&self, failure: &Failure) -> Option<Outcome> {
        let fits = |outcome: &&Outcome| outcome.classes().contains(&failure.class);
        self.outcome.iter().find(fits).copied().filter(|_| failure.text.contains(&self.text))
    }

    /// Whether this is the outcome that was expected, and what was said about it.
    pub(crate) fn allows(&self, outcome: Outcome, text: &str) -> bool {
        self.outcome.contains(&outcome) && text.contains(&self.text)
    }

    /// The outcomes, in words.
    pub(crate) fn words(&self) -> String {
        self.outcome.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
    }
}
