//! Rows of a matrix quantized to INT4 by GPTQ.
//!
//! Sixteen outputs are the lanes of a vector. A piece of outputs is held transposed, `[inputs, outputs]`, with inputs in
//! the factor's order, so that columns of the weight are contiguous and the block update is one product.

use half::bf16;

use super::Factor;
use crate::dtype::int4::{PER_WORD, words};
use crate::kernels::gemm::{Layout, Left, Threads, Update, View, ViewMut, update};
use crate::kernels::{Kernel, LANES, Lanes, Simd, Words, dispatch};
use crate::quant::int4::group::{Chosen, choose, code};
use crate::quant::int4::{Int4Out, check, put_words, unit_inputs};
use crate::quant::tally::{CHUNK, Sums, Tally, Unit};
use crate::quant::{Block, ErrorRows, NonFinite};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Inputs that share a scale; it divides the inputs.
    pub group_size: usize,
    /// Whether zero points are all 0.
    pub symmetric: bool,
}

/// Inputs that are rounded before what they cost reaches the inputs beyond them.
const BLOCK: usize = 128;

/// Outputs of a piece; [`quantize_int4`] is fastest on stripes of a multiple of it.
pub const PIECE: usize = 512;

/// Vectors that are loaded together, about.
const PANEL: usize = 4096;

/// Bytes that one call of [`quantize_int4`] takes besides its arguments.
pub fn working_bytes(inputs: usize) -> u64 {
    // Weights and codes of a piece, scales of groups of eight at worst; errors of a block; panels; and the
    // product's packed operands, at most 1024 inputs of a block on the left and 256 outputs on the right.
    let inputs = inputs as u64;
    PIECE as u64 * (inputs * 6 + BLOCK as u64 * 4) + inputs * 64 + (1024 + 256) * BLOCK as u64 * 4 + (1 << 20)
}

/// Quantizes all inputs of some outputs of a matrix, on the calling thread: `block` is `[outs, inputs]`.
///
/// `weighted[out]` becomes the output's squared error weighted by the second moments (relative to their mean, and damped):
/// `(w - v) H (w - v)ᵀ`. `out` and `sums` are as for [`int4::quantize`](crate::quant::int4::quantize). Outputs may be
/// divided over calls and threads in any way.
///
/// # Errors
///
/// A weight is not finite, or too large for its quantized form to be. What the results then hold is unspecified.
///
/// # Panics
///
/// The factor is for another number of inputs, the group size does not divide them, or a slice is too short.
pub fn quantize_int4(
    block: &Block<'_>,
    factor: &Factor,
    params: &Params,
    mut out: Int4Out<'_>,
    mut sums: ErrorRows<'_>,
    weighted: &mut [f64],
) -> Result<(), NonFinite> {
    assert_eq!(block.ins(), factor.inputs(), "inputs of the matrix and of the factor");
    assert_eq!(weighted.len(), block.outs(), "weighted errors per output");
    check(block, params.group_size, params.symmetric, &out, &sums);
    if block.ins() == 0 {
        weighted.fill(0.0);
        return Ok(());
    }
    for first in (0..block.outs()).step_by(PIECE) {
        let outs = PIECE.min(block.outs() - first);
        let mut piece = Piece::new(block, factor, params, (first, outs));
        piece.load(&mut sums)?;
        piece.solve();
        weighted[first..first + outs].copy_from_slice(&piece.costs[..outs]);
        piece.finish(&mut out, &mut sums)?;
    }
    Ok(())
}

/// Some outputs, while they are worked on. Arrays are `[.., stride]`, outputs side by side.
struct Piece<'a> {
    block: &'a Block<'a>,
    factor: &'a Factor,
    params: &'a Params,
    first: usize,
    outs: usize,
    /// Outputs, rounded up to whole vectors.
    stride: usize,
    /// The row of the factor that each input is.
    places: Vec<u32>,
    /// In the factor's order.
    weights: Vec<f32>,
    /// A code plus 8 for each input, in the matrix's own order.
    codes: Vec<u8>,
    /// For each group.
    scales: Vec<f32>,
    /// For each group.
    zeros: Vec<f32>,
    /// The weighted squared error of each output.
    costs: Vec<f64>,
}

