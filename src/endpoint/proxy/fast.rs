//! Bytes that nobody has to look at: they go from socket to socket without passing through this process, and from there into the
//! recording by a thread of their own.
//!
//! ```text
//! from --splice--> through --splice--> to
//!                     '--tee--> Aside --> recording, once the bytes are on their way
//! ```
//! A connection comes here when it is named and has moved as much as pays for pipes and a thread, unless its bytes decide what happens
//! to it. It goes back to copying where something cannot do this, with nothing in between.

use std::sync::atomic::Ordering;

use super::aside::Aside;
use super::pump::Pump;
use crate::error::Result;
use crate::transport::{Connection, Pipe};

/// Bytes that are copied first. What is not worth a pipe stays without: most channels that answer, and small ones.
const BEGIN: u64 = 1 << 20;

/// What a pipe holds at most. The kernel counts pages, which are seldom full, and gives a user 64 MiB of them.
const PIPE: usize = 512 << 10;

/// How the fast way has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// With the end of the bytes.
    Over,
    /// Before the next byte: the rest has to be copied.
    Copy,
}

impl Pump {
    /// Whether this direction has moved enough, and nobody has to see what it moves.
    pub(super) fn is_worth_splicing(&self) -> bool {
        self.shared.may_splice && self.ends.passed[self.direction as usize].load(Ordering::Relaxed) >= BEGIN
    }

    /// Forwards the rest of this direction.
    pub(super) fn splice(&self, from: &Connection, to: &Connection) -> Result<Way> {
        if !from.is_socket() || !to.is_socket() {
            return Ok(Way::Copy);
        }
        // Without descriptors to spare, the migration still goes on.
        let Ok(through) = Pipe::new(PIPE) else { return Ok(Way::Copy) };
        let Ok(mut aside) = self.aside().transpose() else { return Ok(Way::Copy) };
        loop {
            // Nothing waits here for bytes that may never come.
            if let Some(aside) = aside.as_mut().filter(|_| !from.has_bytes())
                && aside.hand_over().is_err()
            {
                return Ok(Way::Copy);
            }
            let count = match from.splice_into(&through, PIPE) {
                Ok(None) => return Ok(Way::Copy),
                Ok(Some(0)) => return Ok(Way::Over),
                Ok(Some(count)) => count,
                Err(e) => return Err(self.not_received(from, to, e)),
            };
            let left = self.splice_on(from, to, &through, aside.as_mut(), count)?;
            if left > 0 {
                // Everything in front of them is recorded first.
                drop(aside);
                let bytes = through.take(left).map_err(|e| self.not_received(from, to, e))?;
                self.pass(&bytes, from, to, true)?;
                return Ok(Way::Copy);
            }
        }
    }

    fn aside(&self) -> Option<std::io::Result<Aside>> {
        let tap = self.ends.tap.clone()?;
        let name = format!("proxy-{}-aside", self.number);
        Some(Aside::new(tap, self.direction, &self.shared.backlog, name, PIPE))
    }

    /// Sends the `count` bytes of `through` on, and records them; how many are left because they have to be copied.
    fn splice_on(
        &self,
        from: &Connection,
        to: &Connection,
        through: &Pipe,
        mut aside: Option<&mut Aside>,
        count: usize,
    ) -> Result<usize> {
        let mut left = count;
        // Of these, the recording has its own already.
        let mut doubled = 0;
        while left > 0 {
            if doubled == 0 {
                let more = aside.as_mut().map_or(Ok(left), |aside| aside.double(through, left));
                let Ok(more) = more else { break };
                doubled = more;
            }
            if let Some(aside) = &mut aside {
                aside.announce(to);
            }
            let taken = match to.splice_from(through, doubled) {
                Ok(None) => break,
                Ok(Some(taken)) => taken,
                Err(e) => return Err(self.not_sent(from, to, e)),
            };
            (left, doubled) = (left - taken, doubled - taken);
            self.count(taken);
            if let Some(aside) = &mut aside {
                aside.note(taken);
                if doubled == 0 && (aside.is_due() || !to.takes_bytes()) && aside.hand_over().is_err() {
                    break;
                }
            }
        }
        Ok(left)
    }
}
