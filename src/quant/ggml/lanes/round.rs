//! From floats to integers and back, in lanes.

use crate::kernels::Simd;

/// 1.5 * 2^23. Adding it to a float below 2^22 rounds that to an integer, ties to even; the sum's low bits are the integer
/// in two's complement.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// [`ROUNDER`] plus the integer nearest to `x`. Where that does not fit, it is what the low 23 bits of `x + ROUNDER` say, as in
/// `nearest_int` of `ggml-quants.c`. All of it lies between 2^23 and 2^24, so it can be bounded as a float.
#[inline(always)]
pub(super) fn shifted<S: Simd>(s: S, x: S::F) -> S::F {
    let bits = s.bits(s.add(x, s.splat(ROUNDER)));
    s.floats(s.ior(s.iand(bits, s.isplat(0x007f_ffff)), s.isplat(0x4b00_0000)))
}

/// [`shifted`], bounded; `low` and `high` have [`ROUNDER`] added.
#[inline(always)]
pub(super) fn bounded<S: Simd>(s: S, x: S::F, low: S::F, high: S::F) -> S::F {
    s.min(s.max(shifted(s, x), low), high)
}

/// The integer in a lane that [`shifted`] or [`bounded`] made, as a float.
#[inline(always)]
pub(super) fn value<S: Simd>(s: S, shifted: S::F) -> S::F {
    s.sub(shifted, s.splat(ROUNDER))
}

/// Its low byte, in two's complement.
#[inline(always)]
pub(super) fn byte<S: Simd>(s: S, shifted: S::F) -> S::I {
    s.iand(s.bits(shifted), s.isplat(0xff))
}

/// An integer from 0 to 2^23 as a float.
#[inline(always)]
pub(super) fn float<S: Simd>(s: S, x: S::I) -> S::F {
    s.sub(s.floats(s.ior(x, s.isplat(0x4b00_0000))), s.splat(8_388_608.0))
}

/// `x < 0 ? a : b` for integers is not among the operations; this is all ones where `a < b`, as floats.
#[inline(always)]
pub(super) fn mask_lt<S: Simd>(s: S, a: S::F, b: S::F) -> S::I {
    s.bits(s.select_lt(a, b, s.floats(s.isplat(u32::MAX)), s.floats(s.isplat(0))))
}

/// Whether any lane is zero.
#[inline(always)]
pub(super) fn any_zero<S: Simd>(s: S, x: S::F) -> bool {
    s.any_lt(s.abs(x), s.splat(f32::from_bits(1)))
}

/// The value that comes first in `x` among those of largest magnitude, and that magnitude.
#[inline(always)]
pub(super) fn extreme<S: Simd>(s: S, (value, magnitude): (S::F, S::F), x: S::F) -> (S::F, S::F) {
    let size = s.abs(x);
    (s.select_lt(magnitude, size, x, value), s.select_lt(magnitude, size, size, magnitude))
}

/// `1 / x`, or zero where `x` is zero.
#[inline(always)]
pub(super) fn inverse<S: Simd>(s: S, x: S::F) -> S::F {
    let tiny = s.splat(f32::from_bits(1));
    // NaN is not zero.
    s.select_lt(s.abs(x), tiny, s.splat(0.0), s.div(s.splat(1.0), x))
}
