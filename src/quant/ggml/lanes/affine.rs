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

/// Searches in `G` groups of `N` values, by turns: while one's quotients are waited for, another's sums are formed.
///
/// A group whose values are equal needs no case of its own: its inverse scale is infinite, all its codes are zero, no try
/// has a determinant, and the scale comes out as zero.
#[inline(always)]
pub(super) fn search<S: Simd, const N: usize, const G: usize>(
    s: S,
    groups: [Group<'_>; G],
    tries: Tries,
) -> [Found<S>; G] {
    let zero = s.splat(0.0);
    let mut codes = [[Lanes::ZERO; N]; G];
    let mut sums = [moments(s, groups[0]); G];
    for g in 1..G {
        sums[g] = moments(s, groups[g]);
    }
    let mut min = [zero; G];
    let mut best = [zero; G];
    let mut found = [Found { scale: zero, subtracted: zero, inverse: zero, base: zero }; G];
    for g in 0..G {
        min[g] = sums[g].min;
        let (inverse, _) =
            fits::<S, N>(s, groups[g], sums[g], s.splat(tries.levels as f32), min[g], tries.levels, &mut codes[g]);
        let scale = s.div(s.splat(1.0), inverse);
        found[g] = Found { scale, subtracted: zero, inverse, base: min[g] };
        best[g] = error(s, groups[g], scale, min[g], &codes[g], tries.absolute);
    }
    for k in 0..=tries.last {
        let tried = s.splat(tries.first + tries.step * k as f32 + tries.levels as f32);
        let mut lines = [Line { scale: zero, min: zero, determinant: zero }; G];
        let mut inverse = [zero; G];
        for g in 0..G {
            let fit;
            (inverse[g], fit) = fits::<S, N>(s, groups[g], sums[g], tried, min[g], tries.levels, &mut codes[g]);
            lines[g] = line(s, sums[g], fit);
        }
        for g in 0..G {
            let line = lines[g];
            let error = error(s, groups[g], line.scale, line.min, &codes[g], tries.absolute);
            let error = s.select_lt(zero, line.determinant, error, s.splat(f32::INFINITY));
            found[g].scale = s.select_lt(error, best[g], line.scale, found[g].scale);
            found[g].inverse = s.select_lt(error, best[g], inverse[g], found[g].inverse);
            found[g].base = s.select_lt(error, best[g], min[g], found[g].base);
            min[g] = s.select_lt(error, best[g], line.min, min[g]);
            best[g] = s.select_lt(error, best[g], error, best[g]);
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

/// Codes for the inverse scale that makes the range from `min` to the largest value as wide as `tried`; the inverse scale, and
/// the sums of the codes.
#[inline(always)]
fn fits<S: Simd, const N: usize>(
    s: S,
    group: Group<'_>,
    sums: Moments<S>,
    tried: S::F,
    min: S::F,
    levels: i32,
    codes: &mut [Lanes; N],
) -> (S::F, Fits<S>) {
    let inverse = s.div(tried, s.sub(sums.max, min));
    // All products lie between these two. Nearly always no code would be too large, and nothing too far below zero to be
    // rounded in the simple way.
    let ends = [s.mul(inverse, s.sub(sums.min, min)), s.mul(inverse, s.sub(sums.max, min))];
    let (least, most) = (s.splat(-4e6), s.splat(levels as f32 + 0.49));
    let mut beyond = false;
    for end in ends {
        beyond |= s.any_lt(end, least) | s.any_lt(most, end);
    }
    let fits = if beyond {
        sums_of_codes::<S, N, false>(s, group, inverse, min, levels, codes)
    } else {
        sums_of_codes::<S, N, true>(s, group, inverse, min, levels, codes)
    };
    (inverse, fits)
}

/// Codes as floats, and their sums. `SMALL` says that no product exceeds the largest code when it is rounded, or is below
/// what [`ROUNDER`] can round.
#[inline(always)]
fn sums_of_codes<S: Simd, const N: usize, const SMALL: bool>(
    s: S,
    group: Group<'_>,
    inverse: S::F,
    min: S::F,
    levels: i32,
    codes: &mut [Lanes; N],
) -> Fits<S> {
    let zero = s.splat(0.0);
    let (low, high) = (s.splat(ROUNDER), s.splat(ROUNDER + levels as f32));
    let mut fits = Fits { q: zero, qq: zero, xq: zero };
    for ((x, w), code) in group.x.iter().zip(group.weights).zip(codes) {
        let (x, w) = (s.load(&x.0), s.load(&w.0));
        let product = s.mul(inverse, s.sub(x, min));
        let q = if SMALL { s.max(s.add(product, low), low) } else { bounded(s, product, low, high) };
        let q = value(s, q);
        s.store(q, &mut code.0);
        let wq = s.mul(w, q);
        fits.q = s.add(fits.q, wq);
        fits.qq = s.add(fits.qq, s.mul(wq, q));
        fits.xq = s.add(fits.xq, s.mul(wq, x));
    }
    fits
}

/// What fits codes best: `scale * code + min`; it means something where the determinant is positive.
struct Line<S: Simd> {
    scale: S::F,
    min: S::F,
    determinant: S::F,
}

impl<S: Simd> Clone for Line<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Simd> Copy for Line<S> {}

#[inline(always)]
fn line<S: Simd>(s: S, sums: Moments<S>, fits: Fits<S>) -> Line<S> {
    let zero = s.splat(0.0);
    let determinant = s.sub(s.mul(sums.w, fits.qq), s.mul(fits.q, fits.q));
    let mut scale = s.div(s.sub(s.mul(sums.w, fits.xq), s.mul(sums.wx, fits.q)), determinant);
    let mut min = s.div(s.sub(s.mul(fits.qq, sums.wx), s.mul(fits.q, fits.xq)), determinant);
    if s.any_lt(zero, min) {
        scale = s.select_lt(zero, min, s.div(fits.xq, fits.qq), scale);
        min = s.select_lt(zero, min, zero, min);
    }
    Line { scale, min, determinant }
}

/// The weighted error that scale, minimum and codes leave.
#[inline(always)]
fn error<S: Simd, const N: usize>(
    s: S,
    group: Group<'_>,
    scale: S::F,
    min: S::F,
    codes: &[Lanes; N],
    absolute: bool,
) -> S::F {
    let mut sum = s.splat(0.0);
    for ((x, w), code) in group.x.iter().zip(group.weights).zip(codes) {
        let difference = s.sub(s.add(s.mul(scale, s.load(&code.0)), min), s.load(&x.0));
        let error = if absolute { s.abs(difference) } else { s.mul(difference, difference) };
        sum = s.add(sum, s.mul(s.load(&w.0), error));
    }
    sum
}
