//! Makes the words of a state again, from what its header says; and finds out where in it some bytes stand.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{HEADER_LEN, HEADER_WORDS, MAGIC, STEP, owner};

/// All that the state of a synthetic device follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device_state) struct Maker {
    header: [u64; HEADER_WORDS],
    /// The word that would be word 0 if there were no header.
    start: u64,
}

/// Some bytes of a state, which can be made again and need not be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::device_state) struct Run {
    pub(in crate::device_state) maker: Maker,
    /// Where in the state they stand.
    pub(in crate::device_state) offset: u64,
    pub(in crate::device_state) length: u64,
}

/// What undoes a multiplication by [`STEP`].
const STEP_BACK: u64 = {
    // Each round doubles the bits that are right; of an odd number and itself three are.
    let (mut back, mut round) = (STEP, 0);
    while round < 5 {
        back = back.wrapping_mul(2_u64.wrapping_sub(STEP.wrapping_mul(back)));
        round += 1;
    }
    back
};

impl Maker {
    pub(super) fn new(name: &[u8], instance: u32, size: u64, seed: u64) -> Self {
        Self::with([MAGIC, seed, size, owner(name, instance)])
    }

    /// By the header that `bytes` begin with, if it is that of `owner`.
    pub(in crate::device_state) fn of_header(bytes: &[u8], owner: u64) -> Option<Self> {
        let words = bytes.get(..HEADER_LEN as usize)?.as_chunks::<8>().0;
        let mut header = [0; HEADER_WORDS];
        header.iter_mut().zip(words).for_each(|(to, word)| *to = u64::from_le_bytes(*word));
        let [magic, _, size, found] = header;
        (magic == MAGIC && found == owner && size >= HEADER_LEN).then(|| Self::with(header))
    }

    fn with(header: [u64; HEADER_WORDS]) -> Self {
        Self { header, start: xxh3_64_with_seed(b"migwire", header[1]) }
    }

    /// Bytes of the whole state.
    pub(super) fn size(&self) -> u64 {
        self.header[2]
    }

    /// Where runs end at the latest. A header can say anything; what really comes stays far below.
    fn end(&self) -> u64 {
        self.size().min(1 << 62)
    }

    /// Writes the state from byte `offset` on.
    pub(super) fn fill(&self, offset: u64, out: &mut [u8]) {
        let (odd, rest) = out.split_at_mut(odd(offset, out.len()));
        for (at, byte) in (offset..).zip(&mut *odd) {
            *byte = self.byte(at);
        }
        let mut next = self.word(offset + odd.len() as u64);
        let (whole, last) = rest.as_chunks_mut::<8>();
        for chunk in whole {
            *chunk = next.to_le_bytes();
            next = next.wrapping_add(STEP);
        }
        last.copy_from_slice(&next.to_le_bytes()[..last.len()]);
    }

    /// The first wrong one of `bytes`, which should stand at `offset`.
    pub(super) fn first_wrong(&self, offset: u64, bytes: &[u8]) -> Option<usize> {
        let wrong = |(at, byte): (u64, &u8)| *byte != self.byte(at);
        let slow = |from: usize, to: usize| {
            (offset + from as u64..).zip(&bytes[from..to]).position(wrong).map(|at| from + at)
        };
        let odd = odd(offset, bytes.len());
        if let Some(at) = slow(0, odd) {
            return Some(at);
        }
        // Blocks of words, without a branch in them; where one is wrong it is looked at byte by byte.
        const BLOCK: usize = 1024;
        let mut at = odd;
        let mut next = self.word(offset + odd as u64);
        for block in bytes[odd..].chunks_exact(BLOCK) {
            let mut differ = 0;
            for chunk in block.as_chunks::<8>().0 {
                differ |= u64::from_le_bytes(*chunk) ^ next;
                next = next.wrapping_add(STEP);
            }
            if differ != 0 {
                return slow(at, at + BLOCK);
            }
            at += BLOCK;
        }
        slow(at, bytes.len())
    }

    /// Where `bytes` stand as a whole, if they are a part of the state. As no word comes twice, it is one place at most, unless there
    /// is not even a word of them.
    pub(in crate::device_state) fn find(&self, bytes: &[u8]) -> Option<Run> {
        let length = bytes.len() as u64;
        let is_there = |offset: u64| {
            let fits = offset.checked_add(length).is_some_and(|end| end <= self.end());
            fits && self.first_wrong(offset, bytes).is_none()
        };
        let places = (0..8).filter_map(|odd| {
            let word = u64::from_le_bytes(*bytes.get(odd..)?.first_chunk()?);
            let number = word.wrapping_sub(self.start).wrapping_mul(STEP_BACK);
            number.checked_mul(8)?.checked_sub(odd as u64)
        });
        let offset = std::iter::once(0).chain(places).find(|offset| is_there(*offset))?;
        Some(Run { maker: *self, offset, length })
    }

