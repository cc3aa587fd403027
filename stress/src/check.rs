//! `make module-checks`: the modules are loaded and unloaded in every order, unloaded while they work, and used wrongly.
//!
//! After each check the kernel logs hold nothing but what the check provokes, and the machines have the RDMA resources
//! that they had before.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::build;
use crate::cluster::shell::Limit;
use crate::cluster::{vm, Host, Role};
use crate::klog::audit::Finding;
use crate::modules;
use crate::progress::Progress;
use crate::report::Verdict;
use crate::scene::{await_line, run_to_end, watched, STEP};
use crate::settings::{Machines, KERNELS};
use crate::stage::{self, Act, Setting, Stage};
use crate::template::RunPass;

const TARGET: &str = "module-checks";
/// Within which a mistake must be told.
const TOLD_WITHIN: Duration = Duration::from_secs(20);
/// For one round of loading and unloading.
const ROUND: Duration = Duration::from_secs(10);

/// A GID of the form of the cluster's, at which there is no machine.
const NOBODY: &str = "fe80:0000:0000:0000:5054:00ff:fe49:00ff";

/// Module arguments: two cluster keys.
const KEY: &str = "cluster_key=000102030405060708090a0b0c0d0e0f";
const OTHER_KEY: &str = "cluster_key=0f0e0d0c0b0a09080706050403020100";

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// Settings of the cluster, as for `run`.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// How often the modules are loaded and unloaded in each order.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Whose modules and passes are checked.
    #[arg(long, default_value = "templates-run/peak-rpc-kernel-module.toml")]
    template: PathBuf,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// The program.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let mut setting = Setting::read(
        Some(TARGET),
        &arguments.assignments,
        &[
            ("client_running_secs", "20"),
            ("server_running_secs", "300"),
        ],
        &arguments.template,
        &arguments.out,
    )?;
    let Machines::Virtual(machines) = &mut setting.settings.machines else {
        bail!("the checks load foreign modules and use them wrongly: they run on the virtual cluster only");
    };
    machines.clients = 1;
    let mut other = setting.settings.clone();
    if let Machines::Virtual(machines) = &mut other.machines {
        let series = KERNELS.iter().find(|series| **series != machines.kernel);
        machines.kernel = series.context("there is no other kernel")?.to_string();
    }
    let kernels = build::kernels(&other)?;
    if let (false, Some(path)) = (vm::inside_namespace(), &setting.template.build) {
        let module = setting.template.first_module();
        build::update(path, module, &kernels, &other, &setting.out)?;
    }
    let foreign = kernels
        .first()
        .map(|kernel| modules::directory(&setting.out, &kernel.release))
        .context("there is no other kernel")?;
    stage::on(&setting, |stage| {
        let mut checks = Checks {
            stage,
            setting: &setting,
            passed: 0,
            failed: 0,
        };
        checks.all(arguments.rounds, &foreign)?;
        setting.progress.line(&format!(
            "{} passed, {} failed",
            checks.passed, checks.failed
        ));
        Ok(if checks.failed == 0 {
            Verdict::Pass
        } else {
            Verdict::Fail
        })
    })
}

struct Checks<'a> {
    stage: &'a Stage<'a>,
    setting: &'a Setting,
    passed: u32,
    failed: u32,
}

