//! Runs many seeds of the simulation, or one server with many sessions, and judges what was seen.

mod memory;
mod sessions;
mod sweep;

use std::process::ExitCode;

use clap::Parser;
use mitosis_testkit::network::{Faults, Reception};
use mitosis_testkit::random::Chance;

/// Simulates MITOSIS' RPC on a network that loses, doubles, reorders and damages datagrams.
///
/// Every run follows from its seed. A run that fails prints its seed and the command that repeats
/// it.
#[derive(Clone, Debug, Parser)]
#[command(name = "simulate", version)]
pub struct Options {
    /// How many runs, with seeds that follow each other
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Run this seed alone, and print its last happenings if it fails
    #[arg(long, conflicts_with = "first_seed")]
    seed: Option<u64>,
    /// How many calls in all runs together; with --sessions, 3 a session unless given
    #[arg(long)]
    calls: Option<u64>,
    /// How many clients a run has; by default 1 to 8, by seed
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    clients: Option<u32>,
    /// Percent of datagrams that are lost
    #[arg(long, default_value_t = 30.0, value_parser = percent)]
    loss: f64,
    /// Percent of datagrams that arrive twice
    #[arg(long, default_value_t = 10.0, value_parser = percent)]
    duplication: f64,
    /// Percent of datagrams that others overtake by up to 0.1 ms, or 3 ms with --crash-every
    #[arg(long, default_value_t = 10.0, value_parser = percent)]
    reordering: f64,
    /// Percent of datagrams that are damaged
    #[arg(long, default_value_t = 1.0, value_parser = percent)]
    corruption: f64,
    /// Let damaged datagrams arrive, which a NIC does not; only safety is judged then
    #[arg(long)]
    damaged_arrive: bool,
    /// After each so many µs of virtual time, crash the server or a client for up to 5 ms, or have
    /// a client leave, up to
    /// 100 times a run; calls may end without their answer then, and none may be executed twice
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(1..))]
    crash_every: Option<u64>,
    /// How many datagrams wait for the server at most
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    ring: u32,
    /// How long the server is busy with a datagram, in ns; 0 takes each at once
    #[arg(long, default_value_t = 0)]
    service: u64,
    /// One run of one server with so many sessions, each of which makes calls
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sessions: Option<u32>,
    /// How many runs at the same time; by default one for each processor
    #[arg(long)]
    threads: Option<usize>,
}

impl Options {
    /// The wires of these options.
    fn faults(&self) -> Faults {
        Faults {
            loss: Chance::percent(self.loss),
            duplication: Chance::percent(self.duplication),
            reordering: Chance::percent(self.reordering),
            corruption: Chance::percent(self.corruption),
            damaged_arrive: self.damaged_arrive,
            ..Faults::NONE
        }
    }

    fn reception(&self) -> Reception {
        Reception {
            ring: self.ring,
            service_ns: self.service,
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("a number from 0 to 100 is wanted".into()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.sessions {
        Some(sessions) => sessions::run(&options, sessions),
        None => sweep::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
