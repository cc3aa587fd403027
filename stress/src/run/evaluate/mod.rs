//! From what the machines said to figures and findings.

mod containers;
pub(crate) mod requests;

use mitosis_core::histogram::Histogram;

use super::passes::Reached;
use super::plan::Plan;
use crate::klog::lines::Latency;
use crate::klog::watch::Watch;
use crate::report::Report;
use crate::template::{self, Counts};

/// Fills `report` with the clients' figures, their sums, and all that was found.
pub(super) fn evaluate(
    plan: &Plan<'_>,
    reached: &Reached<'_>,
    watch: &mut Watch<'_>,
    report: &mut Report,
) {
    match template::counts(plan.passes) {
        Counts::Requests => requests::evaluate(plan, reached, watch, report),
        Counts::Containers => containers::evaluate(reached, watch, report),
    }
    report.findings.append(&mut watch.findings);
}

/// Percentiles of all clients' requests together: percentiles cannot be averaged, buckets can be added.
pub(crate) fn cluster_latency(histogram: &Histogram, latencies: &[Latency]) -> Option<Latency> {
    let max = latencies
        .iter()
        .map(|latency| latency.max)
        .max()
        .or(histogram.max_ns())?;
    Some(Latency {
        p50: histogram.quantile_ns(500)?,
        p99: histogram.quantile_ns(990)?,
        p999: histogram.quantile_ns(999)?,
        max,
    })
}
