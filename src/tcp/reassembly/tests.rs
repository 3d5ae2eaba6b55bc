//! Segments in every order.

use proptest::prelude::*;

use super::*;

/// What was passed on, by offset, and the holes in it.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    runs: Vec<(u64, Vec<u8>)>,
}

impl Seen {
    fn take(&mut self, offset: u64, data: &[u8]) {
        match self.runs.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == offset => run.extend_from_slice(data),
            Some((start, run)) => {
                assert!(offset > *start + run.len() as u64, "{offset} comes again");
                self.runs.push((offset, data.to_vec()));
            }
            None => self.runs.push((offset, data.to_vec())),
        }
    }
}

/// A reassembly, and what it passes on.
struct Bench {
    stream: Reassembly,
    seen: Seen,
    first: u32,
    now: u64,
}

impl Bench {
    fn new(first: u32) -> Self {
        Self { stream: Reassembly::new(first), seen: Seen::default(), first, now: 0 }
    }

    fn data(&mut self, at: u64, data: &[u8]) {
        self.cut(at, data, data.len());
    }

    fn cut(&mut self, at: u64, data: &[u8], length: usize) {
        let sequence = self.first.wrapping_add(at as u32);
        let seen = &mut self.seen;
        let mut deliver = |offset: u64, data: &[u8]| {
            seen.take(offset, data);
            Ok(())
        };
        self.stream.handle_data(sequence, data, length, Timestamp(self.now), &mut deliver).unwrap();
    }

    fn acknowledge(&mut self, at: u64) {
        self.stream.handle_acknowledgement(self.first.wrapping_add(at as u32), Timestamp(self.now));
    }

    fn end(&mut self, at: u64) {
        self.stream.handle_end(self.first.wrapping_add(at as u32));
    }

    fn finish(&mut self) -> u64 {
        let seen = &mut self.seen;
        self.stream
            .finish(&mut |offset, data| {
                seen.take(offset, data);
                Ok(())
            })
            .unwrap()
    }

    fn counts(&self) -> [u64; 3] {
        let Counts { retransmitted, out_of_order, conflicting } = self.stream.counts();
        [retransmitted, out_of_order, conflicting]
    }

    fn runs(&self) -> Vec<(u64, &str)> {
        self.seen.runs.iter().map(|(at, run)| (*at, std::str::from_utf8(run).unwrap())).collect()
    }
}

#[test]
fn in_order_nothing_is_held() {
    let mut b = Bench::new(10);
    b.data(0, b"abc");
    b.data(3, b"def");
    assert_eq!((b.runs(), b.stream.weight(), b.counts()), (vec![(0, "abcdef")], 0, [0, 0, 0]));
    b.end(6);
    assert!(b.stream.has_ended());
    assert_eq!(b.finish(), 6);
}

#[test]
fn reordered_segments_wait() {
    let mut b = Bench::new(10);
    b.data(6, b"ghi");
    b.data(3, b"def");
    assert!(b.runs().is_empty() && b.stream.weight() > 6);
    b.data(0, b"abc");
    assert_eq!((b.runs(), b.stream.weight(), b.counts()), (vec![(0, "abcdefghi")], 0, [0, 2, 0]));
}

#[test]
fn what_comes_again_is_dropped() {
    let mut b = Bench::new(10);
    b.data(0, b"abcdef");
    b.data(0, b"abc");
    b.data(3, b"def");
    b.data(4, b"efgh");
    assert_eq!((b.runs(), b.counts()), (vec![(0, "abcdefgh")], [3, 0, 0]));
}

#[test]
fn what_came_first_stays() {
    let mut b = Bench::new(10);
    b.data(3, b"DEF");
    b.data(7, b"HI");
    b.data(2, b"cdefghijk");
    assert_eq!(b.counts(), [1, 3, 5]);
    b.data(0, b"abxyz");
    assert_eq!((b.runs(), b.counts()), (vec![(0, "abcDEFgHIjk")], [2, 3, 8]));
}

#[test]
fn numbers_wrap() {
    let mut b = Bench::new(u32::MAX - 2);
    b.data(3, b"def");
    b.data(0, b"abc");
    b.data(6, b"ghi");
    b.data(0, b"abcdefg");
    assert_eq!(b.runs(), [(0, "abcdefghi")]);
}

#[test]
fn offsets_go_on_beyond_four_gigabytes() {
    let mut b = Bench::new(7);
    let step = 1 << 29;
    let mut total = 0;
    // Not a byte of it is kept, which makes it quick.
    for _ in 0..20 {
        b.cut(total, b"", step);
        total += step as u64;
    }
    b.data(total, b"end");
    assert_eq!((b.runs(), b.stream.offset()), (vec![(10 << 30, "end")], (10 << 30) + 3));
}

#[test]
fn a_hole_whose_bytes_the_receiver_has_is_given_up() {
    let mut b = Bench::new(0);
    b.data(0, b"abc");
    b.data(6, b"ghi");
    b.acknowledge(9);
    b.data(9, b"j");
    assert_eq!(b.runs(), [(0, "abc")], "it may still come");
    b.now = PATIENCE_TIME + 1;
    b.data(10, b"k");
    assert_eq!(b.runs(), [(0, "abc"), (6, "ghijk")]);
    b.data(3, b"def");
    assert_eq!((b.runs().len(), b.counts()), (2, [1, 3, 0]), "too late");
}

