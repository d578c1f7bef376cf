//! FP8 E4M3 weights with a scale per output (channel), per block, or for the whole matrix (compressed-tensors' `float-quantized`).
//!
//! Arithmetic (compressed-tensors 0.19, computed in `f32`, the scale rounded to BF16 before it is used):
//! `s = amax / 448`; a scale that rounds to 0 becomes 2^-7 (BF16's epsilon: the scale's own format counts, not the
//! codes'); code `= e4m3(clamp(w / s, -448, 448))`, ties to even. A scale that was rounded down thus saturates. The
//! weight then *is* `code * s` rounded to BF16, and errors are measured against that.
//!
//! Without data there is no search for better scales ([`ScaleSearch`] needs to know which inputs matter): the format is nearly
//! blind to them. The best of eight scales within a binade takes the squared error down to 0.967 of this (normal weights), 0.956 (Laplace) or 0.950 (Student t4) per channel of
//! 5120, and to 0.982, 0.975 or 0.967 per block of 128 x 128; that is 1 to 3 % of a relative error of 0.026, for eight
//! times the work. INT4's search gains 16 % for twice the work.

mod dequantize;
mod encode;
mod search;

use half::bf16;

use super::{Block, ErrorRows, Layout, NonFinite};
use crate::kernels::{Kernel, LANES, Lanes, Simd, dispatch};
use encode::Writer;

pub use dequantize::{Coded, dequantize};
pub use search::ScaleSearch;

/// Where codes go: a byte each, a row for each output. It begins at the stripe's first output and input.
#[derive(Debug)]
pub struct Codes<'a> {
    /// The codes.
    pub bytes: &'a mut [u8],
    /// Distance of two outputs, in bytes.
    pub stride: usize,
}

/// The scale for weights of magnitude `amax` and less.
///
/// ```
/// assert_eq!(l4::quant::fp8::scale(448.0).to_f32(), 1.0);
/// assert_eq!(l4::quant::fp8::scale(0.0).to_f32(), 0.0078125);
/// ```
pub fn scale(amax: f32) -> bf16 {
    let scale = bf16::from_f32(amax / crate::dtype::fp8::MAX);
    if scale == bf16::ZERO { bf16::EPSILON } else { scale }
}

/// The scale of a layer's input for static quantization of activations (`input_scale`, one for the tensor), from the
/// largest magnitude that calibration saw: compressed-tensors treats it like a weight's.
///
/// ```
/// assert_eq!(l4::quant::fp8::input_scale(896.0).to_f32(), 2.0);
/// ```
pub fn input_scale(amax: f32) -> bf16 {
    scale(amax)
}

/// Raises `amax[out]` to the largest magnitude of each output of the stripe. Starting from 0, any split gives the same.
///
/// # Errors
///
/// A weight is not finite.
///
/// # Panics
///
/// `amax` does not hold a value per output.
pub fn absmax(block: &Block<'_>, amax: &mut [f32]) -> Result<(), NonFinite> {
    assert_eq!(amax.len(), block.outs(), "largest magnitudes per output");
    if dispatch(Absmax { block, amax }) {
        return Ok(());
    }
    let everything = ((0, block.outs()), (0, block.ins()));
    Err(block.find(everything.0, everything.1, |x| !x.is_finite()).expect("a maximum that is not finite came from one"))
}

/// Quantizes a stripe with a scale per output, as [`scale`] makes them from [`absmax`] of the whole matrix.
///
/// # Errors
///
/// A weight is so large that its quantized form is not finite.
///
/// # Panics
///
/// A slice is too short.
pub fn quantize_channel(
    block: &Block<'_>,
    scales: &[bf16],
    codes: Codes<'_>,
    sums: ErrorRows<'_>,
) -> Result<(), NonFinite> {
    assert_eq!(scales.len(), block.outs(), "scales per output");
    check(block, &codes, &sums);
    let scales: Vec<f32> = scales.iter().map(|s| s.to_f32()).collect();
    finish(block, dispatch(Channels { block, scales: &scales, writer: Writer { codes, sums } }))
}

