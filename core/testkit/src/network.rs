//! What may happen to a datagram between two endpoints.
//!
//! The fate of a datagram is settled when it is sent, in this order: a cut between the two ends, a
//! full wire (bandwidth), loss, corruption, delay with jitter, reordering, duplication. The
//! receiving end settles the rest when it arrives: a cut or a crash in the meantime, and a receive
//! ring that is full, where a UD queue pair drops a datagram without a word.

use std::collections::VecDeque;

use crate::queue::Queue;
use crate::random::{Chance, Random};
use crate::world::Event;

/// Names an endpoint: its place in the world, from 0.
pub type Address = u32;

/// How the wires are at the moment. Changes to it hold for what is sent from then on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A datagram does not arrive.
    pub loss: Chance,
    /// A datagram arrives twice, the second time after its own delay.
    pub duplication: Chance,
    /// A datagram, and its double, take up to `detour_ns` longer, so that others overtake them.
    pub reordering: Chance,
    /// One to eight of a datagram's bits are turned over.
    pub corruption: Chance,
    /// Whether a damaged datagram arrives. A NIC drops it for its wrong ICRC, so by default it does
    /// not; and where it does, nobody can promise what a call's payload contains.
    pub damaged_arrive: bool,
    /// How long each datagram takes.
    pub delay_ns: u64,
    /// By how much at most a datagram takes longer than that. What is sent within this time of each
    /// other arrives in any order.
    pub jitter_ns: u64,
    /// By how much at most a detour is longer.
    pub detour_ns: u64,
    /// What an endpoint sends in a microsecond, in bytes; 0 for any amount.
    pub bytes_per_us: u64,
}

impl Faults {
    /// A healthy local network: 2 to 3 µs from end to end, and no faults.
    pub const NONE: Self = Self {
        loss: Chance::NEVER,
        duplication: Chance::NEVER,
        reordering: Chance::NEVER,
        corruption: Chance::NEVER,
        damaged_arrive: false,
        delay_ns: 2_000,
        jitter_ns: 1_000,
        detour_ns: 100_000,
        bytes_per_us: 0,
    };
}

/// How an endpoint takes what arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reception {
    /// How many datagrams wait at most; what comes then is dropped. Without effect if taking a
    /// datagram takes no time.
    pub ring: u32,
    /// How long the endpoint is busy with a datagram.
    pub service_ns: u64,
}

impl Reception {
    /// Takes everything at once.
    pub const INSTANT: Self = Self {
        ring: u32::MAX,
        service_ns: 0,
    };
}

/// What became of all datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagrams that endpoints sent.
    pub sent: u64,
    /// Datagrams that were lost on the way, for any reason but those below.
    pub lost: u64,
    /// Datagrams that were sent a second time by the network.
    pub duplicated: u64,
    /// Datagrams that took a detour.
    pub reordered: u64,
    /// Datagrams that were damaged, whether or not they arrived.
    pub damaged: u64,
    /// Datagrams that met a cut or an endpoint that was down.
    pub unreachable: u64,
    /// Datagrams that met a full receive ring.
    pub overrun: u64,
    /// Datagrams that reached an endpoint.
    pub delivered: u64,
}

impl Traffic {
    /// Adds what another run counted.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.damaged += other.damaged;
        self.unreachable += other.unreachable;
        self.overrun += other.overrun;
        self.delivered += other.delivered;
    }
}

/// A datagram on its way; its bytes are in the network's buffers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) from: Address,
    pub(crate) to: Address,
    buffer: u32,
}

/// Where an endpoint meets the network.
#[derive(Clone, Debug)]
struct Attachment {
    reception: Reception,
    up: bool,
    /// Endpoints reach each other if they are on the same side of all cuts.
    side: u32,
    /// When the last byte that was sent leaves.
    wire_free_ns: u64,
    /// When the last datagram in the ring is taken.
    busy_until_ns: u64,
    waiting: u32,
}

/// How many of the last datagrams an eavesdropper keeps.
const OVERHEARD: usize = 64;

/// How many of the last happenings a trace keeps.
const TRACE_LINES: usize = 400;

