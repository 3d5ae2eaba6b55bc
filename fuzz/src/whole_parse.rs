//! Any bytes, taken for a main channel at once: no panic, events tile what was read and give back their bytes, what the
//! parser holds is bounded, and an error has a place in the bytes.

use migwire::dialect::Dialect;
use migwire::stream::{Mode, Parser};

use crate::reading::{read, whole};

/// Dialects whose rules differ; the first byte of the input has no say, so that a corpus file is a stream as it stands.
const DIALECTS: [&str; 3] = ["any", "5.2", "11.1"];

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    for name in DIALECTS {
        let dialect: Dialect = name.parse().expect("a known release");
        let mut parser = Parser::with(Mode::Strict, dialect);
        let found = read(&mut parser, bytes, whole);
        assert!(found.end <= bytes.len() as u64, "{name}: read past the end");
        assert_eq!(found.error.is_none(), found.end == bytes.len() as u64 && ended(&parser), "{name}");
    }
    // An outline skips pages; where the input ends inside one there is nothing to compare.
    let found = read(&mut Parser::new().with_elision(), bytes, whole);
    let complete = read(&mut Parser::new(), bytes, whole);
    if complete.error.is_none() {
        assert_eq!((found.error, found.end), (None, complete.end), "the outline differs");
    }
}

/// Whether a channel may end in the state behind its last event.
fn ended(parser: &Parser) -> bool {
    use migwire::stream::Phase;
    matches!(parser.grammar().phase(), Phase::AfterEof | Phase::Trailing)
        && parser.grammar().package_end().is_none()
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("whole_parse", 5_000, super::run);
    }
}
