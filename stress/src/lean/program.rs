//! `mitosis-lean`: forks a seed into one container after another, and counts those that prove to be its continuation.

use std::io::Write;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use mitosis_fork::uapi::SeedId;
use mitosis_fork::{Capability, Device, Machine, OpenOptions};

use super::begin::{Begin, Program, Seed};
use super::cgroup::{Groups, Limits};
use super::container::Failure;
use super::figures::{Latencies, Line, RunId, Total};
use super::pool::{Maker, Pool};
use super::proof;
use super::root::Root;
use super::stub::Plan;
use crate::interrupt::Interrupt;

/// A line comes at least this often, also when nothing was done.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// How often the interrupt is looked at.
const TICK: Duration = Duration::from_millis(100);
/// From one failure to the next attempt, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Begins one child after another in lean containers, and counts those that prove what they are.
///
/// Each child has new cgroup, uts, pid, ipc and mount namespaces, a root file system of its own to which it cannot write,
/// and limits. Exit status: 0 if every container was verified, and there was at least one.
#[derive(Parser)]
#[command(name = "mitosis-lean", version)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Begin children, and count those that prove what they are.
    Run(Box<Arguments>),
    /// Say which seeds, images and pages this machine's module still has; exit status 1 where there are any.
    Left,
}

#[derive(clap::Args)]
struct Arguments {
    /// How long to go on, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    run_secs: u64,
    /// End after so many containers, if that comes first.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    containers: Option<u64>,
    /// How many are under way at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    threads: u64,
    /// How many prepared containers are kept in stock; 0: each is made when it is needed.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(0..=256))]
    pool: u64,
    /// Seconds between two throughput lines.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    report_interval: u64,
    /// Of one processor's time, what a container may use; 0: no limit.
    #[arg(long, default_value_t = 100)]
    cpu_percent: u32,
    /// Memory that a container may use, in MiB; 0: no limit.
    #[arg(long, default_value_t = 256)]
    memory_mib: u64,
    /// 1 gives each container a network namespace as well.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    net: u8,
    /// Ends also when standard input does, as it does when whoever started this has gone.
    #[arg(long)]
    until_eof: bool,
    /// A file or directory that containers see under the same name, read-only. Can be repeated.
    #[arg(long, value_name = "PATH")]
    share: Vec<PathBuf>,
    /// How long a child may take for any one thing, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    deadline_secs: u64,
    /// The state that the children have to prove, as the parent printed it: hexadecimal.
    #[arg(long, value_parser = hexadecimal)]
    state: u64,
    #[command(subcommand)]
    begin: How,
}

