//! What a new connection is, as destinations of each release decide it.
//!
//! ```text
//! up to 7.2   by order: the first is the main channel, all others are multifd, or preempt
//! 8.0         by the first four bytes where they can be peeked at and multifd is on; otherwise by order
//! 10.1        by the first four bytes wherever they can be peeked at; otherwise by order
//! ```
//! The preempt channel has no magic, and bytes inside TLS cannot be looked at before the handshake: there is only the order.
//! Source: `migration/migration.c`, `migration_ioc_process_incoming`; from 11.0 `migration/channel.c`.

use crate::dialect::{Dialect, Difference};
use crate::wire::{FileHeader, MULTIFD_MAGIC};

/// What a destination has and knows when a connection comes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// It has a main channel.
    pub has_main: bool,
    /// Multifd channels that it expects; 0 if capability `multifd` is off.
    pub expected: usize,
    /// Multifd channels that it has.
    pub arrived: usize,
    /// Capability `postcopy-ram` is on.
    pub postcopy: bool,
    /// Capability `postcopy-preempt` is on.
    pub preempt: bool,
    /// A postcopy migration waits for a new connection (`postcopy-paused`).
    pub paused: bool,
}

/// What a connection begins with, as far as it can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// These four bytes.
    Bytes([u8; 4]),
    /// Nothing can be seen: TLS, a pipe, a file.
    Hidden,
}

/// What a connection is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The main channel.
    Main,
    /// A multifd channel.
    Multifd,
    /// The preempt channel.
    Preempt,
    /// Dropped, and the migration goes on.
    Ignored,
    /// The migration fails, with this reason.
    Refused(&'static str),
}

/// A verdict, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classification {
    /// What the connection is taken for.
    pub verdict: Verdict,
    /// Whether it is only the order of arrival that says so: the first of two connections that come at the same time may be
    /// either.
    pub by_order: bool,
}

/// What a destination of that dialect takes a connection for; the newest one for `any`.
pub fn classify(dialect: Dialect, situation: Situation, first: First) -> Classification {
    let dialect = if dialect == Dialect::ANY { Dialect::newest() } else { dialect };
    let multifd = situation.expected > 0;
    let is_complete = situation.has_main && situation.arrived >= situation.expected;
    let peeks = match first {
        First::Hidden => None,
        First::Bytes(_) if is_complete => None,
        First::Bytes(bytes) if dialect.has(Difference::MultifdPeekAlways) => Some((bytes, true)),
        First::Bytes(bytes) if dialect.has(Difference::MultifdPeek) && multifd && !situation.postcopy => {
            Some((bytes, false))
        }
        First::Bytes(_) => None,
    };
    match peeks {
        Some((bytes, is_exact)) => {
            Classification { verdict: by_magic(bytes, is_exact, situation), by_order: false }
        }
        None => Classification { verdict: by_order(situation, is_complete), by_order: true },
    }
}

fn by_magic(bytes: [u8; 4], is_exact: bool, situation: Situation) -> Verdict {
    match u32::from_be_bytes(bytes) {
        FileHeader::MAGIC => Verdict::Main,
        MULTIFD_MAGIC if situation.expected == 0 => {
            Verdict::Refused("a multifd channel, and capability multifd is off (a stock destination aborts)")
        }
        // From 8.0 to 10.0 whatever is not the main channel is a multifd one, and found wanting there.
        MULTIFD_MAGIC => Verdict::Multifd,
        _ if !is_exact => Verdict::Multifd,
        // A postcopy migration that is taken up again begins without a header.
        _ if situation.paused && !situation.has_main => Verdict::Main,
        _ => Verdict::Refused("unknown channel magic"),
    }
}

fn by_order(situation: Situation, is_complete: bool) -> Verdict {
    match situation {
        Situation { has_main: false, .. } => Verdict::Main,
        _ if !is_complete => Verdict::Multifd,
        Situation { preempt: true, .. } => Verdict::Preempt,
        _ => Verdict::Ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: First = First::Bytes(*b"QEVM");
    const MULTIFD: First = First::Bytes([0x11, 0x22, 0x33, 0x44]);
    const PAGES: First = First::Bytes([0, 0, 0, 0]);

    fn verdicts(situation: Situation, first: First) -> [Verdict; 4] {
        ["5.2", "7.2", "10.0", "11.1"].map(|d| classify(d.parse().unwrap(), situation, first).verdict)
    }

    #[test]
    fn a_multifd_channel_that_is_quicker_than_the_main_one() {
        let empty = Situation { expected: 2, ..Situation::default() };
        use Verdict::{Main, Multifd};
        assert_eq!(verdicts(empty, MULTIFD), [Main, Main, Multifd, Multifd]);
        assert_eq!(verdicts(empty, MAIN), [Main; 4]);
        assert_eq!(verdicts(empty, First::Hidden), [Main; 4], "inside TLS the first handshake wins");
        assert!(classify(Dialect::ANY, empty, First::Hidden).by_order);
    }

    #[test]
    fn multifd_where_nobody_expects_it() {
        let off = Situation::default();
        let [old, _, middle, new] = verdicts(off, MULTIFD);
        assert_eq!((old, middle), (Verdict::Main, Verdict::Main));
        assert!(matches!(new, Verdict::Refused(_)));
        let later = Situation { has_main: true, ..off };
        assert_eq!(verdicts(later, MULTIFD), [Verdict::Ignored; 4]);
    }

    #[test]
    fn what_comes_when_all_are_there() {
        let full = Situation { has_main: true, expected: 2, arrived: 2, ..Situation::default() };
        assert_eq!(verdicts(full, MULTIFD), [Verdict::Ignored; 4]);
        let preempt = Situation { preempt: true, postcopy: true, ..full };
        assert_eq!(verdicts(preempt, PAGES), [Verdict::Preempt; 4]);
    }

    #[test]
    fn unknown_first_bytes() {
        let waiting = Situation { has_main: true, expected: 2, ..Situation::default() };
        let [.., middle, new] = verdicts(waiting, PAGES);
        assert_eq!((middle, new), (Verdict::Multifd, Verdict::Refused("unknown channel magic")));
        let paused = Situation { paused: true, postcopy: true, ..Situation::default() };
        assert_eq!(verdicts(paused, PAGES), [Verdict::Main; 4]);
        let postcopy = Situation { postcopy: true, has_main: true, expected: 2, ..Situation::default() };
        assert_eq!(verdicts(postcopy, PAGES)[2], Verdict::Multifd, "with postcopy there is only the order");
    }
}
