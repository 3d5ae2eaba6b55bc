//! The script: text to rules and back.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::{CommandCode, MessageKind};

/// Rules, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The rules.
    pub rules: Vec<Rule>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What is done.
    pub action: Action,
    /// Where; nothing for what concerns whole channels.
    pub spot: Option<Spot>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The connection ends.
    Cut,
    /// The connection is broken off.
    Reset,
    /// Nothing follows, and the receiver is told.
    HalfClose,
    /// Nothing passes any more, or not for that long.
    Stall(Option<Duration>),
    /// So many bytes a millisecond.
    Trickle(u64),
    /// A record does not arrive.
    Drop,
    /// Nothing that the destination says arrives.
    DropReturnPath,
    /// A record arrives twice.
    Duplicate,
    /// A channel is opened twice.
    DuplicateChannel(Channel),
    /// A bit is wrong: of a field, or of the byte there.
    Flip(u32, Option<String>),
    /// A field has that value.
    Set(String, u64),
    /// Two channels say each other's number.
    Swap(u8, u8),
}

/// A place, and where about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Where about it.
    pub position: Position,
    /// The place.
    pub place: Place,
    /// On which channel; on any that has it.
    pub channel: Option<Channel>,
}

/// Where about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// In front of it.
    At,
    /// In its middle.
    In,
    /// Behind it.
    After,
}

/// A byte or a record, by number from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A byte.
    Byte(u64),
    /// A page record of the main channel.
    Page(u64),
    /// A packet of a multifd channel.
    Packet(u64),
    /// One with SYNC.
    Sync(u64),
    /// A packet of device state, by the number in it.
    Idx(u64),
    /// What a multifd channel begins with.
    Hello,
    /// A section, by idstr.
    Section(String, u64),
    /// The word that ends a RAM section's content.
    Eos(u64),
    /// A command.
    Command(CommandCode, u64),
    /// A message of the return path.
    Message(MessageKind, u64),
}

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// From the source, also behind a pause.
    Main,
    /// From the destination.
    ReturnPath,
    /// Pages that were asked for.
    Preempt,
    /// By number.
    Multifd(u8),
}

impl Place {
    /// Names of what can be changed there.
    pub(super) fn fields(&self) -> &'static [&'static str] {
        match self {
            Self::Byte(_) => &[],
            Self::Page(_) => &["flags", "word", "data"],
            Self::Packet(_) | Self::Sync(_) => {
                &["magic", "version", "flags", "pages", "size", "number", "zero", "block", "offsets", "data"]
            }
            Self::Idx(_) => &["magic", "version", "flags", "data"],
            Self::Hello => &["magic", "version", "uuid", "id"],
            Self::Section(..) => &["kind", "id"],
            Self::Eos(_) => &["flags", "word"],
            Self::Command(..) => &["code", "length", "data"],
            Self::Message(..) => &["kind", "length", "data"],
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, rule) in self.rules.iter().enumerate() {
            if number > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{rule}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.action, &self.spot) {
            (Action::Cut, Some(spot)) => write!(f, "cut {spot}"),
            (Action::Reset, Some(spot)) => write!(f, "reset {spot}"),
            (Action::HalfClose, Some(spot)) => write!(f, "half-close {spot}"),
            (Action::Stall(None), Some(spot)) => write!(f, "stall {spot}"),
            (Action::Stall(Some(time)), Some(spot)) => write!(f, "stall {} {spot}", Time(*time)),
            (Action::Trickle(rate), None) => write!(f, "trickle {rate} B/ms"),
            (Action::Trickle(rate), Some(spot)) => write!(f, "trickle {rate} B/ms {spot}"),
            (Action::Drop, Some(spot)) => write!(f, "drop {}", Bare(spot)),
            (Action::DropReturnPath, _) => f.write_str("drop return path"),
            (Action::Duplicate, Some(spot)) => write!(f, "duplicate {}", Bare(spot)),
            (Action::DuplicateChannel(channel), _) => write!(f, "duplicate {channel}"),
            (Action::Flip(bit, None), Some(spot)) => write!(f, "flip bit {bit} of {}", Bare(spot)),
            (Action::Flip(bit, Some(field)), Some(spot)) => {
                write!(f, "flip bit {bit} of {field} in {}", Bare(spot))
            }
            (Action::Set(field, value), Some(spot)) => write!(f, "set {field} to {value} in {}", Bare(spot)),
            (Action::Swap(a, b), _) => write!(f, "swap multifd-{a} multifd-{b}"),
            // The parser makes none of these.
            (action, None) => write!(f, "{action:?}"),
        }
    }
}

/// A spot without its position.
struct Bare<'a>(&'a Spot);

