//! The two endpoints of a call (wire.md §7 to §9).
//!
//! [`client::Client`] opens one session and makes calls on it; [`server::Server`] grants sessions,
//! hands each request to its handler at most once and answers repeated requests from the saved
//! reply. Recovery is the client's: whatever is lost, it sends again; the server has no timer for a
//! call.
//!
//! A datagram that an endpoint does not act upon is [`Rejected`] with the reason, for a counter or
//! a trace. That is never fatal and never changes a session.

pub mod client;
mod counters;
mod runs;
pub mod server;

use crate::wire::Malformed;

/// Why a datagram was ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Its bytes are not a datagram of this protocol.
    Malformed(Malformed),
    /// It is of a kind that this end sends rather than takes, or that does not fit the state.
    Unexpected(crate::wire::Kind),
    /// It names another session, or another client's handshake.
    OtherSession,
    /// It belongs to a request that has been answered, or given up, already.
    StaleRequest,
    /// It repeats a request that is being executed, or comes while another one of its slot is.
    StillExecuting,
    /// It is not the next part of its message: an earlier one was lost, and the client goes back.
    OutOfOrder,
    /// It is not a part that this message has in this session.
    BadPart,
    /// It comes before the valid Confirm that a cluster key requires.
    Unconfirmed,
    /// The Accept's tag is wrong: the server does not know the cluster key.
    BadTag,
    /// The Accept grants what was not asked for.
    BadOffer,
    /// The answer does not fit the buffer that was given for it: the caller's fault.
    NoRoom,
}

impl core::fmt::Display for Rejected {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Malformed(malformed) => write!(f, "malformed: {malformed}"),
            Self::Unexpected(kind) => write!(f, "{kind:?} is not expected here"),
            Self::OtherSession => f.write_str("of another session"),
            Self::StaleRequest => f.write_str("of a request that is over"),
            Self::StillExecuting => f.write_str("a request is being executed"),
            Self::OutOfOrder => f.write_str("an earlier part is missing"),
            Self::BadPart => f.write_str("no part of this message"),
            Self::Unconfirmed => f.write_str("the session is not confirmed"),
            Self::BadTag => f.write_str("the server does not know the cluster key"),
            Self::BadOffer => f.write_str("the accept grants what was not asked for"),
            Self::NoRoom => f.write_str("no room for the answer"),
        }
    }
}

impl core::error::Error for Rejected {}

impl From<Malformed> for Rejected {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}
