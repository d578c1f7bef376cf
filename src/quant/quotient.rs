//! Exact division by a BF16 scale, without dividing.
//!
//! With `r = 1 / s` rounded to nearest, `q = w r` is at most a few units off `w / s`; adding `(w - q s) r`, in which the
//! bracket is exact, gives the quotient rounded to nearest (Markstein, "Computation of elementary functions on the IBM
//! RISC System/6000", 1990). Neither exponents nor signs matter as long as nothing leaves the range of normal floats, and
//! for a scale of eight significant bits all pairs of significands can be tried: a test does.

use crate::kernels::{LANES, Simd};

/// Scales between which nothing that matters under- or overflows.
const SAFE: (f32, f32) = (1e-27, 1e27);

/// Sixteen scales to divide by.
pub(super) struct Divisor<S: Simd> {
    /// The scales.
    pub(super) scale: S::F,
    reciprocal: S::F,
    /// Whether [`Divisor::quotient`] may be used with `FAST`.
    pub(super) is_fast: bool,
}

impl<S: Simd> Divisor<S> {
    /// Scales are positive and representable in BF16.
    #[inline(always)]
    pub(super) fn new(s: S, scale: S::F) -> Self {
        let mut lanes = [0.0; LANES];
        s.store(scale, &mut lanes);
        let mut is_fast = true;
        for x in lanes {
            is_fast &= SAFE.0 < x && x < SAFE.1;
        }
        Self { scale, reciprocal: s.div(s.splat(1.0), scale), is_fast }
    }

    /// `w / scale`, rounded to nearest, for magnitudes up to 2^20 scales. With `FAST`, the sign of a zero is lost, and
    /// quotients below 2^-30 are inexact.
    #[inline(always)]
    pub(super) fn quotient<const FAST: bool>(&self, s: S, w: S::F) -> S::F {
        if !FAST {
            return s.div(w, self.scale);
        }
        let q = s.mul(w, self.reciprocal);
        let rest = s.fnma(q, self.scale, w);
        s.fma(rest, self.reciprocal, q)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Isa, Kernel, dispatch, pinned};

    /// Quotients of sixteen weights by one scale.
    struct Quotients<'a>(&'a [f32; LANES], f32);

    impl Kernel for Quotients<'_> {
        type Out = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let divisor = Divisor::new(s, s.splat(self.1));
            assert!(divisor.is_fast);
            let mut out = [0.0; LANES];
            s.store(divisor.quotient::<true>(s, s.load(self.0)), &mut out);
            out
        }
    }

    /// All significands of scales; those of weights `step` apart, which is all of BF16's for 2^16, of F16's for 2^13.
    fn try_all(isa: Isa, step: usize) {
        for scale in 0..128 {
            let scale = f32::from_bits(0x3f80_0000 | scale << 16);
            let mut bits = (0x3f80_0000..0x4000_0000_u32).step_by(step).peekable();
            while bits.peek().is_some() {
                let weights = [0.0; LANES].map(|_| bits.next().map_or(1.0, f32::from_bits));
                let quotients = pinned(isa, || dispatch(Quotients(&weights, scale)));
                assert_eq!(quotients, weights.map(|w| w / scale), "{weights:?} by {scale}");
            }
        }
    }

    #[test]
    fn quotients_are_those_of_division() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            try_all(isa, 1 << 13);
        }
        // Of F32's, every 61st: all were tried once, and 2^30 pairs are too many for every run of the tests.
        try_all(Isa::best(), 61);
    }
}
