//! What one scenario leaves behind: figures and a verdict.

use std::fmt::{self, Write};

use anyhow::{ensure, Result};
use serde::Serialize;

use super::netem::Passage;
use crate::klog::lines::{Flood, Stopped, Total};
use crate::klog::log::HostLog;
use crate::scenario::{Outcome, Scenario};

/// A row of `result.json`; `null` where a scenario has nothing of the kind.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) scenario: Scenario,
    /// Answered requests.
    pub(super) requests: u64,
    /// Over the time that the clients themselves measured.
    pub(super) requests_per_s: u64,
    /// Requests that were not answered.
    pub(super) errors: u64,
    /// Requests whose answer was lost with their server.
    pub(super) interrupted: u64,
    /// What the servers of the scenario executed, as far as they lived to tell.
    pub(super) executed: u64,
    /// Requests that the server was asked again and answered from the saved reply.
    pub(super) replayed: u64,
    /// Datagrams that made no sense to the server.
    pub(super) rejected: u64,
    /// The throughput beside that without a fault.
    pub(super) relative: Option<f64>,
    /// What went through the spoilt network.
    pub(super) network: Option<Passage>,
    /// From the server's ready line to the last client's first line with throughput.
    pub(super) resumed_after_ms: Option<u64>,
    pub(super) flood: Option<FloodFigures>,
}

/// An honest client beside a flood.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct FloodFigures {
    #[serde(flatten)]
    pub(super) sent: Flood,
    pub(super) seed: u32,
    /// Median requests/s of the honest client.
    pub(super) before_per_s: f64,
    pub(super) during_per_s: f64,
    pub(super) after_per_s: f64,
    /// On machines that were booted anew after the flood, where it was slower than before.
    pub(super) fresh_per_s: Option<f64>,
    /// What the server's kernel log got meanwhile.
    pub(super) server_lines: usize,
}

/// Without a flood, windows of five seconds under emulation differ by a tenth.
pub(super) fn as_before(after_per_s: f64, before_per_s: f64) -> bool {
    after_per_s >= before_per_s * 0.8
}

impl FloodFigures {
    /// Whether the client is as fast after the flood as before it, or as on machines that know of none.
    pub(super) fn is_over(&self) -> bool {
        let is_as = |other_per_s| as_before(self.after_per_s, other_per_s);
        is_as(self.before_per_s) || self.fresh_per_s.is_some_and(is_as)
    }
}

impl fmt::Display for FloodFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "honest requests/s before {}, during {}, after {}",
            self.before_per_s, self.during_per_s, self.after_per_s
        )?;
        if let Some(fresh_per_s) = self.fresh_per_s {
            write!(f, ", on machines booted anew {fresh_per_s}")?;
        }
        Ok(())
    }
}

impl Row {
    pub(super) fn new(name: &str) -> Self {
        Self {
            scenario: Scenario::new(name),
            requests: 0,
            requests_per_s: 0,
            errors: 0,
            interrupted: 0,
            executed: 0,
            replayed: 0,
            rejected: 0,
            relative: None,
            network: None,
            resumed_after_ms: None,
            flood: None,
        }
    }

    /// Adds a client's count.
    pub(super) fn add_total(&mut self, total: &Total) {
        self.requests += total.requests;
        self.errors += total.errors;
        self.interrupted += total.interrupted;
        let per_s = u128::from(total.requests) * 1_000_000 / u128::from(total.elapsed_us.max(1));
        self.requests_per_s += u64::try_from(per_s).unwrap_or(u64::MAX);
    }

    /// Adds a server's count.
    pub(super) fn add_stopped(&mut self, stopped: &Stopped) {
        self.executed += stopped.requests;
        self.replayed += stopped.replayed;
        self.rejected += stopped.rejected;
    }

    /// Adds what the logs of a scenario count, and fails where a client or a server counts what must not be.
    pub(super) fn account<'l>(
        &mut self,
        server: &HostLog,
        clients: impl Iterator<Item = &'l HostLog>,
    ) -> Result<()> {
        for log in clients {
            let Some(total) = &log.total else {
                anyhow::bail!("{}: it did not report its figures", log.name);
            };
            self.add_total(total);
            ensure!(
                total.requests > 0,
                "{}: not one of its requests was answered",
                log.name
            );
        }
        for stopped in &server.stopped {
            self.add_stopped(stopped);
            ensure!(
                stopped.errors == 0,
                "{}: the server counted {} errors",
                server.name,
                stopped.errors
            );
            if let Some((back, all)) = stopped.buffers {
                ensure!(
                    back == all,
                    "{}: {back} of {all} receive buffers are left",
                    server.name
                );
            }
        }
        ensure!(self.errors == 0, "{} requests failed", self.errors);
        Ok(())
    }
}

