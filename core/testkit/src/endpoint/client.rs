//! A client and the program that makes its calls.

use std::collections::VecDeque;

use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event};
use mitosis_core::session::RequestId;
use mitosis_core::wire::MAX_CONTROL_LEN;

use super::{random_of, send, Settings, MS};
use crate::call::{read_request, write_request, Asked, CallId, Work};
use crate::network::Address;
use crate::oracle::{Outcome, Violation};
use crate::random::Random;
use crate::world::{Endpoint, Order, Port};

/// How long a client waits at most before it tries to open a session once more. Every other time
/// it waits for less than a hundredth, so that what belonged to the old session meets the new one.
const RECONNECT_NS: u64 = MS;

/// The tables of one client for each of its lives: a crash leaves them behind.
pub struct ClientMemory(Vec<Vec<CallSlot>>);

impl ClientMemory {
    /// Tables for so many lives.
    pub fn new(settings: &Settings, lives: u32) -> Self {
        let slots = || vec![CallSlot::new(); usize::from(settings.slots)];
        Self((0..lives).map(|_| slots()).collect())
    }
}

/// A client that makes the calls that are ordered, as many at once as it may, and that opens
/// another session whenever one ends. After a crash it goes on with the calls not yet begun.
pub struct SimulatedClient<'a> {
    seed: u64,
    settings: Settings,
    server: Address,
    lives: std::slice::IterMut<'a, Vec<CallSlot>>,
    life: u32,
    wanted: VecDeque<Order>,
    running: Option<Running<'a>>,
}

/// What a crash loses.
struct Running<'a> {
    client: Client<'a>,
    incarnation: u32,
    random: Random,
    settings: Settings,
    server: Address,
    connect_at_ns: Option<u64>,
    slots: Vec<Slot>,
}

/// A slot's buffers, which grow to what is needed, and its call.
#[derive(Clone, Default)]
struct Slot {
    request: Vec<u8>,
    reply: Vec<u8>,
    call: Option<Outstanding>,
}

#[derive(Clone, Copy)]
struct Outstanding {
    request: RequestId,
    id: CallId,
    work: Work,
    asked: Option<Asked>,
}

impl<'a> SimulatedClient<'a> {
    /// A client of `server` that is not started yet.
    pub fn new(
        seed: u64,
        settings: Settings,
        server: Address,
        memory: &'a mut ClientMemory,
    ) -> Self {
        Self {
            seed,
            settings,
            server,
            lives: memory.0.iter_mut(),
            life: 0,
            wanted: VecDeque::new(),
            running: None,
        }
    }
}

impl Endpoint for SimulatedClient<'_> {
    /// Without memory for another life, it stays down.
    fn start(&mut self, port: &mut Port<'_>) {
        let Some(call_slots) = self.lives.next() else {
            return;
        };
        self.life += 1;
        let mut random = random_of(self.seed, port.address, self.life);
        let (rto_initial_ns, rto_min_ns, rto_max_ns) = self.settings.rto_ns;
        let config = ClientConfig {
            client_key: random.bits(),
            nonce: random.bits(),
            cluster_key: self.settings.cluster_key(self.seed),
            datagram_len: self.settings.datagram_len,
            slots: self.settings.slots,
            credits: self.settings.credits,
            max_message_len: self.settings.max_message_len,
            rto_initial_ns,
            rto_min_ns,
            rto_max_ns,
            connect_timeout_ns: self.settings.connect_timeout_ns,
            call_timeout_ns: self.settings.call_timeout_ns,
        };
        let slots = vec![Slot::default(); call_slots.len()];
        let mut client = Client::new(config, call_slots);
        client.connect(port.now_ns());
        let running = self.running.insert(Running {
            client,
            incarnation: port.oracle.born(),
            random,
            settings: self.settings,
            server: self.server,
            connect_at_ns: None,
            slots,
        });
        running.pump(port, &mut self.wanted);
    }

    fn crash(&mut self, port: &mut Port<'_>) {
        let slots = self.running.take().into_iter().flat_map(|it| it.slots);
        for call in slots.filter_map(|slot| slot.call) {
            port.oracle.abandoned(call.id);
        }
    }

    fn receive(&mut self, port: &mut Port<'_>, _from: Address, datagram: &[u8]) {
        let Some(running) = &mut self.running else {
            return;
        };
        match running.client.handle_datagram(port.now_ns(), datagram) {
            Ok(Some(event)) => running.handle(port, event, datagram),
            Ok(None) => {}
            Err(why) => port.note(|| format!("ignores it: {why}")),
        }
        running.pump(port, &mut self.wanted);
    }

    fn wake(&mut self, port: &mut Port<'_>) {
        let Some(running) = &mut self.running else {
            return;
        };
        let now_ns = port.now_ns();
        if running.connect_at_ns.is_some_and(|due| due <= now_ns) {
            running.connect_at_ns = None;
            running.client.connect(now_ns);
        }
        while let Some(event) = running.client.handle_timeout(now_ns) {
            running.handle(port, event, &[]);
        }
        running.pump(port, &mut self.wanted);
    }

    fn next_wake_ns(&self) -> Option<u64> {
        let running = self.running.as_ref()?;
        let timeout = running.client.next_timeout_ns();
        [timeout, running.connect_at_ns].into_iter().flatten().min()
    }

    fn order(&mut self, port: &mut Port<'_>, order: Order) {
        port.oracle.ordered(order.count);
        self.wanted.push_back(order);
        if let Some(running) = &mut self.running {
            running.pump(port, &mut self.wanted);
        }
    }

    fn leave(&mut self, port: &mut Port<'_>) {
        if let Some(running) = &mut self.running {
            running.leave(port);
        }
    }
}

