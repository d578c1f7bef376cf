//! What blocks have in common: float16 fields, and scales of six bits in their packings.

use half::f16;

/// The float16 at a byte of a block.
#[inline(always)]
pub(super) fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The eight scales and eight minima of Q4_K and Q5_K, six bits each in twelve bytes: the low four of bytes 0 to 7 are the
/// first four scales and minima whole, with the upper two bits of the last four above them; bytes 8 to 11 are the lower
/// four bits of those.
#[inline(always)]
pub(super) fn k4_scales(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        mins[j] = packed[j + 4] & 63;
        scales[j + 4] = packed[j + 8] & 15 | packed[j] >> 6 << 4;
        mins[j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4;
    }
    (scales, mins)
}

/// The sixteen scales of Q3_K, six bits each in twelve bytes: lower four bits of scale `j` and `j + 8` in byte `j`, then
/// the upper two of scales `j`, `j + 4`, `j + 8`, `j + 12` in byte `8 + j`.
#[inline(always)]
pub(super) fn q3_scales(packed: &[u8]) -> [u8; 16] {
    std::array::from_fn(|j| {
        let low = packed[j % 8] >> (4 * (j / 8)) & 15;
        low | (packed[8 + j % 4] >> (2 * (j / 4)) & 3) << 4
    })
}

/// The eight scales of IQ4_XS: upper two bits of all in two bytes, then the lower four, two to a byte.
#[inline(always)]
pub(super) fn xs_scales(packed: &[u8]) -> [u8; 8] {
    let high = u16::from_le_bytes([packed[0], packed[1]]);
    std::array::from_fn(|j| packed[2 + j / 2] >> (4 * (j % 2)) & 15 | ((high >> (2 * j) & 3) << 4) as u8)
}
