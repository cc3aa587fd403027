//! The Accept message, by which a server grants a session (wire.md §5.2).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::connect::{check_datagram_len, check_not_zero, keyed};
use super::{BufferTooSmall, Malformed, Tag, HEADER_LEN};

/// Length of an Accept's payload in bytes.
pub const LEN: usize = 48;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    client_nonce: U64,
    server_nonce: U64,
    tag: Tag,
    datagram_len_bytes: U16,
    slots: U16,
    credits: U16,
    keyed: U16,
    max_message_len_bytes: U32,
    idle_timeout_ms: U32,
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// The payload of an Accept. The session's identity is in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The nonce of the Connect that is answered.
    pub client_nonce: u64,
    /// What the Confirm's tag is made with; 0 without a cluster key.
    pub server_nonce: u64,
    /// The longest datagram of the session, header included, in bytes: the lesser of what the two
    /// ends take.
    pub datagram_len: u16,
    /// How many requests may be outstanding at once.
    pub slots: u16,
    /// How many datagrams the client may have unanswered at once.
    pub credits: u16,
    /// The longest request and reply, in bytes.
    pub max_message_len: u32,
    /// How long the server keeps a session of which it hears nothing.
    pub idle_timeout_ms: u32,
    /// Proves that the server knows the cluster key; `None` without one.
    pub tag: Option<Tag>,
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
            client_nonce: fields.client_nonce.get(),
            server_nonce: fields.server_nonce.get(),
            datagram_len: fields.datagram_len_bytes.get(),
            slots: fields.slots.get(),
            credits: fields.credits.get(),
            max_message_len: fields.max_message_len_bytes.get(),
            idle_timeout_ms: fields.idle_timeout_ms.get(),
            tag: keyed(fields.keyed.get(), fields.tag)?,
        };
        check_datagram_len(accept.datagram_len)?;
        check_not_zero("slots", u64::from(accept.slots))?;
        check_not_zero("credits", u64::from(accept.credits))?;
        check_not_zero("idle_timeout_ms", u64::from(accept.idle_timeout_ms))?;
        if accept.tag.is_none() && accept.server_nonce != 0 {
            return Err(Malformed::Field {
                what: "server_nonce",
                found: accept.server_nonce,
            });
        }
        Ok(accept)
    }

    /// Writes the payload to the start of `payload`.
    pub fn emit(&self, payload: &mut [u8]) -> Result<(), BufferTooSmall> {
        let have = payload.len();
        Fields {
            client_nonce: U64::new(self.client_nonce),
            server_nonce: U64::new(self.server_nonce),
            tag: self.tag.unwrap_or_default(),
            datagram_len_bytes: U16::new(self.datagram_len),
            slots: U16::new(self.slots),
            credits: U16::new(self.credits),
            keyed: U16::new(u16::from(self.tag.is_some())),
            max_message_len_bytes: U32::new(self.max_message_len),
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
        client_nonce: 0x0807_0605_0403_0201,
        server_nonce: 0x1817_1615_1413_1211,
        datagram_len: 1024,
        slots: 8,
        credits: 32,
        max_message_len: 0x0080_0000,
        idle_timeout_ms: 0x0403_0201,
        tag: Some([0xee; 16]),
    };

    #[test]
    fn golden_bytes() {
        let mut bytes = [0xaa; LEN];
        ACCEPT.emit(&mut bytes).unwrap();
        #[rustfmt::skip]
        let golden = [
            1, 2, 3, 4, 5, 6, 7, 8,
            0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
            0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee,
            0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0xee,
            0, 4, 8, 0, 32, 0, 1, 0,
            0, 0, 0x80, 0, 1, 2, 3, 4,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(Accept::parse(&bytes), Ok(ACCEPT));
    }

    #[test]
    fn a_session_without_slots_credits_time_or_room_is_refused() {
        for (what, at, len) in [
            ("datagram_len", 32, 2),
            ("slots", 34, 2),
            ("credits", 36, 2),
            ("idle_timeout_ms", 44, 4),
        ] {
            let mut bytes = [0; LEN];
            ACCEPT.emit(&mut bytes).unwrap();
            bytes[at..at + len].fill(0);
            let refused = Err(Malformed::Field { what, found: 0 });
            assert_eq!(Accept::parse(&bytes), refused);
        }
    }

    #[test]
    fn what_belongs_to_a_key_comes_with_one_alone() {
        let mut bytes = [0; LEN];
        ACCEPT.emit(&mut bytes).unwrap();
        bytes[38] = 0;
        assert!(matches!(
            Accept::parse(&bytes),
            Err(Malformed::Field { what: "tag", .. })
        ));
        bytes[16..32].fill(0);
        assert!(matches!(
            Accept::parse(&bytes),
            Err(Malformed::Field {
                what: "server_nonce",
                ..
            })
        ));
        bytes[8..16].fill(0);
        assert_eq!(Accept::parse(&bytes).unwrap().tag, None);
        bytes[38] = 2;
        assert!(matches!(
            Accept::parse(&bytes),
            Err(Malformed::Field { what: "keyed", .. })
        ));
    }
}
