//! `make faults`: the RPC between real kernels while the network spoils packets, machines and modules go away and come
//! back, and a stranger floods the server.
//!
//! All scenarios take place on one virtual cluster, one after another. Each passes only if no client saw an error, no
//! kernel log has anything to find, the server's count agrees with the clients', and the machines have the RDMA
//! resources afterwards that they had before. [`netem`] spoils the network, [`restarts`] ends what runs, [`flood`] sends
//! what nobody asked for, [`strangers`] plays clients that must be refused, [`row`] is what a scenario leaves behind.

mod flood;
mod netem;
mod restarts;
mod row;
mod strangers;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};

use self::row::Row;
use crate::cluster::shell::{quote, Limit};
use crate::cluster::{Host, Role};
use crate::klog::watch::Watch;
use crate::modules::Module;
use crate::refusal::Refusal;
use crate::report::{ClusterInfo, Verdict};
use crate::run::{self, parent_gid};
use crate::scenario;
use crate::scene::{await_that, run_to_end, STEP};
use crate::settings::Machines;
use crate::stage::{self, Setting, Stage};
use crate::template::{fill, RunPass};

const TARGET: &str = "faults";
/// What is loaded to flood the server.
const FLOOD: &str = "mitosis_rpc_flood";
/// The server's host.
const SERVER: usize = 0;
/// The client that goes on when another one is killed, and works while another one floods.
const HONEST: usize = 1;

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// Settings of the cluster and parameters of the RPC test, as for `run`.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// Only the scenarios that catch most: heavy loss, the server's module loaded anew, refused clients, a short flood.
    #[arg(long)]
    short: bool,
    /// Only the scenarios whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
    /// How many datagrams the flood has: 1,000,000, and 20,000 with --short.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    datagrams: Option<u32>,
    /// The same seed makes the same flood.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// What runs the RPC.
    #[arg(long, default_value = "templates-run/peak-rpc-kernel-module.toml")]
    template: PathBuf,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// The program.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let started = Instant::now();
    // The server outlasts every scenario. Few threads: what is measured is what a fault costs, not the peak.
    let setting = Setting::read(
        Some(TARGET),
        &arguments.assignments,
        &[
            ("client_running_secs", "5"),
            ("server_running_secs", "86400"),
            ("thread_count", "4"),
        ],
        &arguments.template,
        &arguments.out,
    )?;
    match &setting.settings.machines {
        Machines::Real(_) => bail!(Refusal::of(
            "the faults end machines and spoil their network: they run on the virtual cluster only"
        )),
        Machines::Virtual(machines) if machines.clients < 2 => bail!(Refusal::of(format!(
            "CLIENTS={}: of the clients one is killed and one goes on; give at least 2",
            machines.clients
        ))),
        Machines::Virtual(_) => {}
    }
    setting.forget_result();
    if strangers::DAMAGED.contains(&arguments.only) && !arguments.short {
        strangers::build_checked(&setting)?;
    }
    let (cluster, rows) = stage::on(&setting, |stage| {
        let mut faults = Faults::new(stage, &setting)?;
        faults.all(arguments)?;
        Ok((faults.cluster, faults.rows))
    })?;
    scenario::conclude("mitosis-faults/1", &setting, &cluster, started, &rows)
}

struct Faults<'a> {
    stage: &'a Stage<'a>,
    setting: &'a Setting,
    /// The server's.
    gid: String,
    /// Of the machines' kernel.
    release: String,
    /// The machines' RDMA resources while nothing is loaded.
    resources: String,
    /// What the clients reach without a fault.
    clean_per_s: Option<u64>,
    cluster: ClusterInfo,
    rows: Vec<Row>,
}

impl<'a> Faults<'a> {
    fn new(stage: &'a Stage<'a>, setting: &'a Setting) -> Result<Self> {
        let (inspected, cluster) = stage.inspect()?;
        let mut faults = Self {
            stage,
            setting,
            gid: parent_gid(stage.hosts(), &inspected, None)?.to_string(),
            release: inspected[SERVER].kernel.clone(),
            resources: String::new(),
            clean_per_s: None,
            cluster,
            rows: Vec::new(),
        };
        for host in 0..stage.hosts().len() {
            faults.equip(host)?;
        }
        faults.resources = stage.resources()?;
        Ok(faults)
    }

