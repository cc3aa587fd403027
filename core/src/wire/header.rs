//! The fixed header that begins every datagram (wire.md §2).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BufferTooSmall, Malformed, MAGIC, VERSION};
use crate::session::{RequestId, SessionId};

/// Length of the header in bytes.
pub const LEN: usize = 40;

/// What a datagram is (wire.md §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Client to server: asks for a session.
    Connect = 1,
    /// Server to client: grants it.
    Accept = 2,
    /// Client to server: completes the handshake.
    Confirm = 3,
    /// Client to server: a call.
    Request = 4,
    /// Server to client: its result.
    Reply = 5,
    /// Server to client: why there is no result, or no session.
    Error = 6,
    /// Client to server: ends the session.
    Disconnect = 7,
    /// Client to server: keeps the session alive.
    Ping = 8,
    /// Server to client: answers a Ping or a Confirm.
    Pong = 9,
    /// Server to client: answers each part of a Request but the last.
    CreditReturn = 10,
    /// Client to server: asks for a part of a Reply.
    Fetch = 11,
}

impl Kind {
    /// The kind with this discriminant, if there is one.
    pub const fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Connect,
            2 => Self::Accept,
            3 => Self::Confirm,
            4 => Self::Request,
            5 => Self::Reply,
            6 => Self::Error,
            7 => Self::Disconnect,
            8 => Self::Ping,
            9 => Self::Pong,
            10 => Self::CreditReturn,
            11 => Self::Fetch,
            _ => return None,
        })
    }
}

/// A header's bytes as words of this machine, as who copies datagrams by words has them.
pub type Words = [u64; LEN / size_of::<u64>()];

/// The header's bytes. Every field is little-endian and none needs alignment.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    magic: U16,
    version: u8,
    kind: u8,
    session_index: U32,
    session_generation: U32,
    server_epoch: U32,
    request_id: U64,
    code: U32,
    message_len_bytes: U32,
    offset_bytes: U32,
    payload_len_bytes: U16,
    slot: U16,
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// A datagram looked at where it lies, for the commonest kinds: reads each field at most once, and
/// checks nothing that is not asked for. Whatever is out of the ordinary is left to
/// [`Datagram::parse`](super::Datagram::parse).
#[derive(Clone, Copy)]
pub(crate) struct Glance<'d> {
    fields: &'d Fields,
    pub(crate) payload: &'d [u8],
}

impl<'d> Glance<'d> {
    /// A whole message of this kind, in one datagram.
    #[inline(always)]
    pub(crate) fn whole(datagram: &'d [u8], kind: Kind) -> Option<Self> {
        let [low, high] = MAGIC.to_le_bytes();
        let start = [low, high, VERSION, kind as u8];
        Self::if_whole(datagram, |_| datagram.first_chunk() == Some(&start))
    }

    /// A whole message whose header begins with these words ([`Header::words`]), which say its kind and its session.
    #[inline(always)]
    pub(crate) fn whole_of(datagram: &'d [u8], start: [u64; 2]) -> Option<Self> {
        Self::if_whole(datagram, |fields| {
            let [kind, session, ..]: Words = zerocopy::transmute!(*fields);
            [kind, session] == start
        })
    }

    #[inline(always)]
    fn if_whole(datagram: &'d [u8], is_it: impl FnOnce(&Fields) -> bool) -> Option<Self> {
        let (fields, payload) = Fields::ref_from_prefix(datagram).ok()?;
        let payload_len = fields.payload_len_bytes.get();
        let whole = is_it(fields)
            && fields.offset_bytes.get() == 0
            && fields.message_len_bytes.get() == u32::from(payload_len)
            && payload.len() == usize::from(payload_len);
        whole.then_some(Self { fields, payload })
    }

    #[inline(always)]
    pub(crate) fn session(&self) -> SessionId {
        SessionId {
            index: self.fields.session_index.get(),
            generation: self.fields.session_generation.get(),
            epoch: self.fields.server_epoch.get(),
        }
    }

    #[inline(always)]
    pub(crate) fn request(&self) -> u64 {
        self.fields.request_id.get()
    }

    #[inline(always)]
    pub(crate) fn code(&self) -> u32 {
        self.fields.code.get()
    }

    #[inline(always)]
    pub(crate) fn slot(&self) -> u16 {
        self.fields.slot.get()
    }

