//! Migrations that are made up from any bytes, in the ways of several releases, with what the guest's memory is in the end.
//!
//! The bytes are a recipe: numbers are taken from them for as long as there are any. What comes of it keeps the rules of the wire, so
//! that a strict reading takes it.

use std::collections::{BTreeMap, BTreeSet};

use migwire::ChannelId;
use migwire::dialect::{Dialect, Difference};
use migwire::multifd::codec::{self, Codec};
use migwire::multifd::{Framer, SyncMode, ZeroPages};
use migwire::stream::Event;
use migwire::wire::xbzrle;
use migwire::wire::{
    Advise, Bulk, Command, ConfigurationSubsection, Discard, DiscardRange, FileHeader, Method, MultifdHello,
    Name, PageBody, PageWord, RamBlock, RamFlags, SectionKind, Wire as _,
};

use super::small::{RAM, Small};

/// RAM blocks, with their pages.
const BLOCKS: [(&str, u64); 3] = [("pc.ram", 24), ("/rom@etc/x", 3), ("vga", 9)];

/// Takes numbers from bytes; 0 when there are none left.
pub(crate) struct Recipe<'a>(pub(crate) &'a [u8]);

impl Recipe<'_> {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % limit
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == count - 1
    }

    pub(crate) fn of<T: Copy, const N: usize>(&mut self, all: [T; N]) -> T {
        all[self.below(N)]
    }
}

/// Pages that are not zero, by block and offset.
pub(crate) type Ram = BTreeMap<(Box<[u8]>, u64), Vec<u8>>;

/// A migration.
pub(crate) struct Made {
    pub(crate) channels: BTreeMap<ChannelId, Vec<u8>>,
    /// Memory in the end.
    pub(crate) ram: Ram,
}

/// Makes one.
pub(crate) fn make(recipe: &mut Recipe<'_>) -> Made {
    Maker::new(recipe).make()
}

struct Lane {
    bytes: Vec<u8>,
    framer: Framer,
    codec: Box<dyn Codec>,
}

struct Maker<'a, 'b> {
    recipe: &'a mut Recipe<'b>,
    dialect: Dialect,
    sync: SyncMode,
    page_size: u64,
    has_footers: bool,
    zeros: ZeroPages,
    lanes: Vec<Lane>,
    main: Small,
    urgent: Option<Small>,
    /// Block of the last page on the main channel, and on the preempt channel.
    last: [Option<usize>; 2],
    in_section: bool,
    number: u64,
    ram: BTreeMap<(usize, u64), Vec<u8>>,
}

impl<'a, 'b> Maker<'a, 'b> {
    fn new(recipe: &'a mut Recipe<'b>) -> Self {
        let dialect: Dialect =
            recipe.of(["11.1", "7.2", "11.1-on-7.2", "9.2", "5.2"]).parse().expect("these are dialects");
        let page_size = recipe.of([4096, 4096, 1024, 16384]);
        let count = recipe.of([0, 0, 1, 2, 3]);
        let method = recipe.of([Method::NONE, Method::ZLIB, Method::ZSTD, Method::QPL]);
        let codec = || codec::open(method, None).expect("every build for tests has it");
        let lane = |_| Lane { bytes: Vec::new(), framer: Framer::new(dialect, page_size), codec: codec() };
        Self {
            sync: SyncMode::of(dialect).unwrap_or(SyncMode::PerRound),
            zeros: recipe.of(ZeroPages::ALL),
            has_footers: !recipe.one_in(8),
            lanes: (0..count).map(lane).collect(),
            recipe,
            dialect,
            page_size,
            main: Small::default(),
            urgent: None,
            last: [None; 2],
            in_section: false,
            number: 0,
            ram: BTreeMap::new(),
        }
    }

