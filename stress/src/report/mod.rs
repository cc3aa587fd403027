//! The outcome of a run: `out/<target>/result.json` for programs, and a table for people ([`table`]).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cluster::vm::Accel;
use crate::cluster::Role;
use crate::klog::audit::{Finding, Kind};
use crate::klog::lines::Latency;
use crate::run::plan::Plan;
use crate::template::Counts;

pub mod table;

/// Of the JSON; the number goes up when a field changes its meaning or goes away.
const SCHEMA: &str = "mitosis-stress/1";

/// Whether a run is worth anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All clients worked without an error, and no log has anything to find.
    Pass,
    /// There are findings.
    Fail,
}

impl Verdict {
    /// What these findings make it.
    pub fn of(findings: &[Finding]) -> Self {
        if findings.is_empty() {
            Self::Pass
        } else {
            Self::Fail
        }
    }
}

/// The outcome of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The run's name.
    pub target: String,
    /// What makes it fail.
    pub findings: Vec<Finding>,
    /// Where it took place.
    pub cluster: ClusterInfo,
    /// What it was given.
    pub parameters: BTreeMap<String, u64>,
    /// Its wall time.
    pub seconds: f64,
    /// Over all clients.
    pub totals: Figures,
    /// Of each client that reported any.
    pub hosts: Vec<HostFigures>,
}

/// Where a run took place.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterInfo {
    /// `virtual` or `real`.
    pub kind: String,
    /// `kvm` or `tcg` for virtual machines.
    pub accel: Option<Accel>,
    /// The machines, the parent first.
    pub hosts: Vec<HostInfo>,
}

/// A machine of the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct HostInfo {
    /// As in the log lines.
    pub name: String,
    /// `parent` or `child`.
    pub role: Role,
    /// As `uname -r` says it.
    pub kernel: Option<String>,
    /// The kernel's memory debugging, as in `slub_debug=FZP`, which slows each packet down.
    pub slub_debug: Option<String>,
    /// The RDMA device.
    pub device: Option<String>,
    /// The path MTU in bytes, without headers.
    pub mtu: Option<u32>,
}

/// What was measured, by what a run counts.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub enum Figures {
    /// Of a run that calls an RPC.
    Requests(Requests),
    /// Of a run that forks into containers.
    Containers(Containers),
}

/// Calls of an RPC.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Requests {
    /// Answered requests.
    pub requests: u64,
    /// Over the time that the client itself measured.
    pub requests_per_s: u64,
    /// Requests that were not answered.
    pub errors: u64,
    /// Round trips; `null` where nobody measured them.
    pub latency_ns: Option<Latency>,
}

/// Forks into containers.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Containers {
    /// Containers that were begun.
    pub containers: u64,
    /// Verified ones, over the time that the client itself measured.
    pub containers_per_s: f64,
    /// Containers whose child proved to be its parent's continuation.
    pub verified: u64,
    /// Containers that could not be begun, or whose child did not prove what it is.
    pub errors: u64,
    /// From asking for a container to its child's verified end; `null` where nobody measured it.
    pub latency_ns: Option<Latency>,
}

impl Figures {
    /// Of a run that did nothing.
    pub fn none(counts: Counts) -> Self {
        match counts {
            Counts::Requests => Figures::Requests(Requests::default()),
            Counts::Containers => Figures::Containers(Containers::default()),
        }
    }

    /// What was done without an error: answered requests, verified containers.
    pub fn done(&self) -> u64 {
        match self {
            Figures::Requests(figures) => figures.requests,
            Figures::Containers(figures) => figures.verified,
        }
    }

    /// Of these, in a second.
    pub fn done_per_s(&self) -> f64 {
        match self {
            Figures::Requests(figures) => figures.requests_per_s as f64,
            Figures::Containers(figures) => figures.containers_per_s,
        }
    }

    /// What was not done.
    pub fn errors(&self) -> u64 {
        match self {
            Figures::Requests(figures) => figures.errors,
            Figures::Containers(figures) => figures.errors,
        }
    }

    /// How long one took.
    pub fn latency_ns(&self) -> Option<Latency> {
        match self {
            Figures::Requests(figures) => figures.latency_ns,
            Figures::Containers(figures) => figures.latency_ns,
        }
    }
}

/// What was measured on a client.
#[derive(Clone, Debug, Serialize)]
pub struct HostFigures {
    /// The client.
    pub name: String,
    /// Its own.
    #[serde(flatten)]
    pub figures: Figures,
}

/// The JSON's fields, in order.
#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    target: &'a str,
    verdict: Verdict,
    findings: &'a [Finding],
    cluster: &'a ClusterInfo,
    parameters: &'a BTreeMap<String, u64>,
    seconds: f64,
    totals: &'a Figures,
    hosts: &'a [HostFigures],
}

