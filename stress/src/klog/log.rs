//! What one host's kernel log has said, as lines and as figures.

use std::time::Instant;

use mitosis_core::histogram::Histogram;

use super::lines::{Flood, Latency, Line, Stopped, Total};

/// A line, and when this machine read it: hosts' own clocks begin with their boots and cannot be compared.
#[derive(Clone, Debug)]
pub struct Said {
    /// When it was read here.
    pub at: Instant,
    /// Its text.
    pub text: String,
}

/// The throughput of one interval of a client.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// When its line was read here, which is the interval's end.
    pub at: Instant,
    /// Answered requests a second.
    pub requests_per_s: u64,
}

/// What a host's log has said since the mark.
#[derive(Default)]
pub struct HostLog {
    /// The host's name.
    pub name: String,
    /// Its lines.
    pub lines: Vec<Said>,
    /// Device and path MTU of a server that is ready.
    pub ready: Option<(String, u32)>,
    /// What a client reports of itself at its end.
    pub total: Option<Total>,
    /// The client's own percentiles.
    pub latency: Option<Latency>,
    /// The client's latencies, for those of the cluster.
    pub histogram: Histogram,
    /// The throughput of each interval.
    pub passed: Vec<Passed>,
    /// What each server reports of itself at its end, in the order in which they ran.
    pub stopped: Vec<Stopped>,
    /// What a flood reports of itself at its end.
    pub flood: Option<Flood>,
    pub(super) begun: bool,
    pub(super) settled: bool,
    pub(super) lost: bool,
    /// That the log comes from: after the machine was booted anew, another one.
    pub(super) stream: Option<usize>,
    pub(super) sequence: Option<u64>,
    pub(super) time_us: Option<u64>,
}

impl HostLog {
    /// Of a host that has said nothing yet.
    pub fn of(name: &str) -> Self {
        Self {
            name: name.to_string(),
            ..Self::default()
        }
    }

    /// Whether it ended, with its machine or its connection: nothing more can be done there.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// It has ended.
    pub(crate) fn lose(&mut self) {
        self.lost = true;
    }

    /// Whether a line since the mark holds `text`.
    pub fn said(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.text.contains(text))
    }

    /// When a line with `text` was read for the first time after `since`.
    pub fn said_since(&self, since: Instant, text: &str) -> Option<Instant> {
        self.lines
            .iter()
            .find(|line| line.at > since && line.text.contains(text))
            .map(|line| line.at)
    }

    /// The throughput of the intervals that ended after `since`.
    pub fn passed_since(&self, since: Instant) -> impl Iterator<Item = Passed> + '_ {
        self.passed
            .iter()
            .copied()
            .filter(move |passed| passed.at > since)
    }

    /// Throughput of the latest interval.
    pub fn latest_per_s(&self) -> u64 {
        self.passed.last().map_or(0, |passed| passed.requests_per_s)
    }

    /// A machine that was booted anew counts its records and its time from 0.
    pub(super) fn begin_anew(&mut self) {
        self.begun = false;
        self.settled = false;
        self.lost = false;
        self.sequence = None;
        self.time_us = None;
    }

    pub(crate) fn take(&mut self, at: Instant, text: &str) {
        self.lines.push(Said {
            at,
            text: text.to_string(),
        });
        match Line::parse(text) {
            Some(Line::Ready { device, mtu }) => self.ready = Some((device, mtu)),
            Some(Line::Passed { requests_per_s }) => {
                self.passed.push(Passed { at, requests_per_s });
            }
            Some(Line::Total(total)) => self.total = Some(total),
            Some(Line::Latency(latency)) => self.latency = Some(latency),
            Some(Line::Buckets(pairs)) => {
                for (index, count) in pairs {
                    // An index that does not exist leaves the counts unequal, which the report finds.
                    let _ = self.histogram.add(index, count);
                }
            }
            Some(Line::Stopped(stopped)) => self.stopped.push(stopped),
            Some(Line::FloodDone(flood)) => self.flood = Some(flood),
            None => {}
        }
    }
}
