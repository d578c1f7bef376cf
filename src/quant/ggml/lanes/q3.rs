//! Q3_K: sixteen groups of 16 with a scale.

use super::pack::{bits, pairs, put, put_f16, put_words};
use super::round::{ROUNDER, any_zero, bounded, byte, extreme, float, mask_lt, shifted, value};
use super::{Format, Tile, again, square_sum, symmetric, weigh};
use crate::kernels::{Lanes, Simd, Words};
use crate::quant::ggml::tries::TINY;

#[derive(Clone, Copy)]
pub(super) struct Q3;

impl Format for Q3 {
    const LEN: usize = 256;

    fn bytes(self) -> usize {
        110
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let mut codes = [Words::ZERO; 256];
        let (d, six) = match tile.importance {
            Some((importance, _)) => weighted(s, tile.x, importance, &mut codes),
            None => alone(s, tile.x, &mut codes),
        };
        let d = put_f16(s, d, blocks, 108);
        let mut words = [s.isplat(0); 3];
        for (j, &six) in six.iter().enumerate() {
            let low = s.shl(s.iand(six, s.isplat(15)), 8 * (j % 4) as u32 + 4 * (j / 8) as u32);
            words[j / 4 % 2] = s.ior(words[j / 4 % 2], low);
            let high = s.shl(s.shr(six, 4), 8 * (j % 4) as u32 + 2 * (j / 4) as u32);
            words[2] = s.ior(words[2], high);
            let step = s.mul(d, s.sub(float(s, six), s.splat(32.0)));
            let group = 16 * j..16 * j + 16;
            again(s, &tile.x[group.clone()], step, s.splat(0.0), (-4, 3), &mut codes[group]);
        }
        put_words(s, words, blocks, 96);
        put::<S, 8, 8>(s, &codes, bits(2), blocks, 0);
        for half in 0..2 {
            put::<S, 8, 4>(s, &codes[128 * half..], pairs(0), blocks, 32 + 32 * half);
        }
    }
}

/// With importance: scale of scales, scales in six bits, codes.
#[inline(always)]
fn weighted<S: Simd>(s: S, x: &[Lanes], importance: &[Lanes], codes: &mut [Words; 256]) -> (S::F, [S::I; 16]) {
    let spread = s.div(s.mul(s.splat(2.0), square_sum(s, x)), s.splat(256.0));
    let (mut scales, mut sums) = ([Lanes::ZERO; 16], [Lanes::ZERO; 16]);
    for (j, x) in x.as_chunks().0.iter().enumerate() {
        let mut weights = [Lanes::ZERO; 16];
        weigh(s, x, &importance[16 * j..], spread, &mut weights);
        let mut sum = s.splat(0.0);
        for weight in &weights {
            sum = s.add(sum, s.load(&weight.0));
        }
        s.store(sum, &mut sums[j].0);
        let found = symmetric::search(s, x, &weights, 4);
        s.store(found.scale, &mut scales[j].0);
        found.codes(s, x, 4, &mut codes[16 * j..][..16]);
    }
    let found = symmetric::search(s, &scales, &sums, 32);
    let mut stored = [Words::ZERO; 16];
    found.codes(s, &scales, 32, &mut stored);
    let mut six = [s.isplat(0); 16];
    for (six, stored) in six.iter_mut().zip(&stored) {
        *six = s.iload(&stored.0);
    }
    (found.scale, six)
}

