//! What a scenario leaves behind, whatever it is about: a verdict, and `result.json` of all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::report::{ClusterInfo, Verdict};
use crate::stage::Setting;

/// One scenario's verdict.
#[derive(Clone, Debug, Serialize)]
pub struct Scenario {
    /// What happens in it.
    pub name: String,
    /// Whether what was to follow did follow.
    pub verdict: Verdict,
    /// Why it failed.
    pub reason: Option<String>,
    /// How long it took.
    pub seconds: f64,
    /// What machines and programs said that it is about.
    pub told: Vec<String>,
}

impl Scenario {
    /// One that has failed, as long as nobody says anything else.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_string(),
            verdict: Verdict::Fail,
            reason: None,
            seconds: 0.0,
            told: Vec::new(),
        }
    }

    /// It is over.
    pub fn conclude(&mut self, outcome: Result<()>, took: Duration) {
        self.seconds = (took.as_secs_f64() * 10.0).round() / 10.0;
        match outcome {
            Ok(()) => self.verdict = Verdict::Pass,
            Err(error) => self.reason = Some(format!("{error:#}")),
        }
    }

    /// The verdict, and `figures` if there are any, in a line; and what was told, each in its own.
    pub fn write(&self, f: &mut fmt::Formatter<'_>, figures: &str) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Pass => "ok    ",
            Verdict::Fail => "FAILED",
        };
        write!(f, "{word} {} ({:.1} s)", self.name, self.seconds)?;
        let figures = Some(figures).filter(|figures| !figures.is_empty());
        let parts: Vec<&str> = self.reason.as_deref().into_iter().chain(figures).collect();
        if !parts.is_empty() {
            write!(f, ": {}", parts.join("; "))?;
        }
        for line in &self.told {
            write!(f, "\n       {line}")?;
        }
        Ok(())
    }
}

/// What has a scenario's verdict.
pub trait Outcome: Serialize {
    /// It.
    fn scenario(&self) -> &Scenario;
}

/// `out/<target>/result.json`.
#[derive(Serialize)]
struct Document<'a, R> {
    schema: &'static str,
    target: &'a str,
    verdict: Verdict,
    cluster: &'a ClusterInfo,
    parameters: &'a BTreeMap<String, u64>,
    seconds: f64,
    scenarios: &'a [R],
}

/// Counts the verdicts, writes `result.json`, and passes that of all.
pub fn conclude<R: Outcome>(
    schema: &'static str,
    setting: &Setting,
    cluster: &ClusterInfo,
    started: Instant,
    rows: &[R],
) -> Result<Verdict> {
    let failed = rows
        .iter()
        .filter(|row| row.scenario().verdict == Verdict::Fail)
        .count();
    let verdict = if failed == 0 && !rows.is_empty() {
        Verdict::Pass
    } else {
        Verdict::Fail
    };
    println!("{} passed, {failed} failed", rows.len() - failed);
    let document = Document {
        schema,
        target: &setting.target,
        verdict,
        cluster,
        parameters: &setting.parameters,
        seconds: started.elapsed().as_secs_f64().round(),
        scenarios: rows,
    };
    let path = setting.directory().join("result.json");
    let json = serde_json::to_string_pretty(&document).context("cannot write JSON")?;
    std::fs::write(&path, json + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(verdict)
}
