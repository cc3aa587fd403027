//! Preparing does not wait for the copy: who opens the seed does. The parent may be gone when the copy freezes.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::{Forks, Row, KILLED};
use crate::forks::walker::{How, SeedName, Walker, WALK};
use crate::forks::PARENT;
use crate::klog::watch::Watch;
use crate::scene::{run_to_end, STEP};

const NEAR: usize = 1;
/// More than a scenario takes.
const LEASE: Duration = Duration::from_secs(600);
/// How long a seed is there that nobody claims: docs/fork.md §2.2.
const UNCLAIMED: Duration = Duration::from_secs(60);
/// By the wait status of the copy.
const BY_SIGKILL: u64 = KILLED - 128;

impl Forks<'_> {
    pub(super) fn late(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let secret = u64::from(rand::random::<u32>());
        let mut parent = Walker::start(watch, self.site.hosts(), PARENT, 4, secret, true)?;
        self.held_up(watch, row, &mut parent)?;
        self.ended_on_its_way(watch, row, &mut parent)?;
        self.called_off(watch, row, &mut parent)?;
        let refusal = parent.ask(watch, "share", "refused")?;
        ensure!(
            refusal.contains("is shared and can be written"),
            "shared memory was refused with {refusal:?}"
        );
        row.scenario.told.push(format!("{refusal}"));
        parent.end(watch)
    }

    /// The copy freezes when its parent is gone: with a lease, it serves its children and ends as any other seed.
    pub(super) fn outlived(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let secret = u64::from(rand::random::<u32>());
        let mut parent = Walker::start(watch, self.site.hosts(), PARENT, 4, secret, true)?;
        let (seed, _) = parent.hold_to_the_end(watch, LEASE)?;
        let mut child = self.opening(watch, &seed)?;
        parent.end(watch)?;
        child.hear(watch, "begun", WALK)?;
        child.walk(watch, "read")?;
        child.end(watch)?;
        row.verified += 1;
        let command = self.site.hosts()[PARENT].path("mitosis");
        let name = format!("{}.{}", seed.id, seed.generation);
        run_to_end(watch, PARENT, &format!("{command} unprepare {name}"), STEP)
    }

    /// The copy freezes when its parent is gone, which has not said what is to become of it: it is not there for ever.
    pub(super) fn unclaimed(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let secret = u64::from(rand::random::<u32>());
        let mut parent = Walker::start(watch, self.site.hosts(), PARENT, 4, secret, true)?;
        let deserted = parent.ask(watch, "desert", "deserted")?;
        parent.end(watch)?;
        let since = Instant::now();
        // Its new parent says nothing of its end.
        let gone = format!(
            "while [ -e /proc/{} ]; do usleep 100000; done",
            deserted.number("pid")?
        );
        run_to_end(watch, PARENT, &gone, UNCLAIMED + STEP)?;
        let after = since.elapsed();
        ensure!(
            after > UNCLAIMED / 2,
            "a copy of which nobody had been told did not freeze: it ended after {after:?}"
        );
        row.lose(since);
        Ok(())
    }

    /// A child that has begun to open the seed.
    fn opening(&self, watch: &mut Watch<'_>, seed: &SeedName) -> Result<Walker> {
        let (hosts, gid) = (self.site.hosts(), &self.site.gid);
        let mut child = Walker::order(watch, hosts, NEAR, gid, seed, How::default())?;
        child.hear(watch, "opening", WALK)?;
        Ok(child)
    }

    /// The copy freezes long after it was prepared: the child waits, and is right.
    fn held_up(&self, watch: &mut Watch<'_>, row: &mut Row, parent: &mut Walker) -> Result<()> {
        let (seed, prepared) = parent.hold(watch)?;
        let mut child = self.opening(watch, &seed)?;
        let since = Instant::now();
        // What the parent does meanwhile, no child sees.
        parent.ask(watch, "spoil", "spoilt")?;
        parent.ask(watch, "spoil", "spoilt")?;
        parent.ask(watch, "spoil", "spoilt")?;
        let held = since.elapsed();
        let frozen = parent.ask(watch, "let", "let")?;
        ensure!(frozen.number("frozen")? == 1 && frozen.number("chunks")? > 0);
        let opened = child.hear(watch, "opened", WALK)?;
        let waited = Duration::from_nanos(opened.number("ns")?);
        // From the child's words to its asking is little time, but not none.
        ensure!(
            waited >= held / 2,
            "a seed was opened after {waited:?} whose copy was held up for {held:?}"
        );
        child.hear(watch, "begun", WALK)?;
        child.walk(watch, "read")?;
        child.end(watch)?;
        row.verified += 1;
        row.scenario.told.push(format!(
            "prepared in {} us, opened after {} ms",
            prepared.number("ns")? / 1000,
            waited.as_millis()
        ));
        parent.ask(watch, "unprepare", "unprepared")?;
        parent.ask(watch, "spoil", "spoilt")?;
        Ok(())
    }

    /// The copy ends before it has frozen: who waits for it is told no.
    fn ended_on_its_way(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
        parent: &mut Walker,
    ) -> Result<()> {
        let (seed, _) = parent.hold(watch)?;
        let child = self.opening(watch, &seed)?;
        let killed = parent.ask(watch, "kill", "killed")?;
        ensure!(killed.number("status")? == BY_SIGKILL);
        self.hears_no(watch, row, child, "there is no seed")?;
        self.is_refused(watch, row, NEAR, &seed, "there is no seed")
    }

    /// The seed is unprepared before the copy has frozen: who waits for it is told no, and the copy ends where it would
    /// freeze.
    fn called_off(&self, watch: &mut Watch<'_>, row: &mut Row, parent: &mut Walker) -> Result<()> {
        let (seed, _) = parent.hold(watch)?;
        let child = self.opening(watch, &seed)?;
        let command = self.site.hosts()[PARENT].path("mitosis");
        let name = format!("{}.{}", seed.id, seed.generation);
        run_to_end(watch, PARENT, &format!("{command} unprepare {name}"), STEP)?;
        self.hears_no(watch, row, child, "there is no seed")?;
        let ended = parent.ask(watch, "let", "let")?;
        ensure!(
            ended.number("frozen")? == 0 && ended.number("status")? == BY_SIGKILL,
            "a copy that was called off did not end: {ended:?}"
        );
        Ok(())
    }
}
