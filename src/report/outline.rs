//! What two migrations have in common: the structure of their main channels, without what chance decides.
//!
//! ```text
//! recorded  machine "pc"  START ram  PING 1  FULL timer, 24 bytes  FULL slirp, 9 bytes  EOF  2 multifd channels
//! live      machine "pc"  START ram  PING 1  FULL timer, 32 bytes                       EOF  2 multifd channels
//!                                            ^ departs               ^ departs
//! ```
//! How often RAM is sent, how many pages there are and which were discarded is left out. Everything else stands in a line of its own,
//! and lines are compared as `diff` compares them.

use std::ops::ControlFlow;

use super::words;
use crate::channel::Feed;
use crate::container::{Access, Part};
use crate::dialect::Dialect;
use crate::error::{ChannelId, ErrorKind, Result};
use crate::stream::{Event, Mode, Parser, Phase, Section};
use crate::wire::{Command, SectionKind};

/// Lines that are compared; a machine has some hundred. What is further on is left out.
const MAX_LINES: usize = 4096;

/// The structure of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    lines: Vec<Line>,
}

/// A record of the main channel, or another thing that two migrations can have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it begins on the main channel, if it is there.
    pub offset: Option<u64>,
    /// What it is.
    pub text: String,
}

/// Where two outlines are different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What the first one has there.
    pub ours: Option<Line>,
    /// What the second one has instead.
    pub theirs: Option<Line>,
}

impl Outline {
    /// Reads the channels of a migration, as far as they can be read.
    ///
    /// # Errors
    /// `Io`, if they cannot be read at all.
    pub fn of(parts: &mut [Part]) -> Result<Self> {
        let mut outline = Self::default();
        if let Some(main) = parts.iter_mut().find(|part| part.channel == ChannelId::Main) {
            outline.read(main)?;
        }
        let channels = parts.iter().filter(|part| matches!(part.channel, ChannelId::Multifd(_))).count();
        outline.push(None, format!("{channels} multifd channels"));
        let preempt = parts.iter().any(|part| part.channel == ChannelId::Preempt);
        outline.push(None, if preempt { "a preempt channel" } else { "no preempt channel" }.to_owned());
        Ok(outline)
    }

    fn read(&mut self, main: &mut Part) -> Result<()> {
        let mut parser = Parser::with(Mode::Lenient, Dialect::ANY).with_elision();
        let mut feed = Feed::new(main.input(Access::Outline)?);
        let mut payload = 0;
        let outcome = feed.run(&mut parser, |located, parser| {
            let grammar = parser.grammar();
            let say = || words::event(&located.event, grammar);
            let text = match &located.event {
                Event::Header(_)
                | Event::Configuration(_)
                | Event::ConfigurationSubsection(_)
                | Event::RamBlock(_)
                | Event::Eof => Some(say()),
                Event::Section(head) => {
                    payload = 0;
                    // The number of a section means nothing.
                    let name = |section: &Section| format!("{} of {:?}", head.kind, section.name());
                    match head.identity {
                        _ if head.kind == SectionKind::PART => None,
                        Some(identity) => Some(format!(
                            "{} of {:?} {} version {}",
                            head.kind, identity.idstr, identity.instance_id, identity.version_id
                        )),
                        None => grammar.section(head.section_id).map(name),
                    }
                }
                Event::Payload(bulk) => {
                    payload += bulk.len();
                    None
                }
                Event::Footer(_) => {
                    // The section's line is the last one: a footer follows its section at once.
                    if let Some(line) = self.lines.last_mut().filter(|_| payload > 0) {
                        line.text += &format!(", {payload} bytes");
                    }
                    payload = 0;
                    None
                }
                // What is in them depends on what was sent before.
                Event::Command(command @ (Command::PostcopyRamDiscard(_) | Command::Packaged { .. })) => {
                    Some(command.code().to_string())
                }
                Event::Command(_) => Some(say()),
                _ => None,
            };
            if let Some(text) = text {
                self.push(Some(located.range.start), text);
            }
            let is_over = grammar.phase() == Phase::Trailing || self.lines.len() >= MAX_LINES;
            Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        match outcome {
            Err(e) if e.kind() == ErrorKind::Io => Err(e),
            Err(e) => {
                self.push(e.offset(), format!("cannot be read any further: {}", e.message()));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The lines, in order.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// One after the other of the same is one.
    fn push(&mut self, offset: Option<u64>, text: String) {
        if self.lines.last().is_none_or(|last| last.text != text) {
            self.lines.push(Line { offset, text });
        }
    }

    /// Where `other` has something else.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let (ours, theirs) = (&self.lines, &other.lines);
        let common = common(ours, theirs);
        let mut found = Vec::new();
        let (mut i, mut j) = (0, 0);
        for (a, b) in common.into_iter().chain([(ours.len(), theirs.len())]) {
            let (left, right) = (&ours[i..a], &theirs[j..b]);
            for k in 0..left.len().max(right.len()) {
                found.push(Difference { ours: left.get(k).cloned(), theirs: right.get(k).cloned() });
            }
            (i, j) = (a + 1, b + 1);
        }
        found
    }
}

/// A longest common subsequence, as pairs of indices.
fn common(ours: &[Line], theirs: &[Line]) -> Vec<(usize, usize)> {
    let is_equal = |a: &Line, b: &Line| a.text == b.text;
    let head = ours.iter().zip(theirs).take_while(|(a, b)| is_equal(a, b)).count();
    let (a, b) = (&ours[head..], &theirs[head..]);
    // How long it can be from each pair on; lines are few enough for the whole table.
    let width = b.len() + 1;
    let mut table = vec![0u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            table[i * width + j] = match is_equal(&a[i], &b[j]) {
                true => table[(i + 1) * width + j + 1] + 1,
                false => table[(i + 1) * width + j].max(table[i * width + j + 1]),
            };
        }
    }
    let mut pairs: Vec<_> = (0..head).map(|i| (i, i)).collect();
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        if is_equal(&a[i], &b[j]) {
            pairs.push((head + i, head + j));
            (i, j) = (i + 1, j + 1);
        } else if table[(i + 1) * width + j] >= table[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(text: &str) -> Outline {
        let lines = text.chars().map(|c| Line { offset: None, text: c.to_string() });
        Outline { lines: lines.collect() }
    }

    fn differences(ours: &str, theirs: &str) -> Vec<String> {
        let text = |line: Option<Line>| line.map_or("-".to_owned(), |line| line.text);
        let found = outline(ours).differences(&outline(theirs));
        found.into_iter().map(|d| text(d.ours) + &text(d.theirs)).collect()
    }

    #[test]
    fn what_is_changed_added_and_gone() {
        assert_eq!(differences("abcdef", "abcdef"), [""; 0]);
        assert_eq!(differences("abcdef", "abXdef"), ["cX"]);
        assert_eq!(differences("abcdef", "abdeYf"), ["c-", "-Y"]);
        assert_eq!(differences("", "ab"), ["-a", "-b"]);
        assert_eq!(differences("ab", ""), ["a-", "b-"]);
        assert_eq!(differences("abab", "baba"), ["a-", "-a"]);
    }
}
