//! The micro-kernel in plain loops, for any processor, and the packing that the float32 micro-kernels share.
//!
//! Packed activations: `[k][ROWS]`; packed weights: `[k][COLS]`, both float32.

use super::driver::{Micro, MicroF32, WeightBlock};
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
    const K_BLOCK: usize = super::K_BLOCK;
    const A_PARTS: usize = 1;

    fn pack_x(x: View<f32>, from: usize, k: usize, out: &mut [f32]) {
        pack_x::<ROWS>(x, from, k, out);
    }

    fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
        pack_w::<COLS, W>(w, layout, block, out);
    }

    fn tile(k: usize, _rows: usize, a: &[f32], b: &[f32], acc: &mut [f32]) {
        let (a, b) = (a[..k * ROWS].as_chunks::<ROWS>().0, b[..k * COLS].as_chunks::<COLS>().0);
        for (a, b) in a.iter().zip(b) {
            for (sums, &a) in acc.as_chunks_mut::<COLS>().0.iter_mut().zip(a) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    // Fused, as the other instruction sets do it: the bits must be the same.
                    *sum = a.mul_add(b, *sum);
                }
            }
        }
    }
}

impl MicroF32 for Plain {
    fn pack_columns(x: View<f32>, block: WeightBlock, out: &mut [f32]) {
        pack_in_out::<ROWS, f32>(x, block, out);
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

/// Panels of `COLS` outputs, `panel[p * COLS + j] = w(block.col + j, block.from + p)` widened; missing columns are zero.
#[inline(always)]
pub(super) fn pack_w<const COLS: usize, W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
    match layout {
        Layout::InOut => pack_in_out::<COLS, W>(w, block, out),
        Layout::OutIn => {
            for (index, panel) in out.chunks_exact_mut(COLS * block.k).enumerate() {
                let (panel, col) = (panel.as_chunks_mut::<COLS>().0, index * COLS);
                for j in 0..COLS {
                    if col + j < block.cols {
                        let row = &w.row(block.col + col + j)[block.from..block.from + block.k];
                        panel.iter_mut().zip(row).for_each(|(out, value)| out[j] = value.widen());
                    } else {
                        panel.iter_mut().for_each(|out| out[j] = 0.0);
                    }
                }
            }
        }
    }
}

/// Rows that are asked for ahead of use: each lies in another page, which no prefetcher of the processor foresees.
const AHEAD: usize = 8;

/// Asks for the cache lines of a piece of a row.
#[inline(always)]
fn prefetch<W>(piece: &[W]) {
    #[cfg(target_arch = "x86_64")]
    for line in piece.chunks(64 / size_of::<W>()) {
        // SAFETY: a prefetch reads nothing and cannot fault; SSE is part of the architecture.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = piece;
}

/// [`pack_w`] for weights `[k, n]`: each row's piece is read once from end to end and dealt out to the panels.
#[inline(always)]
pub(super) fn pack_in_out<const COLS: usize, W: Weight>(w: View<W>, block: WeightBlock, out: &mut [f32]) {
    for p in 0..block.k {
        if p + AHEAD < block.k {
            prefetch(&w.row(block.from + p + AHEAD)[block.col..block.col + block.cols]);
        }
        let row = &w.row(block.from + p)[block.col..block.col + block.cols];
        for (index, piece) in row.chunks(COLS).enumerate() {
            let out = &mut out[(index * block.k + p) * COLS..][..COLS];
            // Two loops: the one over a constant count is what the compiler makes vectors of.
            if let Ok(piece) = <&[W; COLS]>::try_from(piece) {
                out.iter_mut().zip(piece).for_each(|(out, value)| *out = value.widen());
            } else {
                out.fill(0.0);
                out.iter_mut().zip(piece).for_each(|(out, value)| *out = value.widen());
            }
        }
    }
}
