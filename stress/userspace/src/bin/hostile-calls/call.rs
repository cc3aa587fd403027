//! Composes calls: the number and the argument of each.

use std::mem::offset_of;
use std::ops::Range;

use mitosis_core::uapi::{
    self, Freeze, List, Machine, Open, Ping, Prepare, Resume, SeedId, SeedInfo, Stats,
};
use mitosis_fork::Seed;
use rand::rngs::SmallRng;
use rand::Rng;
use zerocopy::{Immutable, IntoBytes};

use super::counts::Counts;
use super::pointers::Pointers;

/// Longest argument that the module takes.
const LONGEST: usize = 192;
/// The calls, and how often each is made, of [`ALL`] times.
const WEIGHTS: [(u32, u32); 11] = [
    (uapi::FREEZE, 10),
    (uapi::PREPARE, 10),
    (uapi::UNPREPARE, 14),
    (uapi::LIST, 12),
    (uapi::QUERY, 14),
    (uapi::OPEN, 8),
    (uapi::RESUME, 10),
    (uapi::CONNECT, 4),
    (uapi::DISCONNECT, 4),
    (uapi::PING, 4),
    (uapi::STATS, 10),
];
const ALL: u32 = 100;
/// How often, together, processes name a machine that is not there although it could be: each costs seconds.
const MOST_MISSED: u64 = 12;
/// Longer than any seed that is made here has to live, and short enough for what is left of them to end.
const LONGEST_LEASE_MS: u64 = 1_000;

/// What a call is given.
pub struct Call {
    /// Its number with all that it says of the argument.
    pub command: u32,
    bytes: [u8; LONGEST],
    len: usize,
}

impl Call {
    /// A call of this number with this argument.
    pub fn of(command: u32, argument: &(impl IntoBytes + Immutable)) -> Self {
        let mut bytes = [0; LONGEST];
        let argument = argument.as_bytes();
        let len = argument.len().min(LONGEST);
        bytes[..len].copy_from_slice(&argument[..len]);
        Self {
            command,
            bytes,
            len,
        }
    }

    /// The argument.
    pub fn argument(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Its number in `uapi/mitosis.h`, or 0.
    pub fn kind(&self) -> usize {
        let mut known = WEIGHTS.iter();
        match known.any(|(command, _)| *command == self.command) {
            true => (self.command & 0xff) as usize,
            false => 0,
        }
    }
}

/// Makes them up.
pub struct Composer<'a> {
    /// Where chance comes from.
    pub random: SmallRng,
    /// Addresses to give.
    pub pointers: &'a Pointers,
    /// The machine that this runs on.
    pub machine: Machine,
    /// A seed of this process, if there is one.
    pub seed: Option<&'a Seed>,
    /// What all have done.
    pub counts: &'a Counts,
}

