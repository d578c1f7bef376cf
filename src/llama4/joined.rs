//! Reading matrices that lie in parts: rows put together from rank shards, or from the pieces of Meta's ranks.

use std::ops::Range;

use super::pieces::{Axis, Elements, Piece, Pieces};
use super::shards::Cut;
use super::view::{Coding, Llama4, Plane};
use crate::checkpoint::Edges;
use crate::dtype::fp8;
use crate::quant::{Layout, Target};

/// The parts of a matrix and how they lie.
type Parts<'a> = (Cut, &'a [Coding]);

/// The outputs of part `index` among `outs`, counted from the part's first, and how far from `outs.start` they begin.
fn shared(index: usize, each: usize, outs: &Range<usize>) -> Option<(Range<usize>, usize)> {
    let (first, end) = (outs.start.max(index * each), outs.end.min((index + 1) * each));
    (first < end).then(|| (first - index * each..end - index * each, first - outs.start))
}

impl Llama4 {
    /// Rows `outs` of a matrix `[out, ins]` in parts.
    pub(super) fn joined_rows<T: Target>(
        &self,
        (cut, parts): Parts<'_>,
        (out, ins): (usize, usize),
        outs: &Range<usize>,
        rows: &mut [T],
    ) {
        join(cut == Cut::Outputs, parts.len(), (out, ins), outs, rows, |index, size, own, rows| {
            self.decode(parts[index], size, own, rows);
        });
    }

    /// Rows `outs` of a matrix `[out, ins]` in pieces.
    pub(super) fn pieced_rows<T: Target>(
        &self,
        pieces: &Pieces,
        (out, ins): (usize, usize),
        outs: &Range<usize>,
        rows: &mut [T],
    ) {
        join(pieces.axis == Axis::Outs, pieces.pieces.len(), (out, ins), outs, rows, |index, (_, ins), own, rows| {
            self.piece_rows(&pieces.pieces[index], ins, &own, rows);
        });
    }

    /// Gives back the pages that rows `outs` of a matrix in parts lie in.
    pub(super) fn release_joined(&self, (cut, parts): Parts<'_>, (out, ins): (usize, usize), outs: &Range<usize>) {
        for (index, &part) in parts.iter().enumerate() {
            let (size, own) = match cut {
                Cut::Outputs => ((out / parts.len(), ins), shared(index, out / parts.len(), outs).map(|(own, _)| own)),
                _ => ((out, ins / parts.len()), Some(outs.clone())),
            };
            match (part, own) {
                (Coding::Plain(plane), Some(own)) => {
                    let range = plane_range(&plane, size.1, &own);
                    self.checkpoint.release(plane.tensor, range, Edges::Drop);
                }
                (_, Some(own)) => self.release_coded(part, size, own),
                (_, None) => {}
            }
        }
    }

    /// Rows `outs` of a plain matrix with `ins` inputs, whichever way it lies.
    pub(super) fn plain_rows<T: Target>(&self, plane: Plane, ins: usize, outs: &Range<usize>, rows: &mut [T]) {
        let Plane { tensor, float, layout, offset, stride } = plane;
        let piece = Piece { tensor, elements: Elements::Float(float), layout, offset, stride, scales: None };
        self.piece_rows(&piece, ins, outs, rows);
    }

    /// Rows `outs` of a piece with `ins` inputs.
    fn piece_rows<T: Target>(&self, piece: &Piece, ins: usize, outs: &Range<usize>, rows: &mut [T]) {
        let size = piece.elements.bytes();
        let at = |out: usize, input: usize| match piece.layout {
            Layout::OutIn => out * piece.stride + input,
            Layout::InOut => input * piece.stride + out,
        };
        let first = at(outs.start, 0);
        let end = at(outs.end - 1, ins - 1) + 1;
        let range = piece.offset + (first * size) as u64..piece.offset + (end * size) as u64;
        let bytes = self.checkpoint.range(piece.tensor, range);
        let scales = self.piece_scales(piece, outs);
        let value = |out: usize, input: usize| {
            let stored = &bytes[(at(out, input) - first) * size..];
            match piece.elements {
                Elements::Float(float) => float.read(stored),
                Elements::Fp8 => fp8::decode(stored[0]) * scales[(out - outs.start).min(scales.len() - 1)],
            }
        };
        // In the order in which it is stored, because that is how pages come.
        match piece.layout {
            Layout::OutIn => {
                for (row, values) in rows.chunks_exact_mut(ins).enumerate() {
                    for (input, target) in values.iter_mut().enumerate() {
                        *target = T::from_f32(value(outs.start + row, input));
                    }
                }
            }
            Layout::InOut => {
                for input in 0..ins {
                    for row in 0..outs.len() {
                        rows[row * ins + input] = T::from_f32(value(outs.start + row, input));
                    }
                }
            }
        }
    }

    /// The scales of rows `outs` of a piece in codes: one for each, or one for all.
    fn piece_scales(&self, piece: &Piece, outs: &Range<usize>) -> Vec<f32> {
        let Some(scales) = piece.scales else { return Vec::new() };
        let size = scales.float.bytes() as u64;
        let range = if scales.per_output { outs.start as u64..outs.end as u64 } else { 0..1 };
        let stored = scales.offset + range.start * size..scales.offset + range.end * size;
        let bytes = self.checkpoint.range(scales.tensor, stored);
        bytes.chunks_exact(size as usize).map(|value| scales.float.read(value)).collect()
    }
}

/// Puts rows `outs` of a matrix `[out, ins]` together from `count` equal parts, which have ranges of outputs or of inputs. `read` is given
/// the number of a part, its size, rows of it, and where they go.
fn join<T: Target>(
    by_outputs: bool,
    count: usize,
    (out, ins): (usize, usize),
    outs: &Range<usize>,
    rows: &mut [T],
    read: impl Fn(usize, (usize, usize), Range<usize>, &mut [T]),
) {
    if by_outputs {
        let each = out / count;
        for index in 0..count {
            if let Some((own, place)) = shared(index, each, outs) {
                let target = &mut rows[place * ins..(place + own.len()) * ins];
                read(index, (each, ins), own, target);
            }
        }
        return;
    }
    let each = ins / count;
    let mut columns = vec![T::from_f32(0.0); outs.len() * each];
    for index in 0..count {
        read(index, (out, each), outs.clone(), &mut columns);
        for (row, own) in rows.chunks_exact_mut(ins).zip(columns.chunks_exact(each)) {
            row[index * each..(index + 1) * each].copy_from_slice(own);
        }
    }
}

/// Bytes of rows `outs` of a plane, from the first element to the last.
fn plane_range(plane: &Plane, ins: usize, outs: &Range<usize>) -> Range<u64> {
    let at = |out: usize, input: usize| match plane.layout {
        Layout::OutIn => out * plane.stride + input,
        Layout::InOut => input * plane.stride + out,
    };
    let size = plane.float.bytes() as u64;
    let (first, last) = (at(outs.start, 0), at(outs.end - 1, ins - 1));
    plane.offset + first as u64 * size..plane.offset + (last as u64 + 1) * size
}
