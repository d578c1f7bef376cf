//! The specification of encoding: one block after the other, every sum in the order in which llama.cpp forms it.
//!
//! Nothing here is fused, reordered or approximated; a kernel is right when it gives these bytes. It must not know lanes.

mod fields;
mod iq4;
mod k;
mod rounding;
mod search;
mod simple;

use crate::dtype::Dtype;
use crate::quant::ggml::sizes;

/// As [`super::encode`].
pub(super) fn encode(dtype: Dtype, rows: &[f32], row_len: usize, importance: Option<&[f32]>, blocks: &mut [u8]) {
    let (block_len, block_bytes) = sizes(dtype);
    let row_bytes = row_len / block_len * block_bytes;
    for (row, blocks) in rows.chunks_exact(row_len).zip(blocks.chunks_exact_mut(row_bytes)) {
        let spread = importance.map(|_| mean_square(row));
        let pieces = row.chunks_exact(block_len).zip(blocks.chunks_exact_mut(block_bytes));
        for (i, (x, block)) in pieces.enumerate() {
            let weights = importance.map(|all| &all[i * block_len..][..block_len]);
            one(dtype, x, weights.zip(spread), block);
        }
    }
}

/// One block; with importance comes the mean square of the whole row.
fn one(dtype: Dtype, x: &[f32], importance: Option<(&[f32], f32)>, block: &mut [u8]) {
    use Dtype::*;
    let own = importance.map(|(weights, _)| weights);
    match dtype {
        Q4_0 => simple::symmetric(x, importance, 8, block),
        Q5_0 => simple::symmetric(x, importance, 16, block),
        Q4_1 => simple::affine(x, importance, 15, block),
        Q5_1 => simple::affine(x, importance, 31, block),
        Q8_0 => simple::q8_0(x, block),
        MXFP4 => simple::mxfp4(x, block),
        Q2_K => k::q2(x, own, block),
        Q3_K => k::q3(x, own, block),
        Q4_K => k::q4(x, own, block),
        Q5_K => k::q5(x, own, block),
        Q6_K => k::q6(x, own, block),
        IQ4_NL => iq4::nl(x, own, block),
        IQ4_XS => iq4::xs(x, own, block),
        _ => panic!("{dtype} is no block format that is encoded"),
    }
}

/// `sum(x x) / n` in the order of the row.
fn mean_square(x: &[f32]) -> f32 {
    square_sum(x) / x.len() as f32
}

/// `sum(x x)` in the order of the values.
fn square_sum(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}

/// How much each value counts: its importance, more for larger values.
fn weigh(x: &[f32], importance: &[f32], spread: f32, weights: &mut [f32]) {
    for ((weight, x), importance) in weights.iter_mut().zip(x).zip(importance) {
        *weight = importance * (spread + x * x).sqrt();
    }
}
