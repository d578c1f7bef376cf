//! The float32 micro-kernel for AVX2 and FMA: a tile of 6 rows by 16 columns in twelve registers.

use super::driver::{Micro, WeightBlock};
use super::thin::{self, Vector};
use super::{Kind, Layout, View, Weight, portable};
use std::arch::x86_64::{
    __m256, _mm_loadu_si128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps,
};

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
    const K_BLOCK: usize = 512;
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

#[target_feature(enable = "avx2,fma,f16c")]
fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
    portable::pack_w::<COLS, W>(w, layout, block, out);
}

impl Vector for Fma {
    const MANY: bool = false;
    type V = [__m256; 2];

    #[inline(always)]
    fn splat(value: f32) -> [__m256; 2] {
        // SAFETY: only reached where `available` is true.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load<W: Weight>(from: &[W; 16]) -> [__m256; 2] {
        let half = |start: usize| {
            let from = from[start..].as_ptr();
            // SAFETY: only reached where `available` is true; 8 elements of the type that `KIND` names follow.
            unsafe {
                match W::KIND {
                    Kind::Bf16 => {
                        let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
                    }
                    Kind::F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                    Kind::F32 => _mm256_loadu_ps(from.cast()),
                }
            }
        };
        [half(0), half(8)]
    }

    #[inline(always)]
    fn store(value: [__m256; 2], to: &mut [f32; 16]) {
        // SAFETY: only reached where `available` is true; `to` is 16 floats.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), value[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), value[1]);
        }
    }

    #[inline(always)]
    fn multiply_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: only reached where `available` is true.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
}

/// The thin product, compiled for AVX2. The caller has checked that it is available.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn thin<W: Weight>(x: View<f32>, w: View<W>, layout: Layout, col: usize, out: &mut [f32]) {
    thin::body::<Fma, W>(x, w, layout, col, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile(a: &[f32], b: &[f32], acc: &mut [f32]) {
    let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLS>().0);
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
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
