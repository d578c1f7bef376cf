//! Puts plain matrices together: from the pieces of several ranks, out of fused tensors or into them, from one number format
//! to another, from codes and scales.
//!
//! Every source is walked in stripes of stored rows. Where formats agree, bytes are moved as they are; otherwise values go
//! through `f32`, which holds every value of every format that is read here.

use std::ops::Range;

use anyhow::Result;
use half::bf16;

use super::casting::{Cast, Overflow};
use super::work::{BadWeight, STRIPE_BYTES};
use crate::checkpoint::Edges;
use crate::kernels::{self, Float};
use crate::llama4::{Axis, Coding, Elements, Llama4, Piece, Pieces, Weight};
use crate::quant::{Errors, Layout};

/// A rectangle of one matrix, or of several that lie side by side, in plain floats.
#[derive(Clone, Debug, PartialEq)]
pub struct Assembled {
    /// Indices into the model's weights. More than one only for [`Layout::InOut`]: their outputs follow each other in every
    /// row.
    pub weights: Vec<usize>,
    /// Outputs, of each of them; all, for [`Layout::InOut`].
    pub outs: Range<usize>,
    /// Inputs; all, for [`Layout::OutIn`].
    pub ins: Range<usize>,
    /// Which way the result lies.
    pub layout: Layout,
    /// Its number format.
    pub float: Float,
    /// What to do with values that are too large for it.
    pub overflow: Overflow,
}

/// The bytes of the result and where a matrix lies in it.
struct Target<'a> {
    bytes: &'a mut [u8],
    layout: Layout,
    float: Float,
    /// Elements between the starts of consecutive rows.
    stride: usize,
    /// First output and input of the rectangle, and the column where this matrix begins.
    origin: (usize, usize, usize),
}

/// Part of a matrix in the result's number format, ready to be put in its place.
struct Tile<'a> {
    bytes: &'a [u8],
    layout: Layout,
    stride: usize,
    outs: Range<usize>,
    ins: Range<usize>,
}

impl Target<'_> {
    fn put(&mut self, tile: &Tile<'_>) {
        let size = self.float.bytes();
        let (out, input, column) = self.origin;
        let (row, first) = match self.layout {
            Layout::OutIn => (tile.outs.start - out, tile.ins.start - input),
            Layout::InOut => (tile.ins.start - input, column + tile.outs.start - out),
        };
        let place = &mut self.bytes[(row * self.stride + first) * size..];
        let (rows, columns) = match tile.layout {
            Layout::OutIn => (tile.outs.len(), tile.ins.len()),
            Layout::InOut => (tile.ins.len(), tile.outs.len()),
        };
        if tile.layout != self.layout {
            kernels::transpose(tile.bytes, tile.stride, size, (rows, columns), place, self.stride);
            return;
        }
        for row in 0..rows {
            let source = &tile.bytes[row * tile.stride * size..][..columns * size];
            place[row * self.stride * size..][..columns * size].copy_from_slice(source);
        }
    }
}

impl Assembled {
    /// Bytes of input that it stands for: its share of what the weights take.
    pub(super) fn source_bytes(&self, model: &Llama4) -> u64 {
        let elements = (self.outs.len() * self.ins.len()) as u64;
        self.weights.iter().map(|&index| stored_share(model, &model.weights[index], elements)).sum()
    }

    /// Most memory that it needs besides its result: a stripe of input as the system maps it, and the stripe in the result's
    /// format.
    pub(super) fn working_bytes(&self, model: &Llama4) -> u64 {
        let of = |&index: &usize| {
            let weight = &model.weights[index];
            let (out, input) = weight.matrix();
            let row = match weight.coding {
                Coding::Plain(plane) => plane.stride as u64 * plane.float.bytes() as u64,
                Coding::Pieces(id) => model.pieces[id].pieces.iter().map(row_bytes).max().unwrap_or(0),
                _ => 4 * input as u64,
            };
            let values = (STRIPE_BYTES as u64).max(4 * input.max(out) as u64);
            2 * row.max(STRIPE_BYTES as u64) + 5 * values
        };
        self.weights.iter().map(of).max().unwrap_or(0)
    }

