//! The stand-in destination in postcopy against a scripted source: requests, the preempt channel, connections that break.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use migwire::channel::{ChannelParser as _, Step, Tail};
use migwire::endpoint::{Arrival, Cut, Destination, Limits};
use migwire::guest::Memory;
use migwire::postcopy::{Reply, RequestPattern, ReturnParser};
use migwire::stream::{Emitter, Event};
use migwire::transport::{self, Address, Connection, Listener};
use migwire::wire::{
    Advise, Bulk, Command, Configuration, Discard, DiscardRange, FileHeader, Message, Name, Page, PageBody,
    PageWord, RamBlock, RamFlags, SectionFooter, SectionHead, SectionIdentity, SectionKind, Wire as _,
};
use migwire::{ChannelId, ErrorKind};

const PAGE: u64 = 4096;
const PAGES: u64 = 48;

/// What the destination has said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Pong,
    Page(u64),
    Bitmap,
    Bits(Vec<u8>),
    BitmapEnd,
    Resumed,
    Shut(u32),
    Over,
}

/// A source by hand, and one connection after the other to its destination.
struct Script {
    address: Address,
    main: Connection,
    emitter: Emitter,
    parser: ReturnParser,
    heard: Vec<u8>,
    /// Bytes that may still leave on this connection.
    left: usize,
}

impl Script {
    fn begin(address: &Address, postcopy: bool) -> Self {
        let mut script = Self {
            address: address.clone(),
            main: connect(address),
            emitter: Emitter::strict(),
            parser: ReturnParser::default(),
            heard: Vec::new(),
            left: usize::MAX,
        };
        let advise = Advise { page_size_summary: PAGE, target_page_size: PAGE };
        script.say(&[
            Event::Header(FileHeader::CURRENT),
            Event::Configuration(Configuration { machine: "none".into() }),
            Event::Command(Command::OpenReturnPath),
        ]);
        if postcopy {
            script.say(&[Event::Command(Command::PostcopyAdvise(Some(advise)))]);
        }
        let ram = SectionIdentity { idstr: "ram".into(), instance_id: 0, version_id: 4 };
        script.say(&[
            Event::Section(SectionHead { kind: SectionKind::START, section_id: 1, identity: Some(ram) }),
            Event::RamWord(PageWord::new(PAGES * PAGE, RamFlags::MEM_SIZE)),
            Event::RamBlock(RamBlock::new("ram".into(), PAGES * PAGE)),
            EOS,
            FOOTER,
        ]);
        script
    }

