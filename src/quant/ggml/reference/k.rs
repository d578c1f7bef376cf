//! Blocks of 256 values: groups with scales, and scales with a scale.

use super::fields::{put_f16, put_k4_scales, put_q3_scales};
use super::rounding::nearest;
use super::search::{self, extreme};
use super::{square_sum, weigh};
use crate::quant::ggml::fields::{k4_scales, q3_scales};
use crate::quant::ggml::tries::{TINY, Tries};

/// Codes of groups of `N` values again, for scales and minima as they were stored; where the scale is zero they stay.
fn again(x: &[f32], step: f32, base: f32, range: (i32, i32), codes: &mut [u8]) {
    if step == 0.0 {
        return;
    }
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (nearest((x + base) / step).clamp(range.0, range.1) - range.0) as u8;
    }
}

/// Two bits of each code: of every 128, the first 32 lowest.
fn pack_two_bits(codes: &[u8; 256], bytes: &mut [u8]) {
    for (half, bytes) in codes.chunks_exact(128).zip(bytes.chunks_exact_mut(32)) {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = half[l] & 3 | (half[l + 32] & 3) << 2 | (half[l + 64] & 3) << 4 | half[l + 96] << 6;
        }
    }
}

/// Groups of a block with a scale and a minimum each.
struct Groups<const N: usize> {
    scales: [f32; N],
    mins: [f32; N],
    weights: [f32; N],
}

/// Chooses scale, minimum and codes of `N` groups; `weigh` says how much each value of a group counts.
fn choose<const N: usize>(
    x: &[f32],
    tries: Tries,
    codes: &mut [u8; 256],
    weigh: impl Fn(usize, &[f32], &mut [f32]),
) -> Groups<N> {
    let len = 256 / N;
    let mut groups = Groups { scales: [0.0; N], mins: [0.0; N], weights: [0.0; N] };
    for (j, (x, codes)) in x.chunks_exact(len).zip(codes.chunks_exact_mut(len)).enumerate() {
        let mut weights = [0.0; 32];
        let weights = &mut weights[..len];
        weigh(j, x, weights);
        groups.weights[j] = weights.iter().fold(0.0, |sum, w| sum + w);
        (groups.scales[j], groups.mins[j]) = search::affine(x, weights, tries, codes);
    }
    groups
}

/// The largest, at least zero.
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max, &x| if x > max { x } else { max })
}

pub(super) fn q2(x: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let tries = Tries::q2(importance.is_some());
    let mut codes = [0; 256];
    let mut packed = [0; 16];
    let (d, dmin);
    if let Some(importance) = importance {
        let spread = square_sum(x) / 256.0;
        let groups = choose::<16>(x, tries, &mut codes, |j, x, w| weigh(x, &importance[16 * j..], spread, w));
        let (mut scales, mut mins) = ([0; 16], [0; 16]);
        d = search::of_scales(&groups.scales, &groups.weights, 15, &mut scales);
        dmin = search::of_scales(&groups.mins, &groups.weights, 15, &mut mins);
        for (j, packed) in packed.iter_mut().enumerate() {
            *packed = scales[j] | mins[j] << 4;
        }
    } else {
        let groups = choose::<16>(x, tries, &mut codes, |_, x, w| {
            for (w, x) in w.iter_mut().zip(x) {
                *w = x.abs();
            }
        });
        let (scale, min) = (largest(&groups.scales), largest(&groups.mins));
        (d, dmin) = (scale / 15.0, min / 15.0);
        for (j, packed) in packed.iter_mut().enumerate() {
            if scale > 0.0 {
                *packed = nearest(15.0 / scale * groups.scales[j]) as u8;
            }
            if min > 0.0 {
                *packed |= (nearest(15.0 / min * groups.mins[j]) << 4) as u8;
            }
        }
    }
    block[..16].copy_from_slice(&packed);
    let (d, dmin) = (put_f16(block, 80, d), put_f16(block, 82, dmin));
    for (j, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let (step, base) = (d * f32::from(packed[j] & 15), dmin * f32::from(packed[j] >> 4));
        again(x, step, base, (0, 3), codes);
    }
    pack_two_bits(&codes, &mut block[16..80]);
}

