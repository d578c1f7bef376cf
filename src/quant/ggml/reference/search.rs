//! Searches for the scale of a group: the codes that several scales give, and the least-squares scale for each.
//!
//! After `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants` and `make_qp_quants` of `ggml-quants.c`. The order of
//! every operation counts. Codes are stored as bytes where C stores bytes, so that what does not fit is cut in the same way.

use super::rounding::nearest;
use crate::quant::ggml::tries::{TINY, Tries};

/// The value of largest magnitude, the first of equals, and that magnitude.
pub(super) fn extreme(x: &[f32]) -> (f32, f32) {
    let (mut value, mut magnitude) = (0.0, 0.0);
    for &x in x {
        if x.abs() > magnitude {
            (value, magnitude) = (x, x.abs());
        }
    }
    (value, magnitude)
}

/// Sums of a fit of `scale * code` to `x`: `sum(w x q)` and `sum(w q q)`.
#[derive(Clone, Copy)]
pub(super) struct Fit {
    pub(super) xq: f32,
    pub(super) qq: f32,
}

impl Fit {
    pub(super) const ZERO: Self = Self { xq: 0.0, qq: 0.0 };

    pub(super) fn add(&mut self, w: f32, x: f32, q: f32) {
        self.xq += w * x * q;
        self.qq += w * q * q;
    }
}

/// Codes from `-levels` to `levels - 1`, stored with `levels` added, and their scale. Without weights, squares count.
pub(super) fn symmetric(x: &[f32], weights: Option<&[f32]>, levels: i32, codes: &mut [u8]) -> f32 {
    let (value, magnitude) = extreme(x);
    if magnitude < TINY {
        codes.fill(0);
        return 0.0;
    }
    let code = |inverse: f32, x: f32| nearest(inverse * x).clamp(-levels, levels - 1);
    let fit = |inverse: f32| {
        let mut fit = Fit::ZERO;
        for (i, &x) in x.iter().enumerate() {
            fit.add(weights.map_or(x * x, |w| w[i]), x, code(inverse, x) as f32);
        }
        fit
    };
    let mut inverse = -levels as f32 / value;
    let first = fit(inverse);
    let mut scale = if first.qq != 0.0 { first.xq / first.qq } else { 0.0 };
    let mut best = scale * first.xq;
    for step in (-9..=9).filter(|&step| step != 0) {
        let tried = -(levels as f32 + 0.1 * step as f32) / value;
        let found = fit(tried);
        if found.qq > 0.0 && found.xq * found.xq > best * found.qq {
            inverse = tried;
            scale = found.xq / found.qq;
            best = scale * found.xq;
        }
    }
    for (to, &x) in codes.iter_mut().zip(x) {
        *to = (levels + code(inverse, x)) as u8;
    }
    scale
}

