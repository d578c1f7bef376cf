//! Reading the numbers of a weight, whatever it is coded in.

use std::ops::Range;

use super::pieces::Elements;
use super::view::{Coding, Llama4, TensorId, Weight};
use crate::checkpoint::Edges;
use crate::dtype::Dtype;
use crate::kernels::{self, Float};
use crate::quant::scheme::Scheme;
use crate::quant::{Target, fp8, ggml, int4};

impl Llama4 {
    /// Dequantizes output rows `outs` of a quantized matrix into `rows`, `[outs, in]`: the values that compressed-tensors
    /// decompresses.
    ///
    /// # Panics
    /// If the weight is plain, or `rows` has another size.
    pub fn dequantize<T: Target>(&self, weight: &Weight, outs: Range<usize>, rows: &mut [T]) {
        let (out, ins) = weight.matrix();
        assert!(outs.end <= out && rows.len() == outs.len() * ins, "{} values for rows {outs:?}", rows.len());
        assert!(!matches!(weight.coding, Coding::Plain(_)), "`{}` is not quantized", weight.name);
        self.decode(weight.coding, (out, ins), outs, rows);
    }

    /// [`Llama4::dequantize`] for a matrix `[out, ins]` in any coding.
    pub(super) fn decode<T: Target>(
        &self,
        coding: Coding,
        (out, ins): (usize, usize),
        outs: Range<usize>,
        rows: &mut [T],
    ) {
        match coding {
            Coding::Plain(plane) => self.plain_rows(plane, ins, &outs, rows),
            Coding::Split { cut, first, count, .. } => {
                self.joined_rows((cut, &self.shards[first..first + count]), (out, ins), &outs, rows);
            }
            Coding::Pieces(id) => self.pieced_rows(&self.pieces[id], (out, ins), &outs, rows),
            Coding::Int4 { packed, scale, zero_point, group_size, .. } => {
                let zero_points = zero_point.map(|id| self.zero_points(id, &outs, ins / group_size));
                let packed = int4::Packed {
                    codes: self.rows(packed, &outs, out),
                    scales: self.rows(scale, &outs, out),
                    float: self.float(scale),
                    zero_points: zero_points.as_deref(),
                    rows: outs.len(),
                    ins,
                    group_size,
                };
                int4::dequantize(&packed, rows);
            }
            Coding::Fp8 { weight: codes, scale, scheme, .. } => {
                let (block, first) = match scheme {
                    Scheme::Fp8Dynamic => ((1, ins), outs.start),
                    Scheme::Fp8Block { rows, cols } => ((rows, cols), outs.start),
                    _ => ((out, ins), outs.start),
                };
                let coded = fp8::Coded {
                    codes: self.rows(codes, &outs, out),
                    scales: self.checkpoint.bytes(scale),
                    float: self.float(scale),
                    block,
                    first_row: first,
                    rows: outs.len(),
                    ins,
                };
                fp8::dequantize(&coded, rows);
            }
            Coding::Blocks { tensor, dtype, offset } => {
                let range = block_rows(dtype, offset, ins, &outs);
                let blocks = self.checkpoint.range(tensor, range);
                let row_bytes = blocks.len() / outs.len().max(1);
                let mut numbers = vec![0.0; ins];
                for (blocks, row) in blocks.chunks_exact(row_bytes.max(1)).zip(rows.chunks_exact_mut(ins)) {
                    ggml::decode(dtype, blocks, &mut numbers);
                    row.iter_mut().zip(&numbers).for_each(|(value, &number)| *value = T::from_f32(number));
                }
            }
        }
    }

    /// Gives back the pages that [`Llama4::dequantize`] has touched for output rows `outs`.
    pub fn release_rows(&self, weight: &Weight, outs: Range<usize>) {
        self.release_coded(weight.coding, weight.matrix(), outs);
    }

