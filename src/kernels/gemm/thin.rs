//! Products with a handful of rows, as single tokens and rarely chosen experts give them: bound by reading the weights once.
//!
//! Nothing is packed. One algorithm over vectors of 16 lanes, compiled once for each instruction set; sums are kept in a
//! small `[outputs][rows]` buffer per task and put in place at the end, which keeps this file free of shared mutable state.

use super::{Layout, Threads, View, ViewMut, Weight};
use rayon::prelude::*;

/// Most rows that go this way.
pub(super) const ROWS_MAX: usize = 8;

/// Rows computed together: each weight is widened once for all of them.
const GROUP: usize = 4;
/// Elements of a vector.
const LANES: usize = 16;
/// Outputs of a task for weights `[n, k]`.
const OUT_IN_COLS: usize = 32;
/// Outputs of a task for weights `[k, n]`; long enough for a row's piece to be several cache lines.
const IN_OUT_COLS: usize = 512;
/// Rows of `[k, n]` that are added to the sums in one pass.
const INPUTS: usize = 4;

/// Sixteen floats in registers of some instruction set. Methods may only be called on machines that have it.
pub(super) trait Vector {
    type V: Copy;
    fn splat(value: f32) -> Self::V;
    fn load<W: Weight>(from: &[W; LANES]) -> Self::V;
    fn store(value: Self::V, to: &mut [f32; LANES]);
    /// `a * b + c`.
    fn multiply_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
}

/// Plain arrays.
struct Array;

impl Vector for Array {
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(value: f32) -> Self::V {
        [value; LANES]
    }

    #[inline(always)]
    fn load<W: Weight>(from: &[W; LANES]) -> Self::V {
        std::array::from_fn(|lane| from[lane].widen())
    }

    #[inline(always)]
    fn store(value: Self::V, to: &mut [f32; LANES]) {
        *to = value;
    }

    #[inline(always)]
    fn multiply_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
    }
}

/// What the loops are compiled for.
#[derive(Clone, Copy)]
pub(super) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// `y = x * W` for at most [`ROWS_MAX`] rows. The caller has checked that the machine has `isa`.
pub(super) fn run<W: Weight>(isa: Isa, threads: Threads, x: View<f32>, w: View<W>, layout: Layout, y: ViewMut<f32>) {
    let (rows, n) = (x.rows(), y.cols);
    let cols = match layout {
        Layout::OutIn => OUT_IN_COLS,
        Layout::InOut => IN_OUT_COLS,
    };
    // [row of x][output] within each task's piece; the last piece is shorter.
    let mut sums = vec![0.0f32; rows * n];
    let work = |(index, out): (usize, &mut [f32])| piece(isa, x, w, layout, index * cols, out);
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

fn piece<W: Weight>(isa: Isa, x: View<f32>, w: View<W>, layout: Layout, col: usize, out: &mut [f32]) {
    match isa {
        Isa::Portable => body::<Array, W>(x, w, layout, col, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `matmul_with` refuses the path where the instructions are missing.
        Isa::Avx2 => unsafe { super::avx2::thin(x, w, layout, col, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { super::avx512::thin(x, w, layout, col, out) },
    }
}

/// Outputs `col..` of all rows; `out` is `[rows][width]`.
#[inline(always)]
pub(super) fn body<S: Vector, W: Weight>(x: View<f32>, w: View<W>, layout: Layout, col: usize, out: &mut [f32]) {
    let width = out.len() / x.rows();
    for (group, out) in out.chunks_mut(GROUP * width).enumerate() {
        let from = group * GROUP;
        let rows = out.len() / width;
        // A missing row repeats the first one; its sums are computed and dropped.
        let x: [&[f32]; GROUP] = std::array::from_fn(|i| x.row(from + if i < rows { i } else { 0 }));
        match (layout, rows) {
            (Layout::OutIn, 1) => dots::<S, W, 1>([x[0]], w, col, width, out),
            (Layout::OutIn, 2) => dots::<S, W, 2>([x[0], x[1]], w, col, width, out),
            (Layout::OutIn, _) => dots::<S, W, GROUP>(x, w, col, width, out),
            (Layout::InOut, 1) => sweep::<S, W, 1>([x[0]], w, col, width, out),
            (Layout::InOut, 2) => sweep::<S, W, 2>([x[0], x[1]], w, col, width, out),
            (Layout::InOut, _) => sweep::<S, W, GROUP>(x, w, col, width, out),
        }
    }
}

/// Weights `[n, k]`: one dot product for each output and row.
#[inline(always)]
fn dots<S: Vector, W: Weight, const M: usize>(x: [&[f32]; M], w: View<W>, col: usize, width: usize, out: &mut [f32]) {
    for j in 0..width {
        let row = w.row(col + j);
        let (weights, rest) = row.as_chunks::<LANES>();
        let x_lanes: [&[[f32; LANES]]; M] = std::array::from_fn(|i| &x[i].as_chunks().0[..weights.len()]);
        let mut sums = [S::splat(0.0); M];
        for index in 0..weights.len() {
            let weights = S::load(&weights[index]);
            for i in 0..M {
                sums[i] = S::multiply_add(S::load(&x_lanes[i][index]), weights, sums[i]);
            }
        }
        for i in 0..out.len() / width {
            let tail = &x[i][row.len() - rest.len()..];
            let tail: f32 = tail.iter().zip(rest).map(|(x, w)| x * w.widen()).sum();
            out[i * width + j] = halves::<S>(sums[i]) + tail;
        }
    }
}

/// The sum of the lanes, by halves.
#[inline(always)]
fn halves<S: Vector>(sums: S::V) -> f32 {
    let mut lanes = [0.0f32; LANES];
    S::store(sums, &mut lanes);
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// Weights `[k, n]`: rows of weights, times one activation each, are added to the sums, four rows at a time.
#[inline(always)]
fn sweep<S: Vector, W: Weight, const M: usize>(x: [&[f32]; M], w: View<W>, col: usize, width: usize, out: &mut [f32]) {
    let mut sums = [[0.0f32; IN_OUT_COLS]; M];
    let (whole, inputs) = (width / LANES * LANES, w.rows() / INPUTS * INPUTS);
    for from in (0..inputs).step_by(INPUTS) {
        let rows: [&[W]; INPUTS] = std::array::from_fn(|p| &w.row(from + p)[col..col + width]);
        let rows: [&[[W; LANES]]; INPUTS] = rows.map(|row| &row.as_chunks().0[..whole / LANES]);
        let factors: [[S::V; INPUTS]; M] = std::array::from_fn(|i| std::array::from_fn(|p| S::splat(x[i][from + p])));
        for index in 0..whole / LANES {
            let weights: [S::V; INPUTS] = std::array::from_fn(|p| S::load(&rows[p][index]));
            for i in 0..M {
                let at = &mut sums[i].as_chunks_mut::<LANES>().0[index];
                let mut sum = S::load(at);
                for p in 0..INPUTS {
                    sum = S::multiply_add(factors[i][p], weights[p], sum);
                }
                S::store(sum, at);
            }
        }
    }
    // What the blocks of four rows and sixteen columns left: the last columns of those rows, and the last rows.
    for p in 0..w.rows() {
        let row = &w.row(p)[col..col + width];
        let start = if p < inputs { whole } else { 0 };
        for (sums, x) in sums.iter_mut().zip(&x) {
            sums[start..]
                .iter_mut()
                .zip(&row[start..])
                .for_each(|(sum, weight)| *sum += x[p] * weight.widen());
        }
    }
    for (out, sums) in out.chunks_mut(width).zip(&sums) {
        out.copy_from_slice(&sums[..width]);
    }
}
