//! What calibration knows about the inputs of a weight, handed to the task that quantizes it.
//!
//! It knows weights by their index; not where the numbers come from.

use std::borrow::Cow;

use anyhow::Result;

use crate::quant::gptq::Factor;

/// What is known about one weight's inputs.
#[derive(Clone, Debug, Default)]
pub struct Inputs<'a> {
    /// Second moments as GPTQ needs them.
    pub factor: Option<&'a Factor>,
    /// Mean square of each input, up to a factor.
    pub importance: Option<Cow<'a, [f32]>>,
    /// The largest magnitude.
    pub amax: Option<f32>,
    /// What to multiply the weight with before it is quantized, because another weight makes up for it.
    pub rescale: Option<Rescale<'a>>,
}

/// Factors of a weight.
#[derive(Clone, Copy, Debug)]
pub enum Rescale<'a> {
    /// Each input's weights are multiplied.
    Inputs(&'a [f32]),
    /// Each output's weights are divided.
    Outputs(&'a [f32]),
}

/// Tells what is known.
pub trait Evidence: Sync {
    /// About the weight with this index in the model.
    ///
    /// # Errors
    /// What is known cannot be read.
    fn of(&self, weight: usize) -> Result<Inputs<'_>>;
}

/// Nothing is known.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl Evidence for Nothing {
    fn of(&self, _weight: usize) -> Result<Inputs<'_>> {
        Ok(Inputs::default())
    }
}
