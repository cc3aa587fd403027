//! The serving thread: what arrives, what the core says about it, what is sent.

use core::ops::ControlFlow;

use mitosis_core::rpc::server::{Action, PeerId, Server, ANSWER_LEN};
use mitosis_core::sync::spsc::{Consumer, Producer};
use mitosis_core::wire::resolution::QKEY;
use mitosis_core::wire::{ErrorCode, Header, Malformed, HEADER_LEN};

use super::peers::Peers;
use super::resolver::{Found, Job, IN_FLIGHT};
use super::{kernel, Failure};
use crate::devices::{Devices, Port};
use crate::endpoint::{Endpoint, Source, Ticket};
use crate::errno::Errno;
use crate::memory::Table;
use crate::module::Control;
use crate::thread::{give_way, now_ns, Event, Patience};
use crate::verbs::{
    Completion, Destination, Direction, MappedPage, ProtectionDomain, BATCH, GRH_LEN,
};
use crate::{info, warning};

/// Buffers a port for answers that belong to no session.
const ANSWER_BUFFERS: usize = 32;
/// Longest sleep, so that the clock is looked at.
const NAP_NS: u64 = 500_000_000;

/// A buffer to send from.
pub struct SendBuffer {
    buffer: MappedPage,
    /// The last send from it that asked for a completion.
    ticket: Ticket,
}

impl SendBuffer {
    fn new(pd: &ProtectionDomain) -> Result<SendBuffer, Errno> {
        Ok(SendBuffer {
            buffer: MappedPage::new(pd, Direction::ToDevice)?,
            ticket: Ticket::default(),
        })
    }
}

/// One port: its queue pair, dropped first, and buffers for answers that belong to no session.
pub struct PortLine<'a> {
    /// Its queue pair.
    pub endpoint: Endpoint<'a>,
    answers: Table<SendBuffer>,
    next_answer: usize,
}

impl<'a> PortLine<'a> {
    /// A queue pair on `port` with `receive_buffers`: one for each session, so that synchronous clients can never
    /// overrun them.
    pub fn open(
        port: &Port,
        pd: &'a ProtectionDomain,
        event: &'a Event,
        receive_buffers: u32,
    ) -> Result<PortLine<'a>, Errno> {
        Ok(PortLine {
            endpoint: Endpoint::open(port, pd, event, receive_buffers)?,
            answers: Table::try_new(ANSWER_BUFFERS, |_| SendBuffer::new(pd))?,
            next_answer: 0,
        })
    }
}

/// A session's reply buffer, on the device of the port that the session came over.
pub struct Reply {
    send: SendBuffer,
    port: usize,
}

/// The serving thread's state. Fields are dropped in this order: queue pairs before what they send from, and address
/// handles after the queue pairs whose sends name them.
pub struct Serving<'a> {
    /// Its ports.
    pub lines: Table<PortLine<'a>>,
    /// The sessions' reply buffers.
    pub replies: Table<Option<Reply>>,
    /// The clients' addresses.
    pub peers: Peers,
    /// What datagrams mean.
    pub core: Server<'a>,
    /// The ports again, for new buffers.
    pub ports: &'a [(Port, ProtectionDomain)],
    /// To the resolver.
    pub jobs: Producer<'a, Job, IN_FLIGHT>,
    /// Datagrams that the resolver has.
    pub jobs_out: usize,
    /// From the resolver.
    pub results: Consumer<'a, Found, IN_FLIGHT>,
    /// Signalled when it has a job.
    pub wake_resolver: &'a Event,
    /// The test's only function.
    pub test_rpc_id: u32,
    /// Senders that were not found.
    pub unresolved: u64,
    /// Datagrams that were nothing of ours.
    pub noise: u64,
    /// Sends that the kernel refused.
    pub errors: u64,
}

/// What to do once the datagram's buffer is no longer borrowed.
enum Next {
    Nothing,
    Answer { len: usize },
    Reply { session_index: u32, len: usize },
    Resend { session_index: u32, len: usize },
}

