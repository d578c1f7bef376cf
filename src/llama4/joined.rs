//! Reading matrices that lie in rank shards: rows put together from the ranks' rows.

use std::ops::Range;

use super::shards::Cut;
use super::view::{Coding, Llama4, Plane};
use crate::checkpoint::Edges;
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
        if cut == Cut::Outputs {
            let each = out / parts.len();
            for (index, &part) in parts.iter().enumerate() {
                if let Some((own, place)) = shared(index, each, outs) {
                    let target = &mut rows[place * ins..(place + own.len()) * ins];
                    self.decode(part, (each, ins), own, target);
                }
            }
            return;
        }
        let each = ins / parts.len();
        let mut columns = vec![T::from_f32(0.0); outs.len() * each];
        for (index, &part) in parts.iter().enumerate() {
            self.decode(part, (out, each), outs.clone(), &mut columns);
            for (row, own) in rows.chunks_exact_mut(ins).zip(columns.chunks_exact(each)) {
                row[index * each..(index + 1) * each].copy_from_slice(own);
            }
        }
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
        let size = plane.float.bytes();
        let bytes = self.checkpoint.range(plane.tensor, plane_range(&plane, ins, outs));
        for (row, values) in rows.chunks_exact_mut(ins).enumerate() {
            let (start, step) = match plane.layout {
                Layout::OutIn => (row * plane.stride, 1),
                Layout::InOut => (row, plane.stride),
            };
            for (input, value) in values.iter_mut().enumerate() {
                *value = T::from_f32(plane.float.read(&bytes[(start + input * step) * size..]));
            }
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
