//! `make attack`: the modules between callers, parameters and a kernel that mean them ill.
//!
//! All scenarios take place on one virtual cluster of two machines, one after another; a flood of datagrams is one of
//! `make faults`. Each passes only if no kernel log has anything to find but what it provokes, honest work succeeds
//! afterwards without anything being loaded anew that the scenario itself did not end, and the machines have the RDMA resources
//! that they had before. [`parameters`] gives modules what they must refuse, [`calls`] makes a million bad calls on
//! `/dev/mitosis`, [`allocations`] lets the kernel be out of memory, one allocation at a time.

mod allocations;
mod calls;
mod parameters;
mod sample;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde::Serialize;

use crate::build;
use crate::cluster::shell::quote;
use crate::cluster::vm;
use crate::forks::{walker, Site};
use crate::klog::watch::{Patience, Watch};
use crate::modules::Module;
use crate::programs;
use crate::refusal::Refusal;
use crate::report::Verdict;
use crate::scenario::{self, Outcome, Scenario};
use crate::scene::{watched, STEP};
use crate::settings::Machines;
use crate::stage::{self, Setting, Stage};

const TARGET: &str = "attack";
/// The modules that a user inserts.
const SERVER: &str = "mitosis_rpc_server";
const CLIENT: &str = "mitosis_rpc_client";
const FLOOD: &str = "mitosis_rpc_flood";
const FORK: &str = "mitosis";
/// `stress/userspace/src/bin/hostile-calls`
const HOSTILE: &str = "hostile-calls";
/// The machines.
const NEAR: usize = 0;
const FAR: usize = 1;
/// What makes modules whose allocations fail when they are told to, and what their files are called on a host.
const FAILING: &str = "templates-build/template-build-failing.toml";
const FAILING_PREFIX: &str = "failing-";

/// How the names of scenarios begin that need those modules.
const ALLOCATIONS: &str = "allocations fail";

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// Settings of the cluster, as for `run`.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// Fewer calls, and only some of the allocations.
    #[arg(long)]
    short: bool,
    /// Only the scenarios whose name has one of these in it.
    #[arg(long, value_delimiter = ',', default_value = "")]
    only: Vec<String>,
    /// How many bad calls are made: 1,000,000, and 20,000 with --short.
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..))]
    calls: Option<u64>,
    /// The same makes the same calls, in some order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What makes module and programs.
    #[arg(long, default_value = "templates-run/peak-lean-container.toml")]
    template: PathBuf,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

impl Arguments {
    /// Whether a scenario of this name is to be played.
    fn choose(&self, name: &str) -> bool {
        self.only.iter().any(|text| name.contains(text))
    }

    fn calls(&self) -> u64 {
        self.calls
            .unwrap_or(if self.short { 20_000 } else { 1_000_000 })
    }

    /// How many allocations fail in a scenario, at most.
    fn allocations(&self) -> u64 {
        if self.short {
            8
        } else {
            60
        }
    }
}

/// A row of `result.json`; `null` where a scenario has nothing of the kind.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    scenario: Scenario,
    /// Wrong values of parameters that were refused, and values at the edge that were taken.
    refused: Option<u64>,
    taken: Option<u64>,
    /// Bad calls.
    calls: Option<u64>,
    /// Honest children whose memory was right.
    verified: Option<u64>,
    allocations: Option<allocations::Figures>,
}

impl Outcome for Row {
    fn scenario(&self) -> &Scenario {
        &self.scenario
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut figures = Vec::new();
        let counts = [
            ("values refused", self.refused),
            ("taken", self.taken),
            ("bad calls", self.calls),
            ("honest children verified", self.verified),
        ];
        for (name, count) in counts {
            figures.extend(count.map(|count| format!("{name} {count}")));
        }
        if let Some(allocations) = &self.allocations {
            figures.push(allocations.to_string());
        }
        self.scenario.write(f, &figures.join(", "))
    }
}