    pub(super) fn release_coded(&self, coding: Coding, (out, ins): (usize, usize), outs: Range<usize>) {
        let rows = |id| self.checkpoint.release(id, self.row_range(id, &outs, out), Edges::Drop);
        let whole = |id: TensorId| self.checkpoint.release(id, 0..self.checkpoint.tensors()[id].bytes, Edges::Drop);
        match coding {
            Coding::Plain(_) => {}
            Coding::Pieces(id) => {
                for piece in &self.pieces[id].pieces {
                    self.checkpoint.release(
                        piece.tensor,
                        0..self.checkpoint.tensors()[piece.tensor].bytes,
                        Edges::Drop,
                    );
                }
            }
            Coding::Split { cut, first, count, .. } => {
                self.release_joined((cut, &self.shards[first..first + count]), (out, ins), &outs);
            }
            Coding::Int4 { packed, scale, zero_point, .. } => {
                rows(packed);
                rows(scale);
                // Rows share words, so a range of rows is no range of bytes; what a neighbour needs comes back.
                zero_point.into_iter().for_each(whole);
            }
            Coding::Fp8 { weight: codes, scale, .. } => {
                rows(codes);
                whole(scale);
            }
            Coding::Blocks { tensor, dtype, offset } => {
                self.checkpoint.release(tensor, block_rows(dtype, offset, ins, &outs), Edges::Drop);
            }
        }
    }

    /// The format of a weight that is stored in floats; `None` if it is quantized.
    pub fn stored_float(&self, weight: &Weight) -> Option<Float> {
        match weight.coding {
            Coding::Plain(plane) => Some(plane.float),
            Coding::Pieces(id) => match self.pieces[id].pieces[0].elements {
                Elements::Float(float) => Some(float),
                Elements::Fp8 => None,
            },
            Coding::Split { float, .. } => float,
            Coding::Int4 { .. } | Coding::Fp8 { .. } | Coding::Blocks { .. } => None,
        }
    }

    /// A plain vector or matrix as `f32`, in the order in which it is stored. For what is small: norms and biases.
    ///
    /// # Panics
    /// If the weight is quantized.
    pub fn plain_values(&self, weight: &Weight) -> Vec<f32> {
        if let Coding::Split { scheme: None, .. } = weight.coding {
            let (out, ins) = weight.matrix();
            let mut values = vec![0.0; out * ins];
            self.decode(weight.coding, (out, ins), 0..out, &mut values);
            return values;
        }
        let Coding::Plain(plane) = weight.coding else { panic!("`{}` is quantized", weight.name) };
        let bytes = plane.float.bytes();
        let length = weight.numel() * bytes as u64;
        let stored = self.checkpoint.range(plane.tensor, plane.offset..plane.offset + length);
        let mut values = vec![0.0; stored.len() / bytes];
        kernels::widen(stored, plane.float, &mut values);
        values
    }

    /// The bytes of rows `outs` of a tensor that has `out` rows.
    fn rows(&self, id: TensorId, outs: &Range<usize>, out: usize) -> &[u8] {
        self.checkpoint.range(id, self.row_range(id, outs, out))
    }

    fn row_range(&self, id: TensorId, outs: &Range<usize>, out: usize) -> Range<u64> {
        let row = self.checkpoint.tensors()[id].bytes / out as u64;
        outs.start as u64 * row..outs.end as u64 * row
    }

    /// Unpacks the zero points of rows `outs`; eight rows share a word.
    fn zero_points(&self, id: TensorId, outs: &Range<usize>, groups: usize) -> Vec<i8> {
        let (first, end) = (outs.start / 8, outs.end.div_ceil(8));
        let word_row = groups as u64 * 4;
        let words = self.checkpoint.range(id, first as u64 * word_row..end as u64 * word_row);
        let covered = outs.end - first * 8;
        let mut zero_points = vec![0; covered * groups];
        int4::unpack_zero_points(words, covered, groups, &mut zero_points);
        zero_points.drain(..(outs.start - first * 8) * groups);
        zero_points
    }

    /// The float format of a tensor of scales.
    fn float(&self, id: TensorId) -> Float {
        Float::of(self.checkpoint.tensors()[id].dtype).expect("the view accepts scales in floats only")
    }
}

/// Where rows `outs` of `ins` numbers in blocks lie in their tensor, whose first block is at `offset`.
fn block_rows(dtype: Dtype, offset: u64, ins: usize, outs: &Range<usize>) -> Range<u64> {
    let row = ins as u64 / dtype.block_len() * dtype.block_bits() / 8;
    offset + outs.start as u64 * row..offset + outs.end as u64 * row
}
