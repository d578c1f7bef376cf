//! Scales chosen by the error that matters: squared, and weighted with an importance for each input.
//!
//! The format's relative precision is the same at every size, so a scale matters only through where weights fall between
//! the steps of the octave: candidates are the eighths of an octave upwards, none of which saturates.

use half::bf16;

use super::encode::encode;
use super::scale;
use crate::kernels::{Kernel, LANES, Lanes, Simd, dispatch};
use crate::quant::tally::{CHUNK, Sums, Tally, Unit};
use crate::quant::{Block, int4};

/// Scales that are tried; the first is round-to-nearest's.
const CANDIDATES: usize = 8;

/// Inputs that are loaded together.
const TOGETHER: usize = 4 * CHUNK;

/// A search for the scales of a matrix, which sees its inputs stripe by stripe.
#[derive(Debug)]
pub struct ScaleSearch {
    /// For each input, relative to the largest.
    importance: Vec<f32>,
    tiles: Vec<Tile>,
    outs: usize,
}

/// Sixteen outputs: the scales that are tried, and their weighted squared errors relative to the square of the first one's power
/// of two; and round-to-nearest's plain squared errors.
#[derive(Clone, Debug)]
struct Tile {
    grid: [[f32; LANES]; CANDIDATES],
    errors: [[f64; LANES]; CANDIDATES],
    rtn: [f64; LANES],
}

impl ScaleSearch {
    /// Begins with the largest magnitude that each output's scale is for, and an importance of each input, such as its mean
    /// square.
    ///
    /// # Panics
    ///
    /// An importance is negative or not finite.
    pub fn new(amax: &[f32], importance: &[f32]) -> Self {
        let importance = int4::relative(importance, importance.len(), importance.len().max(1));
        let tile = |amax: &[f32]| {
            let mut tile =
                Tile { grid: [[1.0; LANES]; CANDIDATES], errors: [[0.0; LANES]; CANDIDATES], rtn: [0.0; LANES] };
            for (c, grid) in tile.grid.iter_mut().enumerate() {
                for (scale_of, &amax) in grid.iter_mut().zip(amax) {
                    let larger = amax * 2.0f32.powf(c as f32 / CANDIDATES as f32);
                    *scale_of = scale(if larger.is_finite() { larger } else { amax }).to_f32();
                }
            }
            tile
        };
        Self { importance, tiles: amax.chunks(LANES).map(tile).collect(), outs: amax.len() }
    }

    /// Bytes that a search over so many outputs and inputs takes.
    pub fn bytes(outs: usize, ins: usize) -> u64 {
        (outs.div_ceil(LANES) * size_of::<Tile>() + ins * size_of::<f32>()) as u64
    }

    /// Measures the outputs of `block`, which are those from `outs` on, over its inputs, which are those from `ins` on. Inputs
    /// come in order, in stripes as for quantizing.
    ///
    /// # Panics
    ///
    /// There are fewer outputs or inputs, or `outs` is no multiple of sixteen.
    pub fn add(&mut self, block: &Block<'_>, (outs, ins): (usize, usize)) {
        assert!(outs.is_multiple_of(LANES) && outs + block.outs() <= self.outs, "outputs of the search");
        let importance = &self.importance[ins..ins + block.ins()];
        let mut panel = vec![Lanes::ZERO; TOGETHER];
        let tiles = &mut self.tiles[outs / LANES..];
        for (first, tile) in (0..block.outs()).step_by(LANES).zip(tiles) {
            for from in (0..block.ins()).step_by(TOGETHER) {
                let n = TOGETHER.min(block.ins() - from);
                block.tiles(first, (from, n), TOGETHER, &mut panel);
                dispatch(Measure { rows: &panel[..n], importance: &importance[from..from + n], tile });
            }
        }
    }

    /// For each output the scale with the least weighted error, never worse than [`scale`] of its largest magnitude.
    ///
    /// # Panics
    ///
    /// There is not one scale per output.
    pub fn channels(&self, scales: &mut [bf16]) {
        assert_eq!(scales.len(), self.outs, "scales per output");
        for (out, scale) in scales.iter_mut().enumerate() {
            let (tile, lane) = (&self.tiles[out / LANES], out % LANES);
            *scale = bf16::from_f32(tile.grid[best(|c| tile.errors[c][lane])][lane]);
        }
    }

    /// The one scale that is best for all outputs together, if all began with the same largest magnitude.
    pub fn tensor(&self) -> bf16 {
        let Some(first) = self.tiles.first() else { return scale(0.0) };
        let sum = |c: usize| self.tiles.iter().flat_map(|tile| tile.errors[c]).sum::<f64>();
        bf16::from_f32(first.grid[best(sum)][0])
    }

    /// What [`scale`] of the largest magnitudes would have cost, as a plain squared error.
    pub fn error_rtn(&self) -> f64 {
        self.tiles.iter().flat_map(|tile| tile.rtn).sum()
    }
}

/// The candidate with the least error; of equal ones the first.
fn best(error: impl Fn(usize) -> f64) -> usize {
    (1..CANDIDATES).fold(0, |best, c| if error(c) < error(best) { c } else { best })
}

/// Adds the errors of some inputs of sixteen outputs, for every candidate.
struct Measure<'a> {
    rows: &'a [Lanes],
    importance: &'a [f32],
    tile: &'a mut Tile,
}

impl Kernel for Measure<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Tile { grid, errors, rtn } = self.tile;
        let unit = Unit::of(s, s.load(&grid[0]));
        for (c, (grid, errors)) in grid.iter().zip(errors).enumerate() {
            let scale = s.load(grid);
            for (rows, importance) in self.rows.chunks(CHUNK).zip(self.importance.chunks(CHUNK)) {
                let (mut sum, mut plain) = (s.splat(0.0), Sums::new(s));
                for (row, &weight) in rows.iter().zip(importance) {
                    let w = s.load(&row.0);
                    let sign = s.iand(s.bits(w), s.isplat(0x8000_0000));
                    let (_, value) = encode(s, s.div(s.abs(w), scale), sign);
                    let value = s.round_bf16(s.mul(value, scale));
                    let error = s.mul(s.sub(w, value), unit.down);
                    sum = s.fma(s.mul(error, s.splat(weight)), error, sum);
                    if c == 0 {
                        plain.add(s, w, value, &unit);
                    }
                }
                if c == 0 {
                    let mut tally = Tally::ZERO;
                    plain.fold(s, &mut tally);
                    rtn.iter_mut().zip(tally.scaled(&unit).error).for_each(|(sum, error)| *sum += error);
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
