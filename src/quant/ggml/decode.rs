//! From blocks to values, one function for each type, after the layouts in `ggml/src/ggml-common.h` (ggml 0.25).
//!
//! The order of operations is that of `dequantize_row_*` (`ggml/src/ggml-quants.c`) and of Python's `gguf.quants`, which
//! agree bit for bit. It must not know where blocks come from.

use super::fields::{f16_at, k4_scales, q3_scales, xs_scales};
use super::tables::{IQ4, MXFP4, half_of_e8m0};

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
pub(super) fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    halves(&block[2..], values, |_, code| (f32::from(code) - 8.0) * d);
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    halves(&block[4..], values, |_, code| f32::from(code) * d + m);
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
pub(super) fn q5_0(block: &[u8; 22], values: &mut [f32; 32]) {
    let (d, bits) = (f16_at(block, 0), fifth_bits(block, 2));
    halves(&block[6..], values, |element, code| (with_fifth(code, bits, element) - 16.0) * d);
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m, bits) = (f16_at(block, 0), f16_at(block, 2), fifth_bits(block, 4));
    halves(&block[8..], values, |element, code| with_fifth(code, bits, element) * d + m);
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (value, &code) in values.iter_mut().zip(&block[2..]) {
        *value = f32::from(code as i8) * d;
    }
}

#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], values: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    halves(&block[2..], values, |_, code| d * IQ4[usize::from(code)]);
}

#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], values: &mut [f32; 32]) {
    let d = half_of_e8m0(block[0]);
    halves(&block[1..], values, |_, code| MXFP4[usize::from(code)] * d);
}

/// Codes of two bits: those of element `l` of each 32 lie in byte `l` of a half's 32, the first 32 lowest.
#[inline(always)]
fn two_bits(codes: &[u8], element: usize) -> u8 {
    let (half, group, l) = (element / 128, element / 32 % 4, element % 32);
    (codes[32 * half + l] >> (2 * group)) & 3
}

#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], values: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (group, (values, scale)) in values.chunks_exact_mut(16).zip(&block[..16]).enumerate() {
        let (step, base) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        for (l, value) in values.iter_mut().enumerate() {
            *value = step * f32::from(two_bits(&block[16..80], 16 * group + l)) - base;
        }
    }
}

#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], values: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let scales = q3_scales(&block[96..108]);
    for (group, (values, scale)) in values.chunks_exact_mut(16).zip(scales).enumerate() {
        let step = d * (f32::from(scale) - 32.0);
        for (l, value) in values.iter_mut().enumerate() {
            let element = 16 * group + l;
            let high = (block[element % 32] >> (element / 32)) & 1;
            let code = two_bits(&block[32..96], element) | high << 2;
            *value = step * (f32::from(code) - 4.0);
        }
    }
}

#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = k4_scales(&block[4..16]);
    for (pair, (values, codes)) in values.chunks_exact_mut(64).zip(block[16..].chunks_exact(32)).enumerate() {
        for (high, values) in values.chunks_exact_mut(32).enumerate() {
            let group = 2 * pair + high;
            let (step, base) = (d * f32::from(scales[group]), dmin * f32::from(mins[group]));
            for (value, code) in values.iter_mut().zip(codes) {
                *value = step * f32::from((code >> (4 * high)) & 15) - base;
            }
        }
    }
}

#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], values: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = k4_scales(&block[4..16]);
    for (pair, (values, codes)) in values.chunks_exact_mut(64).zip(block[48..].chunks_exact(32)).enumerate() {
        for (high, values) in values.chunks_exact_mut(32).enumerate() {
            let group = 2 * pair + high;
            let (step, base) = (d * f32::from(scales[group]), dmin * f32::from(mins[group]));
            for ((value, code), fifth) in values.iter_mut().zip(codes).zip(&block[16..48]) {
                let code = (code >> (4 * high)) & 15 | ((fifth >> group) & 1) << 4;
                *value = step * f32::from(code) - base;
            }
        }
    }
}

#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    for (group, (values, &scale)) in values.chunks_exact_mut(16).zip(&block[192..208]).enumerate() {
        let step = d * f32::from(scale as i8);
        for (l, value) in values.iter_mut().enumerate() {
            let element = 16 * group + l;
            let (half, part, l) = (element / 128, element / 32 % 4, element % 32);
            let low = (block[64 * half + 32 * (part % 2) + l] >> (4 * (part / 2))) & 15;
            let high = two_bits(&block[128..192], element);
            *value = step * (f32::from(low | high << 4) - 32.0);
        }
    }
}

#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], values: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let scales = xs_scales(&block[2..8]);
    for ((values, codes), scale) in values.chunks_exact_mut(32).zip(block[8..].chunks_exact(16)).zip(scales) {
        let step = d * (f32::from(scale) - 32.0);
        halves(codes, values, |_, code| step * IQ4[usize::from(code)]);
    }
}
