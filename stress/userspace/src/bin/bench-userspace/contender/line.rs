//! The floor of a call at a time: two processes' cores and a cache line for each direction in memory that both map.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::{ready, repeat, Measured};
use crate::shared_lines::SharedLines;

const ROUNDS: u64 = 1000;

/// The lines that are mapped, and those of them that go there and back: far enough apart that no prefetch connects them.
const LINES: usize = 64;
const THERE: usize = 0;
const BACK: usize = 32;

pub fn serve(dir: &Path) -> Result<()> {
    let shared = SharedLines::open(&dir.join("line"), LINES)?;
    let (there, back) = (&shared.lines()[THERE][0], &shared.lines()[BACK][0]);
    ready("")?;
    let mut round = 0;
    loop {
        round += 1;
        await_value(there, round);
        back.store(round, Ordering::Release);
    }
}

pub fn measure(dir: &Path, time: Duration) -> Result<Measured> {
    let shared = SharedLines::open(&dir.join("line"), LINES)?;
    let (there, back) = (&shared.lines()[THERE][0], &shared.lines()[BACK][0]);
    let mut round = 0;
    repeat(time, || {
        for _ in 0..ROUNDS {
            round += 1;
            there.store(round, Ordering::Release);
            await_value(back, round);
        }
        Ok(ROUNDS)
    })
}

#[inline(always)]
fn await_value(line: &AtomicU64, value: u64) {
    while line.load(Ordering::Acquire) != value {
        std::hint::spin_loop();
    }
}