impl Checks<'_> {
    fn all(&mut self, rounds: u32, foreign: &Path) -> Result<()> {
        // The first run also puts the modules onto the hosts.
        self.check("a run of the test", |checks| checks.short_run())?;
        let gid = self.gid()?;
        let client = format!("gid={gid} running_secs=20 thread_count=2 session_id_base=64");
        let server = "running_secs=300";

        for (name, order) in [
            ("server, client in; client, server out", [0, 1, 3, 2]),
            ("server, client in; server, client out", [0, 1, 2, 3]),
            ("client, server in; client, server out", [1, 0, 3, 2]),
            ("client, server in; server, client out", [1, 0, 2, 3]),
        ] {
            let commands = [
                format!("insmod server.ko {server}"),
                format!("insmod client.ko {client}"),
                "rmmod mitosis_rpc_server".to_string(),
                "rmmod mitosis_rpc_client".to_string(),
            ];
            let round: Vec<&str> = order.iter().map(|&step| commands[step].as_str()).collect();
            let round = round.join(" && ");
            // A client that comes first may find no server: that, and nothing else, may be said.
            let allowed = (order[0] == 1).then_some("no server listens at this service");
            self.check(&format!("{rounds} times: {name}"), |checks| {
                checks.churn(&round, rounds, allowed)
            })?;
        }
        self.check("the client is unloaded in mid-run", |checks| {
            checks.unload_in_mid_run(&["mitosis_rpc_client", "mitosis_rpc_server"], &gid)
        })?;
        self.check("the server is unloaded in mid-run", |checks| {
            checks.unload_in_mid_run(&["mitosis_rpc_server", "mitosis_rpc_client"], &gid)
        })?;

        let passes = &self.setting.template.passes;
        let with = |from: &str, to: &str| -> Vec<RunPass> {
            let mut passes = passes.clone();
            for pass in passes.iter_mut().filter(|pass| pass.role == Role::Child) {
                pass.arguments = pass.arguments.replace(from, to);
            }
            passes
        };
        let keyed = |server: &str, client: &str| -> Vec<RunPass> {
            let mut passes = passes.clone();
            for pass in &mut passes {
                let key = match pass.role {
                    Role::Parent => server,
                    Role::Child => client,
                };
                pass.arguments = format!("{} {key}", pass.arguments);
            }
            passes
        };
        let without_server: Vec<RunPass> = passes
            .iter()
            .filter(|pass| pass.role == Role::Child)
            .cloned()
            .collect();
        let mistakes = [
            (
                "a GID without a machine",
                with("gid={gid}", &format!("gid={NOBODY}")),
                "no machine answers at this GID",
            ),
            (
                "a GID that is none",
                with("gid={gid}", "gid=val01"),
                "gid is not eight groups",
            ),
            (
                "a server that is not there",
                without_server,
                "no server listens at this service",
            ),
            (
                "a service without a server",
                with("{server_service_id}", "9"),
                "no server listens at this service",
            ),
            (
                "a hint that nobody goes by",
                with("{server_qd_hint}", "9"),
                "no queue there goes by that hint",
            ),
            (
                "an unknown rpc id",
                with("{test_rpc_id}", "9"),
                "no such rpc id",
            ),
            (
                "no thread",
                with("{thread_count}", "0"),
                "thread_count is not in 1 to 64",
            ),
            (
                "a payload longer than any message",
                keyed("", "payload_size=8388609"),
                "payload_size and its checksum are more than a message",
            ),
            (
                "another cluster key than the server's",
                keyed(KEY, OTHER_KEY),
                "not authorised: the cluster key is another",
            ),
            (
                "no cluster key where one is required",
                keyed(KEY, ""),
                "not authorised: the server requires a cluster key",
            ),
            (
                "a cluster key where there is none",
                keyed("", KEY),
                "not authorised: the server has no cluster key",
            ),
            (
                "a cluster key that is none",
                keyed("", "cluster_key=secret"),
                "cluster_key is not 32 hexadecimal digits",
            ),
        ];
        for (name, passes, told) in mistakes {
            self.check(name, |checks| {
                checks.mistake(&passes, &checks.setting.out, told)
            })?;
        }
        self.check("modules built for another kernel", |checks| {
            let release = checks.host(0)?.ask("uname -r", checks.limit())?;
            let directory = checks.setting.directory();
            let to = modules::directory(&directory, release.trim());
            std::fs::create_dir_all(&to).with_context(|| format!("{}", to.display()))?;
            for module in ["mitosis_rpc_server.ko", "mitosis_rpc_client.ko"] {
                std::fs::copy(foreign.join(module), to.join(module))
                    .with_context(|| format!("cannot copy {module}"))?;
            }
            checks.mistake(&checks.setting.template.passes, &directory, "was built for")
        })?;
        self.check("a run of the test after all that", |checks| {
            checks.short_run()
        })
    }

    /// Runs one check between two looks at the machines' RDMA resources.
    fn check(&mut self, name: &str, body: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.setting.progress.step(name);
        let started = Instant::now();
        let before = self.resources()?;
        let outcome = body(self).and_then(|()| {
            let after = self.resources()?;
            ensure!(
                before == after,
                "RDMA resources were {before}, and are {after}"
            );
            Ok(())
        });
        self.stage.interrupt().check()?;
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                self.setting
                    .progress
                    .line(&format!("ok     {name} ({seconds:.1} s)"));
            }
            Err(error) => {
                self.failed += 1;
                self.setting
                    .progress
                    .line(&format!("FAILED {name} ({seconds:.1} s): {error:#}"));
            }
        }
        Ok(())
    }

    fn host(&self, index: usize) -> Result<&Host> {
        self.stage
            .hosts()
            .get(index)
            .context("the cluster has two hosts")
    }

    fn limit(&self) -> Limit<'_> {
        Limit {
            timeout: STEP,
            interrupt: Some(self.stage.interrupt()),
        }
    }

    /// Queue pairs, completion queues, protection domains and the rest on both machines.
    fn resources(&self) -> Result<String> {
        let hosts = self.stage.hosts().iter();
        let counts: Result<Vec<String>> = hosts
            .map(|host| Ok(host.ask("rdma resource", self.limit())?.trim().to_string()))
            .collect();
        Ok(counts?.join("; "))
    }

    fn gid(&self) -> Result<String> {
        let script = "cat /sys/class/infiniband/*/ports/1/gids/0";
        Ok(self.host(0)?.ask(script, self.limit())?.trim().to_string())
    }

    fn act<'s>(&'s self, passes: &'s [RunPass], out: &'s Path, quiet: &'s Progress) -> Act<'s> {
        Act {
            target: TARGET,
            hosts: self.stage.hosts(),
            passes,
            parameters: &self.setting.parameters,
            out,
            progress: quiet,
        }
    }

    fn short_run(&self) -> Result<()> {
        let quiet = Progress::silent();
        let mut parameters = self.setting.parameters.clone();
        parameters.insert("client_running_secs".into(), 2);
        let act = Act {
            parameters: &parameters,
            ..self.act(&self.setting.template.passes, &self.setting.out, &quiet)
        };
        let report = self.stage.perform(&act);
        match report.findings.first() {
            None => Ok(()),
            Some(finding) => bail!("{}: {}", finding.host, finding.line),
        }
    }

    /// One machine is server and client to itself, so that the two meet in every state.
    fn churn(&self, round: &str, rounds: u32, allowed: Option<&str>) -> Result<()> {
        let host = self.host(0)?;
        for (name, short) in [
            ("mitosis_rpc_server", "server.ko"),
            ("mitosis_rpc_client", "client.ko"),
        ] {
            let kernel = host.ask("uname -r", self.limit())?;
            let module = modules::Module::load(&self.setting.out, kernel.trim(), name)?;
            host.copy(&module.contents, short, self.limit())?;
        }
        let script = format!(
            "cd {} && i=0; while [ $i -lt {rounds} ]; do {round} || exit 1; i=$((i+1)); done",
            host.directory.display()
        );
        watched(self.stage, std::slice::from_ref(host), allowed, |watch| {
            run_to_end(watch, 0, &script, ROUND * rounds)
        })
    }

    fn unload_in_mid_run(&self, order: &[&str], gid: &str) -> Result<()> {
        let hosts = self.stage.hosts();
        watched(self.stage, hosts, None, |watch| {
            let path = |host: usize, name: &str| hosts[host].path(&format!("{name}.ko"));
            let server = format!("insmod {} running_secs=300", path(0, "mitosis_rpc_server"));
            run_to_end(watch, 0, &server, STEP)?;
            await_line(watch, 0, "rpc server ready")?;
            let client = format!(
                "insmod {} gid={gid} running_secs=60 session_id_base=64",
                path(1, "mitosis_rpc_client")
            );
            run_to_end(watch, 1, &client, STEP)?;
            await_line(watch, 1, "passed: ")?;
            for name in order {
                let host = usize::from(*name == "mitosis_rpc_client");
                run_to_end(watch, host, &format!("rmmod {name}"), STEP)?;
            }
            await_line(watch, 1, "stress test stopped before its end")?;
            await_line(watch, 1, "krdma test framework dropped")?;
            await_line(watch, 0, "rpc server stopped")
        })
    }

    /// A run that cannot succeed tells why, once and soon.
    fn mistake(&self, passes: &[RunPass], out: &Path, told: &str) -> Result<()> {
        let quiet = Progress::silent();
        let started = Instant::now();
        let report = self.stage.perform(&self.act(passes, out, &quiet));
        let took = started.elapsed();
        ensure!(report.verdict() == Verdict::Fail, "the run passed");
        let errors: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|finding| finding.line.contains(told))
            .collect();
        let lines: Vec<&str> = report.findings.iter().map(|f| f.line.as_str()).collect();
        ensure!(
            errors.len() == 1,
            "{told:?} is told {} times: {lines:?}",
            errors.len()
        );
        ensure!(
            took < TOLD_WITHIN,
            "it was told after {} s only",
            took.as_secs()
        );
        self.setting
            .progress
            .line(&format!("       {}: {}", errors[0].host, errors[0].line));
        Ok(())
    }
}
