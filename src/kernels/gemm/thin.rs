//! Products with a handful of rows, as single tokens and rarely chosen experts give them: bound by reading the weights once.
//!
//! Nothing is packed. One algorithm over arrays of 16 lanes, compiled once for each instruction set; sums are kept in a
//! small `[outputs][rows]` buffer per task and put in place at the end, which keeps this file free of shared mutable state.

use super::{Layout, Threads, View, ViewMut, Weight};
use rayon::prelude::*;

/// Most rows that go this way.
pub(super) const ROWS_MAX: usize = 8;

/// Rows computed together: each weight is widened once for all of them.
const GROUP: usize = 4;
/// Lanes of the arrays that the compiler turns into registers.
const LANES: usize = 16;
/// Outputs of a task for weights `[n, k]`.
const OUT_IN_COLS: usize = 32;
/// Outputs of a task for weights `[k, n]`; long enough for a row's piece to be several cache lines.
const IN_OUT_COLS: usize = 512;
/// Rows of `[k, n]` that are added to the sums in one pass.
const INPUTS: usize = 4;

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
        Isa::Portable => body::<W, { cfg!(target_arch = "aarch64") }>(x, w, layout, col, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `matmul_with` refuses the path where the instructions are missing.
        Isa::Avx2 => unsafe { body_avx2(x, w, layout, col, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { body_avx512(x, w, layout, col, out) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn body_avx2<W: Weight>(x: View<f32>, w: View<W>, layout: Layout, col: usize, out: &mut [f32]) {
    body::<W, true>(x, w, layout, col, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn body_avx512<W: Weight>(x: View<f32>, w: View<W>, layout: Layout, col: usize, out: &mut [f32]) {
    body::<W, true>(x, w, layout, col, out);
}

/// Outputs `col..` of all rows; `out` is `[rows][width]`.
#[inline(always)]
fn body<W: Weight, const FMA: bool>(x: View<f32>, w: View<W>, layout: Layout, col: usize, out: &mut [f32]) {
    let width = out.len() / x.rows();
    for (group, out) in out.chunks_mut(GROUP * width).enumerate() {
        let from = group * GROUP;
        let rows = out.len() / width;
        // A missing row repeats the first one; its sums are computed and dropped.
        let x: [&[f32]; GROUP] = std::array::from_fn(|i| x.row(from + if i < rows { i } else { 0 }));
        match (layout, rows) {
            (Layout::OutIn, 1) => dots::<W, 1, FMA>([x[0]], w, col, width, out),
            (Layout::OutIn, 2) => dots::<W, 2, FMA>([x[0], x[1]], w, col, width, out),
            (Layout::OutIn, _) => dots::<W, GROUP, FMA>(x, w, col, width, out),
            (Layout::InOut, 1) => sweep::<W, 1, FMA>([x[0]], w, col, width, out),
            (Layout::InOut, 2) => sweep::<W, 2, FMA>([x[0], x[1]], w, col, width, out),
            (Layout::InOut, _) => sweep::<W, GROUP, FMA>(x, w, col, width, out),
        }
    }
}

#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Sixteen numbers that the compiler keeps in registers: always passed and returned by value.
#[derive(Clone, Copy)]
struct Lanes([f32; LANES]);

impl Lanes {
    #[inline(always)]
    fn load<W: Weight>(from: &[W; LANES]) -> Self {
        Self(std::array::from_fn(|lane| from[lane].widen()))
    }

    /// `self * factor + sum`.
    #[inline(always)]
    fn multiply_add<const FMA: bool>(self, factor: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|lane| {
            multiply_add::<FMA>(self.0[lane], factor.0[lane], sum.0[lane])
        }))
    }
}

/// Weights `[n, k]`: one dot product for each output and row.
#[inline(always)]
fn dots<W: Weight, const M: usize, const FMA: bool>(
    x: [&[f32]; M],
    w: View<W>,
    col: usize,
    width: usize,
    out: &mut [f32],
) {
    let x_lanes: [&[[f32; LANES]]; M] = std::array::from_fn(|i| x[i][..w.cols()].as_chunks().0);
    for j in 0..width {
        let row = w.row(col + j);
        let (weights, rest) = row.as_chunks::<LANES>();
        let x_lanes = x_lanes.map(|lanes| &lanes[..weights.len()]);
        let mut sums = [Lanes([0.0; LANES]); M];
        for index in 0..weights.len() {
            let weights = Lanes::load(&weights[index]);
            for i in 0..M {
                sums[i] = Lanes::load(&x_lanes[i][index]).multiply_add::<FMA>(weights, sums[i]);
            }
        }
        for i in 0..out.len() / width {
            let tail = &x[i][row.len() - rest.len()..];
            let tail: f32 = tail.iter().zip(rest).map(|(x, w)| x * w.widen()).sum();
            out[i * width + j] = halves(sums[i].0) + tail;
        }
    }
}

/// The sum of the lanes, by halves.
#[inline(always)]
fn halves(lanes: [f32; LANES]) -> f32 {
    let by8: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let by4: [f32; 4] = std::array::from_fn(|i| by8[i] + by8[i + 4]);
    (by4[0] + by4[2]) + (by4[1] + by4[3])
}

/// Weights `[k, n]`: rows of weights, times one activation each, are added to the sums.
#[inline(always)]
fn sweep<W: Weight, const M: usize, const FMA: bool>(
    x: [&[f32]; M],
    w: View<W>,
    col: usize,
    width: usize,
    out: &mut [f32],
) {
    let mut sums = [[0.0f32; IN_OUT_COLS]; M];
    let whole = width / LANES * LANES;
    for from in (0..w.rows()).step_by(INPUTS) {
        if from + INPUTS <= w.rows() {
            let rows: [&[W]; INPUTS] = std::array::from_fn(|p| &w.row(from + p)[col..col + width]);
            let x: [[f32; INPUTS]; M] = std::array::from_fn(|i| std::array::from_fn(|p| x[i][from + p]));
            for start in (0..whole).step_by(LANES) {
                add_lanes::<W, M, FMA>(&x, &rows, start, &mut sums);
            }
            for j in whole..width {
                for (sums, x) in sums.iter_mut().zip(&x) {
                    for (x, row) in x.iter().zip(&rows) {
                        sums[j] += x * row[j].widen();
                    }
                }
            }
        } else {
            for p in from..w.rows() {
                for (sums, x) in sums.iter_mut().zip(&x) {
                    let row = &w.row(p)[col..col + width];
                    sums.iter_mut()
                        .zip(row)
                        .for_each(|(sum, weight)| *sum += x[p] * weight.widen());
                }
            }
        }
    }
    for (out, sums) in out.chunks_mut(width).zip(&sums) {
        out.copy_from_slice(&sums[..width]);
    }
}

/// Sixteen columns of four rows of weights, for every row of activations.
#[inline(always)]
fn add_lanes<W: Weight, const M: usize, const FMA: bool>(
    x: &[[f32; INPUTS]; M],
    rows: &[&[W]; INPUTS],
    start: usize,
    sums: &mut [[f32; IN_OUT_COLS]; M],
) {
    let weights: [Lanes; INPUTS] = std::array::from_fn(|p| match rows[p][start..].first_chunk() {
        Some(lanes) => Lanes::load(lanes),
        None => Lanes([0.0; LANES]),
    });
    for i in 0..M {
        let Some(out) = sums[i][start..].first_chunk_mut::<LANES>() else {
            return;
        };
        let mut sum = Lanes(*out);
        for p in 0..INPUTS {
            sum = Lanes([x[i][p]; LANES]).multiply_add::<FMA>(weights[p], sum);
        }
        *out = sum.0;
    }
}
