//! The template's passes: each starts on all hosts of its role at once, and all end in the opposite order.

use super::{Plan, Prepared};
use crate::cluster::shell::quote;
use crate::interrupt::{Interrupt, Interrupted};
use crate::klog::audit::{Finding, Kind};
use crate::klog::watch::{Patience, Task, Waited, Watch};
use crate::progress::Progress;
use crate::template::{fill, RunPass};

/// A pass that was started.
pub(super) struct Started<'a> {
    pub(super) pass: &'a RunPass,
    /// Host and what runs there.
    pub(super) tasks: Vec<(usize, Task)>,
}

/// How far a run came.
pub(super) struct Reached<'a> {
    pub(super) started: Vec<Started<'a>>,
    /// Whether all that had to be done was waited for to its end.
    pub(super) complete: bool,
}

/// Why the passes did not all come to their end; the reason is among the findings.
enum Stop {
    Found,
    Interrupted,
}

impl From<Interrupted> for Stop {
    fn from(_: Interrupted) -> Self {
        Stop::Interrupted
    }
}

/// Performs the passes, waits for what they are to do, unloads, and takes all that the logs still say.
pub(super) fn perform<'a>(
    plan: &Plan<'a>,
    prepared: &Prepared,
    watch: &mut Watch<'_>,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Reached<'a> {
    let mut started = Vec::new();
    let result = start_all(plan, prepared, watch, progress, &mut started)
        .and_then(|()| await_done(plan, watch, progress, &started));
    if !(interrupt.is_raised() && plan.disposable) {
        unload(plan, watch, progress, &started);
        watch.settle(plan.deadlines.command);
    }
    Reached {
        started,
        complete: result.is_ok(),
    }
}

fn start_all<'a>(
    plan: &Plan<'a>,
    prepared: &Prepared,
    watch: &mut Watch<'_>,
    progress: &Progress,
    started: &mut Vec<Started<'a>>,
) -> Result<(), Stop> {
    for pass in plan.passes {
        progress.step(&format!("starting {}", pass.name));
        started.push(Started {
            pass,
            tasks: Vec::new(),
        });
        for (index, host) in plan
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.role == pass.role)
        {
            let spawned = script(plan, prepared, pass, index).and_then(|script| {
                match pass.program {
                    Some(_) => watch.spawn_program(index, &script),
                    None => watch.spawn(index, &script),
                }
                .map_err(|error| format!("{error:#}"))
            });
            match (spawned, started.last_mut()) {
                (Ok(task), Some(last)) => last.tasks.push((index, task)),
                (Ok(_), None) => {}
                (Err(reason), _) => {
                    watch.find(&host.name, Kind::Load, reason);
                    return Err(Stop::Found);
                }
            }
        }
        let tasks = started
            .last()
            .map(|last| last.tasks.clone())
            .unwrap_or_default();
        // A program, or a command that gets ready, goes on while the next passes run; anything else ends first.
        if pass.module.is_some() || (pass.ready.is_none() && pass.program.is_none()) {
            await_tasks(plan, pass, watch, &tasks)?;
        }
        if let Some(text) = &pass.ready {
            progress.step(&format!("waiting until {} is ready", pass.name));
            await_text(watch, pass, &tasks, text, plan.deadlines.ready)?;
        }
    }
    Ok(())
}

