//! One slot's call: what has been sent, what has come, when to send again (wire.md §8).

use super::event::Granted;
use super::rtt::{one_more, RoundTrip};
use crate::rpc::runs::unanswered;
use crate::rpc::Rejected;
use crate::wire::{part_len, Part, MAX_FETCH};

/// What is being carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The request: each part is answered, the last by the reply's first.
    #[default]
    Asking,
    /// The reply: all parts but the first are asked for.
    Fetching,
}

/// What a client knows of one slot. The caller provides an array of them and never looks inside.
#[derive(Clone, Debug, Default)]
pub struct CallSlot {
    pub(super) request: u64,
    pub(super) deadline_ns: u64,
    /// When to go back; `u64::MAX` while nothing is unanswered.
    pub(super) resend_at_ns: u64,
    /// When the datagram that measures the round trip was sent; 0 if none does.
    sampled_at_ns: u64,
    pub(super) rpc_id: u32,
    request_len: u32,
    reply_len: u32,
    /// Everything before has been answered, in bytes of the message that is being carried.
    answered: u32,
    /// Where the next part to send or to ask for begins.
    next: u32,
    /// The answer to the part that ends here measures the round trip.
    sample_end: u32,
    /// What begins before here has been sent before.
    resent_end: u32,
    /// How many datagrams are unanswered: the parts from `answered` to `next`.
    pub(super) in_flight: u16,
    /// How often it went back without an answer.
    retreats: u8,
    phase: Phase,
    /// Every part of the request has been sent at least once.
    all_sent: bool,
}

/// How much a session may carry.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// Length of a full part in bytes.
    pub(super) part_len: u32,
    /// Datagrams that may be unanswered.
    pub(super) credits: u16,
    /// Those that are, of all slots.
    pub(super) in_flight: u16,
}

/// What to send for a slot.
pub(super) enum Outgoing {
    /// A part of the request.
    Part { offset: u32, len: u32, again: bool },
    /// A wish for so many of the reply's parts, from `offset` on.
    Wish { offset: u32, parts: u16 },
}

/// A part of the reply that came in its turn.
pub(super) struct Incoming {
    pub(super) complete: bool,
    /// How many credits it returned.
    pub(super) credits: u16,
}

impl CallSlot {
    /// A slot without a call.
    pub const fn new() -> Self {
        Self {
            request: 0,
            deadline_ns: 0,
            resend_at_ns: u64::MAX,
            sampled_at_ns: 0,
            rpc_id: 0,
            request_len: 0,
            reply_len: 0,
            answered: 0,
            next: 0,
            sample_end: 0,
            resent_end: 0,
            in_flight: 0,
            retreats: 0,
            phase: Phase::Asking,
            all_sent: false,
        }
    }

    #[inline(always)]
    pub(super) fn begin(
        &mut self,
        request: u64,
        rpc_id: u32,
        request_len: u32,
        deadline_ns: u64,
        retreats: u8,
    ) {
        *self = Self {
            request,
            rpc_id,
            request_len,
            deadline_ns,
            retreats,
            ..Self::new()
        };
    }

    /// Length in bytes of the message that is being carried.
    #[inline]
    pub(super) fn message_len(&self) -> u32 {
        match self.phase {
            Phase::Asking => self.request_len,
            Phase::Fetching => self.reply_len,
        }
    }

    /// Hands out the next part, and says whether it is the last for now.
    #[inline(always)]
    pub(super) fn send(&mut self, now_ns: u64, room: Room, trip: &RoundTrip) -> (Outgoing, bool) {
        if self.phase == Phase::Fetching {
            return self.wish(now_ns, room, trip);
        }
        let (offset, message_len) = (self.next, self.request_len);
        let len = part_len(message_len, offset, room.part_len);
        let (end, again) = self.sent(now_ns, offset, len, trip);
        self.next = end;
        self.in_flight = self.in_flight.wrapping_add(1);
        let last = end >= message_len;
        self.all_sent |= last;
        (Outgoing::Part { offset, len, again }, last)
    }

