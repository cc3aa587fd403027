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

mod event;

use crate::session::RequestId;
use crate::wire::MAX_CONTROL_LEN;

use super::Rejected;

pub use event::{CallError, ClientConfig, Event, Granted, Payload, SlotSet, Transmit};

/// What a client knows of one slot. The caller provides an array of them and never looks inside.
#[derive(Clone, Debug, Default)]
pub struct CallSlot {
    request: u64,
}

impl CallSlot {
    /// A slot without a call.
    pub const fn new() -> Self {
        Self { request: 0 }
    }
}

/// The calling endpoint. The module's front comment gives the order of calls.
pub struct Client<'a> {
    config: ClientConfig,
    slots: &'a mut [CallSlot],
}

impl<'a> Client<'a> {
    /// A client without a session.
    pub fn new(config: ClientConfig, slots: &'a mut [CallSlot]) -> Self {
        Self { config, slots }
    }
    /// Starts the handshake. Whatever session or calls there were are forgotten without a word.
    pub fn connect(&mut self, now_ns: u64) {}
    /// Ends the session. Outstanding calls end with it, without an event.
    pub fn disconnect(&mut self) {}
    /// Whether a session is open.
    pub fn is_connected(&self) -> bool {
        false
    }
    /// The session that is or was open; `SessionId::NONE` before the first.
    pub fn session(&self) -> crate::session::SessionId {
        crate::session::SessionId::NONE
    }
    /// What the server granted to the session that is or was open.
    pub fn granted(&self) -> Granted {
        Granted { slots: 0, credits: 0, datagram_len: 0, max_message_len: 0 }
    }
    /// A slot without an outstanding call.
    pub fn free_slot(&self) -> Option<u16> {
        None
    }
    /// Starts a call.
    pub fn call(
        &mut self,
        now_ns: u64,
        slot: u16,
        rpc_id: u32,
        request_len: u32,
    ) -> Result<RequestId, CallError> {
        Err(CallError::NotConnected)
    }
    /// The next datagram to send.
    pub fn poll_transmit(
        &mut self,
        now_ns: u64,
        header: &mut [u8; MAX_CONTROL_LEN],
    ) -> Option<Transmit> {
        None
    }
    /// Takes a datagram that arrived.
    pub fn handle_datagram(
        &mut self,
        now_ns: u64,
        datagram: &[u8],
    ) -> Result<Option<Event>, Rejected> {
        Ok(None)
    }
    /// Acts upon the time that has come. Called until it yields nothing.
    pub fn handle_timeout(&mut self, now_ns: u64) -> Option<Event> {
        None
    }
    /// When to call `handle_timeout`.
    pub fn next_timeout_ns(&self) -> Option<u64> {
        None
    }
}
