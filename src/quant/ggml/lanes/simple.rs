//! Blocks of 32 values with one scale; `reference::simple` is their specification.

use super::pack::{Part, nibbles, put, put_f16, put_words};
use super::round::{extreme, inverse};
use super::{Format, Tile, affine, symmetric, weigh};
use crate::kernels::{LANES, Lanes, Simd, Words};
use crate::quant::ggml::tables::{MXFP4, half_of_e8m0};
use crate::quant::ggml::tries::{Tries, exponent};

/// Bytes as they are.
const WHOLE: [Part; 1] = [Part { offset: 0, drop: 0, keep: 0xff, shift: 0 }];

/// The value of largest magnitude, and that magnitude.
#[inline(always)]
fn most<S: Simd>(s: S, x: &[Lanes]) -> (S::F, S::F) {
    let mut most = (s.splat(0.0), s.splat(0.0));
    for x in x {
        most = extreme(s, most, s.load(&x.0));
    }
    most
}

/// Writes 32 codes of four or five bits at the end of a block.
#[inline(always)]
fn put_codes<S: Simd>(s: S, codes: &[Words; 32], five: bool, blocks: &mut [u8]) {
    let at = blocks.len() / LANES - 16;
    if five {
        let mut fifth = s.isplat(0);
        for (i, code) in codes.iter().enumerate() {
            let bit = s.iand(s.shr(s.iload(&code.0), 4), s.isplat(1));
            fifth = s.ior(fifth, s.shl(bit, i as u32));
        }
        put_words(s, [fifth], blocks, at - 4);
    }
    put::<S, 4, 2>(s, codes, nibbles(16), blocks, at);
}

/// Rounded toward zero and no more than `high`. What has no finite quotient is zero.
#[inline(always)]
fn code<S: Simd>(s: S, x: S::F, high: u32) -> S::I {
    s.imin(s.iand(s.truncate(x), s.isplat(0xff)), s.isplat(high))
}

/// Q4_0 with 8 levels, Q5_0 with 16.
#[derive(Clone, Copy)]
pub(super) struct Symmetric {
    pub(super) levels: i32,
}

impl Format for Symmetric {
    const LEN: usize = 32;

    fn bytes(self) -> usize {
        if self.levels == 8 { 18 } else { 22 }
    }

    fn needs_spread(self) -> bool {
        true
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let x: &[Lanes; 32] = tile.x.first_chunk().expect("a block has 32 values");
        let mut codes = [Words::ZERO; 32];
        if let Some((importance, spread)) = tile.importance {
            let mut weights = [Lanes::ZERO; 32];
            weigh(s, x, importance, s.load(&spread.0), &mut weights);
            let found = symmetric::search(s, x, &weights, self.levels);
            put_f16(s, found.scale, blocks, 0);
            found.codes(s, x, self.levels, &mut codes);
        } else {
            let levels = self.levels as f32;
            let d = s.div(most(s, x).0, s.splat(-levels));
            put_f16(s, d, blocks, 0);
            let inverse = inverse(s, d);
            for (to, x) in codes.iter_mut().zip(x) {
                let q = s.add(s.mul(s.load(&x.0), inverse), s.splat(levels + 0.5));
                s.istore(code(s, q, 2 * self.levels as u32 - 1), &mut to.0);
            }
        }
        put_codes(s, &codes, self.levels == 16, blocks);
    }
}

/// Q4_1 with 15 levels, Q5_1 with 31.
#[derive(Clone, Copy)]
pub(super) struct Affine {
    pub(super) levels: i32,
}

impl Format for Affine {
    const LEN: usize = 32;

    fn bytes(self) -> usize {
        if self.levels == 15 { 20 } else { 24 }
    }

    fn needs_spread(self) -> bool {
        true
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let mut codes = [Words::ZERO; 32];
        let (d, m);
        if let Some((importance, spread)) = tile.importance {
            let mut weights = [Lanes::ZERO; 32];
            weigh(s, tile.x, importance, s.load(&spread.0), &mut weights);
            let group = affine::Group { x: tile.x, weights: &weights };
            let [found] = affine::search::<S, 32, 1>(s, [group], Tries::weighted(self.levels));
            found.codes(s, tile.x, self.levels, &mut codes);
            (d, m) = (found.scale, s.floats(s.isub(s.bits(found.subtracted), s.isplat(1 << 31))));
        } else {
            let (mut min, mut max) = (s.splat(f32::MAX), s.splat(-f32::MAX));
            for x in tile.x {
                let x = s.load(&x.0);
                min = s.min(x, min);
                max = s.max(x, max);
            }
            (d, m) = (s.div(s.sub(max, min), s.splat(self.levels as f32)), min);
            let inverse = inverse(s, d);
            for (to, x) in codes.iter_mut().zip(tile.x) {
                let q = s.add(s.mul(s.sub(s.load(&x.0), min), inverse), s.splat(0.5));
                s.istore(code(s, q, self.levels as u32), &mut to.0);
            }
        }
        put_f16(s, d, blocks, 0);
        put_f16(s, m, blocks, 2);
        put_codes(s, &codes, self.levels == 31, blocks);
    }
}

/// Q8_0.
#[derive(Clone, Copy)]
pub(super) struct Q8;

impl Format for Q8 {
    const LEN: usize = 32;

    fn bytes(self) -> usize {
        34
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        // Adding 2^23 rounds to an integer, ties to even.
        let (rounder, sign) = (s.splat(8_388_608.0), s.isplat(1 << 31));
        let d = s.div(most(s, tile.x).1, s.splat(127.0));
        put_f16(s, d, blocks, 0);
        let inverse = inverse(s, d);
        let mut codes = [Words::ZERO; 32];
        for (to, x) in codes.iter_mut().zip(tile.x) {
            let quotient = s.mul(s.load(&x.0), inverse);
            let size = s.abs(quotient);
            let even = s.sub(s.add(size, rounder), rounder);
            // A tie that went down goes away from zero instead.
            let away = s.select_lt(s.sub(size, even), s.splat(0.5), even, s.add(even, s.splat(1.0)));
            let rounded = s.floats(s.ior(s.bits(away), s.iand(s.bits(quotient), sign)));
            s.istore(s.truncate(rounded), &mut to.0);
        }
        put::<S, 8, 1>(s, &codes, WHOLE, blocks, 2);
    }
}

/// MXFP4.
#[derive(Clone, Copy)]
pub(super) struct Mxfp4;

impl Format for Mxfp4 {
    const LEN: usize = 32;

    fn bytes(self) -> usize {
        17
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let mut magnitude = [0.0; LANES];
        s.store(most(s, tile.x).1, &mut magnitude);
        let mut d = [0.0; LANES];
        for ((block, d), magnitude) in blocks.chunks_exact_mut(17).zip(&mut d).zip(magnitude) {
            block[0] = exponent(magnitude);
            *d = half_of_e8m0(block[0]);
        }
        let d = s.load(&d);
        let mut codes = [Words::ZERO; 32];
        for (to, x) in codes.iter_mut().zip(tile.x) {
            let x = s.load(&x.0);
            let (mut best, mut least) = (s.splat(0.0), s.abs(s.sub(s.mul(s.splat(MXFP4[0]), d), x)));
            for (i, &value) in MXFP4.iter().enumerate().skip(1) {
                let error = s.abs(s.sub(s.mul(s.splat(value), d), x));
                best = s.select_lt(error, least, s.splat(i as f32), best);
                least = s.min(error, least);
            }
            s.istore(s.truncate(best), &mut to.0);
        }
        put::<S, 4, 2>(s, &codes, nibbles(16), blocks, 1);
    }
}
