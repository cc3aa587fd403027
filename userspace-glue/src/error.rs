//! What can go wrong with servers and calls.

use std::fmt;
use std::time::Duration;

use mitosis_core::wire::{ErrorCode, Refusal};

use crate::address::{Address, AddressError};
use crate::fabric::FabricError;

/// Why there is no server, no session or no reply. The text says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The text is no address: the caller's misuse.
    Address(AddressError),
    /// What carries the datagrams cannot be opened, or has come to its end.
    Fabric(FabricError),
    /// The server does not grant a session.
    Refused {
        /// Which server.
        address: Address,
        /// Why.
        refusal: Refusal,
    },
    /// The server did not answer the handshake.
    NoAnswer {
        /// Which server.
        address: Address,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server's process has died or closed, or has forgotten the session. Calls that were outstanding may have been
    /// executed.
    ServerGone {
        /// Which server.
        address: Address,
    },
    /// The call was executed, or refused, with this error. The session is as before.
    Failed(ErrorCode),
    /// The call was not answered in time. It may have been executed.
    TimedOut,
    /// The request is longer than the session carries: the caller's misuse.
    TooLong {
        /// Length of the request in bytes.
        len: usize,
        /// The longest that is carried.
        limit: usize,
    },
    /// As many calls are outstanding as the session has slots: the caller waits for one of them first.
    WindowFull {
        /// How many that is.
        window: u16,
    },
    /// The client's thread has ended, and with it the call.
    Closed,
    /// The server's thread panicked, which a handler made it do.
    Panicked,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(error) => error.fmt(f),
            Self::Fabric(error) => error.fmt(f),
            Self::Refused { address, refusal } => {
                write!(f, "the server {address} refuses a session: {}", refusal.code)?;
                if let Some(reason) = refusal.reason {
                    write!(f, " ({})", reason.text())?;
                }
                f.write_str(match refusal.code {
                    ErrorCode::Busy => "; end other clients, or give it room for more sessions",
                    ErrorCode::NotAuthorised => "; give both ends the same cluster key, or neither",
                    ErrorCode::GoingAway => "; start it again",
                    ErrorCode::BadVersion => "; build both ends from the same source",
                    _ => "",
                })
            }
            Self::NoAnswer { address, after } => write!(
                f,
                "the server {address} did not answer within {} s; see whether it runs and polls",
                after.as_secs_f32()
            ),
            Self::ServerGone { address } => write!(
                f,
                "the server {address} is gone, or has forgotten this session; \
                 what was outstanding may have been executed; connect again"
            ),
            Self::Failed(code) => write!(f, "the call failed: {code}"),
            Self::TimedOut => f.write_str("the call was not answered in time; it may have been executed"),
            Self::TooLong { len, limit } => write!(
                f,
                "a request of {len} bytes is longer than the session's {limit}; raise max_message_len at both ends"
            ),
            Self::WindowFull { window } => write!(
                f,
                "{window} calls are outstanding, as many as the session has slots; poll until one is over"
            ),
            Self::Closed => f.write_str("the client has been closed"),
            Self::Panicked => f.write_str("the server's thread panicked in a handler"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Fabric(error) => error.source(),
            _ => None,
        }
    }
}

impl From<AddressError> for Error {
    fn from(error: AddressError) -> Self {
        Self::Address(error)
    }
}

impl From<FabricError> for Error {
    fn from(error: FabricError) -> Self {
        Self::Fabric(error)
    }
}
