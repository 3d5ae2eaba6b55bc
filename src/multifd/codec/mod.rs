//! Payload methods: pages of a packet to bytes and back.
//!
//! A codec belongs to one channel and one direction: zlib and zstd keep their history from packet to packet, so that packets
//! can be decoded in order only, and from the first one on. What was recorded is emitted as it came, never compressed again;
//! codecs are for looking at pages and for making streams of our own.

use crate::error::Result;
use crate::wire::Method;

/// Encoder and decoder of one channel's payloads.
pub trait Codec: Send {
    /// The method field of packets that this codec makes and reads.
    fn method(&self) -> Method;

    /// Appends the payload for `pages` (whole pages of `page_size` bytes, at least one) to `out`.
    ///
    /// # Errors
    /// If the codec cannot make any (`Unsupported`).
    fn encode(&mut self, pages: &[u8], page_size: usize, out: &mut Vec<u8>) -> Result<()>;

    /// Fills `pages` (as many whole pages of `page_size` bytes as the packet says) from the packet's `payload`. What is in
    /// `pages` after an error has no meaning.
    ///
    /// # Errors
    /// Where the payload does not hold exactly these pages; the offset is that in the payload.
    fn decode(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()>;
}

/// Temporary.
///
/// # Errors
/// Always.
pub fn open(method: Method, _level: Option<u32>) -> Result<Box<dyn Codec>> {
    Err(crate::Error::nowhere(crate::ErrorKind::Unsupported, "codec", method.to_string()))
}
