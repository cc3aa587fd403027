//! `make bench-rpc`: the RPC beside perftest, on one pair of machines in one run.
//!
//! Machines under emulation are slow and uneven, so the two are measured in turn, round after round, and what counts is
//! the ratio of their medians. Round trips are measured several times a round, for a second each, as one median of a long
//! run tells nothing of the machine's next mood. perftest sends datagrams of the RPC's size over the same ports: `ib_send_lat -c UD`, whose
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

use self::perftest::{Pair, MAX_DATAGRAM, TIMEOUT};
use crate::cluster::Host;
use crate::progress::Progress;
use crate::report::{ClusterInfo, Report, Verdict};
use crate::run::{inspect, parent_gid};
use crate::settings::{Machines, MemoryDebugging};
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
    /// How often in a round round trips are measured, for a second each, in turn with perftest's.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    turns: u32,
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

/// The RPC's figure, and perftest's beside it.
#[derive(Clone, Copy, Serialize)]
struct Beside {
    rpc: f64,
    perftest: f64,
}

/// What was measured for one size.
#[derive(Default)]
struct Measured {
    round_trips_ns: Vec<Beside>,
    rates_per_s: Vec<Beside>,
}

/// What is told of one size.
#[derive(Serialize)]
struct Row {
    payload_size: u32,
    /// One of each turn.
    round_trips_ns: Vec<Beside>,
    round_trip_median_ns: Beside,
    round_trip_ratio: f64,
    /// Requests, and perftest's messages: one of each round.
    rates_per_s: Vec<Beside>,
    rate_median_per_s: Beside,
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
        machines.debugging.get_or_insert(MemoryDebugging::Off);
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
        let mut measured: Vec<Measured> = Vec::new();
        measured.resize_with(self.arguments.sizes.len(), Measured::default);
        for number in 0..self.arguments.rounds {
            for (measured, &size) in measured.iter_mut().zip(&self.arguments.sizes) {
                self.setting.progress.step(&format!(
                    "round {} of {}, {size} bytes",
                    number + 1,
                    self.arguments.rounds
                ));
                self.round(&pair, size, number, measured)?;
            }
        }
        let rows = self.arguments.sizes.iter().zip(measured);
        let rows = rows.map(|(&size, measured)| Row::of(size, measured));
        let rows = rows.collect();
        Ok((self.cluster, rows))
    }

    fn round(
        &mut self,
        pair: &Pair<'_>,
        size: u32,
        number: u32,
        measured: &mut Measured,
    ) -> Result<()> {
        let datagram_len = size + HEADER_LEN as u32;
        // The RPC's own header is in the datagram; a reliable connection has none.
        let len = if datagram_len > MAX_DATAGRAM {
            size
        } else {
            datagram_len
        };
        for turn in 0..self.arguments.turns {
            let last = measured.round_trips_ns.last().map(|last| last.perftest);
            let beside = in_turn(
                (number + turn) % 2 == 0,
                || self.round_trip_ns(pair.hosts, size),
                || pair.round_trip_ns(len, last),
            )?;
            measured.round_trips_ns.push(beside);
        }
        let mut cluster = None;
        let beside = in_turn(
            number % 2 == 0,
            || {
                let report = self.run(self.stage.hosts(), size, &[])?;
                let rate = report.totals.done_per_s();
                cluster = Some(report.cluster);
                Ok(rate)
            },
            || pair.messages_per_s(len),
        )?;
        measured.rates_per_s.push(beside);
        self.cluster = cluster.context("the RPC's run says nothing of its machines")?;
        Ok(())
    }

    /// The median round trip of one thread that calls for a second, one call at a time.
    fn round_trip_ns(&self, hosts: &[Host], size: u32) -> Result<f64> {
        let one = [
            ("thread_count", Some(1)),
            ("window", None),
            ("client_running_secs", Some(1)),
        ];
        let latency = self.run(hosts, size, &one)?.totals.latency_ns();
        Ok(latency.context("the RPC's run measured no latency")?.p50 as f64)
    }

    /// The RPC test with this payload, and with other values of some parameters, or without them.
    fn run(&self, hosts: &[Host], size: u32, others: &[(&str, Option<u64>)]) -> Result<Report> {
        let mut parameters = self.setting.parameters.clone();
        parameters.insert("payload_size".into(), u64::from(size));
        for &(name, value) in others {
            match value {
                Some(value) => parameters.insert(name.into(), value),
                None => parameters.remove(name),
            };
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

/// Both measurements. Whichever comes first may find the machine in another mood: they take turns at that.
fn in_turn(
    perftest_first: bool,
    rpc: impl FnOnce() -> Result<f64>,
    perftest: impl FnOnce() -> Result<f64>,
) -> Result<Beside> {
    let (rpc, perftest) = if perftest_first {
        let perftest = perftest()?;
        (rpc()?, perftest)
    } else {
        (rpc()?, perftest()?)
    };
    Ok(Beside { rpc, perftest })
}

impl Beside {
    fn ratio(self) -> f64 {
        self.rpc / self.perftest
    }

    /// The median of either.
    fn median(measured: &[Self]) -> Self {
        Self {
            rpc: median(measured.iter().map(|beside| beside.rpc)),
            perftest: median(measured.iter().map(|beside| beside.perftest)),
        }
    }
}

impl Row {
    fn of(payload_size: u32, measured: Measured) -> Self {
        let round_trip_median_ns = Beside::median(&measured.round_trips_ns);
        let rate_median_per_s = Beside::median(&measured.rates_per_s);
        Self {
            payload_size,
            round_trips_ns: measured.round_trips_ns,
            round_trip_median_ns,
            round_trip_ratio: round_trip_median_ns.ratio(),
            rates_per_s: measured.rates_per_s,
            rate_median_per_s,
            rate_ratio: rate_median_per_s.ratio(),
        }
    }

    /// What the table says.
    fn cells(&self) -> [String; 8] {
        let ratios = self.round_trips_ns.iter().map(|beside| beside.ratio());
        let (low, high) = ratios.fold((f64::MAX, 0.0f64), |(low, high), ratio| {
            (low.min(ratio), high.max(ratio))
        });
        [
            self.payload_size.to_string(),
            format!("{:.1}", self.round_trip_median_ns.rpc / 1_000.0),
            format!("{:.1}", self.round_trip_median_ns.perftest / 1_000.0),
            format!("{:.2}", self.round_trip_ratio),
            format!("{low:.2} to {high:.2}"),
            format!("{:.0}", self.rate_median_per_s.rpc),
            format!("{:.0}", self.rate_median_per_s.perftest),
            format!("{:.2}", self.rate_ratio),
        ]
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
        table.add_row(row.cells());
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}");
    println!(
        "medians of {} round trips of a second each and of {} rates; the first row's round trip may be at most {bound} times \
         perftest's",
        rows.first().map_or(0, |row| row.round_trips_ns.len()),
        rows.first().map_or(0, |row| row.rates_per_s.len())
    );
    let document = Document {
        schema: "mitosis-bench-rpc/3",
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

    #[test]
    fn a_row_tells_the_medians_ratio_and_the_turns_extremes() {
        let beside = |(rpc, perftest)| Beside { rpc, perftest };
        let row = Row::of(
            64,
            Measured {
                round_trips_ns: [(2e6, 1e6), (1e6, 4e6), (3e6, 2e6)].map(beside).to_vec(),
                rates_per_s: [(10.0, 40.0)].map(beside).to_vec(),
            },
        );
        let cells = row.cells();
        let cells = cells.each_ref().map(String::as_str);
        let told = [
            "64",
            "2000.0",
            "2000.0",
            "1.00",
            "0.25 to 2.00",
            "10",
            "40",
            "0.25",
        ];
        assert_eq!(cells, told);
    }
}
