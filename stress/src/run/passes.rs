//! The template's passes: each starts on all hosts of its role at once, and all end in the opposite order.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Plan;
use super::Prepared;
use crate::cluster::shell::quote;
use crate::interrupt::{Interrupt, Interrupted};
use crate::klog::audit::{Finding, Kind};
use crate::klog::watch::{Patience, Task, Waited, Watch};
use crate::progress::Progress;
use crate::template::{fill, Counts, RunPass};

/// A pass that was started.
pub(super) struct Started<'a> {
    pub(super) pass: &'a RunPass,
    /// Host and what runs there.
    pub(super) tasks: Vec<(usize, Task)>,
}

/// Values that passes gave to later ones.
type Given = BTreeMap<String, String>;

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
        dismiss(plan, watch, progress, &started);
        if result.is_ok() {
            look_for_leftovers(plan, prepared, watch, &started);
        }
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
    let mut given = Given::new();
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
            let spawned = script(plan, prepared, &given, pass, index).and_then(|script| {
                match pass.program {
                    Some(_) if !pass.interactive => watch.spawn_program(index, &script),
                    _ => watch.spawn(index, &script),
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
        // A command that gets ready goes on while the next passes run, as programs do; anything else ends first.
        if pass.module.is_some() || (pass.command.is_some() && pass.ready.is_none()) {
            await_tasks(plan, pass, watch, &tasks)?;
        }
        if let Some(text) = &pass.ready {
            progress.step(&format!("waiting until {} is ready", pass.name));
            await_text(watch, pass, &tasks, text, plan.deadlines.ready)?;
            take_given(watch, pass, &tasks, text, &mut given)?;
        }
    }
    Ok(())
}

/// Reads the values that `pass` gives off its ready line.
fn take_given(
    watch: &mut Watch<'_>,
    pass: &RunPass,
    tasks: &[(usize, Task)],
    text: &str,
    given: &mut Given,
) -> Result<(), Stop> {
    for &(host, task) in tasks {
        let lines = watch.said(task).iter();
        let line = lines
            .map(|line| &line.text)
            .find(|line| line.contains(text));
        let line = line.cloned().unwrap_or_default();
        for name in &pass.gives {
            let mut words = line
                .split_whitespace()
                .filter_map(|word| word.split_once('='));
            match words.find(|(word, _)| word == name) {
                Some((_, value)) => {
                    given.insert(name.clone(), value.to_string());
                }
                None => {
                    let name_of_host = watch.logs[host].name.clone();
                    let reason = format!("{} gives no {name}: it said {line:?}", pass.name);
                    watch.find(&name_of_host, Kind::Program, reason);
                    return Err(Stop::Found);
                }
            }
        }
    }
    Ok(())
}

/// The shell command that starts `pass` on a host.
fn script(
    plan: &Plan<'_>,
    prepared: &Prepared,
    given: &Given,
    pass: &RunPass,
    host: usize,
) -> Result<String, String> {
    let value = |name: &str| value(plan, prepared, given, host, name);
    let no_value = |name| format!("pass {:?}: no value for {{{name}}}", pass.name);
    let arguments = fill(&pass.arguments, value).map_err(no_value)?;
    let optional = pass.optional_arguments(|name| plan.parameters.get(name).copied());
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
    let directory = quote(&plan.hosts[host].directory.to_string_lossy());
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
        (None, Some(program), _) if pass.interactive => {
            Ok(format!("cd {directory} && exec ./{program} {arguments}"))
        }
        (None, Some(program), _) => {
            // The key is nobody's to see in a list of processes.
            let key = (!plan.cluster_key.is_empty())
                .then(|| format!("env CLUSTER_KEY={} ", quote(plan.cluster_key)));
            // One simple command: what the run has the process id of.
            Ok(format!(
                "{}{} {arguments}",
                key.unwrap_or_default(),
                plan.hosts[host].path(program)
            ))
        }
        (None, None, Some(command)) => {
            let command = fill(command, value).map_err(no_value)?;
            Ok(format!("cd {directory} && {command} {arguments}"))
        }
        (None, None, None) => Err(format!("pass {:?} has nothing to do", pass.name)),
    }
}

