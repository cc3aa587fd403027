//! The serving thread: what arrives, what the core says about it, what is sent.

use core::ops::ControlFlow;

use mitosis_core::rpc::server::{Action, PeerId, Server, Transmission};
use mitosis_core::sync::spsc::{Consumer, Producer};
use mitosis_core::wire::resolution::QKEY;
use mitosis_core::wire::{ErrorCode, Header, Malformed};

use super::failures::{Cause, Failures, Unanswered};
use super::peers::{Peer, Peers};
use super::refusals::Refusals;
use super::resolver::{Found, Job, IN_FLIGHT};
use super::service::Service;
use super::slots::{Budget, SlotBuffers};
use super::{kernel, Failure};
use crate::devices::{Devices, Port};
use crate::endpoint::{Endpoint, Source};
use crate::errno::Errno;
use crate::info;
use crate::memory::Table;
use crate::module::Control;
use crate::thread::{give_way, now_ns, Event, Patience};
use crate::verbs::{Completion, Destination, ProtectionDomain, BATCH, GRH_LEN};

/// Longest sleep, so that the clock is looked at.
const NAP_NS: u64 = 500_000_000;

/// One port: its queue pair, dropped first, and the buffers that it sends from and receives into.
pub struct PortLine<'a> {
    /// Its queue pair.
    pub endpoint: Endpoint<'a>,
    /// The buffers of each slot whose session came over this port.
    pub slots: Table<SlotBuffers>,
}

impl<'a> PortLine<'a> {
    /// A queue pair on `port` with `receive_buffers`, and places for the buffers of `slots` slots.
    pub fn open(
        port: &Port,
        pd: &'a ProtectionDomain,
        event: &'a Event,
        receive_buffers: u32,
        slots: usize,
    ) -> Result<PortLine<'a>, Errno> {
        Ok(PortLine {
            endpoint: Endpoint::open(port, pd, event, receive_buffers)?,
            slots: Table::try_new(slots, |_| Ok(SlotBuffers::default()))?,
        })
    }
}

/// The serving thread's state. Fields are dropped in this order: queue pairs before what they send from, and address
/// handles after the queue pairs whose sends name them.
pub struct Serving<'a, S> {
    /// Its ports.
    pub lines: Table<PortLine<'a>>,
    /// The clients' addresses.
    pub peers: Peers,
    /// What datagrams mean.
    pub core: Server<'a>,
    /// The ports again, for new buffers.
    pub ports: &'a [(Port, ProtectionDomain)],
    /// Memory for long messages.
    pub budget: Budget,
    /// To the resolver.
    pub jobs: Producer<'a, Job, IN_FLIGHT>,
    /// Datagrams that the resolver has.
    pub jobs_out: usize,
    /// From the resolver.
    pub results: Consumer<'a, Found, IN_FLIGHT>,
    /// Signalled when it has a job.
    pub wake_resolver: &'a Event,
    /// What requests do.
    pub service: S,
    /// Says whom it refuses.
    pub refusals: Refusals,
    /// Senders that were not found.
    pub unresolved: u64,
    /// Datagrams that were nothing of ours.
    pub noise: u64,
    /// What it could not do.
    pub failures: Failures,
}

/// What to send once the datagram's buffer is no longer borrowed.
enum Next {
    Nothing,
    /// So many bytes of the header, to the datagram's source.
    Answer(usize),
    /// A part of a reply, and those that the core gives after it.
    Reply(Transmission),
}

