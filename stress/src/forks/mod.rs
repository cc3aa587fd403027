//! Remote fork, by hand: machines with `mitosis.ko`, and processes with known memory that are forked between them.
//!
//! [`walker`] is such a process. [`faults`] is `make fork-faults`, [`bench`] is `make bench-fork`.

pub mod bench;
mod criu;
pub mod faults;
pub mod walker;

use std::path::Path;
use std::time::Instant;

use anyhow::{ensure, Result};

use self::walker::{How, SeedName, Walker};
use crate::cluster::shell::Limit;
use crate::cluster::Host;
use crate::klog::watch::Watch;
use crate::modules::Module;
use crate::programs;
use crate::report::ClusterInfo;
use crate::run::{parent_gid, Inspected};
use crate::scene::{await_that, run_to_end, STEP};
use crate::stage::{Setting, Stage};

/// The module.
const MODULE: &str = "mitosis";
/// What goes to each host with it.
const PROGRAMS: [&str; 4] = [walker::PROGRAM, "mitosis-lean", "mitosis", faults::HOSTILE];
/// The host of the seeds.
const PARENT: usize = 0;

/// Says what is left, once what ends by itself has ended.
const LEFT: &str =
    "left() { ./mitosis-lean left && ! grep -s '(fork-walker) Z' /proc/[0-9]*/stat; }; \
     i=0; until left >/tmp/left 2>&1; do i=$((i+1)); \
     [ $i -lt 100 ] || { cat /tmp/left >&2; exit 1; }; usleep 100000; done";

/// A cluster whose machines can fork.
pub(crate) struct Site<'a> {
    pub(crate) stage: &'a Stage<'a>,
    pub(crate) setting: &'a Setting,
    pub(crate) inspected: Vec<Inspected>,
    pub(crate) cluster: ClusterInfo,
    /// The parent's.
    pub(crate) gid: String,
}

impl<'a> Site<'a> {
    pub(crate) fn new(stage: &'a Stage<'a>, setting: &'a Setting) -> Result<Self> {
        let (inspected, cluster) = stage.inspect()?;
        let site = Self {
            stage,
            setting,
            gid: parent_gid(stage.hosts(), &inspected, None)?.to_string(),
            inspected,
            cluster,
        };
        for host in 0..stage.hosts().len() {
            site.equip(host)?;
        }
        Ok(site)
    }

    pub(crate) fn hosts(&self) -> &'a [Host] {
        self.stage.hosts()
    }

    /// The hosts that children run on.
    fn children(&self) -> std::ops::Range<usize> {
        PARENT + 1..self.hosts().len()
    }

    /// Ends what a scenario that failed in its middle has left on every host: processes, which hold modules, and the modules.
    pub(crate) fn clear(&self, programs: &[&str], modules: &[&str]) -> Result<()> {
        let script = format!(
            "killall -9 {} 2>/dev/null; for m in {}; do i=0; while [ -d /sys/module/$m ]; do rmmod $m && break; \
             i=$((i+1)); [ $i -lt 50 ] || exit 1; usleep 100000; done; done",
            programs.join(" "),
            modules.join(" ")
        );
        for host in self.hosts() {
            host.ask(&script, self.limit())?;
        }
        Ok(())
    }

    pub(crate) fn limit(&self) -> Limit<'a> {
        Limit {
            timeout: STEP,
            interrupt: Some(self.stage.interrupt()),
        }
    }

    /// Puts module and programs onto a host.
    fn equip(&self, index: usize) -> Result<()> {
        let (host, out): (&Host, &Path) = (&self.hosts()[index], &self.setting.out);
        let module = Module::load(out, &self.inspected[index].kernel, MODULE)?;
        host.copy(&module.contents, &format!("{MODULE}.ko"), self.limit())?;
        for name in PROGRAMS {
            host.copy_program(&programs::load(out, name)?, name, self.limit())?;
        }
        Ok(())
    }

    /// Inserts the module and waits until it serves.
    fn load(&self, watch: &mut Watch<'_>, host: usize, parameters: &str) -> Result<()> {
        let since = Instant::now();
        let path = self.hosts()[host].path(&format!("{MODULE}.ko"));
        run_to_end(watch, host, &format!("insmod {path} {parameters}"), STEP)?;
        await_that(watch, STEP, "\"rpc server ready\"", |watch| {
            let ready = watch.logs[host].said_since(since, "rpc server ready");
            ready.is_some()
        })
    }

    pub(crate) fn load_all(&self, watch: &mut Watch<'_>) -> Result<()> {
        (PARENT..self.hosts().len()).try_for_each(|host| self.load(watch, host, ""))
    }

    fn unload_all(&self, watch: &mut Watch<'_>) -> Result<()> {
        for host in (PARENT..self.hosts().len()).rev() {
            run_to_end(watch, host, &format!("rmmod {MODULE}"), STEP)?;
        }
        Ok(())
    }

    /// A parent with so much memory, prepared, whose own memory is spoilt since.
    pub(crate) fn parent(&self, watch: &mut Watch<'_>, mib: u64) -> Result<(Walker, SeedName)> {
        let secret = u64::from(rand::random::<u32>());
        let mut parent = Walker::start(watch, self.hosts(), PARENT, mib, secret, true)?;
        let (seed, _) = parent.prepare(watch)?;
        parent.ask(watch, "spoil", "spoilt")?;
        Ok((parent, seed))
    }

    /// A child that has begun.
    pub(crate) fn child(
        &self,
        watch: &mut Watch<'_>,
        host: usize,
        seed: &SeedName,
    ) -> Result<Walker> {
        let (hosts, gid) = (self.hosts(), &self.gid);
        let (child, _) = Walker::resume(watch, hosts, host, gid, seed, How::default())?;
        Ok(child)
    }

    /// Ends a parent and its seed.
    pub(crate) fn retire(&self, watch: &mut Watch<'_>, mut parent: Walker) -> Result<()> {
        parent.ask(watch, "unprepare", "unprepared")?;
        parent.end(watch)
    }

    /// No machine's module has anything any more.
    pub(crate) fn nothing_left(&self, watch: &mut Watch<'_>) -> Result<()> {
        for (index, host) in self.hosts().iter().enumerate() {
            let directory = crate::cluster::shell::quote(&host.directory.to_string_lossy());
            run_to_end(watch, index, &format!("cd {directory} && {LEFT}"), STEP)?;
        }
        Ok(())
    }

    /// A figure of a host's module.
    fn figure(&self, host: usize, name: &str) -> Result<u64> {
        let host = &self.hosts()[host];
        let printed = host.ask(
            &format!("{} stats --json", host.path("mitosis")),
            self.limit(),
        )?;
        let figures: serde_json::Value = serde_json::from_str(&printed)?;
        let figure = figures.get(name).and_then(serde_json::Value::as_u64);
        ensure!(figure.is_some(), "{}: no {name} in {printed}", host.name);
        Ok(figure.unwrap_or_default())
    }
}
