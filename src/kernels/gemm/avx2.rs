//! The float32 micro-kernel for AVX2 and FMA: a tile of 6 rows by 16 columns in twelve registers.

use super::driver::{Micro, MicroF32, WeightBlock};
use super::{Layout, View, Weight, portable};
use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps};

/// AVX2 and FMA.
pub(super) struct Fma;

const ROWS: usize = 6;
const COLS: usize = 16;

/// Whether the processor and the operating system support it.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

impl Micro for Fma {
    type A = f32;
    type B = f32;
    const ROWS: usize = ROWS;
    const COLS: usize = COLS;
    const K_STEP: usize = 1;
    const K_BLOCK: usize = super::K_BLOCK;
    const A_PARTS: usize = 1;

    fn pack_x(x: View<f32>, from: usize, k: usize, out: &mut [f32]) {
        portable::pack_x::<ROWS>(x, from, k, out);
    }

    fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
        // SAFETY: `matmul_with` refuses this path where `available` is false.
        unsafe { pack_w(w, layout, block, out) }
    }

    fn tile(k: usize, _rows: usize, a: &[f32], b: &[f32], acc: &mut [f32]) {
        // SAFETY: `matmul_with` refuses this path where `available` is false.
        unsafe { tile(&a[..k * ROWS], &b[..k * COLS], acc) }
    }
}

impl MicroF32 for Fma {
    fn pack_columns(x: View<f32>, block: WeightBlock, out: &mut [f32]) {
        // SAFETY: `matmul_with` and `update_with` refuse this path where `available` is false.
        unsafe { pack_columns(x, block, out) }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_columns(x: View<f32>, block: WeightBlock, out: &mut [f32]) {
    portable::pack_in_out::<ROWS, f32>(x, block, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
    portable::pack_w::<COLS, W>(w, layout, block, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile(a: &[f32], b: &[f32], acc: &mut [f32]) {
    let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLS>().0);
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (sums, from) in sums.iter_mut().zip(acc.as_chunks::<COLS>().0) {
        // SAFETY: `from` is an array of 16 floats.
        *sums = unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] };
    }
    for (a, b) in a.iter().zip(b) {
        // SAFETY: `b` is an array of 16 floats.
        let (low, high) = unsafe { (_mm256_loadu_ps(b.as_ptr()), _mm256_loadu_ps(b.as_ptr().add(8))) };
        for (sums, &a) in sums.iter_mut().zip(a) {
            let a = _mm256_set1_ps(a);
            *sums = [_mm256_fmadd_ps(a, low, sums[0]), _mm256_fmadd_ps(a, high, sums[1])];
        }
    }
    for (sums, out) in sums.iter().zip(acc.as_chunks_mut::<COLS>().0) {
        // SAFETY: `out` is an array of 16 floats.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), sums[1]);
        }
    }
}
