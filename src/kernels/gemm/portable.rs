//! The micro-kernel in plain loops, for any processor, and the packing that the float32 micro-kernels share.
//!
//! Packed activations: `[k][ROWS]`; packed weights: `[k][COLS]`, both float32.

use super::driver::{Micro, WeightBlock};
use super::{Layout, View, Weight};

/// Plain loops in the baseline instruction set.
pub(super) struct Plain;

const ROWS: usize = 4;
const COLS: usize = 8;

impl Micro for Plain {
    type A = f32;
    type B = f32;
    const ROWS: usize = ROWS;
    const COLS: usize = COLS;
    const K_STEP: usize = 1;
    const K_BLOCK: usize = 512;
    const A_PARTS: usize = 1;

    fn pack_x(x: View<f32>, from: usize, k: usize, out: &mut [f32]) {
        pack_x::<ROWS>(x, from, k, out);
    }

    fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
        pack_w::<COLS, W>(w, layout, block, out);
    }

    fn tile(k: usize, _rows: usize, a: &[f32], b: &[f32], acc: &mut [f32]) {
        let (a, b) = (a[..k * ROWS].as_chunks::<ROWS>().0, b[..k * COLS].as_chunks::<COLS>().0);
        let mut sums = [[0.0f32; COLS]; ROWS];
        for (a, b) in a.iter().zip(b) {
            for (sums, &a) in sums.iter_mut().zip(a) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
        acc[..ROWS * COLS].copy_from_slice(sums.as_flattened());
    }
}

/// `out[p * ROWS + i] = x[i, from + p]`; rows that do not exist are zero.
#[inline(always)]
pub(super) fn pack_x<const ROWS: usize>(x: View<f32>, from: usize, k: usize, out: &mut [f32]) {
    if x.rows() < ROWS {
        out.fill(0.0);
    }
    for i in 0..x.rows() {
        let row = &x.row(i)[from..from + k];
        for (out, &value) in out.as_chunks_mut::<ROWS>().0.iter_mut().zip(row) {
            out[i] = value;
        }
    }
}

/// `out[p * COLS + j] = w(block.col + j, block.from + p)` widened; columns that do not exist are zero.
#[inline(always)]
pub(super) fn pack_w<const COLS: usize, W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
    let out = out.as_chunks_mut::<COLS>().0;
    if block.cols < COLS {
        out.as_flattened_mut().fill(0.0);
    }
    match layout {
        Layout::InOut => {
            for (p, out) in out[..block.k].iter_mut().enumerate() {
                let row = &w.row(block.from + p)[block.col..block.col + block.cols];
                // Two loops: the one over a constant count is what the compiler makes vectors of.
                if let Ok(row) = <&[W; COLS]>::try_from(row) {
                    out.iter_mut().zip(row).for_each(|(out, value)| *out = value.widen());
                } else {
                    out.iter_mut().zip(row).for_each(|(out, value)| *out = value.widen());
                }
            }
        }
        Layout::OutIn => {
            for j in 0..block.cols {
                let row = &w.row(block.col + j)[block.from..block.from + block.k];
                for (out, value) in out.iter_mut().zip(row) {
                    out[j] = value.widen();
                }
            }
        }
    }
}
