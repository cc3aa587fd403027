//! `make bench-fork`: remote fork beside `fork()`, perftest and CRIU, on one pair of machines in one run.
//!
//! As with `make bench-rpc`, what is compared is measured in turn, round after round, and what counts is the ratio of the
//! medians.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use comfy_table::{presets, CellAlignment, Table};
use serde::Serialize;

use super::walker::{How, SeedName, Walker};
use super::{Site, PARENT};
use crate::bench::median;
use crate::bench::perftest::Pair;
use crate::cluster::Host;
use crate::klog::watch::Watch;
use crate::report::{ClusterInfo, Verdict};
use crate::run::parent_gid;
use crate::scene::watched;
use crate::settings::{Machines, MemoryDebugging};
use crate::stage::{self, Setting};

const TARGET: &str = "bench-fork";
/// Where children are.
const CHILD: usize = 1;
/// Memory of the processes that are prepared. Faults are measured in the second, the rest in the last.
const SIZES_MIB: [u64; 3] = [1, 16, 256];
/// Of the memory of the last, what is walked over.
const WALKED_PAGES: u64 = 64 << 8;
/// How often in a round a process is prepared and forked, in turn: a fork() is over in a moment, which may be a bad one.
const PREPARED: u32 = 41;
/// How often in a round a child is made of either seed.
const RESUME_TURNS: u32 = 4;
/// How often in a round faults are measured, and single READs.
const FAULT_TURNS: u32 = 3;
/// Pages that are touched one by one.
const TOUCHED: u64 = 1500;
/// As long as the longest READ of a fault: 16 pages.
const READ_LEN: u32 = 65_536;
const SIBLINGS: usize = 10;

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// Settings of the cluster, as for `run`.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// How often each row is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// What makes module and programs.
    #[arg(long, default_value = "templates-run/peak-lean-container.toml")]
    template: PathBuf,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// What a row's ratio is to be.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// It is shown.
    Open,
}

/// One thing that was measured, and what it is compared with.
#[derive(Serialize)]
struct Row {
    what: String,
    beside: String,
    unit: &'static str,
    measured: Vec<f64>,
    compared: Vec<f64>,
    median: f64,
    compared_median: f64,
    ratio: f64,
    bound: Bound,
    held: bool,
}

/// `out/bench-fork/result.json`.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    target: &'static str,
    verdict: Verdict,
    cluster: &'a ClusterInfo,
    parameters: &'a BTreeMap<String, u64>,
    rounds: u32,
    rows: &'a [Row],
}

/// The program.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let mut setting = Setting::read(
        Some(TARGET),
        &arguments.assignments,
        &[],
        &arguments.template,
        &arguments.out,
    )?;
    if let Machines::Virtual(machines) = &mut setting.settings.machines {
        machines.clients = 1;
        // The largest parent, its copies, and what else a machine has.
        machines.memory_mib = machines.memory_mib.max(768);
        machines.debugging.get_or_insert(MemoryDebugging::Off);
    }
    setting.forget_result();
    let (cluster, rows) = stage::on(&setting, |stage| {
        let mut bench = Bench {
            site: Site::new(stage, &setting)?,
            rows: Vec::new(),
        };
        bench.measure(arguments.rounds)?;
        Ok((bench.site.cluster, bench.rows))
    })?;
    conclude(&setting, arguments.rounds, &cluster, rows)
}

pub(super) struct Bench<'a> {
    pub(super) site: Site<'a>,
    rows: Vec<Row>,
}

