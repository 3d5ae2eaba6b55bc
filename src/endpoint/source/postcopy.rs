//! Postcopy from the source's side: what is asked for, and what came of it.

use std::time::Duration;

use super::service::PageRequests;
use super::urgent::PreemptDeparture;
use crate::error::Error;

/// How a source switches to postcopy, and what it does when that breaks. What is sent around it follows from its dialect.
///
/// Pages of images and patterns are served behind the switch; blocks that keep the template's pages are sent whole before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Postcopy {
    /// Share of the pages that is sent before the switch, in per cent.
    pub percent: u8,
    /// Whether pages that are asked for have a channel of their own (`postcopy-preempt`).
    pub preempt: bool,
    /// How long a broken migration tries to reach its destination again. Not at all: it fails. So does one with multifd channels of a
    /// release before 8.1, which needs them in postcopy, too.
    pub recover: Duration,
}

impl Postcopy {
    /// A switch when so many per cent of the pages have been sent, without preempt channel, and half a minute to recover in.
    pub fn at(percent: u8) -> Self {
        Self { percent, preempt: false, recover: Duration::from_secs(30) }
    }
}

/// What happens to a migration in postcopy while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Turn<'a> {
    /// Its connections are gone, for this reason; the destination is to be reached again.
    Paused(&'a Error),
    /// It has been reached, and the migration goes on.
    Resumed,
}

/// Who is told of turns.
pub(super) type Notice = Box<dyn FnMut(Turn<'_>) + Send>;

/// What came of postcopy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PostcopyDeparture {
    /// Whether it has switched.
    pub switched: bool,
    /// How often its connections broke.
    pub pauses: u32,
    /// What went over preempt channels, if there was one.
    pub preempt: Option<PreemptDeparture>,
    /// What the destination has asked for.
    pub requests: PageRequests,
}
