//! Squared errors of sixteen outputs at a time, safe from overflow and the same for every instruction set.
//!
//! Squares are summed in `f32` over a chunk of values, in units of the scale that is in use, and chunks in `f64`.

use crate::kernels::{LANES, Simd};

/// Values whose squares are summed in `f32`, before the sum is added up in `f64`.
pub(super) const CHUNK: usize = 64;

/// The power of two at or below a scale, and its reciprocal.
pub(super) struct Unit<S: Simd> {
    size: [f32; LANES],
    /// The power.
    pub(super) up: S::F,
    /// Its reciprocal.
    pub(super) down: S::F,
}

impl<S: Simd> Unit<S> {
    /// Scales are positive and at most a seventh of the largest float.
    #[inline(always)]
    pub(super) fn of(s: S, scale: S::F) -> Self {
        // Subnormal scales count as the smallest normal power of two, so that the reciprocal is finite.
        let exponent = s.imax(s.iand(s.bits(scale), s.isplat(0x7f80_0000)), s.isplat(1 << 23));
        let mut size = [0.0; LANES];
        s.store(s.floats(exponent), &mut size);
        Self { size, up: s.floats(exponent), down: s.floats(s.isub(s.isplat(254 << 23), exponent)) }
    }
}

/// Sums within a chunk, in the unit.
pub(super) struct Sums<S: Simd> {
    weight: S::F,
    error: S::F,
    max: S::F,
}

impl<S: Simd> Sums<S> {
    /// Nothing yet.
    #[inline(always)]
    pub(super) fn new(s: S) -> Self {
        Self { weight: s.splat(0.0), error: s.splat(0.0), max: s.splat(0.0) }
    }

    /// Adds sixteen weights and what became of them.
    #[inline(always)]
    pub(super) fn add(&mut self, s: S, weight: S::F, value: S::F, unit: &Unit<S>) {
        let error = s.mul(s.sub(weight, value), unit.down);
        let weight = s.mul(weight, unit.down);
        self.error = s.fma(error, error, self.error);
        self.weight = s.fma(weight, weight, self.weight);
        self.max = s.max(s.abs(error), self.max);
    }

    /// Ends a chunk.
    #[inline(always)]
    pub(super) fn fold(&mut self, s: S, tally: &mut Tally) {
        let (mut weight, mut error) = ([0.0; LANES], [0.0; LANES]);
        s.store(self.weight, &mut weight);
        s.store(self.error, &mut error);
        for lane in 0..LANES {
            tally.weight[lane] += f64::from(weight[lane]);
            tally.error[lane] += f64::from(error[lane]);
        }
        s.store(self.max, &mut tally.max_abs);
        (self.weight, self.error) = (s.splat(0.0), s.splat(0.0));
    }
}

/// Sums of squares and the largest error, per output.
#[derive(Clone)]
pub(super) struct Tally {
    pub(super) weight: [f64; LANES],
    pub(super) error: [f64; LANES],
    pub(super) max_abs: [f32; LANES],
}

impl Tally {
    /// Nothing yet.
    pub(super) const ZERO: Self = Self { weight: [0.0; LANES], error: [0.0; LANES], max_abs: [0.0; LANES] };

    /// Out of the unit, into the weights' own size.
    #[inline(always)]
    pub(super) fn scaled<S: Simd>(mut self, unit: &Unit<S>) -> Self {
        for lane in 0..LANES {
            let size = f64::from(unit.size[lane]);
            self.weight[lane] *= size * size;
            self.error[lane] *= size * size;
            self.max_abs[lane] *= unit.size[lane];
        }
        self
    }
}
