//! The server and its handlers.

use mitosis_core::rpc::server::{
    Action, Dispatched, Server, ServerConfig, Transmission, ANSWER_LEN,
};
use mitosis_core::session::{ServerSlot, Session};
use mitosis_core::wire::ErrorCode;

use super::{random_of, send, Settings};
use crate::call::{read_request, Asked, Work};
use crate::network::Address;
use crate::queue::Queue;
use crate::random::Random;
use crate::world::{Endpoint, Order, Port};

/// The tables of one server for each of its lives: a crash leaves them behind.
pub struct ServerMemory(Vec<(Vec<Session>, Vec<ServerSlot>)>);

impl ServerMemory {
    /// Tables for so many lives.
    pub fn new(settings: &Settings, lives: u32) -> Self {
        let sessions = settings.sessions as usize;
        let slots = sessions * usize::from(settings.slots.next_power_of_two());
        let tables = || {
            (
                vec![Session::new(); sessions],
                vec![ServerSlot::new(); slots],
            )
        };
        Self((0..lives).map(|_| tables()).collect())
    }
}

/// A server with one handler for each kind of [`Work`].
pub struct SimulatedServer<'a> {
    seed: u64,
    settings: Settings,
    lives: std::slice::IterMut<'a, (Vec<Session>, Vec<ServerSlot>)>,
    life: u32,
    running: Option<Running<'a>>,
}

/// What a crash loses.
struct Running<'a> {
    settings: Settings,
    server: Server<'a>,
    random: Random,
    buffers: Vec<Buffers>,
    late: Queue<Late>,
}

/// The buffers of a slot, which grow to what is needed.
#[derive(Clone, Default)]
struct Buffers {
    request: Vec<u8>,
    reply: Vec<u8>,
}

/// A call whose handler has not replied yet.
struct Late {
    dispatched: Dispatched,
    asked: Asked,
}

impl<'a> SimulatedServer<'a> {
    /// A server that is not started yet.
    pub fn new(seed: u64, settings: Settings, memory: &'a mut ServerMemory) -> Self {
        Self {
            seed,
            settings,
            lives: memory.0.iter_mut(),
            life: 0,
            running: None,
        }
    }
}

