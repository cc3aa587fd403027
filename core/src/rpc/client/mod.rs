//! The calling endpoint: one session with a window of request slots.
//!
//! The order of calls:
//!
//! 1. [`Client::connect`], or [`Client::call`] once [`Event::Connected`] was returned;
//! 2. [`Client::poll_transmit`] until it yields nothing, sending each datagram;
//! 3. wait for a datagram or for [`Client::next_timeout_ns`], whichever is first;
//! 4. [`Client::handle_datagram`], or [`Client::handle_timeout`] until it yields nothing; act upon
//!    the events, and again from 2.
//!
//! The glue keeps a request buffer and a reply buffer for each slot. Between `call` and the event
//! that ends it, the request buffer stays as it is: every transmission is gathered from it.

mod call;
mod event;
mod handshake;
mod rtt;
mod timers;
mod whole;

use self::call::{Outgoing, Room};
use self::rtt::RoundTrip;
use super::Rejected;
use crate::session::{SessionId, MAX_SLOTS};
use crate::wire::{
    offered_datagram_len, Datagram, Header, Kind, Message, Part, Refusal, Tag, HEADER_LEN,
    MAX_CONTROL_LEN, MAX_MESSAGE,
};

pub use self::call::CallSlot;
pub use self::event::{
    CallError, ClientConfig, Event, Granted, Payload, SlotSet, Transmit, WholeReply,
};
pub use crate::session::RequestId;

/// Longer than any timeout means: 73 years, which no clock of nanoseconds adds up to an overflow.
const FOREVER_NS: u64 = 1 << 61;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// A Connect is sent until an Accept comes.
    Connecting,
    /// There is a session.
    Open,
}

/// What is to be sent besides requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(4))] // So that all four are looked at as one word.
struct Control {
    connect: bool,
    confirm: bool,
    ping: bool,
    disconnect: bool,
}

impl Control {
    #[inline]
    fn any(self) -> bool {
        let all = [self.connect, self.confirm, self.ping, self.disconnect];
        u32::from_ne_bytes(all.map(u8::from)) != 0
    }
}

/// The calling endpoint. The module's front comment gives the order of calls.
pub struct Client<'a> {
    slots: &'a mut [CallSlot],
    session: SessionId,
    state: State,
    control: Control,
    /// The server has answered something of this session, so it knows that we have its Accept.
    heard: bool,
    /// Slots with an outstanding call, a bit each.
    busy: u64,
    /// Those of them that have something to send.
    ready: u64,
    /// The slots that the session has.
    window: u64,
    /// Where the search for the next slot to send for begins, so that a long message does not hold
    /// up the others.
    turn: u32,
    /// Parts that it has sent in its turn.
    sent_in_turn: u16,
    /// How many datagrams are unanswered.
    in_flight: u16,
    /// Never starts anew, not even with a new session: should the server still have the old one,
    /// its next request is new to it nevertheless (wire.md §8.1).
    last_request: u64,
    trip: RoundTrip,
    /// No call's timer is due before this.
    calls_at_ns: u64,
    /// When to send again while no call is outstanding: the Connect, the Confirm or a Ping.
    resend_at_ns: u64,
    /// When to give up while no call is outstanding: the handshake or the session.
    deadline_ns: u64,
    idle_timeout_ns: u64,
    granted: Granted,
    /// What of that a message of one datagram may be long, in bytes.
    longest_whole: u32,
    /// How the header of such a reply begins.
    reply_start: [u64; 2],
    config: ClientConfig,
    /// Of the present or last handshake.
    nonce: u64,
    confirm_tag: Tag,
    /// How often the Connect or Confirm has been sent again.
    retreats: u8,
}

