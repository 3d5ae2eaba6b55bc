//! A TCP connection that never was: packets that carry given bytes, as a capture at one end would have them.
//!
//! ```text
//! open     SYN, SYN ACK, ACK          maximum segment size and window scale in the options, so that no window is ever full
//! say      segments, and an ACK from the other side for every second one
//! skip     nothing, and the numbers go on: bytes that were lost
//! close    FIN ACK, FIN ACK, ACK
//! ```
//! Ethernet, IPv4 or IPv6, and checksums that are right.

use core::net::{IpAddr, SocketAddr};

use crate::capture::Direction;

/// Longest segment that fits into a datagram of either version.
pub const MAX_SEGMENT: usize = 65_535 - 20 - 20;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PUSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Maximum segment size 65495, window scale 14, and two bytes that do nothing around it.
const OPTIONS: [u8; 8] = [2, 4, 0xff, 0xd7, 3, 3, 14, 1];

/// Takes a packet: everything in front of its data, and the data.
pub type Emit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> crate::Result<()>;

/// See the module.
#[derive(Clone, Debug)]
pub struct Conversation {
    ends: [SocketAddr; 2],
    /// The next sequence number of each end: of the source, of the destination.
    next: [u32; 2],
    identification: u16,
    segment: usize,
}

impl Conversation {
    /// A connection that the source opens. Its bytes and those of the other direction begin behind these numbers.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr, numbers: [u32; 2]) -> Self {
        Self { ends: [source, destination], next: numbers, identification: 0, segment: MAX_SEGMENT }
    }

    /// With other numbers to begin with.
    #[must_use]
    pub fn with_numbers(mut self, numbers: [u32; 2]) -> Self {
        self.next = numbers;
        self
    }

    /// With segments of at most so many bytes.
    #[must_use]
    pub fn with_segments(mut self, bytes: usize) -> Self {
        self.segment = bytes.clamp(1, MAX_SEGMENT);
        self
    }

    /// The handshake.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn open(&mut self, emit: Emit<'_>) -> crate::Result<()> {
        self.packet(Direction::ToDestination, SYN, &OPTIONS, &[], emit)?;
        self.packet(Direction::ToSource, SYN | ACK, &OPTIONS, &[], emit)?;
        self.packet(Direction::ToDestination, ACK, &[], &[], emit)
    }

    /// Bytes in one direction.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn say(&mut self, direction: Direction, data: &[u8], emit: Emit<'_>) -> crate::Result<()> {
        for pair in data.chunks(2 * self.segment) {
            for segment in pair.chunks(self.segment) {
                self.packet(direction, PUSH | ACK, &[], segment, emit)?;
            }
            self.packet(direction.reverse(), ACK, &[], &[], emit)?;
        }
        Ok(())
    }

    /// Bytes of which there are no packets.
    pub fn skip(&mut self, direction: Direction, count: u64) {
        let next = &mut self.next[direction as usize];
        *next = next.wrapping_add(count as u32);
    }

    /// Both sides have said everything.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn close(&mut self, emit: Emit<'_>) -> crate::Result<()> {
        self.packet(Direction::ToDestination, FIN | ACK, &[], &[], emit)?;
        self.packet(Direction::ToSource, FIN | ACK, &[], &[], emit)?;
        self.packet(Direction::ToDestination, ACK, &[], &[], emit)
    }

    fn packet(
        &mut self,
        direction: Direction,
        flags: u8,
        options: &[u8],
        data: &[u8],
        emit: Emit<'_>,
    ) -> crate::Result<()> {
        let (ours, theirs) = (direction as usize, direction.reverse() as usize);
        let [from, to] = [self.ends[ours], self.ends[theirs]];
        let length = 20 + options.len() + data.len();
        let mut head = Vec::with_capacity(96);
        // Addresses that are nobody's: locally administered.
        head.extend_from_slice(&[2, 0, 0, 0, 0, theirs as u8 + 1, 2, 0, 0, 0, 0, ours as u8 + 1]);
        self.identification = self.identification.wrapping_add(1);
        let pseudo = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                head.extend_from_slice(&[0x08, 0x00]);
                let mut ip = [0; 20];
                ip[0] = 0x45;
                ip[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
                ip[4..6].copy_from_slice(&self.identification.to_be_bytes());
                // Do not fragment; 64 hops; TCP.
                ip[6] = 0x40;
                (ip[8], ip[9]) = (64, 6);
                ip[12..16].copy_from_slice(&from.octets());
                ip[16..20].copy_from_slice(&to.octets());
                let sum = folded(sum(&ip));
                ip[10..12].copy_from_slice(&(!sum).to_be_bytes());
                head.extend_from_slice(&ip);
                sum_of(&[&from.octets(), &to.octets()])
            }
            (from, to) => {
                let [from, to] = [from, to].map(octets);
                head.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
                head.extend_from_slice(&(length as u16).to_be_bytes());
                head.extend_from_slice(&[6, 64]);
                head.extend_from_slice(&from);
                head.extend_from_slice(&to);
                sum_of(&[&from, &to])
            }
        };
        let start = head.len();
        head.extend_from_slice(&from.port().to_be_bytes());
        head.extend_from_slice(&to.port().to_be_bytes());
        head.extend_from_slice(&self.next[ours].to_be_bytes());
        let acknowledged = if flags & ACK == 0 { 0 } else { self.next[theirs] };
        head.extend_from_slice(&acknowledged.to_be_bytes());
        head.extend_from_slice(&[((20 + options.len()) as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        head.extend_from_slice(options);
        let total = pseudo + 6 + length as u64 + sum(&head[start..]) + sum(data);
        head[start + 16..start + 18].copy_from_slice(&(!folded(total)).to_be_bytes());
        let numbers = data.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.next[ours] = self.next[ours].wrapping_add(numbers);
        emit(&head, data)
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn sum_of(parts: &[&[u8]]) -> u64 {
    parts.iter().map(|part| sum(part)).sum()
}

/// The words of `bytes`, added up; an odd byte is the upper half of a word.
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(4);
    let rest = match *words.remainder() {
        [a] => u64::from(a) << 8,
        [a, b] => u64::from(u16::from_be_bytes([a, b])),
        [a, b, c] => u64::from(u16::from_be_bytes([a, b])) + (u64::from(c) << 8),
        _ => 0,
    };
    // Two words at a time: 65536 is 1 here.
    rest + words.map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))).sum::<u64>()
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Frame, LinkType, Timestamp};
    use crate::tcp::Segment;

    fn conversation(source: &str, destination: &str) -> Conversation {
        Conversation::new(source.parse().unwrap(), destination.parse().unwrap(), [u32::MAX - 3, 7])
    }

    fn packets(run: impl FnOnce(Emit<'_>) -> crate::Result<()>) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        run(&mut |head, data| {
            all.push([head, data].concat());
            Ok(())
        })
        .unwrap();
        all
    }

    fn segment(packet: &[u8]) -> Segment<'_> {
        let frame = Frame { link: LinkType(1), time: Timestamp(0), data: packet, length: packet.len() };
        Segment::of(&frame).unwrap()
    }

    #[test]
    fn a_connection_from_end_to_end() {
        for ends in [["192.0.2.1:50000", "192.0.2.2:4444"], ["[2001:db8::1]:50000", "[2001:db8::2]:4444"]] {
            let mut made = conversation(ends[0], ends[1]).with_segments(3);
            let all = packets(|emit| {
                made.open(emit)?;
                made.say(Direction::ToDestination, b"abcdefgh", emit)?;
                made.skip(Direction::ToSource, 100);
                made.say(Direction::ToSource, b"xy", emit)?;
                made.close(emit)
            });
            let seen: Vec<_> = all
                .iter()
                .map(|packet| {
                    let s = segment(packet);
                    (s.source.port(), s.sequence, s.acknowledgement, s.data.to_vec(), s.syn, s.fin)
                })
                .collect();
            let first = u32::MAX - 3;
            let data = |text: &str| text.as_bytes().to_vec();
            assert_eq!(seen[0], (50000, first, None, data(""), true, false));
            assert_eq!(seen[1], (4444, 7, Some(first + 1), data(""), true, false));
            assert_eq!(seen[2], (50000, first + 1, Some(8), data(""), false, false));
            assert_eq!(seen[3], (50000, first + 1, Some(8), data("abc"), false, false));
            assert_eq!(seen[4], (50000, 0, Some(8), data("def"), false, false), "the number wraps");
            assert_eq!(seen[5], (4444, 8, Some(3), data(""), false, false));
            assert_eq!(seen[6].3, b"gh");
            assert_eq!(seen[8], (4444, 108, Some(5), data("xy"), false, false));
            assert_eq!(seen.len(), 13);
            assert!(seen[10].5 && seen[11].5 && !seen[12].5);
            assert_eq!((seen[12].1, seen[12].2), (6, Some(111)));
        }
    }

    #[test]
    fn checksums_are_right() {
        for (ends, header) in [
            (["192.0.2.1:50000", "192.0.2.2:4444"], 20),
            (["[2001:db8::1]:50000", "[2001:db8::ffff]:4444"], 40),
        ] {
            let mut made = conversation(ends[0], ends[1]);
            for len in [0, 1, 2, 3, 4, 5, 1001, MAX_SEGMENT] {
                let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + 250) as u8).collect();
                for packet in packets(|emit| made.say(Direction::ToDestination, &bytes, emit)) {
                    let (ip, tcp) = packet[14..].split_at(header);
                    let addresses = if header == 20 { &ip[12..20] } else { &ip[8..40] };
                    // With its checksum, the sum of everything is all ones.
                    assert_eq!(folded(sum(addresses) + 6 + tcp.len() as u64 + sum(tcp)), 0xffff, "{len}");
                    if header == 20 {
                        assert_eq!(folded(sum(ip)), 0xffff, "{len}");
                    }
                }
            }
        }
    }
}
