//! What a connection is, as its first bytes tell an observer, who sees all of them but knows no capabilities.

use crate::wire::{CommandCode, FileHeader, MULTIFD_MAGIC, MultifdHello, SectionKind};

/// How the bytes from the source begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// With the header of a main channel.
    Main,
    /// With the hello of that multifd channel.
    Multifd(u8),
    /// With a command: the main channel after a pause of postcopy has no magic.
    Command,
    /// With none of these, as a preempt channel does: it begins with a page.
    Other,
}

impl Beginning {
    /// The longest beginning that has to be read: the hello of a multifd channel, up to its number.
    pub const ENOUGH: usize = MultifdHello::ID + 1;

    /// What `bytes` begin with; `None` as long as more of them may tell.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let main = FileHeader::MAGIC.to_be_bytes();
        let multifd = MULTIFD_MAGIC.to_be_bytes();
        if bytes.starts_with(&main) {
            return Some(Self::Main);
        }
        if bytes.starts_with(&multifd) {
            return bytes.get(MultifdHello::ID).map(|id| Self::Multifd(*id));
        }
        if bytes.len() < 4 && (main.starts_with(bytes) || multifd.starts_with(bytes)) {
            return None;
        }
        let [kind, high, low] = bytes.first_chunk()?;
        let is_command = SectionKind(*kind) == SectionKind::COMMAND
            && CommandCode(u16::from_be_bytes([*high, *low])).name().is_some();
        Some(if is_command { Self::Command } else { Self::Other })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings() {
        let mut hello = [0; 64];
        hello[..8].copy_from_slice(b"\x11\x22\x33\x44\0\0\0\x01");
        hello[24] = 9;
        let cases: [(&[u8], usize, Beginning); 4] = [
            (b"QEVM\0\0\0\x03", 4, Beginning::Main),
            (&hello, Beginning::ENOUGH, Beginning::Multifd(9)),
            (b"\x08\0\x03\0\x04", 3, Beginning::Command),
            (b"\0\0\0\0\0\0\0\x08", 3, Beginning::Other),
        ];
        for (bytes, enough, beginning) in cases {
            for end in 0..bytes.len() {
                let expected = (end >= enough).then_some(beginning);
                assert_eq!(Beginning::of(&bytes[..end]), expected, "{end} of {bytes:x?}");
            }
        }
        assert_eq!(Beginning::of(b"QEV?"), Some(Beginning::Other));
        assert_eq!(Beginning::of(b"\x08\xff\xff"), Some(Beginning::Other), "no command that is known");
    }
}
