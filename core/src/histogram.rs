//! Latencies in constant memory.
//!
//! A value of up to 31 ns has a bucket of its own; from there on each octave is divided into 32, so
//! that a bucket is never wider than 1/32 of its lower end: quantiles are exact to 3.2 %. Two
//! histograms merge by adding, also across machines: what travels is the pairs of bucket index and
//! count, of which a run has a few dozen.

use core::fmt;

/// Each octave is divided into `1 << SUB_BUCKET_BITS` buckets.
const SUB_BUCKET_BITS: u32 = 5;
const SUB_BUCKETS: usize = 1 << SUB_BUCKET_BITS;

/// Values from `1 << MAX_BITS` ns on, 1100 s, are counted in the last bucket.
const MAX_BITS: u32 = 40;

/// How many buckets there are.
pub const BUCKETS: usize = SUB_BUCKETS * (1 + (MAX_BITS - SUB_BUCKET_BITS) as usize);

/// A histogram of nanoseconds. Its memory is valid if it is all zeros: a caller without much of a
/// stack can take zeroed memory for one.
#[derive(Clone, PartialEq, Eq, zerocopy::FromZeros)]
#[repr(C)]
pub struct Histogram {
    count: u64,
    buckets: [u64; BUCKETS],
}

/// A bucket that has been counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its place, in `0..BUCKETS`.
    pub index: usize,
    /// How many values it counted.
    pub count: u64,
    /// The least value that it counts, in nanoseconds.
    pub lower_ns: u64,
    /// The greatest value that it counts, in nanoseconds.
    pub upper_ns: u64,
}

/// There is no bucket with this index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchBucket {
    /// The index, which is not in `0..BUCKETS`.
    pub index: usize,
}

impl fmt::Display for NoSuchBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no bucket {} in a histogram of {BUCKETS}", self.index)
    }
}

impl core::error::Error for NoSuchBucket {}

impl Histogram {
    /// An empty histogram of 9 KiB.
    pub const fn new() -> Self {
        Self {
            count: 0,
            buckets: [0; BUCKETS],
        }
    }

    /// Counts a value.
    #[inline]
    pub fn record(&mut self, value_ns: u64) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(value_ns)) {
            *bucket = bucket.saturating_add(1);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Counts `count` values in the bucket with this index.
    pub fn add(&mut self, index: usize, count: u64) -> Result<(), NoSuchBucket> {
        let bucket = self.buckets.get_mut(index).ok_or(NoSuchBucket { index })?;
        *bucket = bucket.saturating_add(count);
        self.count = self.count.saturating_add(count);
        Ok(())
    }

    /// Counts everything that `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket = bucket.saturating_add(*more);
        }
        self.count = self.count.saturating_add(other.count);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.count = 0;
        self.buckets.fill(0);
    }

    /// How many values have been counted.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The buckets that have been counted in, in ascending order.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> + '_ {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, &count)| count > 0)
            .map(|(index, &count)| Bucket {
                index,
                count,
                lower_ns: lower_ns(index),
                upper_ns: lower_ns(index.wrapping_add(1)).wrapping_sub(1),
            })
    }

    /// The value that `per_mille` thousandths of the counted values do not exceed (500 for the
    /// median, 999 for p99.9), as the upper end of its bucket in nanoseconds. `None` if nothing has
    /// been counted.
    pub fn quantile_ns(&self, per_mille: u16) -> Option<u64> {
        let per_mille = u64::from(per_mille.min(1000));
        // count * per_mille / 1000, rounded up, without overflow.
        let (thousands, rest) = (self.count / 1000, self.count % 1000);
        let rank = thousands
            .saturating_mul(per_mille)
            .saturating_add(rest.saturating_mul(per_mille).div_ceil(1000));
        let mut below: u64 = 0;
        self.buckets().find_map(|bucket| {
            below = below.saturating_add(bucket.count);
            (below >= rank).then_some(bucket.upper_ns)
        })
    }

    /// The greatest counted value, as the upper end of its bucket in nanoseconds.
    pub fn max_ns(&self) -> Option<u64> {
        self.buckets().last().map(|bucket| bucket.upper_ns)
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.buckets().map(|bucket| (bucket.lower_ns, bucket.count)))
            .finish()
    }
}

