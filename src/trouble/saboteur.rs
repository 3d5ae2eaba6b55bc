//! What rules come to on one direction of one connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::script::{Action, Channel, Place, Position, Rule, Script, Spot};
use super::tracker::{Kind, Record, Tracker};
use crate::channel::Tail;
use crate::wire::{CommandCode, MessageKind};

/// Bytes of a record that is sent twice; what is larger is sent twice as far as that.
const MAX_COPY: usize = 4 << 20;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These bytes are sent.
    Write(Vec<u8>),
    /// Nothing is sent for that long; for ever.
    Wait(Option<Duration>),
    /// From now on so many bytes a millisecond are sent.
    Rate(u64),
    /// The connection is ended.
    Cut,
    /// The connection is broken off.
    Reset,
    /// The receiver is told that nothing follows.
    HalfClose,
    /// Another connection is opened, and these bytes are sent over it.
    Twin(Vec<u8>),
}

/// A fault that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Number of the rule in its script.
    pub rule: usize,
    /// On which channel.
    pub channel: Channel,
    /// Where on it.
    pub offset: u64,
}

/// Carries a script out on one direction of a connection. What was done is shared by all of a migration.
pub struct Saboteur {
    script: Arc<Script>,
    done: Arc<Mutex<Vec<Done>>>,
    channel: Channel,
    tracker: Tracker,
    /// Bytes from `passed` on.
    held: Vec<u8>,
    passed: u64,
    /// Bytes from `parsed` on that the tracker has not had.
    window: Vec<u8>,
    parsed: u64,
    counts: BTreeMap<Counted, u64>,
    acts: BTreeMap<u64, Vec<(usize, Act)>>,
    patches: Vec<(u64, Patch)>,
    /// Bytes up to there do not arrive.
    dropped: u64,
    /// What is sent twice: from where on, and the bytes so far.
    copy: Option<(u64, Vec<u8>)>,
}

/// What is numbered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Counted {
    Page,
    Packet,
    Sync,
    Eos,
    Section(String),
    Command(CommandCode),
    Message(MessageKind),
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Cut,
    Reset,
    HalfClose,
    Wait(Option<Duration>),
    Rate(u64),
    /// Up to there.
    Drop(u64),
    /// A copy begins.
    Copy,
    /// It is sent.
    Repeat,
    Twin,
    /// Nothing but a note.
    Note,
}

#[derive(Clone, Copy, Debug)]
enum Patch {
    Flip(u8),
    Set(u8),
}

impl Saboteur {
    /// For this direction; `done` is shared.
    pub fn new(script: Arc<Script>, channel: Channel, done: Arc<Mutex<Vec<Done>>>) -> Self {
        let mut saboteur = Self {
            done,
            channel,
            tracker: Tracker::new(channel),
            held: Vec::new(),
            passed: 0,
            window: Vec::new(),
            parsed: 0,
            counts: BTreeMap::new(),
            acts: BTreeMap::new(),
            patches: Vec::new(),
            dropped: 0,
            copy: None,
            script: Arc::clone(&script),
        };
        for (number, rule) in script.rules.iter().enumerate() {
            saboteur.begin(number, rule);
        }
        saboteur
    }

    /// Whether a script has anything to do with that direction.
    pub fn concerns(script: &Script, channel: Channel) -> bool {
        script.rules.iter().any(|rule| match (&rule.action, &rule.spot) {
            (Action::DropReturnPath, _) => channel == Channel::ReturnPath,
            (Action::Swap(a, b), _) => channel == Channel::Multifd(*a) || channel == Channel::Multifd(*b),
            (Action::DuplicateChannel(which), _) => *which == channel,
            (_, None) => channel == Channel::Main,
            (_, Some(spot)) => may_be_on(spot, channel),
        })
    }

