//! The figures of a run that forks into containers, out of what `mitosis-lean` printed on its machines.

use mitosis_core::histogram::Histogram;

use super::cluster_latency;
use crate::klog::audit::Kind;
use crate::klog::lines::Latency;
use crate::klog::watch::{Said, Watch};
use crate::lean::figures::{Line, Total};
use crate::report::{Containers, Figures, HostFigures, Report};
use crate::run::passes::Reached;
use crate::template::Counts;

/// Throughput below which a run has not been steady, in containers a second: the document's.
const LEAST_PER_S: f64 = 0.1;
/// Of a host's many errors, those that are told.
const ERRORS_TOLD: usize = 3;

/// What a host's program printed.
#[derive(Default)]
struct Printed {
    total: Option<Total>,
    latency: Option<Latency>,
    histogram: Histogram,
    throughput: Vec<f64>,
    errors: Vec<String>,
}

impl Printed {
    fn of(said: &[Said]) -> Self {
        let mut printed = Self::default();
        for line in said.iter().filter_map(|said| Line::parse(&said.text)) {
            match line {
                Line::Throughput {
                    containers_per_s, ..
                } => {
                    printed.throughput.push(containers_per_s);
                }
                Line::Error(reason) => printed.errors.push(reason),
                Line::Total(total) => printed.total = Some(total),
                Line::Latency(latency) => printed.latency = Some(latency),
                Line::Buckets(pairs) => {
                    for (index, count) in pairs {
                        // An index that does not exist leaves the counts unequal, which is found.
                        let _ = printed.histogram.add(index, count);
                    }
                }
                Line::Prepared(_) | Line::Begun(_) => {}
            }
        }
        printed
    }
}

/// Fills `report` with the hosts' figures and their sums.
pub(super) fn evaluate(reached: &Reached<'_>, watch: &mut Watch<'_>, report: &mut Report) {
    let mut sum = Containers::default();
    let mut histogram = Histogram::new();
    let mut latencies = Vec::new();
    let counting = reached
        .started
        .iter()
        .filter(|started| started.pass.counts == Counts::Containers);
    for &(host, task) in counting.flat_map(|started| &started.tasks) {
        let printed = Printed::of(watch.said(task));
        let name = watch.logs[host].name.clone();
        for reason in printed.errors.iter().take(ERRORS_TOLD) {
            watch.find(&name, Kind::FailedContainer, reason);
        }
        let Some(total) = printed.total else {
            // Of a run that was broken off, whose cause is among the findings, no figures are expected.
            if reached.complete {
                let complaint = watch.ended(task).map(|ended| ended.complaint.clone());
                let line = format!(
                    "it did not report its figures: {}",
                    complaint.unwrap_or_default()
                );
                watch.find(&name, Kind::MissingClient, line);
            }
            continue;
        };
        look_at(&name, &total, &printed, watch);
        let figures = Containers {
            containers: total.containers,
            containers_per_s: total.verified as f64 * 1e6 / total.elapsed_us.max(1) as f64,
            verified: total.verified,
            errors: total.errors,
            latency_ns: printed.latency,
        };
        sum.containers += figures.containers;
        sum.containers_per_s += figures.containers_per_s;
        sum.verified += figures.verified;
        sum.errors += figures.errors;
        histogram.merge(&printed.histogram);
        latencies.extend(printed.latency);
        report.hosts.push(HostFigures {
            name,
            figures: Figures::Containers(figures),
        });
    }
    sum.latency_ns = cluster_latency(&histogram, &latencies);
    report.totals = Figures::Containers(sum);
}

/// The lowest throughput since a container came to its end: before the first one, there is nothing that could fall.
fn lowest(lines: &[f64]) -> Option<f64> {
    let begun = lines.iter().position(|&per_s| per_s > 0.0);
    let lines = lines.get(begun.unwrap_or_default()..)?;
    lines.iter().copied().reduce(f64::min)
}

/// What is wrong with a host's figures.
fn look_at(name: &str, total: &Total, printed: &Printed, watch: &mut Watch<'_>) {
    if total.verified == 0 {
        watch.find(
            name,
            Kind::ZeroThroughput,
            "not one of its containers was verified",
        );
    }
    if total.errors as usize > ERRORS_TOLD {
        let line = format!(
            "{} of its {} containers failed",
            total.errors, total.containers
        );
        watch.find(name, Kind::FailedContainer, line);
    }
    let counted = printed.histogram.count();
    if total.verified + total.errors != total.containers || counted != total.verified {
        let line = format!(
            "it reports {} containers, {} verified, {} errors, and {counted} latencies",
            total.containers, total.verified, total.errors
        );
        watch.find(name, Kind::Accounting, line);
    }
    match lowest(&printed.throughput) {
        Some(lowest) if lowest >= LEAST_PER_S => {}
        Some(lowest) => {
            let line = format!(
                "its throughput fell to {lowest:.6} containers/sec; less than {LEAST_PER_S} is not steady"
            );
            watch.find(name, Kind::Unsteady, line);
        }
        None => watch.find(name, Kind::Unsteady, "it reported no throughput"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_falls_from_where_it_was() {
        assert_eq!(lowest(&[0.0, 0.0, 0.2, 3.0]), Some(0.2));
        assert_eq!(lowest(&[0.0, 3.0, 0.0, 3.0]), Some(0.0));
        assert_eq!(lowest(&[0.0, 0.0]), Some(0.0));
        assert_eq!(lowest(&[]), None);
    }
}
