//! A session and the queue pair that carries it.

use mitosis_core::rpc::client::{CallError, Client, ClientConfig, Event as ClientEvent};
use mitosis_core::sync::stop::Stop;

use super::failure::CallerFailure;
use crate::cm::Route;
use crate::endpoint::Endpoint;
use crate::thread::{give_way, now_ns, Event, Patience};
use crate::verbs::{Completion, Direction, MappedPage, BATCH};

/// Receive buffers: one answer is outstanding, the rest is for repeated and late ones.
const RECEIVE_BUFFERS: u32 = 16;
/// Longest sleep, so that the clock and the wish to stop are looked at.
const NAP_NS: u64 = 500_000_000;

/// How a wait ended.
pub enum Waited {
    /// Something happened.
    Event(ClientEvent),
    /// Nothing has been heard of the server for longer than it should take.
    Silence,
    /// It is time to stop.
    Stopped,
}

/// A session and the queue pair that carries it. The queue pair is dropped before the buffer that it sends from.
pub struct Connection<'a> {
    client: Client,
    endpoint: Endpoint<'a>,
    buffer: MappedPage,
    route: &'a Route,
    event: &'a Event,
    stop: &'a Stop,
    patience: Patience,
}

impl<'a> Connection<'a> {
    /// A queue pair on `route`, and a session that is not yet asked for.
    pub fn new(
        route: &'a Route,
        event: &'a Event,
        stop: &'a Stop,
        config: impl FnOnce(u16) -> ClientConfig,
    ) -> Result<Connection<'a>, CallerFailure> {
        let kernel = |step| move |errno| CallerFailure::Kernel(step, errno);
        let buffer = MappedPage::new(route.pd(), Direction::ToDevice)
            .map_err(kernel("cannot allocate a send buffer"))?;
        let endpoint = Endpoint::open(route.port(), route.pd(), event, RECEIVE_BUFFERS)
            .map_err(kernel("cannot create a queue pair"))?;
        Ok(Connection {
            client: Client::new(config(endpoint.datagram_len())),
            endpoint,
            buffer,
            route,
            event,
            stop,
            patience: Patience::default(),
        })
    }

    /// Asks for the session.
    pub fn connect(&mut self) -> Result<Waited, CallerFailure> {
        self.client.connect(now_ns());
        self.wait(u64::MAX)
    }

    /// Makes a call without a payload and waits for its end, or for `silence_ns` without one.
    #[inline]
    pub fn call(
        &mut self,
        now_ns: u64,
        rpc_id: u32,
        silence_ns: u64,
    ) -> Result<Waited, CallerFailure> {
        match self.client.call(now_ns, rpc_id, 0) {
            Ok(_) => self.wait(silence_ns),
            Err(CallError::NotConnected | CallError::Busy | CallError::TooLarge { .. }) => {
                Err(CallerFailure::Misuse)
            }
        }
    }

    /// Ends the session, if the one datagram that says so arrives.
    pub fn disconnect(&mut self) -> Result<(), CallerFailure> {
        self.client.disconnect();
        self.transmit(now_ns(), false)
    }

    /// Drives the session until something happens, for at most about `silence_ns`.
    #[inline]
    pub fn wait(&mut self, silence_ns: u64) -> Result<Waited, CallerFailure> {
        let begun_ns = now_ns();
        let silent_at_ns = begun_ns.saturating_add(silence_ns);
        self.transmit(begun_ns, false)?;
        self.patience.renew(begun_ns);
        loop {
            let (arrived, event) = self.receive()?;
            if let Some(event) = event {
                return Ok(Waited::Event(event));
            }
            if self.stop.wanted() {
                return Ok(Waited::Stopped);
            }
            let now = now_ns();
            if arrived {
                // What arrived may have given the core something to say.
                self.transmit(now, true)?;
                continue;
            }
            if now >= silent_at_ns {
                return Ok(Waited::Silence);
            }
            let timeout_ns = self.client.next_timeout_ns().unwrap_or(u64::MAX);
            if now >= timeout_ns {
                if let Some(event) = self.client.handle_timeout(now) {
                    return Ok(Waited::Event(event));
                }
                self.transmit(now, true)?;
                continue;
            }
            if self.patience.lasts(now) {
                give_way();
                continue;
            }
            if !self.endpoint.arm() {
                let wake_ns = timeout_ns.min(silent_at_ns).saturating_sub(now);
                self.patience.sleep(self.event, wake_ns.min(NAP_NS));
            }
        }
    }

    /// Keeps the session alive until `begun` gives something, or until it is time to stop.
    pub fn keep_until<T>(
        &mut self,
        mut begun: impl FnMut() -> Option<T>,
    ) -> Result<Option<T>, CallerFailure> {
        // What Connected left to be said: the Confirm.
        self.transmit(now_ns(), true)?;
        loop {
            if let Some(begun) = begun() {
                return Ok(Some(begun));
            }
            if self.stop.wanted() {
                return Ok(None);
            }
            if let (_, Some(event)) = self.receive()? {
                return Err(CallerFailure::of(&event));
            }
            let now = now_ns();
            let timeout_ns = self.client.next_timeout_ns().unwrap_or(u64::MAX);
            if now >= timeout_ns {
                if let Some(event) = self.client.handle_timeout(now) {
                    return Err(CallerFailure::of(&event));
                }
                self.transmit(now, true)?;
            }
            self.event.wait(timeout_ns.saturating_sub(now).min(NAP_NS));
        }
    }

    /// Sends what the core has to send.
    #[inline]
    fn transmit(&mut self, now_ns: u64, again: bool) -> Result<(), CallerFailure> {
        let to = self.route.destination();
        let kernel = |errno| CallerFailure::Kernel("cannot send", errno);
        while let Some(len) = self
            .client
            .poll_transmit(now_ns, self.buffer.page.bytes_mut())
        {
            let ticket = self
                .endpoint
                .send(&to, &self.buffer, len, again)
                .map_err(kernel)?;
            if again {
                // The answer to the first transmission does not prove that the second has left the buffer.
                self.endpoint.wait_sent(ticket).map_err(kernel)?;
            }
        }
        Ok(())
    }

    /// Takes in what has arrived, up to the first event; whether anything had.
    #[inline]
    fn receive(&mut self) -> Result<(bool, Option<ClientEvent>), CallerFailure> {
        let kernel = |errno| CallerFailure::Kernel("cannot post receives", errno);
        let mut completions = [Completion::default(); BATCH];
        let mut event = None;
        let arrived = self.endpoint.poll(&mut completions);
        for completion in arrived {
            if completion.status != 0 {
                return Err(CallerFailure::Receive(completion.status));
            }
            if let Some(received) = self.endpoint.received(completion) {
                // A datagram that the core rejects is nobody's answer: it is dropped.
                if let Ok(Some(happened)) = self.client.handle_datagram(now_ns(), received.datagram)
                {
                    event = Some(happened);
                }
            }
            self.endpoint.give_back(completion.wr_id).map_err(kernel)?;
        }
        if !arrived.is_empty() {
            self.endpoint.flush().map_err(kernel)?;
        }
        Ok((!arrived.is_empty(), event))
    }
}