    /// What concerns the channel from its beginning.
    fn begin(&mut self, number: usize, rule: &Rule) {
        match (&rule.action, &rule.spot) {
            (Action::DropReturnPath, _) if self.channel == Channel::ReturnPath => {
                self.act(0, number, Act::Drop(u64::MAX));
            }
            (Action::Swap(a, b), _) => {
                let other = match self.channel {
                    Channel::Multifd(id) if id == *a => *b,
                    Channel::Multifd(id) if id == *b => *a,
                    _ => return,
                };
                self.patches.push((ID, Patch::Set(other)));
                self.act(ID, number, Act::Note);
            }
            (Action::DuplicateChannel(which), _) if *which == self.channel => {
                let end = if self.channel == Channel::Main { 8 } else { Tracker::HELLO };
                self.act(0, number, Act::Copy);
                self.act(end, number, Act::Twin);
            }
            (Action::Trickle(rate), None) if self.channel == Channel::Main => {
                self.act(0, number, Act::Rate(*rate));
            }
            (_, Some(Spot { place: Place::Byte(at), channel, .. })) if *channel == Some(self.channel) => {
                let record = Record { kind: Kind::Eos, start: *at, end: at + 1, data: *at };
                self.schedule(number, rule, &record);
            }
            _ => {}
        }
    }

    /// Bytes have come. What they come to; of a record that is not whole, nothing is passed on before it is known what it is, unless `tail`
    /// says that no more may come for now.
    pub fn handle(&mut self, bytes: &[u8], tail: Tail) -> Vec<Step> {
        self.held.extend_from_slice(bytes);
        // What was elided has been decided on already.
        let end = self.passed + self.held.len() as u64;
        let skipped = self.parsed.saturating_sub(end - bytes.len() as u64).min(bytes.len() as u64);
        self.window.extend_from_slice(&bytes[skipped as usize..]);
        self.track(tail);
        let limit = match tail {
            Tail::Open if !self.tracker.is_blind() => self.parsed.min(end),
            _ => end,
        };
        self.pass(limit)
    }

    fn track(&mut self, tail: Tail) {
        while !self.tracker.is_blind() {
            let Some((length, record)) = self.tracker.step(&self.window, tail) else { break };
            self.parsed += length;
            let here = length.min(self.window.len() as u64) as usize;
            self.window.drain(..here);
            if let Some(record) = record {
                self.meet(&record);
            }
            if here as u64 != length {
                break;
            }
        }
        if self.tracker.is_blind() {
            self.window.clear();
        }
    }

    /// Finds the rules for a record.
    fn meet(&mut self, record: &Record) {
        let number = |counts: &mut BTreeMap<Counted, u64>, what| {
            let count = counts.entry(what).or_insert(0);
            *count += 1;
            *count - 1
        };
        let counts = &mut self.counts;
        let mut names = Vec::new();
        match &record.kind {
            Kind::Page => names.push(Place::Page(number(counts, Counted::Page))),
            Kind::Packet { is_sync } => {
                names.push(Place::Packet(number(counts, Counted::Packet)));
                if *is_sync {
                    names.push(Place::Sync(number(counts, Counted::Sync)));
                }
            }
            Kind::Device { idx } => {
                names.push(Place::Packet(number(counts, Counted::Packet)));
                names.extend(idx.map(Place::Idx));
            }
            Kind::Hello => names.push(Place::Hello),
            Kind::Section(name) => {
                let count = number(counts, Counted::Section(name.clone()));
                names.push(Place::Section(name.clone(), count));
            }
            Kind::Eos => names.push(Place::Eos(number(counts, Counted::Eos))),
            Kind::Command(code) => names.push(Place::Command(*code, number(counts, Counted::Command(*code)))),
            Kind::Message(kind) => names.push(Place::Message(*kind, number(counts, Counted::Message(*kind)))),
        }
        let script = Arc::clone(&self.script);
        for (at, rule) in script.rules.iter().enumerate() {
            let is_here = rule.spot.as_ref().is_some_and(|spot| {
                names.contains(&spot.place) && spot.channel.is_none_or(|channel| channel == self.channel)
            });
            if is_here && !self.is_done(at) {
                self.schedule(at, rule, record);
            }
        }
    }

