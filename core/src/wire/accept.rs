//! The Accept message, by which a server grants a session (wire.md §5.2).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::connect::check_datagram_len;
use super::{BufferTooSmall, Malformed, HEADER_LEN};

/// Length of an Accept's payload in bytes.
pub const LEN: usize = 16;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    client_key: U64,
    datagram_len_bytes: U16,
    slots: U16,
    idle_timeout_ms: U32,
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// The payload of an Accept. The session's identity is in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The key of the Connect that is answered.
    pub client_key: u64,
    /// The longest datagram of the session, header included, in bytes: the lesser of what the two
    /// ends take.
    pub datagram_len: u16,
    /// How many requests may be outstanding at once; 1 in version 1.
    pub slots: u16,
    /// How long the server keeps a session of which it hears nothing.
    pub idle_timeout_ms: u32,
}

impl Accept {
    /// Reads the payload of an Accept.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::read_from_bytes(payload).map_err(|_| Malformed::Truncated {
            what: "accept",
            at: HEADER_LEN,
            need: LEN,
        })?;
        let accept = Self {
            client_key: fields.client_key.get(),
            datagram_len: fields.datagram_len_bytes.get(),
            slots: fields.slots.get(),
            idle_timeout_ms: fields.idle_timeout_ms.get(),
        };
        check_datagram_len(accept.datagram_len)?;
        if accept.slots == 0 {
            return Err(Malformed::Field {
                what: "slots",
                found: 0,
            });
        }
        if accept.idle_timeout_ms == 0 {
            return Err(Malformed::Field {
                what: "idle_timeout_ms",
                found: 0,
            });
        }
        Ok(accept)
    }

    /// Writes the payload to the start of `payload`.
    pub fn emit(&self, payload: &mut [u8]) -> Result<(), BufferTooSmall> {
        let have = payload.len();
        Fields {
            client_key: U64::new(self.client_key),
            datagram_len_bytes: U16::new(self.datagram_len),
            slots: U16::new(self.slots),
            idle_timeout_ms: U32::new(self.idle_timeout_ms),
        }
        .write_to_prefix(payload)
        .map_err(|_| BufferTooSmall { need: LEN, have })
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;

    const ACCEPT: Accept = Accept {
        client_key: 0x0807_0605_0403_0201,
        datagram_len: 1024,
        slots: 1,
        idle_timeout_ms: 0x0403_0201,
    };

    #[test]
    fn golden_bytes() {
        let mut bytes = [0xaa; LEN];
        ACCEPT.emit(&mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 0, 4, 1, 0, 1, 2, 3, 4]);
        assert_eq!(Accept::parse(&bytes), Ok(ACCEPT));
    }

    #[test]
    fn a_session_without_slots_time_or_room_is_refused() {
        for (what, accept) in [
            ("slots", Accept { slots: 0, ..ACCEPT }),
            (
                "idle_timeout_ms",
                Accept {
                    idle_timeout_ms: 0,
                    ..ACCEPT
                },
            ),
            (
                "datagram_len",
                Accept {
                    datagram_len: 0,
                    ..ACCEPT
                },
            ),
        ] {
            let mut bytes = [0; LEN];
            accept.emit(&mut bytes).unwrap();
            assert_eq!(
                Accept::parse(&bytes),
                Err(Malformed::Field { what, found: 0 })
            );
        }
    }
}
