//! Invariant 1: what parses is given back byte for byte, and a strict emitter takes what a strict parser took.

use migwire::channel::{ChannelParser as _, Step, Tail};
use migwire::dialect::Dialect;
use migwire::stream::{Emitter, Mode, Parser};

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    back(Parser::new(), Emitter::strict(), bytes);
    back(Parser::with(Mode::Lenient, Dialect::ANY), Emitter::obedient(), bytes);
}

fn back(mut parser: Parser, mut emitter: Emitter, bytes: &[u8]) {
    let mut out = Vec::with_capacity(bytes.len());
    let mut start = 0;
    while let Ok(Step::Event(located)) = parser.step(&bytes[start..], Tail::Closed) {
        assert_eq!(emitter.offset(), located.range.start);
        let refused = emitter.emit(&located.event, &mut out).err();
        assert!(
            refused.is_none(),
            "refused by the emitter, taken by the parser: {refused:?}\n{:?}",
            located.event
        );
        start += located.raw.len();
    }
    assert!(out == bytes[..start], "{start} bytes were not given back as they came");
    assert_eq!(emitter.offset(), parser.offset());
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("reemit", 10_000, super::run);
    }
}
