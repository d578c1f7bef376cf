//! Encoding, sixteen blocks at a time: one block in each lane.
//!
//! A sum over a block is then formed in each lane in the order of its values, as the specification (`reference`) forms it,
//! and the bytes are the same. Blocks are transposed into lanes and back, sixteen by sixteen words.

mod affine;
mod pack;
mod round;
mod scales;
mod simple;
mod symmetric;

mod iq4;
mod k4;
mod q2;
mod q3;
mod q6;

use std::array::from_fn;

use round::{ROUNDER, any_zero, bounded, byte, mask_lt};

use crate::dtype::Dtype;
use crate::kernels::{Kernel, LANES, Lanes, Simd, Words, dispatch};

/// Sixteen blocks as rows of lanes: row `i` has value `i` of each.
struct Tile<'a> {
    x: &'a [Lanes],
    /// The importance of each value, and the mean square of the whole row that a block is in.
    importance: Option<(&'a [Lanes], &'a Lanes)>,
}

/// A block format, or a few that differ in numbers.
trait Format: Copy {
    /// Values of a block.
    const LEN: usize;

    /// Bytes of a block.
    fn bytes(self) -> usize;

    /// Whether the mean square of rows is needed where there is importance.
    fn needs_spread(self) -> bool {
        false
    }

    /// Encodes sixteen blocks, one after the other into `blocks`.
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]);
}

/// As [`super::encode`].
pub(super) fn encode(dtype: Dtype, rows: &[f32], row_len: usize, importance: Option<&[f32]>, blocks: &mut [u8]) {
    use Dtype::*;
    let job = Job { rows, row_len, importance };
    match dtype {
        Q4_0 => job.run(simple::Symmetric { levels: 8 }, blocks),
        Q5_0 => job.run(simple::Symmetric { levels: 16 }, blocks),
        Q4_1 => job.run(simple::Affine { levels: 15 }, blocks),
        Q5_1 => job.run(simple::Affine { levels: 31 }, blocks),
        Q8_0 => job.run(simple::Q8, blocks),
        MXFP4 => job.run(simple::Mxfp4, blocks),
        Q2_K => job.run(q2::Q2, blocks),
        Q3_K => job.run(q3::Q3, blocks),
        Q4_K => job.run(k4::K4 { levels: 15 }, blocks),
        Q5_K => job.run(k4::K4 { levels: 31 }, blocks),
        Q6_K => job.run(q6::Q6, blocks),
        IQ4_NL => job.run(iq4::Nl, blocks),
        IQ4_XS => job.run(iq4::Xs, blocks),
        _ => panic!("{dtype} is no block format that is encoded"),
    }
}

/// What is encoded.
#[derive(Clone, Copy)]
struct Job<'a> {
    rows: &'a [f32],
    row_len: usize,
    importance: Option<&'a [f32]>,
}

impl Job<'_> {
    fn run<F: Format>(self, format: F, blocks: &mut [u8]) {
        let spreads = match self.importance {
            Some(_) if format.needs_spread() => dispatch(MeanSquares { rows: self.rows, row_len: self.row_len }),
            _ => Vec::new(),
        };
        dispatch(Encode { job: self, format, spreads: &spreads, blocks });
    }
}

/// The loop over batches of sixteen blocks.
struct Encode<'a, F> {
    job: Job<'a>,
    format: F,
    spreads: &'a [f32],
    blocks: &'a mut [u8],
}

impl<F: Format> Kernel for Encode<'_, F> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Job { rows, row_len, importance } = self.job;
        let (per_row, bytes) = (row_len / F::LEN, self.format.bytes());
        let mut x = vec![Lanes::ZERO; F::LEN];
        let mut weights = vec![Lanes::ZERO; if importance.is_some() { F::LEN } else { 0 }];
        let mut last = vec![0; LANES * bytes];
        let batches = rows.chunks(LANES * F::LEN).zip(self.blocks.chunks_mut(LANES * bytes));
        for (batch, (values, blocks)) in batches.enumerate() {
            let count = values.len() / F::LEN;
            load(s, from_fn(|lane| values.get(lane * F::LEN..).unwrap_or_default()), &mut x);
            let mut spread = Lanes::ZERO;
            if let Some(importance) = importance {
                let block = |lane: usize| LANES * batch + lane;
                load(s, from_fn(|lane| &importance[block(lane) % per_row * F::LEN..]), &mut weights);
                if self.format.needs_spread() {
                    spread.0 = from_fn(|lane| if lane < count { self.spreads[block(lane) / per_row] } else { 0.0 });
                }
            }
            let tile = Tile { x: &x, importance: importance.map(|_| (&weights[..], &spread)) };
            if count == LANES {
                self.format.encode(s, &tile, blocks);
            } else {
                self.format.encode(s, &tile, &mut last);
                blocks.copy_from_slice(&last[..blocks.len()]);
            }
        }
    }
}

