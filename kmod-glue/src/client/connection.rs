//! A session and the queue pair that carries it.

use mitosis_core::rpc::client::{
    CallError, CallSlot, Client, ClientConfig, Event as ClientEvent, SlotSet,
};
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::HEADER_LEN;

use super::failure::CallerFailure;
use crate::buffer::PagedBuffer;
use crate::cm::Route;
use crate::endpoint::{self, Endpoint, Ticket};
use crate::memory::Table;
use crate::payload::{self, Maker};
use crate::thread::{give_way, now_ns, Event, Patience};
use crate::verbs::{Completion, BATCH};

/// The most datagrams that a machine's threads have unanswered together: a quarter of what a network device's ring holds at
/// the server, which has other clients too. More is lost there and repeated.
const SHARED_CREDITS: u32 = 256;
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
    /// The replies to the calls of these slots are whole and as they were sent.
    Replied(SlotSet),
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
    /// A slot's, each.
    exchanges: Table<Exchange>,
    maker: Maker,
    message_len: u32,
    /// What came after replies of the same batch, and is told after them.
    after: Option<Waited>,
    route: &'a Route,
    event: &'a Event,
    stop: &'a Stop,
    patience: Patience,
}

/// What a slot's call sends from and receives into.
struct Exchange {
    request: PagedBuffer,
    reply: PagedBuffer,
    /// The last send that repeated a part of the request.
    repeated: Ticket,
    begun_ns: u64,
}