type Body<'s> = fn(&Attack<'s>, &mut Watch<'_>, &mut Row) -> Result<()>;

/// Name, what is expected of kernel logs besides, and what happens.
struct Plan<'s> {
    name: &'static str,
    expected: &'static [&'static str],
    body: Body<'s>,
}

/// What a module says itself about what it refuses or lacks.
const COMPLAINTS: &[&str] = &["[ERROR]", "' invalid for parameter `"];

/// What soft-RoCE says, as an error, of a READ of a seed that was ended meanwhile.
const DEVICE: &[&str] = &["make_send_cqe: non-flush error status"];

fn plans<'s>() -> Vec<Plan<'s>> {
    let plan = |name, expected, body: Body<'s>| Plan {
        name,
        expected,
        body,
    };
    vec![
        plan(
            "module parameters out of range",
            COMPLAINTS,
            Attack::parameters,
        ),
        plan("bad calls on /dev/mitosis", DEVICE, Attack::calls),
        plan(
            "allocations fail: a server is inserted",
            COMPLAINTS,
            Attack::server_without_memory,
        ),
        plan(
            "allocations fail: a client connects",
            COMPLAINTS,
            Attack::client_without_memory,
        ),
        plan(
            "allocations fail: a server serves",
            COMPLAINTS,
            Attack::serving_without_memory,
        ),
        plan(
            "allocations fail: mitosis is inserted",
            COMPLAINTS,
            Attack::fork_without_memory,
        ),
        plan(
            "allocations fail: prepare and resume",
            COMPLAINTS,
            Attack::forking_without_memory,
        ),
    ]
}

/// The program.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let started = Instant::now();
    let mut setting = Setting::read(
        Some(TARGET),
        &arguments.assignments,
        &[],
        &arguments.template,
        &arguments.out,
    )?;
    let Machines::Virtual(machines) = &mut setting.settings.machines else {
        bail!(Refusal::of(
            "the attacks are not for machines that somebody needs: they run on the virtual cluster only"
        ));
    };
    machines.clients = 1;
    setting.forget_result();
    let failing = setting.directory().join("failing");
    let fail = |name: &str| name.starts_with(ALLOCATIONS) && arguments.choose(name);
    let failing = plans()
        .iter()
        .any(|plan| fail(plan.name))
        .then_some(failing);
    if let (false, Some(failing)) = (vm::inside_namespace(), &failing) {
        // Only here: compilers may want the network.
        let kernels = build::kernels(&setting.settings)?;
        let path = Path::new(FAILING);
        build::update(path, None, &kernels, &setting.settings, failing)?;
    }
    let (cluster, rows) = stage::on(&setting, |stage| {
        let site = Site::new(stage, &setting)?;
        let mut attack = Attack {
            resources: stage.resources()?,
            site,
            arguments,
            rows: Vec::new(),
        };
        attack.equip(failing.as_deref())?;
        for plan in plans() {
            if arguments.choose(plan.name) {
                attack.play(&plan)?;
            }
        }
        Ok((attack.site.cluster, attack.rows))
    })?;
    scenario::conclude("mitosis-attack/1", &setting, &cluster, started, &rows)
}

struct Attack<'a> {
    site: Site<'a>,
    arguments: &'a Arguments,
    /// The machines' RDMA resources while nothing is loaded.
    resources: String,
    rows: Vec<Row>,
}

impl<'a> Attack<'a> {
    /// Puts all modules onto both hosts, those whose allocations fail too where there are any, and the program that makes
    /// bad calls.
    fn equip(&self, failing: Option<&Path>) -> Result<()> {
        let out = &self.site.setting.out;
        for (index, host) in self.site.hosts().iter().enumerate() {
            let release = &self.site.inspected[index].kernel;
            for name in [SERVER, CLIENT, FLOOD] {
                let module = Module::load(out, release, name)?;
                host.copy(&module.contents, &format!("{name}.ko"), self.site.limit())?;
            }
            for (failing, name) in failing
                .iter()
                .flat_map(|failing| [SERVER, CLIENT, FORK].map(|name| (failing, name)))
            {
                let module = Module::load(failing, release, name)?;
                let file = format!("{FAILING_PREFIX}{name}.ko");
                host.copy(&module.contents, &file, self.site.limit())?;
            }
            host.copy_program(&programs::load(out, HOSTILE)?, HOSTILE, self.site.limit())?;
        }
        Ok(())
    }

