//! Requests, their execution and their replies (wire.md §8).

use core::cmp::Ordering;

use super::replies::{part_limit, send_error, send_part, Recipient};
use super::{Action, Dispatched, Request, Segment, Server, Transmission};
use crate::rpc::counters::count;
use crate::rpc::runs::return_run;
use crate::rpc::Rejected;
use crate::session::entry::State;
use crate::session::pool::State as SlotState;
use crate::session::{PeerId, ServerSlot, Session, SessionId};
use crate::wire::{part_len, Datagram, ErrorCode, Header, Message, Part};

/// What becomes of a request's part.
enum Taken {
    Whole,
    Last,
    /// The next one is awaited.
    More,
    /// Likewise, and the client is to know how far its request has come.
    Due,
    /// It has been taken before, with all up to here; the answer may have been lost.
    Again {
        arrived: u32,
    },
    /// The saved reply answers it.
    Answered,
    Executing,
    OutOfOrder,
    Stale,
    GoingAway,
    TooLarge,
    Bad,
}

impl Server<'_> {
    pub(super) fn handle_request<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        header: &Header,
        part: &Part<'d>,
        out: &mut [u8],
    ) -> Action<'d> {
        let id = header.session;
        let Some((mut session, mut pool)) = self.table.find_with_slots(id, from) else {
            return self.no_such_session(header, out);
        };
        if session.state == State::HalfOpen {
            // The first Request also confirms, where there is no cluster key (wire.md §7.2).
            if let Some(awaited) = self.await_confirm(id, from) {
                return awaited;
            }
            match self.table.find_with_slots(id, from) {
                Some(confirmed) => (session, pool) = confirmed,
                None => return self.no_such_session(header, out),
            }
        }
        session.last_heard_ns = now_ns;
        if header.slot >= u16::from(session.slots) {
            return self.bad_request(header, out);
        }
        let slot_index = session.first_slot.saturating_add(u32::from(header.slot));
        let Some(slot) = pool.get_mut(slot_index) else {
            return self.bad_request(header, out);
        };
        let taken = take(session, slot, header, part, self.going_away);
        let dispatched = Dispatched {
            session_index: id.index,
            generation: id.generation,
            slot_index,
            slot: header.slot,
            request: header.request,
        };
        if let Taken::Whole = taken {
            session.executing = session.executing.saturating_add(1);
            count(&mut self.counters.requests);
            return Action::Dispatch(Request {
                dispatched,
                rpc_id: header.code,
                payload: part.payload,
            });
        }
        self.handle_taken(from, header, part, taken, dispatched, out)
    }

    /// All but whole requests.
    #[inline(never)]
    fn handle_taken<'d>(
        &mut self,
        from: PeerId,
        header: &Header,
        part: &Part<'d>,
        taken: Taken,
        dispatched: Dispatched,
        out: &mut [u8],
    ) -> Action<'d> {
        let segment = |complete, answer_len| {
            Action::Segment(Segment {
                dispatched,
                rpc_id: header.code,
                message_len: part.message_len,
                offset: part.offset,
                payload: part.payload,
                complete,
                answer_len,
            })
        };
        match taken {
            Taken::Whole | Taken::Last => {
                if let Some(session) = self.table.find_mut(header.session, from) {
                    session.executing = session.executing.saturating_add(1);
                }
                count(&mut self.counters.requests);
                segment(true, 0)
            }
            Taken::More => {
                count(&mut self.counters.segments);
                segment(false, 0)
            }
            Taken::Due => {
                count(&mut self.counters.segments);
                let end = part.offset.saturating_add(part.payload_len());
                segment(false, self.credit_return(header, end, out))
            }
            Taken::Again { arrived } => {
                count(&mut self.counters.replays);
                match self.credit_return(header, arrived, out) {
                    0 => Action::Ignore(Rejected::NoRoom),
                    len => Action::Answer { len, opened: None },
                }
            }
            Taken::Answered => {
                count(&mut self.counters.replays);
                self.send_again(from, header, out)
            }
            Taken::Executing => {
                count(&mut self.counters.ignored_executing);
                Action::Ignore(Rejected::StillExecuting)
            }
            Taken::OutOfOrder => {
                count(&mut self.counters.ignored_out_of_order);
                Action::Ignore(Rejected::OutOfOrder)
            }
            Taken::Stale => {
                count(&mut self.counters.ignored_stale);
                Action::Ignore(Rejected::StaleRequest)
            }
            Taken::GoingAway => {
                count(&mut self.counters.refused_going_away);
                self.refuse(header, ErrorCode::GoingAway, out)
            }
            Taken::TooLarge => {
                count(&mut self.counters.too_large);
                self.refuse(header, ErrorCode::TooLarge, out)
            }
            Taken::Bad => self.bad_request(header, out),
        }
    }

    /// Says that everything of the request up to `offset` has arrived. Returns the answer's length.
    fn credit_return(&mut self, header: &Header, offset: u32, out: &mut [u8]) -> usize {
        let arrived = Datagram {
            session: header.session,
            request: header.request,
            slot: header.slot,
            message: Message::CreditReturn {
                message_len: header.message_len_bytes,
                offset,
            },
        };
        match arrived.emit(out) {
            Ok(len) => len,
            Err(_) => {
                count(&mut self.counters.no_room);
                0
            }
        }
    }

    /// Finishes a request: one that was dispatched, or one that is given up while parts of it are
    /// missing. If `result` is the length of what the handler put into the slot's reply buffer, that
    /// is the reply; if it is an error, an Error is. Writes the header to `out`, which needs
    /// [`ANSWER_LEN`](super::ANSWER_LEN) bytes, and returns what to send; `None` if there is nobody
    /// to send to any more, or the request was finished before.
    ///
    /// The reply buffer stays untouched until the slot's next request. A result that is longer than
    /// the session carries becomes [`ErrorCode::TooLarge`].
    #[inline(always)]
    pub fn complete(
        &mut self,
        request: &Dispatched,
        result: Result<u32, ErrorCode>,
        out: &mut [u8],
    ) -> Option<Transmission> {
        let (index, generation) = (request.session_index, request.generation);
        let (session, pool) = self.table.completing(index, generation)?;
        let slot = pool.get_mut(request.slot_index)?;
        let place = request.slot_index.wrapping_sub(session.first_slot);
        if slot.request != request.request.0 || place >= u32::from(session.slots) {
            return None;
        }
        match slot.state {
            SlotState::Executing => session.executing = session.executing.wrapping_sub(1),
            SlotState::Receiving => {}
            _ => return None,
        }
        let result = match result {
            Ok(len) if len > session.max_message_len => {
                count(&mut self.counters.too_large);
                Err(ErrorCode::TooLarge)
            }
            result => result,
        };
        slot.state = SlotState::Answered;
        (slot.reply_len, slot.error) = match result {
            Ok(len) => (len, 0),
            Err(code) => (0, code as u8),
        };
        let id = SessionId {
            index,
            generation,
            epoch: self.epoch,
        };
        let to = Recipient::new(id, session, request.slot);
        slot.sent = slot.reply_len.min(to.part_limit);
        if session.state == State::Draining {
            self.table.drained(index);
            return None;
        }
        let sent = match result {
            Ok(len) if len > to.part_limit => return self.begin_long(to, request, len, out),
            Ok(len) => send_part(to, request.request, len, 0, false, out),
            Err(code) => send_error(to, request.request, code, out),
        };
        if sent.is_none() {
            count(&mut self.counters.no_room);
        }
        sent
    }
}

