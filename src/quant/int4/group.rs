//! One group of sixteen outputs: its scale, its codes, its error.
//!
//! The search takes the codes that a few shrunken scales give, keeps those that can fit the weights best, fits the scale
//! to them (least squares), rounds it to BF16 and codes the weights anew, exactly as round-to-nearest does with its
//! scale. A result that is not clearly better than round-to-nearest's, measured in the same way, is dropped.
//!
//! Squared error relative to round-to-nearest's, groups of 128, 6000 groups of each kind of random weights:
//!
//! | shrunken scales                 | normal | Laplace | Student t4 | 1 % outliers x 8 | normal, asymmetric |
//! | ------------------------------- | -----: | ------: | ---------: | ---------------: | -----------------: |
//! | none: round-to-nearest's, fitted | 0.971 |   0.954 |      0.937 |            0.904 |              0.972 |
//! | 0.9                             |  0.863 |   0.858 |      0.855 |            0.849 |              0.910 |
//! | 0.94 0.84                       |  0.845 |   0.840 |      0.839 |            0.840 |              0.904 |
//! | **0.97 0.89 0.81**              |  0.839 |   0.836 |      0.835 |            0.838 |              0.900 |
//! | 0.96 0.88 0.8 0.72              |  0.838 |   0.835 |      0.834 |            0.837 |              0.900 |
//! | 1.0 0.95 ... 0.65 (eight)       |  0.833 |   0.832 |      0.832 |            0.836 |              0.894 |
//! | 71 from 0.4 to 1.1, not fitted  |  0.828 |   0.830 |      0.830 |            0.835 |              0.888 |
//!
//! A second fit gains 0.003, other zero points 0.002 (0.01 with outliers): neither is worth its time.

use crate::kernels::{LANES, Lanes, Simd, Words};
use crate::quant::quotient::Divisor;
use crate::quant::tally::{CHUNK, Sums, Tally, Unit};

/// The scales that are tried, relative to round-to-nearest's.
const SHRINK: [f32; 3] = [0.97, 0.89, 0.81];

/// What an error must come down to, relative to round-to-nearest's, to count as better. Errors are sums in `f32` over
/// [`CHUNK`] values, so that a smaller difference could be rounding.
const BETTER: f64 = 1.0 - 1.0 / 65536.0;

/// The scale of a group whose own would be zero: BF16's epsilon (compressed-tensors, `_get_dtype_eps`).
const EPSILON: f32 = 0.0078125;

/// 1.5 * 2^23, plus 8. Adding it to a float of small magnitude rounds that to an integer, ties to even, and leaves the
/// integer plus 8 in the low bits.
const ROUNDER: f32 = 12_582_920.0;

/// Weights to be coded: a row holds one input's for sixteen outputs. Codes go to nibble `place` and on of the words.
pub(super) struct Job<'a> {
    pub(super) rows: &'a [Lanes],
    pub(super) place: usize,
}

/// What came out, per output.
pub(super) struct Coded {
    pub(super) scale: [f32; LANES],
    pub(super) zero: [f32; LANES],
    pub(super) tally: Tally,
    pub(super) error_rtn: [f64; LANES],
}

/// A scale and a zero point.
struct Grid<S: Simd> {
    scale: S::F,
    zero: S::F,
}

impl<S: Simd> Clone for Grid<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Simd> Copy for Grid<S> {}

/// How the scale of a group is chosen.
#[derive(Clone, Copy)]
pub(crate) enum Choice<'a> {
    /// Round-to-nearest's.
    Rtn,
    /// By the squared error.
    Search,
    /// By the squared error, weighted with an importance for each input of the group.
    Weighted(&'a [f32]),
}

