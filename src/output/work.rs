//! What a task computes: bytes of output regions from bytes of weights.
//!
//! Adding a way to transform weights adds a variant here and touches neither plan nor executor. Work reads through the
//! Llama 4 view, walks its input in stripes and gives pages back behind it; it knows no output file.

use std::fmt;
use std::ops::Range;

use anyhow::Result;

use super::assembling::Assembled;
use super::encoding::Encoded;
use super::evidence::Evidence;
use super::gathering::{self, Strip};
use super::modules::Target;
use super::plan::Region;
use super::quantizing;
use crate::checkpoint::Edges;
use crate::kernels::{self, Float};
use crate::llama4::{Coding, Llama4, Plane, Weight};
use crate::quant::{Errors, Layout, Method};

/// Input that is resident at a time: small enough for a core's cache, large enough that giving pages back costs nothing.
pub(super) const STRIPE_BYTES: usize = 4 << 20;

/// What a task computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// The bytes as they are.
    Copy {
        /// Source tensor.
        tensor: usize,
        /// Bytes from the tensor's start.
        range: Range<u64>,
        /// If they are floats that must be finite, which.
        float: Option<Float>,
    },
    /// Rows of one expert's plain matrix, from its fused `[E, in, out]` tensor, as `[out, in]`.
    Unfuse {
        /// Index into the model's weights.
        weight: usize,
        /// Output rows.
        outs: Range<usize>,
    },
    /// Rows that are put together from stretches of other tensors' rows.
    Gather {
        /// The stretches, in the order in which they lie in a row.
        strips: Vec<Strip>,
        /// Number of rows, at least one.
        rows: u64,
        /// If they are floats that must be finite, which.
        float: Option<Float>,
    },
    /// Rows of matrices in a quantized scheme. Several matrices are slices of the same fused rows.
    Quantize(Vec<Quantized>),
    /// Plain floats from whatever they are stored as.
    Assemble(Assembled),
    /// Rows of a matrix in a block format of ggml.
    Encode(Encoded),
}

/// Rows of one matrix, to be quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Index into the model's weights.
    pub weight: usize,
    /// Output rows.
    pub outs: Range<usize>,
    /// Scheme and method.
    pub target: Target,
}

/// A weight that cannot be processed, whatever is tried again: the run's partial work is of no use.
#[derive(Debug)]
pub struct BadWeight {
    /// Logical name, or the tensor's where it has none.
    pub name: String,
    /// What is wrong, with the value.
    pub what: String,
    /// What the user can do, if it is another thing than fetching the file again.
    pub remedy: Option<&'static str>,
    /// The tensor that holds the value, where a weight has several.
    pub tensor: Option<usize>,
}

impl BadWeight {
    /// A value that no program can use.
    pub fn new(name: &str, what: String) -> Self {
        Self { name: name.to_owned(), what, remedy: None, tensor: None }
    }
}

impl fmt::Display for BadWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.name, self.what)
    }
}

impl std::error::Error for BadWeight {}

/// A worker's memory, used again for every task: no more than the most demanding of its tasks needs.
#[derive(Debug, Default)]
pub struct Buffers {
    /// What the current task writes, one region after the other, each at a multiple of eight bytes.
    results: Vec<u64>,
    /// Rows that were dequantized to be quantized again.
    pub(super) decoded: Vec<u64>,
    /// Rows that were turned to be encoded, from one such task to the next.
    turned: Vec<u8>,
}

impl Buffers {
    /// Gives room for each region that a task writes, and the room for dequantized rows; what they hold is unspecified.
    pub(super) fn prepare(&mut self, writes: &[Region]) -> (Vec<Slot<'_>>, &mut Vec<u64>) {
        let words: usize = writes.iter().map(words_of).sum();
        let mut rest = room(&mut self.results, words);
        let mut slots = Vec::with_capacity(writes.len());
        for region in writes {
            let (slot, tail) = rest.split_at_mut(words_of(region));
            slots.push(Slot { words: slot, bytes: region.bytes as usize });
            rest = tail;
        }
        (slots, &mut self.decoded)
    }

    /// What was written to the slots of these regions.
    fn written(&self, writes: &[Region]) -> Vec<&[u8]> {
        let mut rest = self.results.as_slice();
        let mut slices = Vec::with_capacity(writes.len());
        for region in writes {
            let (slot, tail) = rest.split_at(words_of(region));
            slices.push(&bytemuck::cast_slice(slot)[..region.bytes as usize]);
            rest = tail;
        }
        slices
    }
}

/// Words of eight bytes that a region takes; a task's regions fit memory, so they fit `usize`.
fn words_of(region: &Region) -> usize {
    region.bytes.div_ceil(8) as usize
}

/// The first `words` words of a buffer that grows if it must. What it held is lost then: it is never copied.
pub(super) fn room(buffer: &mut Vec<u64>, words: usize) -> &mut [u64] {
    if buffer.len() < words {
        *buffer = Vec::new();
        *buffer = vec![0; words];
    }
    &mut buffer[..words]
}

/// Room for one region, at an address that suits every element type.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    words: &'a mut [u64],
    bytes: usize,
}