    fn word(&self, at: u64) -> u64 {
        match self.header.get(usize::try_from(at / 8).unwrap_or(usize::MAX)) {
            Some(word) => *word,
            None => self.start.wrapping_add((at / 8).wrapping_mul(STEP)),
        }
    }

    fn byte(&self, at: u64) -> u8 {
        self.word(at).to_le_bytes()[(at % 8) as usize]
    }
}

impl Run {
    /// Where it ends.
    fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// `bytes`, if they are what follows in the state.
    pub(in crate::device_state) fn next(&self, bytes: &[u8]) -> Option<Self> {
        let (offset, length) = (self.end(), bytes.len() as u64);
        let is_next = length <= self.maker.end() - offset && self.maker.first_wrong(offset, bytes).is_none();
        is_next.then_some(Self { maker: self.maker, offset, length })
    }

    /// Both as one, if `other` stands behind it.
    pub(in crate::device_state) fn joined(&self, other: &Self) -> Option<Self> {
        let is_next = self.maker == other.maker && self.end() == other.offset;
        is_next.then_some(Self { length: self.length + other.length, ..*self })
    }

    /// Makes the bytes again, and hands them over in pieces.
    pub(in crate::device_state) fn make(&self, mut each: impl FnMut(&[u8])) {
        let mut buffer = [0; 4096];
        let mut at = self.offset;
        while at < self.end() {
            let count = buffer.len().min(usize::try_from(self.end() - at).unwrap_or(usize::MAX));
            self.maker.fill(at, &mut buffer[..count]);
            each(&buffer[..count]);
            at += count as u64;
        }
    }
}

/// How many of `length` bytes at `offset` stand in front of where the words count, and begin.
fn odd(offset: u64, length: usize) -> usize {
    let words = offset.max(HEADER_LEN).next_multiple_of(8) - offset;
    usize::try_from(words).unwrap_or(usize::MAX).min(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_found_where_it_stands() {
        assert_eq!(STEP.wrapping_mul(STEP_BACK), 1);
        let maker = Maker::new(b"vfio", 1, 203, 7);
        let mut state = [0; 203];
        maker.fill(0, &mut state);
        assert_eq!(Maker::of_header(&state, owner(b"vfio", 1)), Some(maker));
        assert_eq!(Maker::of_header(&state, owner(b"vfio", 2)), None);
        assert_eq!(Maker::of_header(&state[..31], owner(b"vfio", 1)), None);
        let run = |from: usize, to: usize| Run { maker, offset: from as u64, length: (to - from) as u64 };
        // Within the header there is no word to go by, except from its beginning.
        for from in [0].into_iter().chain(32..188) {
            for to in from + 15..=203 {
                assert_eq!(maker.find(&state[from..to]), Some(run(from, to)), "{from}..{to}");
            }
        }
        for at in 32..203 {
            let mut wrong = state;
            wrong[at] ^= 1;
            assert_eq!(maker.find(&wrong[32..]), None, "{at}");
        }
        // What would stand behind the end is no part of it.
        let mut beyond = [0; 64];
        maker.fill(168, &mut beyond);
        assert_eq!((maker.find(&beyond), maker.find(&beyond[..35])), (None, Some(run(168, 203))));
        assert_eq!(maker.find(b""), Some(run(0, 0)));
    }

    #[test]
    fn runs_follow_each_other() {
        let maker = Maker::new(b"vfio", 1, 10_001, 7);
        let mut state = [0; 10_001];
        maker.fill(0, &mut state);
        let first = maker.find(&state[..5003]).unwrap();
        let second = first.next(&state[5003..]).unwrap();
        assert_eq!((first.next(&state[5004..]), second.next(b"x")), (None, None));
        assert_eq!(second.next(b""), Some(Run { maker, offset: 10_001, length: 0 }));
        assert_eq!((first.joined(&first), second.joined(&first)), (None, None));
        let mut made = Vec::new();
        first.joined(&second).unwrap().make(|bytes| made.extend_from_slice(bytes));
        assert!(made == state);
    }
}