impl<'a> Client<'a> {
    /// A client without a session, which has as many calls outstanding at most as there are slots.
    pub fn new(config: ClientConfig, slots: &'a mut [CallSlot]) -> Self {
        let room = u16::try_from(slots.len())
            .unwrap_or(MAX_SLOTS)
            .clamp(1, MAX_SLOTS);
        let config = ClientConfig {
            datagram_len: offered_datagram_len(config.datagram_len),
            slots: config.slots.clamp(1, room),
            credits: config.credits.max(1),
            max_message_len: config.max_message_len.min(MAX_MESSAGE),
            connect_timeout_ns: config.connect_timeout_ns.min(FOREVER_NS),
            call_timeout_ns: config.call_timeout_ns.min(FOREVER_NS),
            ..config
        };
        // No slot has a number that a set cannot hold.
        let slots = slots.get_mut(..usize::from(room)).unwrap_or_default();
        Self {
            slots,
            session: SessionId::NONE,
            state: State::Closed,
            control: Control::default(),
            heard: false,
            busy: 0,
            ready: 0,
            window: 0,
            turn: 0,
            sent_in_turn: 0,
            in_flight: 0,
            last_request: 0,
            trip: RoundTrip::new(config.rto_initial_ns, config.rto_min_ns, config.rto_max_ns),
            calls_at_ns: u64::MAX,
            resend_at_ns: 0,
            deadline_ns: 0,
            idle_timeout_ns: 0,
            granted: Granted {
                slots: 0,
                credits: 0,
                datagram_len: config.datagram_len,
                max_message_len: 0,
            },
            longest_whole: 0,
            reply_start: [0; 2],
            config,
            nonce: config.nonce,
            confirm_tag: [0; 16],
            retreats: 0,
        }
    }

    /// Whether a session is open.
    #[inline]
    pub fn is_connected(&self) -> bool {
        self.state == State::Open
    }

    /// The session that is or was open; [`SessionId::NONE`] before the first.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// What the server granted to the session that is or was open; no slots before the first.
    pub fn granted(&self) -> Granted {
        self.granted
    }

    /// How many datagrams are unanswered: never more than the credits that were granted.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// The slots whose calls are outstanding.
    pub fn outstanding(&self) -> SlotSet {
        SlotSet(self.busy)
    }

    /// A slot in which a call can be begun.
    #[inline(always)]
    pub fn free_slot(&self) -> Option<u16> {
        let free = self.window & !self.busy;
        if free == 0 || self.state != State::Open {
            return None;
        }
        u16::try_from(free.trailing_zeros()).ok()
    }

    /// Starts a call, whose `request_len` bytes are in the slot's request buffer and stay there
    /// until the event that ends it.
    #[inline(always)]
    pub fn call(
        &mut self,
        now_ns: u64,
        slot: u16,
        rpc_id: u32,
        request_len: u32,
    ) -> Result<RequestId, CallError> {
        if self.state != State::Open {
            return Err(CallError::NotConnected);
        }
        let bit = bit(slot);
        let place = self.slots.get_mut(usize::from(slot));
        let (Some(place), true) = (place, self.window & bit != 0) else {
            let slots = self.granted.slots;
            return Err(CallError::NoSuchSlot { slot, slots });
        };
        if self.busy & bit != 0 {
            return Err(CallError::SlotInUse);
        }
        let limit = self.granted.max_message_len;
        if request_len > limit {
            return Err(CallError::TooLarge { request_len, limit });
        }
        // A u64 does not come round: at a call a nanosecond it lasts for 584 years.
        let request = self.last_request.wrapping_add(1);
        self.last_request = request;
        let deadline_ns = now_ns.wrapping_add(self.config.call_timeout_ns);
        place.begin(
            request,
            rpc_id,
            request_len,
            deadline_ns,
            self.trip.retreats(request),
        );
        if self.busy == 0 {
            self.calls_at_ns = deadline_ns;
        } else {
            self.calls_at_ns = self.calls_at_ns.min(deadline_ns);
        }
        self.busy |= bit;
        self.ready |= bit;
        Ok(RequestId(request))
    }