impl<'a> Piece<'a> {
    fn new(block: &'a Block<'a>, factor: &'a Factor, params: &'a Params, (first, outs): (usize, usize)) -> Self {
        let (stride, ins) = (outs.next_multiple_of(LANES), block.ins());
        let mut places = vec![0; ins];
        for (place, &input) in factor.inputs.iter().enumerate() {
            places[input as usize] = place as u32;
        }
        let groups = ins / params.group_size;
        Self {
            block,
            factor,
            params,
            first,
            outs,
            stride,
            places,
            weights: vec![0.0; ins * stride],
            codes: vec![0; ins * stride],
            scales: vec![0.0; groups * stride],
            zeros: vec![0.0; groups * stride],
            costs: vec![0.0; stride],
        }
    }

    /// Calls `f(self, t, from, tile)` for units of `unit` inputs and sixteen outputs: `tile[k]` is input `from + k` of
    /// outputs `16 t ..` of the piece.
    fn for_tiles(
        &mut self,
        unit: usize,
        mut f: impl FnMut(&mut Self, usize, usize, &[Lanes]) -> Result<(), NonFinite>,
    ) -> Result<(), NonFinite> {
        let (ins, rows) = (self.block.ins(), unit.next_multiple_of(LANES));
        let (all, together) = (self.stride / LANES, (PANEL / rows).max(1));
        let mut panel = vec![Lanes::ZERO; together.min(all) * rows];
        for from in (0..ins).step_by(unit) {
            let n = unit.min(ins - from);
            for first in (0..all).step_by(together) {
                let panel = &mut panel[..together.min(all - first) * rows];
                self.block.tiles(self.first + first * LANES, (from, n), rows, panel);
                for (t, tile) in panel.chunks_exact(rows).enumerate() {
                    f(self, first + t, from, &tile[..n])?;
                }
            }
        }
        Ok(())
    }

    /// Reads weights, checks them, chooses scales. An error counts with what it costs after the inputs that follow have made
    /// up for it: the search then agrees with what is done to the weights. (By the second moments alone, scales become so
    /// small that the corrections are cut off where inputs are closely related.)
    fn load(&mut self, sums: &mut ErrorRows<'_>) -> Result<(), NonFinite> {
        let group_size = self.params.group_size;
        let importance = crate::quant::int4::relative(&self.factor.importance, self.block.ins(), group_size);
        self.for_tiles(group_size, |this, t, from, tile| {
            // The stride of the block ends with the matrix; lanes beyond the piece belong to the next one.
            let lanes = LANES.min(this.outs - t * LANES);
            let job = Choose {
                rows: tile,
                importance: &importance[from..from + group_size],
                asymmetric: !this.params.symmetric,
            };
            let Some(chosen) = dispatch(job) else {
                return Err(this.blame(t, lanes, (from, group_size), tile));
            };
            let at = from / group_size * this.stride + t * LANES;
            this.scales[at..at + LANES].copy_from_slice(&chosen.scale);
            this.zeros[at..at + LANES].copy_from_slice(&chosen.zero);
            for lane in 0..lanes {
                sums.rtn[this.first + t * LANES + lane] += chosen.error_rtn[lane];
            }
            for (row, &place) in tile.iter().zip(&this.places[from..]) {
                this.weights[place as usize * this.stride + t * LANES..][..LANES].copy_from_slice(&row.0);
            }
            Ok(())
        })
    }

