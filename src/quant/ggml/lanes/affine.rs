//! The search for a scale and a minimum, in lanes; `reference::search::affine` is its specification.

use super::round::{ROUNDER, bounded, byte, value};
use crate::kernels::{Lanes, Simd, Words};
use crate::quant::ggml::tries::Tries;

/// What was found for a group of sixteen blocks.
pub(super) struct Found<S: Simd> {
    /// The scale.
    pub(super) scale: S::F,
    /// What is subtracted from `scale * code`.
    pub(super) subtracted: S::F,
    /// The codes are `(x - base) * inverse`, rounded and bounded.
    inverse: S::F,
    base: S::F,
}

impl<S: Simd> Clone for Found<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Simd> Copy for Found<S> {}

impl<S: Simd> Found<S> {
    /// The codes that the scale was found with.
    #[inline(always)]
    pub(super) fn codes(&self, s: S, x: &[Lanes], levels: i32, codes: &mut [Words]) {
        let (low, high) = (s.splat(ROUNDER), s.splat(ROUNDER + levels as f32));
        for (code, x) in codes.iter_mut().zip(x) {
            let q = bounded(s, s.mul(self.inverse, s.sub(s.load(&x.0), self.base)), low, high);
            s.istore(byte(s, q), &mut code.0);
        }
    }
}

/// A group and what its values count.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) x: &'a [Lanes],
    pub(super) weights: &'a [Lanes],
}

/// Extremes and sums of a group.
struct Moments<S: Simd> {
    min: S::F,
    max: S::F,
    w: S::F,
    wx: S::F,
}

impl<S: Simd> Clone for Moments<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Simd> Copy for Moments<S> {}

#[inline(always)]
fn moments<S: Simd>(s: S, group: Group<'_>) -> Moments<S> {
    let first = s.load(&group.x[0].0);
    let w = s.load(&group.weights[0].0);
    let mut sums = Moments { min: first, max: first, w, wx: s.mul(w, first) };
    for (x, w) in group.x.iter().zip(group.weights).skip(1) {
        let (x, w) = (s.load(&x.0), s.load(&w.0));
        sums.min = s.min(x, sums.min);
        sums.max = s.max(x, sums.max);
        sums.w = s.add(sums.w, w);
        sums.wx = s.add(sums.wx, s.mul(w, x));
    }
    sums.min = s.select_lt(s.splat(0.0), sums.min, s.splat(0.0), sums.min);
    sums
}