    fn all(&mut self, arguments: &Arguments) -> Result<()> {
        let only = |name: &str| name.contains(&arguments.only);
        let (short, seed) = (arguments.short, arguments.seed);
        // What the others are compared with is played with each of them.
        let chosen = |name: &str| only(name) && (!short || name == netem::SHORT);
        let chosen_any = netem::SCENARIOS.iter().any(|(name, _)| chosen(name));
        if !short && (only(netem::CLEAN) || chosen_any) {
            self.scenario(netem::CLEAN, |faults, row| faults.clean(row))?;
        }
        for (name, spoilt) in netem::SCENARIOS {
            if chosen(name) {
                self.scenario(name, |faults, row| faults.spoilt_network(row, spoilt))?;
            }
        }
        let name = "the server's module is removed and inserted again";
        if only(name) {
            self.scenario(name, |faults, row| faults.server_inserted_again(row))?;
        }
        let name = "the server's machine is killed and booted again";
        if only(name) && !short {
            self.scenario(name, |faults, row| faults.server_booted_again(row))?;
        }
        let name = "a client's machine is killed and booted again";
        if only(name) && !short {
            self.scenario(name, |faults, row| faults.client_booted_again(row))?;
        }
        if only(strangers::OLD_VERSION) {
            self.scenario(strangers::OLD_VERSION, |faults, row| {
                faults.old_version(row)
            })?;
        }
        if only(strangers::REPLAY) {
            self.scenario(strangers::REPLAY, |faults, row| faults.replay(row))?;
        }
        if only(strangers::DAMAGED) && !short {
            self.scenario(strangers::DAMAGED, |faults, row| faults.damaged(row))?;
        }
        let datagrams = arguments
            .datagrams
            .unwrap_or(if short { 20_000 } else { 1_000_000 });
        let name = format!("a flood of {datagrams} datagrams, seed {seed}");
        if only(&name) {
            self.scenario(&name, |faults, row| faults.flood(row, datagrams, seed))?;
        }
        Ok(())
    }

    /// Plays one scenario, and brings the machines back to where they were before it.
    fn scenario(
        &mut self,
        name: &str,
        body: impl FnOnce(&mut Self, &mut Row) -> Result<()>,
    ) -> Result<()> {
        self.setting.progress.step(name);
        let started = Instant::now();
        let mut row = Row::new(name);
        let outcome = body(self, &mut row);
        self.stage.interrupt().check()?;
        let restored = self.restore().and_then(|()| {
            let now = self.stage.resources()?;
            ensure!(
                now == self.resources,
                "RDMA resources were {}, and are {now}",
                self.resources
            );
            Ok(())
        });
        self.stage.interrupt().check()?;
        row.scenario
            .conclude(outcome.and(restored), started.elapsed());
        self.setting.progress.line(&row.to_string());
        self.rows.push(row);
        Ok(())
    }

    /// Boots what is down, unloads what is loaded, and takes away what spoils the network.
    fn restore(&self) -> Result<()> {
        let absent = self.stage.absent();
        for name in &absent {
            self.stage.restart(name)?;
        }
        let modules = self.setting.template.passes.iter().rev();
        let modules: Vec<&str> = modules
            .filter_map(|pass| pass.module.as_deref())
            .chain([FLOOD])
            .collect();
        let script = format!(
            "for m in {}; do [ ! -d /sys/module/$m ] || rmmod $m || exit 1; done; {}",
            modules.join(" "),
            netem::END
        );
        for (index, host) in self.stage.hosts().iter().enumerate() {
            if absent.contains(&host.name) {
                self.equip(index)?;
            }
            host.ask(&script, self.limit())?;
        }
        Ok(())
    }

