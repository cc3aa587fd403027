//! The figures of a run that calls an RPC, out of the kernel logs of its machines.

use mitosis_core::histogram::Histogram;

use super::cluster_latency;
use crate::cluster::Role;
use crate::klog::audit::Kind;
use crate::klog::lines::{Latency, Total};
use crate::klog::watch::Watch;
use crate::report::{Figures, HostFigures, Report, Requests};
use crate::run::passes::Reached;
use crate::run::plan::Plan;

/// Fills `report` with the clients' figures and their sums.
pub(super) fn evaluate(
    plan: &Plan<'_>,
    reached: &Reached<'_>,
    watch: &mut Watch<'_>,
    report: &mut Report,
) {
    let mut histogram = Histogram::new();
    let mut latencies = Vec::new();
    // An interactive program's lines are no log, and it calls nothing that would be counted here.
    let clients = reached.started.iter().filter(|started| {
        let pass = started.pass;
        pass.role == Role::Child && pass.done.is_some() && !pass.interactive
    });
    for host in clients
        .flat_map(|started| &started.tasks)
        .map(|&(host, _)| host)
    {
        let log = &watch.logs[host];
        let name = log.name.clone();
        let Some(total) = log.total else {
            // Of a run that was broken off, whose cause is among the findings, no figures are expected.
            if reached.complete {
                watch.find(&name, Kind::MissingClient, "it did not report its figures");
            }
            continue;
        };
        let counted = log.histogram.count();
        histogram.merge(&log.histogram);
        let latency = log.latency;
        latencies.extend(latency);
        let figures = figures(total, latency);
        report.hosts.push(HostFigures {
            name: name.clone(),
            figures: Figures::Requests(figures),
        });

        if total.requests == 0 {
            watch.find(
                &name,
                Kind::ZeroThroughput,
                "not one of its requests was answered",
            );
        }
        if total.errors > 0 {
            watch.find(
                &name,
                Kind::FailedRequests,
                format!("{} of its requests failed", total.errors),
            );
        }
        if counted != total.requests {
            let line = format!(
                "it reports {} answered requests and {counted} latencies",
                total.requests
            );
            watch.find(&name, Kind::Accounting, line);
        }
    }

    let sum = totals(&report.hosts, cluster_latency(&histogram, &latencies));
    report.totals = Figures::Requests(sum);

    for (host, log) in plan.hosts.iter().zip(0..watch.logs.len()) {
        let (ready, stopped) = (
            watch.logs[log].ready.clone(),
            watch.logs[log].stopped.last().copied(),
        );
        if let Some(info) = report
            .cluster
            .hosts
            .iter_mut()
            .find(|info| info.name == host.name)
        {
            if let Some((device, mtu)) = ready {
                info.device = Some(device);
                info.mtu = Some(mtu);
            }
        }
        let Some(stopped) = stopped else { continue };
        if stopped.errors > 0 {
            watch.find(
                &host.name,
                Kind::FailedRequests,
                format!("the server counted {} errors", stopped.errors),
            );
        }
        if stopped.requests < sum.requests {
            let line = format!(
                "the server executed {} requests, the clients count {}",
                stopped.requests, sum.requests
            );
            watch.find(&host.name, Kind::Accounting, line);
        }
    }
}

/// The sums over all clients, whose latencies are `latency_ns` together.
pub(crate) fn totals(hosts: &[HostFigures], latency_ns: Option<Latency>) -> Requests {
    let mut sum = Requests {
        latency_ns,
        ..Requests::default()
    };
    for host in hosts {
        if let Figures::Requests(figures) = &host.figures {
            sum.requests += figures.requests;
            sum.requests_per_s += figures.requests_per_s;
            sum.errors += figures.errors;
        }
    }
    sum
}

/// A client's figures.
pub(crate) fn figures(total: Total, latency: Option<Latency>) -> Requests {
    // Divided after multiplying, in a type that holds the product of any two of its operands.
    let per_s = u128::from(total.requests) * 1_000_000 / u128::from(total.elapsed_us.max(1));
    Requests {
        requests: total.requests,
        requests_per_s: u64::try_from(per_s).unwrap_or(u64::MAX),
        errors: total.errors,
        latency_ns: latency,
    }
}
