//! [`Simd`] in AVX-512 registers: one vector is one register.

use std::arch::x86_64::*;

use super::Kernel;
use super::simd::{LANES, Simd};

/// A machine with AVX-512 F, BW, DQ and VL, FMA and F16C; only [`run`] makes one.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Whether this machine has it.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && super::avx2::is_available()
}

/// Runs `kernel`, compiled for AVX-512. The caller has checked that the machine has it: [`super::active`] never says otherwise.
#[inline]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Out {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
    fn compiled<K: Kernel>(kernel: K) -> K::Out {
        kernel.run(Avx512(()))
    }
    debug_assert!(is_available());
    // SAFETY: `select`, `pinned` and `Isa::best` let an instruction set through only after `is_available` said yes.
    unsafe { compiled(kernel) }
}

macro_rules! op {
    ($e:expr) => {{
        // SAFETY: a value of type `Avx512` exists only on a machine that has these instructions, and references to
        // arrays of the size that is read or written are valid for that access at any alignment.
        unsafe { $e }
    }};
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn isplat(self, x: u32) -> Self::I {
        op!(_mm512_set1_epi32(x as i32))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        op!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        op!(_mm512_storeu_ps(to.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn iload(self, x: &[u32; LANES]) -> Self::I {
        op!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn istore(self, x: Self::I, to: &mut [u32; LANES]) {
        op!(_mm512_storeu_si512(to.as_mut_ptr().cast(), x))
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 2 * LANES]) -> Self::F {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())))))
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 2 * LANES]) -> Self::F {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_f32(self, x: &[u8; 4 * LANES]) -> Self::F {
        op!(_mm512_loadu_ps(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; LANES]) -> Self::I {
        op!(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn store_u8(self, x: Self::I, to: &mut [u8; LANES]) {
        op!(_mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)))
    }
    #[inline(always)]
    fn store_u16(self, x: Self::I, to: &mut [u16; LANES]) {
        op!(_mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(x)))
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, to: &mut [u8; 2 * LANES]) {
        op!(_mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)))
    }
    #[inline(always)]
    fn prefetch(self, x: &u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sqrt(self, x: Self::F) -> Self::F {
        op!(_mm512_sqrt_ps(x))
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn select_lt(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        op!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x))
    }

    #[inline(always)]
    fn any_lt(self, a: Self::F, b: Self::F) -> bool {
        op!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) != 0)
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; LANES], x: Self::I) -> Self::F {
        op!(_mm512_permutexvar_ps(x, _mm512_loadu_ps(table.as_ptr())))
    }

    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        op!(_mm512_castps_si512(x))
    }
    #[inline(always)]
    fn floats(self, x: Self::I) -> Self::F {
        op!(_mm512_castsi512_ps(x))
    }
    #[inline(always)]
    fn truncate(self, x: Self::F) -> Self::I {
        op!(_mm512_cvttps_epi32(x))
    }
    #[inline(always)]
    fn iadd(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn isub(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn iand(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn ior(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn imin(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_min_epu32(a, b))
    }
    #[inline(always)]
    fn imax(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_max_epu32(a, b))
    }
    #[inline(always)]
    fn shl(self, x: Self::I, n: u32) -> Self::I {
        op!(_mm512_sll_epi32(x, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn shr(self, x: Self::I, n: u32) -> Self::I {
        op!(_mm512_srl_epi32(x, _mm_cvtsi32_si128(n as i32)))
    }
    #[inline(always)]
    fn nibbles(self, lo: u32, hi: u32) -> Self::I {
        op!({
            let words = _mm512_mask_set1_epi32(_mm512_set1_epi32(lo as i32), 0xff00, hi as i32);
            let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
            _mm512_and_si512(_mm512_srlv_epi32(words, shifts), _mm512_set1_epi32(15))
        })
    }

    #[inline(always)]
    fn transpose(self, x: [Self::I; LANES]) -> [Self::I; LANES] {
        op!({
            let mut a = x;
            // Interleave words, then pairs of words: every 128-bit quarter then holds four rows of one column.
            for i in (0..LANES).step_by(4) {
                let (p, q) = (_mm512_unpacklo_epi32(x[i], x[i + 1]), _mm512_unpackhi_epi32(x[i], x[i + 1]));
                let (r, t) = (_mm512_unpacklo_epi32(x[i + 2], x[i + 3]), _mm512_unpackhi_epi32(x[i + 2], x[i + 3]));
                a[i] = _mm512_unpacklo_epi64(p, r);
                a[i + 1] = _mm512_unpackhi_epi64(p, r);
                a[i + 2] = _mm512_unpacklo_epi64(q, t);
                a[i + 3] = _mm512_unpackhi_epi64(q, t);
            }
            // Quarter `h` of `a[4 m + c]` is rows 4m..4m+4 of column 4h + c: transpose the quarters, four by four.
            let mut out = a;
            for c in 0..4 {
                let (lo0, hi0) =
                    (_mm512_shuffle_i32x4::<0x44>(a[c], a[4 + c]), _mm512_shuffle_i32x4::<0xee>(a[c], a[4 + c]));
                let (lo1, hi1) = (
                    _mm512_shuffle_i32x4::<0x44>(a[8 + c], a[12 + c]),
                    _mm512_shuffle_i32x4::<0xee>(a[8 + c], a[12 + c]),
                );
                out[c] = _mm512_shuffle_i32x4::<0x88>(lo0, lo1);
                out[4 + c] = _mm512_shuffle_i32x4::<0xdd>(lo0, lo1);
                out[8 + c] = _mm512_shuffle_i32x4::<0x88>(hi0, hi1);
                out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(hi0, hi1);
            }
            out
        })
    }
}
