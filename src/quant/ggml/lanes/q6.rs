//! Q6_K: sixteen groups of 16 with a scale.

use super::pack::{nibbles, pairs, put, put_f16, put_words};
use super::round::{ROUNDER, any_zero, byte, extreme, mask_lt, shifted, value};
use super::{Format, Tile, again, symmetric};
use crate::kernels::{Lanes, Simd, Words};
use crate::quant::ggml::tries::TINY;

#[derive(Clone, Copy)]
pub(super) struct Q6;

impl Format for Q6 {
    const LEN: usize = 256;

    fn bytes(self) -> usize {
        210
    }

    #[inline(always)]
    fn encode<S: Simd>(self, s: S, tile: &Tile<'_>, blocks: &mut [u8]) {
        let mut found = Vec::with_capacity(16);
        let mut most = (s.splat(0.0), s.splat(0.0));
        let mut squares = [Lanes::ZERO; 16];
        let groups = tile.x.as_chunks::<16>().0;
        for (j, x) in groups.iter().enumerate() {
            let group = if let Some((importance, _)) = tile.importance {
                symmetric::search(s, x, &importance.as_chunks().0[j], 32)
            } else {
                for (square, x) in squares.iter_mut().zip(x) {
                    let x = s.load(&x.0);
                    s.store(s.mul(x, x), &mut square.0);
                }
                symmetric::search(s, x, &squares, 32)
            };
            most = extreme(s, most, group.scale);
            found.push(group);
        }
        let live = s.isub(s.isplat(u32::MAX), mask_lt(s, most.1, s.splat(TINY)));
        let inverse = s.div(s.splat(-128.0), most.0);
        let d = s.floats(s.iand(s.bits(s.div(s.splat(1.0), inverse)), live));
        let d = put_f16(s, d, blocks, 208);
        let mut codes = [Words::ZERO; 256];
        let mut scales = [s.isplat(0); 4];
        for (j, (x, codes)) in groups.iter().zip(codes.chunks_exact_mut(16)).enumerate() {
            let eight = s.min(shifted(s, s.mul(inverse, found[j].scale)), s.splat(ROUNDER + 127.0));
            let field = s.shl(s.iand(byte(s, eight), live), 8 * (j % 4) as u32);
            scales[j / 4] = s.ior(scales[j / 4], field);
            let step = s.mul(d, value(s, eight));
            if any_zero(s, step) {
                found[j].codes(s, x, 32, codes);
            }
            again(s, x, step, s.splat(0.0), (-32, 31), codes);
            for code in codes {
                s.istore(s.iand(s.iload(&code.0), live), &mut code.0);
            }
        }
        put_words(s, scales, blocks, 192);
        for half in 0..2 {
            put::<S, 16, 2>(s, &codes[128 * half..], nibbles(64), blocks, 64 * half);
            put::<S, 8, 4>(s, &codes[128 * half..], pairs(4), blocks, 128 + 32 * half);
        }
    }
}
