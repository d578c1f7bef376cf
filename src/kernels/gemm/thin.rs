//! Products with a handful of rows, as single tokens and rarely chosen experts give them: bound by reading the weights once.
//!
//! Nothing is packed. One algorithm over vectors of 16 lanes, compiled once for each instruction set; sums are kept in a
//! small `[outputs][rows]` buffer per task and put in place at the end, which keeps this file free of shared mutable state.

use super::{Layout, Threads, View, ViewMut, Weight};
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
    /// Whether there are registers for the sums of several outputs at once (32 of them, not 16).
    const MANY: bool;
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
    const MANY: bool = false;
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

/// `y = x * W` for a few rows. The caller has checked that the machine has `isa`.
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
        let x = x.row_range(group * GROUP, (group * GROUP + GROUP).min(x.rows()));
        match (x.rows(), S::MANY) {
            (1, false) => rows::<S, W, 1, 1>(x, w, layout, col, out),
            (2, false) => rows::<S, W, 2, 1>(x, w, layout, col, out),
            (3..=4, false) => rows::<S, W, 4, 1>(x, w, layout, col, out),
            (_, false) => rows::<S, W, GROUP, 1>(x, w, layout, col, out),
            (1, true) => rows::<S, W, 1, 4>(x, w, layout, col, out),
            (2, true) => rows::<S, W, 2, 4>(x, w, layout, col, out),
            (3..=4, true) => rows::<S, W, 4, 4>(x, w, layout, col, out),
            (_, true) => rows::<S, W, GROUP, 2>(x, w, layout, col, out),
        }
    }
}

/// `M` rows; those that `x` lacks repeat its first, and their sums are computed and dropped. For `[n, k]`, `J` outputs are
/// computed together, so that activations are loaded once for all of them.
#[inline(always)]
fn rows<S: Vector, W: Weight, const M: usize, const J: usize>(
    x: View<f32>,
    w: View<W>,
    layout: Layout,
    col: usize,
    out: &mut [f32],
) {
    let width = out.len() / x.rows();
    let rows: [&[f32]; M] = std::array::from_fn(|i| x.row(if i < x.rows() { i } else { 0 }));
    match layout {
        Layout::OutIn => {
            for j in (0..width).step_by(J) {
                dots::<S, W, M, J>(rows, w, col, j, width, out);
            }
        }
        Layout::InOut => sweep::<S, W, M>(rows, w, col, width, out),
    }
}

/// Weights `[n, k]`: the dot products of `J` outputs, or as many as are left, with every row.
#[inline(always)]
fn dots<S: Vector, W: Weight, const M: usize, const J: usize>(
    x: [&[f32]; M],
    w: View<W>,
    col: usize,
    first: usize,
    width: usize,
    out: &mut [f32],
) {
    // Past the last output its row is read again, and the sums are dropped.
    let rows: [&[W]; J] = std::array::from_fn(|j| w.row(col + (first + j).min(width - 1)));
    let steps = w.cols() / LANES;
    let x_lanes: [&[[f32; LANES]]; M] = std::array::from_fn(|i| &x[i].as_chunks().0[..steps]);
    let w_lanes: [&[[W; LANES]]; J] = std::array::from_fn(|j| &rows[j].as_chunks().0[..steps]);
    let mut sums = [[S::splat(0.0); M]; J];
    for index in 0..steps {
        let weights: [S::V; J] = std::array::from_fn(|j| S::load(&w_lanes[j][index]));
        for i in 0..M {
            let x = S::load(&x_lanes[i][index]);
            for j in 0..J {
                sums[j][i] = S::multiply_add(x, weights[j], sums[j][i]);
            }
        }
    }
    for j in 0..J.min(width - first) {
        for i in 0..out.len() / width {
            let tail = x[i][steps * LANES..].iter().zip(&rows[j][steps * LANES..]);
            let tail: f32 = tail.map(|(x, w)| x * w.widen()).sum();
            out[i * width + first + j] = halves::<S>(sums[j][i]) + tail;
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
#[allow(clippy::needless_range_loop, reason = "one index runs through several slices")]
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
            sums[start..].iter_mut().zip(&row[start..]).for_each(|(sum, weight)| *sum += x[p] * weight.widen());
        }
    }
    for (out, sums) in out.chunks_mut(width).zip(&sums) {
        out.copy_from_slice(&sums[..width]);
    }
}
