//! Requests, their execution and their replies (wire.md §8).

use core::cmp::Ordering;
use core::ops::Range;

use super::{Action, Dispatched, Request, Segment, Server, Transmission};
use crate::rpc::counters::count;
use crate::rpc::Rejected;
use crate::session::pool::State as SlotState;
use crate::session::table::State;
use crate::session::{PeerId, RequestId, ServerSlot, Session, SessionId};
use crate::wire::{
    part_len, Datagram, ErrorCode, Glance, Header, Kind, Message, Part, Refusal, HEADER_LEN,
};

/// Whose answer is to be sent.
#[derive(Clone, Copy)]
struct Recipient {
    id: SessionId,
    peer: PeerId,
    slot: u16,
    slot_index: u32,
    /// Length of a full part in bytes.
    part_limit: u32,
}

impl Recipient {
    #[inline(always)]
    fn new(id: SessionId, session: &Session, slot: u16) -> Self {
        Self {
            id,
            peer: session.peer,
            slot,
            slot_index: session.first_slot.wrapping_add(u32::from(slot)),
            part_limit: part_limit(session),
        }
    }
}

#[inline(always)]
fn part_limit(session: &Session) -> u32 {
    // At least MIN_DATAGRAM long.
    u32::from(session.datagram_len).wrapping_sub(HEADER_LEN as u32)
}