    /// The next datagram to send: its header is written to `header`, and the rest is gathered from
    /// a slot's request buffer. `None` if there is nothing to send for now.
    #[inline(always)]
    pub fn poll_transmit(
        &mut self,
        now_ns: u64,
        header: &mut [u8; MAX_CONTROL_LEN],
    ) -> Option<Transmit> {
        if self.control.any() {
            return self.poll_control(now_ns, header);
        }
        if self.ready == 0 || self.in_flight >= self.granted.credits {
            return None;
        }
        let turned = self.ready.rotate_right(self.turn);
        let slot = turned.trailing_zeros().wrapping_add(self.turn) & 63;
        let place = self.slots.get_mut(slot as usize)?;
        let room = Room {
            part_len: self.granted.part_len(),
            credits: self.granted.credits,
            in_flight: self.in_flight,
        };
        let (outgoing, last) = place.send(now_ns, room, &self.trip);
        if last {
            self.ready &= !(1_u64.wrapping_shl(slot));
        } else {
            self.sent_in_turn = self.sent_in_turn.wrapping_add(1);
        }
        // A message that fits the credits goes as a whole: its parts share answers then. Longer ones take turns.
        self.turn = slot;
        if last || self.sent_in_turn >= self.granted.credits {
            self.sent_in_turn = 0;
            self.turn = slot.wrapping_add(1) & 63;
        }
        self.calls_at_ns = self.calls_at_ns.min(place.resend_at_ns);
        let slot = slot as u16;
        let mut fields = Header {
            kind: Kind::Request,
            session: self.session,
            request: RequestId(place.request),
            code: place.rpc_id,
            message_len_bytes: place.message_len(),
            offset_bytes: 0,
            payload_len_bytes: 0,
            slot,
        };
        let mut transmit = Transmit {
            header_len: HEADER_LEN,
            payload: None,
            again: false,
        };
        match outgoing {
            Outgoing::Part { offset, len, again } => {
                self.in_flight = self.in_flight.wrapping_add(1);
                fields.offset_bytes = offset;
                fields.payload_len_bytes = len as u16;
                transmit.again = again;
                if len > 0 {
                    let range = offset..offset.saturating_add(len);
                    transmit.payload = Some(Payload { slot, range });
                }
            }
            Outgoing::Wish { offset, parts } => {
                self.in_flight = self.in_flight.saturating_add(parts);
                fields.kind = Kind::Fetch;
                fields.code = u32::from(parts);
                fields.offset_bytes = offset;
            }
        }
        fields.emit(header).ok()?;
        Some(transmit)
    }

    /// Takes a datagram that arrived.
    #[inline(always)]
    pub fn handle_datagram(
        &mut self,
        now_ns: u64,
        datagram: &[u8],
    ) -> Result<Option<Event>, Rejected> {
        let Some(whole) = self.handle_whole(now_ns, datagram) else {
            return self.handle_any(now_ns, datagram);
        };
        let len = whole.payload.len();
        Ok(Some(Event::Reply {
            request: whole.request,
            slot: whole.slot,
            message_len: len as u32,
            offset: 0,
            payload: HEADER_LEN..HEADER_LEN.wrapping_add(len),
            complete: true,
        }))
    }

    /// [`Client::handle_datagram`] for those that [`Client::handle_whole`] has not taken.
    #[inline(never)]
    pub fn handle_any(&mut self, now_ns: u64, datagram: &[u8]) -> Result<Option<Event>, Rejected> {
        let (header, payload) = Header::parse(datagram)?;
        if header.kind == Kind::Reply && header.code == 0 {
            let part = Part::of(&header, payload)?;
            return self.handle_reply(now_ns, &header, &part);
        }
        self.handle_control(now_ns, &header, payload)
    }

    fn handle_reply(
        &mut self,
        now_ns: u64,
        header: &Header,
        part: &Part<'_>,
    ) -> Result<Option<Event>, Rejected> {
        let granted = self.granted;
        let (place, trip) = self.answered(header)?;
        let incoming = place.take(now_ns, part, &granted, trip)?;
        let resend_at_ns = place.resend_at_ns;
        let wants_more = place.wants_more(granted.credits);
        self.in_flight = self.in_flight.saturating_sub(incoming.credits);
        self.heard = true;
        if incoming.complete {
            self.free(now_ns, header.slot);
        } else {
            self.calls_at_ns = self.calls_at_ns.min(resend_at_ns);
            if wants_more {
                self.ready |= bit(header.slot);
            }
        }
        let end = HEADER_LEN.saturating_add(part.payload.len());
        Ok(Some(Event::Reply {
            request: header.request,
            slot: header.slot,
            message_len: part.message_len,
            offset: part.offset,
            payload: HEADER_LEN..end,
            complete: incoming.complete,
        }))
    }

