//! A destination by hand, with the patience of a test: parses every channel, lets them wait for each other, keeps what comes.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use migwire::channel::{Feed, Streaming};
use migwire::dialect::Dialect;
use migwire::endpoint::{Departure, Source};
use migwire::guest::Memory;
use migwire::multifd::{Barrier, Packet, PacketParser, SyncMode, codec};
use migwire::stream::{Event, Mode, Parser, Phase};
use migwire::transport::{Connection, memory};
use migwire::wire::{Command, Method, MultifdHello, PageBody, RamFlags, SectionKind};

const PONG: &[u8] = b"\0\x02\0\x04\0\0\0\x01";
const SHUT_OK: &[u8] = b"\0\x01\0\x04\0\0\0\0";

/// Longer than anything takes, unless somebody waits for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// What has come.
#[derive(Default)]
pub(crate) struct Seen {
    /// RAM sections with their words, and commands.
    pub(crate) main: Vec<String>,
    /// What each channel has said, by the order in which they were opened.
    pub(crate) channels: Vec<Track>,
    pub(crate) memory: Memory,
    /// Pages that came a second time without a synchronisation between, and pages that no block has room for.
    pub(crate) repeated: u64,
    pub(crate) misplaced: u64,
    /// Why a channel could not be read to its end.
    pub(crate) errors: Vec<migwire::Error>,
    placed: HashSet<(u64, usize, u64)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Track {
    pub(crate) hello: Option<MultifdHello>,
    pub(crate) said: Vec<Said>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Sync(u64),
    Pages { number: u64, method: Method, normal: u64, zero: u64 },
    Device { name: String, bytes: u64 },
}

impl Seen {
    /// What all channels have said.
    pub(crate) fn said(&self) -> impl Iterator<Item = &Said> {
        self.channels.iter().flat_map(|track| &track.said)
    }

    /// Pages on channels, and those of them that are zero.
    pub(crate) fn pages(&self) -> (u64, u64) {
        self.said().fold((0, 0), |(pages, zeros), said| match said {
            Said::Pages { normal, zero, .. } => (pages + normal + zero, zeros + zero),
            _ => (pages, zeros),
        })
    }

    /// SYNCs of each channel.
    pub(crate) fn syncs(&self) -> Vec<usize> {
        let count = |track: &Track| track.said.iter().filter(|said| matches!(said, Said::Sync(_))).count();
        self.channels.iter().map(count).collect()
    }

    /// Packet numbers of all channels, in order.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let number = |said: &Said| match said {
            Said::Sync(number) | Said::Pages { number, .. } => Some(*number),
            Said::Device { .. } => None,
        };
        let mut numbers: Vec<_> = self.said().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }

    fn place(&mut self, round: u64, block: Option<usize>, offset: u64, page: &[u8]) {
        let fits = |index: &usize| offset + 4096 <= self.memory.blocks()[*index].length();
        let Some(index) = block.filter(fits) else {
            self.misplaced += 1;
            return;
        };
        self.repeated += u64::from(!self.placed.insert((round, index, offset)));
        self.memory.set_page(index, offset, page, 4096).unwrap();
    }

    fn block(&self, name: &[u8]) -> Option<usize> {
        self.memory.blocks().iter().position(|block| block.name().0 == name)
    }
}

/// Plays a whole migration; whatever the source does, everything it says is read.
pub(crate) fn play(source: Source, dialect: &str, memory: Memory) -> (Departure, Seen) {
    play_with(source, dialect, memory, true)
}

/// The same; who waits for nobody cannot be made to wait for ever.
pub(crate) fn play_with(source: Source, dialect: &str, memory: Memory, waits: bool) -> (Departure, Seen) {
    let dialect: Dialect = dialect.parse().unwrap();
    let (ours, theirs) = memory::pair();
    let stage = Arc::new(Stage::new(dialect, memory, waits));
    let main = {
        let stage = Arc::clone(&stage);
        thread::spawn(move || stage.attend_main(theirs))
    };
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    let connect = |_| {
        let (ours, theirs) = memory::pair();
        // It takes part from now on, however long it takes to start a thread.
        let number = stage.join();
        let stage = Arc::clone(&stage);
        threads.push(thread::spawn(move || stage.attend(number, theirs)));
        Ok(ours)
    };
    let departure = source.with_return_path(true).with_dialect(dialect).send_over(ours, connect, |_| {});
    main.join().unwrap();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let seen = std::mem::take(&mut stage.lock().seen);
    (departure, seen)
}

struct Stage {
    dialect: Dialect,
    mode: SyncMode,
    waits: bool,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    seen: Seen,
    barrier: Barrier,
    /// SYNCs of each channel.
    rounds: BTreeMap<usize, u64>,
    /// The main channel is over: nobody waits any more.
    is_over: bool,
}

