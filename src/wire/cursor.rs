//! Reading position over a slice of a channel, with absolute offsets.
//!
//! nom's streaming number parsers do the reading; none of its types leave this file.

use nom::bytes::streaming::take;
use nom::error::Error as NomError;
use nom::number::streaming::{be_u8, be_u16, be_u32, be_u64};

use super::Name;
use crate::error::{Error, ErrorKind};

/// Why a record could not be read.
#[derive(Debug)]
pub enum Fault {
    /// The input ends inside the record.
    More {
        /// The field that is cut.
        field: &'static str,
        /// At least this many bytes are missing.
        missing: usize,
    },
    /// The bytes cannot be this record.
    Bad(Error),
}

impl From<Error> for Fault {
    fn from(e: Error) -> Self {
        Self::Bad(e)
    }
}

/// A slice of a channel that begins at a known absolute offset, and a position in it.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    base: u64,
    all: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// A cursor at the first byte of `input`, which stands at `base` of its channel.
    pub fn new(base: u64, input: &'a [u8]) -> Self {
        Self { base, all: input, rest: input }
    }

    /// Absolute offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.base + self.consumed() as u64
    }

    /// Bytes read so far.
    pub fn consumed(&self) -> usize {
        self.all.len() - self.rest.len()
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left, without moving.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next byte, without moving.
    pub fn peek(&self, field: &'static str) -> Result<u8, Fault> {
        self.rest.first().copied().ok_or(Fault::More { field, missing: 1 })
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, Fault> {
        self.run(field, be_u8)
    }

    /// A big-endian 16-bit number.
    pub fn be16(&mut self, field: &'static str) -> Result<u16, Fault> {
        self.run(field, be_u16)
    }

    /// A big-endian 32-bit number.
    pub fn be32(&mut self, field: &'static str) -> Result<u32, Fault> {
        self.run(field, be_u32)
    }

    /// A big-endian 64-bit number.
    pub fn be64(&mut self, field: &'static str) -> Result<u64, Fault> {
        self.run(field, be_u64)
    }

    /// `count` bytes, by reference. The caller has bounded `count`.
    pub fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], Fault> {
        self.run(field, take(count))
    }

    /// A fixed number of bytes, by value.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Fault> {
        let bytes = self.take(field, N)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    /// A counted string: one length byte, that many bytes, no NUL (`qemu_put_counted_string`).
    pub fn str8(&mut self, field: &'static str) -> Result<Name<'a>, Fault> {
        let len = self.u8(field)?;
        self.take(field, usize::from(len)).map(Name)
    }

    /// A [`Fault::Bad`] at `offset`: the bytes are there and cannot be right.
    #[cold]
    pub fn malformed(offset: u64, doing: &'static str, message: impl Into<String>) -> Fault {
        Fault::Bad(Error::new(ErrorKind::Malformed, offset, doing, message))
    }

    fn run<T, P>(&mut self, field: &'static str, mut parser: P) -> Result<T, Fault>
    where
        P: nom::Parser<&'a [u8], Output = T, Error = NomError<&'a [u8]>>,
    {
        match parser.parse(self.rest) {
            Ok((rest, value)) => {
                self.rest = rest;
                Ok(value)
            }
            Err(nom::Err::Incomplete(needed)) => {
                let missing = match needed {
                    nom::Needed::Size(n) => n.get(),
                    nom::Needed::Unknown => 1,
                };
                Err(Fault::More { field, missing })
            }
            // The parsers used here never fail but for want of input.
            Err(nom::Err::Error(_) | nom::Err::Failure(_)) => Err(Fault::More { field, missing: 1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_big_endian_and_keeps_the_offset() {
        let bytes = [1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 2, b'h', b'i', 9];
        let mut c = Cursor::new(100, &bytes);
        assert_eq!(c.u8("a").unwrap(), 1);
        assert_eq!(c.be16("b").unwrap(), 2);
        assert_eq!(c.be32("c").unwrap(), 3);
        assert_eq!(c.be64("d").unwrap(), 4);
        assert_eq!(c.str8("e").unwrap(), Name(b"hi"));
        assert_eq!((c.offset(), c.consumed(), c.remaining()), (118, 18, 1));
        assert_eq!(c.peek("f").unwrap(), 9);
    }

    #[test]
    fn says_which_field_is_cut_and_how_much_is_missing() {
        let mut c = Cursor::new(0, &[1, 2]);
        match c.be64("length") {
            Err(Fault::More { field, missing }) => assert_eq!((field, missing), ("length", 6)),
            other => panic!("{other:?}"),
        }
        assert_eq!(c.consumed(), 0);
    }
}
