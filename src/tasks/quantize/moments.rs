//! What is summed of the rows that go into a site, depending on what its weights' schemes and methods ask for.

use anyhow::{Context, Result};

use crate::calibration::Site;
use crate::calibration::statistics::Statistics;
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
    /// How wide the network's inner activations are, where their magnitudes and squares are summed; 0 where not.
    inner: usize,
}

impl Needs {
    /// No rows need be shown.
    pub(super) const NOTHING: Self = Self { hessian: false, squares: false, amax: false, inner: 0 };

    /// What a weight with this target needs.
    pub(super) fn of(target: Target) -> Self {
        Self {
            hessian: target.method == Method::Gptq,
            squares: matches!(target.method, Method::Search | Method::Awq),
            amax: target.scheme.needs_data(),
            inner: 0,
        }
    }

    /// And what the factors of a network need, whose inner activations are `width` wide.
    pub(super) fn with_inner(self, width: usize) -> Self {
        Self { inner: width, ..self }
    }

    /// What two weights need together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            hessian: self.hessian || other.hessian,
            squares: self.squares || other.squares,
            amax: self.amax || other.amax,
            inner: self.inner.max(other.inner),
        }
    }

    /// Whether nothing is needed.
    pub(super) fn is_nothing(self) -> bool {
        self == Self::NOTHING
    }

    /// Bytes that the sums over rows of `width` take.
    pub(super) fn bytes(self, width: usize) -> u64 {
        let squares = 8 * width as u64 + 16 * self.inner as u64;
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
    inner: Inner,
}

/// Sums over rows of `silu(gate x) * (up x)`, as the unquantized weights give it.
#[derive(Clone, Debug, Default)]
struct Inner {
    magnitudes: Vec<f64>,
    squares: Vec<f64>,
}

impl Inner {
    /// Adds `factor` times the sums of other rows.
    fn add(&mut self, other: &Self, factor: f64) {
        let add =
            |sums: &mut [f64], more: &[f64]| sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += factor * more);
        add(&mut self.magnitudes, &other.magnitudes);
        add(&mut self.squares, &other.squares);
    }
}

impl Moments {
    /// What was written down of a site. None of a network's inner activations is.
    ///
    /// # Errors
    /// The file cannot be read, or holds squares or magnitudes that cannot be.
    pub(super) fn stored(statistics: &Statistics, site: Site, width: usize, needs: Needs) -> Result<Self> {
        let rows = statistics.rows(site) as f64;
        let mut moments =
            Self { rows, amax: statistics.amax(site)?, ..Self::new(width, Needs { hessian: false, ..needs }) };
        moments.needs = needs;
        if needs.squares {
            moments.squares = statistics.sum2(site)?;
        }
        if needs.hessian {
            let sums = statistics.hessian(site)?.context("the statistics hold no Hessians")?;
            moments.hessian = Some(Hessian::from_sums(width, rows, sums));
        }
        Ok(moments)
    }

    /// Nothing summed yet.
    pub(super) fn new(width: usize, needs: Needs) -> Self {
        Self {
            needs,
            width,
            rows: 0.0,
            hessian: needs.hessian.then(|| Hessian::new(width)),
            squares: if needs.squares { vec![0.0; width] } else { Vec::new() },
            amax: 0.0,
            inner: Inner { magnitudes: vec![0.0; needs.inner], squares: vec![0.0; needs.inner] },
        }
    }

    /// Adds rows, `[any number, width]`, and the inner activations that they lead to, where those are asked for.
    pub(super) fn add(&mut self, rows: &[f32], inner: Option<&[f32]>) {
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
        let Inner { magnitudes, squares } = &mut self.inner;
        for row in inner.unwrap_or_default().chunks_exact(magnitudes.len().max(1)) {
            for ((magnitude, square), &x) in magnitudes.iter_mut().zip(&mut *squares).zip(row) {
                let x = f64::from(x.abs());
                *magnitude += x;
                *square += x * x;
            }
        }
    }

    /// Adds the sums of other rows. A Hessian counts its rows itself, and the other may have nothing else.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.needs.squares {
            self.rows += other.rows;
        }
        if let (Some(hessian), Some(other)) = (&mut self.hessian, &other.hessian) {
            hessian.merge(other);
        }
        self.squares.iter_mut().zip(&other.squares).for_each(|(sum, other)| *sum += other);
        self.amax = self.amax.max(other.amax);
        self.inner.add(&other.inner, 1.0);
    }

    /// Shrinks toward the mean of `pooled`, which counts for `tau` rows. The largest magnitude becomes that of both.
    pub(super) fn blend(&mut self, pooled: &Self, tau: f64) {
        if let (Some(hessian), Some(pooled)) = (&mut self.hessian, &pooled.hessian) {
            hessian.blend(pooled, tau);
        }
        self.amax = self.amax.max(pooled.amax);
        if pooled.rows > 0.0 {
            self.rows += tau;
            let factor = tau / pooled.rows;
            self.squares.iter_mut().zip(&pooled.squares).for_each(|(sum, pooled)| *sum += factor * pooled);
            self.inner.add(&pooled.inner, factor);
        }
    }

    /// The largest magnitude, where it was asked for.
    pub(super) fn amax(&self) -> Option<f32> {
        self.needs.amax.then_some(self.amax)
    }

    /// Whether squares were asked for and are not finite.
    pub(super) fn is_unusable(&self) -> bool {
        self.rows > 0.0 && self.squares.iter().any(|sum| !((sum / self.rows) as f32).is_finite())
    }

    /// The mean square of each input, where it was asked for and rows were seen whose squares are finite.
    pub(super) fn importance(&self) -> Option<Vec<f32>> {
        let importance = means(&self.squares, self.rows)?;
        (self.needs.squares && importance.iter().any(|&value| value > 0.0)).then_some(importance)
    }

    /// Mean magnitude and mean square of each inner activation, as [`Moments::importance`].
    pub(super) fn inner(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        let Inner { magnitudes, squares } = &self.inner;
        let (magnitudes, squares) = (means(magnitudes, self.rows)?, means(squares, self.rows)?);
        magnitudes.iter().any(|&value| value > 0.0).then_some((magnitudes, squares))
    }

    /// The sums of `x x^T`, where they were asked for.
    pub(super) fn into_hessian(self) -> Option<Hessian> {
        self.hessian
    }
}

/// Sums over so many rows as means, if there were rows and all of it is finite.
fn means(sums: &[f64], rows: f64) -> Option<Vec<f32>> {
    let means: Vec<f32> = sums.iter().map(|sum| (sum / rows) as f32).collect();
    (rows > 0.0 && means.iter().all(|value| value.is_finite())).then_some(means)
}