pub(super) fn q3(x: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let mut codes = [0; 256];
    let (mut scales, mut sums, mut six) = ([0.0; 16], [0.0; 16], [0; 16]);
    let groups = || x.chunks_exact(16).enumerate();
    let d = if let Some(importance) = importance {
        let spread = 2.0 * square_sum(x) / 256.0;
        for (j, x) in groups() {
            let mut weights = [0.0; 16];
            weigh(x, &importance[16 * j..], spread, &mut weights);
            sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
            scales[j] = search::symmetric(x, Some(&weights), 4, &mut codes[16 * j..][..16]);
        }
        search::symmetric(&scales, Some(&sums), 32, &mut six)
    } else {
        for (j, x) in groups() {
            scales[j] = search::by_moves(x, &mut codes[16 * j..][..16]);
        }
        let largest = extreme(&scales).0;
        let inverse = -32.0 / largest;
        if largest != 0.0 {
            for (six, scale) in six.iter_mut().zip(scales) {
                *six = (i32::from(nearest(inverse * scale) as i8).clamp(-32, 31) + 32) as u8;
            }
        }
        if largest != 0.0 { 1.0 / inverse } else { 0.0 }
    };
    put_q3_scales(&mut block[96..108], &six);
    let d = put_f16(block, 108, d);
    let six = q3_scales(&block[96..108]);
    for (j, x) in groups() {
        again(x, d * (f32::from(six[j]) - 32.0), 0.0, (-4, 3), &mut codes[16 * j..][..16]);
    }
    pack_two_bits(&codes, &mut block[32..96]);
    block[..32].fill(0);
    for (element, code) in codes.iter().enumerate() {
        block[element % 32] |= u8::from(*code > 3) << (element / 32);
    }
}

/// What Q4_K and Q5_K share: scale, minimum and codes up to `levels`. Bytes 0 to 16 of the block are written.
fn affine(x: &[f32], importance: Option<&[f32]>, levels: i32, block: &mut [u8]) -> [u8; 256] {
    let tries = Tries::k4(levels, importance.is_some());
    let mut codes = [0; 256];
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    let (d, dmin);
    if let Some(importance) = importance {
        let spread = 2.0 * square_sum(x) / 256.0;
        let groups = choose::<8>(x, tries, &mut codes, |j, x, w| weigh(x, &importance[32 * j..], spread, w));
        d = search::of_scales(&groups.scales, &groups.weights, 63, &mut scales);
        dmin = search::of_scales(&groups.mins, &groups.weights, 63, &mut mins);
        if levels == 31 {
            (scales, mins) = (scales.map(|scale| scale.min(63)), mins.map(|min| min.min(63)));
        }
    } else {
        let groups = choose::<8>(x, tries, &mut codes, |_, x, w| {
            let root = (square_sum(x) / 32.0).sqrt();
            for (w, x) in w.iter_mut().zip(x) {
                *w = root + x.abs();
            }
        });
        let (scale, min) = (largest(&groups.scales), largest(&groups.mins));
        (d, dmin) = (scale / 63.0, min / 63.0);
        let inverse = |x: f32| if x > 0.0 { 63.0 / x } else { 0.0 };
        for j in 0..8 {
            scales[j] = (nearest(inverse(scale) * groups.scales[j]) as u8).min(63);
            mins[j] = (nearest(inverse(min) * groups.mins[j]) as u8).min(63);
        }
    }
    let (d, dmin) = (put_f16(block, 0, d), put_f16(block, 2, dmin));
    put_k4_scales(&mut block[4..16], &scales, &mins);
    let (scales, mins) = k4_scales(&block[4..16]);
    for (j, (x, codes)) in x.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        again(x, d * f32::from(scales[j]), dmin * f32::from(mins[j]), (0, levels), codes);
    }
    codes
}

/// Lower four bits of codes: of every 64, the first 32 low.
fn pack_four_bits(codes: &[u8; 256], bytes: &mut [u8]) {
    for (codes, bytes) in codes.chunks_exact(64).zip(bytes.chunks_exact_mut(32)) {
        for (l, byte) in bytes.iter_mut().enumerate() {
            *byte = codes[l] & 15 | codes[l + 32] << 4;
        }
    }
}

pub(super) fn q4(x: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let codes = affine(x, importance, 15, block);
    pack_four_bits(&codes, &mut block[16..]);
}

pub(super) fn q5(x: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let codes = affine(x, importance, 31, block);
    pack_four_bits(&codes, &mut block[48..]);
    block[16..48].fill(0);
    for (element, code) in codes.iter().enumerate() {
        block[16 + element % 32] |= (code >> 4) << (element / 32);
    }
}

pub(super) fn q6(x: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let mut codes = [0; 256];
    let mut scales = [0.0; 16];
    for (j, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        scales[j] = search::symmetric(x, importance.map(|all| &all[16 * j..]), 32, codes);
    }
    let (scale, magnitude) = extreme(&scales);
    if magnitude < TINY {
        block.fill(0);
        return;
    }
    let inverse = -128.0 / scale;
    let d = put_f16(block, 208, 1.0 / inverse);
    for (j, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let eight = nearest(inverse * scales[j]).min(127) as i8;
        block[192 + j] = eight as u8;
        again(x, d * f32::from(eight), 0.0, (-32, 31), codes);
    }
    for (half, codes) in codes.chunks_exact(128).enumerate() {
        for l in 0..32 {
            let [a, b, c, d] = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
            block[64 * half + l] = a & 15 | c << 4;
            block[64 * half + 32 + l] = b & 15 | d << 4;
            block[128 + 32 * half + l] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
}
