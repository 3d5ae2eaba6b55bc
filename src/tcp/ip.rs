//! IP datagrams, version 4 with options and version 6 with extension headers, as far as TCP is in them.
//!
//! Segmentation offload has its marks here: a host hands packets to its card, and to its capture, that are larger than any on the
//! wire. Linux writes a total length of zero then if it does not fit (IPv4), or puts in a jumbogram's (IPv6); the length is that
//! of the frame.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Unread;

/// What a datagram carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datagram<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// As much of the segment as was kept.
    pub(super) segment: &'a [u8],
    /// How long it is.
    pub(super) length: usize,
}

const TCP: u8 = 6;

/// Takes a datagram apart. `on_wire` is its length by the capture, which counts padding and what was not kept.
pub(super) fn datagram(packet: &[u8], on_wire: usize) -> Result<Datagram<'_>, Unread> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => version_4(packet, on_wire),
        Some(6) => version_6(packet, on_wire),
        _ => Err(Unread::Malformed),
    }
}

fn version_4(packet: &[u8], on_wire: usize) -> Result<Datagram<'_>, Unread> {
    let fixed: &[u8; 20] = packet.first_chunk().ok_or(Unread::Malformed)?;
    let header = usize::from(fixed[0] & 15) * 4;
    let total = match usize::from(be16([fixed[2], fixed[3]])) {
        0 => on_wire,
        total => total,
    };
    if header < 20 || total < header {
        return Err(Unread::Malformed);
    }
    if fixed[9] != TCP {
        return Err(Unread::NotTcp);
    }
    // More fragments, or not the first one.
    if be16([fixed[6], fixed[7]]) & 0x3fff != 0 {
        return Err(Unread::Fragment);
    }
    let kept = packet.get(header..total.min(packet.len())).unwrap_or_default();
    let address =
        |at: usize| IpAddr::V4(Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]));
    Ok(Datagram { source: address(12), destination: address(16), segment: kept, length: total - header })
}

fn version_6(packet: &[u8], on_wire: usize) -> Result<Datagram<'_>, Unread> {
    let fixed: &[u8; 40] = packet.first_chunk().ok_or(Unread::Malformed)?;
    let total = match usize::from(be16([fixed[4], fixed[5]])) {
        0 => on_wire,
        payload => 40 + payload,
    };
    let kept = &packet[..total.min(packet.len())];
    let (mut next, mut at) = (fixed[6], 40);
    while next != TCP {
        let Some(&[following, len, high, low, ..]) = kept.get(at..) else { return Err(Unread::NotTcp) };
        let len = usize::from(len);
        at += match next {
            // Hop-by-hop options, routing, destination options, mobility.
            0 | 43 | 60 | 135 => (len + 1) * 8,
            // Authentication.
            51 => (len + 2) * 4,
            // A fragment that is the whole datagram is none.
            44 if be16([high, low]) & 0xfff9 == 0 => 8,
            44 => return Err(Unread::Fragment),
            _ => return Err(Unread::NotTcp),
        };
        next = following;
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&fixed[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let segment = kept.get(at..).ok_or(Unread::Malformed)?;
    let length = total.checked_sub(at).ok_or(Unread::Malformed)?;
    Ok(Datagram { source: address(8), destination: address(24), segment, length })
}

fn be16(bytes: [u8; 2]) -> u16 {
    u16::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(total: u16, options: usize, fragment: u16, protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20 + options];
        packet[0] = 0x45 + (options / 4) as u8;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend_from_slice(rest);
        packet
    }

    fn v6(payload: u16, next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        packet[6] = next;
        packet[23] = 1;
        packet[39] = 2;
        packet.extend_from_slice(rest);
        packet
    }

    fn read(packet: &[u8]) -> Result<(Vec<u8>, usize), Unread> {
        datagram(packet, packet.len()).map(|d| (d.segment.to_vec(), d.length))
    }

    #[test]
    fn version_4_with_and_without_options() {
        for options in [0, 4, 40] {
            let packet = v4(25 + options as u16, options, 0x4000, 6, b"hello and padding");
            assert_eq!(read(&packet), Ok((b"hello".to_vec(), 5)));
        }
        let packet = v4(0, 0, 0, 6, b"segmented later");
        let found = datagram(&packet, 35);
        let found = found.map(|d| (d.source.to_string(), d.destination.to_string(), d.length));
        assert_eq!(found, Ok(("10.0.0.1".into(), "10.0.0.2".into(), 15)));
        assert_eq!(
            datagram(&v4(1000, 0, 0, 6, b"cut"), 1000).map(|d| (d.segment.len(), d.length)),
            Ok((3, 980))
        );
        assert_eq!(read(&v4(0, 0, 0, 17, b"")), Err(Unread::NotTcp));
        assert_eq!(read(&v4(19, 0, 0, 6, b"")), Err(Unread::Malformed));
        assert_eq!(read(&v4(0, 0, 0, 6, b"")[..19]), Err(Unread::Malformed));
        for fragment in [0x2000, 1, 0x1fff] {
            assert_eq!(read(&v4(30, 0, fragment, 6, b"0123456789")), Err(Unread::Fragment));
        }
        let short = [&[0x44][..], &[0; 30]].concat();
        assert_eq!(read(&short), Err(Unread::Malformed));
    }

    #[test]
    fn version_6_with_and_without_headers() {
        assert_eq!(read(&v6(5, 6, b"hello, padding")), Ok((b"hello".to_vec(), 5)));
        let options = b"\x2b\0\0\0\0\0\0\0\x3c\0\0\0\0\0\0\0\x33\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x2c\x01\0\0\0\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0hi";
        assert_eq!(read(&v6(options.len() as u16, 0, options)), Ok((b"hi".to_vec(), 2)));
        let fragment = b"\x06\0\0\x01\0\0\0\0hi";
        assert_eq!(read(&v6(10, 44, fragment)), Err(Unread::Fragment));
        assert_eq!(read(&v6(0, 6, b"jumbo")), Ok((b"jumbo".to_vec(), 5)));
        assert_eq!(read(&v6(8, 58, b"neighbor")), Err(Unread::NotTcp));
        assert_eq!(
            read(&v6(8, 60, b"\x06\x20\0\0\0\0\0\0")),
            Err(Unread::Malformed),
            "an option longer than all"
        );
        let packet = v6(5, 6, b"hello");
        let found = datagram(&packet, 45).unwrap();
        assert_eq!((found.source.to_string(), found.destination.to_string()), ("::1".into(), "::2".into()));
    }
}
