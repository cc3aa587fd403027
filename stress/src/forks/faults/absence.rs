//! Seeds, machines and the network go away while children work.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::{Forks, Row, BUS_ERROR};
use crate::forks::walker::{How, SeedName, Walker, WALK};
use crate::forks::PARENT;
use crate::klog::watch::{Patience, Watch};
use crate::scene::STEP;

/// Memory of the parent: a child walks over it for some seconds.
const MIB: u64 = 32;
const PAGES: u64 = MIB << 8;
/// Half of it: what a child reads that is to have what it needs.
const HALF: u64 = PAGES / 2;
/// The host whose children fail, and the one whose children go on.
const NEAR: usize = 1;
const FAR: usize = 2;
const MINUTE: Duration = Duration::from_secs(60);
/// A fault waits for 15 s, and for the end of the try that is then under way: docs/fork.md §5.
const AT_MOST: Duration = Duration::from_secs(45);

/// Two children on one host: one has read the first half of the memory, the other is in the middle of the second.
struct Two {
    kept: Walker,
    needy: Walker,
}

impl Forks<'_> {
    fn two(&self, watch: &mut Watch<'_>, host: usize, seed: &SeedName) -> Result<Two> {
        let mut kept = self.site.child(watch, host, seed)?;
        kept.walk(watch, &format!("read 0 {HALF}"))?;
        let mut needy = self.site.child(watch, host, seed)?;
        self.begin_walk(watch, &mut needy, &format!("read {HALF} {HALF}"))?;
        Ok(Two { kept, needy })
    }

    /// The child that has what it needs goes on.
    fn goes_on(&self, watch: &mut Watch<'_>, row: &mut Row, kept: &mut Walker) -> Result<()> {
        kept.walk(watch, &format!("read 0 {HALF}"))?;
        kept.walk(watch, &format!("write 0 {HALF}"))?;
        row.verified += 1;
        Ok(())
    }

    /// Its very end takes code of the C library that it has not needed before, and may not get any more.
    fn let_go(&self, watch: &mut Watch<'_>, mut kept: Walker) -> Result<()> {
        kept.tell(watch, "end")?;
        let status = kept.status(watch, WALK)?;
        ensure!(
            [0, BUS_ERROR].contains(&status),
            "{}: a child that has what it needs ended with status {status}",
            self.name(kept.host)
        );
        Ok(())
    }

    pub(super) fn revoked(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (mut parent, seed) = self.site.parent(watch, MIB)?;
        let Two {
            mut kept,
            mut needy,
        } = self.two(watch, NEAR, &seed)?;
        let since = Instant::now();
        parent.ask(watch, "unprepare", "unprepared")?;
        self.lose(watch, row, &mut needy, &seed, since)?;
        self.goes_on(watch, row, &mut kept)?;
        self.let_go(watch, kept)?;
        for host in self.site.children() {
            self.is_refused(watch, row, host, &seed, "there is no seed")?;
        }
        parent.end(watch)
    }

    fn cut(&self, cut: bool) -> Result<()> {
        for host in [PARENT, NEAR] {
            self.stage().cut_off(self.name(host), cut)?;
        }
        Ok(())
    }

    /// Takes the wire between the parent's machine and the near one away until `since` is `time` ago.
    fn stay_cut(&self, watch: &mut Watch<'_>, since: Instant, time: Duration) -> Result<()> {
        let left = time.saturating_sub(since.elapsed());
        watch.wait(left, Patience::Eager, |_| false)?;
        self.cut(false)
    }

    pub(super) fn cut_for_a_second(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let second = Duration::from_secs(1);
        let (parent, seed) = self.site.parent(watch, MIB)?;
        let mut far = self.site.child(watch, FAR, &seed)?;
        // What is read ahead of it does not last a second.
        let how = How {
            prefetch: 1,
            ..How::default()
        };
        let (hosts, gid) = (self.site.hosts(), &self.site.gid);
        let (mut near, _) = Walker::resume(watch, hosts, NEAR, gid, &seed, how)?;
        far.tell(watch, "read")?;
        self.begin_walk(watch, &mut near, "read")?;
        let since = Instant::now();
        self.cut(true)?;
        self.stay_cut(watch, Instant::now(), second)?;
        near.walked(watch, "read")?;
        far.walked(watch, "read")?;
        let silence = near.longest_silence(watch, since);
        ensure!(
            silence >= second * 9 / 10,
            "the child was never silent for longer than {} ms: the cut did not take place",
            silence.as_millis()
        );
        let told = format!("the child stood still for {} ms", silence.as_millis());
        row.scenario.told.push(told);
        for child in [near, far] {
            let mut child = child;
            child.end(watch)?;
            row.verified += 1;
        }
        self.nothing_lost(watch)?;
        self.site.retire(watch, parent)
    }

    pub(super) fn cut_for_a_minute(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (parent, seed) = self.site.parent(watch, MIB)?;
        let Two {
            mut kept,
            mut needy,
        } = self.two(watch, NEAR, &seed)?;
        let mut far = self.site.child(watch, FAR, &seed)?;
        let since = Instant::now();
        self.cut(true)?;
        self.goes_on(watch, row, &mut kept)?;
        far.walk(watch, "read")?;
        far.end(watch)?;
        row.verified += 1;
        self.lose(watch, row, &mut needy, &seed, since)?;
        ensure!(
            since.elapsed() < AT_MOST,
            "the child waited for {} s",
            since.elapsed().as_secs()
        );
        self.let_go(watch, kept)?;
        self.stay_cut(watch, since, MINUTE)?;
        // The seed is there all the time.
        let mut again = self.site.child(watch, NEAR, &seed)?;
        again.walk(watch, "read")?;
        again.end(watch)?;
        row.verified += 1;
        self.site.retire(watch, parent)
    }

    pub(super) fn parent_killed(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (_, seed) = self.site.parent(watch, MIB)?;
        let mut far = self.site.child(watch, FAR, &seed)?;
        let Two {
            mut kept,
            mut needy,
        } = self.two(watch, NEAR, &seed)?;
        let since = Instant::now();
        watch.forgo(PARENT);
        self.stage().kill(self.name(PARENT))?;
        far.tell(watch, "read")?;
        self.goes_on(watch, row, &mut kept)?;
        for needy in [&mut needy, &mut far] {
            self.lose(watch, row, needy, &seed, since)?;
        }
        ensure!(
            since.elapsed() < AT_MOST,
            "the children waited for {} s",
            since.elapsed().as_secs()
        );
        self.let_go(watch, kept)?;
        self.boot_again(watch, PARENT)?;
        for host in self.site.children() {
            self.is_refused(watch, row, host, &seed, "there is no seed")?;
        }
        Ok(())
    }

    /// The parent's machine is to find out that nobody reads there any more.
    pub(super) fn child_killed(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (parent, seed) = self.site.parent(watch, MIB)?;
        let Two { .. } = self.two(watch, NEAR, &seed)?;
        let mut far = self.site.child(watch, FAR, &seed)?;
        watch.forgo(NEAR);
        self.stage().kill(self.name(NEAR))?;
        far.walk(watch, "read")?;
        far.end(watch)?;
        row.verified += 1;
        self.boot_again(watch, NEAR)?;
        let mut again = self.site.child(watch, NEAR, &seed)?;
        again.walk(watch, "read")?;
        again.end(watch)?;
        row.verified += 1;
        let machines = self.site.children().len() as u64;
        let connections = self.site.figure(PARENT, "connections")?;
        ensure!(
            connections == machines,
            "{machines} machines read there, over {connections} connections: that of the one that was killed is kept"
        );
        self.site.retire(watch, parent)
    }

    fn boot_again(&self, watch: &mut Watch<'_>, host: usize) -> Result<()> {
        self.stage().restart(self.name(host))?;
        self.site.equip(host)?;
        watch.rejoin(host, STEP)?;
        self.site.load(watch, host, "")
    }
}