/// What becomes of a request's part.
enum Taken {
    Whole,
    Last,
    /// The next one is awaited.
    More,
    /// It has been taken before; the answer may have been lost.
    Again,
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
    /// A new request of one datagram in an open session. `None` if it is anything else, of which
    /// nothing has been taken in then.
    #[inline(always)]
    pub(super) fn handle_whole<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        request: &Glance<'d>,
    ) -> Option<Request<'d>> {
        let id = request.session();
        let number = request.slot();
        let (session, pool) = self.table.find_with_slots(id, from)?;
        let slot_index = session.first_slot.wrapping_add(u32::from(number));
        let slot = pool.get_mut(slot_index)?;
        let len = request.payload.len() as u32;
        if session.state != State::Open
            || number >= u16::from(session.slots)
            || request.request() <= slot.request
            || slot.state == SlotState::Executing
            || len > part_limit(session)
            || len > session.max_message_len
            || self.going_away
        {
            return None;
        }
        session.last_heard_ns = now_ns;
        session.executing = session.executing.wrapping_add(1);
        slot.request = request.request();
        slot.rpc_id = request.code();
        slot.message_len = len;
        slot.state = SlotState::Executing;
        count(&mut self.counters.requests);
        Some(Request {
            dispatched: Dispatched {
                session_index: id.index,
                generation: id.generation,
                slot_index,
                slot: number,
                request: RequestId(request.request()),
            },
            rpc_id: request.code(),
            payload: request.payload,
        })
    }

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
                segment(false, self.credit_return(header, part, out))
            }
            Taken::Again => {
                count(&mut self.counters.replays);
                match self.credit_return(header, part, out) {
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

    /// Says that everything up to the part's end has arrived. Returns the answer's length.
    fn credit_return(&mut self, header: &Header, part: &Part<'_>, out: &mut [u8]) -> usize {
        let arrived = Datagram {
            session: header.session,
            request: header.request,
            slot: header.slot,
            message: Message::CreditReturn {
                message_len: part.message_len,
                offset: part.offset.saturating_add(part.payload_len()),
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

    /// The saved answer's first part once more.
    fn send_again<'d>(&mut self, from: PeerId, header: &Header, out: &mut [u8]) -> Action<'d> {
        let id = header.session;
        let Some((session, pool)) = self.table.find_with_slots(id, from) else {
            return self.no_such_session(header, out);
        };
        let to = Recipient::new(id, session, header.slot);
        let Some(slot) = pool.get(to.slot_index) else {
            return self.bad_request(header, out);
        };
        let (request, reply_len, error) = (slot.request, slot.reply_len, slot.error);
        self.saved(to, request, reply_len, error, 0, true, out)
    }

    /// A part of a reply, other than the first, is asked for (wire.md §8.3).
    pub(super) fn handle_fetch<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        header: &Header,
        message_len: u32,
        offset: u32,
        out: &mut [u8],
    ) -> Action<'d> {
        let id = header.session;
        if let Some(awaited) = self.await_confirm(id, from) {
            return awaited;
        }
        let Some((session, pool)) = self.table.find_with_slots(id, from) else {
            return self.no_such_session(header, out);
        };
        session.last_heard_ns = now_ns;
        if header.slot >= u16::from(session.slots) {
            return self.bad_request(header, out);
        }
        let to = Recipient::new(id, session, header.slot);
        let Some(slot) = pool.get_mut(to.slot_index) else {
            return self.bad_request(header, out);
        };
        if slot.state != SlotState::Answered || slot.request != header.request.0 {
            count(&mut self.counters.ignored_stale);
            return Action::Ignore(Rejected::StaleRequest);
        }
        let (request, reply_len, error) = (slot.request, slot.reply_len, slot.error);
        let of_reply = message_len == reply_len && offset.checked_rem(to.part_limit) == Some(0);
        if error == 0 && !of_reply {
            return self.bad_request(header, out);
        }
        let again = offset < slot.sent;
        slot.sent =
            slot.sent
                .max(offset.saturating_add(part_len(reply_len, offset, to.part_limit)));
        count(&mut self.counters.fetches);
        self.saved(to, request, reply_len, error, offset, again, out)
    }

    #[allow(clippy::too_many_arguments)] // The saved answer, taken apart.
    fn saved<'d>(
        &mut self,
        to: Recipient,
        request: u64,
        reply_len: u32,
        error: u8,
        offset: u32,
        again: bool,
        out: &mut [u8],
    ) -> Action<'d> {
        let request = RequestId(request);
        let sent = match ErrorCode::from_u32(u32::from(error)) {
            Some(code) => send_error(to, request, code, out),
            None => send_part(to, request, reply_len, offset, again, out),
        };
        match sent {
            Some(transmission) => Action::Send(transmission),
            None => {
                count(&mut self.counters.no_room);
                Action::Ignore(Rejected::NoRoom)
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
    if part.payload_len() == part.message_len {
        slot.state = SlotState::Executing;
        Taken::Whole
    } else {
        slot.state = SlotState::Receiving;
        Taken::More
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
    match slot.state {
        SlotState::Receiving => match part.offset.cmp(&slot.received) {
            Ordering::Less => Taken::Again,
            Ordering::Greater => Taken::OutOfOrder,
            Ordering::Equal => {
                slot.received = end;
                if last {
                    slot.state = SlotState::Executing;
                    Taken::Last
                } else {
                    Taken::More
                }
            }
        },
        SlotState::Executing if last => Taken::Executing,
        SlotState::Executing => Taken::Again,
        SlotState::Answered if last || slot.error != 0 => Taken::Answered,
        SlotState::Answered => Taken::Again,
        SlotState::Idle | SlotState::Free | SlotState::FreeBlock => Taken::Stale,
    }
}

/// Writes the header of the reply's part at `offset`.
#[inline]
fn send_part(
    to: Recipient,
    request: RequestId,
    message_len: u32,
    offset: u32,
    again: bool,
    out: &mut [u8],
) -> Option<Transmission> {
    let len = part_len(message_len, offset, to.part_limit);
    let header = Header {
        kind: Kind::Reply,
        session: to.id,
        request,
        code: 0,
        message_len_bytes: message_len,
        offset_bytes: offset,
        // No longer than a datagram.
        payload_len_bytes: len as u16,
        slot: to.slot,
    };
    header.emit(out).ok()?;
    Some(Transmission {
        peer: to.peer,
        session_index: to.id.index,
        slot_index: to.slot_index,
        header_len: HEADER_LEN,
        payload: Range {
            start: offset,
            end: offset.wrapping_add(len),
        },
        again,
    })
}

#[cold]
fn send_error(
    to: Recipient,
    request: RequestId,
    code: ErrorCode,
    out: &mut [u8],
) -> Option<Transmission> {
    let failed = Datagram {
        session: to.id,
        request,
        slot: to.slot,
        message: Message::Error(Refusal::new(code)),
    };
    let header_len = failed.emit(out).ok()?;
    Some(Transmission {
        peer: to.peer,
        session_index: to.id.index,
        slot_index: to.slot_index,
        header_len,
        payload: 0..0,
        again: false,
    })
}