impl<S: Service> Serving<'_, S> {
    /// Serves until its time is over or it is to stop. `housekeeping` is called before each sleep.
    pub fn run(
        &mut self,
        control: &Control,
        devices: &Devices<'_>,
        running_ns: u64,
        housekeeping: &dyn Fn(),
    ) -> Result<(), Failure> {
        let end_ns = now_ns().saturating_add(running_ns);
        let mut patience = Patience::default();
        loop {
            if control.stop.wanted() {
                return Ok(());
            }
            if devices.removed() {
                return Err(Failure::DeviceRemoved);
            }
            let busy = self.work()?;
            let now_ns = now_ns();
            if now_ns >= end_ns {
                return Ok(());
            }
            self.expire(now_ns);
            if busy {
                patience.renew(now_ns);
                give_way();
                continue;
            }
            if patience.lasts(now_ns) {
                give_way();
                continue;
            }
            housekeeping();
            let mut missed = false;
            for line in self.lines.iter_mut() {
                missed |= line.endpoint.arm();
            }
            if missed {
                continue;
            }
            let wake_ns = self.core.next_timeout_ns().unwrap_or(end_ns).min(end_ns);
            patience.sleep(&control.event, wake_ns.saturating_sub(now_ns).min(NAP_NS));
        }
    }

    /// Handles what there is; whether there was anything.
    fn work(&mut self) -> Result<bool, Failure> {
        let mut busy = false;
        for port in 0..self.lines.len() {
            let mut completions = [Completion::default(); BATCH];
            let Some(line) = self.lines.get_mut(port) else {
                continue;
            };
            let arrived = line.endpoint.poll(&mut completions);
            busy |= !arrived.is_empty();
            for completion in arrived {
                if completion.status != 0 {
                    return Err(Failure::Receive {
                        status: completion.status,
                    });
                }
                if self.receive(port, completion).is_continue() {
                    self.give_back(port, completion)?;
                }
            }
            if let Some(line) = self.lines.get_mut(port) {
                line.endpoint
                    .flush()
                    .map_err(kernel("cannot post receives"))?;
            }
        }
        while let Some(found) = self.results.pop() {
            busy = true;
            self.jobs_out = self.jobs_out.saturating_sub(1);
            let (port, completion) = (found.source.port, found.completion);
            self.meet(found);
            self.give_back(port, &completion)?;
        }
        Ok(busy)
    }

    fn give_back(&mut self, port: usize, completion: &Completion) -> Result<(), Failure> {
        match self.lines.get_mut(port) {
            Some(line) => line
                .endpoint
                .give_back(completion.wr_id)
                .map_err(kernel("cannot post receives")),
            None => Ok(()),
        }
    }

    /// Takes a datagram that arrived. `Break` if the resolver needs it, and with it its buffer, for a while.
    fn receive(&mut self, port: usize, completion: &Completion) -> ControlFlow<()> {
        let now_ns = now_ns();
        let Some(line) = self.lines.get(port) else {
            return ControlFlow::Continue(());
        };
        let Some(received) = line.endpoint.received(completion) else {
            return ControlFlow::Continue(());
        };
        // Noise is not worth looking for its sender, unless it asks for a version that we do not speak.
        match Header::parse(received.datagram) {
            Ok(_) | Err(Malformed::Version { .. }) => {}
            Err(_) => {
                self.noise = self.noise.wrapping_add(1);
                return ControlFlow::Continue(());
            }
        }
        let source = Source::of(completion, received.grh, port);
        let owner = self
            .core
            .peer_of(received.datagram)
            .filter(|&peer| self.peers.is_at(peer, &source));
        if let Some(peer) = owner.or_else(|| self.peers.find(&source, now_ns)) {
            self.handle(now_ns, peer, port, completion);
            return ControlFlow::Continue(());
        }
        let grh: [u8; GRH_LEN] = *received.grh;
        let job = Job {
            port,
            completion: *completion,
            grh,
        };
        if self.jobs_out < IN_FLIGHT && self.jobs.push(job).is_ok() {
            self.jobs_out += 1;
            self.wake_resolver.signal();
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Takes a datagram whose sender has been found.
    fn meet(&mut self, found: Found) {
        let now_ns = now_ns();
        let Ok(address) = found.address else {
            self.unresolved = self.unresolved.wrapping_add(1);
            return;
        };
        let peer = match self.peers.find(&found.source, now_ns) {
            // Found twice, because it asked twice: the second handle is dropped.
            Some(peer) => Some(peer),
            None => self.peers.insert(found.source, address, now_ns),
        };
        if let Some(peer) = peer {
            self.handle(now_ns, peer, found.source.port, &found.completion);
        }
    }

    /// Lets the core look at a datagram and does what it says.
    fn handle(&mut self, now_ns: u64, peer: PeerId, port: usize, completion: &Completion) {
        let sent = match self.decide(now_ns, peer, port, completion) {
            Ok(Next::Nothing) => Ok(()),
            Ok(Next::Answer(len)) => self.send_answer(peer, port, len),
            Ok(Next::Reply(transmission)) => self.send_reply(port, &transmission),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = sent {
            self.failures.add(now_ns, Cause::Send(errno));
        }
        self.release_closed();
    }

    #[inline]
    fn decide(
        &mut self,
        now_ns: u64,
        peer: PeerId,
        port: usize,
        completion: &Completion,
    ) -> Result<Next, Errno> {
        let (Some(line), Some((_, pd))) = (self.lines.get_mut(port), self.ports.get(port)) else {
            return Ok(Next::Nothing);
        };
        let (inbox, outbox) = line.endpoint.halves();
        let Some(received) = inbox.received(completion) else {
            return Ok(Next::Nothing);
        };
        let action = self
            .core
            .handle_datagram(now_ns, peer, received.datagram, outbox.header()?);
        let (dispatched, result) = match action {
            Action::Ignore(_) | Action::Done => return Ok(Next::Nothing),
            Action::Answer { len, opened } => {
                match opened {
                    Some(_) => self.peers.retain(peer),
                    None => self.refusals.tell(now_ns, self.core.counters()),
                }
                return Ok(Next::Answer(len));
            }
            Action::Send(transmission) => return Ok(Next::Reply(transmission)),
            Action::Dispatch(request) => {
                let chunks = core::iter::once(request.payload);
                // A datagram's.
                let len = request.payload.len() as u32;
                let slot = line.slots.get_mut(request.dispatched.slot_index as usize);
                let result = match slot {
                    _ if !self.service.knows(request.rpc_id) => Err(ErrorCode::NoSuchRpc.into()),
                    None => Err(Unanswered::Failed(Cause::NoBuffer)),
                    Some(slot) => {
                        let (_, room) = slot.halves(0, pd, outbox, &mut self.budget);
                        self.service.answer(request.rpc_id, chunks, len, room)
                    }
                };
                (request.dispatched, result)
            }
            Action::Segment(segment) => {
                let len = segment.message_len;
                let slot = line.slots.get_mut(segment.dispatched.slot_index as usize);
                let result = match slot {
                    _ if !self.service.knows(segment.rpc_id) => Err(ErrorCode::NoSuchRpc.into()),
                    None => Err(Unanswered::Failed(Cause::NoBuffer)),
                    Some(slot) => match slot.take(&segment, pd, &mut self.budget) {
                        Err(code) => Err(code.into()),
                        Ok(()) if !segment.complete => {
                            return Ok(match segment.answer_len {
                                0 => Next::Nothing,
                                len => Next::Answer(len),
                            });
                        }
                        Ok(()) => {
                            let (request, room) =
                                slot.halves(len as usize, pd, outbox, &mut self.budget);
                            self.service.answer(segment.rpc_id, request, len, room)
                        }
                    },
                };
                (segment.dispatched, result)
            }
        };
        if let Err(Unanswered::Failed(cause)) = result {
            self.failures.add(now_ns, cause);
        }
        let result = result.map_err(|unanswered| unanswered.code());
        let answer = self.core.complete(&dispatched, result, outbox.header()?);
        Ok(answer.map_or(Next::Nothing, Next::Reply))
    }

    fn send_answer(&mut self, peer: PeerId, port: usize, len: usize) -> Result<(), Errno> {
        if let (Some(line), Some(peer)) = (self.lines.get_mut(port), self.peers.peer(peer)) {
            line.endpoint.send(&destination(peer), len, None, false)?;
        }
        Ok(())
    }

    /// Sends a reply's part, and those that the core gives after it.
    #[inline]
    fn send_reply(&mut self, port: usize, first: &Transmission) -> Result<(), Errno> {
        let (Some(line), Some(peer)) = (self.lines.get_mut(port), self.peers.peer(first.peer))
        else {
            return Ok(());
        };
        let Some(slot) = line.slots.get_mut(first.slot_index as usize) else {
            return Ok(());
        };
        let to = destination(peer);
        let mut burst = line.endpoint.burst(&to);
        slot.send(&mut burst, first)?;
        let mut more = first.more;
        while more {
            let header = burst.outbox().header()?;
            let Some(next) = self.core.poll_transmit(header) else {
                break;
            };
            slot.send(&mut burst, &next)?;
            more = next.more;
        }
        burst.ring()
    }

    /// Lets go of what ended sessions had.
    fn release_closed(&mut self) {
        while let Some(closed) = self.core.poll_closed() {
            self.peers.release(closed.peer);
            let first = closed.first_slot_index as usize;
            for (line, (_, pd)) in self.lines.iter_mut().zip(self.ports) {
                let slots = line.slots.iter_mut().skip(first);
                for slot in slots.take(usize::from(closed.slots)) {
                    slot.shrink(pd, line.endpoint.outbox(), &mut self.budget);
                }
            }
        }
    }

    fn expire(&mut self, now_ns: u64) {
        if self
            .core
            .next_timeout_ns()
            .is_some_and(|at_ns| now_ns >= at_ns)
        {
            self.core.handle_timeout(now_ns);
            self.release_closed();
        }
    }

    /// Prints what was done.
    pub fn log_totals(&self) {
        let counters = self.core.counters();
        let rejected = [
            counters.refused_busy,
            counters.refused_key_required,
            counters.refused_wrong_key,
            counters.refused_no_key_here,
            counters.refused_replayed,
            counters.refused_version,
            counters.refused_going_away,
            counters.too_large,
            counters.bad_requests,
            counters.no_such_session,
            counters.ignored_malformed,
            counters.ignored_unexpected,
            counters.ignored_stale,
            self.unresolved,
            self.noise,
        ]
        .iter()
        .fold(0u64, |sum, count| sum.wrapping_add(*count));
        let all: usize = self
            .lines
            .iter()
            .map(|line| line.endpoint.receive_buffers())
            .sum();
        let held: usize = self.lines.iter().map(|line| line.endpoint.held()).sum();
        // What the resolver had when it was stopped is accounted for.
        let posted = (all + self.jobs_out).saturating_sub(held);
        info!(
            "rpc server stopped: sessions ",
            counters.connects,
            ", requests ",
            counters.requests,
            ", replayed ",
            counters.replays,
            ", rejected ",
            rejected,
            ", errors ",
            self.failures.total(),
            ", receive buffers ",
            posted,
            " of ",
            all
        );
    }
}

fn destination(peer: &Peer) -> Destination<'_> {
    Destination {
        address: &peer.address,
        qpn: peer.source.qpn,
        qkey: QKEY,
    }
}