/// Codes a group into `words` (of which its nibbles are zero before); `None`: something is not finite. `spare` is twice
/// as long as `words`.
#[inline(always)]
pub(super) fn quantize<S: Simd, const ASYMMETRIC: bool>(
    s: S,
    job: &Job<'_>,
    choice: Choice<'_>,
    words: &mut [Words],
    spare: &mut [Words],
) -> Option<Coded> {
    let grid = rtn_grid::<S, ASYMMETRIC>(s, job.rows)?;
    let unit = Unit::of(s, grid.scale);
    let mut scale = [0.0; LANES];
    let mut zero = [0.0; LANES];
    s.store(grid.scale, &mut scale);
    s.store(grid.zero, &mut zero);
    let (tally, rtn) = if !matches!(choice, Choice::Rtn) {
        let (plain, other) = spare.split_at_mut(words.len());
        let range = job.place / 8..(job.place + job.rows.len()).div_ceil(8);
        plain[range.clone()].fill(Words::ZERO);
        other[range.clone()].fill(Words::ZERO);
        let rtn = encode::<S, ASYMMETRIC>(s, job, grid, &unit, plain);
        let found = match choice {
            Choice::Weighted(importance) => weighted::<S>(s, job.rows, importance, grid, &unit).0,
            _ => search(s, job.rows, grid, &unit),
        };
        let mut tally = encode::<S, ASYMMETRIC>(s, job, found, &unit, other);
        let mut found_scale = [0.0; LANES];
        s.store(found.scale, &mut found_scale);
        let mut keep = [0; LANES];
        for lane in 0..LANES {
            // With weights, the comparison was made already, and the plain error is only reported.
            if matches!(choice, Choice::Weighted(_)) || tally.error[lane] < rtn.error[lane] * BETTER {
                scale[lane] = found_scale[lane];
                keep[lane] = u32::MAX;
            } else {
                tally.error[lane] = rtn.error[lane];
                tally.max_abs[lane] = rtn.max_abs[lane];
            }
        }
        merge(s, &keep, &mut words[range.clone()], &plain[range.clone()], &other[range]);
        (tally, rtn.scaled(&unit))
    } else {
        let tally = encode::<S, ASYMMETRIC>(s, job, grid, &unit, words);
        let rtn = tally.clone().scaled(&unit);
        (tally, rtn)
    };
    let finite = rtn.max_abs.iter().all(|x| x.is_finite());
    finite.then(|| Coded { scale, zero, tally: tally.scaled(&unit), error_rtn: rtn.error })
}

/// Adds to `words` the nibbles of `found` in the lanes of `keep`, those of `plain` in the others.
#[inline(always)]
fn merge<S: Simd>(s: S, keep: &[u32; LANES], words: &mut [Words], plain: &[Words], found: &[Words]) {
    let keep = s.iload(keep);
    let drop = s.isub(s.isplat(u32::MAX), keep);
    for ((word, plain), found) in words.iter_mut().zip(plain).zip(found) {
        let merged = s.ior(s.iand(s.iload(&plain.0), drop), s.iand(s.iload(&found.0), keep));
        s.istore(s.ior(s.iload(&word.0), merged), &mut word.0);
    }
}

/// Round-to-nearest's scale and zero point; `None`: something is not finite.
#[inline(always)]
fn rtn_grid<S: Simd, const ASYMMETRIC: bool>(s: S, rows: &[Lanes]) -> Option<Grid<S>> {
    // Encodings of magnitudes are ordered as the magnitudes are, and those of infinities and NaN are the largest.
    let mask = s.isplat(0x7fff_ffff);
    let mut most = s.isplat(0);
    let (mut low, mut high) = (s.splat(0.0), s.splat(0.0));
    for row in rows {
        let w = s.load(&row.0);
        most = s.imax(most, s.iand(s.bits(w), mask));
        if ASYMMETRIC {
            low = s.min(w, low);
            high = s.max(w, high);
        }
    }
    let mut lanes = [0; LANES];
    s.istore(most, &mut lanes);
    if lanes.iter().any(|&bits| bits >= 0x7f80_0000) {
        return None;
    }
    let zero = s.splat(0.0);
    let exact = if ASYMMETRIC { s.div(s.sub(high, low), s.splat(15.0)) } else { s.div(s.floats(most), s.splat(7.5)) };
    let rounded = s.round_bf16(exact);
    s.istore(s.bits(rounded), &mut lanes);
    if lanes.iter().any(|&bits| bits >= 0x7f80_0000) {
        return None;
    }
    let scale = s.select_lt(zero, rounded, rounded, s.splat(EPSILON));
    if !ASYMMETRIC {
        return Some(Grid { scale, zero });
    }
    let shifted = s.sub(s.splat(-8.0), s.div(low, scale));
    let clamped = s.min(s.max(shifted, s.splat(-8.0)), s.splat(7.0));
    let point = s.sub(s.add(clamped, s.splat(ROUNDER)), s.splat(ROUNDER));
    Some(Grid { scale, zero: s.select_lt(zero, rounded, point, zero) })
}

/// Codes the rows and measures the error.
#[inline(always)]
fn encode<S: Simd, const ASYMMETRIC: bool>(
    s: S,
    job: &Job<'_>,
    grid: Grid<S>,
    unit: &Unit<S>,
    words: &mut [Words],
) -> Tally {
    let divisor = Divisor::new(s, grid.scale);
    let coder = Coder { divisor, zero: grid.zero, unit };
    if coder.divisor.is_fast {
        coder.rows::<ASYMMETRIC, true>(s, job, words)
    } else {
        coder.rows::<ASYMMETRIC, false>(s, job, words)
    }
}

/// What sixteen outputs are coded with.
struct Coder<'a, S: Simd> {
    divisor: Divisor<S>,
    zero: S::F,
    unit: &'a Unit<S>,
}

