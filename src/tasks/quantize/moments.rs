//! What is summed of the rows that go into a site, depending on what its weights' schemes and methods ask for.

use crate::kernels::gemm::{Threads, View};
use crate::output::modules::Target;
use crate::quant::{Hessian, Method};

/// What a weight needs to know about its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// Sums of `x x^T`.
    hessian: bool,
    /// Sums of squares.
    squares: bool,
    /// The largest magnitude.
    amax: bool,
}

impl Needs {
    /// No rows need be shown.
    pub(super) const NOTHING: Self = Self { hessian: false, squares: false, amax: false };

    /// What a weight with this target needs.
    pub(super) fn of(target: Target) -> Self {
        let int4 = !target.scheme.is_fp8();
        Self {
            hessian: int4 && target.method == Method::Gptq,
            squares: int4 && target.method == Method::Search,
            amax: target.scheme.needs_data(),
        }
    }

    /// What two weights need together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            hessian: self.hessian || other.hessian,
            squares: self.squares || other.squares,
            amax: self.amax || other.amax,
        }
    }

    /// Whether nothing is needed.
    pub(super) fn is_nothing(self) -> bool {
        self == Self::NOTHING
    }

    /// Bytes that the sums over rows of `width` take.
    pub(super) fn bytes(self, width: usize) -> u64 {
        let squares = 8 * width as u64;
        if self.hessian { Hessian::bytes(width) + squares } else { squares }
    }
}

/// Sums over rows.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    needs: Needs,
    width: usize,
    rows: f64,
    hessian: Option<Hessian>,
    squares: Vec<f64>,
    amax: f32,
}

impl Moments {
    /// Nothing summed yet.
    pub(super) fn new(width: usize, needs: Needs) -> Self {
        Self {
            needs,
            width,
            rows: 0.0,
            hessian: needs.hessian.then(|| Hessian::new(width)),
            squares: if needs.squares { vec![0.0; width] } else { Vec::new() },
            amax: 0.0,
        }
    }

    /// Sums of the same kind, empty.
    pub(super) fn empty(&self) -> Self {
        Self::new(self.width, self.needs)
    }

    /// Adds rows, `[any number, width]`.
    pub(super) fn add(&mut self, rows: &[f32]) {
        let count = rows.len() / self.width;
        self.rows += count as f64;
        if let Some(hessian) = &mut self.hessian {
            hessian.add(Threads::Pool, View::dense(rows, count, self.width));
        }
        if self.needs.squares {
            for row in rows.chunks_exact(self.width) {
                self.squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            }
        }
        if self.needs.amax {
            self.amax = rows.iter().fold(self.amax, |most, x| most.max(x.abs()));
        }
    }

    /// Adds the sums of other rows.
    pub(super) fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        if let (Some(hessian), Some(other)) = (&mut self.hessian, &other.hessian) {
            hessian.merge(other);
        }
        self.squares.iter_mut().zip(&other.squares).for_each(|(sum, other)| *sum += other);
        self.amax = self.amax.max(other.amax);
    }

    /// Shrinks toward the mean of `pooled`, which counts for `tau` rows. The largest magnitude becomes that of both.
    pub(super) fn blend(&mut self, pooled: &Self, tau: f64) {
        if let (Some(hessian), Some(pooled)) = (&mut self.hessian, &pooled.hessian) {
            hessian.blend(pooled, tau);
        }
        self.rows += tau;
        let factor = tau / pooled.rows;
        self.squares.iter_mut().zip(&pooled.squares).for_each(|(sum, pooled)| *sum += factor * pooled);
        self.amax = self.amax.max(pooled.amax);
    }

    /// The largest magnitude, where it was asked for.
    pub(super) fn amax(&self) -> Option<f32> {
        self.needs.amax.then_some(self.amax)
    }

    /// The mean square of each input, where it was asked for and rows were seen whose squares are finite.
    pub(super) fn importance(&self) -> Option<Vec<f32>> {
        let importance: Vec<f32> = self.squares.iter().map(|sum| (sum / self.rows) as f32).collect();
        let good = self.needs.squares && self.rows > 0.0 && importance.iter().all(|value| value.is_finite());
        (good && importance.iter().any(|&value| value > 0.0)).then_some(importance)
    }

    /// The sums of `x x^T`, where they were asked for.
    pub(super) fn into_hessian(self) -> Option<Hessian> {
        self.hessian
    }
}
