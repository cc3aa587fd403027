//! The calling endpoint over a fabric.

use std::collections::VecDeque;
use std::time::Duration;

use mitosis_core::rpc::client::{
    CallError, CallSlot, Client as Core, ClientConfig, Event, Granted, SlotSet,
};
use mitosis_core::session::{PeerId, RequestId};
use mitosis_core::wire::{ErrorCode, Refusal, HEADER_LEN, MAX_CONTROL_LEN};
use self_cell::{self_cell, MutBorrow};

use super::ClientOptions;
use crate::clock::Clock;
use crate::fabric::{Fabric, FabricError, Waker};
use crate::patience::Patience;

/// The peer that every client's fabric is connected to.
const SERVER: PeerId = 0;

/// How many datagrams are taken in before it is the caller's turn.
pub const BATCH: usize = 32;

/// Of so many outstanding calls, one may be held back: the server has to do with the others.
const OUTSTANDING_FOR_ONE: u32 = 4;

/// The longest sleep, so that the clock is looked at.
const NAP: Duration = Duration::from_millis(500);

self_cell!(
    /// The core's client and the slots that it borrows.
    struct CoreCell {
        owner: MutBorrow<Vec<CallSlot>>,
        #[not_covariant]
        dependent: Core,
    }
);

/// Names a call from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    request: RequestId,
    slot: u16,
}

impl CallId {
    /// Which of the window's slots the call has, from 0 on: no other outstanding call has it, so what belongs to a call may be
    /// kept in a table by it.
    pub fn slot(self) -> usize {
        self.slot.into()
    }
}

/// How a call ended, without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server says so.
    Failed(ErrorCode),
    /// It was not answered in time.
    TimedOut,
    /// The session, or the server, is gone.
    Lost,
}

/// The end of a call.
pub type Ended<'r> = Result<&'r [u8], Failure>;

/// Where the client's session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// It was asked for.
    Opening,
    /// It is open.
    Open,
    /// The server refused it.
    Refused(Refusal),
    /// The server did not answer.
    Unanswered,
    /// It is over.
    Gone,
}

/// Why a call was not begun.
#[derive(Debug)]
pub enum NotBegun {
    /// The session is over.
    Gone,
    /// All slots are taken.
    WindowFull(u16),
    /// The request is too long.
    TooLong { len: usize, limit: usize },
    /// The fabric has come to its end.
    Fabric(FabricError),
}

#[derive(Default)]
struct Buffers {
    request: Vec<u8>,
    /// Where a reply of several datagrams is put together.
    reply: Vec<u8>,
    call: Option<RequestId>,
}

/// A client on a fabric.
pub struct Calling<F> {
    fabric: F,
    core: CoreCell,
    link: Link,
    /// Of the outstanding calls.
    buffers: Vec<Buffers>,
    outstanding: u32,
    /// The clock was read: timers are looked at next.
    timers: bool,
    /// The last reply was of several datagrams.
    put_together: bool,
    /// Calls whose ends nobody was there to hear.
    lost: VecDeque<CallId>,
    clock: Clock,
    patience: Patience,
    header: [u8; MAX_CONTROL_LEN],
    granted: Granted,
}

impl<F: Fabric> Calling<F> {
    /// A client that asks for a session.
    pub fn new(fabric: F, options: &ClientOptions) -> Result<Self, FabricError> {
        let window = options.window.clamp(1, mitosis_core::session::MAX_SLOTS);
        let longest = usize::try_from(options.max_message_len).unwrap_or(usize::MAX);
        let longest = longest.saturating_add(HEADER_LEN).max(MAX_CONTROL_LEN);
        let credits = fabric.peer_buffers(longest.min(fabric.datagram_len().into()));
        let config = ClientConfig {
            client_key: rand::random(),
            nonce: rand::random(),
            cluster_key: options.cluster_key,
            datagram_len: fabric.datagram_len(),
            slots: window,
            credits: credits.min(1024),
            max_message_len: options.max_message_len,
            rto_initial_ns: nanoseconds(options.rto_initial),
            rto_min_ns: nanoseconds(options.rto_min),
            rto_max_ns: nanoseconds(options.rto_max),
            connect_timeout_ns: nanoseconds(options.connect_timeout),
            call_timeout_ns: nanoseconds(options.call_timeout),
        };
        let slots = vec![CallSlot::new(); window.into()];
        let mut clock = Clock::new();
        let now_ns = clock.read();
        let core = CoreCell::new(MutBorrow::new(slots), |slots| {
            let mut core = Core::new(config, slots.borrow_mut());
            core.connect(now_ns);
            core
        });
        let granted = core.with_dependent(|_, core| core.granted());
        let mut calling = Self {
            fabric,
            core,
            link: Link::Opening,
            buffers: (0..window).map(|_| Buffers::default()).collect(),
            outstanding: 0,
            timers: false,
            put_together: false,
            lost: VecDeque::new(),
            clock,
            patience: Patience::new(options.spin),
            header: [0; MAX_CONTROL_LEN],
            granted,
        };
        calling.transmit()?;
        calling.fabric.flush()?;
        Ok(calling)
    }