/// All wires. Its memory grows to what is in flight at once, and is used again.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) faults: Faults,
    pub(crate) traffic: Traffic,
    random: Random,
    attachments: Vec<Attachment>,
    buffers: Vec<Vec<u8>>,
    free: Vec<u32>,
    trace: Option<VecDeque<String>>,
    overheard: Option<VecDeque<(Address, Address, Vec<u8>)>>,
    /// Tells one course of events from another.
    pub(crate) fingerprint: u64,
}

impl Network {
    pub(crate) fn new(random: Random, faults: Faults) -> Self {
        Self {
            faults,
            traffic: Traffic::default(),
            random,
            attachments: Vec::new(),
            buffers: Vec::new(),
            free: Vec::new(),
            trace: None,
            overheard: None,
            fingerprint: 0,
        }
    }

    pub(crate) fn attach(&mut self, reception: Reception) -> Address {
        self.attachments.push(Attachment {
            reception,
            up: true,
            side: 0,
            wire_free_ns: 0,
            busy_until_ns: 0,
            waiting: 0,
        });
        (self.attachments.len() - 1) as Address
    }

    pub(crate) fn is_up(&self, address: Address) -> bool {
        self.attachments[address as usize].up
    }

    pub(crate) fn set_up(&mut self, address: Address, up: bool) {
        self.attachments[address as usize].up = up;
    }

    pub(crate) fn set_side(&mut self, address: Address, side: u32) {
        self.attachments[address as usize].side = side;
    }

    /// Settles the fate of a datagram of two parts.
    pub(crate) fn send(
        &mut self,
        queue: &mut Queue<Event>,
        from: Address,
        to: Address,
        header: &[u8],
        payload: &[u8],
    ) {
        let now_ns = queue.now_ns();
        let len = (header.len() + payload.len()) as u64;
        self.traffic.sent += 1;
        if let Some(overheard) = &mut self.overheard {
            if overheard.len() == OVERHEARD {
                overheard.pop_front();
            }
            overheard.push_back((from, to, [header, payload].concat()));
        }
        // A word for all chances, 16 bits for each.
        let dice = self.random.bits();
        let at = |place: u32| (dice >> (16 * place)) as u16;
        let sender = &mut self.attachments[from as usize];
        let mut leaves_ns = now_ns;
        if let Some(ns) = (len * 1000).checked_div(self.faults.bytes_per_us) {
            leaves_ns = sender.wire_free_ns.max(now_ns) + ns;
            sender.wire_free_ns = leaves_ns;
        }
        if !self.reaches(from, to) {
            self.traffic.unreachable += 1;
            return self.note(now_ns, from, to, "cut off", header);
        }
        if self.faults.loss.decides(at(0)) {
            self.traffic.lost += 1;
            return self.note(now_ns, from, to, "lost", header);
        }
        let damaged = self.faults.corruption.decides(at(1));
        if damaged {
            self.traffic.damaged += 1;
            if !self.faults.damaged_arrive {
                return self.note(now_ns, from, to, "damaged and dropped", header);
            }
        }
        let detour = self.faults.reordering.decides(at(2));
        if detour {
            self.traffic.reordered += 1;
        }
        let copies = if self.faults.duplication.decides(at(3)) {
            self.traffic.duplicated += 1;
            2
        } else {
            1
        };
        let fate = match (copies, detour, damaged) {
            (2, ..) => "sent twice",
            (_, true, _) => "sent on a detour",
            (_, _, true) => "sent damaged",
            _ => "sent",
        };
        self.note(now_ns, from, to, fate, header);
        for copy in 0..copies {
            let mut arrives_ns = leaves_ns + self.faults.delay_ns;
            if self.faults.jitter_ns > 0 {
                arrives_ns += self.random.below(self.faults.jitter_ns + 1);
            }
            if detour {
                arrives_ns += self.random.below(self.faults.detour_ns + 1);
            }
            let buffer = self.buffer(header, payload);
            if damaged && copy == 0 {
                self.damage(buffer);
            }
            queue.add(arrives_ns, Event::Arrive(Flight { from, to, buffer }));
        }
    }

