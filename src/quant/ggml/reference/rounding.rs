//! From floats to integers as the compiled C does it, out of range too.

/// Rounds to the nearest integer, ties to even, for magnitudes below 2^22. Others give what adding 1.5 * 2^23 and taking the
/// low bits gives, which is `nearest_int` in `ggml-quants.c`.
pub(super) fn nearest(x: f32) -> i32 {
    let low = (x + 12_582_912.0).to_bits() & 0x007f_ffff;
    low as i32 - 0x0040_0000
}

/// Rounds toward zero. What does not fit, NaN included, gives `i32::MIN`, as the machine's conversion does; C leaves it
/// open, and all that comes of it here is a block whose scale is too small for its reciprocal to be finite.
pub(super) fn truncate(x: f32) -> i32 {
    if (-2_147_483_648.0..2_147_483_648.0).contains(&x) { x as i32 } else { i32::MIN }
}

/// Index of the nearest of sixteen ascending values; in the middle between two, the upper.
pub(super) fn nearest_index(values: &[f32; 16], x: f32) -> usize {
    if x <= values[0] {
        return 0;
    }
    // `!(x < value)` and not `x >= value`: NaN ends at the last.
    let above = (1..15).find(|&i| x < values[i]).unwrap_or(15);
    if x >= values[15] {
        return 15;
    }
    if x - values[above - 1] < values[above] - x { above - 1 } else { above }
}
