//! Scales per output chosen by the error that matters: squared, and weighted with an importance for each input.
//!
//! The format's relative precision is the same at every size, so a scale matters only through where weights fall between
//! the steps of the octave: candidates are the eighths of an octave upwards, none of which saturates.

use half::bf16;

use super::encode::encode;
use super::scale;
use crate::kernels::{Kernel, LANES, Lanes, Simd, dispatch};
use crate::quant::tally::{CHUNK, Unit};
use crate::quant::{Block, int4};

/// Scales that are tried; the first is round-to-nearest's.
const CANDIDATES: usize = 8;

/// Inputs that are loaded together.
const TOGETHER: usize = 4 * CHUNK;

/// Chooses a scale for each output of `block`, which holds all inputs of its outputs: the one with the least squared error
/// weighted with `importance` (a value per input, such as its mean square), never worse than [`scale`] of `amax[out]`.
///
/// # Panics
///
/// A slice does not have the size of the block, or an importance is negative or not finite.
pub fn search_channel(block: &Block<'_>, importance: &[f32], amax: &[f32], scales: &mut [bf16]) {
    assert!(amax.len() == block.outs() && scales.len() == block.outs(), "largest magnitudes and scales per output");
    let importance = int4::relative(importance, block.ins(), block.ins().max(1));
    let mut panel = vec![Lanes::ZERO; TOGETHER];
    for first in (0..block.outs()).step_by(LANES) {
        let lanes = LANES.min(block.outs() - first);
        let mut grid = [[1.0f32; LANES]; CANDIDATES];
        for (c, grid) in grid.iter_mut().enumerate() {
            for (scale_of, &amax) in grid.iter_mut().zip(&amax[first..first + lanes]) {
                let larger = amax * 2.0f32.powf(c as f32 / CANDIDATES as f32);
                *scale_of = scale(if larger.is_finite() { larger } else { amax }).to_f32();
            }
        }
        let mut errors = [[0.0f64; LANES]; CANDIDATES];
        for from in (0..block.ins()).step_by(TOGETHER) {
            let n = TOGETHER.min(block.ins() - from);
            block.tiles(first, (from, n), TOGETHER, &mut panel);
            let importance = &importance[from..from + n];
            dispatch(Measure { rows: &panel[..n], importance, grid: &grid, errors: &mut errors });
        }
        for lane in 0..lanes {
            let mut best = 0;
            for c in 1..CANDIDATES {
                if errors[c][lane] < errors[best][lane] {
                    best = c;
                }
            }
            scales[first + lane] = bf16::from_f32(grid[best][lane]);
        }
    }
}

/// Adds the weighted squared errors of some inputs of sixteen outputs, for every candidate, relative to the square of the
/// first candidate's power of two.
struct Measure<'a> {
    rows: &'a [Lanes],
    importance: &'a [f32],
    grid: &'a [[f32; LANES]; CANDIDATES],
    errors: &'a mut [[f64; LANES]; CANDIDATES],
}

impl Kernel for Measure<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let unit = Unit::of(s, s.load(&self.grid[0]));
        for (grid, errors) in self.grid.iter().zip(self.errors) {
            let scale = s.load(grid);
            for (rows, importance) in self.rows.chunks(CHUNK).zip(self.importance.chunks(CHUNK)) {
                let mut sum = s.splat(0.0);
                for (row, &weight) in rows.iter().zip(importance) {
                    let w = s.load(&row.0);
                    let sign = s.iand(s.bits(w), s.isplat(0x8000_0000));
                    let (_, value) = encode(s, s.div(s.abs(w), scale), sign);
                    let error = s.mul(s.sub(w, s.round_bf16(s.mul(value, scale))), unit.down);
                    sum = s.fma(s.mul(error, s.splat(weight)), error, sum);
                }
                let mut sixteen = [0.0; LANES];
                s.store(sum, &mut sixteen);
                for lane in 0..LANES {
                    errors[lane] += f64::from(sixteen[lane]);
                }
            }
        }
    }
}
