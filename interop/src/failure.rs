//! Why a cell did not pass: a class that reports can count, and a sentence that names who did what.
//!
//! A hang, a crash and a wrong byte ask for different work, so they are told apart where they are noticed and never
//! guessed from a text later. A source that says `completed` although its destination failed has its own class: it is
//! the most expensive mistake in this field.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of bad end a cell came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Class {
    /// A peer said so itself: migration state `failed`, or a negative verdict.
    Failed,
    /// A peer refused a command although it had declared that it knows it.
    Refused,
    /// A peer answers no more, within its time.
    Hung,
    /// A peer died of a signal.
    Crashed,
    /// A peer answers but does not get where it should within its time.
    Stuck,
    /// Bytes differ.
    Mismatch,
    /// The source says `completed` and the destination did not.
    FalseComplete,
    /// The judge was told to stop.
    Interrupted,
    /// Something that is not ours is missing here, so nothing was learned.
    Lacking,
    /// The judge's own surroundings: no disk space, no such program, no socket.
    Environment,
}

/// One reason why a cell ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) class: Class,
    pub(crate) text: String,
}

/// The result of one step of a cell.
pub(crate) type Run<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }

    /// The failure of a file or process operation of the judge itself.
    pub(crate) fn environment(doing: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::new(Class::Environment, format!("{doing}: {error}"))
    }

    /// The same failure, said by or about `who`.
    pub(crate) fn of(mut self, who: impl fmt::Display) -> Self {
        self.text = format!("{who}: {}", self.text);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Hung => "hung",
            Self::Crashed => "crashed",
            Self::Stuck => "stuck",
            Self::Mismatch => "mismatch",
            Self::FalseComplete => "false-complete",
            Self::Interrupted => "interrupted",
            Self::Lacking => "lacking",
            Self::Environment => "environment",
        })
    }
}

/// What both ends say about one migration, as one result.
///
/// A stock source reports `completed` in many cases where the destination has died, so neither end is believed alone.
pub(crate) fn both<S, D>(source: Run<S>, destination: Run<D>) -> Run<(S, D)> {
    match (source, destination) {
        (Ok(source), Ok(destination)) => Ok((source, destination)),
        (Ok(_), Err(failure)) => {
            let class = match failure.class {
                Class::Failed | Class::Refused | Class::Stuck => Class::FalseComplete,
                // What happened to the destination is the news then; the text still says that the source is content.
                class => class,
            };
            Err(Failure::new(class, format!("the source completed, but {}", failure.text)))
        }
        (Err(failure), Ok(_)) => {
            Err(Failure::new(failure.class, format!("{}; the destination completed", failure.text)))
        }
        (Err(source), Err(destination)) => {
            // A crash or a hang explains the other end's failure; otherwise the destination knows the reason better.
            let telling = |class| matches!(class, Class::Crashed | Class::Hung | Class::Interrupted);
            let class = if telling(source.class) { source.class } else { destination.class };
            Err(Failure::new(class, format!("{}; {}", destination.text, source.text)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completed_source_does_not_hide_its_destination() {
        let source: Run<()> = Ok(());
        let destination: Run<()> = Err(Failure::new(Class::Failed, "destination (7.2): exit status 1"));
        let failure = both(source, destination).unwrap_err();
        assert_eq!(failure.class, Class::FalseComplete);
        assert_eq!(failure.text, "the source completed, but destination (7.2): exit status 1");
    }

    #[test]
    fn the_crash_is_named_whoever_had_it() {
        let stuck: Run<()> = Err(Failure::new(Class::Stuck, "a"));
        let crashed: Run<()> = Err(Failure::new(Class::Crashed, "b"));
        assert_eq!(both(stuck.clone(), crashed.clone()).unwrap_err().class, Class::Crashed);
        assert_eq!(both(crashed, stuck).unwrap_err().class, Class::Crashed);
    }
}