impl<S: Simd> Coder<'_, S> {
    #[inline(always)]
    fn rows<const ASYMMETRIC: bool, const FAST: bool>(&self, s: S, job: &Job<'_>, words: &mut [Words]) -> Tally {
        let mut tally = Tally::ZERO;
        let nibble = s.isplat(15);
        let mut sums = Sums::new(s);
        let (mut k, mut folded) = (0, 0);
        while k < job.rows.len() {
            let at = job.place + k;
            if let (0, Some(eight)) = (at % 8, job.rows[k..].first_chunk::<8>()) {
                let mut word = s.isplat(0);
                for (i, row) in eight.iter().enumerate() {
                    let code = self.row::<ASYMMETRIC, FAST>(s, row, &mut sums);
                    word = s.ior(word, s.shl(s.iand(code, nibble), 4 * i as u32));
                }
                s.istore(word, &mut words[at / 8].0);
                k += 8;
            } else {
                let code = self.row::<ASYMMETRIC, FAST>(s, &job.rows[k], &mut sums);
                let word = s.shl(s.iand(code, nibble), 4 * (at % 8) as u32);
                let word = s.ior(s.iload(&words[at / 8].0), word);
                s.istore(word, &mut words[at / 8].0);
                k += 1;
            }
            if k - folded >= CHUNK || k == job.rows.len() {
                sums.fold(s, &mut tally);
                folded = k;
            }
        }
        tally
    }

    /// Codes one input of sixteen outputs; the code plus 8 is in the low four bits.
    #[inline(always)]
    fn row<const ASYMMETRIC: bool, const FAST: bool>(&self, s: S, row: &Lanes, sums: &mut Sums<S>) -> S::I {
        let w = s.load(&row.0);
        let mut t = self.divisor.quotient::<FAST>(s, w);
        if ASYMMETRIC {
            t = s.add(t, self.zero);
        }
        let clamped = s.min(s.max(t, s.splat(-8.0)), s.splat(7.0));
        let code = s.add(clamped, s.splat(ROUNDER));
        let mut steps = s.sub(code, s.splat(ROUNDER));
        if ASYMMETRIC {
            steps = s.sub(steps, self.zero);
        }
        let value = s.round_bf16(s.mul(steps, self.divisor.scale));
        sums.add(s, w, value, self.unit);
        s.bits(code)
    }
}

/// The best scale that the search finds; the zero point stays.
///
/// For steps `d = q - z` that are given, the best scale is `a / b` with `a = sum(w d)` and `b = sum(d d)`, and the
/// squared error that it leaves is `sum(w w) - a a / b`: so the codes to take are those with the largest `a a / b`.
#[inline(always)]
fn search<S: Simd>(s: S, rows: &[Lanes], grid: Grid<S>, unit: &Unit<S>) -> Grid<S> {
    const N: usize = SHRINK.len();
    let zero = s.splat(0.0);
    let (mut a, mut b, mut reciprocal) = ([zero; N], [zero; N], [zero; N]);
    for c in 0..N {
        reciprocal[c] = s.div(s.splat(1.0), s.mul(s.mul(grid.scale, unit.down), s.splat(SHRINK[c])));
    }
    let low = s.sub(s.splat(-8.0), grid.zero);
    let high = s.sub(s.splat(7.0), grid.zero);
    for row in rows {
        let w = s.mul(s.load(&row.0), unit.down);
        for c in 0..N {
            let t = s.min(s.max(s.mul(w, reciprocal[c]), low), high);
            let d = s.sub(s.add(t, s.splat(ROUNDER)), s.splat(ROUNDER));
            a[c] = s.fma(w, d, a[c]);
            b[c] = s.fma(d, d, b[c]);
        }
    }
    let (mut best, mut ratio) = (zero, zero);
    for c in 0..N {
        // With no step at all, `a` is 0 as well, and the ratio must not be 0 / 0.
        let fit = s.div(a[c], s.max(b[c], s.splat(1.0)));
        let score = s.mul(a[c], fit);
        ratio = s.select_lt(best, score, fit, ratio);
        best = s.max(score, best);
    }
    let scale = s.round_bf16(s.mul(ratio, unit.up));
    Grid { scale: s.select_lt(zero, scale, scale, grid.scale), zero: grid.zero }
}

/// The scales that are tried where inputs have weights, relative to round-to-nearest's.
const SHRINK_WEIGHTED: [f32; 12] = [1.05, 1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.64, 0.57, 0.5];

