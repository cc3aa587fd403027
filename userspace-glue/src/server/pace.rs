//! How fast requests are answered, at the readings of the clock.

/// How long a request takes at most, on the average, where replies may be held back.
const QUICK_NS: u64 = 1000;

/// Counts requests between two readings of the clock.
#[derive(Default)]
pub struct Pace {
    requests: u32,
    since_ns: u64,
}

impl Pace {
    /// So many more were answered.
    #[inline(always)]
    pub fn answered(&mut self, requests: u32) {
        self.requests += requests;
    }

    /// The clock was read. Whether requests are many and quick: then the replies of a few may leave together. A slow handler would
    /// hold up those before its own; and where requests are few, somebody waits for each reply.
    pub fn is_quick(&mut self, now_ns: u64) -> bool {
        let took_ns = now_ns.saturating_sub(self.since_ns);
        let quick = took_ns < u64::from(self.requests) * QUICK_NS;
        (self.requests, self.since_ns) = (0, now_ns);
        quick
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_requests_are_quick_and_few_or_slow_ones_are_not() {
        let mut pace = Pace::default();
        assert!(!pace.is_quick(5_000), "there was none");
        pace.answered(60);
        pace.answered(40);
        assert!(pace.is_quick(104_999));
        pace.answered(100);
        assert!(!pace.is_quick(204_999));
        assert!(!pace.is_quick(204_999), "those are counted already");
        pace.answered(32);
        assert!(!pace.is_quick(32_204_999), "a millisecond each");
        pace.answered(1);
        assert!(pace.is_quick(32_205_998));
    }
}
