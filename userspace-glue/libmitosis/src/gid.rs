//! GIDs as people write them.

use std::fmt;
use std::net::IpAddr;

/// A GID, shown as eight groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gid<'g>(pub &'g [u8; 16]);

impl fmt::Display for Gid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pair) in self.0.chunks(2).enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{:02x}{:02x}", pair[0], pair[1])?;
        }
        Ok(())
    }
}

/// The GID that a text names: an IPv6 address, as eight groups or shortened, or an IPv4 address, of
/// which the GID of RoCE is the mapped one.
pub fn parse(text: &str) -> Option<[u8; 16]> {
    match text.parse().ok()? {
        IpAddr::V6(address) => Some(address.octets()),
        IpAddr::V4(address) => Some(address.to_ipv6_mapped().octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_to_write_one() {
        let long = "fe80:0000:0000:0000:ec0d:9a03:00ca:2f4c";
        let gid = parse(long).unwrap();
        assert_eq!(parse("fe80::ec0d:9a03:ca:2f4c"), Some(gid));
        assert_eq!(Gid(&gid).to_string(), long);
        let mapped = parse("10.0.0.1").unwrap();
        assert_eq!(mapped[10..], [0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(parse("val01"), None);
    }
}