/// Decides upon a part of a request by what the slot knows (wire.md §8.2, §8.4).
#[inline]
fn take(
    session: &Session,
    slot: &mut ServerSlot,
    header: &Header,
    part: &Part<'_>,
    going_away: bool,
) -> Taken {
    match header.request.0.cmp(&slot.request) {
        Ordering::Less => return Taken::Stale,
        Ordering::Equal => return take_next(session, slot, header, part),
        Ordering::Greater => {}
    }
    if slot.state == SlotState::Executing {
        return Taken::Executing;
    }
    if going_away {
        return Taken::GoingAway;
    }
    if part.message_len > session.max_message_len {
        return Taken::TooLarge;
    }
    let limit = part_limit(session);
    if part.payload_len() != part_len(part.message_len, part.offset, limit) {
        return Taken::Bad;
    }
    if part.offset != 0 {
        return Taken::OutOfOrder;
    }
    slot.request = header.request.0;
    slot.rpc_id = header.code;
    slot.message_len = part.message_len;
    slot.received = part.payload_len();
    slot.error = 0;
    slot.repeated = false;
    if part.payload_len() == part.message_len {
        slot.state = SlotState::Executing;
        Taken::Whole
    } else {
        slot.state = SlotState::Receiving;
        more(session, slot)
    }
}

/// The same, of the request that the slot knows already.
#[inline(never)]
fn take_next(session: &Session, slot: &mut ServerSlot, header: &Header, part: &Part<'_>) -> Taken {
    let limit = part_limit(session);
    let fits = part.payload_len() == part_len(part.message_len, part.offset, limit)
        && part.offset.checked_rem(limit) == Some(0)
        && part.message_len == slot.message_len
        && header.code == slot.rpc_id;
    if !fits {
        return Taken::Bad;
    }
    let end = part.offset.saturating_add(part.payload_len());
    let last = end == part.message_len;
    // Only the last part's answer says that it has arrived.
    let full = part.message_len.saturating_sub(1).checked_div(limit);
    let arrived = slot.received.min(full.unwrap_or(0).saturating_mul(limit));
    match slot.state {
        SlotState::Receiving => match part.offset.cmp(&slot.received) {
            Ordering::Less => {
                slot.repeated = true;
                Taken::Again { arrived }
            }
            Ordering::Greater => Taken::OutOfOrder,
            Ordering::Equal => {
                slot.received = end;
                if last {
                    slot.state = SlotState::Executing;
                    Taken::Last
                } else {
                    more(session, slot)
                }
            }
        },
        SlotState::Executing if last => Taken::Executing,
        SlotState::Executing => {
            slot.repeated = true;
            Taken::Again { arrived }
        }
        SlotState::Answered if last || slot.error != 0 => Taken::Answered,
        SlotState::Answered => Taken::Again { arrived },
        SlotState::Idle | SlotState::Free | SlotState::FreeBlock => Taken::Stale,
    }
}

/// A part came in its turn, and more are to come. Each time that a run of them is complete, their
/// credits are returned together (wire.md §8.2).
fn more(session: &Session, slot: &ServerSlot) -> Taken {
    let limit = part_limit(session);
    let parts = slot.received.checked_div(limit);
    let slots = u16::from(session.slots);
    let run = return_run(slot.message_len, limit, session.credits, slots);
    match parts.and_then(|parts| parts.checked_rem(run)) {
        Some(0) => Taken::Due,
        _ => Taken::More,
    }
}
