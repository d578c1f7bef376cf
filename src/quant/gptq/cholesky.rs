//! The inverse of the Cholesky factor of a symmetric matrix, in place, by blocks through the matrix product.
//!
//! `A = L Lᵀ` and `Y = L⁻¹` are computed in one sweep over blocks of columns: when a block of `L` is known, the rest of `A`
//! is updated with it (right-looking), and so are the rows of `Y` below, which take the place of the columns of `L` that
//! are no longer needed. Every large operation is [`update`] of rank [`BLOCK`]. It must not know what the matrix means.
//!
//! Values below [`TINY`] become zero on their way into a product: in a matrix with diagonal elements of about 1 they are
//! nothing, and without them no product or sum ever is a denormal number, which would make arithmetic a hundred times slower.

use crate::kernels::gemm::{Layout, Left, Threads, Update, View, ViewMut, update};

/// Columns of a block.
const BLOCK: usize = 128;

/// 2^-50.
const TINY: f32 = 8.881_784e-16;

/// The smallest square of a pivot that counts as positive, for matrices whose diagonal elements are about 1.
const PIVOT: f64 = 1e-7;

/// A pivot that is not positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotPositive;

/// Replaces the lower triangle of `a`, `[n, n]`, by the inverse of its Cholesky factor. The strict upper triangle is
/// neither read nor written.
///
/// # Errors
///
/// The matrix is not positive definite, to float32's precision; the lower triangle is then unspecified.
pub(super) fn invert_factor(threads: Threads, a: &mut [f32], n: usize) -> Result<(), NotPositive> {
    let mut panel = Vec::new();
    let mut block_row = Vec::new();
    for from in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - from);
        let below = n - from - width;
        let mut square = Square::read(a, n, from, width);
        square.factor()?;
        let inverse = square.inverse();
        // L21 = A21 L11^-T, kept in `panel`; its place is free for the rows of Y.
        let old: Vec<f32> = (0..below).flat_map(|i| a[(from + width + i) * n + from..][..width].to_vec()).collect();
        panel.clear();
        panel.resize(below * width, 0.0);
        let what = Update {
            subtract: false,
            left: Left::Rows(View::dense(&old, below, width)),
            right: View::dense(&inverse, width, width),
            layout: Layout::OutIn,
            lower: false,
        };
        update(threads, &what, ViewMut::dense(&mut panel, below, width));
        flush(&mut panel);
        for i in 0..below {
            a[(from + width + i) * n + from..][..width].fill(0.0);
        }
        let left = View::dense(&panel, below, width);
        if below > 0 {
            let start = (from + width) * n + from + width;
            let what =
                Update { subtract: true, left: Left::Rows(left), right: left, layout: Layout::OutIn, lower: true };
            update(threads, &what, ViewMut::new(&mut a[start..], below, below, n));
        }
        // Rows of Y that this block finishes: L11^-1 times what is there, which has the unit matrix as its last columns.
        let old: Vec<f32> = (0..width).flat_map(|i| a[(from + i) * n..][..from].to_vec()).collect();
        block_row.clear();
        block_row.resize(width * from, 0.0);
        let what = Update {
            subtract: false,
            left: Left::Rows(View::dense(&inverse, width, width)),
            right: View::dense(&old, width, from),
            layout: Layout::InOut,
            lower: false,
        };
        update(threads, &what, ViewMut::dense(&mut block_row, width, from));
        flush(&mut block_row);
        let columns = from + width;
        let mut finished = Vec::with_capacity(width * columns);
        for i in 0..width {
            finished.extend_from_slice(&block_row[i * from..][..from]);
            finished.extend_from_slice(&inverse[i * width..][..width]);
            let row = &mut a[(from + i) * n..][..from + i + 1];
            row.copy_from_slice(&finished[i * columns..][..from + i + 1]);
        }
        if below > 0 {
            let what = Update {
                subtract: true,
                left: Left::Rows(left),
                right: View::dense(&finished, width, columns),
                layout: Layout::InOut,
                lower: false,
            };
            update(threads, &what, ViewMut::new(&mut a[columns * n..], below, columns, n));
        }
    }
    Ok(())
}

/// Makes tiny values zero.
pub(super) fn flush(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = if value.abs() < TINY { 0.0 } else { *value });
}

/// A block on the diagonal, in float64: it is small, and everything else follows from it.
struct Square {
    width: usize,
    values: Vec<f64>,
}

impl Square {
    fn read(a: &[f32], n: usize, from: usize, width: usize) -> Self {
        let mut values = vec![0.0; width * width];
        for (i, row) in values.chunks_exact_mut(width).enumerate() {
            for (to, value) in row.iter_mut().zip(&a[(from + i) * n + from..][..=i]) {
                *to = f64::from(*value);
            }
        }
        Self { width, values }
    }

    /// The Cholesky factor takes the place of the matrix.
    fn factor(&mut self) -> Result<(), NotPositive> {
        let width = self.width;
        for j in 0..width {
            let (above, rest) = self.values.split_at_mut(j * width);
            let (row, rest) = rest.split_at_mut(width);
            for (k, other) in above.chunks_exact(width).enumerate() {
                let sum: f64 = (0..k).map(|p| row[p] * other[p]).sum();
                row[k] = (row[k] - sum) / other[k];
            }
            let square = row[j] - (0..j).map(|p| row[p] * row[p]).sum::<f64>();
            // A NaN fails this too.
            if !(square > PIVOT && square.is_finite()) {
                return Err(NotPositive);
            }
            row[j] = square.sqrt();
            debug_assert_eq!(rest.len(), (width - j - 1) * width);
        }
        Ok(())
    }

    /// The inverse of the factor, rounded, with zeros above the diagonal.
    fn inverse(&self) -> Vec<f32> {
        let width = self.width;
        let mut inverse = vec![0.0f64; width * width];
        for i in 0..width {
            let (done, rest) = inverse.split_at_mut(i * width);
            let row = &mut rest[..width];
            row[i] = 1.0;
            for (p, other) in done.chunks_exact(width).enumerate() {
                let factor = self.values[i * width + p];
                row[..=p].iter_mut().zip(other).for_each(|(value, other)| *value -= factor * other);
            }
            let pivot = self.values[i * width + i];
            row[..=i].iter_mut().for_each(|value| *value /= pivot);
        }
        let mut inverse: Vec<f32> = inverse.into_iter().map(|value| value as f32).collect();
        flush(&mut inverse);
        inverse
    }
}
