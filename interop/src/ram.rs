//! Guest memory as files: patterns to fill it with, and comparison byte for byte.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// Page size of the x86 targets; only for counting differences.
const PAGE: usize = 4096;

/// Pages compared per read.
const STRIDE: usize = 256;

/// Where two images of one RAM block differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) block: String,
    pub(crate) lengths: (u64, u64),
    /// Offset of the first byte that differs, and the two bytes; `None` if only the lengths do.
    pub(crate) first: Option<(u64, u8, u8)>,
    pub(crate) pages_differing: u64,
    pub(crate) pages: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RAM block {}: ", self.block)?;
        if self.lengths.0 != self.lengths.1 {
            write!(f, "lengths {:#x} and {:#x} differ; ", self.lengths.0, self.lengths.1)?;
        }
        match self.first {
            None => f.write_str("the common part is equal"),
            Some((offset, left, right)) => write!(
                f,
                "first difference at {offset:#x} ({left:#04x} at the source, {right:#04x} at the destination), {} of \
                 {} pages differ",
                self.pages_differing, self.pages
            ),
        }
    }
}

/// Writes a file of `bytes` bytes of mixed pages: zero, constant, counting, noise, and almost zero.
///
/// The kinds follow each other in an order that the seed decides, so neighbouring pages differ in kind and no page but
/// the zero and the constant ones equals another: a page put into the wrong place is noticed.
pub(crate) fn fill_mixed(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    File::create(path)?;
    put_mixed(path, 0, bytes, seed)
}

/// Writes the same into a part of a file that is there.
pub(crate) fn put_mixed(path: &Path, at: u64, bytes: u64, seed: u64) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.seek(SeekFrom::Start(at))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut page = [0u8; PAGE];
    for number in 0..bytes.div_ceil(PAGE as u64) {
        let choice = next(&mut state);
        match choice % 8 {
            0 | 1 => page.fill(0),
            2 => page.fill((choice >> 8) as u8),
            3 => {
                for (at, word) in page.chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&(number << 16 | at as u64).to_le_bytes());
                }
            }
            4 | 5 => {
                for word in page.chunks_exact_mut(8) {
                    word.copy_from_slice(&next(&mut state).to_le_bytes());
                }
            }
            6 => {
                page.fill(0);
                page[PAGE - 1] = (number as u8) | 1;
            }
            _ => {
                page.fill(0);
                page[..8].copy_from_slice(&(number + 1).to_le_bytes());
            }
        }
        let left = bytes - number * PAGE as u64;
        out.write_all(&page[..PAGE.min(usize::try_from(left).unwrap_or(PAGE))])?;
    }
    out.flush()
}

/// Writes a file of one repeated byte.
pub(crate) fn fill_byte(path: &Path, bytes: u64, byte: u8) -> io::Result<()> {
    let file = File::create(path)?;
    if byte == 0 {
        return file.set_len(bytes);
    }
    io::copy(&mut io::repeat(byte).take(bytes), &mut BufWriter::with_capacity(1 << 20, file)).map(drop)
}

/// Compares two images of a block; `None` means equal.
pub(crate) fn compare(block: &str, left: &Path, right: &Path) -> io::Result<Option<Difference>> {
    let open = |path: &Path| {
        File::open(path).map_err(|e| io::Error::new(e.kind(), format!("RAM image {}: {e}", path.display())))
    };
    let (mut a, mut b) = (open(left)?, open(right)?);
    let lengths = (a.metadata()?.len(), b.metadata()?.len());
    let common = lengths.0.min(lengths.1);
    let (mut page_a, mut page_b) = (vec![0; PAGE * STRIDE], vec![0; PAGE * STRIDE]);
    let mut difference = Difference {
        block: block.to_owned(),
        lengths,
        first: None,
        pages_differing: 0,
        pages: common.div_ceil(PAGE as u64),
    };
    let mut at = 0;
    while at < common {
        let n = usize::try_from(common - at).map_or(PAGE * STRIDE, |rest| rest.min(PAGE * STRIDE));
        a.read_exact(&mut page_a[..n])?;
        b.read_exact(&mut page_b[..n])?;
        if page_a[..n] != page_b[..n] {
            for (number, (x, y)) in page_a[..n].chunks(PAGE).zip(page_b[..n].chunks(PAGE)).enumerate() {
                let Some(inside) = x.iter().zip(y).position(|(x, y)| x != y) else { continue };
                difference.pages_differing += 1;
                let offset = at + (number * PAGE + inside) as u64;
                difference.first.get_or_insert((offset, x[inside], y[inside]));
            }
        }
        at += n as u64;
    }
    Ok((difference.first.is_some() || lengths.0 != lengths.1).then_some(difference))
}

