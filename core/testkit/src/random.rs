//! Where every choice of a run comes from.
//!
//! ChaCha with 8 rounds, seeded by hand and read as whole words, so that a seed stands for the same
//! run on every platform and with every version of the generator's crate: the algorithm is fixed,
//! and nothing here goes through `rand`'s distributions, whose results may change between versions.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A generator of its own for each purpose of a run, so that a draw more in one place does not
/// change what another place sees.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The generator of `seed` for the purpose that `stream` numbers.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(bytes);
        generator.set_stream(stream);
        Self(generator)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from 0 to `bound - 1`, or 0 if there is none. The bias of the multiplication is
    /// below `bound / 2^64`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `range`, both ends included.
    pub fn within(&mut self, range: &core::ops::RangeInclusive<u64>) -> u64 {
        range.start() + self.below(range.end().saturating_sub(*range.start()).saturating_add(1))
    }

    /// Whether something of this likelihood happens this time.
    pub fn happens(&mut self, chance: Chance) -> bool {
        chance.decides(self.bits() as u16)
    }
}

/// A likelihood, in steps of 1/65536.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Chance(u32);

impl Chance {
    /// It does not happen.
    pub const NEVER: Self = Self(0);

    /// It happens `percent` times in a hundred; what exceeds 100 is always.
    pub fn percent(percent: f64) -> Self {
        Self((percent.clamp(0.0, 100.0) * 655.36).round() as u32)
    }

    /// Whether it happens, given 16 random bits.
    pub fn decides(self, bits: u16) -> bool {
        u32::from(bits) < self.0
    }
}

impl core::fmt::Debug for Chance {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:.2} %", f64::from(self.0) / 655.36)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down once: a seed must not come to stand for another run.
    #[test]
    fn a_seed_always_stands_for_the_same_numbers() {
        let mut random = Random::new(42, 7);
        let drawn = [random.bits(), random.bits(), random.below(1000)];
        let written = [3_425_180_178_688_264_041, 10_705_747_601_317_740_447, 945];
        assert_eq!(drawn, written);
    }

    #[test]
    fn chances_are_what_they_say() {
        let mut random = Random::new(1, 0);
        let mut count = |chance| (0..100_000).filter(|_| random.happens(chance)).count();
        assert_eq!(count(Chance::NEVER), 0);
        assert_eq!(count(Chance::percent(100.0)), 100_000);
        let third = count(Chance::percent(30.0));
        assert!((29_000..31_000).contains(&third), "{third}");
    }

    #[test]
    fn bounds_hold() {
        let mut random = Random::new(2, 0);
        assert_eq!(random.below(0), 0);
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert!((0..1000).all(|_| (3..=4).contains(&random.within(&(3..=4)))));
        assert_eq!(random.within(&(5..=5)), 5);
    }
}
