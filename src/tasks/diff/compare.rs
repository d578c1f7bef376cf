//! Two versions of one weight: first whether their bits are the same, at the speed of memory; only then how far apart they are.

use std::ops::Range;

use super::report::{Difference, Element, Status, WeightDiff};
use crate::checkpoint::Edges;
use crate::kernels::{Distance, Float, distance, same};
use crate::llama4::{Coding, Elements, Expectation, Llama4, Plane, TensorId, Values, Weight, block_rows};
use crate::quant::Layout;

/// Bytes that are compared between two looks at the next ones.
const STRIPE_BYTES: u64 = 4 << 20;

/// Numbers that are compared at a time.
const NUMBERS: usize = 64 << 10;

/// A weight and the model it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) model: &'a Llama4,
    pub(super) weight: &'a Weight,
}

/// A worker's numbers, used again for every weight.
#[derive(Default)]
pub(super) struct Buffers {
    a: Vec<f32>,
    b: Vec<f32>,
}

/// Most memory that comparing two weights needs.
pub(super) fn memory(a: &Weight, b: &Weight) -> u64 {
    let numbers = 8 * NUMBERS.max(a.matrix().1) as u64;
    Values::memory(a) + Values::memory(b) + numbers
}

/// Compares two weights of one name.
pub(super) fn compare(a: Side<'_>, b: Side<'_>, buffers: &mut Buffers) -> WeightDiff {
    let mut report = WeightDiff::new(a.weight, Status::Identical);
    report.a = Some(a.model.label(a.weight));
    report.b = Some(b.model.label(b.weight));
    if a.weight.shape != b.weight.shape {
        report.status = Status::Shape;
        report.message = Some(format!("has shape {:?} in A and {:?} in B", a.weight.shape, b.weight.shape));
    } else if !identical(a, b) {
        let found = differences(a, b, buffers);
        let as_stored = found.same_bits && float(a).is_some() && float(a) == float(b);
        report.status = match found.distance.differing {
            0 if as_stored => Status::Identical,
            0 => Status::Equal,
            _ => Status::Different,
        };
        report.difference = (report.status == Status::Different).then(|| found.report(a.weight));
    }
    report
}

/// The format of a weight that is not quantized, whatever it lies in.
fn float(side: Side<'_>) -> Option<Float> {
    match side.weight.coding {
        Coding::Plain(plane) => Some(plane.float),
        Coding::Split { float, .. } => float,
        Coding::Pieces(id) => {
            let mut elements = side.model.pieces[id].pieces.iter().map(|piece| piece.elements);
            match elements.next()? {
                Elements::Float(float) if elements.all(|other| other == Elements::Float(float)) => Some(float),
                _ => None,
            }
        }
        Coding::Int4 { .. } | Coding::Fp8 { .. } | Coding::Blocks { .. } => None,
    }
}

/// Whether both sides are coded in the same way with the same bits, as far as that shows without a look at numbers. Stops at the
/// first difference.
fn identical(a: Side<'_>, b: Side<'_>) -> bool {
    match (a.weight.coding, b.weight.coding) {
        (Coding::Plain(one), Coding::Plain(other)) if one.float == other.float => match (one.layout, other.layout) {
            (Layout::InOut, Layout::InOut) => same_fused(a, one, b, other),
            (Layout::OutIn, Layout::OutIn) => {
                let bytes = a.weight.numel() * one.float.bytes() as u64;
                let (first, second) = ((a.model, one.tensor, one.offset), (b.model, other.tensor, other.offset));
                same_bytes(first, second, bytes)
            }
            _ => same_rows(a, b),
        },
        (Coding::Split { scheme: Some(one), .. }, Coding::Split { scheme: Some(other), .. }) => {
            one == other && same_tensors(a, b)
        }
        (Coding::Int4 { .. }, Coding::Int4 { .. }) | (Coding::Fp8 { .. }, Coding::Fp8 { .. }) => {
            a.weight.coding.scheme() == b.weight.coding.scheme() && same_tensors(a, b)
        }
        (Coding::Split { scheme: Some(scheme), .. }, whole) => Some(scheme) == whole.scheme() && same_in_parts(b, a),
        (whole, Coding::Split { scheme: Some(scheme), .. }) => Some(scheme) == whole.scheme() && same_in_parts(a, b),
        (Coding::Blocks { tensor, dtype, offset }, Coding::Blocks { tensor: other, dtype: theirs, offset: at }) => {
            let bytes = a.model.stored_bytes(a.weight);
            dtype == theirs && same_bytes((a.model, tensor, offset), (b.model, other, at), bytes)
        }
        _ => false,
    }
}

