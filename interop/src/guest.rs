//! What the dirtying guest guarantees about its memory, so that a guest that went on while its pages were still on their way can be judged.
//!
//! ```text
//! source, stopped at the switch                  destination, stopped later
//! pages 0 .. b written in pass p                 pages 0 .. c written in pass q, q >= p
//! pages b .. n written in pass p - 1             pages c .. n written in pass q - 1
//! ```
//!
//! Outside of what the guest writes, both images are equal byte for byte. Inside, every page is a function of its number and of the
//! passes it has seen: half of them of the last pass alone (and the random words of one page go on where those of the page before
//! ended), the others of the source's page and each pass since. So a page that is lost, stale, torn or put over newer words is seen.
//! What the guest does is told in `interop/guest/dirty.S`.

use std::fs;
use std::io;
use std::path::Path;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 4;

/// Where the guest keeps its numbers, and the page they are in.
const STATE: usize = 0x7000;
/// Its stack grows down from here; an interrupt uses a few words.
const STACK: std::ops::Range<usize> = 0x7b00..0x7c00;
const MAGIC: u32 = 0x5747_494d;

/// How far the guest had come in an image of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Passes completed, which is the number of the one under way.
    pass: u32,
    /// Pages before this one have been written in it.
    new_below: usize,
    /// Pages from this one on have not. Those between are not known, because nothing in them tells.
    old_from: usize,
}

/// Guest memory, with what the guest says about it.
struct Image {
    bytes: Vec<u8>,
    first: usize,
    pages: usize,
    pass: u32,
}

/// Whether the memory at the destination is what the guest makes of the memory at the source. The answer is how many passes it went on,
/// or the first thing that is wrong.
pub(crate) fn compare(source: &Path, destination: &Path) -> io::Result<Result<u32, String>> {
    let (source, destination) = (fs::read(source)?, fs::read(destination)?);
    Ok(judge(source, destination))
}

fn judge(source: Vec<u8>, destination: Vec<u8>) -> Result<u32, String> {
    if source.len() != destination.len() {
        return Err(format!("lengths {:#x} and {:#x} differ", source.len(), destination.len()));
    }
    let source = Image::new(source).map_err(|text| format!("at the source: {text}"))?;
    // The numbers of the destination are looked at after all else, because they may be what is broken.
    source.check_surroundings(&destination)?;
    let destination = Image::new(destination).map_err(|text| format!("at the destination: {text}"))?;
    if (source.first, source.pages) != (destination.first, destination.pages) {
        return Err(String::from("the guest's numbers at 0x7004 differ"));
    }
    if destination.pass < source.pass {
        return Err(format!("pass {} came to the destination as {}", source.pass, destination.pass));
    }
    let from = source.progress().map_err(|text| format!("at the source: {text}"))?;
    let to = destination.progress().map_err(|text| format!("at the destination: {text}"))?;
    destination.check_noise(to).map_err(|text| format!("at the destination: {text}"))?;
    for number in (0..source.pages).filter(|number| number % 8 >= 4) {
        let (before, after) = (source.words(number), destination.words(number));
        let torn: Vec<u32> =
            [from, to].into_iter().filter(|end| end.may_be_at(number)).map(|end| end.pass).collect();
        let mut ways =
            from.next_passes(number).flat_map(|next| to.next_passes(number).map(move |end| (next, end - 1)));
        if !ways.any(|way| leads(&before, &after, number, way, &torn)) {
            let (place, from, to) = (source.first + number * PAGE, source.pass, destination.pass);
            return Err(format!("page {place:#x} is not what passes {from} to {to} make of the source's"));
        }
    }
    Ok(destination.pass - source.pass)
}

impl Progress {
    /// The first pass that this page has yet to see.
    fn next_passes(self, number: usize) -> impl Iterator<Item = u32> {
        let (old, new) = (number >= self.new_below, number < self.old_from);
        old.then_some(self.pass).into_iter().chain(new.then_some(self.pass + 1))
    }

    /// Whether the guest may have been at work on this page when it was stopped.
    fn may_be_at(self, number: usize) -> bool {
        (self.new_below..self.old_from).contains(&number)
    }
}

