//! The serving endpoint.
//!
//! The order of calls, for each datagram that arrives:
//!
//! 1. [`Server::peer_of`] names the peer that owns the session in the header. If the datagram's
//!    source is that peer's address, the glue has `from` without a search; otherwise it resolves
//!    the source itself.
//! 2. [`Server::handle_datagram`] returns an [`Action`]. When a request is complete the glue runs
//!    the handler, which puts its result into the slot's reply buffer, now or later and in any
//!    order, and then calls [`Server::complete`].
//! 3. [`Server::poll_transmit`] after a [`Transmission`] that more are to follow.
//! 4. [`Server::poll_closed`] until it yields nothing.
//!
//! And once `next_timeout_ns` is reached: [`Server::handle_timeout`], then `poll_closed` likewise.
//!
//! The glue keeps a reply buffer for each slot, and a request buffer for those that send requests
//! of several datagrams, by `slot_index`. The reply buffer is written by the handler and otherwise
//! left alone until the slot's next request: it is the saved reply of at-most-once execution
//! (wire.md §8.4).

mod action;
mod handshake;
mod replies;
mod requests;
mod whole;

use self::replies::Run;
use super::counters::count;
use super::Rejected;
use crate::session::auth::Nonces;
use crate::session::entry::State;
use crate::session::table::Table;
use crate::session::{ClusterKey, RequestId, SessionId, MAX_SLOTS};
use crate::wire::{
    offered_datagram_len, Datagram, ErrorCode, Header, Kind, Malformed, Message, Part, Reason,
    Refusal, MAX_CONTROL_LEN, MAX_MESSAGE,
};

pub use super::counters::Counters;
pub use crate::session::{Closed, PeerId, ServerSlot, Session};
pub use action::{Action, Dispatched, Request, Segment, ServerConfig, Transmission};
pub use whole::Served;

/// The longest that [`Server::handle_datagram`] and [`Server::complete`] write to `out`, in bytes:
/// an Accept.
pub const ANSWER_LEN: usize = MAX_CONTROL_LEN;

/// The serving endpoint, over tables that the caller owns.
pub struct Server<'a> {
    table: Table<'a>,
    epoch: u32,
    cluster_key: Option<ClusterKey>,
    nonces: Nonces,
    datagram_len: u16,
    max_slots: u16,
    max_credits: u16,
    max_message_len: u32,
    idle_timeout_ms: u32,
    going_away: bool,
    /// Parts of a saved reply that are still to be sent.
    run: Option<Run>,
    counters: Counters,
}

impl<'a> Server<'a> {
    /// A server with room for as many sessions as there are entries, and for as many outstanding
    /// requests as there are slots. What was in them is forgotten.
    pub fn new(
        config: ServerConfig,
        sessions: &'a mut [Session],
        slots: &'a mut [ServerSlot],
    ) -> Self {
        Self {
            table: Table::new(
                sessions,
                slots,
                config.receive_buffers,
                config.epoch,
                config.idle_timeout_ns,
                config.handshake_timeout_ns,
            ),
            epoch: config.epoch,
            cluster_key: config.cluster_key,
            nonces: Nonces::new(config.random_seed),
            datagram_len: offered_datagram_len(config.datagram_len),
            max_slots: config.max_slots.clamp(1, MAX_SLOTS),
            max_credits: config.max_credits.max(1),
            max_message_len: config.max_message_len.min(MAX_MESSAGE),
            idle_timeout_ms: u32::try_from(config.idle_timeout_ns / 1_000_000)
                .unwrap_or(u32::MAX)
                .max(1),
            going_away: false,
            run: None,
            counters: Counters::default(),
        }
    }

    /// The peer that owns the live session named in the datagram's header, if there is one. A hint
    /// that saves a search: nothing else of the datagram is checked before
    /// [`Server::handle_datagram`].
    #[inline(always)]
    pub fn peer_of(&self, datagram: &[u8]) -> Option<PeerId> {
        Some(self.table.find(Header::session_hint(datagram)?)?.peer)
    }