/// Compares the tensors that two weights are stored in, one by one.
fn same_tensors(a: Side<'_>, b: Side<'_>) -> bool {
    let (one, other) = (a.model.tensors_of(a.weight), b.model.tensors_of(b.weight));
    let alike = |(&x, &y): (&TensorId, &TensorId)| {
        let (x, y) = (&a.model.checkpoint.tensors()[x], &b.model.checkpoint.tensors()[y]);
        x.dtype == y.dtype && x.shape == y.shape
    };
    one.len() == other.len()
        && one.iter().zip(&other).all(alike)
        && one.iter().zip(&other).all(|(&x, &y)| {
            let bytes = a.model.checkpoint.tensors()[x].bytes;
            same_bytes((a.model, x, 0), (b.model, y, 0), bytes)
        })
}

/// Compares the tensors of a quantized weight with those of the same one in rank shards.
fn same_in_parts(whole: Side<'_>, split: Side<'_>) -> bool {
    let shards = split.model.shards_of(split.weight);
    whole.weight.coding.tensors().enumerate().all(|(place, id)| {
        let parts: Option<Vec<TensorId>> = shards.iter().map(|shard| shard.tensors().nth(place)).collect();
        parts.is_some_and(|parts| same_joined((whole.model, id), (split.model, &parts)))
    })
}

/// Compares a tensor with its parts, which have it whole, or each some of its rows, or each some of its columns.
fn same_joined((model, id): (&Llama4, TensorId), (split, parts): (&Llama4, &[TensorId])) -> bool {
    let [(dtype, rows, bytes), (theirs, their_rows, their_bytes)] =
        [(model, id), (split, parts[0])].map(|(model, id)| {
            let info = &model.checkpoint.tensors()[id];
            (info.dtype, info.shape.first().copied().unwrap_or(1).max(1), info.bytes)
        });
    if matches!(model.expectation(id), Expectation::Shape(..)) {
        // A part has the shape of a part, and it was held against the model when it was opened.
        return true;
    }
    if dtype != theirs {
        return false;
    }
    if bytes == their_bytes {
        return parts.iter().all(|&part| same_bytes((model, id, 0), (split, part, 0), bytes));
    }
    if bytes != their_bytes * parts.len() as u64 {
        return false;
    }
    if rows != their_rows {
        let mut ranked = (0..).zip(parts);
        return ranked.all(|(rank, &part)| same_bytes((model, id, rank * their_bytes), (split, part, 0), their_bytes));
    }
    let (row, run) = (bytes / rows, their_bytes / rows);
    let step = (STRIPE_BYTES / row.max(1)).max(1);
    (0..rows).step_by(step as usize).all(|first| {
        let count = step.min(rows - first);
        let range = |bytes: u64| first * bytes..(first + count) * bytes;
        let equal = parts.iter().enumerate().all(|(rank, &part)| {
            let strip = split.checkpoint.range(part, range(run)).chunks_exact(run as usize);
            let whole = model.checkpoint.range(id, range(row)).chunks_exact(row as usize);
            let equal = whole.zip(strip).all(|(row, strip)| row[rank * strip.len()..].starts_with(strip));
            split.checkpoint.release(part, range(run), Edges::Drop);
            equal
        });
        model.checkpoint.release(id, range(row), Edges::Drop);
        equal
    })
}

/// Compares ranges of two tensors, stripe by stripe.
fn same_bytes(a: (&Llama4, TensorId, u64), b: (&Llama4, TensorId, u64), bytes: u64) -> bool {
    (0..bytes).step_by(STRIPE_BYTES as usize).all(|start| {
        let end = (start + STRIPE_BYTES).min(bytes);
        let [x, y] = [a, b].map(|(_, _, offset)| offset + start..offset + end);
        let equal = a.0.checkpoint.range(a.1, x.clone()) == b.0.checkpoint.range(b.1, y.clone());
        a.0.checkpoint.release(a.1, x, Edges::Drop);
        b.0.checkpoint.release(b.1, y, Edges::Drop);
        equal
    })
}

