//! One expert's matrices `[out, in]` back to rows of a fused tensor `[in, out]`, stripe by stripe.
//!
//! The inverse of taking an expert out of a fused tensor. Pages are given back behind the walk.

use std::ops::Range;

use anyhow::Result;

use super::work::{BadWeight, STRIPE_BYTES};
use crate::checkpoint::Edges;
use crate::kernels;
use crate::llama4::{Coding, Llama4, Plane};
use crate::quant::Layout;

/// Bytes that the inputs `inputs` of these weights take.
pub(super) fn bytes(model: &Llama4, weights: &[usize], inputs: &Range<usize>) -> u64 {
    let outs: usize = weights.iter().map(|&weight| model.weights[weight].matrix().0).sum();
    (outs * inputs.len() * plane(model, weights[0]).float.bytes()) as u64
}

fn plane(model: &Llama4, weight: usize) -> Plane {
    match model.weights[weight].coding {
        Coding::Plain(plane) if plane.layout == Layout::OutIn => plane,
        _ => unreachable!("the plan fuses plain modules only"),
    }
}

/// Writes the inputs `inputs` of `weights` side by side into `rows`, `[inputs, out of all weights]`.
///
/// # Errors
/// [`BadWeight`], if a value is not finite.
pub(super) fn run(model: &Llama4, weights: &[usize], inputs: &Range<usize>, rows: &mut [u8]) -> Result<()> {
    let width: usize = weights.iter().map(|&weight| model.weights[weight].matrix().0).sum();
    let mut column = 0;
    for &index in weights {
        let (weight, plane) = (&model.weights[index], plane(model, index));
        let (out, input) = weight.matrix();
        let size = plane.float.bytes();
        let step = (STRIPE_BYTES / (input * size)).max(1);
        for first in (0..out).step_by(step) {
            let outs = first..(first + step).min(out);
            let at = |out: usize, input: usize| plane.offset + ((out * plane.stride + input) * size) as u64;
            let range = at(outs.start, inputs.start)..at(outs.end - 1, inputs.end);
            let bytes = model.checkpoint.range(plane.tensor, range.clone());
            for row in 0..outs.len() {
                let numbers = &bytes[row * plane.stride * size..][..inputs.len() * size];
                if let Some(at) = kernels::first_nonfinite(numbers, plane.float) {
                    let value = plane.float.read(&numbers[at * size..]);
                    let (out, input) = (outs.start + row, inputs.start + at);
                    let what = format!("the value {value} at output {out}, input {input} is not finite");
                    return Err(BadWeight { name: weight.name.clone(), what }.into());
                }
            }
            let target = &mut rows[(column + outs.start) * size..];
            kernels::transpose(bytes, plane.stride, size, (outs.len(), inputs.len()), target, width);
            model.checkpoint.release(plane.tensor, range, Edges::Drop);
        }
        column += out;
    }
    Ok(())
}
