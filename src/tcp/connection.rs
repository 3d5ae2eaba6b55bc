//! A TCP connection, as far as its packets were captured: both directions, where each begins, and how it ends.
//!
//! ```text
//! opener  SYN n           ------>            n + 1 is the opener's first byte
//!         <------  SYN m, ACK n + 1          m + 1 is the acceptor's; n + 1 as well, if SYN was not captured
//!         ACK m + 1       ------>            m + 1 once more
//! ```
//! A direction of which none of that was captured begins somewhere, with the first bytes that come.

use core::hash::{Hash, Hasher};
use core::net::{IpAddr, SocketAddr};

use super::Segment;
use super::reassembly::{Counts, Deliver, Reassembly};
use crate::Result;
use crate::capture::Timestamp;

/// An end of a connection: the first one, or the second, in the order of their addresses.
pub(super) type Side = usize;

/// Both ends of a connection, whoever opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends(pub(super) [SocketAddr; 2]);

impl Hash for Ends {
    /// In few and large pieces: this is done for every packet.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b] = self.0;
        match (a.ip(), b.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                state.write_u64((u64::from(a.to_bits()) << 32) | u64::from(b.to_bits()));
            }
            (a, b) => [a, b].hash(state),
        }
        state.write_u32((u32::from(a.port()) << 16) | u32::from(b.port()));
    }
}

impl Ends {
    /// The connection that a segment belongs to, and which end has sent it.
    pub(super) fn of(segment: &Segment<'_>) -> (Self, Side) {
        match segment.source <= segment.destination {
            true => (Self([segment.source, segment.destination]), 0),
            false => (Self([segment.destination, segment.source]), 1),
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Half {
    /// `None` as long as it is not known where it begins.
    stream: Option<Reassembly>,
    /// Whether the first byte is the first one that was sent.
    exact: bool,
    first: u32,
    packets: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    halves: [Half; 2],
    opener: Option<Side>,
    reset: bool,
    pub(super) first_time: Timestamp,
    pub(super) last_time: Timestamp,
}

impl Connection {
    pub(super) fn new(time: Timestamp) -> Self {
        Self { halves: Default::default(), opener: None, reset: false, first_time: time, last_time: time }
    }

    /// Whether a segment opens another connection between the same ports.
    pub(super) fn is_reopened_by(&self, side: Side, segment: &Segment<'_>) -> bool {
        let half = &self.halves[side];
        segment.syn
            && half.stream.is_some()
            && !(half.exact && half.first == segment.sequence.wrapping_add(1))
    }

    /// Takes a segment in. `deliver` gets the bytes of the side that sent it.
    ///
    /// # Errors
    /// Those of `deliver`.
    pub(super) fn handle(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        time: Timestamp,
        deliver: Deliver<'_>,
    ) -> Result<()> {
        self.last_time = self.last_time.max(time);
        self.halves[side].packets += 1;
        let mut sequence = segment.sequence;
        if segment.syn {
            sequence = sequence.wrapping_add(1);
            self.halves[side].begin(sequence, true);
            let is_answer = segment.acknowledgement.is_some();
            self.opener.get_or_insert(if is_answer { 1 - side } else { side });
        }
        if let Some(number) = segment.acknowledgement.filter(|_| !segment.rst) {
            // An opener that has sent nothing acknowledges SYN.
            let opens = self.opener == Some(side) && self.halves[side].is_fresh();
            if segment.syn || opens {
                self.halves[1 - side].begin(number, true);
            }
            if let Some(stream) = &mut self.halves[1 - side].stream {
                stream.handle_acknowledgement(number, time);
            }
        }
        if segment.rst {
            // What it carries are words about the reason, if anything.
            self.reset = true;
            return Ok(());
        }
        if segment.length == 0 && !segment.fin {
            return Ok(());
        }
        let half = &mut self.halves[side];
        half.begin(sequence, false);
        let Some(stream) = &mut half.stream else { return Ok(()) };
        if segment.fin {
            stream.handle_end(sequence.wrapping_add(segment.length as u32));
        }
        stream.handle_data(sequence, segment.data, segment.length, time, deliver)
    }

    /// Gives the first missing bytes of the fuller direction up; which one it is.
    pub(super) fn fuller(&self) -> Side {
        usize::from(self.halves[1].weight() > self.halves[0].weight())
    }

    /// Gives the first missing bytes of one direction up.
    ///
    /// # Errors
    /// Those of `deliver`.
    pub(super) fn give_up(&mut self, side: Side, deliver: Deliver<'_>) -> Result<()> {
        match &mut self.halves[side].stream {
            Some(stream) => stream.give_up(deliver),
            None => Ok(()),
        }
    }

    /// Nothing comes any more: the known end of that direction.
    ///
    /// # Errors
    /// Those of `deliver`.
    pub(super) fn finish(&mut self, side: Side, deliver: Deliver<'_>) -> Result<u64> {
        match &mut self.halves[side].stream {
            Some(stream) => stream.finish(deliver),
            None => Ok(0),
        }
    }

    /// Who opened it.
    pub(super) fn opener(&self) -> Option<Side> {
        self.opener
    }

    /// Whether the bytes of that direction are known to begin with the first one.
    pub(super) fn is_exact(&self, side: Side) -> bool {
        self.halves[side].exact
    }

    /// Whether nothing was captured of what one side has sent.
    pub(super) fn is_one_way(&self) -> bool {
        self.halves.iter().any(|half| half.packets == 0)
    }

    /// Whether the end was captured: RST, or FIN of every side of which there are packets.
    pub(super) fn is_closed(&self) -> bool {
        let has_ended = |half: &Half| half.stream.as_ref().is_some_and(Reassembly::has_ended);
        self.reset || self.halves.iter().all(|half| half.packets == 0 || has_ended(half))
    }

    /// Memory that is taken by what came out of order.
    pub(super) fn weight(&self) -> usize {
        self.halves.iter().map(Half::weight).sum()
    }

    /// What was odd, of both directions.
    pub(super) fn counts(&self) -> Counts {
        let of = |half: &Half| half.stream.as_ref().map(Reassembly::counts).unwrap_or_default();
        let [a, b] = [of(&self.halves[0]), of(&self.halves[1])];
        Counts {
            retransmitted: a.retransmitted + b.retransmitted,
            out_of_order: a.out_of_order + b.out_of_order,
            conflicting: a.conflicting + b.conflicting,
        }
    }
}

impl Half {
    fn begin(&mut self, first: u32, exact: bool) {
        if self.stream.is_none() {
            self.stream = Some(Reassembly::new(first));
            (self.exact, self.first) = (exact, first);
        }
    }

    /// Whether it is known where it begins, and nothing has come.
    fn is_fresh(&self) -> bool {
        self.exact && self.stream.as_ref().is_some_and(|stream| stream.offset() == 0 && stream.weight() == 0)
    }

    fn weight(&self) -> usize {
        self.stream.as_ref().map_or(0, Reassembly::weight)
    }
}
