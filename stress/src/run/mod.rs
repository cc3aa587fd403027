//! One run: inspect the hosts, load what the template says in its order, wait, unload, audit.
//!
//! Whatever goes wrong becomes a finding of the [`Report`], and what was loaded is unloaded all the same.

pub(crate) mod evaluate;
mod inspect;
mod left;
mod passes;
pub mod plan;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

pub use self::inspect::{inspect, parent_gid, Inspected, Port};
use self::plan::Plan;
use crate::cluster::shell::Limit;
use crate::cluster::Host;
use crate::interrupt::{Interrupt, Interrupted};
use crate::klog::audit::{Finding, Kind};
use crate::klog::watch::Watch;
use crate::modules::Module;
use crate::programs;
use crate::progress::Progress;
use crate::report::Report;
use crate::settings::Gid;

/// Does the run. An interrupt ends it early, with everything unloaded, as a finding of that kind.
pub fn run(plan: &Plan<'_>, progress: &Progress, interrupt: &Interrupt) -> Report {
    let started = Instant::now();
    let mut report = Report::new(plan);
    match prepare(plan, progress, interrupt, &mut report) {
        Err(error) => report.findings.push(finding_of(&error, plan.hosts)),
        Ok(prepared) => {
            match Watch::start(
                plan.hosts,
                plan.deadlines.grace,
                plan.deadlines.command,
                progress,
                interrupt,
                plan.fallen,
            ) {
                Err(error) => report.findings.push(finding_of(&error, plan.hosts)),
                Ok(mut watch) => {
                    for pass in plan.passes {
                        watch.expect(&pass.expected);
                    }
                    let reached = passes::perform(plan, &prepared, &mut watch, progress, interrupt);
                    if !(interrupt.is_raised() && plan.disposable) {
                        left::compare(plan, &prepared.resources, &mut watch);
                    }
                    evaluate::evaluate(plan, &reached, &mut watch, &mut report);
                }
            }
        }
    }
    if interrupt.is_raised() && !report.interrupted() {
        report
            .findings
            .push(finding_of(&Interrupted.into(), plan.hosts));
    }
    report.seconds = started.elapsed().as_secs_f64();
    report
}

/// What [`prepare`] found and passes need.
struct Prepared {
    gid: Gid,
    /// A base of session keys for each host, far enough apart that no two machines ever ask for the same.
    session_id_bases: Vec<u64>,
    /// By module.
    depends: BTreeMap<String, Vec<String>>,
    /// What the hosts had of RDMA before.
    resources: Vec<left::Resources>,
}

fn prepare(
    plan: &Plan<'_>,
    progress: &Progress,
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<Prepared> {
    progress.step(&format!("inspecting {} hosts", plan.hosts.len()));
    let timeout = plan.deadlines.command;
    let inspected = on_all(plan.hosts, |host| inspect(host, timeout, interrupt))?;
    for (host, inspected) in plan.hosts.iter().zip(&inspected) {
        let port = inspected
            .ports
            .iter()
            .find(|port| plan.parent_gid.is_some_and(|gid| port.gids.contains(&gid)))
            .or(inspected.ports.first());
        report.cluster.hosts.push(inspected.info(host, port));
    }
    let gid = parent_gid(plan.hosts, &inspected, plan.parent_gid)?;

    progress.step("copying modules and programs");
    // All are checked before any is copied.
    let mut modules = Vec::new();
    let mut depends = BTreeMap::new();
    for (host, inspected) in plan.hosts.iter().zip(&inspected) {
        for name in plan
            .passes
            .iter()
            .filter(|pass| pass.role == host.role)
            .filter_map(|pass| pass.module.as_ref())
        {
            let module = Module::load(plan.out, &inspected.kernel, name)?;
            if module.release != inspected.kernel {
                anyhow::bail!(
                    "{}: {name}.ko was built for {}, {} runs {}: run `make clean`, then `make build-rpc-bench`",
                    host.name,
                    module.release,
                    host.name,
                    inspected.kernel
                );
            }
            depends.insert(name.clone(), module.depends.clone());
            modules.push((host.clone(), module));
        }
    }
    let mut files: Vec<(Host, String, Vec<u8>)> = modules
        .into_iter()
        .map(|(host, module)| (host, format!("{}.ko", module.name), module.contents))
        .collect();
    for host in plan.hosts {
        let passes = plan.passes.iter().filter(|pass| pass.role == host.role);
        for name in passes.flat_map(|pass| pass.program.iter().chain(&pass.files)) {
            files.push((host.clone(), name.clone(), programs::load(plan.out, name)?));
        }
    }
    let limit = Limit {
        timeout,
        interrupt: Some(interrupt),
    };
    on_all(&files, |(host, name, contents)| {
        if name.ends_with(".ko") {
            host.copy(contents, name, limit)
        } else {
            // Files that go with a program may be programs too.
            host.copy_program(contents, name, limit)
        }
    })?;
    Ok(Prepared {
        gid,
        session_id_bases: session_id_bases(plan.hosts.len()),
        depends,
        resources: on_all(plan.hosts, |host| left::resources(host, limit))?,
    })
}

/// The document's first remark: a random base for each machine. A base is a multiple of the most threads that a machine
/// can have, so that those of different machines cannot overlap, and bases are drawn without repetition.
pub(crate) fn session_id_bases(hosts: usize) -> Vec<u64> {
    let mut bases = Vec::with_capacity(hosts);
    while bases.len() < hosts {
        // The last step of all stays below 2^31, whatever integer a module keeps it in.
        let base = u64::from(rand::random::<u32>() >> 1) / crate::parameters::MOST_THREADS
            * crate::parameters::MOST_THREADS;
        if base != 0 && !bases.contains(&base) {
            bases.push(base);
        }
    }
    bases
}

/// Does something for all `items` at once; the first error counts.
fn on_all<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        let results = threads.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| {
                Err(anyhow::anyhow!(
                    "a thread of the runner panicked; its message is above"
                ))
            })
        });
        // All are waited for, so that nothing is still under way when the run goes on to clean up.
        results.collect::<Vec<_>>().into_iter().collect()
    })
}

/// An error that kept a run from taking place, or from going on; it may be about one of `hosts`.
pub fn finding_of(error: &anyhow::Error, hosts: &[Host]) -> Finding {
    let interrupted = error.downcast_ref::<Interrupted>().is_some();
    let kind = if interrupted {
        Kind::Interrupted
    } else {
        Kind::Setup
    };
    let message = format!("{error:#}");
    // Messages about one host begin with its name.
    let about = message
        .split_once(": ")
        .filter(|(name, _)| hosts.iter().any(|host| host.name == *name));
    let (host, line) = about.unwrap_or(("-", &message));
    Finding {
        host: host.to_string(),
        kind,
        line: line.to_string(),
    }
}

#[cfg(test)]
mod tests;