impl Image {
    fn new(bytes: Vec<u8>) -> Result<Self, String> {
        let word = |at| word(&bytes, at);
        let (pass, pages, first, magic) = (word(STATE), word(STATE + 4), word(STATE + 8), word(STATE + 12));
        let (pages, first) = (pages as usize, first as usize);
        let end = pages.checked_mul(PAGE).and_then(|length| length.checked_add(first));
        if magic != MAGIC || pass == 0 || first < STATE + PAGE || end.is_none_or(|end| end > bytes.len()) {
            return Err(format!(
                "no guest that has completed a pass ({magic:#x}, {pass}, {pages}, {first:#x})"
            ));
        }
        Ok(Self { bytes, first, pages, pass })
    }

    fn words(&self, number: usize) -> Vec<u32> {
        let start = self.first + number * PAGE;
        (0..WORDS).map(|at| word(&self.bytes, start + at * 4)).collect()
    }

    /// Everything that the guest does not write.
    fn check_surroundings(&self, other: &[u8]) -> Result<(), String> {
        let own = self.first..self.first + self.pages * PAGE;
        let is_written =
            |at: usize| own.contains(&at) || (STATE..STATE + 4).contains(&at) || STACK.contains(&at);
        let differs = |at: &usize| self.bytes[*at] != other[*at] && !is_written(*at);
        let pages = (0..self.bytes.len()).step_by(PAGE).map(|at| at..(at + PAGE).min(self.bytes.len()));
        let mut wrong = pages.filter(|page| self.bytes[page.clone()] != other[page.clone()]);
        match wrong.find_map(|mut page| page.find(differs)) {
            None => Ok(()),
            Some(at) => Err(format!(
                "the guest does not write at {at:#x}, but there is {:#04x} at the source and {:#04x} at the destination",
                self.bytes[at], other[at]
            )),
        }
    }

    /// Finds where the pass under way has come to, from the pages that the last pass decides alone.
    fn progress(&self) -> Result<Progress, String> {
        let mut progress = Progress { pass: self.pass, new_below: 0, old_from: self.pages };
        let mut torn = None;
        for number in (0..self.pages).filter(|number| number % 8 < 4) {
            let words = self.words(number);
            let place = self.first + number * PAGE;
            // Nothing but the one page at work may be half this and half that.
            let new = matching(&words, number, self.pass);
            if new == WORDS {
                if progress.old_from < number || torn.is_some() {
                    return Err(format!(
                        "page {place:#x} is of pass {}, but one before it is older",
                        self.pass
                    ));
                }
                progress.new_below = number + 1;
            } else if matching_tail(&words, number, self.pass - 1) >= WORDS - new {
                if new > 0 && matching(&words, number, self.pass - 1) < WORDS {
                    torn = torn.or(Some(number));
                }
                progress.old_from = progress.old_from.min(number);
            } else {
                return Err(format!("page {place:#x} is of neither pass {} nor the one before", self.pass));
            }
        }
        match torn {
            Some(number) if number != progress.old_from => {
                Err(format!("page {:#x} is torn, and not the one at work", self.first + number * PAGE))
            }
            _ => Ok(progress),
        }
    }

    /// Random words go on from page to page, and from pass to pass.
    fn check_noise(&self, progress: Progress) -> Result<(), String> {
        let older = (progress.old_from..self.pages).map(|number| (number, self.pass - 1));
        let newer = (0..progress.new_below).map(|number| (number, self.pass));
        let mut last = None;
        for (number, pass) in
            older.chain(newer).filter(|(number, pass)| number % 8 < 4 && kind(*number, *pass) == 1)
        {
            let words = self.words(number);
            // The one at work is half of another kind; the next begins anew then.
            if matching(&words, number, pass) < WORDS {
                continue;
            }
            if last.is_some_and(|last| noise(last) != words[0]) {
                let place = self.first + number * PAGE;
                return Err(format!("page {place:#x} holds random words of another pass"));
            }
            last = words.last().copied();
        }
        Ok(())
    }
}