    /// Everything but replies.
    #[inline(never)]
    fn handle_control(
        &mut self,
        now_ns: u64,
        header: &Header,
        payload: &[u8],
    ) -> Result<Option<Event>, Rejected> {
        let Datagram { message, .. } = Datagram::from_header(header, payload)?;
        match message {
            Message::CreditReturn {
                message_len,
                offset,
            } => self.handle_credit_return(now_ns, header, message_len, offset),
            Message::Accept(accept) => self.handle_accept(now_ns, header.session, accept),
            Message::Error(refusal) => self.handle_error(now_ns, header, refusal),
            Message::Pong => {
                self.expect_session(header.session)?;
                self.heard = true;
                if self.busy == 0 {
                    self.rest(now_ns);
                }
                Ok(None)
            }
            Message::Reply(_)
            | Message::Connect(_)
            | Message::Confirm(_)
            | Message::Request { .. }
            | Message::Fetch { .. }
            | Message::Disconnect
            | Message::Ping => Err(Rejected::Unexpected(header.kind)),
        }
    }

    fn handle_credit_return(
        &mut self,
        now_ns: u64,
        header: &Header,
        message_len: u32,
        offset: u32,
    ) -> Result<Option<Event>, Rejected> {
        let limit = self.granted.part_len();
        let (place, trip) = self.answered(header)?;
        let credits = place.credit_return(now_ns, message_len, offset, limit, trip)?;
        let resend_at_ns = place.resend_at_ns;
        self.calls_at_ns = self.calls_at_ns.min(resend_at_ns);
        self.in_flight = self.in_flight.saturating_sub(credits);
        self.heard = true;
        Ok(None)
    }

    fn handle_error(
        &mut self,
        now_ns: u64,
        header: &Header,
        refusal: Refusal,
    ) -> Result<Option<Event>, Rejected> {
        if header.session == SessionId::NONE {
            return self.handle_refusal(refusal);
        }
        self.expect_session(header.session)?;
        if refusal.code == crate::wire::ErrorCode::NoSuchSession || header.request == RequestId(0) {
            return Ok(Some(self.closed(refusal)));
        }
        let (place, trip) = self.answered(header)?;
        let credits = place.fail(now_ns, trip);
        self.in_flight = self.in_flight.saturating_sub(credits);
        self.heard = true;
        self.free(now_ns, header.slot);
        Ok(Some(Event::Failed {
            request: header.request,
            slot: header.slot,
            error: refusal.code,
        }))
    }

    /// Whether a datagram of the server belongs to our session.
    #[inline]
    fn expect_session(&self, session: SessionId) -> Result<(), Rejected> {
        if self.state == State::Open && session == self.session {
            Ok(())
        } else {
            Err(Rejected::OtherSession)
        }
    }

    /// The outstanding call that a datagram of the server answers.
    #[inline]
    fn answered(&mut self, header: &Header) -> Result<(&mut CallSlot, &mut RoundTrip), Rejected> {
        self.expect_session(header.session)?;
        let outstanding = self.busy & bit(header.slot) != 0;
        match self.slots.get_mut(usize::from(header.slot)) {
            Some(place) if outstanding && place.request == header.request.0 => {
                Ok((place, &mut self.trip))
            }
            _ => Err(Rejected::StaleRequest),
        }
    }

    /// The slot's call is over.
    #[inline]
    fn free(&mut self, now_ns: u64, slot: u16) {
        self.busy &= !bit(slot);
        self.ready &= !bit(slot);
        if self.busy == 0 {
            self.rest(now_ns);
        }
    }
}

impl Granted {
    /// Length of a full part in bytes.
    #[inline(always)]
    pub(crate) fn part_len(&self) -> u32 {
        // At least MIN_DATAGRAM long.
        u32::from(self.datagram_len).wrapping_sub(HEADER_LEN as u32)
    }
}

/// The slot's place in a set of them. Of use for a slot that there is: a number beyond 63 has that of
/// another.
#[inline(always)]
fn bit(slot: u16) -> u64 {
    1_u64.wrapping_shl(u32::from(slot))
}