/// How the children begin.
#[derive(Subcommand)]
enum How {
    /// As continuations of a seed.
    Seed(SeedArguments),
    /// As a program, begun anew: to compare with.
    Program {
        /// The program, and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

#[derive(clap::Args)]
struct SeedArguments {
    /// The GID of the seed's machine.
    #[arg(long)]
    gid: Ipv6Addr,
    /// The service at which its module listens.
    #[arg(long, default_value_t = 2)]
    service: u32,
    /// The seed.
    #[arg(long)]
    id: u32,
    /// Its generation; 0: whichever it is.
    #[arg(long, default_value_t = 0)]
    generation: u32,
    /// Its capability, 32 hexadecimal digits.
    #[arg(long, value_parser = capability)]
    capability: Option<Capability>,
    /// Pages read with one that was touched; 0: the module's default.
    #[arg(long, default_value_t = 0)]
    prefetch: u32,
    /// Reads all pages before the child begins.
    #[arg(long)]
    eager: bool,
    /// Gives each child pages of its own, instead of sharing them until it writes.
    #[arg(long)]
    private: bool,
    /// 1 opens the seed once for all children, which then share the pages that any of them has read until they write to
    /// them; 0 opens it for each.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    shared_image: u8,
}

impl SeedArguments {
    fn seed(&self) -> Result<Seed> {
        let mut seed = Seed {
            machine: Machine {
                gid: self.gid.octets(),
                service: self.service,
                reserved: 0,
            },
            id: SeedId {
                id: self.id,
                generation: self.generation,
            },
            capability: self.capability,
            options: OpenOptions {
                eager: self.eager,
                private: self.private,
                prefetch: self.prefetch,
            },
            shared: None,
        };
        if self.shared_image == 1 {
            let image = seed.open().context("cannot open the seed")?;
            seed.shared = Some(Arc::new(Seed::descriptor_of(&image)?));
        }
        Ok(seed)
    }
}

fn capability(text: &str) -> Result<Capability, String> {
    let wrong = || format!("{text:?} is not 32 hexadecimal digits");
    let mut bytes = [0; 16];
    if text.len() != 2 * bytes.len() || !text.is_ascii() {
        return Err(wrong());
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        let digits = &text[2 * index..2 * index + 2];
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(Capability(bytes))
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is not a hexadecimal number"))
}

/// The program.
pub fn main() -> ExitCode {
    let outcome = match CommandLine::parse().command {
        Command::Run(arguments) => run(&arguments),
        Command::Left => return left(),
    };
    match outcome {
        Ok(total) if total.errors == 0 && total.verified > 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mitosis-lean: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Says what is left on this machine.
fn left() -> ExitCode {
    let stats = match Device::open().and_then(|device| device.stats()) {
        Ok(stats) => stats,
        Err(error) => {
            eprintln!("mitosis-lean: {error}");
            return ExitCode::from(2);
        }
    };
    let counts = [
        ("seeds", stats.seeds),
        ("images", stats.images),
        ("regions", stats.regions),
        ("seed pages", stats.seed_pages),
        ("cached pages", stats.cached_pages),
    ];
    let left: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(what, count)| format!("{count} {what}"))
        .collect();
    if left.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("the module still has {}", left.join(", "));
    ExitCode::FAILURE
}

fn run(arguments: &Arguments) -> Result<Total> {
    let begin: Box<dyn Begin> = match &arguments.begin {
        How::Seed(seed) => Box::new(seed.seed()?),
        How::Program { words } => Box::new(Program::open(words)?),
    };
    let resumption = begin.resumption()?;
    let share: Result<Vec<PathBuf>> = arguments
        .share
        .iter()
        .map(|path| {
            path.canonicalize()
                .with_context(|| format!("{}", path.display()))
        })
        .collect();
    // Namespaces before threads.
    let root = Root::make(&share?)?;
    let interrupt = Interrupt::from_signals()?;
    if arguments.until_eof {
        let interrupt = interrupt.clone();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            interrupt.raise();
        });
    }
    let limits = Limits {
        cpu_percent: arguments.cpu_percent,
        memory_mib: arguments.memory_mib,
    };
    let id = RunId::random();
    let maker = Maker {
        plan: Plan::new(
            root.path(),
            arguments.net == 1,
            begin.arguments(),
            resumption,
        ),
        groups: Groups::create(&id.to_string().replace(['[', ']'], ""), limits)?,
        deadline: Duration::from_secs(arguments.deadline_secs),
        made: AtomicU64::new(0),
    };
    let work = Work {
        begin: begin.as_ref(),
        state: arguments.state,
        left: AtomicU64::new(arguments.containers.unwrap_or(u64::MAX)),
        numbers: AtomicU32::new(0),
        over: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let pool = Pool::fill(scope, &maker, arguments.pool as usize);
        // The pool is dropped with this scope: its thread ends after all that used its containers.
        std::thread::scope(|workers| {
            let (sender, events) = mpsc::channel();
            for _ in 0..arguments.threads {
                let (sender, pool, work) = (sender.clone(), &pool, &work);
                workers.spawn(move || work.all(pool, &sender));
            }
            drop(sender);
            let mut count = Count::new(id, arguments);
            let counted = count.all(&events, &work, &interrupt);
            work.end();
            // What the workers still have in hand is part of the run.
            for event in events {
                count.take(event)?;
            }
            counted.and_then(|()| count.conclude())
        })
    })
}

/// What became of one container.
struct Done {
    /// From asking for the container to the child's verified end.
    latency: Duration,
    prepared: Duration,
    begun: Duration,
}

type Event = Result<Done, Failure>;

struct Work<'a> {
    begin: &'a dyn Begin,
    state: u64,
    left: AtomicU64,
    numbers: AtomicU32,
    over: AtomicBool,
}

