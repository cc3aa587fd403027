//! Modules and machines that go away in the middle of their work and come back.
//!
//! What can be shown of at-most-once execution: a server whose module is removed lives to tell what it executed, so
//! all that was executed lies between what was answered and what was answered or interrupted. A server whose machine was
//! killed takes its count along; of it only the clients' counts are known.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::{Faults, Row, HONEST, SERVER};
use crate::klog::watch::Watch;
use crate::scene::{await_that, watched, STEP};

/// Within which every client works again once its server is back.
const RESUMED_WITHIN: Duration = Duration::from_secs(5);
/// How long clients run: over the absence of a module, of a server's machine, of another client's machine.
const OVER_A_MODULE_SECS: u64 = 15;
const OVER_A_MACHINE_SECS: u64 = 60;
const OVER_A_CLIENT_SECS: u64 = 20;
/// Intervals with throughput that show that clients are at work.
const AT_WORK: usize = 3;

/// What happens between a server's going and its coming.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absence {
    Module,
    Machine,
}

impl Faults<'_> {
    pub(super) fn server_inserted_again(&mut self, row: &mut Row) -> Result<()> {
        self.server_comes_back(row, Absence::Module, OVER_A_MODULE_SECS)?;
        let most = row.requests + row.interrupted;
        ensure!(
            (row.requests..=most).contains(&row.executed),
            "the servers executed {} requests; {} were answered, and {} interrupted",
            row.executed,
            row.requests,
            row.interrupted
        );
        Ok(())
    }

    pub(super) fn server_booted_again(&mut self, row: &mut Row) -> Result<()> {
        self.server_comes_back(row, Absence::Machine, OVER_A_MACHINE_SECS)
    }

    fn server_comes_back(&self, row: &mut Row, absence: Absence, secs: u64) -> Result<()> {
        watched(self.stage, self.stage.hosts(), None, |watch| {
            self.load_server(watch)?;
            for host in self.clients() {
                self.load(watch, host, &[("client_running_secs", secs)])?;
            }
            self.await_work(watch, self.clients(), AT_WORK)?;

            let gone = Instant::now();
            match absence {
                Absence::Module => self.unload_server(watch)?,
                Absence::Machine => {
                    watch.forgo(SERVER);
                    self.stage.kill(&self.host(SERVER).name)?;
                }
            }
            // An interval without an answer, so that the next one with answers has them from the new server.
            await_that(watch, STEP, "client that notices", |watch| {
                self.clients().all(|host| {
                    watch.logs[host]
                        .passed_since(gone)
                        .any(|passed| passed.requests_per_s == 0)
                })
            })?;
            if absence == Absence::Machine {
                self.stage.restart(&self.host(SERVER).name)?;
                self.equip(SERVER)?;
                watch.rejoin(SERVER, STEP)?;
            }
            let ready = self.load_server(watch)?;

            let resumed = |watch: &Watch<'_>, host: usize| {
                let mut passed = watch.logs[host].passed_since(ready);
                passed
                    .find(|passed| passed.requests_per_s > 0)
                    .map(|passed| passed.at)
            };
            await_that(
                watch,
                2 * RESUMED_WITHIN,
                "answer from the server that came back",
                |watch| self.clients().all(|host| resumed(watch, host).is_some()),
            )?;
            let last = self
                .clients()
                .filter_map(|host| resumed(watch, host))
                .max()
                .unwrap_or(ready);
            let after = last - ready;
            row.resumed_after_ms = u64::try_from(after.as_millis()).ok();
            ensure!(
                after <= RESUMED_WITHIN,
                "the last client worked again {} ms after its server was ready",
                after.as_millis()
            );
            self.await_end(watch, self.clients(), secs)?;
            self.unload_all(watch)?;
            row.account(&watch.logs[SERVER], watch.logs[self.clients()].iter())
        })
    }

    pub(super) fn client_booted_again(&mut self, row: &mut Row) -> Result<()> {
        let victim = self.clients().end - 1;
        watched(self.stage, self.stage.hosts(), None, |watch| {
            self.load_server(watch)?;
            for host in self.clients() {
                self.load(watch, host, &[("client_running_secs", OVER_A_CLIENT_SECS)])?;
            }
            self.await_work(watch, self.clients(), AT_WORK)?;

            let gone = Instant::now();
            watch.forgo(victim);
            self.stage.kill(&self.host(victim).name)?;
            self.await_work(watch, HONEST..victim, AT_WORK)?;
            self.stage.restart(&self.host(victim).name)?;
            self.equip(victim)?;
            watch.rejoin(victim, STEP)?;
            self.load(watch, victim, &[])?;
            self.await_end(watch, self.clients(), OVER_A_CLIENT_SECS)?;
            self.unload_all(watch)?;

            for log in &watch.logs[HONEST..victim] {
                ensure!(
                    log.passed_since(gone)
                        .all(|passed| passed.requests_per_s > 0),
                    "{}: it stood still because another client was killed",
                    log.name
                );
            }
            row.account(&watch.logs[SERVER], watch.logs[self.clients()].iter())?;
            ensure!(
                row.executed >= row.requests,
                "the server executed {} requests, the clients count {}",
                row.executed,
                row.requests
            );
            Ok(())
        })
    }

    /// Waits until each of `hosts` has had `intervals` more with answers.
    pub(super) fn await_work(
        &self,
        watch: &mut Watch<'_>,
        hosts: std::ops::Range<usize>,
        intervals: usize,
    ) -> Result<()> {
        let since = Instant::now();
        await_that(watch, STEP, "throughput of every client", |watch| {
            hosts.clone().all(|host| {
                let passed = watch.logs[host].passed_since(since);
                passed.filter(|passed| passed.requests_per_s > 0).count() >= intervals
            })
        })
    }

    /// Waits until each of `hosts`, which were told to run for `secs`, is done.
    pub(super) fn await_end(
        &self,
        watch: &mut Watch<'_>,
        hosts: std::ops::Range<usize>,
        secs: u64,
    ) -> Result<()> {
        let timeout = Duration::from_secs(secs) + STEP;
        await_that(watch, timeout, "\"stress test done\"", |watch| {
            hosts
                .clone()
                .all(|host| watch.logs[host].said("stress test done"))
        })
    }

    /// Unloads clients and server.
    pub(super) fn unload_all(&self, watch: &mut Watch<'_>) -> Result<()> {
        for host in self.clients() {
            self.unload(watch, host)?;
        }
        self.unload_server(watch)
    }
}