impl<'a> Connection<'a> {
    /// A queue pair on `route` for messages of `message_len` bytes, one of `threads` that this machine has, and a session that
    /// is not yet asked for, with as many calls at a time as there are `slots`, or as its credits carry. `config` is told the
    /// longest datagram, and how many slots and credits to ask for.
    pub fn new(
        route: &'a Route,
        event: &'a Event,
        stop: &'a Stop,
        slots: &'a mut [CallSlot],
        message_len: u32,
        threads: u32,
        config: impl FnOnce(u16, u16, u16) -> ClientConfig,
    ) -> Result<Connection<'a>, CallerFailure> {
        let kernel = |step| move |errno| CallerFailure::Kernel(step, errno);
        let datagram_len = endpoint::datagram_len(route.port());
        let part_len = u32::from(datagram_len)
            .saturating_sub(HEADER_LEN as u32)
            .max(1);
        let share = (SHARED_CREDITS / threads.max(1)).clamp(MIN_CREDITS, MAX_CREDITS);
        let parts = message_len.div_ceil(part_len).max(1);
        let credits = parts.saturating_mul(slots.len() as u32).clamp(1, share);
        // More calls than the credits carry would only wait, and their messages take room in caches.
        let calls = credits.div_ceil(parts) as usize;
        let slots = slots.get_mut(..calls).ok_or(CallerFailure::Misuse)?;
        let buffer = || PagedBuffer::new(route.pd(), message_len as usize);
        let exchanges = Table::try_new(slots.len(), |_| {
            Ok(Exchange {
                request: buffer()?,
                reply: buffer()?,
                repeated: Ticket::default(),
                begun_ns: 0,
            })
        })
        .map_err(kernel("cannot allocate message buffers"))?;
        let buffers = credits * BUFFERS_A_CREDIT;
        let endpoint = Endpoint::open(route.port(), route.pd(), event, buffers)
            .map_err(kernel("cannot create a queue pair"))?;
        Ok(Connection {
            client: Client::new(config(datagram_len, calls as u16, credits as u16), slots),
            endpoint,
            exchanges,
            maker: Maker::default(),
            message_len,
            after: None,
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

    /// A slot in which a call can be begun.
    #[inline]
    pub fn free_slot(&self) -> Option<u16> {
        self.client.free_slot()
    }

    /// The slots whose calls are under way.
    #[inline]
    pub fn under_way(&self) -> SlotSet {
        self.client.outstanding()
    }

    /// When the slot's last call began.
    #[inline]
    pub fn begun_ns(&self, slot: u16) -> u64 {
        self.exchanges
            .get(usize::from(slot))
            .map_or(0, |exchange| exchange.begun_ns)
    }

    /// Makes the payload of a free slot's next request. Not a part of the call: it is the caller's time.
    #[inline]
    pub fn make_request(&mut self, slot: u16) -> Result<(), CallerFailure> {
        let exchange = self.exchanges.get_mut(usize::from(slot));
        let exchange = exchange.ok_or(CallerFailure::Misuse)?;
        // The reply to the last request does not prove that its repetitions have left the buffer.
        self.endpoint
            .outbox()
            .wait_sent(exchange.repeated)
            .map_err(|errno| CallerFailure::Kernel("a send does not complete", errno))?;
        self.maker.make(&mut exchange.request, self.message_len);
        Ok(())
    }

    /// Begins a call with the request that was made; [`Connection::wait`] sends it.
    #[inline]
    pub fn call(&mut self, now_ns: u64, slot: u16, rpc_id: u32) -> Result<(), CallerFailure> {
        let exchange = self.exchanges.get_mut(usize::from(slot));
        exchange.ok_or(CallerFailure::Misuse)?.begun_ns = now_ns;
        match self.client.call(now_ns, slot, rpc_id, self.message_len) {
            Ok(_) => Ok(()),
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
        if let Some(waited) = self.after.take() {
            return Ok(waited);
        }
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
            let Some(payload) = transmit.payload else {
                burst
                    .send(transmit.header_len, None, false)
                    .map_err(kernel)?;
                continue;
            };
            let exchange = self.exchanges.get_mut(usize::from(payload.slot));
            let exchange = exchange.ok_or(CallerFailure::Misuse)?;
            let payload = Some((&exchange.request, payload.range));
            let ticket = burst
                .send(transmit.header_len, payload, transmit.again)
                .map_err(kernel)?;
            if transmit.again {
                exchange.repeated = ticket;
            }
        }
    }

    /// Takes in a batch of what has arrived; whether anything had, and whether the caller waits for it.
    #[inline]
    fn receive(&mut self) -> Result<(bool, Option<Waited>), CallerFailure> {
        let kernel = |errno| CallerFailure::Kernel("cannot post receives", errno);
        let mut completions = [Completion::default(); BATCH];
        let mut replied = SlotSet::default();
        let arrived = self.endpoint.poll(&mut completions);
        for completion in arrived {
            if completion.status != 0 {
                return Err(CallerFailure::Receive(completion.status));
            }
            if let Some(received) = self.endpoint.received(completion) {
                // A datagram that the core rejects is nobody's answer: it is dropped.
                if let Ok(Some(event)) = self.client.handle_datagram(now_ns(), received.datagram) {
                    match take(event, received.datagram, &mut self.exchanges)? {
                        Some(Waited::Replied(slots)) => replied.0 |= slots.0,
                        happened => self.after = self.after.take().or(happened),
                    }
                }
            }
            self.endpoint.give_back(completion.wr_id).map_err(kernel)?;
        }
        if !arrived.is_empty() {
            self.endpoint.flush().map_err(kernel)?;
        }
        let waited = if replied.is_empty() {
            self.after.take()
        } else {
            Some(Waited::Replied(replied))
        };
        Ok((!arrived.is_empty(), waited))
    }
}

/// What an event means for who waits. A reply of one datagram is verified where it lies; parts of a longer one are put
/// together first.
#[inline]
fn take(
    event: ClientEvent,
    datagram: &[u8],
    exchanges: &mut [Exchange],
) -> Result<Option<Waited>, CallerFailure> {
    match event {
        ClientEvent::Connected => Ok(Some(Waited::Connected)),
        ClientEvent::Reply {
            slot,
            message_len,
            offset,
            payload,
            complete,
            ..
        } => {
            let replied = Ok(Some(Waited::Replied(SlotSet::of(slot))));
            let part = datagram.get(payload).unwrap_or(&[]);
            let message_len = message_len as usize;
            if complete && offset == 0 {
                payload::verify(core::iter::once(part), message_len)
                    .map_err(|_| CallerFailure::Damaged)?;
                return replied;
            }
            let reply = exchanges.get_mut(usize::from(slot));
            let reply = &mut reply.ok_or(CallerFailure::Misuse)?.reply;
            if !reply.write(offset as usize, part) {
                // Longer than what was asked for.
                return Err(CallerFailure::Damaged);
            }
            if !complete {
                return Ok(None);
            }
            payload::verify(reply.chunks(message_len), message_len)
                .map_err(|_| CallerFailure::Damaged)?;
            replied
        }
        failed => Ok(Some(Waited::Failed(failed))),
    }
}
