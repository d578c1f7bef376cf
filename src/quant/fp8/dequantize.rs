//! FP8 back to weights: code times scale, rounded to the format of the scale, as compressed-tensors decompresses it.

use crate::dtype::fp8::DECODE;
use crate::kernels::{Float, Kernel, LANES, Simd, dispatch};
use crate::quant::{Target, read_scale};

/// Some rows (outputs) of an FP8 matrix. Bytes may lie at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    /// `rows` x `ins` codes.
    pub codes: &'a [u8],
    /// Scales: `ceil((first_row + rows) / height)` x `ceil(ins / width)`, from the one of the matrix's first output on.
    pub scales: &'a [u8],
    /// The format of the scales.
    pub float: Float,
    /// The outputs and inputs that share a scale: (1, ins) per channel, (outs, ins) for a whole tensor.
    pub block: (usize, usize),
    /// Which output of the matrix the first row is.
    pub first_row: usize,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub ins: usize,
}

/// Dequantizes `rows` x `ins` weights, row after row. A NaN code gives NaN.
///
/// # Panics
///
/// A slice does not have the size that the numbers of `coded` give it.
pub fn dequantize<T: Target>(coded: &Coded<'_>, weights: &mut [T]) {
    let Coded { block: (height, width), first_row, rows, ins, .. } = *coded;
    assert!(height > 0 && (width > 0 || ins == 0), "blocks of {height} x {width}");
    assert_eq!(coded.codes.len(), rows * ins, "codes of {rows} x {ins}");
    assert_eq!(weights.len(), rows * ins, "weights of {rows} x {ins}");
    let needed = if rows * ins == 0 { 0 } else { (first_row + rows).div_ceil(height) * ins.div_ceil(width) };
    assert!(needed * coded.float.bytes() <= coded.scales.len(), "{} bytes of {needed} scales", coded.scales.len());
    if rows * ins > 0 {
        dispatch(Dequantize { coded, weights });
    }
}

struct Dequantize<'a, T> {
    coded: &'a Coded<'a>,
    weights: &'a mut [T],
}

impl<T: Target> Kernel for Dequantize<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Coded { block: (height, width), first_row, ins, float, .. } = *self.coded;
        let across = ins.div_ceil(width);
        let rows = self.coded.codes.chunks_exact(ins).zip(self.weights.chunks_exact_mut(ins));
        for (r, (codes, weights)) in rows.enumerate() {
            let down = (first_row + r) / height;
            for (b, (codes, weights)) in codes.chunks(width).zip(weights.chunks_mut(width)).enumerate() {
                let scale = read_scale(&self.coded.scales[(down * across + b) * float.bytes()..], float);
                part(s, codes, (scale, float), weights);
            }
        }
    }
}

/// Dequantizes codes that share a scale.
#[inline(always)]
fn part<S: Simd, T: Target>(s: S, codes: &[u8], (scale, float): (f32, Float), weights: &mut [T]) {
    let factor = s.splat(scale);
    for (codes, weights) in codes.chunks(LANES).zip(weights.chunks_mut(LANES)) {
        if let (Ok(codes), Ok(weights), false) = (codes.try_into(), (&mut *weights).try_into(), float == Float::F16) {
            let code: S::I = s.load_u8(codes);
            let value = s.mul(decode(s, code), factor);
            let value = if float == Float::BF16 { s.round_bf16(value) } else { value };
            T::store(s, value, weights);
        } else {
            for (code, weight) in codes.iter().zip(weights) {
                *weight = T::from_f32(float.round(DECODE[usize::from(*code)] * scale));
            }
        }
    }
}

/// The values of sixteen codes.
#[inline(always)]
fn decode<S: Simd>(s: S, code: S::I) -> S::F {
    let sign = s.shl(s.iand(code, s.isplat(0x80)), 24);
    let rest = s.iand(code, s.isplat(0x7f));
    // With the three mantissa bits in place, the exponent is too small by 120; as a float, that is a factor of 2^120,
    // which also makes subnormals right.
    let magnitude = s.mul(s.floats(s.shl(rest, 20)), s.splat(f32::from_bits((127 + 120) << 23)));
    let magnitude = s.select_lt(s.splat(448.0), magnitude, s.splat(f32::NAN), magnitude);
    s.floats(s.ior(s.bits(magnitude), sign))
}