/// Codes from -4 to 3, stored with 4 added, and their scale: round, then move single codes while that helps.
pub(super) fn by_moves(x: &[f32], codes: &mut [u8]) -> f32 {
    const LEVELS: i32 = 4;
    let (value, magnitude) = extreme(x);
    if magnitude < TINY {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -LEVELS as f32 / value;
    let clamp = |code: i32| code.clamp(-LEVELS, LEVELS - 1);
    let mut chosen = [0; 16];
    let mut fit = Fit::ZERO;
    for (code, &x) in chosen.iter_mut().zip(x) {
        *code = clamp(nearest(inverse * x));
        fit.add(x * x, x, *code as f32);
    }
    for _ in 0..5 {
        let mut moved = false;
        for (code, &x) in chosen.iter_mut().zip(x) {
            let w = x * x;
            let (now, mut other) = (*code as f32, fit);
            other.xq -= w * x * now;
            if other.xq > 0.0 {
                other.qq -= w * now * now;
                let new = clamp(nearest(x * other.qq / other.xq));
                if new != *code {
                    other.add(w, x, new as f32);
                    if other.qq > 0.0 && other.xq * other.xq * fit.qq > fit.xq * fit.xq * other.qq {
                        (*code, fit, moved) = (new, other, true);
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    for (to, code) in codes.iter_mut().zip(chosen) {
        *to = (code + LEVELS) as u8;
    }
    if fit.qq > 0.0 { fit.xq / fit.qq } else { 0.0 }
}

/// Codes from 0 to `levels`, their scale, and what is subtracted from `scale * code` (never negative).
pub(super) fn affine(x: &[f32], weights: &[f32], tries: Tries, codes: &mut [u8]) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let mut sum_w = weights[0];
    let mut sum_x = sum_w * x[0];
    for (&x, w) in x.iter().zip(weights).skip(1) {
        min = if x < min { x } else { min };
        max = if x > max { x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let levels = tries.levels as f32;
    let round = |inverse: f32, min: f32, codes: &mut [u8]| {
        for (code, x) in codes.iter_mut().zip(x) {
            *code = nearest(inverse * (x - min)).clamp(0, tries.levels) as u8;
        }
    };
    let error = |scale: f32, min: f32, codes: &[u8]| {
        let mut sum = 0.0;
        for ((code, x), w) in codes.iter().zip(x).zip(weights) {
            let difference = scale * f32::from(*code) + min - x;
            sum += w * if tries.absolute { difference.abs() } else { difference * difference };
        }
        sum
    };
    let inverse = levels / (max - min);
    let mut scale = 1.0 / inverse;
    round(inverse, min, codes);
    let mut best = error(scale, min, codes);
    let mut tried = [0; 32];
    let tried = &mut tried[..x.len()];
    for k in 0..=tries.last {
        // What was found replaces `min` here too, and so changes what is tried next.
        round((tries.first + tries.step * k as f32 + levels) / (max - min), min, tried);
        let (mut sum_q, mut sum_qq, mut sum_xq) = (0.0, 0.0, 0.0);
        for ((code, x), w) in tried.iter().zip(x).zip(weights) {
            let q = f32::from(*code);
            sum_q += w * q;
            sum_qq += w * q * q;
            sum_xq += w * q * x;
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
            let mut this_min = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xq / sum_qq;
            }
            let this_error = error(this_scale, this_min, tried);
            if this_error < best {
                codes.copy_from_slice(tried);
                (best, scale, min) = (this_error, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// Codes from 0 to `levels` for scales that are not negative, and the scale of scales.
pub(super) fn of_scales(x: &[f32], weights: &[f32], levels: i32, codes: &mut [u8]) -> f32 {
    let max = x.iter().fold(0.0, |max, &x| if max > x { max } else { x });
    if max < TINY {
        codes.fill(0);
        return 0.0;
    }
    let mut inverse = levels as f32 / max;
    // The first try has no upper bound on its codes; as bytes they are what C makes of them.
    let mut best = squares(x, weights, 1.0 / inverse, |x| f32::from(nearest(inverse * x) as u8));
    for step in (-4..=4).filter(|&step| step != 0) {
        let tried = (0.1 * step as f32 + levels as f32) / max;
        let error = squares(x, weights, 1.0 / tried, |x| nearest(tried * x).min(levels) as f32);
        if error < best {
            (best, inverse) = (error, tried);
        }
    }
    let mut fit = Fit::ZERO;
    for ((code, &x), &w) in codes.iter_mut().zip(x).zip(weights) {
        let q = nearest(inverse * x).min(levels);
        *code = q as u8;
        fit.add(w, x, q as f32);
    }
    for _ in 0..5 {
        let mut moved = false;
        for ((code, &x), &w) in codes.iter_mut().zip(x).zip(weights) {
            let now = f32::from(*code);
            let mut other = Fit { xq: fit.xq - w * x * now, qq: fit.qq - w * now * now };
            if other.xq > 0.0 && other.qq > 0.0 {
                let new = nearest(x * other.qq / other.xq).min(levels);
                if new != i32::from(*code) {
                    other.add(w, x, new as f32);
                    if other.xq * other.xq * fit.qq > fit.xq * fit.xq * other.qq {
                        (*code, fit, moved) = (new as u8, other, true);
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    if fit.qq > 0.0 { fit.xq / fit.qq } else { 0.0 }
}

/// The weighted squared error of codes.
fn squares(x: &[f32], weights: &[f32], scale: f32, code: impl Fn(f32) -> f32) -> f32 {
    let mut sum = 0.0;
    for (&x, w) in x.iter().zip(weights) {
        let difference = x - scale * code(x);
        sum += w * difference * difference;
    }
    sum
}
