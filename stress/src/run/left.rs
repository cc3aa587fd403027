//! What a run leaves behind on its hosts.

use anyhow::Result;

use super::plan::Plan;
use crate::cluster::shell::Limit;
use crate::cluster::Host;
use crate::klog::audit::Kind;
use crate::klog::watch::Watch;

/// The counts of RDMA objects of a host, as `rdma resource` prints them; `None` where it cannot.
pub(super) type Resources = Option<String>;

pub(super) fn resources(host: &Host, limit: Limit<'_>) -> Result<Resources> {
    let printed = host.ask("rdma resource 2>/dev/null || :", limit)?;
    let printed = printed.trim();
    Ok((!printed.is_empty()).then(|| printed.to_string()))
}

/// Finds hosts that have not got what they had before.
pub(super) fn compare(plan: &Plan<'_>, before: &[Resources], watch: &mut Watch<'_>) {
    let limit = Limit {
        timeout: plan.deadlines.command,
        interrupt: None,
    };
    for (index, (host, before)) in plan.hosts.iter().zip(before).enumerate() {
        let Some(before) = before else { continue };
        if watch.logs[index].is_lost() {
            continue;
        }
        let line = match resources(host, limit) {
            Ok(Some(after)) if after == *before => continue,
            Ok(after) => format!(
                "RDMA resources were {before:?} before the run, and are {:?} after it",
                after.unwrap_or_default()
            ),
            Err(error) => format!("cannot tell its RDMA resources: {error:#}"),
        };
        watch.find(&host.name, Kind::Left, line);
    }
}
