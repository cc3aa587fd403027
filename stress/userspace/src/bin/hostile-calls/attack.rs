//! Many bad calls: by processes that have the device and images open, of which one thread closes what the other one uses;
//! beside them, processes that freeze, that become children as nobody should, and that are killed at it.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Instant;

use mitosis_core::uapi::{self, Freeze, Prepare, Resume, SeedId};
use mitosis_fork::{prepare, Device, PrepareOptions, Prepared};
use mitosis_userspace_programs::info;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use zerocopy::{FromZeros, IntoBytes};

use super::call::{Call, Composer};
use super::counts::Counts;
use super::pointers::Pointers;
use super::{Place, LOG};

/// Threads of each process.
const THREADS: u64 = 2;
/// Open files that the threads of a process have in common.
const FILES: usize = 6;
/// Whoever became a child in a way that nobody should is ended after this, whatever it does.
const CHILD_SECS: u32 = 5;
/// Longer than any descriptor of these processes.
const ROOM: usize = 64 << 10;

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    /// How many calls.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    calls: u64,
    /// The same makes the same calls, in some order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many processes make them.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=64))]
    processes: u64,
    /// Makes them as this user.
    #[arg(long, requires = "group")]
    user: Option<u32>,
    /// And as this group.
    #[arg(long, requires = "user")]
    group: Option<u32>,
}

fn last(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}

/// Makes them all.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let begun = Instant::now();
    if let (Some(user), Some(group)) = (arguments.user, arguments.group) {
        // SAFETY: the calls take numbers.
        let failed = unsafe {
            libc::setgroups(0, std::ptr::null()) != 0
                || libc::setgid(group) != 0
                || libc::setuid(user) != 0
        };
        if failed {
            return Err(last("cannot become another user"));
        }
    }
    let counts = Counts::shared().map_err(|error| error.to_string())?;
    let attack = Attack { arguments, counts };
    for number in 0..arguments.processes {
        attack.start(number)?;
    }
    let (mut started, mut killed) = (arguments.processes, 0u64);
    // Each process goes on until all calls are made; in the place of one that fell there is another.
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid during the call.
        let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
        if pid < 0 {
            break;
        }
        killed += u64::from(libc::WIFSIGNALED(status));
        if !counts.is_enough(arguments.calls) {
            attack.start(started)?;
            started += 1;
        }
    }
    let ended = end_seeds()?;
    for line in counts.lines() {
        info!(LOG, "{line}");
    }
    let (returned, done) = counts.totals();
    let (made, micros) = (counts.made(arguments.calls), begun.elapsed().as_micros());
    if returned > made {
        return Err(format!(
            "{returned} calls have returned, of {made}: something wrote over the counts"
        ));
    }
    // Those that did not return froze their process, or replaced it, or were made when it was killed.
    info!(
        LOG,
        "hostile calls done: calls {made}, refused {}, not returned {}, processes {started}, killed {killed}, \
         seeds ended {ended}, elapsed_us {micros}",
        returned - done,
        made - returned
    );
    Ok(())
}

/// Ends the seeds that outlive their makers, of which some have a lease. Returns how many there were.
fn end_seeds() -> Result<usize, String> {
    let device = Device::open().map_err(|error| error.to_string())?;
    // SAFETY: the call takes nothing.
    let uid = unsafe { libc::getuid() };
    let seeds = device.list().map_err(|error| error.to_string())?;
    let mine = seeds.iter().filter(|seed| seed.uid == uid && is_ours(seed));
    // It may have ended by itself meanwhile.
    Ok(mine.map(|seed| drop(device.unprepare(seed.seed))).count())
}

/// Whether this program made it.
fn is_ours(seed: &mitosis_fork::SeedInfo) -> bool {
    seed.comm.starts_with(b"hostile-calls")
}

struct Attack<'a> {
    arguments: &'a Arguments,
    counts: &'static Counts,
}

