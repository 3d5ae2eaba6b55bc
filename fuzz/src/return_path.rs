//! Any bytes, taken for a return path, and for one message after the other: no panic, and what parses is given back.

use migwire::dialect::Dialect;
use migwire::postcopy::ReturnParser;
use migwire::stream::Mode;
use migwire::wire::{Cursor, Message, Wire as _};

use crate::reading::{bytewise, read, whole};

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    for mode in [Mode::Strict, Mode::Lenient] {
        let found = read(&mut ReturnParser::with(mode, Dialect::ANY), bytes, whole);
        assert_eq!(found, read(&mut ReturnParser::with(mode, Dialect::ANY), bytes, bytewise), "{mode:?}");
        assert!(found.error.is_some() || found.end == bytes.len() as u64, "{mode:?}");
    }
    let mut input = Cursor::new(0, bytes);
    loop {
        let from = input.consumed();
        let Ok(message) = Message::parse(&mut input) else { break };
        let mut out = Vec::new();
        message.emit(&mut out);
        assert!(out == bytes[from..input.consumed()], "{message:?} is not given back as it came");
        assert_eq!(message.wire_len(), out.len(), "{message:?}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("return_path", 20_000, super::run);
    }
}
