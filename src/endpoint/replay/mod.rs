//! Plays a recorded migration to a live destination.
//!
//! ```text
//! recording --> Score: legs, voices, gates
//!                 '--> a thread a voice: Part --gate?--> Connection --> destination
//!                      Stage: sent, heard <-- ear: ReturnParser <-- PONG, ACK, bitmaps, SHUT --'
//!                                               '--> Comparison with what the recorded destination said
//! ```
//! Every byte is sent as it was recorded. What a destination does with it is its own affair; what it says otherwise than the recorded
//! one did is told. A migration that paused goes on over new connections, as it did; the live destination has to listen again then
//! (`migrate-recover`).

mod received;
mod score;
mod stage;
mod voice;
mod words;

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::notice::{self, Notice};
use super::pace::Limits;
use crate::capture::{Direction, Recorder, Timestamp, interface_name};
use crate::channel::{Feed, Streaming};
use crate::container::Part;
use crate::error::{ChannelId, Error, ErrorKind, Result};
use crate::transport::{self, Address, Connection, Tap};
use crate::wire::MessageKind;
use score::{Leg, Score, ear};
use stage::Stage;
use voice::{Clock, Singer, is_broken_off};
pub use words::{Answers, Deviation};
use words::{Comparison, Listener};

const DOING: &str = "replaying";

/// Longest wait for a destination that listens to take another connection.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Longest wait for a destination that has nothing more to say to close the connection.
const PARTING: Duration = Duration::from_secs(5);

/// How long a destination is given for what is on its way: before a leg that was broken in the recording is broken again, since it takes a
/// break for a pause only when its guest runs, of which it says nothing; and before the end of RAM, if pages were sent on a preempt
/// channel, which it closes then.
const SETTLING: Duration = Duration::from_millis(500);

/// When what was recorded is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// As soon as it may.
    #[default]
    Fast,
    /// Not before the time that had passed in the recording.
    Recorded,
}

/// A recording that is to be played.
pub struct Replay {
    address: Address,
    recover: Option<Address>,
    patience: Duration,
    timing: Timing,
    limits: Limits,
    recorder: Option<Recorder>,
    notices: Option<notice::Listener>,
}

/// What became of it.
#[derive(Debug)]
pub struct Performance {
    /// How it ended.
    pub outcome: Outcome,
    /// What was sent over each connection.
    pub channels: Vec<Played>,
    /// Words of the destination other than requests.
    pub answers: u64,
    /// Its requests for pages.
    pub requests: u64,
    /// Where it said something else than the recorded one.
    pub deviations: Vec<Deviation>,
    /// How often the connections were broken as they were in the recording.
    pub pauses: u32,
    /// Time from the first connection on.
    pub elapsed: Duration,
    /// What is not played, and why.
    pub notes: Vec<String>,
    /// Why it ended otherwise than it should have.
    pub error: Option<Error>,
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is sent, and the destination has confirmed it, if it had a return path to do so.
    Completed,
    /// The destination reported a failure, or broke off.
    Refused,
    /// It could not be carried out: the recording is unreadable or the destination silent.
    Failed,
}

/// What was sent over one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Played {
    /// Connection, as its interface in a recording is named.
    pub channel: String,
    /// Bytes that were handed over.
    pub bytes: u64,
    /// Bytes in the recording, if that is known.
    pub of: Option<u64>,
}

