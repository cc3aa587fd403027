//! The serving endpoint.

mod action;

use crate::session::{PeerId, Session, ServerSlot, Closed};
use crate::wire::{ErrorCode, MAX_CONTROL_LEN};

pub use super::counters::Counters;
pub use action::{Action, Dispatched, Request, Segment, ServerConfig, Transmission};

/// The longest that the server writes to `out`, in bytes.
pub const ANSWER_LEN: usize = MAX_CONTROL_LEN;

/// The serving endpoint, over tables that the caller owns.
pub struct Server<'a> {
    counters: Counters,
    sessions: &'a mut [Session],
    slots: &'a mut [ServerSlot],
}

impl<'a> Server<'a> {
    /// A server.
    pub fn new(
        config: ServerConfig,
        sessions: &'a mut [Session],
        slots: &'a mut [ServerSlot],
    ) -> Self {
        Self { counters: Counters::default(), sessions, slots }
    }
    /// The peer that owns the live session named in the datagram's header.
    pub fn peer_of(&self, datagram: &[u8]) -> Option<PeerId> {
        None
    }
    /// Takes a datagram.
    pub fn handle_datagram<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        datagram: &'d [u8],
        out: &mut [u8],
    ) -> Action<'d> {
        Action::Done
    }
    /// Finishes a dispatched request, or gives up one of which not all parts have come. `result` is
    /// the length of the reply in the slot's reply buffer, or an error. Returns the first part of
    /// the answer, with its header in `out`.
    pub fn complete(
        &mut self,
        request: &Dispatched,
        result: Result<u32, ErrorCode>,
        out: &mut [u8],
    ) -> Option<Transmission> {
        None
    }
    /// Looks for silent sessions.
    pub fn handle_timeout(&mut self, now_ns: u64) {}
    /// The next session that ended.
    pub fn poll_closed(&mut self) -> Option<Closed> {
        None
    }
    /// When to call `handle_timeout`.
    pub fn next_timeout_ns(&self) -> Option<u64> {
        None
    }
    /// From now on, new work is refused.
    pub fn go_away(&mut self) {}
    /// How many sessions are live.
    pub fn live_sessions(&self) -> usize {
        0
    }
    /// What became of the datagrams so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