    fn schedule(&mut self, number: usize, rule: &Rule, record: &Record) {
        let Some(spot) = &rule.spot else { return };
        let at = match spot.position {
            Position::At => record.start,
            Position::In => record.start + (record.end - record.start).div_ceil(2),
            Position::After => record.end,
        };
        match &rule.action {
            Action::Cut => self.act(at, number, Act::Cut),
            Action::Reset => self.act(at, number, Act::Reset),
            Action::HalfClose => self.act(at, number, Act::HalfClose),
            Action::Stall(time) => self.act(at, number, Act::Wait(*time)),
            Action::Trickle(rate) => self.act(at, number, Act::Rate(*rate)),
            Action::Drop => self.act(record.start, number, Act::Drop(record.end)),
            Action::Duplicate => {
                self.act(record.start, number, Act::Copy);
                self.act(record.end, number, Act::Repeat);
            }
            Action::Flip(bit, field) => {
                let (start, length) = match field {
                    None => (record.start, 1),
                    Some(field) => match place_of(field, record) {
                        Some(found) => found,
                        None => return,
                    },
                };
                if u64::from(*bit) < 8 * length {
                    let at = start + length - 1 - u64::from(bit / 8);
                    self.patches.push((at, Patch::Flip(1 << (bit % 8))));
                    self.act(at, number, Act::Note);
                }
            }
            Action::Set(field, value) => {
                if let Some((start, length)) = place_of(field, record) {
                    for i in 0..length {
                        let shift = 8 * (length - 1 - i);
                        let byte = if shift < 64 { (value >> shift) as u8 } else { 0 };
                        self.patches.push((start + i, Patch::Set(byte)));
                    }
                    self.act(start, number, Act::Note);
                }
            }
            Action::DropReturnPath | Action::DuplicateChannel(_) | Action::Swap(..) => {}
        }
    }

    fn act(&mut self, at: u64, rule: usize, act: Act) {
        self.acts.entry(at.max(self.passed)).or_default().push((rule, act));
    }

    /// Passes bytes on up to `limit`, with all that is to be done on the way.
    fn pass(&mut self, limit: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(entry) = self.acts.first_entry().filter(|entry| *entry.key() <= limit) {
            let (at, acts) = entry.remove_entry();
            self.forward(at, &mut steps);
            for (rule, act) in acts {
                self.carry_out(rule, act, at, &mut steps);
            }
        }
        self.forward(limit, &mut steps);
        steps
    }

    fn carry_out(&mut self, rule: usize, act: Act, at: u64, steps: &mut Vec<Step>) {
        let is_last = !matches!(act, Act::Copy);
        match act {
            Act::Cut => steps.push(Step::Cut),
            Act::Reset => steps.push(Step::Reset),
            Act::HalfClose => {
                steps.push(Step::HalfClose);
                self.dropped = u64::MAX;
            }
            Act::Wait(time) => steps.push(Step::Wait(time)),
            Act::Rate(rate) => steps.push(Step::Rate(rate)),
            Act::Drop(end) => self.dropped = self.dropped.max(end),
            Act::Copy => self.copy = Some((at, Vec::new())),
            Act::Repeat => {
                if let Some((_, bytes)) = self.copy.take() {
                    steps.push(Step::Write(bytes));
                }
            }
            Act::Twin => {
                if let Some((_, bytes)) = self.copy.take() {
                    steps.push(Step::Twin(bytes));
                }
            }
            Act::Note => {}
        }
        if is_last {
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push(Done { rule, channel: self.channel, offset: at });
        }
    }

