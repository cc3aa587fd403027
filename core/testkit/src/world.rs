//! The endpoints, the network between them and the clock above them.

use crate::call::{Work, MIN_REQUEST};
use crate::network::{Address, Faults, Flight, Network, Reception, Traffic};
use crate::oracle::{Oracle, Violation};
use crate::queue::Queue;
use crate::random::{Chance, Random};

/// Calls that an endpoint is to make of itself, rather than because a datagram came. Each draws
/// anew what it is; all draws come from the endpoint's own generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// How many calls.
    pub count: u32,
    /// A call's handler is [`Work::Failing`].
    pub failing: Chance,
    /// A call's handler, if it does not fail, is [`Work::Late`].
    pub late: Chance,
    /// Least and greatest length of a request in bytes.
    pub request_len: (u32, u32),
    /// Least and greatest length of a reply in bytes.
    pub reply_len: (u32, u32),
    /// A call's lengths are up to `large_len` instead.
    pub large: Chance,
    /// Greatest length of a large call's request and reply in bytes.
    pub large_len: u32,
}

impl Order {
    /// Calls that are all the same.
    pub fn of(count: u32, work: Work, request_len: u32, reply_len: u32) -> Self {
        let always = |is: bool| Chance::percent(if is { 100.0 } else { 0.0 });
        Self {
            count,
            failing: always(work == Work::Failing),
            late: always(work == Work::Late),
            request_len: (request_len, request_len),
            reply_len: (reply_len, reply_len),
            large: Chance::NEVER,
            large_len: 0,
        }
    }

    /// One of the calls: what its handler does, and the lengths of request and reply.
    pub fn draw(&self, random: &mut Random) -> (Work, u32, u32) {
        let work = if random.happens(self.failing) {
            Work::Failing
        } else if random.happens(self.late) {
            Work::Late
        } else {
            Work::Immediate
        };
        let large = random.happens(self.large);
        let mut len = |(least, greatest): (u32, u32)| {
            let greatest = if large { self.large_len } else { greatest };
            random.within(&(u64::from(least)..=u64::from(greatest.max(least)))) as u32
        };
        let request_len = len(self.request_len).max(MIN_REQUEST);
        (work, request_len, len(self.reply_len))
    }
}

/// A machine of the world. It sees the world through its [`Port`] alone.
pub trait Endpoint {
    /// It begins, or begins again after a crash, knowing nothing of before.
    fn start(&mut self, port: &mut Port<'_>);
    /// Its state is lost.
    fn crash(&mut self, port: &mut Port<'_>);
    /// A datagram came.
    fn receive(&mut self, port: &mut Port<'_>, from: Address, datagram: &[u8]);
    /// The time that `next_wake_ns` named has come, or an earlier one that it once named.
    fn wake(&mut self, port: &mut Port<'_>);
    /// By when it wants to be woken.
    fn next_wake_ns(&self) -> Option<u64>;
    /// It is told to make calls.
    fn order(&mut self, port: &mut Port<'_>, order: Order);
    /// It is told to end its session and to open another one.
    fn leave(&mut self, port: &mut Port<'_>);
}

/// What an endpoint has of the world while it acts.
pub struct Port<'w> {
    /// The endpoint's own address.
    pub address: Address,
    /// Where it reports what callers and handlers see.
    pub oracle: &'w mut Oracle,
    queue: &'w mut Queue<Event>,
    network: &'w mut Network,
}

impl Port<'_> {
    /// The virtual time.
    pub fn now_ns(&self) -> u64 {
        self.queue.now_ns()
    }

    /// Sends a datagram of two parts.
    pub fn send(&mut self, to: Address, header: &[u8], payload: &[u8]) {
        self.network
            .send(self.queue, self.address, to, header, payload);
    }

    /// Adds a line to the trace, if one is kept.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        let address = self.address;
        self.network
            .note_line(self.queue.now_ns(), || format!("{address} {}", line()));
    }
}

/// What the queue holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Arrive(Flight),
    Take(Flight),
    Wake(Address),
}

struct Place<'a> {
    endpoint: Box<dyn Endpoint + 'a>,
    /// The earliest wake-up that is in the queue; `u64::MAX` if none is.
    wake_at_ns: u64,
}

/// So many events at one and the same time are taken for endpoints that go round in circles.
const STANDSTILL_EVENTS: u32 = 1_000_000;

/// A run: everything in it follows from the seed and from what is done to it.
pub struct World<'a> {
    /// What has been seen so far, and what was wrong with it.
    pub oracle: Oracle,
    queue: Queue<Event>,
    network: Network,
    places: Vec<Place<'a>>,
    /// Events since the clock last moved.
    at_this_time: u32,
}