    /// Writes as much as may still leave, and says whether that was all.
    fn say(&mut self, events: &[Event<'_>]) -> bool {
        let mut bytes = Vec::new();
        for event in events {
            self.emitter.emit(event, &mut bytes).unwrap();
        }
        let count = bytes.len().min(self.left);
        self.left -= count;
        // Whether the destination still listens is what many a test is about.
        let _ = self.main.write_all(&bytes[..count]);
        count == bytes.len()
    }

    /// A PART with these pages, each filled with its number; page 0 and every tenth are zero.
    fn part(&mut self, pages: &[u64]) -> bool {
        let mut is_whole = self.say(&[Event::Section(PART)]);
        for page in pages {
            let (bytes, head) = page_of(*page);
            let body = match head {
                RamFlags::ZERO => PageBody::Zero(0),
                _ => PageBody::Raw(Bulk::Bytes(&bytes)),
            };
            let word = PageWord::new(page * PAGE, head);
            is_whole &= self.say(&[Event::Page(Page { word, block: Some(Name(b"ram")), body })]);
        }
        is_whole & self.say(&[EOS, FOOTER])
    }

    /// DISCARD of a range of pages, and the package.
    fn switch(&mut self, discard: std::ops::Range<u64>) {
        let range =
            DiscardRange { start: discard.start * PAGE, length: (discard.end - discard.start) * PAGE };
        let mut size = 0;
        let inside = [
            Event::Command(Command::PostcopyListen),
            Event::Command(Command::Ping(3)),
            Event::Command(Command::PostcopyRun),
        ];
        for event in &inside {
            let Event::Command(command) = event else { unreachable!() };
            size += command.wire_len();
        }
        self.say(&[Event::Command(Command::PostcopyRamDiscard(Discard {
            version: 0,
            block: Name(b"ram"),
            nil: 0,
            ranges: vec![range],
        }))]);
        self.say(&[Event::Command(Command::Packaged { size: size as u32 })]);
        self.say(&inside);
    }

    fn end(&mut self) -> bool {
        let end = SectionHead { kind: SectionKind::END, section_id: 1, identity: None };
        self.say(&[Event::Section(end), EOS, FOOTER, Event::Eof])
    }

    fn hear(&mut self) -> Said {
        loop {
            match self.parser.step(&self.heard, Tail::Open).unwrap() {
                Step::End => return Said::Over,
                Step::Event(located) => {
                    let said = match located.event {
                        Reply::Message(Message::Pong(3)) => Said::Pong,
                        Reply::Message(Message::ReqPages { start, length: 4096 }) => Said::Page(start / PAGE),
                        Reply::Message(Message::ReqPagesId { start, length: 4096, block: Name(b"ram") }) => {
                            Said::Page(start / PAGE)
                        }
                        Reply::Message(Message::RecvBitmap { block: Name(b"ram") }) => Said::Bitmap,
                        Reply::Bitmap(head) => {
                            assert_eq!(head.size, 8);
                            Said::Bitmap
                        }
                        Reply::BitmapBits(bulk) => Said::Bits(bulk.bytes().unwrap().into()),
                        Reply::BitmapEnd(_) => Said::BitmapEnd,
                        Reply::Message(Message::ResumeAck(1)) => Said::Resumed,
                        Reply::Message(Message::Shut(status)) => Said::Shut(status),
                        other => unreachable!("{other:?}"),
                    };
                    let count = located.raw.len();
                    self.heard.drain(..count);
                    return said;
                }
                Step::More(_) => {
                    let mut buffer = [0; 512];
                    match self.main.read(&mut buffer) {
                        Ok(0) | Err(_) => return Said::Over,
                        Ok(count) => self.heard.extend_from_slice(&buffer[..count]),
                    }
                }
            }
        }
    }

    /// Comes back, and learns what has arrived.
    fn recover(&mut self) -> BTreeSet<u64> {
        let _ = self.main.shutdown();
        self.main = connect(&self.address);
        self.emitter = self.emitter.resumed().unwrap();
        self.parser = ReturnParser::default();
        self.heard.clear();
        self.left = usize::MAX;
        self.say(&[Event::Command(Command::RecvBitmap { block: Name(b"ram") })]);
        assert_eq!((self.hear(), self.hear()), (Said::Bitmap, Said::Bitmap));
        let Said::Bits(bits) = self.hear() else { unreachable!("no bits") };
        assert_eq!(self.hear(), Said::BitmapEnd);
        let bits = u64::from_le_bytes(bits.try_into().unwrap());
        self.say(&[Event::Command(Command::PostcopyResume)]);
        assert_eq!(self.hear(), Said::Resumed);
        (0..PAGES).filter(|page| bits & (1 << page) == 0).collect()
    }
}

const PART: SectionHead<'static> = SectionHead { kind: SectionKind::PART, section_id: 1, identity: None };
const EOS: Event<'static> = Event::RamWord(PageWord(0x10));
const FOOTER: Event<'static> = Event::Footer(SectionFooter { section_id: 1 });

fn page_of(page: u64) -> ([u8; PAGE as usize], RamFlags) {
    match page % 10 {
        0 => ([0; PAGE as usize], RamFlags::ZERO),
        _ => ([page as u8; PAGE as usize], RamFlags::PAGE),
    }
}

fn urgent(page: u64, named: bool) -> Vec<u8> {
    let (bytes, flags) = page_of(page);
    let (block, flags) = if named { (Some(Name(b"ram")), flags) } else { (None, flags | RamFlags::CONTINUE) };
    let body = if page.is_multiple_of(10) { PageBody::Zero(0) } else { PageBody::Raw(Bulk::Bytes(&bytes)) };
    let mut out = Vec::new();
    Page { word: PageWord::new(page * PAGE, flags), block, body }.emit(&mut out);
    out
}

fn connect(address: &Address) -> Connection {
    let connection = transport::connect(address, Duration::from_secs(5)).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    connection
}

fn destination(ram: &Path) -> Destination {
    Destination::new()
        .with_limits(Limits { silence: Duration::from_secs(3), total: Some(Duration::from_secs(20)) })
        .with_recovery(Duration::from_secs(3))
        .with_memory(Memory::new().with_images(ram).unwrap())
}

/// Runs a script against a destination.
fn run<T: Send>(
    destination: impl FnOnce(&Path) -> Destination,
    script: impl FnOnce(&Address) -> T + Send,
) -> (Arrival, T, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let address: Address = format!("unix:{}", dir.path().join("s").display()).parse().unwrap();
    let listener = Listener::bind(&address).unwrap();
    let destination = destination(dir.path());
    let (arrival, told) = thread::scope(|scope| {
        let script = scope.spawn(|| script(&address));
        let arrival = destination.listen(&listener, |_| {}).unwrap();
        (arrival, script.join().unwrap())
    });
    (arrival, told, std::fs::read(dir.path().join("ram.ram")).unwrap_or_default())
}

/// What the guest's memory must be in the end.
fn all() -> Vec<u8> {
    (0..PAGES).flat_map(|page| page_of(page).0).collect()
}

fn text(arrival: &Arrival) -> String {
    arrival.error.as_ref().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn every_missing_page_is_asked_for() {
    let asking = |ram: &Path| destination(ram).with_requests(RequestPattern::Random(3), 2);
    let (arrival, asked, ram) = run(asking, |address| {
        let mut script = Script::begin(address, true);
        script.part(&(0..40).collect::<Vec<_>>());
        script.switch(8..24);
        let mut asked = Vec::new();
        loop {
            match script.hear() {
                Said::Pong => {}
                Said::Page(page) => {
                    asked.push(page);
                    script.part(&[page]);
                    if asked.len() == 24 {
                        script.end();
                    }
                }
                other => return (asked, other),
            }
        }
    });
    assert_eq!((arrival.error.as_ref().map(ToString::to_string), asked.1), (None, Said::Shut(0)));
    assert_ne!(asked.0, (8..24).chain(40..48).collect::<Vec<_>>(), "in order");
    assert_eq!(asked.0.into_iter().collect::<BTreeSet<_>>(), (8..24).chain(40..48).collect());
    assert!(ram == all());
    assert_eq!((arrival.missing_pages, arrival.pauses, arrival.preempt), (Some(0), 0, None));
    let requests = arrival.requests.unwrap();
    assert_eq!((requests.sent, requests.answered), (24, 24));
    assert!(requests.p50 <= requests.p99 && requests.p99 <= requests.max && requests.p50 > Some(0));
}

#[test]
fn urgent_pages_come_on_a_channel_of_their_own() {
    let asking = |ram: &Path| destination(ram).with_requests(RequestPattern::Missing, 1);
    let (arrival, _, ram) = run(asking, |address| {
        let mut script = Script::begin(address, true);
        script.part(&(0..40).collect::<Vec<_>>());
        let preempt = connect(address);
        script.switch(0..1);
        let mut preempt = &preempt;
        let mut named = true;
        for _ in 0..10 {
            match script.hear() {
                Said::Page(page) => {
                    preempt.write_all(&urgent(page, named)).unwrap();
                    named = false;
                }
                Said::Pong => {}
                other => panic!("{other:?}"),
            }
        }
        preempt.write_all(&0x10u64.to_be_bytes()).unwrap();
        script.end();
        assert_eq!(script.hear(), Said::Shut(0));
    });
    assert_eq!(text(&arrival), "");
    let preempt = arrival.preempt.unwrap();
    assert_eq!((preempt.pages, preempt.zero_pages), (9, 2));
    assert!(ram == all());
}

#[test]
fn a_preempt_channel_may_stay_silent() {
    let (arrival, ..) = run(destination, |address| {
        let mut script = Script::begin(address, true);
        let preempt = connect(address);
        script.part(&(0..40).collect::<Vec<_>>());
        script.switch(0..1);
        script.part(&[0, 40, 41, 42, 43, 44, 45, 46, 47]);
        script.end();
        assert_eq!((script.hear(), script.hear()), (Said::Pong, Said::Shut(0)));
        drop(preempt);
    });
    assert_eq!((text(&arrival), arrival.missing_pages), (String::new(), Some(0)));
    assert_eq!(arrival.complaints.len(), 0, "{:?}", arrival.complaints);
}

#[test]
fn an_urgent_page_may_be_quicker_than_its_discard_and_slower_than_the_end() {
    let (arrival, ..) = run(destination, |address| {
        let mut script = Script::begin(address, true);
        script.part(&(0..40).collect::<Vec<_>>());
        let preempt = connect(address);
        (&preempt).write_all(&urgent(1, true)).unwrap();
        // Long enough to be read, by someone who would.
        thread::sleep(Duration::from_millis(100));
        script.switch(1..3);
        script.part(&[40, 41, 42, 43, 44, 45, 46, 47]);
        script.end();
        thread::sleep(Duration::from_millis(100));
        (&preempt).write_all(&urgent(2, false)).unwrap();
        assert_eq!((script.hear(), script.hear()), (Said::Pong, Said::Shut(0)));
    });
    assert_eq!((text(&arrival), arrival.missing_pages), (String::new(), Some(0)));
}

#[test]
fn the_preempt_channel_may_come_behind_the_end() {
    let (arrival, _, ram) = run(destination, |address| {
        let mut script = Script::begin(address, true);
        script.part(&(0..40).collect::<Vec<_>>());
        script.switch(1..2);
        script.part(&[40, 41, 42, 43, 44, 45, 46, 47]);
        script.end();
        thread::sleep(Duration::from_millis(100));
        let preempt = connect(address);
        (&preempt).write_all(&urgent(1, true)).unwrap();
        assert_eq!((script.hear(), script.hear()), (Said::Pong, Said::Shut(0)));
    });
    assert_eq!((text(&arrival), arrival.missing_pages), (String::new(), Some(0)));
    assert!(ram == all());
}

#[test]
fn pages_that_never_come_are_told() {
    let (arrival, said, _) = run(destination, |address| {
        let mut script = Script::begin(address, true);
        script.part(&(0..40).collect::<Vec<_>>());
        script.switch(10..12);
        script.end();
        assert_eq!(script.hear(), Said::Pong);
        script.hear()
    });
    insta::assert_snapshot!(text(&arrival), @r#"postcopy: postcopy has ended, and 10 pages have not come, first 0xa000 of block "ram""#);
    assert_eq!((said, arrival.missing_pages), (Said::Shut(1), Some(10)));
}

/// Sends everything, with the connection broken behind `left` bytes of what follows RUN, and again on the next one.
fn broken_twice(address: &Address, left: [usize; 2]) -> (u32, Said) {
    let mut script = Script::begin(address, true);
    script.part(&(0..20).collect::<Vec<_>>());
    script.switch(4..8);
    let mut missing: BTreeSet<u64> = (4..8).chain(20..PAGES).collect();
    let mut cuts = 0;
    for left in left.into_iter().chain([usize::MAX]) {
        script.left = left;
        let pages: Vec<u64> = missing.iter().copied().collect();
        if script.part(&pages) && script.end() {
            break;
        }
        cuts += 1;
        missing = script.recover();
    }
    loop {
        match script.hear() {
            Said::Page(_) | Said::Pong => {}
            other => return (cuts, other),
        }
    }
}

#[test]
fn nothing_is_lost_wherever_the_connection_breaks() {
    let lengths = [0, 1, 5, 13, 30, 4101, 4113, 60_000, 118_000];
    for (i, first) in lengths.into_iter().enumerate() {
        let second = lengths[(i * 7 + 3) % lengths.len()];
        let asking = |ram: &Path| destination(ram).with_requests(RequestPattern::Hot(1), 3);
        let (arrival, (cuts, said), ram) = run(asking, move |address| broken_twice(address, [first, second]));
        assert_eq!((text(&arrival), said), (String::new(), Said::Shut(0)), "{first}, {second}");
        assert!(ram == all(), "{first}, {second}");
        assert_eq!((arrival.pauses, arrival.missing_pages), (cuts, Some(0)), "{first}, {second}");
        assert!(cuts >= 1, "{first}, {second}");
    }
}

#[test]
fn it_breaks_where_it_is_told_to() {
    for at in [0, 1, 4096, 50_000] {
        let cut = move |ram: &Path| destination(ram).with_cuts([Cut::Run(at), Cut::Resume(100)]);
        let (arrival, said, ram) = run(cut, |address| {
            let mut script = Script::begin(address, true);
            script.part(&(0..20).collect::<Vec<_>>());
            script.switch(4..8);
            for page in (4..8).chain(20..PAGES) {
                script.part(&[page]);
            }
            while script.hear() != Said::Over {}
            for _ in 0..2 {
                let missing: Vec<u64> = script.recover().into_iter().collect();
                script.part(&missing);
                script.end();
                let said = script.hear();
                if said != Said::Over {
                    return said;
                }
            }
            script.hear()
        });
        assert_eq!((text(&arrival), said, arrival.pauses), (String::new(), Said::Shut(0), 2), "{at}");
        assert!(ram == all(), "{at}");
    }
}

#[test]
fn before_run_a_break_is_the_end() {
    let (arrival, ..) = run(destination, |address| {
        let mut script = Script::begin(address, true);
        script.part(&[0, 1]);
    });
    assert_eq!((arrival.error.unwrap().kind(), arrival.pauses), (ErrorKind::Truncated, 0));
    assert_eq!(arrival.pages, 2, "what has come is kept");
}

#[test]
fn a_source_that_does_not_come_back_is_waited_for_so_long() {
    let impatient = |ram: &Path| destination(ram).with_recovery(Duration::from_millis(300));
    let begin = Instant::now();
    let (arrival, ..) = run(impatient, |address| {
        let mut script = Script::begin(address, true);
        script.part(&(0..20).collect::<Vec<_>>());
        script.switch(4..8);
    });
    assert!(begin.elapsed() < Duration::from_secs(3));
    let error = arrival.error.as_ref().unwrap();
    assert_eq!((error.kind(), arrival.pauses, arrival.missing_pages), (ErrorKind::Timeout, 1, Some(32)));
    assert!(text(&arrival).contains("its source did not come back"), "{}", text(&arrival));
}

#[test]
fn another_migration_does_not_take_its_place() {
    let (arrival, said, ram) = run(destination, |address| {
        let mut script = Script::begin(address, true);
        script.part(&(0..20).collect::<Vec<_>>());
        script.switch(4..8);
        assert_eq!(script.hear(), Said::Pong);
        script.main.shutdown().unwrap();
        thread::sleep(Duration::from_millis(100));
        let intruder = connect(address);
        (&intruder).write_all(b"QEVM\0\0\0\x03").unwrap();
        assert_eq!((&intruder).read(&mut [0; 8]).unwrap_or(0), 0);
        let missing: Vec<u64> = script.recover().into_iter().collect();
        script.part(&missing);
        script.end();
        script.hear()
    });
    assert_eq!((text(&arrival), said), (String::new(), Said::Shut(0)));
    assert!(ram == all());
    assert!(
        arrival.complaints[0].to_string().contains("another migration begins"),
        "{:?}",
        arrival.complaints
    );
}

#[test]
fn what_may_not_come_on_the_preempt_channel_fails_with_its_place() {
    let (arrival, ..) = run(destination, |address| {
        let mut script = Script::begin(address, true);
        script.part(&(0..20).collect::<Vec<_>>());
        script.switch(4..8);
        let preempt = connect(address);
        (&preempt).write_all(&urgent(PAGES + 3, true)).unwrap();
        while script.hear() != Said::Over {}
    });
    let error = arrival.error.as_ref().unwrap();
    assert_eq!((error.channel(), error.offset()), (ChannelId::Preempt, Some(0)), "{error}");
    assert!(text(&arrival).contains("past the end"), "{error}");
}

#[test]
fn without_advise_nothing_is_accounted_for() {
    let (arrival, ..) = run(destination, |address| {
        let mut script = Script::begin(address, false);
        script.part(&[1, 2]);
        let second = connect(address);
        (&second).write_all(&urgent(3, true)).unwrap();
        assert_eq!((&second).read(&mut [0; 8]).unwrap_or(0), 0, "it is nothing that is expected");
        script.end();
        script.main.shutdown_write().unwrap();
        script.hear()
    });
    assert_eq!((text(&arrival), arrival.missing_pages), (String::new(), None));
    assert_eq!(arrival.complaints.len(), 1);
}