/// How a page of the first kind is written in this pass: 0 constant, 1 random, 2 zero, 3 counting.
fn kind(number: usize, pass: u32) -> u32 {
    (number as u32).wrapping_add(pass) & 3
}

fn noise(word: u32) -> u32 {
    word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
}

/// Whether this word of a page is what a pass writes. Of random words only their order is known.
fn fits(words: &[u32], at: usize, number: usize, pass: u32) -> bool {
    let wanted = match kind(number, pass) {
        0 => 0x0101_0101u32.wrapping_mul(pass).wrapping_add(0x1111_1111),
        1 if at == 0 => return true,
        1 => noise(words[at - 1]),
        2 => 0,
        _ => ((number as u32) << 16).wrapping_add(pass).wrapping_add(at as u32),
    };
    words[at] == wanted
}

/// How many words from the beginning are as a pass writes them.
fn matching(words: &[u32], number: usize, pass: u32) -> usize {
    (0..WORDS).take_while(|&at| fits(words, at, number, pass)).count()
}

/// How many words from the end are.
fn matching_tail(words: &[u32], number: usize, pass: u32) -> usize {
    let tail = (0..WORDS).rev().take_while(|&at| fits(words, at, number, pass)).count();
    // The first random word behind the tear has nothing before it that it could follow.
    if kind(number, pass) == 1 && tail < WORDS { tail + 1 } else { tail }
}

/// Whether the passes `next` to `last` make one page of the other. Words that the passes in `torn` write are not looked at: one end
/// stopped while such a pass was at work there.
fn leads(before: &[u32], after: &[u32], number: usize, (next, last): (u32, u32), torn: &[u32]) -> bool {
    let mut words = before.to_vec();
    for pass in next..=last {
        touch(&mut words, number, pass);
    }
    for &pass in torn {
        for at in touched(number, pass) {
            words[at] = after[at];
        }
    }
    next <= last + 1 && words == after
}

/// What a pass does to a page of the second kind.
fn touch(words: &mut [u32], number: usize, pass: u32) {
    for (turn, at) in touched(number, pass).enumerate() {
        match (number % 4, turn) {
            (2, _) => words[at] = pass,
            (_, 0) => words[at] = words[at].wrapping_add(1),
            _ => words[at] ^= pass,
        }
    }
}

