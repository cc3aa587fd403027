//! For how long to spin before sleeping.

use std::time::Duration;

/// The shortest spin: what a sleep and a wake-up cost is lost by then anyway.
const MIN_SPIN_NS: u64 = 2_000;

/// Spins as long as that has been worth while. When what was awaited came in time, the next spin may be longer; when it came
/// after the spin, so that a processor was kept from others for nothing, shorter.
pub struct Patience {
    spin_ns: u64,
    max_spin_ns: u64,
    since_ns: Option<u64>,
}

impl Patience {
    /// Spins for `max_spin` at most; not at all if that is 0.
    pub fn new(max_spin: Duration) -> Self {
        let max_spin_ns = u64::try_from(max_spin.as_nanos()).unwrap_or(u64::MAX);
        Self {
            spin_ns: max_spin_ns,
            max_spin_ns,
            since_ns: None,
        }
    }

    /// Something has come.
    #[inline(always)]
    pub fn renew(&mut self) {
        if self.since_ns.take().is_some() {
            self.lengthen();
        }
    }

    fn lengthen(&mut self) {
        self.spin_ns = self.spin_ns.saturating_mul(2).min(self.max_spin_ns);
    }

    /// Whether to go on spinning, now that nothing has come.
    pub fn lasts(&mut self, now_ns: u64) -> bool {
        let since_ns = *self.since_ns.get_or_insert(now_ns);
        now_ns.saturating_sub(since_ns) < self.spin_ns
    }

    /// It has slept.
    pub fn slept(&mut self) {
        self.since_ns = None;
        self.spin_ns = (self.spin_ns / 2).max(MIN_SPIN_NS.min(self.max_spin_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_while_spinning_pays_and_shrinks_while_it_does_not() {
        let mut patience = Patience::new(Duration::from_micros(64));
        assert!(patience.lasts(0));
        assert!(patience.lasts(63_999));
        assert!(!patience.lasts(64_000));
        patience.slept();
        assert!(patience.lasts(100_000));
        assert!(!patience.lasts(132_000));
        for _ in 0..20 {
            patience.slept();
        }
        assert!(patience.lasts(0) && patience.lasts(1_999));
        assert!(!patience.lasts(2_000));
        patience.renew();
        assert!(patience.lasts(10_000) && patience.lasts(13_999));
        assert!(!patience.lasts(14_000));
    }

    #[test]
    fn it_can_be_none() {
        let mut patience = Patience::new(Duration::ZERO);
        assert!(!patience.lasts(5));
    }
}
