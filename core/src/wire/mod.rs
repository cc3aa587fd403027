//! The bytes of a datagram, as `docs/wire.md` specifies them.
//!
//! [`Datagram::parse`] checks everything that can be known from the bytes alone and copies the
//! fixed parts out of the receive buffer; nothing above this module reads bytes. [`Datagram::emit`]
//! is its inverse: whatever parses, emits to the identical bytes.
//!
//! One file a message that has fields of its own: [`header`], [`connect`], [`accept`],
//! [`confirm`], [`error`].
//! The messages that are a header alone (Disconnect, Ping, Pong, CreditReturn, Fetch) or a header and
//! opaque payload (Request, Reply) are in [`datagram`]. [`resolution`] is what is said before there are
//! datagrams.

pub mod accept;
pub mod confirm;
pub mod connect;
pub mod datagram;
pub mod error;
pub mod fork;
pub mod header;
mod malformed;
pub mod resolution;

pub use accept::Accept;
pub use confirm::Confirm;
pub use connect::Connect;
pub(crate) use datagram::part_len;
pub use datagram::{Datagram, Message, Part};
pub use error::{ErrorCode, Reason, Refusal};
pub(crate) use header::Glance;
pub use header::{Header, Kind, Words};
pub use malformed::Malformed;

/// Length of the fixed header in bytes (wire.md §2).
pub const HEADER_LEN: usize = header::LEN;

/// Longest datagram in bytes, header included: the largest path MTU that InfiniBand and RoCE
/// define.
pub const MAX_DATAGRAM: usize = 4096;

/// Shortest `datagram_len` that an endpoint may offer, in bytes: the smallest path MTU that
/// InfiniBand defines.
pub const MIN_DATAGRAM: usize = 256;

/// Longest message in bytes: the largest that the project's descriptors and its stress test send
/// (wire.md §9).
pub const MAX_MESSAGE: u32 = 8 << 20;

/// The most parts of a Reply that one Fetch asks for: enough that asking costs little beside what comes,
/// and few enough that nobody else waits long for a server that sends them (wire.md §8.3).
pub const MAX_FETCH: u32 = 16;

/// Longest datagram that is no part of a message, in bytes: a Connect or an Accept.
pub const MAX_CONTROL_LEN: usize = HEADER_LEN + connect::LEN;

/// A message authentication code (wire.md §7.5).
pub type Tag = [u8; 16];

/// The nearest length that an endpoint may offer.
pub(crate) const fn offered_datagram_len(datagram_len: u16) -> u16 {
    if (datagram_len as usize) < MIN_DATAGRAM {
        MIN_DATAGRAM as u16
    } else if datagram_len as usize > MAX_DATAGRAM {
        MAX_DATAGRAM as u16
    } else {
        datagram_len
    }
}

/// First two bytes of every datagram, little-endian: 'MT'.
pub const MAGIC: u16 = 0x544d;

/// Version of the format, the third byte of every datagram (wire.md §3).
pub const VERSION: u8 = 1;

/// The buffer that was given for a datagram cannot hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferTooSmall {
    /// Length of the datagram in bytes.
    pub need: usize,
    /// Length of the buffer in bytes.
    pub have: usize,
}

impl core::fmt::Display for BufferTooSmall {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "a datagram of {} bytes does not fit a buffer of {}",
            self.need, self.have
        )
    }
}

impl core::error::Error for BufferTooSmall {}
