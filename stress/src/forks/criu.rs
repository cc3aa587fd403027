//! CRIU beside remote fork: the same process is taken apart on one machine, copied, and put together on the other. `criu.sh` is
//! what either machine does.

use anyhow::{ensure, Context, Result};

use super::bench::{Bench, Bound};
use super::walker::Answer;
use super::PARENT;
use crate::cluster::shell::quote;

const SCRIPT: &str = include_str!("criu.sh");
/// Where it goes on.
const CHILD: usize = 1;

/// How the process' pages come along.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// With the rest.
    Copied,
    /// When they are touched, over TCP and userfaultfd.
    Lazy,
}

/// What it took, in seconds.
struct Took {
    dump: f64,
    copy: f64,
    restore: f64,
}

impl Took {
    /// From the process that runs to its continuation that does.
    fn all(&self) -> f64 {
        self.dump + self.copy + self.restore
    }
}

impl Bench<'_> {
    /// Puts the script onto both machines, where CRIU is not to be measured when it runs for the first time.
    pub(super) fn equip_for_criu(&self) -> Result<()> {
        for index in [PARENT, CHILD] {
            let host = &self.site.hosts()[index];
            host.copy(SCRIPT.as_bytes(), "criu.sh", self.site.limit())?;
            self.criu_does(index, "warm")?;
        }
        Ok(())
    }

    /// Moves a process with so much memory to the other machine, where all of that must be right.
    fn move_and_clear(&self, mib: u64, pages: Pages) -> Result<Took> {
        let outcome = self.move_there(mib, pages);
        let cleared = self
            .criu_does(PARENT, "clear")
            .and_then(|_| self.criu_does(CHILD, "clear"));
        let took = outcome?;
        cleared?;
        Ok(took)
    }

    fn move_there(&self, mib: u64, pages: Pages) -> Result<Took> {
        let hosts = self.site.hosts();
        let (from, to) = (quote(&hosts[PARENT].address), quote(&hosts[CHILD].address));
        let (dump, restore) = match pages {
            Pages::Copied => ("dump".to_string(), "restore".to_string()),
            Pages::Lazy => ("dump-lazily".to_string(), format!("restore-lazily {from}")),
        };
        self.criu_does(PARENT, &format!("start {mib} 1"))?;
        self.criu_does(CHILD, "receive")?;
        let dump = seconds(&self.criu_does(PARENT, &dump)?, "dump_ms")?;
        let copy = seconds(&self.criu_does(PARENT, &format!("send {to}"))?, "copy_ms")?;
        let restore = seconds(&self.criu_does(CHILD, &restore)?, "restore_ms")?;
        let walked = Answer::of(&self.criu_does(CHILD, "check")?);
        ensure!(
            walked.number("wrong")? == 0 && walked.number("pages")? == mib << 8,
            "CRIU's process found its memory wrong: {walked}"
        );
        Ok(Took {
            dump,
            copy,
            restore,
        })
    }

    fn criu_does(&self, host: usize, words: &str) -> Result<String> {
        let host = &self.site.hosts()[host];
        let directory = quote(&host.directory.to_string_lossy());
        let said = host.run(
            &format!("cd {directory} && sh criu.sh {words}"),
            self.site.limit(),
        );
        said.with_context(|| format!("{}: criu, {words}", host.name))
    }

    /// Rows of a process with so much memory. `ours` is what a start took here, and what a further one of the same seed, in
    /// seconds.
    pub(super) fn beside_criu(&mut self, mib: u64, ours: [f64; 2]) -> Result<()> {
        let [start, further] = ours;
        for (pages, how) in [(Pages::Copied, ""), (Pages::Lazy, ", lazy pages")] {
            let took = self.move_and_clear(mib, pages)?;
            self.add(
                &format!("prepare and resume, {mib} MiB"),
                &format!("CRIU: dump, copy, restore{how}"),
                "starts/s",
                Bound::AtLeast(10.0),
                1.0 / start,
                1.0 / took.all(),
            );
            if pages == Pages::Copied {
                self.add(
                    &format!("resume alone, {mib} MiB"),
                    "CRIU: restore alone",
                    "starts/s",
                    Bound::Open,
                    1.0 / further,
                    1.0 / took.restore,
                );
            }
        }
        Ok(())
    }
}

fn seconds(said: &str, name: &str) -> Result<f64> {
    let ms = Answer::of(said).number(name)?;
    ensure!(ms > 0, "no time passed: {said}");
    Ok(ms as f64 / 1e3)
}
