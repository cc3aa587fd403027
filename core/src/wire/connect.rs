//! The Connect message, by which a client asks for a session (wire.md §5.1).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BufferTooSmall, Malformed, Tag, HEADER_LEN, MAX_DATAGRAM, MIN_DATAGRAM};

/// Length of a Connect's payload in bytes.
pub const LEN: usize = 48;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    client_key: U64,
    client_nonce: U64,
    tag: Tag,
    datagram_len_bytes: U16,
    slots: U16,
    credits: U16,
    keyed: U16,
    max_message_len_bytes: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<Fields>() == LEN);

// The answer to a stranger is no longer than its question (wire.md §6.2).
const _: () = assert!(super::accept::LEN <= LEN);

/// The payload of a Connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Drawn at random by the client; the same in all its sessions.
    pub client_key: u64,
    /// Another in each handshake of the client; the same in every retransmission, so that all of
    /// them find one session.
    pub client_nonce: u64,
    /// The longest datagram that the client takes, header included, in bytes.
    pub datagram_len: u16,
    /// How many requests the client would like to have outstanding at once.
    pub slots: u16,
    /// How many datagrams it would like to have unanswered at once.
    pub credits: u16,
    /// The longest request and reply that it has room for, in bytes.
    pub max_message_len: u32,
    /// Proves that the client knows the cluster key; `None` without one.
    pub tag: Option<Tag>,
}

impl Connect {
    /// Reads the payload of a Connect.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::read_from_bytes(payload).map_err(|_| Malformed::Truncated {
            what: "connect",
            at: HEADER_LEN,
            need: LEN,
        })?;
        let connect = Self {
            client_key: fields.client_key.get(),
            client_nonce: fields.client_nonce.get(),
            datagram_len: fields.datagram_len_bytes.get(),
            slots: fields.slots.get(),
            credits: fields.credits.get(),
            max_message_len: fields.max_message_len_bytes.get(),
            tag: keyed(fields.keyed.get(), fields.tag)?,
        };
        check_datagram_len(connect.datagram_len)?;
        check_not_zero("slots", u64::from(connect.slots))?;
        check_not_zero("credits", u64::from(connect.credits))?;
        if fields.reserved.get() != 0 {
            return Err(Malformed::Field {
                what: "reserved",
                found: u64::from(fields.reserved.get()),
            });
        }
        Ok(connect)
    }

    /// Writes the payload to the start of `payload`.
    pub fn emit(&self, payload: &mut [u8]) -> Result<(), BufferTooSmall> {
        let have = payload.len();
        Fields {
            client_key: U64::new(self.client_key),
            client_nonce: U64::new(self.client_nonce),
            tag: self.tag.unwrap_or_default(),
            datagram_len_bytes: U16::new(self.datagram_len),
            slots: U16::new(self.slots),
            credits: U16::new(self.credits),
            keyed: U16::new(u16::from(self.tag.is_some())),
            max_message_len_bytes: U32::new(self.max_message_len),
            reserved: U32::new(0),
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

/// A field without which there is no session.
pub(super) fn check_not_zero(what: &'static str, found: u64) -> Result<(), Malformed> {
    if found == 0 {
        return Err(Malformed::Field { what, found });
    }
    Ok(())
}

/// The tag of a keyed handshake; that of another is 0.
pub(super) fn keyed(keyed: u16, tag: Tag) -> Result<Option<Tag>, Malformed> {
    match keyed {
        0 if tag == [0; 16] => Ok(None),
        0 => Err(Malformed::Field {
            what: "tag",
            found: tag.iter().fold(0, |any, byte| any | u64::from(*byte)),
        }),
        1 => Ok(Some(tag)),
        _ => Err(Malformed::Field {
            what: "keyed",
            found: u64::from(keyed),
        }),
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;

    const CONNECT: Connect = Connect {
        client_key: 0x0807_0605_0403_0201,
        client_nonce: 0x1817_1615_1413_1211,
        datagram_len: 4096,
        slots: 8,
        credits: 32,
        max_message_len: 0x0080_0000,
        tag: Some([0xcc; 16]),
    };

    fn bytes() -> [u8; LEN] {
        let mut bytes = [0xaa; LEN];
        CONNECT.emit(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn golden_bytes() {
        #[rustfmt::skip]
        let golden = [
            1, 2, 3, 4, 5, 6, 7, 8,
            0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
            0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
            0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
            0, 0x10, 8, 0, 32, 0, 1, 0,
            0, 0, 0x80, 0, 0, 0, 0, 0,
        ];
        assert_eq!(bytes(), golden);
        assert_eq!(Connect::parse(&golden), Ok(CONNECT));
    }

    #[test]
    fn a_length_that_no_path_has_is_refused() {
        for datagram_len in [0, 255, 4097, u16::MAX] {
            let mut bytes = bytes();
            bytes[32..34].copy_from_slice(&datagram_len.to_le_bytes());
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
    fn fields_without_meaning_are_zero_and_wishes_are_not() {
        for (what, at, value) in [
            ("slots", 34, 0),
            ("credits", 36, 0),
            ("keyed", 38, 2),
            ("tag", 38, 0),
            ("reserved", 44, 1),
            ("reserved", 47, 1),
        ] {
            let mut bytes = bytes();
            bytes[at] = value;
            match Connect::parse(&bytes) {
                Err(Malformed::Field { what: found, .. }) => assert_eq!(found, what),
                parsed => panic!("{what}: {parsed:?}"),
            }
        }
    }
}