impl Serving<'_> {
    /// Serves until its time is over or it is to stop.
    pub fn run(
        &mut self,
        control: &Control,
        devices: &Devices<'_>,
        running_ns: u64,
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
        let next = self.decide(now_ns, peer, port, completion);
        let sent = match next {
            Next::Nothing => Ok(()),
            Next::Answer { len } => self.send_answer(peer, port, len),
            Next::Reply { session_index, len } => {
                self.send_reply(peer, port, session_index, len, false)
            }
            Next::Resend { session_index, len } => {
                self.send_reply(peer, port, session_index, len, true)
            }
        };
        if let Err(errno) = sent {
            if self.errors == 0 {
                warning!("cannot send: ", errno, "; the client will ask again");
            }
            self.errors = self.errors.wrapping_add(1);
        }
        while let Some(closed) = self.core.poll_closed() {
            self.peers.release(closed.peer);
        }
    }

    #[inline]
    fn decide(&mut self, now_ns: u64, peer: PeerId, port: usize, completion: &Completion) -> Next {
        let Some(PortLine {
            endpoint,
            answers,
            next_answer,
        }) = self.lines.get_mut(port)
        else {
            return Next::Nothing;
        };
        let answer = match answers.get_mut(*next_answer) {
            // An answer buffer that is still being sent cannot be written: the client asks again.
            Some(answer) if endpoint.is_sent(answer.ticket) => answer,
            _ => return Next::Nothing,
        };
        let Some(received) = endpoint.received(completion) else {
            return Next::Nothing;
        };
        let out = answer.buffer.page.bytes_mut();
        let out = out.get_mut(..ANSWER_LEN).unwrap_or(&mut []);
        match self
            .core
            .handle_datagram(now_ns, peer, received.datagram, out)
        {
            Action::Ignore(_) | Action::Done => Next::Nothing,
            Action::Answer { len, opened } => {
                if opened.is_some() {
                    self.peers.retain(peer);
                }
                Next::Answer { len }
            }
            Action::Resend { session_index, len } => Next::Resend { session_index, len },
            Action::Dispatch(request) => {
                let session_index = request.dispatched.session_index;
                let place = self.replies.get_mut(session_index as usize);
                let Some(reply) = place.and_then(|place| reply_on(place, port, self.ports)) else {
                    self.core
                        .complete(&request.dispatched, Err(ErrorCode::HandlerFailed), &mut []);
                    return Next::Nothing;
                };
                let bytes = reply.send.buffer.page.bytes_mut();
                let result = match bytes.get_mut(HEADER_LEN..) {
                    Some(room) => execute(self.test_rpc_id, request.rpc_id, request.payload, room),
                    None => Err(ErrorCode::HandlerFailed),
                };
                let len = self.core.complete(&request.dispatched, result, bytes);
                Next::Reply { session_index, len }
            }
        }
    }

    fn send_answer(&mut self, peer: PeerId, port: usize, len: usize) -> Result<(), Errno> {
        let (Some(line), Some(peer)) = (self.lines.get_mut(port), self.peers.peer(peer)) else {
            return Ok(());
        };
        let Some(answer) = line.answers.get_mut(line.next_answer) else {
            return Ok(());
        };
        let to = Destination {
            address: &peer.address,
            qpn: peer.source.qpn,
            qkey: QKEY,
        };
        answer.ticket = line.endpoint.send(&to, &answer.buffer, len, true)?;
        line.next_answer = (line.next_answer + 1) % ANSWER_BUFFERS;
        Ok(())
    }

    #[inline]
    fn send_reply(
        &mut self,
        peer: PeerId,
        port: usize,
        session_index: u32,
        len: usize,
        again: bool,
    ) -> Result<(), Errno> {
        let reply = self.replies.get(session_index as usize);
        let (Some(line), Some(peer), Some(Some(reply))) =
            (self.lines.get_mut(port), self.peers.peer(peer), reply)
        else {
            return Ok(());
        };
        if len == 0 || reply.port != port {
            return Ok(());
        }
        let to = Destination {
            address: &peer.address,
            qpn: peer.source.qpn,
            qkey: QKEY,
        };
        let ticket = line.endpoint.send(&to, &reply.send.buffer, len, again)?;
        if again {
            // The client's next request proves that it has a reply, not that the repetition has left this buffer.
            line.endpoint.wait_sent(ticket)?;
        }
        Ok(())
    }

    fn expire(&mut self, now_ns: u64) {
        if self
            .core
            .next_timeout_ns()
            .is_some_and(|at_ns| now_ns >= at_ns)
        {
            self.core.handle_timeout(now_ns);
            while let Some(closed) = self.core.poll_closed() {
                self.peers.release(closed.peer);
            }
        }
    }

    /// Prints what was done.
    pub fn log_totals(&self) {
        let counters = self.core.counters();
        let rejected = [
            counters.refused_busy,
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
            self.errors,
            ", receive buffers ",
            posted,
            " of ",
            all
        );
    }
}

/// The session's reply buffer on the device of `port`, made when it is first needed there.
#[inline]
fn reply_on<'r>(
    place: &'r mut Option<Reply>,
    port: usize,
    ports: &[(Port, ProtectionDomain)],
) -> Option<&'r mut Reply> {
    if place.as_ref().is_none_or(|reply| reply.port != port) {
        let (_, pd) = ports.get(port)?;
        let send = SendBuffer::new(pd).ok()?;
        *place = Some(Reply { send, port });
    }
    place.as_mut()
}

/// The test's only function: empty.
#[inline]
fn execute(
    test_rpc_id: u32,
    rpc_id: u32,
    _payload: &[u8],
    _room: &mut [u8],
) -> Result<usize, ErrorCode> {
    if rpc_id == test_rpc_id {
        Ok(0)
    } else {
        Err(ErrorCode::NoSuchRpc)
    }
}