impl Outcome for Row {
    fn scenario(&self) -> &Scenario {
        &self.scenario
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut figures = format!(
            "requests {}, requests/s {}",
            self.requests, self.requests_per_s
        );
        if let Some(relative) = self.relative {
            write!(figures, " ({relative:.2} of clean)")?;
        }
        write!(figures, ", errors {}", self.errors)?;
        if let Some(network) = &self.network {
            write!(
                figures,
                ", replayed {}, packets {}, dropped {}",
                self.replayed, network.packets, network.dropped
            )?;
        }
        if let Some(ms) = self.resumed_after_ms {
            let (interrupted, executed) = (self.interrupted, self.executed);
            write!(
                figures,
                ", interrupted {interrupted}, executed {executed}, resumed after {ms} ms"
            )?;
        }
        if let Some(flood) = &self.flood {
            let per_s = flood.sent.sent.saturating_mul(1_000_000) / flood.sent.elapsed_us.max(1);
            write!(
                figures,
                ", flood/s {per_s}, rejected {}, {flood}, server's log lines {}",
                self.rejected, flood.server_lines
            )?;
        }
        self.scenario.write(f, &figures)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::Verdict;

    fn log(name: &str, lines: &[&str]) -> HostLog {
        let mut log = HostLog::of(name);
        for line in lines {
            log.take(
                std::time::Instant::now(),
                &format!("src/lib.rs@1: [INFO ] - {line}"),
            );
        }
        log
    }

    const CLIENT: &str =
        "total: requests 1000, errors 0, interrupted 4, elapsed_us 500000, threads 4";
    const STOPPED: &str =
        "rpc server stopped: sessions 8, requests 501, replayed 2, rejected 1, errors 0, receive buffers 64 of 64";

    #[test]
    fn both_lives_of_a_server_are_added_up() {
        let mut row = Row::new("x");
        let server = log("val01", &[STOPPED, STOPPED]);
        row.account(&server, [log("val02", &[CLIENT])].iter())
            .unwrap();
        assert_eq!(
            (row.requests, row.requests_per_s, row.interrupted),
            (1000, 2000, 4)
        );
        assert_eq!((row.executed, row.replayed, row.rejected), (1002, 4, 2));
    }

    #[test]
    fn what_must_not_be_counted_fails_with_the_machines_name() {
        let told = |server: &str, client: &str| {
            let server = log("val01", &[server]);
            let error = Row::new("x").account(&server, [log("val02", &[client])].iter());
            error.unwrap_err().to_string()
        };
        assert_eq!(
            told(&STOPPED.replace("64 of", "63 of"), CLIENT),
            "val01: 63 of 64 receive buffers are left"
        );
        assert_eq!(
            told(&STOPPED.replace("errors 0", "errors 2"), CLIENT),
            "val01: the server counted 2 errors"
        );
        assert_eq!(
            told(STOPPED, "stress test done"),
            "val02: it did not report its figures"
        );
        assert_eq!(
            told(STOPPED, &CLIENT.replace("errors 0", "errors 3")),
            "3 requests failed"
        );
        assert_eq!(
            told(STOPPED, &CLIENT.replace("1000", "0")),
            "val02: not one of its requests was answered"
        );
    }

    fn flood(before_per_s: f64, after_per_s: f64, fresh_per_s: Option<f64>) -> FloodFigures {
        let sent = Flood {
            sent: 20_000,
            elapsed_us: 10_000_000,
            ..Flood::default()
        };
        FloodFigures {
            sent,
            seed: 1,
            before_per_s,
            during_per_s: 400.0,
            after_per_s,
            fresh_per_s,
            server_lines: 3,
        }
    }

    #[test]
    fn a_flood_is_over_where_the_client_is_as_fast_as_without_one() {
        assert!(flood(1000.0, 800.0, None).is_over());
        assert!(!flood(1000.0, 799.0, None).is_over());
        // What is below the machines has become slower, or has not.
        assert!(flood(1000.0, 700.0, Some(800.0)).is_over());
        assert!(!flood(1000.0, 700.0, Some(900.0)).is_over());
    }

    #[test]
    fn a_floods_figures_stand_in_its_line() {
        let mut row = Row::new("a flood");
        row.flood = Some(flood(1000.0, 700.0, Some(650.0)));
        row.scenario.conclude(Ok(()), Duration::from_secs(1));
        assert_eq!(
            row.to_string(),
            "ok     a flood (1.0 s): requests 0, requests/s 0, errors 0, flood/s 2000, rejected 0, honest requests/s \
             before 1000, during 400, after 700, on machines booted anew 650, server's log lines 3"
        );
    }

    #[test]
    fn a_row_is_one_line() {
        let mut row = Row::new("loss 5 %");
        row.relative = Some(0.5);
        row.network = Some(Passage {
            packets: 100,
            dropped: 5,
        });
        row.scenario.conclude(Ok(()), Duration::from_millis(1_234));
        assert_eq!(
            row.to_string(),
            "ok     loss 5 % (1.2 s): requests 0, requests/s 0 (0.50 of clean), errors 0, replayed 0, packets 100, \
             dropped 5"
        );
        row.scenario.verdict = Verdict::Fail;
        row.scenario.conclude(
            Err(anyhow::anyhow!("why").context("val01")),
            Duration::from_secs(1),
        );
        assert!(row
            .to_string()
            .starts_with("FAILED loss 5 % (1.0 s): val01: why; requests 0"));
    }
}
