//! Pages that are asked for in postcopy: how many a second, and how long each takes.
//!
//! ```text
//! Source <--- REQ_PAGES, a window of them --- requester          loopback, all pages once, in any order
//!    '---- pages, main or preempt channel -----^
//! ```
//! With a preempt channel the requester reads little of the main channel, as if what nobody has asked for had a long way to go;
//! otherwise most pages would have come by themselves before they are asked for.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use migwire::channel::{Feed, Streaming};
use migwire::endpoint::{Departure, Postcopy, Source};
use migwire::guest::Pattern;
use migwire::postcopy::{PreemptParser, RequestPattern, Requests, Urgent};
use migwire::stream::{Event, Mode, Parser};
use migwire::transport;
use migwire::wire::{Command, Message, Wire as _};
use migwire::{Error, Result};

use super::wire::{PATIENCE, joined, loopback, machine};
use super::{Conditions, Found};

/// Requests under way.
const WINDOW: usize = 256;

/// Requests that are written at once.
const BATCH: usize = 16;

/// Memory that is moved at most: what counts is the number of pages.
const SIZE: u64 = 1 << 30;

/// Bytes of the main channel a millisecond, when pages that are asked for have a channel of their own.
const TRICKLE: usize = 64 << 10;

/// Serves all pages of a guest to a requester.
pub(super) fn serve(pattern: Pattern, preempt: bool, conditions: &Conditions) -> anyhow::Result<Found> {
    let mut runs = Vec::new();
    for _ in 0..conditions.runs {
        runs.push(run(pattern, preempt, conditions)?);
    }
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (pages, p50, p99) = runs.swap_remove(runs.len() / 2);
    Ok(Found::Pages { pages, p50, p99 })
}

fn run(pattern: Pattern, preempt: bool, conditions: &Conditions) -> anyhow::Result<(f64, f64, f64)> {
    let conditions = Conditions { size: conditions.size.min(SIZE), ..conditions.clone() };
    let postcopy = Postcopy { preempt, recover: Duration::ZERO, ..Postcopy::at(0) };
    let source = Source::new(machine(&conditions)?).with_pattern(None, pattern)?.with_postcopy(postcopy);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let desk = Desk::default();
    let (departure, begin, end) = thread::scope(|scope| {
        let requester = scope.spawn(|| desk.attend(&listener, preempt));
        let connect = || transport::connect(&loopback(port), PATIENCE);
        let departure = source.send_over(connect()?, |_| connect(), |_| {});
        let (begin, end) = joined(requester)?;
        anyhow::Ok((departure, begin, end))
    })?;
    let Departure { error, postcopy, .. } = departure;
    error.map_or(Ok(()), Err)?;
    let state = desk.lock();
    let latencies = state.as_ref().map(|state| state.requests.latencies());
    let micros = |percent| {
        latencies.and_then(|latencies| latencies.percentile(percent)).map_or(f64::NAN, |ns| ns as f64 / 1e3)
    };
    let seconds = end.duration_since(begin).as_secs_f64().max(1e-9);
    Ok((postcopy.requests.pages as f64 / seconds, micros(50.0), micros(99.0)))
}

/// Where pages are asked for and taken, on both channels.
#[derive(Default)]
struct Desk {
    state: Mutex<Option<State>>,
    is_done: AtomicBool,
}

struct State {
    requests: Requests,
    output: TcpStream,
    bytes: Vec<u8>,
    /// Requests in them.
    held: usize,
    begin: Instant,
}

impl Desk {
    /// Takes one migration; when the first page could be asked for, and when the last one had come.
    fn attend(&self, listener: &TcpListener, preempt: bool) -> io::Result<(Instant, Instant)> {
        let main = listener.accept()?.0;
        main.set_nodelay(true)?;
        let mut parser = Parser::new();
        let slow = Slow { input: main.try_clone()?, desk: self, is_slow: false };
        let mut input = Feed::new(Streaming(slow));
        // Up to RUN everything comes here.
        let run = input.run(&mut parser, |located, parser| {
            match &located.event {
                Event::Command(Command::Ping(value)) => say(&main, Message::Pong(*value))?,
                Event::Command(Command::PostcopyRun) => {
                    let blocks = parser.grammar().blocks().into();
                    let requests = Requests::new(blocks, 4096, RequestPattern::Random(1), WINDOW);
                    let output = main.try_clone().map_err(gone)?;
                    let (bytes, held, begin) = (Vec::new(), 0, Instant::now());
                    *self.lock() = Some(State { requests, output, bytes, held, begin });
                    return Ok(ControlFlow::Break(()));
                }
                _ => {}
            }
            Ok(ControlFlow::Continue(()))
        });
        run.map_err(io::Error::other)?;
        let begin = Instant::now();
        thread::scope(|scope| {
            if preempt {
                let urgent = listener.accept()?.0;
                scope.spawn(move || self.urgent(urgent));
                input.input_mut().0.is_slow = true;
            }
            self.take(None, 0).map_err(io::Error::other)?;
            let rest = input.run(&mut parser, |located, parser| {
                match &located.event {
                    Event::Page(page) => {
                        self.take(parser.grammar().current_block(), page.word.offset(4096))?;
                    }
                    Event::Command(Command::Ping(value)) => say(&main, Message::Pong(*value))?,
                    Event::Eof => {
                        say(&main, Message::Shut(0))?;
                        return Ok(ControlFlow::Break(()));
                    }
                    _ => {}
                }
                Ok(ControlFlow::Continue(()))
            });
            rest.map_err(io::Error::other)?;
            Ok((begin, Instant::now()))
        })
    }

    fn urgent(&self, input: TcpStream) -> Result<()> {
        let mut parser = PreemptParser::new(Mode::Strict, 4096);
        let blocks = self.lock().as_ref().map(|state| Arc::clone(state.requests.blocks()));
        if let Some(blocks) = blocks {
            parser = parser.with_blocks(blocks);
        }
        Feed::new(Streaming(input)).run(&mut parser, |located, parser| {
            if let Urgent::Page(page) = &located.event {
                self.take(parser.current_block(), page.word.offset(4096))?;
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// A page has come, or none yet: others may be asked for.
    fn take(&self, block: Option<usize>, offset: u64) -> Result<()> {
        let mut guard = self.lock();
        let Some(State { requests, output, bytes, held, begin }) = guard.as_mut() else { return Ok(()) };
        let now = begin.elapsed().as_nanos() as u64;
        if let Some(block) = block {
            requests.handle_page(block, offset, now)?;
        }
        while let Some(message) = requests.poll_request(now) {
            message.emit(bytes);
            *held += 1;
        }
        if requests.outstanding() == 0 {
            self.is_done.store(true, Ordering::Relaxed);
        }
        if *held > 0 && *held >= BATCH.min(requests.outstanding()) {
            output.write_all(bytes).map_err(gone)?;
            bytes.clear();
            *held = 0;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn say(mut output: &TcpStream, message: Message<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    message.emit(&mut bytes);
    output.write_all(&bytes).map_err(gone)
}

fn gone(e: io::Error) -> Error {
    Error::io("asking for pages", "the source is gone", e)
}

/// A main channel of which little is read, until everything has come that was asked for.
struct Slow<'a> {
    input: TcpStream,
    desk: &'a Desk,
    is_slow: bool,
}

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.is_slow || self.desk.is_done.load(Ordering::Relaxed) {
            return self.input.read(buffer);
        }
        thread::sleep(Duration::from_millis(1));
        let most = buffer.len().min(TRICKLE);
        self.input.read(&mut buffer[..most])
    }
}
