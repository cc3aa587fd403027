//! The serving endpoint.
//!
//! The order of calls, for each datagram that arrives:
//!
//! 1. [`Server::peer_of`] names the peer that owns the session in the header. If the datagram's
//!    source is that peer's address, the glue has `from` without a search; otherwise it resolves
//!    the source itself.
//! 2. [`Server::handle_datagram`] returns an [`Action`]. On [`Action::Dispatch`] the glue runs the
//!    handler, which puts its result at `[HEADER_LEN..]` of the session's reply buffer, now or
//!    later, and then calls [`Server::complete`].
//! 3. [`Server::poll_closed`] until it yields nothing.
//!
//! And once `next_timeout_ns` is reached: [`Server::handle_timeout`], then `poll_closed` likewise.
//!
//! Each session has one reply buffer, which the glue keeps by session index. It is written by the
//! handler and by `complete`, sent again on [`Action::Resend`], and otherwise left alone until the
//! session's next request: it is the saved reply of at-most-once execution (wire.md §8).

use super::counters::count;
use super::Rejected;
use crate::session::table::{Full, State, Table};
use crate::session::{RequestId, SessionId};
use crate::wire::{
    offered_datagram_len, Accept, Connect, Datagram, ErrorCode, Header, Kind, Malformed, Message,
    Refusal, HEADER_LEN,
};

pub use super::counters::Counters;
pub use crate::session::{Closed, PeerId, Session};

/// What a server is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// Names this incarnation; different after every restart (wire.md §7.1).
    pub epoch: u32,
    /// The longest datagram that the server takes, header included, in bytes. Brought into
    /// `MIN_DATAGRAM..=MAX_DATAGRAM`.
    pub datagram_len: u16,
    /// How long a session of which nothing is heard is kept, in nanoseconds.
    pub idle_timeout_ns: u64,
    /// The same for a session whose client has not been heard since the Accept.
    pub handshake_timeout_ns: u64,
}

/// What the glue does with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'d> {
    /// Nothing, for this reason.
    Ignore(Rejected),
    /// Nothing: the datagram was taken in and needs no answer.
    Done,
    /// Send `out[..len]` to the datagram's source.
    Answer {
        /// Length in bytes.
        len: usize,
        /// The session that the answer grants, if it is new: the glue keeps the peer's address
        /// handle until [`Server::poll_closed`] yields this session.
        opened: Option<u32>,
    },
    /// Run the handler, then [`Server::complete`].
    Dispatch(Request<'d>),
    /// Send the first `len` bytes of the session's reply buffer to its peer once more.
    Resend {
        /// Whose reply buffer.
        session_index: u32,
        /// Length in bytes.
        len: usize,
    },
}

/// A request that is to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'d> {
    /// What [`Server::complete`] wants back.
    pub dispatched: Dispatched,
    /// Which handler.
    pub rpc_id: u32,
    /// What it is given, in the receive buffer.
    pub payload: &'d [u8],
}

/// Names a request from its dispatch to its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatched {
    /// Whose: the index of the session, and so of its reply buffer.
    pub session_index: u32,
    /// Which of the slot's sessions.
    pub generation: u32,
    /// Which of its requests.
    pub request: RequestId,
}

/// The serving endpoint, over a table that the caller owns.
pub struct Server<'a> {
    table: Table<'a>,
    epoch: u32,
    datagram_len: u16,
    idle_timeout_ms: u32,
    going_away: bool,
    counters: Counters,
}

impl<'a> Server<'a> {
    /// A server with as many sessions as there are slots. What was in the slots is forgotten.
    pub fn new(config: ServerConfig, sessions: &'a mut [Session]) -> Self {
        let datagram_len = offered_datagram_len(config.datagram_len);
        Self {
            table: Table::new(
                sessions,
                config.epoch,
                config.idle_timeout_ns,
                config.handshake_timeout_ns,
            ),
            epoch: config.epoch,
            datagram_len,
            idle_timeout_ms: u32::try_from(config.idle_timeout_ns / 1_000_000)
                .unwrap_or(u32::MAX)
                .max(1),
            going_away: false,
            counters: Counters::default(),
        }
    }

