//! The row-wise steps of a layer, over many rows in parallel.
//!
//! Shapes are in the comments; knows no file and no config.

use crate::kernels::rows;
use rayon::prelude::*;

/// Elements that one parallel piece of row-wise work has at least.
const PIECE: usize = 16 * 1024;

/// RMS norm of every row: `x / sqrt(mean(x^2) + eps) * weight`. `x` is `[rows, weight.len()]`.
///
/// # Panics
/// If `x` is not a whole number of rows.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len().max(1);
    assert!(x.len().is_multiple_of(width), "the activations are whole rows");
    let mut out = vec![0.0; x.len()];
    let piece = (PIECE / width).max(1) * width;
    out.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(out, x)| {
        for (out, x) in out.chunks_mut(width).zip(x.chunks(width)) {
            rows::rms_norm(x, weight, eps, out);
        }
    });
    out
}

/// `gate = silu(gate) * up`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have the same length");
    gate.par_chunks_mut(PIECE).zip(up.par_chunks(PIECE)).for_each(|(gate, up)| rows::silu_mul(gate, up));
}

/// `x += y`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "both sides have the same length");
    x.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).for_each(|(x, y)| {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    });
}