    fn forward(&mut self, limit: u64, steps: &mut Vec<Step>) {
        let count = (limit - self.passed).min(self.held.len() as u64) as usize;
        if count == 0 {
            return;
        }
        let mut bytes: Vec<u8> = self.held.drain(..count).collect();
        let start = self.passed;
        self.passed += count as u64;
        self.patches.retain(|(at, patch)| {
            let Some(byte) = at.checked_sub(start).and_then(|i| bytes.get_mut(i as usize)) else {
                return true;
            };
            match patch {
                Patch::Flip(mask) => *byte ^= mask,
                Patch::Set(value) => *byte = *value,
            }
            false
        });
        if let Some((_, copy)) = &mut self.copy {
            let room = MAX_COPY.saturating_sub(copy.len()).min(bytes.len());
            copy.extend_from_slice(&bytes[..room]);
        }
        let gone = self.dropped.saturating_sub(start).min(bytes.len() as u64) as usize;
        bytes.drain(..gone);
        if !bytes.is_empty() {
            steps.push(Step::Write(bytes));
        }
    }

    /// Whether a rule that names no channel was applied on another one already, or here.
    fn is_done(&self, rule: usize) -> bool {
        let scheduled = self.acts.values().flatten().any(|(other, _)| *other == rule);
        scheduled
            || self.done.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|done| done.rule == rule)
    }
}

/// Offset of a multifd channel's number in its hello.
const ID: u64 = 24;

/// Whether a channel can have that place.
fn may_be_on(spot: &Spot, channel: Channel) -> bool {
    if let Some(named) = spot.channel {
        return named == channel;
    }
    match spot.place {
        Place::Byte(_) => false,
        Place::Page(_) | Place::Section(..) | Place::Eos(_) | Place::Command(..) => channel == Channel::Main,
        Place::Packet(_) | Place::Sync(_) | Place::Idx(_) | Place::Hello => {
            matches!(channel, Channel::Multifd(_))
        }
        Place::Message(..) => channel == Channel::ReturnPath,
    }
}