impl Work<'_> {
    /// Asks the workers to stop.
    fn end(&self) {
        // Relaxed, here and below: the flag and the counters publish nothing but themselves.
        self.over.store(true, Ordering::Relaxed);
    }

    fn all(&self, pool: &Pool<'_>, events: &Sender<Event>) {
        let mut pause = Duration::from_millis(1);
        let claim = |left: u64| left.checked_sub(1);
        while !self.over.load(Ordering::Relaxed)
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim)
                .is_ok()
        {
            let event = self.one(pool);
            let failed = event.is_err();
            if events.send(event).is_err() {
                return;
            }
            if failed {
                // What failed at once would fail thousands of times a second.
                std::thread::park_timeout(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = Duration::from_millis(1);
            }
        }
    }

    fn one(&self, pool: &Pool<'_>) -> Event {
        let started = Instant::now();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let nonce: u64 = rand::random();
        let (mut container, prepared) = pool.take()?;
        let ordered = Instant::now();
        let (order, subject) = self.begin.subject(number)?;
        container.begin(order, subject.as_fd(), &proof::question(nonce))?;
        let unproven = |said: String, expected: String| Err(Failure::Unproven { said, expected });
        let said = container.next_line("first word of the child")?;
        let begun = ordered.elapsed();
        if said != proof::BEGUN {
            return unproven(said, proof::BEGUN.into());
        }
        let said = container.next_line("proof of the child")?;
        let expected = proof::answer(nonce, order.child(), self.state);
        if said != expected {
            return unproven(said, expected);
        }
        container.finish()?;
        Ok(Done {
            latency: started.elapsed(),
            prepared,
            begun,
        })
    }
}

/// What was done, and the lines that tell it.
struct Count {
    id: RunId,
    started: Instant,
    until: Instant,
    interval: Duration,
    reported: Instant,
    since_reported: Latencies,
    sum: Duration,
    latency: Latencies,
    prepared: Latencies,
    begun: Latencies,
    errors: u64,
    last: Instant,
    threads: u64,
}

impl Count {
    fn new(id: RunId, arguments: &Arguments) -> Self {
        let started = Instant::now();
        Self {
            id,
            started,
            until: started + Duration::from_secs(arguments.run_secs),
            interval: Duration::from_secs(arguments.report_interval),
            reported: started,
            since_reported: Latencies::default(),
            sum: Duration::ZERO,
            latency: Latencies::default(),
            prepared: Latencies::default(),
            begun: Latencies::default(),
            errors: 0,
            last: started,
            threads: arguments.threads,
        }
    }

    fn all(
        &mut self,
        events: &Receiver<Event>,
        work: &Work<'_>,
        interrupt: &Interrupt,
    ) -> Result<()> {
        while !interrupt.is_raised() && Instant::now() < self.until {
            match events.recv_timeout(TICK) {
                Ok(event) => self.take(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let silence = self.reported.elapsed();
            let due = silence >= self.interval && self.since_reported.count() > 0;
            if due || silence >= LONGEST_SILENCE.max(self.interval) {
                self.report()?;
            }
        }
        work.end();
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<()> {
        self.last = Instant::now();
        match event {
            Ok(done) => {
                self.latency.record(done.latency);
                self.since_reported.record(done.latency);
                self.sum += done.latency;
                self.prepared.record(done.prepared);
                self.begun.record(done.begun);
                Ok(())
            }
            Err(failure) => {
                self.errors += 1;
                self.say(&Line::Error(failure.to_string()))
            }
        }
    }

    /// An interval in which no container came to its end lasts until one does: the throughput of a container that takes
    /// longer than an interval is then still told.
    fn report(&mut self) -> Result<()> {
        let count = self.since_reported.count() as f64;
        let elapsed = self.reported.elapsed().as_secs_f64();
        let mean = self.sum.as_secs_f64() / count.max(1.0);
        self.reported = Instant::now();
        self.since_reported = Latencies::default();
        self.sum = Duration::ZERO;
        self.say(&Line::Throughput {
            containers_per_s: count / elapsed,
            latency_ms: mean * 1_000.0,
        })
    }

    fn conclude(&mut self) -> Result<Total> {
        let elapsed = self.last.duration_since(self.started);
        let total = Total {
            containers: self.latency.count() + self.errors,
            verified: self.latency.count(),
            errors: self.errors,
            elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            threads: self.threads,
        };
        self.say(&Line::Total(total))?;
        let summaries = [
            self.latency.summary().map(Line::Latency),
            self.prepared.summary().map(Line::Prepared),
            self.begun.summary().map(Line::Begun),
        ];
        for line in summaries.iter().flatten() {
            self.say(line)?;
        }
        if total.verified > 0 {
            self.say(&Line::buckets(&self.latency))?;
        }
        Ok(total)
    }

    /// A reader that has gone away ends the run: nobody would learn what it does.
    fn say(&self, line: &Line) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{} {line}", self.id)
            .and_then(|()| stdout.flush())
            .context("nobody reads what this program says")
    }
}