impl Endpoint for SimulatedServer<'_> {
    /// Without memory for another life, it stays down.
    fn start(&mut self, port: &mut Port<'_>) {
        let Some((sessions, slots)) = self.lives.next() else {
            return;
        };
        self.life += 1;
        let mut random = random_of(self.seed, port.address, self.life);
        let buffers = vec![Buffers::default(); slots.len()];
        let config = ServerConfig {
            // Differs from all before, and tells them apart in a trace.
            epoch: ((random.bits() as u32) << 8) | (self.life & 0xff),
            random_seed: u128::from(random.bits()) << 64 | u128::from(random.bits()),
            cluster_key: self.settings.cluster_key(self.seed),
            datagram_len: self.settings.datagram_len,
            receive_buffers: self.settings.receive_buffers,
            max_slots: self.settings.slots,
            max_credits: self.settings.credits,
            max_message_len: self.settings.max_message_len,
            idle_timeout_ns: self.settings.idle_timeout_ns,
            handshake_timeout_ns: self.settings.handshake_timeout_ns,
        };
        self.running = Some(Running {
            settings: self.settings,
            server: Server::new(config, sessions, slots),
            random,
            buffers,
            late: Queue::default(),
        });
    }

    fn crash(&mut self, _port: &mut Port<'_>) {
        self.running = None;
    }

    fn receive(&mut self, port: &mut Port<'_>, from: Address, datagram: &[u8]) {
        if let Some(running) = &mut self.running {
            running.receive(port, from, datagram);
        }
    }

    fn wake(&mut self, port: &mut Port<'_>) {
        if let Some(running) = &mut self.running {
            running.wake(port);
        }
    }

    fn next_wake_ns(&self) -> Option<u64> {
        let running = self.running.as_ref()?;
        let timeout = running.server.next_timeout_ns();
        let late = running.late.next_ns();
        [timeout, late].into_iter().flatten().min()
    }

    /// A server makes no calls.
    fn order(&mut self, _port: &mut Port<'_>, _order: Order) {}

    /// A server has no session of its own.
    fn leave(&mut self, _port: &mut Port<'_>) {}
}

impl Running<'_> {
    fn receive(&mut self, port: &mut Port<'_>, from: Address, datagram: &[u8]) {
        let mut out = [0; ANSWER_LEN];
        let now_ns = port.now_ns();
        match self
            .server
            .handle_datagram(now_ns, from, datagram, &mut out)
        {
            Action::Ignore(why) => port.note(|| format!("ignores it: {why}")),
            Action::Done => {}
            Action::Answer { len, .. } => send(port, &self.settings, from, &out[..len], &[]),
            Action::Dispatch(request) => {
                let (dispatched, rpc_id) = (request.dispatched, request.rpc_id);
                self.execute(port, dispatched, rpc_id, request.payload);
            }
            Action::Segment(segment) => {
                let buffers = &mut self.buffers[segment.dispatched.slot_index as usize];
                if segment.offset == 0 {
                    buffers.request.clear();
                    buffers.request.resize(segment.message_len as usize, 0);
                }
                let at = segment.offset as usize;
                buffers.request[at..at + segment.payload.len()].copy_from_slice(segment.payload);
                if segment.answer_len > 0 {
                    send(port, &self.settings, from, &out[..segment.answer_len], &[]);
                }
                if segment.complete {
                    let request = std::mem::take(&mut buffers.request);
                    let dispatched = segment.dispatched;
                    self.execute(port, dispatched, segment.rpc_id, &request);
                    self.buffers[dispatched.slot_index as usize].request = request;
                }
            }
            Action::Send(transmission) => self.send_all(port, &mut out, transmission),
        }
        while self.server.poll_closed().is_some() {}
    }

    fn wake(&mut self, port: &mut Port<'_>) {
        let now_ns = port.now_ns();
        while self.late.next_ns().is_some_and(|due| due <= now_ns) {
            if let Some(Late { dispatched, asked }) = self.late.pop() {
                self.reply(port, &dispatched, &asked);
            }
        }
        if self
            .server
            .next_timeout_ns()
            .is_some_and(|due| due <= now_ns)
        {
            self.server.handle_timeout(now_ns);
        }
        while self.server.poll_closed().is_some() {}
    }

    fn execute(
        &mut self,
        port: &mut Port<'_>,
        dispatched: Dispatched,
        rpc_id: u32,
        request: &[u8],
    ) {
        let Some(asked) = read_request(request) else {
            port.oracle.executed_damaged();
            return self.complete(port, &dispatched, Err(ErrorCode::HandlerFailed));
        };
        port.oracle.executed(asked.id);
        port.note(|| format!("executes {}", asked.id));
        match Work::from_rpc_id(rpc_id) {
            None => self.complete(port, &dispatched, Err(ErrorCode::NoSuchRpc)),
            Some(Work::Failing) => self.complete(port, &dispatched, Err(ErrorCode::HandlerFailed)),
            Some(Work::Immediate) => self.reply(port, &dispatched, &asked),
            Some(Work::Late) => {
                let (least, greatest) = self.settings.late_ns;
                let takes_ns = self.random.within(&(least..=greatest));
                let late = Late { dispatched, asked };
                self.late.add(port.now_ns() + takes_ns, late);
            }
        }
    }

    fn reply(&mut self, port: &mut Port<'_>, dispatched: &Dispatched, asked: &Asked) {
        let reply = &mut self.buffers[dispatched.slot_index as usize].reply;
        reply.clear();
        reply.resize(asked.reply_len as usize, 0);
        asked.write_reply(reply);
        self.complete(port, dispatched, Ok(asked.reply_len));
    }

    fn complete(
        &mut self,
        port: &mut Port<'_>,
        dispatched: &Dispatched,
        result: Result<u32, ErrorCode>,
    ) {
        let mut out = [0; ANSWER_LEN];
        if let Some(transmission) = self.server.complete(dispatched, result, &mut out) {
            self.send_all(port, &mut out, transmission);
        }
    }

    fn send_all(&mut self, port: &mut Port<'_>, out: &mut [u8], first: Transmission) {
        let mut next = Some(first);
        while let Some(transmission) = next {
            self.send(port, out, &transmission);
            next = self.server.poll_transmit(out).filter(|_| transmission.more);
        }
    }

    fn send(&mut self, port: &mut Port<'_>, out: &[u8], transmission: &Transmission) {
        let range = transmission.payload.start as usize..transmission.payload.end as usize;
        let payload = if range.is_empty() {
            &[]
        } else {
            &self.buffers[transmission.slot_index as usize].reply[range]
        };
        let header = &out[..transmission.header_len];
        send(port, &self.settings, transmission.peer, header, payload);
    }
}
