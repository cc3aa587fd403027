//! Whole runs: a server, its clients, what they do and what is done to them.
//!
//! A [`Load`] is many calls under steady faults; a [`Script`] is a short story, which `proptest`
//! makes up and shortens. Both end in a [`Report`], or in a [`Failure`] that tells how to see it
//! again.

use crate::endpoint::{
    ClientMemory, ServerMemory, Settings, SimulatedClient, SimulatedServer, Stranger,
};
use crate::network::{Address, Faults, Reception, Traffic};
use crate::oracle::{Tally, Violation};
use crate::random::Random;
use crate::world::{Order, World};

/// The server's address: it is the first endpoint.
const SERVER: Address = 0;

/// A millisecond in nanoseconds.
pub const MS: u64 = 1_000_000;

/// If no call ends for so long in virtual time although nothing disturbs them any more, they never
/// end. Longer than any timeout of [`Settings`] that a call may have to wait for.
const STALL_NS: u64 = 150_000 * MS;

/// What was seen in a run that was as it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What callers and handlers saw.
    pub tally: Tally,
    /// What became of the datagrams.
    pub traffic: Traffic,
    /// The virtual time at its end.
    pub virtual_ns: u64,
    /// Differs between runs whose courses differ.
    pub fingerprint: u64,
}

impl Report {
    /// Adds another run.
    pub fn add(&mut self, other: &Self) {
        self.tally.add(&other.tally);
        self.traffic.add(&other.traffic);
        self.virtual_ns += other.virtual_ns;
        self.fingerprint ^= other.fingerprint;
    }
}

/// A run that was not as it should be.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// What was wrong first.
    pub violation: Violation,
    /// What was seen until then.
    pub report: Report,
    /// The last happenings, if they were kept.
    pub trace: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        write!(
            f,
            "seed {}: {}, at {:.3} ms of virtual time",
            self.seed,
            self.violation,
            self.report.virtual_ns as f64 / MS as f64
        )
    }
}

impl std::error::Error for Failure {}

/// Crashes that come again and again: of the server one time in four, otherwise of a client. Every
/// other client leaves its session with a word instead, and opens another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crashes {
    /// How long nobody crashes.
    pub every_ns: u64,
    /// How long the victim is down at most. Every other time it is below 10 µs, so that what was
    /// sent before meets who begins again.
    pub down_ns: u64,
    /// How often at most; there is memory for each life.
    pub times: u32,
}

/// Many calls under steady faults.
#[derive(Clone, Debug)]
pub struct Load {
    /// From which everything follows.
    pub seed: u64,
    /// How many clients.
    pub clients: u32,
    /// How many calls all clients together make, each its share.
    pub calls: u64,
    /// What the calls are; its count is of no consequence.
    pub order: Order,
    /// Limits and times of both ends.
    pub settings: Settings,
    /// How the wires are.
    pub faults: Faults,
    /// How the server takes what arrives.
    pub reception: Reception,
    /// Whether endpoints crash.
    pub crashes: Option<Crashes>,
}

impl Load {
    /// Runs it to its end. Without crashes, damage and impatience every call must end in its answer.
    pub fn run(&self, keep_trace: bool) -> Result<Report, Box<Failure>> {
        let lives = 1 + self.crashes.map_or(0, |crashes| crashes.times);
        let mut server_memory = ServerMemory::new(&self.settings, lives);
        let mut client_memory = clients_memory(&self.settings, self.clients, lives);
        let mut world = World::new(self.seed, self.faults);
        if keep_trace {
            world.keep_trace();
        }
        world.oracle.contents_may_be_damaged = self.faults.damaged_arrive;
        let server = SimulatedServer::new(self.seed, self.settings, &mut server_memory);
        world.add(self.reception, Box::new(server));
        for (place, memory) in (0..).zip(&mut client_memory) {
            let client = SimulatedClient::new(self.seed, self.settings, SERVER, memory);
            let address = world.add(Reception::INSTANT, Box::new(client));
            let clients = u64::from(self.clients.max(1));
            let share = self.calls / clients + u64::from(place < self.calls % clients);
            let count = u32::try_from(share).unwrap_or(u32::MAX);
            let order = Order {
                count,
                ..self.order
            };
            world.order(address, order);
        }
        let done = self.course(&mut world).and_then(|()| {
            let excused = self.crashes.is_some()
                || self.faults.damaged_arrive
                || self.settings.is_impatient();
            world.oracle.settle(!excused)?;
            let tally = &world.oracle.tally;
            let unserved = u64::from(self.clients).saturating_sub(tally.sessions);
            if unserved > 0 {
                return Err(Violation::Unserved { sessions: unserved });
            }
            Ok(())
        });
        judge(self.seed, &world, done)
    }

