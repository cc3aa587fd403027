//! The lines that the program prints, and how the runner reads them again.

use std::fmt;
use std::time::Duration;

use mitosis_core::histogram::Histogram;

use crate::klog::lines::Latency;

/// Of each line of a run, in brackets at its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId(String);

impl RunId {
    /// One that no other run has.
    pub fn random() -> Self {
        use rand::Rng;
        let letters = rand::rng().sample_iter(rand::distr::Alphanumeric);
        Self(letters.take(11).map(char::from).collect())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.0)
    }
}

/// Latencies, and the longest of them exactly.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    histogram: Histogram,
    max_ns: u64,
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.record(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.histogram.count()
    }

    /// Percentiles; `None` of none.
    pub fn summary(&self) -> Option<Latency> {
        let quantile = |per_mille| Some(self.histogram.quantile_ns(per_mille)?.min(self.max_ns));
        Some(Latency {
            p50: quantile(500)?,
            p99: quantile(990)?,
            p999: quantile(999)?,
            max: self.max_ns,
        })
    }
}

/// A line of the program, after its id.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// `Throughput: 120.045924 containers/sec, latency 8.330145 ms`
    Throughput {
        /// Verified containers a second.
        containers_per_s: f64,
        /// Their mean latency; 0 where there were none.
        latency_ms: f64,
    },
    /// `error: …`
    Error(String),
    /// `total: containers N, verified V, errors E, elapsed_us T, threads K`
    Total(Total),
    /// `latency_ns: p50 A, p99 B, p999 C, max D`
    Latency(Latency),
    /// `prepared_ns: …`: making a container.
    Prepared(Latency),
    /// `begun_ns: …`: from its order to the child's first word.
    Begun(Latency),
    /// `latency buckets: 123:4 124:99 …`
    Buckets(Vec<(usize, u64)>),
}

/// What a run of the program did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Containers that were begun.
    pub containers: u64,
    /// Containers whose child proved to be its parent's continuation.
    pub verified: u64,
    /// Those that did not, or could not be begun.
    pub errors: u64,
    /// The time that they took.
    pub elapsed_us: u64,
    /// How many were under way at a time.
    pub threads: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percentiles = |f: &mut fmt::Formatter<'_>, what: &str, latency: &Latency| {
            let Latency {
                p50,
                p99,
                p999,
                max,
            } = latency;
            write!(f, "{what}: p50 {p50}, p99 {p99}, p999 {p999}, max {max}")
        };
        match self {
            Line::Throughput {
                containers_per_s,
                latency_ms,
            } => write!(
                f,
                "Throughput: {containers_per_s:.6} containers/sec, latency {latency_ms:.6} ms"
            ),
            Line::Error(reason) => write!(f, "error: {reason}"),
            Line::Total(total) => write!(
                f,
                "total: containers {}, verified {}, errors {}, elapsed_us {}, threads {}",
                total.containers, total.verified, total.errors, total.elapsed_us, total.threads
            ),
            Line::Latency(latency) => percentiles(f, "latency_ns", latency),
            Line::Prepared(latency) => percentiles(f, "prepared_ns", latency),
            Line::Begun(latency) => percentiles(f, "begun_ns", latency),
            Line::Buckets(pairs) => {
                f.write_str("latency buckets:")?;
                pairs
                    .iter()
                    .try_for_each(|(index, count)| write!(f, " {index}:{count}"))
            }
        }
    }
}

impl Line {
    /// The buckets of these latencies.
    pub fn buckets(latencies: &Latencies) -> Self {
        let buckets = latencies.histogram.buckets();
        Line::Buckets(buckets.map(|bucket| (bucket.index, bucket.count)).collect())
    }

    /// Reads a line as it was printed, id and all.
    pub fn parse(line: &str) -> Option<Self> {
        let (id, text) = line.strip_prefix('[')?.split_once("] ")?;
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let (what, fields) = text.split_once(": ")?;
        let number = |label: &str| -> Option<u64> { word(fields, label)?.parse().ok() };
        let percentiles = || {
            Some(Latency {
                p50: number("p50")?,
                p99: number("p99")?,
                p999: number("p999")?,
                max: number("max")?,
            })
        };
        match what {
            "Throughput" => Some(Line::Throughput {
                containers_per_s: fields.split(' ').next()?.parse().ok()?,
                latency_ms: word(fields, "latency")?.parse().ok()?,
            }),
            "error" => Some(Line::Error(fields.to_string())),
            "total" => Some(Line::Total(Total {
                containers: number("containers")?,
                verified: number("verified")?,
                errors: number("errors")?,
                elapsed_us: number("elapsed_us")?,
                threads: number("threads")?,
            })),
            "latency_ns" => percentiles().map(Line::Latency),
            "prepared_ns" => percentiles().map(Line::Prepared),
            "begun_ns" => percentiles().map(Line::Begun),
            "latency buckets" => {
                let pair = |pair: &str| {
                    let (index, count) = pair.split_once(':')?;
                    Some((index.parse().ok()?, count.parse().ok()?))
                };
                let pairs = fields.split_whitespace().map(pair);
                pairs.collect::<Option<_>>().map(Line::Buckets)
            }
            _ => None,
        }
    }
}

/// The word after `label` in a comma-separated list.
fn word<'a>(fields: &'a str, label: &str) -> Option<&'a str> {
    fields.split(", ").find_map(|field| {
        let (name, rest) = field.split_once(' ')?;
        (name == label).then(|| rest.split(' ').next())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_throughput_line_is_the_documents() {
        let line = "[660K5BZDgBs] Throughput: 120.045924 containers/sec, latency 8.330145 ms";
        let parsed = Line::parse(line).unwrap();
        let wanted = Line::Throughput {
            containers_per_s: 120.045924,
            latency_ms: 8.330145,
        };
        assert_eq!(parsed, wanted);
        assert_eq!(format!("[660K5BZDgBs] {parsed}"), line);
    }

    #[test]
    fn every_line_is_read_as_it_was_printed() {
        let mut latencies = Latencies::default();
        for ms in 1..=100 {
            latencies.record(Duration::from_millis(ms));
        }
        let latency = latencies.summary().unwrap();
        assert_eq!(latency.max, 100_000_000);
        let total = Total {
            containers: 5,
            verified: 4,
            errors: 1,
            elapsed_us: 9,
            threads: 2,
        };
        let id = RunId::random();
        for line in [
            Line::Error("no proof within 30 s: [x], y".into()),
            Line::Total(total),
            Line::Latency(latency),
            Line::Prepared(latency),
            Line::Begun(latency),
            Line::buckets(&latencies),
        ] {
            assert_eq!(Line::parse(&format!("{id} {line}")), Some(line));
        }
    }

    #[test]
    fn other_lines_are_none() {
        for line in [
            "",
            "[id] ",
            "[] total: containers 1",
            "[id] total: containers 1, verified 1",
            "[a b] error: x",
            "Throughput: 1.0 containers/sec, latency 1.0 ms",
            "[id] Throughput: many containers/sec, latency 1.0 ms",
            "[id] latency buckets: 1:2 3",
        ] {
            assert_eq!(Line::parse(line), None, "{line}");
        }
    }
}
