//! Seeded random weights. It must not know names or files.

use std::collections::HashMap;
use std::io::{self, Write};

use half::{bf16, f16};

use crate::Dtype;

/// Elements up to which every value of a tensor is drawn for itself.
const EXACT: usize = 4 << 20;
/// Elements of the pool that larger tensors are cut from.
const POOL: usize = 8 << 20;

/// xoshiro256** (Blackman and Vigna, public domain), seeded through SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
    spare: Option<f32>,
}

impl Rng {
    /// A generator for one seed and one purpose; different purposes give unrelated streams.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a spreads the name; SplitMix64 makes four good words of whatever comes out.
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ hash;
        let state = [(); 4].map(|()| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Self { state, spare: None }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in (0, 1].
    pub fn uniform(&mut self) -> f32 {
        ((self.next_u64() >> 40) + 1) as f32 / (1u64 << 24) as f32
    }

    /// Uniform in `0..n`; the bias is below `n / 2^64`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Standard normal, by Box and Muller's method.
    pub fn normal(&mut self) -> f32 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * self.uniform()).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// Student's t with two degrees of freedom, cut at 100: a normal over the root of an exponential of mean one.
    pub fn heavy_tailed(&mut self) -> f32 {
        let spread = (-self.uniform().ln()).max(1e-8).sqrt();
        (self.normal() / spread).clamp(-100.0, 100.0)
    }
}

/// Distribution of the values of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Values {
    pub(crate) mean: f32,
    pub(crate) deviation: f32,
    pub(crate) heavy: bool,
}

impl Values {
    fn draw(self, rng: &mut Rng) -> f32 {
        let unit = if self.heavy { rng.heavy_tailed() } else { rng.normal() };
        self.mean + self.deviation * unit
    }
}

/// Writes `count` normal values of the given standard deviation as `dtype`, each drawn for itself.
///
/// # Panics
/// If `dtype` is not BF16, F16 or F32.
pub fn fill_normal(rng: &mut Rng, count: usize, deviation: f32, dtype: Dtype, out: &mut dyn Write) -> io::Result<()> {
    fill(rng, count, Values { mean: 0.0, deviation, heavy: false }, dtype, out)
}

fn fill(rng: &mut Rng, count: usize, values: Values, dtype: Dtype, out: &mut dyn Write) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut left = count;
    while left > 0 {
        let n = left.min(64 << 10);
        bytes.clear();
        for _ in 0..n {
            let x = values.draw(rng);
            match dtype {
                Dtype::BF16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                Dtype::F32 => bytes.extend(x.to_le_bytes()),
                other => panic!("weights are drawn as BF16, F16 or F32, not {other:?}"),
            }
        }
        out.write_all(&bytes)?;
        left -= n;
    }
    Ok(())
}

/// Fills tensors; keeps one pool of 8 Mi values per distribution for those above 4 Mi elements, and cuts them from it in
/// pieces of random place and length, so that real-size layers are written as fast as the disk takes them. Such a tensor
/// repeats itself every few million elements, never in step with its rows.
pub(crate) struct Filler {
    seed: u64,
    pools: HashMap<(u32, u32, bool, usize), Vec<u8>>,
}

impl Filler {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, pools: HashMap::new() }
    }

    pub(crate) fn fill(
        &mut self,
        name: &str,
        count: usize,
        values: Values,
        dtype: Dtype,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut rng = Rng::new(self.seed, name);
        if count <= EXACT {
            return fill(&mut rng, count, values, dtype, out);
        }
        let seed = self.seed;
        let key = (values.mean.to_bits(), values.deviation.to_bits(), values.heavy, dtype.bytes());
        let pool = match self.pools.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let mut bytes = Vec::with_capacity(POOL * dtype.bytes());
                fill(&mut Rng::new(seed, "pool"), POOL, values, dtype, &mut bytes)?;
                entry.insert(bytes)
            }
        };
        let mut left = count;
        while left > 0 {
            let n = left.min(POOL / 4 + rng.below(POOL / 4));
            let start = rng.below(POOL - n);
            out.write_all(&pool[start * dtype.bytes()..(start + n) * dtype.bytes()])?;
            left -= n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_the_moments_of_a_normal() {
        let mut rng = Rng::new(7, "moments");
        let x: Vec<f64> = (0..1_000_000).map(|_| f64::from(rng.normal())).collect();
        let moment = |k: i32| x.iter().map(|v| v.powi(k)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.005 && (moment(2) - 1.0).abs() < 0.01);
        assert!(moment(3).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.05);
    }

    #[test]
    fn heavy_tails_are_heavy() {
        let mut rng = Rng::new(7, "tails");
        // For Student's t with two degrees of freedom P(|t| > 10) = 1 - 10 / sqrt(102) = 0.0099.
        let far = (0..100_000).filter(|_| rng.heavy_tailed().abs() > 10.0).count();
        assert!((800..1200).contains(&far), "{far}");
    }

    #[test]
    fn large_tensors_are_complete_and_repeatable() {
        let values = Values { mean: 0.0, deviation: 0.02, heavy: false };
        let draw = |seed| {
            let mut bytes = Vec::new();
            Filler::new(seed).fill("x", EXACT + 1, values, Dtype::BF16, &mut bytes).unwrap();
            bytes
        };
        let one = draw(1);
        assert_eq!(one.len(), 2 * (EXACT + 1));
        assert!(one == draw(1) && one != draw(2));
    }
}
