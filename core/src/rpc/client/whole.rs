//! The commonest call, whose request and reply are a datagram each: in one go, where nothing else is to be done.

use super::call::Room;
use super::{bit, Client};
use crate::rpc::client::{RequestId, WholeReply};
use crate::wire::{Glance, Header, Kind, Words};

impl Client<'_> {
    /// Whether [`Client::poll_transmit`] may yield anything.
    #[inline(always)]
    pub fn has_to_transmit(&self) -> bool {
        self.ready != 0 || self.control.any()
    }

    /// [`Client::call`] in a free slot and [`Client::poll_transmit`], for a request of one datagram when nothing else waits to
    /// be sent. `send` is given the slot and the header; what remains to be done is done while that is on its way. `None` if
    /// the call is another, of which nothing has been done then.
    #[inline(always)]
    pub fn call_whole<T>(
        &mut self,
        now_ns: u64,
        rpc_id: u32,
        request_len: u32,
        send: impl FnOnce(u16, Words) -> T,
    ) -> Option<(RequestId, u16, T)> {
        let slot = self.free_slot()?;
        let room = Room {
            part_len: self.granted.part_len(),
            credits: self.granted.credits,
            in_flight: self.in_flight,
        };
        if self.has_to_transmit()
            || room.in_flight >= room.credits
            || request_len > self.longest_whole
        {
            return None;
        }
        let place = self.slots.get_mut(usize::from(slot))?;
        // A u64 does not come round: at a call a nanosecond it lasts for 584 years.
        let request = RequestId(self.last_request.wrapping_add(1));
        let fields = Header {
            kind: Kind::Request,
            session: self.session,
            request,
            code: rpc_id,
            message_len_bytes: request_len,
            offset_bytes: 0,
            // No longer than a datagram.
            payload_len_bytes: request_len as u16,
            slot,
        };
        let sent = send(slot, fields.words());
        self.last_request = request.0;
        let deadline_ns = now_ns.wrapping_add(self.config.call_timeout_ns);
        let retreats = self.trip.retreats(request.0);
        place.begin(request.0, rpc_id, request_len, deadline_ns, retreats);
        place.send(now_ns, room, &self.trip);
        if self.busy == 0 {
            self.calls_at_ns = deadline_ns;
        }
        self.calls_at_ns = self.calls_at_ns.min(deadline_ns).min(place.resend_at_ns);
        self.busy |= bit(slot);
        self.in_flight = room.in_flight.wrapping_add(1);
        self.turn = u32::from(slot).wrapping_add(1) & 63;
        self.sent_in_turn = 0;
        Some((request, slot, sent))
    }

    /// [`Client::handle_datagram`] for the commonest of them: the answer to a call whose request and
    /// reply are a datagram each. `None` for any other, of which nothing has been taken in then;
    /// [`Client::handle_any`] takes it.
    #[inline(always)]
    pub fn handle_whole<'d>(&mut self, now_ns: u64, datagram: &'d [u8]) -> Option<WholeReply<'d>> {
        let reply = Glance::whole_of(datagram, self.reply_start)?;
        let slot = reply.slot();
        let mask = bit(slot);
        let place = self.slots.get_mut(usize::from(slot))?;
        let len = reply.payload.len() as u32;
        if self.busy & mask == 0
            || reply.request() != place.request
            || reply.code() != 0
            || len > self.longest_whole
        {
            return None;
        }
        let credits = place.answer(now_ns, &mut self.trip)?;
        self.in_flight = self.in_flight.wrapping_sub(credits);
        self.heard = true;
        self.busy &= !mask;
        self.ready &= !mask;
        if self.busy == 0 {
            self.rest(now_ns);
        }
        Some(WholeReply {
            request: RequestId(reply.request()),
            slot,
            payload: reply.payload,
        })
    }
}
