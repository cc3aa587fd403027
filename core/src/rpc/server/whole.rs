//! The commonest call, whose request and reply are a datagram each.

use super::{Dispatched, Request, Server};
use crate::rpc::counters::count;
use crate::session::pool::State as SlotState;
use crate::session::{PeerId, RequestId, ServerSlot, Session, SessionId};
use crate::wire::{ErrorCode, Glance, Kind, Words};

/// What came of a request that was executed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served<'s> {
    /// To send to the request's peer: the header, and after it this, which the handler has left in the slot's reply buffer.
    Reply(&'s [u8]),
    /// The reply is an error, or longer than a datagram: it is for [`Server::complete`].
    Other(Dispatched, Result<u32, ErrorCode>),
}

impl Server<'_> {
    /// [`Server::handle_datagram`] for the commonest of them: a new request in one datagram. `None` for
    /// any other, of which nothing has been taken in then; [`Server::handle_any`] takes it.
    #[inline(always)]
    pub fn handle_whole<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        datagram: &'d [u8],
    ) -> Option<Request<'d>> {
        let request = Glance::whole(datagram, Kind::Request)?;
        let (session, _, request) = self.take_whole(now_ns, from, &request)?;
        session.executing = session.executing.wrapping_add(1);
        Some(request)
    }

    /// [`Server::handle_whole`] where the handler is run at once, and what it says is sent: `run` returns the reply, which it has
    /// left in the buffer of the request's slot. Nothing is looked for twice. The reply's header is written to `header`: not a part
    /// of what is returned, where it would share its place with other things, and be written in smaller pieces than it is read.
    #[inline(always)]
    pub fn serve_whole<'s>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        datagram: &[u8],
        header: &mut Words,
        run: impl FnOnce(&Request<'_>) -> Result<&'s [u8], ErrorCode>,
    ) -> Option<Served<'s>> {
        let glance = Glance::whole(datagram, Kind::Request)?;
        let (session, slot, request) = self.take_whole(now_ns, from, &glance)?;
        let result = run(&request);
        let most = usize::from(session.longest_whole);
        let reply = match result {
            Ok(reply) if reply.len() <= most => reply,
            result => {
                session.executing = session.executing.wrapping_add(1);
                let len = result
                    .and_then(|reply| u32::try_from(reply.len()).map_err(|_| ErrorCode::TooLarge));
                return Some(Served::Other(dispatched(session, &glance), len));
            }
        };
        let reply_len = reply.len() as u32;
        slot.state = SlotState::Answered;
        (slot.reply_len, slot.sent, slot.error) = (reply_len, reply_len, 0);
        // No longer than a datagram.
        *header = glance.reply_words(reply_len as u16);
        Some(Served::Reply(reply))
    }

    /// A new request of one datagram in an open session, with that, which does not yet count it, and its slot. `None` if it is anything else, of which
    /// nothing has been taken in then.
    #[inline(always)]
    fn take_whole<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        request: &Glance<'d>,
    ) -> Option<(&mut Session, &mut ServerSlot, Request<'d>)> {
        let id = request.session();
        let number = request.slot();
        let (session, pool) = self.table.find_open(id, from)?;
        let slot_index = session.first_slot.wrapping_add(u32::from(number));
        let slot = pool.get_mut(slot_index)?;
        let len = request.payload.len() as u32;
        if number >= u16::from(session.slots)
            || request.request() <= slot.request
            || slot.state == SlotState::Executing
            || len > u32::from(session.longest_whole)
            || self.going_away
        {
            return None;
        }
        session.last_heard_ns = now_ns;
        slot.request = request.request();
        slot.rpc_id = request.code();
        slot.message_len = len;
        slot.state = SlotState::Executing;
        count(&mut self.counters.requests);
        let request = Request {
            dispatched: dispatched(session, request),
            rpc_id: request.code(),
            payload: request.payload,
        };
        Some((session, slot, request))
    }
}

/// What a request is called, which is in one of this session's slots.
#[inline(always)]
fn dispatched(session: &Session, request: &Glance<'_>) -> Dispatched {
    let SessionId {
        index, generation, ..
    } = request.session();
    Dispatched {
        session_index: index,
        generation,
        slot_index: session.first_slot.wrapping_add(u32::from(request.slot())),
        slot: request.slot(),
        request: RequestId(request.request()),
    }
}
