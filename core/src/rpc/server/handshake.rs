//! How a session is granted and opened (wire.md §7).

use super::{Action, Server, ANSWER_LEN};
use crate::rpc::counters::count;
use crate::rpc::Rejected;
use crate::session::auth;
use crate::session::entry::State;
use crate::session::table::Wanted;
use crate::session::{PeerId, RequestId, SessionId};
use crate::wire::{
    Accept, Confirm, Connect, Datagram, ErrorCode, Header, Message, Reason, Refusal,
};

impl Server<'_> {
    pub(super) fn handle_connect<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        connect: &Connect,
        out: &mut [u8],
    ) -> Action<'d> {
        let nonce = connect.client_nonce;
        if let Some(reason) = self.distrust(connect) {
            return self.refuse_connect(ErrorCode::NotAuthorised, Some(reason), nonce, out);
        }
        if self.going_away {
            count(&mut self.counters.refused_going_away);
            return self.refuse_connect(ErrorCode::GoingAway, None, nonce, out);
        }
        let wanted = Wanted {
            peer: from,
            client_key: connect.client_key,
            client_nonce: nonce,
            datagram_len: connect.datagram_len.min(self.datagram_len),
            max_message_len: connect.max_message_len.min(self.max_message_len),
            slots: connect.slots.min(self.max_slots),
            credits: connect.credits.min(self.max_credits),
        };
        if let Some((index, _)) = self.table.find_opened(&wanted) {
            // The Connect or our Accept was lost, doubled or late (wire.md §7.2).
            count(&mut self.counters.repeated_connects);
            return self.accept(index, None, out);
        }
        if out.len() < ANSWER_LEN {
            count(&mut self.counters.no_room);
            return Action::Ignore(Rejected::NoRoom);
        }
        match self.table.open(now_ns, &wanted) {
            Ok(index) => {
                count(&mut self.counters.connects);
                self.accept(index, Some(index), out)
            }
            Err(_full) => {
                count(&mut self.counters.refused_busy);
                self.refuse_connect(ErrorCode::Busy, None, nonce, out)
            }
        }
    }

    /// Why the Connect is not of this cluster, if it is not (wire.md §7.5).
    fn distrust(&mut self, connect: &Connect) -> Option<Reason> {
        let (reason, counter) = match (&self.cluster_key, &connect.tag) {
            (None, None) => return None,
            (Some(key), Some(tag)) => {
                if auth::same(tag, &key.connect_tag(connect)) {
                    return None;
                }
                (Reason::WrongKey, &mut self.counters.refused_wrong_key)
            }
            (Some(_), None) => (Reason::KeyRequired, &mut self.counters.refused_key_required),
            (None, Some(_)) => (Reason::NoKeyHere, &mut self.counters.refused_no_key_here),
        };
        count(counter);
        Some(reason)
    }

    /// Writes the Accept of the session at `index`.
    fn accept<'d>(&mut self, index: u32, opened: Option<u32>, out: &mut [u8]) -> Action<'d> {
        let Some(session) = self.table.at(index) else {
            return Action::Ignore(Rejected::OtherSession);
        };
        let id = SessionId {
            index,
            generation: session.generation,
            epoch: self.epoch,
        };
        let mut accept = Accept {
            client_nonce: session.client_nonce,
            server_nonce: 0,
            datagram_len: session.datagram_len,
            slots: u16::from(session.slots),
            credits: session.credits,
            max_message_len: session.max_message_len,
            idle_timeout_ms: self.idle_timeout_ms,
            tag: None,
        };
        if let Some(key) = &self.cluster_key {
            accept.server_nonce = self.nonces.of(id, accept.client_nonce);
            accept.tag = Some(key.accept_tag(id, &accept));
        }
        let granted = Datagram {
            session: id,
            request: RequestId(0),
            slot: 0,
            message: Message::Accept(accept),
        };
        self.answer(&granted, opened, out)
    }

    pub(super) fn handle_confirm<'d>(
        &mut self,
        now_ns: u64,
        from: PeerId,
        header: &Header,
        confirm: &Confirm,
        out: &mut [u8],
    ) -> Action<'d> {
        let id = header.session;
        let Some(session) = self.table.find_mut(id, from) else {
            return self.no_such_session(header, out);
        };
        if session.state == State::HalfOpen {
            if let Some(key) = &self.cluster_key {
                let nonce = session.client_nonce;
                let server_nonce = self.nonces.of(id, nonce);
                let tag = key.confirm_tag(id, session.client_key, nonce, server_nonce);
                if !auth::same(&confirm.tag, &tag) {
                    // The Connect had a valid tag. Whoever sent it has only heard it (wire.md §7.5).
                    count(&mut self.counters.refused_replayed);
                    let refusal = Datagram {
                        session: id,
                        request: RequestId(0),
                        slot: 0,
                        message: Message::Error(Refusal {
                            code: ErrorCode::NotAuthorised,
                            reason: Some(Reason::Replayed),
                            client_nonce: 0,
                        }),
                    };
                    return self.answer(&refusal, None, out);
                }
            }
            self.confirmed(id);
        }
        if let Some(session) = self.table.find_mut(id, from) {
            session.last_heard_ns = now_ns;
        }
        self.pong(header, out)
    }
}