    fn make(mut self) -> Made {
        let is_postcopy = self.recipe.one_in(4);
        self.head(is_postcopy);
        self.setup();
        let rounds = 1 + self.recipe.below(4);
        for round in 0..rounds {
            let is_last = round + 1 == rounds && !is_postcopy;
            if self.in_section && (is_last || self.sync == SyncMode::PerSection) {
                self.end_section();
            }
            if is_last && self.recipe.one_in(2) {
                self.add(|main| main.command(Command::SwitchoverStart));
            }
            if !self.in_section {
                self.section(if is_last { SectionKind::END } else { SectionKind::PART });
            }
            self.round(is_last);
        }
        if self.in_section {
            self.end_section();
        }
        match is_postcopy {
            true => self.postcopy(),
            false if self.has_footers => self.add(|main| main.device("device", b"state")),
            false => {}
        }
        self.add(Small::eof);
        let mut channels = BTreeMap::from([(ChannelId::Main, self.main.0)]);
        channels
            .extend(self.lanes.into_iter().zip(0..).map(|(lane, id)| (ChannelId::Multifd(id), lane.bytes)));
        channels.extend(self.urgent.map(|urgent| (ChannelId::Preempt, urgent.0)));
        let page_size = self.page_size;
        let ram = self.ram.into_iter().filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0));
        let name = |block: usize| Box::from(BLOCKS[block].0.as_bytes());
        let ram = ram.map(|((block, page), bytes)| ((name(block), page * page_size), bytes)).collect();
        Made { channels, ram }
    }

    fn add(&mut self, change: impl FnOnce(Small) -> Small) {
        self.main = change(std::mem::take(&mut self.main));
    }

    fn head(&mut self, is_postcopy: bool) {
        let machine = self.recipe.of(["none", "pc-i440fx-5.2", "pc-i440fx-7.2", "pc-q35-11.1"]);
        self.add(|main| main.event(&Event::Header(FileHeader::CURRENT)).configuration(machine));
        let uuid = [self.recipe.below(256) as u8; 16];
        if self.page_size != 4096 {
            let bits = self.page_size.trailing_zeros();
            self.add(|main| main.page_bits(bits));
        }
        if self.recipe.one_in(2) {
            self.add(|main| main.subsection(ConfigurationSubsection::Uuid { version: 1, uuid }));
        }
        for (lane, id) in self.lanes.iter_mut().zip(0..) {
            MultifdHello::new(id, uuid).emit(&mut lane.bytes);
        }
        if is_postcopy {
            let advise = Advise { page_size_summary: self.page_size, target_page_size: self.page_size };
            self.add(|main| main.command(Command::PostcopyAdvise(Some(advise))));
        }
    }

    fn setup(&mut self) {
        let blocks = BLOCKS.map(|(name, pages)| RamBlock::new(name.into(), pages * self.page_size));
        let total = blocks.iter().map(|block| block.used_length).sum();
        self.add(|main| main.named(SectionKind::START, RAM, "ram", 4).list(total, &blocks));
        if self.sync == SyncMode::PerRound {
            self.synchronise();
        }
        self.end_section();
    }

    fn section(&mut self, kind: SectionKind) {
        self.add(|main| main.again(kind, RAM));
        self.in_section = true;
    }

    fn end_section(&mut self) {
        if self.sync == SyncMode::PerSection {
            self.send_sync();
        }
        self.add(Small::eos);
        if self.has_footers {
            self.add(|main| main.footer(RAM));
        }
        self.in_section = false;
    }

    /// SYNC on every channel, and its word.
    fn synchronise(&mut self) {
        if !self.lanes.is_empty() {
            self.send_sync();
            self.add(|main| main.word(0, RamFlags::MULTIFD_FLUSH));
        }
    }

    fn send_sync(&mut self) {
        for lane in &mut self.lanes {
            lane.bytes.extend_from_slice(lane.framer.sync(self.number));
            self.number += 1;
        }
    }

    fn round(&mut self, is_last: bool) {
        let mut used = BTreeSet::new();
        for _ in 0..self.recipe.below(12) {
            if self.lanes.is_empty() {
                let (block, page) = self.any_page();
                self.page_on_main(block, page);
            } else {
                self.packet(&mut used);
            }
            // Sections end where they like, but for where that synchronises.
            let may_end = self.lanes.is_empty() || self.sync == SyncMode::PerRound;
            if may_end && !is_last && self.recipe.one_in(5) {
                self.end_section();
                self.section(SectionKind::PART);
            }
        }
        if self.sync == SyncMode::PerRound {
            self.synchronise();
        }
    }

    fn any_page(&mut self) -> (usize, u64) {
        let block = self.recipe.below(BLOCKS.len());
        (block, self.recipe.below(BLOCKS[block].1 as usize) as u64)
    }

    /// Content that tells where it belongs; one in four is zero.
    fn content(&mut self, block: usize, page: u64) -> Vec<u8> {
        let value = self.recipe.below(256) as u8;
        let mut bytes = vec![value; self.page_size as usize];
        match value % 4 {
            0 => bytes.fill(0),
            1 => {}
            _ => bytes[..8].copy_from_slice(&[value, block as u8, page as u8, 1, 2, 3, 4, 5]),
        }
        bytes
    }

    fn page_on_main(&mut self, block: usize, page: u64) {
        let offset = page * self.page_size;
        let new = self.content(block, page);
        let old = self.ram.insert((block, page), new.clone());
        let name = (self.last[0].replace(block) != Some(block)).then_some(BLOCKS[block].0);
        let mut delta = Vec::new();
        let is_even = new.iter().all(|byte| *byte == new[0]);
        let kind = self.recipe.below(4);
        let compressed = if kind == 3 { compress(&new) } else { None };
        let body = match (kind, old, &compressed) {
            _ if is_even && new[0] == 0 => PageBody::Zero(0),
            (1, ..) if is_even => PageBody::Zero(new[0]),
            (2, Some(old), _) => match xbzrle::encode(&old, &new, &mut delta) {
                xbzrle::Encoded::Delta => PageBody::Xbzrle { encoding: 1, delta: &delta },
                _ => PageBody::Raw(Bulk::Bytes(&new)),
            },
            (3, _, Some(compressed)) => PageBody::Compressed(compressed),
            _ => PageBody::Raw(Bulk::Bytes(&new)),
        };
        self.add(|main| main.page(offset, name, body));
    }

    /// A few pages of one block, in a packet; zeros perhaps elsewhere.
    fn packet(&mut self, used: &mut BTreeSet<(usize, u64)>) {
        let (block, _) = self.any_page();
        let (mut normal, mut zero, mut pages) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..1 + self.recipe.below(4) {
            let page = self.recipe.below(BLOCKS[block].1 as usize) as u64;
            if !used.insert((block, page)) {
                continue;
            }
            let new = self.content(block, page);
            self.ram.insert((block, page), new.clone());
            let offset = page * self.page_size;
            match (new.iter().all(|byte| *byte == 0), self.zeros) {
                (true, ZeroPages::Multifd) => zero.push(offset),
                (true, ZeroPages::Legacy) => {
                    let name = (self.last[0].replace(block) != Some(block)).then_some(BLOCKS[block].0);
                    self.add(|main| main.page(offset, name, PageBody::Zero(0)));
                }
                _ => {
                    normal.push(offset);
                    pages.extend_from_slice(&new);
                }
            }
        }
        if normal.is_empty() && zero.is_empty() {
            return;
        }
        let count = self.lanes.len();
        let lane = &mut self.lanes[self.recipe.below(count)];
        let mut payload = Vec::new();
        if !normal.is_empty() {
            lane.codec.encode(&pages, self.page_size as usize, &mut payload).expect("these are pages");
        }
        let method = lane.codec.method();
        let (name, size) = (BLOCKS[block].0.as_bytes(), payload.len() as u32);
        let head = lane.framer.pages(name, &normal, &zero, method, size, self.number);
        lane.bytes.extend_from_slice(head);
        lane.bytes.extend_from_slice(&payload);
        self.number += 1;
    }

    fn postcopy(&mut self) {
        // What comes again is discarded before, and that is a page at least: no destination runs without a discard.
        let again: BTreeSet<_> = (0..1 + self.recipe.below(16)).map(|_| self.any_page()).collect();
        for (block, (name, _)) in BLOCKS.iter().enumerate() {
            let range = |(_, page): &(usize, u64)| DiscardRange {
                start: page * self.page_size,
                length: self.page_size,
            };
            let ranges: Vec<_> = again.iter().filter(|page| page.0 == block).map(range).collect();
            if !ranges.is_empty() {
                let discard = Discard { version: 0, block: Name(name.as_bytes()), nil: 0, ranges };
                self.add(|main| main.command(Command::PostcopyRamDiscard(discard)));
            }
        }
        let inside = Small::default().command(Command::PostcopyListen).device("device", b"state");
        let inside = match self.recipe.below(3) {
            0 => inside,
            1 => inside.command(Command::Ping(0x42)),
            // No release does this.
            _ => inside.command(Command::SwitchoverStart),
        };
        let inside = inside.command(Command::PostcopyRun);
        if self.has_footers {
            self.add(|main| main.package(&inside));
        } else {
            let inside = Small::default().command(Command::PostcopyListen).command(Command::PostcopyRun);
            self.add(|main| main.package(&inside));
        }
        if self.recipe.one_in(2) {
            self.urgent = Some(Small::default());
        }
        self.last = [None; 2];
        // Nothing waits for SYNC in postcopy where these are read.
        let sync = std::mem::replace(&mut self.sync, SyncMode::PerRound);
        self.section(SectionKind::END);
        for (block, page) in again {
            self.page_in_postcopy(block, page);
        }
        self.end_section();
        self.sync = sync;
        let ends = !self.dialect.has(Difference::PreemptAtSwitch);
        if let Some(urgent) = self.urgent.as_mut().filter(|_| ends) {
            PageWord::new(0, RamFlags::EOS).emit(&mut urgent.0);
        }
    }

    fn page_in_postcopy(&mut self, block: usize, page: u64) {
        let offset = page * self.page_size;
        let new = self.content(block, page);
        self.ram.insert((block, page), new.clone());
        let is_urgent = self.urgent.is_some() && self.recipe.one_in(2);
        let last = &mut self.last[usize::from(is_urgent)];
        let name = (last.replace(block) != Some(block)).then_some(BLOCKS[block].0);
        let body = match new.iter().all(|byte| *byte == 0) {
            true => PageBody::Zero(0),
            false => PageBody::Raw(Bulk::Bytes(&new)),
        };
        match self.urgent.as_mut().filter(|_| is_urgent) {
            Some(urgent) => *urgent = std::mem::take(urgent).page(offset, name, body),
            None => self.add(|main| main.page(offset, name, body)),
        }
    }
}

/// A zlib stream of its own, as UADK makes one behind its table of lengths. `None` if that is no smaller.
fn compress(page: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut codec = codec::open(Method::UADK, None).ok()?;
    codec.encode(page, page.len(), &mut out).ok()?;
    let stream = out.split_off(4);
    (stream.len() < page.len()).then_some(stream)
}
