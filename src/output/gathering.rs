//! Rows that are put together from strips of other tensors: parts of a matrix cut out of it, or joined to one again.

use anyhow::Result;

use super::work::BadWeight;
use crate::checkpoint::Edges;
use crate::kernels::{self, Float};
use crate::llama4::Llama4;

/// Bytes of a tensor, the same stretch of each of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strip {
    /// Source tensor.
    pub tensor: usize,
    /// First byte of the first row's stretch.
    pub start: u64,
    /// Bytes of a stretch.
    pub run: u64,
    /// Bytes from one row's stretch to the next.
    pub stride: u64,
}

/// Bytes that `rows` rows of these strips have.
pub(super) fn bytes(strips: &[Strip], rows: u64) -> u64 {
    strips.iter().map(|strip| strip.run).sum::<u64>() * rows
}

/// Most bytes of pages that the strips touch.
pub(super) fn touched(strips: &[Strip], rows: u64) -> u64 {
    strips.iter().map(|strip| strip.stride * (rows - 1) + strip.run).sum()
}

/// Writes `rows` rows into `target`, each the strips' stretches one after the other.
///
/// # Errors
/// [`BadWeight`], if they are floats and one is not finite.
pub(super) fn run(model: &Llama4, strips: &[Strip], rows: u64, float: Option<Float>, target: &mut [u8]) -> Result<()> {
    let row_bytes: u64 = strips.iter().map(|strip| strip.run).sum();
    let mut column = 0;
    for strip in strips {
        let (run, stride) = (strip.run as usize, strip.stride as usize);
        let range = strip.start..strip.start + strip.stride * (rows - 1) + strip.run;
        let source = model.checkpoint.range(strip.tensor, range.clone());
        for row in 0..rows as usize {
            let from = &source[row * stride..][..run];
            if let Some(float) = float
                && let Some(at) = kernels::first_nonfinite(from, float)
            {
                let value = float.read(&from[at * float.bytes()..]);
                let element = (strip.start as usize + row * stride) / float.bytes() + at;
                let name = &model.checkpoint.tensors()[strip.tensor].name;
                let what = format!("the value {value} at element {element} is not finite");
                return Err(BadWeight::new(name, what).into());
            }
            target[row * row_bytes as usize + column..][..run].copy_from_slice(from);
        }
        model.checkpoint.release(strip.tensor, range, Edges::Drop);
        column += run;
    }
    Ok(())
}
