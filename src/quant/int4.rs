//! INT4 in groups along the input dimension (compressed-tensors' W4A16, `pack-quantized`), symmetric and asymmetric.
//!
//! Arithmetic of [`Method::Rtn`] (compressed-tensors 0.19, `calculate_qparams` and `_quantize`, computed in `f32`, the
//! scale rounded to BF16 before it is used): symmetric `s = amax / 7.5`, `z = 0`; asymmetric `s = (max - min) / 15`
//! with `min <= 0 <= max`, `z = round(clamp(-8 - min / s, -8, 7))`; a scale that rounds to 0 becomes 2^-7 with `z = 0`;
//! code `q = round(clamp(w / s + z, -8, 7))`, ties to even. The weight then *is* `(q - z) * s` rounded to BF16, and
//! errors are measured against that. How groups are searched is in [`group`]; reading back is in [`dequantize`].

mod dequantize;
pub(super) mod group;

use half::bf16;

use super::{Block, ErrorRows, Layout, Method, NonFinite};
use crate::dtype::int4;
use crate::kernels::{Kernel, LANES, Lanes, Simd, Words, dispatch};
use group::{Choice, Coded, Job};

pub use dequantize::{Packed, dequantize, pack_zero_points, unpack_zero_points};

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Inputs that share a scale.
    pub group_size: usize,
    /// Whether zero points are all 0.
    pub symmetric: bool,
    /// How scales are chosen.
    pub method: Method,
}

/// Where the results for a stripe go. Each slice begins at the stripe's first output and first input; a stride is the
/// distance of two outputs.
#[derive(Debug)]
pub struct Int4Out<'a> {
    /// Codes, eight in a word.
    pub packed: &'a mut [u32],
    /// In words.
    pub packed_stride: usize,
    /// A scale per group.
    pub scales: &'a mut [bf16],
    /// In groups; also for the zero points.
    pub scale_stride: usize,
    /// A zero point per group, -8..=7, not packed: asymmetric only.
    pub zero_points: Option<&'a mut [i8]>,
}

/// Quantizes a stripe: all outputs of `block` and its inputs, which are whole groups.
///
/// A stripe of inputs that is not a matrix's last must also be a multiple of eight inputs, a whole number of words.
///
/// # Errors
///
/// A weight is not finite, or too large for its quantized form to be. What `out` and `sums` then hold is unspecified.
///
/// # Panics
///
/// The group size does not divide the inputs, or a slice is too short.
pub fn quantize(block: &Block<'_>, params: &Params, out: Int4Out<'_>, sums: ErrorRows<'_>) -> Result<(), NonFinite> {
    quantize_weighted(block, params, None, out, sums)
}

/// [`quantize`], where an error counts as much as its input matters: `importance` holds a weight for each input of the
/// stripe, as the mean square of its activations. [`Method::Search`] then minimizes the weighted squared error, and is
/// never worse than round-to-nearest by that measure on any group; the sums stay those of plain squared errors.
/// [`Method::Rtn`] ignores it.
///
/// # Errors
///
/// As for [`quantize`].
///
/// # Panics
///
/// As for [`quantize`]; or there is not one importance per input, or one is negative or not finite.
pub fn quantize_weighted(
    block: &Block<'_>,
    params: &Params,
    importance: Option<&[f32]>,
    out: Int4Out<'_>,
    sums: ErrorRows<'_>,
) -> Result<(), NonFinite> {
    check(block, params.group_size, params.symmetric, &out, &sums);
    let importance = importance.map(|importance| relative(importance, block.ins(), params.group_size));
    let (group, search) = (params.group_size, params.method == Method::Search);
    let stripe = Stripe::<false> { block, group, search, importance: importance.as_deref(), out, sums };
    if params.symmetric { dispatch(stripe) } else { dispatch(stripe.asymmetric()) }
}

