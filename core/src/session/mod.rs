//! Who is talking: identities, proofs of membership, and the server's bounded tables (wire.md §7).
//!
//! [`SessionId`] and [`RequestId`] are what travels; [`Session`] is one entry of the table, whose
//! memory the caller owns; [`table`] finds, opens, closes and expires them in bounded time.
//! [`pool`] hands their request slots to them, and [`auth`] makes the tags of a keyed handshake.
//! What the calls of a session mean is in [`rpc`](crate::rpc).

pub mod auth;
pub(crate) mod entry;
mod id;
pub mod pool;
pub mod table;

pub use auth::ClusterKey;
pub use entry::Session;
pub use id::{PeerId, RequestId, SessionId};
pub use pool::{ServerSlot, MAX_SLOTS};
pub use table::Closed;
