//! Bad calls on `/dev/mitosis`, by somebody in its group on one machine and by root on the other, while a seed of the
//! first machine is a child on the second.

use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::{Attack, Row, FAR, FORK, HOSTILE, NEAR};
use crate::cluster::shell::quote;
use crate::klog::watch::{Patience, Task, Watch};
use crate::scene::{run_to_end, STEP};

/// Calls a second that are made in any case.
const SLOWEST_PER_S: u64 = 200;
/// A user, the group of the device, and somebody who is not in it.
const USER: u32 = 1000;
const GROUP: u32 = 990;
const STRANGER: u32 = 1001;
/// What it says in the end.
const DONE: &str = "hostile calls done: calls ";

/// As a distribution's rule does it; and no lines about processes that crash, which is theirs to do.
const GRANT: &str =
    "chgrp 990 /dev/mitosis && chmod 660 /dev/mitosis && echo 0 >/proc/sys/debug/exception-trace";

impl Attack<'_> {
    pub(super) fn calls(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let calls = self.arguments.calls();
        let seed = self.arguments.seed;
        self.site.load_all(watch)?;
        for host in [NEAR, FAR] {
            run_to_end(watch, host, GRANT, STEP)?;
        }
        let refused = self.begin_calls(watch, NEAR, 10, seed, Some((STRANGER, STRANGER)))?;
        watch.wait(STEP, Patience::Stubborn, |watch| {
            watch.ended(refused).is_some()
        })?;
        let told = watch.ended(refused).is_some_and(|ended| !ended.success);
        ensure!(told, "somebody who is in no group has the device");

        let (parent, name) = self.site.parent(watch, 4)?;
        let mut child = self.site.child(watch, FAR, &name)?;
        let member = self.begin_calls(watch, NEAR, calls / 2, seed, Some((USER, GROUP)))?;
        let root = self.begin_calls(watch, FAR, calls - calls / 2, seed + 1, None)?;
        child.walk(watch, "read")?;
        let timeout = STEP * 3 + Duration::from_secs(calls / SLOWEST_PER_S);
        let mut made = 0;
        for (host, task) in [(NEAR, member), (FAR, root)] {
            made += self.end_calls(watch, row, host, task, timeout)?;
        }
        row.calls = Some(made);
        ensure!(made >= calls, "{made} of {calls} calls were made");

        // What was there before them is still there, and what comes after them works.
        child.walk(watch, "write")?;
        child.end(watch)?;
        let mut verified = 1;
        for host in [NEAR, FAR] {
            let mut child = self.site.child(watch, host, &name)?;
            child.walk(watch, "write")?;
            child.end(watch)?;
            let gid = self.gid(host)?;
            self.say(watch, host, &format!("./{HOSTILE} fork --gid {gid}"), STEP)?;
            verified += 2;
        }
        self.site.retire(watch, parent)?;
        let (parent, name) = self.site.parent(watch, 4)?;
        let mut child = self.site.child(watch, FAR, &name)?;
        child.walk(watch, "write")?;
        child.end(watch)?;
        row.verified = Some(verified + 1);
        self.site.retire(watch, parent)?;
        self.site.nothing_left(watch)?;
        for host in [FAR, NEAR] {
            run_to_end(watch, host, &format!("rmmod {FORK}"), STEP)?;
        }
        Ok(())
    }

    /// Lets somebody make them.
    fn begin_calls(
        &self,
        watch: &mut Watch<'_>,
        host: usize,
        calls: u64,
        seed: u64,
        who: Option<(u32, u32)>,
    ) -> Result<Task> {
        let directory = quote(&self.site.hosts()[host].directory.to_string_lossy());
        let who = who.map_or(String::new(), |(user, group)| {
            format!(" --user {user} --group {group}")
        });
        let gid = self.gid(host)?;
        watch.spawn(
            host,
            &format!("cd {directory} && ./{HOSTILE} attack --gid {gid} --calls {calls} --seed {seed}{who}"),
        )
    }

    /// Waits until they are made; how many there were.
    fn end_calls(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
        host: usize,
        task: Task,
        timeout: Duration,
    ) -> Result<u64> {
        watch.wait(timeout, Patience::Eager, |watch| {
            watch.ended(task).is_some()
        })?;
        let name = watch.logs[host].name.clone();
        let said = watch.said(task).iter().map(|line| line.text.as_str());
        let about = said.filter_map(|text| text.split_once("- hostile ").map(|(_, text)| text));
        let told: Vec<String> = about.map(|text| format!("{name}: {text}")).collect();
        row.scenario.told.extend(told.iter().cloned());
        let ended = watch.ended(task);
        let ended = ended.with_context(|| format!("{name}: the calls do not end"))?;
        ensure!(ended.success, "{name}: {}", ended.complaint);
        let made = told.iter().find_map(|line| {
            let (_, after) = line.split_once(&DONE["hostile ".len()..])?;
            after.split(',').next()?.parse().ok()
        });
        made.with_context(|| format!("{name}: no line {DONE:?}"))
    }
}
