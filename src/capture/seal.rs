//! The end of a recording that was finished: what it holds, to tell whether it still does.
//!
//! ```text
//! migwire seal 1
//! at 123456                        where this block begins in the file
//! index 122000                     where the last index block does
//! half 0 1 24 3 5c2f..  main       interface, direction (0 to the destination), bytes, packets, XXH3-128 of the bytes, name
//! ```
//! Text, so that a person finds it at the end of the file. It is found from there by the length that the file ends with.

use std::fmt::Write as _;
use std::io::{self, Read, Seek, SeekFrom};

use xxhash_rust::xxh3::Xxh3;

use super::Direction;
use super::block::{self, Order};
use crate::limits::{MAX_CAPTURE_INTERFACES, MAX_CAPTURE_SEAL};

/// Kind of block: seal.
pub(super) const SEAL: u8 = 3;

const TITLE: &str = "migwire seal 1";

/// What was recorded of every half of a connection when the recording was finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// Where it begins in the file, by its own account.
    pub at: u64,
    pub(super) index: u64,
    /// Every direction of every connection on which bytes passed.
    pub halves: Vec<SealedHalf>,
}

/// What was recorded of one direction of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedHalf {
    /// Number of the interface.
    pub interface: usize,
    /// Its name.
    pub name: String,
    /// Which way.
    pub direction: Direction,
    /// How many bytes.
    pub bytes: u64,
    /// In how many packets.
    pub packets: u64,
    /// XXH3-128 of the bytes.
    pub digest: u128,
}

/// The halves of a recording that is being written.
#[derive(Default)]
pub(super) struct Ledger {
    halves: Vec<[Option<Box<Account>>; 2]>,
}

struct Account {
    name: String,
    bytes: u64,
    packets: u64,
    digest: Xxh3,
}

impl Ledger {
    pub(super) fn note_packet(&mut self, interface: u32, direction: Direction, data: &[u8]) {
        self.note_bytes(interface, direction, data);
        self.note_end(interface, direction);
    }

    /// Bytes of a packet.
    pub(super) fn note_bytes(&mut self, interface: u32, direction: Direction, data: &[u8]) {
        if let Some(account) = self.account(interface, direction) {
            account.bytes += data.len() as u64;
            account.digest.update(data);
        }
    }

    /// The end of a packet.
    pub(super) fn note_end(&mut self, interface: u32, direction: Direction) {
        if let Some(account) = self.account(interface, direction) {
            account.packets += 1;
        }
    }

    pub(super) fn note_interface(&mut self, name: &str) {
        // Names are one word in the seal's line up to its end.
        let name = name.replace(['\n', '\r'], " ");
        let account = || Box::new(Account { name: name.clone(), bytes: 0, packets: 0, digest: Xxh3::new() });
        self.halves.push([Some(account()), Some(account())]);
    }

    fn account(&mut self, interface: u32, direction: Direction) -> Option<&mut Account> {
        self.halves.get_mut(interface as usize)?[direction as usize].as_deref_mut()
    }

    /// The seal's block, which will be at `at`; the last index block is at `index`.
    pub(super) fn block(&self, at: u64, index: u64) -> Vec<u8> {
        let mut text = format!("{TITLE}\nat {at}\nindex {index}\n");
        for (interface, pair) in self.halves.iter().enumerate() {
            for (direction, account) in pair.iter().enumerate() {
                if let Some(Account { name, bytes, packets, digest }) = account.as_deref()
                    && *packets > 0
                {
                    let digest = digest.digest128();
                    let _ =
                        writeln!(text, "half {interface} {direction} {bytes} {packets} {digest:032x} {name}");
                }
            }
        }
        block::local(SEAL, text.as_bytes())
    }
}

impl Seal {
    /// The half of a connection of which that was said.
    pub fn half(&self, interface: usize, direction: Direction) -> Option<&SealedHalf> {
        self.halves.iter().find(|half| (half.interface, half.direction) == (interface, direction))
    }

    /// The seal at the end of a file, and where it is; `None` if there is none.
    pub(super) fn find<S: Read + Seek>(source: &mut S) -> io::Result<Option<(Self, u64)>> {
        let end = source.seek(SeekFrom::End(0))?;
        let mut trailer = [0; 4];
        if end < 16 {
            return Ok(None);
        }
        source.seek(SeekFrom::Start(end - 4))?;
        source.read_exact(&mut trailer)?;
        let len = u64::from(Order::Little.u32(&trailer));
        if len > u64::from(MAX_CAPTURE_SEAL) || len > end || len < 16 {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        source.seek(SeekFrom::Start(end - len))?;
        source.read_exact(&mut bytes)?;
        let Some((SEAL, content)) = block::read_local(&bytes) else { return Ok(None) };
        let seal = std::str::from_utf8(content).ok().and_then(Self::parse);
        Ok(seal.map(|seal| (seal, end - len)))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        lines.next().filter(|title| *title == TITLE)?;
        let mut seal = Self {
            at: lines.next()?.strip_prefix("at ")?.parse().ok()?,
            index: lines.next()?.strip_prefix("index ")?.parse().ok()?,
            halves: Vec::new(),
        };
        for line in lines {
            let mut words = line.strip_prefix("half ")?.splitn(6, ' ');
            let mut next = || words.next();
            let half = SealedHalf {
                interface: next()?.parse().ok()?,
                direction: match next()? {
                    "0" => Direction::ToDestination,
                    "1" => Direction::ToSource,
                    _ => return None,
                },
                bytes: next()?.parse().ok()?,
                packets: next()?.parse().ok()?,
                digest: u128::from_str_radix(next()?, 16).ok()?,
                name: next()?.to_owned(),
            };
            if half.interface >= MAX_CAPTURE_INTERFACES || seal.halves.len() >= 2 * MAX_CAPTURE_INTERFACES {
                return None;
            }
            seal.halves.push(half);
        }
        Some(seal)
    }
}