    /// Computes the rectangle.
    ///
    /// # Errors
    /// [`BadWeight`], for a value that is not finite or does not fit the format.
    pub(super) fn run(&self, model: &Llama4, bytes: &mut [u8]) -> Result<Vec<Errors>> {
        let stride = match self.layout {
            Layout::OutIn => self.ins.len(),
            Layout::InOut => self.outs.len() * self.weights.len(),
        };
        let mut totals = Vec::with_capacity(self.weights.len());
        for (index, &weight) in self.weights.iter().enumerate() {
            let weight = &model.weights[weight];
            let origin = (self.outs.start, self.ins.start, index * self.outs.len());
            let target = Target { bytes: &mut *bytes, layout: self.layout, float: self.float, stride, origin };
            let mut walk = Walk { model, weight, target, cast: Cast::new(self.float, self.overflow), part: self };
            walk.run()?;
            totals.push(walk.cast.finish(&weight.name)?);
        }
        Ok(totals)
    }
}

/// Bytes that some of a weight's elements take where they are stored.
pub(super) fn stored_share(model: &Llama4, weight: &Weight, elements: u64) -> u64 {
    let all = u128::from(weight.numel()).max(1);
    (u128::from(stored_bytes(model, weight)) * u128::from(elements) / all) as u64
}

/// Bytes that a weight takes where it is stored, without zero points and shapes.
fn stored_bytes(model: &Llama4, weight: &Weight) -> u64 {
    let tensor = |id: usize| model.checkpoint.tensors()[id].bytes;
    match weight.coding {
        Coding::Plain(plane) => weight.numel() * plane.float.bytes() as u64,
        Coding::Int4 { packed, scale, .. } => tensor(packed) + tensor(scale),
        Coding::Fp8 { weight, .. } => tensor(weight),
        Coding::Pieces(id) => {
            let pieces = &model.pieces[id].pieces;
            let share = weight.numel() / pieces.len() as u64;
            pieces.iter().map(|piece| share * piece.elements.bytes() as u64).sum()
        }
        Coding::Split { .. } | Coding::Blocks { .. } => model.stored_bytes(weight),
    }
}

fn row_bytes(piece: &Piece) -> u64 {
    piece.stride as u64 * piece.elements.bytes() as u64
}