    pub fn link(&self) -> Link {
        self.link
    }

    pub fn granted(&self) -> Granted {
        self.granted
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding as usize
    }

    pub fn waker(&self) -> Waker {
        self.fabric.waker()
    }

    /// Begins a call, which leaves with the next [`Calling::flush`] or [`Calling::work`] at the latest.
    #[inline(always)]
    pub fn start(&mut self, rpc_id: u32, request: &[u8]) -> Result<CallId, NotBegun> {
        if self.outstanding == 0 {
            // Nothing is timed, and it may have been long since the clock was read.
            self.clock.skip();
        }
        let now_ns = self.clock.now_ns();
        let request_len = u32::try_from(request.len()).unwrap_or(u32::MAX);
        let fabric = &mut self.fabric;
        fabric.may_wait(self.outstanding / OUTSTANDING_FOR_ONE);
        let begun = self.core.with_dependent_mut(|_, core| {
            core.call_whole(now_ns, rpc_id, request_len, |_, header| {
                fabric.send_words(SERVER, header, request)
            })
        });
        let Some((id, slot, sent)) = begun else {
            return self.start_any(rpc_id, request, request_len);
        };
        let call = CallId { request: id, slot };
        self.keep(call, request);
        sent.map_err(NotBegun::Fabric)?;
        Ok(call)
    }

    /// [`Calling::start`] for a request of several datagrams, or while others wait to be sent, or when it cannot be begun.
    #[inline(never)]
    fn start_any(
        &mut self,
        rpc_id: u32,
        request: &[u8],
        request_len: u32,
    ) -> Result<CallId, NotBegun> {
        if self.link == Link::Gone {
            return Err(NotBegun::Gone);
        }
        let now_ns = self.clock.now_ns();
        let begun = self.core.with_dependent_mut(|_, core| {
            let slot = core.free_slot().ok_or(CallError::SlotInUse)?;
            let id = core.call(now_ns, slot, rpc_id, request_len)?;
            Ok(CallId { request: id, slot })
        });
        let call = begun.map_err(|error| self.not_begun(&error, request.len()))?;
        self.keep(call, request);
        self.transmit().map_err(NotBegun::Fabric)?;
        Ok(call)
    }

    /// Keeps a request in case that it must be sent again.
    #[inline(always)]
    fn keep(&mut self, call: CallId, request: &[u8]) {
        self.outstanding += 1;
        if let Some(buffers) = self.buffers.get_mut(call.slot()) {
            buffers.request.clear();
            buffers.request.extend_from_slice(request);
            buffers.call = Some(call.request);
        }
    }

    #[cold]
    fn not_begun(&self, error: &CallError, len: usize) -> NotBegun {
        match *error {
            CallError::TooLarge { limit, .. } => NotBegun::TooLong {
                len,
                limit: limit as usize,
            },
            CallError::NotConnected => NotBegun::Gone,
            CallError::SlotInUse | CallError::NoSuchSlot { .. } => {
                NotBegun::WindowFull(self.granted.slots)
            }
        }
    }