    /// Names what is not finite in a tile, else its largest value: that one's quantized form is not.
    fn blame(&self, t: usize, lanes: usize, inputs: (usize, usize), tile: &[Lanes]) -> NonFinite {
        let outs = (self.first + t * LANES, lanes);
        let most = tile.iter().flat_map(|row| &row.0[..lanes]).fold(0.0, |most: f32, x| most.max(x.abs()));
        let found = self.block.find(outs, inputs, |x| !x.is_finite());
        let found = found.or_else(|| self.block.find(outs, inputs, |x| x.abs() == most));
        found.unwrap_or(NonFinite { out: outs.0, input: inputs.0, value: most })
    }

    /// Rounds all inputs, in the factor's order (from its last row to its first).
    fn solve(&mut self) {
        let (n, stride) = (self.block.ins(), self.stride);
        let mut errors = vec![0.0f32; BLOCK.min(n) * stride];
        let mut end = n;
        while end > 0 {
            let start = end.saturating_sub(BLOCK);
            let errors = &mut errors[..(end - start) * stride];
            dispatch(Round { piece: self, rows: (start, end), errors });
            if start > 0 {
                let inverse = &self.factor.inverse[start * n..];
                let what = Update {
                    subtract: true,
                    left: Left::Columns(View::new(inverse, end - start, start, n)),
                    right: View::dense(errors, end - start, stride),
                    layout: Layout::InOut,
                    lower: false,
                };
                update(Threads::One, &what, ViewMut::dense(&mut self.weights, start, stride));
            }
            end = start;
        }
    }

    /// Writes codes, scales and zero points, and adds up errors.
    fn finish(&mut self, out: &mut Int4Out<'_>, sums: &mut ErrorRows<'_>) -> Result<(), NonFinite> {
        let group = self.params.group_size;
        for g in 0..self.block.ins() / group {
            for lane in 0..self.outs {
                let at = (self.first + lane) * out.scale_stride + g;
                out.scales[at] = bf16::from_f32(self.scales[g * self.stride + lane]);
                if let Some(zero_points) = &mut out.zero_points {
                    zero_points[at] = self.zeros[g * self.stride + lane] as i8;
                }
            }
        }
        let unit = unit_inputs(group).min(self.block.ins());
        let mut scratch = vec![Words::ZERO; words(unit)];
        self.for_tiles(unit, |this, t, from, tile| {
            let lanes = LANES.min(this.outs - t * LANES);
            let packed = (&mut *out.packed, out.packed_stride);
            let tally = dispatch(Pack { piece: this, t, from, tile, packed, scratch: &mut scratch });
            for lane in 0..lanes {
                let at = this.first + t * LANES + lane;
                sums.weight[at] += tally.weight[lane];
                sums.error[at] += tally.error[lane];
                *sums.max_abs = sums.max_abs.max(tally.max_abs[lane]);
                if !tally.max_abs[lane].is_finite() {
                    return Err(this.blame(t, lanes, (from, tile.len()), tile));
                }
            }
            Ok(())
        })
    }
}

/// Scales of one group of sixteen outputs.
struct Choose<'a> {
    rows: &'a [Lanes],
    importance: &'a [f32],
    asymmetric: bool,
}

impl Kernel for Choose<'_> {
    type Out = Option<Chosen>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        if self.asymmetric {
            choose::<S, true>(s, self.rows, self.importance)
        } else {
            choose::<S, false>(s, self.rows, self.importance)
        }
    }
}

/// Rounds a block of inputs: rows `rows.0..rows.1` of the factor, from the last to the first.
struct Round<'a, 'b> {
    piece: &'a mut Piece<'b>,
    rows: (usize, usize),
    /// `[rows, outputs]`: each error over the diagonal element of the factor.
    errors: &'a mut [f32],
}

