//! What a client is told, says and asks for.

use core::ops::Range;

use crate::session::{ClusterKey, RequestId};
use crate::wire::{ErrorCode, Refusal};

/// What a client is told at its start. All times are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct ClientConfig {
    /// Drawn at random for each client and the same in all its sessions: by it, a server ends a
    /// client's old session when it opens a new one (wire.md §7.2).
    pub client_key: u64,
    /// Drawn at random for each client, apart from the key. Counts on with each
    /// [`Client::connect`](super::Client::connect): a handshake is known by it.
    pub nonce: u64,
    /// Proves membership; `None` in a cluster without a key (wire.md §7.5).
    pub cluster_key: Option<ClusterKey>,
    /// The longest datagram that the client takes, header included, in bytes. Brought into
    /// `MIN_DATAGRAM..=MAX_DATAGRAM`.
    pub datagram_len: u16,
    /// How many calls to have outstanding at once. Brought into `1..=MAX_SLOTS`, and no more than
    /// there are [`CallSlot`](super::CallSlot)s.
    pub slots: u16,
    /// How many datagrams to have unanswered at once: what the receive ring holds. At least 1.
    pub credits: u16,
    /// The longest request and reply, in bytes. Brought to at most `MAX_MESSAGE`.
    pub max_message_len: u32,
    /// How long to wait before the first retransmission, until a round trip has been measured.
    pub rto_initial_ns: u64,
    /// The shortest retransmission interval, whatever is measured.
    pub rto_min_ns: u64,
    /// The longest retransmission interval, however often it has doubled.
    pub rto_max_ns: u64,
    /// After how long [`Client::connect`](super::Client::connect) fails.
    pub connect_timeout_ns: u64,
    /// After how long a call fails.
    pub call_timeout_ns: u64,
}

/// What the server granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// How many calls may be outstanding at once; slots are numbered from 0.
    pub slots: u16,
    /// How many datagrams may be unanswered at once.
    pub credits: u16,
    /// The longest datagram, header included, in bytes.
    pub datagram_len: u16,
    /// The longest request and reply, in bytes.
    pub max_message_len: u32,
}

/// Some of the slots of a session: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet(pub u64);

impl SlotSet {
    /// This slot alone; none where there can be no such slot.
    pub const fn of(slot: u16) -> SlotSet {
        if slot < 64 {
            SlotSet(1 << slot)
        } else {
            SlotSet(0)
        }
    }

    /// Whether the slot is one of them.
    pub const fn contains(self, slot: u16) -> bool {
        slot < 64 && self.0 >> slot & 1 != 0
    }

    /// How many there are.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their numbers, the lowest first.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let slot = rest.trailing_zeros();
            rest &= rest.wrapping_sub(1);
            u16::try_from(slot).ok()
        })
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is open: calls can be made.
    Connected,
    /// The server refused the session.
    Refused(Refusal),
    /// The server did not answer within `connect_timeout_ns`.
    ConnectTimedOut,
    /// The next part of a call's result is in the datagram that was just handled. Parts come in
    /// order and each once.
    Reply {
        /// Which call.
        request: RequestId,
        /// Its slot, which is free again if the reply is complete.
        slot: u16,
        /// Length of the whole reply in bytes.
        message_len: u32,
        /// Where the part lies in the reply, in bytes.
        offset: u32,
        /// Where the part lies in the datagram.
        payload: Range<usize>,
        /// Whether this is the last part. If `offset` is 0 as well, it is the whole reply.
        complete: bool,
    },
    /// The call failed; the session is as before.
    Failed {
        /// Which call.
        request: RequestId,
        /// Its slot, which is free again.
        slot: u16,
        /// Why.
        error: ErrorCode,
    },
    /// The call was not answered within `call_timeout_ns`. It may have been executed. The session
    /// is as before.
    TimedOut {
        /// Which call.
        request: RequestId,
        /// Its slot, which is free again.
        slot: u16,
    },
    /// The session is over, and with it the calls that were outstanding, each of which may have
    /// been executed. A new one can be opened by [`Client::connect`](super::Client::connect).
    Closed {
        /// Why.
        error: Refusal,
        /// The slots of the calls that were outstanding.
        lost: SlotSet,
    },
}

/// A call's whole result, which was in one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeReply<'d> {
    /// Which call.
    pub request: RequestId,
    /// Its slot, which is free again.
    pub slot: u16,
    /// The result.
    pub payload: &'d [u8],
}

/// Why a call was not begun: the caller's misuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// There is no open session.
    NotConnected,
    /// The session has no such slot.
    NoSuchSlot {
        /// What was asked for.
        slot: u16,
        /// How many there are.
        slots: u16,
    },
    /// The slot's previous call is still outstanding.
    SlotInUse,
    /// The request is longer than the session carries.
    TooLarge {
        /// Length of the request in bytes.
        request_len: u32,
        /// The longest that is carried.
        limit: u32,
    },
}

impl core::fmt::Display for CallError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotConnected => f.write_str("no session is open"),
            Self::NoSuchSlot { slot, slots } => {
                write!(f, "the session has {slots} slots and no slot {slot}")
            }
            Self::SlotInUse => f.write_str("the slot's call is outstanding"),
            Self::TooLarge { request_len, limit } => write!(
                f,
                "a request of {request_len} bytes exceeds the session's {limit}"
            ),
        }
    }
}

impl core::error::Error for CallError {}

/// What to send: the first `header_len` bytes of the buffer that was given to
/// [`Client::poll_transmit`](super::Client::poll_transmit), and after them a part of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// How much of the buffer to send, in bytes.
    pub header_len: usize,
    /// What follows it; nothing if the datagram is wholly in the buffer.
    pub payload: Option<Payload>,
    /// The payload has been sent before: the answer to the call does not prove that this
    /// transmission has left the slot's request buffer.
    pub again: bool,
}

/// A part of a slot's request buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Whose buffer.
    pub slot: u16,
    /// Which bytes of the request.
    pub range: Range<u32>,
}
