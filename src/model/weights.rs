//! Linear layers straight from a checkpoint: plain ones where they are mapped, quantized ones dequantized a block of
//! outputs at a time. Pages are given back behind each use, so that no more than one matrix is resident.

use std::borrow::Cow;
use std::ops::Range;

use bytemuck::AnyBitPattern;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::checkpoint::Edges;
use crate::kernels;
use crate::kernels::Float;
use crate::kernels::gemm::{self, View, ViewMut, matmul};
use crate::llama4::{Coding, Llama4, Plane, Weight};
use crate::quant::{Layout, Target};

/// Bytes of a linear layer that are dequantized, or resident, at a time.
const BLOCK_BYTES: usize = 32 << 20;

/// Most outputs of a block, however few inputs each has: their values for all tokens are held at once.
const OUTPUTS_MAX: usize = 8192;

/// Rows that one thread dequantizes at a time.
const ROWS_TOGETHER: usize = 64;

/// `x[rows, in] * W^T`, `[rows, out]`, over the current rayon pool.
///
/// # Panics
/// If `x` is not a whole number of rows of the matrix's inputs.
pub fn apply(model: &Llama4, weight: &Weight, x: &[f32]) -> Vec<f32> {
    let (out, input) = weight.matrix();
    assert!(x.len().is_multiple_of(input), "{} values are no whole rows of {input}", x.len());
    let rows = x.len() / input;
    let mut y = vec![0.0; rows * out];
    for outs in blocks(weight) {
        let columns = ViewMut::new(&mut y[outs.start..], rows, outs.len(), out);
        apply_block(model, weight, &outs, View::dense(x, rows, input), columns);
    }
    y
}

/// The outputs `outs` alone of [`apply`]: `[rows, outs]`. `outs` must be one of [`blocks`].
pub fn apply_outputs(model: &Llama4, weight: &Weight, outs: &Range<usize>, x: &[f32]) -> Vec<f32> {
    let (_, input) = weight.matrix();
    let rows = x.len() / input;
    let mut y = vec![0.0; rows * outs.len()];
    apply_block(model, weight, outs, View::dense(x, rows, input), ViewMut::dense(&mut y, rows, outs.len()));
    y
}

/// Most outputs of a block of [`blocks`], for a matrix of `input` inputs.
pub fn block_outputs(input: usize) -> usize {
    (BLOCK_BYTES / (input * size_of::<f32>())).clamp(1, OUTPUTS_MAX).next_multiple_of(ROWS_TOGETHER)
}

/// Ranges of outputs that are worked on one after the other.
pub fn blocks(weight: &Weight) -> impl Iterator<Item = Range<usize>> {
    let (out, input) = weight.matrix();
    let step = match weight.coding {
        // Its rows are inputs: a block of outputs would touch every page.
        Coding::Plain(Plane { layout: Layout::InOut, .. }) => out,
        _ => block_outputs(input),
    };
    (0..out).step_by(step.max(1)).map(move |first| first..(first + step).min(out))
}

fn apply_block(model: &Llama4, weight: &Weight, outs: &Range<usize>, x: View<'_, f32>, y: ViewMut<'_, f32>) {
    match weight.coding {
        Coding::Plain(plane) => {
            let (out, input) = weight.matrix();
            let (rows, first) = match plane.layout {
                Layout::OutIn => (outs.clone(), 0),
                Layout::InOut => (0..input, outs.start),
            };
            debug_assert!(plane.layout == Layout::OutIn || outs.len() == out);
            let columns = if plane.layout == Layout::OutIn { input } else { out };
            let size = plane.float.bytes() as u64;
            let at = |row: usize, column: usize| plane.offset + (row * plane.stride + column) as u64 * size;
            let range = at(rows.start, first)..at(rows.end - 1, first + columns);
            let bytes = model.checkpoint.range(plane.tensor, range.clone());
            let shape = (rows.len(), columns, plane.stride);
            match plane.float {
                Float::BF16 => multiply::<bf16>(bytes, shape, plane.layout, x, y),
                Float::F16 => multiply::<f16>(bytes, shape, plane.layout, x, y),
                Float::F32 => multiply::<f32>(bytes, shape, plane.layout, x, y),
            }
            model.checkpoint.release(plane.tensor, range, Edges::Drop);
        }
        Coding::Pieces(_) => unreachable!("`require_complete` refuses weights in pieces"),
        // Values that BF16 does not hold.
        Coding::Split { float: Some(Float::F32 | Float::F16), .. } | Coding::Blocks { .. } => {
            let numbers = dequantized(model, weight, outs, 0.0_f32);
            let input = weight.matrix().1;
            matmul(x, View::dense(&numbers, outs.len(), input), Layout::OutIn, y);
            model.release_rows(weight, outs.clone());
        }
        Coding::Int4 { .. } | Coding::Fp8 { .. } | Coding::Split { .. } => {
            let numbers = dequantized(model, weight, outs, bf16::ZERO);
            let input = weight.matrix().1;
            matmul(x, View::dense(&numbers, outs.len(), input), Layout::OutIn, y);
            model.release_rows(weight, outs.clone());
        }
    }
}

fn multiply<T: gemm::Weight + AnyBitPattern>(
    bytes: &[u8],
    (rows, columns, stride): (usize, usize, usize),
    layout: Layout,
    x: View<'_, f32>,
    y: ViewMut<'_, f32>,
) {
    let numbers = aligned::<T>(bytes);
    matmul(x, View::new(&numbers, rows, columns, stride), layout, y);
}

/// Numbers where they are mapped, or a copy where a file's header leaves them at an odd address.
fn aligned<T: AnyBitPattern>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) => Cow::Borrowed(numbers),
        Err(_) => Cow::Owned(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()),
    }
}

fn dequantized<T: Target + Send>(model: &Llama4, weight: &Weight, outs: &Range<usize>, zero: T) -> Vec<T> {
    let input = weight.matrix().1;
    let mut numbers = vec![zero; outs.len() * input];
    numbers.par_chunks_mut(ROWS_TOGETHER * input).enumerate().for_each(|(index, rows)| {
        let first = outs.start + index * ROWS_TOGETHER;
        model.dequantize(weight, first..first + rows.len() / input, rows);
    });
    numbers
}

/// One row of a matrix as `f32`, such as a token's embedding.
pub fn row(model: &Llama4, weight: &Weight, index: usize, target: &mut [f32]) {
    match weight.coding {
        Coding::Plain(plane) => {
            let size = plane.float.bytes() as u64;
            let start = plane.offset + (index * plane.stride) as u64 * size;
            let bytes = model.checkpoint.range(plane.tensor, start..start + target.len() as u64 * size);
            kernels::widen(bytes, plane.float, target);
        }
        _ => model.dequantize(weight, index..index + 1, target),
    }
}