/// What `{name}` stands for on a host.
fn value(
    plan: &Plan<'_>,
    prepared: &Prepared,
    given: &Given,
    host: usize,
    name: &str,
) -> Option<String> {
    match name {
        "gid" => Some(prepared.gid.to_string()),
        "random" => prepared.session_id_bases.get(host).map(u64::to_string),
        _ => plan
            .parameters
            .get(name)
            .map(u64::to_string)
            .or_else(|| given.get(name).cloned()),
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

/// Waits until each host of the pass says `text`: its program, where it has one, or else its kernel.
fn await_text(
    watch: &mut Watch<'_>,
    pass: &RunPass,
    tasks: &[(usize, Task)],
    text: &str,
    timeout: Duration,
) -> Result<(), Stop> {
    let said = |watch: &Watch<'_>, &(host, task): &(usize, Task)| match pass.interactive {
        true => watch.said(task).iter().any(|line| line.text.contains(text)),
        false => watch.logs[host].said(text),
    };
    // A program that has ended says nothing more.
    let mute = |watch: &Watch<'_>, &(_, task): &(usize, Task)| {
        pass.program.is_some() && watch.ended(task).is_some()
    };
    let over = |watch: &Watch<'_>| {
        tasks
            .iter()
            .all(|task| said(watch, task) || mute(watch, task))
    };
    let waited = watch.wait(timeout, Patience::Eager, over)?;
    let mut failed = waited != Waited::Done;
    for one in tasks {
        if said(watch, one) {
            continue;
        }
        let (kind, reason) = match watch.ended(one.1) {
            Some(ended) if pass.interactive => (
                Kind::Program,
                format!(
                    "{} ended before it was ready: {}",
                    pass.name, ended.complaint
                ),
            ),
            Some(ended) if pass.program.is_some() => (
                Kind::Load,
                format!(
                    "{} ended without having said {text:?}: {}",
                    pass.program.as_deref().unwrap_or_default(),
                    ended.complaint
                ),
            ),
            _ if waited == Waited::Late => (
                Kind::Deadline,
                format!("no {text:?} within {} s", timeout.as_secs()),
            ),
            _ => continue,
        };
        let name = watch.logs[one.0].name.clone();
        watch.find(&name, kind, reason);
        failed = true;
    }
    if failed {
        Err(Stop::Found)
    } else {
        Ok(())
    }
}

