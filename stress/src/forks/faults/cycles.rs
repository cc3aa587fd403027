//! A process is forked to the other machines, proves itself there and ends, over and over: nothing of it may be left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::{Forks, Row};
use crate::cluster::Host;
use crate::forks::walker::{SeedName, Walker, WALK};
use crate::forks::PARENT;
use crate::klog::watch::{Patience, Watch};

/// Memory of the parent.
const MIB: u64 = 1;
/// Children of one seed on each machine, one after another; the first of them each open it anew, the others share an image.
const OF_A_SEED: u64 = 50;
const ANEW: u64 = 4;
/// Seeds before the count begins: what is allocated once and kept is there then.
const WARM_UP: u64 = 2;
/// What kernels have in slabs, and what they have less of free memory, changes by so much from one moment to another. After
/// 10,000 children on a machine it is 105 bytes, and a fifth of a page, each.
const SLAB_KIB: i64 = 1024;
const FREE_KIB: i64 = 8192;
/// For what is freed by and by.
const SETTLE: Duration = Duration::from_secs(20);

/// Free memory without caches, and memory in slabs, the latter by cache too.
const MEASURE: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; \
     awk '/^(MemFree|Slab):/ { print $1, $2 }' /proc/meminfo; awk 'NR > 2 { print $1, $3 * $4 / 1024 }' /proc/slabinfo";

/// Of one machine, in KiB.
struct Memory(BTreeMap<String, i64>);

impl Memory {
    fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines
            .map(|line| {
                let (name, kib) = line.trim().split_once(' ').context("no figure")?;
                let kib: f64 = kib.parse().with_context(|| line.to_string())?;
                Ok((name.trim_end_matches(':').to_string(), kib as i64))
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    fn growth(&self, earlier: &Self, name: &str) -> Result<i64> {
        let of = |memory: &Self| memory.0.get(name).copied();
        Ok(of(self).context("not measured")? - of(earlier).context("not measured")?)
    }

    /// The caches that grew most.
    fn grown(&self, earlier: &Self) -> String {
        let known = |name: &str| earlier.0.get(name).copied().unwrap_or_default();
        let caches = self
            .0
            .iter()
            .filter(|(name, _)| !["MemFree", "Slab"].contains(&name.as_str()));
        let mut grown: Vec<(i64, &str)> = caches
            .map(|(name, kib)| (kib - known(name), name.as_str()))
            .filter(|(kib, _)| *kib > 0)
            .collect();
        grown.sort_unstable_by(|one, other| other.cmp(one));
        let most = grown
            .iter()
            .take(4)
            .map(|(kib, name)| format!("{name} {kib:+}"));
        most.collect::<Vec<_>>().join(", ")
    }
}

impl Forks<'_> {
    pub(super) fn cycles(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let secret = u64::from(rand::random::<u32>());
        let hosts = self.site.hosts();
        let mut parent = Walker::start(watch, hosts, PARENT, MIB, secret, true)?;
        let mut drivers = Vec::new();
        for host in self.site.children() {
            drivers.push(Walker::cycle(
                watch,
                hosts,
                host,
                &self.site.gid,
                MIB,
                secret,
            )?);
        }
        let machines = drivers.len() as u64;
        let each = self.cycles.div_ceil(machines);
        let mut number = 1;
        for _ in 0..WARM_UP {
            self.of_a_seed(watch, &mut parent, &mut drivers, &mut number, OF_A_SEED)?;
        }
        let (before, resources) = (self.memory()?, self.stage().resources()?);
        let (begun, first) = (Instant::now(), number);
        let mut seeds = 0;
        while number - first < each {
            let count = OF_A_SEED.min(each - (number - first));
            self.of_a_seed(watch, &mut parent, &mut drivers, &mut number, count)?;
            row.verified += count * machines;
            seeds += 1;
        }
        let per_s = row.verified as f64 / begun.elapsed().as_secs_f64();
        row.scenario.told.push(format!(
            "{} cycles of {seeds} seeds, {per_s:.1} a second",
            row.verified
        ));
        self.nothing_grew(watch, row, &before)?;
        let now = self.stage().resources()?;
        ensure!(
            now == resources,
            "RDMA resources were {resources}, and are {now} after {} cycles",
            row.verified
        );
        for driver in &mut drivers {
            driver.end(watch)?;
        }
        parent.end(watch)
    }

    /// A seed, and children of it on all machines at the same time.
    fn of_a_seed(
        &self,
        watch: &mut Watch<'_>,
        parent: &mut Walker,
        drivers: &mut [Walker],
        number: &mut u64,
        count: u64,
    ) -> Result<()> {
        let (seed, _) = parent.prepare(watch)?;
        // Twice: the next seed is to be right as well.
        parent.ask(watch, "spoil", "spoilt")?;
        let SeedName {
            id,
            generation,
            capability,
            ..
        } = &seed;
        let line = format!("seed {id} {generation} {capability} {number} {count} {ANEW}");
        for driver in drivers.iter() {
            driver.tell(watch, &line)?;
        }
        for driver in drivers.iter_mut() {
            driver.hear(watch, "cycled", WALK)?;
        }
        parent.ask(watch, "unprepare", "unprepared")?;
        parent.ask(watch, "spoil", "spoilt")?;
        *number += count;
        Ok(())
    }

    fn memory(&self) -> Result<Vec<Memory>> {
        let of = |host: &Host| Memory::parse(&host.ask(MEASURE, self.site.limit())?);
        self.site.hosts().iter().map(of).collect()
    }

    fn nothing_grew(&self, watch: &mut Watch<'_>, row: &mut Row, before: &[Memory]) -> Result<()> {
        let begun = Instant::now();
        loop {
            let now = self.memory()?;
            let mut told = Vec::new();
            let mut grew = false;
            for ((host, now), before) in self.site.hosts().iter().zip(&now).zip(before) {
                let slab = now.growth(before, "Slab")?;
                let free = now.growth(before, "MemFree")?;
                grew |= slab > SLAB_KIB || free < -FREE_KIB;
                let grown = now.grown(before);
                told.push(format!(
                    "{}: slabs {slab:+} KiB ({grown}), free memory {free:+} KiB",
                    host.name
                ));
            }
            if !grew {
                row.scenario.told.append(&mut told);
                return Ok(());
            }
            ensure!(
                begun.elapsed() < SETTLE,
                "{} cycles left something: {}",
                row.verified,
                told.join("; ")
            );
            watch.wait(Duration::from_secs(1), Patience::Eager, |_| false)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_is_told_by_cache() {
        let parse = |text| Memory::parse(text).unwrap();
        let before = parse("MemFree: 1000\nSlab: 500\nkmalloc-64 16\nvm_area_struct 96.5\n");
        let after = parse("MemFree: 900\nSlab: 560\nkmalloc-64 64\nvm_area_struct 112\nnew 8\n");
        assert_eq!(after.growth(&before, "Slab").unwrap(), 60);
        assert_eq!(after.growth(&before, "MemFree").unwrap(), -100);
        assert_eq!(
            after.grown(&before),
            "kmalloc-64 +48, vm_area_struct +16, new +8"
        );
        assert!(Memory::parse("Slab: many").is_err());
    }
}
