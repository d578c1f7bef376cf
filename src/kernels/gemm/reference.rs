//! The matrix product as a specification: one product after another, added in float64, rounded once.
//!
//! Stays in the tree for good: every fast path is tested against it, and `--kernels scalar` runs it.

use super::{Layout, View, ViewMut, Weight};

/// `y[i, j] = sum over p of x[i, p] * w(j, p)`, accumulated in float64.
pub(super) fn matmul<W: Weight>(x: View<f32>, w: View<W>, layout: Layout, y: ViewMut<f32>) {
    for i in 0..y.rows {
        let x_row = x.row(i);
        let y_row = &mut y.data[i * y.stride..i * y.stride + y.cols];
        for (j, out) in y_row.iter_mut().enumerate() {
            let mut sum = 0.0f64;
            for (p, &value) in x_row.iter().enumerate() {
                let weight = match layout {
                    Layout::OutIn => w.row(j)[p],
                    Layout::InOut => w.row(p)[j],
                };
                sum += f64::from(value) * f64::from(weight.widen());
            }
            *out = sum as f32;
        }
    }
}