impl Replay {
    /// A replay to whoever listens at `address`.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            recover: None,
            patience: Duration::from_secs(30),
            timing: Timing::Fast,
            limits: Limits::default(),
            recorder: None,
            notices: None,
        }
    }

    /// The same, in that time.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The same, with that much patience.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same; behind a pause the destination listens at `address`, if it has one of its own for that, within `patience`.
    #[must_use]
    pub fn with_recovery(mut self, address: Option<Address>, patience: Duration) -> Self {
        self.recover = address;
        self.patience = patience;
        self
    }

    /// The same, recording what is sent and what is answered. The caller finishes the recording.
    #[must_use]
    pub fn with_recorder(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// The same, telling of pauses.
    #[must_use]
    pub fn with_notices(mut self, listener: impl Fn(&Notice) + Send + Sync + 'static) -> Self {
        self.notices = Some(std::sync::Arc::new(listener));
        self
    }

    /// Plays the channels of a recording, which are `parts`.
    ///
    /// # Errors
    /// If there is nothing in it that could be played. What happens later is part of the [`Performance`].
    pub fn play(&self, parts: Vec<Part>) -> Result<Performance> {
        let Score { legs, notes } = Score::read(parts)?;
        let begin = Instant::now();
        let mut performance = Performance {
            outcome: Outcome::Failed,
            channels: Vec::new(),
            answers: 0,
            requests: 0,
            deviations: Vec::new(),
            pauses: 0,
            elapsed: Duration::ZERO,
            notes,
            error: None,
        };
        let origin = legs.first().and_then(Leg::origin).unwrap_or_default();
        let clock = Clock { timing: self.timing, begin, origin };
        let count = legs.len();
        for (number, leg) in legs.into_iter().enumerate() {
            let is_last = number + 1 == count;
            if let Err(error) = self.play_leg(leg, is_last, clock, &mut performance) {
                performance.outcome = match error.kind() {
                    ErrorKind::Peer => Outcome::Refused,
                    _ if is_broken_off(&error) => Outcome::Refused,
                    _ => Outcome::Failed,
                };
                performance.error = Some(error);
                break;
            }
            if is_last {
                performance.outcome = Outcome::Completed;
            }
        }
        performance.elapsed = begin.elapsed();
        Ok(performance)
    }

    fn play_leg(&self, mut leg: Leg, is_last: bool, clock: Clock, into: &mut Performance) -> Result<()> {
        let name = interface_name(leg.voices[0].channel);
        let words = std::mem::take(&mut leg.words);
        let mut comparison = Comparison::new(name, &words);
        let connections = match self.connect(&leg) {
            Ok(connections) => connections,
            Err(e) => {
                into.deviations.extend(comparison.finish());
                return Err(e);
            }
        };
        if leg.pause > 0 {
            self.tell(&Notice::Resumed(leg.pause));
        }
        let taps: Vec<_> = leg
            .voices
            .iter()
            .map(|voice| {
                self.recorder.as_ref().map(|recorder| recorder.channel(interface_name(voice.channel)))
            })
            .collect();
        let counts: Vec<_> = leg.voices.iter().map(|_| AtomicU64::new(0)).collect();
        let Some(main) = connections.first().cloned() else { return Ok(()) };
        let has_return_path = leg.has_return_path && main.is_bidirectional();
        let ending = Ending { is_last, is_complete: leg.is_complete, has_return_path };
        let stage = Stage::new(self.limits, clock.begin, connections.clone());
        let mut listener = Listener::default();
        let mut answers = 0;
        let outcome = thread::scope(|scope| {
            let ear = scope.spawn(|| {
                let tap = taps[0].clone();
                let outcome = listen(&main, tap, &mut listener, |word| {
                    answers += 1;
                    stage.note_heard(word.kind.0, comparison.take(word));
                    match word.text.strip_prefix("SHUT ") {
                        Some(status) if status != "0" => stage.fail(reported(status)),
                        _ => {}
                    }
                    word.kind != MessageKind::SHUT
                });
                stage.note_silence();
                outcome
            });
            for (((voice, connection), tap), sent) in
                leg.voices.iter_mut().zip(&connections).zip(&taps).zip(&counts)
            {
                let singer = Singer {
                    voice,
                    connection: connection.clone(),
                    stage: &stage,
                    tap: tap.clone(),
                    clock,
                    sent,
                    settling: SETTLING.min(self.limits.silence),
                };
                scope.spawn(|| singer.sing());
            }
            let outcome = stage.await_voices().and_then(|()| self.part(&stage, &main, &ending));
            if let Err(e) = &outcome {
                stage.fail(e.clone());
            }
            for connection in &connections {
                // Bytes on their way arrive; who has gone already cannot be told.
                let _ = connection.shutdown_write();
                let _ = connection.shutdown_read();
            }
            let heard = ear.join().unwrap_or(Ok(()));
            // What a destination says about it is better than that it went away.
            match (outcome, heard) {
                (Err(e), _) => Err(stage.failure().unwrap_or(e)),
                (Ok(()), Err(e)) if has_return_path && is_last => Err(e),
                (Ok(()), _) => Ok(()),
            }
        });
        let played = leg.voices.iter().zip(&counts).map(|(voice, sent)| Played {
            channel: interface_name(voice.channel),
            bytes: sent.load(Ordering::Relaxed),
            of: voice.length,
        });
        into.channels.extend(played);
        into.answers += answers;
        into.requests += listener.requests;
        into.deviations.extend(comparison.finish());
        outcome?;
        if !is_last {
            into.pauses += 1;
            let message = "as it was in the recording";
            self.tell(&Notice::Paused(Error::nowhere(ErrorKind::Io, DOING, message)));
        }
        Ok(())
    }

    /// Opens all connections of a leg, in the order in which they were opened.
    fn connect(&self, leg: &Leg) -> Result<Vec<Connection>> {
        let (address, patience) = match leg.pause {
            0 => (&self.address, self.limits.silence),
            _ => (self.recover.as_ref().unwrap_or(&self.address), self.patience),
        };
        let mut connections = Vec::new();
        for voice in &leg.voices {
            // Whoever has taken the first one in listens already.
            let patience = if connections.is_empty() { patience } else { patience.min(AT_ONCE) };
            let connection =
                transport::connect_within(address, patience).map_err(|e| match connections.len() {
                    0 => e.on(voice.channel),
                    // Whoever took the first one in is there no longer.
                    _ => Error::nowhere(ErrorKind::Peer, DOING, e.to_string()).on(voice.channel),
                })?;
            connection.set_write_timeout(Some(self.limits.silence))?;
            connection.set_read_timeout(None)?;
            connections.push(connection);
        }
        Ok(connections)
    }

    /// Everything is sent: waits for the last word.
    fn part(&self, stage: &Stage, main: &Connection, ending: &Ending) -> Result<()> {
        if !ending.is_last {
            thread::sleep(SETTLING.min(self.limits.silence));
            // It reads to the end, and goes then; whoever goes first may take what has not been read away from it.
            let _ = main.shutdown_write();
            if main.is_bidirectional() {
                stage.await_silence_within(PARTING.min(self.limits.silence));
            }
            return Ok(());
        }
        if !ending.is_complete {
            // A destination that waits for more is told that there is none.
            main.shutdown_write()?;
        }
        if ending.has_return_path {
            stage.await_silence()?;
            return match stage.heard(MessageKind::SHUT.0) {
                0 => {
                    let message = "the destination closed the connection and did not say that it has finished (no SHUT)";
                    Err(Error::nowhere(ErrorKind::Peer, DOING, message).on(ChannelId::ReturnPath))
                }
                _ => Ok(()),
            };
        }
        main.shutdown_write()?;
        if !main.is_bidirectional() {
            return main.close(self.limits.silence);
        }
        stage.await_silence_within(PARTING);
        Ok(())
    }

    fn tell(&self, notice: &Notice) {
        if let Some(listener) = &self.notices {
            listener(notice);
        }
    }
}