    /// Plays one scenario, and brings the machines back to where they were before it.
    fn play(&mut self, plan: &Plan<'a>) -> Result<()> {
        let progress = &self.site.setting.progress;
        progress.step(plan.name);
        let started = Instant::now();
        let mut row = Row {
            scenario: Scenario::new(plan.name),
            refused: None,
            taken: None,
            calls: None,
            verified: None,
            allocations: None,
        };
        let outcome = watched(self.stage(), self.site.hosts(), None, |watch| {
            let expected = plan.expected.iter().map(|text| text.to_string());
            watch.expect(&expected.collect::<Vec<_>>());
            (plan.body)(self, watch, &mut row)
        });
        self.stage().interrupt().check()?;
        let restored = self.restore().and_then(|()| {
            let now = self.stage().resources()?;
            ensure!(
                now == self.resources,
                "RDMA resources were {}, and are {now}",
                self.resources
            );
            Ok(())
        });
        self.stage().interrupt().check()?;
        row.scenario
            .conclude(outcome.and(restored), started.elapsed());
        progress.line(&row.to_string());
        self.rows.push(row);
        Ok(())
    }

    fn stage(&self) -> &'a Stage<'a> {
        self.site.stage
    }

    /// Nothing is loaded.
    fn restore(&self) -> Result<()> {
        let programs = [walker::PROGRAM, HOSTILE];
        self.site.clear(&programs, &[CLIENT, SERVER, FLOOD, FORK])
    }

    /// A host's GID.
    fn gid(&self, host: usize) -> Result<String> {
        let ports = &self.site.inspected[host].ports;
        let gid = ports.first().and_then(|port| port.gids.first());
        Ok(gid.context("no GID")?.to_string())
    }

    /// A shell command in the directory of a host's files; what it printed.
    fn say(
        &self,
        watch: &mut Watch<'_>,
        host: usize,
        script: &str,
        timeout: Duration,
    ) -> Result<Vec<String>> {
        let directory = quote(&self.site.hosts()[host].directory.to_string_lossy());
        let task = watch.spawn(host, &format!("cd {directory} && {{ {script}\n}}"))?;
        watch.wait(timeout, Patience::Stubborn, |watch| {
            watch.ended(task).is_some()
        })?;
        let said = watch.said(task).iter().map(|line| line.text.clone());
        let said: Vec<String> = said.collect();
        match watch.ended(task) {
            None => bail!("`{script}` did not end within {} s", timeout.as_secs()),
            Some(ended) => ensure!(
                ended.success,
                "`{script}` failed: {}; it said {:?}",
                ended.complaint,
                said.last()
            ),
        }
        Ok(said)
    }

    /// Waits for a line of a host's log, behind the first `after`, that `fits`.
    fn await_line_after(
        &self,
        watch: &mut Watch<'_>,
        host: usize,
        after: usize,
        what: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let find = |watch: &Watch<'_>| {
            let lines = watch.logs[host].lines.iter().skip(after);
            lines.map(|line| line.text.clone()).find(|text| fits(text))
        };
        watch.wait(STEP, Patience::Eager, |watch| find(watch).is_some())?;
        find(watch).with_context(|| {
            let last = watch.logs[host].lines.last();
            let last = last.map_or("", |line| line.text.as_str());
            format!("{what}: not in the log; its last line: {last}")
        })
    }
}

/// How many lines a host's log has.
fn lines(watch: &Watch<'_>, host: usize) -> usize {
    watch.logs[host].lines.len()
}
