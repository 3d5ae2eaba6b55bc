//! Finds the VM description at the end of a file, before the stream in front of it is read.
//!
//! ```text
//! .. 00 06 len len len len { "page_size": .. } [00 00 ..]
//!       ^-- mark, where `len` leads to the end of the text
//! ```
//! JSON text has no control characters but blanks, and the length of a description has at least one (it is far below
//! `0x20202020`). So the last control character of a file that ends in a description is a byte of that length: found by reading
//! backwards, in pieces, and confirmed by mark and length. Zeros behind the text (padding of block devices) are passed over.

use std::io::{self, Read, Seek, SeekFrom};

use byteorder::{BE, ByteOrder as _};

use crate::limits::{MAX_DESCRIPTION, PIECE};
use crate::wire::SectionKind;

/// Bytes of mark and length.
const HEAD: u64 = 5;

/// Most zeros that are passed over.
const MAX_PADDING: u64 = 1 << 20;

/// A description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Where the text begins.
    pub offset: u64,
    /// The text.
    pub text: Vec<u8>,
}

/// Finds the description, if the input ends in one. Where the input stands afterwards is undefined.
///
/// # Errors
/// If it cannot be read or sought in.
pub(super) fn find<R: Read + Seek>(input: &mut R) -> io::Result<Option<Trailer>> {
    let len = input.seek(SeekFrom::End(0))?;
    let Some(last) = rfind(input, len, MAX_PADDING, |b| b != 0)? else { return Ok(None) };
    let end = last + 1;
    let control = |b: u8| b < 0x20 && !b.is_ascii_whitespace();
    let Some(found) = rfind(input, end, u64::from(MAX_DESCRIPTION) + HEAD, control)? else { return Ok(None) };
    // The control character is one of the five bytes of the head.
    for mark in (0..HEAD).filter_map(|back| found.checked_sub(back)) {
        let mut head = [0; HEAD as usize + 1];
        input.seek(SeekFrom::Start(mark))?;
        match input.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(e) => return Err(e),
        }
        let length = BE::read_u32(&head[1..]);
        let fits = mark + HEAD + u64::from(length) == end && length <= MAX_DESCRIPTION;
        if SectionKind(head[0]) == SectionKind::VMDESCRIPTION && fits && head[5] == b'{' {
            let offset = mark + HEAD;
            let mut text = Vec::new();
            input.seek(SeekFrom::Start(offset))?;
            input.take(length.into()).read_to_end(&mut text)?;
            return Ok((text.len() == length as usize).then_some(Trailer { offset, text }));
        }
    }
    Ok(None)
}

/// The last byte in front of `end` that `wanted` is true of, looked for in the last `most` bytes.
fn rfind<R: Read + Seek>(
    input: &mut R,
    end: u64,
    most: u64,
    wanted: impl Fn(u8) -> bool,
) -> io::Result<Option<u64>> {
    let floor = end.saturating_sub(most);
    let mut buffer = Vec::new();
    let mut end = end;
    while end > floor {
        let start = end.saturating_sub(PIECE as u64).max(floor);
        buffer.resize((end - start) as usize, 0);
        input.seek(SeekFrom::Start(start))?;
        input.read_exact(&mut buffer)?;
        if let Some(at) = buffer.iter().rposition(|b| wanted(*b)) {
            return Ok(Some(start + at as u64));
        }
        end = start;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn file(front: &[u8], text: &str, behind: &[u8]) -> Vec<u8> {
        [front, &[0, 6], &(text.len() as u32).to_be_bytes()[..], text.as_bytes(), behind].concat()
    }

    fn found(file: &[u8]) -> Option<Trailer> {
        find(&mut Cursor::new(file)).unwrap()
    }

    #[test]
    fn finds_a_description_of_any_length() {
        for length in [2, 6, 31, 32, 0x0606, 0x2020, 0x7b7b, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 0x20] {
            let text = format!("{{{}}}", "\t".repeat(length - 2));
            for behind in [0, 1, 511, 100_000] {
                let file = file(b"QEVM\x06\x06", &text, &vec![0; behind]);
                let trailer = found(&file).unwrap_or_else(|| panic!("{length} {behind}"));
                assert_eq!((trailer.offset, trailer.text.len()), (12, length));
            }
        }
    }

    #[test]
    fn finds_none_where_there_is_none() {
        let good = file(b"QEVM", "{\"a\": 1}", b"");
        assert!(found(&good).is_some());
        for cut in 0..good.len() {
            assert_eq!(found(&good[..cut]), None, "{cut}");
        }
        assert_eq!(found(&file(b"QEVM", "[1]", b"")), None);
        assert_eq!(found(&file(b"QEVM", "{}", b"x")), None);
        assert_eq!(found(&vec![0; 3 << 20]), None);
        assert_eq!(found(&vec![b'x'; 3 << 20]), None);
        assert_eq!(found(&file(b"QEVM", "{}", &vec![0; 2 << 20])), None);
    }
}
