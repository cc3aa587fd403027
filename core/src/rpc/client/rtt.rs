//! How long to wait for an answer: the estimator of RFC 6298 in integers (wire.md §8.5).

/// Times that a slot goes back are counted up to here; `max_ns` ends the growth long before.
const MAX_RETREATS: u8 = 64;

/// The interval doubles once in so many of them.
const RETREATS_A_DOUBLING: u8 = 2;

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
    /// The most that a call has gone back and was answered nevertheless, since the last measurement.
    retreats: u8,
    /// The numbers of calls to be measured have none of these bits.
    unsampled: u64,
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
            retreats: 0,
            unsampled: 0,
        }
    }

    /// Whether a call of this number is to be measured: one in [`SAMPLED`], as round trips change
    /// more slowly than calls come; all until the first measurement, and after a call was repeated.
    #[inline(always)]
    pub(super) fn wants(&self, request: u64) -> bool {
        request & self.unsampled == 0
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
        self.retreats = 0;
        self.unsampled = SAMPLED - 1;
    }

    /// The interval after a slot has gone back so often.
    #[inline]
    pub(super) fn interval_ns(&self, retreats: u8) -> u64 {
        if retreats == 0 {
            return self.interval_ns;
        }
        let doublings = u32::from(retreats / RETREATS_A_DOUBLING);
        let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
        self.interval_ns.saturating_mul(factor).min(self.max_ns)
    }

    /// With how many retreats a call begins. One in [`SAMPLED`] must be answered before it is
    /// repeated, also where the interval has become too short.
    #[inline(always)]
    pub(super) fn retreats(&self, request: u64) -> u8 {
        if self.retreats == 0 || (request & (SAMPLED - 1) != 0 && self.smoothed8_ns != 0) {
            return 0;
        }
        self.retreats
    }

    /// An answer came after so many retreats, and does not say to which transmission.
    #[cold]
    pub(super) fn ambiguous(&mut self, retreats: u8) {
        // A call that began so and was repeated nevertheless makes the next one begin with more.
        self.retreats = self.retreats.max(retreats);
        self.unsampled = 0;
    }
}

/// One more.
pub(super) fn one_more(retreats: u8) -> u8 {
    retreats.saturating_add(1).min(MAX_RETREATS)
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
    fn it_doubles_every_second_time_up_to_the_bound() {
        let trip = RoundTrip::new(100, 10, 1_000);
        let intervals = [0, 1, 2, 3, 4, 5, 6, 7, 8, u8::MAX].map(|times| trip.interval_ns(times));
        assert_eq!(
            intervals,
            [100, 100, 200, 200, 400, 400, 800, 800, 1_000, 1_000]
        );
    }

    #[test]
    fn one_call_in_eight_is_measured_and_all_after_a_repetition() {
        let mut trip = RoundTrip::new(100, 10, 1_000);
        let measured = |trip: &RoundTrip| (1..=24).filter(|request| trip.wants(*request)).count();
        assert_eq!(measured(&trip), 24, "nothing has been measured");
        trip.measured(20);
        assert_eq!(measured(&trip), 3);
        trip.ambiguous(1);
        assert_eq!(measured(&trip), 24, "until one succeeds");
        trip.measured(20);
        assert_eq!(measured(&trip), 3);
    }

    #[test]
    fn the_next_measured_call_begins_where_the_slowest_ended() {
        let mut trip = RoundTrip::new(100, 10, 1_000);
        trip.ambiguous(3);
        assert_eq!(trip.retreats(9), 3, "nothing has been measured");
        trip.measured(20);
        assert_eq!([8, 9].map(|request| trip.retreats(request)), [0, 0]);
        trip.ambiguous(5);
        trip.ambiguous(4);
        assert_eq!([8, 9].map(|request| trip.retreats(request)), [5, 0]);
        trip.measured(20);
        assert_eq!(trip.retreats(8), 0);
    }

    #[test]
    fn bounds_in_the_wrong_order_are_bounds() {
        let trip = RoundTrip::new(u64::MAX, 500, 100);
        assert_eq!(trip.interval_ns(0), 100);
        assert_eq!(RoundTrip::new(0, 0, 0).interval_ns(0), 1);
    }
}
