//! The Error message and the table of its codes (wire.md §6).

use zerocopy::byteorder::little_endian::{U32, U64};
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
    /// The server has no room for the session or the request. Exhaustion; a later attempt may
    /// succeed.
    Busy = 4, "server is busy";
    /// The handler ran and failed.
    HandlerFailed = 5, "handler failed";
    /// The server does not speak the version of the Connect. The client's fault.
    BadVersion = 6, "version not spoken";
    /// The peer did not prove that it belongs to the cluster; [`Reason`] says how. The client's
    /// fault.
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

/// Why a peer is not authorised (wire.md §7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// The server has a cluster key and the client has none.
    KeyRequired = 1,
    /// The client has another cluster key.
    WrongKey = 2,
    /// The client has a cluster key and the server has none.
    NoKeyHere = 3,
    /// The Confirm does not belong to the Accept: the handshake repeats one that was overheard.
    Replayed = 4,
}

impl Reason {
    /// The reason with this number, if there is one.
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::KeyRequired,
            2 => Self::WrongKey,
            3 => Self::NoKeyHere,
            4 => Self::Replayed,
            _ => return None,
        })
    }

    /// What it means, for people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::KeyRequired => "the server requires a cluster key",
            Self::WrongKey => "the cluster key is another",
            Self::NoKeyHere => "the server has no cluster key",
            Self::Replayed => "the handshake is a replay",
        }
    }
}

/// Length of an Error's payload in bytes.
pub const LEN: usize = 12;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    client_nonce: U64,
    reason: U32,
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// An Error: the code, which travels in the header, and the payload (wire.md §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: ErrorCode,
    /// Why [`ErrorCode::NotAuthorised`]; nothing else has a reason.
    pub reason: Option<Reason>,
    /// The nonce of the Connect that is refused; 0 in every other Error, and if the Connect could
    /// not be read.
    pub client_nonce: u64,
}

impl Refusal {
    /// A refusal that needs no reason and refuses no Connect.
    pub const fn new(code: ErrorCode) -> Self {
        Self {
            code,
            reason: None,
            client_nonce: 0,
        }
    }

    /// Reads the payload of an Error whose header has `code`.
    pub fn parse(code: u32, payload: &[u8]) -> Result<Self, Malformed> {
        let code = ErrorCode::from_u32(code).ok_or(Malformed::ErrorCode { found: code })?;
        let fields = Fields::read_from_bytes(payload).map_err(|_| Malformed::Truncated {
            what: "error",
            at: HEADER_LEN,
            need: LEN,
        })?;
        let number = fields.reason.get();
        let reason = Reason::from_u32(number);
        let fits = match code {
            ErrorCode::NotAuthorised => reason.is_some(),
            _ => number == 0,
        };
        if !fits {
            return Err(Malformed::Field {
                what: "reason",
                found: u64::from(number),
            });
        }
        Ok(Self {
            code,
            reason,
            client_nonce: fields.client_nonce.get(),
        })
    }

    /// Writes the payload to the start of `payload`.
    pub fn emit(&self, payload: &mut [u8]) -> Result<(), BufferTooSmall> {
        let have = payload.len();
        Fields {
            client_nonce: U64::new(self.client_nonce),
            reason: U32::new(self.reason.map_or(0, |reason| reason as u32)),
        }
        .write_to_prefix(payload)
        .map_err(|_| BufferTooSmall { need: LEN, have })
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.code.text())?;
        match self.reason {
            Some(reason) => write!(f, ": {}", reason.text()),
            None => Ok(()),
        }
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

    #[test]
    fn a_reason_comes_with_not_authorised_alone() {
        for number in 0..6 {
            let mut bytes = [0; LEN];
            bytes[8] = number;
            let reason = Reason::from_u32(u32::from(number));
            assert_eq!(reason.is_some(), (1..=4).contains(&number));
            let parsed = Refusal::parse(ErrorCode::NotAuthorised as u32, &bytes);
            assert_eq!(parsed.is_ok(), reason.is_some());
            let parsed = Refusal::parse(ErrorCode::Busy as u32, &bytes);
            assert_eq!(parsed.is_ok(), number == 0);
        }
    }
}
