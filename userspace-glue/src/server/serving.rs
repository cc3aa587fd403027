//! The serving endpoint over a fabric.

use std::time::Duration;

use mitosis_core::rpc::server::{
    Action, Counters, Dispatched, PeerId, Request, Served, Server as Core, ServerConfig,
    ServerSlot, Session, Transmission, ANSWER_LEN,
};
use mitosis_core::session::{RequestId, SessionId};
use mitosis_core::wire::{Datagram, ErrorCode, Header, Message, Words};
use self_cell::{self_cell, MutBorrow};

use super::handlers::Handlers;
use super::pace::Pace;
use super::slots::Slots;
use super::ServerOptions;
use crate::clock::Clock;
use crate::fabric::{Fabric, FabricError, Waker};
use crate::patience::Patience;

/// How many datagrams are answered before the doorbell is rung: few enough that the first does not wait for long.
const BATCH: u32 = 32;

/// The longest sleep, so that the clock is looked at.
const NAP: Duration = Duration::from_millis(500);

/// How many replies may be held back where requests are quick.
const HELD_BACK: u32 = 64;

struct Tables {
    sessions: Vec<Session>,
    slots: Vec<ServerSlot>,
}

self_cell!(
    /// The core's server and the tables that it borrows.
    struct CoreCell {
        owner: MutBorrow<Tables>,
        #[not_covariant]
        dependent: Core,
    }
);

/// A server on a fabric.
pub struct Serving<F> {
    fabric: F,
    core: CoreCell,
    handlers: Handlers,
    slots: Slots,
    /// The sessions of each peer, which end with it.
    sessions: Vec<Vec<SessionId>>,
    clock: Clock,
    patience: Patience,
    pace: Pace,
    out: [u8; ANSWER_LEN],
}

/// What to send once the datagram is no longer borrowed.
enum Next {
    Nothing,
    /// So many bytes of `out`, to the datagram's source.
    Answer(usize),
    /// The same, and they grant a session.
    Opened(usize),
    /// A part of a reply, and those that the core gives after it.
    Reply(Transmission),
}

impl<F: Fabric> Serving<F> {
    pub fn new(fabric: F, handlers: Handlers, options: &ServerOptions) -> Self {
        let window = options.window.clamp(1, mitosis_core::session::MAX_SLOTS);
        let sessions = options.sessions.max(1);
        let slots = sessions.saturating_mul(window.next_power_of_two().into()) as usize;
        let random: u128 = rand::random();
        let config = ServerConfig {
            epoch: rand::random(),
            random_seed: random,
            cluster_key: options.cluster_key,
            datagram_len: fabric.datagram_len(),
            receive_buffers: fabric.receive_buffers(),
            max_slots: window,
            max_credits: fabric.peer_buffers(0).min(1024),
            max_message_len: options.max_message_len,
            idle_timeout_ns: nanoseconds(options.idle_timeout),
            handshake_timeout_ns: nanoseconds(options.handshake_timeout),
        };
        let tables = Tables {
            sessions: vec![Session::new(); sessions as usize],
            slots: vec![ServerSlot::new(); slots],
        };
        let core = CoreCell::new(MutBorrow::new(tables), |tables| {
            let tables = tables.borrow_mut();
            Core::new(config, &mut tables.sessions, &mut tables.slots)
        });
        let peers = fabric.peers() as usize;
        Self {
            fabric,
            core,
            handlers,
            slots: Slots::new(slots, options.memory_budget),
            sessions: vec![Vec::new(); peers],
            clock: Clock::new(),
            patience: Patience::new(options.spin),
            pace: Pace::default(),
            out: [0; ANSWER_LEN],
        }
    }

    pub fn handlers(&mut self) -> &mut Handlers {
        &mut self.handlers
    }

    pub fn waker(&self) -> Waker {
        self.fabric.waker()
    }

