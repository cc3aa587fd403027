//! Who is talking: identities, and the server's bounded table of sessions (wire.md §7).
//!
//! [`SessionId`] and [`RequestId`] are what travels; [`Session`] is one slot of the table, whose
//! memory the caller owns; [`table`] finds, opens, closes and expires them in bounded time. What
//! the calls of a session mean is in [`rpc`](crate::rpc).

mod id;
pub mod table;

pub use id::{RequestId, SessionId};
pub use table::{Closed, PeerId, Session};
