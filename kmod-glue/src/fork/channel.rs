//! One session with another machine's module: calls, one after another, by whichever process needs something.

use core::mem::ManuallyDrop;

use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event as ClientEvent};
use mitosis_core::session::ClusterKey;
use mitosis_core::wire::{ErrorCode, MAX_MESSAGE};

use crate::buffer::PagedBuffer;
use crate::cm::Route;
use crate::devices::Devices;
use crate::endpoint::{Endpoint, Ticket};
use crate::errno::Errno;
use crate::lock::Shared;
use crate::memory::{Owned, Table};
use crate::thread::{give_way, now_ns, random, Event, Patience};
use crate::verbs::{Completion, BATCH};

/// Datagrams unanswered: enough to keep a link busy with a descriptor.
const CREDITS: u16 = 8;
const RECEIVE_BUFFERS: u32 = 2 * CREDITS as u32;
const RTO_INITIAL_NS: u64 = 100_000_000;
const RTO_MIN_NS: u64 = 20_000_000;
const RTO_MAX_NS: u64 = 1_000_000_000;
const CONNECT_TIMEOUT_NS: u64 = 5_000_000_000;
/// As long as a READ that nothing answers may take at most: both find out that a machine is dead.
const CALL_TIMEOUT_NS: u64 = 10_000_000_000;
const NAP_NS: u64 = 500_000_000;

/// Why a call failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ChannelError {
    /// Nothing was heard of the machine.
    Silent,
    /// It refused the session, or ended it.
    Closed,
    /// It refused the session because of the cluster key.
    NotAuthorised,
    /// It refused the call.
    Refused(ErrorCode),
    /// The reply is longer than what was asked for.
    Damaged,
    /// The kernel refused something.
    Kernel(Errno),
}

impl From<Errno> for ChannelError {
    fn from(errno: Errno) -> ChannelError {
        ChannelError::Kernel(errno)
    }
}

/// Where a reply goes, part by part.
pub trait Sink {
    /// Takes the bytes at `offset` of a reply of `message_len` bytes; false if it has no room for it.
    fn take(&mut self, message_len: usize, offset: usize, bytes: &[u8]) -> bool;
}

/// A reply that fits a buffer: how much of it there is.
pub struct Into<'b> {
    /// Where it goes.
    pub buffer: &'b mut [u8],
    /// Length of what came.
    pub len: usize,
}

impl<'b> Into<'b> {
    /// Nothing yet.
    pub fn new(buffer: &'b mut [u8]) -> Into<'b> {
        Into { buffer, len: 0 }
    }
}

impl Sink for Into<'_> {
    fn take(&mut self, message_len: usize, offset: usize, bytes: &[u8]) -> bool {
        self.len = message_len;
        let end = offset.checked_add(bytes.len());
        let Some(place) = end.and_then(|end| self.buffer.get_mut(offset..end)) else {
            return false;
        };
        for (place, byte) in place.iter_mut().zip(bytes) {
            *place = *byte;
        }
        true
    }
}

/// A session and its queue pair. What `endpoint` and `client` borrow stands after them and is dropped after them.
pub struct Channel {
    endpoint: ManuallyDrop<Endpoint<'static>>,
    client: ManuallyDrop<Client<'static>>,
    _slots: Table<CallSlot>,
    request: PagedBuffer,
    /// The last send that repeated a part of the request.
    repeated: Ticket,
    event: Owned<Event>,
    patience: Patience,
    route: Shared<Route>,
    _devices: Shared<Devices<'static>>,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.client.disconnect();
        // If this last datagram is lost, the session expires.
        let _ = self.transmit(now_ns());
        // SAFETY: dropped once, here, before what they borrow.
        unsafe {
            ManuallyDrop::drop(&mut self.client);
            ManuallyDrop::drop(&mut self.endpoint);
        }
    }
}

