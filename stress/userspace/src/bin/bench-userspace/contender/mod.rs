//! Ways to call from one process to another: each serves in a process of its own, and measures in ours.

mod line;
mod lines;
mod ours;
#[cfg(feature = "others")]
mod rings;
#[cfg(feature = "others")]
mod tokio_rpc;
mod udp;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Bytes of a request and of its reply.
pub const PAYLOAD: usize = 32;

/// One way to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// No call at all: a cache line that goes to and fro, the floor.
    Line,
    /// No calls at all: lines that go to and fro, so many of them under way.
    Lines(usize),
    /// Our calls, so many of them outstanding.
    Ours(usize),
    /// iceoryx2's request-response, a request at a time, polled.
    Iceoryx2,
    /// tarpc over TCP on loopback, so many of them outstanding.
    Tarpc(usize),
    /// A UDP datagram that goes to and fro on loopback.
    Udp,
}

/// What was done in a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Calls that were answered.
    pub calls: u64,
    /// In how long.
    pub elapsed: Duration,
}

impl Measured {
    /// Calls a second.
    pub fn rate(&self) -> f64 {
        self.calls as f64 / self.elapsed.as_secs_f64()
    }
}

impl Contender {
    /// All, in the order of the table.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Line, Self::Lines(64)];
        all.extend([Self::Ours(1), Self::Ours(8), Self::Ours(64)]);
        if cfg!(feature = "others") {
            all.extend([Self::Iceoryx2, Self::Tarpc(1), Self::Tarpc(64)]);
        }
        all.push(Self::Udp);
        all
    }

    /// What it is, for people.
    pub fn name(self) -> String {
        match self {
            Self::Line => "cache line, to and fro".into(),
            Self::Lines(window) => format!("cache lines, {window} under way"),
            Self::Ours(1) => "MITOSIS, one call at a time".into(),
            Self::Ours(window) => format!("MITOSIS, {window} calls outstanding"),
            Self::Iceoryx2 => "iceoryx2 request-response, polled".into(),
            Self::Tarpc(1) => "tarpc over TCP, one call at a time".into(),
            Self::Tarpc(window) => format!("tarpc over TCP, {window} calls outstanding"),
            Self::Udp => "UDP datagram, to and fro".into(),
        }
    }

    /// Its name for its server's process.
    pub fn word(self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Lines(_) => "lines",
            Self::Ours(_) => "ours",
            Self::Iceoryx2 => "iceoryx2",
            Self::Tarpc(_) => "tarpc",
            Self::Udp => "udp",
        }
    }

    /// Serves until standard input is closed. What the caller must know is printed as one line once it can be called.
    pub fn serve(word: &str, dir: &Path) -> Result<()> {
        match word {
            "line" => line::serve(dir),
            "lines" => lines::serve(dir),
            "ours" => ours::serve(dir),
            "udp" => udp::serve(),
            #[cfg(feature = "others")]
            "iceoryx2" => rings::serve(dir),
            #[cfg(feature = "others")]
            "tarpc" => tokio_rpc::serve(),
            other => anyhow::bail!("no server is called {other}"),
        }
    }

    /// Calls the server that said `greeting` for `time`.
    pub fn measure(self, dir: &Path, greeting: &str, time: Duration) -> Result<Measured> {
        match self {
            Self::Line => line::measure(dir, time),
            Self::Lines(window) => lines::measure(dir, window, time),
            Self::Ours(1) => ours::measure_one(dir, time),
            Self::Ours(window) => ours::measure_window(dir, window, time),
            Self::Udp => udp::measure(greeting, time),
            #[cfg(feature = "others")]
            Self::Iceoryx2 => rings::measure(greeting, time),
            #[cfg(feature = "others")]
            Self::Tarpc(window) => tokio_rpc::measure(greeting, window, time),
            #[cfg(not(feature = "others"))]
            Self::Iceoryx2 | Self::Tarpc(_) => anyhow::bail!("built without the feature 'others'"),
        }
    }
}

/// The server can be called.
fn ready(greeting: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{greeting}")?;
    Ok(stdout.flush()?)
}

/// Repeats `batch`, which says how many calls it made, for as long as it takes; the first tenth is not counted.
fn repeat(time: Duration, mut batch: impl FnMut() -> Result<u64>) -> Result<Measured> {
    let warm = Instant::now() + time / 10;
    while Instant::now() < warm {
        batch()?;
    }
    let start = Instant::now();
    let mut calls = 0;
    loop {
        calls += batch()?;
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok(Measured { calls, elapsed });
        }
    }
}
