//! Payload methods: pages of a packet to bytes and back.
//!
//! ```text
//! none         page after page
//! zlib, zstd   one stream a channel, from its first packet on and never finished; a packet ends where the stream is flushed
//! qpl, uadk    be32 length of each page, then the pages: each raw (as long as a page), or a deflate or zlib stream of its own
//! qatzip       gzip members, one behind the other
//! ```
//! A codec belongs to one channel and one direction: zlib and zstd keep their history from packet to packet, so that packets
//! can be decoded in order only, and from the first one on. What was recorded is emitted as it came, never compressed again;
//! codecs are for looking at pages and for making streams of our own.

#[cfg(feature = "compress")]
mod container;
#[cfg(feature = "compress")]
mod inflate;
mod none;
#[cfg(feature = "compress")]
mod qatzip;
#[cfg(test)]
mod testing;
#[cfg(feature = "compress")]
mod zlib;
#[cfg(feature = "zstd")]
mod zstd;

use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::Method;

/// Encoder and decoder of one channel's payloads.
pub trait Codec: Send {
    /// The method field of packets that this codec makes and reads.
    fn method(&self) -> Method;

    /// Appends the payload for `pages` (whole pages of `page_size` bytes, at least one) to `out`.
    ///
    /// # Errors
    /// If these are no whole pages (`Misuse`), or the codec cannot make any payload (`Unsupported`).
    fn encode(&mut self, pages: &[u8], page_size: usize, out: &mut Vec<u8>) -> Result<()>;

    /// Fills `pages` (as many whole pages of `page_size` bytes as the packet says) from the packet's `payload`. What is in
    /// `pages` after an error has no meaning, and a codec with a history decodes nothing more.
    ///
    /// # Errors
    /// Where the payload does not hold exactly these pages; the offset is that in the payload.
    fn decode(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()>;
}

/// Levels that a method can be given. They are the sender's business; no receiver can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// The lowest.
    pub lowest: u32,
    /// The highest.
    pub highest: u32,
    /// The one that QEMU takes if it is told none.
    pub usual: u32,
}

/// Every method with its name in QMP (`multifd-compression`) and its levels (`multifd-NAME-level`).
const METHODS: [(Method, &str, Option<Levels>); 6] = [
    (Method::NONE, "none", None),
    (Method::ZLIB, "zlib", Some(Levels { lowest: 0, highest: 9, usual: 1 })),
    (Method::ZSTD, "zstd", Some(Levels { lowest: 0, highest: 20, usual: 1 })),
    (Method::QPL, "qpl", None),
    (Method::UADK, "uadk", None),
    (Method::QATZIP, "qatzip", Some(Levels { lowest: 1, highest: 9, usual: 1 })),
];

/// The name of a method in QMP; `None` for one that no release knows.
pub fn name(method: Method) -> Option<&'static str> {
    METHODS.iter().find(|(known, ..)| *known == method).map(|(_, name, _)| *name)
}

/// The levels of a method, if it has any.
pub fn levels(method: Method) -> Option<Levels> {
    METHODS.iter().find(|(known, ..)| *known == method).and_then(|(.., levels)| *levels)
}

/// Method names as QMP spells them.
impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = METHODS.iter().find(|(_, name, _)| *name == text).map(|(method, ..)| *method);
        found.ok_or_else(|| {
            let names = METHODS.map(|(_, name, _)| name).join(", ");
            Error::nowhere(ErrorKind::Misuse, "compression method", format!("{text:?} is none of {names}"))
        })
    }
}

/// A codec for one direction of one channel. `level` is for encoding; without it QEMU's own default is taken.
///
/// # Errors
/// `Unsupported` for a method that no release knows or that this build was made without, `Misuse` for a level that the method
/// does not have.
pub fn open(method: Method, level: Option<u32>) -> Result<Box<dyn Codec>> {
    const DOING: &str = "compression method";
    let Some(name) = name(method) else {
        let message = format!("no release has a method {:#x}", method.0);
        return Err(Error::nowhere(ErrorKind::Unsupported, DOING, message));
    };
    let level = match (levels(method), level) {
        (None, None) => 0,
        (None, Some(level)) => {
            let message = format!("{name} has no levels, so there is no level {level}");
            return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
        }
        (Some(Levels { lowest, highest, usual }), level) => {
            let level = level.unwrap_or(usual);
            if !(lowest..=highest).contains(&level) {
                let message = format!("{name} has levels {lowest} to {highest}, and no level {level}");
                return Err(Error::nowhere(ErrorKind::Misuse, DOING, message));
            }
            level
        }
    };
    build(method, level).ok_or_else(|| {
        let feature = if method == Method::ZSTD { "zstd" } else { "compress" };
        let message = format!("this build knows no {name}; it was made without its feature `{feature}`");
        Error::nowhere(ErrorKind::Unsupported, DOING, message)
    })
}

