//! Whether received state is what its own header says.

use super::{HEADER_LEN, MAGIC, Maker, Run, owner};

/// Takes a device's state in order, in pieces of any size, and compares it with what it must be.
#[derive(Clone, Debug)]
pub struct SyntheticCheck {
    owner: u64,
    /// Bytes that have come.
    come: u64,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// In the header; what has come of it.
    Header([u8; HEADER_LEN as usize]),
    /// Behind it.
    Body(Maker),
    /// State of a device that is none of ours.
    Foreign,
    Different(u64),
}

/// What came of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticVerdict {
    /// No state, or that of another device.
    Foreign,
    /// All of it has come, unchanged.
    Equal,
    /// This byte is the first wrong one.
    Different(u64),
    /// What has come is right, but ends here.
    Short(u64),
}

impl SyntheticCheck {
    /// A check of the state of that device.
    pub fn new(name: &[u8], instance: u32) -> Self {
        let state = State::Header([0; HEADER_LEN as usize]);
        Self { owner: owner(name, instance), come: 0, state }
    }

    /// Takes the next bytes.
    pub fn handle(&mut self, mut bytes: &[u8]) {
        if let State::Header(header) = &mut self.state {
            let (of_header, rest) = bytes.split_at(bytes.len().min((HEADER_LEN - self.come) as usize));
            let at = self.come as usize;
            header[at..at + of_header.len()].copy_from_slice(of_header);
            self.come += of_header.len() as u64;
            bytes = rest;
            self.state = after(*header, self.come as usize, self.owner);
        }
        if let State::Body(maker) = self.state {
            let size = maker.size();
            let (within, beyond) =
                bytes.split_at(usize::try_from(size - self.come).unwrap_or(usize::MAX).min(bytes.len()));
            if let Some(at) = maker.first_wrong(self.come, within) {
                self.state = State::Different(self.come + at as u64);
            } else if !beyond.is_empty() {
                self.state = State::Different(size);
            } else {
                self.come += within.len() as u64;
            }
        }
    }

    /// Takes bytes that have been found to be these, if they are the next ones. `false`: they must be handled.
    pub(in crate::device_state) fn pass(&mut self, run: &Run) -> bool {
        let is_next =
            matches!(self.state, State::Body(maker) if maker == run.maker) && self.come == run.offset;
        if is_next {
            self.come += run.length;
        }
        is_next
    }

    /// What the state is made of, if it is made up and its header has come.
    pub(in crate::device_state) fn maker(&self) -> Option<Maker> {
        match self.state {
            State::Body(maker) => Some(maker),
            _ => None,
        }
    }

    /// What the header must say of whose state it is.
    pub(in crate::device_state) fn owner(&self) -> u64 {
        self.owner
    }

    /// Whether nothing that comes can change the verdict.
    pub(in crate::device_state) fn is_settled(&self) -> bool {
        matches!(self.state, State::Foreign | State::Different(_))
    }

    /// What came of it.
    pub fn verdict(&self) -> SyntheticVerdict {
        match self.state {
            State::Foreign => SyntheticVerdict::Foreign,
            State::Header(_) if self.come < 8 => SyntheticVerdict::Foreign,
            State::Body(maker) if self.come == maker.size() => SyntheticVerdict::Equal,
            State::Header(_) | State::Body(_) => SyntheticVerdict::Short(self.come),
            State::Different(at) => SyntheticVerdict::Different(at),
        }
    }
}

/// The state behind `come` bytes of the header.
fn after(header: [u8; HEADER_LEN as usize], come: usize, owner: u64) -> State {
    if header[..come.min(8)] != MAGIC.to_le_bytes()[..come.min(8)] {
        return State::Foreign;
    }
    if come < header.len() {
        return State::Header(header);
    }
    // Otherwise it is the state of another device, say.
    Maker::of_header(&header, owner).map_or(State::Different(16), State::Body)
}

#[cfg(test)]
mod tests {
    use super::super::SyntheticDevice;
    use super::*;

    fn state(size: usize) -> Vec<u8> {
        let mut state = vec![0; size];
        SyntheticDevice::new("vfio", 3, size as u64, 100, 9).unwrap().fill(0, &mut state);
        state
    }

    fn verdict(bytes: &[u8], step: usize) -> SyntheticVerdict {
        let mut check = SyntheticCheck::new(b"vfio", 3);
        bytes.chunks(step).for_each(|piece| check.handle(piece));
        check.verdict()
    }

    #[test]
    fn equal_in_pieces_of_any_size() {
        for size in [32, 33, 39, 40, 5000] {
            for step in [1, 3, 8, 31, 1024, 1500, 8192] {
                assert_eq!(verdict(&state(size), step), SyntheticVerdict::Equal, "{size}, {step}");
            }
        }
    }

    #[test]
    fn every_wrong_byte_is_named() {
        let good = state(3000);
        for at in (8..3000).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            for step in [1, 777, 3000] {
                // A seed is not known; what follows from it shows behind the header. A length shows at the end.
                match (at, verdict(&bad, step)) {
                    (8..16, SyntheticVerdict::Different(32..40)) => {}
                    (16..24, SyntheticVerdict::Different(_) | SyntheticVerdict::Short(3000)) => {}
                    (24..32, SyntheticVerdict::Different(16)) => {}
                    (32.., SyntheticVerdict::Different(found)) => assert_eq!(found, at as u64),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn short_long_exchanged_and_foreign() {
        let good = state(3000);
        assert_eq!(verdict(&good[..2999], 64), SyntheticVerdict::Short(2999));
        assert_eq!(verdict(&good[..20], 64), SyntheticVerdict::Short(20));
        assert_eq!(verdict(&[&good[..], b"x"].concat(), 64), SyntheticVerdict::Different(3000));
        let exchanged = [&good[..1000], &good[2000..], &good[1000..2000]].concat();
        assert_eq!(verdict(&exchanged, 64), SyntheticVerdict::Different(1000));
        let mut other = vec![0; 3000];
        SyntheticDevice::new("vfio", 4, 3000, 100, 9).unwrap().fill(0, &mut other);
        assert_eq!(verdict(&other, 64), SyntheticVerdict::Different(16));
        assert_eq!(verdict(b"", 1), SyntheticVerdict::Foreign);
        assert_eq!(verdict(b"migwir", 1), SyntheticVerdict::Foreign);
        assert_eq!(verdict(&[0x7e; 3000], 64), SyntheticVerdict::Foreign);
    }
}
