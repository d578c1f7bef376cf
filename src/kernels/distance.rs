//! How far two slices of numbers are apart. Knows no tensor; what the numbers mean is the caller's business.

use super::{Kernel, LANES, Simd, dispatch};

/// What [`distance`] finds. Pairs in which a number is NaN or infinite count in `differing` and `nonfinite` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    /// Pairs that are not equal. Zeros of either sign are equal, and NaN is equal to NaN.
    pub differing: u64,
    /// Those of them in which a number is NaN or infinite.
    pub nonfinite: u64,
    /// The largest `|a - b|`.
    pub max_abs: f32,
    /// The largest `|a - b| / max(|a|, |b|)`: between 0 and 2.
    pub max_rel: f32,
    /// Sum of `(a - b)^2`.
    pub sum_sq_difference: f64,
    /// Sum of `a^2`.
    pub sum_sq_a: f64,
    /// Sum of `b^2`.
    pub sum_sq_b: f64,
    /// Sum of `a * b`.
    pub sum_product: f64,
}

impl Distance {
    /// The distance of two parts taken together.
    pub fn add(&mut self, more: &Self) {
        self.differing += more.differing;
        self.nonfinite += more.nonfinite;
        self.max_abs = self.max_abs.max(more.max_abs);
        self.max_rel = self.max_rel.max(more.max_rel);
        self.sum_sq_difference += more.sum_sq_difference;
        self.sum_sq_a += more.sum_sq_a;
        self.sum_sq_b += more.sum_sq_b;
        self.sum_product += more.sum_product;
    }
}

/// Whether two numbers count as equal.
#[inline(always)]
pub fn same(a: f32, b: f32) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

/// Compares `a` and `b`, number by number. The sums are kept in float64, in an order that the length alone decides.
///
/// # Panics
/// The lengths differ.
pub fn distance(a: &[f32], b: &[f32]) -> Distance {
    assert_eq!(a.len(), b.len(), "numbers on either side");
    dispatch(Pairs(a, b))
}

/// What [`error`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Error {
    /// Sum of `a^2`.
    pub sum_sq: f64,
    /// Sum of `(a - b)^2`; not finite if a number is not.
    pub sum_sq_error: f64,
    /// The largest `|a - b|`; NaN does not count.
    pub max_abs: f32,
}

/// How far `b` is from `a`, and nothing else: what [`distance`] finds, without the rest. The sums are kept in float64, in an
/// order that the length alone decides.
///
/// # Panics
/// The lengths differ.
pub fn error(a: &[f32], b: &[f32]) -> Error {
    assert_eq!(a.len(), b.len(), "numbers on either side");
    dispatch(Errors(a, b))
}

struct Errors<'a>(&'a [f32], &'a [f32]);

impl Kernel for Errors<'_> {
    type Out = Error;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Error {
        let ((a, a_rest), (b, b_rest)) = (self.0.as_chunks::<LANES>(), self.1.as_chunks::<LANES>());
        let mut sums = ErrorSums { sums: [[0.0; LANES]; 2], largest: [0.0; LANES] };
        for (a, b) in a.iter().zip(b) {
            sums.take(a, b);
        }
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        a[..a_rest.len()].copy_from_slice(a_rest);
        b[..b_rest.len()].copy_from_slice(b_rest);
        sums.take(&a, &b);
        let sum = |index: usize| sums.sums[index].iter().sum();
        Error { sum_sq: sum(0), sum_sq_error: sum(1), max_abs: sums.largest.into_iter().fold(0.0, f32::max) }
    }
}

/// What is kept of each lane.
struct ErrorSums {
    sums: [[f64; LANES]; 2],
    largest: [f32; LANES],
}

impl ErrorSums {
    #[inline(always)]
    fn take(&mut self, a: &[f32; LANES], b: &[f32; LANES]) {
        for lane in 0..LANES {
            let difference = (a[lane] - b[lane]).abs();
            self.largest[lane] = if difference > self.largest[lane] { difference } else { self.largest[lane] };
            let (a, b) = (f64::from(a[lane]), f64::from(b[lane]));
            self.sums[0][lane] += a * a;
            self.sums[1][lane] += (a - b) * (a - b);
        }
    }
}

struct Pairs<'a>(&'a [f32], &'a [f32]);

/// What is kept of each lane.
struct Sums {
    counts: [[u32; LANES]; 2],
    largest: [[f32; LANES]; 2],
    sums: [[f64; LANES]; 4],
}

/// Chunks after which the counts of the lanes are added up, before they could overflow.
const CHUNKS_MAX: usize = 1 << 24;

