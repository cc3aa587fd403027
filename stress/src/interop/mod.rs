//! `make interop`: processes and kernel modules call each other, on one cluster, with a checksum in every message; and
//! processes read each other's memory.
//!
//! Each scenario is a run of a template (`templates-run/interop-*.toml`), with its findings. After them come the
//! [`refusals`].

mod refusals;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use comfy_table::{presets, CellAlignment, Table};
use serde::Serialize;

use crate::klog::audit::Finding;
use crate::parameters;
use crate::report::{ClusterInfo, Figures, Report, Requests, Verdict};
use crate::settings::Assignments;
use crate::stage::{self, Act, Setting, Stage};
use crate::template::{RunPass, Template};

const TARGET: &str = "interop";
/// Where the consoles are, in `out/interop`.
const RUN: &str = "run";

/// A scenario: its name, its template, and the parameters that are not the template's own.
struct Scenario {
    name: &'static str,
    template: &'static str,
    parameters: &'static [(&'static str, u64)],
}

const TO_KERNEL: &str = "templates-run/interop-process-to-kernel.toml";
const TO_PROCESS: &str = "templates-run/interop-kernel-to-process.toml";

/// Messages of a single datagram, and such as take many.
const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "process to kernel, 2 KiB",
        template: TO_KERNEL,
        parameters: &[],
    },
    Scenario {
        name: "kernel to process, 2 KiB",
        template: TO_PROCESS,
        parameters: &[],
    },
    Scenario {
        name: "process to kernel, 100,000 bytes",
        template: TO_KERNEL,
        parameters: &[("payload_size", 100_000)],
    },
    Scenario {
        name: "kernel to process, 100,000 bytes",
        template: TO_PROCESS,
        parameters: &[("payload_size", 100_000)],
    },
    Scenario {
        name: "remote memory",
        template: "templates-run/interop-remote-memory.toml",
        parameters: &[],
    },
];

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// Settings of the cluster, as for `run`; and parameters that all the templates have.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// Only the scenarios with these words in their names.
    #[arg(long)]
    only: Option<String>,
    /// Calls for 2 seconds only.
    #[arg(long)]
    short: bool,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// A row of `out/interop/result.json`.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    verdict: Verdict,
    seconds: f64,
    #[serde(flatten)]
    figures: Figures,
    findings: Vec<Finding>,
}

/// `out/interop/result.json`.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    target: &'static str,
    verdict: Verdict,
    seconds: f64,
    cluster: &'a ClusterInfo,
    rows: &'a [Row],
}

/// The program.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let started = Instant::now();
    // Modules with checksums, whatever other runs load.
    let out = arguments.out.join(TARGET);
    let _ = std::fs::remove_file(out.join("result.json"));
    let template = Path::new(TO_KERNEL);
    let setting = Setting::read(Some(RUN), &arguments.assignments, &[], template, &out)?;
    let (cluster, rows) = stage::on(&setting, |stage| perform(stage, arguments, &setting))?;
    conclude(&out, &cluster, &rows, started)
}

fn perform(
    stage: &Stage<'_>,
    arguments: &Arguments,
    setting: &Setting,
) -> Result<(ClusterInfo, Vec<Row>)> {
    let assignments = Assignments::parse(&arguments.assignments)?;
    let progress = &setting.progress;
    let mut rows = Vec::new();
    let mut cluster = ClusterInfo::default();
    for scenario in SCENARIOS {
        let only = arguments.only.as_deref();
        if only.is_some_and(|words| !scenario.name.contains(words)) {
            continue;
        }
        progress.line(&format!("# {}", scenario.name));
        let template = Template::<RunPass>::load(Path::new(scenario.template))?;
        let mut parameters = parameters::of(&template, &assignments)?;
        for &(name, value) in scenario.parameters {
            parameters.insert(name.into(), value);
        }
        if arguments.short {
            parameters.insert("client_running_secs".into(), 2);
        }
        let report = stage.perform(&Act {
            target: RUN,
            hosts: stage.hosts(),
            passes: &template.passes,
            parameters: &parameters,
            out: &setting.out,
            progress,
        });
        stage.interrupt().check()?;
        cluster = report.cluster.clone();
        rows.push(Row::of(scenario.name, report));
    }
    if stage.accel().is_some() {
        rows.extend(refused(stage, arguments, setting)?);
    }
    Ok((cluster, rows))
}

/// On virtual machines only: devices and rights are taken away.
fn refused(stage: &Stage<'_>, arguments: &Arguments, setting: &Setting) -> Result<Vec<Row>> {
    let only = arguments.only.as_deref();
    let mut rows = Vec::new();
    refusals::prepare(stage, setting)?;
    for refusal in refusals::REFUSALS {
        if only.is_some_and(|words| !refusal.name.contains(words)) {
            continue;
        }
        setting.progress.line(&format!("# {}", refusal.name));
        let began = Instant::now();
        let findings = refusals::findings(stage, refusal)?;
        stage.interrupt().check()?;
        rows.push(Row {
            name: refusal.name,
            verdict: Verdict::of(&findings),
            seconds: began.elapsed().as_secs_f64(),
            figures: Figures::Requests(Requests::default()),
            findings,
        });
    }
    Ok(rows)
}

impl Row {
    fn of(name: &'static str, report: Report) -> Self {
        Self {
            name,
            verdict: report.verdict(),
            seconds: report.seconds,
            figures: report.totals,
            findings: report.findings,
        }
    }
}

fn conclude(
    directory: &Path,
    cluster: &ClusterInfo,
    rows: &[Row],
    started: Instant,
) -> Result<Verdict> {
    let failed = rows.is_empty() || rows.iter().any(|row| row.verdict == Verdict::Fail);
    let verdict = if failed { Verdict::Fail } else { Verdict::Pass };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "scenario",
        "requests",
        "requests/s",
        "p50 µs",
        "errors",
        "verdict",
    ]);
    for row in rows {
        let (requests, per_s) = match &row.figures {
            Figures::Requests(figures) => (figures.requests, figures.requests_per_s),
            Figures::Containers(_) => (0, 0),
        };
        let p50 = row.figures.latency_ns().map_or("-".into(), |latency| {
            format!("{:.1}", latency.p50 as f64 / 1e3)
        });
        let word = match row.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
        };
        table.add_row([
            row.name.to_string(),
            requests.to_string(),
            per_s.to_string(),
            p50,
            row.figures.errors().to_string(),
            word.to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("\n{table}");
    for row in rows {
        for finding in &row.findings {
            println!("{}: {}: {}", row.name, finding.host, finding.line.trim());
        }
    }
    let document = Document {
        schema: "mitosis-interop/1",
        target: TARGET,
        verdict,
        seconds: started.elapsed().as_secs_f64(),
        cluster,
        rows,
    };
    let path = directory.join("result.json");
    let json = serde_json::to_string_pretty(&document).context("cannot write JSON")?;
    std::fs::write(&path, json + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(verdict)
}
