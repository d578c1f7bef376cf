//! A weight's numbers as rows `[out, in]`, a few rows at a time, whatever it is coded in and whichever way it lies.
//!
//! Memory: one block of a fused matrix, turned. Pages of the file are given back behind the reader.

use std::ops::Range;

use half::bf16;

use super::view::{Coding, Llama4, Plane, Weight};
use crate::checkpoint::Edges;
use crate::kernels::{self, Float};
use crate::quant::Layout;

/// Bytes of a fused matrix that are turned at a time.
const BLOCK_BYTES: usize = 32 << 20;

/// Bytes of a fused tensor that are resident at a time.
const STRIPE_BYTES: usize = 4 << 20;

/// Rows that are transposed at a time.
const TILE_ROWS: usize = 32;

/// Reads one weight.
#[derive(Debug)]
pub struct Values<'a> {
    model: &'a Llama4,
    weight: &'a Weight,
    /// The block in hand, and its rows if they had to be turned.
    block: Range<usize>,
    turned: Vec<u8>,
    /// Its numbers, if they had to be put together from parts.
    joined: Vec<f32>,
}

/// Output rows of a matrix with `input` inputs that are worked on as one block.
pub fn block_rows(input: usize) -> usize {
    (BLOCK_BYTES / (input * size_of::<bf16>()).max(1)).max(1)
}

impl<'a> Values<'a> {
    /// A reader of `weight`, which must be one of `model`'s.
    pub fn new(model: &'a Llama4, weight: &'a Weight) -> Self {
        Self::with_room(model, weight, Vec::new())
    }

    /// The same with room for turned rows, as [`Values::into_room`] gave it back: pages that are there already.
    pub fn with_room(model: &'a Llama4, weight: &'a Weight, turned: Vec<u8>) -> Self {
        Self { model, weight, block: 0..0, turned, joined: Vec::new() }
    }

    /// The room for turned rows, for the next reader.
    pub fn into_room(self) -> Vec<u8> {
        self.turned
    }

    /// Most bytes that a reader of this weight holds, resident pages included.
    pub fn memory(weight: &Weight) -> u64 {
        let (out, input) = weight.matrix();
        let block = out.min(block_rows(input)) as u64 * input as u64;
        match weight.coding {
            // The system maps pages around those that are touched, so a stripe counts twice.
            Coding::Plain(Plane { layout: Layout::InOut, stride, float, .. }) => {
                block * float.bytes() as u64 + 2 * ((stride * float.bytes()).max(STRIPE_BYTES)) as u64
            }
            // The numbers, as many again while columns are put together, and the pages that they come from.
            Coding::Split { .. } | Coding::Pieces(_) => 3 * block * size_of::<f32>() as u64,
            _ => 2 * STRIPE_BYTES as u64 + 4 * input as u64,
        }
    }

    /// Takes a block of output rows in hand: what [`Values::plain`] and [`Values::read`] give lies in it.
    pub fn enter(&mut self, block: Range<usize>) {
        if let Coding::Plain(plane) = self.weight.coding
            && plane.layout == Layout::InOut
        {
            self.turn(plane, &block);
        }
        if self.is_in_parts() {
            self.joined.resize(block.len() * self.weight.matrix().1, 0.0);
            self.model.decode(self.weight.coding, self.weight.matrix(), block.clone(), &mut self.joined);
            self.model.release_rows(self.weight, block.clone());
        }
        self.block = block;
    }

    /// The rows `outs` of a plain weight as bytes `[outs, in]`, and their format; `None` if it is quantized.
    pub fn plain(&self, outs: &Range<usize>) -> Option<(&[u8], Float)> {
        let Coding::Plain(plane) = self.weight.coding else { return None };
        let row = self.weight.matrix().1 * plane.float.bytes();
        let bytes = match plane.layout {
            Layout::OutIn => self.model.checkpoint.range(plane.tensor, row_range(&plane, row, outs)),
            Layout::InOut => &self.turned[(outs.start - self.block.start) * row..(outs.end - self.block.start) * row],
        };
        Some((bytes, plane.float))
    }

    /// The numbers of rows `outs`; of a quantized weight, those that compressed-tensors decompresses.
    ///
    /// # Panics
    /// If `rows` has another size.
    pub fn read(&self, outs: &Range<usize>, rows: &mut [f32]) {
        if self.is_in_parts() {
            let input = self.weight.matrix().1;
            let first = (outs.start - self.block.start) * input;
            return rows.copy_from_slice(&self.joined[first..first + outs.len() * input]);
        }
        match self.plain(outs) {
            Some((bytes, float)) => kernels::widen(bytes, float, rows),
            None => self.model.dequantize(self.weight, outs.clone(), rows),
        }
    }

    /// Gives back the pages that rows `outs` lie in.
    pub fn release(&self, outs: &Range<usize>) {
        match self.weight.coding {
            Coding::Plain(plane) if plane.layout == Layout::OutIn => {
                let row = self.weight.matrix().1 * plane.float.bytes();
                self.model.checkpoint.release(plane.tensor, row_range(&plane, row, outs), Edges::Drop);
            }
            Coding::Plain(_) | Coding::Split { .. } | Coding::Pieces(_) => {}
            _ => self.model.release_rows(self.weight, outs.clone()),
        }
    }

    fn is_in_parts(&self) -> bool {
        matches!(self.weight.coding, Coding::Split { .. } | Coding::Pieces(_))
    }

    /// Turns the columns `block` of a fused plane to rows.
    fn turn(&mut self, plane: Plane, block: &Range<usize>) {
        let (_, input) = self.weight.matrix();
        let size = plane.float.bytes();
        self.turned.resize(block.len() * input * size, 0);
        // Whole tiles of the transposition, if there is more than one.
        let fitting = (STRIPE_BYTES / (plane.stride * size)).max(1);
        let step = if fitting < TILE_ROWS { fitting } else { fitting / TILE_ROWS * TILE_ROWS };
        for first in (0..input).step_by(step) {
            let inputs = first..(first + step).min(input);
            let at = |input: usize, out: usize| plane.offset + ((input * plane.stride + out) * size) as u64;
            let range = at(inputs.start, block.start)..at(inputs.end - 1, block.end);
            let bytes = self.model.checkpoint.range(plane.tensor, range.clone());
            let shape = (inputs.len(), block.len());
            kernels::transpose(bytes, plane.stride, size, shape, &mut self.turned[first * size..], input);
            self.model.checkpoint.release(plane.tensor, range, Edges::Drop);
        }
    }
}

/// Where rows of `row` bytes lie in a plane's tensor.
fn row_range(plane: &Plane, row: usize, outs: &Range<usize>) -> Range<u64> {
    plane.offset + (outs.start * row) as u64..plane.offset + (outs.end * row) as u64
}
