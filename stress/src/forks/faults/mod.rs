//! `make fork-faults`: what docs/fork.md §5 says follows from failures, and that the next fork works.
//!
//! All scenarios take place on one virtual cluster, one after another: the seeds on its first machine, children on the others. After
//! each, without anything being loaded anew that the scenario itself did not end, a process is forked to every machine and proves
//! all of its memory right; then no module has anything left, no kernel log anything to find, and the machines have the RDMA resources
//! that they had before. [`absence`] takes seeds, machines and the network away, [`shortage`] memory, [`refusals`] asks for what
//! is not to be had, [`late`] for what is not there yet. [`handled`] and [`cycles`] take nothing away: children give up, protect
//! and move their memory, are traced and leave core files, or are forked many times, and what is left is looked for.

mod absence;
mod cycles;
mod handled;
mod late;
mod refusals;
mod shortage;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Result};
use serde::Serialize;

pub(super) use self::refusals::HOSTILE;
use super::walker::{SeedName, Walker, WALK};
use super::{Site, MODULE};
use crate::klog::watch::{Patience, Watch};
use crate::refusal::Refusal;
use crate::report::Verdict;
use crate::scenario::{self, Outcome, Scenario};
use crate::scene::watched;
use crate::settings::Machines;
use crate::stage::{self, Setting, Stage};

const TARGET: &str = "fork-faults";
/// 128 and SIGBUS, SIGKILL.
const BUS_ERROR: u64 = 128 + 7;
const KILLED: u64 = 128 + 9;
/// What the module says of a page that a child cannot have.
const LOST: &str = "a page is lost";

/// What soft-RoCE says of a READ that failed, at the level of an error.
const DEVICE_SAYS: &str = "make_send_cqe: non-flush error status";

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// Settings of the cluster, as for `run`.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// Only the scenarios that catch most in little time.
    #[arg(long)]
    short: bool,
    /// Only the scenarios whose name has one of these in it.
    #[arg(long, value_delimiter = ',', default_value = "")]
    only: Vec<String>,
    /// How many children are forked in the scenario that counts what is left of them.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    cycles: u64,
    /// What makes module and programs.
    #[arg(long, default_value = "templates-run/peak-lean-container.toml")]
    template: PathBuf,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// A row of `result.json`.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    scenario: Scenario,
    /// Children whose memory was right to their end.
    verified: u64,
    /// Children that ended as the documentation says.
    lost: u64,
    /// From the failure to the last of their ends.
    lost_after_ms: Option<u64>,
}

impl Outcome for Row {
    fn scenario(&self) -> &Scenario {
        &self.scenario
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = self.lost_after_ms;
        let after = after.map_or(String::new(), |ms| format!(" after {ms} ms"));
        let (verified, lost) = (self.verified, self.lost);
        self.scenario.write(
            f,
            &format!("children verified {verified}, lost {lost}{after}"),
        )
    }
}

impl Row {
    /// A child ended as it had to.
    fn lose(&mut self, since: Instant) {
        self.lost += 1;
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.lost_after_ms = Some(self.lost_after_ms.unwrap_or_default().max(ms));
    }
}

type Body<'s> = fn(&Forks<'s>, &mut Watch<'_>, &mut Row) -> Result<()>;

/// Name, whether it is part of the short form, what is expected of kernel logs besides, and what happens.
struct Plan<'s> {
    name: &'static str,
    short: bool,
    expected: &'static [&'static str],
    body: Body<'s>,
}

fn plans<'s>() -> Vec<Plan<'s>> {
    let plan = |name, short, body: Body<'s>| Plan {
        name,
        short,
        expected: &[],
        body,
    };
    vec![
        plan("the seed is revoked", true, Forks::revoked),
        plan("the network is cut for 1 s", true, Forks::cut_for_a_second),
        plan(
            "the network is cut for 60 s",
            false,
            Forks::cut_for_a_minute,
        ),
        plan(
            "the parent's machine is killed",
            false,
            Forks::parent_killed,
        ),
        plan("a child's machine is killed", false, Forks::child_killed),
        Plan {
            expected: shortage::EXPECTED,
            ..plan("a container is out of memory", false, Forks::container_full)
        },
        Plan {
            expected: shortage::EXPECTED,
            ..plan(
                "a child's machine is out of memory",
                false,
                Forks::machine_full,
            )
        },
        plan("few pages are kept", false, Forks::few_pages_kept),
        plan("memory is given up, and moved", true, Forks::handled),
        plan("debuggers, core files and exec", true, Forks::observed),
        plan("what is refused", true, Forks::refused),
        plan("a copy that freezes late, or never", true, Forks::late),
        plan(
            "a copy that freezes after its parent's end",
            true,
            Forks::outlived,
        ),
        plan("a copy that nobody claims", false, Forks::unclaimed),
        plan("a hostile machine's descriptors", true, Forks::hostile),
        plan("another cluster key", true, Forks::other_key),
        plan("cycles of fork, proof and exit", false, Forks::cycles),
    ]
}

