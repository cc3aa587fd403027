//! The calling endpoint: one session with one request outstanding.
//!
//! The order of calls:
//!
//! 1. [`Client::connect`], or [`Client::call`] once [`Event::Connected`] was returned;
//! 2. [`Client::poll_transmit`] until it yields nothing, sending each datagram;
//! 3. wait for a datagram or for [`Client::next_timeout_ns`], whichever is first;
//! 4. [`Client::handle_datagram`] or [`Client::handle_timeout`], act upon the event, and again from
//!    2.
//!
//! Between `call` and the event that ends it, the request's payload stays at `[HEADER_LEN..]` of
//! the buffer that is given to `poll_transmit`: a retransmission writes the header anew and copies
//! nothing. Nothing else that `poll_transmit` writes in that time is longer than a header.

use core::ops::Range;

use super::Rejected;
use crate::session::SessionId;
use crate::wire::{
    offered_datagram_len, Accept, Connect, Datagram, ErrorCode, Header, Kind, Message, Refusal,
    HEADER_LEN,
};

pub use crate::session::RequestId;

/// The interval of retransmission doubles up to this many times.
const MAX_DOUBLINGS: u32 = 5;

/// What a client is told at its start. All times are in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct ClientConfig {
    /// Drawn at random for each client and not used again: by it, a server recognises a repeated
    /// Connect (wire.md §7.2).
    pub client_key: u64,
    /// The longest datagram that the client takes, header included, in bytes. Brought into
    /// `MIN_DATAGRAM..=MAX_DATAGRAM`.
    pub datagram_len: u16,
    /// How long to wait before the first retransmission; doubles with each, up to 32 times this.
    pub retransmit_ns: u64,
    /// After how long [`Client::connect`] fails.
    pub connect_timeout_ns: u64,
    /// After how long a call fails.
    pub call_timeout_ns: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is open: calls can be made.
    Connected,
    /// The server refused the session.
    Refused(ErrorCode),
    /// The server did not answer within `connect_timeout_ns`.
    ConnectTimedOut,
    /// The call's result is in the datagram that was just handled.
    Replied {
        /// Which call.
        request: RequestId,
        /// Where the payload lies in the datagram.
        payload: Range<usize>,
    },
    /// The call failed; the session is as before.
    Failed {
        /// Which call.
        request: RequestId,
        /// Why.
        error: ErrorCode,
    },
    /// The call was not answered within `call_timeout_ns`. It may have been executed. The session
    /// is as before.
    TimedOut {
        /// Which call.
        request: RequestId,
    },
    /// The session is over, and with it a call that was outstanding, which may have been executed.
    /// A new one can be opened by [`Client::connect`].
    Closed(ErrorCode),
}

/// Why a call was not begun: the caller's misuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// There is no open session.
    NotConnected,
    /// The previous call is still outstanding.
    Busy,
    /// The payload is longer than the session carries.
    TooLarge {
        /// Length of the payload in bytes.
        payload_len: usize,
        /// The longest that fits.
        limit: usize,
    },
}

impl core::fmt::Display for CallError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotConnected => f.write_str("no session is open"),
            Self::Busy => f.write_str("a call is outstanding"),
            Self::TooLarge { payload_len, limit } => {
                write!(
                    f,
                    "a payload of {payload_len} bytes exceeds the session's {limit}"
                )
            }
        }
    }
}

impl core::error::Error for CallError {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// A Connect is sent until an Accept comes.
    Connecting,
    /// The session is open and no call is outstanding.
    Idle,
    /// A Request is sent until its answer comes.
    Calling {
        request: RequestId,
        rpc_id: u32,
        payload_len: u16,
    },
}

/// The calling endpoint. The module's front comment gives the order of calls.
#[derive(Clone, Debug)]
pub struct Client {
    config: ClientConfig,
    state: State,
    session: SessionId,
    /// The session's longest datagram, once there is one.
    datagram_len: u16,
    /// Never starts anew, not even with a new session: should the server still have the old one,
    /// its next request is new to it nevertheless (wire.md §8).
    last_request: RequestId,
    /// The state's datagram (Connect or Request) is to be sent.
    transmit: bool,
    confirm: bool,
    ping: bool,
    disconnect: bool,
    /// The server has answered something of this session, so it knows that we have its Accept.
    heard: bool,
    /// How often the state's datagram has been sent again.
    doublings: u32,
    /// When to send again: the Connect, the Request or, if idle, a Ping.
    resend_at_ns: u64,
    /// When to give up: the handshake, the call or, if idle, the session.
    deadline_ns: u64,
    idle_timeout_ns: u64,
}