impl Bench<'_> {
    fn measure(&mut self, rounds: u32) -> Result<()> {
        let hosts = self.site.hosts();
        let [parent, child, ..] = hosts else {
            bail!("a comparison takes two machines");
        };
        let machines = [parent.clone(), child.clone()];
        let inspected = [
            self.site.inspected[PARENT].clone(),
            self.site.inspected[CHILD].clone(),
        ];
        let pair = Pair {
            hosts: &machines,
            inspected: &inspected,
            gid: parent_gid(hosts, &self.site.inspected, None)?,
            interrupt: self.site.stage.interrupt(),
        };
        let stage = self.site.stage;
        watched(stage, hosts, None, |watch| {
            self.site.load_all(watch)?;
            self.equip_for_criu()?;
            let mut parents = Vec::new();
            for (secret, mib) in SIZES_MIB.into_iter().enumerate() {
                let secret = secret as u64;
                parents.push(Walker::start(watch, hosts, PARENT, mib, secret, true)?);
            }
            for number in 0..rounds {
                let progress = &self.site.setting.progress;
                progress.step(&format!("round {} of {rounds}", number + 1));
                // Whichever comes first may find the machine in another mood: they take turns at that too.
                self.round(watch, &pair, &mut parents, number % 2 == 0)?;
            }
            for mut parent in parents {
                parent.end(watch)?;
            }
            self.site.nothing_left(watch)?;
            self.site.unload_all(watch)
        })
    }

    fn round(
        &mut self,
        watch: &mut Watch<'_>,
        pair: &Pair<'_>,
        parents: &mut [Walker],
        ours_first: bool,
    ) -> Result<()> {
        for (parent, mib) in parents.iter_mut().zip(SIZES_MIB) {
            self.prepare(watch, parent, mib)?;
        }
        let (mut seeds, mut prepared_s) = (Vec::new(), Vec::new());
        for parent in parents.iter_mut() {
            let (seed, answer) = parent.prepare(watch)?;
            seeds.push(seed);
            prepared_s.push(answer.number("ns")? as f64 / 1e9);
        }
        let [small, middle, large] = &seeds[..] else {
            bail!("three seeds are needed");
        };
        for turn in 0..RESUME_TURNS {
            self.resume(watch, small, large, ours_first ^ (turn % 2 == 1))?;
        }
        for (index, seed) in [small, middle].into_iter().enumerate() {
            let resumed_s = self.resumed_us(watch, seed)? / 1e6;
            let ours = [prepared_s[index] + resumed_s, resumed_s];
            self.beside_criu(SIZES_MIB[index], ours)?;
        }

        // Each is over in seconds, and this machine's moods last as long: several turns even them out.
        for turn in 0..FAULT_TURNS {
            let ours_first = ours_first ^ (turn % 2 == 1);
            let before = (!ours_first).then(|| pair.read_us(4096)).transpose()?;
            let fault_us = self.fault_us(watch, middle)?;
            let floor_us = before.map_or_else(|| pair.read_us(4096), Ok)?;
            self.add(
                "a fault, 4 KiB",
                "ib_read_lat -s 4096",
                "µs",
                Bound::AtMost(1.3),
                fault_us,
                floor_us,
            );
        }

        let before = (!ours_first)
            .then(|| pair.read_mib_per_s(READ_LEN))
            .transpose()?;
        let walked = self.walked_mib_per_s(watch, large, How::default())?;
        let floor = before.map_or_else(|| pair.read_mib_per_s(READ_LEN), Ok)?;
        self.add(
            "touching all pages, in order",
            "ib_read_bw -s 65536",
            "MiB/s",
            Bound::AtLeast(0.7),
            walked,
            floor,
        );
        self.siblings(watch, large)?;
        for parent in parents.iter_mut() {
            parent.ask(watch, "unprepare", "unprepared")?;
        }
        Ok(())
    }

    fn prepare(&mut self, watch: &mut Watch<'_>, parent: &mut Walker, mib: u64) -> Result<()> {
        let compared = parent.ask(watch, &format!("compare {PREPARED}"), "compared")?;
        let us = |name: &str| Ok::<_, anyhow::Error>(compared.number(name)? as f64 / 1e3);
        self.add(
            &format!("prepare, {mib} MiB"),
            "fork()",
            "µs",
            Bound::AtMost(1.5),
            us("ns")?,
            us("forked_ns")?,
        );
        self.add(
            &format!("prepare, {mib} MiB, until it has frozen"),
            "fork(), until the copy runs",
            "µs",
            Bound::Open,
            us("frozen_ns")?,
            us("heard_ns")?,
        );
        Ok(())
    }

    /// From before the seed is opened to the child's first own clock reading.
    fn resumed_us(&self, watch: &mut Watch<'_>, seed: &SeedName) -> Result<f64> {
        let (hosts, gid) = (self.site.hosts(), &self.site.gid);
        let mut child = Walker::order(watch, hosts, CHILD, gid, seed, How::default())?;
        let opened = child.hear(watch, "opened", super::walker::WALK)?;
        let begun = child.hear(watch, "begun", super::walker::WALK)?;
        child.end(watch)?;
        Ok(opened.number("ns")? as f64 / 1e3 + begun.number("us")? as f64)
    }

    fn resume(
        &mut self,
        watch: &mut Watch<'_>,
        small: &SeedName,
        large: &SeedName,
        large_first: bool,
    ) -> Result<()> {
        let mut took = [0.0; 2];
        let order = if large_first { [1, 0] } else { [0, 1] };
        for which in order {
            took[which] = self.resumed_us(watch, [small, large][which])?;
        }
        let [one, all] = took;
        self.add(
            "resume, 256 MiB",
            "resume, 1 MiB",
            "µs",
            Bound::AtMost(1.2),
            all,
            one,
        );
        Ok(())
    }

    /// The median of faults that each read one page, in chunks that are known.
    fn fault_us(&self, watch: &mut Watch<'_>, seed: &SeedName) -> Result<f64> {
        let how = How {
            prefetch: 1,
            ..How::default()
        };
        let mut child = self.child(watch, seed, how)?;
        // Every second page: no fault follows the one before.
        let touched = child.walk(watch, &format!("touch 1 {TOUCHED} 2"))?;
        child.end(watch)?;
        Ok(touched.number("median_ns")? as f64 / 1e3)
    }

    fn walked_mib_per_s(
        &self,
        watch: &mut Watch<'_>,
        seed: &SeedName,
        how: How<'_>,
    ) -> Result<f64> {
        let mut child = self.child(watch, seed, how)?;
        let walked = child.walk(watch, &format!("touch 0 {WALKED_PAGES}"))?;
        child.end(watch)?;
        let mib = walked.number("pages")? as f64 / 256.0;
        Ok(mib / (walked.number("ns")? as f64 / 1e9))
    }

    fn child(&self, watch: &mut Watch<'_>, seed: &SeedName, how: How<'_>) -> Result<Walker> {
        let (hosts, gid) = (self.site.hosts(), &self.site.gid);
        Ok(Walker::resume(watch, hosts, CHILD, gid, seed, how)?.0)
    }

    /// What a machine's memory has less of with children that have read the same pages: all of it, with the processes that
    /// they were and the ssh sessions that they speak through.
    fn siblings(&mut self, watch: &mut Watch<'_>, seed: &SeedName) -> Result<()> {
        let host = &self.site.hosts()[CHILD];
        let before = self.free_mib(host)?;
        let mut children: Vec<Walker> = Vec::new();
        let mut used = Vec::new();
        for number in 1..=SIBLINGS {
            let mut child = self.child(watch, seed, How::default())?;
            child.walk(watch, &format!("touch 0 {WALKED_PAGES}"))?;
            children.push(child);
            if number == 1 || number == SIBLINGS {
                used.push(before - self.free_mib(host)?);
            }
        }
        for mut child in children {
            child.end(watch)?;
        }
        let [one, ten] = used[..] else {
            bail!("memory was not measured twice");
        };
        self.add(
            "memory of ten siblings",
            "of one",
            "MiB",
            Bound::AtMost(1.2),
            ten,
            one,
        );
        Ok(())
    }

    fn free_mib(&self, host: &Host) -> Result<f64> {
        let script = "awk '/^MemFree:/ { print $2 }' /proc/meminfo";
        let printed = host.ask(script, self.site.limit())?;
        let kib: f64 = printed.trim().parse().context("MemFree")?;
        Ok(kib / 1024.0)
    }

    pub(super) fn add(
        &mut self,
        what: &str,
        beside: &str,
        unit: &'static str,
        bound: Bound,
        measured: f64,
        compared: f64,
    ) {
        let known = |row: &Row| row.what == what && row.beside == beside;
        let index = self.rows.iter().position(known).unwrap_or_else(|| {
            self.rows.push(Row {
                what: what.into(),
                beside: beside.into(),
                unit,
                measured: Vec::new(),
                compared: Vec::new(),
                median: 0.0,
                compared_median: 0.0,
                ratio: 0.0,
                bound,
                held: false,
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[index];
        row.measured.push(measured);
        row.compared.push(compared);
    }
}

impl Row {
    fn conclude(&mut self) {
        self.median = median(self.measured.iter().copied());
        self.compared_median = median(self.compared.iter().copied());
        self.ratio = self.median / self.compared_median;
        self.held = match self.bound {
            Bound::AtMost(most) => self.ratio <= most,
            Bound::AtLeast(least) => self.ratio >= least,
            Bound::Open => true,
        };
    }

    /// The lowest and the highest ratio of a round.
    fn spread(&self) -> (f64, f64) {
        let pairs = self.measured.iter().zip(&self.compared);
        let ratios = pairs.map(|(measured, compared)| measured / compared);
        ratios.fold((f64::MAX, 0.0f64), |(low, high), ratio| {
            (low.min(ratio), high.max(ratio))
        })
    }

    fn cells(&self) -> [String; 7] {
        let (low, high) = self.spread();
        let bound = match self.bound {
            Bound::AtMost(most) => format!("≤ {most}"),
            Bound::AtLeast(least) => format!("≥ {least}"),
            Bound::Open => "-".into(),
        };
        let missed = if self.held { "" } else { " missed" };
        [
            self.what.clone(),
            format!("{:.1} {}", self.median, self.unit),
            self.beside.clone(),
            format!("{:.1} {}", self.compared_median, self.unit),
            format!("{:.2}", self.ratio),
            format!("{low:.2} to {high:.2}"),
            format!("{bound}{missed}"),
        ]
    }
}

fn conclude(
    setting: &Setting,
    rounds: u32,
    cluster: &ClusterInfo,
    mut rows: Vec<Row>,
) -> Result<Verdict> {
    rows.iter_mut().for_each(Row::conclude);
    let verdict = if rows.iter().all(|row| row.held) && !rows.is_empty() {
        Verdict::Pass
    } else {
        Verdict::Fail
    };
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header([
        "",
        "median",
        "beside",
        "median",
        "ratio",
        "lowest to highest",
        "bound",
    ]);
    for row in &rows {
        table.add_row(row.cells());
    }
    for index in [1, 3, 4, 5, 6] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("\n{table}");
    println!("medians of {rounds} rounds");
    let document = Document {
        schema: "mitosis-bench-fork/1",
        target: TARGET,
        verdict,
        cluster,
        parameters: &setting.parameters,
        rounds,
        rows: &rows,
    };
    let path = setting.directory().join("result.json");
    let json = serde_json::to_string_pretty(&document).context("cannot write JSON")?;
    std::fs::write(&path, json + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_holds_for_the_ratio_of_the_medians() {
        let row = |bound| {
            let mut row = Row {
                what: "a".into(),
                beside: "b".into(),
                unit: "µs",
                measured: vec![10.0, 30.0, 20.0],
                compared: vec![10.0, 10.0, 40.0],
                median: 0.0,
                compared_median: 0.0,
                ratio: 0.0,
                bound,
                held: false,
            };
            row.conclude();
            (row.ratio, row.held, row.spread())
        };
        assert_eq!(row(Bound::AtMost(2.0)), (2.0, true, (0.5, 3.0)));
        assert!(!row(Bound::AtMost(1.9)).1);
        assert!(!row(Bound::AtLeast(2.1)).1);
        assert!(row(Bound::Open).1);
    }
}
