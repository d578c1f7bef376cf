//! From blocks to values, one function for each type, after the layouts in `ggml/src/ggml-common.h` (ggml 0.25).
//!
//! The order of operations is that of `dequantize_row_*` (`ggml/src/ggml-quants.c`) and of Python's `gguf.quants`, which
//! agree bit for bit. It must not know where blocks come from.

use super::fields::{f16_at, k4_scales, q3_scales, xs_scales};
use super::tables::{IQ4, MXFP4, half_of_e8m0};
use crate::kernels::{LANES, Simd};

/// The values `(code - offset) * step - base` of codes that lie one to a byte, sixteen at a time.
///
/// Differences of small integers are exact, and `+ m` is `- (-m)`: this is what every format without a table computes.
#[inline(always)]
fn scaled<S: Simd>(s: S, codes: &[u8], offset: f32, step: f32, base: f32, values: &mut [f32]) {
    // An integer in the low bits of 2^23 is that much more than 2^23.
    const EXPONENT: f32 = 8_388_608.0;
    let (offset, step, base) = (s.splat(EXPONENT + offset), s.splat(step), s.splat(base));
    for (codes, values) in codes.as_chunks::<LANES>().0.iter().zip(values.as_chunks_mut::<LANES>().0) {
        let code = s.floats(s.ior(s.load_u8(codes), s.isplat(EXPONENT.to_bits())));
        s.store(s.sub(s.mul(s.sub(code, offset), step), base), values);
    }
}

/// The codes of a block of 32: those of elements `j` and `j + 16` share byte `j`.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    codes
}

/// The values of a block of 32: codes of elements `j` and `j + 16` share byte `j`.
#[inline(always)]
fn halves(codes: &[u8], values: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = values.split_at_mut(codes.len());
    for (j, &code) in codes.iter().enumerate() {
        low[j] = value(j, code & 15);
        high[j] = value(j + 16, code >> 4);
    }
}

#[inline(always)]
pub(super) fn q4_0<S: Simd>(s: S, block: &[u8; 18], values: &mut [f32; 32]) {
    scaled(s, &nibbles(&block[2..]), 8.0, f16_at(block, 0), 0.0, values);
}

#[inline(always)]
pub(super) fn q4_1<S: Simd>(s: S, block: &[u8; 20], values: &mut [f32; 32]) {
    scaled(s, &nibbles(&block[4..]), 0.0, f16_at(block, 0), -f16_at(block, 2), values);
}

/// The fifth bits of 32 codes.
#[inline(always)]
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// A code of five bits.
#[inline(always)]
fn with_fifth(code: u8, bits: u32, element: usize) -> f32 {
    f32::from(code | (((bits >> element) & 1) << 4) as u8)
}

#[inline(always)]
pub(super) fn q5_0<S: Simd>(_: S, block: &[u8; 22], values: &mut [f32; 32]) {
    let (d, bits) = (f16_at(block, 0), fifth_bits(block, 2));
    halves(&block[6..], values, |element, code| (with_fifth(code, bits, element) - 16.0) * d);
}

#[inline(always)]
pub(super) fn q5_1<S: Simd>(_: S, block: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m, bits) = (f16_at(block, 0), f16_at(block, 2), fifth_bits(block, 4));
    halves(&block[8..], values, |element, code| with_fifth(code, bits, element) * d + m);
}

#[inline(always)]
pub(super) fn q8_0<S: Simd>(s: S, block: &[u8; 34], values: &mut [f32; 32]) {
    let mut codes = [0; 32];
    for (code, byte) in codes.iter_mut().zip(&block[2..]) {
        *code = byte ^ 0x80;
    }
    scaled(s, &codes, 128.0, f16_at(block, 0), 0.0, values);
}

#[inline(always)]
pub(super) fn iq4_nl<S: Simd>(_: S, block: &[u8; 18], values: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    halves(&block[2..], values, |_, code| d * IQ4[usize::from(code)]);
}

#[inline(always)]
pub(super) fn mxfp4<S: Simd>(_: S, block: &[u8; 17], values: &mut [f32; 32]) {
    let d = half_of_e8m0(block[0]);
    halves(&block[1..], values, |_, code| MXFP4[usize::from(code)] * d);
}

