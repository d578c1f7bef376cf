//! AWQ: inputs that matter are made larger before quantizing, and what feeds them smaller, so that the layer computes the
//! same (Lin et al., "AWQ", 2023).
//!
//! With factors `f` per input, `W x = (W f) (x / f)`. Where `x` is the output of another linear map, row by row, the
//! division goes into that one's rows: `down(silu(gate x) * (up x))` allows it for `up`, exactly, in every feed-forward
//! network. The division changes nothing about how well `up` itself quantizes, since a row's scales shrink with it.
//!
//! Factors for the inputs of `gate` and `up` themselves are not offered. They would have to be divided out of the norm
//! before them, which also feeds the router and every expert of the layer: one set of factors for all experts, and a
//! router whose rounded weights send tokens elsewhere, which costs more than the factors gain.
//!
//! Nor are factors between `v` and `o` of the attention: with grouped queries one output of `v` becomes an input of `o` once
//! for every query head of its group, so that one factor would have to serve them all.
//!
//! It must not know which weights it works on.

use rayon::prelude::*;

use super::int4::group;
use super::{Block, NonFinite};
use crate::kernels::{Kernel, LANES, Lanes, Simd, active, dispatch, pinned};

/// Exponents that are tried: `0 / 20 ..= 19 / 20`.
const STEPS: usize = 20;

/// What the search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// What to multiply each input's weights with; its activations are to be divided by it. All 1 if nothing was better.
    pub factors: Vec<f32>,
    /// The weighted squared error that they leave.
    pub error: f64,
    /// The weighted squared error without them.
    pub error_plain: f64,
}

/// Searches factors for the inputs of `block` (any outputs, all inputs), which is to be quantized to INT4 with weighted
/// search, in groups of `group` inputs, symmetric or not; in the current rayon pool.
///
/// `mean_abs` are the inputs' mean magnitudes, `mean_square` their second moments. Factors are `mean_abs^alpha`, with
/// their largest and smallest balanced around 1; the error of an input counts with its second moment. Outputs may be a
/// sample: the factors then serve the others as well.
///
/// # Errors
///
/// A weight is not finite.
///
/// # Panics
///
/// The group size does not divide the inputs, or there is not one value per input, or one is negative or not finite.
pub fn search(
    block: &Block<'_>,
    mean_abs: &[f32],
    mean_square: &[f32],
    (group, symmetric): (usize, bool),
) -> Result<Factors, NonFinite> {
    let ins = block.ins();
    assert!(group > 0 && ins.is_multiple_of(group), "groups of {group} do not divide {ins} inputs");
    assert!(mean_abs.len() == ins && mean_square.len() == ins, "statistics per input");
    assert!(mean_abs.iter().chain(mean_square).all(|&x| x >= 0.0 && x.is_finite()), "statistics are sums of squares");
    let most = mean_square.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let moments: Vec<f32> = mean_square.iter().map(|&x| x / most).collect();
    let candidates: Vec<Vec<f32>> = (0..STEPS).map(|step| factors(mean_abs, step as f32 / STEPS as f32)).collect();
    let (isa, tiles) = (active(), block.outs().div_ceil(LANES));
    let measure = |tile: usize| pinned(isa, || errors(block, tile * LANES, &candidates, &moments, (group, symmetric)));
    let by_tile: Vec<[f64; STEPS]> = (0..tiles).into_par_iter().map(measure).collect::<Result<_, _>>()?;
    let mut errors = [0.0f64; STEPS];
    for tile in by_tile {
        errors.iter_mut().zip(tile).for_each(|(sum, error)| *sum += error);
    }
    let mut best = 0;
    for step in 1..STEPS {
        if errors[step] < errors[best] {
            best = step;
        }
    }
    let rescale = f64::from(most);
    Ok(Factors {
        factors: candidates.into_iter().nth(best).expect("one of the candidates"),
        error: errors[best] * rescale,
        error_plain: errors[0] * rescale,
    })
}

/// What sixteen outputs, from `first` on, cost with each candidate.
fn errors(
    block: &Block<'_>,
    first: usize,
    candidates: &[Vec<f32>],
    moments: &[f32],
    (group, symmetric): (usize, bool),
) -> Result<[f64; STEPS], NonFinite> {
    let mut errors = [0.0f64; STEPS];
    let rows = group.next_multiple_of(LANES);
    let (mut tile, mut scaled) = (vec![Lanes::ZERO; rows], vec![Lanes::ZERO; group]);
    let mut importance = vec![0.0; group];
    for from in (0..block.ins()).step_by(group) {
        block.tiles(first, (from, group), rows, &mut tile);
        for (error, factors) in errors.iter_mut().zip(candidates) {
            let factors = &factors[from..from + group];
            for (i, (importance, factor)) in importance.iter_mut().zip(factors).enumerate() {
                *importance = moments[from + i] / (factor * factor);
                let (scaled, row) = (&mut scaled[i].0, &tile[i].0);
                scaled.iter_mut().zip(row).for_each(|(scaled, w)| *scaled = w * factor);
            }
            let job = Measure { rows: &scaled, importance: &importance, asymmetric: !symmetric };
            let Some(costs) = dispatch(job) else {
                let found = block.find((first, LANES), (from, group), |x| !x.is_finite());
                let value = block.get(first, from);
                return Err(found.unwrap_or(NonFinite { out: first, input: from, value }));
            };
            // Lanes without an output hold zeros, which cost nothing.
            *error += costs.iter().sum::<f64>();
        }
    }
    Ok(errors)
}

/// `magnitude^alpha`, over the root of the largest times the smallest, and between 2^-12 and 2^12. Magnitudes count relative to
/// their mean, and those far below it alike.
fn factors(magnitudes: &[f32], alpha: f32) -> Vec<f32> {
    let mean = magnitudes.iter().map(|&x| f64::from(x)).sum::<f64>() / magnitudes.len().max(1) as f64;
    if mean <= 0.0 {
        return vec![1.0; magnitudes.len()];
    }
    // Powers in float64, rounded once: the same on every machine.
    let power = |x: f32| (f64::from(x) / mean).max(1e-4).powf(f64::from(alpha));
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    for &x in magnitudes {
        (low, high) = (low.min(power(x)), high.max(power(x)));
    }
    let middle = if magnitudes.is_empty() { 1.0 } else { (low * high).sqrt() };
    magnitudes.iter().map(|&x| (power(x) / middle).clamp(1.0 / 4096.0, 4096.0) as f32).collect()
}

/// The least weighted squared error of one group of sixteen outputs; `None`: something is not finite.
struct Measure<'a> {
    rows: &'a [Lanes],
    importance: &'a [f32],
    asymmetric: bool,
}

impl Kernel for Measure<'_> {
    type Out = Option<[f64; LANES]>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Out {
        if self.asymmetric {
            group::least_cost::<S, true>(s, self.rows, self.importance)
        } else {
            group::least_cost::<S, false>(s, self.rows, self.importance)
        }
    }
}