impl Attack<'_> {
    /// Starts a process.
    fn start(&self, number: u64) -> Result<(), String> {
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            -1 => Err(last("cannot fork")),
            0 => {
                self.process(number);
                // SAFETY: ends the process, whose handlers are the original's.
                unsafe { libc::_exit(0) }
            }
            _ => Ok(()),
        }
    }

    /// The life of one.
    fn process(&self, number: u64) {
        self.counts.keep_from_children();
        // SAFETY: this process has one thread.
        let seed = match unsafe { prepare(&PrepareOptions::default()) } {
            Ok(Prepared::Parent(seed)) => Some(seed),
            // SAFETY: ends the process, whatever it was before.
            Ok(Prepared::Child(_)) => unsafe { libc::_exit(0) },
            Err(_) => None,
        };
        let files: [AtomicI32; FILES] = std::array::from_fn(|_| AtomicI32::new(open_device()));
        let (Ok(here), Ok(there)) = (Pointers::new(), Pointers::new()) else {
            return;
        };
        std::thread::scope(|scope| {
            for (index, pointers) in (0..THREADS).zip([&here, &there]) {
                let (seed, files) = (seed.as_ref(), &files);
                let chance = (self.arguments.seed << 32) | (number * THREADS + index);
                scope.spawn(move || {
                    let composer = Composer {
                        random: SmallRng::seed_from_u64(chance),
                        pointers,
                        machine: self.arguments.place.machine(),
                        seed,
                        counts: self.counts,
                    };
                    let mut attacker = Attacker {
                        attack: self,
                        composer,
                        files,
                        room: vec![0; ROOM],
                    };
                    while attacker.step() {}
                });
            }
        });
    }
}

/// The device, or a number that is no file's.
fn open_device() -> c_int {
    // SAFETY: the path is a C string.
    unsafe { libc::open(c"/dev/mitosis".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) }
}

/// A call, whatever it is.
fn raw(file: c_int, call: &Call, address: usize) -> c_int {
    // SAFETY: of what the calls write to, nothing is referred to meanwhile: `Pointers`' memory, or a structure of the
    // caller's that it lends for the call.
    unsafe { libc::ioctl(file, call.command.into(), address as *mut c_void) }
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// One thread.
struct Attacker<'a> {
    attack: &'a Attack<'a>,
    composer: Composer<'a>,
    files: &'a [AtomicI32; FILES],
    room: Vec<u8>,
}

