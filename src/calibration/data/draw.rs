//! A seeded permutation that costs no memory: which piece of the data comes first, second, third.
//!
//! A balanced Feistel network over the smallest even number of bits that holds every index; what falls outside goes round
//! again. The same on every machine. Knows numbers only.

/// Rounds of the network. Four make a pseudo-random permutation out of pseudo-random functions (Luby and Rackoff).
const ROUNDS: u64 = 4;

/// A permutation of `0..count`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permutation {
    count: u64,
    half_bits: u32,
    seed: u64,
}

impl Permutation {
    pub(super) fn new(count: u64, seed: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self { count, half_bits: bits.div_ceil(2).max(1), seed }
    }

    /// Where `index` goes.
    ///
    /// # Panics
    /// If it is not below the count.
    pub(super) fn at(self, index: u64) -> u64 {
        assert!(index < self.count, "{index} of {}", self.count);
        let mut value = index;
        loop {
            value = self.network(value);
            // The walk ends: it is a cycle of a permutation that holds `index`, which is below the count.
            if value < self.count {
                return value;
            }
        }
    }

    fn network(self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let mixed = mix(mix(self.seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15)) ^ right) & mask;
            (left, right) = (right, left ^ mixed);
        }
        left << self.half_bits | right
    }
}

/// The finalizer of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_comes_once_and_seeds_differ() {
        for count in [1u64, 2, 3, 5, 64, 65, 1000] {
            let order = |seed| (0..count).map(|index| Permutation::new(count, seed).at(index)).collect::<Vec<_>>();
            let mut sorted = order(7);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..count).collect::<Vec<_>>());
            assert!(count < 64 || order(7) != order(8));
        }
    }

    #[test]
    fn the_mixer_is_splitmix64() {
        // The first outputs of SplitMix64 from seed 1234567, as published with its reference code.
        assert_eq!(mix(1_234_567), 6_457_827_717_110_365_317);
        assert_eq!(mix(1_234_567u64.wrapping_add(0x9e37_79b9_7f4a_7c15)), 3_203_168_211_198_807_973);
    }
}