impl Client {
    /// A client without a session.
    pub fn new(config: ClientConfig) -> Self {
        let datagram_len = offered_datagram_len(config.datagram_len);
        Self {
            config: ClientConfig {
                datagram_len,
                ..config
            },
            state: State::Closed,
            session: SessionId::NONE,
            datagram_len,
            last_request: RequestId(0),
            transmit: false,
            confirm: false,
            ping: false,
            disconnect: false,
            heard: false,
            doublings: 0,
            resend_at_ns: 0,
            deadline_ns: 0,
            idle_timeout_ns: 0,
        }
    }

    /// Starts the handshake. Whatever session or call there was is forgotten without a word.
    pub fn connect(&mut self, now_ns: u64) {
        self.close();
        self.state = State::Connecting;
        self.begin(now_ns, self.config.connect_timeout_ns);
    }

    /// Starts a call, whose payload of `payload_len` bytes is at `[HEADER_LEN..]` of the next
    /// buffers for [`Client::poll_transmit`].
    #[inline]
    pub fn call(
        &mut self,
        now_ns: u64,
        rpc_id: u32,
        payload_len: usize,
    ) -> Result<RequestId, CallError> {
        match self.state {
            State::Idle => {}
            State::Calling { .. } => return Err(CallError::Busy),
            State::Closed | State::Connecting => return Err(CallError::NotConnected),
        }
        let limit = self.payload_limit();
        let payload_len = match u16::try_from(payload_len) {
            Ok(len) if usize::from(len) <= limit => len,
            _ => return Err(CallError::TooLarge { payload_len, limit }),
        };
        // A u64 does not come round: at a call a nanosecond it lasts for 584 years.
        let request = RequestId(self.last_request.0.wrapping_add(1));
        self.last_request = request;
        self.state = State::Calling {
            request,
            rpc_id,
            payload_len,
        };
        self.begin(now_ns, self.config.call_timeout_ns);
        Ok(request)
    }

    /// Ends the session. An outstanding call ends with it, without an event.
    /// [`Client::poll_transmit`] then yields the Disconnect once; should it be lost, the session
    /// expires at the server.
    pub fn disconnect(&mut self) {
        let open = matches!(self.state, State::Idle | State::Calling { .. });
        self.close();
        self.disconnect = open;
    }