impl<'a> World<'a> {
    /// An empty world.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self {
            oracle: Oracle::default(),
            queue: Queue::default(),
            network: Network::new(Random::new(seed, 0), faults),
            places: Vec::new(),
            at_this_time: 0,
        }
    }

    /// Adds an endpoint and starts it.
    pub fn add(&mut self, reception: Reception, endpoint: Box<dyn Endpoint + 'a>) -> Address {
        let address = self.network.attach(reception);
        self.places.push(Place {
            endpoint,
            wake_at_ns: u64::MAX,
        });
        self.act(address, |endpoint, port| endpoint.start(port));
        address
    }

    /// Changes the wires.
    pub fn set_faults(&mut self, faults: Faults) {
        self.network.faults = faults;
    }

    /// How the wires are.
    pub fn faults(&self) -> Faults {
        self.network.faults
    }

    /// Puts an endpoint on a side: those on different sides do not reach each other. All begin on
    /// side 0.
    pub fn set_side(&mut self, address: Address, side: u32) {
        self.network.set_side(address, side);
    }

    /// An endpoint is gone with all that it knew, until [`World::restart`].
    pub fn crash(&mut self, address: Address) {
        if self.network.is_up(address) {
            self.network.set_up(address, false);
            self.act(address, |endpoint, port| endpoint.crash(port));
        }
    }

    /// Starts an endpoint again that has crashed.
    pub fn restart(&mut self, address: Address) {
        if !self.network.is_up(address) {
            self.network.set_up(address, true);
            self.act(address, |endpoint, port| endpoint.start(port));
        }
    }

    /// Tells an endpoint to make calls. One that is down does not hear it.
    pub fn order(&mut self, address: Address, order: Order) {
        if self.network.is_up(address) {
            self.act(address, |endpoint, port| endpoint.order(port, order));
        }
    }

    /// Tells an endpoint to end its session and to open another one.
    pub fn leave(&mut self, address: Address) {
        if self.network.is_up(address) {
            self.act(address, |endpoint, port| endpoint.leave(port));
        }
    }

    /// From now on, what is sent can be sent again by [`World::repeat`] and [`World::forge`].
    pub fn eavesdrop(&mut self) {
        self.network.eavesdrop();
    }

    /// Something that was sent is sent once more, as by its sender; `back` counts from the last.
    pub fn repeat(&mut self, back: u32) {
        if let Some((from, to, bytes)) = self.network.overheard(back) {
            self.network.send(&mut self.queue, from, to, &bytes, &[]);
        }
    }

    /// `stranger` sends to `to` what somebody else had sent, with some of its bits turned over: which and how many follows
    /// from `changes`.
    pub fn forge(&mut self, stranger: Address, to: Address, back: u32, changes: u64) {
        if let Some((.., mut bytes)) = self.network.overheard(back) {
            let mut random = Random::new(changes, 0);
            for _ in 0..random.below(5) {
                let bit = random.below(bytes.len() as u64 * 8) as usize;
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            self.network
                .send(&mut self.queue, stranger, to, &bytes, &[]);
        }
    }

    /// Lets time pass until `until_ns`.
    pub fn run_until(&mut self, until_ns: u64) -> Result<(), Violation> {
        self.run(until_ns, |_| false)
    }

    /// Lets time pass until every call that was ordered is over, but not beyond `until_ns`.
    pub fn run_until_calls_are_over(&mut self, until_ns: u64) -> Result<(), Violation> {
        self.run(until_ns, Oracle::calls_are_over)
    }

    /// The virtual time.
    pub fn now_ns(&self) -> u64 {
        self.queue.now_ns()
    }

    /// What became of the datagrams so far.
    pub fn traffic(&self) -> &Traffic {
        &self.network.traffic
    }

    /// A number that differs between runs whose courses differ in any delivery.
    pub fn fingerprint(&self) -> u64 {
        self.network.fingerprint
    }

    /// Keeps the last happenings from now on, for [`World::trace`].
    pub fn keep_trace(&mut self) {
        self.network.keep_trace();
    }

    /// The last happenings, a line each.
    pub fn trace(&self) -> Vec<String> {
        self.network.trace()
    }

    fn run(&mut self, until_ns: u64, over: impl Fn(&Oracle) -> bool) -> Result<(), Violation> {
        loop {
            self.oracle.verdict()?;
            if over(&self.oracle) {
                return Ok(());
            }
            if self.queue.next_ns().is_none_or(|next| next > until_ns) {
                self.queue.pass(until_ns);
                return Ok(());
            }
            let before_ns = self.queue.now_ns();
            let Some(event) = self.queue.pop() else {
                return Ok(());
            };
            self.at_this_time = if self.queue.now_ns() > before_ns {
                0
            } else {
                self.at_this_time + 1
            };
            if self.at_this_time > STANDSTILL_EVENTS {
                return Err(Violation::Standstill { at_ns: before_ns });
            }
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(flight) => {
                if self.network.arrive(&mut self.queue, flight) {
                    self.deliver(flight);
                }
            }
            Event::Take(flight) => {
                if self.network.take_from_ring(flight) {
                    self.deliver(flight);
                }
            }
            Event::Wake(address) => {
                let place = &mut self.places[address as usize];
                if place.wake_at_ns <= self.queue.now_ns() {
                    place.wake_at_ns = u64::MAX;
                }
                if !self.network.is_up(address) {
                    return;
                }
                let due = self.places[address as usize].endpoint.next_wake_ns();
                if due.is_some_and(|due| due <= self.queue.now_ns()) {
                    self.act(address, |endpoint, port| endpoint.wake(port));
                } else {
                    self.arm(address);
                }
            }
        }
    }

    fn deliver(&mut self, flight: Flight) {
        let bytes = self.network.lend(self.queue.now_ns(), flight);
        self.act(flight.to, |endpoint, port| {
            endpoint.receive(port, flight.from, &bytes)
        });
        self.network.give_back(flight, bytes);
    }

    fn act(
        &mut self,
        address: Address,
        what: impl FnOnce(&mut (dyn Endpoint + 'a), &mut Port<'_>),
    ) {
        let mut port = Port {
            address,
            oracle: &mut self.oracle,
            queue: &mut self.queue,
            network: &mut self.network,
        };
        what(self.places[address as usize].endpoint.as_mut(), &mut port);
        self.arm(address);
    }

    /// Sees to it that the queue wakes the endpoint in time. A wake-up that has become needless
    /// stays in the queue and does nothing.
    fn arm(&mut self, address: Address) {
        let place = &mut self.places[address as usize];
        if let Some(wake_ns) = place.endpoint.next_wake_ns() {
            if wake_ns < place.wake_at_ns {
                place.wake_at_ns = wake_ns;
                self.queue.add(wake_ns, Event::Wake(address));
            }
        }
    }
}
