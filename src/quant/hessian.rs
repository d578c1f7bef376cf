//! Second moments of a linear layer's inputs: the sum of `x xᵀ` over rows `x`, which says how much an error in a weight costs.
//!
//! For weights `w` quantized to `v`, the squared error of the layer's outputs over the same rows is `(w - v) H (w - v)ᵀ`. It
//! must not know which layer, nor where rows come from.

use std::fmt;

use crate::kernels::gemm::{Layout, Left, Threads, Update, View, ViewMut, update};

/// Rows that are scaled at a time.
const WEIGHTED_ROWS: usize = 512;

/// The sum of `x xᵀ` over rows of inputs, and how many rows went in. It takes `4 * inputs^2` bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    inputs: usize,
    /// Rows summed; no whole number once another Hessian was blended in.
    rows: f64,
    /// `[inputs, inputs]`; the strict upper triangle is zero.
    sums: Vec<f32>,
}

/// Sums that cannot be second moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadSums {
    /// There are not `inputs * inputs` of them.
    Length,
    /// One of them, or the number of rows, is not finite, or a diagonal element or the number of rows is negative.
    Value,
}

impl fmt::Display for BadSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "the sums are not a square matrix of the layer's inputs",
            Self::Value => "the sums hold a value that second moments cannot have",
        })
    }
}

impl std::error::Error for BadSums {}

impl Hessian {
    /// Nothing summed yet.
    pub fn new(inputs: usize) -> Self {
        Self { inputs, rows: 0.0, sums: vec![0.0; inputs * inputs] }
    }

    /// Bytes that the Hessian of a layer with so many inputs takes.
    pub fn bytes(inputs: usize) -> u64 {
        (inputs as u64).saturating_mul(inputs as u64).saturating_mul(size_of::<f32>() as u64)
    }

    /// From what [`Hessian::sums`] gave; the strict upper triangle is ignored.
    ///
    /// # Errors
    ///
    /// The sums are too few or too many, or hold what cannot be.
    pub fn from_sums(inputs: usize, rows: f64, mut sums: Vec<f32>) -> Result<Self, BadSums> {
        if inputs.checked_mul(inputs) != Some(sums.len()) {
            return Err(BadSums::Length);
        }
        let mut good = rows.is_finite() && rows >= 0.0;
        for (i, row) in sums.chunks_exact_mut(inputs.max(1)).enumerate() {
            row[i + 1..].fill(0.0);
            good &= row[..=i].iter().all(|value| value.is_finite()) && row[i] >= 0.0;
        }
        if good { Ok(Self { inputs, rows, sums }) } else { Err(BadSums::Value) }
    }

    /// Inputs of the layer.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows that were added (their weights' sum, where they had weights), and what blending counted for.
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

    /// [`Hessian::add`], each row counting as often as its weight says: `weights[r] x xᵀ` for row `r`. What a token's errors
    /// do to the model depends on the token, for one on how large the residual stream is that they are added to.
    ///
    /// # Panics
    ///
    /// As for [`Hessian::add`]; or there is not one weight per row, or one is negative or not finite.
    pub fn add_weighted(&mut self, threads: Threads, x: View<'_, f32>, weights: &[f32]) {
        assert_eq!(weights.len(), x.rows(), "weights of rows");
        assert!(
            weights.iter().all(|&weight| weight >= 0.0 && weight.is_finite()),
            "weights are finite and not negative"
        );
        let before = self.rows;
        for from in (0..x.rows()).step_by(WEIGHTED_ROWS) {
            let to = x.rows().min(from + WEIGHTED_ROWS);
            let mut scaled = Vec::with_capacity((to - from) * self.inputs);
            for (row, weight) in (from..to).zip(&weights[from..to]) {
                let root = weight.sqrt();
                scaled.extend(x.row(row).iter().map(|value| value * root));
            }
            self.add(threads, View::dense(&scaled, to - from, self.inputs));
        }
        self.rows = before + weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
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
