//! IQ4_NL and IQ4_XS: sixteen values that lie closer together near zero.

use super::fields::{put_f16, put_xs_scales};
use super::rounding::{nearest, nearest_index};
use super::search::{Fit, extreme};
use super::{square_sum, weigh};
use crate::quant::ggml::tables::IQ4;
use crate::quant::ggml::tries::TINY;

/// Scales are tried that put the extreme value on -127, and this many units to either side.
const TRIES: i32 = 7;

/// The scale of 32 values; `spread` is twice the mean square of the block.
fn scale(x: &[f32], importance: Option<&[f32]>, spread: f32) -> f32 {
    let mut weights = [0.0; 32];
    if let Some(importance) = importance {
        weigh(x, importance, spread, &mut weights);
    } else {
        for (weight, x) in weights.iter_mut().zip(x) {
            *weight = x * x;
        }
    }
    let (value, magnitude) = extreme(x);
    if magnitude < TINY {
        return 0.0;
    }
    let fit = |inverse: f32| {
        let mut fit = Fit::ZERO;
        for (&x, w) in x.iter().zip(weights) {
            let q = IQ4[nearest_index(&IQ4, inverse * x)];
            // Here the weight meets the code before the value.
            fit.xq += w * q * x;
            fit.qq += w * q * q;
        }
        fit
    };
    let first = fit(1.0 / (-value / IQ4[0]));
    let mut d = if first.qq > 0.0 { first.xq / first.qq } else { 0.0 };
    let mut best = d * first.xq;
    for step in -TRIES..=TRIES {
        let found = fit((step as f32 + IQ4[0]) / value);
        if found.qq > 0.0 && found.xq * found.xq > best * found.qq {
            d = found.xq / found.qq;
            best = d * found.xq;
        }
    }
    d
}

/// Codes of 32 values: element `j` low, `j + 16` high.
fn pack(x: &[f32], inverse: f32, bytes: &mut [u8]) {
    for (j, byte) in bytes.iter_mut().enumerate() {
        let code = |x: f32| nearest_index(&IQ4, inverse * x) as u8;
        *byte = code(x[j]) | code(x[j + 16]) << 4;
    }
}

fn spread(x: &[f32]) -> f32 {
    square_sum(x) * (2.0 / x.len() as f32)
}

pub(super) fn nl(x: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let d = scale(x, importance, spread(x));
    put_f16(block, 0, d);
    pack(x, if d != 0.0 { 1.0 / d } else { 0.0 }, &mut block[2..]);
}

pub(super) fn xs(x: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let spread = spread(x);
    let mut scales = [0.0; 8];
    for (j, (scale_of, x)) in scales.iter_mut().zip(x.chunks_exact(32)).enumerate() {
        *scale_of = scale(x, importance.map(|all| &all[32 * j..][..32]), spread);
    }
    let d = -extreme(&scales).0 / 32.0;
    put_f16(block, 0, d);
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    let mut six = [0; 8];
    for (j, (x, bytes)) in x.chunks_exact(32).zip(block[8..].chunks_exact_mut(16)).enumerate() {
        let code = nearest(inverse * scales[j]).clamp(-32, 31);
        six[j] = (code + 32) as u8;
        let step = d * code as f32;
        pack(x, if step != 0.0 { 1.0 / step } else { 0.0 }, bytes);
    }
    put_xs_scales(&mut block[2..8], &six);
}