impl Composer<'_> {
    /// One in `of` times.
    pub fn chance(&mut self, of: u32) -> bool {
        self.random.next_u32() % of == 0
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u32) -> u32 {
        self.random.next_u32() % end
    }

    /// A call whose argument is right, or somewhat wrong, or nothing but chance; now and then one whose number is wrong.
    pub fn compose(&mut self) -> Call {
        let mut at = self.below(ALL);
        let mut command = uapi::STATS;
        for (candidate, weight) in WEIGHTS {
            if at < weight {
                command = candidate;
                break;
            }
            at -= weight;
        }
        let mut call = self.right(command);
        match self.below(4) {
            0 => {}
            1 => self.fill(&mut call),
            _ => self.flip(&mut call),
        }
        match self.below(16) {
            0 => call.command = self.random.next_u32(),
            1 => call.command ^= 1 << self.below(32),
            _ => {}
        }
        call
    }

    /// As the header has it, in a state in which it may be refused all the same.
    fn right(&mut self, command: u32) -> Call {
        let machine = self.machine();
        let seed = self.seed_id();
        match command {
            uapi::FREEZE => {
                let (token, flags) = (self.random.next_u64() | 1, self.below(2));
                Call::of(
                    command,
                    &Freeze {
                        token,
                        flags,
                        reserved: 0,
                    },
                )
            }
            uapi::PREPARE => Call::of(command, &self.prepare()),
            uapi::UNPREPARE => Call::of(command, &self.strange_seed_id()),
            uapi::LIST => {
                let seeds = self.address(&[0; size_of::<SeedInfo>()]);
                let capacity = self.number();
                Call::of(
                    command,
                    &List {
                        seeds,
                        capacity,
                        count: 0,
                    },
                )
            }
            uapi::QUERY => {
                let info = SeedInfo {
                    seed,
                    ..SeedInfo::default()
                };
                Call::of(command, &info)
            }
            uapi::OPEN => Call::of(command, &self.open(machine, seed)),
            uapi::RESUME => {
                let child = self.random.next_u64();
                Call::of(
                    command,
                    &Resume {
                        child,
                        flags: 0,
                        reserved: 0,
                    },
                )
            }
            uapi::CONNECT | uapi::DISCONNECT => Call::of(command, &machine),
            uapi::PING => Call::of(command, &Ping { machine, rtt_ns: 0 }),
            _ => Call::of(command, &Stats::default()),
        }
    }

    /// Of a process that is not there: for one that is, the call waits for a minute.
    fn prepare(&mut self) -> Prepare {
        let gone = [-1, 0, i32::MIN, i32::MAX, 1 << 22, 1 << 30];
        Prepare {
            token: self.random.next_u64() | 1,
            pid: gone[self.below(6) as usize],
            lease_ms: self.random.next_u64() % LONGEST_LEASE_MS,
            ..Prepare::default()
        }
    }

    /// The seed of this process's own, from wherever it is, and with room for its descriptor or without.
    pub fn open(&mut self, machine: Machine, seed: SeedId) -> Open {
        let own = self.seed.map_or([0; 16], |seed| seed.capability.0);
        let descriptor = self.address(&[0; LONGEST]);
        Open {
            machine,
            seed,
            capability: if self.chance(8) { [0; 16] } else { own },
            descriptor,
            descriptor_room: self.number(),
            descriptor_len: 0,
            flags: self.below(4),
            prefetch: self.number(),
        }
    }

    /// This one, mostly; sometimes at another service; sometimes one that there is no way to.
    fn machine(&mut self) -> Machine {
        let mut machine = self.machine;
        if self.chance(16) {
            machine.service = self.number();
        }
        if self.chance(32) {
            self.random.fill_bytes(&mut machine.gid);
            // What begins like this is looked for on the network, in vain.
            if machine.gid[0] == 0xfe && !self.may_miss() {
                machine.gid[0] = 0x20;
            }
        } else if self.chance(4096) && self.may_miss() {
            machine.gid[15] ^= 1 << self.below(8);
        }
        machine
    }

    fn may_miss(&self) -> bool {
        // Relaxed: a count is about nothing but itself.
        let missed = &self.counts.missed;
        missed.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < MOST_MISSED
    }

    fn seed_id(&mut self) -> SeedId {
        let strange = self.chance(4);
        match self.seed {
            Some(seed) if !strange => seed.id,
            _ => self.strange_seed_id(),
        }
    }

    /// One of which there may be one: the first places of the table, in their first generations.
    fn strange_seed_id(&mut self) -> SeedId {
        SeedId {
            id: if self.chance(8) {
                self.number()
            } else {
                self.below(8)
            },
            generation: self.below(64),
        }
    }

    /// Small ones, large ones, and those at the edges.
    fn number(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(64),
            1 => 1 << self.below(32),
            2 => u32::MAX - self.below(2),
            _ => self.random.next_u32(),
        }
    }

    fn address(&mut self, contents: &[u8]) -> u64 {
        self.pointers.of(contents, &mut self.random) as u64
    }

    /// Nothing but chance, but for what would take too long.
    fn fill(&mut self, call: &mut Call) {
        let before = call.bytes;
        self.random.fill_bytes(&mut call.bytes[..call.len]);
        keep(call, &before);
    }

    /// Up to four bits.
    fn flip(&mut self, call: &mut Call) {
        let before = call.bytes;
        for _ in 0..1 + self.below(4) {
            let bit = self.below(call.len.max(1) as u32 * 8) as usize;
            call.bytes[bit / 8] ^= 1 << (bit % 8);
        }
        keep(call, &before);
    }
}

/// Puts back what is not chance's: which machine and which process is named takes seconds or a minute, and an address must not
/// be one of what this process refers to, as the module writes there. [`Pointers`] has addresses in every state.
fn keep(call: &mut Call, before: &[u8; LONGEST]) {
    const fn field<T>(at: usize) -> Range<usize> {
        at..at + size_of::<T>()
    }
    const GID: Range<usize> = field::<[u8; 16]>(0);
    let kept: &[Range<usize>] = match call.command {
        uapi::PREPARE => &[field::<i32>(offset_of!(Prepare, pid))],
        uapi::LIST => &[field::<u64>(offset_of!(List, seeds))],
        uapi::OPEN => &[GID, field::<u64>(offset_of!(Open, descriptor))],
        uapi::CONNECT | uapi::DISCONNECT | uapi::PING => &[GID],
        _ => &[],
    };
    for range in kept {
        call.bytes[range.clone()].copy_from_slice(&before[range.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn the_module_writes_to_no_address_but_the_pages_that_are_for_it() {
        let pointers = Pointers::new().unwrap();
        let counts = Counts::shared().unwrap();
        let mut composer = Composer {
            random: SmallRng::seed_from_u64(1),
            pointers: &pointers,
            machine: Machine::default(),
            seed: None,
            counts,
        };
        let mut seen = 0;
        for _ in 0..100_000 {
            let call = composer.compose();
            let at = match call.command {
                uapi::LIST => offset_of!(List, seeds),
                uapi::OPEN => offset_of!(Open, descriptor),
                _ => continue,
            };
            let address = call.argument()[at..at + size_of::<u64>()].try_into();
            let address = u64::from_le_bytes(address.unwrap()) as usize;
            assert!(pointers.may_be_written(address), "{address:#x}");
            seen += 1;
        }
        assert!(seen > 10_000);
    }
}