impl Stage {
    fn new(dialect: Dialect, memory: Memory, waits: bool) -> Self {
        let newest = if dialect == Dialect::ANY { Dialect::newest() } else { dialect };
        let seen = Seen { memory, ..Seen::default() };
        let state = State { seen, barrier: Barrier::default(), rounds: BTreeMap::new(), is_over: false };
        Self {
            dialect,
            mode: SyncMode::of(newest).unwrap(),
            waits,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits until `done`; panics rather than for ever.
    fn wait(&self, mut done: impl FnMut(&State) -> bool) {
        if !self.waits {
            return;
        }
        let (_state, waited) =
            self.changed.wait_timeout_while(self.lock(), PATIENCE, |state| !done(state)).unwrap();
        assert!(!waited.timed_out(), "somebody waits for ever");
    }

    fn attend_main(&self, connection: Connection) {
        let mut parser = Parser::with(Mode::Strict, self.dialect);
        let mut out = connection.clone();
        let read = Feed::new(Streaming(&connection)).run(&mut parser, |located, parser| {
            let mut state = self.lock();
            let grammar = parser.grammar();
            state.seen.memory.handle(&located.event, grammar, located.range.start)?;
            match &located.event {
                Event::Section(head)
                    if grammar.current_section().is_some_and(|(_, _, section)| section.is_ram()) =>
                {
                    state.seen.main.push(kind(head.kind));
                }
                Event::Page(page) => {
                    let (round, block) = (state.barrier.markers(), grammar.current_block());
                    let offset = page.word.offset(4096);
                    match page.body {
                        PageBody::Zero(0) => state.seen.place(round, block, offset, &[0; 4096]),
                        PageBody::Zero(_) | PageBody::Xbzrle { .. } => {}
                        _ => state.seen.main.push("page".to_owned()),
                    }
                }
                Event::RamWord(word) => {
                    let action = word.flags(4096).action();
                    let (name, mode) = match action {
                        RamFlags::MULTIFD_FLUSH => ("FLUSH", SyncMode::PerRound),
                        RamFlags::EOS => ("EOS", SyncMode::PerSection),
                        _ => return Ok(ControlFlow::Continue(())),
                    };
                    state.seen.main.push(name.to_owned());
                    if mode == self.mode {
                        state.barrier.mark();
                        self.changed.notify_all();
                        drop(state);
                        self.wait(|state| state.barrier.may_go_on().unwrap_or(true));
                        self.changed.notify_all();
                        if self.waits {
                            self.lock().barrier.may_go_on()?;
                        }
                    }
                }
                Event::Command(Command::Ping(_)) => {
                    let _ = out.write_all(PONG);
                }
                Event::Command(Command::SwitchoverStart) => state.seen.main.push("SWITCHOVER".to_owned()),
                Event::DescriptionText(_) if grammar.phase() == Phase::Trailing => {
                    let _ = out.write_all(SHUT_OK);
                    return Ok(ControlFlow::Break(()));
                }
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        });
        let mut state = self.lock();
        state.seen.errors.extend(read.err());
        state.is_over = true;
        self.changed.notify_all();
    }

    fn join(&self) -> usize {
        let mut state = self.lock();
        let number = state.seen.channels.len();
        state.seen.channels.push(Track::default());
        state.barrier.join(number as u8);
        number
    }

    /// A multifd channel.
    fn attend(&self, number: usize, connection: Connection) {
        let mut parser = PacketParser::with(Mode::Strict, self.dialect, 4096);
        let mut payload = Vec::new();
        let mut decoder = None;
        let read = Feed::new(Streaming(&connection)).run(&mut parser, |located, parser| {
            let mut state = self.lock();
            let State { seen, rounds, .. } = &mut *state;
            let round = rounds.get(&number).copied().unwrap_or(0);
            let batch = parser.batch();
            match &located.event {
                Packet::Hello(hello) => seen.channels[number].hello = Some(*hello),
                Packet::Ram(packet) => {
                    let (number_of, normal) = (packet.packet_num, batch.normal().len() as u64);
                    let zero = batch.zero().len() as u64;
                    if normal + zero > 0 {
                        let said = Said::Pages { number: number_of, method: batch.method(), normal, zero };
                        seen.channels[number].said.push(said);
                        let block = seen.block(batch.name().0);
                        for offset in batch.zero() {
                            seen.place(round, block, *offset, &[0; 4096]);
                        }
                    } else {
                        seen.channels[number].said.push(Said::Sync(number_of));
                    }
                }
                Packet::Payload(bulk) => {
                    payload.extend_from_slice(bulk.bytes().unwrap());
                    if batch.left() == 0 {
                        let block = seen.block(batch.name().0);
                        let decoder =
                            decoder.get_or_insert_with(|| codec::open(batch.method(), None).unwrap());
                        let mut pages = vec![0; batch.normal().len() * 4096];
                        decoder.decode(&payload, 4096, &mut pages)?;
                        for (offset, page) in batch.normal().iter().zip(pages.chunks(4096)) {
                            seen.place(round, block, *offset, page);
                        }
                        payload.clear();
                    }
                }
                Packet::Device(packet) => {
                    let name = packet.idstr.name().to_string();
                    let said = Said::Device { name, bytes: packet.payload_size.into() };
                    seen.channels[number].said.push(said);
                }
                Packet::DeviceData(_) => {}
            }
            if parser.is_at_sync() {
                *state.rounds.entry(number).or_default() += 1;
                state.barrier.arrive(number as u8);
                self.changed.notify_all();
                drop(state);
                self.wait(|state| state.is_over || state.barrier.may_read(number as u8));
            }
            Ok(ControlFlow::Continue(()))
        });
        let mut state = self.lock();
        match read {
            Ok(()) => state.barrier.close(number as u8),
            Err(error) => {
                state.barrier.fail(number as u8);
                state.seen.errors.push(error);
            }
        }
        self.changed.notify_all();
    }
}

/// A section's kind, as it is written in [`Seen::main`].
pub(crate) fn kind(kind: SectionKind) -> String {
    format!("{kind:?}")
}