impl Attacker<'_> {
    /// Does something, unless enough has been done.
    fn step(&mut self) -> bool {
        match self.composer.below(1_000) {
            0..10 => {
                self.replace(open_device());
                true
            }
            10..14 => self.open_image(),
            14..17 => self.freeze(),
            17..19 => self.become_child(),
            19..24 => {
                self.misuse();
                true
            }
            _ => {
                let call = self.composer.compose();
                let address = self
                    .composer
                    .pointers
                    .of(call.argument(), &mut self.composer.random);
                let file = self.any_file();
                self.issue(file, &call, address) != Outcome::Enough
            }
        }
    }

    /// Makes a call. `address` may be anything: what the module writes there is memory that nothing refers to.
    fn issue(&self, file: c_int, call: &Call, address: usize) -> Outcome {
        if !self.begin() {
            return Outcome::Enough;
        }
        let returned = raw(file, call, address);
        let errno = if returned < 0 { errno() } else { 0 };
        self.attack.counts.end(call.kind(), errno);
        match errno {
            0 => Outcome::Done(returned),
            _ => Outcome::Refused,
        }
    }

    fn begin(&self) -> bool {
        let attack = self.attack;
        attack.counts.begin(attack.arguments.calls)
    }

    /// Makes a call in a process of its own, which may not return from it. Gives the process's number, or -1.
    fn issue_apart(&self, file: c_int, call: &Call) -> c_int {
        // SAFETY: the copy makes system calls and ends: it needs nothing that another thread may have held.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: the call takes a number. The alarm stays set in whatever this becomes.
            unsafe { libc::alarm(CHILD_SECS) };
            let returned = raw(file, call, call.argument().as_ptr() as usize);
            let status = if returned < 0 { errno() } else { 0 };
            // SAFETY: as above. A child of a seed that was frozen here ends here too.
            unsafe { libc::_exit(status) }
        }
        pid
    }

    /// Waits for its end, and counts the call if it returned.
    fn reap(&self, pid: c_int, call: &Call) {
        let mut status = 0;
        // SAFETY: `status` is valid during the call. A frozen process is hidden from those who do not ask for all.
        unsafe { libc::waitpid(pid, &mut status, libc::__WALL) };
        if libc::WIFEXITED(status) {
            let errno = libc::WEXITSTATUS(status);
            self.attack.counts.end(call.kind(), errno);
        }
    }

    fn any_file(&mut self) -> c_int {
        let at = self.composer.below(FILES as u32) as usize;
        // Relaxed: the number is all there is to it, here and below.
        self.files[at].load(Ordering::Relaxed)
    }

    /// Puts a file in the place of another one, which is closed, whoever uses it.
    fn replace(&mut self, file: c_int) {
        let at = self.composer.below(FILES as u32) as usize;
        let earlier = self.files[at].swap(file, Ordering::Relaxed);
        // SAFETY: no memory depends on a file of these.
        unsafe { libc::close(earlier) };
    }

    /// An image of this process's own seed, in the place of another file.
    fn open_image(&mut self) -> bool {
        let Some(seed) = self.composer.seed else {
            return true;
        };
        let machine = self.composer.machine;
        let mut open = self.composer.open(machine, seed.id);
        open.capability = seed.capability.0;
        open.descriptor = self.room.as_mut_ptr() as u64;
        open.descriptor_room = ROOM as u32;
        let file = open_device();
        let call = Call::of(uapi::OPEN, &open);
        let outcome = self.issue(file, &call, open.as_mut_bytes().as_mut_ptr() as usize);
        // SAFETY: as in `replace`.
        unsafe { libc::close(file) };
        if let Outcome::Done(image) = outcome {
            self.replace(image);
        }
        outcome != Outcome::Enough
    }

    /// A process that freezes; it is waited for, or killed, or its seed is ended, in some order.
    fn freeze(&mut self) -> bool {
        let file = self.any_file();
        let token = self.composer.random.next_u64() | 1;
        let freeze = Freeze {
            token,
            flags: self.composer.below(2),
            reserved: 0,
        };
        let call = Call::of(uapi::FREEZE, &freeze);
        if !self.begin() {
            return false;
        }
        let pid = self.issue_apart(file, &call);
        if pid < 0 {
            return true;
        }
        let kill = || {
            // SAFETY: the process is this one's child, and not waited for yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        };
        let hasty = self.composer.chance(4);
        if hasty {
            kill();
        }
        let mut prepare = Prepare::new_zeroed();
        prepare.token = token;
        prepare.pid = pid;
        prepare.lease_ms = u64::from(self.composer.below(500));
        let wait = Call::of(uapi::PREPARE, &prepare);
        let outcome = self.issue(file, &wait, prepare.as_mut_bytes().as_mut_ptr() as usize);
        if matches!(outcome, Outcome::Done(_)) && self.composer.chance(2) {
            let mut seed: SeedId = prepare.seed;
            let end = Call::of(uapi::UNPREPARE, &seed);
            self.issue(file, &end, seed.as_mut_bytes().as_mut_ptr() as usize);
        }
        kill();
        self.reap(pid, &call);
        outcome != Outcome::Enough
    }

    /// A process that resumes an image, or something else, without having made ready for it.
    fn become_child(&mut self) -> bool {
        let file = self.any_file();
        let wrong = self.composer.chance(4);
        let resume = Resume {
            child: self.composer.random.next_u64(),
            flags: u32::from(wrong),
            reserved: 0,
        };
        let call = Call::of(uapi::RESUME, &resume);
        if !self.begin() {
            return false;
        }
        let pid = self.issue_apart(file, &call);
        if pid > 0 {
            self.reap(pid, &call);
        }
        true
    }

    /// Other system calls on the same files.
    fn misuse(&mut self) {
        let file = self.any_file();
        let len = (self.composer.random.next_u32() >> self.composer.below(32)) as usize;
        let offset = (self.composer.random.next_u64() >> self.composer.below(64)) as i64 & !0xfff;
        let bits = self.composer.random.next_u32() as c_int;
        let mut bytes = [0u8; 64];
        // SAFETY: reads and writes are of `bytes`. What is mapped is new, lies where the kernel says, and is unmapped
        // before anything refers to it.
        unsafe {
            match self.composer.below(4) {
                0 => {
                    let (protection, flags) = (
                        bits & 7,
                        [libc::MAP_SHARED, libc::MAP_PRIVATE][(bits as usize >> 3) & 1],
                    );
                    let mapped =
                        libc::mmap(std::ptr::null_mut(), len, protection, flags, file, offset);
                    if mapped != libc::MAP_FAILED {
                        libc::munmap(mapped, len);
                    }
                }
                1 => drop(libc::read(file, bytes.as_mut_ptr().cast(), bytes.len())),
                2 => drop(libc::write(file, bytes.as_ptr().cast(), bytes.len())),
                _ => drop(libc::lseek(file, offset, bits & 3)),
            }
        }
    }
}

/// What a call came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done(c_int),
    Refused,
    /// It was not made: all that were wanted are.
    Enough,
}