impl Channel {
    /// Opens a session at the end of `route`.
    pub fn open(
        devices: Shared<Devices<'static>>,
        route: Shared<Route>,
        key: Option<ClusterKey>,
    ) -> Result<Channel, ChannelError> {
        let event = Owned::new(Event::new()?)?;
        let mut slots = Table::try_new(1, |_| Ok(CallSlot::new()))?;
        let request = PagedBuffer::new(route.pd(), 0)?;
        // SAFETY: the event and the route lie in memory of their own, which the channel drops after the endpoint.
        let endpoint: Endpoint<'static> = unsafe {
            let event: &'static Event = &*core::ptr::from_ref::<Event>(&*event);
            let route: &'static Route = &*core::ptr::from_ref::<Route>(&*route);
            Endpoint::open(route.port(), route.pd(), event, RECEIVE_BUFFERS)?
        };
        let config = ClientConfig {
            client_key: random(),
            nonce: random(),
            cluster_key: key,
            datagram_len: endpoint.datagram_len(),
            slots: 1,
            credits: CREDITS,
            max_message_len: MAX_MESSAGE,
            rto_initial_ns: RTO_INITIAL_NS,
            rto_min_ns: RTO_MIN_NS,
            rto_max_ns: RTO_MAX_NS,
            connect_timeout_ns: CONNECT_TIMEOUT_NS,
            call_timeout_ns: CALL_TIMEOUT_NS,
        };
        // SAFETY: the slots lie in memory of their own, which only the client uses and which is dropped after it.
        let client = unsafe {
            let slots: &'static mut [CallSlot] =
                core::slice::from_raw_parts_mut(slots.as_mut_ptr(), slots.len());
            Client::new(config, slots)
        };
        let mut channel = Channel {
            endpoint: ManuallyDrop::new(endpoint),
            client: ManuallyDrop::new(client),
            _slots: slots,
            request,
            repeated: Ticket::default(),
            event,
            patience: Patience::default(),
            route,
            _devices: devices,
        };
        channel.client.connect(now_ns());
        channel.drive(&mut Into::new(&mut []))?;
        Ok(channel)
    }

    /// Calls and waits for the reply, whose length it returns.
    pub fn call(
        &mut self,
        rpc_id: u32,
        request: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), ChannelError> {
        // The reply to the last request does not prove that its repetitions have left the buffer.
        self.endpoint.outbox().wait_sent(self.repeated)?;
        if !self.request.write(0, request) {
            return Err(ChannelError::Kernel(Errno::INVALID));
        }
        // What came since the last call is looked at first: it may say that the session is over.
        self.settle(sink)?;
        self.client
            .call(now_ns(), 0, rpc_id, request.len() as u32)
            .map_err(|_| ChannelError::Closed)?;
        self.drive(sink)
    }

    /// Keeps the session alive between calls: does what is due.
    pub fn keep(&mut self) -> Result<(), ChannelError> {
        self.settle(&mut Into::new(&mut []))?;
        self.transmit(now_ns())
    }

    fn settle(&mut self, sink: &mut impl Sink) -> Result<(), ChannelError> {
        while self.receive(sink)?.0 {}
        let now_ns = now_ns();
        if self
            .client
            .next_timeout_ns()
            .is_some_and(|at_ns| now_ns >= at_ns)
        {
            if let Some(event) = self.client.handle_timeout(now_ns) {
                return Err(failed(&event));
            }
        }
        Ok(())
    }

    /// Drives the session until it is open, or the call is over.
    fn drive(&mut self, sink: &mut impl Sink) -> Result<(), ChannelError> {
        let begun_ns = now_ns();
        self.transmit(begun_ns)?;
        self.patience.renew(begun_ns);
        loop {
            let (arrived, over) = self.receive(sink)?;
            if over {
                // What Connected left to be said: the Confirm.
                self.transmit(now_ns())?;
                return Ok(());
            }
            let now = now_ns();
            if arrived {
                self.transmit(now)?;
                continue;
            }
            let timeout_ns = self.client.next_timeout_ns().unwrap_or(u64::MAX);
            if now >= timeout_ns {
                if let Some(event) = self.client.handle_timeout(now) {
                    return Err(failed(&event));
                }
                self.transmit(now)?;
                continue;
            }
            if self.patience.lasts(now) {
                give_way();
                continue;
            }
            if !self.endpoint.arm() {
                let wake_ns = timeout_ns.saturating_sub(now);
                self.patience.sleep(&self.event, wake_ns.min(NAP_NS));
            }
        }
    }

    fn transmit(&mut self, now_ns: u64) -> Result<(), ChannelError> {
        let to = self.route.destination();
        let mut burst = self.endpoint.burst(&to);
        loop {
            let header = burst.outbox().header()?;
            let Some(transmit) = self.client.poll_transmit(now_ns, header) else {
                return Ok(burst.ring()?);
            };
            let payload = transmit
                .payload
                .map(|payload| (&self.request, payload.range));
            let ticket = burst.send(transmit.header_len, payload, transmit.again)?;
            if transmit.again {
                self.repeated = ticket;
            }
        }
    }

    /// Takes in what has arrived: whether anything had, and whether what is waited for is over.
    fn receive(&mut self, sink: &mut impl Sink) -> Result<(bool, bool), ChannelError> {
        let mut completions = [Completion::default(); BATCH];
        let mut outcome = Ok(false);
        let arrived = self.endpoint.poll(&mut completions);
        for completion in arrived {
            if completion.status != 0 {
                return Err(ChannelError::Kernel(Errno::IO));
            }
            if let Some(received) = self.endpoint.received(completion) {
                // A datagram that the core rejects is nobody's answer: it is dropped.
                if let Ok(Some(event)) = self.client.handle_datagram(now_ns(), received.datagram) {
                    match take(&event, received.datagram, sink) {
                        Ok(false) => {}
                        over => outcome = over,
                    }
                }
            }
            self.endpoint.give_back(completion.wr_id)?;
        }
        if !arrived.is_empty() {
            self.endpoint.flush()?;
        }
        outcome.map(|over| (!arrived.is_empty(), over))
    }
}

fn take(event: &ClientEvent, datagram: &[u8], sink: &mut impl Sink) -> Result<bool, ChannelError> {
    match event {
        ClientEvent::Connected => Ok(true),
        ClientEvent::Reply {
            message_len,
            offset,
            payload,
            complete,
            ..
        } => {
            let part = datagram.get(payload.clone()).unwrap_or(&[]);
            if sink.take(*message_len as usize, *offset as usize, part) {
                Ok(*complete)
            } else {
                Err(ChannelError::Damaged)
            }
        }
        other => Err(failed(other)),
    }
}

fn failed(event: &ClientEvent) -> ChannelError {
    match event {
        ClientEvent::Failed { error, .. } => ChannelError::Refused(*error),
        ClientEvent::Refused(refusal) if refusal.code == ErrorCode::NotAuthorised => {
            ChannelError::NotAuthorised
        }
        ClientEvent::Refused(_) | ClientEvent::Closed { .. } => ChannelError::Closed,
        _ => ChannelError::Silent,
    }
}
