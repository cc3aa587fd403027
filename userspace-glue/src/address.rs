//! The two forms of address: `shm://name` and `rdma://[gid]/service/hint`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use mitosis_core::wire::resolution::MAX_SERVICE_ID;

/// The longest name of a server in shared memory, in bytes.
pub const MAX_NAME_LEN: usize = 64;

/// Where a server is.
///
/// ```
/// use mitosis::address::Address;
///
/// let address: Address = "rdma://[fe80::ec0d:9a03:ca:2f4c]/0/73".parse().unwrap();
/// assert_eq!(address.to_string(), "rdma://[fe80::ec0d:9a03:ca:2f4c]/0/73");
/// assert!("shm://my-server".parse::<Address>().is_ok());
///
/// let wrong = "shm:/my-server".parse::<Address>().unwrap_err();
/// assert!(wrong.to_string().contains("shm://name"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A server of this machine and this user.
    Shm(ShmName),
    /// A server's RDMA port.
    Rdma(RdmaAddress),
}

/// The name of a server in shared memory: 1 to [`MAX_NAME_LEN`] of the characters `a-z A-Z 0-9 . _ -`, the first of which is
/// not a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShmName(String);

/// A server's RDMA port, and which of its services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RdmaAddress {
    /// The port's GID. A server may say `::` (all zeros) for the first active port; RoCE over IPv4 has `::ffff:a.b.c.d`.
    pub gid: [u8; 16],
    /// The service, as `server_service_id` of the kernel modules.
    pub service_id: u32,
    /// Which of its queues, as `server_qd_hint` of the kernel modules.
    pub qd_hint: u32,
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressError {
    text: String,
    what: &'static str,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not an address: {}; write shm://name for shared memory, \
             or rdma://[gid]/service/hint for an RDMA port, such as rdma://[fe80::1]/0/73",
            self.text.escape_default(),
            self.what
        )
    }
}

impl std::error::Error for AddressError {}

impl ShmName {
    /// Checks the name.
    pub fn new(name: &str) -> Result<Self, AddressError> {
        let error = |what| AddressError {
            text: format!("shm://{name}"),
            what,
        };
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() {
            return Err(error("the name is missing"));
        }
        if name.len() > MAX_NAME_LEN {
            return Err(error("the name is longer than 64 characters"));
        }
        if name.starts_with('.') || !name.chars().all(is_of_name) {
            return Err(error(
                "a name consists of letters, digits, '.', '_' and '-', and does not begin with a dot",
            ));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ShmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(name) = text.strip_prefix("shm://") {
            return ShmName::new(name).map(Self::Shm);
        }
        let error = |what| AddressError {
            text: text.to_owned(),
            what,
        };
        let Some(rest) = text.strip_prefix("rdma://") else {
            return Err(error("it begins with neither shm:// nor rdma://"));
        };
        let Some((gid, rest)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
            return Err(error("the GID does not stand in brackets"));
        };
        let gid: Ipv6Addr = gid
            .parse()
            .map_err(|_| error("the GID is not eight groups of hexadecimal digits"))?;
        let Some((service, hint)) = rest.strip_prefix('/').and_then(|rest| rest.split_once('/'))
        else {
            return Err(error("the service and the hint are missing behind the GID"));
        };
        let service_id = service
            .parse()
            .ok()
            .filter(|&service_id: &u32| service_id <= MAX_SERVICE_ID)
            .ok_or_else(|| error("the service is not a number from 0 to 255"))?;
        let qd_hint = hint
            .parse()
            .map_err(|_| error("the hint is not a number of 32 bits"))?;
        Ok(Self::Rdma(RdmaAddress {
            gid: gid.octets(),
            service_id,
            qd_hint,
        }))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shm(name) => write!(f, "shm://{name}"),
            Self::Rdma(address) => address.fmt(f),
        }
    }
}

impl fmt::Display for RdmaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gid = Ipv6Addr::from(self.gid);
        write!(f, "rdma://[{gid}]/{}/{}", self.service_id, self.qd_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_parsed_again() {
        for text in [
            "shm://a",
            "shm://peak-rpc.1_2",
            "rdma://[::]/0/0",
            "rdma://[fe80::ec0d:9a03:ca:2f4c]/255/4294967295",
            "rdma://[::ffff:10.0.0.1]/1/73",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        let long: Address = "rdma://[fe80:0000:0000:0000:ec0d:9a03:00ca:2f4c]/0/73"
            .parse()
            .unwrap();
        assert_eq!(
            long,
            "rdma://[fe80::ec0d:9a03:ca:2f4c]/0/73".parse().unwrap()
        );
    }

    #[test]
    fn each_wrong_form_is_named_with_the_right_one() {
        let long = format!("shm://{}", "x".repeat(65));
        for (text, what) in [
            ("", "neither"),
            ("tcp://a", "neither"),
            ("shm:a", "neither"),
            ("shm://", "missing"),
            ("shm://a/b", "consists"),
            ("shm://..", "dot"),
            ("shm://a\n", "consists"),
            (long.as_str(), "64"),
            ("rdma://fe80::1/0/73", "brackets"),
            ("rdma://[fe80::1/0/73", "brackets"),
            ("rdma://[fe80::x]/0/73", "hexadecimal"),
            ("rdma://[fe80::1]", "missing"),
            ("rdma://[fe80::1]/0", "missing"),
            ("rdma://[fe80::1]/256/73", "255"),
            ("rdma://[fe80::1]/-1/73", "255"),
            ("rdma://[fe80::1]/0/4294967296", "32 bits"),
            ("rdma://[fe80::1]/0/73/1", "32 bits"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
            assert!(
                error.contains(&format!("'{}'", text.escape_default())),
                "{error}"
            );
            assert!(error.contains("shm://name"), "{error}");
        }
    }
}
