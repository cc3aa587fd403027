//! Why bytes are no descriptor, and why a descriptor cannot be made.

use core::fmt;

use super::Wrong;

/// Why bytes are no descriptor that can be resumed here: always the fault of who made or sent
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorError {
    /// The bytes end before `what` does.
    Truncated {
        /// The header or section that is cut off.
        what: &'static str,
        /// Where it begins, in bytes from the start of the descriptor.
        at: usize,
        /// How many bytes it needs from there.
        need: usize,
    },
    /// The first four bytes are not [`MAGIC`](super::header::MAGIC).
    Magic {
        /// What they are.
        found: u32,
    },
    /// The descriptor is of another version of the format.
    Version {
        /// Its version.
        found: u16,
    },
    /// A length in the header is not what it must be.
    Length {
        /// The section, or the whole.
        what: &'static str,
        /// What the header says, in bytes.
        said: usize,
        /// What there is, or what the record's length is a divisor of, in bytes.
        need: usize,
    },
    /// There are more of these than any descriptor has.
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A field has a value that it does not allow.
    Field {
        /// The name of the field.
        what: &'static str,
        /// Where its record begins, in bytes from the start of the descriptor.
        at: usize,
        /// Its value.
        found: u64,
    },
    /// The bytes are not those that were sent.
    Checksum {
        /// What the header says.
        said: u64,
        /// What the bytes have.
        found: u64,
    },
}

impl DescriptorError {
    pub(super) const fn field(at: usize, wrong: Wrong) -> Self {
        Self::Field {
            what: wrong.what,
            at,
            found: wrong.found,
        }
    }
}

impl fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Truncated { what, at, need } => {
                write!(f, "truncated: {what} at byte {at} needs {need} bytes")
            }
            Self::Magic { found } => write!(f, "magic number {found:#010x} is no descriptor's"),
            Self::Version { found } => {
                write!(f, "descriptor version {found} is not understood here")
            }
            Self::Length { what, said, need } => {
                write!(f, "{what} is {said} bytes long instead of {need}")
            }
            Self::TooMany { what, found, limit } => {
                write!(f, "{found} {what} are more than {limit}")
            }
            Self::Field { what, at, found } => {
                write!(
                    f,
                    "{what} of the record at byte {at} must not be {found:#x}"
                )
            }
            Self::Checksum { said, found } => {
                write!(f, "checksum is {found:#018x} instead of {said:#018x}")
            }
        }
    }
}

impl core::error::Error for DescriptorError {}

/// Why a descriptor cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodeError {
    /// The buffer is too small. Exhaustion: a larger one may do, up to
    /// [`MAX_DESCRIPTOR`](super::MAX_DESCRIPTOR).
    Full {
        /// The section that does not fit.
        what: &'static str,
        /// How many bytes were needed.
        need: usize,
        /// How many were left.
        room: usize,
    },
    /// The process has more of these than a descriptor describes.
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// A value cannot be described. The caller's fault, or the process is one that cannot be
    /// resumed.
    Field {
        /// The name of the field.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// Sections come in the order of docs/descriptor.md, and all of them. The caller's fault.
    Order {
        /// The section that came too late, or did not come.
        what: &'static str,
    },
}

impl From<Wrong> for EncodeError {
    fn from(wrong: Wrong) -> Self {
        Self::Field {
            what: wrong.what,
            found: wrong.found,
        }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Full { what, need, room } => {
                write!(
                    f,
                    "{what} needs {need} bytes, and the buffer has {room} left"
                )
            }
            Self::TooMany { what, limit } => write!(f, "there are more than {limit} {what}"),
            Self::Field { what, found } => write!(f, "{what} must not be {found:#x}"),
            Self::Order { what } => write!(f, "{what} is out of order or missing"),
        }
    }
}

impl core::error::Error for EncodeError {}