/// Compares one expert's slices of two fused tensors, input by input.
fn same_fused(a: Side<'_>, one: Plane, b: Side<'_>, other: Plane) -> bool {
    let (out, input) = a.weight.matrix();
    let size = one.float.bytes();
    let step = (STRIPE_BYTES as usize / (one.stride.max(other.stride) * size)).max(1);
    let range = |plane: &Plane, inputs: &Range<usize>| {
        let at = |input: usize, out: usize| plane.offset + ((input * plane.stride + out) * size) as u64;
        at(inputs.start, 0)..at(inputs.end - 1, out)
    };
    (0..input).step_by(step).all(|first| {
        let inputs = first..(first + step).min(input);
        let (x, y) = (range(&one, &inputs), range(&other, &inputs));
        let (left, right) =
            (a.model.checkpoint.range(one.tensor, x.clone()), b.model.checkpoint.range(other.tensor, y.clone()));
        let equal = (0..inputs.len()).all(|row| {
            let (x, y) = (row * one.stride * size, row * other.stride * size);
            left[x..x + out * size] == right[y..y + out * size]
        });
        a.model.checkpoint.release(one.tensor, x, Edges::Drop);
        b.model.checkpoint.release(other.tensor, y, Edges::Drop);
        equal
    })
}

/// Compares two plain matrices of one format of which one lies the other way, row by row.
fn same_rows(a: Side<'_>, b: Side<'_>) -> bool {
    let (mut left, mut right) = (Values::new(a.model, a.weight), Values::new(b.model, b.weight));
    pieces(a.weight).all(|(block, pieces)| {
        left.enter(block.clone());
        right.enter(block);
        pieces.into_iter().all(|outs| {
            let equal = left.plain(&outs) == right.plain(&outs);
            left.release(&outs);
            right.release(&outs);
            equal
        })
    })
}

/// Blocks of rows that are taken in hand together, each with the pieces of it that are compared at a time.
fn pieces(weight: &Weight) -> impl Iterator<Item = (Range<usize>, Vec<Range<usize>>)> + use<> {
    let (out, input) = weight.matrix();
    let (block, piece) = (block_rows(input), (NUMBERS / input.max(1)).max(1));
    let cut = |whole: Range<usize>, step: usize| {
        let end = whole.end;
        whole.step_by(step).map(move |first| first..(first + step).min(end))
    };
    cut(0..out, block).map(move |block| (block.clone(), cut(block, piece).collect()))
}

/// What a comparison of numbers found.
#[derive(Default)]
struct Found {
    distance: Distance,
    first: Option<(usize, f32, f32)>,
    /// Not even the signs of zeros differ.
    same_bits: bool,
}

/// Compares all numbers of two weights.
fn differences(a: Side<'_>, b: Side<'_>, buffers: &mut Buffers) -> Found {
    let (_, input) = a.weight.matrix();
    let (mut left, mut right) = (Values::new(a.model, a.weight), Values::new(b.model, b.weight));
    let mut found = Found { same_bits: true, ..Found::default() };
    for (block, pieces) in pieces(a.weight) {
        left.enter(block.clone());
        right.enter(block);
        for outs in pieces {
            let count = outs.len() * input;
            for (buffer, side) in [(&mut buffers.a, &left), (&mut buffers.b, &right)] {
                buffer.resize(buffer.len().max(count), 0.0);
                side.read(&outs, &mut buffer[..count]);
                side.release(&outs);
            }
            let (x, y) = (&buffers.a[..count], &buffers.b[..count]);
            let piece = distance(x, y);
            found.same_bits &= bytemuck::cast_slice::<f32, u32>(x) == bytemuck::cast_slice::<f32, u32>(y);
            if piece.differing > 0 && found.first.is_none() {
                let at = x.iter().zip(y).position(|(&x, &y)| !same(x, y));
                found.first = at.map(|at| (outs.start * input + at, x[at], y[at]));
            }
            found.distance.add(&piece);
        }
    }
    found
}

impl Found {
    fn report(&self, weight: &Weight) -> Difference {
        let Distance { differing, nonfinite, max_abs, max_rel, .. } = self.distance;
        let Distance { sum_sq_difference, sum_sq_a, sum_sq_b, sum_product, .. } = self.distance;
        let index = |at: usize| match weight.shape.as_slice() {
            [_, input] => vec![at / input, at % input],
            _ => vec![at],
        };
        Difference {
            elements: weight.numel(),
            differing,
            nonfinite,
            max_abs_error: max_abs,
            max_rel_error: max_rel,
            rel_rms_error: (sum_sq_difference / sum_sq_a).sqrt(),
            cosine: sum_product / (sum_sq_a.sqrt() * sum_sq_b.sqrt()),
            first: self.first.map(|(at, a, b)| Element { index: index(at), a, b }),
        }
    }
}
