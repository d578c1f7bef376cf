//! Blocks of 32 values with one scale.

use super::fields::put_f16;
use super::rounding::truncate;
use super::search::{self, extreme};
use super::weigh;
use crate::quant::ggml::tables::{MXFP4, half_of_e8m0};
use crate::quant::ggml::tries::{Tries, exponent};

/// Puts 32 codes into sixteen bytes: element `j` low, `j + 16` high. Bits above the fourth go to `fifth`.
fn pack(codes: &[u8; 32], bytes: &mut [u8]) {
    for (j, byte) in bytes.iter_mut().enumerate() {
        *byte = codes[j] & 15 | codes[j + 16] << 4;
    }
}

/// The fifth bits of 32 codes as a little-endian word.
fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    codes.iter().enumerate().fold(0_u32, |word, (i, code)| word | u32::from(code >> 4 & 1) << i).to_le_bytes()
}

/// Q4_0 (`levels` 8) and Q5_0 (16): `d * (q - levels)`.
pub(super) fn symmetric(x: &[f32], importance: Option<(&[f32], f32)>, levels: i32, block: &mut [u8]) {
    let mut codes = [0; 32];
    if let Some((importance, spread)) = importance {
        let mut weights = [0.0; 32];
        weigh(x, importance, spread, &mut weights);
        let d = search::symmetric(x, Some(&weights), levels, &mut codes);
        put_f16(block, 0, d);
    } else {
        let d = extreme(x).0 / -levels as f32;
        let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
        put_f16(block, 0, d);
        for (code, x) in codes.iter_mut().zip(x) {
            let q = truncate(x * inverse + (levels as f32 + 0.5)) as i8;
            *code = i32::from(q).min(2 * levels - 1) as u8;
        }
    }
    if levels == 16 {
        block[2..6].copy_from_slice(&fifth_bits(&codes));
        pack(&codes, &mut block[6..]);
    } else {
        for (j, byte) in block[2..].iter_mut().enumerate() {
            *byte = codes[j] | codes[j + 16] << 4;
        }
    }
}

/// Q4_1 (`levels` 15) and Q5_1 (31): `d * q + m`.
pub(super) fn affine(x: &[f32], importance: Option<(&[f32], f32)>, levels: i32, block: &mut [u8]) {
    let mut codes = [0; 32];
    let (d, m);
    if let Some((importance, spread)) = importance {
        let mut weights = [0.0; 32];
        weigh(x, importance, spread, &mut weights);
        let (scale, subtracted) = search::affine(x, &weights, Tries::weighted(levels), &mut codes);
        (d, m) = (scale, -subtracted);
    } else {
        let (mut min, mut max) = (f32::MAX, -f32::MAX);
        for &x in x {
            min = if x < min { x } else { min };
            max = if x > max { x } else { max };
        }
        (d, m) = ((max - min) / levels as f32, min);
        let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
        for (code, x) in codes.iter_mut().zip(x) {
            let q = truncate((x - min) * inverse + 0.5);
            // ggml bounds the codes of Q4_1 as signed bytes, and those of Q5_1 not at all.
            *code = if levels == 15 { i32::from(q as i8).min(15) as u8 } else { q as u8 };
        }
    }
    put_f16(block, 0, d);
    put_f16(block, 2, m);
    if levels == 31 {
        block[4..8].copy_from_slice(&fifth_bits(&codes));
        pack(&codes, &mut block[8..]);
    } else {
        for (j, byte) in block[4..].iter_mut().enumerate() {
            *byte = codes[j] | codes[j + 16] << 4;
        }
    }
}

/// Q8_0: `d * q`, rounded half away from zero.
pub(super) fn q8_0(x: &[f32], block: &mut [u8]) {
    let d = extreme(x).1 / 127.0;
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    put_f16(block, 0, d);
    for (code, x) in block[2..].iter_mut().zip(x) {
        *code = truncate((x * inverse).round()) as u8;
    }
}

/// MXFP4: an exponent, and the nearest of sixteen values, the first of equals.
pub(super) fn mxfp4(x: &[f32], block: &mut [u8]) {
    block[0] = exponent(extreme(x).1);
    let d = half_of_e8m0(block[0]);
    let nearest = |x: f32| {
        let (mut best, mut least) = (0, (MXFP4[0] * d - x).abs());
        for (i, value) in MXFP4.iter().enumerate().skip(1) {
            let error = (value * d - x).abs();
            if error < least {
                (best, least) = (i as u8, error);
            }
        }
        best
    };
    for (j, byte) in block[1..].iter_mut().enumerate() {
        *byte = nearest(x[j]) | nearest(x[j + 16]) << 4;
    }
}
