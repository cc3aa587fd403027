//! The kernel is out of memory, one allocation at a time: modules that were built for it let the n-th fail
//! (`kmod-glue/shim/failing.h`), for one n after another. Whatever was being done then may fail, and says so; nothing is
//! left behind, and the next try works.

use std::fmt;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use serde::Serialize;

use super::{lines, sample, Attack, Row, CLIENT, FAILING_PREFIX, FAR, FORK, HOSTILE, NEAR, SERVER};
use crate::klog::watch::Watch;
use crate::scene::{run_to_end, STEP};

/// For a try and what follows it, at most: a fault that cannot be served tries for 10 s.
const TRY: Duration = Duration::from_secs(30);
/// Tries that one shell command makes.
const BATCH: usize = 10;

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Figures {
    /// Allocations where none fails.
    all: u64,
    /// Of how many of them it was tried to let them fail.
    tried: u64,
    /// How many came, and failed: a little depends on when things happen.
    failed: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { all, tried, failed } = self;
        write!(
            f,
            "allocations {all}, tried {tried}, failed {failed}, left 0"
        )
    }
}

/// What a module says at its end: `allocations: 3, failed 1, left 0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Report {
    all: u64,
    failed: u64,
    left: i64,
}

impl Report {
    fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.split_once("allocations: ")?;
        let mut fields = fields.split(", ");
        Some(Self {
            all: fields.next()?.parse().ok()?,
            failed: fields.next()?.strip_prefix("failed ")?.parse().ok()?,
            left: fields.next()?.strip_prefix("left ")?.trim().parse().ok()?,
        })
    }
}

fn is_report(text: &str) -> bool {
    Report::parse(text).is_some()
}

/// The file of a module whose allocations fail.
fn file(module: &str) -> String {
    format!("{FAILING_PREFIX}{module}.ko")
}

/// All that modules have reported in a host's log behind the first `after` lines: nothing is left of anything.
fn reports(watch: &Watch<'_>, host: usize, after: usize) -> Result<Vec<Report>> {
    let said = watch.logs[host].lines.iter().skip(after);
    let reports: Vec<Report> = said.filter_map(|line| Report::parse(&line.text)).collect();
    for report in &reports {
        ensure!(
            report.left == 0,
            "{}: {} allocations are left, of {}, of which {} failed",
            watch.logs[host].name,
            report.left,
            report.all,
            report.failed
        );
    }
    Ok(reports)
}