impl fmt::Display for Bare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.place)?;
        self.0.channel.map_or(Ok(()), |channel| write!(f, " of {channel}"))
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let position = match self.position {
            Position::At => "at",
            Position::In => "in",
            Position::After => "after",
        };
        write!(f, "{position} {}", Bare(self))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte(n) => write!(f, "byte {n}"),
            Self::Page(n) => write!(f, "page {n}"),
            Self::Packet(n) => write!(f, "packet {n}"),
            Self::Sync(n) => write!(f, "SYNC {n}"),
            Self::Idx(n) => write!(f, "idx {n}"),
            Self::Hello => f.write_str("hello"),
            Self::Section(name, n) => write!(f, "section {name} {n}"),
            Self::Eos(n) => write!(f, "eos {n}"),
            Self::Command(code, n) => write!(f, "{code} {n}"),
            Self::Message(kind, n) => write!(f, "{kind} {n}"),
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main"),
            Self::ReturnPath => f.write_str("return path"),
            Self::Preempt => f.write_str("preempt"),
            Self::Multifd(id) => write!(f, "multifd-{id}"),
        }
    }
}

/// A time as it is written.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

impl FromStr for Script {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut rules = Vec::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            for rule in line.split(';').map(str::trim).filter(|rule| !rule.is_empty()) {
                rules.push(rule.parse()?);
            }
        }
        Ok(Self { rules })
    }
}

impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = Words { text, words: text.split_whitespace().collect(), next: 0 };
        let rule = words.rule()?;
        match words.peek() {
            None => Ok(rule),
            Some(_) => Err(words.expected("the end of the rule")),
        }
    }
}

/// The words of a rule.
struct Words<'a> {
    text: &'a str,
    words: Vec<&'a str>,
    next: usize,
}

impl<'a> Words<'a> {
    fn rule(&mut self) -> Result<Rule> {
        let action = match self.take()? {
            "cut" => Action::Cut,
            "reset" => Action::Reset,
            "half-close" => Action::HalfClose,
            "stall" => return self.stall(),
            "delay" => return self.delay(),
            "trickle" => return self.trickle(),
            "drop" if self.has(&["return", "path"]) => {
                return Ok(Rule { action: Action::DropReturnPath, spot: None });
            }
            "drop" => return self.on_record(Action::Drop),
            "duplicate" => return self.duplicate(),
            "flip" => return self.flip(),
            "set" => return self.set(),
            "swap" => return self.swap(),
            _ => {
                self.next -= 1;
                return Err(self.expected(
                    "cut, reset, half-close, stall, delay, trickle, drop, duplicate, flip, set or swap",
                ));
            }
        };
        let spot = Some(self.spot()?);
        Ok(Rule { action, spot })
    }

    fn stall(&mut self) -> Result<Rule> {
        let time = self.peek().and_then(duration);
        if time.is_some() {
            self.next += 1;
        }
        let spot = if self.has(&["mid-page"]) {
            let place = Place::Page(self.number().unwrap_or(0));
            Spot { position: Position::In, place, channel: None }
        } else {
            self.spot()?
        };
        Ok(Rule { action: Action::Stall(time), spot: Some(spot) })
    }

    fn delay(&mut self) -> Result<Rule> {
        let (place, channel) = self.place()?;
        let time = self.take().ok().and_then(duration);
        let Some(time) = time else {
            self.next -= usize::from(self.next == self.words.len());
            return Err(self.expected("a time, such as 2s or 300ms"));
        };
        let spot = Spot { position: Position::At, place, channel };
        Ok(Rule { action: Action::Stall(Some(time)), spot: Some(spot) })
    }

    fn trickle(&mut self) -> Result<Rule> {
        let rate =
            self.number().filter(|rate| *rate > 0).ok_or_else(|| self.expected("a number of bytes"))?;
        if !self.has(&["B/ms"]) {
            return Err(self.expected("B/ms"));
        }
        let spot = if self.peek().is_some() { Some(self.spot()?) } else { None };
        Ok(Rule { action: Action::Trickle(rate), spot })
    }

    fn duplicate(&mut self) -> Result<Rule> {
        match self.channel() {
            Some(channel) => Ok(Rule { action: Action::DuplicateChannel(channel), spot: None }),
            None => self.on_record(Action::Duplicate),
        }
    }