/// The shell command that starts `pass` on a host.
fn script(
    plan: &Plan<'_>,
    prepared: &Prepared,
    pass: &RunPass,
    host: usize,
) -> Result<String, String> {
    let value = |name: &str| match name {
        "gid" => Some(prepared.gid.to_string()),
        "random" => prepared.session_id_bases.get(host).map(u64::to_string),
        _ => plan.parameters.get(name).map(u64::to_string),
    };
    let no_value = |name| format!("pass {:?}: no value for {{{name}}}", pass.name);
    let arguments = fill(&pass.arguments, value).map_err(no_value)?;
    let optional = pass.optional.iter().filter_map(|name| {
        let value = plan.parameters.get(name)?;
        Some(match pass.program {
            Some(_) => format!("--{} {value}", name.replace('_', "-")),
            None => format!("{name}={value}"),
        })
    });
    // The key is a setting of the cluster, and no template has to know of it.
    let key = (pass.module.is_some() && !plan.cluster_key.is_empty())
        .then(|| format!("cluster_key={}", plan.cluster_key));
    let arguments: Vec<String> = arguments
        .split_whitespace()
        .map(quote)
        .chain(optional)
        .chain(key)
        .collect();
    let arguments = arguments.join(" ");
    match (&pass.module, &pass.program, &pass.command) {
        (Some(module), ..) => {
            let path = plan.hosts[host].path(&format!("{module}.ko"));
            // insmod loads nothing else; what cannot be loaded shows as unknown symbols.
            let needed = prepared
                .depends
                .get(module)
                .filter(|needed| !needed.is_empty());
            let modprobe = needed.map_or(String::new(), |needed| {
                let names: Vec<String> = needed.iter().map(|name| quote(name)).collect();
                format!(
                    "for m in {}; do modprobe -q $m >/dev/null 2>&1; done; ",
                    names.join(" ")
                )
            });
            Ok(format!("{modprobe}insmod {path} {arguments}"))
        }
        (None, Some(program), _) => {
            // The key is nobody's to see in a list of processes.
            let key = (!plan.cluster_key.is_empty())
                .then(|| format!("env CLUSTER_KEY={} ", quote(plan.cluster_key)));
            Ok(format!(
                "{}{} {arguments}",
                key.unwrap_or_default(),
                plan.hosts[host].path(program)
            ))
        }
        (None, None, Some(command)) => {
            let command = fill(command, value).map_err(no_value)?;
            Ok(format!(
                "cd {} && {command} {arguments}",
                quote(&plan.hosts[host].directory.to_string_lossy())
            ))
        }
        (None, None, None) => Err(format!(
            "pass {:?} has neither module nor program nor command",
            pass.name
        )),
    }
}

fn await_tasks(
    plan: &Plan<'_>,
    pass: &RunPass,
    watch: &mut Watch<'_>,
    tasks: &[(usize, Task)],
) -> Result<(), Stop> {
    let timeout = plan.deadlines.load;
    let all = |watch: &Watch<'_>| tasks.iter().all(|&(_, task)| watch.ended(task).is_some());
    let waited = watch.wait(timeout, Patience::Eager, all)?;
    let what = match &pass.module {
        Some(module) => format!("insmod {module}.ko"),
        None => format!("the command of pass {:?}", pass.name),
    };
    let mut failed = false;
    for &(host, task) in tasks {
        let reason = match watch.ended(task) {
            Some(ended) if ended.success => continue,
            Some(ended) => format!("{what} failed: {}", ended.complaint),
            None if waited == Waited::Late => {
                format!("{what} did not end within {} s", timeout.as_secs())
            }
            None => continue,
        };
        let name = watch.logs[host].name.clone();
        watch.find(&name, Kind::Load, reason);
        failed = true;
    }
    if failed || waited != Waited::Done {
        return Err(Stop::Found);
    }
    Ok(())
}

fn await_text(
    watch: &mut Watch<'_>,
    pass: &RunPass,
    tasks: &[(usize, Task)],
    text: &str,
    timeout: std::time::Duration,
) -> Result<(), Stop> {
    let said = |watch: &Watch<'_>, host: usize| watch.logs[host].said(text);
    let program = pass.program.as_deref();
    // A program that has ended says nothing more.
    let all = |watch: &Watch<'_>| {
        tasks.iter().all(|&(host, task)| {
            said(watch, host) || (program.is_some() && watch.ended(task).is_some())
        })
    };
    match watch.wait(timeout, Patience::Eager, all)? {
        Waited::Done => {
            let mut result = Ok(());
            for &(host, task) in tasks {
                if said(watch, host) {
                    continue;
                }
                let complaint = watch.ended(task).map(|ended| ended.complaint.clone());
                let reason = format!(
                    "{} ended without having said {text:?}: {}",
                    program.unwrap_or_default(),
                    complaint.unwrap_or_default()
                );
                let name = watch.logs[host].name.clone();
                watch.find(&name, Kind::Load, reason);
                result = Err(Stop::Found);
            }
            result
        }
        Waited::Broken => Err(Stop::Found),
        Waited::Late => {
            for &(host, _) in tasks {
                if !watch.logs[host].said(text) {
                    let name = watch.logs[host].name.clone();
                    watch.find(
                        &name,
                        Kind::Deadline,
                        format!("no {text:?} within {} s", timeout.as_secs()),
                    );
                }
            }
            Err(Stop::Found)
        }
    }
}

