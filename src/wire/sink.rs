//! Where emitted bytes go.

use byteorder::{BE, ByteOrder as _};

use super::Name;

/// Takes emitted bytes in order. Never fails: what can fail buffers, and reports when it flushes.
pub trait Sink {
    /// Takes bytes that the emitter has made.
    fn put(&mut self, bytes: &[u8]);

    /// Takes bytes that an event borrows (a page, a piece of a payload) and that pass through unchanged.
    fn put_bulk(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }

    /// One byte.
    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// A big-endian 16-bit number.
    fn be16(&mut self, value: u16) {
        let mut bytes = [0xa5; 2];
        BE::write_u16(&mut bytes, value);
        self.put(&bytes);
    }

    /// A big-endian 32-bit number.
    fn be32(&mut self, value: u32) {
        let mut bytes = [0xa5; 4];
        BE::write_u32(&mut bytes, value);
        self.put(&bytes);
    }

    /// A big-endian 64-bit number.
    fn be64(&mut self, value: u64) {
        let mut bytes = [0xa5; 8];
        BE::write_u64(&mut bytes, value);
        self.put(&bytes);
    }

    /// A counted string: one length byte, the bytes, no NUL. A name that was made by hand and exceeds 255 bytes is cut
    /// there; no parsed name can.
    fn str8(&mut self, name: Name<'_>) {
        let bytes = &name.0[..name.0.len().min(255)];
        self.u8(bytes.len() as u8);
        self.put(bytes);
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl<S: Sink> Sink for &mut S {
    fn put(&mut self, bytes: &[u8]) {
        (**self).put(bytes);
    }

    fn put_bulk(&mut self, bytes: &[u8]) {
        (**self).put_bulk(bytes);
    }
}
