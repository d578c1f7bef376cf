//! Matrices in the block formats of ggml, from whatever they are stored as.
//!
//! A task's rows are taken in hand as one block, turned if they lie as columns, and encoded a few rows at a time; what was
//! encoded is decoded again, for an account of the error and as the proof that it can be. It knows no file.

use std::ops::Range;

use anyhow::Result;

use super::assembling::stored_share;
use super::evidence::Evidence;
use super::work::{BadWeight, STRIPE_BYTES};
use crate::dtype::Dtype;
use crate::kernels::{self, Float};
use crate::llama4::{Coding, Llama4, Values, Weight};
use crate::quant::{Errors, Layout, ggml};

/// Values that one task encodes: 32 MiB of BF16 that may have to be turned.
const TASK_VALUES: usize = 16 << 20;

/// The same where values are put together in float32 first.
const TASK_VALUES_JOINED: usize = 4 << 20;

/// Columns of a fused tensor in BF16 that fill a page: a cut there shares no page with the next task.
const PAGE_COLUMNS: usize = 2048;

/// Rows are divided among tasks at multiples of this.
const TASK_ROWS: usize = 64;

/// Values that are encoded at a time: they stay in a core's cache.
const STRIPE_VALUES: usize = 128 << 10;

/// Rows of one matrix, to be encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Index into the model's weights.
    pub weight: usize,
    /// Output rows.
    pub outs: Range<usize>,
    /// The block format.
    pub dtype: Dtype,
}

/// Rows of a weight that one task encodes.
pub(super) fn rows_per_task(weight: &Weight) -> usize {
    let (out, input) = weight.matrix();
    let values = if is_joined(weight) { TASK_VALUES_JOINED } else { TASK_VALUES };
    let fitting = values / input.max(1);
    let rows =
        if fitting >= PAGE_COLUMNS { fitting / PAGE_COLUMNS * PAGE_COLUMNS } else { fitting / TASK_ROWS * TASK_ROWS };
    rows.max(TASK_ROWS).min(out)
}

/// Whether its values are put together from parts.
fn is_joined(weight: &Weight) -> bool {
    matches!(weight.coding, Coding::Split { .. } | Coding::Pieces(_))
}

impl Encoded {
    /// Bytes of input that it stands for.
    pub(super) fn source_bytes(&self, model: &Llama4) -> u64 {
        let weight = &model.weights[self.weight];
        stored_share(model, weight, self.outs.len() as u64 * weight.matrix().1 as u64)
    }

    /// Most memory that it needs besides its result.
    pub(super) fn working_bytes(&self, model: &Llama4) -> u64 {
        let weight = &model.weights[self.weight];
        let input = weight.matrix().1 as u64;
        let rows = self.outs.len() as u64;
        let block = match weight.coding {
            // The system maps pages around those that are touched, so a stripe counts twice.
            Coding::Plain(plane) if plane.layout == Layout::InOut => {
                let size = plane.float.bytes() as u64;
                rows * input * size + 2 * (plane.stride as u64 * size).max(STRIPE_BYTES as u64)
            }
            _ if is_joined(weight) => 3 * rows * input * size_of::<f32>() as u64,
            _ => 2 * STRIPE_BYTES as u64 + 4 * input,
        };
        // Values, and what becomes of them.
        block + 2 * size_of::<f32>() as u64 * (STRIPE_VALUES as u64).max(input)
    }

    /// Encodes the rows into `blocks`.
    ///
    /// # Errors
    /// [`BadWeight`], for a value that is not finite or cannot be stored; or what is known of the inputs cannot be read.
    pub(super) fn run(&self, model: &Llama4, evidence: &dyn Evidence, blocks: &mut [u8]) -> Result<Vec<Errors>> {
        let weight = &model.weights[self.weight];
        let input = weight.matrix().1;
        let importance = evidence.of(self.weight)?.importance;
        let mut source = Values::new(model, weight);
        source.enter(self.outs.clone());
        let step = (STRIPE_VALUES / input.max(1)).clamp(1, self.outs.len());
        let (mut values, mut decoded) = (vec![0.0_f32; step * input], vec![0.0_f32; step * input]);
        let row_bytes = blocks.len() / self.outs.len();
        let mut errors = Errors::default();
        for (first, blocks) in self.outs.clone().step_by(step).zip(blocks.chunks_mut(step * row_bytes)) {
            let outs = first..(first + step).min(self.outs.end);
            let values = &mut values[..outs.len() * input];
            source.read(&outs, values);
            source.release(&outs);
            if let Some(at) = kernels::first_nonfinite(bytemuck::cast_slice(values), Float::F32) {
                let (out, column) = (first + at / input, at % input);
                let what = format!("the value {} at output {out}, input {column} is not finite", values[at]);
                return Err(BadWeight::new(&weight.name, what).into());
            }
            ggml::encode(self.dtype, values, input, importance.as_deref(), blocks);
            let decoded = &mut decoded[..values.len()];
            ggml::decode(self.dtype, blocks, decoded);
            let found = kernels::error(values, decoded);
            if !found.sum_sq_error.is_finite() {
                let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                let what = format!(
                    "values up to {largest:e} in outputs {} to {} are too large for {}",
                    outs.start, outs.end, self.dtype
                );
                let remedy = Some("choose a format with a larger range, such as bf16");
                return Err(BadWeight { remedy, ..BadWeight::new(&weight.name, what) }.into());
            }
            errors.sum_sq_weight += found.sum_sq;
            errors.sum_sq_error += found.sum_sq_error;
            errors.max_abs_error = errors.max_abs_error.max(found.max_abs);
        }
        errors.sum_sq_error_rtn = errors.sum_sq_error;
        Ok(vec![errors])
    }
}
