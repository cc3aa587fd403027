//! How the client opens and closes its session (wire.md §7).

use super::{Client, ClientConfig, Control, Event, Granted, SlotSet, State, Transmit};
use crate::rpc::Rejected;
use crate::session::auth;
use crate::session::{RequestId, SessionId};
use crate::wire::{
    Accept, Confirm, Connect, Datagram, ErrorCode, Header, Kind, Message, Refusal, MAX_CONTROL_LEN,
};

impl Client<'_> {
    /// Starts the handshake. Whatever session or calls there were are forgotten without a word.
    pub fn connect(&mut self, now_ns: u64) {
        self.close();
        // Another handshake, another nonce (wire.md §7.2).
        self.nonce = self.nonce.wrapping_add(1);
        self.state = State::Connecting;
        self.control.connect = true;
        self.retreats = 0;
        self.deadline_ns = now_ns.saturating_add(self.config.connect_timeout_ns);
        self.resend_at_ns = now_ns.saturating_add(self.handshake_interval_ns());
    }

    /// Ends the session. Outstanding calls end with it, without an event.
    /// [`Client::poll_transmit`] then yields the Disconnect once; should it be lost, the session
    /// expires at the server.
    pub fn disconnect(&mut self) {
        let open = self.state == State::Open;
        self.close();
        self.control.disconnect = open;
    }

    /// Everything to be sent but requests and wishes for parts of replies.
    #[inline(never)]
    pub(super) fn poll_control(
        &mut self,
        now_ns: u64,
        out: &mut [u8; MAX_CONTROL_LEN],
    ) -> Option<Transmit> {
        let mut session = self.session;
        let message = if self.control.connect {
            session = SessionId::NONE;
            Message::Connect(self.wishes())
        } else if self.control.confirm {
            Message::Confirm(Confirm {
                tag: self.confirm_tag,
            })
        } else if self.control.ping {
            Message::Ping
        } else {
            Message::Disconnect
        };
        let datagram = Datagram {
            session,
            request: RequestId(0),
            slot: 0,
            message,
        };
        let header_len = datagram.emit(out).ok()?;
        match message {
            Message::Connect(_) => {
                self.control.connect = false;
                self.resend_at_ns = now_ns.saturating_add(self.handshake_interval_ns());
            }
            Message::Confirm(_) => self.control.confirm = false,
            Message::Ping => self.control.ping = false,
            _ => self.control.disconnect = false,
        }
        Some(Transmit {
            header_len,
            payload: None,
            again: false,
        })
    }

    fn wishes(&self) -> Connect {
        let ClientConfig {
            client_key,
            cluster_key,
            datagram_len,
            slots,
            credits,
            max_message_len,
            ..
        } = self.config;
        let mut connect = Connect {
            client_key,
            client_nonce: self.nonce,
            datagram_len,
            slots,
            credits,
            max_message_len,
            tag: None,
        };
        if let Some(key) = cluster_key {
            connect.tag = Some(key.connect_tag(&connect));
        }
        connect
    }

    pub(super) fn handle_accept(
        &mut self,
        now_ns: u64,
        session: SessionId,
        accept: Accept,
    ) -> Result<Option<Event>, Rejected> {
        if self.state != State::Connecting {
            // A doubled or late Accept: the server has had, or will have, our Confirm.
            return Err(Rejected::Unexpected(Kind::Accept));
        }
        if accept.client_nonce != self.nonce {
            return Err(Rejected::OtherSession);
        }
        let asked = &self.config;
        if accept.datagram_len > asked.datagram_len
            || accept.slots > asked.slots
            || accept.credits > asked.credits
            || accept.max_message_len > asked.max_message_len
        {
            return Err(Rejected::BadOffer);
        }
        self.confirm_tag = match (&asked.cluster_key, &accept.tag) {
            (None, None) => [0; 16],
            (Some(key), Some(tag)) if auth::same(tag, &key.accept_tag(session, &accept)) => {
                key.confirm_tag(session, asked.client_key, self.nonce, accept.server_nonce)
            }
            _ => return Err(Rejected::BadTag),
        };
        self.session = session;
        self.granted = Granted {
            slots: accept.slots,
            credits: accept.credits,
            datagram_len: accept.datagram_len,
            max_message_len: accept.max_message_len,
        };
        self.longest_whole = self.granted.part_len().min(accept.max_message_len);
        let reply = Header::of(Kind::Reply, session, RequestId(0), 0, 0);
        let [kind, name, ..] = reply.words();
        self.reply_start = [kind, name];
        let unused = 64_u32.saturating_sub(u32::from(accept.slots));
        self.window = u64::MAX.checked_shr(unused).unwrap_or(0);
        self.idle_timeout_ns = u64::from(accept.idle_timeout_ms).saturating_mul(1_000_000);
        self.state = State::Open;
        self.control = Control {
            confirm: true,
            ..Control::default()
        };
        self.heard = false;
        self.retreats = 0;
        self.rest(now_ns);
        Ok(Some(Event::Connected))
    }

    /// An Error that names no session refuses a Connect. A server that could not read ours cannot
    /// name its nonce either (wire.md §6.1).
    pub(super) fn handle_refusal(&mut self, refusal: Refusal) -> Result<Option<Event>, Rejected> {
        if self.state != State::Connecting {
            return Err(Rejected::Unexpected(Kind::Error));
        }
        let unread = refusal.client_nonce == 0
            && matches!(refusal.code, ErrorCode::BadVersion | ErrorCode::BadRequest);
        if refusal.client_nonce != self.nonce && !unread {
            return Err(Rejected::OtherSession);
        }
        self.close();
        Ok(Some(Event::Refused(refusal)))
    }

    /// The session is over, and with it its calls.
    pub(super) fn closed(&mut self, error: Refusal) -> Event {
        let lost = SlotSet(self.busy);
        self.close();
        Event::Closed { error, lost }
    }

    /// Forgets the session, its calls and everything that was to be sent.
    pub(super) fn close(&mut self) {
        self.state = State::Closed;
        self.control = Control::default();
        self.busy = 0;
        self.ready = 0;
        self.in_flight = 0;
        self.calls_at_ns = u64::MAX;
    }
}
