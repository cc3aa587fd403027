//! Machines and containers that have not got the memory that children want.

use std::time::Instant;

use anyhow::{ensure, Result};

use super::{Forks, Row, KILLED};
use crate::forks::walker::{How, Walker, WALK};
use crate::klog::watch::Watch;
use crate::scene::run_to_end;
use crate::scene::STEP;

/// What the kernel says when it ends a process for its memory.
pub(super) const EXPECTED: &[&str] = &[
    "invoked oom-killer",
    "Call Trace:",
    "slab",
    "Slab",
    "out of memory",
    "Out of memory",
    "oom_reaper",
    "killed as a result of limit",
];

const NEAR: usize = 1;
/// Of the parent whose child has 8 MiB.
const MIB: u64 = 32;
/// Of the parent whose children fill a machine.
const MANY_MIB: u64 = 128;
/// More than a machine has room for.
const CHILDREN: usize = 4;
/// Where a limited child goes. Each line ends in `&&`: what follows is the child.
const IN_GROUP: &str = "g=/sys/fs/cgroup/walker; mkdir -p $g && echo +memory >/sys/fs/cgroup/cgroup.subtree_control && \
     echo 8388608 >$g/memory.max && sh -c 'echo $PPID >/sys/fs/cgroup/walker/cgroup.procs' &&";
const NO_GROUP: &str = "rmdir /sys/fs/cgroup/walker";

impl Forks<'_> {
    pub(super) fn container_full(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (parent, seed) = self.site.parent(watch, MIB)?;
        let (hosts, gid) = (self.site.hosts(), &self.site.gid);
        let how = How {
            before: IN_GROUP,
            ..How::default()
        };
        let (mut limited, _) = Walker::resume(watch, hosts, NEAR, gid, &seed, how)?;
        let mut free = self.site.child(watch, NEAR, &seed)?;
        // What it only reads is the image's.
        limited.walk(watch, "read")?;
        let since = Instant::now();
        limited.tell(watch, "write")?;
        let status = limited.status(watch, WALK)?;
        row.lose(since);
        ensure!(
            status == KILLED,
            "a child that wrote to more than its container may have ended with status {status}, not by SIGKILL"
        );
        free.walk(watch, "write")?;
        free.end(watch)?;
        row.verified += 1;
        run_to_end(watch, NEAR, NO_GROUP, STEP)?;
        self.nothing_lost(watch)?;
        self.site.retire(watch, parent)
    }

    pub(super) fn machine_full(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (parent, seed) = self.site.parent(watch, MANY_MIB)?;
        let since = Instant::now();
        let mut children = Vec::new();
        for _ in 0..CHILDREN {
            children.push(self.site.child(watch, NEAR, &seed)?);
        }
        for child in &children {
            child.tell(watch, "write")?;
        }
        for mut child in children {
            // Those that the kernel spared have what is right.
            match child.walked(watch, "write") {
                Ok(_) => {
                    child.end(watch)?;
                    row.verified += 1;
                }
                Err(error) => {
                    let status = child.status(watch, WALK)?;
                    ensure!(status == KILLED, "it ended with status {status}: {error:#}");
                    row.lose(since);
                }
            }
        }
        ensure!(
            row.lost > 0,
            "the machine had room for all children: nothing was tried"
        );
        self.site.retire(watch, parent)
    }

    pub(super) fn few_pages_kept(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        const KEPT: u64 = 1024;
        /// One chunk more than is to be kept may be in use.
        const MOST: u64 = KEPT + 512;
        const PAGES: u64 = MIB << 8;
        run_to_end(watch, NEAR, "rmmod mitosis", STEP)?;
        self.site
            .load(watch, NEAR, &format!("cache_pages={KEPT}"))?;
        let (parent, seed) = self.site.parent(watch, MIB)?;
        let mut children = [
            self.site.child(watch, NEAR, &seed)?,
            self.site.child(watch, NEAR, &seed)?,
        ];
        for child in &mut children {
            child.walk(watch, "read")?;
            let kept = self.site.figure(NEAR, "cached_pages")?;
            ensure!(
                kept <= MOST,
                "{kept} pages are kept, with cache_pages={KEPT}"
            );
            child.walk(watch, "touch 0 100000 7")?;
        }
        let read = self.site.figure(NEAR, "pages_read")?;
        ensure!(
            read > PAGES + PAGES / 2,
            "{read} pages were read: none was let go and read again"
        );
        let told = format!("{read} pages were read, {PAGES} in the parent");
        row.scenario.told.push(told);
        for mut child in children {
            child.walk(watch, "read")?;
            child.end(watch)?;
            row.verified += 1;
        }
        self.site.retire(watch, parent)
    }
}