    /// Whether the datagram is to be taken now. Otherwise it is lost, or waits in the ring and
    /// comes back as [`Event::Take`].
    pub(crate) fn arrive(&mut self, queue: &mut Queue<Event>, flight: Flight) -> bool {
        let now_ns = queue.now_ns();
        let Flight { from, to, .. } = flight;
        if !self.reaches(from, to) {
            self.traffic.unreachable += 1;
            self.note(now_ns, from, to, "met a cut", &[]);
            self.release(flight);
            return false;
        }
        let receiver = &mut self.attachments[to as usize];
        if receiver.reception.service_ns == 0 {
            return true;
        }
        if receiver.waiting >= receiver.reception.ring {
            self.traffic.overrun += 1;
            self.note(now_ns, from, to, "met a full ring", &[]);
            self.release(flight);
            return false;
        }
        receiver.waiting += 1;
        receiver.busy_until_ns = receiver.busy_until_ns.max(now_ns) + receiver.reception.service_ns;
        queue.add(receiver.busy_until_ns, Event::Take(flight));
        false
    }

    /// A datagram's turn in the ring has come. Whether there is somebody to take it.
    pub(crate) fn take_from_ring(&mut self, flight: Flight) -> bool {
        let receiver = &mut self.attachments[flight.to as usize];
        receiver.waiting = receiver.waiting.saturating_sub(1);
        let up = receiver.up;
        if !up {
            self.traffic.unreachable += 1;
            self.release(flight);
        }
        up
    }

    /// Lends the bytes of a datagram that is being delivered; [`Network::give_back`] ends that.
    pub(crate) fn lend(&mut self, now_ns: u64, flight: Flight) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.buffers[flight.buffer as usize]);
        self.traffic.delivered += 1;
        let what = (u64::from(flight.from) << 32) ^ u64::from(flight.to) ^ bytes.len() as u64;
        self.fingerprint = (self.fingerprint.rotate_left(5) ^ now_ns ^ (what << 20))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.note(now_ns, flight.from, flight.to, "arrived", &bytes);
        bytes
    }

    pub(crate) fn give_back(&mut self, flight: Flight, bytes: Vec<u8>) {
        self.buffers[flight.buffer as usize] = bytes;
        self.free.push(flight.buffer);
    }

    /// Keeps the last datagrams from now on.
    pub(crate) fn eavesdrop(&mut self) {
        self.overheard = Some(VecDeque::new());
    }

    /// Something that was sent: its sender, its receiver and its bytes. `back` counts from the last, and around.
    pub(crate) fn overheard(&self, back: u32) -> Option<(Address, Address, Vec<u8>)> {
        let overheard = self.overheard.as_ref()?;
        let back = (back as usize).checked_rem(overheard.len())?;
        overheard.iter().rev().nth(back).cloned()
    }

    /// Keeps the last happenings from now on.
    pub(crate) fn keep_trace(&mut self) {
        self.trace = Some(VecDeque::new());
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        self.trace.iter().flatten().cloned().collect()
    }

    /// Adds a line to the trace, if one is kept.
    pub(crate) fn note_line(&mut self, now_ns: u64, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(format!("{:>12.3} µs  {}", now_ns as f64 / 1000.0, line()));
        }
    }

    fn note(&mut self, now_ns: u64, from: Address, to: Address, fate: &str, bytes: &[u8]) {
        self.note_line(now_ns, || {
            format!("{from} -> {to} {} {fate}", crate::endpoint::describe(bytes))
        });
    }

    fn reaches(&self, from: Address, to: Address) -> bool {
        let (from, to) = (
            &self.attachments[from as usize],
            &self.attachments[to as usize],
        );
        from.side == to.side && to.up
    }

    fn buffer(&mut self, header: &[u8], payload: &[u8]) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.buffers.push(Vec::new());
            (self.buffers.len() - 1) as u32
        });
        let buffer = &mut self.buffers[place as usize];
        buffer.clear();
        buffer.extend_from_slice(header);
        buffer.extend_from_slice(payload);
        place
    }

    fn damage(&mut self, buffer: u32) {
        let bytes = &mut self.buffers[buffer as usize];
        for _ in 0..=self.random.below(8) {
            let bit = self.random.below(bytes.len() as u64 * 8) as usize;
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    fn release(&mut self, flight: Flight) {
        self.free.push(flight.buffer);
    }
}
