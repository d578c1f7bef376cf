//! Products with a handful of rows, as single tokens and rarely chosen experts give them: bound by reading the weights once.
//!
//! Nothing is packed. Sixteen outputs at a time are the lanes of a vector, so that each is the same chain of fused
//! multiply-adds over the inputs, in blocks of [`K_BLOCK`], as in the blocked product: how many rows come in one call does
//! not show in the result. Sums are kept in a small `[rows][outputs]` buffer per task and put in place at the end, which
//! keeps this file free of shared mutable state.

use super::{K_BLOCK, Kind, Layout, Threads, View, ViewMut, Weight};
use crate::kernels::{Isa, Kernel, LANES, Simd, dispatch, pinned};
use rayon::prelude::*;

/// Most rows that go this way: where packing the weights begins to pay (measured on 5120 x 8192).
pub(super) fn rows_max(layout: Layout) -> usize {
    match layout {
        Layout::OutIn => 2 * GROUP,
        Layout::InOut => GROUP,
    }
}

/// Rows computed together: each weight is widened once for all of them.
const GROUP: usize = 8;
/// Outputs of a task for weights `[n, k]`.
const OUT_IN_COLS: usize = 32;
/// Outputs of a task for weights `[k, n]`; long enough for a row's piece to be several cache lines.
const IN_OUT_COLS: usize = 512;
/// Rows of `[k, n]` that are added to the sums in one pass.
const INPUTS: usize = 4;

/// `y = x * W` for a few rows. The machine has `isa`.
pub(super) fn run<W: Weight>(isa: Isa, threads: Threads, x: View<f32>, w: View<W>, layout: Layout, y: ViewMut<f32>) {
    let (rows, n) = (x.rows(), y.cols);
    let cols = match layout {
        Layout::OutIn => OUT_IN_COLS,
        Layout::InOut => IN_OUT_COLS,
    };
    // [row of x][output] within each task's piece; the last piece is shorter.
    let mut sums = vec![0.0f32; rows * n];
    let work = |(index, out): (usize, &mut [f32])| {
        pinned(isa, || dispatch(Piece { x, w, layout, col: index * cols, out }));
    };
    match threads {
        Threads::One => sums.chunks_mut(rows * cols).enumerate().for_each(work),
        Threads::Pool => sums.par_chunks_mut(rows * cols).enumerate().for_each(work),
    }
    for (index, piece) in sums.chunks(rows * cols).enumerate() {
        let width = piece.len() / rows;
        for (i, sums) in piece.chunks(width).enumerate() {
            let start = i * y.stride + index * cols;
            y.data[start..start + width].copy_from_slice(sums);
        }
    }
}

/// Outputs `col..` of all rows; `out` is `[rows][width]`.
struct Piece<'a, W> {
    x: View<'a, f32>,
    w: View<'a, W>,
    layout: Layout,
    col: usize,
    out: &'a mut [f32],
}

impl<W: Weight> Kernel for Piece<'_, W> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.out.len() / self.x.rows();
        for (group, out) in self.out.chunks_mut(GROUP * width).enumerate() {
            let x = self.x.row_range(group * GROUP, (group * GROUP + GROUP).min(self.x.rows()));
            match x.rows() {
                1 => rows::<S, W, 1>(s, x, self.w, self.layout, self.col, out),
                2 => rows::<S, W, 2>(s, x, self.w, self.layout, self.col, out),
                3..=4 => rows::<S, W, 4>(s, x, self.w, self.layout, self.col, out),
                _ => rows::<S, W, GROUP>(s, x, self.w, self.layout, self.col, out),
            }
        }
    }
}

/// `M` rows; those that `x` lacks repeat its first, and their sums are computed and dropped.
#[inline(always)]
fn rows<S: Simd, W: Weight, const M: usize>(
    s: S,
    x: View<f32>,
    w: View<W>,
    layout: Layout,
    col: usize,
    out: &mut [f32],
) {
    let width = out.len() / x.rows();
    let mut rows = [x.row(0); M];
    for (i, row) in rows.iter_mut().enumerate().take(x.rows()) {
        *row = x.row(i);
    }
    match layout {
        Layout::OutIn => {
            for first in (0..width).step_by(LANES) {
                dots::<S, W, M>(s, rows, w, col, (first, width), out);
            }
        }
        Layout::InOut => sweep::<S, W, M>(s, rows, w, col, width, out),
    }
}