    fn course(&self, world: &mut World<'_>) -> Result<(), Violation> {
        if let Some(crashes) = self.crashes {
            // The endpoints' generators count from 0, and `simulate` takes the last.
            let mut random = Random::new(self.seed, u64::MAX - 1);
            for _ in 0..crashes.times {
                world.run_until_calls_are_over(world.now_ns() + crashes.every_ns)?;
                if world.oracle.calls_are_over() {
                    break;
                }
                let victim = match random.below(4) {
                    0 => SERVER,
                    _ => 1 + random.below(self.clients.into()) as Address,
                };
                if victim != SERVER && random.below(2) == 0 {
                    world.leave(victim);
                    continue;
                }
                let most_ns = [crashes.down_ns, 10_000][random.below(2) as usize];
                world.crash(victim);
                world.run_until(world.now_ns() + random.below(most_ns))?;
                world.restart(victim);
            }
        }
        finish(world)
    }
}

/// What happens next in a [`Script`]. Clients are numbered from 0; a number that no client has
/// stands for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A client is told to make calls, and time goes on at once.
    Calls(u32, Order),
    /// Time passes.
    Milliseconds(u32),
    /// The wires change.
    Wires(Faults),
    /// A client is cut off from everybody.
    CutClient(u32),
    /// The cut heals.
    HealClient(u32),
    /// The server is cut off from everybody.
    CutServer,
    /// The cut heals.
    HealServer,
    /// A client loses its state and is gone.
    CrashClient(u32),
    /// A client ends its session, and opens another one.
    LeaveClient(u32),
    /// A client that is gone begins again.
    RestartClient(u32),
    /// The server loses its state and is gone.
    CrashServer,
    /// The server, gone, begins again.
    RestartServer,
    /// A datagram that was sent comes once more, as from its sender: the last, or so many before it.
    Repeat(u32),
    /// A stranger sends the server such a datagram with some bits turned over, which the second number chooses.
    Forge(u32, u64),
}

impl Step {
    /// Whether a call may end otherwise than in its answer because of this.
    fn excuses(&self) -> bool {
        match self {
            Self::Calls(..) | Self::Milliseconds(_) | Self::HealClient(_) | Self::HealServer => {
                false
            }
            Self::Wires(faults) => faults.damaged_arrive,
            Self::RestartClient(_) | Self::RestartServer => false,
            Self::Repeat(_) | Self::Forge(..) => false,
            Self::CutClient(_)
            | Self::CutServer
            | Self::CrashClient(_)
            | Self::LeaveClient(_)
            | Self::CrashServer => true,
        }
    }
}

/// A short story. After its last step everything heals, everybody who is gone begins again, and the
/// calls that are outstanding go on to their ends.
#[derive(Clone, Debug)]
pub struct Script {
    /// From which everything follows that the steps do not say.
    pub seed: u64,
    /// How many clients there are: one at least.
    pub clients: u32,
    /// Limits and times of both ends.
    pub settings: Settings,
    /// How the server takes what arrives.
    pub reception: Reception,
    /// What happens, in this order.
    pub steps: Vec<Step>,
}