/// The same without importance.
#[inline(always)]
fn alone<S: Simd>(s: S, x: &[Lanes], codes: &mut [Words; 256]) -> (S::F, [S::I; 16]) {
    let zero = s.splat(0.0);
    let mut scales = [zero; 16];
    let mut most = (zero, zero);
    for (j, x) in x.as_chunks().0.iter().enumerate() {
        scales[j] = by_moves(s, x, &mut codes[16 * j..][..16]);
        most = extreme(s, most, scales[j]);
    }
    let none = any_zero(s, most.0);
    let inverse = s.div(s.splat(-32.0), most.0);
    let (low, high) = (s.splat(ROUNDER - 32.0), s.splat(ROUNDER + 31.0));
    let mut six = [s.isplat(0); 16];
    for (six, &scale) in six.iter_mut().zip(&scales) {
        // Between rounding and bounding, C stores a signed byte.
        let byte_of = byte(s, s.add(shifted(s, s.mul(inverse, scale)), s.splat(128.0)));
        let signed = s.add(s.sub(float(s, byte_of), s.splat(128.0)), s.splat(ROUNDER));
        *six = byte(s, s.add(s.min(s.max(signed, low), high), s.splat(32.0)));
    }
    let mut d = s.div(s.splat(1.0), inverse);
    if none {
        let live = s.isub(s.isplat(u32::MAX), mask_lt(s, most.1, s.splat(f32::from_bits(1))));
        d = s.floats(s.iand(s.bits(d), live));
        for six in &mut six {
            *six = s.iand(*six, live);
        }
    }
    (d, six)
}

/// Codes, 4 added, and the scale of a group; `reference::search::by_moves` is the specification.
#[inline(always)]
fn by_moves<S: Simd>(s: S, x: &[Lanes; 16], codes: &mut [Words]) -> S::F {
    let (zero, never) = (s.splat(0.0), s.splat(f32::NEG_INFINITY));
    let (low, high) = (s.splat(ROUNDER - 4.0), s.splat(ROUNDER + 3.0));
    let mut most = (zero, zero);
    for x in x {
        most = extreme(s, most, s.load(&x.0));
    }
    let live = s.isub(s.isplat(u32::MAX), mask_lt(s, most.1, s.splat(TINY)));
    let inverse = s.div(s.splat(-4.0), most.0);
    let mut chosen = [zero; 16];
    let (mut xq, mut qq) = (zero, zero);
    for (q, x) in chosen.iter_mut().zip(x) {
        let x = s.load(&x.0);
        *q = value(s, bounded(s, s.mul(inverse, x), low, high));
        let w = s.mul(x, x);
        xq = s.add(xq, s.mul(s.mul(w, x), *q));
        qq = s.add(qq, s.mul(s.mul(w, *q), *q));
    }
    for _ in 0..5 {
        let mut moved = false;
        for (q, x) in chosen.iter_mut().zip(x) {
            let x = s.load(&x.0);
            let w = s.mul(x, x);
            let wx = s.mul(w, x);
            let less_xq = s.sub(xq, s.mul(wx, *q));
            let less_qq = s.sub(qq, s.mul(s.mul(w, *q), *q));
            let new = value(s, bounded(s, s.div(s.mul(x, less_qq), less_xq), low, high));
            let new_xq = s.add(less_xq, s.mul(wx, new));
            let new_qq = s.add(less_qq, s.mul(s.mul(w, new), new));
            let mut gain = s.mul(s.mul(new_xq, new_xq), qq);
            gain = s.select_lt(zero, less_xq, gain, never);
            gain = s.select_lt(zero, new_qq, gain, never);
            gain = s.select_lt(zero, s.abs(s.sub(new, *q)), gain, never);
            let bar = s.mul(s.mul(xq, xq), new_qq);
            if s.any_lt(bar, gain) {
                moved = true;
                *q = s.select_lt(bar, gain, new, *q);
                xq = s.select_lt(bar, gain, new_xq, xq);
                qq = s.select_lt(bar, gain, new_qq, qq);
            }
        }
        if !moved {
            break;
        }
    }
    for (code, q) in codes.iter_mut().zip(chosen) {
        let stored = byte(s, s.add(q, s.splat(ROUNDER + 4.0)));
        s.istore(s.iand(stored, live), &mut code.0);
    }
    let scale = s.select_lt(zero, qq, s.div(xq, qq), zero);
    s.floats(s.iand(s.bits(scale), live))
}