fn await_done(
    plan: &Plan<'_>,
    watch: &mut Watch<'_>,
    progress: &Progress,
    started: &[Started<'_>],
) -> Result<(), Stop> {
    for Started { pass, tasks } in started {
        let Some(text) = &pass.done else { continue };
        // A pass that is told how long to run says so in its arguments.
        let told = |name: &str| {
            name.ends_with("running_secs") && pass.arguments.contains(&format!("{{{name}}}"))
        };
        let running = plan.parameters.iter().filter(|(name, _)| told(name));
        let secs = running.map(|(_, &secs)| secs).max().unwrap_or(0);
        progress.step(&format!("waiting until {} are done", pass.name));
        await_text(
            watch,
            pass,
            tasks,
            text,
            std::time::Duration::from_secs(secs) + plan.deadlines.slack,
        )?;
    }
    Ok(())
}

/// Tells a pass's programs to end, and waits until they have. One that has said that it is done ends by itself.
fn end_programs(
    plan: &Plan<'_>,
    watch: &mut Watch<'_>,
    progress: &Progress,
    (program, done): (&str, Option<&str>),
    tasks: &[(usize, Task)],
) {
    progress.step(&format!("ending {program}"));
    let leaving = |watch: &Watch<'_>| {
        tasks.iter().all(|&(host, task)| {
            let said = done.is_some_and(|text| watch.logs[host].said(text));
            !said || watch.ended(task).is_some() || watch.logs[host].is_lost()
        })
    };
    let _ = watch.wait(plan.deadlines.unload, Patience::Stubborn, leaving);
    for &(_, task) in tasks {
        watch.end_program(task);
    }
    let over = |watch: &Watch<'_>, &(host, task): &(usize, Task)| {
        watch.ended(task).is_some() || watch.logs[host].is_lost()
    };
    let all = |watch: &Watch<'_>| tasks.iter().all(|one| over(watch, one));
    let _ = watch.wait(plan.deadlines.unload, Patience::Stubborn, all);
    for &(host, task) in tasks {
        let reason = match watch.ended(task) {
            Some(ended) if ended.success => continue,
            _ if watch.logs[host].is_lost() => continue,
            Some(ended) => format!("{program} failed: {}", ended.complaint),
            None => format!(
                "{program} did not end within {} s",
                plan.deadlines.unload.as_secs()
            ),
        };
        // Why it ended too early has been found already.
        let name = watch.logs[host].name.clone();
        let known = |finding: &Finding| finding.host == name && finding.kind == Kind::Load;
        if !watch.findings.iter().any(known) {
            watch.find(&name, Kind::Unload, reason);
        }
    }
}

/// Unloads the modules and ends the programs of the passes, the last pass first, whatever state they are in.
fn unload(plan: &Plan<'_>, watch: &mut Watch<'_>, progress: &Progress, started: &[Started<'_>]) {
    for Started { pass, tasks } in started.iter().rev() {
        if let Some(program) = &pass.program {
            end_programs(
                plan,
                watch,
                progress,
                (program, pass.done.as_deref()),
                tasks,
            );
        }
        let Some(module) = &pass.module else { continue };
        progress.step(&format!("unloading {module}"));
        // An insmod that an interrupt or a finding left under way may not have begun: what is not there yet is not
        // found, and would stay.
        let loaded = |watch: &Watch<'_>| {
            tasks
                .iter()
                .all(|&(host, task)| watch.ended(task).is_some() || watch.logs[host].is_lost())
        };
        let _ = watch.wait(plan.deadlines.unload, Patience::Stubborn, loaded);
        let mut unloading = Vec::new();
        for &(host, _) in tasks {
            if watch.logs[host].is_lost() {
                continue;
            }
            // Also where insmod failed or was still under way: the module itself is what counts.
            let script = format!("[ ! -d /sys/module/{module} ] || rmmod {module}");
            if let Ok(task) = watch.spawn(host, &script) {
                unloading.push((host, task));
            }
        }
        let over = |watch: &Watch<'_>, &(host, task): &(usize, Task)| {
            watch.ended(task).is_some() || watch.logs[host].is_lost()
        };
        let all = |watch: &Watch<'_>| unloading.iter().all(|one| over(watch, one));
        let _ = watch.wait(plan.deadlines.unload, Patience::Stubborn, all);
        for &(host, task) in &unloading {
            let reason = match watch.ended(task) {
                Some(ended) if ended.success => continue,
                _ if watch.logs[host].is_lost() => continue,
                Some(ended) => format!("rmmod {module} failed: {}", ended.complaint),
                None => format!(
                    "rmmod {module} did not end within {} s",
                    plan.deadlines.unload.as_secs()
                ),
            };
            let name = watch.logs[host].name.clone();
            watch.find(&name, Kind::Unload, reason);
        }
    }
}