fn await_done(
    plan: &Plan<'_>,
    watch: &mut Watch<'_>,
    progress: &Progress,
    started: &[Started<'_>],
) -> Result<(), Stop> {
    for Started { pass, tasks } in started {
        // A pass that is told how long to run says so in its arguments.
        let told = |name: &str| {
            (name.ends_with("running_secs") || name == "run_secs")
                && pass.arguments.contains(&format!("{{{name}}}"))
        };
        let running = plan.parameters.iter().filter(|(name, _)| told(name));
        let secs = running.map(|(_, &secs)| secs).max().unwrap_or(0);
        let timeout = Duration::from_secs(secs) + plan.deadlines.slack;
        if pass.done.is_some() || runs_to_its_end(pass) {
            progress.step(&format!("waiting until {} are done", pass.name));
        }
        if let Some(text) = &pass.done {
            await_text(watch, pass, tasks, text, timeout)?;
        }
        if runs_to_its_end(pass) {
            await_end(watch, pass, tasks, timeout)?;
        }
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

/// Whether the run lasts until the pass's programs end; others are told to.
fn runs_to_its_end(pass: &RunPass) -> bool {
    pass.interactive && pass.ready.is_none()
}

fn await_end(
    watch: &mut Watch<'_>,
    pass: &RunPass,
    tasks: &[(usize, Task)],
    timeout: Duration,
) -> Result<(), Stop> {
    let all = |watch: &Watch<'_>| tasks.iter().all(|&(_, task)| watch.ended(task).is_some());
    match watch.wait(timeout, Patience::Eager, all)? {
        Waited::Done => Ok(()),
        Waited::Broken => Err(Stop::Found),
        Waited::Late => {
            for &(host, task) in tasks {
                if watch.ended(task).is_none() {
                    let name = watch.logs[host].name.clone();
                    let reason =
                        format!("{} did not end within {} s", pass.name, timeout.as_secs());
                    watch.find(&name, Kind::Deadline, reason);
                }
            }
            Err(Stop::Found)
        }
    }
}

/// Tells the interactive programs to end, the last pass first, and waits until they have.
fn dismiss(plan: &Plan<'_>, watch: &mut Watch<'_>, progress: &Progress, started: &[Started<'_>]) {
    for Started { pass, tasks } in started.iter().rev() {
        let Some(program) = pass.program.as_ref().filter(|_| pass.interactive) else {
            continue;
        };
        progress.step(&format!("ending {}", pass.name));
        let early =
            |watch: &Watch<'_>, task: Task| !runs_to_its_end(pass) && watch.ended(task).is_some();
        let early: Vec<bool> = tasks.iter().map(|&(_, task)| early(watch, task)).collect();
        for &(_, task) in tasks {
            watch.dismiss(task);
        }
        let all = |watch: &Watch<'_>| {
            tasks
                .iter()
                .all(|&(host, task)| watch.ended(task).is_some() || watch.logs[host].is_lost())
        };
        let _ = watch.wait(plan.deadlines.unload, Patience::Stubborn, all);
        for (&(host, task), early) in tasks.iter().zip(early) {
            if watch.logs[host].is_lost() {
                continue;
            }
            let reason = match watch.ended(task) {
                Some(ended) if early => {
                    format!("{program} ended before it was told to: {}", ended.complaint)
                }
                // What a counting program has to complain of is in its count.
                Some(ended) if ended.success || pass.counts != Counts::Requests => continue,
                Some(ended) => format!("{program} failed: {}", ended.complaint),
                None => format!(
                    "{program} did not end within {} s of being told to",
                    plan.deadlines.unload.as_secs()
                ),
            };
            let name = watch.logs[host].name.clone();
            watch.find(&name, Kind::Program, reason);
        }
    }
}

/// Runs what the passes say tells what is left of them.
fn look_for_leftovers(
    plan: &Plan<'_>,
    prepared: &Prepared,
    watch: &mut Watch<'_>,
    started: &[Started<'_>],
) {
    let mut looking = Vec::new();
    for Started { pass, tasks } in started {
        let Some(left) = &pass.left else { continue };
        for &(host, _) in tasks {
            if watch.logs[host].is_lost() {
                continue;
            }
            let directory = quote(&plan.hosts[host].directory.to_string_lossy());
            let value = |name: &str| value(plan, prepared, &Given::new(), host, name);
            let spawned = fill(left, value)
                .map_err(|name| format!("no value for {{{name}}}"))
                .and_then(|left| {
                    let script = format!("cd {directory} && {left}");
                    watch
                        .spawn(host, &script)
                        .map_err(|error| format!("{error:#}"))
                });
            match spawned {
                Ok(task) => looking.push((host, task)),
                Err(reason) => {
                    let name = watch.logs[host].name.clone();
                    watch.find(&name, Kind::Left, reason);
                }
            }
        }
    }
    let all = |watch: &Watch<'_>| {
        looking
            .iter()
            .all(|&(host, task)| watch.ended(task).is_some() || watch.logs[host].is_lost())
    };
    let _ = watch.wait(plan.deadlines.command, Patience::Stubborn, all);
    for (host, task) in looking {
        let reason = match watch.ended(task) {
            Some(ended) if ended.success => continue,
            Some(ended) => ended.complaint.clone(),
            None => "what is left there could not be told in time".into(),
        };
        let name = watch.logs[host].name.clone();
        watch.find(&name, Kind::Left, reason);
    }
}

/// Unloads the modules and ends the programs of the passes, the last pass first, whatever state they are in.
fn unload(plan: &Plan<'_>, watch: &mut Watch<'_>, progress: &Progress, started: &[Started<'_>]) {
    for Started { pass, tasks } in started.iter().rev() {
        if let Some(program) = pass.program.as_ref().filter(|_| !pass.interactive) {
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
