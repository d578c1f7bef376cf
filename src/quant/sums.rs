//! The error of a quantized matrix, summed so that neither threads nor stripes nor instruction sets show in the result.
//!
//! Sums are kept per output in `f64` and fed in the order of inputs. It must not know formats.

/// What quantizing a matrix did to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Sum of the squares of the weights.
    pub sum_sq_weight: f64,
    /// Sum of the squares of the differences between the weights and their dequantized values.
    pub sum_sq_error: f64,
    /// The same for round-to-nearest, whatever method was used.
    pub sum_sq_error_rtn: f64,
    /// The largest difference.
    pub max_abs_error: f32,
    /// Values that were too large for the format; only casts have any.
    pub overflows: u64,
}

impl Errors {
    /// Root of the squared error relative to the squared weights; 0 for a matrix of zeros.
    pub fn relative_rms(&self) -> f64 {
        if self.sum_sq_weight > 0.0 { (self.sum_sq_error / self.sum_sq_weight).sqrt() } else { 0.0 }
    }

    /// Takes the errors of other weights in.
    pub fn add(&mut self, more: &Self) {
        self.sum_sq_weight += more.sum_sq_weight;
        self.sum_sq_error += more.sum_sq_error;
        self.sum_sq_error_rtn += more.sum_sq_error_rtn;
        self.max_abs_error = self.max_abs_error.max(more.max_abs_error);
        self.overflows += more.overflows;
    }
}

/// Running sums for each output of a matrix.
#[derive(Clone, Debug)]
pub struct ErrorSums {
    weight: Vec<f64>,
    error: Vec<f64>,
    rtn: Vec<f64>,
    max_abs: f32,
}

/// The sums of the outputs that one stripe covers.
#[derive(Debug)]
pub struct ErrorRows<'a> {
    pub(super) weight: &'a mut [f64],
    pub(super) error: &'a mut [f64],
    pub(super) rtn: &'a mut [f64],
    pub(super) max_abs: &'a mut f32,
}

impl ErrorSums {
    /// Nothing summed yet, for a matrix of `outs` outputs.
    pub fn new(outs: usize) -> Self {
        Self { weight: vec![0.0; outs], error: vec![0.0; outs], rtn: vec![0.0; outs], max_abs: 0.0 }
    }

    /// The sums for a stripe that covers `outs` outputs from `first` on.
    ///
    /// # Panics
    ///
    /// There are fewer outputs than that.
    pub fn rows(&mut self, first: usize, outs: usize) -> ErrorRows<'_> {
        let range = first..first + outs;
        ErrorRows {
            weight: &mut self.weight[range.clone()],
            error: &mut self.error[range.clone()],
            rtn: &mut self.rtn[range],
            max_abs: &mut self.max_abs,
        }
    }

    /// The totals, outputs added up in order.
    pub fn finish(&self) -> Errors {
        Errors {
            sum_sq_weight: self.weight.iter().sum(),
            sum_sq_error: self.error.iter().sum(),
            sum_sq_error_rtn: self.rtn.iter().sum(),
            max_abs_error: self.max_abs,
            overflows: 0,
        }
    }
}