    /// Asks for as many parts as there are credits for, and rests until half of the credits are
    /// back: a wish for each part would double the datagrams (wire.md §8.3).
    #[inline(never)]
    fn wish(&mut self, now_ns: u64, room: Room, trip: &RoundTrip) -> (Outgoing, bool) {
        let (offset, message_len) = (self.next, self.reply_len);
        let left = message_len
            .saturating_sub(offset)
            .div_ceil(room.part_len.max(1));
        let free = u32::from(room.credits.saturating_sub(room.in_flight));
        // At most MAX_FETCH.
        let parts = left.min(free).clamp(1, MAX_FETCH) as u16;
        let first_len = part_len(message_len, offset, room.part_len);
        self.sent(now_ns, offset, first_len, trip);
        let len = u32::from(parts).saturating_mul(room.part_len);
        self.next = offset.saturating_add(len).min(message_len);
        self.in_flight = self.in_flight.saturating_add(parts);
        (
            Outgoing::Wish { offset, parts },
            !self.wants_more(room.credits),
        )
    }

    /// Whether it is time to ask for more parts of the reply.
    #[inline]
    pub(super) fn wants_more(&self, credits: u16) -> bool {
        self.phase == Phase::Fetching && self.next < self.reply_len && self.in_flight <= credits / 2
    }

    /// Something is sent whose first answer is for the `len` bytes at `offset`. Returns their end, and
    /// whether they were sent before.
    #[inline(always)]
    fn sent(&mut self, now_ns: u64, offset: u32, len: u32, trip: &RoundTrip) -> (u32, bool) {
        // Both lie in a message of at most MAX_MESSAGE bytes.
        let end = offset.wrapping_add(len);
        let again = offset < self.resent_end;
        if self.sampled_at_ns == 0 && !again && trip.wants(self.request) {
            self.sampled_at_ns = now_ns.max(1);
            self.sample_end = end;
        }
        self.resend_at_ns = now_ns.wrapping_add(trip.interval_ns(self.retreats));
        (end, again)
    }

    /// Takes a whole reply to a request that has been sent, and returns how many credits that
    /// returned.
    #[inline(always)]
    pub(super) fn answer(&mut self, now_ns: u64, trip: &mut RoundTrip) -> Option<u16> {
        if self.phase != Phase::Asking || !self.all_sent {
            return None;
        }
        self.measure(now_ns, u32::MAX, trip);
        Some(self.in_flight)
    }

    /// Takes a part of the reply.
    #[inline]
    pub(super) fn take(
        &mut self,
        now_ns: u64,
        part: &Part<'_>,
        room: &Granted,
        trip: &mut RoundTrip,
    ) -> Result<Incoming, Rejected> {
        if part.payload_len() != part_len(part.message_len, part.offset, room.part_len())
            || part.message_len > room.max_message_len
        {
            return Err(Rejected::BadPart);
        }
        let credits;
        if self.phase == Phase::Asking {
            if part.offset != 0 {
                return Err(Rejected::OutOfOrder);
            }
            if !self.all_sent {
                // Nothing can be the answer to half a question.
                return Err(Rejected::BadPart);
            }
            let had = self.in_flight;
            self.measure(now_ns, u32::MAX, trip);
            if part.payload_len() == part.message_len {
                return Ok(Incoming {
                    complete: true,
                    credits: had,
                });
            }
            self.phase = Phase::Fetching;
            self.reply_len = part.message_len;
            self.answered = part.payload_len();
            self.await_run(room, had);
            // Of what the request had unanswered, the parts that come by themselves keep their credits.
            credits = had.saturating_sub(self.in_flight);
            self.resent_end = 0;
            self.sampled_at_ns = 0;
        } else {
            if part.message_len != self.reply_len {
                return Err(Rejected::BadPart);
            }
            if part.offset != self.answered {
                return Err(match part.offset < self.answered {
                    true => Rejected::StaleRequest,
                    false => Rejected::OutOfOrder,
                });
            }
            self.answered = self.answered.saturating_add(part.payload_len());
            self.next = self.next.max(self.answered);
            credits = self.in_flight.min(1);
            self.in_flight = self.in_flight.saturating_sub(1);
            self.measure(now_ns, self.answered, trip);
        }
        self.await_more(now_ns, trip);
        Ok(Incoming {
            complete: self.answered == self.reply_len,
            credits,
        })
    }