/// Codes of two bits: those of element `l` of each 32 lie in byte `l` of a half's 32, the first 32 lowest.
#[inline(always)]
fn two_bits(bytes: &[u8]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for (l, byte) in bytes.iter().enumerate() {
            codes[l] = byte & 3;
            codes[l + 32] = (byte >> 2) & 3;
            codes[l + 64] = (byte >> 4) & 3;
            codes[l + 96] = byte >> 6;
        }
    }
    codes
}

/// Codes of four bits: those of elements `l` and `l + 32` of each 64 share a byte.
#[inline(always)]
fn four_bits(bytes: &[u8]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (codes, bytes) in codes.as_chunks_mut::<32>().0.chunks_exact_mut(2).zip(bytes.as_chunks::<32>().0) {
        codes[0] = bytes.map(|byte| byte & 15);
        codes[1] = bytes.map(|byte| byte >> 4);
    }
    codes
}

/// Puts one more bit above the lowest `bits` of each code: that of element `l` of the `j`-th 32 is bit `j` of byte `l`.
#[inline(always)]
fn one_above(codes: &mut [u8; 256], bytes: &[u8], bits: u32) {
    for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code |= ((byte >> j) & 1) << bits;
        }
    }
}

#[inline(always)]
pub(super) fn q2_k<S: Simd>(s: S, block: &[u8; 84], values: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    let codes = two_bits(&block[16..80]);
    for ((values, codes), scale) in values.chunks_exact_mut(16).zip(codes.chunks_exact(16)).zip(&block[..16]) {
        scaled(s, codes, 0.0, d * f32::from(scale & 15), dmin * f32::from(scale >> 4), values);
    }
}

#[inline(always)]
pub(super) fn q3_k<S: Simd>(s: S, block: &[u8; 110], values: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let scales = q3_scales(&block[96..108]);
    let mut codes = two_bits(&block[32..96]);
    one_above(&mut codes, &block[..32], 2);
    for ((values, codes), scale) in values.chunks_exact_mut(16).zip(codes.chunks_exact(16)).zip(scales) {
        scaled(s, codes, 4.0, d * (f32::from(scale) - 32.0), 0.0, values);
    }
}

/// Groups of 32 with a scale and a minimum: Q4_K and Q5_K.
#[inline(always)]
fn k4<S: Simd>(s: S, block: &[u8], codes: &[u8; 256], values: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = k4_scales(&block[4..16]);
    for (group, (values, codes)) in values.chunks_exact_mut(32).zip(codes.chunks_exact(32)).enumerate() {
        scaled(s, codes, 0.0, d * f32::from(scales[group]), dmin * f32::from(mins[group]), values);
    }
}

#[inline(always)]
pub(super) fn q4_k<S: Simd>(s: S, block: &[u8; 144], values: &mut [f32; 256]) {
    k4(s, block, &four_bits(&block[16..]), values);
}

#[inline(always)]
pub(super) fn q5_k<S: Simd>(s: S, block: &[u8; 176], values: &mut [f32; 256]) {
    let mut codes = four_bits(&block[48..]);
    one_above(&mut codes, &block[16..48], 4);
    k4(s, block, &codes, values);
}

#[inline(always)]
pub(super) fn q6_k<S: Simd>(s: S, block: &[u8; 210], values: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    let mut codes = two_bits(&block[128..192]);
    for (codes, low) in codes.as_chunks_mut::<128>().0.iter_mut().zip(block.as_chunks::<64>().0) {
        for (l, byte) in low.iter().enumerate() {
            codes[l] = codes[l] << 4 | byte & 15;
            codes[l + 64] = codes[l + 64] << 4 | byte >> 4;
        }
    }
    for ((values, codes), &scale) in values.chunks_exact_mut(16).zip(codes.chunks_exact(16)).zip(&block[192..208]) {
        scaled(s, codes, 32.0, d * f32::from(scale as i8), 0.0, values);
    }
}

#[inline(always)]
pub(super) fn iq4_xs<S: Simd>(_: S, block: &[u8; 136], values: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let scales = xs_scales(&block[2..8]);
    for ((values, codes), scale) in values.chunks_exact_mut(32).zip(block[8..].chunks_exact(16)).zip(scales) {
        let step = d * (f32::from(scale) - 32.0);
        halves(codes, values, |_, code| step * IQ4[usize::from(code)]);
    }
}
