//! Casts between formats and the search for values that are not finite, at the speed of memory.

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

/// Stored floats as `f32`; exact, and NaN stays NaN. The bytes may lie at any address.
///
/// # Panics
///
/// There are not as many bytes as the values take.
pub fn widen(bytes: &[u8], float: Float, values: &mut [f32]) {
    assert_eq!(bytes.len(), values.len() * float.bytes(), "bytes of {} values", values.len());
    match float {
        Float::BF16 => dispatch(Widen::<0>(bytes, values)),
        Float::F16 => dispatch(Widen::<1>(bytes, values)),
        Float::F32 => dispatch(Widen::<2>(bytes, values)),
    }
}

/// Rounds to nearest, ties to even, into stored floats; what is too large becomes infinite. The values are not NaN.
///
/// # Panics
///
/// There are not as many bytes as the values take.
pub fn narrow(values: &[f32], float: Float, bytes: &mut [u8]) {
    assert_eq!(bytes.len(), values.len() * float.bytes(), "bytes of {} values", values.len());
    match float {
        Float::BF16 => dispatch(Narrow::<0>(values, bytes)),
        Float::F16 => dispatch(Narrow::<1>(values, bytes)),
        Float::F32 => dispatch(Narrow::<2>(values, bytes)),
    }
}

struct Widen<'a, const FLOAT: u8>(&'a [u8], &'a mut [f32]);

impl<const FLOAT: u8> Kernel for Widen<'_, FLOAT> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(bytes, values) = self;
        let (whole, rest) = values.as_chunks_mut::<LANES>();
        let (first, last) = bytes.split_at(whole.len() * LANES * size::<FLOAT>());
        for (bytes, values) in first.chunks_exact(LANES * size::<FLOAT>()).zip(whole) {
            s.store(load::<S, FLOAT>(s, bytes), values);
        }
        let mut lanes = [0.0; LANES];
        s.store(load_part::<S, FLOAT>(s, last), &mut lanes);
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

struct Narrow<'a, const FLOAT: u8>(&'a [f32], &'a mut [u8]);

impl<const FLOAT: u8> Kernel for Narrow<'_, FLOAT> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(values, bytes) = self;
        let (whole, rest) = values.as_chunks::<LANES>();
        let (first, last) = bytes.split_at_mut(whole.len() * LANES * size::<FLOAT>());
        for (values, bytes) in whole.iter().zip(first.chunks_exact_mut(LANES * size::<FLOAT>())) {
            store::<S, FLOAT>(s, s.load(values), bytes);
        }
        let (mut lanes, mut stored) = ([0.0; LANES], [0; 4 * LANES]);
        lanes[..rest.len()].copy_from_slice(rest);
        store::<S, FLOAT>(s, s.load(&lanes), &mut stored[..LANES * size::<FLOAT>()]);
        last.copy_from_slice(&stored[..last.len()]);
    }
}

/// Bytes of a value in the format numbered `FLOAT`: BF16, F16, F32.
const fn size<const FLOAT: u8>() -> usize {
    if FLOAT == 2 { 4 } else { 2 }
}

/// Why bytes are as many as sixteen values take.
const SIXTEEN: &str = "the caller cuts sixteen values";

/// Sixteen stored values of the format numbered `FLOAT`: BF16, F16, F32.
#[inline(always)]
pub(crate) fn load<S: Simd, const FLOAT: u8>(s: S, bytes: &[u8]) -> S::F {
    match FLOAT {
        0 => s.load_bf16(bytes.try_into().expect(SIXTEEN)),
        1 => s.load_f16(bytes.try_into().expect(SIXTEEN)),
        _ => s.load_f32(bytes.try_into().expect(SIXTEEN)),
    }
}

/// As [`load`], of fewer than sixteen values; then zeros.
#[inline(always)]
pub(crate) fn load_part<S: Simd, const FLOAT: u8>(s: S, bytes: &[u8]) -> S::F {
    let mut padded = [0; 4 * LANES];
    padded[..bytes.len()].copy_from_slice(bytes);
    load::<S, FLOAT>(s, &padded[..LANES * size::<FLOAT>()])
}

/// Rounds sixteen values to the format numbered `FLOAT`.
#[inline(always)]
fn store<S: Simd, const FLOAT: u8>(s: S, x: S::F, bytes: &mut [u8]) {
    match FLOAT {
        0 => {
            let mut halves = [0; LANES];
            s.store_u16(s.shr(s.bits(s.round_bf16(x)), 16), &mut halves);
            for (bytes, half) in bytes.as_chunks_mut().0.iter_mut().zip(halves) {
                *bytes = half.to_le_bytes();
            }
        }
        1 => s.store_f16(x, bytes.try_into().expect(SIXTEEN)),
        _ => {
            let mut lanes = [0.0; LANES];
            s.store(x, &mut lanes);
            for (bytes, lane) in bytes.as_chunks_mut().0.iter_mut().zip(lanes) {
                *bytes = lane.to_le_bytes();
            }
        }
    }
}
