//! A session and the queue pair that carries it.

use mitosis_core::rpc::client::{CallError, CallSlot, Client, ClientConfig, Event as ClientEvent};
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::HEADER_LEN;

use super::failure::CallerFailure;
use crate::buffer::PagedBuffer;
use crate::cm::Route;
use crate::endpoint::{self, Endpoint, Ticket};
use crate::payload::{self, Maker};
use crate::thread::{give_way, now_ns, Event, Patience};
use crate::verbs::{Completion, BATCH};

/// The most datagrams that a machine's threads have unanswered together: half of what a network device's ring holds at the
/// server, which has other clients too. More is lost there and repeated.
const SHARED_CREDITS: u32 = 128;
/// The most of one thread: enough to keep a link busy with a long message, and for one of 64 KiB to go without a word in
/// between.
const MAX_CREDITS: u32 = 32;
/// The least, however many threads there are.
const MIN_CREDITS: u32 = 8;
/// Receive buffers for each credit: one is for its answer, the other for what is repeated and late.
const BUFFERS_A_CREDIT: u32 = 2;
/// Longest sleep, so that the clock and the wish to stop are looked at.
const NAP_NS: u64 = 500_000_000;

/// How a wait ended.
pub enum Waited {
    /// The session is open.
    Connected,
    /// The call's reply is whole and as it was sent.
    Replied,
    /// Something else happened, which is no success.
    Failed(ClientEvent),
    /// Nothing has been heard of the server for longer than it should take.
    Silence,
    /// It is time to stop.
    Stopped,
}

/// A session and the queue pair that carries it. The queue pair is dropped before what it sends from.
pub struct Connection<'a> {
    endpoint: Endpoint<'a>,
    client: Client<'a>,
    request: PagedBuffer,
    reply: PagedBuffer,
    maker: Maker,
    message_len: u32,
    /// The last send that repeated a part of the request.
    repeated: Ticket,
    route: &'a Route,
    event: &'a Event,
    stop: &'a Stop,
    patience: Patience,
}

