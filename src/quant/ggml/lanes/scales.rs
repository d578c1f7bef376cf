//! Scales and minima of groups as small integers, in lanes; `reference::search::of_scales` is its specification.

use super::round::{ROUNDER, byte, float, mask_lt, shifted, value};
use crate::kernels::Simd;
use crate::quant::ggml::tries::TINY;

/// Codes from 0 to `levels`, a byte in each lane, and the scale of scales.
#[inline(always)]
pub(super) fn search<S: Simd, const N: usize>(
    s: S,
    x: &[S::F; N],
    weights: &[S::F; N],
    levels: i32,
) -> (S::F, [S::I; N]) {
    let zero = s.splat(0.0);
    let high = s.splat(ROUNDER + levels as f32);
    let mut max = zero;
    for &x in x {
        max = s.max(max, x);
    }
    let live = s.isub(s.isplat(u32::MAX), mask_lt(s, max, s.splat(TINY)));
    let mut inverse = s.div(s.splat(levels as f32), max);
    let mut best = zero;
    let scale = s.div(s.splat(1.0), inverse);
    for i in 0..N {
        // Only here codes have no upper bound; they are bytes.
        let q = float(s, byte(s, shifted(s, s.mul(inverse, x[i]))));
        best = s.add(best, square(s, x[i], weights[i], scale, q));
    }
    for step in (-4..=4).filter(|&step| step != 0) {
        let tried = s.div(s.splat(0.1 * step as f32 + levels as f32), max);
        let scale = s.div(s.splat(1.0), tried);
        let mut error = zero;
        for i in 0..N {
            let q = value(s, s.min(shifted(s, s.mul(tried, x[i])), high));
            error = s.add(error, square(s, x[i], weights[i], scale, q));
        }
        inverse = s.select_lt(error, best, tried, inverse);
        best = s.select_lt(error, best, error, best);
    }
    let mut codes = [s.isplat(0); N];
    let (mut xq, mut qq) = (zero, zero);
    for i in 0..N {
        let q = s.min(shifted(s, s.mul(inverse, x[i])), high);
        codes[i] = byte(s, q);
        let q = value(s, q);
        xq = s.add(xq, s.mul(s.mul(weights[i], x[i]), q));
        qq = s.add(qq, s.mul(s.mul(weights[i], q), q));
    }
    (xq, qq) = moves(s, x, weights, high, (xq, qq), &mut codes);
    let scale = s.select_lt(zero, qq, s.div(xq, qq), zero);
    for code in &mut codes {
        *code = s.iand(*code, live);
    }
    (s.floats(s.iand(s.bits(scale), live)), codes)
}

#[inline(always)]
fn square<S: Simd>(s: S, x: S::F, weight: S::F, scale: S::F, q: S::F) -> S::F {
    let difference = s.sub(x, s.mul(scale, q));
    s.mul(s.mul(weight, difference), difference)
}

/// Moves single codes while that helps, five rounds at most. A round that moves nothing in a lane is the last for it: the
/// next would find the same.
#[inline(always)]
fn moves<S: Simd, const N: usize>(
    s: S,
    x: &[S::F; N],
    weights: &[S::F; N],
    high: S::F,
    (mut xq, mut qq): (S::F, S::F),
    codes: &mut [S::I; N],
) -> (S::F, S::F) {
    let (zero, never) = (s.splat(0.0), s.splat(f32::NEG_INFINITY));
    for _ in 0..5 {
        let mut moved = false;
        for i in 0..N {
            let wx = s.mul(weights[i], x[i]);
            let now = float(s, codes[i]);
            let less_xq = s.sub(xq, s.mul(wx, now));
            let less_qq = s.sub(qq, s.mul(s.mul(weights[i], now), now));
            let new = s.min(shifted(s, s.div(s.mul(x[i], less_qq), less_xq)), high);
            let q = value(s, new);
            let new_xq = s.add(less_xq, s.mul(wx, q));
            let new_qq = s.add(less_qq, s.mul(s.mul(weights[i], q), q));
            let mut gain = s.mul(s.mul(new_xq, new_xq), qq);
            gain = s.select_lt(zero, less_xq, gain, never);
            gain = s.select_lt(zero, less_qq, gain, never);
            gain = s.select_lt(zero, s.abs(s.sub(q, now)), gain, never);
            let bar = s.mul(s.mul(xq, xq), new_qq);
            if s.any_lt(bar, gain) {
                moved = true;
                codes[i] = s.bits(s.select_lt(bar, gain, s.floats(byte(s, new)), s.floats(codes[i])));
                xq = s.select_lt(bar, gain, new_xq, xq);
                qq = s.select_lt(bar, gain, new_qq, qq);
            }
        }
        if !moved {
            break;
        }
    }
    (xq, qq)
}