impl Script {
    /// Plays it. Unless a cut, a crash, damage or impatience excuses it, every call must end in its answer.
    pub fn play(&self, keep_trace: bool) -> Result<Report, Box<Failure>> {
        // As many lives as crashes could begin.
        let lives = 1 + self.steps.len() as u32;
        let mut server_memory = ServerMemory::new(&self.settings, lives);
        let mut client_memory = clients_memory(&self.settings, self.clients.max(1), lives);
        let mut world = World::new(self.seed, Faults::NONE);
        if keep_trace {
            world.keep_trace();
        }
        world.oracle.contents_may_be_damaged = self
            .steps
            .iter()
            .any(|step| matches!(step, Step::Wires(faults) if faults.damaged_arrive));
        let server = SimulatedServer::new(self.seed, self.settings, &mut server_memory);
        world.add(self.reception, Box::new(server));
        for memory in &mut client_memory {
            let client = SimulatedClient::new(self.seed, self.settings, SERVER, memory);
            world.add(Reception::INSTANT, Box::new(client));
        }
        let overhears = |step: &Step| matches!(step, Step::Repeat(_) | Step::Forge(..));
        if self.steps.iter().any(overhears) {
            world.eavesdrop();
            world.add(Reception::INSTANT, Box::new(Stranger));
        }
        let done = self.course(&mut world).and_then(|()| {
            let excused = self.settings.is_impatient() || self.steps.iter().any(Step::excuses);
            world.oracle.settle(!excused)
        });
        judge(self.seed, &world, done)
    }

    fn course(&self, world: &mut World<'_>) -> Result<(), Violation> {
        for step in &self.steps {
            self.step(world, step)?;
        }
        world.set_faults(Faults::NONE);
        for address in 0..=self.clients.max(1) {
            world.set_side(address, 0);
            world.restart(address);
        }
        finish(world)?;
        // What is still on its way must do no harm either.
        world.run_until(world.now_ns() + 100 * MS)
    }

    fn step(&self, world: &mut World<'_>, step: &Step) -> Result<(), Violation> {
        // The server has address 0.
        let client = |number: u32| number.min(self.clients.max(1) - 1) + 1;
        match *step {
            Step::Calls(number, order) => world.order(client(number), order),
            Step::Milliseconds(time) => {
                world.run_until(world.now_ns() + u64::from(time) * MS)?;
            }
            Step::Wires(faults) => world.set_faults(faults),
            Step::CutClient(number) => world.set_side(client(number), client(number)),
            Step::HealClient(number) => world.set_side(client(number), 0),
            Step::CutServer => world.set_side(SERVER, u32::MAX),
            Step::HealServer => world.set_side(SERVER, 0),
            Step::CrashClient(number) => world.crash(client(number)),
            Step::LeaveClient(number) => world.leave(client(number)),
            Step::RestartClient(number) => world.restart(client(number)),
            Step::CrashServer => world.crash(SERVER),
            Step::RestartServer => world.restart(SERVER),
            Step::Repeat(back) => world.repeat(back),
            Step::Forge(back, changes) => {
                world.forge(self.clients.max(1) + 1, SERVER, back, changes);
            }
        }
        world.oracle.verdict()
    }
}

/// Lets time pass until all calls are over, or no more of them ends.
fn finish(world: &mut World<'_>) -> Result<(), Violation> {
    let mut ended = None;
    while ended != Some(world.oracle.tally.ended()) {
        ended = Some(world.oracle.tally.ended());
        world.run_until_calls_are_over(world.now_ns() + STALL_NS)?;
    }
    Ok(())
}

fn clients_memory(settings: &Settings, clients: u32, lives: u32) -> Vec<ClientMemory> {
    (0..clients)
        .map(|_| ClientMemory::new(settings, lives))
        .collect()
}

fn judge(
    seed: u64,
    world: &World<'_>,
    done: Result<(), Violation>,
) -> Result<Report, Box<Failure>> {
    let report = Report {
        tally: world.oracle.tally,
        traffic: *world.traffic(),
        virtual_ns: world.now_ns(),
        fingerprint: world.fingerprint(),
    };
    done.map(|()| report).map_err(|violation| {
        Box::new(Failure {
            seed,
            violation,
            report,
            trace: world.trace(),
        })
    })
}