    /// Sends what there is to send; it leaves at the next flush.
    #[inline(never)]
    fn transmit(&mut self) -> Result<(), FabricError> {
        let now_ns = self.clock.now_ns();
        loop {
            let header = &mut self.header;
            let next = self
                .core
                .with_dependent_mut(|_, core| core.poll_transmit(now_ns, header));
            let Some(transmit) = next else {
                return Ok(());
            };
            let payload = transmit.payload.and_then(|payload| {
                let range = payload.range.start as usize..payload.range.end as usize;
                let buffers = self.buffers.get(usize::from(payload.slot));
                buffers?.request.get(range)
            });
            let header = self.header.get(..transmit.header_len).unwrap_or_default();
            self.fabric
                .send(SERVER, header, payload.unwrap_or_default())?;
        }
    }

    /// Lets what was begun leave.
    #[inline(always)]
    pub fn flush(&mut self) -> Result<(), FabricError> {
        self.fabric.flush()
    }

    /// Takes in what has come, `most` datagrams at most, and tells `ended` of each call that is over; whether there was anything.
    #[inline(always)]
    pub fn work(
        &mut self,
        most: usize,
        mut ended: impl FnMut(CallId, Ended<'_>),
    ) -> Result<bool, FabricError> {
        let timed_out = std::mem::take(&mut self.timers) && self.time_out(&mut ended)?;
        self.fabric.flush()?;
        let mut handled = 0;
        while handled < most && self.receive(&mut ended)? {
            handled += 1;
            if self.outstanding == 0 {
                // Nothing else is awaited, and to look for it would take the next line from the server, which is to write it.
                break;
            }
        }
        self.timers = if handled > 0 {
            self.patience.renew();
            self.clock.busy()
        } else {
            self.look_for_the_server();
            self.clock.idle()
        };
        if handled > 0 && self.core.with_dependent(|_, core| core.has_to_transmit()) {
            self.transmit()?;
            self.fabric.flush()?;
        }
        while let Some(call) = self.lost.pop_front() {
            handled += 1;
            ended(call, Err(Failure::Lost));
        }
        Ok(handled > 0 || timed_out)
    }

    /// Takes in a datagram, if there is one.
    #[inline(always)]
    fn receive(&mut self, ended: &mut impl FnMut(CallId, Ended<'_>)) -> Result<bool, FabricError> {
        let Some(arrival) = self.fabric.receive()? else {
            return Ok(false);
        };
        let now_ns = self.clock.now_ns();
        let datagram = arrival.datagram;
        let whole = self
            .core
            .with_dependent_mut(|_, core| core.handle_whole(now_ns, datagram));
        if let Some(reply) = whole {
            let (request, slot) = (reply.request, reply.slot);
            if let Some(buffers) = self.buffers.get_mut(usize::from(slot)) {
                buffers.call = None;
                self.outstanding -= 1;
                self.put_together = false;
                ended(CallId { request, slot }, Ok(reply.payload));
            }
            return Ok(true);
        }
        let taken = self
            .core
            .with_dependent_mut(|_, core| core.handle_any(now_ns, datagram));
        match taken {
            Ok(Some(Event::Reply {
                request,
                slot,
                message_len,
                offset,
                payload,
                complete,
            })) => {
                let part = datagram.get(payload).unwrap_or_default();
                let Some(buffers) = self.buffers.get_mut(usize::from(slot)) else {
                    return Ok(true);
                };
                if put_together(buffers, message_len, offset, part) && complete {
                    buffers.call = None;
                    self.outstanding -= 1;
                    self.put_together = true;
                    ended(CallId { request, slot }, Ok(&buffers.reply));
                }
            }
            Ok(Some(event)) => self.happened(event, ended),
            // What the core rejects is nobody's answer: it is dropped.
            Ok(None) | Err(_) => {}
        }
        Ok(true)
    }

    /// The reply that ended `call`, once more, right after a [`Calling::work`] that took in its last datagram and no other.
    #[inline(always)]
    pub fn reply(&self, call: CallId) -> &[u8] {
        let whole = self.fabric.received().get(HEADER_LEN..);
        let reply = match self.put_together {
            false => whole,
            true => self
                .buffers
                .get(call.slot())
                .map(|buffers| buffers.reply.as_slice()),
        };
        reply.unwrap_or_default()
    }

    /// Everything but replies.
    #[cold]
    fn happened(&mut self, event: Event, ended: &mut impl FnMut(CallId, Ended<'_>)) {
        match event {
            Event::Connected => {
                self.link = Link::Open;
                self.granted = self.core.with_dependent(|_, core| core.granted());
            }
            Event::Refused(refusal) => self.link = Link::Refused(refusal),
            Event::ConnectTimedOut => self.link = Link::Unanswered,
            Event::Failed {
                request,
                slot,
                error,
            } => self.end(request, slot, Failure::Failed(error), ended),
            Event::TimedOut { request, slot } => self.end(request, slot, Failure::TimedOut, ended),
            Event::Closed { lost, .. } => self.lose(lost),
            Event::Reply { .. } => {}
        }
    }

    fn end(
        &mut self,
        request: RequestId,
        slot: u16,
        failure: Failure,
        ended: &mut impl FnMut(CallId, Ended<'_>),
    ) {
        if let Some(buffers) = self.buffers.get_mut(usize::from(slot)) {
            buffers.call = None;
            self.outstanding -= 1;
            ended(CallId { request, slot }, Err(failure));
        }
    }

    /// The session is over, and with it these calls.
    fn lose(&mut self, slots: SlotSet) {
        self.link = Link::Gone;
        for slot in slots.iter() {
            let buffers = self.buffers.get_mut(usize::from(slot));
            if let Some(request) = buffers.and_then(|buffers| buffers.call.take()) {
                self.outstanding -= 1;
                self.lost.push_back(CallId { request, slot });
            }
        }
    }

    #[inline(always)]
    fn look_for_the_server(&mut self) {
        if self.fabric.poll_gone().is_some() {
            let outstanding = self.core.with_dependent_mut(|_, core| {
                let outstanding = core.outstanding();
                core.disconnect();
                outstanding
            });
            self.lose(outstanding);
        }
    }

    /// Does what is due; whether a call has ended by it.
    fn time_out(&mut self, ended: &mut impl FnMut(CallId, Ended<'_>)) -> Result<bool, FabricError> {
        let now_ns = self.clock.now_ns();
        let outstanding = self.outstanding;
        loop {
            let event = self.core.with_dependent_mut(|_, core| {
                let due = core
                    .next_timeout_ns()
                    .is_some_and(|due_ns| now_ns >= due_ns);
                due.then(|| core.handle_timeout(now_ns)).flatten()
            });
            match event {
                Some(event) => self.happened(event, ended),
                None => break,
            }
        }
        self.transmit()?;
        Ok(self.outstanding < outstanding)
    }

    /// Waits for something to come, after nothing had: spins at first, then sleeps, for `timeout` at most.
    #[inline(always)]
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), FabricError> {
        if self.patience.lasts(self.clock.now_ns()) {
            std::hint::spin_loop();
            return Ok(());
        }
        self.sleep(timeout)
    }

    #[cold]
    fn sleep(&mut self, timeout: Option<Duration>) -> Result<(), FabricError> {
        let now_ns = self.clock.read();
        let due_ns = self.core.with_dependent(|_, core| core.next_timeout_ns());
        let due = due_ns.map_or(NAP, |due_ns| {
            Duration::from_nanos(due_ns.saturating_sub(now_ns))
        });
        let nap = timeout.unwrap_or(NAP).min(due).min(NAP);
        self.fabric.wait(Some(nap))?;
        self.patience.slept();
        self.clock.expire();
        Ok(())
    }

    /// Says goodbye. Calls that are outstanding end unheard.
    pub fn close(&mut self) -> Result<(), FabricError> {
        self.core.with_dependent_mut(|_, core| core.disconnect());
        self.link = Link::Gone;
        self.transmit()?;
        self.fabric.flush()
    }
}

/// Puts a part of a reply to the others. Parts come in order and each once.
fn put_together(buffers: &mut Buffers, message_len: u32, offset: u32, part: &[u8]) -> bool {
    if offset == 0 {
        buffers.reply.clear();
        buffers.reply.reserve_exact(message_len as usize);
    }
    let in_order = buffers.reply.len() == offset as usize;
    buffers.reply.extend_from_slice(part);
    in_order
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
