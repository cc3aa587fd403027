//! How long to wait for an answer: the estimator of RFC 6298 in integers (wire.md §8.5).

/// Doublings are counted up to here; `max_ns` ends them long before.
const MAX_DOUBLINGS: u8 = 32;

/// No interval is longer: 18 minutes.
const LONGEST_NS: u64 = 1 << 40;

/// One call in so many is measured.
const SAMPLED: u64 = 8;

const _: () = assert!(SAMPLED.is_power_of_two());

/// Round-trip time, measured and smoothed.
#[derive(Clone, Debug)]
pub(super) struct RoundTrip {
    /// The smoothed round-trip time, times 8; 0 before the first measurement.
    smoothed8_ns: u64,
    /// Its mean deviation, times 4.
    deviation4_ns: u64,
    interval_ns: u64,
    min_ns: u64,
    max_ns: u64,
    /// Kept from a call that was answered after retransmissions: Karn's rule, by which the interval
    /// stays long until an answer proves that it need not be.
    doublings: u8,
}

impl RoundTrip {
    pub(super) fn new(initial_ns: u64, min_ns: u64, max_ns: u64) -> Self {
        let max_ns = max_ns.clamp(1, LONGEST_NS);
        let min_ns = min_ns.clamp(1, max_ns);
        Self {
            smoothed8_ns: 0,
            deviation4_ns: 0,
            interval_ns: initial_ns.clamp(min_ns, max_ns),
            min_ns,
            max_ns,
            doublings: 0,
        }
    }

    /// Whether a call of this number is to be measured: one in [`SAMPLED`], as round trips change
    /// more slowly than calls come; all until the first measurement, and after retransmissions.
    #[inline(always)]
    pub(super) fn wants(&self, request: u64) -> bool {
        request & (SAMPLED - 1) == 0 || self.smoothed8_ns == 0 || self.doublings != 0
    }

    /// Takes the time between a datagram and its answer, where the datagram was sent once.
    #[inline]
    pub(super) fn measured(&mut self, round_trip_ns: u64) {
        // At most LONGEST_NS, so that no sum below comes near an overflow.
        let sample_ns = round_trip_ns.max(1).min(self.max_ns);
        if self.smoothed8_ns == 0 {
            self.smoothed8_ns = sample_ns.wrapping_mul(8);
            self.deviation4_ns = sample_ns.wrapping_mul(2);
        } else {
            let smoothed_ns = self.smoothed8_ns >> 3;
            let off_ns = smoothed_ns.abs_diff(sample_ns);
            let forgotten_ns = self.deviation4_ns >> 2;
            self.deviation4_ns = self
                .deviation4_ns
                .wrapping_sub(forgotten_ns)
                .wrapping_add(off_ns);
            self.smoothed8_ns = self
                .smoothed8_ns
                .wrapping_sub(smoothed_ns)
                .wrapping_add(sample_ns);
        }
        let interval_ns = (self.smoothed8_ns >> 3).wrapping_add(self.deviation4_ns);
        self.interval_ns = interval_ns.max(self.min_ns).min(self.max_ns);
        self.doublings = 0;
    }

    /// The interval after so many retransmissions.
    #[inline]
    pub(super) fn interval_ns(&self, doublings: u8) -> u64 {
        if doublings == 0 {
            return self.interval_ns;
        }
        let factor = 1_u64.checked_shl(u32::from(doublings)).unwrap_or(u64::MAX);
        self.interval_ns.saturating_mul(factor).min(self.max_ns)
    }

    /// Doublings with which a new call begins.
    #[inline]
    pub(super) fn doublings(&self) -> u8 {
        self.doublings
    }

    /// An answer came after so many doublings, and does not say to which transmission.
    #[inline]
    pub(super) fn ambiguous(&mut self, doublings: u8) {
        self.doublings = self.doublings.max(doublings);
    }
}

/// One more.
pub(super) fn doubled(doublings: u8) -> u8 {
    doublings.saturating_add(1).min(MAX_DOUBLINGS)
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_interval_follows_what_is_measured() {
        let mut trip = RoundTrip::new(1_000_000, 1_000, 10_000_000);
        assert_eq!(trip.interval_ns(0), 1_000_000);
        trip.measured(80_000);
        assert_eq!(trip.interval_ns(0), 80_000 + 4 * 40_000, "RFC 6298 §2.2");
        trip.measured(80_000);
        assert_eq!(trip.interval_ns(0), 80_000 + 4 * 30_000, "RFC 6298 §2.3");
        for _ in 0..100 {
            trip.measured(80_000);
        }
        assert!((80_000..81_000).contains(&trip.interval_ns(0)));
        for _ in 0..100 {
            trip.measured(0);
        }
        assert_eq!(trip.interval_ns(0), 1_000, "not below the least");
        trip.measured(u64::MAX);
        assert_eq!(trip.interval_ns(0), 10_000_000, "nor above the most");
    }

    #[test]
    fn it_doubles_and_stays_doubled_until_something_is_measured() {
        let mut trip = RoundTrip::new(100, 10, 1_000);
        let intervals = [0, 1, 2, 3, 4, 32, u8::MAX].map(|doublings| trip.interval_ns(doublings));
        assert_eq!(intervals, [100, 200, 400, 800, 1_000, 1_000, 1_000]);
        trip.ambiguous(2);
        assert_eq!(trip.doublings(), 2);
        trip.measured(20);
        assert_eq!(trip.doublings(), 0);
    }

    #[test]
    fn bounds_in_the_wrong_order_are_bounds() {
        let trip = RoundTrip::new(u64::MAX, 500, 100);
        assert_eq!(trip.interval_ns(0), 100);
        assert_eq!(RoundTrip::new(0, 0, 0).interval_ns(0), 1);
    }
}