/// Importance relative to the largest of its group, so that no weighted sum leaves the range of floats. A group in which
/// nothing matters counts as one in which everything matters alike.
pub(super) fn relative(importance: &[f32], ins: usize, group: usize) -> Vec<f32> {
    assert_eq!(importance.len(), ins, "importance per input");
    assert!(importance.iter().all(|&x| x >= 0.0 && x.is_finite()), "importance is finite and not negative");
    let mut relative = importance.to_vec();
    for group in relative.chunks_mut(group) {
        let most = group.iter().copied().fold(0.0, f32::max);
        group.iter_mut().for_each(|x| *x = if most > 0.0 { *x / most } else { 1.0 });
    }
    relative
}

/// Panics where slices do not fit the matrix.
pub(super) fn check(block: &Block<'_>, group: usize, symmetric: bool, out: &Int4Out<'_>, sums: &ErrorRows<'_>) {
    let (outs, ins) = (block.outs(), block.ins());
    assert!(group > 0 && ins % group == 0, "groups of {group} do not divide {ins} inputs");
    let fits = |len: usize, stride: usize, columns: usize| {
        outs == 0 || columns == 0 || (columns <= stride && (outs - 1) * stride + columns <= len)
    };
    assert!(fits(out.packed.len(), out.packed_stride, int4::words(ins)), "packed: {} words", out.packed.len());
    assert!(fits(out.scales.len(), out.scale_stride, ins / group), "scales: {}", out.scales.len());
    assert_eq!(out.zero_points.is_none(), symmetric, "zero points are for asymmetric codes");
    if let Some(zero_points) = &out.zero_points {
        assert!(fits(zero_points.len(), out.scale_stride, ins / group), "zero points: {}", zero_points.len());
    }
    assert_eq!(sums.weight.len(), outs, "error sums per output");
}

/// [`quantize`] with its choices made.
struct Stripe<'a, const ASYMMETRIC: bool> {
    block: &'a Block<'a>,
    group: usize,
    search: bool,
    importance: Option<&'a [f32]>,
    out: Int4Out<'a>,
    sums: ErrorRows<'a>,
}

/// Vectors of a panel, about.
const PANEL: usize = 1024;

/// Inputs that are loaded together: whole groups and whole words, at least 128 where that can be.
pub(super) fn unit_inputs(group: usize) -> usize {
    let least = group * [1, 8, 4, 8, 2, 8, 4, 8][group % 8];
    least * (128 / least).max(1)
}

impl<'a> Stripe<'a, false> {
    fn asymmetric(self) -> Stripe<'a, true> {
        let Self { block, group, search, importance, out, sums } = self;
        Stripe { block, group, search, importance, out, sums }
    }
}

impl<const ASYMMETRIC: bool> Kernel for Stripe<'_, ASYMMETRIC> {
    type Out = Result<(), NonFinite>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Out {
        let (outs, ins) = (self.block.outs(), self.block.ins());
        let unit = unit_inputs(self.group).min(ins.max(1));
        let rows = unit.next_multiple_of(LANES);
        // A panel is as many tiles side by side as stay in the nearest caches: rows of a fused tensor are read in runs of
        // that many outputs, which is what makes reading them fast. A stored output is read along its row instead.
        let (in_out, most) = (self.block.layout() == Layout::InOut, outs.div_ceil(LANES).max(1));
        let tiles = if in_out { (PANEL / rows).clamp(1, 8).min(most) } else { 1 };
        let mut panel = vec![Lanes::ZERO; tiles * rows];
        let mut scratch = vec![Words::ZERO; 3 * int4::words(unit)];
        let across = outs.div_ceil(tiles * LANES);
        for i in 0..across * ins.div_ceil(unit) {
            // The next panel lies beside this one, in the same pages.
            let (first_out, first_in) = if in_out {
                (i % across * tiles * LANES, i / across * unit)
            } else {
                (i / ins.div_ceil(unit) * LANES, i % ins.div_ceil(unit) * unit)
            };
            let n = unit.min(ins - first_in);
            self.block.load_tiles(s, first_out, (first_in, n), rows, &mut panel);
            for (t, tile) in panel.chunks_exact(rows).enumerate() {
                let out = first_out + t * LANES;
                if out < outs {
                    self.tile(s, (out, first_in, n), tile, &mut scratch)?;
                }
            }
        }
        Ok(())
    }
}

