//! What weights are dequantized into. It must not know formats of codes.

use half::bf16;

use crate::kernels::{Float, LANES, Simd};

/// A type that weights can be dequantized into.
pub trait Target: Copy {
    /// `x`, rounded if need be.
    fn from_f32(x: f32) -> Self;
    /// Sixteen values.
    #[doc(hidden)]
    fn store<S: Simd>(s: S, x: S::F, to: &mut [Self; LANES]);
}

impl Target for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, to: &mut [Self; LANES]) {
        s.store(x, to);
    }
}

impl Target for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, to: &mut [Self; LANES]) {
        let mut halves = [0; LANES];
        s.store_u16(s.shr(s.bits(s.round_bf16(x)), 16), &mut halves);
        for i in 0..LANES {
            to[i] = Self::from_bits(halves[i]);
        }
    }
}

/// A scale as it is stored. NaN is made the one NaN whose lower half is empty, so that rounding to BF16 keeps it NaN.
pub(super) fn read_scale(bytes: &[u8], float: Float) -> f32 {
    let scale = float.read(bytes);
    if scale.is_nan() { f32::NAN } else { scale }
}