#[test]
fn or_after_so_many_bytes() {
    let mut b = Bench::new(0);
    let block = vec![b'x'; 64 << 10];
    let mut at = 3;
    b.acknowledge(100);
    while b.runs().is_empty() {
        b.data(at, &block);
        at += block.len() as u64;
        assert!(b.stream.weight() <= PATIENCE + block.len() + ENTRY);
    }
    assert_eq!((b.runs()[0].0, at > PATIENCE as u64), (3, true));
}

#[test]
fn a_hole_that_is_not_acknowledged_has_time_until_memory_runs_out() {
    let mut b = Bench::new(0);
    let block = vec![b'x'; 64 << 10];
    let mut at = 3;
    while b.runs().is_empty() {
        b.now += PATIENCE_TIME;
        b.data(at, &block);
        at += block.len() as u64;
        assert!(b.stream.weight() <= LONG_PATIENCE + block.len() + ENTRY);
    }
    assert!(at > LONG_PATIENCE as u64 * 9 / 10, "{at}");
}

#[test]
fn several_holes_at_the_end() {
    let mut b = Bench::new(0);
    b.data(2, b"c");
    b.data(9, b"j");
    b.data(4, b"e");
    b.end(12);
    assert!(!b.stream.has_ended());
    assert_eq!(b.finish(), 12);
    assert_eq!(b.runs(), [(2, "c"), (4, "e"), (9, "j")]);
    assert_eq!(b.stream.weight(), 0);
}

#[test]
fn the_end_by_acknowledgement() {
    let mut b = Bench::new(0);
    b.data(0, b"abc");
    b.acknowledge(4);
    assert_eq!(b.finish(), 3, "FIN, which was not captured");
    b.acknowledge(6);
    assert_eq!(b.finish(), 6);
    b.acknowledge(2);
    assert_eq!(b.finish(), 6, "an old one");
    b.acknowledge(7);
    assert_eq!(b.finish(), 6, "FIN by itself");
}

#[test]
fn cut_segments_are_holes_at_once() {
    let mut b = Bench::new(0);
    b.cut(0, b"abc", 10);
    b.cut(20, b"uvw", 10);
    b.cut(10, b"klm", 10);
    assert_eq!(b.runs(), [(0, "abc"), (10, "klm"), (20, "uvw")]);
    assert_eq!((b.stream.offset(), b.stream.weight()), (30, 0));
    // One of which nothing was kept gives way to one that was.
    b.cut(40, b"", 10);
    b.data(40, b"0123456789");
    b.data(30, b"0123456789");
    assert_eq!(b.runs()[3], (30, "01234567890123456789"));
}

#[test]
fn what_is_known_to_be_cut_does_not_displace_bytes() {
    let mut b = Bench::new(0);
    b.data(5, b"56789");
    b.cut(3, b"34", 4);
    b.cut(4, b"456", 9);
    b.data(0, b"012");
    assert_eq!((b.runs(), b.stream.weight()), (vec![(0, "0123456789")], 0));
}

/// A segment: where, how long, and whether its bytes are those of the stream.
fn segments(total: usize) -> impl Strategy<Value = Vec<(usize, usize)>> {
    prop::collection::vec((0..total, 1..40usize), 0..60)
}

proptest! {
    /// Cut anywhere, in any order, any number of times: the bytes are those of the stream.
    #[test]
    fn any_order_gives_the_bytes(
        first: u32,
        cuts in prop::collection::btree_set(1..500usize, 0..40),
        again in segments(500),
        order in any::<prop::sample::Index>(),
        seed: u64,
    ) {
        let stream: Vec<u8> = (0..500).map(|i| (i * 31 % 251) as u8).collect();
        let mut all = Vec::new();
        let mut from = 0;
        for end in cuts.into_iter().chain([500]) {
            all.push((from, end - from));
            from = end;
        }
        all.extend(again.into_iter().map(|(at, len)| (at, len.min(500 - at))));
        shuffle(&mut all, seed);
        let mut b = Bench::new(first);
        let acknowledged = order.index(all.len());
        for (n, (at, len)) in all.into_iter().enumerate() {
            b.data(at as u64, &stream[at..at + len]);
            if n == acknowledged {
                b.acknowledge(b.stream.offset());
            }
        }
        prop_assert_eq!(&b.seen.runs, &vec![(0, stream)]);
        prop_assert_eq!((b.stream.weight(), b.counts()[2]), (0, 0));
        prop_assert_eq!(b.finish(), 500);
    }

    /// With segments missing: what was passed on is what came, at its place.
    #[test]
    fn whatever_is_missing_the_rest_is_in_its_place(first: u32, come in segments(500), seed: u64) {
        let stream: Vec<u8> = (0..540).map(|i| (i * 31 % 251) as u8).collect();
        let mut come = come;
        shuffle(&mut come, seed);
        let mut has = vec![false; 540];
        let mut b = Bench::new(first);
        for (at, len) in come {
            b.data(at as u64, &stream[at..at + len]);
            has[at..at + len].fill(true);
        }
        b.finish();
        let mut got = vec![false; 540];
        for (at, run) in &b.seen.runs {
            let at = *at as usize;
            prop_assert_eq!(&run[..], &stream[at..at + run.len()]);
            got[at..at + run.len()].fill(true);
        }
        prop_assert_eq!(has, got);
        prop_assert_eq!((b.stream.weight(), b.counts()[2]), (0, 0));
    }
}

fn shuffle<T>(all: &mut [T], mut seed: u64) {
    for i in (1..all.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        all.swap(i, (seed >> 33) as usize % (i + 1));
    }
}
