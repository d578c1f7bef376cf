//! Values in another number format, with an account of what that did to them.
//!
//! Knows rows of values and formats; no tensor, no file.

use anyhow::Result;

use super::work::BadWeight;
use crate::kernels::{self, Float};
use crate::quant::Errors;

/// What to do with values that are too large for a number format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Refuse the weight.
    #[default]
    Refuse,
    /// Take the largest value that there is.
    Clamp,
}

/// A cast of one matrix, or of a part of it.
pub(super) struct Cast {
    float: Float,
    overflow: Overflow,
    errors: Errors,
    /// The first value that was too large, with its output and input.
    first: Option<(f32, usize, usize)>,
    /// The last row as it was written.
    rounded: Vec<f32>,
}

/// The largest finite value of a format.
fn largest(float: Float) -> f32 {
    match float {
        Float::BF16 => half::bf16::MAX.to_f32(),
        Float::F16 => half::f16::MAX.to_f32(),
        Float::F32 => f32::MAX,
    }
}

impl Cast {
    pub(super) fn new(float: Float, overflow: Overflow) -> Self {
        Self { float, overflow, errors: Errors::default(), first: None, rounded: Vec::new() }
    }

    /// Writes finite `values` to `target`; `place` gives the output and the input of a column.
    pub(super) fn row(&mut self, values: &[f32], target: &mut [u8], place: impl Fn(usize) -> (usize, usize)) {
        kernels::narrow(values, self.float, target);
        if kernels::first_nonfinite(target, self.float).is_some() {
            self.clamp(values, target, place);
        }
        self.rounded.resize(values.len(), 0.0);
        kernels::widen(target, self.float, &mut self.rounded);
        let found = kernels::error(values, &self.rounded);
        self.errors.sum_sq_weight += found.sum_sq;
        self.errors.sum_sq_error += found.sum_sq_error;
        self.errors.max_abs_error = self.errors.max_abs_error.max(found.max_abs);
    }

    /// Puts the largest value there is in the place of those that were too large.
    fn clamp(&mut self, values: &[f32], target: &mut [u8], place: impl Fn(usize) -> (usize, usize)) {
        let largest = largest(self.float);
        for (column, (&value, bytes)) in values.iter().zip(target.chunks_exact_mut(self.float.bytes())).enumerate() {
            if self.float.read(bytes).is_infinite() {
                kernels::narrow(&[largest.copysign(value)], self.float, bytes);
                self.errors.overflows += 1;
                self.first.get_or_insert_with(|| {
                    let (out, input) = place(column);
                    (value, out, input)
                });
            }
        }
    }

    /// The account of the weight called `name`.
    ///
    /// # Errors
    /// [`BadWeight`], if values were too large and that is to be refused.
    pub(super) fn finish(self, name: &str) -> Result<Errors> {
        match (self.first, self.overflow) {
            (Some((value, out, input)), Overflow::Refuse) => {
                let (count, largest) = (self.errors.overflows, largest(self.float));
                let what = format!(
                    "{count} values are beyond {largest:e}, the largest of {}: the first is {value:e}, at output {out}, input {input}",
                    self.float.dtype()
                );
                let remedy = match self.float {
                    Float::F16 => {
                        "choose a format with a larger range, `--dtype bf16` or `f32`; or `--clamp` takes the largest value in their place"
                    }
                    _ => "keep the format with `--dtype f32`; or `--clamp` takes the largest value in their place",
                };
                Err(BadWeight { remedy: Some(remedy), ..BadWeight::new(name, what) }.into())
            }
            _ => Ok(Errors { sum_sq_error_rtn: self.errors.sum_sq_error, ..self.errors }),
        }
    }
}
