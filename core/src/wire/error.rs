//! The Error message and the table of its codes (wire.md §6).

use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BufferTooSmall, Malformed, HEADER_LEN};

/// Makes the codes, their parser and their texts from one table.
macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why there is no result, or no session (wire.md §6).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl ErrorCode {
            /// Every code, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The code with this number, if there is one.
            pub const fn from_u32(number: u32) -> Option<Self> {
                Some(match number {
                    $($number => Self::$name,)+
                    _ => return None,
                })
            }

            /// What it means, for people.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

error_codes! {
    /// No handler is registered for the rpc id. The caller's fault.
    NoSuchRpc = 1, "no such rpc id";
    /// The server does not know the session: it expired, was closed, belongs to another address, or
    /// the server was restarted. The client connects again.
    NoSuchSession = 2, "no such session";
    /// The message is longer than the session carries. The sender's fault.
    TooLarge = 3, "message too large";
    /// The server's table of sessions is full. Exhaustion; a later attempt may succeed.
    Busy = 4, "session table full";
    /// The handler ran and failed.
    HandlerFailed = 5, "handler failed";
    /// The server does not speak the version of the Connect. The client's fault.
    BadVersion = 6, "version not spoken";
    /// Reserved: the peer did not prove that it belongs to the cluster. Not sent in version 1.
    NotAuthorised = 7, "not authorised";
    /// The server is shutting down and takes no new work.
    GoingAway = 8, "server is going away";
    /// The datagram named a session or asked for one, but was malformed. The client's fault.
    BadRequest = 9, "malformed request";
}

impl core::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

impl core::error::Error for ErrorCode {}

/// Length of an Error's payload in bytes.
pub const LEN: usize = 8;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    client_key: U64,
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// An Error: the code, which travels in the header, and the payload (wire.md §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: ErrorCode,
    /// The key of the Connect that is refused; 0 in every other Error, and if the Connect could not
    /// be read.
    pub client_key: u64,
}

impl Refusal {
    /// Reads the payload of an Error whose header has `code`.
    pub fn parse(code: u32, payload: &[u8]) -> Result<Self, Malformed> {
        let code = ErrorCode::from_u32(code).ok_or(Malformed::ErrorCode { found: code })?;
        let fields = Fields::read_from_bytes(payload).map_err(|_| Malformed::Truncated {
            what: "error",
            at: HEADER_LEN,
            need: LEN,
        })?;
        Ok(Self {
            code,
            client_key: fields.client_key.get(),
        })
    }

    /// Writes the payload to the start of `payload`.
    pub fn emit(&self, payload: &mut [u8]) -> Result<(), BufferTooSmall> {
        let have = payload.len();
        Fields {
            client_key: U64::new(self.client_key),
        }
        .write_to_prefix(payload)
        .map_err(|_| BufferTooSmall { need: LEN, have })
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn codes_are_their_numbers_and_have_distinct_texts() {
        for number in 0..100 {
            assert_eq!(
                ErrorCode::from_u32(number).map(|code| code as u32),
                (1..=9).contains(&number).then_some(number)
            );
        }
        for (place, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(*code as usize, place + 1);
            assert_eq!(code.to_string(), code.text());
            assert!(ErrorCode::ALL[..place]
                .iter()
                .all(|other| other.text() != code.text()));
        }
    }

    #[test]
    fn an_unknown_code_is_malformed() {
        assert_eq!(
            Refusal::parse(10, &[0; LEN]),
            Err(Malformed::ErrorCode { found: 10 })
        );
        assert_eq!(
            Refusal::parse(0, &[0; LEN]),
            Err(Malformed::ErrorCode { found: 0 })
        );
    }
}
