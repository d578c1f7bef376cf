//! Second moments of a linear layer's inputs: the sum of `x xᵀ` over rows `x`, which says how much an error in a weight costs.
//!
//! For weights `w` quantized to `v`, the squared error of the layer's outputs over the same rows is `(w - v) H (w - v)ᵀ`. It
//! must not know which layer, nor where rows come from.

use crate::kernels::gemm::{Layout, Left, Threads, Update, View, ViewMut, update};

/// The sum of `x xᵀ` over rows of inputs, and how many rows went in. It takes `4 * inputs^2` bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    inputs: usize,
    /// Rows summed; no whole number once another Hessian was blended in.
    rows: f64,
    /// `[inputs, inputs]`; the strict upper triangle is zero.
    sums: Vec<f32>,
}

impl Hessian {
    /// Nothing summed yet.
    pub fn new(inputs: usize) -> Self {
        Self { inputs, rows: 0.0, sums: vec![0.0; inputs * inputs] }
    }

    /// Bytes that the Hessian of a layer with so many inputs takes.
    pub fn bytes(inputs: usize) -> u64 {
        (inputs as u64).saturating_mul(inputs as u64).saturating_mul(size_of::<f32>() as u64)
    }

    /// From sums as [`Hessian::sums`] gives them, whether or not they can be second moments. What is above the diagonal does not count.
    ///
    /// # Panics
    ///
    /// They are not `inputs * inputs`.
    pub fn from_sums(inputs: usize, rows: f64, mut sums: Vec<f32>) -> Self {
        assert_eq!(inputs * inputs, sums.len());
        for (row, sums) in sums.chunks_exact_mut(inputs).enumerate() {
            sums[row + 1..].fill(0.0);
        }
        Self { inputs, rows, sums }
    }

    /// Inputs of the layer.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows that were added, and what blending counted for.
    pub fn rows(&self) -> f64 {
        self.rows
    }

    /// The sums, `[inputs, inputs]`: the lower triangle with its diagonal; zeros above.
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// The sums, without a copy.
    pub(super) fn into_sums(self) -> Vec<f32> {
        self.sums
    }

    /// The sums of `x_i^2` alone.
    pub fn diagonal(&self) -> Vec<f32> {
        self.sums.iter().copied().step_by(self.inputs + 1).collect()
    }

    /// Adds rows of inputs, `[rows, inputs]`. Every element is one chain of fused multiply-adds in the order of rows, so
    /// the result depends neither on threads and instruction sets, nor on how rows are cut into calls.
    ///
    /// # Panics
    ///
    /// `x` does not have the layer's inputs as columns.
    pub fn add(&mut self, threads: Threads, x: View<'_, f32>) {
        assert_eq!(x.cols(), self.inputs, "columns of rows of inputs");
        self.rows += x.rows() as f64;
        let what = Update { subtract: false, left: Left::Columns(x), right: x, layout: Layout::InOut, lower: true };
        update(threads, &what, ViewMut::dense(&mut self.sums, self.inputs, self.inputs));
    }

    /// Adds the sums of other rows.
    ///
    /// # Panics
    ///
    /// The other has another number of inputs.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.inputs, other.inputs, "inputs of two Hessians");
        self.rows += other.rows;
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, other)| *sum += other);
    }

    /// Shrinks toward `pooled`, which counts for `tau` rows: the mean becomes
    /// `(n H + tau P) / (n + tau)` for means `H` over `n` rows and `P`. A pooled Hessian without rows changes nothing.
    ///
    /// # Panics
    ///
    /// The other has another number of inputs, or `tau` is negative or not finite.
    pub fn blend(&mut self, pooled: &Self, tau: f64) {
        assert_eq!(self.inputs, pooled.inputs, "inputs of two Hessians");
        assert!(tau >= 0.0 && tau.is_finite(), "{tau} rows");
        if pooled.rows <= 0.0 || tau == 0.0 {
            return;
        }
        let factor = (tau / pooled.rows) as f32;
        self.rows += tau;
        self.sums.iter_mut().zip(&pooled.sums).for_each(|(sum, pooled)| *sum += factor * pooled);
    }
}
