//! Recordings, played to a destination that says whatever it likes.
//!
//! The first byte says what the others are: a recipe for a migration that keeps the rules, for the order in which its channels and the
//! words of its destination were recorded, and for what the live destination says; or what that says, and a whole recording.
//!
//! Nothing panics and nobody waits for ever. What a destination gets over a connection is what was recorded, up to where it ends. All of
//! it arrives if the replay says so; and of a destination that says again what the recorded one did, nothing else is told.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use migwire::ChannelId;
use migwire::capture::{ChannelTap, Direction, Recorder, RecorderOptions, interface_name};
use migwire::channel::Input as _;
use migwire::container::{self, Access, Part};
use migwire::endpoint::{Limits, Outcome, Performance, Played, Replay, Timing};
use migwire::transport::Address;
use migwire::wire::{Message, Name, Wire as _};

use crate::made::{Made, Recipe, make};

/// How long anybody is waited for: all are in this process, and often nobody comes.
const SILENCE: Duration = Duration::from_millis(40);

/// Most channels: there is a thread for each.
const PARTS: usize = 16;

/// Bytes that the live destination may say: no more than a socket takes at once.
const SAID: usize = 4096;

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let timing = if kind & 4 == 0 { Timing::Fast } else { Timing::Recorded };
    let closes = kind & 8 != 0;
    let place = Place::new();
    if kind % 4 == 3 {
        let Some((length, rest)) = rest.split_first() else { return };
        let (said, recording) = rest.split_at(rest.len().min(usize::from(*length)));
        fs::write(&place.recording, recording).expect("there is room for it");
        check(&place, &Live { said, closes }, timing, None);
        return;
    }
    let mut recipe = Recipe(rest);
    let Made { channels, .. } = make(&mut recipe);
    let words = words(&mut recipe);
    record(&place.recording, &channels, &words, &mut recipe);
    let again = recipe.one_in(2);
    let said = if again { words.concat() } else { recipe.0.to_vec() };
    let is_answered = again && words.last().is_some_and(|word| *word == emitted(&Message::Shut(0)));
    let live = Live { said: &said[..said.len().min(SAID)], closes };
    check(&place, &live, timing, is_answered.then_some(&channels));
}

/// What the live destination does.
struct Live<'a> {
    /// It says that at once, over the first connection.
    said: &'a [u8],
    /// It ends its return path then.
    closes: bool,
}

impl Live<'_> {
    /// Takes everything from all who come to `socket` while `play` runs.
    fn attend<T>(&self, socket: &Path, play: impl FnOnce() -> T) -> (T, Vec<Vec<u8>>) {
        let listener = UnixListener::bind(socket).expect("nobody else is there");
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let doorman = scope.spawn(|| {
                let mut readers = Vec::new();
                while let Ok((connection, _)) = listener.accept() {
                    let speaks = readers.is_empty();
                    readers.push(scope.spawn(move || self.take(connection, speaks)));
                    if over.load(Ordering::Acquire) {
                        listener.set_nonblocking(true).expect("a socket can be that");
                    }
                }
                // The last one only woke it.
                readers.pop();
                readers.into_iter().map(|reader| reader.join().expect("it only reads")).collect()
            });
            let outcome = play();
            over.store(true, Ordering::Release);
            drop(UnixStream::connect(socket).expect("it listens still"));
            (outcome, doorman.join().expect("it only listens"))
        })
    }

    fn take(&self, mut connection: UnixStream, speaks: bool) -> Vec<u8> {
        if speaks {
            // Whoever plays may have gone.
            let _ = connection.write_all(self.said);
        }
        if self.closes {
            let _ = connection.shutdown(Shutdown::Write);
        }
        let mut bytes = Vec::new();
        // Broken off is an end, too.
        let _ = connection.read_to_end(&mut bytes);
        bytes
    }
}

/// Files of one run; they go when it ends.
struct Place {
    recording: PathBuf,
    socket: PathBuf,
}

impl Place {
    fn new() -> Self {
        let name = format!("migwire-fuzz-replay-{}", std::process::id());
        let file = |ending| std::env::temp_dir().join(format!("{name}.{ending}"));
        Self { recording: file("pcapng"), socket: file("socket") }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // They may not have come into being.
        let _ = fs::remove_file(&self.recording);
        let _ = fs::remove_file(&self.socket);
    }
}

fn emitted(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.emit(&mut out);
    out
}