    /// Takes a datagram that came from the address `from`. Answers are written to `out`, which needs
    /// [`ANSWER_LEN`] bytes.
    #[inline(always)]
    pub fn handle_datagram<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        datagram: &'d [u8],
        out: &mut [u8],
    ) -> Action<'d> {
        match self.handle_whole(now_ns, from, datagram) {
            Some(request) => Action::Dispatch(request),
            None => self.handle_any(now_ns, from, datagram, out),
        }
    }

    /// [`Server::handle_datagram`] for those that [`Server::handle_whole`] has not taken.
    #[inline(never)]
    pub fn handle_any<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        datagram: &'d [u8],
        out: &mut [u8],
    ) -> Action<'d> {
        let (header, payload) = match Header::parse(datagram) {
            Ok(parts) => parts,
            Err(malformed) => return self.unreadable(malformed, out),
        };
        if header.kind == Kind::Request {
            return match Part::of(&header, payload) {
                Ok(part) => self.handle_request(now_ns, from, &header, &part, out),
                Err(malformed) => self.malformed(from, &header, malformed, out),
            };
        }
        self.handle_control(now_ns, from, &header, payload, out)
    }

    /// Looks for sessions that have been silent for too long, a bounded number at a time;
    /// [`Server::poll_closed`] yields them.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        let expired = self.table.expire(now_ns);
        self.counters.expired = self.counters.expired.wrapping_add(expired);
    }

    /// The next session that ended. Its index and its slots are not taken again before this has
    /// yielded it.
    #[inline(always)]
    pub fn poll_closed(&mut self) -> Option<Closed> {
        self.table.poll_closed()
    }

    /// When to call [`Server::handle_timeout`]; `None` while there are no sessions.
    pub fn next_timeout_ns(&self) -> Option<u64> {
        self.table.next_scan_ns()
    }

    /// From now on, new sessions and new requests are refused with [`ErrorCode::GoingAway`].
    /// Requests of which a part has come complete, and saved replies are still sent.
    pub fn go_away(&mut self) {
        self.going_away = true;
    }

    /// How many sessions are live, half-open ones included.
    pub fn live_sessions(&self) -> usize {
        self.table.live()
    }

    /// What became of the datagrams so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Everything but requests.
    #[inline(never)]
    fn handle_control<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        header: &Header,
        payload: &[u8],
        out: &mut [u8],
    ) -> Action<'d> {
        let message = match Datagram::from_header(header, payload) {
            Ok(datagram) => datagram.message,
            Err(malformed) => return self.malformed(from, header, malformed, out),
        };
        match message {
            Message::Connect(connect) => self.handle_connect(now_ns, from, &connect, out),
            Message::Confirm(confirm) => self.handle_confirm(now_ns, from, header, &confirm, out),
            Message::Fetch { .. } => self.handle_fetch(now_ns, from, header, out),
            Message::Disconnect | Message::Ping => self.handle_bare(now_ns, from, header, out),
            // An Error is never answered with an Error (wire.md §6), nor is anything else that only
            // a server sends.
            Message::Accept(_)
            | Message::Reply(_)
            | Message::Error(_)
            | Message::Pong
            | Message::CreditReturn { .. }
            | Message::Request { .. } => {
                count(&mut self.counters.ignored_unexpected);
                Action::Ignore(Rejected::Unexpected(header.kind))
            }
        }
    }

    /// Ping and Disconnect.
    fn handle_bare<'d>(
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
        let Some(session) = self.table.find_mut(id, from) else {
            if header.kind == Kind::Disconnect {
                // What the client wants is so already.
                count(&mut self.counters.no_such_session);
                return Action::Ignore(Rejected::OtherSession);
            }
            return self.no_such_session(header, out);
        };
        session.last_heard_ns = now_ns;
        if header.kind == Kind::Disconnect {
            self.table.disconnect(id.index);
            count(&mut self.counters.disconnects);
            return Action::Done;
        }
        count(&mut self.counters.pings);
        self.pong(header, out)
    }

    fn pong<'d>(&mut self, header: &Header, out: &mut [u8]) -> Action<'d> {
        let pong = Datagram {
            session: header.session,
            request: header.request,
            slot: 0,
            message: Message::Pong,
        };
        self.answer(&pong, None, out)
    }

    /// Lets a datagram of a half-open session confirm it if no cluster key is needed for that;
    /// otherwise says that it comes too early (wire.md §7.2).
    #[inline]
    fn await_confirm<'d>(&mut self, id: SessionId, from: PeerId) -> Option<Action<'d>> {
        let session = self.table.find_mut(id, from)?;
        if session.state != State::HalfOpen {
            return None;
        }
        if self.cluster_key.is_some() {
            count(&mut self.counters.ignored_unconfirmed);
            return Some(Action::Ignore(Rejected::Unconfirmed));
        }
        self.confirmed(id);
        None
    }

    fn confirmed(&mut self, id: SessionId) {
        let ended = self.table.confirm(id.index);
        self.counters.superseded = self.counters.superseded.wrapping_add(ended);
    }

    /// A datagram whose header cannot be read. Only a Connect of another version is worth an answer
    /// (wire.md §3).
    #[cold]
    fn unreadable<'d>(&mut self, malformed: Malformed, out: &mut [u8]) -> Action<'d> {
        if matches!(malformed, Malformed::Version { kind, .. } if kind == Kind::Connect as u8) {
            count(&mut self.counters.refused_version);
            return self.refuse_connect(ErrorCode::BadVersion, None, 0, out);
        }
        count(&mut self.counters.ignored_malformed);
        Action::Ignore(Rejected::Malformed(malformed))
    }

    /// A datagram whose header can be read, but that breaks another rule. The owner of a session is
    /// told about its bad request, and a client about its bad Connect; nobody else is answered
    /// (wire.md §6.2).
    #[cold]
    fn malformed<'d>(
        &mut self,
        from: PeerId,
        header: &Header,
        malformed: Malformed,
        out: &mut [u8],
    ) -> Action<'d> {
        let session = self.table.find(header.session);
        let of_owner = session.is_some_and(|session| session.peer == from);
        match (header.kind, malformed) {
            (Kind::Request, Malformed::TooLong { .. }) if of_owner => {
                count(&mut self.counters.too_large);
                self.refuse(header, ErrorCode::TooLarge, out)
            }
            (Kind::Request, _) if of_owner => self.bad_request(header, out),
            (Kind::Connect, _) => {
                count(&mut self.counters.bad_requests);
                self.refuse_connect(ErrorCode::BadRequest, None, 0, out)
            }
            _ => {
                count(&mut self.counters.ignored_malformed);
                Action::Ignore(Rejected::Malformed(malformed))
            }
        }
    }

    #[cold]
    fn bad_request<'d>(&mut self, header: &Header, out: &mut [u8]) -> Action<'d> {
        count(&mut self.counters.bad_requests);
        self.refuse(header, ErrorCode::BadRequest, out)
    }

    #[cold]
    fn no_such_session<'d>(&mut self, header: &Header, out: &mut [u8]) -> Action<'d> {
        count(&mut self.counters.no_such_session);
        self.refuse(header, ErrorCode::NoSuchSession, out)
    }

    /// Answers with an Error that names the session, request and slot of the datagram that it
    /// refuses, by which the client knows that it is meant.
    #[cold]
    fn refuse<'d>(&mut self, header: &Header, code: ErrorCode, out: &mut [u8]) -> Action<'d> {
        let refusal = Datagram {
            session: header.session,
            request: header.request,
            slot: header.slot,
            message: Message::Error(Refusal::new(code)),
        };
        self.answer(&refusal, None, out)
    }

    /// Answers a Connect with an Error, which names no session.
    #[cold]
    fn refuse_connect<'d>(
        &mut self,
        code: ErrorCode,
        reason: Option<Reason>,
        client_nonce: u64,
        out: &mut [u8],
    ) -> Action<'d> {
        let refusal = Datagram {
            session: SessionId::NONE,
            request: RequestId(0),
            slot: 0,
            message: Message::Error(Refusal {
                code,
                reason,
                client_nonce,
            }),
        };
        self.answer(&refusal, None, out)
    }

    fn answer<'d>(
        &mut self,
        datagram: &Datagram<'_>,
        opened: Option<u32>,
        out: &mut [u8],
    ) -> Action<'d> {
        match datagram.emit(out) {
            Ok(len) => Action::Answer { len, opened },
            Err(_) => {
                count(&mut self.counters.no_room);
                Action::Ignore(Rejected::NoRoom)
            }
        }
    }
}
