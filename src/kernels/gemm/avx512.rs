//! The float32 micro-kernel for AVX-512: a tile of up to 12 rows by 32 columns in 24 registers.

use super::driver::{Micro, WeightBlock};
use super::{Layout, View, Weight, portable};
use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps};

/// AVX-512.
pub(super) struct Zmm;

const ROWS: usize = 12;
const COLS: usize = 32;

/// Whether the processor and the operating system support it.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

impl Micro for Zmm {
    type A = f32;
    type B = f32;
    const ROWS: usize = ROWS;
    const COLS: usize = COLS;
    const K_STEP: usize = 1;
    const K_BLOCK: usize = 512;
    const A_PARTS: usize = 1;

    fn pack_x(x: View<f32>, from: usize, k: usize, out: &mut [f32]) {
        portable::pack_x::<ROWS>(x, from, k, out);
    }

    fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
        // SAFETY: `matmul_with` refuses this path where `available` is false.
        unsafe { pack_w(w, layout, block, out) }
    }

    fn tile(k: usize, rows: usize, a: &[f32], b: &[f32], acc: &mut [f32]) {
        let (a, b) = (&a[..k * ROWS], &b[..k * COLS]);
        // SAFETY: `matmul_with` refuses this path where `available` is false.
        unsafe {
            match rows {
                1..=2 => tile::<2>(a, b, acc),
                3..=4 => tile::<4>(a, b, acc),
                5..=6 => tile::<6>(a, b, acc),
                7..=8 => tile::<8>(a, b, acc),
                9..=10 => tile::<10>(a, b, acc),
                _ => tile::<ROWS>(a, b, acc),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
    portable::pack_w::<COLS, W>(w, layout, block, out);
}

/// The first `LIVE` rows of a tile: the last panel of a matrix seldom has all twelve.
#[target_feature(enable = "avx512f,avx512bw")]
fn tile<const LIVE: usize>(a: &[f32], b: &[f32], acc: &mut [f32]) {
    let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLS>().0);
    let mut sums = [[_mm512_setzero_ps(); 2]; LIVE];
    for (a, b) in a.iter().zip(b) {
        // SAFETY: `b` is an array of 32 floats.
        let (low, high) = unsafe { (_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(b.as_ptr().add(16))) };
        for (sums, &a) in sums.iter_mut().zip(a) {
            let a = _mm512_set1_ps(a);
            *sums = [_mm512_fmadd_ps(a, low, sums[0]), _mm512_fmadd_ps(a, high, sums[1])];
        }
    }
    for (sums, out) in sums.iter().zip(acc.as_chunks_mut::<COLS>().0) {
        // SAFETY: `out` is an array of 32 floats.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), sums[1]);
        }
    }
}
