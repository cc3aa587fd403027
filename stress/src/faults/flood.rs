//! A stranger floods the server with random and mutated datagrams while an honest client works, which is to be as fast
//! afterwards as before. Where it is not, machines that were booted anew, and never flooded, tell whether what is below them has
//! become slower: then it is to be as fast as on those.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::row::{as_before, FloodFigures};
use super::{Faults, Row, FLOOD, HONEST, SERVER};
use crate::bench::median;
use crate::klog::watch::Watch;
use crate::scene::{await_that, watched, STEP};

/// Intervals of a second that a median is taken of.
const WINDOW: usize = 5;
/// How many windows after the flood may pass until one is as good as before: these machines share their processors with
/// whatever else runs beside them. What a flood broke for good, no window mends.
const WINDOWS: usize = 4;
/// Most lines that a server may say about a flood, and one more for each minute of it: of what it refuses it tells after twice
/// as long each time, and once a minute in the end.
const MOST_LINES: usize = 20;
/// Datagrams a second that a flood reaches in any case.
const SLOWEST_PER_S: u32 = 1_000;
/// The honest client is unloaded when the flood is over.
const CLIENT_RUNNING_SECS: u64 = 86_400;

impl Faults<'_> {
    pub(super) fn flood(&mut self, row: &mut Row, datagrams: u32, seed: u32) -> Result<()> {
        self.bring(self.stranger(), FLOOD)?;
        let mut figures = self.flood_once(row, datagrams, seed)?;
        if !figures.is_over() {
            figures.fresh_per_s = Some(self.on_fresh_machines()?);
            row.flood = Some(figures);
        }
        ensure!(
            figures.is_over(),
            "the honest client is slower after the flood than before: {figures}"
        );
        Ok(())
    }

    fn flood_once(&mut self, row: &mut Row, datagrams: u32, seed: u32) -> Result<FloodFigures> {
        let stranger = self.stranger();
        let arguments = format!("play=noise datagrams={datagrams} seed={seed}");
        watched(self.stage, self.stage.hosts(), None, |watch| {
            self.load_server(watch)?;
            self.load(
                watch,
                HONEST,
                &[("client_running_secs", CLIENT_RUNNING_SECS)],
            )?;
            let before_per_s = window(watch, Instant::now())?;

            let begun = Instant::now();
            let lines = |watch: &Watch<'_>, host: usize| watch.logs[host].lines.len();
            let lines_before = lines(watch, SERVER);
            self.enter(watch, &arguments)?;
            let timeout = STEP + Duration::from_secs(u64::from(datagrams / SLOWEST_PER_S));
            await_that(watch, timeout, "\"flood done\"", |watch| {
                watch.logs[stranger].flood.is_some()
            })?;
            let ended = Instant::now();
            let server_lines = lines(watch, SERVER) - lines_before;
            let during = watch.logs[HONEST].passed_since(begun);
            let during = during.filter(|passed| passed.at < ended);
            let during_per_s = median(during.map(|passed| passed.requests_per_s as f64));
            self.leave(watch)?;

            let mut after_per_s = 0.0;
            for _ in 0..WINDOWS {
                after_per_s = window(watch, Instant::now())?;
                if as_before(after_per_s, before_per_s) {
                    break;
                }
            }
            self.unload(watch, HONEST)?;
            self.unload_server(watch)?;
            row.account(&watch.logs[SERVER], watch.logs[HONEST..=HONEST].iter())?;

            let sent = watch.logs[stranger].flood.unwrap_or_default();
            let figures = FloodFigures {
                sent,
                seed,
                before_per_s,
                // A short flood may lie between two of the client's lines.
                during_per_s: if during_per_s.is_nan() {
                    0.0
                } else {
                    during_per_s
                },
                after_per_s,
                fresh_per_s: None,
                server_lines,
            };
            row.flood = Some(figures);
            ensure!(
                sent.sent >= u64::from(datagrams),
                "the flood sent {} of {datagrams} datagrams",
                sent.sent
            );
            ensure!(
                row.rejected > 0,
                "the server rejected nothing: the flood did not reach it"
            );
            ensure!(
                row.executed >= row.requests,
                "the server executed {} requests, the client counts {}",
                row.executed,
                row.requests
            );
            let minutes = ended.duration_since(begun).as_secs() / 60;
            let most_lines = MOST_LINES + minutes as usize;
            ensure!(
                server_lines < most_lines,
                "the server's kernel log got {server_lines} lines during the flood, where {most_lines} are too many"
            );
            Ok(figures)
        })
    }

    /// The honest client's throughput now, of machines that are booted anew for it.
    fn on_fresh_machines(&self) -> Result<f64> {
        let progress = &self.setting.progress;
        progress.step("slower after the flood than before: booting anew, to see whether all is");
        for host in [SERVER, HONEST] {
            self.stage.kill(&self.host(host).name)?;
            self.stage.restart(&self.host(host).name)?;
            self.equip(host)?;
        }
        watched(self.stage, self.stage.hosts(), None, |watch| {
            self.load_server(watch)?;
            let running = [("client_running_secs", CLIENT_RUNNING_SECS)];
            self.load(watch, HONEST, &running)?;
            let fresh_per_s = window(watch, Instant::now())?;
            self.unload(watch, HONEST)?;
            self.unload_server(watch)?;
            Ok(fresh_per_s)
        })
    }
}

/// The honest client's median throughput over the next intervals. The first of them began earlier, and is left out.
fn window(watch: &mut Watch<'_>, since: Instant) -> Result<f64> {
    let passed = |watch: &Watch<'_>| -> Vec<f64> {
        let passed = watch.logs[HONEST].passed_since(since).skip(1);
        passed.map(|passed| passed.requests_per_s as f64).collect()
    };
    await_that(watch, STEP, "throughput of the honest client", |watch| {
        passed(watch).len() >= WINDOW
    })?;
    Ok(median(passed(watch).into_iter()))
}
