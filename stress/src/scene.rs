//! What the checks and the faults do with modules by hand, while the kernel logs are followed.

use std::time::Duration;

use anyhow::{bail, ensure, Result};

use crate::cluster::Host;
use crate::klog::audit::{Finding, Kind};
use crate::klog::watch::{Patience, Task, Waited, Watch};
use crate::progress::Progress;
use crate::stage::Stage;

/// For a command, or a line, that comes at once unless something hangs.
pub const STEP: Duration = Duration::from_secs(30);

/// Follows the logs of `hosts` while `body` lasts; whatever is found there fails, but error lines with `allowed`.
pub fn watched<T>(
    stage: &Stage<'_>,
    hosts: &[Host],
    allowed: Option<&str>,
    body: impl FnOnce(&mut Watch<'_>) -> Result<T>,
) -> Result<T> {
    let quiet = Progress::silent();
    stage.watch(hosts, &quiet, |watch| {
        let outcome = body(watch);
        watch.settle(STEP);
        let expected = |finding: &Finding| {
            finding.kind == Kind::Error && allowed.is_some_and(|text| finding.line.contains(text))
        };
        if let Some(finding) = watch.findings.iter().find(|finding| !expected(finding)) {
            bail!("{}: {}", finding.host, finding.line);
        }
        outcome
    })
}

/// Runs `script` on a host and waits for its end, whatever the logs say meanwhile.
pub fn run_to_end(
    watch: &mut Watch<'_>,
    host: usize,
    script: &str,
    timeout: Duration,
) -> Result<()> {
    let task = watch.spawn(host, script)?;
    all_end(watch, &[task], script, timeout)
}

/// Likewise, on the first `hosts` hosts at the same time.
pub fn run_everywhere(watch: &mut Watch<'_>, hosts: usize, script: &str) -> Result<()> {
    let tasks: Vec<Task> = (0..hosts)
        .map(|host| watch.spawn(host, script))
        .collect::<Result<_>>()?;
    all_end(watch, &tasks, script, STEP)
}

fn all_end(watch: &mut Watch<'_>, tasks: &[Task], script: &str, timeout: Duration) -> Result<()> {
    watch.wait(timeout, Patience::Stubborn, |watch| {
        tasks.iter().all(|&task| watch.ended(task).is_some())
    })?;
    for &task in tasks {
        match watch.ended(task) {
            None => bail!("`{script}` did not end within {} s", timeout.as_secs()),
            Some(ended) => ensure!(ended.success, "`{script}` failed: {}", ended.complaint),
        }
    }
    Ok(())
}

/// Waits until a host says `text`.
pub fn await_line(watch: &mut Watch<'_>, host: usize, text: &str) -> Result<()> {
    await_that(watch, STEP, &format!("{text:?}"), |watch| {
        watch.logs[host].said(text)
    })
}

/// Waits until `done`; `what` is named where it does not come.
pub fn await_that(
    watch: &mut Watch<'_>,
    timeout: Duration,
    what: &str,
    done: impl FnMut(&Watch<'_>) -> bool,
) -> Result<()> {
    match watch.wait(timeout, Patience::Eager, done)? {
        Waited::Done => Ok(()),
        Waited::Broken => bail!("something was found while waiting for {what}"),
        Waited::Late => bail!("no {what} within {} s", timeout.as_secs()),
    }
}