impl Kernel for Round<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { piece, rows: (start, end), errors } = self;
        let (n, stride, group) = (piece.block.ins(), piece.stride, piece.params.group_size);
        let inverse = &piece.factor.inverse;
        let mut block = [Lanes::ZERO; BLOCK];
        for t in (0..stride).step_by(LANES) {
            for row in start..end {
                block[row - start].0.copy_from_slice(&piece.weights[row * stride + t..][..LANES]);
            }
            let mut cost = s.splat(0.0);
            for row in (start..end).rev() {
                let input = piece.factor.inputs[row] as usize;
                let grid = input / group * stride + t;
                let scale = s.load(lanes(&piece.scales[grid..]));
                let zero = s.load(lanes(&piece.zeros[grid..]));
                let factors = &inverse[row * n + start..=row * n + row];
                let (own, others) = factors.split_last().expect("a row has its diagonal element");
                let w = s.load(&block[row - start].0);
                let (code, value) = code(s, w, scale, zero);
                let mut bytes = [0; LANES];
                s.store_u8(code, &mut bytes);
                piece.codes[input * stride + t..][..LANES].copy_from_slice(&bytes);
                let error = s.div(s.sub(w, value), s.splat(*own));
                cost = s.fma(error, error, cost);
                let mut sixteen = [0.0; LANES];
                s.store(error, &mut sixteen);
                errors[(row - start) * stride + t..][..LANES].copy_from_slice(&sixteen);
                for (other, &factor) in block.iter_mut().zip(others) {
                    s.store(s.fnma(error, s.splat(factor), s.load(&other.0)), &mut other.0);
                }
            }
            let mut sixteen = [0.0; LANES];
            s.store(cost, &mut sixteen);
            for (cost, &more) in piece.costs[t..].iter_mut().zip(&sixteen) {
                *cost += f64::from(more);
            }
        }
    }
}

/// The first sixteen values.
#[inline(always)]
fn lanes(values: &[f32]) -> &[f32; LANES] {
    values.first_chunk().expect("arrays are whole vectors wide")
}

/// Packs the codes of a unit of inputs of sixteen outputs, and measures their errors.
struct Pack<'a, 'b, 'c> {
    piece: &'a Piece<'b>,
    t: usize,
    from: usize,
    tile: &'a [Lanes],
    packed: (&'c mut [u32], usize),
    scratch: &'a mut [Words],
}

impl Kernel for Pack<'_, '_, '_> {
    type Out = Tally;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Tally {
        let Self { piece, t, from, tile, packed, scratch } = self;
        let (stride, group) = (piece.stride, piece.params.group_size);
        let mut total = Tally::ZERO;
        scratch.fill(Words::ZERO);
        for first in (0..tile.len()).step_by(group) {
            let grid = (from + first) / group * stride + t * LANES;
            let scale = s.load(lanes(&piece.scales[grid..]));
            let offset = s.add(s.load(lanes(&piece.zeros[grid..])), s.splat(8_388_608.0 + 8.0));
            let unit = Unit::of(s, scale);
            let mut sums = Sums::new(s);
            let mut tally = Tally::ZERO;
            for k in first..first + group {
                let codes = &piece.codes[(from + k) * stride + t * LANES..];
                let code = s.load_u8(codes.first_chunk().expect("arrays are whole vectors wide"));
                let word = &mut scratch[k / PER_WORD].0;
                s.istore(s.ior(s.iload(word), s.shl(code, 4 * (k % PER_WORD) as u32)), word);
                // 2^23 with a small integer in its low bits is 2^23 plus that integer.
                let steps = s.sub(s.floats(s.ior(code, s.isplat(0x4b00_0000))), offset);
                sums.add(s, s.load(&tile[k].0), s.round_bf16(s.mul(steps, scale)), &unit);
                if (k - first) % CHUNK == CHUNK - 1 || k + 1 == first + group {
                    sums.fold(s, &mut tally);
                }
            }
            let tally = tally.scaled(&unit);
            for lane in 0..LANES {
                total.weight[lane] += tally.weight[lane];
                total.error[lane] += tally.error[lane];
                total.max_abs[lane] = total.max_abs[lane].max(tally.max_abs[lane]);
            }
        }
        let out = piece.first + t * LANES;
        let live = LANES.min(piece.outs - t * LANES);
        put_words(s, packed, (out, live), from / PER_WORD, &scratch[..words(tile.len())]);
        total
    }
}
