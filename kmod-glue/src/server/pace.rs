//! How often the log says that the same thing goes on: a line at once, and ever fewer of them, so that nobody can fill it.

/// Between the first two lines; doubles with each.
const FIRST_INTERVAL_NS: u64 = 1_000_000_000;
/// Between two lines, however many there have been. After twice as long without one it is the first again.
const LAST_INTERVAL_NS: u64 = 64_000_000_000;

/// When a line was printed last, and how long to be silent after it.
#[derive(Default)]
pub struct Pace {
    told_at_ns: u64,
    interval_ns: u64,
}

impl Pace {
    /// Whether the last line was long enough ago for another one.
    #[inline]
    pub fn allows(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.told_at_ns) >= self.interval_ns
    }

    /// A line is being printed.
    pub fn told(&mut self, now_ns: u64) {
        let since_ns = now_ns.saturating_sub(self.told_at_ns);
        self.told_at_ns = now_ns;
        self.interval_ns = if since_ns > 2 * LAST_INTERVAL_NS {
            FIRST_INTERVAL_NS
        } else {
            (self.interval_ns * 2).clamp(FIRST_INTERVAL_NS, LAST_INTERVAL_NS)
        };
    }
}
