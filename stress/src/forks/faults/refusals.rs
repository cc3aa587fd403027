//! What is not to be had: each is refused by its name.

use std::time::Instant;

use anyhow::Result;

use super::{Forks, Row};
use crate::forks::walker::{How, SeedName, Walker};
use crate::forks::{MODULE, PARENT};
use crate::klog::watch::Watch;
use crate::scene::{await_line, await_that, run_to_end, STEP};

const NEAR: usize = 1;
const FAR: usize = 2;
const KEY: &str = "cluster_key=000102030405060708090a0b0c0d0e0f";
const OTHER_KEY: &str = "cluster_key=0f0e0d0c0b0a09080706050403020100";
/// In the table of seeds, and beyond it.
const NEVER: [u64; 3] = [77, 1023, u32::MAX as u64];

/// Says on the parent's machine that it has seeds.
pub(in crate::forks) const HOSTILE: &str = "hostile-seed";
const HOSTILE_SERVICE: u32 = 9;
/// How many ways it has to damage a descriptor.
const WAYS: u64 = 10;

impl Forks<'_> {
    pub(super) fn refused(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (mut parent, old) = self.site.parent(watch, 4)?;
        // One digit of the capability.
        let digit = if old.capability.ends_with('0') {
            "1"
        } else {
            "0"
        };
        let near_miss = format!("{}{digit}", &old.capability[..31]);
        for capability in [near_miss, "f".repeat(32)] {
            let wrong = SeedName {
                capability,
                ..old.clone()
            };
            self.is_refused(watch, row, NEAR, &wrong, "has another capability")?;
        }
        for id in NEVER {
            for capability in ["-", &old.capability] {
                let never = SeedName {
                    id,
                    generation: 0,
                    capability: capability.to_string(),
                    ..old.clone()
                };
                self.is_refused(watch, row, NEAR, &never, "there is no seed")?;
            }
        }
        // Root may name it alone.
        let by_id = SeedName {
            capability: "-".into(),
            generation: 0,
            ..old.clone()
        };
        let mut child = self.site.child(watch, NEAR, &by_id)?;
        child.walk(watch, "read")?;
        child.end(watch)?;
        row.verified += 1;

        // The next seed has its place, and not its name.
        parent.ask(watch, "unprepare", "unprepared")?;
        parent.ask(watch, "spoil", "spoilt")?;
        let (new, _) = parent.prepare(watch)?;
        anyhow::ensure!(
            new.id == old.id && new.generation != old.generation,
            "the seeds {old:?} and {new:?} do not follow each other in one place"
        );
        let stale = SeedName {
            generation: old.generation,
            ..new.clone()
        };
        for seed in [&old, &stale] {
            self.is_refused(watch, row, NEAR, seed, "there is no seed")?;
        }
        let swapped = SeedName {
            capability: old.capability.clone(),
            ..new.clone()
        };
        self.is_refused(watch, row, NEAR, &swapped, "has another capability")?;
        // At another service nobody listens.
        let nobody = SeedName {
            service: HOSTILE_SERVICE,
            ..new
        };
        self.is_refused(watch, row, NEAR, &nobody, "does not answer at service 9")?;
        self.site.retire(watch, parent)
    }

    pub(super) fn other_key(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let keys = [(PARENT, KEY), (NEAR, KEY), (FAR, OTHER_KEY)];
        self.reload(watch, &keys)?;
        let (parent, seed) = self.site.parent(watch, 4)?;
        let by_id = SeedName {
            capability: "-".into(),
            ..seed.clone()
        };
        for seed in [&seed, &by_id] {
            self.is_refused(watch, row, FAR, seed, "another cluster key")?;
        }
        self.reload(watch, &[(FAR, "")])?;
        self.is_refused(watch, row, FAR, &seed, "another cluster key")?;
        let mut child = self.site.child(watch, NEAR, &seed)?;
        child.walk(watch, "read")?;
        child.end(watch)?;
        row.verified += 1;
        await_line(watch, PARENT, "refused a client")?;
        self.reload(watch, &[(FAR, KEY)])?;
        self.site.retire(watch, parent)
    }

    pub(super) fn hostile(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (parent, seed) = self.site.parent(watch, 4)?;
        let script = format!(
            "{} {} {HOSTILE_SERVICE} {}",
            self.site.hosts()[PARENT].path(HOSTILE),
            self.site.gid,
            seed.id
        );
        let machine = watch.spawn_program(PARENT, &script)?;
        await_line(watch, PARENT, "hostile seeds ready")?;
        for id in 1..=WAYS {
            let damaged = SeedName {
                service: HOSTILE_SERVICE,
                id,
                generation: 1,
                capability: "f".repeat(32),
            };
            self.is_refused(watch, row, NEAR, &damaged, "Protocol error")?;
        }
        // A descriptor that is right, of memory that is not there.
        let empty = SeedName {
            service: HOSTILE_SERVICE,
            id: WAYS + 1,
            ..seed.clone()
        };
        let since = Instant::now();
        let (hosts, gid) = (self.site.hosts(), &self.site.gid);
        let mut child = Walker::order(watch, hosts, NEAR, gid, &empty, How::default())?;
        self.lose(watch, row, &mut child, &seed, since)?;
        watch.end_program(machine);
        await_that(watch, STEP, "end of the hostile seeds", |watch| {
            watch.ended(machine).is_some()
        })?;
        self.site.retire(watch, parent)
    }

    /// Loads the module anew, with these parameters.
    fn reload(&self, watch: &mut Watch<'_>, parameters: &[(usize, &str)]) -> Result<()> {
        for (host, parameters) in parameters {
            run_to_end(watch, *host, &format!("rmmod {MODULE}"), STEP)?;
            self.site.load(watch, *host, parameters)?;
        }
        Ok(())
    }
}
