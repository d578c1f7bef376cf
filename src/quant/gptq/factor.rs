//! What GPTQ needs of the second moments: the order of inputs, and the inverse of a Cholesky factor in that order.
//!
//! Inputs are rounded from the largest second moment to the smallest, so that most inputs can still make up for the ones that
//! matter (llm-compressor's `actorder: static`). Groups keep their inputs whatever the order, so that nothing shows in the files.
//!
//! It must not know weights.

use std::fmt;

use super::cholesky::{flush, invert_factor};
use crate::kernels::gemm::Threads;
use crate::quant::Hessian;

/// Second moments from which no factor can be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FactorError {
    /// One of them is not finite.
    NotFinite,
    /// Not positive definite, even with this damping.
    NotPositiveDefinite {
        /// The largest damping that was tried.
        damping: f64,
    },
}

impl fmt::Display for FactorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite => f.write_str("second moments of the inputs are not finite"),
            Self::NotPositiveDefinite { damping } => {
                write!(f, "second moments of the inputs are not positive definite, even with damping {damping}")
            }
        }
    }
}

impl std::error::Error for FactorError {}

/// Most damping that is tried: beyond it the matrix is hardly more than its diagonal.
const DAMPING_MAX: f64 = 1e3;

/// What GPTQ needs of the second moments of a layer's inputs. It takes `4 * inputs^2` bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// `[inputs, inputs]`, with inputs in the reverse of the order in which they are rounded. Lower triangle: the inverse
    /// of the Cholesky factor of the damped matrix. Above: the matrix itself.
    pub(super) inverse: Vec<f32>,
    /// Which input each row is.
    pub(super) inputs: Vec<u32>,
    /// For each input, what a squared error of its weight costs once the inputs after it have made up for it.
    pub(super) importance: Vec<f32>,
    /// The damping in use: the one that was asked for, unless that was too little.
    #[cfg(test)]
    pub(in crate::quant) damping: f64,
}

impl Factor {
    /// Makes a factor, in the Hessian's own memory. `damping` is added to the diagonal, relative to its mean; it is raised where
    /// the matrix is not positive definite otherwise. Inputs that were always zero are rounded by themselves, as if their
    /// second moment were the others' mean. If all were, every weight is rounded by itself.
    ///
    /// # Errors
    ///
    /// The second moments are not finite, or not positive definite whatever the damping.
    pub fn new(threads: Threads, hessian: Hessian, damping: f64) -> Result<Self, FactorError> {
        let n = hessian.inputs();
        let moments = hessian.diagonal();
        let live = moments.iter().filter(|&&x| x > 0.0).count();
        let total: f64 = moments.iter().map(|&x| f64::from(x)).sum();
        if !total.is_finite() {
            return Err(FactorError::NotFinite);
        }
        let mean = if live == 0 { 1.0 } else { total / live as f64 };
        let diagonal: Vec<f32> =
            moments.iter().map(|&x| if x > 0.0 { (f64::from(x) / mean) as f32 } else { 1.0 }).collect();
        let inputs = order(&diagonal);
        let mut matrix = hessian.into_sums();
        reorder(&mut matrix, &inputs, 1.0 / mean);
        if matrix.iter().any(|value| !value.is_finite()) {
            return Err(FactorError::NotFinite);
        }
        let mut damping = damping;
        loop {
            for (i, &input) in inputs.iter().enumerate() {
                matrix[i * n + i] = (f64::from(diagonal[input as usize]) + damping) as f32;
            }
            if invert_factor(threads, &mut matrix, n).is_ok() {
                break;
            }
            if damping >= DAMPING_MAX {
                return Err(FactorError::NotPositiveDefinite { damping });
            }
            damping = (damping * 10.0).clamp(0.001, DAMPING_MAX);
            restore(&mut matrix, n);
        }
        let mut importance = vec![0.0; n];
        for (i, &input) in inputs.iter().enumerate() {
            let own = matrix[i * n + i];
            importance[input as usize] = 1.0 / (own * own);
        }
        Ok(Self {
            inverse: matrix,
            inputs,
            importance,
            #[cfg(test)]
            damping,
        })
    }

    /// The order and the matrix, for tests.
    #[cfg(test)]
    pub(in crate::quant) fn parts(&self) -> (&[u32], &[f32]) {
        (&self.inputs, &self.inverse)
    }

    /// Inputs of the layer.
    pub fn inputs(&self) -> usize {
        self.inputs.len()
    }
}

/// Inputs in the reverse of the order in which they are rounded.
fn order(diagonal: &[f32]) -> Vec<u32> {
    let count = u32::try_from(diagonal.len()).expect("a square of more than 2^32 inputs fits no memory");
    let mut inputs: Vec<u32> = (0..count).collect();
    inputs.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]).then(a.cmp(&b)));
    inputs.reverse();
    inputs
}

/// Makes the lower triangle a full symmetric matrix, times `factor`, with row and column `i` those of `inputs[i]`.
fn reorder(matrix: &mut [f32], inputs: &[u32], factor: f64) {
    const SQUARE: usize = 64;
    let n = inputs.len();
    for first in (0..n).step_by(SQUARE) {
        for other in (0..=first).step_by(SQUARE) {
            for i in first..n.min(first + SQUARE) {
                for j in other..i.min(other + SQUARE) {
                    matrix[j * n + i] = matrix[i * n + j];
                }
            }
        }
    }
    // Columns within rows, then whole rows along the cycles of the permutation.
    let mut scratch = vec![0.0f32; n];
    for row in matrix.chunks_exact_mut(n.max(1)) {
        for (to, &input) in scratch.iter_mut().zip(inputs) {
            *to = (f64::from(row[input as usize]) * factor) as f32;
        }
        flush(&mut scratch);
        row.copy_from_slice(&scratch);
    }
    let mut placed = vec![false; n];
    for start in 0..n {
        if placed[start] {
            continue;
        }
        scratch.copy_from_slice(&matrix[start * n..][..n]);
        let mut at = start;
        loop {
            placed[at] = true;
            let from = inputs[at] as usize;
            if from == start {
                matrix[at * n..][..n].copy_from_slice(&scratch);
                break;
            }
            matrix.copy_within(from * n..(from + 1) * n, at * n);
            at = from;
        }
    }
}

/// Writes the strict lower triangle anew from the upper one, which nothing has changed.
fn restore(matrix: &mut [f32], n: usize) {
    for i in 0..n {
        for j in 0..i {
            matrix[i * n + j] = matrix[j * n + i];
        }
    }
}
