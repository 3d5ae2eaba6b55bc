//! What a frame begins with: Ethernet with VLAN tags, Linux's cooked headers, bare IP, loopback.
//!
//! ```text
//! Ethernet  0, 8 addresses[12]  be16 type          SLL   be16 kind  be16 device  be16  address[8]  be16 type
//! VLAN      be16 tag  be16 type                    SLL2  be16 type  be16 0  be32 interface  be16 device  u8 kind  u8  address[8]
//! NULL      u32 family, of the machine's byte order; LOOP: be32
//! ```

use super::Unread;
use crate::capture::LinkType;

/// Ethernet types of VLAN tags: 802.1Q, 802.1ad, and what came before it.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// The packet in a frame: everything behind the link's header.
pub(super) fn packet(link: LinkType, frame: &[u8]) -> Result<&[u8], Unread> {
    match link.0 {
        0 | 108 => {
            // The family of IPv4 is 2 everywhere, that of IPv6 different on every system.
            let (_, rest) = frame.split_first_chunk::<4>().ok_or(Unread::Malformed)?;
            bare(rest)
        }
        1 => typed(frame, 12, 14),
        12 | 14 | 101 | 228 | 229 => bare(frame),
        113 => typed(frame, 14, 16),
        276 => typed(frame, 0, 20),
        _ => Err(Unread::UnknownLink),
    }
}

/// A header of `len` bytes with an Ethernet type at `at`, and tags behind it.
fn typed(frame: &[u8], at: usize, len: usize) -> Result<&[u8], Unread> {
    let mut kind = be16(frame, at)?;
    let mut rest = frame.get(len..).ok_or(Unread::Malformed)?;
    while TAGS.contains(&kind) {
        kind = be16(rest, 2)?;
        rest = &rest[4..];
    }
    match kind {
        0x0800 | 0x86dd => Ok(rest),
        _ => Err(Unread::NotTcp),
    }
}

fn bare(packet: &[u8]) -> Result<&[u8], Unread> {
    match packet.first().map(|first| first >> 4) {
        Some(4 | 6) => Ok(packet),
        Some(_) => Err(Unread::NotTcp),
        None => Err(Unread::Malformed),
    }
}

fn be16(bytes: &[u8], at: usize) -> Result<u16, Unread> {
    let pair = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Unread::Malformed)?;
    Ok(u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: &[u8] = b"\x45 a packet";

    fn ethernet(types: &[u16]) -> Vec<u8> {
        let mut frame = vec![0xee; 12];
        for (n, kind) in types.iter().enumerate() {
            if n > 0 {
                frame.extend_from_slice(&[0x20, 7]);
            }
            frame.extend_from_slice(&kind.to_be_bytes());
        }
        [&frame, IP].concat()
    }

    #[test]
    fn ethernet_with_any_number_of_tags() {
        for types in
            [&[0x0800][..], &[0x8100, 0x0800], &[0x88a8, 0x8100, 0x86dd], &[0x9100, 0x88a8, 0x8100, 0x0800]]
        {
            let frame = ethernet(types);
            assert_eq!(packet(LinkType(1), &frame), Ok(IP), "{types:x?}");
            for end in 0..frame.len() - IP.len() {
                assert_eq!(packet(LinkType(1), &frame[..end]), Err(Unread::Malformed), "{types:x?} {end}");
            }
        }
        assert_eq!(packet(LinkType(1), &ethernet(&[0x0806])), Err(Unread::NotTcp), "ARP");
        assert_eq!(packet(LinkType(1), &ethernet(&[0x8100, 0x0806])), Err(Unread::NotTcp));
    }

    #[test]
    fn cooked_headers() {
        let sll = [&[0, 0, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0][..], IP].concat();
        assert_eq!(packet(LinkType(113), &sll), Ok(IP));
        let sll2 = [&[8, 0, 0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0][..], IP].concat();
        assert_eq!(packet(LinkType(276), &sll2), Ok(IP));
        let tagged =
            [&[0x81, 0, 0, 0, 0, 0, 0, 1, 3, 4, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 8, 0][..], IP].concat();
        assert_eq!(packet(LinkType(276), &tagged), Ok(IP));
    }

    #[test]
    fn no_header_to_speak_of() {
        for link in [12, 14, 101, 228, 229] {
            assert_eq!(packet(LinkType(link), IP), Ok(IP));
        }
        for family in [&[2, 0, 0, 0][..], &[0, 0, 0, 2]] {
            let frame = [family, IP].concat();
            assert_eq!(packet(LinkType(0), &frame), Ok(IP));
            assert_eq!(packet(LinkType(108), &frame), Ok(IP));
        }
        assert_eq!(packet(LinkType(101), &[]), Err(Unread::Malformed));
        assert_eq!(packet(LinkType(101), &[0x60; 1]), Ok(&[0x60][..]));
        assert_eq!(packet(LinkType(101), &[0xff]), Err(Unread::NotTcp));
        assert_eq!(packet(LinkType(105), IP), Err(Unread::UnknownLink), "Wi-Fi");
    }
}
