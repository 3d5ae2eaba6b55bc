//! Method none: page after page.
//!
//! Stock receivers read as many bytes as the pages have and ignore the size that the packet gives; so the payload that a parser
//! hands over is as long as the pages, or the parser says that the packet lies.

use super::{Codec, encodable, whole};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::Method;

const DOING: &str = "raw pages";

/// Pages as they are.
#[derive(Debug)]
pub(super) struct Raw;

impl Codec for Raw {
    fn method(&self) -> Method {
        Method::NONE
    }

    fn encode(&mut self, pages: &[u8], page_size: usize, out: &mut Vec<u8>) -> Result<()> {
        encodable(DOING, pages, page_size)?;
        out.extend_from_slice(pages);
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], page_size: usize, pages: &mut [u8]) -> Result<()> {
        whole(DOING, pages, page_size)?;
        let (size, wanted) = (payload.len(), pages.len());
        if size != wanted {
            let kind = if size < wanted { ErrorKind::Truncated } else { ErrorKind::Malformed };
            let message = format!("{size} bytes of payload, where the pages have {wanted}");
            return Err(Error::new(kind, size.min(wanted) as u64, DOING, message));
        }
        pages.copy_from_slice(payload);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, PAGE, decoded, refused};
    use super::*;

    #[test]
    fn round_trip() {
        testing::round_trips(Method::NONE);
        testing::cuts(Method::NONE);
    }

    #[test]
    fn pages_are_the_payload() {
        let mut out = vec![0xa5];
        Raw.encode(&[7; 2 * PAGE], PAGE, &mut out).unwrap();
        assert!(out[1..] == [7; 2 * PAGE]);
        assert!(decoded(&mut Raw, &out[1..], 2) == out[1..]);
    }

    #[test]
    fn sizes_that_do_not_fit() {
        let e = refused(&mut Raw, &[0; PAGE - 1], 1);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Truncated, Some(4095)));
        let e = refused(&mut Raw, &[0; PAGE + 1], 1);
        assert_eq!((e.kind(), e.offset()), (ErrorKind::Malformed, Some(4096)));
        assert_eq!(e.message(), "4097 bytes of payload, where the pages have 4096");
    }

    #[test]
    fn half_pages_are_a_mistake_of_the_caller() {
        assert_eq!(Raw.encode(&[0; 100], PAGE, &mut Vec::new()).unwrap_err().kind(), ErrorKind::Misuse);
        assert_eq!(Raw.decode(&[], 0, &mut []).unwrap_err().kind(), ErrorKind::Misuse);
    }
}
