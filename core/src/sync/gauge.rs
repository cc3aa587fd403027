//! A number that one thread publishes and others read.

use super::primitive::{AtomicU64, Ordering};

/// A number with one writer: a count, a state, a time. Readers see it as it was a moment ago, and with it what its writer
/// had written before.
pub struct Gauge {
    value: AtomicU64,
}

impl Gauge {
    /// A gauge that reads `value`.
    pub fn new(value: u64) -> Self {
        Self {
            value: AtomicU64::new(value),
        }
    }

    /// Publishes `value`.
    pub fn set(&self, value: u64) {
        // Release: pairs with the Acquire in `value`.
        self.value.store(value, Ordering::Release);
    }

    /// The latest value that has become visible.
    pub fn value(&self) -> u64 {
        // Acquire: pairs with the Release in `set`.
        self.value.load(Ordering::Acquire)
    }
}

impl Default for Gauge {
    fn default() -> Self {
        Self::new(0)
    }
}
