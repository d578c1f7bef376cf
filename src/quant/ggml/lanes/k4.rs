//! Q4_K and Q5_K: eight groups of 32 with scale and minimum.

use super::affine::{self, Found, Group};
use super::pack::{bits, nibbles, put, put_f16, put_words};
use super::round::{byte, float, shifted};
use super::{Format, Tile, again, scales, square_sum, weigh};
use crate::kernels::{Lanes, Simd, Words};
use crate::quant::ggml::tries::Tries;

/// Q4_K with 15 levels, Q5_K with 31.
#[derive(Clone, Copy)]
pub(super) struct K4 {
    pub(super) levels: i32,
}

impl Format for K4 {
    const LEN: usize = 256;

    fn bytes(self) -> usize {
        if self.levels == 15 { 144 } else { 176 }
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let mut weights = [Lanes::ZERO; 64];
        let mut found = Vec::with_capacity(8);
        let mut sums = [s.splat(0.0); 8];
        let tries = Tries::k4(self.levels, tile.importance.is_some());
        let spread = s.div(s.mul(s.splat(2.0), square_sum(s, tile.x)), s.splat(256.0));
        for pair in 0..4 {
            let x = &tile.x[64 * pair..][..64];
            if let Some((importance, _)) = tile.importance {
                weigh(s, x, &importance[64 * pair..], spread, &mut weights);
            }
            let (first, second) = x.split_at(32);
            for (j, x) in [first, second].into_iter().enumerate() {
                let weights = &mut weights[32 * j..][..32];
                if tile.importance.is_none() {
                    by_magnitude(s, x, weights);
                }
                for w in weights {
                    sums[2 * pair + j] = s.add(sums[2 * pair + j], s.load(&w.0));
                }
            }
            let group = |j: usize| Group { x: &x[32 * j..][..32], weights: &weights[32 * j..][..32] };
            found.extend(affine::search::<S, 32, 2>(s, [group(0), group(1)], tries));
        }
        let (d, dmin, packed) = self.scales(s, &found, &sums, tile.importance.is_some());
        let (d, dmin) = (put_f16(s, d, blocks, 0), put_f16(s, dmin, blocks, 2));
        put_words(s, packed, blocks, 4);
        let mut codes = [Words::ZERO; 256];
        for (j, found) in found.iter().enumerate() {
            let (scale, min) = unpacked(s, &packed, j);
            let (step, base) = (s.mul(d, float(s, scale)), s.mul(dmin, float(s, min)));
            let (x, codes) = (&tile.x[32 * j..][..32], &mut codes[32 * j..][..32]);
            if super::round::any_zero(s, step) {
                found.codes(s, x, self.levels, codes);
            }
            again(s, x, step, base, (0, self.levels), codes);
        }
        let at = if self.levels == 15 { 16 } else { 48 };
        for pair in 0..4 {
            put::<S, 8, 2>(s, &codes[64 * pair..], nibbles(32), blocks, at + 32 * pair);
        }
        if self.levels == 31 {
            put::<S, 8, 8>(s, &codes, bits(4), blocks, 16);
        }
    }
}

/// Without importance a value counts as the group's root mean square plus its magnitude.
#[inline(always)]
fn by_magnitude<S: Simd>(s: S, x: &[Lanes], weights: &mut [Lanes]) {
    let root = s.sqrt(s.div(square_sum(s, x), s.splat(32.0)));
    for (w, x) in weights.iter_mut().zip(x) {
        s.store(s.add(root, s.abs(s.load(&x.0))), &mut w.0);
    }
}

impl K4 {
    /// Scale of scales, scale of minima, and both as packed by `put_k4_scales`.
    #[inline(always)]
    fn scales<S: Simd>(self, s: S, found: &[Found<S>], sums: &[S::F; 8], weighted: bool) -> (S::F, S::F, [S::I; 3]) {
        let zero = s.splat(0.0);
        let (mut scale, mut min) = ([zero; 8], [zero; 8]);
        for (j, found) in found.iter().enumerate() {
            (scale[j], min[j]) = (found.scale, found.subtracted);
        }
        let ((d, mut scales), (dmin, mut mins)) = if weighted {
            (scales::search(s, &scale, sums, 63), scales::search(s, &min, sums, 63))
        } else {
            (by_largest(s, &scale), by_largest(s, &min))
        };
        // ggml bounds what comes of the search for Q5_K and not for Q4_K.
        if !weighted || self.levels == 31 {
            for code in scales.iter_mut().chain(&mut mins) {
                *code = s.imin(*code, s.isplat(63));
            }
        }
        let mut packed = [s.isplat(0); 3];
        for j in 0..4 {
            let (high_scale, high_min) = (scales[j + 4], mins[j + 4]);
            let bytes = [
                s.ior(scales[j], s.shl(s.shr(high_scale, 4), 6)),
                s.ior(mins[j], s.shl(s.shr(high_min, 4), 6)),
                s.ior(s.iand(high_scale, s.isplat(15)), s.shl(s.iand(high_min, s.isplat(15)), 4)),
            ];
            for (word, byte) in packed.iter_mut().zip(bytes) {
                *word = s.ior(*word, s.shl(s.iand(byte, s.isplat(0xff)), 8 * j as u32));
            }
        }
        (d, dmin, packed)
    }
}

/// The largest scale gets the code 63.
#[inline(always)]
fn by_largest<S: Simd>(s: S, x: &[S::F; 8]) -> (S::F, [S::I; 8]) {
    let zero = s.splat(0.0);
    let mut largest = zero;
    for &x in x {
        largest = s.max(x, largest);
    }
    let inverse = s.select_lt(zero, largest, s.div(s.splat(63.0), largest), zero);
    let mut codes = [s.isplat(0); 8];
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = byte(s, shifted(s, s.mul(inverse, x)));
    }
    (s.div(largest, s.splat(63.0)), codes)
}

/// Scale and minimum `j` out of the packed words.
#[inline(always)]
fn unpacked<S: Simd>(s: S, packed: &[S::I; 3], j: usize) -> (S::I, S::I) {
    let shift = 8 * (j % 4) as u32;
    let mut bytes = *packed;
    for byte in &mut bytes {
        *byte = s.iand(s.shr(*byte, shift), s.isplat(0xff));
    }
    let [scale, min, low] = bytes;
    if j < 4 {
        return (s.iand(scale, s.isplat(63)), s.iand(min, s.isplat(63)));
    }
    let (scale_above, min_above) = (s.shl(s.shr(scale, 6), 4), s.shl(s.shr(min, 6), 4));
    (s.ior(s.iand(low, s.isplat(15)), scale_above), s.ior(s.shr(low, 4), min_above))
}