/// The index of the bucket that counts this value.
#[inline]
const fn bucket_of(value_ns: u64) -> usize {
    if value_ns < SUB_BUCKETS as u64 {
        return value_ns as usize;
    }
    if value_ns >= 1 << MAX_BITS {
        return BUCKETS - 1;
    }
    // How far to shift so that the leading one and `SUB_BUCKET_BITS` more are left, in
    // SUB_BUCKETS..2 * SUB_BUCKETS.
    let shift = (u64::BITS - SUB_BUCKET_BITS - 1).wrapping_sub(value_ns.leading_zeros());
    (shift as usize)
        .wrapping_mul(SUB_BUCKETS)
        .wrapping_add((value_ns >> shift) as usize)
}

/// The least value that the bucket with this index counts, in nanoseconds.
const fn lower_ns(index: usize) -> u64 {
    if index < 2 * SUB_BUCKETS {
        return index as u64;
    }
    let shift = (index / SUB_BUCKETS).wrapping_sub(1) as u32;
    ((index % SUB_BUCKETS + SUB_BUCKETS) as u64).wrapping_shl(shift)
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for index in 0..BUCKETS {
            assert_eq!(bucket_of(lower_ns(index)), index);
            assert_eq!(bucket_of(lower_ns(index + 1) - 1), index);
        }
        assert_eq!(lower_ns(BUCKETS), 1 << MAX_BITS);
        for beyond in [1 << MAX_BITS, (1 << MAX_BITS) + 1, u64::MAX] {
            assert_eq!(bucket_of(beyond), BUCKETS - 1);
        }
    }

    #[test]
    fn an_index_out_of_range_is_refused() {
        let mut histogram = Histogram::new();
        assert_eq!(
            histogram.add(BUCKETS, 1),
            Err(NoSuchBucket { index: BUCKETS })
        );
        assert_eq!(
            histogram.add(usize::MAX, 1),
            Err(NoSuchBucket { index: usize::MAX })
        );
        assert_eq!(
            (
                histogram.count(),
                histogram.max_ns(),
                histogram.quantile_ns(500)
            ),
            (0, None, None)
        );
    }

    #[test]
    fn quantiles_do_not_overflow() {
        let mut histogram = Histogram::new();
        histogram.add(3, u64::MAX / 2).unwrap();
        histogram.add(10, u64::MAX / 2).unwrap();
        assert_eq!(histogram.quantile_ns(500), Some(3));
        assert_eq!(histogram.quantile_ns(501), Some(10));
        histogram.add(10, u64::MAX).unwrap();
        assert_eq!(histogram.count(), u64::MAX);
    }

    #[test]
    fn what_is_cleared_is_as_new() {
        let mut histogram = Histogram::default();
        assert!(histogram == Histogram::new());
        histogram.record(3);
        histogram.record(70);
        assert_eq!((histogram.count(), histogram.max_ns()), (2, Some(71)));
        assert_eq!(std::format!("{histogram:?}"), "{3: 1, 70: 1}");
        histogram.clear();
        assert!(histogram == Histogram::new());
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_the_sorted_values(
            mut values in proptest::collection::vec(0..1_u64 << MAX_BITS, 1..200),
            per_mille in 0..=1000_u16,
        ) {
            let mut histogram = Histogram::new();
            values.iter().for_each(|value| histogram.record(*value));
            values.sort_unstable();
            let rank = (values.len() * usize::from(per_mille)).div_ceil(1000).max(1);
            let exact = values[rank - 1];
            let found = histogram.quantile_ns(per_mille).unwrap();
            prop_assert!(found >= exact && found - exact <= exact / 32, "{} for {}", found, exact);
        }

        #[test]
        fn pairs_rebuild_and_merging_adds(
            one in proptest::collection::vec(any::<u64>(), 0..100),
            two in proptest::collection::vec(any::<u64>(), 0..100),
        ) {
            let of = |values: &[u64]| {
                let mut histogram = Histogram::new();
                values.iter().for_each(|value| histogram.record(*value));
                histogram
            };
            let mut merged = of(&one);
            merged.merge(&of(&two));
            let both: Vec<u64> = one.iter().chain(&two).copied().collect();
            prop_assert!(merged == of(&both));
            let mut rebuilt = Histogram::new();
            for bucket in merged.buckets() {
                prop_assert!(bucket.lower_ns <= bucket.upper_ns);
                rebuilt.add(bucket.index, bucket.count).unwrap();
            }
            prop_assert!(rebuilt == merged);
        }
    }
}