    fn limit(&self) -> Limit<'_> {
        Limit {
            timeout: STEP,
            interrupt: Some(self.stage.interrupt()),
        }
    }

    fn host(&self, index: usize) -> &Host {
        &self.stage.hosts()[index]
    }

    /// The hosts that clients run on.
    fn clients(&self) -> std::ops::Range<usize> {
        HONEST..self.stage.hosts().len()
    }

    /// Puts the modules of its role onto a host.
    fn equip(&self, index: usize) -> Result<()> {
        let host = self.host(index);
        let passes = self.setting.template.passes.iter();
        let names = passes
            .filter(|pass| pass.role == host.role)
            .filter_map(|pass| pass.module.as_deref());
        for name in names {
            self.bring(index, name)?;
        }
        Ok(())
    }

    fn bring(&self, index: usize, name: &str) -> Result<()> {
        self.bring_from(&self.setting.out, index, name)
    }

    fn bring_from(&self, out: &Path, index: usize, name: &str) -> Result<()> {
        let module = Module::load(out, &self.release, name)?;
        let file = format!("{name}.ko");
        self.host(index).copy(&module.contents, &file, self.limit())
    }

    /// Loads what a host of its role runs, with some parameters other than the test's.
    fn load(&self, watch: &mut Watch<'_>, host: usize, changes: &[(&str, u64)]) -> Result<()> {
        self.load_with(watch, host, changes, "")
    }

    /// Likewise, with `more` behind the arguments.
    fn load_with(
        &self,
        watch: &mut Watch<'_>,
        host: usize,
        changes: &[(&str, u64)],
        more: &str,
    ) -> Result<()> {
        let (module, pass) = self.module_of(host)?;
        let base = run::session_id_bases(1).first().map(u64::to_string);
        let number = |name: &str| {
            let changed = changes.iter().find(|(changed, _)| *changed == name);
            let given = self.setting.parameters.get(name);
            changed.map(|&(_, value)| value).or(given.copied())
        };
        let arguments = fill(&pass.arguments, |name| match name {
            "gid" => Some(self.gid.clone()),
            "random" => base.clone(),
            _ => number(name).map(|value| value.to_string()),
        });
        let arguments = arguments.map_err(|name| {
            Refusal::of(format!(
                "{}: no value for {{{name}}}",
                self.setting.template.path.display()
            ))
        })?;
        let optional: Vec<String> = pass.optional_arguments(number).collect();
        let arguments = format!("{arguments} {} {more}", optional.join(" "));
        self.insert(watch, host, module, &arguments)
    }

    fn insert(
        &self,
        watch: &mut Watch<'_>,
        host: usize,
        module: &str,
        arguments: &str,
    ) -> Result<()> {
        let words: Vec<String> = arguments.split_whitespace().map(quote).collect();
        let path = self.host(host).path(&format!("{module}.ko"));
        run_to_end(
            watch,
            host,
            &format!("insmod {path} {}", words.join(" ")),
            STEP,
        )
    }

    fn unload(&self, watch: &mut Watch<'_>, host: usize) -> Result<()> {
        let (module, _) = self.module_of(host)?;
        run_to_end(watch, host, &format!("rmmod {module}"), STEP)
    }

    fn module_of(&self, host: usize) -> Result<(&str, &RunPass)> {
        let role = self.host(host).role;
        let passes = self.setting.template.passes.iter();
        passes
            .filter(|pass| pass.role == role)
            .find_map(|pass| Some((pass.module.as_deref()?, pass)))
            .with_context(|| {
                let role = if role == Role::Parent {
                    "parent"
                } else {
                    "child"
                };
                format!(
                    "{}: no pass of role {role:?} has a module",
                    self.setting.template.path.display()
                )
            })
    }

    /// Loads the server and waits until it is ready; when it was.
    fn load_server(&self, watch: &mut Watch<'_>) -> Result<Instant> {
        self.load_server_with(watch, "")
    }

    fn load_server_with(&self, watch: &mut Watch<'_>, more: &str) -> Result<Instant> {
        let since = Instant::now();
        self.load_with(watch, SERVER, &[], more)?;
        let ready = |watch: &Watch<'_>| watch.logs[SERVER].said_since(since, "rpc server ready");
        await_that(watch, STEP, "\"rpc server ready\"", |watch| {
            ready(watch).is_some()
        })?;
        ready(watch).context("the server is not ready")
    }

    /// Unloads the server and waits for its count.
    fn unload_server(&self, watch: &mut Watch<'_>) -> Result<()> {
        let before = watch.logs[SERVER].stopped.len();
        self.unload(watch, SERVER)?;
        await_that(watch, STEP, "\"rpc server stopped\"", |watch| {
            watch.logs[SERVER].stopped.len() > before
        })
    }
}
