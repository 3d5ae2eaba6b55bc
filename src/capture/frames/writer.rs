//! Writes a capture of a network: a pcapng file with one interface.

use std::io::{self, Write};

use crate::capture::block;
use crate::capture::{LinkType, Timestamp};

/// Writes frames, as pcapng.
#[derive(Debug)]
pub struct FrameWriter<W> {
    sink: W,
}

impl<W: Write> FrameWriter<W> {
    /// Begins a file: who wrote it and why, and what its frames begin with. Times are in nanoseconds.
    ///
    /// # Errors
    /// Those of `sink`.
    pub fn new(mut sink: W, link: LinkType, comment: Option<&str>) -> io::Result<Self> {
        sink.write_all(&block::section_header(
            concat!("migwire ", env!("CARGO_PKG_VERSION")),
            comment,
            None,
        ))?;
        let mut interface = Vec::new();
        for word in [block::INTERFACE_DESCRIPTION, 32, u32::from(link.0), 0] {
            interface.extend_from_slice(&word.to_le_bytes());
        }
        // Resolution: ten to the power of minus nine; end of the options; length.
        for half in [block::IF_TSRESOL, 1, 9, 0, block::OPT_END, 0, 32, 0] {
            interface.extend_from_slice(&half.to_le_bytes());
        }
        sink.write_all(&interface)?;
        Ok(Self { sink })
    }

    /// Writes a frame that is given in two parts.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn write(&mut self, time: Timestamp, head: &[u8], data: &[u8]) -> io::Result<()> {
        let len = head.len() + data.len();
        let padding = block::padding(len);
        let size = (32 + len + padding) as u32;
        let words =
            [block::ENHANCED_PACKET, size, 0, (time.0 >> 32) as u32, time.0 as u32, len as u32, len as u32];
        let mut front = [0; 28];
        for (place, word) in front.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        self.sink.write_all(&front)?;
        self.sink.write_all(head)?;
        self.sink.write_all(data)?;
        self.sink.write_all(&[0; 3][..padding])?;
        self.sink.write_all(&size.to_le_bytes())
    }

    /// Gives the sink back.
    ///
    /// # Errors
    /// If it cannot be flushed.
    pub fn finish(mut self) -> io::Result<W> {
        self.sink.flush()?;
        Ok(self.sink)
    }
}