    /// Handles what there is, a batch at most; whether there was anything.
    #[inline]
    pub fn work(&mut self) -> Result<bool, FabricError> {
        let mut handled = 0;
        while handled < BATCH && self.receive()? {
            handled += 1;
        }
        let read = if handled > 0 {
            self.fabric.flush()?;
            self.patience.renew();
            self.clock.busy()
        } else {
            while let Some(peer) = self.fabric.poll_gone() {
                self.part_with(peer);
            }
            self.clock.idle()
        };
        self.pace.answered(handled);
        if read {
            let quick = self.pace.is_quick(self.clock.now_ns());
            self.fabric.may_wait(if quick { HELD_BACK } else { 0 });
            self.expire();
        }
        Ok(handled > 0)
    }

    /// Waits for work after there was none: spins at first, then sleeps, for `timeout` at most.
    #[inline]
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
        self.clock.read();
        self.patience.slept();
        self.expire();
        Ok(())
    }

    /// From now on new sessions and requests are refused.
    pub fn go_away(&mut self) {
        self.core.with_dependent_mut(|_, core| core.go_away());
    }

    pub fn counters(&self) -> Counters {
        self.core.with_dependent(|_, core| *core.counters())
    }

    pub fn live_sessions(&self) -> usize {
        self.core.with_dependent(|_, core| core.live_sessions())
    }

    /// Takes a datagram, if there is one, and does what it asks for.
    #[inline(always)]
    fn receive(&mut self) -> Result<bool, FabricError> {
        let Some(arrival) = self.fabric.receive()? else {
            return Ok(false);
        };
        let now_ns = self.clock.now_ns();
        let from = arrival.from;
        let (handlers, slots, out) = (&mut self.handlers, &mut self.slots, &mut self.out);
        let mut header = Words::default();
        let datagram = arrival.datagram;
        let whole = self.core.with_dependent_mut(|_, core| {
            core.serve_whole(now_ns, from, datagram, &mut header, |request| {
                answer(request, handlers, slots)
            })
        });
        match whole {
            Some(Served::Reply(reply)) => {
                self.fabric.send_words(from, header, reply)?;
                return Ok(true);
            }
            Some(Served::Other(dispatched, result)) => return self.finish(&dispatched, result),
            None => {}
        }
        let next = self.core.with_dependent_mut(|_, core| {
            let action = core.handle_any(now_ns, from, datagram, out);
            decide(core, action, handlers, slots, out)
        });
        match next {
            Next::Reply(sent) => self.send_replies(&sent)?,
            Next::Answer(len) => self.fabric.send(from, &self.out[..len], &[])?,
            Next::Opened(len) => self.meet(from, len)?,
            Next::Nothing => {}
        }
        self.release_closed();
        Ok(true)
    }

    /// A handler has put its result into the request's slot, and that is an error or takes more than a datagram.
    #[inline(never)]
    fn finish(
        &mut self,
        request: &Dispatched,
        result: Result<u32, ErrorCode>,
    ) -> Result<bool, FabricError> {
        let out = &mut self.out;
        let sent = self
            .core
            .with_dependent_mut(|_, core| core.complete(request, result, out));
        if let Some(sent) = sent {
            self.send_replies(&sent)?;
        }
        self.release_closed();
        Ok(true)
    }

    fn send_reply(&mut self, sent: &Transmission) -> Result<(), FabricError> {
        let header = self.out.get(..sent.header_len).unwrap_or_default();
        let range = sent.payload.start as usize..sent.payload.end as usize;
        let slot = self.slots.get(sent.slot_index);
        let payload = slot.and_then(|slot| slot.reply.get(range));
        self.fabric
            .send(sent.peer, header, payload.unwrap_or_default())
    }

    #[inline(never)]
    fn send_replies(&mut self, first: &Transmission) -> Result<(), FabricError> {
        self.send_reply(first)?;
        if first.more {
            self.send_more()?;
        }
        Ok(())
    }

    #[inline(never)]
    fn send_more(&mut self) -> Result<(), FabricError> {
        loop {
            let out = &mut self.out;
            let next = self
                .core
                .with_dependent_mut(|_, core| core.poll_transmit(out));
            match next {
                Some(sent) => self.send_reply(&sent)?,
                None => return Ok(()),
            }
        }
    }

    /// A session has been opened.
    #[cold]
    fn meet(&mut self, peer: PeerId, len: usize) -> Result<(), FabricError> {
        let answer = self.out.get(..len).unwrap_or_default();
        self.fabric.retain(peer);
        let sessions = self.sessions.get_mut(peer as usize);
        if let (Some(sessions), Some(id)) = (sessions, Header::session_hint(answer)) {
            sessions.push(id);
        }
        self.fabric.send(peer, answer, &[])
    }

    /// A peer is gone: its sessions end as if it had ended them.
    #[cold]
    fn part_with(&mut self, peer: PeerId) {
        let Some(sessions) = self.sessions.get_mut(peer as usize) else {
            return;
        };
        let now_ns = self.clock.now_ns();
        for id in std::mem::take(sessions) {
            let farewell = Datagram {
                session: id,
                request: RequestId(0),
                slot: 0,
                message: Message::Disconnect,
            };
            let mut bytes = [0; ANSWER_LEN];
            if let Ok(len) = farewell.emit(&mut bytes) {
                let out = &mut self.out;
                self.core.with_dependent_mut(|_, core| {
                    core.handle_datagram(now_ns, peer, &bytes[..len], out);
                });
            }
        }
        self.release_closed();
    }

    /// Lets go of what ended sessions had.
    #[inline(always)]
    fn release_closed(&mut self) {
        while let Some(closed) = self.core.with_dependent_mut(|_, core| core.poll_closed()) {
            self.slots.shrink(&closed);
            self.fabric.release(closed.peer);
            if let Some(sessions) = self.sessions.get_mut(closed.peer as usize) {
                sessions.retain(|id| id.index != closed.session_index);
            }
        }
    }

    fn expire(&mut self) {
        let now_ns = self.clock.now_ns();
        self.core.with_dependent_mut(|_, core| {
            if core
                .next_timeout_ns()
                .is_some_and(|due_ns| now_ns >= due_ns)
            {
                core.handle_timeout(now_ns);
            }
        });
        self.release_closed();
    }
}

