//! The numbers of the searches: which scales are tried, and from which magnitude on (`ggml-quants.c`).

/// A group whose largest magnitude is below this is zero (`GROUP_MAX_EPS`).
pub(super) const TINY: f32 = 1e-15;

/// What a search for scale and minimum tries: inverse scales of `levels + first + step * k` over the range, `k = 0..=last`.
#[derive(Clone, Copy)]
pub(super) struct Tries {
    pub(super) levels: i32,
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) last: i32,
    /// Measures absolute errors and not their squares.
    pub(super) absolute: bool,
}

impl Tries {
    /// What is tried wherever there is importance.
    pub(super) fn weighted(levels: i32) -> Self {
        Self { levels, first: -0.9, step: 0.05, last: 36, absolute: false }
    }

    /// What is tried for Q4_K (15 levels) and Q5_K (31).
    pub(super) fn k4(levels: i32, weighted: bool) -> Self {
        match levels {
            _ if weighted => Self::weighted(levels),
            15 => Self { levels, first: -1.0, step: 0.1, last: 20, absolute: false },
            _ => Self { levels, first: -0.5, step: 0.1, last: 15, absolute: false },
        }
    }

    /// What is tried for Q2_K.
    pub(super) fn q2(weighted: bool) -> Self {
        let alone = Self { levels: 3, first: -0.5, step: 0.1, last: 15, absolute: true };
        if weighted { Self::weighted(3) } else { alone }
    }
}

/// The E8M0 code for a block of MXFP4 with this largest magnitude. Below 2^-125 it wraps around, as in C.
pub(super) fn exponent(magnitude: f32) -> u8 {
    if magnitude > 0.0 { (floor_log2(magnitude) - 2.0 + 127.0) as i32 as u8 } else { 0 }
}

/// The integer below the logarithm of a positive value, where the logarithm was rounded to single precision before: just
/// below a power of two it may be that power's. Double precision is far more than enough to tell: rounding to single turns at
/// distances that no value is near to.
fn floor_log2(x: f32) -> f32 {
    (f64::from(x).log2() as f32).floor()
}
