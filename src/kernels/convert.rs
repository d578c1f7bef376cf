//! Casts between formats and the search for values that are not finite, at the speed of memory.

use half::bf16;

use super::simd::{Float, LANES, Simd};
use super::{Kernel, dispatch};

/// The index of the first NaN or infinity among the values in `bytes` (any alignment); a last partial value is not looked at.
pub fn first_nonfinite(bytes: &[u8], float: Float) -> Option<usize> {
    /// Bytes looked at by one call of the kernel, a multiple of its step; a suspect part is searched value by value.
    const PART: usize = 64 << 10;
    let size = float.bytes();
    for (i, part) in bytes.chunks(PART).enumerate() {
        let (whole, tail) = part.split_at(part.len() / STEP * STEP);
        let suspect = match float {
            Float::BF16 => dispatch(Largest::<true>(whole)) >= 0x7f80_0000,
            Float::F16 => dispatch(Largest::<true>(whole)) >= 0x7c00_0000,
            Float::F32 => dispatch(Largest::<false>(whole)) >= 0x7f80_0000,
        };
        let searched = if suspect { part } else { tail };
        if let Some(at) = searched.chunks_exact(size).position(|x| !float.read(x).is_finite()) {
            return Some((i * PART + part.len() - searched.len()) / size + at);
        }
    }
    None
}

/// Bytes that [`Largest`] looks at in one step.
const STEP: usize = 4 * LANES;

/// The largest word of the bytes, signs cleared; with `HALVES`, also looking at the lower half of each word as if it
/// were the upper one. Encodings of absolute values are ordered as the values are, and those of infinities and NaN are
/// the largest of all.
struct Largest<'a, const HALVES: bool>(&'a [u8]);

impl<const HALVES: bool> Kernel for Largest<'_, HALVES> {
    type Out = u32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u32 {
        let mask = s.isplat(0x7fff_ffff);
        let mut most = s.isplat(0);
        for chunk in self.0.chunks_exact(STEP) {
            let words = s.bits(s.load_f32(chunk.try_into().expect("chunks of this size")));
            most = s.imax(most, s.iand(words, mask));
            if HALVES {
                most = s.imax(most, s.iand(s.shl(words, 16), mask));
            }
        }
        let mut lanes = [0; LANES];
        s.istore(most, &mut lanes);
        lanes.into_iter().fold(0, u32::max)
    }
}

/// Widens BF16 to F32; exact.
///
/// # Panics
///
/// The lengths differ.
pub fn bf16_to_f32(from: &[bf16], to: &mut [f32]) {
    struct Widen<'a>(&'a [bf16], &'a mut [f32]);
    impl Kernel for Widen<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            for (x, y) in self.0.iter().zip(self.1) {
                *y = f32::from_bits(u32::from(x.to_bits()) << 16);
            }
        }
    }
    assert_eq!(from.len(), to.len(), "lengths of source and target");
    dispatch(Widen(from, to));
}

/// Rounds F32 to BF16, to nearest, ties to even; NaN stays NaN, and what is too large becomes infinite.
///
/// # Panics
///
/// The lengths differ.
pub fn f32_to_bf16(from: &[f32], to: &mut [bf16]) {
    struct Round<'a>(&'a [f32], &'a mut [bf16]);
    impl Kernel for Round<'_> {
        type Out = ();
        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            for (x, y) in self.0.iter().zip(self.1) {
                let bits = x.to_bits();
                let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
                // Rounding could carry a NaN's mantissa into its sign; such a NaN is cut and made quiet instead.
                let quiet = (bits >> 16) as u16 | 0x40;
                *y = bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded });
            }
        }
    }
    assert_eq!(from.len(), to.len(), "lengths of source and target");
    dispatch(Round(from, to));
}
