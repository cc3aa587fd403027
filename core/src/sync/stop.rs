//! A wish to end, from one thread to others.

use super::primitive::{AtomicBool, Ordering};

/// Whether to end. Once wanted, always wanted. Who wants it also wakes those that sleep.
pub struct Stop {
    wanted: AtomicBool,
}

impl Stop {
    /// Nothing is to end yet.
    #[cfg(not(rdma_loom))]
    pub const fn new() -> Self {
        Self {
            wanted: AtomicBool::new(false),
        }
    }

    /// Nothing is to end yet.
    #[cfg(rdma_loom)]
    pub fn new() -> Self {
        Self {
            wanted: AtomicBool::new(false),
        }
    }

    /// From now on [`Stop::wanted`] is true.
    pub fn want(&self) {
        // Release: pairs with the Acquire in `wanted`. Whoever sees the wish sees what was written before it, such as
        // its reason.
        self.wanted.store(true, Ordering::Release);
    }

    /// Whether to end.
    pub fn wanted(&self) -> bool {
        // Acquire: pairs with the Release in `want`.
        self.wanted.load(Ordering::Acquire)
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}
