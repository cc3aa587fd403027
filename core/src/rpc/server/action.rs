//! What a server is told and what it wants done.

use core::ops::Range;

use crate::rpc::Rejected;
use crate::session::{ClusterKey, PeerId, RequestId};

/// What a server is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// Names this incarnation; different after every restart (wire.md §7.1).
    pub epoch: u32,
    /// Random and secret, drawn for each incarnation: makes the server's nonces unguessable
    /// (wire.md §7.5). Without a cluster key it is of no consequence.
    pub random_seed: u128,
    /// What clients must prove to know; `None` if every peer is served (wire.md §7.5).
    pub cluster_key: Option<ClusterKey>,
    /// The longest datagram that the server takes, header included, in bytes. Brought into
    /// `MIN_DATAGRAM..=MAX_DATAGRAM`.
    pub datagram_len: u16,
    /// How many credits there are for all sessions together: the receive buffers, less a reserve
    /// for handshakes and Pings (wire.md §7.6).
    pub receive_buffers: u32,
    /// The most slots that one session is granted. Brought into `1..=MAX_SLOTS`, and down to a
    /// power of two.
    pub max_slots: u16,
    /// The most credits that one session is granted. At least 1.
    pub max_credits: u16,
    /// The longest request and reply, in bytes. Brought to at most `MAX_MESSAGE`.
    pub max_message_len: u32,
    /// How long a session of which nothing is heard is kept, in nanoseconds.
    pub idle_timeout_ns: u64,
    /// The same for a session whose client has not confirmed it.
    pub handshake_timeout_ns: u64,
}

/// What the glue does with a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<'d> {
    /// Nothing, for this reason.
    Ignore(Rejected),
    /// Nothing: the datagram was taken in and needs no answer.
    Done,
    /// Send `out[..len]` to the datagram's source.
    Answer {
        /// Length in bytes.
        len: usize,
        /// The session that the answer grants, if it is new: the glue keeps the peer's address
        /// handle until [`Server::poll_closed`](super::Server::poll_closed) yields this session.
        opened: Option<u32>,
    },
    /// Run the handler, now or later, then [`Server::complete`](super::Server::complete). The
    /// request is whole; parts of an earlier one that the slot's request buffer may hold are void.
    Dispatch(Request<'d>),
    /// A part of a request of several datagrams. Parts come in order and each once; one at offset 0
    /// begins anew, whatever the buffer holds.
    Segment(Segment<'d>),
    /// Send a part of a saved reply.
    Send(Transmission),
}

/// A request that is to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'d> {
    /// What [`Server::complete`](super::Server::complete) wants back.
    pub dispatched: Dispatched,
    /// Which handler.
    pub rpc_id: u32,
    /// What it is given, in the receive buffer.
    pub payload: &'d [u8],
}

/// A part of a request. The glue copies `payload` to `offset` of the request buffer of slot
/// `dispatched.slot_index`, sends `out[..answer_len]` to the datagram's source unless that is
/// empty, and if the request is complete, runs the handler. Should it have no buffer, it answers
/// with what [`Server::complete`](super::Server::complete) makes of [`ErrorCode::Busy`] instead.
///
/// [`ErrorCode::Busy`]: crate::wire::ErrorCode::Busy
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'d> {
    /// What [`Server::complete`](super::Server::complete) wants back.
    pub dispatched: Dispatched,
    /// Which handler.
    pub rpc_id: u32,
    /// Length of the whole request in bytes; at most what the session was granted.
    pub message_len: u32,
    /// Where the part lies in the request, in bytes.
    pub offset: u32,
    /// The part, in the receive buffer. Never ends behind `message_len`.
    pub payload: &'d [u8],
    /// Whether the request is whole now.
    pub complete: bool,
    /// Length of the answer in `out`, in bytes; 0 if there is none to this part.
    pub answer_len: usize,
}

/// Names a request from its first part to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatched {
    /// Whose: the index of the session.
    pub session_index: u32,
    /// Which of the successive sessions of that index.
    pub generation: u32,
    /// The slot's place in the server's array of slots, by which the glue keeps the slot's buffers.
    pub slot_index: u32,
    /// The slot's number in its session.
    pub slot: u16,
    /// Which request.
    pub request: RequestId,
}

/// A datagram to send: the header in `out`, and after it a part of a slot's reply buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// To whom.
    pub peer: PeerId,
    /// Of which session.
    pub session_index: u32,
    /// Whose reply buffer, as in [`Dispatched::slot_index`].
    pub slot_index: u32,
    /// How much of `out` to send, in bytes. An Error is wholly in `out`.
    pub header_len: usize,
    /// Which bytes of the reply follow.
    pub payload: Range<u32>,
    /// They have been sent before: the slot's next request does not prove that this transmission
    /// has left the reply buffer.
    pub again: bool,
    /// More parts are to follow: see [`Server::poll_transmit`](super::Server::poll_transmit).
    pub more: bool,
}