    /// The header of a reply of one datagram to this request: what names the request is taken over as it is.
    #[inline(always)]
    pub(crate) fn reply_words(&self, len: u16) -> Words {
        const KIND: u64 = 0xff << 24;
        const SLOT: u64 = 0xffff << 48;
        let [start, session, request, _, end]: Words = zerocopy::transmute!(*self.fields);
        let kind = (Kind::Reply as u64) << 24;
        [
            (u64::from_le(start) & !KIND | kind).to_le(),
            session,
            request,
            (u64::from(len) << 32).to_le(),
            (u64::from_le(end) & SLOT | u64::from(len) << 32).to_le(),
        ]
    }
}

/// A header whose magic number, version and kind are known to be right. What its other fields may
/// be depends on the kind; [`Datagram::parse`](super::Datagram::parse) checks that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the datagram is.
    pub kind: Kind,
    /// The session that it belongs to; [`SessionId::NONE`] in a Connect.
    pub session: SessionId,
    /// The request that it belongs to, or 0.
    pub request: RequestId,
    /// The rpc id of a Request, the code of an Error, otherwise 0.
    pub code: u32,
    /// Length of the whole message's payload in bytes.
    pub message_len_bytes: u32,
    /// Offset of this datagram's payload in the message, in bytes.
    pub offset_bytes: u32,
    /// Length of this datagram's payload in bytes.
    pub payload_len_bytes: u16,
    /// Which of the session's slots the request is in, or 0.
    pub slot: u16,
}

impl Header {
    /// The header of a datagram that is no part of a message.
    pub const fn of(
        kind: Kind,
        session: SessionId,
        request: RequestId,
        code: u32,
        payload_len_bytes: u16,
    ) -> Self {
        Self {
            kind,
            session,
            request,
            code,
            message_len_bytes: payload_len_bytes as u32,
            offset_bytes: 0,
            payload_len_bytes,
            slot: 0,
        }
    }