impl Kernel for Pairs<'_> {
    type Out = Distance;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Distance {
        let mut total = Distance::default();
        let ((a, a_rest), (b, b_rest)) = (self.0.as_chunks::<LANES>(), self.1.as_chunks::<LANES>());
        for (a, b) in a.chunks(CHUNKS_MAX).zip(b.chunks(CHUNKS_MAX)) {
            let mut sums = Sums::EMPTY;
            for (a, b) in a.iter().zip(b) {
                sums.take(a, b);
            }
            total.add(&sums.total());
        }
        // Zeros on both sides add nothing.
        let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
        a[..a_rest.len()].copy_from_slice(a_rest);
        b[..b_rest.len()].copy_from_slice(b_rest);
        let mut sums = Sums::EMPTY;
        sums.take(&a, &b);
        total.add(&sums.total());
        total
    }
}

impl Sums {
    const EMPTY: Self = Self { counts: [[0; LANES]; 2], largest: [[0.0; LANES]; 2], sums: [[0.0; LANES]; 4] };

    #[inline(always)]
    fn take(&mut self, a: &[f32; LANES], b: &[f32; LANES]) {
        for lane in 0..LANES {
            let (a, b) = (a[lane], b[lane]);
            let differs = !same(a, b);
            let finite = a.is_finite() & b.is_finite();
            self.counts[0][lane] += u32::from(differs);
            self.counts[1][lane] += u32::from(differs & !finite);
            let (a, b) = if finite { (a, b) } else { (0.0, 0.0) };
            let difference = (a - b).abs();
            let size = if a.abs() > b.abs() { a.abs() } else { b.abs() };
            let relative = if difference > 0.0 { difference / size } else { 0.0 };
            self.largest[0][lane] = if difference > self.largest[0][lane] { difference } else { self.largest[0][lane] };
            self.largest[1][lane] = if relative > self.largest[1][lane] { relative } else { self.largest[1][lane] };
            let (a, b) = (f64::from(a), f64::from(b));
            self.sums[0][lane] += (a - b) * (a - b);
            self.sums[1][lane] += a * a;
            self.sums[2][lane] += b * b;
            self.sums[3][lane] += a * b;
        }
    }

    #[inline(always)]
    fn total(&self) -> Distance {
        let count = |index: usize| self.counts[index].iter().map(|&count| u64::from(count)).sum();
        let largest = |index: usize| self.largest[index].iter().copied().fold(0.0, f32::max);
        let sum = |index: usize| self.sums[index].iter().sum();
        Distance {
            differing: count(0),
            nonfinite: count(1),
            max_abs: largest(0),
            max_rel: largest(1),
            sum_sq_difference: sum(0),
            sum_sq_a: sum(1),
            sum_sq_b: sum(2),
            sum_product: sum(3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Isa, pinned};

    #[test]
    fn it_is_what_a_plain_loop_finds() {
        let a: Vec<f32> = (0..1003).map(|i| (i % 17) as f32 - 8.0).collect();
        let mut b = a.clone();
        for (index, value) in [(0, 100.0), (500, 0.5), (1002, -9.25)] {
            b[index] = value;
        }
        let mut wanted = [0.0_f64; 4];
        for (&a, &b) in a.iter().zip(&b) {
            let (a, b) = (f64::from(a), f64::from(b));
            for (sum, term) in wanted.iter_mut().zip([(a - b).powi(2), a * a, b * b, a * b]) {
                *sum += term;
            }
        }
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let found = pinned(isa, || distance(&a, &b));
            assert_eq!((found.differing, found.nonfinite), (3, 0), "{isa}");
            // 100 against -8, and -9.25 against 8; all numbers are whole quarters, so that the sums are exact in any order.
            assert_eq!((found.max_abs, found.max_rel), (108.0, 17.25 / 9.25), "{isa}");
            let sums = [found.sum_sq_difference, found.sum_sq_a, found.sum_sq_b, found.sum_product];
            assert_eq!(sums, wanted, "{isa}");
            let error = pinned(isa, || error(&a, &b));
            assert_eq!([error.sum_sq_error, error.sum_sq], wanted[..2], "{isa}");
            assert_eq!(error.max_abs, 108.0, "{isa}");
        }
        assert!(!error(&[1.0, f32::INFINITY], &[1.0, 2.0]).sum_sq_error.is_finite());
        assert!(!error(&[1.0], &[f32::NAN]).sum_sq_error.is_finite());
    }

    #[test]
    fn what_is_not_finite_is_counted_and_not_added() {
        let a = [f32::NAN, f32::NAN, f32::INFINITY, 0.0, 1.0];
        let b = [f32::NAN, 1.0, f32::INFINITY, -0.0, f32::NEG_INFINITY];
        let found = distance(&a, &b);
        assert_eq!((found.differing, found.nonfinite), (2, 2));
        assert_eq!((found.max_abs, found.sum_sq_a, found.sum_sq_b), (0.0, 0.0, 0.0));
    }
}
