//! A destination by hand: it takes pages, asks for some, and does what a script says.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use migwire::channel::{ChannelEvent as _, Feed, Streaming};
use migwire::endpoint::{Departure, Source, Turn};
use migwire::guest::Pattern;
use migwire::postcopy::{PageSet, PreemptParser, Reply, Urgent, bitmap_size, page_count};
use migwire::stream::{Block, Event, Grammar, Mode, Parser};
use migwire::transport::{Connection, memory};
use migwire::wire::{BitmapHead, Bulk, Command, Message, Name, Page, PageBody, RECV_BITMAP_END};
use migwire::{ChannelId, Error, ErrorKind};

/// What a destination says at a moment; `None` ends the connection.
pub(crate) type Say = Option<Vec<u8>>;

/// What the destination does other than taking pages. The number is that of the pause: 0 before the first one.
pub(crate) trait Script: Send + 'static {
    /// The return path is open.
    fn opened(&mut self) -> Say {
        Some(Vec::new())
    }
    /// PING has come.
    fn ping(&mut self, value: u32) -> Say {
        Some(message(Message::Pong(value)))
    }
    /// LISTEN has come.
    fn listening(&mut self) -> Say {
        Some(Vec::new())
    }
    /// RUN has come.
    fn running(&mut self) -> Say {
        Some(Vec::new())
    }
    /// The bitmap of a block is asked for.
    fn bitmap(&mut self, _pause: u32, block: &Block, received: &PageSet) -> Say {
        Some(bitmap(block, received))
    }
    /// RESUME has come.
    fn resumed(&mut self, _pause: u32) -> Say {
        Some(message(Message::ResumeAck(1)))
    }
    /// A page has come behind the switch, the so-manieth.
    fn page(&mut self, _count: u64) -> Say {
        Some(Vec::new())
    }
    /// Whether the destination closes a preempt channel that has been opened by the time of the first PING.
    fn closes_preempt(&self) -> bool {
        false
    }
    /// EOF has come.
    fn ended(&mut self) -> Say {
        Some(message(Message::Shut(0)))
    }
    /// The source pauses: whether it is let in again.
    fn admits(&mut self, _pause: u32) -> bool {
        true
    }
}

/// A destination as it should be.
pub(crate) struct Good;

impl Script for Good {}

/// Asks for these pages as soon as the guest runs, and for those that are missing again after a pause.
pub(crate) struct Asking(pub(crate) Vec<Vec<u8>>);

impl Script for Asking {
    fn running(&mut self) -> Say {
        Some(self.0.concat())
    }

    fn resumed(&mut self, _: u32) -> Say {
        Some([message(Message::ResumeAck(1)), self.0.concat()].concat())
    }
}

pub(crate) fn message(message: Message<'_>) -> Vec<u8> {
    reply(&Reply::Message(message))
}

pub(crate) fn reply(reply: &Reply<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    reply.emit(&mut bytes);
    bytes
}

pub(crate) fn ask(start: u64, length: u32) -> Vec<u8> {
    message(Message::ReqPagesId { start, length, block: Name(b"ram") })
}

pub(crate) fn bitmap(block: &Block, received: &PageSet) -> Vec<u8> {
    let words: Vec<u8> = received.wire_words(page_count(block, 4096)).flat_map(u64::to_le_bytes).collect();
    [
        message(Message::RecvBitmap { block: Name(&block.name) }),
        reply(&Reply::Bitmap(BitmapHead { size: bitmap_size(block, 4096) })),
        reply(&Reply::BitmapBits(Bulk::Bytes(&words))),
        reply(&Reply::BitmapEnd(RECV_BITMAP_END)),
    ]
    .concat()
}

/// What has arrived.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) blocks: Vec<Block>,
    pub(crate) received: Vec<PageSet>,
    /// Pages behind the switch, in order: block, page, whether on a preempt channel.
    pub(crate) order: Vec<(usize, u64, bool)>,
    /// Pages before the switch.
    pub(crate) early: u64,
    /// Pages that came a second time behind the switch.
    pub(crate) repeated: u64,
    /// Pages with another content than the pattern.
    pub(crate) wrong: u64,
    pub(crate) commands: Vec<String>,
    pub(crate) discards: usize,
    pub(crate) ended: bool,
    /// Words that ended preempt channels.
    pub(crate) preempt_ends: u64,
    pub(crate) errors: Vec<Error>,
}