/// The program.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let started = Instant::now();
    let setting = Setting::read(
        Some(TARGET),
        &arguments.assignments,
        &[],
        &arguments.template,
        &arguments.out,
    )?;
    match &setting.settings.machines {
        Machines::Real(_) => bail!(Refusal::of(
            "the faults end machines and cut their network: they run on the virtual cluster only"
        )),
        Machines::Virtual(machines) if machines.clients < 2 => bail!(Refusal::of(format!(
            "CLIENTS={}: children on one machine fail, and on another go on; give at least 2",
            machines.clients
        ))),
        Machines::Virtual(_) => {}
    }
    setting.forget_result();
    let (cluster, rows) = stage::on(&setting, |stage| {
        let site = Site::new(stage, &setting)?;
        let mut forks = Forks {
            resources: stage.resources()?,
            cycles: arguments.cycles,
            site,
            rows: Vec::new(),
        };
        for plan in plans() {
            let chosen = arguments.only.iter().any(|text| plan.name.contains(text));
            if chosen && (plan.short || !arguments.short) {
                forks.play(&plan)?;
            }
        }
        Ok((forks.site.cluster, forks.rows))
    })?;
    scenario::conclude("mitosis-fork-faults/1", &setting, &cluster, started, &rows)
}

struct Forks<'a> {
    site: Site<'a>,
    /// The machines' RDMA resources while nothing is loaded.
    resources: String,
    /// Children that are forked one after another.
    cycles: u64,
    rows: Vec<Row>,
}

impl<'a> Forks<'a> {
    /// Plays one scenario, and brings the machines back to where they were before it.
    fn play(&mut self, plan: &Plan<'a>) -> Result<()> {
        let progress = &self.site.setting.progress;
        progress.step(plan.name);
        let started = Instant::now();
        let mut row = Row {
            scenario: Scenario::new(plan.name),
            verified: 0,
            lost: 0,
            lost_after_ms: None,
        };
        let outcome = watched(self.stage(), self.site.hosts(), None, |watch| {
            let expected = plan.expected.iter().chain([&DEVICE_SAYS]);
            let expected = expected.map(|text| text.to_string());
            watch.expect(&expected.collect::<Vec<_>>());
            self.site.load_all(watch)?;
            (plan.body)(self, watch, &mut row)?;
            self.next_fork(watch, &mut row)?;
            self.site.unload_all(watch)
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

    fn name(&self, host: usize) -> &'a str {
        &self.site.hosts()[host].name
    }

    /// The wires are there, all machines run, and nothing is loaded.
    fn restore(&self) -> Result<()> {
        let stage = self.stage();
        let absent = stage.absent();
        for (index, host) in self.site.hosts().iter().enumerate() {
            stage.cut_off(&host.name, false)?;
            if absent.contains(&host.name) {
                stage.restart(&host.name)?;
                self.site.equip(index)?;
            }
        }
        self.site.clear(&[super::walker::PROGRAM], &[MODULE])
    }

    /// A process is forked to every machine, and all of its memory is right there; then nothing is left of anything.
    fn next_fork(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (parent, seed) = self.site.parent(watch, 4)?;
        for host in self.site.children() {
            let mut child = self.site.child(watch, host, &seed)?;
            child.walk(watch, "read")?;
            child.walk(watch, "write")?;
            child.end(watch)?;
            row.verified += 1;
        }
        self.site.retire(watch, parent)?;
        self.site.nothing_left(watch)
    }

    /// A walk that is under way, and has come to its first line.
    fn begin_walk(&self, watch: &mut Watch<'_>, child: &mut Walker, line: &str) -> Result<()> {
        child.tell(watch, line)?;
        child.hear(watch, "at", WALK)?;
        Ok(())
    }

    /// A child that needs what is not there any more ends by SIGBUS, and its machine's log says of which page.
    fn lose(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
        child: &mut Walker,
        seed: &SeedName,
        since: Instant,
    ) -> Result<()> {
        let name = self.name(child.host);
        let status = child.status(watch, WALK)?;
        row.lose(since);
        ensure!(
            status == BUS_ERROR,
            "{name}: a child that needed what is not there ended with status {status}, not by SIGBUS"
        );
        let wanted = format!("{}, {}, page ", self.site.gid, seed.in_log());
        let says = |watch: &Watch<'_>| {
            let lines = watch.logs[child.host].lines.iter();
            lines
                .map(|line| line.text.clone())
                .find(|line| line.contains(LOST) && line.contains(&wanted))
        };
        watch.wait(Duration::from_secs(5), Patience::Eager, |watch| {
            says(watch).is_some()
        })?;
        match says(watch) {
            Some(line) => row.scenario.told.push(format!("{name}: {line}")),
            None => bail!("{name}: its log does not say {LOST:?} with {wanted:?}"),
        }
        Ok(())
    }

    /// No machine's log says that a page was lost.
    fn nothing_lost(&self, watch: &Watch<'_>) -> Result<()> {
        for log in &watch.logs {
            ensure!(!log.said(LOST), "{}: a page was lost", log.name);
        }
        Ok(())
    }

    /// Whoever asks for the seed on `host` is told no, in these words.
    fn is_refused(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
        host: usize,
        seed: &SeedName,
        words: &str,
    ) -> Result<()> {
        let (hosts, gid) = (self.site.hosts(), &self.site.gid);
        let child = Walker::order(watch, hosts, host, gid, seed, Default::default())?;
        self.hears_no(watch, row, child, words)
    }

    /// A child that was ordered is told no, in these words.
    fn hears_no(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
        mut child: Walker,
        words: &str,
    ) -> Result<()> {
        let host = child.host;
        let status = child.status(watch, WALK)?;
        let said: Vec<&str> = child
            .said(watch)
            .iter()
            .map(|line| line.text.as_str())
            .collect();
        let refusal = said.iter().find(|line| line.starts_with("refused: "));
        let name = self.name(host);
        ensure!(
            status == 1 && refusal.is_some_and(|line| line.contains(words)),
            "{name}: it was to be refused with {words:?}, and said {said:?}"
        );
        row.scenario
            .told
            .push(format!("{name}: {}", refusal.unwrap_or(&"")));
        Ok(())
    }
}
