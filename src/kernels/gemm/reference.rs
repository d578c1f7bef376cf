//! The matrix product as a specification: one fused multiply-add after another, for each element of the output alone.
//!
//! Stays in the tree for good: every fast path gives these bits (AMX aside), and `--kernels scalar` runs it.

use super::{K_BLOCK, Layout, Update, View, ViewMut, Weight};

/// `y[i, j] = sum over p of x[i, p] * w(j, p)`: a chain of fused multiply-adds for each block of `K_BLOCK` inputs, the
/// blocks' sums added up in order.
pub(super) fn matmul<W: Weight>(x: View<f32>, w: View<W>, layout: Layout, y: ViewMut<f32>) {
    for i in 0..y.rows {
        for j in 0..y.cols {
            let mut total = 0.0;
            for from in (0..x.cols).step_by(K_BLOCK) {
                let mut sum = 0.0f32;
                for p in from..x.cols.min(from + K_BLOCK) {
                    sum = x.row(i)[p].mul_add(element(w, layout, j, p), sum);
                }
                total = if from == 0 { sum } else { total + sum };
            }
            y.data[i * y.stride + j] = total;
        }
    }
}

/// `c[i, j] += sum over p of left[i, p] * right(j, p)`: one chain, which begins with `c[i, j]`.
pub(super) fn update(update: &Update<'_>, c: ViewMut<f32>) {
    let Update { subtract, left, right, layout, lower } = *update;
    for i in 0..c.rows {
        for j in 0..if lower { c.cols.min(i + 1) } else { c.cols } {
            let out = &mut c.data[i * c.stride + j];
            for p in 0..left.inputs() {
                let factor = if subtract { -left.get(i, p) } else { left.get(i, p) };
                *out = factor.mul_add(element(right, layout, j, p), *out);
            }
        }
    }
}

fn element<W: Weight>(w: View<W>, layout: Layout, output: usize, input: usize) -> f32 {
    match layout {
        Layout::OutIn => w.row(output)[input].widen(),
        Layout::InOut => w.row(input)[output].widen(),
    }
}