impl Slot<'_> {
    /// The elements.
    pub(super) fn get<T: bytemuck::Pod>(&self) -> &[T] {
        &bytemuck::cast_slice(self.words)[..self.bytes / size_of::<T>()]
    }

    /// The elements, to be written.
    pub(super) fn get_mut<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(self.words)[..self.bytes / size_of::<T>()]
    }
}

impl Work {
    /// How many matrices it gives error sums for.
    pub fn parts(&self) -> usize {
        match self {
            Self::Quantize(parts) => parts.len(),
            Self::Assemble(part) => part.weights.len(),
            Self::Encode(_) => 1,
            Self::Copy { .. } | Self::Unfuse { .. } | Self::Gather { .. } => 0,
        }
    }

    /// A tensor of the source that it reads; all that it reads lie in one file unless a weight's parts are split.
    pub fn tensor(&self, model: &Llama4) -> usize {
        let weight = match self {
            Self::Copy { tensor, .. } => return *tensor,
            Self::Unfuse { weight, .. } => *weight,
            Self::Gather { strips, .. } => return strips[0].tensor,
            Self::Quantize(parts) => parts[0].weight,
            Self::Assemble(part) => part.weights[0],
            Self::Encode(part) => part.weight,
        };
        match model.weights[weight].coding {
            Coding::Plain(plane) => plane.tensor,
            Coding::Pieces(pieces) => model.pieces[pieces].pieces[0].tensor,
            Coding::Split { .. } => model.tensors_of(&model.weights[weight])[0],
            Coding::Int4 { packed, .. } => packed,
            Coding::Fp8 { weight, .. } => weight,
            Coding::Blocks { tensor, .. } => tensor,
        }
    }

    /// Bytes of input that it stands for.
    pub fn source_bytes(&self, model: &Llama4) -> u64 {
        let rows = |weight: usize, outs: &Range<usize>| {
            let weight = &model.weights[weight];
            stored_row_bytes(model, weight) * outs.len() as u64
        };
        match self {
            Self::Copy { range, .. } => range.end - range.start,
            Self::Unfuse { weight, outs } => rows(*weight, outs),
            Self::Gather { strips, rows, .. } => gathering::bytes(strips, *rows),
            Self::Quantize(parts) => parts.iter().map(|part| rows(part.weight, &part.outs)).sum(),
            Self::Assemble(part) => part.source_bytes(model),
            Self::Encode(part) => part.source_bytes(model),
        }
    }

    /// Most memory that it needs besides its results: the stripe of input, and what is summed or decoded on the way.
    pub fn working_bytes(&self, model: &Llama4) -> u64 {
        // A stripe is at least one row of groups or blocks, however long a row is. The system maps pages around those
        // that are touched, so a stripe counts twice.
        let stripe = |weight: usize, rows: usize| {
            let weight = &model.weights[weight];
            let row = match weight.coding {
                Coding::Plain(plane) => plane.stride as u64 * plane.float.bytes() as u64,
                _ => 3 * weight.matrix().1 as u64,
            };
            2 * row.saturating_mul(rows as u64).max(STRIPE_BYTES as u64)
        };
        match self {
            Self::Copy { .. } => 0,
            Self::Assemble(part) => part.working_bytes(model),
            Self::Encode(part) => part.working_bytes(model),
            Self::Unfuse { weight, .. } => stripe(*weight, 1),
            Self::Gather { strips, rows, .. } => gathering::touched(strips, *rows),
            Self::Quantize(parts) => {
                let sums = parts.iter().map(|part| 40 * part.outs.len() as u64).sum::<u64>();
                let zero_points: u64 = parts.iter().map(|part| quantizing::zero_point_bytes(model, part)).sum();
                let rows = quantizing::stripe_rows_min(parts);
                let solving = parts.iter().map(|part| quantizing::solving_bytes(model, part)).max().unwrap_or(0);
                let searching: u64 = parts.iter().map(|part| quantizing::searching_bytes(model, part)).sum();
                let stripe = stripe(parts[0].weight, rows);
                // The stripe's numbers times their factors are no more than twice its bytes.
                let rescaled = if parts.iter().any(|part| part.target.method == Method::Awq) { stripe } else { 0 };
                stripe + rescaled + sums + zero_points + solving + searching
            }
        }
    }