    /// Copies the header out of a datagram and returns it with the bytes that follow.
    #[inline]
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        // Magic, version and kind stand first and keep their places in every version (wire.md §3),
        // so that a peer of another version is told so even if its header has another length.
        let Some(&[magic_low, magic_high, version, kind]) = datagram.first_chunk::<4>() else {
            return Err(Malformed::Truncated {
                what: "header",
                at: 0,
                need: LEN,
            });
        };
        let magic = u16::from_le_bytes([magic_low, magic_high]);
        if magic != MAGIC {
            return Err(Malformed::Magic { found: magic });
        }
        if version != VERSION {
            return Err(Malformed::Version {
                found: version,
                kind,
            });
        }
        let Ok((fields, payload)) = Fields::read_from_prefix(datagram) else {
            return Err(Malformed::Truncated {
                what: "header",
                at: 0,
                need: LEN,
            });
        };
        let Some(kind) = Kind::from_u8(kind) else {
            return Err(Malformed::Kind { found: kind });
        };
        let header = Self {
            kind,
            session: SessionId {
                index: fields.session_index.get(),
                generation: fields.session_generation.get(),
                epoch: fields.server_epoch.get(),
            },
            request: RequestId(fields.request_id.get()),
            code: fields.code.get(),
            message_len_bytes: fields.message_len_bytes.get(),
            offset_bytes: fields.offset_bytes.get(),
            payload_len_bytes: fields.payload_len_bytes.get(),
            slot: fields.slot.get(),
        };
        Ok((header, payload))
    }

    /// The session that a datagram names, if it is one of this protocol at all: nothing is checked.
    #[inline]
    pub fn session_hint(datagram: &[u8]) -> Option<SessionId> {
        let &[_, _, _, _, i0, i1, i2, i3, g0, g1, g2, g3, e0, e1, e2, e3] =
            datagram.first_chunk::<16>()?;
        Some(SessionId {
            index: u32::from_le_bytes([i0, i1, i2, i3]),
            generation: u32::from_le_bytes([g0, g1, g2, g3]),
            epoch: u32::from_le_bytes([e0, e1, e2, e3]),
        })
    }

    /// Writes the header to the start of `datagram` and leaves the rest as it is.
    #[inline]
    pub fn emit(&self, datagram: &mut [u8]) -> Result<(), BufferTooSmall> {
        let have = datagram.len();
        let Some(bytes) = datagram.first_chunk_mut::<LEN>() else {
            return Err(BufferTooSmall { need: LEN, have });
        };
        *bytes = self.bytes();
        Ok(())
    }

    /// The header's bytes as words of this machine.
    ///
    /// Not as bytes, though the fields are shorter than words: who sends the header at once reads it by words, and a processor
    /// hands on what lies in its store buffer only to a load that one store covers.
    #[inline(always)]
    pub fn words(&self) -> Words {
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let [magic_low, magic_high] = MAGIC.to_le_bytes();
        let start = u32::from_le_bytes([magic_low, magic_high, VERSION, self.kind as u8]);
        let end = u32::from(self.slot) << 16 | u32::from(self.payload_len_bytes);
        [
            pair(start, self.session.index).to_le(),
            pair(self.session.generation, self.session.epoch).to_le(),
            self.request.0.to_le(),
            pair(self.code, self.message_len_bytes).to_le(),
            pair(self.offset_bytes, end).to_le(),
        ]
    }

    /// The header's bytes.
    #[inline(always)]
    pub fn bytes(&self) -> [u8; LEN] {
        let mut header = [0; LEN];
        for (bytes, word) in header.chunks_exact_mut(size_of::<u64>()).zip(self.words()) {
            if let Some(bytes) = bytes.first_chunk_mut() {
                *bytes = word.to_ne_bytes();
            }
        }
        header
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_field_has_its_specified_place() {
        let header = Header {
            kind: Kind::Request,
            session: SessionId {
                index: 0x0403_0201,
                generation: 0x1413_1211,
                epoch: 0x2423_2221,
            },
            request: RequestId(0x3837_3635_3433_3231),
            code: 0x4443_4241,
            message_len_bytes: 0x5453_5251,
            offset_bytes: 0x6463_6261,
            payload_len_bytes: 0x7271,
            slot: 0x8281,
        };
        let mut bytes = [0; LEN];
        header.emit(&mut bytes).unwrap();
        #[rustfmt::skip]
        let golden = [
            b'M', b'T', 1, 4,
            0x01, 0x02, 0x03, 0x04,
            0x11, 0x12, 0x13, 0x14,
            0x21, 0x22, 0x23, 0x24,
            0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38,
            0x41, 0x42, 0x43, 0x44,
            0x51, 0x52, 0x53, 0x54,
            0x61, 0x62, 0x63, 0x64,
            0x71, 0x72,
            0x81, 0x82,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(Header::parse(&bytes), Ok((header, &[][..])));
        assert_eq!(Header::session_hint(&bytes), Some(header.session));
        assert_eq!(Header::session_hint(&bytes[..15]), None);
    }

    #[test]
    fn another_version_is_seen_in_the_first_four_bytes() {
        assert_eq!(
            Header::parse(&[b'M', b'T', 2, 1]),
            Err(Malformed::Version { found: 2, kind: 1 })
        );
    }

    #[test]
    fn every_truncation_is_reported() {
        let mut bytes = [0; LEN];
        Header::of(Kind::Ping, SessionId::NONE, RequestId(0), 0, 0)
            .emit(&mut bytes)
            .unwrap();
        for len in 0..LEN {
            assert_eq!(
                Header::parse(&bytes[..len]),
                Err(Malformed::Truncated {
                    what: "header",
                    at: 0,
                    need: LEN
                })
            );
            let mut short = [0xaa; LEN];
            assert_eq!(
                Header::of(Kind::Ping, SessionId::NONE, RequestId(0), 0, 0).emit(&mut short[..len]),
                Err(BufferTooSmall {
                    need: LEN,
                    have: len
                })
            );
        }
    }

    #[test]
    fn kinds_are_their_discriminants() {
        for number in 0..=u8::MAX {
            assert_eq!(
                Kind::from_u8(number).map(|kind| kind as u8),
                (1..=11).contains(&number).then_some(number)
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_emits_the_same_bytes(mut bytes: [u8; LEN], kind in 1u8..=11) {
            bytes[..4].copy_from_slice(&[b'M', b'T', VERSION, kind]);
            let (header, _) = Header::parse(&bytes).unwrap();
            let mut again = [0; LEN];
            header.emit(&mut again).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }
}
