//! The float32 micro-kernel for AVX-512: a tile of up to 12 rows by 32 columns in 24 registers.

use super::driver::{Micro, MicroF32, WeightBlock};
use super::{Kind, Layout, View, Weight, portable};
use std::arch::x86_64::{
    __m512, _mm256_loadu_si256, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_slli_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
    _mm512_unpacklo_ps,
};

/// AVX-512.
pub(super) struct Zmm;

const ROWS: usize = 12;
const COLS: usize = 32;
/// Elements of a register, and the side of the blocks that are transposed in sixteen of them.
const SIDE: usize = 16;

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
    const K_BLOCK: usize = super::K_BLOCK;
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

impl MicroF32 for Zmm {
    fn pack_columns(x: View<f32>, block: WeightBlock, out: &mut [f32]) {
        // SAFETY: `matmul_with` and `update_with` refuse this path where `available` is false.
        unsafe { pack_columns(x, block, out) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_columns(x: View<f32>, block: WeightBlock, out: &mut [f32]) {
    portable::pack_in_out::<ROWS, f32>(x, block, out);
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack_w<W: Weight>(w: View<W>, layout: Layout, block: WeightBlock, out: &mut [f32]) {
    if layout == Layout::InOut {
        return portable::pack_in_out::<COLS, W>(w, block, out);
    }
    for (index, panel) in out.chunks_exact_mut(COLS * block.k).enumerate() {
        let col = index * COLS;
        for half in [0, SIDE] {
            let live = block.cols.saturating_sub(col + half).min(SIDE);
            let row = |j: usize| &w.row(block.col + col + half + j)[block.from..block.from + block.k];
            let rows: [&[W]; SIDE] = std::array::from_fn(|j| if j < live { row(j) } else { &[] });
            for (step, out) in panel.chunks_mut(COLS * SIDE).enumerate() {
                let lines = rows.map(|row| widen_line(row, step * SIDE));
                for (out, line) in out.as_chunks_mut::<COLS>().0.iter_mut().zip(transpose(lines)) {
                    // SAFETY: `out` is an array of 32 floats, and `half` is 0 or 16.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(half), line) };
                }
            }
        }
    }
}

/// Sixteen elements from `start`, zero past the end.
#[target_feature(enable = "avx512f,avx512bw")]
fn widen_line<W: Weight>(row: &[W], start: usize) -> __m512 {
    let rest = row.get(start..).unwrap_or(&[]);
    if let Some(line) = rest.first_chunk::<SIDE>() {
        return load(line);
    }
    let mut line = [0.0f32; SIDE];
    line.iter_mut().zip(rest).for_each(|(line, value)| *line = value.widen());
    load(&line)
}

/// Sixteen elements, widened.
#[target_feature(enable = "avx512f,avx512bw")]
fn load<W: Weight>(from: &[W; SIDE]) -> __m512 {
    // SAFETY: `from` is 16 elements of the type that `KIND` names.
    unsafe {
        match W::KIND {
            Kind::Bf16 => {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
            Kind::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())),
            Kind::F32 => _mm512_loadu_ps(from.as_ptr().cast()),
        }
    }
}

/// The transpose of a 16 x 16 block: in pairs, in fours, then the 128-bit quarters among themselves.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn transpose(rows: [__m512; SIDE]) -> [__m512; SIDE] {
    let zero = _mm512_setzero_ps();
    let (mut pairs, mut fours) = ([zero; SIDE], [zero; SIDE]);
    for i in (0..SIDE).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for i in (0..SIDE).step_by(4) {
        for odd in 0..2 {
            let (a, b) = (_mm512_castps_pd(pairs[i + odd]), _mm512_castps_pd(pairs[i + odd + 2]));
            fours[i + 2 * odd] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * odd + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // Now quarter q of `fours[4 * g + c]` holds column 4 * q + c of rows 4 * g .. 4 * g + 4.
    let mut columns = [zero; SIDE];
    for c in 0..4 {
        let (a, b) = (fours[c], fours[4 + c]);
        let (even_low, odd_low) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
        let (a, b) = (fours[8 + c], fours[12 + c]);
        let (even_high, odd_high) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
        columns[c] = _mm512_shuffle_f32x4::<0x88>(even_low, even_high);
        columns[8 + c] = _mm512_shuffle_f32x4::<0xDD>(even_low, even_high);
        columns[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xDD>(odd_low, odd_high);
    }
    columns
}

/// The first `LIVE` rows of a tile: the last panel of a matrix seldom has all twelve.
#[target_feature(enable = "avx512f,avx512bw")]
fn tile<const LIVE: usize>(a: &[f32], b: &[f32], acc: &mut [f32]) {
    let (a, b) = (a.as_chunks::<ROWS>().0, b.as_chunks::<COLS>().0);
    let mut sums = [[_mm512_setzero_ps(); 2]; LIVE];
    for (sums, from) in sums.iter_mut().zip(acc.as_chunks::<COLS>().0) {
        // SAFETY: `from` is an array of 32 floats.
        *sums = unsafe { [_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16))] };
    }
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
