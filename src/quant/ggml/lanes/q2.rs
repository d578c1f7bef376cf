//! Q2_K: sixteen groups of 16 with scale and minimum.

use super::affine::{self, Found, Group};
use super::pack::{pairs, put, put_f16, put_words};
use super::round::{any_zero, byte, float, shifted};
use super::{Format, Tile, again, scales, square_sum, weigh};
use crate::kernels::{Lanes, Simd, Words};
use crate::quant::ggml::tries::Tries;

#[derive(Clone, Copy)]
pub(super) struct Q2;

impl Format for Q2 {
    const LEN: usize = 256;

    fn bytes(self) -> usize {
        84
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let tries = Tries::q2(tile.importance.is_some());
        let spread = s.div(square_sum(s, tile.x), s.splat(256.0));
        let mut weights = [Lanes::ZERO; 32];
        let mut found = Vec::with_capacity(16);
        let mut sums = [s.splat(0.0); 16];
        for (pair, x) in tile.x.chunks_exact(32).enumerate() {
            if let Some((importance, _)) = tile.importance {
                weigh(s, x, &importance[32 * pair..], spread, &mut weights);
            } else {
                for (weight, x) in weights.iter_mut().zip(x) {
                    s.store(s.abs(s.load(&x.0)), &mut weight.0);
                }
            }
            for (i, weight) in weights.iter().enumerate() {
                let sum = &mut sums[2 * pair + i / 16];
                *sum = s.add(*sum, s.load(&weight.0));
            }
            let first = Group { x: &x[..16], weights: &weights[..16] };
            let second = Group { x: &x[16..], weights: &weights[16..] };
            found.extend(affine::search::<S, 16, 2>(s, [first, second], tries));
        }
        let (d, dmin, packed) = of_groups(s, &found, &sums, tile.importance.is_some());
        let (d, dmin) = (put_f16(s, d, blocks, 80), put_f16(s, dmin, blocks, 82));
        let mut codes = [Words::ZERO; 256];
        let mut words = [s.isplat(0); 4];
        for (j, found) in found.iter().enumerate() {
            words[j / 4] = s.ior(words[j / 4], s.shl(packed[j], 8 * (j % 4) as u32));
            let step = s.mul(d, float(s, s.iand(packed[j], s.isplat(15))));
            let base = s.mul(dmin, float(s, s.shr(packed[j], 4)));
            let (x, codes) = (&tile.x[16 * j..][..16], &mut codes[16 * j..][..16]);
            if any_zero(s, step) {
                found.codes(s, x, 3, codes);
            }
            again(s, x, step, base, (0, 3), codes);
        }
        put_words(s, words, blocks, 0);
        for half in 0..2 {
            put::<S, 8, 4>(s, &codes[128 * half..], pairs(0), blocks, 16 + 32 * half);
        }
    }
}

/// Scale of scales, scale of minima, and a byte with both for each group.
#[inline(always)]
fn of_groups<S: Simd>(s: S, found: &[Found<S>], sums: &[S::F; 16], weighted: bool) -> (S::F, S::F, [S::I; 16]) {
    let zero = s.splat(0.0);
    let (mut scale, mut min) = ([zero; 16], [zero; 16]);
    for (j, found) in found.iter().enumerate() {
        (scale[j], min[j]) = (found.scale, found.subtracted);
    }
    let ((d, scales), (dmin, mins)) = if weighted {
        (scales::search(s, &scale, sums, 15), scales::search(s, &min, sums, 15))
    } else {
        (by_largest(s, &scale), by_largest(s, &min))
    };
    let mut packed = scales;
    for (packed, min) in packed.iter_mut().zip(mins) {
        *packed = s.iand(s.ior(*packed, s.shl(min, 4)), s.isplat(0xff));
    }
    (d, dmin, packed)
}

/// The largest scale gets the code 15.
#[inline(always)]
fn by_largest<S: Simd>(s: S, x: &[S::F; 16]) -> (S::F, [S::I; 16]) {
    let zero = s.splat(0.0);
    let mut largest = zero;
    for &x in x {
        largest = s.max(x, largest);
    }
    let inverse = s.select_lt(zero, largest, s.div(s.splat(15.0), largest), zero);
    let mut codes = [s.isplat(0); 16];
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = byte(s, shifted(s, s.mul(inverse, x)));
    }
    (s.select_lt(zero, largest, s.div(largest, s.splat(15.0)), zero), codes)
}