/// The words of such a page that a pass writes, in their order.
fn touched(number: usize, pass: u32) -> impl Iterator<Item = usize> {
    let (count, step) = [(1, 1), (2, 0x7fc / 4), (16, 1), (0, 1)][number % 4];
    let first = (pass.wrapping_mul(68) & 0x7fc) as usize / 4;
    (0..count).map(move |turn| first + turn * step)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 64;
    const FIRST: usize = 0x10000;

    /// The guest, after so many words of work.
    struct Guest {
        bytes: Vec<u8>,
        noise: u32,
        pass: u32,
        number: usize,
    }

    impl Guest {
        fn new() -> Self {
            let mut guest = Self { bytes: vec![0; FIRST + (PAGES + 4) * PAGE], noise: 7, pass: 0, number: 0 };
            for (at, word) in [(4, PAGES as u32), (8, FIRST as u32), (12, MAGIC)] {
                guest.put(STATE + at, word);
            }
            guest.put(FIRST + (PAGES + 2) * PAGE + 8, 0x1234_5678);
            guest
        }

        fn put(&mut self, at: usize, word: u32) {
            self.bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }

        fn add(&mut self, at: usize) {
            self.put(at, word(&self.bytes, at).wrapping_add(1));
        }

        fn write_page(&mut self) {
            let (number, pass) = (self.number, self.pass);
            let base = FIRST + number * PAGE;
            let first = base + (pass.wrapping_mul(68) & 0x7fc) as usize;
            let count = |at: usize| ((number as u32) << 16) + pass + at as u32;
            match (number % 8, kind(number, pass)) {
                (4.., _) if pass == 0 => (0..WORDS).for_each(|at| self.put(base + at * 4, count(at))),
                (4, _) => self.add(first),
                (5, _) => {
                    self.add(first);
                    self.put(first + 0x7fc, word(&self.bytes, first + 0x7fc) ^ pass);
                }
                (6, _) => (0..16).for_each(|at| self.put(first + at * 4, pass)),
                (7, _) => {}
                (_, kind) => {
                    for at in 0..WORDS {
                        let word = match kind {
                            0 => 0x1111_1111u32.wrapping_add(0x0101_0101u32.wrapping_mul(pass)),
                            1 => {
                                self.noise = noise(self.noise);
                                self.noise
                            }
                            2 => 0,
                            _ => count(at),
                        };
                        self.put(base + at * 4, word);
                    }
                }
            }
            self.number += 1;
            if self.number == PAGES {
                (self.number, self.pass) = (0, pass + 1);
                self.put(STATE, self.pass);
            }
        }

        fn run(&mut self, pages: usize) -> Vec<u8> {
            (0..pages).for_each(|_| self.write_page());
            // Interrupts come and go.
            self.put(STACK.end - 8, pages as u32);
            self.bytes.clone()
        }
    }

    #[test]
    fn a_guest_that_went_on_is_right_wherever_it_was_stopped() {
        for before in [PAGES, PAGES + 9, PAGES * 3 + 20, PAGES * 5 - 1] {
            for more in [0, 1, 7, 30, PAGES - 1, PAGES, PAGES * 4 + 13] {
                let mut guest = Guest::new();
                let source = guest.run(before);
                let passes = (before + more) / PAGES - before / PAGES;
                assert_eq!(judge(source, guest.run(more)), Ok(passes as u32), "{before} {more}");
            }
        }
    }

    #[test]
    fn a_page_at_work_may_be_torn_and_no_other() {
        let mut guest = Guest::new();
        let source = guest.run(PAGES * 2 + 5);
        let old = guest.run(PAGES * 2 + 28);
        assert_eq!(guest.number % 8, 1);
        let next = guest.run(1);
        let page = FIRST + 33 * PAGE;
        let mut torn = old;
        torn[page..page + 400].copy_from_slice(&next[page..page + 400]);
        assert_eq!(judge(source.clone(), torn), Ok(2));
        let far = FIRST + 41 * PAGE;
        let mut torn = next;
        torn[far + 2000] ^= 1;
        assert!(judge(source, torn).unwrap_err().contains("neither pass"));
    }

    #[test]
    fn every_page_that_is_stale_or_lost_is_seen() {
        let mut guest = Guest::new();
        let source = guest.run(PAGES * 2 + 20);
        let middle = guest.run(PAGES + 3);
        let end = guest.run(PAGES + 17);
        assert_eq!(judge(source.clone(), end.clone()), Ok(2));
        // One page that nothing written around it can excuse, of every class, from both earlier moments and empty.
        let lost = vec![0xa5; source.len()];
        for number in [0, 1, 2, 3, 4, 5, 6, 7, 48, 49, 50, 51, 52, 53, 54, 55] {
            let place = FIRST + number * PAGE..FIRST + (number + 1) * PAGE;
            for (name, image) in [("source", &source), ("middle", &middle), ("lost", &lost)] {
                let mut wrong = end.clone();
                wrong[place.clone()].copy_from_slice(&image[place.clone()]);
                let same = wrong == end;
                assert_eq!(judge(source.clone(), wrong).is_ok(), same, "page {number} of {name}");
            }
        }
    }

    #[test]
    fn memory_outside_is_equal_byte_for_byte() {
        let mut guest = Guest::new();
        let source = guest.run(PAGES * 2);
        let end = guest.run(PAGES);
        for at in [0, STATE + 16, STATE - 1, STACK.end, FIRST - 1, FIRST + PAGES * PAGE, source.len() - 1] {
            let mut wrong = end.clone();
            wrong[at] ^= 1;
            let text = judge(source.clone(), wrong).unwrap_err();
            assert!(text.contains(&format!("{at:#x}")), "{text}");
        }
        assert!(judge(source.clone(), vec![0; 10]).is_err());
        assert!(judge(end, source).unwrap_err().contains("pass 3 came to the destination as 2"));
        assert!(judge(vec![0; 1 << 17], vec![0; 1 << 17]).unwrap_err().contains("no guest"));
    }
}
