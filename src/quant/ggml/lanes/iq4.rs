//! IQ4_NL and IQ4_XS; `reference::iq4` is their specification.

use super::pack::{nibbles, put, put_f16};
use super::round::{ROUNDER, bounded, byte, extreme, inverse, value};
use super::{Format, Tile, square_sum, weigh};
use crate::kernels::{LANES, Lanes, Simd, Words};
use crate::quant::ggml::tables::IQ4;
use crate::quant::ggml::tries::TINY;

/// Tries that are worked on at once: they share the values that they read.
const AT_ONCE: usize = 3;

/// The middle between a value of the table and the one before it, from which on a quotient gets its code. Distances to both are
/// exact next to it, so that comparing with the middle is the same as comparing distances.
const MIDDLES: [f32; LANES] = {
    let mut middles = [f32::NEG_INFINITY; LANES];
    let mut i = 1;
    while i < LANES {
        middles[i] = (IQ4[i - 1] + IQ4[i]) / 2.0;
        i += 1;
    }
    middles
};

/// The code of the nearest value: four steps of a binary search.
#[inline(always)]
fn code<S: Simd>(s: S, x: S::F) -> S::I {
    let mut code = s.bits(s.select_lt(x, s.splat(MIDDLES[8]), s.floats(s.isplat(0)), s.floats(s.isplat(8))));
    for step in [4, 2, 1] {
        let above = s.ior(code, s.isplat(step));
        let middle = s.lookup(&MIDDLES, above);
        code = s.bits(s.select_lt(x, middle, s.floats(code), s.floats(above)));
    }
    code
}

/// A group of 32 values and what they count.
struct Group<'a> {
    x: &'a [Lanes],
    weights: [Lanes; 32],
}

impl Group<'_> {
    /// `sum(w q x)` and `sum(w q q)` for some inverse scales.
    #[inline(always)]
    fn fits<S: Simd, const T: usize>(&self, s: S, inverse: [S::F; T]) -> [(S::F, S::F); T] {
        let mut sums = [(s.splat(0.0), s.splat(0.0)); T];
        for (x, w) in self.x.iter().zip(&self.weights) {
            let (x, w) = (s.load(&x.0), s.load(&w.0));
            for t in 0..T {
                let q = s.lookup(&IQ4, code(s, s.mul(inverse[t], x)));
                let wq = s.mul(w, q);
                sums[t].0 = s.add(sums[t].0, s.mul(wq, x));
                sums[t].1 = s.add(sums[t].1, s.mul(wq, q));
            }
        }
        sums
    }

    /// The scale.
    #[inline(always)]
    fn scale<S: Simd>(&self, s: S) -> S::F {
        let zero = s.splat(0.0);
        let mut most = (zero, zero);
        for x in self.x {
            most = extreme(s, most, s.load(&x.0));
        }
        let negative = s.floats(s.isub(s.bits(most.0), s.isplat(1 << 31)));
        let first = s.div(s.splat(1.0), s.div(negative, s.splat(IQ4[0])));
        let [(qx, qq)] = self.fits(s, [first]);
        let mut scale = s.select_lt(zero, qq, s.div(qx, qq), zero);
        let mut best = s.mul(scale, qx);
        for first in [-7, -4, -1, 2, 5] {
            let mut tried = [zero; AT_ONCE];
            for (k, tried) in tried.iter_mut().enumerate() {
                *tried = s.div(s.splat((first + k as i32) as f32 + IQ4[0]), most.0);
            }
            for (qx, qq) in self.fits(s, tried) {
                // A sum that is not positive cannot be better: the right side is then infinite.
                let bar = s.select_lt(zero, qq, s.mul(best, qq), s.splat(f32::INFINITY));
                let square = s.mul(qx, qx);
                if s.any_lt(bar, square) {
                    let other = s.div(qx, qq);
                    scale = s.select_lt(bar, square, other, scale);
                    best = s.select_lt(bar, square, s.mul(other, qx), best);
                }
            }
        }
        s.select_lt(most.1, s.splat(TINY), zero, scale)
    }
}

/// The scales of the groups of a block.
#[inline(always)]
fn scales<S: Simd, const N: usize>(s: S, tile: &Tile<'_>) -> [S::F; N] {
    let spread = s.mul(square_sum(s, tile.x), s.splat(2.0 / (32 * N) as f32));
    let mut scales = [s.splat(0.0); N];
    for (j, (scale, x)) in scales.iter_mut().zip(tile.x.chunks_exact(32)).enumerate() {
        let mut group = Group { x, weights: [Lanes::ZERO; 32] };
        if let Some((importance, _)) = tile.importance {
            weigh(s, x, &importance[32 * j..], spread, &mut group.weights);
        } else {
            for (weight, x) in group.weights.iter_mut().zip(x) {
                let x = s.load(&x.0);
                s.store(s.mul(x, x), &mut weight.0);
            }
        }
        *scale = group.scale(s);
    }
    scales
}

/// Writes the codes of 32 values at byte `at`.
#[inline(always)]
fn put_codes<S: Simd>(s: S, x: &[Lanes], inverse: S::F, blocks: &mut [u8], at: usize) {
    let mut codes = [Words::ZERO; 32];
    for (to, x) in codes.iter_mut().zip(x) {
        s.istore(code(s, s.mul(inverse, s.load(&x.0))), &mut to.0);
    }
    put::<S, 4, 2>(s, &codes, nibbles(16), blocks, at);
}

/// IQ4_NL.
#[derive(Clone, Copy)]
pub(super) struct Nl;

impl Format for Nl {
    const LEN: usize = 32;

    fn bytes(self) -> usize {
        18
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let [d] = scales(s, tile);
        put_f16(s, d, blocks, 0);
        put_codes(s, tile.x, inverse(s, d), blocks, 2);
    }
}

/// IQ4_XS.
#[derive(Clone, Copy)]
pub(super) struct Xs;

impl Format for Xs {
    const LEN: usize = 256;

    fn bytes(self) -> usize {
        136
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let scales: [S::F; 8] = scales(s, tile);
        let mut most = (s.splat(0.0), s.splat(0.0));
        for scale in scales {
            most = extreme(s, most, scale);
        }
        let negative = s.floats(s.isub(s.bits(most.0), s.isplat(1 << 31)));
        let d = s.div(negative, s.splat(32.0));
        put_f16(s, d, blocks, 0);
        let of_scales = inverse(s, d);
        let (low, high) = (s.splat(ROUNDER - 32.0), s.splat(ROUNDER + 31.0));
        let (mut upper, mut lower) = (s.isplat(0), s.isplat(0));
        for (j, (&scale, x)) in scales.iter().zip(tile.x.chunks_exact(32)).enumerate() {
            let six = bounded(s, s.mul(of_scales, scale), low, high);
            let stored = byte(s, s.add(six, s.splat(32.0)));
            upper = s.ior(upper, s.shl(s.shr(stored, 4), 2 * j as u32));
            lower = s.ior(lower, s.shl(s.iand(stored, s.isplat(15)), 4 * j as u32));
            put_codes(s, x, inverse(s, s.mul(d, value(s, six))), blocks, 8 + 16 * j);
        }
        // The upper bits of all scales take two bytes, the lower four.
        let mut words = [[0; LANES]; 2];
        s.istore(upper, &mut words[0]);
        s.istore(lower, &mut words[1]);
        for (lane, block) in blocks.chunks_exact_mut(136).enumerate() {
            block[2..4].copy_from_slice(&words[0][lane].to_le_bytes()[..2]);
            block[4..8].copy_from_slice(&words[1][lane].to_le_bytes());
        }
    }
}