/// Searches in `G` groups of `N` values at once: one's sums wait while another's are formed.
///
/// A group whose values are equal needs no case of its own: its inverse scale is infinite, all its codes are zero, no try
/// has a determinant, and the scale comes out as zero.
#[inline(always)]
pub(super) fn search<S: Simd, const N: usize, const G: usize>(
    s: S,
    groups: [Group<'_>; G],
    tries: Tries,
) -> [Found<S>; G] {
    let levels = s.splat(tries.levels as f32);
    let zero = s.splat(0.0);
    let mut codes = [[Lanes::ZERO; G]; N];
    let mut sums = [moments(s, groups[0]); G];
    for g in 1..G {
        sums[g] = moments(s, groups[g]);
    }
    let mut min = [zero; G];
    let mut inverse = [zero; G];
    let mut scale = [zero; G];
    let mut found = [Found { scale: zero, subtracted: zero, inverse: zero, base: zero }; G];
    for g in 0..G {
        min[g] = sums[g].min;
        inverse[g] = s.div(levels, s.sub(sums[g].max, min[g]));
        scale[g] = s.div(s.splat(1.0), inverse[g]);
        found[g] = Found { scale: scale[g], subtracted: zero, inverse: inverse[g], base: min[g] };
    }
    fits::<S, N, G>(s, groups, tries.levels, inverse, min, &mut codes);
    let mut best = errors::<S, N, G>(s, groups, scale, min, &codes, tries.absolute);
    for k in 0..=tries.last {
        let tried = s.splat(tries.first + tries.step * k as f32 + tries.levels as f32);
        for g in 0..G {
            inverse[g] = s.div(tried, s.sub(sums[g].max, min[g]));
        }
        let fits = fits::<S, N, G>(s, groups, tries.levels, inverse, min, &mut codes);
        let (mut this_min, mut determinant) = ([zero; G], [zero; G]);
        for g in 0..G {
            let fit = &fits[g];
            determinant[g] = s.sub(s.mul(sums[g].w, fit.qq), s.mul(fit.q, fit.q));
            scale[g] = s.div(s.sub(s.mul(sums[g].w, fit.xq), s.mul(sums[g].wx, fit.q)), determinant[g]);
            this_min[g] = s.div(s.sub(s.mul(fit.qq, sums[g].wx), s.mul(fit.q, fit.xq)), determinant[g]);
            if s.any_lt(zero, this_min[g]) {
                scale[g] = s.select_lt(zero, this_min[g], s.div(fit.xq, fit.qq), scale[g]);
                this_min[g] = s.select_lt(zero, this_min[g], zero, this_min[g]);
            }
        }
        let error = errors::<S, N, G>(s, groups, scale, this_min, &codes, tries.absolute);
        for g in 0..G {
            let error = s.select_lt(zero, determinant[g], error[g], s.splat(f32::INFINITY));
            if s.any_lt(error, best[g]) {
                found[g].scale = s.select_lt(error, best[g], scale[g], found[g].scale);
                found[g].inverse = s.select_lt(error, best[g], inverse[g], found[g].inverse);
                found[g].base = s.select_lt(error, best[g], min[g], found[g].base);
                min[g] = s.select_lt(error, best[g], this_min[g], min[g]);
                best[g] = s.select_lt(error, best[g], error, best[g]);
            }
        }
    }
    for g in 0..G {
        found[g].subtracted = s.floats(s.isub(s.bits(min[g]), s.isplat(1 << 31)));
    }
    found
}

/// Sums of codes: `sum(w q)`, `sum(w q q)` and `sum(w q x)`.
struct Fits<S: Simd> {
    q: S::F,
    qq: S::F,
    xq: S::F,
}

impl<S: Simd> Clone for Fits<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Simd> Copy for Fits<S> {}

/// Codes for inverse scales and minima, as floats, and their sums.
#[inline(always)]
fn fits<S: Simd, const N: usize, const G: usize>(
    s: S,
    groups: [Group<'_>; G],
    levels: i32,
    inverse: [S::F; G],
    min: [S::F; G],
    codes: &mut [[Lanes; G]; N],
) -> [Fits<S>; G] {
    let zero = s.splat(0.0);
    let (low, high) = (s.splat(ROUNDER), s.splat(ROUNDER + levels as f32));
    let mut fits = [Fits { q: zero, qq: zero, xq: zero }; G];
    for (i, codes) in codes.iter_mut().enumerate() {
        for g in 0..G {
            let (x, w) = (s.load(&groups[g].x[i].0), s.load(&groups[g].weights[i].0));
            let q = value(s, bounded(s, s.mul(inverse[g], s.sub(x, min[g])), low, high));
            s.store(q, &mut codes[g].0);
            let wq = s.mul(w, q);
            fits[g].q = s.add(fits[g].q, wq);
            fits[g].qq = s.add(fits[g].qq, s.mul(wq, q));
            fits[g].xq = s.add(fits[g].xq, s.mul(wq, x));
        }
    }
    fits
}

/// The weighted errors that scales, minima and codes leave.
#[inline(always)]
fn errors<S: Simd, const N: usize, const G: usize>(
    s: S,
    groups: [Group<'_>; G],
    scale: [S::F; G],
    min: [S::F; G],
    codes: &[[Lanes; G]; N],
    absolute: bool,
) -> [S::F; G] {
    let mut sums = [s.splat(0.0); G];
    for (i, codes) in codes.iter().enumerate() {
        for g in 0..G {
            let (x, w) = (s.load(&groups[g].x[i].0), s.load(&groups[g].weights[i].0));
            let difference = s.sub(s.add(s.mul(scale[g], s.load(&codes[g].0)), min[g]), x);
            let error = if absolute { s.abs(difference) } else { s.mul(difference, difference) };
            sums[g] = s.add(sums[g], s.mul(w, error));
        }
    }
    sums
}