    /// The peer that owns the live session named in the datagram's header, if there is one. A hint
    /// that saves a search: nothing else of the datagram is checked before
    /// [`Server::handle_datagram`].
    #[inline]
    pub fn peer_of(&self, datagram: &[u8]) -> Option<PeerId> {
        Some(self.table.find(Header::session_hint(datagram)?)?.peer)
    }

    /// Takes a datagram that came from the address `from`. Stateless answers are written to `out`,
    /// which needs [`ANSWER_LEN`] bytes.
    #[inline]
    pub fn handle_datagram<'d>(
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
        match Datagram::from_header(&header, payload) {
            Ok(Datagram {
                message: Message::Request { rpc_id, payload },
                ..
            }) => self.handle_request(now_ns, from, &header, rpc_id, payload, out),
            Ok(datagram) => self.handle_control(now_ns, from, &datagram, out),
            Err(malformed) => self.malformed(from, &header, malformed, out),
        }
    }

    /// Finishes a dispatched request. If `result` is the length of the payload that the handler put
    /// at `reply[HEADER_LEN..]`, writes the header before it; if it is an error, writes an Error.
    /// Returns how many bytes of `reply` to send to the session's peer, and 0 if there is nobody to
    /// send to any more.
    ///
    /// `reply` is the session's reply buffer and stays untouched until the next request of that
    /// session. A result that does not fit it, or the session's datagrams, becomes
    /// [`ErrorCode::TooLarge`].
    #[inline]
    pub fn complete(
        &mut self,
        request: &Dispatched,
        result: Result<usize, ErrorCode>,
        reply: &mut [u8],
    ) -> usize {
        let Dispatched {
            session_index,
            generation,
            request: id,
        } = *request;
        let Some(session) = self.table.executing_mut(session_index, generation, id.0) else {
            return 0;
        };
        if session.state == State::Draining {
            self.table.drained(session_index);
            return 0;
        }
        let room = usize::from(session.datagram_len).min(reply.len());
        let id_of_session = SessionId {
            index: session_index,
            generation,
            epoch: self.epoch,
        };
        let result = result.and_then(|payload_len| {
            let len = payload_len
                .checked_add(HEADER_LEN)
                .filter(|&len| len <= room)
                .ok_or(ErrorCode::TooLarge)?;
            let payload_len = u16::try_from(payload_len).map_err(|_| ErrorCode::TooLarge)?;
            Header::of_message(Kind::Reply, id_of_session, id, 0, payload_len)
                .emit(reply)
                .map_err(|_| ErrorCode::TooLarge)?;
            Ok(len)
        });
        let len = match result {
            Ok(len) => len,
            Err(code) => {
                let message = Message::Error(Refusal {
                    code,
                    client_key: 0,
                });
                Datagram {
                    session: id_of_session,
                    request: id,
                    message,
                }
                .emit(reply)
                .unwrap_or(0)
            }
        };
        session.state = State::Open;
        session.reply_len = u16::try_from(len).unwrap_or(0);
        len
    }

    /// Looks for sessions that have been silent for too long, a bounded number at a time;
    /// [`Server::poll_closed`] yields them.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        let expired = self.table.expire(now_ns);
        self.counters.expired = self.counters.expired.wrapping_add(expired);
    }

    /// The next session that ended. Its slot is not taken again before this has yielded it.
    pub fn poll_closed(&mut self) -> Option<Closed> {
        self.table.poll_closed()
    }

    /// When to call [`Server::handle_timeout`]; `None` while there are no sessions.
    pub fn next_timeout_ns(&self) -> Option<u64> {
        self.table.next_scan_ns()
    }

    /// From now on, new sessions and new requests are refused with [`ErrorCode::GoingAway`].
    /// Requests that are being executed complete, and saved replies are still sent.
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

    #[inline]
    fn handle_request<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        header: &Header,
        rpc_id: u32,
        payload: &'d [u8],
        out: &mut [u8],
    ) -> Action<'d> {
        let Some(session) = self
            .table
            .find_mut(header.session)
            .filter(|session| session.peer == from)
        else {
            return self.no_such_session(header.session, header.request, out);
        };
        session.last_heard_ns = now_ns;
        if session.state == State::HalfOpen {
            // The first Request also confirms (wire.md §7.2).
            session.state = State::Open;
        }
        if session.state == State::Executing {
            count(&mut self.counters.ignored_executing);
            return Action::Ignore(Rejected::StillExecuting);
        }
        if header.request.0 <= session.last_request {
            if header.request.0 == session.last_request && session.reply_len > 0 {
                count(&mut self.counters.replays);
                let len = usize::from(session.reply_len);
                return Action::Resend {
                    session_index: header.session.index,
                    len,
                };
            }
            count(&mut self.counters.ignored_stale);
            return Action::Ignore(Rejected::StaleRequest);
        }
        if self.going_away {
            count(&mut self.counters.refused_going_away);
            return self.refuse(header.session, header.request, ErrorCode::GoingAway, 0, out);
        }
        if payload.len().saturating_add(HEADER_LEN) > usize::from(session.datagram_len) {
            count(&mut self.counters.too_large);
            return self.refuse(header.session, header.request, ErrorCode::TooLarge, 0, out);
        }
        session.last_request = header.request.0;
        session.reply_len = 0;
        session.state = State::Executing;
        count(&mut self.counters.requests);
        let dispatched = Dispatched {
            session_index: header.session.index,
            generation: header.session.generation,
            request: header.request,
        };
        Action::Dispatch(Request {
            dispatched,
            rpc_id,
            payload,
        })
    }

    /// Everything but requests: the slow path.
    #[inline(never)]
    fn handle_control<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        datagram: &Datagram<'_>,
        out: &mut [u8],
    ) -> Action<'d> {
        let Datagram {
            session: id,
            request,
            message,
        } = *datagram;
        match message {
            Message::Connect(connect) => return self.handle_connect(now_ns, from, connect, out),
            Message::Confirm | Message::Disconnect | Message::Ping => {}
            // An Error is never answered with an Error (wire.md §6), nor is anything else that only
            // a server sends.
            Message::Accept(_)
            | Message::Reply { .. }
            | Message::Error(_)
            | Message::Pong
            | Message::Request { .. } => {
                count(&mut self.counters.ignored_unexpected);
                return Action::Ignore(Rejected::Unexpected(message.kind()));
            }
        }
        let Some(session) = self
            .table
            .find_mut(id)
            .filter(|session| session.peer == from)
        else {
            if matches!(message, Message::Disconnect) {
                // What the client wants is so already.
                count(&mut self.counters.no_such_session);
                return Action::Ignore(Rejected::OtherSession);
            }
            return self.no_such_session(id, request, out);
        };
        session.last_heard_ns = now_ns;
        if session.state == State::HalfOpen {
            session.state = State::Open;
        }
        match message {
            Message::Disconnect => {
                self.table.disconnect(id.index);
                count(&mut self.counters.disconnects);
                Action::Done
            }
            Message::Ping => {
                count(&mut self.counters.pings);
                self.answer(
                    &Datagram {
                        session: id,
                        request,
                        message: Message::Pong,
                    },
                    None,
                    out,
                )
            }
            _ => Action::Done,
        }
    }

    fn handle_connect<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        connect: Connect,
        out: &mut [u8],
    ) -> Action<'d> {
        let Connect {
            client_key,
            datagram_len,
        } = connect;
        if self.going_away {
            count(&mut self.counters.refused_going_away);
            return self.refuse(
                SessionId::NONE,
                RequestId(0),
                ErrorCode::GoingAway,
                client_key,
                out,
            );
        }
        if let Some((index, session)) = self.table.find_by_key(from, client_key) {
            // The Connect or our Accept was lost, doubled or late (wire.md §7.2).
            let id = SessionId {
                index,
                generation: session.generation,
                epoch: self.epoch,
            };
            let datagram_len = session.datagram_len;
            count(&mut self.counters.repeated_connects);
            return self.accept(id, client_key, datagram_len, None, out);
        }
        if out.len() < ANSWER_LEN {
            count(&mut self.counters.no_room);
            return Action::Ignore(Rejected::NoRoom);
        }
        let datagram_len = datagram_len.min(self.datagram_len);
        match self.table.open(now_ns, from, client_key, datagram_len) {
            Ok((index, generation)) => {
                count(&mut self.counters.connects);
                let id = SessionId {
                    index,
                    generation,
                    epoch: self.epoch,
                };
                self.accept(id, client_key, datagram_len, Some(index), out)
            }
            Err(Full::Slots | Full::Chain) => {
                count(&mut self.counters.refused_busy);
                self.refuse(
                    SessionId::NONE,
                    RequestId(0),
                    ErrorCode::Busy,
                    client_key,
                    out,
                )
            }
        }
    }

    fn accept<'d>(
        &mut self,
        session: SessionId,
        client_key: u64,
        datagram_len: u16,
        opened: Option<u32>,
        out: &mut [u8],
    ) -> Action<'d> {
        let accept = Accept {
            client_key,
            datagram_len,
            slots: 1,
            idle_timeout_ms: self.idle_timeout_ms,
        };
        self.answer(
            &Datagram {
                session,
                request: RequestId(0),
                message: Message::Accept(accept),
            },
            opened,
            out,
        )
    }

    /// A datagram whose header cannot be read. Only a Connect of another version is worth an answer
    /// (wire.md §3).
    #[cold]
    fn unreadable<'d>(&mut self, malformed: Malformed, out: &mut [u8]) -> Action<'d> {
        if matches!(malformed, Malformed::Version { kind, .. } if kind == Kind::Connect as u8) {
            count(&mut self.counters.refused_version);
            return self.refuse(SessionId::NONE, RequestId(0), ErrorCode::BadVersion, 0, out);
        }
        count(&mut self.counters.ignored_malformed);
        Action::Ignore(Rejected::Malformed(malformed))
    }

    /// A datagram whose header can be read, but that breaks another rule. The owner of a session is
    /// told about its bad request, and a client about its bad Connect; nobody else is answered
    /// (wire.md §6).
    #[cold]
    fn malformed<'d>(
        &mut self,
        from: PeerId,
        header: &Header,
        malformed: Malformed,
        out: &mut [u8],
    ) -> Action<'d> {
        let of_owner = self
            .table
            .find(header.session)
            .is_some_and(|session| session.peer == from);
        match (header.kind, malformed) {
            (Kind::Request, Malformed::Segmented { .. }) if of_owner => {
                count(&mut self.counters.too_large);
                self.refuse(header.session, header.request, ErrorCode::TooLarge, 0, out)
            }
            (Kind::Request, _) if of_owner => {
                count(&mut self.counters.bad_requests);
                self.refuse(
                    header.session,
                    header.request,
                    ErrorCode::BadRequest,
                    0,
                    out,
                )
            }
            (Kind::Connect, _) => {
                count(&mut self.counters.bad_requests);
                self.refuse(SessionId::NONE, RequestId(0), ErrorCode::BadRequest, 0, out)
            }
            _ => {
                count(&mut self.counters.ignored_malformed);
                Action::Ignore(Rejected::Malformed(malformed))
            }
        }
    }

    #[cold]
    fn no_such_session<'d>(
        &mut self,
        session: SessionId,
        request: RequestId,
        out: &mut [u8],
    ) -> Action<'d> {
        count(&mut self.counters.no_such_session);
        self.refuse(session, request, ErrorCode::NoSuchSession, 0, out)
    }

    /// Answers with an Error that names the session and request of the datagram that it refuses, by
    /// which the client knows that it is meant.
    #[cold]
    fn refuse<'d>(
        &mut self,
        session: SessionId,
        request: RequestId,
        code: ErrorCode,
        client_key: u64,
        out: &mut [u8],
    ) -> Action<'d> {
        let message = Message::Error(Refusal { code, client_key });
        self.answer(
            &Datagram {
                session,
                request,
                message,
            },
            None,
            out,
        )
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

/// The longest answer that [`Server::handle_datagram`] writes to `out`, in bytes: an Accept.
pub const ANSWER_LEN: usize = HEADER_LEN + crate::wire::accept::LEN;