/// The mean square of every row, each summed in its order.
struct MeanSquares<'a> {
    rows: &'a [f32],
    row_len: usize,
}

impl Kernel for MeanSquares<'_> {
    type Out = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut means = Vec::with_capacity(self.rows.len() / self.row_len + LANES);
        let mut x = [Lanes::ZERO; 32];
        for rows in self.rows.chunks(LANES * self.row_len) {
            let mut sum = s.splat(0.0);
            for at in (0..self.row_len).step_by(x.len()) {
                load(s, from_fn(|lane| rows.get(lane * self.row_len + at..).unwrap_or_default()), &mut x);
                for x in &x {
                    let x = s.load(&x.0);
                    sum = s.add(sum, s.mul(x, x));
                }
            }
            let mut lanes = [0.0; LANES];
            s.store(s.div(sum, s.splat(self.row_len as f32)), &mut lanes);
            means.extend(lanes);
        }
        means
    }
}

/// Transposes the beginnings of sixteen slices into rows of lanes; an empty slice is zeros.
#[inline(always)]
fn load<S: Simd>(s: S, from: [&[f32]; LANES], to: &mut [Lanes]) {
    for (i, to) in to.chunks_exact_mut(LANES).enumerate() {
        let mut square = [s.isplat(0); LANES];
        for (row, from) in square.iter_mut().zip(from) {
            if let Some(sixteen) = from.get(LANES * i..).and_then(|from| from.first_chunk()) {
                *row = s.bits(s.load(sixteen));
            }
        }
        for (to, column) in to.iter_mut().zip(s.transpose(square)) {
            s.store(s.floats(column), &mut to.0);
        }
    }
}

/// `sum(x x)` in the order of the values.
#[inline(always)]
fn square_sum<S: Simd>(s: S, x: &[Lanes]) -> S::F {
    let mut sum = s.splat(0.0);
    for x in x {
        let x = s.load(&x.0);
        sum = s.add(sum, s.mul(x, x));
    }
    sum
}

/// How much each value counts: its importance, more for larger values.
#[inline(always)]
fn weigh<S: Simd>(s: S, x: &[Lanes], importance: &[Lanes], spread: S::F, weights: &mut [Lanes]) {
    for ((weight, x), importance) in weights.iter_mut().zip(x).zip(importance) {
        let x = s.load(&x.0);
        let root = s.sqrt(s.add(spread, s.mul(x, x)));
        s.store(s.mul(s.load(&importance.0), root), &mut weight.0);
    }
}

/// Codes again, `(x + base) / step`, bounded and counted from the lower bound; where the step is zero they stay.
#[inline(always)]
fn again<S: Simd>(s: S, x: &[Lanes], step: S::F, base: S::F, (low, high): (i32, i32), codes: &mut [Words]) {
    let (least, most) = (s.splat(ROUNDER + low as f32), s.splat(ROUNDER + high as f32));
    let offset = s.splat(-low as f32);
    let stay = if any_zero(s, step) { mask_lt(s, s.abs(step), s.splat(f32::from_bits(1))) } else { s.isplat(0) };
    let go = s.isub(s.isplat(u32::MAX), stay);
    for (x, code) in x.iter().zip(codes) {
        let q = bounded(s, s.div(s.add(s.load(&x.0), base), step), least, most);
        let new = s.iand(byte(s, s.add(q, offset)), go);
        s.istore(s.ior(new, s.iand(s.iload(&code.0), stay)), &mut code.0);
    }
}
