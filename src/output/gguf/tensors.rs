//! The tensors of a GGUF file: llama.cpp's names, extents and order, and which weights of the model each holds.
//!
//! It knows no types and no bytes of weights.

use std::collections::BTreeMap;

use super::mix::Candidate;
use crate::dtype::Dtype;
use crate::llama4::config::{Llama3Scaling, Rope, TextConfig};
use crate::llama4::gguf::names::{ROPE_FACTORS, text_name};
use crate::llama4::{Llama4, Role};

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// llama.cpp's name.
    pub name: String,
    /// Extents, the fastest-varying first.
    pub extents: Vec<u64>,
    /// What it holds.
    pub source: Source,
}

/// What a tensor holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Matrices `[out, in]` one after the other: indices into the model's weights.
    Weights(Vec<usize>),
    /// Bytes that follow from the config.
    Literal(Vec<u8>),
}

impl GgufTensor {
    /// A tensor with one weight, or with those of all experts of a layer.
    pub(super) fn of_weights(name: String, mut weights: Vec<usize>, model: &Llama4) -> Self {
        weights.sort_by_key(|&index| model.weights[index].expert);
        let first = &model.weights[weights[0]];
        let mut extents: Vec<u64> = first.shape.iter().rev().map(|&extent| extent as u64).collect();
        if first.expert.is_some() {
            extents.push(weights.len() as u64);
        }
        Self { name, extents, source: Source::Weights(weights) }
    }

    /// The tensor as the rules for types see it.
    pub fn candidate(&self, chosen: Option<Dtype>) -> Candidate<'_> {
        Candidate { name: &self.name, extents: &self.extents, chosen }
    }

    /// Number of elements.
    pub fn numel(&self) -> u64 {
        self.extents.iter().product()
    }

    /// The weights of the model that it holds.
    pub fn weights(&self) -> &[usize] {
        match &self.source {
            Source::Weights(weights) => weights,
            Source::Literal(_) => &[],
        }
    }
}

/// Every tensor of the text model, in the order of `llama-quantize` (`weight_name_comparer` in `src/llama-model-loader.h`): by layer, what
/// belongs to none first, and by name.
pub fn tensors(model: &Llama4) -> Vec<GgufTensor> {
    let mut found: BTreeMap<(Option<usize>, String), Vec<usize>> = BTreeMap::new();
    for (index, weight) in model.weights.iter().enumerate() {
        if !matches!(weight.role, Role::Vision | Role::Projector) {
            found.entry((weight.layer, text_name(weight.role, weight.layer))).or_default().push(index);
        }
    }
    let factors = factors(&model.config.text).map(|factors| GgufTensor {
        name: ROPE_FACTORS.to_owned(),
        extents: vec![factors.len() as u64],
        source: Source::Literal(factors.into_iter().flat_map(f32::to_le_bytes).collect()),
    });
    let tensor = |((_, name), weights)| GgufTensor::of_weights(name, weights, model);
    let mut tensors: Vec<GgufTensor> = found.into_iter().map(tensor).collect();
    if let Some(factors) = factors {
        let beside = tensors.partition_point(|tensor| !tensor.name.starts_with("blk.") && tensor.name < factors.name);
        tensors.insert(beside, factors);
    }
    tensors
}

/// What each frequency of the rotation is divided by, if it is scaled (`generate_extra_tensors` in llama.cpp's `conversion/llama.py`).
fn factors(text: &TextConfig) -> Option<Vec<f32>> {
    let Rope { theta, scaling: Some(scaling) } = text.rope else { return None };
    let dim = text.head_dim as f32;
    let factor = |pair: usize| {
        // In float32 as torch does it, where a number over a tensor is the number times the tensor's reciprocal.
        let power = theta.powf(f64::from((2 * pair) as f32 / dim)) as f32;
        factor((1.0 / (1.0 / power)) * (2.0 * std::f64::consts::PI) as f32, &scaling)
    };
    Some((0..text.head_dim / 2).map(factor).collect())
}

fn factor(wavelength: f32, scaling: &Llama3Scaling) -> f32 {
    let context = scaling.original_max_position_embeddings as f64;
    let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
    if f64::from(wavelength) < context / high {
        1.0
    } else if f64::from(wavelength) > context / low || low == high {
        scaling.factor as f32
    } else {
        let smooth = ((1.0 / wavelength) * context as f32 - low as f32) / (high - low) as f32;
        1.0 / ((1.0 - smooth) / scaling.factor as f32 + smooth)
    }
}