impl Seen {
    pub(crate) fn missing(&self) -> u64 {
        let pages: u64 = self.blocks.iter().map(|block| page_count(block, 4096)).sum();
        pages - self.received.iter().map(PageSet::len).sum::<u64>()
    }

    fn take(&mut self, index: usize, page: &Page<'_>, pattern: Pattern, is_preempt: bool, is_late: bool) {
        let offset = page.word.offset(4096);
        let mut expected = [0; 4096];
        pattern.fill(offset, &mut expected);
        let is_right = match page.body {
            PageBody::Zero(0) => expected.iter().all(|byte| *byte == 0),
            PageBody::Raw(bulk) => bulk.bytes() == Some(&expected[..]),
            _ => false,
        };
        self.wrong += u64::from(!is_right);
        let is_new = self.received[index].insert(offset / 4096).unwrap();
        if is_late {
            self.repeated += u64::from(!is_new);
            self.order.push((index, offset / 4096, is_preempt));
        } else {
            self.early += 1;
        }
    }
}

/// Runs `source` against a destination with that script; all its blocks hold `pattern`. Also what was told of pauses.
pub(crate) fn play(source: Source, pattern: Pattern, script: impl Script) -> (Departure, Seen, Vec<String>) {
    let turns = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&turns);
    let source = source.with_notice(move |turn| {
        told.lock().unwrap().push(match turn {
            Turn::Paused(reason) => reason.to_string(),
            Turn::Resumed => "resumed".to_owned(),
        });
    });
    let (ours, theirs) = memory::pair();
    let (sender, connections) = channel();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let peer = Peer {
        seen: Arc::clone(&seen),
        pattern,
        script: Box::new(script),
        preempt: Vec::new(),
        preempt_lines: Vec::new(),
    };
    let thread = thread::spawn(move || peer.run(theirs, &connections));
    let connect = |channel| offer(channel, &sender);
    let departure = source.send_over(ours, connect, |_| {});
    drop(sender);
    thread.join().unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let turns = turns.lock().unwrap().clone();
    (departure, seen, turns)
}

/// A new connection, if the peer still takes any.
fn offer(channel: ChannelId, sender: &Sender<(ChannelId, Connection)>) -> migwire::Result<Connection> {
    let (ours, theirs) = memory::pair();
    match sender.send((channel, theirs)) {
        Ok(()) => Ok(ours),
        Err(_) => Err(Error::nowhere(ErrorKind::Io, "connecting", "connection refused")),
    }
}

struct Peer {
    seen: Arc<Mutex<Seen>>,
    pattern: Pattern,
    script: Box<dyn Script>,
    preempt: Vec<JoinHandle<()>>,
    preempt_lines: Vec<Connection>,
}

impl Peer {
    fn run(mut self, main: Connection, connections: &Receiver<(ChannelId, Connection)>) {
        let mut parser = Parser::new();
        let mut main = main;
        let mut pause = 0;
        loop {
            let ended = self.converse(&mut main, &mut parser, pause, connections);
            let _ = main.shutdown();
            self.preempt.drain(..).for_each(|thread| thread.join().unwrap());
            if let Err(error) = ended {
                self.seen.lock().unwrap().errors.push(error);
            }
            let Some(resumed) = parser.resumed() else { return };
            if self.seen.lock().unwrap().ended || !self.script.admits(pause + 1) {
                return;
            }
            parser = resumed;
            pause += 1;
            main = loop {
                match connections.recv_timeout(Duration::from_secs(20)) {
                    Ok((ChannelId::Resumed(_), connection)) => break connection,
                    // What was opened for the conversation before.
                    Ok(_) => {}
                    Err(_) => return,
                }
            };
        }
    }

