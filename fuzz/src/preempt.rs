//! Any bytes, taken for a preempt channel: the same events however they arrive, each given back as it came, and no panic.

use std::sync::Arc;

use migwire::postcopy::PreemptParser;
use migwire::stream::{Block, Mode};

use crate::reading::{bytewise, read, whole};

/// The body.
///
/// # Panics
/// If an invariant is broken.
pub fn run(bytes: &[u8]) {
    let block = |name: &[u8], used_length, huge_page| Block { name: name.into(), used_length, huge_page };
    let blocks: Arc<[Block]> =
        [block(b"ram", 0x10_0000, None), block(b"huge", 0x40_0000, Some(0x2000))].into();
    for mode in [Mode::Strict, Mode::Lenient] {
        for known in [false, true] {
            let parser = || match (PreemptParser::new(mode, 4096), known) {
                (parser, true) => parser.with_blocks(Arc::clone(&blocks)),
                (parser, false) => parser,
            };
            let found = read(&mut parser(), bytes, whole);
            assert_eq!(found, read(&mut parser(), bytes, bytewise), "{mode:?}, {known}");
            assert!(found.error.is_some() || found.end == bytes.len() as u64, "{mode:?}, {known}");
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn smoke() {
        crate::smoke::over("preempt", 300, super::run);
    }
}
