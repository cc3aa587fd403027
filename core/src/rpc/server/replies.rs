//! Answers: what is sent, and what is sent again (wire.md §8.3, §8.4).

use core::ops::Range;

use super::{Action, Dispatched, Server, Transmission};
use crate::rpc::counters::count;
use crate::rpc::runs::unanswered;
use crate::rpc::Rejected;
use crate::session::pool::State as SlotState;
use crate::session::{PeerId, RequestId, Session, SessionId};
use crate::wire::{part_len, Datagram, ErrorCode, Header, Kind, Message, Refusal, HEADER_LEN};

/// Whose answer is to be sent.
#[derive(Clone, Copy)]
pub(super) struct Recipient {
    id: SessionId,
    peer: PeerId,
    slot: u16,
    slot_index: u32,
    /// Length of a full part in bytes.
    pub(super) part_limit: u32,
}

/// Parts of a saved reply that are still to be sent.
#[derive(Clone, Copy)]
pub(super) struct Run {
    id: SessionId,
    peer: PeerId,
    slot: u16,
    request: RequestId,
    /// Where the next of them begins.
    offset: u32,
    /// How many, if the reply does not end before.
    parts: u32,
}

impl Recipient {
    #[inline(always)]
    pub(super) fn new(id: SessionId, session: &Session, slot: u16) -> Self {
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
pub(super) fn part_limit(session: &Session) -> u32 {
    // At least MIN_DATAGRAM long.
    u32::from(session.datagram_len).wrapping_sub(HEADER_LEN as u32)
}

impl Server<'_> {
    /// The saved answer's first part once more.
    pub(super) fn send_again<'d>(
        &mut self,
        from: PeerId,
        header: &Header,
        out: &mut [u8],
    ) -> Action<'d> {
        let id = header.session;
        let Some((session, pool)) = self.table.find_with_slots(id, from) else {
            return self.no_such_session(header, out);
        };
        let to = Recipient::new(id, session, header.slot);
        let Some(slot) = pool.get(to.slot_index) else {
            return self.bad_request(header, out);
        };
        let (request, reply_len, error) = (slot.request, slot.reply_len, slot.error);
        self.saved(to, request, reply_len, error, out)
    }

    /// Parts of a reply, other than the first, are asked for (wire.md §8.3).
    pub(super) fn handle_fetch<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        header: &Header,
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
        let Some(slot) = pool.get(to.slot_index) else {
            return self.bad_request(header, out);
        };
        if slot.state != SlotState::Answered || slot.request != header.request.0 {
            count(&mut self.counters.ignored_stale);
            return Action::Ignore(Rejected::StaleRequest);
        }
        let (request, reply_len, error) = (slot.request, slot.reply_len, slot.error);
        if error != 0 {
            count(&mut self.counters.fetches);
            return self.saved(to, request, reply_len, error, out);
        }
        let (message_len, offset) = (header.message_len_bytes, header.offset_bytes);
        if message_len != reply_len || offset.checked_rem(to.part_limit) != Some(0) {
            return self.bad_request(header, out);
        }
        count(&mut self.counters.fetches);
        self.run = Some(Run {
            id,
            peer: from,
            slot: header.slot,
            request: header.request,
            offset,
            parts: header.code,
        });
        match self.poll_transmit(out) {
            Some(transmission) => Action::Send(transmission),
            None => Action::Ignore(Rejected::NoRoom),
        }
    }

    /// The next part of a reply of which a [`Transmission`] was last given that had
    /// [`more`](Transmission::more) to follow. Writes its header to `out`, which needs
    /// [`ANSWER_LEN`](super::ANSWER_LEN) bytes. Parts that are not taken before something else is done
    /// count as lost; the client asks for them again.
    pub fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmission> {
        let run = self.run.take()?;
        let (session, pool) = self.table.find_with_slots(run.id, run.peer)?;
        let to = Recipient::new(run.id, session, run.slot);
        let slot = pool.get_mut(to.slot_index)?;
        let (request, reply_len) = (slot.request, slot.reply_len);
        if slot.state != SlotState::Answered
            || slot.error != 0
            || request != run.request.0
            || run.offset >= reply_len
        {
            return None;
        }
        let len = part_len(reply_len, run.offset, to.part_limit);
        // In a message of at most MAX_MESSAGE bytes.
        let end = run.offset.saturating_add(len);
        let again = run.offset < slot.sent;
        let Some(mut sent) = send_part(to, run.request, reply_len, run.offset, again, out) else {
            count(&mut self.counters.no_room);
            return None;
        };
        slot.sent = slot.sent.max(end);
        let parts = run.parts.saturating_sub(1);
        sent.more = parts > 0 && end < reply_len;
        if sent.more {
            self.run = Some(Run {
                offset: end,
                parts,
                ..run
            });
        }
        Some(sent)
    }

    /// The first part of a new reply of several, which as many more follow as parts of its request are
    /// unanswered (wire.md §8.3).
    #[cold]
    pub(super) fn begin_long(
        &mut self,
        to: Recipient,
        request: &Dispatched,
        reply_len: u32,
        out: &mut [u8],
    ) -> Option<Transmission> {
        let (session, pool) = self.table.find_with_slots(to.id, to.peer)?;
        let slot = pool.get(to.slot_index)?;
        let slots = u16::from(session.slots);
        let parts = match slot.repeated {
            // The client has credits back that no run has returned.
            true => 1,
            false => unanswered(slot.message_len, to.part_limit, session.credits, slots),
        };
        let Some(mut sent) = send_part(to, request.request, reply_len, 0, false, out) else {
            count(&mut self.counters.no_room);
            return None;
        };
        sent.more = parts > 1;
        if sent.more {
            self.run = Some(Run {
                id: to.id,
                peer: to.peer,
                slot: to.slot,
                request: request.request,
                offset: to.part_limit,
                parts: parts.saturating_sub(1),
            });
        }
        Some(sent)
    }

    /// The answer itself, or its first part.
    fn saved<'d>(
        &mut self,
        to: Recipient,
        request: u64,
        reply_len: u32,
        error: u8,
        out: &mut [u8],
    ) -> Action<'d> {
        let request = RequestId(request);
        let sent = match ErrorCode::from_u32(u32::from(error)) {
            Some(code) => send_error(to, request, code, out),
            None => send_part(to, request, reply_len, 0, true, out),
        };
        match sent {
            Some(transmission) => Action::Send(transmission),
            None => {
                count(&mut self.counters.no_room);
                Action::Ignore(Rejected::NoRoom)
            }
        }
    }
}

/// Writes the header of the reply's part at `offset`.
#[inline]
pub(super) fn send_part(
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
        more: false,
    })
}

#[cold]
pub(super) fn send_error(
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
        more: false,
    })
}
