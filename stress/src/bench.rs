//! `make bench-rpc`: the empty RPC's round trip beside perftest's, on one pair of machines in one run.
//!
//! Machines under emulation are slow and uneven, so the two are measured in turn, round after round, and what counts is
//! the ratio of their medians. perftest's `ib_send_lat -c UD` sends datagrams of the RPC's size over the same ports; it
//! prints half round trips, which are doubled here.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use comfy_table::{presets, CellAlignment, Table};
use mitosis_core::wire::HEADER_LEN;
use serde::Serialize;

use crate::cluster::shell::{quote, Limit};
use crate::cluster::Host;
use crate::interrupt::Interrupt;
use crate::parameters;
use crate::progress::Progress;
use crate::report::{ClusterInfo, Verdict};
use crate::run::{inspect, parent_gid, Inspected};
use crate::settings::{Assignments, Gid, Machines};
use crate::stage::{self, Act, Setting, Stage};
use crate::template::{RunPass, Template};

/// Most that the RPC's round trip may be of perftest's.
const BOUND: f64 = 1.3;
/// perftest's round trips a round.
const ITERATIONS: u32 = 3_000;
/// For perftest to listen, and for a round of it.
const PERFTEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Where perftest's two ends meet over TCP.
const PERFTEST_PORT: u16 = 18515;
const TARGET: &str = "bench-rpc";

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// Settings of the cluster, as for `run`; and the RPC test's parameters, of which thread_count is always 1.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// How often each of the two is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// What runs the RPC.
    #[arg(long, default_value = "templates-run/peak-rpc-kernel-module.toml")]
    template: PathBuf,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// Medians of one round, in nanoseconds a round trip.
#[derive(Clone, Copy, Serialize)]
struct Round {
    rpc_ns: f64,
    perftest_ns: f64,
}

/// `out/bench-rpc/result.json`.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    target: &'static str,
    verdict: Verdict,
    cluster: &'a ClusterInfo,
    rounds: &'a [Round],
    rpc_ns: f64,
    perftest_ns: f64,
    ratio: f64,
    bound: f64,
}

/// The program.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let mut assignments = Assignments::parse(&arguments.assignments)?;
    let given = |name: &str| assignments.parameters.iter().any(|(n, _)| n == name);
    let defaults = [("client_running_secs", "4"), ("server_running_secs", "60")];
    let defaults = defaults.into_iter().filter(|(name, _)| !given(name));
    let defaults: Vec<(String, String)> = defaults
        .chain([("thread_count", "1")])
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    assignments.parameters.extend(defaults);
    let mut settings = assignments.settings()?;
    if let Machines::Virtual(machines) = &mut settings.machines {
        machines.clients = 1;
    }
    let template = Template::<RunPass>::load(&arguments.template)?;
    let parameters = parameters::resolve(
        &template.path,
        &template.parameters,
        &assignments.parameters,
    )?;
    let directory = arguments.out.join(TARGET);
    let progress = Progress::new();
    let setting = Setting {
        settings: &settings,
        template: &template,
        out: &arguments.out,
        directory: &directory,
        progress: &progress,
    };
    let measured = stage::on(&setting, |stage| {
        measure(
            stage,
            &template,
            &parameters,
            settings.parent_gid,
            arguments,
            &progress,
        )
    });
    progress.finish();
    let (cluster, rounds) = measured?;
    conclude(&directory, &cluster, &rounds)
}

fn measure(
    stage: &Stage<'_>,
    template: &Template<RunPass>,
    parameters: &BTreeMap<String, u64>,
    given: Option<Gid>,
    arguments: &Arguments,
    progress: &Progress,
) -> Result<(ClusterInfo, Vec<Round>)> {
    let [parent, child, ..] = stage.hosts() else {
        bail!("a comparison takes two machines");
    };
    let pair = [parent.clone(), child.clone()];
    let inspected = [
        inspect(parent, PERFTEST_TIMEOUT, stage.interrupt())?,
        inspect(child, PERFTEST_TIMEOUT, stage.interrupt())?,
    ];
    let gid = parent_gid(&pair, &inspected, given)?;
    let mut cluster = ClusterInfo::default();
    let mut rounds = Vec::new();
    let quiet = Progress::silent();
    for number in 1..=arguments.rounds {
        progress.step(&format!("round {number} of {}", arguments.rounds));
        let perftest = || perftest(&pair, &inspected, gid, stage.interrupt());
        // Whichever comes first may find the machine in another mood: they take turns at that too.
        let before = if number % 2 == 1 {
            Some(perftest()?)
        } else {
            None
        };
        let report = stage.perform(&Act {
            target: TARGET,
            hosts: &pair,
            passes: &template.passes,
            parameters,
            out: &arguments.out,
            progress: &quiet,
        });
        stage.interrupt().check()?;
        if let Some(finding) = report.findings.first() {
            bail!(
                "the RPC's run failed: {}: {}",
                finding.host,
                finding.line.trim()
            );
        }
        let latency = report
            .totals
            .latency_ns
            .context("the RPC's run measured no latency")?;
        let perftest_ns = match before {
            Some(before) => before,
            None => perftest()?,
        };
        cluster = report.cluster;
        rounds.push(Round {
            rpc_ns: latency.p50 as f64,
            perftest_ns,
        });
    }
    Ok((cluster, rounds))
}

