//! The search for a scale, in lanes; `reference::search::symmetric` is its specification.

use super::round::{ROUNDER, bounded, byte, extreme, mask_lt, value};
use crate::kernels::{Lanes, Simd, Words};
use crate::quant::ggml::tries::TINY;

/// Tries that are worked on at once: they share the values that they read.
const AT_ONCE: usize = 3;

/// What was found for a group of sixteen blocks.
pub(super) struct Found<S: Simd> {
    /// The scale.
    pub(super) scale: S::F,
    inverse: S::F,
    /// All ones in lanes where the group is not zero.
    live: S::I,
}

impl<S: Simd> Found<S> {
    /// The codes that the scale was found with, `levels` added.
    #[inline(always)]
    pub(super) fn codes(&self, s: S, x: &[Lanes], levels: i32, codes: &mut [Words]) {
        let levels = levels as f32;
        let (low, high) = (s.splat(ROUNDER - levels), s.splat(ROUNDER + levels - 1.0));
        for (code, x) in codes.iter_mut().zip(x) {
            let q = bounded(s, s.mul(self.inverse, s.load(&x.0)), low, high);
            s.istore(s.iand(byte(s, s.add(q, s.splat(levels))), self.live), &mut code.0);
        }
    }
}

/// Searches in a group of `N` values.
#[inline(always)]
pub(super) fn search<S: Simd, const N: usize>(s: S, x: &[Lanes; N], weights: &[Lanes; N], levels: i32) -> Found<S> {
    let zero = s.splat(0.0);
    let mut most = (zero, zero);
    let mut weighted = [Lanes::ZERO; N];
    for i in 0..N {
        let v = s.load(&x[i].0);
        most = extreme(s, most, v);
        s.store(s.mul(s.load(&weights[i].0), v), &mut weighted[i].0);
    }
    let live = s.isub(s.isplat(u32::MAX), mask_lt(s, most.1, s.splat(TINY)));
    let group = Group { x, weights, weighted: &weighted, levels: levels as f32 };
    let mut inverse = s.div(s.splat(-levels as f32), most.0);
    let [(xq, qq)] = group.fits(s, [inverse], false);
    // Zero where all weights are zero; NaN is not.
    let mut scale = s.select_lt(s.abs(qq), s.splat(f32::from_bits(1)), zero, s.div(xq, qq));
    let mut best = s.mul(scale, xq);
    for first in [-9, -6, -3, 1, 4, 7] {
        let mut tried = [zero; AT_ONCE];
        for (k, tried) in tried.iter_mut().enumerate() {
            *tried = s.div(s.splat(-(levels as f32 + 0.1 * (first + k as i32) as f32)), most.0);
        }
        let fits = group.fits(s, tried, first + AT_ONCE as i32 > 5);
        for ((xq, qq), tried) in fits.into_iter().zip(tried) {
            // A sum that is not positive cannot be better: the right side is then infinite.
            let bar = s.select_lt(zero, qq, s.mul(best, qq), s.splat(f32::INFINITY));
            let square = s.mul(xq, xq);
            if s.any_lt(bar, square) {
                let other = s.div(xq, qq);
                inverse = s.select_lt(bar, square, tried, inverse);
                scale = s.select_lt(bar, square, other, scale);
                best = s.select_lt(bar, square, s.mul(other, xq), best);
            }
        }
    }
    Found { scale: s.floats(s.iand(s.bits(scale), live)), inverse, live }
}

struct Group<'a, const N: usize> {
    x: &'a [Lanes; N],
    weights: &'a [Lanes; N],
    weighted: &'a [Lanes; N],
    levels: f32,
}

impl<const N: usize> Group<'_, N> {
    /// `sum(w x q)` and `sum(w q q)` for the codes of some inverse scales.
    ///
    /// The value of largest magnitude is multiplied to about `-levels` and no other further from zero, so that rounding is simple; what
    /// a group of zeros gets is thrown away. Unless it is `wide`, that product is rounded to `-levels`, and no code is too low. One
    /// is too high where a value nearly as large has the other sign.
    #[inline(always)]
    fn fits<S: Simd, const T: usize>(&self, s: S, inverse: [S::F; T], wide: bool) -> [(S::F, S::F); T] {
        let (low, high) = (s.splat(ROUNDER - self.levels), s.splat(ROUNDER + self.levels - 1.0));
        let mut sums = [(s.splat(0.0), s.splat(0.0)); T];
        for i in 0..N {
            let (x, w, wx) = (s.load(&self.x[i].0), s.load(&self.weights[i].0), s.load(&self.weighted[i].0));
            for t in 0..T {
                let shifted = s.min(s.add(s.mul(inverse[t], x), s.splat(ROUNDER)), high);
                let q = value(s, if wide { s.max(shifted, low) } else { shifted });
                sums[t].0 = s.add(sums[t].0, s.mul(wx, q));
                sums[t].1 = s.add(sums[t].1, s.mul(s.mul(w, q), q));
            }
        }
        sums
    }
}