/// Sixteen neighbouring weights, or as many as there are and then zeros.
#[inline(always)]
fn load<S: Simd, W: Weight>(s: S, from: &[W]) -> S::F {
    const WHY: &str = "sixteen elements of the type that `KIND` names";
    if from.len() < LANES {
        let mut lanes = [0.0; LANES];
        for (lane, value) in lanes.iter_mut().zip(from) {
            *lane = value.widen();
        }
        return s.load(&lanes);
    }
    let bytes = bytemuck::cast_slice::<W, u8>(&from[..LANES]);
    match W::KIND {
        Kind::Bf16 => s.load_bf16(bytes.try_into().expect(WHY)),
        Kind::F16 => s.load_f16(bytes.try_into().expect(WHY)),
        Kind::F32 => s.load_f32(bytes.try_into().expect(WHY)),
    }
}

/// Weights `[n, k]`: squares of sixteen outputs by sixteen inputs are transposed, so that a vector is one input's.
#[inline(always)]
fn dots<S: Simd, W: Weight, const M: usize>(
    s: S,
    x: [&[f32]; M],
    w: View<W>,
    col: usize,
    (first, width): (usize, usize),
    out: &mut [f32],
) {
    let (k, live) = (w.cols(), LANES.min(width - first));
    // Past the last output its row is read again, and the sums are dropped.
    let mut rows = [w.row(col + first); LANES];
    for (j, row) in rows.iter_mut().enumerate() {
        *row = w.row(col + first + j.min(live - 1));
    }
    let mut totals = [s.splat(0.0); M];
    for from in (0..k).step_by(K_BLOCK) {
        let mut sums = [s.splat(0.0); M];
        let end = k.min(from + K_BLOCK);
        for at in (from..end).step_by(LANES) {
            let n = LANES.min(end - at);
            let mut square = [s.isplat(0); LANES];
            for j in 0..LANES {
                square[j] = s.bits(load(s, &rows[j][at..at + n]));
            }
            let square = s.transpose(square);
            for (p, &weights) in square.iter().enumerate().take(n) {
                let weights = s.floats(weights);
                for i in 0..M {
                    sums[i] = s.fma(s.splat(x[i][at + p]), weights, sums[i]);
                }
            }
        }
        for i in 0..M {
            totals[i] = if from == 0 { sums[i] } else { s.add(totals[i], sums[i]) };
        }
    }
    for (i, out) in out.chunks_exact_mut(width).enumerate() {
        let mut lanes = [0.0; LANES];
        s.store(totals[i], &mut lanes);
        out[first..first + live].copy_from_slice(&lanes[..live]);
    }
}

/// Weights `[k, n]`: rows of weights, times one activation each, are added to the sums, four rows at a time.
#[inline(always)]
fn sweep<S: Simd, W: Weight, const M: usize>(
    s: S,
    x: [&[f32]; M],
    w: View<W>,
    col: usize,
    width: usize,
    out: &mut [f32],
) {
    let k = w.rows();
    for from in (0..k).step_by(K_BLOCK) {
        let mut sums = [[0.0f32; IN_OUT_COLS]; M];
        let end = k.min(from + K_BLOCK);
        let whole = from + (end - from) / INPUTS * INPUTS;
        for p in (from..whole).step_by(INPUTS) {
            inputs::<S, W, M, INPUTS>(s, x, w, p, (col, width), &mut sums);
        }
        for p in whole..end {
            inputs::<S, W, M, 1>(s, x, w, p, (col, width), &mut sums);
        }
        for (out, sums) in out.chunks_exact_mut(width).zip(&sums) {
            if from == 0 {
                out.copy_from_slice(&sums[..width]);
            } else {
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            }
        }
    }
}

/// Adds the inputs `from..from + P` to the sums, one after another.
#[inline(always)]
fn inputs<S: Simd, W: Weight, const M: usize, const P: usize>(
    s: S,
    x: [&[f32]; M],
    w: View<W>,
    from: usize,
    (col, width): (usize, usize),
    sums: &mut [[f32; IN_OUT_COLS]; M],
) {
    let mut rows = [&w.row(from)[col..col + width]; P];
    let mut factors = [[s.splat(0.0); P]; M];
    for p in 0..P {
        rows[p] = &w.row(from + p)[col..col + width];
        for i in 0..M {
            factors[i][p] = s.splat(x[i][from + p]);
        }
    }
    for at in (0..width).step_by(LANES) {
        let n = LANES.min(width - at);
        let mut weights = [s.splat(0.0); P];
        for p in 0..P {
            weights[p] = load(s, &rows[p][at..at + n]);
        }
        for i in 0..M {
            let sixteen = &mut sums[i].as_chunks_mut::<LANES>().0[at / LANES];
            let mut sum = s.load(sixteen);
            for p in 0..P {
                sum = s.fma(factors[i][p], weights[p], sum);
            }
            s.store(sum, sixteen);
        }
    }
}
