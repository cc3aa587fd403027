//! Many seeds, a few at a time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{anyhow, ensure};
use mitosis_testkit::endpoint::Settings;
use mitosis_testkit::network::Faults;
use mitosis_testkit::random::{Chance, Random};
use mitosis_testkit::scenario::{Crashes, Failure, Load, Report, MS};
use mitosis_testkit::world::Order;

use crate::memory::Memory;
use crate::Options;

/// How many calls are made if nobody says.
const CALLS: u64 = 10_000_000;

/// Shared between the threads, and held only between two runs.
#[derive(Default)]
struct Progress {
    total: Report,
    runs: u64,
    failure: Option<Box<Failure>>,
    /// After a twentieth of the runs, when each thread has had runs of every size; after half of
    /// them; at the end.
    memory: [Option<Memory>; 3],
}

/// Runs all seeds and prints what was seen. An error if anything was not as it should be.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let calls = options.calls.unwrap_or(CALLS);
    let calls_of_run = calls.div_ceil(options.seeds).max(1);
    let (first, runs) = match options.seed {
        Some(seed) => (seed, 1),
        None => (options.first_seed, options.seeds),
    };
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    let threads = options.threads.unwrap_or(processors).max(1);
    println!(
        "{runs} seeds from {first}, {calls_of_run} calls each, on {threads} threads: {} % loss, {} % duplication, \
         {} % reordering, {} % corruption",
        options.loss, options.duplication, options.reordering, options.corruption
    );
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let progress = Mutex::new(Progress::default());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let place = next.fetch_add(1, Ordering::Relaxed);
            if place >= runs {
                break;
            }
            let load = load_of(first.wrapping_add(place), calls_of_run, options);
            let done = load.run(options.seed.is_some());
            let Ok(mut progress) = progress.lock() else {
                break;
            };
            progress.took_place(done, runs, began);
            if progress.failure.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let progress = progress
        .into_inner()
        .map_err(|_| anyhow!("a run panicked; see above, and run with --threads 1"))?;
    print(&progress, began);
    if let Some(failure) = progress.failure {
        let command = command(options, calls, failure.seed);
        return Err(anyhow!("{failure}\nto repeat it: {command}"));
    }
    if let [Some(start), _, Some(end)] = progress.memory {
        ensure!(
            runs < 20 || end.is_flat_since(&start),
            "memory grew from {start} to {end}"
        );
    }
    println!("as it should be");
    Ok(())
}

impl Progress {
    fn took_place(&mut self, done: Result<Report, Box<Failure>>, runs: u64, began: Instant) {
        self.runs += 1;
        match done {
            Ok(report) => self.total.add(&report),
            Err(failure) => {
                self.total.add(&failure.report);
                self.failure.get_or_insert(failure);
            }
        }
        let steps = [runs.div_ceil(20), runs.div_ceil(2), runs];
        for (memory, step) in self.memory.iter_mut().zip(steps) {
            if self.runs == step {
                *memory = Some(Memory::read());
            }
        }
        if self.runs % runs.div_ceil(20) == 0 && self.runs < runs {
            println!(
                "  {:>5} of {runs} seeds, {:>9} calls, {:.0} s, {}",
                self.runs,
                self.total.tally.ended(),
                began.elapsed().as_secs_f64(),
                Memory::read()
            );
        }
    }
}

/// The run of a seed: its clients, window, datagram length and key differ from seed to seed.
fn load_of(seed: u64, calls: u64, options: &Options) -> Load {
    // The endpoints of the run draw from streams that count from 0.
    let mut random = Random::new(seed, u64::MAX);
    let drawn_clients = 1 + random.below(8) as u32;
    let clients = options.clients.unwrap_or(drawn_clients);
    let slots = [1, 2, 4, 8][random.below(4) as usize];
    let datagram_len = [1024, 2048, 4096][random.below(3) as usize];
    let keyed = random.below(2) == 0;
    Load {
        seed,
        clients,
        calls,
        order: Order {
            count: 0,
            failing: Chance::percent(2.0),
            late: Chance::percent(5.0),
            request_len: (24, 64),
            reply_len: (8, 64),
            large: Chance::percent(1.0),
            large_len: 16 * 1024,
        },
        settings: Settings {
            slots,
            datagram_len,
            keyed,
            // Room for what crashed clients leave behind until it expires.
            sessions: clients * options.crash_every.map_or(1, |_| 8),
            ..Settings::PATIENT
        },
        faults: Faults {
            // Long enough for what a session leaves behind to meet the next one.
            detour_ns: options
                .crash_every
                .map_or(Faults::NONE.detour_ns, |_| 3 * MS),
            ..options.faults()
        },
        reception: options.reception(),
        crashes: options.crash_every.map(|every_us| Crashes {
            every_ns: every_us * 1000,
            down_ns: 5 * MS,
            times: 100,
        }),
    }
}

fn print(progress: &Progress, began: Instant) {
    let Report {
        tally,
        traffic,
        virtual_ns,
        ..
    } = progress.total;
    let wall = began.elapsed().as_secs_f64();
    let lost = tally.ordered - tally.ended();
    println!("calls            {:>12}", tally.begun);
    println!("replied          {:>12}", tally.replied);
    println!("handler failed   {:>12}", tally.handler_failed);
    println!("lost             {lost:>12}");
    println!("executed twice   {:>12}", tally.executed_twice);
    println!("mismatched       {:>12}", tally.mismatched);
    if tally.damaged > 0 {
        println!("damaged contents {:>12}", tally.damaged);
    }
    println!("timed out        {:>12}", tally.timed_out);
    println!("closed           {:>12}", tally.closed);
    println!("refused          {:>12}", tally.refused);
    println!("sessions         {:>12}", tally.sessions);
    println!(
        "datagrams        {:>12} sent, {} lost, {} doubled, {} reordered, {} damaged, {} overrun",
        traffic.sent,
        traffic.lost,
        traffic.duplicated,
        traffic.reordered,
        traffic.damaged,
        traffic.overrun
    );
    println!("virtual time     {:>12.1} s", virtual_ns as f64 / 1e9);
    println!(
        "wall time        {wall:>12.1} s, {:.0} calls/s",
        tally.ended() as f64 / wall
    );
    for (name, memory) in ["start", "middle", "end"].iter().zip(progress.memory) {
        if let Some(memory) = memory {
            println!("memory at {name:<7}{memory:>12}");
        }
    }
    println!("fingerprint      {:>#12x}", progress.total.fingerprint);
}

/// The command line that repeats one seed of these options.
fn command(options: &Options, calls: u64, seed: u64) -> String {
    let mut assigned = format!(
        "--seed {seed} --seeds {} --calls {calls} --loss {} --duplication {} --reordering {} --corruption {} --ring {} \
         --service {}",
        options.seeds,
        options.loss,
        options.duplication,
        options.reordering,
        options.corruption,
        options.ring,
        options.service
    );
    if options.damaged_arrive {
        assigned += " --damaged-arrive";
    }
    if let Some(clients) = options.clients {
        assigned += &format!(" --clients {clients}");
    }
    if let Some(every) = options.crash_every {
        assigned += &format!(" --crash-every {every}");
    }
    format!("make simulate ARGUMENTS='{assigned}'")
}