/// The median round trip of `ib_send_lat -c UD` from the second host to the first, in nanoseconds.
fn perftest(
    pair: &[Host; 2],
    inspected: &[Inspected; 2],
    gid: Gid,
    interrupt: &Interrupt,
) -> Result<f64> {
    let [server, client] = pair;
    let command = |inspected: &Inspected| -> Result<String> {
        let port = inspected
            .ports
            .iter()
            .find(|port| port.gids.contains(&gid))
            .or(inspected.ports.first())
            .context("no active RDMA port")?;
        let index = port.gids.iter().position(|own| *own == gid).unwrap_or(0);
        let ethernet = if port.mtu.is_some() {
            format!(" -x {index}")
        } else {
            String::new()
        };
        Ok(format!(
            "timeout 60 ib_send_lat -F -c UD -d {}{ethernet} -s {HEADER_LEN} -n {ITERATIONS}",
            quote(&port.device)
        ))
    };
    let listening = Listening::start(server, &command(&inspected[0])?, interrupt)?;
    let limit = Limit {
        timeout: PERFTEST_TIMEOUT,
        interrupt: Some(interrupt),
    };
    let script = format!("{} {}", command(&inspected[1])?, quote(&server.address));
    let printed = client.run(&script, limit)?;
    drop(listening);
    let half_us = typical_us(&printed).with_context(|| {
        format!(
            "{}: ib_send_lat printed no latency:\n{printed}",
            client.name
        )
    })?;
    Ok(half_us * 2.0 * 1_000.0)
}

/// perftest's listening side, which ends with the exchange; killed when dropped.
struct Listening {
    child: Child,
}

impl Listening {
    /// Returns once it listens: perftest says so too late on a pipe, so its TCP port is looked for.
    fn start(host: &Host, command: &str, interrupt: &Interrupt) -> Result<Self> {
        let child = host
            .command(command)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{}: cannot start ssh", host.name))?;
        let listening = Self { child };
        let script = format!(
            "i=0; until grep -q ':{PERFTEST_PORT:04X} [0-9A-F]*:0000 0A' /proc/net/tcp /proc/net/tcp6; do \
             i=$((i+1)); [ $i -lt 200 ] || exit 1; sleep 0.1; done"
        );
        let limit = Limit {
            timeout: PERFTEST_TIMEOUT,
            interrupt: Some(interrupt),
        };
        host.run(&script, limit).with_context(|| {
            format!(
                "{}: `{command}` does not listen; is perftest installed there?",
                host.name
            )
        })?;
        Ok(listening)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `t_typical[usec]` of perftest's table: the fifth number of its only line of numbers.
fn typical_us(printed: &str) -> Option<f64> {
    let numbers = |line: &str| -> Option<Vec<f64>> {
        let numbers: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
        numbers.ok().filter(|numbers| numbers.len() >= 5)
    };
    printed
        .lines()
        .find_map(numbers)
        .and_then(|numbers| numbers.get(4).copied())
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

fn conclude(directory: &Path, cluster: &ClusterInfo, rounds: &[Round]) -> Result<Verdict> {
    let rpc_ns = median(rounds.iter().map(|round| round.rpc_ns));
    let perftest_ns = median(rounds.iter().map(|round| round.perftest_ns));
    let ratio = rpc_ns / perftest_ns;
    let verdict = if ratio <= BOUND {
        Verdict::Pass
    } else {
        Verdict::Fail
    };
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(["round", "empty RPC, µs", "ib_send_lat × 2, µs", "ratio"]);
    let mut row = |name: String, rpc_ns: f64, perftest_ns: f64| {
        table.add_row([
            name,
            format!("{:.1}", rpc_ns / 1_000.0),
            format!("{:.1}", perftest_ns / 1_000.0),
            format!("{:.2}", rpc_ns / perftest_ns),
        ]);
    };
    for (index, round) in rounds.iter().enumerate() {
        row((index + 1).to_string(), round.rpc_ns, round.perftest_ns);
    }
    row("median".into(), rpc_ns, perftest_ns);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}");
    println!(
        "ratio of the medians: {ratio:.2} (at most {BOUND}); datagrams of {HEADER_LEN} bytes, one thread"
    );
    let document = Document {
        schema: "mitosis-bench-rpc/1",
        target: TARGET,
        verdict,
        cluster,
        rounds,
        rpc_ns,
        perftest_ns,
        ratio,
        bound: BOUND,
    };
    std::fs::create_dir_all(directory)
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
    fn the_typical_latency_is_read_off_perftests_table() {
        let printed = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]\n \
             40      2000          189.59         5491.93      230.56   \t       439.96      \t641.45 \t\t3489.51\n";
        assert_eq!(typical_us(printed), Some(230.56));
        assert_eq!(typical_us("Couldn't connect to 10.73.0.1:18515\n"), None);
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }
}
