//! The values that codes of four bits stand for.

/// The table of IQ4_NL and IQ4_XS (`kvalues_iq4nl` in `ggml/src/ggml-common.h`).
pub(super) const IQ4: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Twice the values of E2M1 (OCP Microscaling Formats 1.0, section 5.3.3). ggml keeps them as integers, so that code 8 is
/// zero and not negative zero (`kvalues_mxfp4`).
pub(super) const MXFP4: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Half of what the E8M0 code of a scale stands for, `2^(code - 128)`: it goes with twice the values.
pub(super) fn half_of_e8m0(code: u8) -> f32 {
    f32::from_bits(if code < 2 { 0x0020_0000 << code } else { u32::from(code - 1) << 23 })
}
