//! How many refer to something, and how often something happened.

use super::primitive::{AtomicU64, AtomicUsize, Ordering};

/// The number of references to a value; who gives up the last one destroys it.
///
/// # Invariants
/// At least 1 until the last is given up, and never taken again from 0.
pub struct References {
    count: AtomicUsize,
}

impl References {
    /// One reference: its maker's.
    pub fn new() -> Self {
        Self {
            count: AtomicUsize::new(1),
        }
    }

    /// One more. The caller has one already, so the count is not 0.
    pub fn take(&self) {
        // Relaxed: whoever hands over the new reference orders what the other side sees.
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the caller's is the only one. Another's may be given up at this moment, and not be taken: whoever could take
    /// one from the caller's must be kept from it.
    pub fn is_only(&self) -> bool {
        // Acquire: pairs with the Release in `give_up`, so that the caller sees what the others did with the value.
        self.count.load(Ordering::Acquire) == 1
    }

    /// One less. True for the last: the caller alone has the value now, and sees what all others did with it.
    #[must_use]
    pub fn give_up(&self) -> bool {
        // AcqRel: the Release pairs with the Acquire of the one that is last, so that it destroys nothing that another is
        // still writing.
        self.count.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl Default for References {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts events of any number of threads.
pub struct Tally {
    value: AtomicU64,
}

impl Tally {
    /// Nothing has happened.
    pub fn new() -> Self {
        Self {
            value: AtomicU64::new(0),
        }
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        // Relaxed: a count is about nothing but itself.
        self.value.fetch_add(more, Ordering::Relaxed);
    }

    /// So many less, of what was added before.
    pub fn subtract(&self, fewer: u64) {
        // Relaxed: as in `add`.
        self.value.fetch_sub(fewer, Ordering::Relaxed);
    }

    /// The count, as far as it is visible.
    pub fn value(&self) -> u64 {
        // Relaxed: as in `add`.
        self.value.load(Ordering::Relaxed)
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}
