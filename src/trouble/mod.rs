//! Trouble on purpose: a script of faults, and what they come to on a channel.
//!
//! ```text
//! cut after packet 3 of channel 1 ; delay SYNC 2s ; flip bit 5 of flags in page 100 ; drop return path
//!
//! bytes of a channel --> Tracker: records and where they are --> Saboteur: rules that apply --> Step: write, wait, cut, ..
//! ```
//! Rules are separated by `;` or line ends; `#` begins a remark. Everything is counted from 0, in bytes, records or bits. A rule applies once
//! on each channel that it speaks of, and where it names none, on the first that has such a place.
//!
//! | rule | what happens |
//! |---|---|
//! | `cut WHERE` | the connection ends, in both directions |
//! | `reset WHERE` | the connection is broken off (RST) |
//! | `half-close WHERE` | the receiver is told that nothing follows; what follows is dropped |
//! | `stall [TIME] WHERE`, `stall mid-page [N]` | nothing passes any more, or not for that time |
//! | `delay PLACE TIME` | the record comes later, and all behind it |
//! | `trickle N B/ms [WHERE]` | from there on so many bytes a millisecond |
//! | `drop PLACE`, `drop return path` | the record, or all that the destination says, does not arrive |
//! | `duplicate PLACE` | the record arrives twice in a row |
//! | `duplicate CHANNEL` | a second connection says the same first bytes (hello, header) |
//! | `flip bit N of FIELD in PLACE`, `flip bit N of byte N of CHANNEL` | one bit is wrong; bit 0 is the least significant |
//! | `set FIELD to N in PLACE` | a number is another one |
//! | `swap CHANNEL CHANNEL`, `swap channels` | two multifd channels say each other's number |
//!
//! WHERE is `at PLACE` (in front of it), `in PLACE` (in the middle) or `after PLACE`. PLACE is one of
//!
//! | place | fields |
//! |---|---|
//! | `byte N of CHANNEL` | |
//! | `page N` | `flags`, `word`, `data` |
//! | `idx N of CHANNEL` (device state) | `magic`, `version`, `flags`, `data` |
//! | `packet N`, `SYNC [N]` `of CHANNEL` | `magic`, `version`, `flags`, `pages`, `size`, `number`, `zero`, `block`, `offsets`, `data` |
//! | `hello of CHANNEL` | `magic`, `version`, `uuid`, `id` |
//! | `section NAME [N]`, `eos [N]` | `kind`, `id`; `word` |
//! | a command by QEMU's name, `POSTCOPY_RUN [N]` | `code`, `length`, `data` |
//! | a message of the return path, `PONG [N]` | `kind`, `length`, `data` |
//!
//! CHANNEL is `main`, `return path`, `preempt`, `multifd-N` or `channel N`. Faults are made of what passes, so that a bit that was flipped does
//! not change where the next rule applies.

mod random;
mod saboteur;
mod script;
mod tracker;

pub use random::random;
pub use saboteur::{Done, Saboteur, Step};
pub use script::{Action, Channel, Place, Position, Rule, Script, Spot};
