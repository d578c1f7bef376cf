//! Values in another number format, with an account of what that did to them.
//!
//! Knows rows of values and formats; no tensor, no file.

use anyhow::Result;

use super::work::BadWeight;
use crate::kernels::Float;
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
        Self { float, overflow, errors: Errors::default(), first: None }
    }

    /// Writes finite `values` to `target`; `place` gives the output and the input of a column.
    pub(super) fn row(&mut self, values: &[f32], target: &mut [u8], place: impl Fn(usize) -> (usize, usize)) {
        let largest = largest(self.float);
        let errors = &mut self.errors;
        for (column, (&value, bytes)) in values.iter().zip(target.chunks_exact_mut(self.float.bytes())).enumerate() {
            let mut rounded = self.float.round(value);
            if rounded.is_infinite() {
                errors.overflows += 1;
                if self.first.is_none() {
                    let (out, input) = place(column);
                    self.first = Some((value, out, input));
                }
                rounded = largest.copysign(value);
            }
            let difference = f64::from(value) - f64::from(rounded);
            errors.sum_sq_weight += f64::from(value) * f64::from(value);
            errors.sum_sq_error += difference * difference;
            errors.max_abs_error = errors.max_abs_error.max(difference.abs() as f32);
            // `rounded` is a value of the format already, so that this is exact.
            match self.float {
                Float::BF16 => bytes.copy_from_slice(&half::bf16::from_f32(rounded).to_le_bytes()),
                Float::F16 => bytes.copy_from_slice(&half::f16::from_f32(rounded).to_le_bytes()),
                Float::F32 => bytes.copy_from_slice(&rounded.to_le_bytes()),
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
                let remedy = "choose a format with a larger range, `--dtype bf16` or `f32`; or `--clamp` takes the largest value in their place";
                Err(BadWeight { remedy: Some(remedy), ..BadWeight::new(name, what) }.into())
            }
            _ => Ok(Errors { sum_sq_error_rtn: self.errors.sum_sq_error, ..self.errors }),
        }
    }
}
