//! The routed experts of each layer: which are there, how they are stored, what one takes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::llama4::{Coding, Llama4};
use crate::quant::Layout;

/// Matrices of one expert: gate, up and down.
const MATRICES: usize = 3;

/// The routed experts of one layer.
#[derive(Clone, Debug, Serialize)]
pub struct ExpertLayer {
    /// Decoder layer.
    pub layer: usize,
    /// Experts that the config promises.
    pub experts: usize,
    /// Experts whose three matrices are all there.
    pub present: usize,
    /// Experts that lack a matrix, or have one that does not fit.
    pub missing: Vec<usize>,
    /// Whether all experts are in fused tensors, `[experts, in, out]`.
    pub fused: bool,
    /// How many experts are stored in which way: a scheme, or `bf16`, ...; `a+b` if the matrices of an expert differ.
    pub stored_as: BTreeMap<String, usize>,
    /// Bytes of the largest expert that is there.
    pub bytes_per_expert: u64,
    /// Bytes of the smallest expert that is there.
    pub bytes_per_expert_min: u64,
    /// Bytes of all.
    pub bytes: u64,
}

/// One expert of one layer.
#[derive(Default)]
struct Expert {
    matrices: usize,
    fused: bool,
    labels: BTreeSet<String>,
    bytes: u64,
}

/// Every layer that has routed experts.
pub(super) fn layers(model: &Llama4) -> Vec<ExpertLayer> {
    let mut found: BTreeMap<usize, BTreeMap<usize, Expert>> = BTreeMap::new();
    for weight in &model.weights {
        if let (true, Some(layer), Some(expert)) = (weight.role.is_expert(), weight.layer, weight.expert) {
            let expert = found.entry(layer).or_default().entry(expert).or_default();
            expert.matrices += 1;
            expert.fused |= matches!(weight.coding, Coding::Plain(plane) if plane.layout == Layout::InOut);
            expert.labels.insert(model.label(weight));
            expert.bytes += model.stored_bytes(weight);
        }
    }
    let text = &model.config.text;
    let routed = text.moe_layers.iter().enumerate().filter(|(_, routed)| **routed);
    routed.map(|(layer, _)| summary(layer, text.num_local_experts, found.remove(&layer).unwrap_or_default())).collect()
}

fn summary(layer: usize, experts: usize, found: BTreeMap<usize, Expert>) -> ExpertLayer {
    let whole = |number: &usize| found.get(number).is_some_and(|expert| expert.matrices == MATRICES);
    let missing: Vec<usize> = (0..experts).filter(|number| !whole(number)).collect();
    let complete = || found.values().filter(|expert| expert.matrices == MATRICES);
    let mut stored_as = BTreeMap::new();
    for expert in complete() {
        *stored_as.entry(Vec::from_iter(expert.labels.iter().cloned()).join("+")).or_default() += 1;
    }
    ExpertLayer {
        layer,
        experts,
        present: experts - missing.len(),
        missing,
        fused: !found.is_empty() && found.values().all(|expert| expert.fused),
        stored_as,
        bytes_per_expert: complete().map(|expert| expert.bytes).max().unwrap_or(0),
        bytes_per_expert_min: complete().map(|expert| expert.bytes).min().unwrap_or(0),
        bytes: found.values().map(|expert| expert.bytes).sum(),
    }
}