/// The best scale that the search finds for the weighted squared error, and that error in the unit; the zero point stays.
/// As [`search`], with sums weighted; what it finds is measured, and dropped where it is not better than `grid`.
#[inline(always)]
fn weighted<S: Simd>(s: S, rows: &[Lanes], importance: &[f32], grid: Grid<S>, unit: &Unit<S>) -> (Grid<S>, S::F) {
    let zero = s.splat(0.0);
    let low = s.sub(s.splat(-8.0), grid.zero);
    let high = s.sub(s.splat(7.0), grid.zero);
    let (mut best, mut ratio) = (zero, zero);
    for shrink in SHRINK_WEIGHTED {
        let reciprocal = s.div(s.splat(1.0), s.mul(s.mul(grid.scale, unit.down), s.splat(shrink)));
        let (mut a, mut b) = (zero, s.splat(f32::MIN_POSITIVE));
        for (row, &weight) in rows.iter().zip(importance) {
            let w = s.mul(s.load(&row.0), unit.down);
            let t = s.min(s.max(s.mul(w, reciprocal), low), high);
            let d = s.sub(s.add(t, s.splat(ROUNDER)), s.splat(ROUNDER));
            let weighted = s.mul(d, s.splat(weight));
            a = s.fma(w, weighted, a);
            b = s.fma(d, weighted, b);
        }
        let fit = s.div(a, b);
        let score = s.mul(a, fit);
        ratio = s.select_lt(best, score, fit, ratio);
        best = s.max(score, best);
    }
    let scale = s.round_bf16(s.mul(ratio, unit.up));
    let found = Grid { scale: s.select_lt(zero, scale, scale, grid.scale), zero: grid.zero };
    let (cost, rtn) = (cost(s, rows, importance, found, unit), cost(s, rows, importance, grid, unit));
    let scale = s.select_lt(cost, rtn, found.scale, grid.scale);
    (Grid { scale, zero: grid.zero }, s.min(cost, rtn))
}

/// The weighted squared error of a group, in the unit.
#[inline(always)]
fn cost<S: Simd>(s: S, rows: &[Lanes], importance: &[f32], grid: Grid<S>, unit: &Unit<S>) -> S::F {
    let mut sum = s.splat(0.0);
    for (row, &weight) in rows.iter().zip(importance) {
        let w = s.load(&row.0);
        let (_, value) = code(s, w, grid.scale, grid.zero);
        let error = s.mul(s.sub(w, value), unit.down);
        sum = s.fma(s.mul(error, s.splat(weight)), error, sum);
    }
    sum
}

/// The scale and zero point of a group for sixteen outputs, and round-to-nearest's squared error.
pub(crate) struct Chosen {
    pub(crate) scale: [f32; LANES],
    pub(crate) zero: [f32; LANES],
    pub(crate) error_rtn: [f64; LANES],
}

/// Chooses scales without coding anything; `None`: something is not finite.
#[inline(always)]
pub(crate) fn choose<S: Simd, const ASYMMETRIC: bool>(s: S, rows: &[Lanes], importance: &[f32]) -> Option<Chosen> {
    let grid = rtn_grid::<S, ASYMMETRIC>(s, rows)?;
    let unit = Unit::of(s, grid.scale);
    let mut sums = Sums::new(s);
    let mut tally = Tally::ZERO;
    for part in rows.chunks(CHUNK) {
        for row in part {
            let w = s.load(&row.0);
            let (_, value) = code(s, w, grid.scale, grid.zero);
            sums.add(s, w, value, &unit);
        }
        sums.fold(s, &mut tally);
    }
    let found = weighted(s, rows, importance, grid, &unit).0;
    let mut chosen = Chosen { scale: [0.0; LANES], zero: [0.0; LANES], error_rtn: tally.scaled(&unit).error };
    s.store(found.scale, &mut chosen.scale);
    s.store(found.zero, &mut chosen.zero);
    chosen.error_rtn.iter().all(|error| error.is_finite()).then_some(chosen)
}

/// The weighted squared error of sixteen outputs after the search; `None`: something is not finite.
#[inline(always)]
pub(crate) fn least_cost<S: Simd, const ASYMMETRIC: bool>(
    s: S,
    rows: &[Lanes],
    importance: &[f32],
) -> Option<[f64; LANES]> {
    let grid = rtn_grid::<S, ASYMMETRIC>(s, rows)?;
    let unit = Unit::of(s, grid.scale);
    let mut tally = Tally::ZERO;
    let mut costs = [0.0; LANES];
    s.store(weighted(s, rows, importance, grid, &unit).1, &mut costs);
    tally.error = costs.map(f64::from);
    Some(tally.scaled(&unit).error)
}

/// The code of a weight, with 8 added, in the low four bits; and what it decodes to.
#[inline(always)]
pub(crate) fn code<S: Simd>(s: S, w: S::F, scale: S::F, zero: S::F) -> (S::I, S::F) {
    let t = s.add(s.div(w, scale), zero);
    let code = s.add(s.min(s.max(t, s.splat(-8.0)), s.splat(7.0)), s.splat(ROUNDER));
    let steps = s.sub(s.sub(code, s.splat(ROUNDER)), zero);
    (s.iand(s.bits(code), s.isplat(15)), s.round_bf16(s.mul(steps, scale)))
}