    fn flip(&mut self) -> Result<Rule> {
        if !self.has(&["bit"]) {
            return Err(self.expected("bit"));
        }
        let bit = self.number().and_then(|bit| u32::try_from(bit).ok());
        let bit = bit.ok_or_else(|| self.expected("the number of a bit"))?;
        if !self.has(&["of"]) {
            return Err(self.expected("of"));
        }
        if self.peek() == Some("byte") {
            if bit > 7 {
                self.next -= 2;
                return Err(self.expected("a bit of a byte, 0 to 7"));
            }
            return self.on_record(Action::Flip(bit, None));
        }
        let field = self.take()?.to_owned();
        if !self.has(&["in"]) {
            return Err(self.expected("in"));
        }
        let rule = self.on_record(Action::Flip(bit, Some(field.clone())))?;
        Self::with_field(rule, &field)
    }

    /// The rule, if its place can have that field.
    fn with_field(rule: Rule, field: &str) -> Result<Rule> {
        let fields = rule.spot.as_ref().map_or(&[][..], |spot| spot.place.fields());
        if fields.contains(&field) {
            return Ok(rule);
        }
        let message = match fields {
            [] => format!("\"{rule}\": no fields are known there"),
            _ => format!("\"{rule}\": there is no field \"{field}\" there, but {}", fields.join(", ")),
        };
        Err(Error::nowhere(ErrorKind::Misuse, "trouble script", message))
    }

    fn set(&mut self) -> Result<Rule> {
        let field = self.take()?.to_owned();
        if !self.has(&["to"]) {
            return Err(self.expected("to"));
        }
        let value = self.number().ok_or_else(|| self.expected("a number"))?;
        if !self.has(&["in"]) {
            return Err(self.expected("in"));
        }
        let rule = self.on_record(Action::Set(field.clone(), value))?;
        Self::with_field(rule, &field)
    }

    fn swap(&mut self) -> Result<Rule> {
        if self.has(&["channels"]) {
            return Ok(Rule { action: Action::Swap(0, 1), spot: None });
        }
        match (self.channel(), self.channel()) {
            (Some(Channel::Multifd(a)), Some(Channel::Multifd(b))) => {
                Ok(Rule { action: Action::Swap(a, b), spot: None })
            }
            _ => Err(self.expected("two multifd channels, such as multifd-0 multifd-1")),
        }
    }

    fn on_record(&mut self, action: Action) -> Result<Rule> {
        let (place, channel) = self.place()?;
        Ok(Rule { action, spot: Some(Spot { position: Position::At, place, channel }) })
    }

    fn spot(&mut self) -> Result<Spot> {
        let position = match self.take()? {
            "at" | "before" | "from" => Position::At,
            "in" => Position::In,
            "after" => Position::After,
            _ => {
                self.next -= 1;
                return Err(self.expected("at, in or after, and a place"));
            }
        };
        let (place, channel) = self.place()?;
        Ok(Spot { position, place, channel })
    }

    fn place(&mut self) -> Result<(Place, Option<Channel>)> {
        let word = self.take()?;
        let place = match word {
            "byte" => Place::Byte(self.number().ok_or_else(|| self.expected("a number"))?),
            "page" => {
                self.has(&["record"]);
                Place::Page(self.number().ok_or_else(|| self.expected("a number"))?)
            }
            "packet" => Place::Packet(self.number().ok_or_else(|| self.expected("a number"))?),
            "idx" => Place::Idx(self.number().ok_or_else(|| self.expected("a number"))?),
            "hello" => Place::Hello,
            "section" => {
                let name = self.take()?.to_owned();
                Place::Section(name, self.number().unwrap_or(0))
            }
            "SYNC" | "sync" => Place::Sync(self.number().unwrap_or(0)),
            "EOS" | "eos" => Place::Eos(self.number().unwrap_or(0)),
            "command" | "message" if self.peek().is_some() => return self.place(),
            word => {
                let command = CommandCode::KNOWN.iter().find(|(_, name)| *name == word);
                let message = MessageKind::KNOWN.iter().find(|(_, name)| *name == word);
                match (command, message) {
                    (_, Some((kind, _))) if *kind != MessageKind::RECV_BITMAP || command.is_none() => {
                        Place::Message(*kind, self.number().unwrap_or(0))
                    }
                    (Some((code, _)), _) => Place::Command(*code, self.number().unwrap_or(0)),
                    _ => {
                        self.next -= 1;
                        let message = "a place: byte N, page N, packet N, SYNC, idx N, hello, section NAME, eos, or the name of a \
                                       command or message";
                        return Err(self.expected(message));
                    }
                }
            }
        };
        let channel = match self.peek() {
            Some("of") => {
                self.next += 1;
                Some(self.channel().ok_or_else(|| {
                    self.expected("a channel: main, return path, preempt, multifd-N or channel N")
                })?)
            }
            _ => None,
        };
        if matches!(place, Place::Byte(_)) && channel.is_none() {
            return Err(self.expected("of, and a channel"));
        }
        Ok((place, channel))
    }

