//! Faults on purpose: where the connections of a migration are to break.
//!
//! ```text
//! main channel   QEVM .. PACKAGED { .. RUN } | pages ..       RESUME | pages ..
//!                ^ BYTES                     ^ run+BYTES             ^ resume+BYTES
//! ```
//! Whoever passes bytes of the main channel on (source, destination, proxy) asks [`Cuts`] first how many may still pass. It needs no
//! connection and knows none.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::Command;

/// A place on the main channel.
///
/// ```
/// use migwire::endpoint::Cut;
/// assert_eq!("run+4096".parse::<Cut>()?, Cut::Run(4096));
/// assert_eq!(Cut::Bytes(7).to_string(), "7");
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// So many bytes from the beginning of the connection that is the main channel by then.
    Bytes(u64),
    /// So many bytes of the main channel behind POSTCOPY_RUN; those of connections that followed after a pause count as well.
    Run(u64),
    /// So many bytes behind the next POSTCOPY_RESUME.
    Resume(u64),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(count) => write!(f, "{count}"),
            Self::Run(count) => write!(f, "run+{count}"),
            Self::Resume(count) => write!(f, "resume+{count}"),
        }
    }
}

impl FromStr for Cut {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (cut, digits): (fn(u64) -> Self, _) = match text.split_once('+') {
            Some(("run", digits)) => (Self::Run, digits),
            Some(("resume", digits)) => (Self::Resume, digits),
            _ => (Self::Bytes, text),
        };
        let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
        let count = digits.parse().ok().filter(|_| is_number);
        count.map(cut).ok_or_else(|| {
            let message =
                format!("{text:?} is no place to cut at; write 100000, run+100000 or resume+100000");
            Error::nowhere(ErrorKind::Misuse, "cut", message)
        })
    }
}

/// Cuts that are to be made, one after the other, and how far the main channel has come.
///
/// ```text
/// note_command(RUN, where it ends)     as soon as it is seen, before or after it passes
/// admit(wanted) -> may pass            note_passed(those that did)
/// is_due() -> shut all connections down, take(), and with the next one note_connection()
/// ```
/// ```
/// use migwire::endpoint::{Cut, Cuts};
/// let mut cuts = Cuts::new([Cut::Bytes(100)]);
/// assert_eq!(cuts.admit(60), 60);
/// cuts.note_passed(60);
/// assert_eq!((cuts.admit(60), cuts.is_due()), (40, false));
/// cuts.note_passed(40);
/// assert!(cuts.is_due());
/// assert_eq!(cuts.take(), Some(Cut::Bytes(100)));
/// assert_eq!(cuts.admit(60), 60);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    pending: VecDeque<Cut>,
    /// Bytes that have passed on this connection.
    passed: u64,
    /// Where RUN ended on this connection; its beginning, if it came on an earlier one.
    run: Option<u64>,
    /// Bytes behind RUN on earlier connections.
    before: u64,
    /// Where RESUME ended on this connection.
    resume: Option<u64>,
}

impl Cuts {
    /// Cuts in that order.
    pub fn new(cuts: impl IntoIterator<Item = Cut>) -> Self {
        Self { pending: cuts.into_iter().collect(), ..Self::default() }
    }

    /// Whether no cut is left to be made.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// A command that ends at this offset of the connection; only RUN and RESUME matter.
    pub fn note_command(&mut self, command: &Command<'_>, end: u64) {
        match command {
            Command::PostcopyRun if self.run.is_none() => self.run = Some(end),
            Command::PostcopyResume => self.resume = Some(end),
            _ => {}
        }
    }

    /// Whether RUN has passed, on this connection or an earlier one.
    pub fn has_run(&self) -> bool {
        self.run.is_some_and(|run| run <= self.passed)
    }

    /// How many of so many bytes may pass on the main channel before the next cut.
    pub fn admit(&self, wanted: usize) -> usize {
        match self.place() {
            None => wanted,
            Some(place) => {
                wanted.min(usize::try_from(place.saturating_sub(self.passed)).unwrap_or(usize::MAX))
            }
        }
    }

    /// So many bytes have passed.
    pub fn note_passed(&mut self, count: u64) {
        self.passed += count;
    }

    /// Whether the cut is to be made now.
    pub fn is_due(&self) -> bool {
        self.place().is_some_and(|place| place <= self.passed)
    }