/// What the recorded destination said.
fn words(recipe: &mut Recipe<'_>) -> Vec<Vec<u8>> {
    let mut words: Vec<_> = (0..recipe.below(6))
        .map(|_| {
            let number = recipe.below(5) as u32;
            match recipe.below(6) {
                0..=2 => emitted(&Message::Pong(number)),
                3 => emitted(&Message::SwitchoverAck),
                4 => {
                    let block = Name(b"pc.ram");
                    emitted(&Message::ReqPagesId { start: 4096, length: 4096, block })
                }
                _ => emitted(&Message::ResumeAck(number)),
            }
        })
        .collect();
    if !recipe.one_in(4) {
        words.push(emitted(&Message::Shut(recipe.one_in(8).into())));
    }
    words
}

/// Records it in pieces, one channel after the other as it happens.
fn record(path: &Path, channels: &BTreeMap<ChannelId, Vec<u8>>, words: &[Vec<u8>], recipe: &mut Recipe<'_>) {
    let recorder = Recorder::create(path, RecorderOptions::default()).expect("there is room for it");
    let taps: Vec<ChannelTap> = channels.keys().map(|id| recorder.channel(interface_name(*id))).collect();
    let main = taps.first().expect("there is a main channel");
    let mut left: Vec<&[u8]> = channels.values().map(Vec::as_slice).collect();
    let mut words = words.iter();
    while left.iter().any(|bytes| !bytes.is_empty()) {
        let next = recipe.below(left.len() + 1);
        let Some(bytes) = left.get_mut(next).filter(|bytes| !bytes.is_empty()) else {
            match words.next() {
                Some(word) => main.record(Direction::ToSource, word).expect("it is open"),
                // The recipe may have come to its end: the first that is left.
                None => {
                    let next = left.iter().position(|bytes| !bytes.is_empty()).expect("one is left");
                    let all = std::mem::take(&mut left[next]);
                    taps[next].record(Direction::ToDestination, all).expect("it is open");
                }
            }
            continue;
        };
        let (piece, behind) = bytes.split_at((1 + recipe.below(256) * 16).min(bytes.len()));
        taps[next].record(Direction::ToDestination, piece).expect("it is open");
        *bytes = behind;
    }
    for word in words {
        main.record(Direction::ToSource, word).expect("it is open");
    }
    recorder.finish().expect("there is room for it");
}

/// Plays the recording to a live destination; `answered`, if that says what the recorded one said to a migration of these channels.
fn check(place: &Place, live: &Live<'_>, timing: Timing, answered: Option<&BTreeMap<ChannelId, Vec<u8>>>) {
    let Ok(contents) = container::open(&place.recording, true) else {
        assert_eq!(answered, None, "it is a recording");
        return;
    };
    if contents.parts.len() > PARTS {
        return;
    }
    let mut parts = contents.parts;
    let mut recorded = BTreeMap::new();
    let is_back = |channel| matches!(channel, ChannelId::ReturnPath | ChannelId::ResumedReturnPath(_));
    for part in parts.iter_mut().filter(|part| !is_back(part.channel)) {
        recorded.insert(interface_name(part.channel), read(part));
    }
    let limits = Limits { silence: SILENCE, total: Some(SILENCE * 20) };
    let replay = Replay::new(Address::Unix(place.socket.clone())).with_limits(limits).with_timing(timing);
    let replay = replay.with_recovery(None, SILENCE);
    let (performance, taken) = live.attend(&place.socket, || replay.play(parts));
    let Performance { outcome, channels, deviations, error, .. } = match performance {
        Ok(performance) => performance,
        Err(e) => return assert_eq!(answered, None, "it can be played: {e}"),
    };
    assert_eq!(error.is_none(), outcome == Outcome::Completed, "{error:?}");
    for Played { channel, bytes, .. } in &channels {
        assert!(*bytes <= recorded[channel].len() as u64, "{bytes} of {channel}");
    }
    // Which connection is which, nobody says.
    for bytes in &taken {
        assert!(recorded.values().any(|all| all.starts_with(bytes)), "other bytes have arrived");
    }
    if outcome == Outcome::Completed {
        let mut sent: Vec<_> = channels.iter().map(|played| &recorded[&played.channel]).collect();
        let mut taken: Vec<_> = taken.iter().collect();
        sent.sort_unstable();
        taken.sort_unstable();
        assert!(sent == taken, "not everything has arrived");
        if answered.is_some() {
            assert_eq!(deviations, []);
        }
    }
    if let Some(made) = answered {
        let spoke = made.iter().filter(|(_, bytes)| !bytes.is_empty());
        let names: Vec<_> = spoke.map(|(id, _)| interface_name(*id)).collect();
        let mut played: Vec<_> = channels.into_iter().map(|played| played.channel).collect();
        played.sort_unstable();
        assert_eq!(played, names, "{error:?}");
    }
}

/// What can be read of it, which is what is played.
fn read(part: &mut Part) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    if let Ok(mut input) = part.input(Access::Whole) {
        while let Ok(count @ 1..) = input.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..count]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("replay", 200, super::run);
    }
}
