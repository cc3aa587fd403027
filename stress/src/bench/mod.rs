//! `make bench-rpc`: the RPC beside perftest, on one pair of machines in one run.
//!
//! Machines under emulation are slow and uneven, so the two are measured in turn, round after round, and what counts is
//! the ratio of their medians. perftest sends datagrams of the RPC's size over the same ports: `ib_send_lat -c UD`, whose
//! half round trips are doubled, beside one thread that calls synchronously; `ib_send_bw -c UD`, messages one way of which
//! 128 are under way, beside the peak: threads that each keep a window of calls under way, on as many client machines as
//! asked for. Messages that do not fit a datagram are measured over a reliable connection (`-c RC`).

pub(crate) mod perftest;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use comfy_table::{presets, CellAlignment, Table};
use mitosis_core::wire::HEADER_LEN;
use serde::Serialize;

use self::perftest::{Pair, TIMEOUT};
use crate::cluster::Host;
use crate::progress::Progress;
use crate::report::{ClusterInfo, Report, Verdict};
use crate::run::{inspect, parent_gid};
use crate::settings::Machines;
use crate::stage::{self, Act, Setting, Stage};

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// Settings of the cluster, as for `run`; and the RPC test's parameters.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// How often each row is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Bytes that requests and replies carry: a row each.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 64, 2048, 65536])]
    sizes: Vec<u32>,
    /// Client machines that call at the peak. Round trips, and perftest, are between the server and the first.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// Most that the first row's round trip may be of perftest's.
    #[arg(long, default_value_t = 1.3)]
    bound: f64,
    /// What it is called: results go to out/<target>.
    #[arg(long, default_value = "bench-rpc")]
    target: String,
    /// What runs the RPC.
    #[arg(long, default_value = "templates-run/peak-rpc-kernel-module.toml")]
    template: PathBuf,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// One measurement of a row.
#[derive(Clone, Copy, Serialize)]
struct Round {
    rpc_round_trip_ns: f64,
    perftest_round_trip_ns: f64,
    rpc_requests_per_s: f64,
    perftest_messages_per_s: f64,
}

/// What was measured for one size.
#[derive(Serialize)]
struct Row {
    payload_size: u32,
    rounds: Vec<Round>,
    median: Round,
    round_trip_ratio: f64,
    rate_ratio: f64,
}

/// `out/bench-rpc/result.json`.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    target: &'a str,
    verdict: Verdict,
    cluster: &'a ClusterInfo,
    parameters: &'a BTreeMap<String, u64>,
    rows: &'a [Row],
    round_trip_bound: f64,
}

/// The program.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let mut setting = Setting::read(
        Some(&arguments.target),
        &arguments.assignments,
        &[
            ("client_running_secs", "3"),
            ("server_running_secs", "60"),
            ("thread_count", "8"),
            ("window", "8"),
        ],
        &arguments.template,
        &arguments.out,
    )?;
    if let Machines::Virtual(machines) = &mut setting.settings.machines {
        machines.clients = arguments.clients;
        machines.debug.get_or_insert(false);
    }
    let (cluster, rows) = stage::on(&setting, |stage| {
        Bench {
            stage,
            setting: &setting,
            arguments,
            cluster: ClusterInfo::default(),
        }
        .measure()
    })?;
    conclude(&setting, arguments.bound, &cluster, &rows)
}

struct Bench<'a> {
    stage: &'a Stage<'a>,
    setting: &'a Setting,
    arguments: &'a Arguments,
    cluster: ClusterInfo,
}