#[cfg_attr(
    not(any(feature = "compress", feature = "zstd")),
    expect(unused_variables, reason = "there is a level only where there is a compressor")
)]
fn build(method: Method, level: u32) -> Option<Box<dyn Codec>> {
    Some(match method {
        Method::NONE => Box::new(none::Raw),
        #[cfg(feature = "compress")]
        Method::ZLIB => Box::new(zlib::Zlib::new(level)),
        #[cfg(feature = "zstd")]
        Method::ZSTD => Box::new(zstd::Zstd::new(level)),
        #[cfg(feature = "compress")]
        Method::QPL | Method::UADK => Box::new(container::Container::new(method)),
        #[cfg(feature = "compress")]
        Method::QATZIP => Box::new(qatzip::Qatzip::new(level)),
        _ => return None,
    })
}

/// Refuses what is no whole number of pages: a mistake of the caller, who has made room for them.
fn whole(doing: &'static str, pages: &[u8], page_size: usize) -> Result<()> {
    if page_size != 0 && pages.len().is_multiple_of(page_size) {
        return Ok(());
    }
    let message = format!("{} bytes are no whole pages of {page_size} bytes", pages.len());
    Err(Error::nowhere(ErrorKind::Misuse, doing, message))
}

/// The same for pages to encode: without any there is no payload.
fn encodable(doing: &'static str, pages: &[u8], page_size: usize) -> Result<()> {
    if pages.is_empty() {
        return Err(Error::nowhere(ErrorKind::Misuse, doing, "a payload without pages was asked for"));
    }
    whole(doing, pages, page_size)
}

/// What is the same for all methods that compress: whole pages, and a payload of a size that a receiver has room for. Tells
/// whether there is anything to decode.
#[cfg(any(feature = "compress", feature = "zstd"))]
fn decodable(doing: &'static str, payload: &[u8], page_size: usize, pages: &[u8]) -> Result<bool> {
    use crate::limits::MAX_MULTIFD_PAYLOAD;

    whole(doing, pages, page_size)?;
    let size = payload.len();
    if size > MAX_MULTIFD_PAYLOAD as usize {
        let message = format!("{size} bytes of payload, where receivers have room for {MAX_MULTIFD_PAYLOAD}");
        return Err(Error::new(ErrorKind::TooLarge, 0, doing, message));
    }
    if pages.is_empty() && size > 0 {
        let message = format!("{size} bytes of payload in a packet without pages");
        return Err(Error::new(ErrorKind::Malformed, 0, doing, message));
    }
    Ok(!pages.is_empty())
}

/// A payload that is over after `produced` bytes of pages.
#[cfg(any(feature = "compress", feature = "zstd"))]
fn short(doing: &'static str, at: usize, produced: usize, page_size: usize, pages: &[u8]) -> Error {
    let (page, count) = (produced / page_size, pages.len() / page_size);
    let message = format!(
        "the payload ends {} bytes into page {page} of {count}, which has {page_size}",
        produced % page_size
    );
    Error::new(ErrorKind::Truncated, at as u64, doing, message)
}

/// A stream that has lost its thread.
#[cfg(any(feature = "compress", feature = "zstd"))]
fn lost(doing: &'static str) -> Error {
    let message = "an earlier packet of the channel could not be decoded, and with it all that follow";
    Error::new(ErrorKind::Malformed, 0, doing, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_the_names_of_qmp() {
        for (method, name, _) in METHODS {
            assert_eq!(name.parse::<Method>().unwrap(), method);
            assert_eq!(super::name(method), Some(name));
            assert_eq!(method.name().map(str::to_lowercase).as_deref(), Some(name));
        }
        assert_eq!(METHODS.len(), Method::KNOWN.len());
        let e = "ZLIB".parse::<Method>().unwrap_err();
        assert_eq!(
            e.to_string(),
            "compression method: \"ZLIB\" is none of none, zlib, zstd, qpl, uadk, qatzip"
        );
        assert_eq!(name(Method(6)), None);
    }

    #[test]
    fn levels_are_those_of_qemu() {
        let refused = |method, level| open(method, Some(level)).map(|_| ()).unwrap_err();
        for (method, name, levels) in METHODS {
            let Some(Levels { lowest, highest, usual }) = levels else {
                assert_eq!(refused(method, 1).kind(), ErrorKind::Misuse, "{name}");
                continue;
            };
            assert_eq!(usual, 1);
            assert_eq!(refused(method, highest + 1).kind(), ErrorKind::Misuse, "{name}");
            assert!(lowest == 0 || refused(method, lowest - 1).kind() == ErrorKind::Misuse, "{name}");
        }
        assert_eq!(
            refused(Method::ZSTD, 21).to_string(),
            "compression method: zstd has levels 0 to 20, and no level 21"
        );
    }

    #[test]
    fn codecs_say_what_they_are_and_builds_what_they_lack() {
        for (method, name, _) in METHODS {
            let there = match method {
                Method::NONE => true,
                Method::ZSTD => cfg!(feature = "zstd"),
                _ => cfg!(feature = "compress"),
            };
            match open(method, None) {
                Ok(codec) => assert!(there && codec.method() == method, "{name}"),
                Err(e) => {
                    assert!(!there && e.kind() == ErrorKind::Unsupported, "{e}");
                    assert!(e.message().starts_with(&format!("this build knows no {name}")), "{e}");
                }
            }
        }
        let e = open(Method(6), None).map(|_| ()).unwrap_err();
        assert_eq!(e.to_string(), "compression method: no release has a method 0x6");
        assert_eq!(e.kind(), ErrorKind::Unsupported);
    }
}
