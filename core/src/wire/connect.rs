//! The Connect message, by which a client asks for a session (wire.md §5.1).

use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BufferTooSmall, Malformed, HEADER_LEN, MAX_DATAGRAM, MIN_DATAGRAM};

/// Length of a Connect's payload in bytes.
pub const LEN: usize = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    client_key: U64,
    datagram_len_bytes: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// The payload of a Connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Drawn at random by the client; the same in every retransmission, so that all of them find
    /// one session.
    pub client_key: u64,
    /// The longest datagram that the client takes, header included, in bytes.
    pub datagram_len: u16,
}

impl Connect {
    /// Reads the payload of a Connect.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::read_from_bytes(payload).map_err(|_| Malformed::Truncated {
            what: "connect",
            at: HEADER_LEN,
            need: LEN,
        })?;
        let datagram_len = fields.datagram_len_bytes.get();
        check_datagram_len(datagram_len)?;
        if fields.reserved != [0; 6] {
            let [a, b, c, d, e, f] = fields.reserved;
            return Err(Malformed::Field {
                what: "reserved",
                found: u64::from_le_bytes([a, b, c, d, e, f, 0, 0]),
            });
        }
        Ok(Self {
            client_key: fields.client_key.get(),
            datagram_len,
        })
    }

    /// Writes the payload to the start of `payload`.
    pub fn emit(&self, payload: &mut [u8]) -> Result<(), BufferTooSmall> {
        let have = payload.len();
        Fields {
            client_key: U64::new(self.client_key),
            datagram_len_bytes: U16::new(self.datagram_len),
            reserved: [0; 6],
        }
        .write_to_prefix(payload)
        .map_err(|_| BufferTooSmall { need: LEN, have })
    }
}

/// A datagram length that an endpoint may name: `MIN_DATAGRAM..=MAX_DATAGRAM`.
pub(super) fn check_datagram_len(datagram_len: u16) -> Result<(), Malformed> {
    if (MIN_DATAGRAM..=MAX_DATAGRAM).contains(&usize::from(datagram_len)) {
        Ok(())
    } else {
        Err(Malformed::Field {
            what: "datagram_len",
            found: u64::from(datagram_len),
        })
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let connect = Connect {
            client_key: 0x0807_0605_0403_0201,
            datagram_len: 4096,
        };
        let mut bytes = [0xaa; LEN];
        connect.emit(&mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Connect::parse(&bytes), Ok(connect));
    }

    #[test]
    fn a_length_that_no_path_has_is_refused() {
        for datagram_len in [0, 255, 4097, u16::MAX] {
            let mut bytes = [0; LEN];
            Connect {
                client_key: 1,
                datagram_len,
            }
            .emit(&mut bytes)
            .unwrap();
            assert_eq!(
                Connect::parse(&bytes),
                Err(Malformed::Field {
                    what: "datagram_len",
                    found: u64::from(datagram_len)
                })
            );
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for place in 10..LEN {
            let mut bytes = [0; LEN];
            Connect {
                client_key: 1,
                datagram_len: 1024,
            }
            .emit(&mut bytes)
            .unwrap();
            bytes[place] = 1;
            assert!(matches!(
                Connect::parse(&bytes),
                Err(Malformed::Field {
                    what: "reserved",
                    ..
                })
            ));
        }
    }
}