/// The file name of a block's image: every byte outside `[A-Za-z0-9._@-]` becomes `%XX`, and `.ram` ends it.
pub(crate) fn image_name(block: &str) -> String {
    let mut name = String::new();
    for byte in block.bytes() {
        if byte.is_ascii_alphanumeric() || b"._@-".contains(&byte) {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name + ".ram"
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(left: &[u8], right: &[u8]) -> Option<Difference> {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, left).unwrap();
        std::fs::write(&b, right).unwrap();
        compare("pc.ram", &a, &b).unwrap()
    }

    #[test]
    fn equal_images_have_no_difference() {
        assert_eq!(pair(&[7; 10_000], &[7; 10_000]), None);
        assert_eq!(pair(&[], &[]), None);
    }

    #[test]
    fn the_first_difference_and_all_pages_are_counted() {
        // Beyond the first stride, so offsets have to add up across reads; the tail is a part of a page.
        let left = vec![1; PAGE * STRIDE * 2 + 100];
        let mut right = left.clone();
        for at in [PAGE * STRIDE + 5, PAGE * STRIDE + 6, PAGE * STRIDE + PAGE, PAGE * STRIDE * 2 + 99] {
            right[at] = 2;
        }
        let difference = pair(&left, &right).unwrap();
        assert_eq!(difference.first, Some((PAGE as u64 * STRIDE as u64 + 5, 1, 2)));
        assert_eq!((difference.pages_differing, difference.pages), (3, 513));
        assert_eq!(
            difference.to_string(),
            "RAM block pc.ram: first difference at 0x100005 (0x01 at the source, 0x02 at the destination), 3 of 513 \
             pages differ"
        );
    }

    #[test]
    fn a_short_image_is_a_difference() {
        let difference = pair(&[1; 8192], &[1; 4096]).unwrap();
        assert_eq!(
            difference.to_string(),
            "RAM block pc.ram: lengths 0x2000 and 0x1000 differ; the common part is equal"
        );
    }

    #[test]
    fn a_missing_image_is_an_error_that_names_it() {
        let error = compare("x", Path::new("/no/a"), Path::new("/no/b")).unwrap_err();
        assert!(error.to_string().contains("/no/a"), "{error}");
    }

    #[test]
    fn mixed_memory_is_mixed_and_repeatable() {
        let dir = tempfile::tempdir().unwrap();
        let fill = |seed| {
            let path = dir.path().join("m");
            fill_mixed(&path, 1 << 20, seed).unwrap();
            std::fs::read(path).unwrap()
        };
        let (one, again, other) = (fill(1), fill(1), fill(2));
        assert_eq!(one.len(), 1 << 20);
        assert_eq!(one, again);
        assert_ne!(one, other);
        let zero = one.chunks(PAGE).filter(|page| page.iter().all(|&b| b == 0)).count();
        let constant = one.chunks(PAGE).filter(|page| page.iter().all(|&b| b == page[0])).count();
        assert!(zero > 20 && constant > zero && constant < 200, "{zero} {constant}");
    }

    #[test]
    fn images_are_named_as_the_command_names_them() {
        assert_eq!(image_name("pc.ram"), "pc.ram.ram");
        assert_eq!(image_name("/rom@etc/acpi/tables"), "%2From@etc%2Facpi%2Ftables.ram");
        assert_eq!(image_name("ä%"), "%C3%A4%25.ram");
    }
}