impl Report {
    /// Of a run that has not begun.
    pub fn new(plan: &Plan<'_>) -> Self {
        let counts = crate::template::counts(plan.passes);
        Self::of(plan.target.clone(), plan.parameters.clone(), counts)
    }

    /// Of the run `target` that has not begun and may never do so.
    pub fn of(target: String, parameters: BTreeMap<String, u64>, counts: Counts) -> Self {
        Self {
            target,
            findings: Vec::new(),
            cluster: ClusterInfo::default(),
            parameters,
            seconds: 0.0,
            totals: Figures::none(counts),
            hosts: Vec::new(),
        }
    }

    /// Whether there are no findings.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.findings)
    }

    /// Whether the user stopped it.
    pub fn interrupted(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.kind == Kind::Interrupted)
    }

    /// As it is written to `result.json`.
    pub fn to_json(&self) -> String {
        let document = Document {
            schema: SCHEMA,
            target: &self.target,
            verdict: self.verdict(),
            findings: &self.findings,
            cluster: &self.cluster,
            parameters: &self.parameters,
            seconds: (self.seconds * 1000.0).round() / 1000.0,
            totals: &self.totals,
            hosts: &self.hosts,
        };
        // Maps have string keys and no writer is involved: there is nothing in it that serialising can fail on.
        serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
    }

    /// Writes `directory/result.json`: all of it or, when the machine stops in between, nothing.
    pub fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join("result.json");
        let partial = directory.join("result.json.new");
        std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::write(&partial, self.to_json()))
            .and_then(|()| std::fs::rename(&partial, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn sample() -> Report {
        let latency = Latency {
            p50: 400_000,
            p99: 900_000,
            p999: 1_500_000,
            max: 2_000_001,
        };
        let figures = Figures::Requests(Requests {
            requests: 40_000,
            requests_per_s: 4_000,
            errors: 0,
            latency_ns: Some(latency),
        });
        let host = |name: &str, role| HostInfo {
            name: name.into(),
            role,
            kernel: Some("6.12.9-amd64".into()),
            slub_debug: Some("FZP".into()),
            device: Some("rxe0".into()),
            mtu: Some(4096),
        };
        let mut report = Report::of(
            "peak-rpc-kernel-module".into(),
            [("thread_count".to_string(), 4)].into(),
            Counts::Requests,
        );
        report.cluster = ClusterInfo {
            kind: "virtual".into(),
            accel: Some(Accel::Tcg),
            hosts: vec![host("val01", Role::Parent), host("val02", Role::Child)],
        };
        report.seconds = 12.34567;
        report.totals = figures;
        report.hosts = vec![HostFigures {
            name: "val02".into(),
            figures,
        }];
        report
    }

    #[test]
    fn the_json_has_exactly_the_promised_fields() {
        let mut report = sample();
        report.findings = vec![Finding {
            host: "val01".into(),
            kind: Kind::HungTask,
            line: "x".into(),
        }];
        let golden = r#"{
  "schema": "mitosis-stress/1",
  "target": "peak-rpc-kernel-module",
  "verdict": "fail",
  "findings": [
    {
      "host": "val01",
      "kind": "hung-task",
      "line": "x"
    }
  ],
  "cluster": {
    "kind": "virtual",
    "accel": "tcg",
    "hosts": [
      {
        "name": "val01",
        "role": "parent",
        "kernel": "6.12.9-amd64",
        "slub_debug": "FZP",
        "device": "rxe0",
        "mtu": 4096
      },
      {
        "name": "val02",
        "role": "child",
        "kernel": "6.12.9-amd64",
        "slub_debug": "FZP",
        "device": "rxe0",
        "mtu": 4096
      }
    ]
  },
  "parameters": {
    "thread_count": 4
  },
  "seconds": 12.346,
  "totals": {
    "requests": 40000,
    "requests_per_s": 4000,
    "errors": 0,
    "latency_ns": {
      "p50": 400000,
      "p99": 900000,
      "p999": 1500000,
      "max": 2000001
    }
  },
  "hosts": [
    {
      "name": "val02",
      "requests": 40000,
      "requests_per_s": 4000,
      "errors": 0,
      "latency_ns": {
        "p50": 400000,
        "p99": 900000,
        "p999": 1500000,
        "max": 2000001
      }
    }
  ]
}
"#;
        assert_eq!(report.to_json(), golden);
    }

    #[test]
    fn a_result_is_written_whole() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out/target");
        sample().write(&out).unwrap();
        let text = std::fs::read_to_string(out.join("result.json")).unwrap();
        assert!(text.contains(r#""verdict": "pass""#), "{text}");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
    }
}
