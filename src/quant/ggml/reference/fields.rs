//! Writing what `ggml::fields` reads.

use half::f16;

/// Stores `x` as float16, rounded to nearest, ties to even, and returns what was stored.
pub(super) fn put_f16(block: &mut [u8], at: usize, x: f32) -> f32 {
    let rounded = f16::from_f32(x);
    block[at..at + 2].copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

/// The inverse of [`k4_scales`]. Bits above the sixth end up where ggml's own code puts them.
pub(super) fn put_k4_scales(packed: &mut [u8], scales: &[u8; 8], mins: &[u8; 8]) {
    for j in 0..4 {
        let (scale, min) = (scales[j + 4], mins[j + 4]);
        packed[j] = scales[j] | scale >> 4 << 6;
        packed[j + 4] = mins[j] | min >> 4 << 6;
        packed[j + 8] = scale & 15 | (min & 15) << 4;
    }
}

/// The inverse of [`q3_scales`].
pub(super) fn put_q3_scales(packed: &mut [u8], scales: &[u8; 16]) {
    packed.fill(0);
    for (j, scale) in scales.iter().enumerate() {
        packed[j % 8] |= (scale & 15) << (4 * (j / 8));
        packed[8 + j % 4] |= scale >> 4 << (2 * (j / 4));
    }
}

/// The inverse of [`xs_scales`].
pub(super) fn put_xs_scales(packed: &mut [u8], scales: &[u8; 8]) {
    packed.fill(0);
    for (j, scale) in scales.iter().enumerate() {
        packed[j / 4] |= scale >> 4 << (2 * (j % 4));
        packed[2 + j / 2] |= (scale & 15) << (4 * (j % 2));
    }
}
