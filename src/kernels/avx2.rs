//! [`Simd`] in AVX2 registers: one vector is two registers.

use std::arch::x86_64::*;

use super::Kernel;
use super::simd::{LANES, Simd};

/// A machine with AVX2, FMA, F16C and BMI2; only [`run`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Whether this machine has it.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("bmi2")
}

/// Runs `kernel`, compiled for AVX2. The caller has checked that the machine has it: [`super::active`] never says otherwise.
#[inline]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Out {
    #[target_feature(enable = "avx2,fma,f16c,bmi2")]
    fn compiled<K: Kernel>(kernel: K) -> K::Out {
        kernel.run(Avx2(()))
    }
    debug_assert!(is_available());
    // SAFETY: `select`, `pinned` and `Isa::best` let an instruction set through only after `is_available` said yes.
    unsafe { compiled(kernel) }
}

macro_rules! op {
    ($e:expr) => {{
        // SAFETY: a value of type `Avx2` exists only on a machine that has these instructions, and references to arrays
        // of the size that is read or written are valid for that access at any alignment.
        unsafe { $e }
    }};
}

macro_rules! both {
    ($f:path, $a:expr, $b:expr) => {
        op!(($f($a.0, $b.0), $f($a.1, $b.1)))
    };
}

impl Simd for Avx2 {
    type F = (__m256, __m256);
    type I = (__m256i, __m256i);

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!((_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }
    #[inline(always)]
    fn isplat(self, x: u32) -> Self::I {
        op!((_mm256_set1_epi32(x as i32), _mm256_set1_epi32(x as i32)))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        op!((_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))))
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        op!({
            _mm256_storeu_ps(to.as_mut_ptr(), x.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x.1);
        })
    }
    #[inline(always)]
    fn iload(self, x: &[u32; LANES]) -> Self::I {
        op!((_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())))
    }
    #[inline(always)]
    fn istore(self, x: Self::I, to: &mut [u32; LANES]) {
        op!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x.0);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), x.1);
        })
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 2 * LANES]) -> Self::F {
        op!({
            let lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(16).cast()));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(lo)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(hi)))
        })
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * LANES]) -> Self::F {
        op!((
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(16).cast()))
        ))
    }
    #[inline(always)]
    fn load_f32(self, x: &[u8; 4 * LANES]) -> Self::F {
        op!((_mm256_loadu_ps(x.as_ptr().cast()), _mm256_loadu_ps(x.as_ptr().add(32).cast())))
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; LANES]) -> Self::I {
        op!({
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            (_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)))
        })
    }
    #[inline(always)]
    fn store_u8(self, x: Self::I, to: &mut [u8; LANES]) {
        op!({
            let mask = _mm256_set1_epi32(0xff);
            let halves = _mm256_packus_epi32(_mm256_and_si256(x.0, mask), _mm256_and_si256(x.1, mask));
            let bytes = _mm256_packus_epi16(halves, halves);
            // Packing works in each 128-bit half: the low half holds lanes 0-3 and 8-11, the high half 4-7 and 12-15.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
            let ordered = _mm256_permutevar8x32_epi32(bytes, order);
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_castsi256_si128(ordered));
        })
    }
    #[inline(always)]
    fn store_u16(self, x: Self::I, to: &mut [u16; LANES]) {
        op!({
            let mask = _mm256_set1_epi32(0xffff);
            let halves = _mm256_packus_epi32(_mm256_and_si256(x.0, mask), _mm256_and_si256(x.1, mask));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(halves));
        })
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u8; 2 * LANES]) {
        op!({
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
            _mm_storeu_si128(to.as_mut_ptr().add(16).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1));
        })
    }
    #[inline(always)]
    fn prefetch(self, x: &u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!((_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!((_mm256_fnmadd_ps(a.0, b.0, c.0), _mm256_fnmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    fn sqrt(self, x: Self::F) -> Self::F {
        op!((_mm256_sqrt_ps(x.0), _mm256_sqrt_ps(x.1)))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        op!((
            _mm256_blendv_ps(y.0, x.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0)),
            _mm256_blendv_ps(y.1, x.1, _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1))
        ))
    }

    #[inline(always)]
    fn any_lt(self, a: Self::F, b: Self::F) -> bool {
        op!({
            let (lo, hi) = (_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0), _mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1));
            _mm256_movemask_ps(_mm256_or_ps(lo, hi)) != 0
        })
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], x: Self::I) -> Self::F {
        op!({
            let (lo, hi) = (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8)));
            // The permutation looks at three bits; the fourth, moved to the sign, picks the half of the table.
            let (a, b) = (_mm256_permutevar8x32_ps(lo, x.0), _mm256_permutevar8x32_ps(hi, x.0));
            let (c, d) = (_mm256_permutevar8x32_ps(lo, x.1), _mm256_permutevar8x32_ps(hi, x.1));
            (
                _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(x.0))),
                _mm256_blendv_ps(c, d, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(x.1))),
            )
        })
    }

    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        op!((_mm256_castps_si256(x.0), _mm256_castps_si256(x.1)))
    }
    #[inline(always)]
    fn floats(self, x: Self::I) -> Self::F {
        op!((_mm256_castsi256_ps(x.0), _mm256_castsi256_ps(x.1)))
    }
    #[inline(always)]
    fn truncate(self, x: Self::F) -> Self::I {
        op!((_mm256_cvttps_epi32(x.0), _mm256_cvttps_epi32(x.1)))
    }
    #[inline(always)]
    fn iadd(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    fn isub(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_sub_epi32, a, b)
    }
    #[inline(always)]
    fn iand(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_and_si256, a, b)
    }
    #[inline(always)]
    fn ior(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_or_si256, a, b)
    }
    #[inline(always)]
    fn imin(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_min_epu32, a, b)
    }
    #[inline(always)]
    fn imax(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_max_epu32, a, b)
    }
    #[inline(always)]
    fn shl(self, x: Self::I, n: u32) -> Self::I {
        op!({
            let n = _mm_cvtsi32_si128(n as i32);
            (_mm256_sll_epi32(x.0, n), _mm256_sll_epi32(x.1, n))
        })
    }
    #[inline(always)]
    fn shr(self, x: Self::I, n: u32) -> Self::I {
        op!({
            let n = _mm_cvtsi32_si128(n as i32);
            (_mm256_srl_epi32(x.0, n), _mm256_srl_epi32(x.1, n))
        })
    }
    #[inline(always)]
    fn nibbles(self, lo: u32, hi: u32) -> Self::I {
        op!({
            let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            let mask = _mm256_set1_epi32(15);
            (
                _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(lo as i32), shifts), mask),
                _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(hi as i32), shifts), mask),
            )
        })
    }

    #[inline(always)]
    fn transpose(self, x: [Self::I; LANES]) -> [Self::I; LANES] {
        let mut out = x;
        // Four blocks of 8 x 8; the two off the diagonal change places.
        for (rows, columns) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let mut block = [x[0].0; 8];
            for i in 0..8 {
                let row = x[8 * rows + i];
                block[i] = if columns == 0 { row.0 } else { row.1 };
            }
            let block = op!(transpose8(block));
            for i in 0..8 {
                let row = &mut out[8 * columns + i];
                *(if rows == 0 { &mut row.0 } else { &mut row.1 }) = block[i];
            }
        }
        out
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn transpose8(x: [__m256i; 8]) -> [__m256i; 8] {
    let mut a = x;
    // Every 128-bit half of `a[4 m + c]` then holds rows 4m..4m+4 of column c (low half) and 4 + c (high half).
    for i in (0..8).step_by(4) {
        let (p, q) = (_mm256_unpacklo_epi32(x[i], x[i + 1]), _mm256_unpackhi_epi32(x[i], x[i + 1]));
        let (r, t) = (_mm256_unpacklo_epi32(x[i + 2], x[i + 3]), _mm256_unpackhi_epi32(x[i + 2], x[i + 3]));
        a[i] = _mm256_unpacklo_epi64(p, r);
        a[i + 1] = _mm256_unpackhi_epi64(p, r);
        a[i + 2] = _mm256_unpacklo_epi64(q, t);
        a[i + 3] = _mm256_unpackhi_epi64(q, t);
    }
    let mut out = a;
    for c in 0..4 {
        out[c] = _mm256_permute2x128_si256::<0x20>(a[c], a[4 + c]);
        out[4 + c] = _mm256_permute2x128_si256::<0x31>(a[c], a[4 + c]);
    }
    out
}