    /// Computes the regions `writes` into `buffers`, from where [`Work::results`] gives them.
    ///
    /// # Errors
    /// [`BadWeight`], if a value is not finite or too large.
    pub(super) fn run(
        &self,
        model: &Llama4,
        writes: &[Region],
        buffers: &mut Buffers,
        evidence: &dyn Evidence,
    ) -> Result<Vec<Errors>> {
        // Other work was not counted with these rows beside it.
        let turned = std::mem::take(&mut buffers.turned);
        match self {
            Self::Copy { tensor, range, float } => {
                // A disk is faster when it is asked for all at once than page after page.
                model.checkpoint.will_need(*tensor, range.clone());
                check_finite(model, *tensor, range.clone(), *float)?;
                Ok(Vec::new())
            }
            Self::Unfuse { weight, outs } => {
                let (mut slots, _) = buffers.prepare(writes);
                unfuse(model, &model.weights[*weight], outs.clone(), slots[0].get_mut())?;
                Ok(Vec::new())
            }
            Self::Gather { strips, rows, float } => {
                let (mut slots, _) = buffers.prepare(writes);
                gathering::run(model, strips, *rows, *float, slots[0].get_mut())?;
                Ok(Vec::new())
            }
            Self::Quantize(parts) => {
                let (slots, decoded) = buffers.prepare(writes);
                quantizing::run(model, parts, slots, decoded, evidence)
            }
            Self::Assemble(part) => {
                let (mut slots, _) = buffers.prepare(writes);
                part.run(model, slots[0].get_mut())
            }
            Self::Encode(part) => {
                let (mut slots, _) = buffers.prepare(writes);
                let (errors, turned) = part.run(model, evidence, turned, slots[0].get_mut())?;
                buffers.turned = turned;
                Ok(errors)
            }
        }
    }

    /// What [`Work::run`] computed, one slice for each region of `writes`.
    pub fn results<'a>(&self, model: &'a Llama4, buffers: &'a Buffers, writes: &[Region]) -> Vec<&'a [u8]> {
        match self {
            Self::Copy { tensor, range, .. } => vec![model.checkpoint.range(*tensor, range.clone())],
            Self::Unfuse { .. } | Self::Gather { .. } | Self::Quantize(_) | Self::Assemble(_) | Self::Encode(_) => {
                buffers.written(writes)
            }
        }
    }

    /// Gives back the pages that the results themselves lie in.
    pub fn release(&self, model: &Llama4) {
        if let Self::Copy { tensor, range, .. } = self {
            model.checkpoint.release(*tensor, range.clone(), Edges::Drop);
        }
    }
}

/// Bytes that one row of a matrix takes where it is stored.
fn stored_row_bytes(model: &Llama4, weight: &Weight) -> u64 {
    let (out, input) = weight.matrix();
    let tensor = |id: usize| model.checkpoint.tensors()[id].bytes / out as u64;
    match weight.coding {
        Coding::Plain(plane) => input as u64 * plane.float.bytes() as u64,
        Coding::Int4 { packed, scale, .. } => tensor(packed) + tensor(scale),
        Coding::Fp8 { weight, .. } => tensor(weight),
        Coding::Blocks { .. } => model.stored_bytes(weight) / out as u64,
        Coding::Pieces(_) => unreachable!("`require_complete` refuses weights in pieces"),
        Coding::Split { .. } => unreachable!("`require_joined` refuses rank shards"),
    }
}

fn check_finite(model: &Llama4, tensor: usize, range: Range<u64>, float: Option<Float>) -> Result<()> {
    let Some(float) = float else { return Ok(()) };
    let bytes = model.checkpoint.range(tensor, range.clone());
    let Some(index) = kernels::first_nonfinite(bytes, float) else { return Ok(()) };
    let value = float.read(&bytes[index * float.bytes()..]);
    let element = range.start / float.bytes() as u64 + index as u64;
    let name = &model.checkpoint.tensors()[tensor].name;
    Err(BadWeight::new(name, format!("the value {value} at element {element} is not finite")).into())
}

/// Bytes of a fused plane's rows `inputs`, columns `outs`, from the first element to the last.
pub(super) fn in_out_bytes(plane: &Plane, inputs: &Range<usize>, outs: &Range<usize>) -> Range<u64> {
    let size = plane.float.bytes() as u64;
    let at = |input: usize, out: usize| plane.offset + (input as u64 * plane.stride as u64 + out as u64) * size;
    at(inputs.start, outs.start)..at(inputs.end - 1, outs.end)
}

/// Turns rows `outs` of a fused plane to `[outs, in]`.
fn unfuse(model: &Llama4, weight: &Weight, outs: Range<usize>, rows: &mut [u8]) -> Result<()> {
    let (_, input) = weight.matrix();
    let Coding::Plain(plane) = weight.coding else { unreachable!("only plain weights are fused") };
    debug_assert_eq!(plane.layout, Layout::InOut);
    let size = plane.float.bytes();
    let step = (STRIPE_BYTES / (plane.stride * size)).max(1);
    for first in (0..input).step_by(step) {
        let inputs = first..(first + step).min(input);
        let range = in_out_bytes(&plane, &inputs, &outs);
        let bytes = model.checkpoint.range(plane.tensor, range.clone());
        for (row, &input) in inputs.clone().collect::<Vec<_>>().iter().enumerate() {
            let columns = &bytes[row * plane.stride * size..][..outs.len() * size];
            if let Some(index) = kernels::first_nonfinite(columns, plane.float) {
                let value = plane.float.read(&columns[index * size..]);
                let out = outs.start + index;
                let what = format!("the value {value} at output {out}, input {input} is not finite");
                return Err(BadWeight::new(&weight.name, what).into());
            }
        }
        kernels::transpose(bytes, plane.stride, size, (inputs.len(), outs.len()), &mut rows[first * size..], input);
        model.checkpoint.release(plane.tensor, range, Edges::Drop);
    }
    Ok(())
}
