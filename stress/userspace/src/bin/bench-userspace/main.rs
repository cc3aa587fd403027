//! Calls between two processes of one machine, beside other ways to make them: everything in one run, interleaved, each end
//! on a core of its own.

#![deny(unsafe_code)]

mod contender;
mod shared_lines;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use rustix::thread::{sched_setaffinity, CpuSet};
use serde::Serialize;

use self::contender::{Contender, Measured};

/// Measures calls of 32 bytes between two processes, ours beside others.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// How often each is measured, in turn. Often and briefly: a host that moves virtual processors about changes what there is to
    /// measure, and a call is compared to the line of its own round.
    #[arg(long, default_value_t = 51)]
    rounds: usize,
    /// For how long each time, in milliseconds.
    #[arg(long, default_value_t = 50)]
    time_ms: u64,
    /// The processors of the calling and of the serving end.
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<usize>,
    /// Only those whose name has this in it; cache lines are always measured.
    #[arg(long)]
    only: Option<String>,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
    #[arg(long, hide = true)]
    serve: Option<String>,
    #[arg(long, hide = true)]
    dir: Option<PathBuf>,
}

/// By how much a round's line may differ from most others'. Two processors of one cache and two of one socket differ by more, and so do
/// two threads of one core.
const OF_ONE_PLACE: f64 = 1.5;

/// What was measured.
#[derive(Serialize)]
struct Outcome {
    /// Of each round, whether a line took about as long as in most: the host had the two processors where it mostly has them.
    compared: Vec<bool>,
    rows: Vec<Row>,
}

/// A contender's figures, of the rounds that are compared.
#[derive(Serialize)]
struct Row {
    name: String,
    /// Median time from one reply to the next, in nanoseconds.
    call_ns: f64,
    lowest_ns: f64,
    highest_ns: f64,
    /// Median calls a second.
    rate: f64,
    /// Median of the ratios to the cache line of the same round.
    to_line: f64,
    /// The same of all rounds.
    to_line_of_all: f64,
    /// Calls a second of every round.
    rates: Vec<f64>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let [calling, serving] = arguments.cpus[..] else {
        anyhow::bail!("--cpus names two processors, such as 0,1");
    };
    if let Some(word) = &arguments.serve {
        // Its thread is not pinned: a server that spins with a real-time priority would never let it run.
        end_with_stdin();
        pin(serving)?;
        return Contender::serve(word, arguments.dir.as_deref().context("--dir is missing")?);
    }
    pin(calling)?;
    let contenders: Vec<_> = Contender::all()
        .into_iter()
        .filter(|one| {
            let wanted = |only: &String| one.name().contains(only.as_str());
            let floor = matches!(one, Contender::Line | Contender::Lines(_));
            floor || arguments.only.as_ref().is_none_or(wanted)
        })
        .collect();
    let dir = PathBuf::from(format!("/dev/shm/mitosis-bench-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let outcome = measure(&arguments, &contenders, &dir, serving);
    let removed = std::fs::remove_dir_all(&dir);
    let outcome = outcome?;
    removed?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print(&outcome);
    }
    Ok(())
}

fn measure(
    arguments: &Arguments,
    contenders: &[Contender],
    dir: &Path,
    serving: usize,
) -> Result<Outcome> {
    let time = Duration::from_millis(arguments.time_ms);
    let mut rates = vec![Vec::new(); contenders.len()];
    for round in 0..arguments.rounds {
        for (contender, rates) in contenders.iter().zip(&mut rates) {
            let measured = one(*contender, dir, serving, time)
                .with_context(|| format!("{} in round {round}", contender.name()))?;
            rates.push(measured.rate());
        }
    }
    let compared = of_one_place(&rates[0]);
    let only = |rates: &[f64]| -> Vec<f64> {
        let rates = rates.iter().zip(&compared);
        rates.filter_map(|(rate, is)| is.then_some(*rate)).collect()
    };
    let all_lines = rates[0].clone();
    let lines = only(&all_lines);
    let row = |(contender, all): (&Contender, Vec<f64>)| {
        let rates = only(&all);
        let rate = median(rates.clone());
        let of = |choose: fn(f64, f64) -> f64| rates.iter().copied().reduce(choose).unwrap_or(0.0);
        let ratio = |(line, rate): (&f64, &f64)| line / rate;
        let to_line = lines.iter().zip(&rates).map(ratio);
        let to_line_of_all = all_lines.iter().zip(&all).map(ratio);
        Row {
            name: contender.name(),
            call_ns: 1e9 / rate,
            lowest_ns: 1e9 / of(f64::max),
            highest_ns: 1e9 / of(f64::min),
            rate,
            to_line: median(to_line.collect()),
            to_line_of_all: median(to_line_of_all.collect()),
            rates: all,
        }
    };
    let rows = contenders.iter().zip(rates).map(row).collect();
    Ok(Outcome { compared, rows })
}

/// Of each round, whether its line took about as long as the median one.
fn of_one_place(lines: &[f64]) -> Vec<bool> {
    let middle = median(lines.to_vec());
    let near = |rate: &f64| (middle / OF_ONE_PLACE..=middle * OF_ONE_PLACE).contains(rate);
    lines.iter().map(near).collect()
}

/// One measurement, with a server that is there for nothing else.
fn one(contender: Contender, dir: &Path, serving: usize, time: Duration) -> Result<Measured> {
    let mut server = Server::start(contender, dir, serving)?;
    let greeting = server.greeting()?;
    contender.measure(dir, &greeting, time)
}

/// A contender's server, which ends with this.
struct Server(Child);

impl Server {
    fn start(contender: Contender, dir: &Path, serving: usize) -> Result<Self> {
        let program = std::env::current_exe()?;
        let child = Command::new(program)
            .args(["--serve", contender.word(), "--cpus"])
            .arg(format!("{serving},{serving}"))
            .arg("--dir")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }

    fn greeting(&mut self) -> Result<String> {
        let stdout = self.0.stdout.take().context("the server has no output")?;
        let mut greeting = String::new();
        let read = BufReader::new(stdout).read_line(&mut greeting)?;
        anyhow::ensure!(read > 0, "the server has ended before it could be called");
        Ok(greeting)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A server's process ends when its parent closes the pipe, or dies.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
        .with_context(|| format!("cannot run on processor {cpu}; --cpus names the two to use"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 if middle > 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values.get(middle).copied().unwrap_or(f64::NAN),
    }
}

fn print(outcome: &Outcome) {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header([
        "",
        "ns a call",
        "lowest to highest",
        "calls/s",
        "of a line's trip",
        "in all rounds",
    ]);
    for row in &outcome.rows {
        table.add_row([
            row.name.clone(),
            format!("{:.0}", row.call_ns),
            format!("{:.0} to {:.0}", row.lowest_ns, row.highest_ns),
            format!("{:.0}", row.rate),
            format!("{:.2}", row.to_line),
            format!("{:.2}", row.to_line_of_all),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    let compared = outcome.compared.iter().filter(|is| **is).count();
    let all = outcome.compared.len();
    print!("medians of {compared} rounds");
    match all - compared {
        0 => println!(),
        others => println!(
            "; in the other {others} a line took more than {OF_ONE_PLACE} times as long as in most, or as much less: the host had \
             the processors elsewhere"
        ),
    }
}