/// Where a field of a record is, and how long.
fn place_of(field: &str, record: &Record) -> Option<(u64, u64)> {
    let (offset, length) = match (&record.kind, field) {
        (_, "data") if record.data < record.end => return Some((record.data, record.end - record.data)),
        (Kind::Page | Kind::Eos, "flags" | "word") => (0, 8),
        (Kind::Packet { .. } | Kind::Device { .. } | Kind::Hello, "magic") => (0, 4),
        (Kind::Packet { .. } | Kind::Device { .. } | Kind::Hello, "version") => (4, 4),
        (Kind::Packet { .. } | Kind::Device { .. }, "flags") => (8, 4),
        (Kind::Packet { .. }, "pages") => (16, 4),
        (Kind::Packet { .. }, "size") => (20, 4),
        (Kind::Packet { .. }, "number") => (24, 8),
        (Kind::Packet { .. }, "zero") => (32, 4),
        (Kind::Packet { .. }, "block") => (64, 256),
        (Kind::Packet { .. }, "offsets") => (320, 1024),
        (Kind::Hello, "uuid") => (8, 16),
        (Kind::Hello, "id") => (ID, 1),
        (Kind::Section(_), "kind") => (0, 1),
        (Kind::Section(_), "id") => (1, 4),
        (Kind::Command(_), "code") => (1, 2),
        (Kind::Command(_), "length") => (3, 2),
        (Kind::Message(_), "kind") => (0, 2),
        (Kind::Message(_), "length") => (2, 2),
        _ => return None,
    };
    Some((record.start + offset, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two multifd packets with SYNC behind a hello, as 10.0 makes them.
    fn channel() -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..8].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01");
        let mut framer = crate::multifd::Framer::new("10.0".parse().unwrap(), 4096);
        bytes.extend_from_slice(framer.sync(0));
        bytes.extend_from_slice(framer.pages(b"ram", &[0], &[], crate::wire::Method::NONE, 4096, 1));
        bytes.extend_from_slice(&[7; 4096]);
        bytes.extend_from_slice(framer.sync(2));
        bytes
    }

    /// Steps with neighbouring writes put together.
    fn run(script: &str, pieces: usize) -> (Vec<Step>, Vec<Done>) {
        let done = Arc::default();
        let script: Arc<Script> = Arc::new(script.parse().unwrap());
        let mut saboteur = Saboteur::new(script, Channel::Multifd(0), Arc::clone(&done));
        let mut steps: Vec<Step> = Vec::new();
        let bytes = channel();
        let pieces = bytes.chunks(pieces).map(|piece| (piece, Tail::Open));
        for (piece, tail) in pieces.chain([(&[][..], Tail::Closed)]) {
            for step in saboteur.handle(piece, tail) {
                match (steps.last_mut(), step) {
                    (Some(Step::Write(before)), Step::Write(bytes)) => before.extend(bytes),
                    (_, step) => steps.push(step),
                }
            }
        }
        let done = done.lock().unwrap().clone();
        (steps, done)
    }

    fn written(steps: &[Step]) -> Vec<u8> {
        let bytes = |step: &Step| if let Step::Write(bytes) = step { bytes.clone() } else { Vec::new() };
        steps.iter().flat_map(bytes).collect()
    }

    #[test]
    fn however_bytes_come_the_same_is_done() {
        const PACKET: u64 = 1344;
        for script in [
            "",
            "cut after packet 1",
            "stall 5ms at SYNC 1",
            "flip bit 9 of flags in packet 1; drop packet 0",
            "duplicate packet 1",
            "swap channels; set number to 77 in packet 2",
            "half-close in packet 1",
            "duplicate multifd-0; trickle 3 B/ms after hello",
            "reset at byte 100 of multifd-0",
        ] {
            let whole = run(script, usize::MAX);
            for pieces in [1, 7, 64, 1408, 5000] {
                assert_eq!(run(script, pieces), whole, "{script} in pieces of {pieces}");
            }
        }
        assert_eq!(run("", 1), (vec![Step::Write(channel())], Vec::new()));

        let (steps, done) = run("cut after packet 1", 100);
        let end = 64 + PACKET + PACKET + 4096;
        assert_eq!(steps[0], Step::Write(channel()[..end as usize].to_vec()));
        assert_eq!(steps[1], Step::Cut);
        assert_eq!(done, [Done { rule: 0, channel: Channel::Multifd(0), offset: end }]);

        let (steps, _) = run("flip bit 9 of flags in packet 1; drop packet 0", 100);
        let mut expected = channel();
        expected[64 + 1344 + 10] ^= 2;
        expected.drain(64..64 + 1344);
        assert_eq!(written(&steps), expected);

        let (steps, _) = run("duplicate packet 1", 100);
        let mut expected = channel();
        let packet = expected[64 + 1344..end as usize].to_vec();
        expected.splice(end as usize..end as usize, packet);
        assert_eq!(written(&steps), expected);

        let (steps, done) = run("swap channels; flip bit 0 of data in packet 1", 100);
        let mut expected = channel();
        expected[24] = 1;
        // The last bit of all that the packet carries.
        expected[end as usize - 1] ^= 1;
        assert_eq!((written(&steps), done.len()), (expected, 2));
    }

    #[test]
    fn a_rule_without_channel_applies_once() {
        let done = Arc::default();
        let script: Arc<Script> = Arc::new("cut at SYNC 0".parse().unwrap());
        for id in [0, 1] {
            let mut saboteur = Saboteur::new(Arc::clone(&script), Channel::Multifd(id), Arc::clone(&done));
            let steps = saboteur.handle(&channel(), Tail::Open);
            assert_eq!(steps.contains(&Step::Cut), id == 0);
        }
        assert!(
            Saboteur::concerns(&script, Channel::Multifd(9)) && !Saboteur::concerns(&script, Channel::Main)
        );
    }

    #[test]
    fn what_cannot_be_read_passes() {
        let script: Arc<Script> = Arc::new("cut at page 0; flip bit 0 of byte 2 of main".parse().unwrap());
        let mut saboteur = Saboteur::new(script, Channel::Main, Arc::default());
        assert_eq!(
            saboteur.handle(b"what is this", Tail::Open),
            [Step::Write(b"wh".to_vec()), Step::Write(b"`t is this".to_vec())]
        );
    }
}