    /// The cut that is due, which is made now. The next one counts from here.
    pub fn take(&mut self) -> Option<Cut> {
        if self.is_due() { self.pending.pop_front() } else { None }
    }

    /// The main channel goes on over a new connection, whatever has ended the one before.
    pub fn note_connection(&mut self) {
        if let Some(run) = &mut self.run {
            self.before += self.passed.saturating_sub(*run);
            *run = 0;
        }
        self.passed = 0;
        self.resume = None;
    }

    /// Offset on this connection at which it is to be cut, if that is known.
    fn place(&self) -> Option<u64> {
        let (from, count) = match self.pending.front()? {
            Cut::Bytes(count) => (0, *count),
            Cut::Run(count) => (self.run?, count.saturating_sub(self.before)),
            Cut::Resume(count) => (self.resume?, *count),
        };
        Some(from.saturating_add(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_bad_ones_are_refused() {
        for text in ["0", "100000", "run+0", "run+18446744073709551615", "resume+12"] {
            assert_eq!(text.parse::<Cut>().unwrap().to_string(), text);
        }
        for bad in ["", "+1", "run", "run+", "run+-1", "run++1", "RUN+1", "1k", "18446744073709551616"] {
            let e = bad.parse::<Cut>().unwrap_err();
            assert!(e.message().contains("run+100000"), "{bad}: {e}");
        }
    }

    /// Passes so many bytes in pieces, as far as they may; how many did.
    fn pass(cuts: &mut Cuts, count: usize) -> u64 {
        let mut passed = 0;
        for piece in std::iter::repeat_n(7, count / 7).chain([count % 7]) {
            let admitted = cuts.admit(piece);
            cuts.note_passed(admitted as u64);
            passed += admitted as u64;
        }
        passed
    }

    #[test]
    fn behind_run_over_several_connections() {
        let mut cuts = Cuts::new([Cut::Run(10), Cut::Run(25), Cut::Run(25), Cut::Bytes(3)]);
        assert_eq!(pass(&mut cuts, 100), 100, "nobody runs");
        cuts.note_command(&Command::PostcopyRun, 105);
        assert!(!cuts.has_run(), "it is seen, and has not passed");
        assert_eq!(pass(&mut cuts, 100), 15);
        assert!(cuts.has_run());
        assert_eq!(cuts.take(), Some(Cut::Run(10)));
        cuts.note_connection();
        assert_eq!(pass(&mut cuts, 100), 15);
        assert_eq!(cuts.take(), Some(Cut::Run(25)));
        cuts.note_connection();
        assert!(cuts.is_due(), "at once");
        assert_eq!(cuts.take(), Some(Cut::Run(25)));
        cuts.note_connection();
        assert_eq!(pass(&mut cuts, 100), 3);
        assert_eq!((cuts.take(), cuts.take()), (Some(Cut::Bytes(3)), None));
        assert!(cuts.is_empty());
        assert_eq!(pass(&mut cuts, 100), 100);
    }

    #[test]
    fn behind_each_resume() {
        let mut cuts = Cuts::new([Cut::Resume(5), Cut::Resume(0)]);
        assert_eq!(pass(&mut cuts, 50), 50);
        cuts.note_connection();
        assert_eq!(pass(&mut cuts, 50), 50);
        // Seen only when more of it has passed already than may.
        cuts.note_command(&Command::PostcopyResume, 40);
        assert!(cuts.is_due() && cuts.admit(1) == 0);
        assert_eq!(cuts.take(), Some(Cut::Resume(5)));
        assert!(cuts.is_due(), "the same RESUME, if the connection goes on");
        cuts.note_connection();
        assert!(!cuts.is_due());
        cuts.note_command(&Command::PostcopyResume, 8);
        assert_eq!(pass(&mut cuts, 50), 8);
        assert_eq!(cuts.take(), Some(Cut::Resume(0)));
    }

    #[test]
    fn a_connection_that_breaks_by_itself_takes_no_cut_away() {
        let mut cuts = Cuts::new([Cut::Bytes(50)]);
        assert_eq!(pass(&mut cuts, 30), 30);
        cuts.note_connection();
        assert_eq!(pass(&mut cuts, 60), 50);
        assert!(cuts.is_due());
    }
}
