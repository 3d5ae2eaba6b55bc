//! What becomes of a migration that does not go well, as the owner of the guest sees it.
//!
//! ```text
//! source      destination   guest
//! failed      failed, gone  runs at the source        resumed-source
//! completed   completed     memory equal              unharmed
//! completed   completed     memory differs            silent-corruption
//! completed   failed, gone  nowhere, unless asked     false-completion
//! failed      completed     runs at the source too    split-brain
//! failed      completed     at the destination only   false-failure
//! stopped     failed, gone  nowhere                   vm-lost
//! paused      paused        parted, can be mended     paused
//! waits, or answers no more (either)                  hang
//! died of a signal (either)                           crash
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::failure::Class;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Both ends say that it failed; the source can go on.
    CleanFailure,
    /// An end answers no more, or never gets anywhere.
    Hang,
    /// An end dies of a signal.
    Crash,
    /// Both ends say that it went well, and memory differs.
    SilentCorruption,
    /// The source says that it went well, and the destination does not.
    FalseCompletion,
    /// It goes well, and need not have done.
    Luck,
    /// It failed at both ends, and the guest was seen to go on at the source.
    ResumedSource,
    /// It went well all the same.
    Unharmed,
    /// Neither end has a guest that can go on.
    VmLost,
    /// In postcopy: both ends wait to be taken up again.
    Paused,
    /// The source says that it failed and goes on; the destination has the guest too.
    SplitBrain,
    /// The source says that it failed, and the destination has the guest.
    FalseFailure,
}

/// What one end has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It says that all went well.
    Completed,
    /// It says that it failed.
    Failed {
        /// Whether its guest was seen to go on.
        runs: bool,
    },
    /// It waits to be taken up again.
    Paused,
    /// Its process has ended by itself.
    Gone,
    /// Its process died of a signal.
    Crashed,
    /// It answers, and gets nowhere.
    Waiting,
    /// It does not even answer.
    Silent,
}

impl Outcome {
    /// What both ends have come to, in one word. `is_equal` is about memory, if both have it.
    pub(crate) fn of(source: End, destination: End, is_equal: bool) -> Self {
        use End::{Completed, Crashed, Failed, Gone, Paused, Silent, Waiting};
        match (source, destination) {
            (Crashed, _) | (_, Crashed) => Self::Crash,
            (Silent | Waiting, _) | (_, Silent | Waiting) => Self::Hang,
            (Completed, Completed) if is_equal => Self::Unharmed,
            (Completed, Completed) => Self::SilentCorruption,
            (Completed, Failed { .. } | Gone | Paused) => Self::FalseCompletion,
            (Paused, Paused) => Self::Paused,
            (Failed { runs: true }, Completed) => Self::SplitBrain,
            (Failed { runs: false } | Gone | Paused, Completed) => Self::FalseFailure,
            (Failed { runs: true }, Failed { .. } | Gone | Paused) => Self::ResumedSource,
            (Failed { runs: false } | Gone | Paused, Failed { .. } | Gone | Paused) => Self::VmLost,
        }
    }

    /// The classes of failure that mean this.
    pub(crate) fn classes(self) -> &'static [Class] {
        match self {
            Self::CleanFailure => &[Class::Failed, Class::Refused],
            Self::Hang => &[Class::Hung, Class::Stuck],
            Self::Crash => &[Class::Crashed],
            Self::SilentCorruption => &[Class::Mismatch],
            Self::FalseCompletion => &[Class::FalseComplete],
            // These are found out where they can be, and have no class.
            Self::Luck
            | Self::ResumedSource
            | Self::Unharmed
            | Self::VmLost
            | Self::Paused
            | Self::SplitBrain
            | Self::FalseFailure => &[],
        }
    }

    /// Whether somebody has lost something by it.
    pub(crate) fn is_harm(self) -> bool {
        !matches!(self, Self::CleanFailure | Self::Luck | Self::ResumedSource | Self::Unharmed | Self::Paused)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CleanFailure => "clean failure",
            Self::Hang => "hang",
            Self::Crash => "crash",
            Self::SilentCorruption => "silent corruption",
            Self::FalseCompletion => "false completion",
            Self::Luck => "completes by luck",
            Self::ResumedSource => "resumed source",
            Self::Unharmed => "unharmed",
            Self::VmLost => "VM lost",
            Self::Paused => "paused",
            Self::SplitBrain => "split brain",
            Self::FalseFailure => "false failure",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: [End; 8] = [
        End::Completed,
        End::Failed { runs: true },
        End::Failed { runs: false },
        End::Paused,
        End::Gone,
        End::Crashed,
        End::Waiting,
        End::Silent,
    ];

    #[test]
    fn the_table_above_is_what_is_done() {
        let failed = |runs| End::Failed { runs };
        let table = [
            (failed(true), End::Gone, Outcome::ResumedSource),
            (failed(true), failed(false), Outcome::ResumedSource),
            (End::Completed, End::Completed, Outcome::Unharmed),
            (End::Completed, End::Gone, Outcome::FalseCompletion),
            (failed(true), End::Completed, Outcome::SplitBrain),
            (failed(false), End::Completed, Outcome::FalseFailure),
            (failed(false), End::Gone, Outcome::VmLost),
            (End::Gone, End::Gone, Outcome::VmLost),
            (End::Paused, End::Gone, Outcome::VmLost),
            (End::Paused, End::Paused, Outcome::Paused),
            (failed(true), End::Waiting, Outcome::Hang),
            (End::Silent, End::Gone, Outcome::Hang),
            (End::Waiting, End::Crashed, Outcome::Crash),
        ];
        for (source, destination, outcome) in table {
            assert_eq!(Outcome::of(source, destination, true), outcome, "{source:?} {destination:?}");
        }
        assert_eq!(Outcome::of(End::Completed, End::Completed, false), Outcome::SilentCorruption);
    }

    #[test]
    fn only_two_completed_ends_are_unharmed_and_a_guest_that_runs_nowhere_is_harm() {
        for source in ENDS {
            for destination in ENDS {
                let outcome = Outcome::of(source, destination, true);
                let both = (source, destination) == (End::Completed, End::Completed);
                assert_eq!(outcome == Outcome::Unharmed, both, "{source:?} {destination:?}");
                let runs = source == End::Failed { runs: true } || both;
                let is_parted = (source, destination) == (End::Paused, End::Paused);
                assert!(runs || is_parted || outcome.is_harm(), "{source:?} {destination:?}");
            }
        }
    }

    #[test]
    fn words_in_files_are_one_word() {
        assert_eq!(serde_json::to_string(&Outcome::ResumedSource).unwrap(), "\"resumed-source\"");
        assert_eq!(serde_json::from_str::<Outcome>("\"vm-lost\"").unwrap(), Outcome::VmLost);
    }
}