impl Running<'_> {
    /// The calls that are outstanding end with the session, and nobody is told.
    fn leave(&mut self, port: &mut Port<'_>) {
        for call in self.slots.iter_mut().filter_map(|slot| slot.call.take()) {
            port.oracle.abandoned(call.id);
        }
        self.client.disconnect();
        self.transmit(port);
        self.connect_later(port.now_ns());
    }

    fn handle(&mut self, port: &mut Port<'_>, event: Event, datagram: &[u8]) {
        port.note(|| format!("is told {event:?}"));
        match event {
            Event::Connected => port.oracle.tally.sessions += 1,
            Event::Refused(_) | Event::ConnectTimedOut => {
                port.oracle.tally.unopened += 1;
                self.connect_later(port.now_ns());
            }
            Event::Reply {
                request,
                slot,
                message_len,
                offset,
                payload,
                complete,
            } => {
                let part = datagram.get(payload).unwrap_or_default();
                self.take_part(port, (request, slot), (message_len, offset), part, complete);
            }
            Event::Failed {
                request,
                slot,
                error,
            } => self.end(port, request, slot, Outcome::Failed(error), true),
            Event::TimedOut { request, slot } => {
                self.end(port, request, slot, Outcome::TimedOut, true);
            }
            Event::Closed { lost, .. } => {
                let outstanding = self.slots.iter().filter(|slot| slot.call.is_some());
                let forgotten = (outstanding.count() as u64).saturating_sub(lost.len().into());
                if forgotten > 0 {
                    port.oracle.violated(Violation::Lost { calls: forgotten });
                }
                for slot in lost.iter() {
                    let call = self.slots.get(usize::from(slot)).and_then(|slot| slot.call);
                    let request = call.map_or(RequestId(0), |call| call.request);
                    self.end(port, request, slot, Outcome::Closed, true);
                }
                self.connect_later(port.now_ns());
            }
        }
    }

    fn connect_later(&mut self, now_ns: u64) {
        let most_ns = [RECONNECT_NS / 100, RECONNECT_NS][self.random.below(2) as usize];
        self.connect_at_ns = Some(now_ns + self.random.below(most_ns));
    }

    /// Puts a part of a reply to the others and, if it is the last, checks the whole.
    fn take_part(
        &mut self,
        port: &mut Port<'_>,
        (request, slot): (RequestId, u16),
        (message_len, offset): (u32, u32),
        part: &[u8],
        complete: bool,
    ) {
        let Some(buffers) = self.slots.get_mut(usize::from(slot)) else {
            return port
                .oracle
                .violated(Violation::EndedUnasked { request: request.0 });
        };
        if offset == 0 {
            buffers.reply.clear();
        }
        // The parts come in order and each once: what does so ends at the reply's length.
        let in_order = buffers.reply.len() == offset as usize;
        buffers.reply.extend_from_slice(part);
        let whole = buffers.reply.len() == message_len as usize;
        if in_order && whole == complete {
            if !complete {
                return;
            }
            let asked = buffers.call.and_then(|call| call.asked);
            let genuine = asked.is_some_and(|asked| asked.is_reply(&buffers.reply));
            return self.end(port, request, slot, Outcome::Replied, genuine);
        }
        self.end(port, request, slot, Outcome::Replied, false);
    }

    fn end(
        &mut self,
        port: &mut Port<'_>,
        request: RequestId,
        slot: u16,
        outcome: Outcome,
        genuine: bool,
    ) {
        let slot = self.slots.get_mut(usize::from(slot));
        let call = slot.and_then(|slot| slot.call.take_if(|call| call.request == request));
        match call {
            Some(call) => port.oracle.ended(call.id, call.work, outcome, genuine),
            None => port
                .oracle
                .violated(Violation::EndedUnasked { request: request.0 }),
        }
    }

    /// Begins calls while there is room, and sends what there is to send.
    fn pump(&mut self, port: &mut Port<'_>, wanted: &mut VecDeque<Order>) {
        while let Some(order) = wanted.front_mut() {
            if order.count == 0 {
                wanted.pop_front();
                continue;
            }
            if !self.client.is_connected() {
                break;
            }
            let Some(slot) = self.client.free_slot() else {
                break;
            };
            order.count -= 1;
            let drawn = order.draw(&mut self.random);
            self.begin(port, slot, drawn);
        }
        self.transmit(port);
    }

    fn transmit(&mut self, port: &mut Port<'_>) {
        let now_ns = port.now_ns();
        let mut header = [0; MAX_CONTROL_LEN];
        while let Some(transmit) = self.client.poll_transmit(now_ns, &mut header) {
            let payload = transmit.payload.as_ref().map_or(&[][..], |payload| {
                let range = payload.range.start as usize..payload.range.end as usize;
                &self.slots[usize::from(payload.slot)].request[range]
            });
            let header = &header[..transmit.header_len];
            send(port, &self.settings, self.server, header, payload);
        }
    }

    fn begin(&mut self, port: &mut Port<'_>, slot: u16, drawn: (Work, u32, u32)) {
        let (work, request_len, reply_len) = drawn;
        let id = port.oracle.begin(self.incarnation);
        let buffers = &mut self.slots[usize::from(slot)];
        buffers.request.resize(request_len as usize, 0);
        write_request(id, reply_len, &mut buffers.request);
        match self
            .client
            .call(port.now_ns(), slot, work.rpc_id(), request_len)
        {
            Ok(request) if buffers.call.is_none() => {
                port.note(|| format!("makes {id}, {work:?}, as {request} in slot {slot}"));
                buffers.call = Some(Outstanding {
                    request,
                    id,
                    work,
                    asked: read_request(&buffers.request),
                });
            }
            _ => port.oracle.violated(Violation::Unaccepted(id)),
        }
    }
}