impl<'a> Connection<'a> {
    /// A queue pair on `route` for messages of `message_len` bytes, one of `threads` that this machine has, and a session that
    /// is not yet asked for. `config` is told the longest datagram and how many credits to ask for.
    pub fn new(
        route: &'a Route,
        event: &'a Event,
        stop: &'a Stop,
        slots: &'a mut [CallSlot],
        message_len: u32,
        threads: u32,
        config: impl FnOnce(u16, u16) -> ClientConfig,
    ) -> Result<Connection<'a>, CallerFailure> {
        let kernel = |step| move |errno| CallerFailure::Kernel(step, errno);
        let buffer = || {
            PagedBuffer::new(route.pd(), message_len as usize)
                .map_err(kernel("cannot allocate a message buffer"))
        };
        let (request, reply) = (buffer()?, buffer()?);
        let datagram_len = endpoint::datagram_len(route.port());
        let part_len = u32::from(datagram_len)
            .saturating_sub(HEADER_LEN as u32)
            .max(1);
        let share = (SHARED_CREDITS / threads.max(1)).clamp(MIN_CREDITS, MAX_CREDITS);
        let credits = message_len.div_ceil(part_len).clamp(1, share);
        let buffers = credits * BUFFERS_A_CREDIT;
        let endpoint = Endpoint::open(route.port(), route.pd(), event, buffers)
            .map_err(kernel("cannot create a queue pair"))?;
        Ok(Connection {
            client: Client::new(config(datagram_len, credits as u16), slots),
            endpoint,
            request,
            reply,
            maker: Maker::default(),
            message_len,
            repeated: Ticket::default(),
            route,
            event,
            stop,
            patience: Patience::default(),
        })
    }

    /// Asks for the session.
    pub fn connect(&mut self) -> Result<Waited, CallerFailure> {
        self.client.connect(now_ns());
        let waited = self.wait(u64::MAX)?;
        let limit = self.client.granted().max_message_len;
        if matches!(waited, Waited::Connected) && self.message_len > limit {
            return Err(CallerFailure::TooLarge {
                message_len: self.message_len,
                limit,
            });
        }
        Ok(waited)
    }

    /// Makes the next request's payload. Not a part of the call: it is the caller's time.
    #[inline]
    pub fn make_request(&mut self) -> Result<(), CallerFailure> {
        // The reply to the last request does not prove that its repetitions have left the buffer.
        self.endpoint
            .outbox()
            .wait_sent(self.repeated)
            .map_err(|errno| CallerFailure::Kernel("a send does not complete", errno))?;
        self.maker.make(&mut self.request, self.message_len);
        Ok(())
    }

    /// Makes a call with the request that was made and waits for its end, or for `silence_ns` without one.
    #[inline]
    pub fn call(
        &mut self,
        now_ns: u64,
        rpc_id: u32,
        silence_ns: u64,
    ) -> Result<Waited, CallerFailure> {
        match self.client.call(now_ns, 0, rpc_id, self.message_len) {
            Ok(_) => self.wait(silence_ns),
            Err(CallError::TooLarge { request_len, limit }) => Err(CallerFailure::TooLarge {
                message_len: request_len,
                limit,
            }),
            Err(_) => Err(CallerFailure::Misuse),
        }
    }

    /// Ends the session, if the one datagram that says so arrives.
    pub fn disconnect(&mut self) -> Result<(), CallerFailure> {
        self.client.disconnect();
        self.transmit(now_ns())
    }

    /// Drives the session until something happens, for at most about `silence_ns`.
    #[inline]
    pub fn wait(&mut self, silence_ns: u64) -> Result<Waited, CallerFailure> {
        let begun_ns = now_ns();
        let silent_at_ns = begun_ns.saturating_add(silence_ns);
        self.transmit(begun_ns)?;
        self.patience.renew(begun_ns);
        loop {
            let (arrived, waited) = self.receive()?;
            if let Some(waited) = waited {
                return Ok(waited);
            }
            if self.stop.wanted() {
                return Ok(Waited::Stopped);
            }
            let now = now_ns();
            if arrived {
                // What arrived may have given the core something to say.
                self.transmit(now)?;
                continue;
            }
            if now >= silent_at_ns {
                return Ok(Waited::Silence);
            }
            let timeout_ns = self.client.next_timeout_ns().unwrap_or(u64::MAX);
            if now >= timeout_ns {
                if let Some(event) = self.client.handle_timeout(now) {
                    return Ok(Waited::Failed(event));
                }
                self.transmit(now)?;
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
        self.transmit(now_ns())?;
        loop {
            if let Some(begun) = begun() {
                return Ok(Some(begun));
            }
            if self.stop.wanted() {
                return Ok(None);
            }
            if let (_, Some(Waited::Failed(event))) = self.receive()? {
                return Err(CallerFailure::of(&event));
            }
            let now = now_ns();
            let timeout_ns = self.client.next_timeout_ns().unwrap_or(u64::MAX);
            if now >= timeout_ns {
                if let Some(event) = self.client.handle_timeout(now) {
                    return Err(CallerFailure::of(&event));
                }
                self.transmit(now)?;
            }
            self.event.wait(timeout_ns.saturating_sub(now).min(NAP_NS));
        }
    }

    /// Sends what the core has to send.
    #[inline]
    fn transmit(&mut self, now_ns: u64) -> Result<(), CallerFailure> {
        let to = self.route.destination();
        let kernel = |errno| CallerFailure::Kernel("cannot send", errno);
        let mut burst = self.endpoint.burst(&to);
        loop {
            let header = burst.outbox().header().map_err(kernel)?;
            let Some(transmit) = self.client.poll_transmit(now_ns, header) else {
                return burst.ring().map_err(kernel);
            };
            let payload = transmit
                .payload
                .map(|payload| (&self.request, payload.range));
            let ticket = burst
                .send(transmit.header_len, payload, transmit.again)
                .map_err(kernel)?;
            if transmit.again {
                self.repeated = ticket;
            }
        }
    }

    /// Takes in what has arrived, up to what the caller waits for; whether anything had.
    #[inline]
    fn receive(&mut self) -> Result<(bool, Option<Waited>), CallerFailure> {
        let kernel = |errno| CallerFailure::Kernel("cannot post receives", errno);
        let mut completions = [Completion::default(); BATCH];
        let mut waited = None;
        let arrived = self.endpoint.poll(&mut completions);
        for completion in arrived {
            if completion.status != 0 {
                return Err(CallerFailure::Receive(completion.status));
            }
            if let Some(received) = self.endpoint.received(completion) {
                // A datagram that the core rejects is nobody's answer: it is dropped.
                if let Ok(Some(event)) = self.client.handle_datagram(now_ns(), received.datagram) {
                    let happened = take(event, received.datagram, &mut self.reply)?;
                    waited = happened.or(waited);
                }
            }
            self.endpoint.give_back(completion.wr_id).map_err(kernel)?;
        }
        if !arrived.is_empty() {
            self.endpoint.flush().map_err(kernel)?;
        }
        Ok((!arrived.is_empty(), waited))
    }
}

/// What an event means for who waits. A reply of one datagram is verified where it lies; parts of a longer one are put
/// together first.
#[inline]
fn take(
    event: ClientEvent,
    datagram: &[u8],
    reply: &mut PagedBuffer,
) -> Result<Option<Waited>, CallerFailure> {
    match event {
        ClientEvent::Connected => Ok(Some(Waited::Connected)),
        ClientEvent::Reply {
            message_len,
            offset,
            payload,
            complete,
            ..
        } => {
            let part = datagram.get(payload).unwrap_or(&[]);
            let message_len = message_len as usize;
            if complete && offset == 0 {
                payload::verify(core::iter::once(part), message_len)
                    .map_err(|_| CallerFailure::Damaged)?;
                return Ok(Some(Waited::Replied));
            }
            if !reply.write(offset as usize, part) {
                // Longer than what was asked for.
                return Err(CallerFailure::Damaged);
            }
            if !complete {
                return Ok(None);
            }
            payload::verify(reply.chunks(message_len), message_len)
                .map_err(|_| CallerFailure::Damaged)?;
            Ok(Some(Waited::Replied))
        }
        failed => Ok(Some(Waited::Failed(failed))),
    }
}