/// One matrix on its way into the result.
struct Walk<'a> {
    model: &'a Llama4,
    weight: &'a Weight,
    target: Target<'a>,
    cast: Cast,
    part: &'a Assembled,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        match self.weight.coding {
            Coding::Plain(plane) => {
                let elements = Elements::Float(plane.float);
                let piece = Piece {
                    tensor: plane.tensor,
                    elements,
                    layout: plane.layout,
                    offset: plane.offset,
                    stride: plane.stride,
                    scales: None,
                };
                self.pieces(&Pieces { axis: Axis::Outs, pieces: vec![piece] })
            }
            Coding::Pieces(id) => self.pieces(&self.model.pieces[id]),
            Coding::Int4 { .. } | Coding::Fp8 { .. } | Coding::Split { .. } | Coding::Blocks { .. } => {
                self.dequantized()
            }
        }
    }

    fn pieces(&mut self, pieces: &Pieces) -> Result<()> {
        let (out, input) = self.weight.matrix();
        let count = pieces.pieces.len();
        for (index, piece) in pieces.pieces.iter().enumerate() {
            let (outs, ins) = match pieces.axis {
                Axis::Outs => (out / count * index..out / count * (index + 1), 0..input),
                Axis::Ins => (0..out, input / count * index..input / count * (index + 1)),
            };
            self.piece(piece, &outs, &ins)?;
        }
        Ok(())
    }

    /// What the result takes of one piece, which has the outputs `outs` and the inputs `ins` of the matrix.
    fn piece(&mut self, piece: &Piece, outs: &Range<usize>, ins: &Range<usize>) -> Result<()> {
        let (wanted_outs, wanted_ins) = (common(outs, &self.part.outs), common(ins, &self.part.ins));
        if wanted_outs.is_empty() || wanted_ins.is_empty() {
            return Ok(());
        }
        let (rows, columns) = match piece.layout {
            Layout::OutIn => (&wanted_outs, &wanted_ins),
            Layout::InOut => (&wanted_ins, &wanted_outs),
        };
        let (first_row, first_column) = match piece.layout {
            Layout::OutIn => (outs.start, ins.start),
            Layout::InOut => (ins.start, outs.start),
        };
        let size = piece.elements.bytes();
        let at = |row: usize, column: usize| {
            let element = (row - first_row) as u64 * piece.stride as u64 + (column - first_column) as u64;
            piece.offset + element * size as u64
        };
        let step = (STRIPE_BYTES / (piece.stride * size)).max(1);
        let stripe = |first: usize| first..first.saturating_add(step).min(rows.end);
        let bytes_of = |rows: &Range<usize>| at(rows.start, columns.start)..at(rows.end - 1, columns.end);
        for first in (rows.start..rows.end).step_by(step) {
            let rows = stripe(first);
            let next = stripe(rows.end);
            if !next.is_empty() {
                // The disk reads the next stripe while this one is worked on.
                self.model.checkpoint.will_need(piece.tensor, bytes_of(&next));
            }
            let (outs_here, ins_here) = match piece.layout {
                Layout::OutIn => (rows.clone(), columns.clone()),
                Layout::InOut => (columns.clone(), rows.clone()),
            };
            let scales = self.scales(piece, &(outs_here.start - outs.start..outs_here.end - outs.start));
            let stored = self.model.checkpoint.range(piece.tensor, bytes_of(&rows));
            self.stripe(piece, stored, &scales, outs_here, ins_here)?;
            self.model.checkpoint.release(piece.tensor, bytes_of(&rows), Edges::Drop);
        }
        Ok(())
    }

    /// The scales of some outputs of a piece: one for each, or one for all.
    fn scales(&self, piece: &Piece, outs: &Range<usize>) -> Vec<f32> {
        let Some(scales) = piece.scales else { return Vec::new() };
        let size = scales.float.bytes() as u64;
        let range = if scales.per_output { outs.start as u64..outs.end as u64 } else { 0..1 };
        let bytes = scales.offset + range.start * size..scales.offset + range.end * size;
        let stored = self.model.checkpoint.range(scales.tensor, bytes.clone());
        let values = stored.chunks_exact(size as usize).map(|value| scales.float.read(value)).collect();
        self.model.checkpoint.release(scales.tensor, bytes, Edges::Drop);
        values
    }

    /// Stored rows of one piece.
    fn stripe(
        &mut self,
        piece: &Piece,
        stored: &[u8],
        scales: &[f32],
        outs: Range<usize>,
        ins: Range<usize>,
    ) -> Result<()> {
        let (rows, columns) = match piece.layout {
            Layout::OutIn => (outs.len(), ins.len()),
            Layout::InOut => (ins.len(), outs.len()),
        };
        let size = piece.elements.bytes();
        let row = |row: usize| &stored[row * piece.stride * size..][..columns * size];
        let place = |row: usize, column: usize| match piece.layout {
            Layout::OutIn => (outs.start + row, ins.start + column),
            Layout::InOut => (outs.start + column, ins.start + row),
        };
        if piece.elements == Elements::Float(self.target.float) {
            for index in 0..rows {
                if let Some(column) = kernels::first_nonfinite(row(index), self.target.float) {
                    let value = self.target.float.read(&row(index)[column * size..]);
                    return Err(self.not_finite(value, place(index, column), Some(piece.tensor)));
                }
            }
            self.target.put(&Tile { bytes: stored, layout: piece.layout, stride: piece.stride, outs, ins });
            return Ok(());
        }
        let mut converted = vec![0; rows * columns * self.target.float.bytes()];
        let mut values = vec![0.0; columns];
        for (index, target) in converted.chunks_exact_mut(columns * self.target.float.bytes()).enumerate() {
            read_row(piece, row(index), scales, index, &mut values);
            if let Some(column) = kernels::first_nonfinite(bytemuck::cast_slice(&values), Float::F32) {
                return Err(self.not_finite(values[column], place(index, column), Some(piece.tensor)));
            }
            self.cast.row(&values, target, |column| place(index, column));
        }
        self.target.put(&Tile { bytes: &converted, layout: piece.layout, stride: columns, outs, ins });
        Ok(())
    }

    /// Rows of a matrix that compressed-tensors quantized.
    fn dequantized(&mut self) -> Result<()> {
        let (_, input) = self.weight.matrix();
        let float = self.target.float;
        // What a quantized weight stands for is a BF16 number; floats in rank shards may be wider.
        let wider = matches!(self.weight.coding, Coding::Split { float: Some(stored), .. } if stored != float);
        let exact = float == Float::BF16 && !wider;
        let step = (STRIPE_BYTES / (input * size_of::<f32>())).max(1);
        let (all, ins) = (self.part.outs.clone(), self.part.ins.clone());
        for first in all.clone().step_by(step) {
            let outs = first..(first + step).min(all.end);
            let mut converted = Vec::new();
            if exact {
                let mut values = vec![bf16::ZERO; outs.len() * input];
                self.model.dequantize(self.weight, outs.clone(), &mut values);
                converted.extend_from_slice(bytemuck::cast_slice(&values));
                if let Some(at) = kernels::first_nonfinite(&converted, float) {
                    return Err(self.not_finite(values[at].to_f32(), (outs.start + at / input, at % input), None));
                }
            } else {
                let mut values = vec![0.0_f32; outs.len() * input];
                self.model.dequantize(self.weight, outs.clone(), &mut values);
                if let Some(at) = kernels::first_nonfinite(bytemuck::cast_slice(&values), Float::F32) {
                    return Err(self.not_finite(values[at], (outs.start + at / input, at % input), None));
                }
                converted.resize(values.len() * float.bytes(), 0);
                let rows = values.chunks_exact(input).zip(converted.chunks_exact_mut(input * float.bytes()));
                for (row, (values, target)) in rows.enumerate() {
                    self.cast.row(values, target, |column| (outs.start + row, column));
                }
            }
            let bytes = &converted[ins.start * float.bytes()..];
            self.target.put(&Tile {
                bytes,
                layout: Layout::OutIn,
                stride: input,
                outs: outs.clone(),
                ins: ins.clone(),
            });
            self.model.release_rows(self.weight, outs);
        }
        Ok(())
    }

    fn not_finite(&self, value: f32, (out, input): (usize, usize), tensor: Option<usize>) -> anyhow::Error {
        let what = format!("the value {value} at output {out}, input {input} is not finite");
        BadWeight { tensor, ..BadWeight::new(&self.weight.name, what) }.into()
    }
}

/// One stored row as values.
fn read_row(piece: &Piece, stored: &[u8], scales: &[f32], row: usize, values: &mut [f32]) {
    match piece.elements {
        Elements::Float(float) => {
            kernels::widen(stored, float, values);
        }
        Elements::Fp8 => {
            let scale = |column: usize| match (scales, piece.layout) {
                ([one], _) => *one,
                (each, Layout::OutIn) => each[row],
                (each, Layout::InOut) => each[column],
            };
            for (column, (value, code)) in values.iter_mut().zip(stored).enumerate() {
                *value = crate::dtype::fp8::decode(*code) * scale(column);
            }
        }
    }
}

/// What two ranges share.
fn common(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}