    fn converse(
        &mut self,
        main: &mut Connection,
        parser: &mut Parser,
        pause: u32,
        connections: &Receiver<(ChannelId, Connection)>,
    ) -> migwire::Result<()> {
        main.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (input, output) = (Patient(main.clone()), main.clone());
        Feed::new(Streaming(input)).run(parser, |located, parser| {
            self.attend_preempt(connections, parser.grammar());
            let say = self.answer(&located.event, parser.grammar(), pause);
            let is_last = matches!(located.event, Event::Eof);
            match say {
                Some(bytes) => {
                    // A source that is gone is noticed when nothing more comes.
                    let _ = (&output).write_all(&bytes);
                    Ok(if is_last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
                }
                None => {
                    let _ = output.shutdown();
                    Ok(ControlFlow::Break(()))
                }
            }
        })?;
        Ok(())
    }

    fn attend_preempt(&mut self, connections: &Receiver<(ChannelId, Connection)>, grammar: &Grammar) {
        while let Ok((channel, connection)) = connections.try_recv() {
            assert!(matches!(channel, ChannelId::Preempt | ChannelId::ResumedPreempt(_)), "{channel}");
            self.preempt_lines.push(connection.clone());
            let (seen, pattern) = (Arc::clone(&self.seen), self.pattern);
            // Of a source that connects first, the blocks are not known yet; there is one.
            let blocks: Arc<[Block]> = grammar.blocks().into();
            let thread = thread::spawn(move || attend(connection, blocks, &seen, pattern));
            self.preempt.push(thread);
        }
    }

    fn answer(&mut self, event: &Event<'_>, grammar: &Grammar, pause: u32) -> Say {
        let mut seen = self.seen.lock().unwrap();
        match event {
            Event::Command(command) => {
                if let Command::PostcopyRamDiscard(discard) = command {
                    seen.discards += discard.ranges.len();
                    assert!((1..=12).contains(&discard.ranges.len()));
                    let index = grammar.block_index(discard.block).unwrap();
                    for range in &discard.ranges {
                        let pages = range.start / 4096..(range.start + range.length) / 4096;
                        seen.received[index].remove_range(pages);
                    }
                }
                seen.commands.push(command.code().to_string());
                if matches!(command, Command::Ping(1)) && self.script.closes_preempt() {
                    self.preempt_lines.iter().for_each(|line| line.shutdown().unwrap());
                }
                match command {
                    Command::OpenReturnPath => self.script.opened(),
                    Command::Ping(value) => self.script.ping(*value),
                    Command::PostcopyListen => self.script.listening(),
                    Command::PostcopyRun => self.script.running(),
                    Command::RecvBitmap { block } => {
                        let index = grammar.block_index(*block).unwrap();
                        self.script.bitmap(pause, &seen.blocks[index], &seen.received[index])
                    }
                    Command::PostcopyResume => self.script.resumed(pause),
                    _ => Some(Vec::new()),
                }
            }
            Event::RamBlock(_) => {
                seen.blocks = grammar.blocks().to_vec();
                seen.received.push(PageSet::new());
                Some(Vec::new())
            }
            Event::Page(page) => {
                let index = grammar.current_block().unwrap();
                seen.take(index, page, self.pattern, false, grammar.is_postcopy());
                match grammar.is_postcopy() {
                    true => self.script.page(seen.order.len() as u64),
                    false => Some(Vec::new()),
                }
            }
            Event::Eof => {
                seen.ended = true;
                self.script.ended()
            }
            _ => Some(Vec::new()),
        }
    }
}

fn attend(connection: Connection, blocks: Arc<[Block]>, seen: &Mutex<Seen>, pattern: Pattern) {
    let mut parser = PreemptParser::new(Mode::Strict, 4096);
    if !blocks.is_empty() {
        parser = parser.with_blocks(blocks);
    }
    let ended = Feed::new(Streaming(connection)).run(&mut parser, |located, parser| {
        let mut seen = seen.lock().unwrap();
        match &located.event {
            Urgent::Page(page) => {
                let index = parser.current_block().unwrap_or(0);
                seen.take(index, page, pattern, true, true);
            }
            Urgent::Word(_) => seen.preempt_ends += 1,
        }
        Ok(ControlFlow::Continue(()))
    });
    if let Err(error) = ended {
        seen.lock().unwrap().errors.push(error);
    }
}

/// Waits for what comes as long as a test may take, so that a preempt channel can be attended to meanwhile.
struct Patient(Connection);

impl std::io::Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for _ in 0..1000 {
            match self.0.read(buffer) {
                Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {}
                other => return other,
            }
        }
        Err(std::io::ErrorKind::TimedOut.into())
    }
}