    fn channel(&mut self) -> Option<Channel> {
        let begin = self.next;
        let found = match self.take().ok()? {
            "main" => Some(Channel::Main),
            "preempt" => Some(Channel::Preempt),
            "return" if self.has(&["path"]) => Some(Channel::ReturnPath),
            "channel" => self.number().and_then(|id| u8::try_from(id).ok()).map(Channel::Multifd),
            word => word.strip_prefix("multifd-").and_then(|id| id.parse().ok()).map(Channel::Multifd),
        };
        if found.is_none() {
            self.next = begin;
        }
        found
    }

    fn number(&mut self) -> Option<u64> {
        let word = self.peek()?;
        let number = match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => word.parse().ok(),
        };
        if number.is_some() {
            self.next += 1;
        }
        number
    }

    /// Takes these words, if they are next.
    fn has(&mut self, words: &[&str]) -> bool {
        let is_there = self.words.get(self.next..self.next + words.len()) == Some(words);
        if is_there {
            self.next += words.len();
        }
        is_there
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).copied()
    }

    fn take(&mut self) -> Result<&'a str> {
        let word = self.peek().ok_or_else(|| self.expected("more"))?;
        self.next += 1;
        Ok(word)
    }

    #[cold]
    fn expected(&self, what: &str) -> Error {
        let found =
            self.peek().map_or_else(|| "at its end".to_owned(), |word| format!("where {word:?} stands"));
        let message = format!("{:?}: {found}, {what} was expected", self.text);
        Error::nowhere(ErrorKind::Misuse, "trouble script", message)
    }
}

/// `2s`, `300ms`.
fn duration(word: &str) -> Option<Duration> {
    let (digits, unit) = word.split_at(word.find(|c: char| c.is_alphabetic())?);
    let value: f64 = digits.parse().ok().filter(|value| (0.0..1e6).contains(value))?;
    match unit {
        "s" => Some(Duration::from_secs_f64(value)),
        "ms" => Some(Duration::from_secs_f64(value / 1e3)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for (text, canonical) in [
            ("cut after packet 3 of channel 1", "cut after packet 3 of multifd-1"),
            ("delay SYNC 2s", "stall 2000ms at SYNC 0"),
            ("drop return path", "drop return path"),
            ("swap channels", "swap multifd-0 multifd-1"),
            ("flip bit 5 of flags in page record 100", "flip bit 5 of flags in page 100"),
            ("flip bit 0 of byte 0x10 of main", "flip bit 0 of byte 16 of main"),
            ("stall mid-page", "stall in page 0"),
            ("stall 30s after POSTCOPY_RUN", "stall 30000ms after POSTCOPY_RUN 0"),
            ("trickle 1 B/ms", "trickle 1 B/ms"),
            ("trickle 64 B/ms from section ram 1", "trickle 64 B/ms at section ram 1"),
            ("duplicate idx 0", "duplicate idx 0"),
            ("duplicate multifd-0", "duplicate multifd-0"),
            ("reset in byte 4096 of return path", "reset in byte 4096 of return path"),
            ("set number to 7 in packet 2 of multifd-1", "set number to 7 in packet 2 of multifd-1"),
            ("half-close before eos 2", "half-close at eos 2"),
            ("drop PONG 1", "drop PONG 1"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), canonical);
            assert_eq!(canonical.parse::<Rule>().unwrap(), rule);
        }
    }

    #[test]
    fn scripts_have_separators_and_remarks() {
        let script: Script =
            "cut at page 1; reset after hello of multifd-0 # now\n\n# nothing\nswap channels\n"
                .parse()
                .unwrap();
        assert_eq!(
            script.to_string(),
            "cut at page 1; reset after hello of multifd-0; swap multifd-0 multifd-1"
        );
        assert_eq!("".parse::<Script>().unwrap(), Script::default());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, expected) in [
            ("explode", "where \"explode\" stands, cut, reset,"),
            ("cut", "at its end, more was expected"),
            ("cut after", "at its end, more was expected"),
            ("cut at byte 7", "of, and a channel was expected"),
            ("cut at page x", "where \"x\" stands, a number"),
            ("delay SYNC soon", "a time, such as 2s"),
            ("flip bit 9 of byte 1 of main", "0 to 7"),
            ("swap main multifd-0", "two multifd channels"),
            ("cut at page 1 please", "where \"please\" stands, the end of the rule"),
            ("trickle 0 B/ms", "a number of bytes"),
            ("flip bit 1 of magic in page 3", "no field \"magic\" there, but flags, word, data"),
            ("set pages to 3 in hello of multifd-1", "no field \"pages\""),
            ("set pages to 3 in byte 7 of main", "no fields are known there"),
        ] {
            let error = text.parse::<Script>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
