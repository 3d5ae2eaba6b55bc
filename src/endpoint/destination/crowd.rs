//! Channels whose packets of device state wait for packets on other channels, and whether any of those can still come.
//!
//! ```text
//! turn 4   a packet ends: turn 5, and nobody counts
//! turn 5   channel 0 looks, and must wait: 1 of 3     channel 1 has not been woken yet, and may be the one that goes on
//!          channel 2 looks, and must wait: 2 of 3     channel 1 looks, and goes on: it waits no longer
//! ```

/// Counts channels that wait, and have looked since the last packet ended.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    turn: u64,
    count: usize,
}

/// A channel's place in the crowd: the turn at which it was counted.
#[derive(Debug, Default)]
pub(super) struct Place(Option<u64>);

impl Crowd {
    /// To be noted before a channel looks whether it must wait.
    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    /// Something has come: whoever waits has to look again.
    pub(super) fn advance(&mut self) {
        self.turn += 1;
        self.count = 0;
    }

    /// A channel has looked at that turn, and must wait. `false`: something has come since, and it has to look again.
    pub(super) fn join(&mut self, turn: u64, place: &mut Place) -> bool {
        if self.turn != turn {
            return false;
        }
        if place.0.replace(turn) != Some(turn) {
            self.count += 1;
        }
        true
    }

    /// A channel waits no longer.
    pub(super) fn leave(&mut self, place: &Place) {
        self.count -= usize::from(place.0 == Some(self.turn));
    }

    /// Channels that wait.
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_looked_again_does_not_count() {
        let (mut crowd, mut one, mut two) = (Crowd::default(), Place::default(), Place::default());
        assert!(crowd.join(crowd.turn(), &mut one) && crowd.join(crowd.turn(), &mut one));
        assert_eq!(crowd.count(), 1, "it stands there once");
        let turn = crowd.turn();
        crowd.advance();
        assert_eq!(crowd.count(), 0, "what has come may be what it waits for");
        assert!(!crowd.join(turn, &mut two), "it must look again");
        assert!(crowd.join(crowd.turn(), &mut two));
        crowd.leave(&one);
        assert_eq!(crowd.count(), 1, "one was not counted at this turn");
        assert!(crowd.join(crowd.turn(), &mut one));
        assert_eq!(crowd.count(), 2);
        crowd.leave(&two);
        assert_eq!(crowd.count(), 1);
    }
}