impl Bench<'_> {
    fn measure(mut self) -> Result<(ClusterInfo, Vec<Row>)> {
        let [parent, child, ..] = self.stage.hosts() else {
            bail!("a comparison takes two machines");
        };
        let interrupt = self.stage.interrupt();
        let hosts = [parent.clone(), child.clone()];
        let inspected = [
            inspect(parent, TIMEOUT, interrupt)?,
            inspect(child, TIMEOUT, interrupt)?,
        ];
        let pair = Pair {
            hosts: &hosts,
            inspected: &inspected,
            gid: parent_gid(&hosts, &inspected, self.setting.settings.parent_gid)?,
            interrupt,
        };
        let mut rows: Vec<Row> = Vec::new();
        for number in 0..self.arguments.rounds {
            for (index, &size) in self.arguments.sizes.iter().enumerate() {
                self.setting.progress.step(&format!(
                    "round {} of {}, {size} bytes",
                    number + 1,
                    self.arguments.rounds
                ));
                // Whichever comes first may find the machine in another mood: they take turns at that too.
                let round = self.round(&pair, size, number % 2 == 0)?;
                if rows.len() <= index {
                    rows.push(Row {
                        payload_size: size,
                        rounds: Vec::new(),
                        median: round,
                        round_trip_ratio: 0.0,
                        rate_ratio: 0.0,
                    });
                }
                rows[index].rounds.push(round);
            }
        }
        for row in &mut rows {
            row.conclude();
        }
        Ok((self.cluster, rows))
    }

    fn round(&mut self, pair: &Pair<'_>, size: u32, perftest_first: bool) -> Result<Round> {
        let datagram_len = size + HEADER_LEN as u32;
        // The RPC's own header is in the datagram; a reliable connection has none.
        let len = if datagram_len > 4096 {
            size
        } else {
            datagram_len
        };
        let floor =
            || Ok::<_, anyhow::Error>((pair.round_trip_ns(len)?, pair.messages_per_s(len)?));
        let before = if perftest_first { Some(floor()?) } else { None };
        let one = self.run(pair.hosts, size, Some(1))?;
        let latency = one
            .totals
            .latency_ns()
            .context("the RPC's run measured no latency")?;
        let peak = self.run(self.stage.hosts(), size, None)?;
        let (perftest_round_trip_ns, perftest_messages_per_s) = match before {
            Some(before) => before,
            None => floor()?,
        };
        let round = Round {
            rpc_round_trip_ns: latency.p50 as f64,
            perftest_round_trip_ns,
            rpc_requests_per_s: peak.totals.done_per_s(),
            perftest_messages_per_s,
        };
        self.cluster = peak.cluster;
        Ok(round)
    }

    /// The RPC test with this payload, and with as many threads as asked for, or as its parameters say.
    fn run(&self, hosts: &[Host], size: u32, threads: Option<u64>) -> Result<Report> {
        let mut parameters = self.setting.parameters.clone();
        parameters.insert("payload_size".into(), u64::from(size));
        if let Some(threads) = threads {
            parameters.insert("thread_count".into(), threads);
            parameters.remove("window");
        }
        let quiet = Progress::silent();
        let report = self.stage.perform(&Act {
            target: &self.setting.target,
            hosts,
            passes: &self.setting.template.passes,
            parameters: &parameters,
            out: &self.setting.out,
            progress: &quiet,
        });
        self.stage.interrupt().check()?;
        match report.findings.first() {
            None => Ok(report),
            Some(finding) => bail!(
                "the RPC's run failed: {}: {}",
                finding.host,
                finding.line.trim()
            ),
        }
    }
}

impl Row {
    fn conclude(&mut self) {
        let of = |figure: fn(&Round) -> f64| median(self.rounds.iter().map(figure));
        self.median = Round {
            rpc_round_trip_ns: of(|round| round.rpc_round_trip_ns),
            perftest_round_trip_ns: of(|round| round.perftest_round_trip_ns),
            rpc_requests_per_s: of(|round| round.rpc_requests_per_s),
            perftest_messages_per_s: of(|round| round.perftest_messages_per_s),
        };
        self.round_trip_ratio = self.median.rpc_round_trip_ns / self.median.perftest_round_trip_ns;
        self.rate_ratio = self.median.rpc_requests_per_s / self.median.perftest_messages_per_s;
    }
}

/// The middle value, or the mean of the two middle ones; `NaN` of none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 0 => (values[half - 1] + values[half]) / 2.0,
        _ => values[half],
    }
}

fn conclude(setting: &Setting, bound: f64, cluster: &ClusterInfo, rows: &[Row]) -> Result<Verdict> {
    // The bound is for the shortest message of the run: longer ones are shown.
    let verdict = match rows.first() {
        Some(row) if row.round_trip_ratio <= bound => Verdict::Pass,
        _ => Verdict::Fail,
    };
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header([
        "payload, bytes",
        "round trip, µs",
        "perftest, µs",
        "ratio",
        "lowest to highest",
        "requests/s",
        "perftest, messages/s",
        "ratio",
    ]);
    for row in rows {
        let ratios = row
            .rounds
            .iter()
            .map(|round| round.rpc_round_trip_ns / round.perftest_round_trip_ns);
        let (low, high) = ratios.fold((f64::MAX, 0.0f64), |(low, high), ratio| {
            (low.min(ratio), high.max(ratio))
        });
        table.add_row([
            row.payload_size.to_string(),
            format!("{:.1}", row.median.rpc_round_trip_ns / 1_000.0),
            format!("{:.1}", row.median.perftest_round_trip_ns / 1_000.0),
            format!("{:.2}", row.round_trip_ratio),
            format!("{low:.2} to {high:.2}"),
            format!("{:.0}", row.median.rpc_requests_per_s),
            format!("{:.0}", row.median.perftest_messages_per_s),
            format!("{:.2}", row.rate_ratio),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}");
    println!(
        "medians of {} rounds; the first row's round trip may be at most {bound} times perftest's",
        rows.first().map_or(0, |row| row.rounds.len())
    );
    let document = Document {
        schema: "mitosis-bench-rpc/2",
        target: &setting.target,
        verdict,
        cluster,
        parameters: &setting.parameters,
        rows,
        round_trip_bound: bound,
    };
    let directory = setting.directory();
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join("result.json");
    let json = serde_json::to_string_pretty(&document).context("cannot write JSON")?;
    std::fs::write(&path, json + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }
}