impl Attack<'_> {
    pub(super) fn server_without_memory(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        self.insert_without_memory(watch, row, SERVER, "running_secs=600")
    }

    pub(super) fn fork_without_memory(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        self.insert_without_memory(watch, row, FORK, "")
    }

    /// A module that serves is inserted and removed. Removing it waits until it has begun to serve, or has failed.
    fn insert_without_memory(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
        module: &str,
        arguments: &str,
    ) -> Result<()> {
        let file = file(module);
        let once = format!("insmod {file} {arguments}");
        let before = lines(watch, NEAR);
        self.say(watch, NEAR, &format!("{once} && rmmod {module}"), STEP)?;
        let all = self.await_report(watch, before)?.all;
        let chosen = sample::of(all, self.arguments.allocations());
        let mut figures = Figures {
            all,
            tried: chosen.len() as u64,
            failed: 0,
        };
        for batch in chosen.chunks(BATCH) {
            let numbers: Vec<String> = batch.iter().map(u64::to_string).collect();
            let script = format!(
                "for n in {}; do if {once} fail_allocation=$n 2>&1; then rmmod {module} || exit 1; fi; \
                 {once} && rmmod {module} || exit 1; done",
                numbers.join(" ")
            );
            let before = lines(watch, NEAR);
            self.say(watch, NEAR, &script, TRY * batch.len() as u32)?;
            // Two reports a try; the next try is one that nothing fails in, and serves.
            let wanted = 2 * batch.len();
            watch.wait(STEP, crate::klog::watch::Patience::Eager, |watch| {
                reports(watch, NEAR, before).map_or(true, |reports| reports.len() >= wanted)
            })?;
            let reports = reports(watch, NEAR, before)?;
            ensure!(
                reports.len() == wanted,
                "{module} has reported {} times in {} tries",
                reports.len(),
                wanted
            );
            figures.failed += reports.iter().map(|report| report.failed).sum::<u64>();
            let said = watch.logs[NEAR].lines.iter().skip(before);
            let served = said
                .filter(|line| line.text.contains("rpc server ready"))
                .count();
            ensure!(
                served >= batch.len(),
                "{module} served {served} times after {} tries: {numbers:?}",
                batch.len()
            );
        }
        conclude(row, figures)
    }

    pub(super) fn client_without_memory(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        self.serve(watch, NEAR, "")?;
        let file = file(CLIENT);
        let all = self
            .call_once(watch, NEAR, &file, 0)?
            .report
            .map(|report| report.all);
        let all = all.context("the client does not say what it allocated")?;
        let chosen = sample::of(all, self.arguments.allocations() / 3);
        let mut figures = Figures {
            all,
            tried: chosen.len() as u64,
            failed: 0,
        };
        for (index, number) in chosen.iter().enumerate() {
            let end = self.call_once(watch, NEAR, &file, *number)?;
            figures.failed += end.report.map_or(0, |report| report.failed);
            if index % BATCH == BATCH - 1 || index + 1 == chosen.len() {
                let end = self.call_once(watch, NEAR, &file, 0)?;
                ensure!(
                    end.done,
                    "after allocation {number} failed, the next client does too"
                );
            }
        }
        run_to_end(watch, NEAR, &format!("rmmod {SERVER}"), STEP)?;
        conclude(row, figures)
    }

    pub(super) fn serving_without_memory(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
    ) -> Result<()> {
        let before = lines(watch, NEAR);
        self.serve(watch, NEAR, FAILING_PREFIX)?;
        let client = format!("{CLIENT}.ko");
        let mut figures = Figures::default();
        loop {
            let number = figures.tried + 1;
            self.fail_in(watch, SERVER, number)?;
            self.call_once(watch, FAR, &client, 0)?;
            let counted = self.allocations_of(watch, SERVER)?;
            if counted < number {
                figures.all = counted;
                break;
            }
            figures.tried = number;
            self.fail_in(watch, SERVER, 0)?;
            let end = self.call_once(watch, FAR, &client, 0)?;
            ensure!(
                end.done,
                "after allocation {number} failed, the next client does too"
            );
            ensure!(
                number < 1_000,
                "there is no end to what a client makes its server allocate"
            );
        }
        run_to_end(watch, NEAR, &format!("rmmod {SERVER}"), STEP)?;
        figures.failed = self.await_report(watch, before)?.failed;
        reports(watch, NEAR, before)?;
        conclude(row, figures)
    }

    pub(super) fn forking_without_memory(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
    ) -> Result<()> {
        let before = lines(watch, NEAR);
        run_to_end(watch, NEAR, "echo 0 >/proc/sys/debug/exception-trace", STEP)?;
        self.say(watch, NEAR, &format!("insmod {}", file(FORK)), STEP)?;
        self.await_line_after(watch, NEAR, before, "no server", |text| {
            text.contains("rpc server ready")
        })?;
        let gid = self.gid(NEAR)?;
        let fork = format!("./{HOSTILE} fork --gid {gid}");
        // The first fork is not like the others.
        for _ in 0..2 {
            self.fail_in(watch, FORK, 0)?;
            self.say(watch, NEAR, &fork, TRY)?;
        }
        let all = self.allocations_of(watch, FORK)?;
        let chosen = sample::of(all, self.arguments.allocations());
        let mut figures = Figures {
            all,
            tried: chosen.len() as u64,
            failed: 0,
        };
        let parameter = format!("/sys/module/{FORK}/parameters/fail_allocation");
        for batch in chosen.chunks(BATCH) {
            let numbers: Vec<String> = batch.iter().map(u64::to_string).collect();
            let script = format!(
                "for n in {}; do echo $n >{parameter}; {fork}; echo 0 >{parameter}; \
                 {fork} || {{ echo \"after allocation $n failed, the next fork does too\" >&2; exit 1; }}; done",
                numbers.join(" ")
            );
            self.say(watch, NEAR, &script, 2 * TRY * batch.len() as u32)?;
        }
        let before_end = lines(watch, NEAR);
        run_to_end(watch, NEAR, &format!("rmmod {FORK}"), STEP)?;
        figures.failed = self.await_report(watch, before_end)?.failed;
        reports(watch, NEAR, before_end)?;
        row.verified = Some(chosen.len() as u64 + 1);
        conclude(row, figures)
    }

    /// Inserts a server and waits until it is ready.
    fn serve(&self, watch: &mut Watch<'_>, host: usize, prefix: &str) -> Result<()> {
        let before = lines(watch, host);
        let script = format!("insmod {prefix}{SERVER}.ko running_secs=3600");
        self.say(watch, host, &script, STEP)?;
        self.await_line_after(watch, host, before, "no server", |text| {
            text.contains("rpc server ready")
        })?;
        Ok(())
    }

    /// Lets the n-th allocation from now on fail, or none, in a module that is inserted on the first host.
    fn fail_in(&self, watch: &mut Watch<'_>, module: &str, number: u64) -> Result<()> {
        let parameter = format!("/sys/module/{module}/parameters/fail_allocation");
        run_to_end(watch, NEAR, &format!("echo {number} >{parameter}"), STEP)
    }

    /// How many it has made since then.
    fn allocations_of(&self, watch: &mut Watch<'_>, module: &str) -> Result<u64> {
        let script = format!("cat /sys/module/{module}/parameters/allocations");
        let said = self.say(watch, NEAR, &script, STEP)?;
        let said = said.first().map_or("", String::as_str);
        said.parse()
            .with_context(|| format!("{said:?} allocations"))
    }

    /// A client with one thread, which calls for a second if all goes well.
    fn call_once(&self, watch: &mut Watch<'_>, host: usize, file: &str, fail: u64) -> Result<End> {
        let before = lines(watch, host);
        let gid = &self.site.gid;
        let fail = match fail {
            0 => String::new(),
            number => format!("fail_allocation={number}"),
        };
        let script = format!(
            "insmod {file} gid={gid} running_secs=1 thread_count=1 session_id_base=64 {fail} 2>&1 && echo inserted; true"
        );
        let said = self.say(watch, host, &script, STEP)?;
        let mut done = false;
        if said.iter().any(|line| line == "inserted") {
            let end = self.await_line_after(watch, host, before, "the client's end", |text| {
                text.contains("stress test done") || text.contains("stress test failed")
            })?;
            done = end.contains("stress test done");
            run_to_end(watch, host, &format!("rmmod {CLIENT}"), STEP)?;
        }
        let report = match file.starts_with(FAILING_PREFIX) {
            true => {
                self.await_line_after(watch, host, before, "the client's report", is_report)?;
                reports(watch, host, before)?.pop()
            }
            false => None,
        };
        Ok(End { done, report })
    }

    fn await_report(&self, watch: &mut Watch<'_>, after: usize) -> Result<Report> {
        let line = self.await_line_after(watch, NEAR, after, "a report", is_report)?;
        Report::parse(&line).context("no report")
    }
}

/// How a client ended.
struct End {
    done: bool,
    report: Option<Report>,
}

fn conclude(row: &mut Row, figures: Figures) -> Result<()> {
    row.allocations = Some(figures);
    ensure!(
        figures.failed * 2 >= figures.tried && figures.failed > 0,
        "of {} allocations that were to fail {} came",
        figures.tried,
        figures.failed
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_wherever_it_stands_in_a_line() {
        let report = Report {
            all: 2300,
            failed: 1,
            left: -2,
        };
        assert_eq!(
            Report::parse("allocations: 2300, failed 1, left -2"),
            Some(report)
        );
        assert_eq!(Report::parse("allocation 7 fails: kzalloc"), None);
        assert_eq!(Report::parse("allocations: many, failed 1, left 0"), None);
    }
}
