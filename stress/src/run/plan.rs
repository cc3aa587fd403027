//! What a run is told: where, what, and how long it may take.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::cluster::Host;
use crate::klog::watch::LookForFallen;
use crate::settings::Gid;
use crate::template::RunPass;

/// How long each step may take, beyond what it is asked to last.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// A short command on a host, a copied module, a mark in a log.
    pub command: Duration,
    /// insmod, which returns at once unless something hangs.
    pub load: Duration,
    /// From a loaded server to its ready line.
    pub ready: Duration,
    /// What clients may take beyond the time that they run: connecting, and reporting at the end.
    pub slack: Duration,
    /// rmmod, which waits for the module's threads.
    pub unload: Duration,
    /// From the first finding to giving up: long enough for the rest of a trace.
    pub grace: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            command: Duration::from_secs(30),
            load: Duration::from_secs(60),
            ready: Duration::from_secs(30),
            slack: Duration::from_secs(60),
            unload: Duration::from_secs(30),
            grace: Duration::from_secs(2),
        }
    }
}

impl Deadlines {
    /// For a cluster of which so many machines share a processor, and do each step at the same time. What a step is asked to
    /// last, and the rest of a trace, take no longer for that.
    pub fn of_shared_processors(machines: usize, processors: usize) -> Self {
        let share = machines.div_ceil(processors.max(1)).max(1);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let alone = Self::default();
        Self {
            command: alone.command.saturating_mul(share),
            load: alone.load.saturating_mul(share),
            ready: alone.ready.saturating_mul(share),
            slack: alone.slack.saturating_mul(share),
            unload: alone.unload.saturating_mul(share),
            grace: alone.grace,
        }
    }
}

/// What a run is given.
pub struct Plan<'a> {
    /// The run's name, for the report.
    pub target: String,
    /// The machines, the parent first.
    pub hosts: &'a [Host],
    /// Whether the machines are gone after the run, so that an interrupt need not unload anything.
    pub disposable: bool,
    /// The template's.
    pub passes: &'a [RunPass],
    /// The template's, with the command line's over them.
    pub parameters: &'a BTreeMap<String, u64>,
    /// The server's GID, where it is known.
    pub parent_gid: Option<Gid>,
    /// What members of the cluster know: 32 hexadecimal digits, or nothing.
    pub cluster_key: &'a str,
    /// Holds `modules/<release>/`.
    pub out: &'a Path,
    /// How long to wait.
    pub deadlines: Deadlines,
    /// Looked at while waiting.
    pub fallen: LookForFallen<'a>,
}