impl Leg {
    fn origin(&self) -> Option<Timestamp> {
        use std::io::BufRead as _;
        let starts = self.voices.iter().filter_map(|voice| {
            let mut bytes = voice.part.timed().ok().flatten()?;
            bytes.fill_buf().ok()?;
            bytes.time()
        });
        starts.min()
    }
}

/// How a leg is to end.
struct Ending {
    /// No other leg follows.
    is_last: bool,
    /// The recording has the end of the main channel.
    is_complete: bool,
    has_return_path: bool,
}

/// Whether that is the connection on which the destination answers.
fn is_main(channel: ChannelId) -> bool {
    matches!(channel, ChannelId::Main | ChannelId::Resumed(_))
}

/// Reads what the destination says until it says no more, or `take` has heard enough.
fn listen(
    main: &Connection,
    tap: Option<crate::capture::ChannelTap>,
    listener: &mut Listener,
    mut take: impl FnMut(&words::Word) -> bool,
) -> Result<()> {
    if !main.can_read() {
        return Ok(());
    }
    let input: Box<dyn io::Read> = match tap {
        Some(tap) => Box::new(Tap::new(main.clone(), tap, Direction::ToSource)),
        None => Box::new(main.clone()),
    };
    let mut parser = ear();
    let outcome = Feed::new(Streaming(input)).run(&mut parser, |located, _| {
        let goes_on = listener.handle(located).is_none_or(|word| take(&word));
        Ok(if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
    outcome.map_err(|e| e.on(ChannelId::ReturnPath))
}

fn reported(status: &str) -> Error {
    let message = format!("the destination reports that it failed (SHUT {status})");
    Error::nowhere(ErrorKind::Peer, DOING, message).on(ChannelId::ReturnPath)
}
