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

/// Rows are encoded in multiples of this, where so many fit: their blocks fill whole batches.
const BATCH_ROWS: usize = 16;

/// Values that are decoded and compared at a time: they stay in the first cache. It is whole blocks of every format.
const PIECE_VALUES: usize = 4 << 10;

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
        block + size_of::<f32>() as u64 * ((STRIPE_VALUES as u64).max(input) + PIECE_VALUES as u64)
    }

    /// Encodes the rows into `blocks`. `turned` is room for rows that lie as columns, and is given back.
    ///
    /// # Errors
    /// [`BadWeight`], for a value that is not finite or cannot be stored; or what is known of the inputs cannot be read.
    pub(super) fn run(
        &self,
        model: &Llama4,
        evidence: &dyn Evidence,
        turned: Vec<u8>,
        blocks: &mut [u8],
    ) -> Result<(Vec<Errors>, Vec<u8>)> {
        let weight = &model.weights[self.weight];
        let input = weight.matrix().1;
        let importance = evidence.of(self.weight)?.importance;
        let mut source = Values::with_room(model, weight, turned);
        source.enter(self.outs.clone());
        let fitting = (STRIPE_VALUES / input.max(1)).clamp(1, self.outs.len());
        let step = if fitting < BATCH_ROWS { fitting } else { fitting / BATCH_ROWS * BATCH_ROWS };
        let mut values = vec![0.0_f32; step * input];
        let row_bytes = blocks.len() / self.outs.len();
        let mut errors = Errors::default();
        for (first, blocks) in self.outs.clone().step_by(step).zip(blocks.chunks_mut(step * row_bytes)) {
            let outs = first..(first + step).min(self.outs.end);
            let values = &mut values[..outs.len() * input];
            source.read(&outs, values);
            source.release(&outs);
            ggml::encode(self.dtype, values, input, importance.as_deref(), blocks);
            self.compare(values, blocks, &mut errors).ok_or_else(|| self.refused(weight, &outs, values))?;
        }
        errors.sum_sq_error_rtn = errors.sum_sq_error;
        Ok((vec![errors], source.into_room()))
    }

    /// Adds up how far `blocks` are from `values`; `None` if that is no number.
    fn compare(&self, values: &[f32], blocks: &[u8], errors: &mut Errors) -> Option<()> {
        let mut decoded = [0.0; PIECE_VALUES];
        let piece_bytes = PIECE_VALUES / self.dtype.block_len() as usize * (self.dtype.block_bits() / 8) as usize;
        for (values, blocks) in values.chunks(PIECE_VALUES).zip(blocks.chunks(piece_bytes)) {
            let decoded = &mut decoded[..values.len()];
            ggml::decode(self.dtype, blocks, decoded);
            let found = kernels::error(values, decoded);
            if !found.sum_sq_error.is_finite() {
                return None;
            }
            errors.sum_sq_weight += found.sum_sq;
            errors.sum_sq_error += found.sum_sq_error;
            errors.max_abs_error = errors.max_abs_error.max(found.max_abs);
        }
        Some(())
    }

    /// Why rows that have no error cannot be encoded.
    fn refused(&self, weight: &Weight, outs: &Range<usize>, values: &[f32]) -> BadWeight {
        if let Some(at) = kernels::first_nonfinite(bytemuck::cast_slice(values), Float::F32) {
            let input = weight.matrix().1;
            let (out, column) = (outs.start + at / input, at % input);
            let what = format!("the value {} at output {out}, input {column} is not finite", values[at]);
            return BadWeight::new(&weight.name, what);
        }
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let (start, end, dtype) = (outs.start, outs.end, self.dtype);
        let what = format!("values up to {largest:e} in outputs {start} to {end} are too large for {dtype}");
        let remedy = Some("choose a format with a larger range, such as bf16");
        BadWeight { remedy, ..BadWeight::new(&weight.name, what) }
    }
}