    /// The reply has begun, to a request of which `had` parts were unanswered. If they were as many as no
    /// CreditReturn answers, as many parts of the reply come by themselves; if they were fewer, the server
    /// has answered repeated ones, and only the first part comes (wire.md §8.3).
    fn await_run(&mut self, room: &Granted, had: u16) {
        let parts = unanswered(self.request_len, room.part_len(), room.credits, room.slots);
        if u32::from(had) < parts {
            (self.next, self.in_flight) = (self.answered, 0);
            return;
        }
        let run_len = parts.saturating_mul(room.part_len());
        self.next = run_len.min(self.reply_len).max(self.answered);
        let coming = self.next.saturating_sub(self.answered);
        // Fewer than `had`.
        self.in_flight = coming.div_ceil(room.part_len().max(1)) as u16;
    }

    /// Everything of the request up to `offset` has arrived. Returns how many credits that returned.
    pub(super) fn credit_return(
        &mut self,
        now_ns: u64,
        message_len: u32,
        offset: u32,
        limit: u32,
        trip: &mut RoundTrip,
    ) -> Result<u16, Rejected> {
        if self.phase != Phase::Asking || offset <= self.answered {
            return Err(Rejected::StaleRequest);
        }
        let sent = self.next.max(self.resent_end);
        if message_len != self.request_len
            || offset >= message_len
            || offset > sent
            || offset.checked_rem(limit) != Some(0)
        {
            return Err(Rejected::BadPart);
        }
        let answered = offset.min(self.next).saturating_sub(self.answered);
        let parts = answered.checked_div(limit).unwrap_or(0);
        let credits = u16::try_from(parts).unwrap_or(u16::MAX).min(self.in_flight);
        self.answered = offset;
        self.next = self.next.max(offset);
        self.in_flight = self.in_flight.saturating_sub(credits);
        self.measure(now_ns, offset, trip);
        self.await_more(now_ns, trip);
        Ok(credits)
    }

    /// An Error ends the call. Returns how many credits that returned.
    pub(super) fn fail(&mut self, now_ns: u64, trip: &mut RoundTrip) -> u16 {
        self.measure(now_ns, u32::MAX, trip);
        self.in_flight
    }

    /// No answer came in time: what is unanswered is sent again, and counts as lost. Returns how
    /// many credits that returned.
    pub(super) fn go_back(&mut self) -> u16 {
        let credits = core::mem::take(&mut self.in_flight);
        self.resent_end = self.resent_end.max(self.next).max(1);
        self.next = self.answered;
        self.sampled_at_ns = 0;
        self.resend_at_ns = u64::MAX;
        self.retreats = one_more(self.retreats);
        credits
    }

    /// An answer: measures the round trip if everything up to `end` was just answered, and ends the
    /// back-off.
    #[inline(always)]
    fn measure(&mut self, now_ns: u64, end: u32, trip: &mut RoundTrip) {
        if self.sampled_at_ns != 0 && end >= self.sample_end {
            trip.measured(now_ns.saturating_sub(self.sampled_at_ns));
            self.sampled_at_ns = 0;
            self.retreats = 0;
        } else if self.retreats != 0 {
            trip.ambiguous(self.retreats);
            self.retreats = 0;
        }
    }

    fn await_more(&mut self, now_ns: u64, trip: &RoundTrip) {
        self.resend_at_ns = match self.in_flight {
            0 => u64::MAX,
            _ => now_ns.saturating_add(trip.interval_ns(self.retreats)),
        };
    }
}
