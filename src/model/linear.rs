//! A weight matrix as the forward pass sees it: numbers of one of three types in one of two layouts.
//!
//! Knows slices only; where they come from (a mapped file, a decoded INT4 tensor) is the caller's business.

use crate::kernels::gemm::{Layout, View, ViewMut, matmul};
use half::{bf16, f16};

/// A weight matrix's numbers, row-major with a row stride.
#[derive(Clone, Copy)]
pub enum Numbers<'a> {
    /// BF16, as published; every quantized weight is one too when decompressed.
    Bf16(View<'a, bf16>),
    /// IEEE half precision.
    F16(View<'a, f16>),
    /// Single precision.
    F32(View<'a, f32>),
}

/// A linear map from `inputs` to `outputs` numbers.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// The numbers.
    pub numbers: Numbers<'a>,
    /// What a row of them is.
    pub layout: Layout,
}

impl Linear<'_> {
    /// Outputs of the map.
    pub fn outputs(&self) -> usize {
        let (rows, cols) = self.shape();
        if self.layout == Layout::OutIn { rows } else { cols }
    }

    /// Inputs of the map.
    pub fn inputs(&self) -> usize {
        let (rows, cols) = self.shape();
        if self.layout == Layout::OutIn { cols } else { rows }
    }

    fn shape(&self) -> (usize, usize) {
        match self.numbers {
            Numbers::Bf16(view) => (view.rows(), view.cols()),
            Numbers::F16(view) => (view.rows(), view.cols()),
            Numbers::F32(view) => (view.rows(), view.cols()),
        }
    }

    /// `y[rows, outputs] = x[rows, inputs] * W`, dense, over the current rayon pool.
    ///
    /// # Panics
    /// If the lengths are not multiples of `inputs` and `outputs` with the same number of rows.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let rows = x.len() / self.inputs().max(1);
        assert_eq!(y.len(), rows * self.outputs(), "as many rows come out as go in");
        let x = View::dense(x, rows, self.inputs());
        let y = ViewMut::dense(y, rows, self.outputs());
        match self.numbers {
            Numbers::Bf16(view) => matmul(x, view, self.layout, y),
            Numbers::F16(view) => matmul(x, view, self.layout, y),
            Numbers::F32(view) => matmul(x, view, self.layout, y),
        }
    }

    /// [`Linear::apply`] into new memory.
    ///
    /// # Panics
    /// If `x` is not a whole number of rows.
    pub fn map(&self, x: &[f32]) -> Vec<f32> {
        assert!(x.len().is_multiple_of(self.inputs().max(1)), "the activations are whole rows");
        let mut y = vec![0.0; x.len() / self.inputs().max(1) * self.outputs()];
        self.apply(x, &mut y);
        y
    }
}
