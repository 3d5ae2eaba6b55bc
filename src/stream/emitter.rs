//! Events to bytes.

use super::{Event, Grammar, Mode};
use crate::channel::ChannelEvent as _;
use crate::dialect::Dialect;
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Sink;

/// Mirror image of [`Parser`](super::Parser): takes events, writes exactly the bytes that parse back to them.
///
/// A strict emitter asks the same [`Grammar`] as a strict parser whether the event may come now, so that nothing leaves that
/// it would not take. An obedient one writes whatever it is given: for re-emitting captures, for fuzzing, and for
/// misbehaving on purpose.
///
/// ```
/// use migwire::stream::{Emitter, Event};
/// use migwire::wire::{Configuration, DescriptionHead, FileHeader, Name};
/// let mut out = Vec::new();
/// let mut emitter = Emitter::strict();
/// emitter.emit(&Event::Header(FileHeader::CURRENT), &mut out)?;
/// emitter.emit(&Event::Configuration(Configuration { machine: Name(b"none") }), &mut out)?;
/// emitter.emit(&Event::Eof, &mut out)?;
/// emitter.emit(&Event::Description(DescriptionHead { length: 0 }), &mut out)?;
/// assert_eq!(out, b"QEVM\0\0\0\x03\x07\0\0\0\x04none\0\x06\0\0\0\0");
/// # Ok::<(), migwire::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Emitter {
    grammar: Option<Grammar>,
    offset: u64,
}

impl Emitter {
    /// An emitter that refuses events that may not come now.
    pub fn strict() -> Self {
        Self { grammar: Some(Grammar::new(Mode::Strict, Dialect::ANY)), offset: 0 }
    }

    /// An emitter that writes whatever it is given.
    pub fn obedient() -> Self {
        Self { grammar: None, offset: 0 }
    }

    /// An emitter for the connection on which a migration goes on after a pause, from offset 0. `None` if it could not pause.
    pub fn resumed(&self) -> Option<Self> {
        match &self.grammar {
            Some(grammar) => Some(Self { grammar: Some(grammar.resumed()?), offset: 0 }),
            None => Some(Self::obedient()),
        }
    }

    /// Bytes written so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// State of the protocol behind the last event; an obedient emitter keeps none.
    pub fn grammar(&self) -> Option<&Grammar> {
        self.grammar.as_ref()
    }

    /// Writes one event.
    ///
    /// # Errors
    /// `Misuse` for an event with elided bytes; from a strict emitter also whatever the grammar says.
    pub fn emit(&mut self, event: &Event<'_>, out: &mut impl Sink) -> Result<()> {
        if event.elided() != 0 {
            let message = "its bytes were not read and cannot be written";
            return Err(Error::new(ErrorKind::Misuse, self.offset, event.name(), message));
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.admit(event, self.offset)?;
        }
        event.emit(out);
        self.offset += event.wire_len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Bulk, SectionFooter};

    #[test]
    fn a_strict_emitter_refuses_what_a_parser_would() {
        let footer = Event::Footer(SectionFooter { section_id: 1 });
        let error = Emitter::strict().emit(&footer, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfOrder);
        let mut out = Vec::new();
        Emitter::obedient().emit(&footer, &mut out).unwrap();
        assert_eq!(out, b"\x7e\0\0\0\x01");
    }

    #[test]
    fn elided_bytes_cannot_be_written() {
        let error = Emitter::obedient().emit(&Event::Payload(Bulk::Elided(9)), &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misuse);
    }
}