    /// Whether a session is open.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Idle | State::Calling { .. })
    }

    /// The session that is or was open; [`SessionId::NONE`] before the first.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The longest payload of a call in this session, in bytes.
    pub fn payload_limit(&self) -> usize {
        usize::from(self.datagram_len).saturating_sub(HEADER_LEN)
    }

    /// Writes the next datagram to send into `datagram` and returns its length. `None` if there is
    /// nothing to send, or if it does not fit: a buffer of the configured `datagram_len` is never
    /// too small.
    #[inline]
    pub fn poll_transmit(&mut self, now_ns: u64, datagram: &mut [u8]) -> Option<usize> {
        if self.transmit {
            if let State::Calling {
                request,
                rpc_id,
                payload_len,
            } = self.state
            {
                let len = HEADER_LEN.saturating_add(usize::from(payload_len));
                if len > datagram.len() {
                    return None;
                }
                let header =
                    Header::of_message(Kind::Request, self.session, request, rpc_id, payload_len);
                header.emit(datagram).ok()?;
                self.sent(now_ns);
                return Some(len);
            }
        }
        self.poll_control(now_ns, datagram)
    }

    /// Takes a datagram that arrived.
    #[inline]
    pub fn handle_datagram(
        &mut self,
        now_ns: u64,
        datagram: &[u8],
    ) -> Result<Option<Event>, Rejected> {
        let Datagram {
            session,
            request,
            message,
        } = Datagram::parse(datagram)?;
        match message {
            Message::Reply { payload } => {
                self.expect_answer(session, request)?;
                self.heard(now_ns);
                self.rest(now_ns);
                let end = HEADER_LEN.saturating_add(payload.len());
                Ok(Some(Event::Replied {
                    request,
                    payload: HEADER_LEN..end,
                }))
            }
            Message::Accept(accept) => self.handle_accept(now_ns, session, accept),
            Message::Error(refusal) => self.handle_error(now_ns, session, request, refusal),
            Message::Pong => {
                self.expect_session(session)?;
                self.heard(now_ns);
                Ok(None)
            }
            Message::Connect(_)
            | Message::Confirm
            | Message::Request { .. }
            | Message::Disconnect
            | Message::Ping => Err(Rejected::Unexpected(message.kind())),
        }
    }

    /// Acts upon the time that has come: asks [`Client::poll_transmit`] to send again, or gives up.
    pub fn handle_timeout(&mut self, now_ns: u64) -> Option<Event> {
        if self.state == State::Closed {
            return None;
        }
        if now_ns >= self.deadline_ns {
            return self.give_up(now_ns);
        }
        if now_ns >= self.resend_at_ns {
            if self.state == State::Idle {
                self.ping = true;
                self.resend_at_ns = now_ns.saturating_add(self.ping_interval_ns());
            } else {
                self.transmit = true;
                self.doublings = self.doublings.saturating_add(1).min(MAX_DOUBLINGS);
                // Set again when it is sent; until then, do not ask for it over and over.
                self.resend_at_ns = now_ns.saturating_add(self.retransmit_interval_ns());
            }
        }
        None
    }

    /// When to call [`Client::handle_timeout`]; `None` without a session or handshake.
    #[inline]
    pub fn next_timeout_ns(&self) -> Option<u64> {
        (self.state != State::Closed).then(|| self.resend_at_ns.min(self.deadline_ns))
    }

    /// Everything to be sent but requests: the slow path.
    #[inline(never)]
    fn poll_control(&mut self, now_ns: u64, datagram: &mut [u8]) -> Option<usize> {
        let message = if self.disconnect {
            Message::Disconnect
        } else if self.transmit && self.state == State::Connecting {
            let ClientConfig {
                client_key,
                datagram_len,
                ..
            } = self.config;
            Message::Connect(Connect {
                client_key,
                datagram_len,
            })
        } else if self.confirm {
            Message::Confirm
        } else if self.ping {
            Message::Ping
        } else {
            return None;
        };
        let session = match message {
            Message::Connect(_) => SessionId::NONE,
            _ => self.session,
        };
        let len = Datagram {
            session,
            request: RequestId(0),
            message,
        }
        .emit(datagram)
        .ok()?;
        match message {
            Message::Disconnect => self.disconnect = false,
            Message::Connect(_) => self.sent(now_ns),
            Message::Confirm => self.confirm = false,
            _ => self.ping = false,
        }
        Some(len)
    }

    fn handle_accept(
        &mut self,
        now_ns: u64,
        session: SessionId,
        accept: Accept,
    ) -> Result<Option<Event>, Rejected> {
        if self.state != State::Connecting {
            // A doubled or late Accept: the server has had, or will have, our Confirm or a Ping.
            return Err(Rejected::Unexpected(Kind::Accept));
        }
        if accept.client_key != self.config.client_key {
            return Err(Rejected::OtherSession);
        }
        if accept.datagram_len > self.config.datagram_len {
            return Err(Rejected::BadOffer);
        }
        self.session = session;
        self.datagram_len = accept.datagram_len;
        self.idle_timeout_ns = u64::from(accept.idle_timeout_ms).saturating_mul(1_000_000);
        self.confirm = true;
        self.heard = false;
        self.rest(now_ns);
        Ok(Some(Event::Connected))
    }

    fn handle_error(
        &mut self,
        now_ns: u64,
        session: SessionId,
        request: RequestId,
        refusal: Refusal,
    ) -> Result<Option<Event>, Rejected> {
        let Refusal { code, client_key } = refusal;
        if session == SessionId::NONE {
            // Refuses a Connect. A server that could not read ours cannot name its key either
            // (wire.md §6).
            if self.state != State::Connecting {
                return Err(Rejected::Unexpected(Kind::Error));
            }
            let unread =
                client_key == 0 && matches!(code, ErrorCode::BadVersion | ErrorCode::BadRequest);
            if client_key != self.config.client_key && !unread {
                return Err(Rejected::OtherSession);
            }
            self.close();
            return Ok(Some(Event::Refused(code)));
        }
        self.expect_session(session)?;
        if code == ErrorCode::NoSuchSession || request == RequestId(0) {
            self.close();
            return Ok(Some(Event::Closed(code)));
        }
        self.expect_answer(session, request)?;
        self.heard(now_ns);
        self.rest(now_ns);
        Ok(Some(Event::Failed {
            request,
            error: code,
        }))
    }

    fn give_up(&mut self, now_ns: u64) -> Option<Event> {
        match self.state {
            State::Closed => None,
            State::Connecting => {
                self.close();
                Some(Event::ConnectTimedOut)
            }
            State::Calling { request, .. } => {
                // The session may well live; Pings find out.
                self.heard = false;
                self.rest(now_ns);
                Some(Event::TimedOut { request })
            }
            State::Idle => {
                // The server has not answered a Ping for as long as it keeps a silent session.
                self.close();
                Some(Event::Closed(ErrorCode::NoSuchSession))
            }
        }
    }

    /// Whether a datagram of the server belongs to our session.
    #[inline]
    fn expect_session(&self, session: SessionId) -> Result<(), Rejected> {
        if self.is_connected() && session == self.session {
            Ok(())
        } else {
            Err(Rejected::OtherSession)
        }
    }

    /// Whether it answers the outstanding call.
    #[inline]
    fn expect_answer(&self, session: SessionId, answered: RequestId) -> Result<(), Rejected> {
        self.expect_session(session)?;
        match self.state {
            State::Calling { request, .. } if request == answered => Ok(()),
            _ => Err(Rejected::StaleRequest),
        }
    }

    /// Starts to send the state's datagram.
    #[inline]
    fn begin(&mut self, now_ns: u64, timeout_ns: u64) {
        self.transmit = true;
        self.doublings = 0;
        self.deadline_ns = now_ns.saturating_add(timeout_ns);
        self.resend_at_ns = now_ns.saturating_add(self.config.retransmit_ns);
    }

    /// The state's datagram was handed out.
    #[inline]
    fn sent(&mut self, now_ns: u64) {
        self.transmit = false;
        if self.state != State::Connecting {
            // Any datagram of the session confirms it, and shows that we live.
            self.confirm = false;
            self.ping = false;
        }
        self.resend_at_ns = now_ns.saturating_add(self.retransmit_interval_ns());
    }

    /// The server said something of the session.
    #[inline]
    fn heard(&mut self, now_ns: u64) {
        self.heard = true;
        if self.state == State::Idle {
            self.rest(now_ns);
        }
    }

    /// No call is outstanding (any more).
    #[inline]
    fn rest(&mut self, now_ns: u64) {
        self.state = State::Idle;
        self.transmit = false;
        self.resend_at_ns = now_ns.saturating_add(self.ping_interval_ns());
        self.deadline_ns = now_ns.saturating_add(self.idle_timeout_ns);
    }

    /// Forgets everything that was to be sent.
    fn close(&mut self) {
        self.state = State::Closed;
        self.transmit = false;
        self.confirm = false;
        self.ping = false;
        self.disconnect = false;
    }

    fn retransmit_interval_ns(&self) -> u64 {
        self.config
            .retransmit_ns
            .saturating_mul(1_u64.wrapping_shl(self.doublings))
    }

    /// Pings are four to an idle timeout; but until the server has shown that it knows that we have
    /// its Accept, they make up for a lost Confirm.
    fn ping_interval_ns(&self) -> u64 {
        let interval_ns = self.idle_timeout_ns / 4;
        if self.heard {
            interval_ns
        } else {
            interval_ns.min(self.config.retransmit_ns)
        }
    }
}
