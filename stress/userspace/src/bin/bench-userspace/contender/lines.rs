//! The floor of many calls at a time: what our calls carry between the two caches, a line there and a line back for each, and
//! nothing else. Nobody says what a line means, nor looks whether it is right.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;

use super::{ready, repeat, Measured};
use crate::shared_lines::{Line, SharedLines};

/// Lines of a direction, as many as our rings have.
const RING: usize = 2048;

/// How many are taken in before others are sent, as ours does.
const BATCH: u64 = 32;

const ROUNDS: u64 = 1000;

fn open(dir: &Path) -> Result<SharedLines> {
    SharedLines::open(&dir.join("lines"), 2 * RING)
}

pub fn serve(dir: &Path) -> Result<()> {
    let shared = open(dir)?;
    // The file may be a round old.
    for [first, ..] in shared.lines() {
        first.store(0, Ordering::Relaxed);
    }
    let (there, back) = shared.lines().split_at(RING);
    ready("")?;
    let mut number = 0;
    loop {
        match take(there, number + 1) {
            Some(word) => {
                number += 1;
                send(back, number, word);
            }
            None => std::hint::spin_loop(),
        }
    }
}

pub fn measure(dir: &Path, window: usize, time: Duration) -> Result<Measured> {
    let shared = open(dir)?;
    let (there, back) = shared.lines().split_at(RING);
    let (mut sent, mut taken) = (0, 0);
    repeat(time, || {
        let end = taken + ROUNDS;
        while taken < end {
            while sent < taken + window as u64 {
                sent += 1;
                send(there, sent, sent);
            }
            let batch = taken + BATCH;
            while taken < batch && take(back, taken + 1).is_some() {
                taken += 1;
            }
        }
        Ok(ROUNDS)
    })
}

/// The line of this number.
#[inline(always)]
fn line(ring: &[Line], number: u64) -> &Line {
    &ring[number as usize % RING]
}

/// Writes a whole line, its number last.
#[inline(always)]
fn send(ring: &[Line], number: u64, word: u64) {
    let [first, rest @ ..] = line(ring, number);
    for place in rest {
        place.store(word, Ordering::Relaxed);
    }
    first.store(number, Ordering::Release);
}

/// Reads a whole line, if it has come.
#[inline(always)]
fn take(ring: &[Line], number: u64) -> Option<u64> {
    let [first, rest @ ..] = line(ring, number);
    if first.load(Ordering::Acquire) != number {
        return None;
    }
    let words = rest.iter().map(|place| place.load(Ordering::Relaxed));
    Some(words.fold(0, |sum, word| sum ^ word))
}