impl<const ASYMMETRIC: bool> Stripe<'_, ASYMMETRIC> {
    /// Quantizes `n` inputs of sixteen outputs, whole groups, and writes everything about them.
    #[inline(always)]
    fn tile<S: Simd>(
        &mut self,
        s: S,
        (out, first_in, n): (usize, usize, usize),
        tile: &[Lanes],
        scratch: &mut [Words],
    ) -> Result<(), NonFinite> {
        let (words, spare) = scratch.split_at_mut(scratch.len() / 3);
        let lanes = LANES.min(self.block.outs() - out);
        words.fill(Words::ZERO);
        for at in (0..n).step_by(self.group) {
            let job = Job { rows: &tile[at..at + self.group], place: at };
            let choice = match self.importance {
                _ if !self.search => Choice::Rtn,
                Some(importance) => Choice::Weighted(&importance[first_in + at..][..self.group]),
                None => Choice::Search,
            };
            match group::quantize::<S, ASYMMETRIC>(s, &job, choice, words, spare) {
                Some(coded) => self.put_group(&coded, out, (first_in + at) / self.group, lanes),
                None => {
                    // Name what is not finite, else the group's largest: that one's quantized form is not.
                    let range = (first_in + at, self.group);
                    let block = self.block;
                    let worst = tile[at..at + self.group]
                        .iter()
                        .flat_map(|row| &row.0[..lanes])
                        .fold(0.0, |most: f32, x| most.max(x.abs()));
                    let found = block.find((out, lanes), range, |x| !x.is_finite());
                    let found = found.or_else(|| block.find((out, lanes), range, |x| x.abs() == worst));
                    return Err(found.unwrap_or(NonFinite { out, input: first_in + at, value: worst }));
                }
            }
        }
        let to = (&mut *self.out.packed, self.out.packed_stride);
        put_words(s, to, (out, lanes), first_in / int4::PER_WORD, &words[..int4::words(n)]);
        Ok(())
    }

    /// Writes the scales and zero points of a group of sixteen outputs and adds its errors to the sums.
    #[inline(always)]
    fn put_group(&mut self, coded: &Coded, out: usize, group: usize, lanes: usize) {
        for lane in 0..lanes {
            let at = (out + lane) * self.out.scale_stride + group;
            self.out.scales[at] = bf16::from_bits((coded.scale[lane].to_bits() >> 16) as u16);
            if ASYMMETRIC && let Some(zero_points) = &mut self.out.zero_points {
                zero_points[at] = coded.zero[lane] as i8;
            }
            self.sums.weight[out + lane] += coded.tally.weight[lane];
            self.sums.error[out + lane] += coded.tally.error[lane];
            self.sums.rtn[out + lane] += coded.error_rtn[lane];
            *self.sums.max_abs = self.sums.max_abs.max(coded.tally.max_abs[lane]);
        }
    }
}

/// Writes words of `lanes` outputs from `out` on into rows `stride` apart; `words[w]` holds word `first + w` of each.
#[inline(always)]
pub(super) fn put_words<S: Simd>(
    s: S,
    (packed, stride): (&mut [u32], usize),
    (out, lanes): (usize, usize),
    first: usize,
    words: &[Words],
) {
    for (i, sixteen) in words.chunks(LANES).enumerate() {
        let mut square = [s.isplat(0); LANES];
        for (vector, words) in square.iter_mut().zip(sixteen) {
            *vector = s.iload(&words.0);
        }
        let square = s.transpose(square);
        for (lane, &row) in square.iter().enumerate() {
            if lane < lanes {
                let to = &mut packed[(out + lane) * stride + first + i * LANES..][..sixteen.len()];
                if let Ok(to) = to.try_into() {
                    s.istore(row, to);
                } else {
                    let mut part = [0; LANES];
                    s.istore(row, &mut part);
                    to.copy_from_slice(&part[..sixteen.len()]);
                }
            }
        }
    }
}