/// Quantizes a stripe with one scale for all of it, as [`scale`] makes it from the largest of [`absmax`].
///
/// # Errors
///
/// A weight is so large that its quantized form is not finite.
///
/// # Panics
///
/// A slice is too short.
pub fn quantize_tensor(block: &Block<'_>, scale: bf16, codes: Codes<'_>, sums: ErrorRows<'_>) -> Result<(), NonFinite> {
    quantize_channel(block, &vec![scale; block.outs()], codes, sums)
}

/// The scales of a stripe's blocks: a row for each `height` outputs, a column for each `width` inputs.
#[derive(Debug)]
pub struct BlockScales<'a> {
    /// The scales. They begin with the stripe's first block.
    pub scales: &'a mut [bf16],
    /// Distance of two rows of blocks.
    pub stride: usize,
    /// Outputs of a block.
    pub height: usize,
    /// Inputs of a block.
    pub width: usize,
}

/// Quantizes a stripe of whole blocks; only a matrix's last blocks may be smaller.
///
/// # Errors
///
/// A weight is not finite, or too large for its quantized form to be.
///
/// # Panics
///
/// A slice is too short, or a block has no size.
pub fn quantize_block(
    block: &Block<'_>,
    scales: BlockScales<'_>,
    codes: Codes<'_>,
    sums: ErrorRows<'_>,
) -> Result<(), NonFinite> {
    let BlockScales { height, width, stride, .. } = scales;
    assert!(height > 0 && width > 0, "blocks of {height} x {width}");
    let (down, across) = (block.outs().div_ceil(height), block.ins().div_ceil(width));
    assert!(
        down == 0 || across == 0 || (across <= stride && (down - 1) * stride + across <= scales.scales.len()),
        "{} scales for {down} x {across} blocks, {stride} apart",
        scales.scales.len()
    );
    check(block, &codes, &sums);
    finish(block, dispatch(Blocks { block, scales, writer: Writer { codes, sums } }))
}

fn check(block: &Block<'_>, codes: &Codes<'_>, sums: &ErrorRows<'_>) {
    let (outs, ins) = (block.outs(), block.ins());
    assert!(
        outs == 0 || ins == 0 || (ins <= codes.stride && (outs - 1) * codes.stride + ins <= codes.bytes.len()),
        "{} bytes for {outs} x {ins} codes, {} apart",
        codes.bytes.len(),
        codes.stride
    );
    assert_eq!(sums.weight.len(), outs, "error sums per output");
}

/// Names the weight that is to blame in a rectangle of outputs and inputs where something was not finite.
fn finish(block: &Block<'_>, bad: Option<Rectangle>) -> Result<(), NonFinite> {
    let Some((outs, ins)) = bad else { return Ok(()) };
    if let Some(found) = block.find(outs, ins, |x| !x.is_finite()) {
        return Err(found);
    }
    let mut worst = NonFinite { out: outs.0, input: ins.0, value: 0.0 };
    for out in outs.0..outs.0 + outs.1 {
        for input in ins.0..ins.0 + ins.1 {
            let value = block.get(out, input);
            if value.abs() > worst.value.abs() {
                worst = NonFinite { out, input, value };
            }
        }
    }
    Err(worst)
}

/// First output and how many, first input and how many.
type Rectangle = ((usize, usize), (usize, usize));

struct Absmax<'a> {
    block: &'a Block<'a>,
    amax: &'a mut [f32],
}

impl Kernel for Absmax<'_> {
    /// Whether every weight is finite.
    type Out = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let ins = self.block.ins();
        let mask = s.isplat(0x7fff_ffff);
        let mut lanes = [0; LANES];
        match self.block.layout() {
            Layout::InOut => {
                // Four rows at a time, so that the maxima are loaded and stored a quarter as often.
                for row in (0..ins).step_by(4) {
                    for (first, amax) in self.amax.chunks_mut(LANES).enumerate() {
                        let n = amax.len();
                        let mut sixteen = [0.0; LANES];
                        sixteen[..n].copy_from_slice(amax);
                        let mut most = s.bits(s.load(&sixteen));
                        for row in row..ins.min(row + 4) {
                            let weights = self.block.load_row(s, row, first * LANES, n);
                            most = s.imax(most, s.iand(s.bits(weights), mask));
                        }
                        s.store(s.floats(most), &mut sixteen);
                        amax.copy_from_slice(&sixteen[..n]);
                    }
                }
            }
            Layout::OutIn => {
                for (out, amax) in self.amax.iter_mut().enumerate() {
                    let mut most = s.isplat(amax.to_bits());
                    for first in (0..ins).step_by(LANES) {
                        let n = LANES.min(ins - first);
                        most = s.imax(most, s.iand(s.bits(self.block.load_row(s, out, first, n)), mask));
                    }
                    s.istore(most, &mut lanes);
                    *amax = f32::from_bits(lanes.iter().fold(0, |a, &b| a.max(b)));
                }
            }
        }
        self.amax.iter().all(|x| x.is_finite())
    }
}

