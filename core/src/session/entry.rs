//! One entry of the table: a session, or a place for one.

use super::PeerId;
use crate::wire::HEADER_LEN;

/// Ends a linked list.
pub(super) const NONE: u32 = u32::MAX;

/// Where an entry is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// On the free list.
    Free,
    /// Accepted, and not confirmed.
    HalfOpen,
    /// Confirmed.
    Open,
    /// The client disconnected while requests are being executed: their reply buffers are in use
    /// until they complete.
    Draining,
    /// Ended, and on the list that `Table::poll_closed` empties.
    Ended,
}

/// One entry of the table. The caller provides an array of them and never looks inside.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) client_key: u64,
    pub(crate) client_nonce: u64,
    pub(crate) last_heard_ns: u64,
    pub(crate) generation: u32,
    pub(crate) peer: PeerId,
    /// The first of its slots in the pool.
    pub(crate) first_slot: u32,
    pub(crate) max_message_len: u32,
    /// Next entry of the free list, or of the list of ended sessions.
    pub(super) next: u32,
    /// First entry of the hash chain of this entry's bucket. Belongs to the bucket, not to the
    /// session in the entry.
    pub(super) bucket_head: u32,
    /// Next entry of the hash chain that this session is in.
    pub(super) chain_next: u32,
    pub(crate) datagram_len: u16,
    /// What a message of one datagram may be long, in bytes.
    pub(crate) longest_whole: u16,
    pub(crate) credits: u16,
    /// How many of its slots execute a request.
    pub(crate) executing: u8,
    /// How many slots it has.
    pub(crate) slots: u8,
    /// How many sessions of the peers that this entry counts for are half-open. Belongs to the
    /// place, as `bucket_head`.
    pub(super) half_open: u8,
    pub(crate) state: State,
}

// One cache line; with one slot, a session takes 96 bytes and 20,000 of them 1.9 MiB.
const _: () = assert!(size_of::<Session>() == 64);

impl Session {
    /// An entry that no session is in.
    pub const fn new() -> Self {
        Self {
            client_key: 0,
            client_nonce: 0,
            last_heard_ns: 0,
            generation: 0,
            peer: 0,
            first_slot: 0,
            max_message_len: 0,
            next: NONE,
            bucket_head: NONE,
            chain_next: NONE,
            datagram_len: 0,
            longest_whole: 0,
            credits: 0,
            executing: 0,
            slots: 0,
            half_open: 0,
            state: State::Free,
        }
    }

    /// Whether datagrams that name the session are still answered.
    #[inline]
    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::HalfOpen | State::Open)
    }
}

/// What a message may be long that takes one datagram, and a datagram is longer than its header.
pub(super) fn longest_whole(datagram_len: u16, max_message_len: u32) -> u16 {
    let part_limit = datagram_len.wrapping_sub(HEADER_LEN as u16);
    u16::try_from(max_message_len).map_or(part_limit, |most| most.min(part_limit))
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}
