//! Why bytes are not a datagram of this protocol.

use core::fmt;

/// Why bytes are not a datagram of this protocol: always the sender's fault, never a reason to
/// stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The datagram ends before `what` does.
    Truncated {
        /// The field or message that is cut off.
        what: &'static str,
        /// Where it begins, in bytes from the start of the datagram.
        at: usize,
        /// How many bytes it needs from there.
        need: usize,
    },
    /// The first two bytes are not [`MAGIC`](super::MAGIC).
    Magic {
        /// What they are.
        found: u16,
    },
    /// The datagram is of another version of the format (wire.md §3).
    Version {
        /// Its version.
        found: u8,
        /// Its kind as a number, which every version has in the same place.
        kind: u8,
    },
    /// No message has this kind (wire.md §4).
    Kind {
        /// The unknown discriminant.
        found: u8,
    },
    /// No error has this code (wire.md §6).
    ErrorCode {
        /// The unknown discriminant.
        found: u32,
    },
    /// A field has a value that its message does not allow.
    Field {
        /// The name of the field.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// `payload_len` differs from the bytes that follow the header.
    PayloadLen {
        /// What the header says, in bytes.
        header: usize,
        /// What there is, in bytes.
        actual: usize,
    },
    /// A message longer than [`MAX_MESSAGE`](super::MAX_MESSAGE).
    TooLong {
        /// Its length in bytes.
        message_len: u32,
    },
    /// A part that does not lie in its message, or that no message has (wire.md §2.2).
    Part {
        /// Length of the whole message in bytes.
        message_len: u32,
        /// Offset of this part in the message, in bytes.
        offset: u32,
        /// Length of this part in bytes.
        payload_len: u16,
    },
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { what, at, need } => {
                write!(f, "truncated: {what} at byte {at} needs {need} bytes")
            }
            Self::Magic { found } => write!(f, "magic number {found:#06x} is not of this protocol"),
            Self::Version { found, kind } => {
                write!(f, "version {found} (kind {kind}) is not spoken here")
            }
            Self::Kind { found } => write!(f, "no message has kind {found}"),
            Self::ErrorCode { found } => write!(f, "no error has code {found}"),
            Self::Field { what, found } => write!(f, "{what} must not be {found:#x}"),
            Self::PayloadLen { header, actual } => {
                write!(
                    f,
                    "payload_len is {header} but {actual} bytes follow the header"
                )
            }
            Self::TooLong { message_len } => {
                write!(f, "no message is {message_len} bytes long")
            }
            Self::Part {
                message_len,
                offset,
                payload_len,
            } => write!(
                f,
                "{payload_len} bytes at {offset} are no part of a message of {message_len} bytes"
            ),
        }
    }
}

impl core::error::Error for Malformed {}
