//! What threads tell each other besides queues: a wish to end, and counts.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A wish to end, seen by threads; who expresses it also signals the events of those that sleep.
#[derive(Default)]
pub struct Stop {
    wanted: AtomicBool,
}

impl Stop {
    /// Nothing is to end yet.
    pub const fn new() -> Stop {
        Stop {
            wanted: AtomicBool::new(false),
        }
    }

    /// From now on [`Stop::wanted`] is true.
    pub fn want(&self) {
        // Release: pairs with the Acquire in `wanted`, so that whoever sees the wish sees what was written before it.
        self.wanted.store(true, Ordering::Release);
    }

    /// Whether to end.
    pub fn wanted(&self) -> bool {
        // Acquire: pairs with the Release in `want`.
        self.wanted.load(Ordering::Acquire)
    }
}

/// A number that one thread writes and others read. It carries no other data with it.
#[derive(Default)]
pub struct Gauge {
    value: AtomicU64,
}

impl Gauge {
    /// The number; only its one writer calls this.
    pub fn set(&self, value: u64) {
        // Release: pairs with the Acquire in `value`, for those that read what was written before.
        self.value.store(value, Ordering::Release);
    }

    /// The number as it was a moment ago.
    pub fn value(&self) -> u64 {
        // Acquire: pairs with the Release in `set`.
        self.value.load(Ordering::Acquire)
    }
}