/// [`quantize_channel`].
struct Channels<'a> {
    block: &'a Block<'a>,
    scales: &'a [f32],
    writer: Writer<'a>,
}

/// Inputs that are coded together: as many bytes as a cache line has, so that whole lines are written.
const STEP: usize = 4 * LANES;

impl Kernel for Channels<'_> {
    type Out = Option<Rectangle>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Out {
        let (outs, ins) = (self.block.outs(), self.block.ins());
        if self.block.layout() == Layout::OutIn {
            for out in 0..outs {
                if !self.writer.row(s, self.block, out, self.scales[out]) {
                    return Some(((out, 1), (0, ins)));
                }
            }
            return None;
        }
        let tiles = 16.min(outs.div_ceil(LANES).max(1));
        let mut panel = vec![Lanes::ZERO; tiles * STEP];
        // Inputs outside, so that the next panel lies beside this one, in the same pages.
        for first_in in (0..ins).step_by(STEP) {
            let n = STEP.min(ins - first_in);
            for first_out in (0..outs).step_by(tiles * LANES) {
                self.block.load_tiles(s, first_out, (first_in, n), STEP, &mut panel);
                for (t, tile) in panel.chunks_exact(STEP).enumerate() {
                    let out = first_out + t * LANES;
                    if out >= outs {
                        break;
                    }
                    let lanes = LANES.min(outs - out);
                    // Lanes without an output hold zeros, for which any positive scale will do.
                    let mut scale = [1.0; LANES];
                    scale[..lanes].copy_from_slice(&self.scales[out..out + lanes]);
                    let scale = s.load(&scale);
                    if !self.writer.tile(s, &tile[..n], scale, (out, lanes), first_in) {
                        return Some(((out, lanes), (first_in, n)));
                    }
                }
            }
        }
        None
    }
}

/// [`quantize_block`].
struct Blocks<'a> {
    block: &'a Block<'a>,
    scales: BlockScales<'a>,
    writer: Writer<'a>,
}

impl Kernel for Blocks<'_> {
    type Out = Option<Rectangle>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Out {
        let (outs, ins) = (self.block.outs(), self.block.ins());
        let BlockScales { height, width, stride, .. } = self.scales;
        let rows = width.min(ins.max(1)).next_multiple_of(LANES);
        let tiles = height.min(outs.max(1)).div_ceil(LANES);
        let mut panel = vec![Lanes::ZERO; tiles * rows];
        for (down, out) in (0..outs).step_by(height).enumerate() {
            let high = height.min(outs - out);
            for (across, first_in) in (0..ins).step_by(width).enumerate() {
                let wide = width.min(ins - first_in);
                self.block.load_tiles(s, out, (first_in, wide), rows, &mut panel);
                let amax = encode::absmax(s, &panel, rows, wide, high);
                let rectangle = ((out, high), (first_in, wide));
                if !amax.is_finite() {
                    return Some(rectangle);
                }
                let scale = scale(amax);
                self.scales.scales[down * stride + across] = scale;
                let scale = s.splat(scale.to_f32());
                for (t, tile) in panel.chunks_exact(rows).enumerate() {
                    let first = t * LANES;
                    if first >= high {
                        break;
                    }
                    let lanes = LANES.min(high - first);
                    for at in (0..wide).step_by(STEP) {
                        let n = STEP.min(wide - at);
                        if !self.writer.tile(s, &tile[at..at + n], scale, (out + first, lanes), first_in + at) {
                            return Some(rectangle);
                        }
                    }
                }
            }
        }
        None
    }
}