/// Runs the handler of a request that came in one datagram; its reply lies in the request's slot.
#[inline(always)]
fn answer<'s>(
    request: &Request<'_>,
    handlers: &mut Handlers,
    slots: &'s mut Slots,
) -> Result<&'s [u8], ErrorCode> {
    let result = slots.reply(request.dispatched.slot_index, |slot| {
        handlers.run(request.rpc_id, request.payload, &mut slot.reply)
    });
    result.unwrap_or(Err(ErrorCode::Busy))
}

/// What the core wants to know of a handler's result.
fn len_of(result: Result<&[u8], ErrorCode>) -> Result<u32, ErrorCode> {
    u32::try_from(result?.len()).map_err(|_| ErrorCode::TooLarge)
}

/// Does what the core says of a datagram, up to the sending.
#[inline(never)]
fn decide(
    core: &mut Core<'_>,
    action: Action<'_>,
    handlers: &mut Handlers,
    slots: &mut Slots,
    out: &mut [u8],
) -> Next {
    let (dispatched, result) = match action {
        Action::Dispatch(request) => {
            let result = answer(&request, handlers, slots);
            (request.dispatched, len_of(result))
        }
        Action::Segment(segment) => match slots.take(&segment) {
            Ok(()) if !segment.complete => {
                return match segment.answer_len {
                    0 => Next::Nothing,
                    len => Next::Answer(len),
                }
            }
            Ok(()) => {
                let result = slots.reply(segment.dispatched.slot_index, |slot| {
                    handlers.run(segment.rpc_id, &slot.request, &mut slot.reply)
                });
                let result = result.unwrap_or(Err(ErrorCode::Busy));
                (segment.dispatched, len_of(result))
            }
            Err(code) => (segment.dispatched, Err(code)),
        },
        Action::Send(transmission) => return Next::Reply(transmission),
        Action::Answer { len, opened } => {
            return match opened {
                Some(_) => Next::Opened(len),
                None => Next::Answer(len),
            }
        }
        Action::Ignore(_) | Action::Done => return Next::Nothing,
    };
    core.complete(&dispatched, result, out)
        .map_or(Next::Nothing, Next::Reply)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
